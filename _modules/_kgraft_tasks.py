"""
Who blocks: the processes that a transition waits for, and what kind of hindrance each is.

A task that has not crossed is *flagged*. The walk through ``/proc`` is the one loop that a machine with 100,000 tasks
pays for, so it is plain open, read, close. What ended meanwhile is left out; what could not be read is counted as
*unread*: see ``_kgraft_files.py`` for the exceptions of Python that tell the two apart.
"""

import os
import pwd
import re
import time
import typing
from collections import namedtuple

if typing.TYPE_CHECKING:
    from . import _kgraft_files as files
    from . import _kgraft_kernel as kernel

# The kinds of a blocking process; the first that is true of a flagged thread.
KINDS = ("kernel", "traced", "stopped", "uninterruptible", "zombie", "user")

DIGITS = 10  # of a process's number at most: what is longer is none, and breaks who sends it

PF_KTHREAD = 0x00200000  # include/linux/sched.h

DELETED = b" (deleted)"  # what the kernel adds to the path of an executable that is no longer there

# A pid namespace's number in the first one (include/linux/proc_ns.h, PROC_PID_INIT_INO)
FIRST_PID_NAMESPACE = b"pid:[4026531836]"

Thread = namedtuple("Thread", "tid name letter kernel tracer start_time parent")


def blocking(root, cmdline=False, stacks=False, limit=20, budget=None):
    """The answer of ``kgraft.blocking``; its arguments are checked."""
    seen = kernel.available(root)
    deadline = time.monotonic() + budget if budget else None
    for _ in range(kernel.LOOKS):
        if seen.state == "ready":
            break
        walked = kernel.identity(seen)
        found, unread, cut = _walk(root, seen, deadline)
        tasks, gone = [], 0
        for pid, tids in sorted(found):
            if limit is not None and len(tasks) == limit:
                break
            if tasks and deadline and time.monotonic() > deadline:
                cut = True
                break
            try:
                tasks.append(task(root, pid, tids, cmdline, stacks))
            except (OSError, ValueError) as err:
                ended = isinstance(err, FileNotFoundError) and files.is_gone(os.path.join(root, "proc", str(pid)))
                gone, unread = gone + ended, unread + (not ended)
        seen = kernel.available(root)
        # The flags were those of another transition, or a disable that was reversed turned their meaning around.
        turned = seen.state == "in_progress" and kernel.identity(seen) != walked
        if not turned or (deadline and time.monotonic() > deadline):
            break
    if seen.state == "ready":
        return {"state": "ready", "tasks": [], "count": 0, "unread": 0, "complete": True}
    return {
        "state": "in_progress",
        "tasks": tasks,
        "count": len(found) - gone,
        "unread": unread,
        "complete": not (unread or cut or turned) and _sees_everything(root),
    }


def holds(root, pid):
    """Whether one process holds a transition up now; FileNotFoundError if there is no such process."""
    return any(_flags_of(root, pid))


def flagged(root, pid):
    """The threads of one process that hold a transition up now; FileNotFoundError if there is no such process."""
    return [tid for tid in _flags_of(root, pid) if tid]


def _flags_of(root, pid):
    seen = kernel.available(root)
    if files.is_gone(os.path.join(root, "proc", str(pid))):
        raise files.missing(os.path.join(root, "proc", str(pid)))
    if seen.state == "ready":
        return
    proc = os.fsencode(os.path.join(root, "proc")) + b"/"
    try:
        yield from _threads_waiting(proc, str(pid).encode(), seen)
    except FileNotFoundError as err:
        if files.is_gone(proc + str(pid).encode()):
            raise
        raise OSError(files.message(err)) from err


# The walk


def _walk(root, seen, deadline):
    """[(pid, tids that have not crossed)], how many processes could not be read, whether the deadline cut it short."""
    proc = os.fsencode(os.path.join(root, "proc")) + b"/"
    found, unread = [], 0
    for pid in _processes(proc):
        cut = deadline and time.monotonic() > deadline
        tids = []
        try:
            for tid in () if cut else _threads_waiting(proc, pid, seen):
                if tid:
                    tids.append(tid)
                cut = deadline and time.monotonic() > deadline
                if cut:
                    break
        except (OSError, ValueError) as err:
            unread += not (isinstance(err, FileNotFoundError) and files.is_gone(proc + pid))
        if tids:
            found.append((int(pid), sorted(tids)))
        if cut:
            return found, unread, True
    return found, unread, False


def _processes(proc):
    try:
        return [name for name in os.listdir(proc) if name.isdigit()]
    except OSError as err:
        raise files.failure(proc, err) from err


def _threads_waiting(proc, pid, seen):
    """
    The threads of a process, one after the other: its number for one that has not crossed, None for one that has.

    kGraft: the process's own file is 1 if any thread's is, so threads are read only where it is. livepatch: it is the
    leader's alone, so every thread is read.
    """
    name = b"/" + os.fsencode(seen.kernel.flag)
    flags = seen.kernel.flags(seen)
    summed = seen.kernel.abi == "kgraft"
    if len(pid) > DIGITS:
        raise files.unclear(proc + pid, "it is no process")
    if summed and not _is_flagged(proc + pid + name, flags):
        return
    nobody = True
    for tid in _threads(proc + pid):
        thread = proc + pid + b"/task/" + tid
        try:
            flagged = _is_flagged(thread + name, flags)
        except FileNotFoundError:
            if files.is_gone(thread):
                continue
            if not summed or os.path.lexists(thread + name):
                raise
            # Kernels before May 2015 flag leaders only and have no file for threads.
            flagged = tid == pid
        if flagged and not (tid.isdigit() and len(tid) <= DIGITS):
            raise files.unclear(thread, "it is no thread")
        nobody = nobody and not flagged
        yield int(tid) if flagged else None
    # They may all have crossed since the process's own file was read.
    if summed and nobody and _is_flagged(proc + pid + name, flags):
        raise files.unclear(proc + pid + name, "no thread is flagged, but the process is")


def _is_flagged(path, flags):
    """One read, no search for the end: this is what a machine with 100,000 tasks pays for."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            flag = os.read(descriptor, 8)
        finally:
            os.close(descriptor)
    except OSError as err:
        raise files.failure(path, err) from err
    if not flag:
        raise files.missing(path)
    waiting, crossed = flags
    if flag in crossed:
        return False
    if flag != waiting:
        raise files.unclear(path, f"{flag!r} is no flag")
    return True


def _threads(directory):
    try:
        return os.listdir(directory + b"/task")
    except OSError as err:
        raise files.failure(directory, err) from err


def _sees_everything(root):
    """
    Whether this /proc shows every process: pid 1 is hidden by hidepid, and in
    a pid namespace it is another's. Kernels without namespaces have no link.
    """
    first = os.path.join(root, "proc/1")
    if files.is_gone(first):
        return False
    try:
        return os.fsencode(files.link(os.path.join(first, "ns/pid"))) == FIRST_PID_NAMESPACE
    except FileNotFoundError:
        return True
    except OSError:
        return False


# One process


def task(root, pid, tids, cmdline=False, stacks=False):
    """What ``kgraft.blocking`` tells of a process; FileNotFoundError if it is gone."""
    proc = os.path.join(root, "proc", str(pid))
    flagged = threads(proc, tids)
    if not flagged:
        raise files.missing(proc)
    # A zombie leader may keep its flag; what blocks are its living threads.
    living = [one for one in flagged if kind(one) != "zombie"] or flagged
    # Of threads alike the one that does not sleep comes first: it clears by itself.
    worst = min(living, key=lambda one: (KINDS.index(kind(one)), one.letter == "S"))
    user = _user(proc)
    leader = thread(proc)
    told = {
        "pid": pid,
        "tids": [one.tid for one in flagged],
        "name": _full_name(proc, leader.name),
        "user": user,
        "unit": _unit(proc),
        "letter": worst.letter,
        "kind": kind(worst),
        "start_time": leader.start_time,
    }
    if cmdline:
        told["cmdline"] = command_line(proc)
    if stacks:
        told["stack"] = {str(tid): _stack(proc, tid) for tid in told["tids"]}
    return told


def threads(proc, tids=None):
    """The threads of a process that are still there; all of them by default."""
    found = []
    for tid in files.directories(os.path.join(proc, "task")) if tids is None else tids:
        try:
            found.append(thread(proc, tid))
        except FileNotFoundError as err:
            if not files.is_gone(os.path.join(proc, "task", str(tid))):
                raise OSError(files.message(err)) from err
    return found


def thread(proc, tid=None):
    """One thread, or the leader's line for the process."""
    directory = os.path.join(proc, "task", str(tid)) if tid else proc
    path = os.path.join(directory, "stat")
    head, _, tail = files.read(path).rpartition(b")")  # a name may hold anything, blanks and brackets too
    number, _, name = head.partition(b" (")
    fields = tail.split()
    try:
        told = Thread(
            tid=int(number),
            name=name,
            letter=files.text(fields[0]),
            parent=int(fields[1]),
            kernel=bool(int(fields[6]) & PF_KTHREAD),
            start_time=int(fields[19]),
            tracer=int(status(directory, b"TracerPid")),
        )
        if max(abs(told.tid), abs(told.start_time)) >= 1 << 63:
            raise ValueError(fields)
        return told
    except (IndexError, ValueError) as err:
        raise files.unclear(path, "it is no line of a task") from err


def kind(one):
    """The kind of a thread."""
    if one.kernel:
        return "kernel"
    if one.tracer:
        return "traced"
    return {"t": "traced", "T": "stopped", "D": "uninterruptible", "Z": "zombie", "X": "zombie"}.get(one.letter, "user")


def command_line(proc):
    """The words of a command line, which can hold passwords; none for kernel threads and zombies."""
    try:
        return [files.text(word) for word in files.read(os.path.join(proc, "cmdline")).rstrip(b"\0").split(b"\0")]
    except FileNotFoundError:
        return []


def status(directory, name):
    """One field of a task's ``status``, as bytes."""
    path = os.path.join(directory, "status")
    for row in files.read(path).split(b"\n"):
        key, _, value = row.partition(b":")
        if key == name:
            return value.strip()
    raise files.unclear(path, f"it has no line {files.text(name)}")


def _full_name(proc, name):
    """The kernel cuts names at 15 bytes; the executable's own goes on, if it is the same."""
    if len(name) >= 15:
        try:
            own = os.fsencode(os.path.basename(files.link(os.path.join(proc, "exe"))))
        except OSError:
            own = b""
        if own.startswith(name):
            return files.text(own[: -len(DELETED)] if own.endswith(DELETED) else own)
    return files.text(name)


def _user(proc):
    try:
        uid = int(status(proc, b"Uid").split()[1])
    except (IndexError, ValueError) as err:
        raise files.unclear(os.path.join(proc, "status"), "it names no user") from err
    try:
        return files.text(pwd.getpwuid(uid).pw_name)
    except (KeyError, OverflowError):
        return str(uid)


def _unit(proc):
    """The system unit as ``ps -o unit`` has it: the first below the slices."""
    try:
        lines = files.lines(files.read(os.path.join(proc, "cgroup")))
    except FileNotFoundError:
        if files.is_gone(proc):
            raise
        return None
    for line in lines:
        _, _, rest = line.partition(":")
        controller, _, path = rest.partition(":")
        if controller in ("", "name=systemd"):
            for part in path.split("/"):
                if re.search(r"\.(service|scope|socket|mount|swap)$", part):
                    return part.lstrip("_")
    return None


def stack(proc, tid):
    """The lines of a thread's kernel stack, which only root may read."""
    return files.lines(files.read(os.path.join(proc, "task", str(tid), "stack")).rstrip(b"\n"))


def _stack(proc, tid):
    try:
        return stack(proc, tid)
    except OSError:
        return None
