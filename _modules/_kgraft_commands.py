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

GRACE = 1.0  # seconds between SIGTERM and SIGKILL


def deadline(timeout):
    """When ``timeout`` seconds from now are over, by the clock that :py:func:`run` goes by."""
    number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not number or not 0 <= timeout < float("inf"):
        raise SaltInvocationError(f"timeout is {timeout!r}: give seconds, 0 or more")
    return time.monotonic() + timeout


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
    try:
        stdout, stderr = process.communicate(stdin.encode(), seconds)
    except subprocess.TimeoutExpired:
        # not chained: it holds the command, and the command may hold a secret
        stdout = None
    finally:
        if process.returncode is None:
            _end(process)
    if stdout is None:
        raise CommandExecutionError(f"{name} did not end within {seconds:.0f} s and was ended")
    return {
        "retcode": process.returncode,
        "stdout": stdout.decode(errors="replace"),
        "stderr": stderr.decode(errors="replace"),
    }


def _end(process):
    """End a command that leads its own session, and those that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    for pipe in (process.stdin, process.stdout, process.stderr):
        with contextlib.suppress(OSError):
            pipe.close()
