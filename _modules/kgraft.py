"""
Ask and steer live patching of the running kernel: SUSE's kGraft and its
successor, upstream livepatch, in the same words.

A patch is *loaded*, then a transition runs until every task has left the old
code, then it is *settled*. These functions say where a machine stands, who
holds a transition up, and help where help is safe.

:maturity: new
:depends: a Linux kernel with sysfs and procfs
:platform: Linux

Minion option
    ``kgraft.root``: the directory that holds ``sys/`` and ``proc/`` of the
    kernel to look at, for containers that mount the host's, tests and
    rehearsals. Default: ``/``. It is read from the minion's configuration
    only. Signals know no root: see :py:func:`poke`.
"""

import contextlib
import errno
import fnmatch
import os
import pwd
import re
import select
import signal
import subprocess
import sys
import time
from collections import namedtuple

import salt.utils.platform
from salt.exceptions import CommandExecutionError, SaltInvocationError

__virtualname__ = "kgraft"

# The kinds of a blocking process; the first that is true of a flagged thread.
KINDS = ("kernel", "traced", "stopped", "uninterruptible", "zombie", "user")

# Stopping a cluster's own daemons, even for a moment, can fence a node.
PROTECTED = ("corosync*", "sbd*", "pacemaker*", "crmd", "lrmd", "dlm_controld*", "multipathd*", "iscsid*", "systemd*")
MINIONS = {"salt-minion", "venv-salt-minion"}  # the second is the Salt Bundle's
PROTECTED_MINION = tuple(minion + "*" for minion in sorted(MINIONS))

PF_KTHREAD = 0x00200000  # include/linux/sched.h

MOVING = ("applying", "reverting")
ACTIVE = ("applying", "applied")

# kGraft's function states (kernel/kgraft.c, enum kgr_patch_state)
APPLYING, APPLIED, REVERTING, REVERTED, SKIPPED = 1, 2, 3, 4, 5

# A pid namespace's number in the first one (include/linux/proc_ns.h, PROC_PID_INIT_INO)
FIRST_PID_NAMESPACE = "pid:[4026531836]"

# Task and patch files vanish between any two system calls: at open, at read, as sysfs nodes.
VANISHED = (errno.ENOENT, errno.ESRCH, errno.ENODEV)

LOOKS = 10  # how often a look that was overtaken by the kernel is taken again

_Patch = namedtuple("_Patch", "name directory state")
_Look = namedtuple("_Look", "reader state direction patches")
_Walk = namedtuple("_Walk", "found unread cut")
_Thread = namedtuple("_Thread", "tid name letter kernel tracer start_time")


class _Gone(Exception):
    """The task or patch vanished while it was being read."""


def __virtual__():
    if not salt.utils.platform.is_linux():
        return False, f"kgraft: live patching is a matter of Linux; this is {sys.platform}"
    return __virtualname__


# What a user asks


def summary():
    """
    Say in one line where this machine stands; its stable parts come first, so
    that the lines of many machines sort and group.

    Returns a string: ``ready livepatch_9_2_1``, ``ready no patch``,
    ``in_progress kgraft_patch_2_2_1 apply 2 blocking: nfsd(731) kernel, …``
    (the count has a ``+`` when not everything could be read), or
    ``unavailable``. ``/proc`` is walked only while a transition runs.

    Raises ``CommandExecutionError`` if the kernel could not be looked at.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft.summary --out=txt
    """
    look = _look()
    if look.state == "unavailable":
        return look.state
    if look.state == "ready":
        return "ready {}".format(" ".join(_active(look)) or "no patch")
    held = _blocking(look, limit=3)
    if held["state"] == "ready":
        return summary()
    line = "in_progress {} {} {}{} blocking".format(
        " ".join(_moving(look)) or "unknown",
        look.direction or "unknown",
        held["count"],
        "" if held["complete"] else "+",
    )
    return "{}: {}".format(line, _named(held, "{name}({pid}) {kind}")) if held["tasks"] else line


def abi():
    """
    Tell which live patching interface this kernel has.

    Returns ``kgraft`` or ``livepatch``; None on a kernel without live patching,
    so that a mixed top file can say ``onlyif: [{fun: kgraft.abi}]``. Where both
    directories exist, it is kGraft's unless only livepatch's holds patches.

    Raises ``CommandExecutionError`` if sysfs could not be looked at.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft.abi
    """
    reader = _reader()
    return reader.abi if reader else None


def status():
    """
    Tell the state of live patching in the running kernel.

    Returns a dict:

    ``abi``
        ``kgraft``, ``livepatch``, or None without live patching.
    ``state``
        ``ready``, ``in_progress``, or ``unavailable`` without live patching.
    ``direction``
        ``apply`` or ``revert`` while a transition runs; None when the kernel
        does not say, and when ``ready``.
    ``kernelrelease``
        what ``uname -r`` says; a live patch does not change it.
    ``active``
        the names of the patches being applied or applied, oldest first.
    ``boot_id``
        the kernel's id of this boot.

    It reads no file of any process.

    Raises ``CommandExecutionError`` if the kernel could not be looked at: a
    failed look is never ``ready``.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft.status
    """
    look = _look()
    return {
        "abi": look.reader.abi if look.reader else None,
        "state": look.state,
        "direction": look.direction,
        "kernelrelease": _word("proc/sys/kernel/osrelease"),
        "active": _active(look),
        "boot_id": _word("proc/sys/kernel/random/boot_id"),
    }


def in_progress(pid=None):
    """
    Ask whether a transition runs, or whether one process holds it up.

    pid
        A process id. Default: None, the whole machine.

    Returns True or False. A process is not in progress when the machine is
    not, whatever its flag says: a zombie keeps its flag after the end.

    Raises ``CommandExecutionError`` on a kernel without live patching, if
    there is no such process, or if its flag could not be read;
    ``SaltInvocationError`` if ``pid`` is not a positive integer.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft.in_progress
        salt '*' kgraft.in_progress 731
    """
    if pid is not None:
        _whole("pid", pid)
    if pid is None:
        return _available().state == "in_progress"
    try:
        return _holds(pid)
    except _Gone:
        raise CommandExecutionError("There is no process {} under {}".format(pid, _path("proc"))) from None


def patches(functions=False):
    """
    List the live patches that the kernel knows.

    functions
        Also list each patch's functions. Default: False

    Returns a dict from the name of a patch's module to a dict:

    ``state``
        ``applying``, ``applied``, ``reverting`` or ``inactive`` (reverted or
        replaced; kGraft keeps such until their module is removed). A patch
        whose functions wait for a module that is not loaded is ``applied``.
    ``version``
        as rpm and users write it, such as ``2-2.1``; None if the name does
        not tell.
    ``refs``
        how many newer patches must be reverted first; None if the kernel does
        not say.
    ``cumulative``
        whether it replaces all older patches; None if the kernel does not say.
    ``functions``
        with ``functions=True``, a list of ``{object, name, sympos, state}``.
        ``state`` is kGraft's number: 1 being applied, 2 applied, 3 being
        reverted, 4 reverted, 5 waiting for its module; others are passed on.
        ``object``, ``sympos`` and ``state`` are None where the kernel does
        not say. kGraft's list ends at one page, about 90 functions.

    Raises ``CommandExecutionError`` on a kernel without live patching or if
    it could not be looked at; ``SaltInvocationError`` for a bad argument.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft.patches
        salt '*' kgraft.patches functions=True
    """
    _boolean("functions", functions)

    def details():
        look = _available()
        return {patch.name: look.reader.details(patch, functions) for patch in look.patches}

    return _steady(details)


def blocking(cmdline=False, stacks=False, limit=20, budget=None):
    """
    Name the processes that hold a transition up.

    cmdline
        Add each process's command line, which can hold passwords. Default:
        False
    stacks
        Add the kernel stack of each flagged thread (root only). Default: False
    limit
        List at most this many processes, lowest pid first; None for all. It
        cuts ``tasks``, not ``count``. Default: 20
    budget
        Stop looking after this many seconds. Default: None, never.

    Returns a dict:

    ``state``
        ``ready`` (then nothing blocks) or ``in_progress``.
    ``tasks``
        a list of dicts, one for each process: ``pid``; ``tids``, the threads
        that have not crossed; ``name``; ``user``; ``unit``, systemd's, or None;
        ``letter``, the state as in ``ps``; ``kind``, the first of ``kernel``,
        ``traced``, ``stopped``, ``uninterruptible``, ``zombie``, ``user`` that
        is true of a flagged thread; ``start_time`` in clock ticks since boot;
        with ``cmdline=True`` also ``cmdline``, a list; with ``stacks=True``
        also ``stack``, a dict from thread id (a string) to lines, or None
        where the kernel does not say.
    ``count``
        how many processes were found blocking.
    ``unread``
        how many processes could not be read.
    ``complete``
        False if anything was unread, was cut short by ``budget``, or cannot
        be seen from here (a pid namespace, hidepid): then an empty list does
        not mean that nothing blocks.

    An empty list during a transition is normal for seconds: the kernel looks
    for the end every 2 s (kGraft) or every second (livepatch).

    Raises ``CommandExecutionError`` on a kernel without live patching or if
    it could not be looked at; ``SaltInvocationError`` for a bad argument.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft.blocking
        salt '*' kgraft.blocking cmdline=True stacks=True limit=5
    """
    _boolean("cmdline", cmdline)
    _boolean("stacks", stacks)
    if limit is not None:
        _whole("limit", limit, "a positive integer, or None for all")
    if budget is not None:
        _seconds("budget", budget)
    return _blocking(_available(), cmdline, stacks, limit, budget)


# What a user orders


def poke(pids=None, protect=None, protect_defaults=True, test=False):
    """
    Send SIGSTOP and then SIGCONT to sleeping processes that block, which
    moves them across the boundary without ending what they sleep in.

    Only processes of kind ``user`` whose flagged threads all sleep are poked.
    Never poked: kernel threads, traced, stopped, uninterruptible and running
    processes, zombies, pid 1, this process and its ancestors, the minion, and
    the protected. Right before the signal a process must still block and
    have the same start time under ``kgraft.root`` and in this machine's
    ``/proc``, so that a reused pid or a recorded tree never leads to a stranger. A guard process continues
    what would stay stopped if this one were killed.

    Kernels with livepatch, and kGraft's from April 2015 on, wake sleepers
    themselves: there a poke is rarely needed. Programs that take EINTR for an
    error may notice one (``epoll_wait`` returns it), and a parent gets SIGCHLD.

    pids
        Only these process ids: an integer, a list, or a comma-separated
        string. Default: None, all that block.
    protect
        Further patterns not to poke, a list or one string. Each carries its
        field: ``name:hdb*``, ``unit:pacemaker*`` or ``user:*adm``. Default: None
    protect_defaults
        False drops the default list of units and names: ``corosync*``,
        ``sbd*``, ``pacemaker*``, ``crmd``, ``lrmd``, ``dlm_controld*``,
        ``multipathd*``, ``iscsid*``, ``systemd*``, and the minion's. Stopping a
        cluster's daemon can fence the node. Default: True
    test
        Send nothing and show the same. Default: False

    Returns a dict: ``poked``, tasks as in :py:func:`blocking`; ``skipped``, tasks
    with a ``reason``; ``vanished``, process ids that ended in between;
    ``count``, how many processes are still flagged; ``complete``, as in
    :py:func:`blocking`.

    Raises ``CommandExecutionError`` on a kernel without live patching, if it
    could not be looked at, or if the guard could not be started;
    ``SaltInvocationError`` for a bad argument.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft.poke test=True
        salt '*' kgraft.poke protect='name:hdb*'
        salt '*' kgraft.poke pids=731,740
    """
    wanted = _pids(pids)
    _boolean("protect_defaults", protect_defaults)
    _boolean("test", test)
    rules = _rules(protect, protect_defaults)
    held = _blocking(_available(), limit=None)
    tasks = held["tasks"]
    result = {"poked": [], "skipped": [], "vanished": [], "count": held["count"], "complete": held["complete"]}
    if wanted is not None:
        result["skipped"], result["vanished"] = _not_blocking(wanted - {task["pid"] for task in tasks})
        tasks = [task for task in tasks if task["pid"] in wanted]
    lineage = _lineage()
    with contextlib.ExitStack() as stack:
        guard = None
        for task in tasks:
            try:
                reason = _refusal(task, rules, lineage) or _stranger(task)
                if not reason and not _holds(task["pid"]):
                    reason = "it has crossed meanwhile"
                if not reason and not test:
                    guard = guard or stack.enter_context(_guard())
                    reason = _stop_and_continue(task, guard)
            except _Gone:
                result["vanished"].append(task["pid"])
                continue
            if reason:
                result["skipped"].append(dict(task, reason=reason))
            else:
                result["poked"].append(task)
    if result["poked"] and not test:
        _crossed([task["pid"] for task in result["poked"]])
        held = _blocking(_available(), limit=1)
        result["count"], result["complete"] = held["count"], held["complete"]
    return result


def wait(timeout=300):
    """
    Block until no transition runs.

    timeout
        Seconds to wait before giving up. Default: 300

    Returns the seconds it took, as a float.

    Raises ``CommandExecutionError`` on time-out, naming the blocking tasks,
    with ``info={'timed_out': True, 'blocking': …}`` (as :py:func:`blocking`
    returns it); without that info if the kernel has no live patching or could
    not be looked at. ``SaltInvocationError`` if ``timeout`` is not a positive
    number.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft.wait timeout=600
    """
    _seconds("timeout", timeout)
    began = time.monotonic()
    while True:
        look = _available()
        waited = time.monotonic() - began
        if look.state == "ready":
            return round(waited, 3)
        if waited >= timeout:
            break
        time.sleep(min(0.2, timeout - waited))
    held = _blocking(look)
    if held["state"] == "ready":
        return round(time.monotonic() - began, 3)
    raise CommandExecutionError(
        "{} still in progress after {:g} s; blocking: {}{}".format(
            " ".join(_moving(look)) or "A transition is",
            timeout,
            _named(held, "{name} ({pid}) {kind}", 10) if held["tasks"] else "nothing that was found",
            "" if held["complete"] else " (not everything could be read)",
        ),
        info={"timed_out": True, "blocking": held},
    )


def load(name):
    """
    Load an installed live patch into the running kernel, as a package's script
    does. Loading starts a transition; it does not wait for its end.

    name
        The patch's module, such as ``kgraft_patch_2_2_1``; ``-`` and ``_`` are
        the same.

    Returns ``{name, state}`` as the kernel shows it afterwards: ``applying``
    or ``applied``. A patch that is active already is left alone.

    Raises ``CommandExecutionError`` if a transition is running (the kernel
    takes one at a time), if the module cannot be loaded, or if the patch is
    loaded but inactive (it must be removed first, with ``kmod.remove``);
    ``SaltInvocationError`` if ``name`` is not a module's name.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft.load kgraft_patch_2_2_1
    """
    wanted = _module(name)
    known = _find(_available(), wanted)
    if known and known.state in ACTIVE:
        return {"name": known.name, "state": known.state}
    if known:
        raise CommandExecutionError(
            f"{known.name} is loaded but {known.state}; remove it with kmod.remove, then load it again"
        )
    _idle(f"load {wanted}")
    answer = __salt__["kmod.load"](wanted)
    if isinstance(answer, str):  # kmod.load answers a failure with a string
        if os.strerror(errno.EAGAIN) in answer or os.strerror(errno.EBUSY) in answer:
            answer = f"{answer} (a transition is running)"
        raise CommandExecutionError(answer)
    known = _find(_available(), wanted)
    if not known or known.state not in ACTIVE:
        raise CommandExecutionError(
            "modprobe succeeded, but the kernel shows {} as {}".format(wanted, known.state if known else "not loaded")
        )
    return {"name": known.name, "state": known.state}


def revert(name, i_accept_loss_of_support=False):
    """
    Start reverting a live patch: the kernel goes back to the code before it.

    .. warning::
        SUSE supports a machine only with its patches applied, and a SUSE
        kernel with kGraft marks itself unsupported (taint) as soon as a revert
        is written. To take live patching away for good, remove the package and
        reboot.

    name
        The patch's module, such as ``kgraft_patch_2_2_1``; ``-`` and ``_`` are
        the same.
    i_accept_loss_of_support
        Must be True. Default: False

    Returns ``{name, state}`` as the kernel shows it afterwards: ``reverting``
    or ``inactive``. On livepatch a patch that is just being applied turns back.

    Raises ``CommandExecutionError``, having written nothing, if the patch is
    not loaded, not active, has newer patches on it, or if another transition
    is running; ``SaltInvocationError`` without the word of acceptance.

    CLI Example:

    .. code-block:: bash

        salt db1 kgraft.revert kgraft_patch_2_2_1 i_accept_loss_of_support=True
    """
    wanted = _module(name)
    _accepted(i_accept_loss_of_support)
    look = _available()
    patch = _find(look, wanted)
    if not patch:
        raise CommandExecutionError(
            "{} is not loaded; loaded: {}".format(wanted, " ".join(known.name for known in look.patches) or "none")
        )
    if patch.state in ("reverting", "inactive"):
        raise CommandExecutionError(f"{patch.name} is already {patch.state}")
    try:
        look.reader.revert(patch, look)
    except _Gone:
        raise CommandExecutionError(f"{patch.name} was unloaded meanwhile; nothing was written") from None
    patch = _find(_available(), wanted)
    return {"name": wanted, "state": patch.state if patch else "inactive"}


def force(i_accept_loss_of_support=False):
    """
    End the running transition by force: the kernel takes every task for
    crossed, whether it has left the old code or not.

    .. warning::
        A task in the middle of old code may then run old and new code mixed:
        data can be lost, the machine can crash, and the kernel may pin the
        modules until a reboot. SUSE: consult support first.

    i_accept_loss_of_support
        Must be True. Default: False

    Returns :py:func:`status` right afterwards; the kernel may need until its
    next check, 2 s at most, to end the transition.

    Raises ``CommandExecutionError`` if no transition is running or this kernel
    cannot be forced; ``SaltInvocationError`` without the word of acceptance.

    CLI Example:

    .. code-block:: bash

        salt db1 kgraft.force i_accept_loss_of_support=True
    """
    _accepted(i_accept_loss_of_support)
    look = _available()
    if look.state != "in_progress":
        raise CommandExecutionError("No transition is running: there is nothing to force")
    look.reader.force(look)
    return status()


# Arguments


def _refused(argument, value, allowed):
    return SaltInvocationError(f"{argument}={value!r}: must be {allowed}")


def _boolean(argument, value):
    if not isinstance(value, bool):
        raise _refused(argument, value, "True or False")


def _whole(argument, value, allowed="a positive integer"):
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _refused(argument, value, allowed)


def _seconds(argument, value):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= sys.float_info.max:
        raise _refused(argument, value, "a positive number of seconds")


def _pids(value):
    if value is None:
        return None
    allowed = "a process id, a list of them, or a string such as '731,740'"
    if isinstance(value, str):
        if not re.match(r"\s*\d{1,10}(\s*,\s*\d{1,10})*\s*$", value):
            raise _refused("pids", value, allowed)
        value = [int(word) for word in value.split(",")]
    value = value if isinstance(value, (list, tuple, set)) else [value]
    for pid in value:
        _whole("pids", pid, allowed)
    return set(value)


def _rules(protect, defaults):
    patterns = [protect] if isinstance(protect, str) else protect
    if patterns is not None and not isinstance(patterns, (list, tuple)):
        raise _refused("protect", protect, "a list of patterns")
    rules = []
    for pattern in patterns or []:
        field, _, glob = pattern.partition(":") if isinstance(pattern, str) else ("", "", "")
        if field not in ("name", "unit", "user") or not glob:
            raise _refused("protect", pattern, "'name:PATTERN', 'unit:PATTERN' or 'user:PATTERN', such as 'name:hdb*'")
        rules.append((field, glob))
    # Not part of what protect_defaults drops: the minion that does this.
    globs = PROTECTED_MINION + (PROTECTED if defaults else ())
    return rules + [(field, glob) for glob in globs for field in ("name", "unit")]


def _module(name):
    if not isinstance(name, str) or not re.match(r"[A-Za-z0-9][\w-]*\Z", name, re.ASCII):
        raise _refused("name", name, "the name of a patch's module, such as 'kgraft_patch_2_2_1'")
    return _folded(name)


def _accepted(word):
    if word is not True:
        raise _refused("i_accept_loss_of_support", word, "True: this costs the support of SUSE, see the documentation")


# Small files of the kernel


def _path(*parts):
    root = __opts__.get("kgraft.root") or "/"
    if not isinstance(root, str) or not os.path.isabs(root):
        raise CommandExecutionError(f"The minion option kgraft.root must be an absolute path, not {root!r}")
    return os.path.join(root, *parts)


def _failed(path, err):
    return CommandExecutionError(f"Cannot read {_text(path)}: {err.strerror}")


def _read(path):
    """All bytes of a file; an empty one is gone, as the kernel shows none."""
    chunks = []
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            while not chunks or chunks[-1]:
                chunks.append(os.read(descriptor, 65536))
        finally:
            os.close(descriptor)
    except OSError as err:
        if err.errno in VANISHED:
            raise _Gone(path) from err
        raise _failed(path, err) from err
    if not chunks[0]:
        raise _Gone(path)
    return b"".join(chunks)


def _text(raw):
    """Names in the kernel are bytes; what leaves this module can be printed and sent."""
    return os.fsencode(raw).decode("utf-8", "backslashreplace")


def _word(relative):
    path = _path(relative)
    try:
        return _text(_read(path)).strip()
    except _Gone:
        raise CommandExecutionError(f"Cannot read {path}: it is missing or empty") from None


def _number(path):
    raw = _read(path)
    if not re.match(rb"-?[0-9]{1,18}\n?$", raw):
        raise CommandExecutionError(f"Cannot understand {_text(path)}: {raw[:40]!r} is no number")
    return int(raw)


def _switch(path):
    value = _number(path)
    if value not in (0, 1):
        raise CommandExecutionError(f"Cannot understand {_text(path)}: {value} is neither 0 nor 1")
    return value == 1


def _optional(read, path):
    """What the file says, None where this generation of kernels has no such file."""
    try:
        return read(path)
    except _Gone:
        _still_there(os.path.dirname(path))
        if os.path.lexists(path):  # an empty read is no missing file
            raise
        return None


def _still_there(directory):
    if not os.path.isdir(directory):
        raise _Gone(directory)


def _write(path, value, refusals):
    """Write one byte; the kernel's refusals come in the caller's words."""
    try:
        descriptor = os.open(path, os.O_WRONLY)
        try:
            os.write(descriptor, value)
        finally:
            os.close(descriptor)
    except OSError as err:
        why = refusals.get(err.errno, err.strerror)
        raise CommandExecutionError(f"Cannot write {_text(path)}: {why}") from err


def _directories(path):
    """The directories in one, as sorted names; plain files beside them do not count."""
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError as err:
        if err.errno in VANISHED:
            raise _Gone(path) from err
        raise _failed(path, err) from err


# Names: rpm kgraft-patch-…-2-2.1, file kgraft-patch-2-2_1.ko, kGraft's directory
# kgraft-patch-2-2_1 and module kgraft_patch_2_2_1 are one patch.


def _folded(name):
    return re.sub(r"[ ,/:.-]", "_", name)


def _version(name):
    match = re.match(r"(?:kgraft_patch|livepatch)_(\d+)_(\d+(?:_\d+)*)$", name)
    return "{}-{}".format(match.group(1), match.group(2).replace("_", ".")) if match else None


# The two interfaces. Each reader has: abi, names(), look(), details(patch, functions), target(look),
# walk(look, deadline), flagged(pid, look), revert(patch, look), force(look).


class _KGraft:
    abi = "kgraft"
    flag = b"kgr_in_progress"

    def __init__(self):
        self.base = _path("sys", "kernel", "kgraft")

    def names(self):
        return _directories(self.base)

    def look(self):
        """
        Only the global file tells the end for sure (kernel/kgraft.c), but it
        may change while the patches are read: look again until both agree.
        """
        running = self._running()
        patches = [self._patch(name) for name in self.names()]
        # Where all of a patch's functions wait for modules, none says whether it is this one that moves.
        told = any(patch.state in MOVING for patch in patches)
        waiting = "applying" if running and not told else "applied"
        return running, [patch._replace(state=waiting) if patch.state == "waiting" else patch for patch in patches]

    def _running(self):
        path = os.path.join(self.base, "in_progress")
        try:
            return _switch(path)
        except _Gone:
            raise CommandExecutionError(f"Cannot read {path}: it is missing or empty") from None

    def _patch(self, name):
        directory = os.path.join(self.base, name)
        states = {function["state"] for function in self._functions(directory)}
        if APPLYING in states:
            state = "applying"
        elif REVERTING in states:
            state = "reverting"
        elif APPLIED in states:
            state = "applied"
        elif states <= {SKIPPED} and _held(self._module(directory)):
            state = "waiting"
        else:
            state = "inactive"
        return _Patch(self._module(directory), directory, state)

    @staticmethod
    def _module(directory):
        try:
            return _text(os.path.basename(os.readlink(os.path.join(directory, "owner"))))
        except OSError as err:
            if err.errno not in VANISHED:
                raise _failed(os.path.join(directory, "owner"), err) from err
            _still_there(directory)
            return _folded(_text(os.path.basename(directory)))

    @staticmethod
    def _functions(directory):
        """
        The rows of the table in ``state``, read by its heading, which has had
        different columns. It ends at one page, in the middle of a line.
        """
        path = os.path.join(directory, "state")
        lines = _text(_read(path)).split("\n")[:-1]
        columns = [column.lower() for column in lines[0].split()] if lines else []
        if "function" not in columns or "state" not in columns:
            raise CommandExecutionError(f"Cannot understand {_text(path)}: its heading is {lines[:1]!r}")
        functions = []
        for line in lines[1:]:
            row = dict(zip(columns, line.split()))
            if len(line.split()) != len(columns) or not re.match(r"\d{1,9}$", row["state"], re.ASCII):
                raise CommandExecutionError(f"Cannot understand {_text(path)}: {line!r} under {lines[0]!r}")
            sympos = row.get("sympos", "")
            functions.append(
                {
                    "object": row.get("object"),
                    "name": row["function"],
                    "sympos": int(sympos) if re.match(r"\d{1,9}$", sympos, re.ASCII) else None,
                    "state": int(row["state"]),
                }
            )
        return functions

    def details(self, patch, functions):
        record = {
            "state": patch.state,
            "version": _version(patch.name),
            "refs": _optional(_number, os.path.join(patch.directory, "refs")),
            "cumulative": _optional(_switch, os.path.join(patch.directory, "replace_all")),
        }
        if functions:
            record["functions"] = self._functions(patch.directory)
        return record

    def target(self, look):
        return b"1\n"

    def walk(self, look, deadline):
        """
        The pid file is 1 if any thread is flagged, so threads are read only
        where it is: this loop is what a machine with 100,000 tasks pays for.
        """
        proc = os.fsencode(_path("proc")) + b"/"
        tail = b"/" + self.flag
        found, unread = [], 0
        for pid in _processes(proc):
            if deadline and time.monotonic() > deadline:
                return _Walk(found, unread, True)
            try:
                flag = _flag(proc + pid + tail)
                if flag == b"0\n":
                    continue
                tids = _tids(proc, pid, tail, flag)
            except OSError as err:
                unread += not _vanished(proc + pid, err)
                continue
            if tids:
                found.append((int(pid), tids))
            unread += tids is None
        return _Walk(found, unread, False)

    def flagged(self, pid, look):
        path = _path("proc", str(pid), os.fsdecode(self.flag))
        try:
            return _switch(path)
        except _Gone:
            _still_there(os.path.dirname(path))
            raise CommandExecutionError(f"Cannot read {path}: it is missing") from None

    def revert(self, patch, look):
        # A SUSE kernel taints itself before it knows whether a revert is allowed: ask first.
        refs = _optional(_number, os.path.join(patch.directory, "refs"))
        if refs:
            raise CommandExecutionError(f"{refs} newer patches must be reverted before {patch.name}")
        _idle(f"revert {patch.name}")
        _write(
            os.path.join(patch.directory, "revert"),
            b"1",
            {
                errno.EBUSY: "newer patches must be reverted first",
                errno.EINVAL: "it is reverted already",
                errno.EAGAIN: "a transition is running",
            },
        )

    def force(self, look):
        _write(
            os.path.join(self.base, "in_progress"),
            b"0",
            {errno.EACCES: "this kernel cannot be forced, or you are not root"},
        )


class _Livepatch:
    abi = "livepatch"
    flag = b"patch_state"

    def __init__(self):
        self.base = _path("sys", "kernel", "livepatch")

    def names(self):
        return _directories(self.base)

    def look(self):
        patches = [self._patch(os.path.join(self.base, name)) for name in self.names()]
        return any(patch.state in MOVING for patch in patches), patches

    @staticmethod
    def _patch(directory):
        enabled = _switch(os.path.join(directory, "enabled"))
        # Kernels 4.0 to 4.11 switch all tasks at once and have no such file.
        moving = _optional(_switch, os.path.join(directory, "transition"))
        if moving and not enabled:
            enabled = _being_loaded(os.path.basename(directory)) or _switch(os.path.join(directory, "enabled"))
        states = {(True, True): "applying", (True, False): "applied", (False, True): "reverting"}
        return _Patch(_text(os.path.basename(directory)), directory, states.get((enabled, bool(moving)), "inactive"))

    def details(self, patch, functions):
        record = {
            "state": patch.state,
            "version": _version(patch.name),
            "refs": None,
            "cumulative": _optional(_switch, os.path.join(patch.directory, "replace")),
        }
        if functions:
            record["functions"] = self._functions(patch)
        return record

    @staticmethod
    def _functions(patch):
        states = {"applying": APPLYING, "applied": APPLIED, "reverting": REVERTING, "inactive": REVERTED}
        functions = []
        for object_name in _directories(patch.directory):
            directory = os.path.join(patch.directory, object_name)
            patched = _optional(_switch, os.path.join(directory, "patched"))
            state = SKIPPED if patched is False and patch.state != "inactive" else states[patch.state]
            for entry in _directories(directory):
                name, _, sympos = entry.rpartition(",")
                functions.append(
                    {
                        "object": _text(object_name),
                        "name": _text(name or entry),
                        "sympos": int(sympos) if name and re.match(r"\d{1,9}\Z", sympos, re.ASCII) else None,
                        "state": state if patched is not None else None,
                    }
                )
        return functions

    def target(self, look):
        """A disable reads ``enabled`` 0 at once: those still patched block it."""
        return b"0\n" if look.direction == "revert" else b"1\n"

    def walk(self, look, deadline):
        """The pid file is the leader's own value only, so every thread is read."""
        proc = os.fsencode(_path("proc")) + b"/"
        tail = b"/" + self.flag
        crossed = (self.target(look), b"-1\n")
        found, unread = [], 0
        for pid in _processes(proc):
            tasks = proc + pid + b"/task/"
            tids = []
            try:
                for tid in os.listdir(tasks):
                    if deadline and time.monotonic() > deadline:
                        return _Walk(found + ([(int(pid), tids)] if tids else []), unread, True)
                    try:
                        flag = _flag(tasks + tid + tail)
                    except OSError as err:
                        if _vanished(tasks + tid, err):
                            continue
                        raise
                    if flag in crossed:
                        continue
                    if flag in (b"0\n", b"1\n") and tid.isdigit():
                        tids.append(int(tid))
                    elif flag:
                        raise OSError(errno.EINVAL, "neither -1, 0 nor 1")
            except OSError as err:
                unread += not _vanished(proc + pid, err)
            if tids:
                found.append((int(pid), sorted(tids)))
        return _Walk(found, unread, False)

    def flagged(self, pid, look):
        directory = _path("proc", str(pid), "task")
        crossed = (int(self.target(look)), -1)
        for tid in _directories(directory):
            try:
                path = os.path.join(directory, tid, os.fsdecode(self.flag))
                side = _number(path)
                if side not in (-1, 0, 1):
                    raise CommandExecutionError(f"Cannot understand {path}: {side} is neither -1, 0 nor 1")
                if side not in crossed:
                    return True
            except _Gone:
                if os.path.isdir(os.path.join(directory, tid)):
                    raise CommandExecutionError(f"Cannot read {directory}/{tid}: its flag is missing") from None
        return False

    def revert(self, patch, look):
        if patch.state == "applied":
            _idle(f"revert {patch.name}")
        _write(
            os.path.join(patch.directory, "enabled"),
            b"0",
            {
                errno.EBUSY: "a transition is running, or newer patches are on it",
                errno.EINVAL: "it is disabled already",
            },
        )

    def force(self, look):
        for patch in look.patches:
            if patch.state in MOVING:
                _write(
                    os.path.join(patch.directory, "force"),
                    b"1",
                    {errno.ENOENT: "this kernel cannot be forced", errno.EINVAL: "it is no longer in transition"},
                )


# One look at the kernel


def _reader():
    """The reader of this kernel's interface, None without live patching."""
    return _steady(_present)


def _present():
    kernel = _path("sys", "kernel")
    if not os.path.isdir(kernel):
        raise CommandExecutionError(f"Cannot look at the kernel: there is no directory {kernel}")
    readers = [reader for reader in (_KGraft(), _Livepatch()) if _exists(reader.base)]
    if len(readers) == 2:
        kgraft, livepatch = readers
        # A SUSE 4.4 kernel shows an empty livepatch directory beside a used kgraft.
        return livepatch if livepatch.names() and not kgraft.names() else kgraft
    return readers[0] if readers else None


def _exists(directory):
    try:
        os.stat(directory)
    except OSError as err:
        if err.errno == errno.ENOENT:
            return False
        raise _failed(directory, err) from err
    return True


def _steady(look):
    """Take a look again that was overtaken: a patch vanished while it was read."""
    for attempt in range(LOOKS):
        try:
            return look()
        except _Gone:
            # A patch being loaded or refused is a directory without files for a moment: on one processor it stays so
            # until its loader gets to run again.
            time.sleep(0.005 * attempt)
    raise CommandExecutionError("Live patches came and went during {} looks at {}".format(LOOKS, _path("sys/kernel")))


def _look():
    """What the kernel says now; state ``unavailable`` and no reader without live patching."""
    reader = _reader()
    if not reader:
        return _Look(None, "unavailable", None, [])
    for attempt in range(LOOKS):
        running, patches_seen = _steady(reader.look)
        states = {patch.state for patch in patches_seen}
        moving = not states.isdisjoint(MOVING)
        if running == moving:
            break
        time.sleep(0.001 * attempt)
    # Where they go on to disagree, neither alone is taken for the end.
    direction = "apply" if "applying" in states else "revert" if "reverting" in states else None
    state = "in_progress" if running or moving else "ready"
    return _Look(reader, state, direction, _by_age(patches_seen))


def _available():
    look = _look()
    if look.state == "unavailable":
        raise CommandExecutionError(
            f"This kernel has no live patching: neither {_KGraft().base} nor {_Livepatch().base} exists"
        )
    return look


def _modules():
    """Module → reference count, oldest first; /proc/modules lists the newest first."""
    try:
        lines = _text(_read(_path("proc", "modules"))).split("\n")
    except _Gone:  # a recorded tree may lack it
        lines = []
    rows = [line.split() for line in reversed(lines)]
    return {row[0]: row[2] for row in rows if len(row) > 2}


def _being_loaded(module):
    """
    A patch that is just being loaded looks like one being disabled, ``transition`` 1 and ``enabled`` 0, until its
    functions are in place (__klp_enable_patch in kernel/livepatch/core.c; up to 0.3 s on 6.1 and 6.12, emulated). Its
    module is not live before that.
    """
    try:
        return _read(_path("sys", "module", module, "initstate")) == b"coming\n"
    except _Gone:
        return False


def _held(module):
    """A replaced or reverted patch's module is held by nobody, an active one's by the kernel."""
    return _modules().get(module) != "0"


def _by_age(patches_seen):
    if sum(patch.state in ACTIVE for patch in patches_seen) < 2:
        return patches_seen
    age = {name: number for number, name in enumerate(_modules())}
    return sorted(patches_seen, key=lambda patch: age.get(patch.name, len(age)))


def _active(look):
    return [patch.name for patch in look.patches if patch.state in ACTIVE]


def _moving(look):
    state = {"apply": "applying", "revert": "reverting"}.get(look.direction)
    return [patch.name for patch in look.patches if patch.state == state]


def _find(look, module):
    for patch in look.patches:
        if _folded(patch.name) == module:
            return patch
    return None


def _idle(order):
    if _available().state != "ready":
        raise CommandExecutionError(f"Cannot {order} now: a transition is running, see kgraft.blocking")


# Processes


def _processes(proc):
    try:
        return [name for name in os.listdir(proc) if name.isdigit()]
    except OSError as err:
        raise _failed(proc, err) from err


def _vanished(path, err):
    """Whether the error means that the process or thread is gone, rather than that it could not be read."""
    return err.errno in VANISHED and not os.path.isdir(path)


def _flag(path):
    """One read, no search for the end: this is what a machine with 100,000 tasks pays for."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, 8)
    finally:
        os.close(descriptor)


def _tids(proc, pid, tail, flag):
    """The flagged threads of a flagged process; None if its flag or threads could not be read."""
    if flag == b"":
        return []
    if flag != b"1\n":
        return None
    tids = []
    for tid in os.listdir(proc + pid + b"/task"):
        path = proc + pid + b"/task/" + tid
        try:
            flag = _flag(path + tail)
        except OSError as err:
            if err.errno not in VANISHED:
                return None
            flag = b""
        if flag == b"1\n" and tid.isdigit():
            tids.append(int(tid))
        elif not flag and tid == pid and os.path.isdir(path):
            # Kernels before May 2015 flag leaders only and have no file for threads.
            return [int(pid)]
        elif flag not in (b"0\n", b""):
            return None
    # They may all have crossed since the process's own file was read.
    return sorted(tids) if tids or _flag(proc + pid + tail) == b"0\n" else None


def _sees_everything():
    """
    Whether this /proc shows every process: pid 1 is hidden by hidepid, and in
    a pid namespace it is another's. Kernels without namespaces have no link.
    """
    path = _path("proc", "1", "ns", "pid")
    if not os.path.isdir(_path("proc", "1")):
        return False
    try:
        return os.readlink(path) == FIRST_PID_NAMESPACE
    except OSError as err:
        return err.errno == errno.ENOENT


def _blocking(look, cmdline=False, stacks=False, limit=20, budget=None):
    if look.state == "ready":
        return {"state": "ready", "tasks": [], "count": 0, "unread": 0, "complete": True}
    deadline = time.monotonic() + budget if budget else None
    for _ in range(LOOKS):
        target = look.reader.target(look)
        walk = look.reader.walk(look, deadline)
        tasks, unread, gone = [], walk.unread, 0
        cut = walk.cut
        for pid, tids in sorted(walk.found):
            if limit is not None and len(tasks) == limit:
                break
            if tasks and deadline and time.monotonic() > deadline:
                cut = True
                break
            try:
                tasks.append(_task(pid, tids, cmdline, stacks))
            except _Gone:
                gone += 1
            except CommandExecutionError:
                unread += 1
        look = _available()
        if look.state == "ready":
            return _blocking(look)
        # A disable that was reversed meanwhile turns every flag's meaning around.
        turned = look.reader.target(look) != target
        if not turned or (deadline and time.monotonic() > deadline):
            break
    return {
        "state": "in_progress",
        "tasks": tasks,
        "count": len(walk.found) - gone,
        "unread": unread,
        "complete": not (unread or cut or turned) and _sees_everything(),
    }


def _task(pid, tids, cmdline=False, stacks=False):
    proc = _path("proc", str(pid))
    threads = []
    for tid in tids:
        with contextlib.suppress(_Gone):
            threads.append(_thread(proc, tid))
    if not threads:
        raise _Gone(proc)
    # A zombie leader may keep its flag; what blocks are its living threads.
    living = [thread for thread in threads if _kind(thread) != "zombie"] or threads
    # Of threads alike the one that does not sleep comes first: it clears by itself.
    worst = min(living, key=lambda thread: (KINDS.index(_kind(thread)), thread.letter == "S"))
    status_fields = _fields(os.path.join(proc, "status"))
    leader, kind = _thread(proc), _kind(worst)
    task = {
        "pid": pid,
        "tids": [thread.tid for thread in threads],
        # A command line lies in the process's memory: who reads it may wait for a lock that a sleeper in D holds.
        "name": _text(leader.name) if kind == "uninterruptible" else _full_name(proc, leader.name),
        "user": _user(status_fields, proc),
        "unit": _unit(proc),
        "letter": worst.letter,
        "kind": kind,
        "start_time": leader.start_time,
    }
    if cmdline:
        task["cmdline"] = _cmdline(proc)
    if stacks:
        task["stack"] = {str(tid): _stack(proc, tid) for tid in task["tids"]}
    return task


def _kind(thread):
    if thread.kernel:
        return "kernel"
    if thread.tracer:
        return "traced"
    return {"t": "traced", "T": "stopped", "D": "uninterruptible", "Z": "zombie", "X": "zombie"}.get(
        thread.letter, "user"
    )


def _thread(proc, tid=None):
    """One thread, or the leader's line for the process."""
    directory = os.path.join(proc, "task", str(tid)) if tid else proc
    path = os.path.join(directory, "stat")
    raw = _read(path)
    head, _, tail = raw.rpartition(b")")  # a name may hold anything, blanks and brackets too
    pid, _, name = head.partition(b" (")
    fields = tail.split()
    try:
        letter, flags, start_time = _text(fields[0]), int(fields[6]), int(fields[19])
        number = int(pid)
        tracer = int(_fields(os.path.join(directory, "status"))["TracerPid"])
    except (IndexError, KeyError, ValueError) as err:
        raise CommandExecutionError(f"Cannot understand {_text(path)}") from err
    return _Thread(number, name, letter, bool(flags & PF_KTHREAD), tracer, start_time)


def _fields(path):
    rows = (line.partition(":") for line in _text(_read(path)).split("\n"))
    return {key: value.strip() for key, _, value in rows}


def _full_name(proc, name):
    """The kernel cuts names at 15 bytes; the command's own goes on, if it is the same."""
    if len(name) >= 15:
        with contextlib.suppress(_Gone, CommandExecutionError):
            command = os.path.basename(_read(os.path.join(proc, "cmdline")).split(b"\0")[0])
            if command.startswith(name):
                return _text(command)
    return _text(name)


def _user(fields, proc):
    try:
        uid = int(fields["Uid"].split()[1])
    except (KeyError, IndexError, ValueError) as err:
        raise CommandExecutionError(f"Cannot understand {proc}/status") from err
    try:
        return _text(pwd.getpwuid(uid).pw_name)
    except (KeyError, OverflowError):
        return str(uid)


def _unit(proc):
    """The system unit as ``ps -o unit`` has it: the first below the slices."""
    try:
        lines = _text(_read(os.path.join(proc, "cgroup"))).split("\n")
    except _Gone:
        _still_there(proc)
        return None
    for line in lines:
        _, _, rest = line.partition(":")
        controller, _, path = rest.partition(":")
        if controller in ("", "name=systemd"):
            for part in path.split("/"):
                if re.search(r"\.(service|scope|socket|mount|swap)$", part):
                    return part.lstrip("_")
    return None


def _cmdline(proc):
    try:
        return [_text(word) for word in _read(os.path.join(proc, "cmdline")).rstrip(b"\0").split(b"\0")]
    except _Gone:  # kernel threads and zombies have none
        return []


def _stack(proc, tid):
    try:
        return _text(_read(os.path.join(proc, "task", str(tid), "stack"))).splitlines()
    except (_Gone, CommandExecutionError):
        return None


def _named(held, form, most=3):
    names = [form.format(**task) for task in held["tasks"][:most]]
    more = held["count"] - len(names)
    return ", ".join(names) + (f", and {more} more" if more > 0 else "")


# Poking


def _lineage():
    """This process and its ancestors, in this machine's own /proc."""
    lineage, pid = set(), os.getpid()
    while pid and pid not in lineage:
        lineage.add(pid)
        try:
            pid = int(_read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[1])
        except _Gone:
            break
    return lineage


def _refusal(task, rules, lineage):
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
    if task["pid"] in lineage:
        return "it is this process or an ancestor of it"
    for field, glob in rules:
        # The kernel keeps 15 bytes of a name: where it may go on, what a pattern says of the rest is taken for true.
        cut = field == "name" and len(task["name"]) == 15
        globs = [glob[:end] for end in range(1, len(glob) + 1)] if cut else [glob]
        if any(fnmatch.fnmatchcase(task[field] or "", one) for one in globs):
            return f"protected by {field}:{glob}"
    # A minion that sets its title is named as its interpreter, so the kernel's name does not tell.
    words = " ".join(_cmdline(_path("proc", str(task["pid"])))).split()
    if {os.path.basename(word) for word in words} & MINIONS:
        return "it is a minion"
    return None


def _stranger(task):
    """A pid is a process's name only together with its start time, in this machine's own /proc."""
    seen = _path("proc", str(task["pid"]))
    if _thread(seen).start_time != task["start_time"]:
        raise _Gone(seen)
    try:
        start_time = _thread("/proc/{}".format(task["pid"])).start_time
    except _Gone:
        _still_there(seen)
        return "this machine has no process {}".format(task["pid"])
    if start_time != task["start_time"]:
        return "its start time is not that of pid {} on this machine: another process".format(task["pid"])
    return None


def _holds(pid):
    """Whether one process holds a transition up now."""
    look = _available()
    return look.state == "in_progress" and look.reader.flagged(pid, look)


def _threads(pid):
    directory = f"/proc/{pid}"
    threads = []
    for tid in _directories(os.path.join(directory, "task")):
        with contextlib.suppress(_Gone):
            threads.append(_thread(directory, tid))
    return threads


def _stop_and_continue(task, guard):
    """
    Poke one process; a reason if it could not be. A SIGCONT cancels a stop
    that has not reached every thread yet (kernel/signal.c, prepare_signal):
    with many threads, wait until all have stopped, else most never wake.
    """
    pid = task["pid"]
    threads = _threads(pid)
    for thread in threads:
        kind = _kind(thread)
        if kind in ("traced", "stopped"):
            return f"thread {thread.tid} is {kind}"
    reason = _stranger(task)
    if reason:
        return reason
    guard.arm(pid, task["start_time"])
    try:
        os.kill(pid, signal.SIGSTOP)
        if len(threads) > 1:
            _all_stopped(pid)
    except ProcessLookupError as err:
        raise _Gone(pid) from err
    except PermissionError as err:
        return f"it may not be signalled: {err.strerror}"
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGCONT)
        guard.disarm()
    return None


def _all_stopped(pid, patience=0.1):
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        with contextlib.suppress(_Gone):
            if all(thread.letter in "TZX" for thread in _threads(pid)):
                return


def _not_blocking(pids):
    skipped, vanished = [], []
    for pid in sorted(pids):
        try:
            reason = "it blocks only since this look" if _holds(pid) else "it does not block"
            skipped.append(dict(_task(pid, [pid]), tids=[], reason=reason))
        except _Gone:
            vanished.append(pid)
    return skipped, vanished


def _crossed(pids, patience=1):
    """Give the poked a moment to run: the flag clears when they do, not when they are signalled."""
    deadline = time.monotonic() + patience
    while pids and time.monotonic() < deadline:
        with contextlib.suppress(_Gone, CommandExecutionError):  # told by the look that follows
            if _holds(pids[0]):
                time.sleep(0.01)
                continue
        pids = pids[1:]


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


class _Guard:
    def __init__(self, process):
        self.process = process

    def _tell(self, line):
        os.write(self.process.stdin.fileno(), line + b"\n")

    def arm(self, pid, start_time):
        try:
            self._tell(f"{pid} {start_time}".encode())
        except BrokenPipeError as err:
            raise CommandExecutionError("The guard of a poke is gone; nothing was stopped") from err

    def disarm(self):
        with contextlib.suppress(BrokenPipeError):
            self._tell(b"")

    def end(self):
        with contextlib.suppress(BrokenPipeError):
            self._tell(b"end")


@contextlib.contextmanager
def _guard(patience=10):
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
        raise CommandExecutionError(f"Cannot start the guard of a poke: {err.strerror}") from err
    guard = _Guard(process)
    try:
        poll = select.poll()  # select() takes no descriptor above 1023
        poll.register(process.stdout, select.POLLIN)
        if not poll.poll(patience * 1000) or process.stdout.read(5) != b"ready":
            process.kill()
            raise CommandExecutionError(f"The guard of a poke did not start within {patience} s")
        yield guard
    finally:
        guard.end()
        process.stdin.close()
        process.stdout.close()
        process.wait()
