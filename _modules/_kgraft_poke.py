"""
The poke: SIGSTOP, then SIGCONT, to sleeping processes that block; whom not, and who it is.

``root`` is where the tasks were found, but signals know no root: a process is poked only if it has the same start time
under ``root`` and in this machine's own ``/proc``.
"""

import contextlib
import fnmatch
import os
import select
import signal
import subprocess
import sys
import time
import typing

if typing.TYPE_CHECKING:
    from . import _kgraft_files as files
    from . import _kgraft_tasks as tasks

# Stopping a cluster's own daemons, even for a moment, can fence a node.
PROTECTED = ("corosync*", "sbd*", "pacemaker*", "crmd", "lrmd", "dlm_controld*", "multipathd*", "iscsid*", "systemd*")
MINIONS = {"salt-minion", "venv-salt-minion"}  # the second is the Salt Bundle's
PROTECTED_MINION = tuple(minion + "*" for minion in sorted(MINIONS))


def poke(root, wanted, patterns, test):
    """
    The answer of ``kgraft.poke``; its arguments are checked.

    wanted
        a set of process ids, None for all that block
    patterns
        pairs of a field (``name``, ``unit``, ``user``) and a pattern: whom not
    """
    held = tasks.blocking(root, limit=None)
    blocking = held["tasks"]
    result = {"poked": [], "skipped": [], "vanished": [], "count": held["count"], "complete": held["complete"]}
    if wanted is not None:
        result["skipped"], result["vanished"] = _not_blocking(root, wanted - {task["pid"] for task in blocking})
        blocking = [task for task in blocking if task["pid"] in wanted]
    family = ancestors()
    with contextlib.ExitStack() as stack:
        guard = None
        for task in blocking:
            try:
                reason = refusal(root, task, patterns, family) or other_process(root, task)
                if not reason and not tasks.holds(root, task["pid"]):
                    reason = "it has crossed meanwhile"
                if not reason and not test:
                    guard = guard or stack.enter_context(guarded())
                    reason = stop_and_continue(root, task, guard)
            except FileNotFoundError:
                result["vanished"].append(task["pid"])
                continue
            if reason:
                result["skipped"].append(dict(task, reason=reason))
            else:
                result["poked"].append(task)
    if result["poked"] and not test:
        await_crossing(root, [task["pid"] for task in result["poked"]])
        held = tasks.blocking(root, limit=1)
        result["count"], result["complete"] = held["count"], held["complete"]
    return result


def _not_blocking(root, pids):
    skipped, vanished = [], []
    for pid in sorted(pids):
        try:
            reason = "it blocks only since this look" if tasks.holds(root, pid) else "it does not block"
            skipped.append(dict(tasks.task(root, pid, [pid]), tids=[], reason=reason))
        except FileNotFoundError:
            vanished.append(pid)
    return skipped, vanished


def await_crossing(root, pids, timeout=1):
    """Give the poked a moment to run: the flag clears when they do, not when they are signalled."""
    deadline = time.monotonic() + timeout
    while pids and time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError):  # told by the look that follows
            if tasks.holds(root, pids[0]):
                time.sleep(0.01)
                continue
        pids = pids[1:]


# Whom not


def ancestors():
    """This process and its ancestors, in this machine's own /proc."""
    found, pid = set(), os.getpid()
    while pid and pid not in found:
        found.add(pid)
        try:
            pid = tasks.thread(f"/proc/{pid}").parent
        except FileNotFoundError:
            break
    return found


def refusal(root, task, patterns, family):
    """Why a task is not poked, or None."""
    reasons = {
        "kernel": "a kernel thread crosses at its own safe places only",
        "traced": "it is traced: its tracer would get the signal",
        "stopped": "it was stopped by somebody else, who must continue it",
        "uninterruptible": "it sleeps uninterruptibly: no signal reaches it",
        "zombie": "it has ended: its parent must reap it",
    }
    if task["kind"] in reasons:
        return reasons[task["kind"]]
    if task["letter"] != "S":
        return "it runs, and clears by itself"
    if task["pid"] == 1:
        return "pid 1 is never poked"
    if task["pid"] in family:
        return "it is this process or an ancestor of it"
    for field, glob in patterns:
        # The kernel keeps 15 bytes of a name: where it may go on, what a pattern says of the rest is taken for true.
        cut = field == "name" and len(task["name"]) == 15
        globs = [glob[:end] for end in range(1, len(glob) + 1)] if cut else [glob]
        if any(fnmatch.fnmatchcase(task[field] or "", one) for one in globs):
            return f"protected by {field}:{glob}"
    # A minion that sets its title is named as its interpreter, so the kernel's name does not tell.
    words = " ".join(tasks.command_line(os.path.join(root, "proc", str(task["pid"])))).split()
    if {os.path.basename(word) for word in words} & MINIONS:
        return "it is a minion"
    return None


def other_process(root, task):
    """A pid is a process's name only together with its start time, in this machine's own /proc: what else it is."""
    seen = os.path.join(root, "proc", str(task["pid"]))
    if tasks.thread(seen).start_time != task["start_time"]:
        raise files.missing(seen)
    try:
        start_time = tasks.thread("/proc/{}".format(task["pid"])).start_time
    except FileNotFoundError:
        if files.is_gone(seen):
            raise
        return "this machine has no process {}".format(task["pid"])
    if start_time != task["start_time"]:
        return "its start time is not that of pid {} on this machine: another process".format(task["pid"])
    return None


# The signals


def stop_and_continue(root, task, guard):
    """
    Poke one process; a reason if it could not be. A SIGCONT cancels a stop
    that has not reached every thread yet (kernel/signal.c, prepare_signal):
    with many threads, wait until all have stopped, else most never wake.
    """
    pid = task["pid"]
    threads = tasks.threads(f"/proc/{pid}")
    for thread in threads:
        kind = tasks.kind(thread)
        if kind in ("traced", "stopped"):
            return f"thread {thread.tid} is {kind}"
    reason = other_process(root, task)
    if reason:
        return reason
    guard.arm(pid, task["start_time"])
    try:
        os.kill(pid, signal.SIGSTOP)
        if len(threads) > 1:
            await_stop(pid)
    except ProcessLookupError as err:
        raise files.missing(f"/proc/{pid}") from err
    except PermissionError as err:
        return f"it may not be signalled: {err.strerror}"
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGCONT)
        guard.disarm()
    return None


def await_stop(pid, timeout=0.1):
    """Wait until every thread of a process has stopped, ``timeout`` seconds at most."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            if all(thread.letter in "TZX" for thread in tasks.threads(f"/proc/{pid}")):
                return


# Runs on its own, in another session, so that what kills the poking process does not reach it. At most one
# process is armed at a time. A forked sibling may hold the pipe open: so the parent's end is looked for, too.
GUARD = """
import os, select, signal, sys
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
parent, armed, waiting = int(sys.argv[1]), b"", b""
os.write(1, b"ready")
while True:
    readable = select.select([0], [], [], 0.1)[0]
    if readable:
        chunk = os.read(0, 4096)
        if not chunk:
            break
        *lines, waiting = (waiting + chunk).split(b"\\n")
        if b"end" in lines:
            sys.exit()
        armed = lines[-1] if lines else armed
    elif os.getppid() != parent:
        break
if armed:
    pid, start_time = armed.split()
    try:
        with open("/proc/%d/stat" % int(pid), "rb") as stat:
            if stat.read().rpartition(b")")[2].split()[19] == start_time:
                os.kill(int(pid), signal.SIGCONT)
    except OSError:
        pass
"""


class Guard:
    def __init__(self, process):
        self.process = process

    def _tell(self, line):
        os.write(self.process.stdin.fileno(), line + b"\n")

    def arm(self, pid, start_time):
        try:
            self._tell(f"{pid} {start_time}".encode())
        except BrokenPipeError as err:
            raise OSError("The guard of a poke is gone; nothing was stopped") from err

    def disarm(self):
        with contextlib.suppress(BrokenPipeError):
            self._tell(b"")

    def end(self):
        with contextlib.suppress(BrokenPipeError):
            self._tell(b"end")


@contextlib.contextmanager
def guarded(timeout=10):
    """A process that continues what is armed if this one dies before it does so itself."""
    try:
        process = subprocess.Popen(  # exec, not fork: a minion has threads
            [sys.executable, "-I", "-S", "-c", GUARD, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
    except OSError as err:
        raise OSError(f"Cannot start the guard of a poke: {err.strerror}") from err
    guard = Guard(process)
    try:
        poll = select.poll()  # select() takes no descriptor above 1023
        poll.register(process.stdout, select.POLLIN)
        if not poll.poll(timeout * 1000) or process.stdout.read(5) != b"ready":
            process.kill()
            raise OSError(f"The guard of a poke did not start within {timeout} s")
        yield guard
    finally:
        guard.end()
        process.stdin.close()
        process.stdout.close()
        process.wait()
