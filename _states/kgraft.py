"""
Live kernel patches as states: activated, applied, settled
==========================================================

A live patch is offered by a repository, then installed, then loaded, then settled: every task on the machine runs the
new code. ``kgraft.activated`` sees to the first, ``kgraft.applied`` to all the others; ``kgraft.settled`` is the last
one alone.

.. code-block:: yaml

    live patches are offered:
      kgraft.activated: []

    kernel is patched:
      kgraft.applied:
        - version: latest
        - timeout: 600
        - require:
          - kgraft: live patches are offered

These states read no kernel file and run no command: they ask ``kgraft.*``, ``kgraft_pkg.*``, ``kgraft_security.*`` and
``kgraft_subscription.*``, and judge.
"""

import collections
import datetime
import fnmatch
import re
import time

from salt.exceptions import CommandExecutionError, SaltInvocationError

__virtualname__ = "kgraft"

# Seconds after which a wait tells the master who blocks, and again after as many.
SLICE = 15.0

# Days before the end of a kernel's support from which on it is warned of.
WARN_DAYS = 30

# What each kind of blocking task is called, and what ends it.
KINDS = (
    ("kernel", "kernel thread", "no signal moves it; stop the service or unload the module it belongs to, or reboot"),
    ("traced", "traced", "end its debugger or tracer"),
    ("stopped", "stopped", "continue it (kill -CONT PID) or end it"),
    ("uninterruptible", "uninterruptible sleep", "no signal reaches it; mend what it waits for, a disk or NFS"),
    ("zombie", "zombie", "its parent must reap it; restart the parent"),
    ("user", "process", "run kgraft.poke, set poke_after, or restart it"),
)
USER_ON_LIVEPATCH = "the kernel signals it every 15 s by itself; wait longer, or restart it"

NEVER = "/etc/sysconfig/livepatching says LIVEPATCH_KERNEL=never"
FORMS = "write latest, '5' (any release of 5), '5-2.1' (exactly), '>=5' (at least), or a map of kernels to these"

# facts: the flat map that changes are measured by
Look = collections.namedtuple("Look", "status patches package facts")
Patience = collections.namedtuple("Patience", "timeout poke_after protect pokes")
Wish = collections.namedtuple("Wish", "version cves not_affected refresh allow_downgrade settle")
# number None: the newest there is; release None: any
Wanted = collections.namedtuple("Wanted", "text number release at_least")


def __virtual__():
    if "kgraft.status" in __salt__:
        return __virtualname__
    return (False, "the kgraft states need the execution module kgraft (_modules/kgraft.py), which is not loaded here")


def activated(name, register=False, code_from=None, product=None, url=None, packages=None, refresh=True, timeout=300):
    """
    An enabled repository offers live patches, and what belongs to them is installed, licences accepted.

    Whoever provides the repository is as good: the SUSE Customer Center, an RMT or SMT, a SUSE Manager channel, a cloud
    provider. The Live Patching product is registered only if none does and ``register`` says so.

    name
        A free label.

    register
        Register the product if no enabled repository offers live patches. Default: ``False``

    code_from
        Where the registration code lies, never the code itself: ``pillar:some:key``, ``sdb://…`` or the path of a file
        that only root can read; see :mod:`kgraft_subscription <saltext.kgraft.modules.kgraft_subscription>`. SLES for
        SAP needs none. Default: ``None``

    product
        The product as SUSEConnect names it, such as ``sle-live-patching/12/x86_64``. Default: from the grains

    url
        A local RMT or SMT server. Default: the one in use, or the Customer Center

    packages
        What must be installed, a list, ``pattern:`` in front of a pattern. Default: the product's release package and
        the tools, see ``kgraft_pkg.base``

    refresh
        Read the repositories' lists again if none is known to offer live patches. Never in a dry run.
        Default: ``True``

    timeout
        Seconds to wait for another zypper to end. Default: ``300``

    ``changes`` holds the ``repositories`` that offer live patches and the packages, old and new, as two looks saw them.

    .. code-block:: yaml

        live patches are offered:
          kgraft.activated:
            - register: True
            - code_from: /etc/kgraft.code
    """

    patience = Patience(timeout, None, None, [])
    subscription = {"code_from": code_from, "product": product, "url": url}

    def act(before):
        return _activate(before, patience, packages, register, refresh, subscription)

    return _report(name, lambda: _provisions(packages), act, patience)


def applied(
    name,
    version="latest",
    cves=None,
    not_affected=None,
    timeout=300,
    poke_after=None,
    protect=None,
    refresh=True,
    allow_downgrade=False,
    settle=True,
):
    """
    A live patch is applied, and every task runs it.

    It looks first; waits until a transition that already runs has ended; installs the package; loads the patch if
    installing did not; looks at the kernel, for an exit code proves nothing; and waits until the patch is settled. A
    patch that came by another hand (``zypper patch``, YaST) is as good. After a time-out or any other failure the
    next run goes on from where the machine then is.

    name
        A free label.

    version
        What is wanted. Default: ``latest``, the newest that the enabled repositories offer. ``'5'`` is any release of
        5, ``'5-2.1'`` exactly that one, ``'>=5'`` at least 5 (then the newest is installed). Live patches are
        numbered per kernel, so it may be a map ``{kernelrelease: version}``; a kernel that is not in it is a failure.
        Quote it: YAML reads ``2.10`` as 2.1.

    cves
        Instead of a version: a list of CVE numbers that must be fixed by the active, settled patch or by the running
        kernel itself. The newest patch is installed while one is open. What nobody can tell is a failure.
        Default: ``None``

    not_affected
        Kernel releases (as ``uname -r`` says them, ``*`` allowed) that never had these bugs. This is your word, and
        the comment says so. Default: ``None``

    timeout
        Seconds to wait for a transition to end, and for another zypper. Default: ``300``

    poke_after
        Seconds of waiting after which the sleeping processes that still block are poked (SIGSTOP, then SIGCONT), and
        again every 15 seconds. Where the kernel sends the signal itself (livepatch) it does nothing and says so.
        Default: ``None``, never.

    protect
        Processes that are never poked: a list of ``name:``, ``unit:`` and ``user:`` patterns, beside the default list
        of ``kgraft.poke``. Default: ``None``

    refresh
        Read the repositories' lists again before looking for a version. Never in a dry run. Default: ``True``

    allow_downgrade
        Let an older patch replace a newer one. Default: ``False``

    settle
        Wait for the end of the transition. With ``False`` a patch that is being applied is enough.
        Default: ``True``

    ``changes`` holds the package, each patch and the ``state`` of the kernel, old and new, as two looks saw them, and
    the tasks that were ``poked``; so they tell what did happen also after a failure. With ``test=True`` it looks,
    refreshes nothing and waits for nothing, and the changes are those that it would make.

    .. code-block:: yaml

        kernel is patched:
          kgraft.applied:
            - version:
                4.4.180-94.100-default: '5'
                4.4.180-94.107-default: '>=3'
            - timeout: 600
            - poke_after: 120
    """
    patience = Patience(timeout, poke_after, protect, [])
    wish = Wish(version, cves, not_affected, refresh, allow_downgrade, settle)
    return _report(name, _machine, lambda before: _apply(before, patience, wish), patience)


def settled(name, timeout=300, poke_after=None, protect=None):
    """
    No transition is running: no live patch is being applied or reverted.

    It waits for one that runs. It does not say which patch is active; that is ``kgraft.applied``. A kernel without
    live patching is a failure, not a settled one.

    name
        A free label.

    timeout
        Seconds to wait for the transition to end. Default: ``300``

    poke_after
        Seconds of waiting after which the sleeping processes that still block are poked (SIGSTOP, then SIGCONT), and
        again every 15 seconds. Where the kernel sends the signal itself (livepatch) it does nothing and says so.
        Default: ``None``, never.

    protect
        Processes that are never poked: a list of ``name:``, ``unit:`` and ``user:`` patterns, beside the default list
        of ``kgraft.poke``. Default: ``None``

    ``changes`` holds the ``state`` of the kernel and the state of each patch, old and new, as two looks saw them, and
    the tasks that were ``poked``. With ``test=True`` it looks, and waits for nothing.

    .. code-block:: yaml

        no transition runs:
          kgraft.settled:
            - timeout: 600
            - poke_after: 120
            - protect: ['unit:postgresql*']
    """
    patience = Patience(timeout, poke_after, protect, [])
    return _report(name, _kernel, lambda before: _settle(before, patience), patience)


# ----- look, act, look again


def _report(name, look, act, patience):
    """
    Look, act, look again. A failure becomes the comment; the changes are what the two looks saw.

    ``act`` returns its comment and, in a dry run, what would change.
    """
    ret = {"name": name, "result": False, "changes": {}, "comment": ""}
    before = None
    try:
        _check(patience)
        before = look()
        if patience.protect is not None:
            # who knows the patterns refuses a wrong one now, not when it is time to poke
            __salt__["kgraft.poke"](protect=patience.protect, test=True)
        ret["comment"], promised = act(before)
        ret["result"] = None if promised else True
        ret["changes"] = promised
    except (CommandExecutionError, SaltInvocationError) as err:
        ret["comment"] = _words(err)
    if before is None:
        return ret
    if patience.poke_after is not None and not _is_poking(before, patience):
        ret["comment"] += "\npoke_after does nothing here: on livepatch the kernel signals the tasks itself."
    if not __opts__["test"]:
        try:
            ret["changes"] = _differences(before.facts, look().facts)
        except CommandExecutionError as err:
            ret["result"] = False
            ret["comment"] += "\nWhat changed cannot be told: " + _words(err)
        poked = [_task(task) for poke in patience.pokes for task in poke["poked"]]
        if poked:
            ret["changes"]["poked"] = sorted(set(poked), key=poked.index)
    return ret


def _check(patience):
    if not _is_number(patience.timeout) or patience.timeout <= 0:
        raise SaltInvocationError(f"timeout is {patience.timeout!r}; it must be a number of seconds above 0")
    if patience.poke_after is not None and (not _is_number(patience.poke_after) or patience.poke_after < 0):
        raise SaltInvocationError(
            f"poke_after is {patience.poke_after!r}; it must be a number of seconds, or None for never"
        )


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _words(err):
    # without the details that Salt prints behind the message
    return getattr(err, "error", None) or str(err)


def _kernel():
    status = __salt__["kgraft.status"]()
    if status["state"] == "unavailable":
        raise CommandExecutionError(
            "This kernel, {}, has no live patching: neither kGraft nor livepatch.".format(status["kernelrelease"])
        )
    patches = __salt__["kgraft.patches"]()
    facts = {patch: told["state"] for patch, told in patches.items()}
    facts["state"] = status["state"]
    return Look(status, patches, None, facts)


def _machine():
    look = _kernel()
    for function in ("kgraft_pkg.name", "kgraft_security.cves"):
        if function not in __salt__:
            raise CommandExecutionError(
                "The module {} is not loaded on this minion: live patches as packages need zypper."
                " kgraft.settled works here.".format(function.split(".")[0])
            )
    if __salt__["kgraft_pkg.transactional"]():
        raise CommandExecutionError(
            "The root file system is read-only here: only transactional-update changes its packages, and a reboot"
            " brings them. Nothing was done."
        )
    package = __salt__["kgraft_pkg.name"]()
    look.facts[package] = __salt__["kgraft_pkg.installed"]()
    return look._replace(package=package)


def _differences(old, new):
    return {
        fact: {"old": old.get(fact), "new": new.get(fact)}
        for fact in sorted(set(old) | set(new))
        if old.get(fact) != new.get(fact)
    }


# ----- settled


def _settle(before, patience):
    if before.status["state"] == "ready":
        return f"No transition is running; {_active(before)}.", {}
    if __opts__["test"]:
        return _would_wait(before, patience), _differences(before.facts, _ended(before))
    seconds = _wait(before, patience)
    return f"Settled after {seconds:.0f} s; {_active(_kernel())}.", {}


def _active(look):
    active = look.status["active"]
    if not active:
        return "no live patch is active"
    return "{} {} active".format(", ".join(active), "is" if len(active) == 1 else "are")


def _moving(look):
    """
    What runs, as "kgraft_patch_2_2_1 is applying".
    """
    moving = [
        "{} is {}".format(patch, told["state"])
        for patch, told in look.patches.items()
        if told["state"] in ("applying", "reverting")
    ]
    return ", ".join(moving) or "a transition is running"


def _ended(look):
    """
    The facts when the transition has ended as it began.
    """
    gone = _gone(look)
    ends = {"in_progress": "ready", "applying": "applied", "reverting": gone}
    facts = {fact: ends.get(value, value) for fact, value in look.facts.items()}
    if any(told["state"] == "applying" and told["cumulative"] for told in look.patches.values()):
        facts.update((patch, gone) for patch, told in look.patches.items() if told["state"] == "applied")
    return facts


def _gone(look):
    # a reverted or replaced patch stays as inactive on kGraft and vanishes on livepatch
    return "inactive" if look.status["abi"] == "kgraft" else None


def _would_wait(look, patience):
    comment = "{}; its end would be waited for, {:g} s at most. {}".format(
        _moving(look), patience.timeout, _blockers(__salt__["kgraft.blocking"]())
    )
    if _is_poking(look, patience):
        would = __salt__["kgraft.poke"](protect=patience.protect, test=True)
        comment += " After {:g} s these would be poked: {}.{}".format(
            patience.poke_after, _names(would["poked"]) or "none", _skipped(would)
        )
    return comment


def _is_poking(look, patience):
    return patience.poke_after is not None and look.status["abi"] != "livepatch"


def _wait(look, patience, so_far=""):
    """
    Wait until settled, in slices: after each the master hears who blocks, and sleepers are poked when it is time.
    """
    started = time.monotonic()
    poke_at = patience.poke_after if _is_poking(look, patience) else None
    while True:
        waited = time.monotonic() - started
        ends = [patience.timeout, waited + SLICE] + ([] if poke_at is None else [poke_at])
        try:
            __salt__["kgraft.wait"](timeout=max(min(ends) - waited, 0.01))
            return time.monotonic() - started
        except CommandExecutionError as err:
            if not (isinstance(err.info, dict) and err.info.get("timed_out")):
                raise
            blocking = err.info["blocking"]
        waited = time.monotonic() - started
        if waited >= patience.timeout:
            raise CommandExecutionError(_unsettled(look, patience, blocking, so_far))
        if poke_at is not None and waited >= poke_at:
            patience.pokes.append(__salt__["kgraft.poke"](protect=patience.protect))
            poke_at = waited + SLICE
        __salt__["event.send"](
            "kgraft/{}/progress".format(__opts__["id"]),
            {
                "transition": _moving(look),
                "seconds": round(waited, 1),
                "timeout": patience.timeout,
                "count": blocking["count"],
                "complete": blocking["complete"],
                "tasks": blocking["tasks"],
            },
        )


def _unsettled(look, patience, blocking, so_far):
    lines = [f"{_moving(look)}, still after {patience.timeout:g} s. {so_far}{_blockers(blocking)}"]
    for kind, called, advice in KINDS:
        tasks = [task for task in blocking["tasks"] if task["kind"] == kind]
        if kind == "user" and look.status["abi"] == "livepatch":
            advice = USER_ON_LIVEPATCH
        if tasks:
            lines.append(f"- {called}: {_names(tasks)}: {advice}.")
    if patience.pokes:
        lines.append(f"Poked {len(patience.pokes)} times.{_skipped(patience.pokes[-1])}")
    return "\n".join(lines)


def _blockers(blocking):
    if not blocking["complete"]:
        return "At least {} tasks block, not all of them could be seen: {}.".format(
            blocking["count"], _names(blocking["tasks"]) or "none seen"
        )
    if not blocking["count"]:
        return "No task blocks any more; the kernel sees that at its next check."
    more = blocking["count"] - len(blocking["tasks"])
    return "{} {}: {}{}.".format(
        blocking["count"],
        "task blocks" if blocking["count"] == 1 else "tasks block",
        _names(blocking["tasks"]),
        f" and {more} more" if more else "",
    )


def _skipped(poke):
    if not poke["skipped"]:
        return ""
    return " Not poked: {}.".format(", ".join("{} ({})".format(_task(t), t["reason"]) for t in poke["skipped"]))


def _names(tasks):
    return ", ".join(_task(task) for task in tasks)


def _task(task):
    return "{} ({})".format(task["name"], task["pid"])


# ----- activated


def _provisions(packages):
    look = _machine()
    facts = dict(__salt__["kgraft_pkg.base"](packages), repositories=__salt__["kgraft_pkg.repositories"]())
    return look._replace(facts=facts)


def _activate(before, patience, packages, register, refresh, subscription):
    facts = dict(before.facts)
    steps = []
    if not facts["repositories"] and refresh and not __opts__["test"]:
        facts["repositories"] = __salt__["kgraft_pkg.repositories"](refresh=True, lock_timeout=patience.timeout)
    if not facts["repositories"]:
        if not register:
            raise CommandExecutionError(
                "No enabled repository offers live patches: enable one (a channel, a mirror), or write register: True."
            )
        steps.append(_register(facts, patience, subscription))
    missing = [package for package in sorted(facts) if facts[package] is None]
    if missing and __opts__["test"]:
        steps.append("{} would be installed.".format(", ".join(missing)))
        facts.update((package, "newest") for package in missing)
    elif missing:
        __salt__["kgraft_pkg.install_base"](packages, lock_timeout=patience.timeout)
    if __opts__["test"] and steps:
        return " ".join(steps), _differences(before.facts, facts)
    here = ", ".join(sorted(set(facts) - {"repositories"}))
    return " ".join(
        steps
        + ["Live patches are offered by {}.".format(", ".join(facts["repositories"]))]
        + ([f"Installed: {here}."] if here else [])
    ), {}


def _register(facts, patience, subscription):
    status = __salt__["kgraft_subscription.register"](test=__opts__["test"], **subscription)
    if __opts__["test"] and not status["registered"]:
        facts["repositories"] = ["those of {}".format(status["product"])]
        return "{} would be registered.".format(status["product"])
    if not __opts__["test"]:
        facts["repositories"] = __salt__["kgraft_pkg.repositories"](refresh=True, lock_timeout=patience.timeout)
    if not facts["repositories"]:
        raise CommandExecutionError(
            "{} is registered, but no enabled repository offers live patches: is its repository disabled?".format(
                status["product"]
            )
        )
    return "{} was registered.".format(status["product"])


# ----- applied


def _apply(before, patience, wish):
    _check_wish(wish)
    if wish.cves is not None:
        return _apply_cves(before, patience, wish)
    return _apply_version(before, patience, wish, _wanted(wish.version, before.status["kernelrelease"]))


def _check_wish(wish):
    if wish.cves is None:
        if wish.not_affected is not None:
            raise SaltInvocationError("not_affected is given without cves")
        return
    if wish.version != "latest":
        raise SaltInvocationError(f"version is {wish.version!r} and cves are given; write one of the two")
    for argument in ("cves", "not_affected"):
        words = getattr(wish, argument) or []
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise SaltInvocationError(f"{argument} is {words!r}; it must be a list of strings")
    if not wish.cves:
        raise SaltInvocationError("cves is empty; name at least one")


def _wanted(version, kernelrelease):
    if isinstance(version, dict):
        if kernelrelease not in version:
            raise CommandExecutionError(
                "version names no patch for this kernel, {}; it does for {}".format(
                    kernelrelease, ", ".join(sorted(map(str, version))) or "none"
                )
            )
        version = version[kernelrelease]
    if isinstance(version, float):
        raise SaltInvocationError(f"version is {version!r}, a number to YAML, which may have lost a 0; quote it")
    if isinstance(version, int) and not isinstance(version, bool):
        version = str(version)
    if version == "latest":
        return Wanted(version, None, (), True)
    match = re.match(r"(>=)?\s*(\d+)(?:-(\d+(?:\.\d+)*))?$", version) if isinstance(version, str) else None
    if not match:
        raise SaltInvocationError(f"version is {version!r}; {FORMS}")
    return Wanted(version, int(match.group(2)), _numbers(match.group(3) or ""), bool(match.group(1)))


def _numbers(text):
    return tuple(int(number) for number in re.findall(r"\d+", text))


def _key(version):
    # number and release as rpm orders them: 10 is newer than 9
    number, _, release = version.partition("-")
    return _numbers(number)[0], _numbers(release)


def _is_met(wanted, version):
    if version is None:
        return False
    number, release = _key(version)
    if wanted.at_least:
        return (number, release) >= (wanted.number, wanted.release)
    return number == wanted.number and (not wanted.release or release == wanted.release)


def _is_newer(wanted, version):
    if version is None or wanted.at_least:
        return False
    number, release = _key(version)
    return number > wanted.number or bool(wanted.release) and (number, release) > (wanted.number, wanted.release)


def _running(look):
    """
    The version that the kernel runs, or is about to.
    """
    versions = [look.patches[patch]["version"] for patch in look.status["active"] if patch in look.patches]
    known = [version for version in versions if version]
    return known[-1] if known else None


def _apply_version(before, patience, wish, wanted):
    if wanted.number is None:
        offered = _available(patience, wish)
        if not offered:
            raise CommandExecutionError(_not_offered(before))
        number, release = _key(offered[0])
        wanted = wanted._replace(number=number, release=release)
        wish = wish._replace(refresh=False)
    look = before
    notes = []
    if not _is_met(wanted, _running(look)):
        target = _target(look, patience, wish, wanted)
        if __opts__["test"]:
            return _would_bring(look, patience, wish, target)
        wish = wish._replace(refresh=False)
        if look.status["state"] == "in_progress":
            # the kernel would refuse a second patch
            _wait(look, patience, "Nothing was installed. ")
            look = _machine()
        if not _is_met(wanted, _running(look)):
            look, notes = _bring(look, patience, wish, _target(look, patience, wish, wanted))
    if look.status["state"] == "in_progress" and wish.settle:
        if __opts__["test"]:
            return _would_wait(look, patience), _differences(look.facts, _ended(look))
        _wait(look, patience)
        look = _machine()
        if not _is_met(wanted, _running(look)):
            raise CommandExecutionError(f"The transition ended otherwise than it began: {_active(look)}.")
    return " ".join([_reached(before, look)] + notes + _caveats(look)), {}


def _target(look, patience, wish, wanted):
    """
    The version to bring: the newest that is wanted. Refused where there is none, or where it would be a step back.
    """
    installed = look.facts[look.package]
    if not wish.allow_downgrade:
        for version, how in ((_running(look), "active"), (installed, "installed")):
            if _is_newer(wanted, version):
                raise CommandExecutionError(
                    f"newer is {how}: {version}; write >={wanted.number} or allow_downgrade: True"
                )
    here = [installed] if installed and _is_met(wanted, installed) else []
    if here and wanted.release and not wanted.at_least:
        return installed
    offered = _available(patience, wish)
    fitting = [version for version in offered if _is_met(wanted, version)] + here
    if not fitting and not offered:
        raise CommandExecutionError(_not_offered(look))
    if not fitting:
        raise CommandExecutionError(
            "No enabled repository offers {} in version {}; there is {}.".format(
                look.package, wanted.text, ", ".join(offered)
            )
        )
    return max(fitting, key=_key)


def _available(patience, wish):
    return __salt__["kgraft_pkg.available"](
        refresh=bool(wish.refresh) and not __opts__["test"], lock_timeout=patience.timeout
    )


def _not_offered(look):
    others = __salt__["kgraft_pkg.other_kernels"]()
    comment = f"No enabled repository offers {look.package}; kgraft.activated sees to that."
    if others:
        comment += " For kernels that do not run now there is {}: reboot into one of them.".format(
            ", ".join(f"{package} {version}" for package, version in sorted(others.items()))
        )
    return comment


def _bring(look, patience, wish, target):
    """
    Install, and load if installing did not; an exit code proves neither, the kernel does.
    """
    notes = []
    if look.facts[look.package] != target:
        told = __salt__["kgraft_pkg.install"](
            version=target, allow_downgrade=wish.allow_downgrade, refresh=False, lock_timeout=patience.timeout
        )
        notes += ["zypper: {}.".format(warning.rstrip(".")) for warning in told["warnings"]]
        look = _machine()
    elif _running(look):
        notes.append(f"It was installed; the kernel ran {_running(look)}, as from an older initrd.")
    if _running(look) == target:
        return look, notes
    if _is_loading_forbidden():
        raise CommandExecutionError(_forbidden(look, target))
    not_loaded = f"{look.package} {target} is installed, but not loaded. "
    if look.status["state"] == "in_progress":
        # another transition came in between, so the package's script was refused
        _wait(look, patience, not_loaded)
    try:
        __salt__["kgraft.load"](_module(look.package, target))
    except CommandExecutionError as err:
        raise CommandExecutionError(" ".join([not_loaded + _words(err) + "."] + notes)) from err
    look = _machine()
    if _running(look) != target:
        raise CommandExecutionError(f"{not_loaded}The kernel says: {_active(look)}.")
    return look, notes


def _is_loading_forbidden():
    return __salt__["kgraft_pkg.loading"]() == "never"


def _forbidden(look, target):
    return (
        f"{look.package} {target} is installed, but not loaded: LIVEPATCH_KERNEL=never in /etc/sysconfig/livepatching."
    )


def _module(package, version):
    # SUSE's names: the file is kgraft-patch-2-2_1.ko or livepatch-2-2_1.ko
    prefix = "kgraft_patch_" if package.startswith("kgraft-") else "livepatch_"
    return prefix + re.sub(r"[-.]", "_", version)


def _would_bring(look, patience, wish, target):
    steps = []
    facts = _ended(look)
    if look.status["state"] == "in_progress":
        steps.append(_would_wait(look, patience))
    if look.facts[look.package] != target:
        steps.append(f"{look.package} {target} would be installed.")
        facts[look.package] = target
    if _is_loading_forbidden():
        if not steps:
            raise CommandExecutionError(_forbidden(look, target))
        steps.append(f"It would not be loaded: {NEVER}.")
    else:
        module = _module(look.package, target)
        steps.append("{} would be loaded{}.".format(module, " and settled" if wish.settle else ""))
        # SUSE's patches are cumulative
        facts.update((patch, _gone(look)) for patch in look.patches if facts[patch] == "applied")
        facts[module] = "applied" if wish.settle else "applying"
        facts["state"] = "ready" if wish.settle else "in_progress"
    return " ".join(steps), _differences(look.facts, facts)


def _reached(before, look):
    if look.status["state"] == "in_progress":
        return f"{_moving(look)} and settles without being waited for (settle: False)."
    already = "already " if before.facts == look.facts else ""
    if not _running(look):
        return _active(look).capitalize() + "."
    return f"{_running(look)} is {already}applied and settled."


def _caveats(look):
    """
    What is true beside the success, and will matter later.
    """
    caveats = []
    running, installed = _running(look), look.facts[look.package]
    if running and installed is None:
        caveats.append("No package holds it: after a reboot it may be gone.")
    elif running and running != installed:
        caveats.append(f"The package holds {installed}: the next boot may bring that one.")
    until = __salt__["kgraft_security.supported_until"]()
    if until:
        last = datetime.datetime.strptime(until, "%Y-%m-%d").date()
        left = (last - datetime.date.today()).days
        if left < 0:
            caveats.append(f"Live patches for this kernel ended on {until}: boot a newer one.")
        elif left <= WARN_DAYS:
            caveats.append(f"Live patches for this kernel end on {until}, in {left} days: plan a newer one.")
    return caveats


# ----- applied, judged by CVEs


def _apply_cves(before, patience, wish):
    kernel = before.status["kernelrelease"]
    if any(fnmatch.fnmatchcase(kernel, pattern) for pattern in wish.not_affected or []):
        return "{} never had {}: this is the word of not_affected.".format(kernel, ", ".join(wish.cves)), {}
    look = before
    if look.status["state"] == "in_progress" and wish.settle and not __opts__["test"]:
        _wait(look, patience, "Nothing was installed. ")
        look = _machine()
    answers = __salt__["kgraft_security.cves"](*wish.cves)
    if _unfixed(answers, wish) and wish.refresh and not __opts__["test"]:
        _available(patience, wish)
        answers = __salt__["kgraft_security.cves"](*wish.cves)
    unfixed = _unfixed(answers, wish)
    wanted = _bringing(look, unfixed)
    if wanted:
        comment, promised = _apply_version(look, patience, wish._replace(refresh=False), wanted)
        if not __opts__["test"]:
            answers = __salt__["kgraft_security.cves"](*wish.cves)
            unfixed = _unfixed(answers, wish)
    elif look.status["state"] == "in_progress" and wish.settle:
        comment, promised = _would_wait(look, patience), _differences(look.facts, _ended(look))
    else:
        comment, promised = " ".join([_reached(before, look)] + _caveats(look)), {}
    comment = "\n".join([comment] + [f"{cve}: {answers[cve]}" for cve in wish.cves])
    if any(answer.startswith("unknown") for answer in unfixed.values()):
        comment += "\nUnknown is no pass: if this kernel never had the bug, say so with not_affected."
        raise CommandExecutionError(comment)
    if unfixed and not promised:
        raise CommandExecutionError(comment + "\nThe live patches that there are do not fix them all.")
    return comment, promised


def _unfixed(answers, wish):
    return {
        cve: answer
        for cve, answer in answers.items()
        if not answer.startswith("fixed") and (wish.settle or not answer.endswith("not settled"))
    }


def _bringing(look, unfixed):
    """
    The patch that brings the fixes: the newest for an open one; for a pending one that which is here is enough.
    """
    if any(answer.startswith("open") for answer in unfixed.values()):
        return _wanted("latest", None)
    here = [version for version in (_running(look), look.facts[look.package]) if version]
    if here and any(answer.startswith("pending") for answer in unfixed.values()):
        return _wanted(">=" + max(here, key=_key), None)
    return None
