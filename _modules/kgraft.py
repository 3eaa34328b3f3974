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
    only. A poke knows no root: see :py:func:`poke`.
"""

import errno
import functools
import glob
import importlib.util
import json
import os
import re
import sys
import time

import salt.utils.platform
import salt.utils.yaml
from salt.exceptions import CommandExecutionError, SaltInvocationError

__virtualname__ = "kgraft"

VERSION = "0.2.0"


def _room(name, **others):
    """Execute the private sibling ``_kgraft_<name>.py``, which gets ``others`` first (docs/architecture.md, Rooms)."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"_kgraft_{name}.py")
    spec = importlib.util.spec_from_file_location(f"{__name__}_{name}", path)
    room = importlib.util.module_from_spec(spec)
    vars(room).update(others)
    spec.loader.exec_module(room)
    return room


files = _room("files")
kernel = _room("kernel", files=files)
tasks = _room("tasks", files=files, kernel=kernel)
poker = _room("poker")
prober = _room("prober")
poking = _room("poke", files=files, tasks=tasks, poker=poker, prober=prober)
reasons = _room("reasons", files=files, kernel=kernel, tasks=tasks, poking=poking)


def __virtual__():
    if not salt.utils.platform.is_linux():
        return False, f"kgraft: live patching is a matter of Linux; this is {sys.platform}"
    return __virtualname__


def _with_salts_errors(function):
    """What a room could not do (OSError, ValueError) is a CommandExecutionError here, in one line."""

    @functools.wraps(function)
    def _call(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except (OSError, ValueError) as err:
            raise CommandExecutionError(files.message(err)) from err

    return _call


# What a user asks


@_with_salts_errors
def summary():
    """
    Say in one line where this machine stands; its stable parts come first, so
    that the lines of many machines sort and group.

    Returns a string: ``ready livepatch_9_2_1``, ``ready no live patch``,
    ``in_progress kgraft_patch_2_2_1 apply 2 blocking: nfsd(731) kernel, …``
    (the count has a ``+`` when not everything could be read), or
    ``unavailable``. ``/proc`` is walked only while a transition runs.

    Raises ``CommandExecutionError`` if the kernel could not be looked at.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft.summary --out=txt
    """
    look = kernel.look(_root())
    if look.state == "unavailable":
        return look.state
    if look.state == "ready":
        return "ready {}".format(" ".join(kernel.active(look)) or "no live patch")
    held = tasks.blocking(_root(), limit=3)
    if held["state"] == "ready":
        return summary()
    line = "in_progress {} {} {}{} blocking".format(
        " ".join(kernel.moving(look)) or "unknown",
        look.direction or "unknown",
        held["count"],
        "" if held["complete"] else "+",
    )
    return "{}: {}".format(line, _named(held, "{name}({pid}) {kind}")) if held["tasks"] else line


@_with_salts_errors
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
    interface = kernel.interface(_root())
    return interface.abi if interface else None


@_with_salts_errors
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
        the names of the patches being applied or applied, oldest first; one
        whose functions all wait for modules is among them.
    ``moving``
        the names of the patches that the transition applies or reverts; empty
        when the kernel does not say, and when ``ready``.
    ``boot_id``
        the kernel's id of this boot.

    It reads no file of any process.

    Raises ``CommandExecutionError`` if the kernel could not be looked at: a
    failed look is never ``ready``.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft.status
    """
    root = _root()
    look = kernel.look(root)
    return {
        "abi": look.kernel.abi if look.kernel else None,
        "state": look.state,
        "direction": look.direction,
        "kernelrelease": files.word(os.path.join(root, "proc/sys/kernel/osrelease")),
        "active": kernel.active(look),
        "moving": kernel.moving(look),
        "boot_id": files.word(os.path.join(root, "proc/sys/kernel/random/boot_id")),
    }


@_with_salts_errors
def ready():
    """
    Ask whether no transition runs, as ``kgr check`` and ``klp check`` do, for
    scripts: also the exit code says so.

    Returns True. While a transition runs, False, and ``salt`` and ``salt-call``
    exit with 1.

    Raises ``CommandExecutionError``, and they exit with 1, on a kernel without
    live patching or if it could not be looked at.

    CLI Example:

    .. code-block:: bash

        salt-call kgraft.ready && zypper patch
    """
    is_ready = kernel.available(_root()).state == "ready"
    if not is_ready:
        __context__["retcode"] = 1
    return is_ready


@_with_salts_errors
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
    root = _root()
    if pid is None:
        return kernel.available(root).state == "in_progress"
    _whole("pid", pid)
    try:
        return tasks.holds(root, pid)
    except FileNotFoundError:
        raise CommandExecutionError("There is no process {} under {}".format(pid, os.path.join(root, "proc"))) from None


@_with_salts_errors
def patches(functions=False):
    """
    List the live patches that the kernel knows.

    functions
        Also list each patch's functions. Default: False

    Returns a dict from the name of a patch's module to a dict:

    ``state``
        ``applying``, ``applied``, ``reverting`` or ``inactive`` (reverted or
        replaced; kGraft keeps such until their module is removed). A patch
        whose functions wait for a module that is not loaded is ``applied``;
        None in a transition of which the kernel does not tell whether it is
        this patch's. One that is being replaced is ``applied`` until it is.
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
        look = kernel.available(_root())
        return {patch.name: look.kernel.details(patch, functions) for patch in look.patches}

    return kernel.retry(details)


@_with_salts_errors
def blocking(cmdline=False, stacks=False, limit=20, budget=None, protect=None):
    """
    Name the processes that hold a transition up, why, and what to do about it.

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
    protect
        Patterns of processes that nobody should touch, as in :py:func:`poke`.
        They add to the daemons and kernel threads of clusters and of their
        storage, and to HANA's daemons. Default: None

    Returns a dict:

    ``state``
        ``ready`` (then nothing blocks) or ``in_progress``.
    ``tasks``
        a list of dicts, one for each process: ``pid``; ``tids``, the threads
        that have not crossed; ``name``; ``user``; ``unit``, systemd's, or None;
        ``letter``, the state as in ``ps``; ``kind``, the first of ``kernel``,
        ``traced``, ``stopped``, ``uninterruptible``, ``zombie``, ``user`` that
        is true of a flagged thread; ``start_time`` in clock ticks since boot;
        ``why`` it blocks and what is of ``help``, sentences, None where nothing
        is known; one that nobody has read or tried begins with ``Probably:``;
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
    ``note``
        sentences on the whole, or None: what an empty list can mean, that
        stacks could not be read. As root they are read for the reasons, also
        where they are not shown.

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
    patterns, until = _patterns(protect), time.monotonic() + budget if budget else None
    return reasons.explained(_root(), tasks.blocking(_root(), cmdline, stacks, limit, budget), patterns, until)


# What a user orders


@_with_salts_errors
def overview(names=False, fixes=False):
    """
    Tell where this machine stands, in one answer for reports, the mine and
    dashboards. Nothing is changed, and no repository is read again.

    names
        Also name the processes that block, and their users: they tell who
        works on this machine. Default: False
    fixes
        Also say what the live patch fixes, which asks rpm or zypper. Default:
        False

    Returns a dict. What is not known is None, and ``notes`` say why:

    ``observed``, ``version``
        when it was looked, as ``2026-11-23T02:10:00Z``; the version of this
        module.
    ``state``, ``direction``, ``active``, ``kernelrelease``, ``boot_id``, ``abi``
        as in :py:func:`status`.
    ``running``
        the version of the newest active patch, as rpm writes it.
    ``since``
        while a transition runs, when the beacon saw it first, as ``observed``.
    ``blocking``
        while a transition runs ``{count, complete, tasks}`` as in
        :py:func:`blocking`, 20 tasks at most, each with its ``kind``, ``unit``
        and ``why``; with ``names=True`` also its ``pid``, ``name`` and ``user``.
    ``package``
        ``{name, installed, newest, as_of}``: the live-patch package of this
        kernel, as in ``kgraft_pkg.available``; ``as_of`` as ``observed``.
    ``fixes``
        with ``fixes=True`` as in ``kgraft_security.fixes``, else None.
    ``supported_until``, ``reboot``
        as ``kgraft_security`` says.
    ``notes``
        a list of sentences: what could not be read, or is not loaded here.

    Raises ``CommandExecutionError`` if the kernel could not be looked at;
    ``SaltInvocationError`` for a bad argument.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft.overview
        salt '*' kgraft.overview names=True fixes=True
    """
    _boolean("names", names)
    _boolean("fixes", fixes)
    seen, notes = status(), []
    told = {"observed": _stamp(time.time()), "version": VERSION, "since": None, "blocking": None}
    told.update((key, seen[key]) for key in ("state", "direction", "active", "kernelrelease", "boot_id", "abi"))
    told["running"] = next(filter(None, map(kernel.version, reversed(seen["active"]))), None)
    if seen["state"] == "in_progress":
        told["since"] = _since(seen)
        notes += [] if told["since"] else ["Since when it runs is not known: no memory of the beacon kgraft tells it"]
        held = blocking()
        if held["state"] == "ready":
            return overview(names, fixes)
        keys = ("kind", "unit", "why") + (("pid", "name", "user") if names else ())
        told["blocking"] = {"count": held["count"], "complete": held["complete"]}
        told["blocking"]["tasks"] = [{key: task.get(key) for key in keys} for task in held["tasks"]]
    offered = _ask_others("kgraft_pkg.available", notes)
    told["package"] = offered and {
        "name": _ask_others("kgraft_pkg.name", notes),
        "installed": _ask_others("kgraft_pkg.installed", notes),
        "newest": offered["newest"],
        # UTC, for who compares many machines
        "as_of": offered["as_of"] and _stamp(time.mktime(time.strptime(offered["as_of"], "%Y-%m-%d %H:%M"))),
    }
    notes += offered["unread"] if offered else []
    told["fixes"] = _ask_others("kgraft_security.fixes", notes) if fixes else None
    told["supported_until"] = _ask_others("kgraft_security.supported_until", notes)
    told["reboot"] = _ask_others("kgraft_security.reboot", notes)
    return dict(told, notes=notes)


@_with_salts_errors
def support(protect=None):
    """
    Write one file for a service request with SUSE: all that is known here of
    live patching. It holds no command line and no code, but names of processes
    and users.

    protect
        As in :py:func:`blocking`. Default: None

    Returns ``{path, notes}``: the file ``kgraft_support.yaml`` in the minion's
    cache directory, for root only, which replaces an older one; and what could
    not be found out, which stands in the file, too. In it are the overview, the
    patches with their functions, who blocks with kernel stacks and reasons, the
    kernel's log about live patches, the locks of packages, the repositories,
    and versions.

    Raises ``CommandExecutionError`` if the file could not be written;
    ``SaltInvocationError`` for a bad argument.

    CLI Example:

    .. code-block:: bash

        salt db1 kgraft.support
    """
    _patterns(protect)
    notes = []
    told = {
        "overview": _ask_others("kgraft.overview", notes, names=True, fixes=True),
        "patches": _ask_others("kgraft.patches", notes, functions=True),
        "blocking": _ask_others("kgraft.blocking", notes, stacks=True, limit=None, budget=10, protect=protect),
        "kernel log": _kernel_log(notes),
        "locks": _ask_others("pkg.list_locks", notes, **({} if _root() == "/" else {"root": _root()})),
        "repositories": _ask_others("kgraft_pkg.repositories", notes),
        "other kernels": _ask_others("kgraft_pkg.other_kernels", notes),
        "loading": _ask_others("kgraft_pkg.loading", notes),
        "versions": dict(_ask_others("test.versions_information", notes) or {}, kgraft=VERSION),
        "notes": notes,
    }
    path = os.path.join(__opts__["cachedir"], "kgraft_support.yaml")
    files.replace(path, salt.utils.yaml.safe_dump(told, default_flow_style=False), 0o600)
    return {"path": path, "notes": notes}


def _kernel_log(notes):
    """The lines about live patches of this boot, as far as the kernel still has them."""
    if _root() != "/":
        notes.append(f"The kernel's log is that of /, and kgraft.root is {_root()}: it was left out")
        return None
    options = {"python_shell": False, "output_loglevel": "quiet", "ignore_retcode": True, "timeout": 20}
    answer = _ask_others("cmd.run_all", notes, cmd=["dmesg", "--kernel"], **options)
    if answer is None or answer["retcode"] != 0:
        notes += ["dmesg: {}".format(files.text(answer["stderr"] or answer["stdout"]))] if answer else []
        return None
    lines = [files.text(line) for line in answer["stdout"].splitlines()]
    # the kernel's own command line may hold what is secret
    return [line for line in lines if re.search(r"\b(kgr|klp|livepatch)", line) and "ommand line" not in line]


def _stamp(seconds):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _since(seen):
    """When a beacon first saw the transition that runs, from its memory (_beacons/kgraft.py); None if none did."""
    found = []
    for path in glob.glob(os.path.join(glob.escape(__opts__["cachedir"]), "kgraft_beacon_*.json")):
        try:
            with open(path, encoding="utf-8") as file:
                memory = json.load(file)
            running = memory["transition"]
            same = memory["kernel"]["boot_id"] == seen["boot_id"] and running["direction"] in (None, seen["direction"])
            if same and (running["patch"] is None or running["patch"] in seen["moving"]):
                found.append(time.time() - max(0, time.monotonic() - running["since"]))
        except (OSError, ValueError, LookupError, TypeError):
            continue
    return _stamp(min(found)) if found else None


def _ask_others(function, notes, **arguments):
    """What a function says; None and a note where it is not loaded or does not know."""
    if function not in __salt__:
        notes.append(f"{function} is not loaded here")
        return None
    try:
        return __salt__[function](**arguments)
    except CommandExecutionError as err:
        notes.append(f"{function}: {files.message(err)}")
        return None


@_with_salts_errors
def poke(pids=None, protect=None, protect_defaults=True, method="trace", test=False):
    """
    Move sleeping processes that block across the boundary, without ending
    what they sleep in.

    By *tracing*, the default, thread after thread: each is stopped for about a
    millisecond and sleeps on (``PTRACE_SEIZE``, ``INTERRUPT``, ``DETACH``). The
    process's other threads run on, and nobody is told: no parent, no shell,
    no terminal. Whatever happens to the poke, the kernel lets go.

    By *signals* as ``kgr poke`` does, SIGSTOP then SIGCONT, for where tracing is
    forbidden: the whole process stands still for a moment. A child is left
    alone whose parent can notice, for ``su`` and shells with job control then
    stop for good.

    Only threads that sleep are moved. Never poked: kernel threads, traced,
    stopped, uninterruptible and running ones, zombies, the protected, probes
    (``kgraft_probe``) and what they have started; by signals also pid 1, this
    process and its ancestors, and the minion. By tracing those come last, for
    on kernels that send no signal themselves they are what is left. Right before, a
    process must still block and have the same start time under ``kgraft.root``
    and in this machine's ``/proc``, so that a reused pid or a recorded tree
    never leads to a stranger.

    Kernels with livepatch from 5.1 on, SUSE's 4.12 in updates since 2019, and
    kGraft's from April 2015 on wake sleepers themselves: there a poke only
    makes it sooner. Programs that take EINTR for an error may notice one
    (``epoll_wait`` returns it).

    pids
        Only these process ids: an integer, a list, or a comma-separated
        string. Default: None, all that block.
    protect
        Further patterns not to poke, a list or one string. Each carries its
        field: ``name:hdb*``, ``unit:pacemaker*`` or ``user:*adm``. Default: None
    protect_defaults
        False drops the default list of units and names: ``corosync*``,
        ``sbd*``, ``pacemaker*``, ``crmd``, ``lrmd``, ``dlm_controld*``,
        ``multipathd*``, ``iscsid*``, ``ocssd*``, ``cssd*``, ``ctdbd*``,
        ``drbd*``; for signals also ``hdb*``, ``sapstart*`` and ``systemd*``.
        A cluster's daemon that stands still can fence the node. Default: True
    method
        ``trace`` or ``signals``. Default: ``trace``
    test
        Touch nobody and show the same. Default: False

    Returns a dict: ``poked``, tasks as in :py:func:`blocking` without reasons, with ``crossed``,
    the threads that have crossed, and ``left``, a dict from thread id (a
    string) to why it has not; ``skipped``, tasks with a ``reason``; ``vanished``,
    process ids that ended in between; ``count``, how many processes are still
    flagged, None if the kernel could not be looked at again; ``complete``, as
    in :py:func:`blocking`.

    Raises ``CommandExecutionError``, having touched nobody, on a kernel without
    live patching, if it could not be looked at, if ``/proc`` is of another pid
    namespace, or if the process that pokes could not be started;
    ``SaltInvocationError`` for a bad argument.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft.poke test=True
        salt '*' kgraft.poke protect='name:hdb*'
        salt '*' kgraft.poke pids=731,740 method=signals
    """
    wanted = _pids(pids)
    _boolean("protect_defaults", protect_defaults)
    _boolean("test", test)
    if method not in poking.METHODS:
        raise _refused("method", method, " or ".join(poking.METHODS))
    return poking.poke(_root(), wanted, _patterns(protect), protect_defaults, method, test)


@_with_salts_errors
def wait(timeout=300, protect=None):
    """
    Block until no transition runs.

    timeout
        Seconds to wait before giving up. Default: 300
    protect
        As in :py:func:`blocking`. Default: None

    Returns the seconds it took, as a float.

    Raises ``CommandExecutionError`` on time-out, naming the blocking tasks,
    with ``info={'timed_out': True, 'blocking': …}`` (as :py:func:`blocking`
    returns it); without that info if the kernel has no live patching or could
    not be looked at. Salt prints the info, too, so the reasons are seen.
    ``SaltInvocationError`` for a bad argument.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft.wait timeout=600
    """
    _seconds("timeout", timeout)
    _patterns(protect)
    began = time.monotonic()
    while True:
        look = kernel.available(_root())
        waited = time.monotonic() - began
        if look.state == "ready":
            return round(waited, 3)
        if waited >= timeout:
            break
        time.sleep(min(0.2, timeout - waited))
    held = blocking(protect=protect)
    if held["state"] == "ready":
        return round(time.monotonic() - began, 3)
    raise CommandExecutionError(
        "{} still in progress after {:g} s; blocking: {}{}".format(
            " ".join(kernel.moving(look)) or "A transition is",
            timeout,
            _named(held, "{name} ({pid}) {kind}", 10) if held["tasks"] else "nothing that was found",
            "" if held["complete"] else " (not everything could be read)",
        ),
        info={"timed_out": True, "blocking": held},
    )


@_with_salts_errors
def load(name):
    """
    Load an installed live patch into the running kernel, as a package's script
    does. Loading starts a transition; it does not wait for its end.

    name
        The patch's module, such as ``kgraft_patch_2_2_1``; ``-`` and ``_`` are
        the same.

    Returns ``{name, state}`` as the kernel shows it afterwards: ``applying``,
    ``applied``, or None where it does not tell. A patch that is active already is left alone.

    Raises ``CommandExecutionError`` if a transition is running (the kernel
    takes one at a time), if the module cannot be loaded, or if the patch is
    loaded but inactive (:py:func:`unload` it first);
    ``SaltInvocationError`` if ``name`` is not a module's name.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft.load kgraft_patch_2_2_1
    """
    wanted = _module(name)
    known = kernel.find(kernel.available(_root()), wanted)
    if known and known.state in (*kernel.ACTIVE, None):
        return {"name": known.name, "state": known.state}
    if known:
        raise CommandExecutionError(
            f"{known.name} is loaded but {known.state}; unload it with kgraft.unload, then load it again"
        )
    kernel.be_ready(_root(), f"load {wanted}")
    answer = __salt__["kmod.load"](wanted)
    if isinstance(answer, str):  # kmod.load answers a failure with a string
        busy = os.strerror(errno.EBUSY) in answer
        if os.strerror(errno.EAGAIN) in answer or busy and kernel.look(_root()).state == "in_progress":
            answer = f"{answer} (a transition is running)"
        elif busy:
            # both want to change where the function goes (FTRACE_OPS_FL_IPMODIFY): SUSE/qa_test_klp, TC17
            answer = f"{answer} (a kprobe may be on one of its functions: remove the probe, such as SystemTap's, first)"
        raise CommandExecutionError(answer)
    known = kernel.find(kernel.available(_root()), wanted)
    if not known or known.state not in (*kernel.ACTIVE, None):
        raise CommandExecutionError(
            "modprobe succeeded, but the kernel shows {} as {}".format(wanted, known.state if known else "not loaded")
        )
    return {"name": known.name, "state": known.state}


@_with_salts_errors
def unload(name, test=False):
    """
    Take an inactive live patch out of memory: one that was replaced or reverted must go before it can be loaded again.
    On livepatch such a patch is no longer among the kernel's patches, but its module is still there.

    name
        The patch's module, such as ``kgraft_patch_2_2_1``; ``-`` and ``_`` are
        the same.
    test
        Touch nothing. Default: False

    Returns ``{name, state}``: None where it is not in memory (any more), else
    with ``test=True`` the patch's state, as :py:func:`patches` has it.

    Raises ``CommandExecutionError`` if the patch is not inactive, if a
    transition is running, or if the module is no live patch or cannot be
    unloaded; ``SaltInvocationError`` for a bad argument.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft.unload kgraft_patch_2_2_1
    """
    wanted = _module(name)
    _boolean("test", test)
    look = kernel.available(_root())
    known = kernel.find(look, wanted)
    state = known.state if known else kernel.left_in_memory(_root(), wanted)
    if test or (state is None and not known):
        return {"name": wanted, "state": state}
    if state != "inactive":
        raise CommandExecutionError(f"{wanted} is {state or 'in use'}: only an inactive patch is unloaded")
    kernel.be_ready(_root(), f"unload {wanted}")
    until = time.monotonic() + 2  # a module is held for a moment longer than its patch is shown
    while True:
        answer = __salt__["kmod.remove"](wanted)
        if not isinstance(answer, str):
            break
        if time.monotonic() >= until:
            raise CommandExecutionError(answer)  # kmod.remove answers a failure with a string
        time.sleep(0.1)
    if kernel.find(kernel.available(_root()), wanted) or kernel.left_in_memory(_root(), wanted):
        raise CommandExecutionError(f"modprobe -r succeeded, but {wanted} is still in memory")
    return {"name": wanted, "state": None}


@_with_salts_errors
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

    Returns ``{name, state}`` as the kernel shows it afterwards: ``reverting``,
    ``inactive``, or None where it does not tell. On livepatch a patch that is just being applied turns back.

    Raises ``CommandExecutionError``, having written nothing, if the patch is
    not loaded, not active, has newer patches on it, or if another transition
    is running; ``SaltInvocationError`` without the word of acceptance.

    CLI Example:

    .. code-block:: bash

        salt db1 kgraft.revert kgraft_patch_2_2_1 i_accept_loss_of_support=True
    """
    wanted = _module(name)
    _accepted(i_accept_loss_of_support)
    look = kernel.available(_root())
    patch = kernel.find(look, wanted)
    if not patch:
        raise CommandExecutionError(
            "{} is not loaded; loaded: {}".format(wanted, " ".join(known.name for known in look.patches) or "none")
        )
    if patch.state in ("reverting", "inactive"):
        raise CommandExecutionError(f"{patch.name} is already {patch.state}")
    try:
        look.kernel.revert(patch)
    except FileNotFoundError:
        raise CommandExecutionError(f"{patch.name} was unloaded meanwhile; nothing was written") from None
    patch = kernel.find(kernel.available(_root()), wanted)
    return {"name": wanted, "state": patch.state if patch else "inactive"}


@_with_salts_errors
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
    look = kernel.available(_root())
    if look.state != "in_progress":
        raise CommandExecutionError("No transition is running: there is nothing to force")
    look.kernel.force(look)
    return status()


def _named(held, form, most=3):
    names = [form.format(**task) for task in held["tasks"][:most]]
    more = held["count"] - len(names)
    return ", ".join(names) + (f", and {more} more" if more > 0 else "")


# Arguments


def _root():
    root = __opts__.get("kgraft.root", "/")
    if not isinstance(root, str) or not os.path.isabs(root):
        raise CommandExecutionError(f"The minion option kgraft.root must be an absolute path, not {root!r}")
    return root


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
        if not re.match(r"\s*\d{1,10}(\s*,\s*\d{1,10})*\s*\Z", value, re.ASCII):
            raise _refused("pids", value, allowed)
        value = [int(word) for word in value.split(",")]
    value = value if isinstance(value, (list, tuple, set)) else [value]
    for pid in value:
        _whole("pids", pid, allowed)
    return set(value)


def _patterns(protect):
    given = [protect] if isinstance(protect, str) else protect
    if given is not None and not isinstance(given, (list, tuple)):
        raise _refused("protect", protect, "a list of patterns")
    patterns = []
    for pattern in given or []:
        field, _, glob = pattern.partition(":") if isinstance(pattern, str) else ("", "", "")
        if field not in ("name", "unit", "user") or not glob:
            raise _refused("protect", pattern, "'name:PATTERN', 'unit:PATTERN' or 'user:PATTERN', such as 'name:hdb*'")
        patterns.append((field, glob))
    return patterns


def _module(name):
    if not isinstance(name, str) or not re.match(r"[A-Za-z0-9][\w-]*\Z", name, re.ASCII):
        raise _refused("name", name, "the name of a patch's module, such as 'kgraft_patch_2_2_1'")
    return kernel.folded(name)


def _accepted(word):
    if word is not True:
        raise _refused("i_accept_loss_of_support", word, "True: this costs the support of SUSE, see the documentation")
