"""
Commands that may hang: each has its time, and when that is over it is ended together with all that it started.

Salt's ``cmd`` ends the command itself only, and what it has started keeps the caller waiting.
"""

import contextlib
import os
import signal
import subprocess
import time

from salt.exceptions import CommandExecutionError, SaltInvocationError

GRACE = 1.0  # seconds between SIGTERM and SIGKILL, and at most for the latter
POLL = 0.05
LONGEST = 10**6  # seconds: poll(2) counts milliseconds in an int


def deadline(timeout, argument="timeout"):
    """When ``timeout`` seconds from now are over, by the clock that :py:func:`run` goes by."""
    number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not number or not 0 <= timeout < float("inf"):
        raise SaltInvocationError(f"{argument} is {timeout!r}: give seconds, 0 or more")
    return time.monotonic() + min(timeout, LONGEST)


def run(command, until, env=None, stdin=""):
    """
    Run ``command``, a list, until it ends or that deadline has come; it has a second at least.

    Returns ``{'retcode', 'stdout', 'stderr'}``, texts, in English. Raises ``CommandExecutionError`` where it could not
    be started or did not end in time.
    """
    name, seconds = os.path.basename(command[0]), max(1.0, until - time.monotonic())
    environ = {**os.environ, "LC_ALL": "C.UTF-8", "LANGUAGE": "C", **(env or {})}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    try:
        process = subprocess.Popen(command, env=environ, start_new_session=True, **pipes)
    except OSError as err:
        raise CommandExecutionError(f"{name} cannot be run: {err.strerror}") from err
    said = None
    try:
        said = process.communicate(stdin.encode(), seconds)
    except subprocess.TimeoutExpired:
        # not chained: it holds the command, and the command may hold a secret
        pass
    finally:
        if said is None:
            _end(process)
    if said is None:
        raise CommandExecutionError(f"{name} did not end within {seconds:.0f} s and was ended")
    stdout, stderr = (text.decode(errors="replace") for text in said)
    return {"retcode": process.returncode, "stdout": stdout, "stderr": stderr}


def _end(process):
    """End a command that leads its own session, and all who are in it, whether it has ended itself or not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        until, told = time.monotonic() + GRACE, set()
        left = _members(process.pid)
        while left and time.monotonic() < until:
            for pid in left - told:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
            told |= left
            time.sleep(POLL)
            left = _members(process.pid)
    # reaped last: until then no other process and no other session can have its id
    process.poll()
    for pipe in (process.stdin, process.stdout, process.stderr):
        with contextlib.suppress(OSError):
            pipe.close()


def _members(session):
    """The processes of a session that have not ended."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has just ended
            with open(f"/proc/{pid}/stat", "rb") as stat:
                state, _, _, its_session = stat.read().rpartition(b")")[2].split()[:4]
            if int(its_session) == session and state not in (b"Z", b"X"):
                found.add(int(pid))
    return found
