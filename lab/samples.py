"""
Sample processes, one in each state that matters to live patching: ``python -m lab.samples KIND``, or from Python:

.. code-block:: python

    with samples.process("traced") as traced:
        traced.pid
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from lab import procfs, wait_until

PTRACE_ATTACH = 16
THREADS = 8


def _sleep():
    time.sleep(3600)


def _threads():
    started = threading.Barrier(THREADS)

    def sleep():
        started.wait()
        _sleep()

    for _ in range(THREADS - 1):
        threading.Thread(target=sleep, daemon=True).start()
    started.wait()
    return os.getpid()


def _run():
    while True:
        pass


def _stop():
    while True:
        os.kill(os.getpid(), signal.SIGSTOP)


def _zombie():
    child = os.fork()
    if not child:
        os._exit(0)
    return child


def _vfork():
    """glibc spawns by vfork: the parent waits (D) until its child, which opens a fifo first, executes."""
    with tempfile.TemporaryDirectory() as directory:
        fifo = os.path.join(directory, "fifo")
        os.mkfifo(fifo)
        parent = os.fork()
        if not parent:
            os.posix_spawn("/bin/true", ["true"], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 0, fifo, os.O_RDONLY, 0)])
        wait_until(lambda: procfs.stat(parent)["letter"] == "D" and _asleep(_children(parent)), "a vfork under way")
    return parent


def _children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _asleep(pids):
    return [procfs.stat(pid)["letter"] for pid in pids] == ["S"]


def _traced():
    child = os.fork()
    if not child:
        _sleep()
        os._exit(0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(PTRACE_ATTACH, child, None, None):
        raise OSError(ctypes.get_errno(), "ptrace")
    os.waitpid(child, 0)
    return child


# By kind: what starts it and returns its pid, what who started it does then, the letter that says that it is there
KINDS = {
    "sleep": (os.getpid, _sleep, "S"),
    "pause": (os.getpid, signal.pause, "S"),
    "poll": (os.getpid, lambda: select.poll().poll(), "S"),
    "epoll": (os.getpid, lambda: select.epoll().poll(), "S"),
    "read": (os.getpid, lambda: os.read(os.pipe()[0], 1), "S"),
    "futex": (os.getpid, lambda: threading.Semaphore(0).acquire(), "S"),
    "threads": (_threads, _sleep, "S"),
    "busy": (os.getpid, _run, "R"),
    "stopped": (os.getpid, _stop, "T"),
    "zombie": (_zombie, _sleep, "Z"),
    "vfork": (_vfork, _sleep, "D"),
    "traced": (_traced, _sleep, "t"),
}


class Process:
    def __init__(self, pid):
        self.pid = pid

    @property
    def letter(self):
        return procfs.stat(self.pid)["letter"]

    @property
    def tids(self):
        return sorted(procfs.Processes().threads(self.pid))

    def end(self):
        """Kill it; a process ends even while it is stopped or traced."""
        os.kill(self.pid, signal.SIGKILL)

    def switches(self):
        """``(letter, switches)`` of each thread."""
        return [procfs.Processes().look(self.pid, tid) for tid in self.tids]


@contextlib.contextmanager
def process(kind):
    """A process of this kind, in its state when the block begins, gone with its session when it ends."""
    letter = KINDS[kind][-1]
    child = subprocess.Popen(
        [sys.executable, "-m", "lab.samples", kind],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
        env=dict(os.environ, PYTHONPATH=str(Path(__file__).resolve().parent.parent)),
    )
    try:
        line = child.stdout.readline()
        if not line:
            raise RuntimeError(f"{kind} did not start")
        sample = Process(int(line))
        wait_until(lambda: sample.letter == letter, f"{kind} in its state")
        if kind != "busy":
            wait_until(_at_rest(sample, letter), f"{kind} at rest")
        yield sample
    finally:
        for pid, about in procfs.stats():
            if about["session"] == child.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()


def _at_rest(sample, letter):
    """Each thread in its state, twice the same, a moment apart."""
    last = []

    def same_again():
        former, last[:] = list(last), sample.switches()
        return former == last and all(look and look[0] == letter for look in last)

    return same_again


def main():
    if len(sys.argv) != 2 or sys.argv[1] not in KINDS:
        kinds = ",".join(KINDS)
        sys.exit(f"usage: python -m lab.samples {{{kinds}}}\nPrints the pid of a process of this kind and stays.")
    start, stay, _ = KINDS[sys.argv[1]]
    Path("/proc/self/comm").write_text(f"sample-{sys.argv[1]}", encoding="ascii")
    print(start(), flush=True)
    stay()


if __name__ == "__main__":
    main()
