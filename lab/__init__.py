"""
A kernel with live patching in user space, over real processes: it is not a kernel. ``python -m lab --help`` tells more.

.. code-block:: python

    with Lab(root, period=0.2, run=["sleep 600"]) as lab:
        lab.load("kgraft-patch-2-2_1")
"""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lab.client import ask

# Salt imports what lies at the root of a directory of modules, such as a checkout: nothing here is for its users.
__load__ = ()

HERE = Path(__file__).resolve().parent


def wait_until(condition, what, timeout=20):
    """Look every 20 ms; raises TimeoutError after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not in {timeout} s: {what}")
        time.sleep(0.02)


class Lab:
    """
    A running lab, from ``with`` to the end of its block.

    root
        a directory to itself; this is what ``kgraft.root`` gets
    abi
        ``kgraft`` or ``livepatch``
    period
        seconds from one check of the kernel to the next; default: 2, or 1 for livepatch
    fake_signal
        the kernel wakes sleepers itself; default: not kGraft, but livepatch (every 15th check)
    run
        commands (text, or a list of arguments) whose processes are watched, and ended with the lab
    pids, cgroups
        other processes to watch; they are never signalled
    old
        kGraft on 3.12: zombies hold a patch up
    stuck_threads
        names of kernel threads that never cross
    install
        names of patches that ``modprobe`` finds
    release
        what ``uname -r`` would say
    """

    def __init__(
        self,
        root,
        abi="kgraft",
        *,
        period=None,
        fake_signal=None,
        run=(),
        pids=(),
        cgroups=(),
        old=False,
        stuck_threads=(),
        install=(),
        release=None,
    ):
        self.root = Path(root).resolve()
        self._process = None
        # Its standard input is a pipe from us: however we end, it ends too.
        self._command = [sys.executable, "-m", "lab", str(self.root), "--abi", abi, "--until-eof"]
        commands = [command if isinstance(command, str) else shlex.join(map(str, command)) for command in run]
        for option, values in (
            ("--run", commands),
            ("--pid", pids),
            ("--cgroup", cgroups),
            ("--stuck-thread", stuck_threads),
            ("--install", install),
            ("--period", [period] if period else []),
            ("--release", [release] if release else []),
        ):
            self._command += [f"{option}={value}" for value in values]
        if fake_signal is not None:
            self._command.append("--fake-signal" if fake_signal else "--no-fake-signal")
        if old:
            self._command.append("--old")

    def __enter__(self):
        environ = dict(os.environ, PYTHONPATH=str(HERE.parent))
        with tempfile.TemporaryFile("w+", errors="backslashreplace") as out:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT, env=environ
            )
            try:
                wait_until(lambda: self._answers() or self._process.poll() is not None, "the lab's answer")
                if self._process.poll() is None:
                    return self
                out.seek(0)
                raise RuntimeError(f"the lab did not start: {out.read()}")
            except BaseException:
                self.__exit__()
                raise

    def _answers(self):
        """It is there, and it is not another one that is at work in this directory."""
        try:
            return self._ask("pid") == self.pid
        except (OSError, ValueError):
            return False

    def __exit__(self, *problem):
        self._process.terminate()
        try:
            self._process.wait(15)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()

    @property
    def pid(self):
        return self._process.pid

    @property
    def checks(self):
        """How often the kernel looked whether the transition that runs can end."""
        return self._ask("checks")

    @property
    def environ(self):
        """The environment in which ``modprobe`` and its like are the lab's."""
        return dict(os.environ, KGRAFT_LAB=str(self.root), PATH=f"{HERE / 'bin'}:{os.environ['PATH']}")

    @property
    def log(self):
        """What the kernel said so far, as lines without their time."""
        try:
            lines = (self.root / "kernel.log").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        return [line.partition("] ")[2] for line in lines]

    def load(self, name, **patch):
        """insmod; ``functions`` and ``replace_all`` as ``files.Kernel.patch`` has them. Refusals are ``OSError``."""
        self._ask("load", name=name, **patch)

    def revert(self, name):
        """What a write to ``revert`` or ``enabled`` does, with its errno as ``OSError``."""
        self._ask("revert", name=name)

    def unload(self, name):
        """rmmod."""
        self._ask("unload", name=name)

    def force(self, name):
        """livepatch: what a write to ``force`` does, with its errno as ``OSError``."""
        self._ask("force", name=name)

    def unstick(self, name):
        """The stuck kernel thread ``name`` crosses after all."""
        self._ask("unstick", name=name)

    def watch(self, pid):
        """Watch one more process, from the next start on."""
        self._ask("watch", pid=pid)

    def _ask(self, order, **arguments):
        answer = ask(self.root, order, **arguments)
        if "errno" in answer:
            raise OSError(answer["errno"], answer["error"])
        return answer["answer"]
