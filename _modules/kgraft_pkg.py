"""
The packages that carry live kernel patches on SUSE Linux Enterprise, and the repositories that offer them: which one
belongs to the running kernel, which versions there are, and which is installed.

:depends: zypper and rpm
:platform: Linux, ``os_family`` Suse

A package is *installed* here. Whether its patch is *loaded* and *settled* is for the module ``kgraft`` to say, what it
fixes for ``kgraft_security``, and the state ``kgraft.applied`` puts them together.

Everything happens under the minion's option ``kgraft.root``, as in ``kgraft``. Questions ask zypper read-only and are
answered while another zypper runs; where Salt's ``pkg`` does not tell "there is none" from "I could not find out", rpm
and zypper are asked directly. Installing goes through ``pkg.install``. What could not be read is part of an answer:
``unread`` is a list of sentences, one for each repository.
"""

import datetime
import fnmatch
import importlib.util
import os
import re
import shlex
import time

import salt.utils.files
from salt.exceptions import CommandExecutionError, SaltInvocationError

__virtualname__ = "kgraft_pkg"

# The forms that SUSE's own tests accept in a package's name, as uname writes them
_RELEASE = re.compile(r"(\d+)\.(\d+)\.(\d+)-(\d+)(?:\.stage\.\d+|(?:\.\d+){1,2})?-([a-z0-9]*[a-z][a-z0-9]*)")
_FLAVOURS = ("default", "rt", "xen")

# Answers of kgraft_security.cves that no live patch makes good
_DOUBTS = (
    ("unknown", "Unknown is no pass: if this kernel never had the bug, say so with not_affected."),
    ("unread", "What could not be read may name it: mend that first."),
    ("elsewhere", "What stands elsewhere is not fixed by a live patch."),
)

# Days before the end of a kernel's live patches from which on it is told.
_WARN_DAYS = 30
_DAY = 24 * 3600


def _room(name, **others):
    """Execute the private sibling ``_kgraft_<name>.py``, which gets ``others`` first (docs/architecture.md, Rooms)."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"_kgraft_{name}.py")
    spec = importlib.util.spec_from_file_location(f"{__name__}_{name}", path)
    room = importlib.util.module_from_spec(spec)
    vars(room).update(others)
    spec.loader.exec_module(room)
    return room


commands = _room("commands")
zypper = _room(
    "zypper",
    commands=commands,
    version_cmp=lambda one, other: __salt__["pkg.version_cmp"](one, other),
    minion_root=lambda: __opts__.get("kgraft.root"),
)
versions = _room("versions", order=zypper.order)


def __virtual__():
    reason = zypper.unsupported(__grains__.get("os_family"))
    return (False, f"kgraft_pkg {reason}") if reason else __virtualname__


def name(kernelrelease=None):
    """
    Return the name of the package that carries the live patches for a kernel, whether or not it exists yet.

    SUSE Linux Enterprise 12 calls it ``kgraft-patch-…``, 15 and later ``kernel-livepatch-…``. Both releases have
    kernels 4.12.14; they are told apart by the number behind the dash.

    kernelrelease
        What ``uname -r`` says. Default: the running kernel's

    Returns the name as a string.

    Raises ``CommandExecutionError`` for a kernel that cannot have such a package, with the reason.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft_pkg.name
        salt '*' kgraft_pkg.name 4.4.180-94.100-default
    """
    release = __salt__["kgraft.status"]()["kernelrelease"] if kernelrelease is None else str(kernelrelease)
    match = _RELEASE.fullmatch(release)
    if not match:
        raise _no_package(release, "it is not named as SUSE names kernels, such as 4.4.180-94.100-default")
    *numbers, flavour = match.groups()
    *version, build = (int(number) for number in numbers)
    if version < [3, 12, 0]:
        raise _no_package(release, "live patching began with 3.12 (SUSE Linux Enterprise 12)")
    if flavour not in _FLAVOURS:
        only = ", ".join(_FLAVOURS)
        raise _no_package(release, f"there are none for the flavour {flavour!r}, only for {only}")
    if flavour == "rt" and version < [5, 14, 0]:
        raise _no_package(release, "real-time kernels have live patches from 5.14.21 (15 SP4) on")
    if flavour == "xen" and version >= [4, 0, 0]:
        raise _no_package(release, "the flavour 'xen' has them on SUSE Linux Enterprise 12 and 12 SP1 only")
    here = "{} {}".format(__grains__.get("os"), __grains__.get("osfullname"))
    if kernelrelease is None and re.search("opensuse|leap|tumbleweed", here, re.IGNORECASE):
        raise _no_package(release, "openSUSE has no live patches")
    scheme = "kgraft-patch" if _is_kgraft(version, build) else "kernel-livepatch"
    return "{}-{}".format(scheme, release.replace(".", "_"))


def _no_package(release, reason):
    return CommandExecutionError(f"No live-patch package can exist for kernel {release}: {reason}")


def _is_kgraft(version, build):
    # 12 SP4: 94.41, 95.*; 12 SP5: 120, 122.*. 15: 23, 25.*, 150.*; 15 SP1: 195, 197.*
    return 94 <= build <= 122 if version == [4, 12, 14] else version < [4, 12, 14]


def installed(kernelrelease=None, timeout=300):
    """
    Return the installed version of a kernel's live-patch package. Installed is not loaded: ``kgraft.patches`` tells.

    kernelrelease
        What ``uname -r`` says. Default: the running kernel's

    timeout
        Seconds that rpm may take. Default: ``300``

    Returns rpm's version and release, such as ``2-2.1``; None if the package is not installed. If several versions are
    installed, the newest.

    Raises ``CommandExecutionError`` if rpm cannot tell.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft_pkg.installed
    """
    return zypper.Packages(timeout).installed(name(kernelrelease))


def available(kernelrelease=None, refresh=False, timeout=300):
    """
    Return the versions of a kernel's live-patch package that the enabled repositories have.

    kernelrelease
        What ``uname -r`` says. Default: the running kernel's

    refresh
        Refresh the repositories first. Default: ``False``, what zypper knows already

    timeout
        Seconds that zypper may take, with the wait for another one before a refresh. Default: ``300``

    Returns ``{'versions': ['10-2.1', '9-2.2'], 'newest': '10-2.1', 'as_of': '2026-11-23 02:10', 'unread': []}``:
    ``versions`` the newest first as rpm compares them; ``newest`` that which zypper itself would take, for it goes by
    the repositories' priorities first, None where there is none; ``as_of`` when the list was last seen to be current,
    the oldest one where several repositories offer live patches, None where one was never read.

    Raises ``CommandExecutionError`` if zypper fails or does not end in time; ``SaltInvocationError`` for a ``timeout``
    that cannot be.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft_pkg.available
        salt '*' kgraft_pkg.available refresh=True
    """
    package, packages = name(kernelrelease), zypper.Packages(timeout, refresh)
    return {
        "versions": packages.offered(package),
        "newest": packages.preferred(package),
        "as_of": _time(min(packages.lists().values(), key=lambda when: when or 0, default=None)),
        "unread": _unread(packages),
    }


def _unread(packages):
    """A sentence for each repository that could not be read."""
    found = packages.unread()
    return [f"{repository}: {found[repository]}" for repository in sorted(found)]


def _time(when):
    return when and datetime.datetime.fromtimestamp(when).strftime("%Y-%m-%d %H:%M")


def check(
    version="latest",
    cves=None,
    not_affected=None,
    allow_downgrade=False,
    max_metadata_age=_DAY,
    refresh=False,
    timeout=300,
):
    """
    Say whether the running kernel has the live patch that is wished for, and if not, what would bring it. Nothing is
    changed (but by ``refresh``). ``kgraft.applied`` does what this says.

    version
        ``latest``, what zypper would install; ``previous``, the newest one with a lower number than that; ``'5'``, any
        release of 5; ``'5-2.1'``, exactly that one; ``'>=5'``, at least 5; or a map ``{kernelrelease: version}``,
        since live patches are numbered per kernel. Quote it: YAML reads ``2.10`` as 2.1. Default: ``latest``

    cves
        Instead of a version: a list of CVE numbers that must be fixed. Default: ``None``

    not_affected
        Kernel releases (as ``uname -r`` says them, ``*`` allowed) that never had these bugs, by your word.
        Default: ``None``

    allow_downgrade
        Take an older version than the active or installed one for a way. Default: ``False``

    max_metadata_age
        Seconds after which the list of a repository is too old to say what is the newest. Default: ``86400``, a day

    refresh
        Refresh the repositories first. Default: ``False``

    timeout
        Seconds that zypper and rpm may take. Default: ``300``

    Returns a dict:

    ``verdict``
        ``good``: the active patch is the one; ``bring``: ``target`` has to be installed or loaded; ``refused``: nothing
        may be done, for ``reason``
    ``target``, ``reason``
        the version to bring, and a sentence; None where there is none
    ``doubt``
        a sentence, None if there is no doubt: with it, nothing that is brought makes it good
    ``running``, ``installed``, ``newest``
        versions, as ``'9-2.2'``: of the newest active patch, of the package, of the newest that is offered; None where
        there is none, and for ``newest`` also where no repository had to be asked
    ``as_of``, ``stale``
        when the lists that say so were last seen to be current, and the aliases of those that are too old
    ``package``, ``wish``
        the package's name, None for a kernel that can have none; what was wished for, as text
    ``cves``
        for each CVE what ``kgraft_security.cves`` says; None if none was given
    ``notes``, ``unread``
        sentences: what will matter later, and what could not be read

    Raises ``CommandExecutionError`` if the kernel, zypper or rpm cannot be asked; ``SaltInvocationError`` for an
    argument that cannot be.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft_pkg.check
        salt '*' kgraft_pkg.check '>=9'
        salt '*' kgraft_pkg.check cves='[CVE-2016-5195]'
    """
    _check_switches(allow_downgrade=allow_downgrade, refresh=refresh)
    _check_arguments(cves, not_affected, version)
    commands.deadline(max_metadata_age, "max_metadata_age")
    status = __salt__["kgraft.status"]()
    kernel = status["kernelrelease"]
    told = dict.fromkeys(("target", "reason", "doubt", "running", "installed", "newest", "as_of", "package", "cves"))
    told.update(verdict="refused", wish=", ".join(cves or []), stale=[], notes=[], unread=[])
    if any(fnmatch.fnmatchcase(kernel, pattern) for pattern in not_affected or []):
        return dict(
            told,
            verdict="good",
            reason="{} never had {}: this is the word of not_affected.".format(kernel, ", ".join(cves)),
        )
    wish = None
    if cves is None:
        wish = versions.wish(version, kernel)
        if wish is None:
            named = ", ".join(sorted(map(str, version))) or "none"
            return dict(told, reason=f"version names no patch for this kernel, {kernel}; it does for {named}")
        told["wish"] = wish.text
    try:
        told["package"] = name()
        none = None if status["abi"] else f"{kernel} has no live patching: neither kGraft nor livepatch"
    except CommandExecutionError as err:
        none = str(err)
    if none and wish:
        return dict(told, reason=none)
    packages = zypper.Packages(timeout, refresh)
    if not none:
        told["running"], told["installed"] = _running(status), packages.installed(told["package"])
    if cves:
        told.update(_by_cves(cves, told, packages, refresh))
    else:
        told.update(_by_version(wish, told, packages, allow_downgrade))
    if told["verdict"] == "bring" and told["target"] != told["installed"]:
        told["reason"] = packages.obstacle(told["package"], told["target"])
        told["verdict"] = "refused" if told["reason"] else "bring"
    if packages.repositories_were_asked:
        told.update(_freshness(wish, packages, max_metadata_age))
    told["notes"] += [] if none else _notes(told, packages)
    told["unread"] = _unread(packages)
    return told


def _check_switches(**switches):
    for argument, value in switches.items():
        if not isinstance(value, bool):
            raise SaltInvocationError(f"{argument} is {value!r}: it must be True or False")


def _check_arguments(cves, not_affected, version):
    if cves is None and not_affected is not None:
        raise SaltInvocationError("not_affected is given without cves")
    if cves is not None and version != "latest":
        raise SaltInvocationError(f"version is {version!r} and cves are given; write one of the two")
    for argument, words in (("cves", cves), ("not_affected", not_affected)):
        if not isinstance(words or [], list) or not all(isinstance(word, str) for word in words or []):
            raise SaltInvocationError(f"{argument} is {words!r}: it must be a list of strings")
    if cves is not None and not cves:
        raise SaltInvocationError("cves is empty; name at least one")
    odd = [cve for cve in cves or [] if not zypper.CVE.fullmatch(cve.strip())]
    if odd:
        raise SaltInvocationError("cves: no CVE number is {}".format(", ".join(map(repr, odd))))


def _running(status):
    """The version of the newest active patch that tells one."""
    patches = __salt__["kgraft.patches"]() if status["abi"] else {}
    found = [patches[patch]["version"] for patch in status["active"] if patch in patches]
    return next(filter(None, reversed(found)), None)


def _by_version(wish, told, packages, allow_downgrade):
    package, newest = told["package"], None
    if wish.edition is None:
        newest = packages.preferred(package)
        edition = newest and (newest if wish.at_least else versions.before(newest, packages.offered(package)))
        if not edition:
            return {"newest": newest, "reason": _not_offered(packages, package, newest)}
        allow_downgrade = allow_downgrade or not wish.at_least
        wish = wish._replace(edition=edition)
    offered, preferred = [], None
    met = wish.is_met_by(told["running"])
    back = None if met or allow_downgrade else versions.step_back(wish, told["running"], told["installed"])
    if back:
        return {"newest": newest, "reason": back}
    if newest or not met or told["running"] != told["installed"]:
        offered, preferred = packages.offered(package), packages.preferred(package)
    verdict, target, reason = versions.judge(wish, told["running"], told["installed"], offered, preferred)
    if verdict == "refused" and not offered:
        reason = _not_offered(packages, package)
    return {"newest": preferred, "verdict": verdict, "target": target, "reason": reason}


def _not_offered(packages, package, newest=None):
    what = f"a version of {package} before {newest}" if newest else package
    reason = f"No enabled repository offers {what}; kgraft.activated sees to that."
    others = ", ".join(map(" ".join, sorted(other_kernels(packages.left()).items())))
    if others:
        reason += f" For kernels that do not run now there is {others}: reboot into one of them."
    return reason


def _by_cves(cves, told, packages, refresh):
    answers = __salt__["kgraft_security.cves"](*cves, timeout=packages.left())
    if refresh and not all(answer.startswith(("fixed", "pending")) for answer in answers.values()):
        packages.live_patches()
        answers = __salt__["kgraft_security.cves"](*cves, timeout=packages.left())
    by_patch = f"open: {told['package']} "
    found = {cve: answer for cve, answer in answers.items() if not answer.startswith("fixed")}
    helps = [answer for answer in found.values() if answer.startswith(by_patch)]
    waits = [answer for answer in found.values() if answer.startswith("pending")]
    doubts = [why for word, why in _DOUBTS if any(answer.startswith(word) for answer in found.values())]
    judged = {"cves": answers, "verdict": "good", "doubt": " ".join(doubts) or None}
    if helps:
        # what the repositories' priorities prefer may be too old for that
        fixing = [answer[len(by_patch) :] for answer in helps] + [packages.preferred(told["package"])]
        return dict(judged, verdict="bring", target=max(filter(None, fixing), key=zypper.order))
    if any(answer.startswith("pending: installed") for answer in waits):
        return dict(judged, verdict="bring", target=told["installed"])
    return judged


def _freshness(wish, packages, max_age):
    """When the lists were current, and for a wish that goes by the newest, which are too old for that."""
    lists, now = packages.lists(), time.time()
    old = [alias for alias, when in lists.items() if when is None or now - when > max_age]
    told = {"as_of": _time(min(lists.values(), key=lambda when: when or 0, default=None))}
    told["stale"] = old
    if old and wish and wish.edition is None:
        names = ", ".join("{} (as of {})".format(alias, _time(lists[alias]) or "never") for alias in old)
        told.update(doubt=f"What is the newest cannot be told, for these lists are too old: {names}.")
    return told


def _notes(told, packages):
    """Sentences on what is true beside the verdict and will matter later."""
    notes, running, installed, newest = [], told["running"], told["installed"], told["newest"]
    if told["verdict"] == "good" and running and installed is None:
        notes.append("No package holds it: after a reboot it may be gone.")
    elif told["verdict"] == "good" and running and running != installed:
        notes.append(f"The package holds {installed}: the next boot may bring that one.")
    if told["verdict"] == "bring" and running and told["target"] == installed and _before_this_boot(told, packages):
        notes.append(
            f"It was installed before this boot, and the kernel runs {running}: the initrd is older, rebuild it."
        )
    if newest and packages.offered(told["package"])[0] != newest:
        notes.append(
            "{} is there, too, in a repository of lower priority.".format(packages.offered(told["package"])[0])
        )
    try:
        until = __salt__["kgraft_security.supported_until"]()
    except CommandExecutionError as err:
        return [*notes, f"Until when this kernel gets live patches cannot be told: {err}"]
    left = until and (datetime.datetime.strptime(until, "%Y-%m-%d").date() - datetime.date.today()).days
    if until and left < 0:
        notes.append(f"Live patches for this kernel ended on {until}: boot a newer one.")
    elif until and left <= _WARN_DAYS:
        notes.append(f"Live patches for this kernel end on {until}, in {left} days: plan a newer one.")
    return notes


def _before_this_boot(told, packages):
    installed = packages.query("when it was installed", "%{INSTALLTIME}\n", "{package}-{installed}".format(**told))
    # the clock of time.monotonic begins at boot
    return bool(installed) and int(installed[0]) < time.time() - time.monotonic()


def install(version=None, allow_downgrade=False, refresh=True, timeout=300):
    """
    Install the live-patch package of the running kernel. Its script usually loads the patch as well; ``kgraft.wait``
    and ``kgraft.patches`` say what became of that. If a transition is still running, the script cannot load it:
    wait for ``ready`` first.

    version
        ``'2-2.1'``, exactly this one; ``'2'``, the newest release of 2. Default: the one that zypper would take

    allow_downgrade
        Let an older version than the installed one be installed. Default: ``False``

    refresh
        Refresh the repositories first. One that cannot be refreshed is a warning. Default: ``True``

    timeout
        Seconds for the questions to zypper and for the wait while another zypper or rpm runs. Installing itself is
        never cut short. One that starts at the very same time as ours is waited for without a limit, by Salt itself.
        Default: ``300``

    Returns ``{'name': …, 'old': '1-1.1' or None, 'new': '2-2.1', 'warnings': […]}``; ``old`` and ``new`` are what rpm
    said before and after, and the same if there was nothing to do. A package's script that failed is a warning here,
    in its own words.

    Raises ``CommandExecutionError`` if no repository has the version, if it is older than the installed one and
    ``allow_downgrade`` is not given, if the lock did not come free, or if rpm does not have it afterwards;
    ``SaltInvocationError`` for an argument that cannot be.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft_pkg.install
        salt '*' kgraft_pkg.install 2-2.1
        salt '*' kgraft_pkg.install version=1-1.1 allow_downgrade=True
    """
    version = versions.checked(version)
    _check_switches(allow_downgrade=allow_downgrade)
    package, packages = name(), zypper.Packages(timeout, refresh)
    old, exact = packages.installed(package), version and "-" in version
    # An exact version is zypper's to find; what is installed counts as offered, so that a repository that dropped it,
    # or is away, is no reason to fail
    offered = [version] if exact and not refresh else packages.offered(package)
    fitting = [each for each in {*offered, old} - {None} if versions.matches(each, version)]
    if not fitting:
        wanted = f"{package} {version}" if version else package
        there = ["there are " + ", ".join(offered)] if offered else []
        raise CommandExecutionError("; ".join([f"No enabled repository has {wanted}"] + there + _unread(packages)))
    new = max(fitting, key=zypper.order)
    if new != old and not exact and packages.preferred(package) in fitting:
        new = packages.preferred(package)
    if old and zypper.order(new) < zypper.order(old) and not allow_downgrade:
        raise CommandExecutionError(
            f"{package} {new} is older than {old}, which is installed: give allow_downgrade=True to go back"
        )
    warnings = _unread(packages)
    if new != old:
        try:
            warnings += _install(packages, [(package, new)])
        except CommandExecutionError as err:
            raise CommandExecutionError("; ".join([str(err), *warnings])) from err
        now = packages.installed(package)
        if now != new:
            told = "zypper ran, but {} is {}, not {}".format(package, now or "not installed", new)
            info = {"old": old, "new": now, "warnings": warnings}
            raise CommandExecutionError("; ".join([told] + warnings), info=info)
    return {"name": package, "old": old, "new": new, "warnings": warnings}


def _install(packages, wanted):
    """Install ``[(package, version or None)]``; return what those of their scripts said that failed."""
    packages.await_lock(rpm=True)
    failed = zypper.failed_scripts()
    try:
        __salt__["pkg.install"](
            pkgs=[{each: at} if at else each for each, at in wanted], refresh=False, **zypper.root()
        )
    except CommandExecutionError as err:
        names = ", ".join(f"{each} {at or ''}".strip() for each, at in wanted)
        raise CommandExecutionError(f"Installing {names}: {zypper.brief(str(err))}") from err
    finally:
        packages.forget()
    # zypper's exit code is hidden by pkg.install, and proves nothing anyway
    return zypper.failed_scripts()[len(failed) :]


def repositories(refresh=False, timeout=300):
    """
    Return the enabled repositories that offer live patches for any kernel, whoever provides them: the Customer Center,
    an RMT or SMT, a SUSE Manager channel, a cloud provider.

    refresh
        Refresh the repositories first. Default: ``False``, what zypper knows already

    timeout
        Seconds that zypper may take, with the wait for another one before a refresh. Default: ``300``

    Returns ``{'offering': ['SLE-Live-Patching'], 'unread': []}``: the sorted aliases of those that offer live patches;
    ``unread`` has a sentence for each that could not be read, so that it may offer some.

    Raises ``CommandExecutionError`` if zypper fails or does not end in time.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft_pkg.repositories
    """
    packages = zypper.Packages(timeout, refresh)
    offering = sorted({offer.repository.alias for offer in packages.live_patches()[0]})
    return {"offering": offering, "unread": _unread(packages)}


def base(packages=None, timeout=300):
    """
    Return what belongs to live patching beside the patches, and whether it is installed.

    packages
        Their names, ``pattern:`` in front of a pattern's. Default: ``sle-live-patching-release`` and ``kgraft`` on SUSE
        Linux Enterprise 12, ``sle-module-live-patching-release`` and ``pattern:lp_sles`` on 15,
        ``pattern:kernel_livepatching`` on 16 and SL Micro

    timeout
        Seconds that rpm may take. Default: ``300``

    Returns ``{package: version}``, such as ``{'kgraft': '1.0-13.2', 'sle-live-patching-release': None}``; None where it
    is not installed.

    Raises ``CommandExecutionError`` if rpm cannot tell, or for a kernel that cannot have live patches;
    ``SaltInvocationError`` if ``packages`` is no list of names.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft_pkg.base
    """
    if packages is None:
        packages = ["sle-module-live-patching-release", "pattern:lp_sles"]
        if name().startswith("kgraft-"):
            packages = ["sle-live-patching-release", "kgraft"]
        elif int(__grains__.get("osmajorrelease", 15)) not in (12, 15):
            packages = ["pattern:kernel_livepatching"]
    elif not isinstance(packages, list) or not all(isinstance(package, str) and package for package in packages):
        raise SaltInvocationError(f"packages is {packages!r}: give a list of names")
    asked = zypper.Packages(timeout)
    return {package: _provided(asked, package) for package in packages}


def install_base(packages=None, timeout=300):
    """
    Install what belongs to live patching beside the patches; licences are agreed to.

    packages
        As for ``kgraft_pkg.base``. Default: its default

    timeout
        Seconds to wait while another zypper or rpm runs. Default: ``300``

    Returns what ``kgraft_pkg.base`` says afterwards.

    Raises ``CommandExecutionError`` if no repository has one of them, if the lock did not come free, or if one is not
    installed afterwards; ``SaltInvocationError`` for an argument that cannot be.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft_pkg.install_base
    """
    asked = zypper.Packages(timeout)
    missing = [package for package, version in base(packages, asked.left()).items() if version is None]
    if missing:
        _install(asked, [(package, None) for package in missing])
    there = base(packages, asked.left())
    missing = [package for package, version in there.items() if version is None]
    if missing:
        raise CommandExecutionError("zypper ran, but {} is not installed".format(", ".join(missing)))
    return there


def _provided(asked, package):
    if not package.startswith("pattern:"):
        return asked.installed(package)
    # Patterns are packages that provide pattern() in their own name as the version
    columns = "%{VERSION}-%{RELEASE}[ %{PROVIDENAME}=%{PROVIDEVERSION}]\n"
    wanted = package.replace("pattern:", "pattern()=", 1)
    lines = asked.query(f"whether {package} is installed", columns, "--whatprovides", "pattern()")
    found = [line.split()[0] for line in lines if wanted in line.split()[1:]]
    return max(found, key=zypper.order, default=None)


def loading():
    """
    Return whether a package's script loads its patch: ``LIVEPATCH_KERNEL`` in ``/etc/sysconfig/livepatching``.

    Returns ``'always'``, ``'never'`` or ``'auto'``. ``auto``, which loads it except on transactional systems, is also
    what no file, no value and any other word mean: the script sources the file and looks for these words, in lower
    case, alone.

    Raises ``CommandExecutionError`` if the file cannot be read, or if only a shell could tell what it says.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft_pkg.loading
    """
    path = zypper.under("etc/sysconfig/livepatching")
    try:
        with salt.utils.files.fopen(path, encoding="utf-8", errors="replace") as file:
            lexer = shlex.shlex(file.read(), posix=True, punctuation_chars=True)
        lexer.wordchars += "${}:,@%+^!`"
        words = [word.partition("=")[2] for word in lexer if word.startswith("LIVEPATCH_KERNEL=")]
    except FileNotFoundError:
        return "auto"
    except (OSError, ValueError) as err:
        raise CommandExecutionError(f"Cannot read {path}: {getattr(err, 'strerror', None) or err}") from err
    # A shell reads it: the last one counts
    word = words[-1] if words else ""
    if re.search("[$`]", word):
        raise CommandExecutionError(f"LIVEPATCH_KERNEL in {path} is {word!r}: only a shell can tell what that is")
    return word if word in ("always", "never") else "auto"


def transactional():
    """
    Return whether the root file system is read-only, so that only ``transactional-update`` changes its packages.

    Returns True or False.

    Raises ``CommandExecutionError`` if the root cannot be looked at.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft_pkg.transactional
    """
    root = zypper.under("")
    try:
        return bool(os.statvfs(root).f_flag & os.ST_RDONLY)
    except OSError as err:
        raise CommandExecutionError(f"Cannot look at {root}: {err.strerror}") from err


def other_kernels(timeout=300):
    """
    Return the installed live patches of kernels that do not run now. They are loaded when such a kernel boots.

    timeout
        Seconds that rpm may take. Default: ``300``

    Returns ``{package: version}``, such as ``{'kgraft-patch-4_4_180-94_107-default': '2-2.1'}``.

    Raises ``CommandExecutionError`` if rpm cannot tell.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft_pkg.other_kernels
    """
    columns = "%{NAME} %{VERSION}-%{RELEASE}\n"
    lines = zypper.Packages(timeout).query("what is installed", columns, "-a", "kgraft-patch-*", "kernel-livepatch-*")
    # Of several versions the newest comes last, and stays
    found = dict(sorted((line.split() for line in lines), key=lambda row: zypper.order(row[1])))
    here = name()
    return {each: found[each] for each in sorted(found) if each != here and zypper.LIVE_PATCH.fullmatch(each)}
