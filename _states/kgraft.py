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

import importlib.util
import math
import os
import re
import time

from salt.exceptions import CommandExecutionError, SaltInvocationError

__virtualname__ = "kgraft"

# Seconds after which a wait tells the master who blocks, and again after as many.
SLICE = 15.0

# Seconds after which a kernel that nobody blocks any more must have seen that: it looks every 2 s (kGraft) or 1 s.
NEXT_CHECK = 5.0

NOT_KNOWN = "not known before"
AGAIN = f"The repositories would be read again first, and what they then offer is {NOT_KNOWN}."
NOT_OFFERED = "No enabled repository offers live patches: enable one (a channel, a mirror), or write register: True."
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
plan = _room("plan", looks=looks)
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
        Seconds for all questions and waits together; what installs a package is not cut short. Default: ``300``

    ``changes`` holds the ``repositories`` that offer live patches and the packages, old and new, as two looks saw them.

    .. code-block:: yaml

        live patches are offered:
          kgraft.activated:
            - register: True
            - code_from: /etc/kgraft.code
    """
    subscription = {"code_from": code_from, "product": product, "url": url}

    return _report(
        name,
        lambda run: _activate(run, packages, register, refresh, subscription),
        timeout,
        register=register,
        refresh=refresh,
    )


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
    max_metadata_age=86400,
    probes=None,
    fail_on_gap=None,
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
        What is wanted. Default: ``latest``, the newest that the enabled repositories offer, as zypper would take it.
        ``previous`` is the newest one with a lower number than that; ``klp downgrade`` goes by what runs instead, to
        the one before that. ``'5'`` is any release of 5, ``'5-2.1'`` exactly that one, ``'>=5'`` at least 5 (then the
        newest is installed). Live patches are numbered per kernel, so it may be a map ``{kernelrelease: version}``; a
        kernel that is not in it is a failure. Quote it: YAML reads ``2.10`` as 2.1.

    cves
        Instead of a version: a list of CVE numbers that must be fixed by the active, settled patch or by the running
        kernel itself. The newest patch is installed while one is open. What nobody can tell is a failure.
        Default: ``None``

    not_affected
        Kernel releases (as ``uname -r`` says them, ``*`` allowed) that never had these bugs. This is your word, and
        the comment says so. Default: ``None``

    timeout
        Seconds for all waits together: for a transition to end, for another zypper, for the answers of zypper and rpm.
        What installs a package is not cut short. Default: ``300``

    poke_after
        Seconds of waiting after which the sleeping processes that still block are poked by tracing, see
        ``kgraft.poke``, and again every 15 seconds. Where the kernel wakes them itself for sure (livepatch from 5.1
        on) it does nothing and says so. Default: ``None``, never.

    protect
        Processes that are never poked, and of which no advice is to touch them: a list of ``name:``, ``unit:`` and
        ``user:`` patterns, beside the default lists of ``kgraft.poke`` and ``kgraft.blocking``. Default: ``None``

    refresh
        Read the repositories' lists again before looking for a version. Never in a dry run. Default: ``True``

    allow_downgrade
        Let an older patch replace a newer one. Default: ``False``

    settle
        Wait for the end of the transition. With ``False`` a patch that is being applied is enough.
        Default: ``True``

    max_metadata_age
        Seconds after which the list of a repository that offers live patches, or may offer some, is too old to say
        which is the newest: then ``latest`` and ``previous`` are no success. Default: ``86400``, a day

    probes
        Measure how long services do not answer meanwhile: a list of probes, see
        :mod:`kgraft_probe <saltext.kgraft.modules.kgraft_probe>`. They ask from before the first step until the last,
        if there is one; where no transition runs they measure for 5 seconds before, which ``timeout`` does not count,
        what is usual. They are never poked, and end with the state. What they saw is told in the comment, and under
        ``changes`` if there are any; whatever it is, it keeps no patch out. Default: ``None``

    fail_on_gap
        Seconds: a longer gap makes the result ``False``, and so does a probe of which nothing is known; the patch is in
        all the same. One that got no answer at rest is a note. Default: ``None``, never

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
    options = arguments.Options(version, cves, not_affected, refresh, allow_downgrade, settle, max_metadata_age)
    switches = {"refresh": refresh, "allow_downgrade": allow_downgrade, "settle": settle}
    switches.update(probes=probes, fail_on_gap=fail_on_gap)
    return _report(name, lambda run: _apply(run, options), timeout, poke_after, protect, **switches)


def settled(name, timeout=300, poke_after=None, protect=None, probes=None, fail_on_gap=None):
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
        ``kgraft.poke``, and again every 15 seconds. Where the kernel wakes them itself for sure (livepatch from 5.1
        on) it does nothing and says so. Default: ``None``, never.

    protect
        Processes that are never poked, and of which no advice is to touch them: a list of ``name:``, ``unit:`` and
        ``user:`` patterns, beside the default lists of ``kgraft.poke`` and ``kgraft.blocking``. Default: ``None``

    probes
        As in ``kgraft.applied``; the transition runs already, so nothing is measured at rest. Default: ``None``

    fail_on_gap
        As in ``kgraft.applied``. Default: ``None``, never

    ``changes`` holds the ``state`` of the kernel and the state of each patch, old and new, as two looks saw them, and
    the tasks that were ``poked``. With ``test=True`` it looks, and waits for nothing.

    .. code-block:: yaml

        no transition runs:
          kgraft.settled:
            - timeout: 600
            - poke_after: 120
            - protect: ['unit:postgresql*']
    """
    return _report(name, _settle, timeout, poke_after, protect, probes, fail_on_gap)


# ----- look, act, look again


def _report(name, act, *limits, **switches):
    """
    Act, and look again: the changes are what ``run.before`` and the last look saw, also where something was raised on
    the way.

    ``act`` gets a run with these limits; it returns a result, a comment, and the changes that a dry run promises.
    """
    ret = {"name": name, "result": False, "changes": {}, "comment": ""}
    run = None
    try:
        run = arguments.Run(*limits, **switches)
        if run.protect is not None:
            # who knows the patterns refuses a wrong one now, not when it is time to poke
            _poke(run, test=True)
        if run.probes is not None:
            _be_loaded("kgraft_probe.start")
            probes = __salt__["kgraft_probe.start"](run.probes, test=True)
        ret["result"], ret["comment"], ret["changes"] = act(run)
        if run.probes and __opts__["test"] and ret["result"] is None:
            ret["comment"] += "\nGaps would be measured by {}.".format(", ".join(probes))
    except (CommandExecutionError, SaltInvocationError) as err:
        ret["comment"] = _message(err)
    if run is None or run.before is None or __opts__["test"]:
        return ret
    try:
        ret["changes"] = looks.differences(run.before.facts, run.look().facts)
    except CommandExecutionError as err:
        ret["result"] = False
        ret["comment"] += "\nWhat changed cannot be told: " + _message(err)
    poked = [tasks.name(task) for poke in run.pokes for task in poke["poked"]]
    if poked:
        ret["changes"]["poked"] = sorted(set(poked), key=poked.index)
    if run.seen:
        _tell_gaps(run, ret)
    return ret


def _probed(run, steps, act, *arguments):
    """Act, and have a service asked meanwhile if there is anything to do."""
    if not run.probes or not steps:
        return act(*arguments)
    began = time.monotonic()
    is_at_rest = run.before.status["state"] == "ready"
    started = __salt__["kgraft_probe.start"](run.probes, rest=5 * is_at_rest)
    run.until += time.monotonic() - began
    try:
        return act(*arguments)
    finally:
        run.seen = __salt__["kgraft_probe.stop"](started, keep=True)


def _tell_gaps(run, ret):
    if ret["changes"]:
        ret["changes"]["probes"] = run.seen
    for name, seen in run.seen.items():
        told = "not known, for its process did not start, or ended early"
        if seen:
            known = {figure.replace("_", " "): value for figure, value in seen.items() if value is not None}
            told = ", ".join(f"{figure} {value}" + " s" * isinstance(value, float) for figure, value in known.items())
        if run.fail_on_gap is not None and (not seen or (seen["longest_gap"] or 0) > run.fail_on_gap):
            ret["result"] = False
            told += f"; fail_on_gap is {run.fail_on_gap} s"
        ret["comment"] += f"\nProbe {name}: {told}."


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


# ----- settled


def _settle(run):
    run.look = _kernel
    run.before = look = _kernel()
    steps = plan.of(look, None, True, None)
    if not steps:
        return True, f"No transition is running; {looks.active(look)}.", {}
    if __opts__["test"]:
        return None, _would_wait(look, run), looks.differences(look.facts, steps[-1].facts)
    seconds = _probed(run, steps, _wait, look, run)
    return True, f"Settled after {seconds:.0f} s; {looks.active(_kernel())}." + _no_poke(look, run), {}


def _would_wait(look, run):
    held = tasks.blocking(__salt__["kgraft.blocking"]())
    comment = f"{looks.moving(look)}; its end would be waited for, {run.timeout:g} s at most. {held}"
    if _is_poking(look, run):
        poke = __salt__["kgraft.poke"](protect=run.protect, test=True)
        poked = tasks.names(poke["poked"]) or "none"
        comment += f" After {run.poke_after:g} s these would be poked: {poked}.{tasks.skipped(poke)}"
    return comment + _no_poke(look, run)


def _is_poking(look, run):
    return run.poke_after is not None and not _wakes(look)


def _wakes(look):
    """
    Whether the kernel signals sleepers itself for sure: livepatch from 5.1 on. SUSE's 4.12 does so in updates since
    2019 (bsc#1071995), which its release does not tell.
    """
    return look.status["abi"] == "livepatch" and not re.match(r"[0-4]\.|5\.0\b", look.status["kernelrelease"])


def _no_poke(look, run):
    if run.poke_after is None or _is_poking(look, run):
        return ""
    return "\npoke_after does nothing here: from 5.1 on the kernel signals the tasks itself."


def _wait(look, run, so_far=""):
    """
    Wait until settled, in slices: after each the master hears who blocks, and sleepers are poked when it is time.
    """
    started, grace = time.monotonic(), 0.0
    poke_at = run.poke_after if _is_poking(look, run) else math.inf
    while True:
        waited = time.monotonic() - started
        left = run.until + grace - time.monotonic()
        try:
            __salt__["kgraft.wait"](timeout=max(min(left, SLICE, poke_at - waited), 0.01), protect=run.protect)
            return time.monotonic() - started
        except CommandExecutionError as err:
            if not (isinstance(err.info, dict) and err.info.get("timed_out")):
                raise
            blocking = err.info["blocking"]
        waited = time.monotonic() - started
        if time.monotonic() >= run.until + grace:
            if grace or blocking["count"] or not blocking["complete"]:
                raise CommandExecutionError(_unsettled(look, run, blocking, so_far))
            grace = NEXT_CHECK
        if waited >= poke_at:
            run.pokes.append(_poke(run))
            poke_at = waited + SLICE
        progress = {"transition": looks.moving(look), "seconds": round(waited, 1), "timeout": run.timeout}
        progress.update((key, blocking[key]) for key in ("count", "complete", "tasks", "note"))
        __salt__["event.send"]("kgraft/{}/progress".format(__opts__["id"]), progress)


def _poke(run, test=False):
    """Poke, or say who would be; a poke that fails is no end of a wait."""
    try:
        return __salt__["kgraft.poke"](protect=run.protect, test=test)
    except CommandExecutionError as err:
        return {"poked": [], "skipped": [], "failed": _message(err)}


def _unsettled(look, run, blocking, so_far):
    # Where the kernel moves sleepers itself, what a poke would say is no news.
    would = {"skipped": []} if _wakes(look) else _poke(run, test=True)
    spared = {task["pid"]: task["reason"] for task in would["skipped"]}
    lines = [f"{looks.moving(look)}, still after {run.timeout:g} s. {so_far}{tasks.blocking(blocking)}"]
    lines += tasks.advice(blocking, spared)
    if run.pokes:
        lines.append(f"Poked {len(run.pokes)} times.{tasks.skipped(run.pokes[-1])}")
    lines += sorted({"A poke failed: {}".format(poke["failed"]) for poke in run.pokes if "failed" in poke})
    return "\n".join(lines) + _no_poke(look, run)


# ----- applied


def _apply(run, options):
    told = _begin(run, options)
    look, steps, loads = run.before, [], True
    if not told["reason"]:
        loads = told["verdict"] != "bring" or __salt__["kgraft_pkg.loading"]() != "never"
        steps = plan.of(look, told, options.settle, _is_in_memory if loads else None)
    if __opts__["test"]:
        return _promise(run, told, steps, options, loads)
    if told["verdict"] == "refused":
        return False, _comment(told), {}
    expected = told["target"] or told["running"]
    look, notes, failure = _probed(run, steps, _carry_out, run, steps)
    if failure or not loads:
        return False, _comment(told, failure or _never(told), *notes), {}
    if options.cves is not None and steps:
        told = _check(run, options)
    if steps and (told["verdict"] != "good" if options.cves else looks.running(look) != expected):
        failure = f"The transition ended otherwise than it began: {looks.active(look)}."
        if looks.running(look) == expected:
            failure = "The live patches that there are do not fix them all."
        return False, _comment(told, failure, *notes), {}
    comment = _comment(told, _reached(run.before, look, told), *notes)
    waited = any(step.kind in ("wait", "settle") for step in steps)
    return not told["doubt"], comment + (_no_poke(look, run) if waited else ""), {}


def _begin(run, options):
    """Take the first look; return what ``kgraft_pkg.check`` makes of it."""
    _kernel()
    _be_loaded("kgraft_pkg.check", "kgraft_security.cves")
    _be_writable()
    told = _check(run, options, refresh=options.refresh and not __opts__["test"])
    package = told["package"]

    def machine():
        """The kernel, and the package, which is asked for again only where it is not known what became of it."""
        look = _kernel()
        if package and run.installed is Ellipsis:
            run.installed = __salt__["kgraft_pkg.installed"](timeout=run.left())
        facts = {package: run.installed} if package else {}
        return look._replace(package=package, facts=dict(look.facts, **facts))

    run.look, run.installed = machine, told["installed"]
    run.before = machine()
    return told


def _is_in_memory(module):
    return __salt__["kgraft.unload"](module, test=True)["state"] is not None


def _be_loaded(*functions):
    for function in functions:
        if function not in __salt__:
            raise CommandExecutionError(
                "The module {} is not loaded on this minion: live patches as packages need zypper, probes the module"
                " kgraft_probe. kgraft.settled without probes works here.".format(function.split(".")[0])
            )


def _be_writable():
    if __salt__["kgraft_pkg.transactional"]():
        raise CommandExecutionError(
            "The root file system is read-only here: only transactional-update changes its packages, and a reboot"
            " brings them. Nothing was done."
        )


def _check(run, options, refresh=False):
    return __salt__["kgraft_pkg.check"](
        options.version,
        cves=options.cves,
        not_affected=options.not_affected,
        allow_downgrade=options.allow_downgrade,
        max_metadata_age=options.max_metadata_age,
        refresh=refresh,
        timeout=run.left(),
    )


def _promise(run, told, steps, options, loads):
    """What a dry run says: the steps, and how the live run would end."""
    look = run.before
    changes = looks.differences(look.facts, steps[-1].facts if steps else look.facts)
    said = [_would_wait(look, run)] if any(step.kind == "wait" for step in steps) else []
    said += plan.words(steps)
    if not loads:
        said.append(f"It would not be loaded: {NEVER}." if steps else _never(told))
    if loads and options.refresh and (told["stale"] or told["unread"]):
        said.append(AGAIN)
        return None, _comment(dict(told, doubt=None), *said), changes
    if told["verdict"] == "refused" or told["doubt"] or not loads:
        return False, _comment(told, *said), changes
    if steps:
        return None, _comment(told, *said), changes
    return True, _comment(told, _reached(look, look, told)), {}


def _never(told):
    return "{} {} is installed, but not loaded: {}.".format(told["package"], told["target"], NEVER)


def _carry_out(run, steps):
    """Take one step after the other, and look after each; return the last look, notes, and what failed, if any did."""
    look, notes = run.before, []
    for step in steps:
        if step.kind != "unload" and plan.holds(step, look):
            continue  # as when the package's script has loaded the patch
        so_far = ""
        if step.kind == "load":
            so_far = f"{look.package} {look.facts[look.package]} is installed, but not loaded. "
        elif any(one.kind == "install" for one in steps[steps.index(step) :]):
            so_far = "Nothing was installed. "
        try:
            notes += _take(step, look, run, so_far)
            look = run.look()
        except CommandExecutionError as err:
            return look, notes, _message(err)
        if not plan.holds(step, look):
            return look, notes, so_far + plan.FAILED[step.kind].format(step.name, looks.active(look))
    return look, notes, None


def _take(step, look, run, so_far):
    """Take one step; return notes."""
    if step.kind in ("wait", "settle") or step.kind == "load" and look.status["state"] == "in_progress":
        # for a load: another transition came in between, so the package's script was refused
        run.installed = Ellipsis
        _wait(look, run, so_far)
    if step.kind == "unload":
        __salt__["kgraft.unload"](step.name)
    elif step.kind == "load":
        try:
            __salt__["kgraft.load"](step.name)
        except CommandExecutionError as err:
            raise CommandExecutionError(so_far + _message(err)) from err
    elif step.kind == "install":
        run.installed = Ellipsis
        # whether it may be an older one was asked when the plan was made
        told = __salt__["kgraft_pkg.install"](
            step.name.split()[1], allow_downgrade=True, refresh=False, timeout=run.left()
        )
        run.installed = told["new"]
        return ["zypper: {}.".format(warning.rstrip(".")) for warning in told["warnings"]]
    return []


def _reached(before, look, told):
    if told["reason"]:
        return told["reason"]
    if look.status["state"] == "in_progress":
        return f"{looks.moving(look)} and settles without being waited for (settle: False)."
    if not looks.running(look):
        return looks.active(look).capitalize() + "."
    already = "already " if before.facts == look.facts else ""
    newest = (
        ", and is the newest offered as of {}".format(told["as_of"])
        if told["wish"] == "latest" and told["as_of"]
        else ""
    )
    return f"{looks.running(look)} is {already}applied and settled{newest}."


def _comment(told, *sentences):
    """The sentences, what else will matter, a line for each CVE, and what is in doubt or was not read."""
    reason = [told["reason"]] if told["verdict"] == "refused" else []
    lines = [" ".join([*sentences, *reason, *told["notes"]])]
    lines += [f"{cve}: {answer}" for cve, answer in (told["cves"] or {}).items()]
    return tasks.lines("\n".join([*lines, told["doubt"] or ""]).strip(), told["unread"])


# ----- activated


def _activate(run, packages, register, refresh, subscription):
    _kernel()
    _be_loaded("kgraft_pkg.repositories")
    _be_writable()
    offers = __salt__["kgraft_pkg.repositories"](timeout=run.left())
    base = __salt__["kgraft_pkg.base"](packages, timeout=run.left())
    facts, test, said, products = dict(base, repositories=offers["offering"]), __opts__["test"], [], []
    run.before = looks.Look(None, None, None, dict(facts))
    run.look = lambda: looks.Look(None, None, None, _provisions(run, packages, products))
    if not offers["offering"] and refresh:
        said += [AGAIN] if test else []
        offers = offers if test else __salt__["kgraft_pkg.repositories"](refresh=True, timeout=run.left())
    if not offers["offering"]:
        if not register:
            return None if said else False, tasks.lines(" ".join([*said, NOT_OFFERED]), offers["unread"]), {}
        told = _register(run, products, subscription)
        if told["changed"]:
            said.append("{} {} registered.".format(told["product"], "would be" if test else "was"))
            facts.update({told["product"]: "Registered", "repositories": NOT_KNOWN})
        if not test:
            offers = __salt__["kgraft_pkg.repositories"](refresh=True, timeout=run.left())
        if not offers["offering"] and not (test and told["changed"]):
            said.append(told["note"] or "{} is registered.".format(told["product"]))
            said.append("But no enabled repository offers live patches: is its repository disabled?")
            return False, tasks.lines(" ".join(said), offers["unread"]), {}
    missing = [package for package in sorted(base) if base[package] is None]
    if missing and test:
        said.append("{} would be installed.".format(", ".join(missing)))
        facts.update((package, NOT_KNOWN) for package in missing)
    elif missing:
        __salt__["kgraft_pkg.install_base"](packages, timeout=run.left())
    if test and said:
        return None, " ".join(said), looks.differences(run.before.facts, facts)
    said.append("Live patches are offered by {}.".format(", ".join(offers["offering"])))
    said += ["Installed: {}.".format(", ".join(sorted(base)))] if base else []
    return True, tasks.lines(" ".join(said), offers["unread"]), {}


def _register(run, products, subscription):
    """Register; ``products`` gets the one whose status may have changed, also where it failed half-way."""
    told = {"product": None, "before": None}
    try:
        told = __salt__["kgraft_subscription.register"](test=__opts__["test"], timeout=run.left(), **subscription)
    except CommandExecutionError as err:
        before = (err.info if isinstance(err.info, dict) else {}).get("before") or {}
        told = {"product": before.get("product"), "before": before.get("status")}
        raise
    finally:
        if told["product"]:
            products.append(told["product"])
            run.before.facts[told["product"]] = told["before"]
    return told


def _provisions(run, packages, products):
    """What is offered, installed and registered now."""
    facts = dict(__salt__["kgraft_pkg.base"](packages, timeout=run.left()))
    facts["repositories"] = __salt__["kgraft_pkg.repositories"](timeout=run.left())["offering"]
    for product in products:
        facts[product] = __salt__["kgraft_subscription.status"](product, timeout=run.left())["status"]
    return facts
