"""
The main job, told as a story: ``make demo``.

Real processes of this machine, a real master and minion, real ``salt-call`` runs, zypper and rpm in a directory; only
the kernel is the lab's.
"""

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lab import Lab, samples, wait_until
from tests.support.packages import KERNEL, SuseRoot, minion_options, standard_repository

REPO = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
BLUE, PLAIN = ("\033[1;34m", "\033[0m") if sys.stdout.isatty() else ("", "")
SLS = """\
the newest live patch:
  kgraft.applied:
    - version: latest
    - timeout: 3
"""


def say(text):
    print(f"\n{BLUE}# {text}{PLAIN}", flush=True)


def show(command):
    print(f"\n$ {command}", flush=True)


class Site:
    """A master and its minion ``demo`` on loopback; the minion's kernel and packages are those of this story."""

    def __init__(self, directory, lab):
        self.directory = directory
        self.environ = lab.environ
        self.daemons = []
        file_root = directory / "srv"
        file_root.mkdir()
        for kind in ("_modules", "_states", "_beacons"):
            (file_root / kind).symlink_to(REPO / kind)
        (file_root / "patched.sls").write_text(SLS)
        common = {"file_roots": {"base": [str(file_root)]}, "enable_fqdns_grains": False, "log_level": "error"}
        publish, answer = _free_port(), _free_port()
        self._configure(
            "master",
            root_dir=str(directory / "m"),
            interface="127.0.0.1",
            publish_port=publish,
            ret_port=answer,
            auto_accept=True,
            worker_threads=2,
            **common,
        )
        self._configure(
            "minion",
            root_dir=str(directory / "n"),
            id="demo",
            master="127.0.0.1",
            publish_port=publish,
            master_port=answer,
            module_dirs=[str(file_root)],
            beacons={"kgraft": [{"stuck_after": 2}]},
            **{"kgraft.root": str(lab.root)},
            **minion_options(),
            **common,
        )

    def _configure(self, name, **options):
        (self.directory / name).write_text(json.dumps(options))  # which is YAML

    def __enter__(self):
        self._start("salt-master")
        self._start("salt-minion")
        return self

    def _start(self, *command, **options):
        process = subprocess.Popen(
            [BIN / command[0], "-c", self.directory, *command[1:]],
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            **{"stdout": subprocess.DEVNULL, **options},
        )
        self.daemons.append(process)

    def __exit__(self, *problem):
        for process in reversed(self.daemons):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def listen(self):
        """What the master hears of the beacon from now on goes to a file, as ``salt-run state.event`` prints it."""
        log = open(self.directory / "events", "w+")  # noqa: SIM115, it lives as long as the story
        self._start("salt-run", "state.event", "salt/beacon/*", stdout=log)
        wait_until(lambda: list(self.directory.rglob("kgraft_beacon_*.json")), "the beacon's first look", 90)

    def events(self):
        return re.findall(
            r"^salt/beacon/demo/kgraft/(\w+)\t(.*)$", (self.directory / "events").read_text(), re.MULTILINE
        )

    def call(self, *words, **named):
        """Show a salt-call as one would type it, and what it prints."""
        shown = [*words, *(f"{key}={value}" for key, value in named.items())]
        show(f"salt-call {shlex.join(shown)}")
        done = subprocess.run(
            [BIN / "salt-call", "--local", "-c", self.directory, *shown],
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        print(done.stdout.rstrip(), flush=True)
        return done.stdout


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def expect(text, *words):
    """A story that is not true is not told to its end."""
    for word in words:
        if word not in text:
            sys.exit(f"demo: expected {word!r} in what was printed")


def main():
    print(
        "No kernel is touched here: a lab stands in for one with kGraft, over real processes of this machine.",
        flush=True,
    )
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kg", ignore_cleanup_errors=True)))
        say("Some processes: two that sleep (one in eight threads), a busy one, a stopped one, a zombie.")
        animals = {
            kind: stack.enter_context(samples.process(kind))
            for kind in ("sleep", "threads", "busy", "stopped", "zombie")
        }
        for kind, animal in animals.items():
            print(f"{animal.pid:>7} {kind}")
        stopped = animals["stopped"].pid
        lab = stack.enter_context(
            Lab(directory / "k", release=KERNEL, fake_signal=False, pids=[animal.pid for animal in animals.values()])
        )
        suse = stack.enter_context(SuseRoot(lab.root, standard_repository(directory / "live-patching")))
        suse.insmod_with(lab.environ)
        site = stack.enter_context(Site(directory, lab))

        say("Where does this machine stand, and what would the state do?")
        show("cat patched.sls")
        print(SLS, end="")
        expect(site.call("kgraft.summary"), "ready no live patch")
        expect(site.call("state.apply", "patched", test=True), "10-2.1 would be installed", "Result: None")

        say("A master listens to the minion's beacon. Now the live run.")
        site.listen()
        text = site.call("state.apply", "patched")
        expect(text, "Result: False", f"sample-stopped ({stopped})", "sample-sleep", "10-2.1")
        say("Installed and loaded, but not settled: some tasks are still in the old code.")
        expect(site.call("kgraft.summary"), "in_progress kgraft_patch_10_2_1 apply")
        expect(site.call("kgraft.blocking", "--out=yaml"), f"pid: {stopped}")

        say("A poke (SIGSTOP, then SIGCONT) moves sleepers along; it says whom it spares, and why.")
        expect(site.call("kgraft.poke", "--out=yaml"), "stopped by somebody else")
        say("The sleepers have crossed, and sleep on. The wait names who is left (a zombie holds up old kernels only).")
        expect(site.call("kgraft.wait", timeout=1), f"sample-stopped ({stopped}) stopped")

        say("Who stopped it may continue it. The kernel sees the end at its next look, 2 s later at most.")
        show(f"kill -CONT {stopped}")
        os.kill(stopped, signal.SIGCONT)
        expect(site.call("kgraft.wait", timeout=30), "local:")
        expect(site.call("state.apply", "patched"), "is already applied and settled", "Succeeded: 1\n")
        expect(site.call("kgraft.summary"), "ready kgraft_patch_10_2_1")

        say("And what the master heard meanwhile (salt-run state.event 'salt/beacon/*'), in short:")
        wait_until(lambda: [tag for tag, _ in site.events()][-1:] == ["finished"], "the event of the end", 30)
        for tag, payload in site.events():
            data = json.loads(payload)
            seconds = f" after {data['seconds']:.0f} s" if "seconds" in data else ""
            names = ", ".join(f"{task['name']}({task['pid']}) {task['kind']}" for task in data.get("tasks", []))
            print(
                f"salt/beacon/demo/kgraft/{tag}: {data['patch']} {data['direction']}{seconds}{names and ': ' + names}"
            )
        expect(" ".join(tag for tag, _ in site.events()), "started stuck", "finished")
    print(f"\nThe demonstration took {time.monotonic() - began:.0f} s.")


if __name__ == "__main__":
    main()
