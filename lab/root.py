"""
The lab's directory: whose it is, and what a lab that was killed left there.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
from pathlib import Path

from lab import procfs
from lab.client import SOCKET

MARKER = ".kgraft-lab"
OWN = b"A lab of saltext-kgraft is at work here, and deletes what it finds.\n"
LOG = "kernel.log"
CHILDREN = "children"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def take(root):
    """
    Make a directory ours and clean it: a new one, an empty one, or one where a lab was before.

    Returns its path and a file; it is ours until that is closed, however this process ends. Raises ``OSError``.
    """
    root = Path(os.path.realpath(root))
    root.mkdir(parents=True, exist_ok=True)
    found = os.listdir(root)
    if found and MARKER not in found:
        raise _not_ours(root)
    marker = os.open(root / MARKER, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(open(marker, "r+b"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise OSError(err.errno, "another lab is at work there", str(root)) from None
        content = lock.read()
        if not content and found in ([], [MARKER]):
            lock.write(OWN)
            lock.flush()
        elif content != OWN:
            raise _not_ours(root)
        _end_children(root / CHILDREN)
        for name in ("proc", "sys", ".new", LOG, SOCKET, CHILDREN):
            _remove(root / name)
        stack.pop_all()
    return root, lock


def inside(root, path):
    """Raise ``OSError`` if a link on the way to ``path`` leads out of ``root``."""
    if root not in Path(os.path.realpath(path)).parents:
        raise OSError(errno.EPERM, f"leads out of {root}", str(path))


def note(processes):
    """What ``take`` wants to know of a lab that was killed: ``processes``, ``{pid: [start time, session]}``."""
    return json.dumps({"boot_id": BOOT_ID.read_text(), "processes": processes})


def _end_children(path):
    """Kill the sessions of which a noted process still lives: as long as it does, nobody else can have their number."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW)) as file:
            ours = os.fstat(file.fileno()).st_uid == os.geteuid()
            noted = json.load(file)
        processes = noted["processes"] if ours and noted["boot_id"] == BOOT_ID.read_text() else {}
        sessions = {
            about["session"]
            for pid, about in procfs.stats(processes)
            if [about["start_time"], about["session"]] == processes[str(pid)]
        }
    except (OSError, ValueError, KeyError, TypeError):  # there is no note, or it is none of ours
        return
    procfs.end(sessions, signal.SIGKILL, timeout=5)


def _remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _not_ours(root):
    return OSError(errno.ENOTEMPTY, "not empty and no lab's: the lab needs a directory to itself", str(root))
