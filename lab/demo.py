"""
The main job, told as a story: ``make demo``.

Real processes of this machine, a real master and minion, real ``salt-call`` runs, zypper and rpm in a directory; only
the kernel is the lab's. Of an answer it shows the lines that matter, and all of them with ``DETAILS=1``.
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
from tests.support.packages import KERNEL, PackageRepository, SuseRoot, minion_options
from tests.support.paused_server import Server

REPO = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PAGE = REPO / ".cache" / "demo.html"
DETAILS = os.environ.get("DETAILS", "") not in ("", "0")
BLUE, PLAIN = ("\033[1;34m", "\033[0m") if sys.stdout.isatty() else ("", "")
SLS = """\
the newest live patch:
  kgraft.applied:
    - version: latest
    - timeout: 3
    - probes:
      - tcp: {{address: '{}', send: "ping\\n", expect: "pong\\n", interval: 0.1}}
        name: a service
"""


def say(text):
    print(f"{BLUE}# {text}{PLAIN}", flush=True)


def show(*commands):
    print(*(f"$ {command}" for command in commands), sep="\n", flush=True)


def cut(text, pattern):
    """The lines of an answer that matter; an … at the end of a line stands for those that are left out after it."""
    lines = []
    for line in text.splitlines():
        if DETAILS or re.search(pattern, line):
            lines.append(line)
        elif not lines:
            lines.append("…")
        elif not lines[-1].endswith("…"):
            lines[-1] += " …"
    return "\n".join(lines)


class Site:
    """A master and its minion ``demo`` on loopback; the minion's kernel and packages are those of this story."""

    def __init__(self, directory, lab, sls):
        self.directory = directory
        self.environ = lab.environ
        self.daemons = []
        file_root = directory / "srv"
        file_root.mkdir()
        for kind in ("_modules", "_states", "_beacons"):
            (file_root / kind).symlink_to(REPO / kind)
        (file_root / "patched.sls").write_text(sls)
        # critical: Salt logs the changes of a state that failed as an [ERROR], above an answer that says the same
        common = {"file_roots": {"base": [str(file_root)]}, "enable_fqdns_grains": False, "log_level": "critical"}
        publish, answer = _free_port(), _free_port()
        self._configure(
            "master",
            root_dir=str(directory / "m"),
            interface="127.0.0.1",
            publish_port=publish,
            ret_port=answer,
            auto_accept=True,
            worker_threads=2,
            runner_dirs=[str(REPO / "_runners")],
            event_return="rawfile_json",
            event_return_whitelist=["salt/beacon/*/kgraft/*"],
            **{"rawfile_json.filename": str(directory / "kept")},
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

    def call(self, *words, only="", shown=(), meanwhile=None, **named):
        """
        Show a salt-call as one would type it, and of what it prints the lines that match ``only``. ``meanwhile`` is
        done while the function runs, and ``shown`` typed for it.
        """
        words = [*words, *(f"{key}={value}" for key, value in named.items())]
        show(f"salt-call {shlex.join(words)}{' &' if meanwhile else ''}", *shown)
        with subprocess.Popen(
            [BIN / "salt-call", "--local", "-c", self.directory, *words],
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            if meanwhile:
                wait_until(lambda: self.running(words[0]) or process.poll() is not None, f"{words[0]} at work", 60)
                meanwhile()
            try:
                text = process.communicate(timeout=120)[0]
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        print(f"{cut(text.rstrip(), only)}\n", flush=True)
        return text

    def run(self, *words):
        """Show a salt-run, and what it prints."""
        show(f"salt-run {shlex.join(words)}")
        command = [BIN / "salt-run", "-c", self.directory, *words]
        text = subprocess.run(command, env=self.environ, stdout=subprocess.PIPE, text=True, timeout=120).stdout
        print(f"{text.rstrip()}\n", flush=True)
        return text

    def running(self, function):
        """Whether the minion or a salt-call is at it, by the notes that both make of their work (saltutil.running)."""
        for note in (self.directory / "n/var/cache/salt/minion/proc").glob("*"):
            with contextlib.suppress(FileNotFoundError):
                if function.encode() in note.read_bytes():
                    return True
        return False


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def expect(text, *words):
    """A story that is not true is not told to its end."""
    for word in words:
        if word not in text:
            sys.exit(f"demo: expected {word!r} in what was printed")


def resume(pid):
    time.sleep(2)
    os.kill(pid, signal.SIGCONT)


def main():
    print("No kernel is touched here: a lab stands in for one with kGraft, over real processes of this machine.")
    if not DETAILS:
        print("… marks lines left out of an answer; make demo DETAILS=1 shows them all.")
    print()
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kg", ignore_cleanup_errors=True)))
        say("Some processes: two that sleep (one in eight threads), a busy one, a stopped one, a zombie.")
        processes = {
            kind: stack.enter_context(samples.process(kind))
            for kind in ("sleep", "threads", "busy", "stopped", "zombie")
        }
        print(", ".join(f"{process.pid} {kind}" for kind, process in processes.items()), end="\n\n")
        # it is busy when nobody else is: it shall not slow the story
        os.setpriority(os.PRIO_PROCESS, processes["busy"].pid, 19)
        stopped = processes["stopped"].pid
        lab = stack.enter_context(
            Lab(
                directory / "k", release=KERNEL, fake_signal=False, pids=[process.pid for process in processes.values()]
            )
        )
        repository = PackageRepository(directory / "live-patching")
        repository.add_live_patch(KERNEL, "10-2.1")
        suse = stack.enter_context(SuseRoot(lab.root, repository))
        suse.insmod_with(lab.environ)
        sls = SLS.format(stack.enter_context(Server(directory / "log")).address)
        site = stack.enter_context(Site(directory, lab, sls))

        say("Where does this machine stand, and what would the state do?")
        show("cat patched.sls")
        print(sls)
        expect(site.call("kgraft.summary"), "ready no live patch")
        verdict = r"Result:|Comment:|^ +- |Gaps|Probe"
        text = site.call("state.apply", "patched", test=True, only=verdict)
        expect(text, "10-2.1 would be installed", "Result: None", "Gaps would be measured by a service")

        say("The live run, while a master listens to the minion's beacon. The time-out of 3 s is soon over.")
        site.listen()
        text = site.call("state.apply", "patched", only=verdict)
        expect(text, "Result: False", f"sample-stopped ({stopped})", "sample-sleep", "10-2.1", "Probe a service")
        say("Installed and loaded, but not settled: some tasks are still in the old code. The last line: a service.")
        expect(site.call("kgraft.summary"), "in_progress kgraft_patch_10_2_1 apply")
        if DETAILS:
            expect(site.call("kgraft.blocking", "--out=yaml"), f"pid: {stopped}")

        say("A poke moves the sleepers along, and they sleep on; it says whom it spares, and why.")
        text = site.call("kgraft.poke", "--out=yaml", only=r"poked:|skipped:|name:|reason:")
        expect(text, "stopped by somebody else")

        say("Who stopped it may continue it. (The zombie holds up old kernels only.)")
        text = site.call(
            "kgraft.wait", timeout=60, shown=[f"sleep 2; kill -CONT {stopped}"], meanwhile=lambda: resume(stopped)
        )
        waited = re.search(r"local:\s+([\d.]+)$", text)
        if not waited or float(waited[1]) < 0.2:
            sys.exit("demo: expected that it had to wait")

        say("Settled; and the state has nothing left to do.")
        text = site.call("state.apply", "patched", only=verdict)
        expect(text, "is already applied and settled", "Succeeded: 1\n")
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

        print()
        say("A fleet of one machine, as its master sees it: nobody is missing, so the exit code is 0.")
        expect(site.run("kgraft.report"), "1 settled             10-2.1", "1 asked", "Good: ", "retcode:\n    0")

        say("The same to look at: where the fleet stands, and its transitions, in one file for a browser.")
        kept = directory / "kept"
        wait_until(
            lambda: kept.exists() and "/finished" in kept.read_text(), "the end among the events that are kept", 30
        )
        PAGE.parent.mkdir(exist_ok=True)
        expect(site.run("kgraft.page", f"path={PAGE}", "days=1"), str(PAGE), "Good: every machine")
        expect(PAGE.read_text("utf-8"), "kgraft_patch_10_2_1", "△ was stuck, took", "It is stopped, by SIGSTOP")
        if "SUDO_UID" in os.environ:
            os.chown(PAGE, int(os.environ["SUDO_UID"]), -1)
    print(f"The demonstration took {time.monotonic() - began:.0f} s. Open its page in a browser: {PAGE}")


if __name__ == "__main__":
    main()
