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

import datetime
import fnmatch
import importlib.util
import math
import os
import time

from salt.exceptions import CommandExecutionError, SaltInvocationError

__virtualname__ = "kgraft"

# Seconds after which a wait tells the master who blocks, and again after as many.
SLICE = 15.0

# Days before the end of a kernel's support from which on it is warned of.
WARN_DAYS = 30

NEVER = "/etc/sysconfig/livepatching says LIVEPATCH_KERNEL=never"


def _room(name, **others):
    """Execute the private sibling ``_kgraft_<name>.py``, which gets ``others`` first (docs/architecture.md, Rooms)."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"_kgraft_{name}.py")
    spec = importlib.util.spec_from_file_location(f"{__name__}_{name}", path)
    room = importlib.util.module_from_spec(spec)
    vars(room).update(others)
    spec.loader.exec_module(room)
    return room


arguments = _room("arguments")
looks = _room("looks")
tasks = _room("tasks")


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
    limits = arguments.Limits(timeout, None, None, [])
    subscription = {"code_from": code_from, "product": product, "url": url}

    def act(before):
        return _activate(before, limits, packages, register, refresh, subscription)

    return _report(name, lambda: _provisions(packages), act, limits)


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
        Seconds of waiting after which the sleeping processes that still block are poked by tracing, see
        ``kgraft.poke``, and again every 15 seconds. Where the kernel wakes them itself (livepatch) it does nothing and
        says so. Default: ``None``, never.

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
    limits = arguments.Limits(timeout, poke_after, protect, [])
    options = arguments.Options(version, cves, not_affected, refresh, allow_downgrade, settle)
    return _report(name, _machine, lambda before: _apply(before, limits, options), limits)


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
        Seconds of waiting after which the sleeping processes that still block are poked by tracing, see
        ``kgraft.poke``, and again every 15 seconds. Where the kernel wakes them itself (livepatch) it does nothing and
        says so. Default: ``None``, never.

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
    limits = arguments.Limits(timeout, poke_after, protect, [])
    return _report(name, _kernel, lambda before: _settle(before, limits), limits)


# ----- look, act, look again


def _report(name, look, act, limits):
    """
    Look, act, look again. A failure becomes the comment; the changes are what the two looks saw.

    ``act`` returns its comment and, in a dry run, what would change.
    """
    ret = {"name": name, "result": False, "changes": {}, "comment": ""}
    before = None
    try:
        arguments.check_limits(limits.timeout, limits.poke_after)
        before = look()
        if limits.protect is not None:
            # who knows the patterns refuses a wrong one now, not when it is time to poke
            _poke(limits, test=True)
        ret["comment"], ret["changes"] = act(before)
        ret["result"] = None if ret["changes"] else True
    except (CommandExecutionError, SaltInvocationError) as err:
        ret["comment"] = _message(err)
    if before is None:
        return ret
    if limits.poke_after is not None and not _is_poking(before, limits):
        ret["comment"] += "\npoke_after does nothing here: on livepatch the kernel signals the tasks itself."
    if not __opts__["test"]:
        try:
            ret["changes"] = looks.differences(before.facts, look().facts)
        except CommandExecutionError as err:
            ret["result"] = False
            ret["comment"] += "\nWhat changed cannot be told: " + _message(err)
        poked = [tasks.name(task) for poke in limits.pokes for task in poke["poked"]]
        if poked:
            ret["changes"]["poked"] = sorted(set(poked), key=poked.index)
    return ret


def _message(err):
    # without the details that Salt prints behind the message
    return getattr(err, "error", None) or str(err)


def _kernel():
    status = __salt__["kgraft.status"]()
    if status["state"] == "unavailable":
        kernel = status["kernelrelease"]
        raise CommandExecutionError(f"This kernel, {kernel}, has no live patching: neither kGraft nor livepatch.")
    patches = __salt__["kgraft.patches"]()
    facts = dict({patch: told["state"] for patch, told in patches.items()}, state=status["state"])
    return looks.Look(status, patches, None, facts)


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


# ----- settled


def _settle(before, limits):
    if before.status["state"] == "ready":
        return f"No transition is running; {looks.active(before)}.", {}
    if __opts__["test"]:
        return _would_wait(before, limits), looks.differences(before.facts, looks.ended(before))
    seconds = _wait(before, limits)
    return f"Settled after {seconds:.0f} s; {looks.active(_kernel())}.", {}


def _would_wait(look, limits):
    held = tasks.blocking(__salt__["kgraft.blocking"]())
    comment = f"{looks.moving(look)}; its end would be waited for, {limits.timeout:g} s at most. {held}"
    if _is_poking(look, limits):
        poke = __salt__["kgraft.poke"](protect=limits.protect, test=True)
        poked = tasks.names(poke["poked"]) or "none"
        comment += f" After {limits.poke_after:g} s these would be poked: {poked}.{tasks.skipped(poke)}"
    return comment


def _is_poking(look, limits):
    return limits.poke_after is not None and look.status["abi"] != "livepatch"


def _wait(look, limits, so_far=""):
    """
    Wait until settled, in slices: after each the master hears who blocks, and sleepers are poked when it is time.
    """
    started = time.monotonic()
    poke_at = limits.poke_after if _is_poking(look, limits) else math.inf
    while True:
        waited = time.monotonic() - started
        try:
            __salt__["kgraft.wait"](timeout=max(min(limits.timeout, waited + SLICE, poke_at) - waited, 0.01))
            return time.monotonic() - started
        except CommandExecutionError as err:
            if not (isinstance(err.info, dict) and err.info.get("timed_out")):
                raise
            blocking = err.info["blocking"]
        waited = time.monotonic() - started
        if waited >= limits.timeout:
            raise CommandExecutionError(_unsettled(look, limits, blocking, so_far))
        if waited >= poke_at:
            limits.pokes.append(_poke(limits))
            poke_at = waited + SLICE
        progress = {"transition": looks.moving(look), "seconds": round(waited, 1), "timeout": limits.timeout}
        progress.update((key, blocking[key]) for key in ("count", "complete", "tasks"))
        __salt__["event.send"]("kgraft/{}/progress".format(__opts__["id"]), progress)


def _poke(limits, test=False):
    """Poke, or say who would be; a poke that fails is no end of a wait."""
    try:
        return __salt__["kgraft.poke"](protect=limits.protect, test=test)
    except CommandExecutionError as err:
        return {"poked": [], "skipped": [], "failed": _message(err)}


def _unsettled(look, limits, blocking, so_far):
    # On livepatch the kernel moves sleepers itself: what a poke would say there is no news.
    would = {"skipped": []} if look.status["abi"] == "livepatch" else _poke(limits, test=True)
    spared = {task["pid"]: task["reason"] for task in would["skipped"]}
    lines = [f"{looks.moving(look)}, still after {limits.timeout:g} s. {so_far}{tasks.blocking(blocking)}"]
    lines += tasks.advice(blocking["tasks"], look.status["abi"], spared)
    if limits.pokes:
        lines.append(f"Poked {len(limits.pokes)} times.{tasks.skipped(limits.pokes[-1])}")
    lines += sorted({"A poke failed: {}".format(poke["failed"]) for poke in limits.pokes if "failed" in poke})
    return "\n".join(lines)


# ----- activated


def _provisions(packages):
    look = _machine()
    facts = dict(__salt__["kgraft_pkg.base"](packages), repositories=__salt__["kgraft_pkg.repositories"]())
    return look._replace(facts=facts)


def _activate(before, limits, packages, register, refresh, subscription):
    facts = dict(before.facts)
    steps = []
    if not facts["repositories"] and refresh and not __opts__["test"]:
        facts["repositories"] = __salt__["kgraft_pkg.repositories"](refresh=True, lock_timeout=limits.timeout)
    if not facts["repositories"]:
        if not register:
            raise CommandExecutionError(
                "No enabled repository offers live patches: enable one (a channel, a mirror), or write register: True."
            )
        steps.append(_register(facts, limits, subscription))
    missing = [package for package in sorted(facts) if facts[package] is None]
    if missing and __opts__["test"]:
        steps.append("{} would be installed.".format(", ".join(missing)))
        facts.update((package, "newest") for package in missing)
    elif missing:
        __salt__["kgraft_pkg.install_base"](packages, lock_timeout=limits.timeout)
    if __opts__["test"] and steps:
        return " ".join(steps), looks.differences(before.facts, facts)
    steps.append("Live patches are offered by {}.".format(", ".join(facts.pop("repositories"))))
    if facts:
        steps.append("Installed: {}.".format(", ".join(sorted(facts))))
    return " ".join(steps), {}


def _register(facts, limits, subscription):
    status = __salt__["kgraft_subscription.register"](test=__opts__["test"], **subscription)
    product = status["product"]
    if __opts__["test"] and not status["registered"]:
        facts["repositories"] = [f"those of {product}"]
        return f"{product} would be registered."
    if not __opts__["test"]:
        facts["repositories"] = __salt__["kgraft_pkg.repositories"](refresh=True, lock_timeout=limits.timeout)
    if not facts["repositories"]:
        raise CommandExecutionError(
            f"{product} is registered, but no enabled repository offers live patches: is its repository disabled?"
        )
    return f"{product} was registered."


# ----- applied


def _apply(before, limits, options):
    arguments.check_options(options)
    if options.cves is not None:
        return _apply_cves(before, limits, options)
    return _apply_version(before, limits, options, arguments.wanted(options.version, before.status["kernelrelease"]))


def _apply_version(before, limits, options, wanted):
    if wanted.numbers is None:
        offered = _available(limits, options)
        if not offered:
            raise CommandExecutionError(_not_offered(before))
        wanted = wanted._replace(numbers=arguments.numbers(offered[0]))
        options = options._replace(refresh=False)
    look, notes = before, []
    if not wanted.is_met_by(looks.running(look)):
        target = _target(look, limits, options, wanted)
        if __opts__["test"]:
            return _would_bring(look, limits, options, target)
        options = options._replace(refresh=False)
        if look.status["state"] == "in_progress":
            # the kernel would refuse a second patch
            _wait(look, limits, "Nothing was installed. ")
            look = _machine()
        if not wanted.is_met_by(looks.running(look)):
            look, notes = _bring(look, limits, options, _target(look, limits, options, wanted))
    if look.status["state"] == "in_progress" and options.settle:
        if __opts__["test"]:
            return _would_wait(look, limits), looks.differences(look.facts, looks.ended(look))
        _wait(look, limits)
        look = _machine()
        if not wanted.is_met_by(looks.running(look)):
            raise CommandExecutionError(f"The transition ended otherwise than it began: {looks.active(look)}.")
    return " ".join([_reached(before, look)] + notes + _caveats(look)), {}


def _target(look, limits, options, wanted):
    """
    The version to bring: the newest that is wanted. Refused where there is none, or where it would be a step back.
    """
    installed = look.facts[look.package]
    if not options.allow_downgrade:
        for version, how in ((looks.running(look), "active"), (installed, "installed")):
            if wanted.is_older_than(version):
                least = wanted.numbers[0]
                raise CommandExecutionError(f"newer is {how}: {version}; write >={least} or allow_downgrade: True")
    if not wanted.at_least and arguments.numbers(installed) == wanted.numbers:
        return installed
    offered = _available(limits, options)
    fitting = [version for version in offered + [installed] if wanted.is_met_by(version)]
    if fitting:
        return max(fitting, key=arguments.numbers)
    if not offered:
        raise CommandExecutionError(_not_offered(look))
    comment = f"No enabled repository offers {look.package} in version {wanted.text}; there is "
    raise CommandExecutionError(comment + ", ".join(offered) + ".")


def _available(limits, options):
    refresh = options.refresh and not __opts__["test"]
    return __salt__["kgraft_pkg.available"](refresh=refresh, lock_timeout=limits.timeout)


def _not_offered(look):
    comment = f"No enabled repository offers {look.package}; kgraft.activated sees to that."
    others = ", ".join(map(" ".join, sorted(__salt__["kgraft_pkg.other_kernels"]().items())))
    if others:
        comment += f" For kernels that do not run now there is {others}: reboot into one of them."
    return comment


def _bring(look, limits, options, target):
    """
    Install, and load if installing did not; an exit code proves neither, the kernel does.
    """
    notes = []
    if look.facts[look.package] != target:
        told = __salt__["kgraft_pkg.install"](
            version=target, allow_downgrade=options.allow_downgrade, refresh=False, lock_timeout=limits.timeout
        )
        notes += ["zypper: {}.".format(warning.rstrip(".")) for warning in told["warnings"]]
        look = _machine()
    elif looks.running(look):
        notes.append(f"It was installed; the kernel ran {looks.running(look)}, as from an older initrd.")
    if looks.running(look) == target:
        return look, notes
    not_loaded = f"{look.package} {target} is installed, but not loaded"
    if __salt__["kgraft_pkg.loading"]() == "never":
        raise CommandExecutionError(f"{not_loaded}: {NEVER}.")
    if look.status["state"] == "in_progress":
        # another transition came in between, so the package's script was refused
        _wait(look, limits, f"{not_loaded}. ")
    try:
        __salt__["kgraft.load"](looks.module(look.package, target))
    except CommandExecutionError as err:
        raise CommandExecutionError(" ".join([f"{not_loaded}. {_message(err)}."] + notes)) from err
    look = _machine()
    if looks.running(look) != target:
        raise CommandExecutionError(f"{not_loaded}. The kernel says: {looks.active(look)}.")
    return look, notes


def _would_bring(look, limits, options, target):
    steps = []
    if look.status["state"] == "in_progress":
        steps.append(_would_wait(look, limits))
    if look.facts[look.package] != target:
        steps.append(f"{look.package} {target} would be installed.")
    if __salt__["kgraft_pkg.loading"]() == "never":
        if not steps:
            raise CommandExecutionError(f"{look.package} {target} is installed, but not loaded: {NEVER}.")
        steps.append(f"It would not be loaded: {NEVER}.")
        facts = looks.ended(look)
    else:
        module = looks.module(look.package, target)
        steps.append("{} would be loaded{}.".format(module, " and settled" if options.settle else ""))
        facts = looks.loaded(look, target, options.settle)
    facts[look.package] = target
    return " ".join(steps), looks.differences(look.facts, facts)


def _reached(before, look):
    if look.status["state"] == "in_progress":
        return f"{looks.moving(look)} and settles without being waited for (settle: False)."
    already = "already " if before.facts == look.facts else ""
    if not looks.running(look):
        return looks.active(look).capitalize() + "."
    return f"{looks.running(look)} is {already}applied and settled."


def _caveats(look):
    """
    What is true beside the success, and will matter later.
    """
    caveats = []
    running, installed = looks.running(look), look.facts[look.package]
    if running and installed is None:
        caveats.append("No package holds it: after a reboot it may be gone.")
    elif running and running != installed:
        caveats.append(f"The package holds {installed}: the next boot may bring that one.")
    until = __salt__["kgraft_security.supported_until"]()
    if until:
        left = (datetime.datetime.strptime(until, "%Y-%m-%d").date() - datetime.date.today()).days
        if left < 0:
            caveats.append(f"Live patches for this kernel ended on {until}: boot a newer one.")
        elif left <= WARN_DAYS:
            caveats.append(f"Live patches for this kernel end on {until}, in {left} days: plan a newer one.")
    return caveats


# ----- applied, judged by CVEs


def _apply_cves(before, limits, options):
    kernel = before.status["kernelrelease"]
    if any(fnmatch.fnmatchcase(kernel, pattern) for pattern in options.not_affected or []):
        return "{} never had {}: this is the word of not_affected.".format(kernel, ", ".join(options.cves)), {}
    look = before
    if look.status["state"] == "in_progress" and options.settle and not __opts__["test"]:
        _wait(look, limits, "Nothing was installed. ")
        look = _machine()
    answers, unfixed = _verdicts(options)
    if unfixed and options.refresh and not __opts__["test"]:
        _available(limits, options)
        answers, unfixed = _verdicts(options)
    wanted = _bringing(look, unfixed)
    if wanted:
        comment, promised = _apply_version(look, limits, options._replace(refresh=False), wanted)
        if not __opts__["test"]:
            answers, unfixed = _verdicts(options)
    elif look.status["state"] == "in_progress" and options.settle:
        comment, promised = _would_wait(look, limits), looks.differences(look.facts, looks.ended(look))
    else:
        comment, promised = " ".join([_reached(before, look)] + _caveats(look)), {}
    comment = "\n".join([comment] + [f"{cve}: {answers[cve]}" for cve in options.cves])
    if any(answer.startswith("unknown") for answer in unfixed):
        comment += "\nUnknown is no pass: if this kernel never had the bug, say so with not_affected."
        raise CommandExecutionError(comment)
    if unfixed and not promised:
        raise CommandExecutionError(comment + "\nThe live patches that there are do not fix them all.")
    return comment, promised


def _verdicts(options):
    """Return the answer for each CVE, and the answers that are no success."""
    answers = __salt__["kgraft_security.cves"](*options.cves)
    unfixed = [answer for answer in answers.values() if not answer.startswith("fixed")]
    if not options.settle:
        unfixed = [answer for answer in unfixed if not answer.endswith("not settled")]
    return answers, unfixed


def _bringing(look, unfixed):
    """
    The patch that brings the fixes: the newest for an open one; for a pending one that which is here is enough.
    """
    if any(answer.startswith("open") for answer in unfixed):
        return arguments.wanted("latest", None)
    here = max(looks.running(look), look.facts[look.package], key=arguments.numbers)
    if here and any(answer.startswith("pending") for answer in unfixed):
        return arguments.wanted(f">={here}", None)
    return None
