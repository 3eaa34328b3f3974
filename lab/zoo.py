"""
Processes in each state that matters to live patching: ``python -m lab.zoo KIND``, or from Python:

.. code-block:: python

    with zoo.keep("traced") as animal:
        animal.pid
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

from lab import procfs

PTRACE_ATTACH = 16
THREADS = 8


def _ready(pid):
    print(pid, flush=True)


def _sleep():
    _ready(os.getpid())
    time.sleep(3600)


def _pause():
    _ready(os.getpid())
    while True:
        signal.pause()


def _poll():
    _ready(os.getpid())
    select.poll().poll()


def _epoll():
    _ready(os.getpid())
    select.epoll().poll()


def _read():
    reader, _ = os.pipe()
    _ready(os.getpid())
    os.read(reader, 1)


def _futex():
    lock = threading.Lock()
    lock.acquire()
    _ready(os.getpid())
    lock.acquire()


def _threads():
    started = threading.Barrier(THREADS)

    def sleep():
        started.wait()
        time.sleep(3600)

    for _ in range(THREADS - 1):
        threading.Thread(target=sleep, daemon=True).start()
    started.wait()
    _sleep()


def _busy():
    _ready(os.getpid())
    while True:
        pass


def _stopped():
    _ready(os.getpid())
    while True:
        os.kill(os.getpid(), signal.SIGSTOP)


def _zombie():
    child = os.fork()
    if not child:
        os._exit(0)
    _ready(child)
    time.sleep(3600)


def _vfork():
    """glibc spawns by vfork: the parent waits (D) until its child, which opens a fifo first, executes."""
    with tempfile.TemporaryDirectory() as directory:
        fifo = os.path.join(directory, "fifo")
        os.mkfifo(fifo)
        parent = os.fork()
        if not parent:
            os.posix_spawn("/bin/true", ["true"], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 0, fifo, os.O_RDONLY, 0)])
        wait_until(lambda: procfs.stat(parent)["letter"] == "D" and _asleep(_children(parent)), "a vfork under way")
    _ready(parent)
    time.sleep(3600)


def _children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _asleep(pids):
    return [procfs.stat(pid)["letter"] for pid in pids] == ["S"]


def _traced():
    child = os.fork()
    if not child:
        time.sleep(3600)
        os._exit(0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(PTRACE_ATTACH, child, None, None):
        raise OSError(ctypes.get_errno(), "ptrace")
    os.waitpid(child, 0)
    _ready(child)
    time.sleep(3600)


KINDS = {  # the letter that says that it is there
    "sleep": (_sleep, "S"),
    "pause": (_pause, "S"),
    "poll": (_poll, "S"),
    "epoll": (_epoll, "S"),
    "read": (_read, "S"),
    "futex": (_futex, "S"),
    "threads": (_threads, "S"),
    "busy": (_busy, "R"),
    "stopped": (_stopped, "T"),
    "zombie": (_zombie, "Z"),
    "vfork": (_vfork, "D"),
    "traced": (_traced, "t"),
}


class Animal:
    """``pid`` of the process of its kind; its keeper, where it has one, is another."""

    def __init__(self, keeper, pid):
        self.keeper = keeper
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
        return [procfs.Processes().look(self.pid, tid) for tid in self.tids]


@contextlib.contextmanager
def keep(kind, patience=20):
    """A process of this kind, in its state when the block begins, gone with its kin when it ends."""
    environ = dict(os.environ, PYTHONPATH=str(Path(__file__).resolve().parent.parent))
    keeper = subprocess.Popen(
        [sys.executable, "-m", "lab.zoo", kind],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
        env=environ,
    )
    try:
        line = keeper.stdout.readline()
        if not line:
            raise RuntimeError(f"no {kind} in the zoo")
        animal = Animal(keeper, int(line))
        wait_until(lambda: animal.letter == KINDS[kind][1], f"{kind} in its state", patience)
        if kind != "busy":
            wait_until(_still(animal, KINDS[kind][1]), f"{kind} at rest", patience)
        yield animal
    finally:
        for name in os.listdir("/proc"):
            about = procfs.stat(name) if name.isdigit() else None
            if about and about["session"] == keeper.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(name), signal.SIGKILL)
        keeper.wait()
        keeper.stdout.close()


def _still(animal, letter):
    """Each thread in its state, twice the same, a moment apart."""
    last = []

    def asked():
        former, last[:] = list(last), animal.switches()
        return former == last and all(look and look[0] == letter for look in last)

    return asked


def wait_until(true, what, patience=20):
    """Look every 20 ms; raises TimeoutError after ``patience`` seconds."""
    deadline = time.monotonic() + patience
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not in {patience} s: {what}")
        time.sleep(0.02)


def main():
    if len(sys.argv) != 2 or sys.argv[1] not in KINDS:
        sys.exit(f"usage: python -m lab.zoo {{{','.join(KINDS)}}}\nPrints the pid of a process of this kind and stays.")
    Path("/proc/self/comm").write_text(f"zoo-{sys.argv[1]}", encoding="ascii")
    KINDS[sys.argv[1]][0]()


if __name__ == "__main__":
    main()
