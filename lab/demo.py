"""
The main job, told as a story: ``make demo``.

Real processes of this machine, real ``salt-call`` runs; only the kernel is the lab's.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lab import Lab, zoo

REPO = Path(__file__).resolve().parent.parent
PATCH = "kgraft-patch-2-2_1"
BLUE, PLAIN = ("\033[1;34m", "\033[0m") if sys.stdout.isatty() else ("", "")


def say(text):
    print(f"\n{BLUE}# {text}{PLAIN}", flush=True)


class Minion:
    """A masterless minion whose kernel is the lab's, and whose modules are this checkout's."""

    def __init__(self, directory, lab, **options):
        self.directory = directory
        self.environ = lab.environ
        modules = directory / "file-root"
        modules.mkdir()
        for kind in ("_modules", "_states", "_beacons"):
            (modules / kind).symlink_to(REPO / kind)
        config = {
            "id": "demo",
            "file_client": "local",
            "root_dir": str(directory),
            "module_dirs": [str(modules)],
            "kgraft.root": str(lab.root),
            "enable_fqdns_grains": False,
            "log_level": "error",
            **options,
        }
        (directory / "minion").write_text("".join(f"{key}: {value!r}\n" for key, value in config.items()))

    def run(self, *words, **named):
        """Show the command as one would type it, and what it prints."""
        shown = [*words, *(f"{key}={value}" for key, value in named.items())]
        print(f"\n$ salt-call {shlex.join(shown)}", flush=True)
        salt_call = Path(sys.executable).parent / "salt-call"
        done = subprocess.run(
            [salt_call, "--local", "-c", self.directory, *shown],
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        print(done.stdout.rstrip(), flush=True)
        return done


def shell(command, environ):
    print(f"\n$ {command}", flush=True)
    subprocess.run(command, shell=True, env=environ, check=True, timeout=60)


def expect(done, words):
    """A story that is not true must not be told to its end."""
    if words not in done.stdout:
        sys.exit(f"demo: expected {words!r} in what salt-call printed (exit code {done.returncode})")


def main():
    print(
        "No kernel is touched here: a lab stands in for one with kGraft, over real processes of this machine.",
        flush=True,
    )
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kg")))
        say("Some processes: two that sleep (one of them in eight threads), a busy one, a stopped one, a zombie.")
        animals = {
            kind: stack.enter_context(zoo.keep(kind)) for kind in ("sleep", "threads", "busy", "stopped", "zombie")
        }
        for kind, animal in animals.items():
            print(f"{animal.pid:>7} {kind}")
        lab = stack.enter_context(
            Lab(
                directory / "kernel",
                fake_signal=False,
                pids=[animal.pid for animal in animals.values()],
                install=[PATCH],
            )
        )
        minion = Minion(directory, lab)

        say("Where does this machine stand?")
        expect(minion.run("kgraft.summary"), "ready no patch")

        say("A live patch is loaded, as its package's script would do. modprobe returns at once ...")
        shell(f"modprobe {PATCH}", lab.environ)
        say("... but a patch that is loaded is not settled: tasks that sleep are still in the old code.")
        expect(minion.run("kgraft.summary"), "in_progress kgraft_patch_2_2_1 apply")
        expect(minion.run("kgraft.blocking", "--out=yaml"), f"pid: {animals['stopped'].pid}")

        say("A poke (SIGSTOP, then SIGCONT) moves sleepers along; it says whom it spares, and why.")
        expect(minion.run("kgraft.poke", "--out=yaml"), "stopped by somebody else")

        say("The sleepers have crossed and sleep on. One process is left, and the wait names it.")
        expect(minion.run("kgraft.summary"), "zoo-stopped")
        expect(minion.run("kgraft.wait", timeout=1), f"zoo-stopped ({animals['stopped'].pid}) stopped")

        say(
            "Only who stopped it can decide to continue it. Then the kernel sees the end at its next look, 2 s later at most."
        )
        print(f"\n$ kill -CONT {animals['stopped'].pid}", flush=True)
        os.kill(animals["stopped"].pid, signal.SIGCONT)
        expect(minion.run("kgraft.wait", timeout=30), "local:")
        expect(minion.run("kgraft.status"), "ready")
        expect(minion.run("kgraft.patches"), "applied")
    print(f"\nThe demonstration took {time.monotonic() - began:.0f} s.")


if __name__ == "__main__":
    main()
