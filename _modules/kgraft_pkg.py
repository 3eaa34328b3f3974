"""
The packages that carry live kernel patches on SUSE Linux Enterprise: which one belongs to the running kernel, which
versions there are, what they fix, and how long the kernel gets new ones.

:depends: zypper and rpm
:platform: Linux, ``os_family`` Suse

A package is *installed* here. Whether its patch is *loaded* and *settled* is for the module ``kgraft`` to say, and the
state ``kgraft.applied`` puts the two together.

Everything happens under the minion's option ``kgraft.root``, as in ``kgraft``. Questions ask zypper read-only and are
answered while another zypper runs; where Salt's ``pkg`` does not tell "there is none" from "I could not find out", rpm
and zypper are asked directly. Installing goes through ``pkg.install``.
"""

import datetime
import fcntl
import fnmatch
import functools
import glob
import logging
import os
import re
import time
from xml.etree import ElementTree

import salt.utils.files
import salt.utils.path
from salt.exceptions import CommandExecutionError, SaltInvocationError

log = logging.getLogger(__name__)

__virtualname__ = "kgraft_pkg"

# The forms that SUSE's own tests accept in a package's name, as uname writes them
_RELEASE = re.compile(r"(\d+)\.(\d+)\.(\d+)-(\d+)((?:\.stage\.\d+|(?:\.\d+){1,2})?)-([a-z][a-z0-9]*)")
_LIVE_PATCH = re.compile(r"(?:kgraft-|kernel-live)patch-\d+_\d+_\d+-\d+(?:_stage_\d+|(?:_\d+){1,2})?-[a-z][a-z0-9]*")
_FLAVOURS = ("default", "rt", "xen")
_CVE = re.compile(r"CVE-\d{4}-\d{4,}", re.IGNORECASE)
_BUG = re.compile(r"\b(?:bsc|bnc|boo)#\d+")
_POLL = 0.25


def __virtual__():
    family = __grains__.get("os_family")
    if family != "Suse":
        return False, f"kgraft_pkg works with zypper's packages: os_family is {family!r}, not 'Suse'"
    for tool in ("zypper", "rpm"):
        if not salt.utils.path.which(tool):
            return False, f"kgraft_pkg needs {tool}, which is not on PATH"
    return __virtualname__


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
        raise CommandExecutionError(
            f"No live-patch package can exist for kernel {release}: it is not named as SUSE names kernels, "
            "such as 4.4.180-94.100-default"
        )
    version, build, flavour = tuple(int(part) for part in match.group(1, 2, 3)), int(match.group(4)), match.group(6)
    if version < (3, 12, 0):
        raise CommandExecutionError(
            f"No live-patch package can exist for kernel {release}: live patching began with 3.12 "
            "(SUSE Linux Enterprise 12)"
        )
    if flavour not in _FLAVOURS:
        raise CommandExecutionError(
            "No live-patch package can exist for kernel {}: there are none for the flavour {!r}, only for {}".format(
                release, flavour, ", ".join(_FLAVOURS)
            )
        )
    scheme = "kgraft-patch" if _named_kgraft(version, build, flavour) else "kernel-livepatch"
    return "{}-{}".format(scheme, release.replace(".", "_"))


def _named_kgraft(version, build, flavour):
    if version != (4, 12, 14):
        return version < (4, 12, 14)
    if flavour == "rt":
        # The real-time kernels of 12 SP4, 12 SP5, 15 and 15 SP1 share one range of build numbers
        return int(__grains__.get("osmajorrelease", 12)) < 15
    # 12 SP4: 94.41, 95.*; 12 SP5: 120, 122.*. 15: 23, 25.*, 150.*; 15 SP1: 195, 197.*
    return 94 <= build <= 122


def installed(kernelrelease=None):
    """
    Return the installed version of a kernel's live-patch package. Installed is not loaded: ``kgraft.patches`` tells.

    kernelrelease
        What ``uname -r`` says. Default: the running kernel's

    Returns rpm's version and release, such as ``2-2.1``; None if the package is not installed. If several versions are
    installed, the newest.

    Raises ``CommandExecutionError`` if rpm cannot tell.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft_pkg.installed
    """
    return _installed(name(kernelrelease))


def _installed(package):
    versions = _query(f"whether {package} is installed", "%{VERSION}-%{RELEASE}\n", package)
    return _newest_first(versions)[0] if versions else None


def available(kernelrelease=None, refresh=False, lock_timeout=300):
    """
    Return the versions of a kernel's live-patch package that the enabled repositories have.

    kernelrelease
        What ``uname -r`` says. Default: the running kernel's

    refresh
        Refresh the repositories first. Default: ``False``, what zypper knows already

    lock_timeout
        Seconds to wait for another zypper before a refresh. Default: ``300``

    Returns a list of versions such as ``['10-2.1', '9-2.2']``, the newest first as rpm compares them; an empty list if
    no repository has the package. A repository that cannot be read is a warning in the log while others have it.

    Raises ``CommandExecutionError`` if zypper fails, or if none has the package and one of them could not be read.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft_pkg.available
        salt '*' kgraft_pkg.available refresh=True
    """
    package = name(kernelrelease)
    warnings = _refresh(_deadline(lock_timeout)) if refresh else []
    versions, more = _available(package)
    warnings = warnings or more
    for warning in warnings:
        log.warning(warning)
    if not versions and warnings:
        raise CommandExecutionError(
            "No readable repository has {}, and not all could be read: {}".format(package, "; ".join(warnings))
        )
    return versions


def _available(package):
    # pkg.list_repo_pkgs waits for locks without end, and raises alike for "there is none" and for every failure
    found, warnings = _search("--match-exact", package)
    return _newest_first({version for _, version, _ in found}), warnings


def install(version=None, allow_downgrade=False, refresh=True, lock_timeout=300):
    """
    Install the live-patch package of the running kernel. Its script usually loads the patch as well; ``kgraft.wait``
    and ``kgraft.patches`` say what became of that. If a transition is still running, the script cannot load it:
    wait for ``ready`` first.

    version
        ``'2-2.1'``, exactly this one; ``'2'``, the newest release of 2. Default: the newest that there is

    allow_downgrade
        Let an older version than the installed one be installed. Default: ``False``

    refresh
        Refresh the repositories first. One that cannot be refreshed is a warning. Default: ``True``

    lock_timeout
        Seconds to wait while another zypper or rpm runs. The wait is before the work: one that starts at the very
        same time as ours is waited for without a limit, by Salt itself. Default: ``300``

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
    version = _checked(version)
    deadline = _deadline(lock_timeout)
    package = name()
    warnings = _refresh(deadline) if refresh else []
    old = _installed(package)
    versions, more = _available(package)
    warnings = warnings or more

    new = _chosen(package, version, versions, old, warnings)
    if old and _compare(new, old) < 0 and not allow_downgrade:
        raise CommandExecutionError(
            f"{package} {new} is older than {old}, which is installed: give allow_downgrade=True to go back"
        )
    if new != old:
        _await_lock(deadline)
        mark = _history_size()
        try:
            __salt__["pkg.install"](package, version=new, refresh=False, **_root())
        except CommandExecutionError as err:
            raise CommandExecutionError(f"Installing {package} {new}: {_discreet(str(err))}") from err
        # zypper's exit code is hidden by pkg.install, and proves nothing anyway
        warnings += _failed_scripts(mark)
        now = _installed(package)
        if now != new:
            raise CommandExecutionError(
                "zypper ran, but {} is {}, not {}{}".format(
                    package, now or "not installed", new, "".join("; " + warning for warning in warnings)
                ),
                info={"old": old, "new": now, "warnings": warnings},
            )
    return {"name": package, "old": old, "new": new, "warnings": warnings}


def _chosen(package, version, versions, old, warnings):
    """What is installed counts as offered, so that a repository that dropped it, or is away, is no reason to fail."""
    candidates = [each for each in _newest_first(set(versions) | {old} - {None}) if _matches(each, version)]
    if candidates:
        return candidates[0]
    raise CommandExecutionError(
        "No enabled repository has {}{}{}{}".format(
            package,
            " " + version if version else "",
            "; there are " + ", ".join(versions) if versions else "",
            "".join("; " + warning for warning in warnings),
        )
    )


def fixes(version=None):
    """
    Return the CVEs and bugs that a version of the running kernel's live patch fixes, with those of the versions before
    it: live patches are cumulative.

    Asked are, in this order: ``kgr`` or ``klp`` if the patch is loaded and they are installed; the package's
    changelog if it is installed; the repositories' update metadata.

    version
        ``'2-2.1'``, or ``'2'`` for the newest release of 2. Default: the newest active patch, or the installed one if
        none is active

    Returns ``{'version': '2-2.1', 'cves': ['CVE-2015-0002'], 'bugs': ['bsc#123456'], 'source': …}`` with a source of
    ``kgr``, ``klp``, ``changelog`` or ``updateinfo``. An empty list means that it fixes none.

    Raises ``CommandExecutionError`` if nothing names that version; ``SaltInvocationError`` for a version that cannot
    be.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft_pkg.fixes
        salt '*' kgraft_pkg.fixes 2-2.1
    """
    version = _checked(version)
    package = name()
    active = [patch["version"] for patch in _active().values() if patch["version"]]
    here = _installed(package)
    if version is None:
        known = _newest_first(active) or [here]
    elif "-" in version:
        known = [version]
    else:
        known = _newest_first(set(active) | {here} - {None}) + _available(package)[0]
    known = [each for each in known if each and _matches(each, version)]
    if not known:
        raise CommandExecutionError(
            f"No version {version} of {package} is loaded, installed or in a repository"
            if version
            else f"No live patch is active, and {package} is not installed"
        )
    return _fixes(package, _newest_first(known)[0], here, _told(package))


def _fixes(package, version, here, told):
    edition = f"{package}-{version}"
    for patch in told.values():
        if patch["rpm"] == edition or patch["rpm"].startswith(edition + "."):
            return {"version": version, "cves": patch["cves"], "bugs": patch["bugs"], "source": patch["source"]}
    if version == here:
        command = _rpm("-q", "--changelog", edition)
        if command["retcode"]:
            raise CommandExecutionError(f"rpm has no changelog of {edition}: {_words(command)}")
        return dict(_named(command["stdout"]), version=version, source="changelog")
    return dict(_update_names(package, version), version=version, source="updateinfo")


def cves(*cves):
    """
    Say of each CVE whether it is fixed on this machine, as it runs now.

    cves
        One or more CVE numbers, such as ``CVE-2016-5195``

    Returns one answer for each, which begins with

    ``fixed``
        ``fixed by <patch>``: an applied patch names it. ``fixed by kernel``: the running kernel's own changelog does
    ``pending``
        ``pending: <patch> not settled``: the patch that names it is still in transition.
        ``pending: <package> not loaded``: it is only installed
    ``open``
        ``open: <updates>``: zypper lists these updates as needed here. ``open: <package> <version>``: no live patch is
        installed for this kernel yet, and the newest one fixes it
    ``unknown``
        ``unknown``: nobody names it; this kernel may have never had it, or no fix is out.
        ``unknown: not a CVE number``: nor can it be

    Raises ``CommandExecutionError`` if the kernel, rpm or zypper cannot be asked; ``SaltInvocationError`` without any
    CVE.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft_pkg.cves CVE-2016-5195 CVE-2017-1000364
    """
    if not cves:
        raise SaltInvocationError("cves: give at least one, such as CVE-2016-5195")
    answers = {}
    for cve in cves:
        answers[cve] = None if _CVE.fullmatch(str(cve).strip()) else "unknown: not a CVE number"
    # Ask what is quick first, and the next only if something is left
    for ask in (_fixed_by_patches, _fixed_by_kernel, _pending, _open):
        if None not in answers.values():
            break
        verdicts = ask()
        for cve, answer in answers.items():
            if answer is None:
                answers[cve] = verdicts.get(str(cve).strip().upper())
    return {cve: answer or "unknown" for cve, answer in answers.items()}


def _fixed_by_patches():
    return _named_by(_active("applied"), "fixed by {}")


def _fixed_by_kernel():
    """Of all arches alike, a kernel package's files have System.map; its other files differ by arch and release."""
    path = "/boot/System.map-" + __salt__["kgraft.status"]()["kernelrelease"]
    command = _rpm("-q", "--changelog", "-f", path)
    if command["retcode"]:
        log.info("rpm knows no package with %s, so what the kernel itself fixes is not known", path)
        return {}
    return dict.fromkeys(_named(command["stdout"])["cves"], "fixed by kernel")


def _pending():
    try:
        package = name()
    except CommandExecutionError:
        # A kernel for which there are no live patches has none that waits
        return {}
    here = _installed(package)
    verdicts = {}
    if here and here not in [patch["version"] for patch in _active().values()]:
        edition = f"{package}-{here}"
        verdicts.update(dict.fromkeys(_fixes(package, here, here, {})["cves"], f"pending: {edition} not loaded"))
    verdicts.update(_named_by(_active("applying"), "pending: {} not settled"))
    return verdicts


def _open():
    updates = {}
    for update in _updates("--cve"):
        if update["status"] == "needed":
            for cve in update["cves"]:
                updates.setdefault(cve, set()).add(update["name"])
    return {**_open_before_the_first(), **{cve: "open: " + ", ".join(sorted(found)) for cve, found in updates.items()}}


def _open_before_the_first():
    """zypper calls no update needed whose package is not installed: then the newest patch says what it would fix."""
    if __salt__["kgraft.status"]()["abi"] is None:
        return {}
    try:
        package = name()
    except CommandExecutionError:
        return {}
    versions = [] if _installed(package) else _available(package)[0]
    if not versions:
        return {}
    try:
        found = _update_names(package, versions[0])["cves"]
    except CommandExecutionError as err:
        log.info("What %s %s fixes is not known: %s", package, versions[0], err)
        return {}
    return dict.fromkeys(found, f"open: {package} {versions[0]}")


def _named_by(patches, verdict):
    """Of several patches that name a CVE, the oldest fixed it: taken last, it has the last word."""
    if not patches:
        return {}
    package = name()
    told = _told(package)
    here = _installed(package)
    verdicts = {}
    for module, patch in reversed(list(patches.items())):
        if module in told:
            found = told[module]["cves"]
        elif patch["version"]:
            try:
                found = _fixes(package, patch["version"], here, told)["cves"]
            except CommandExecutionError as err:
                log.info("What %s fixes is not known: %s", module, err)
                continue
        else:
            continue
        verdicts.update(dict.fromkeys(found, verdict.format(module)))
    return verdicts


def supported_until(kernelrelease=None):
    """
    Return the day until which a kernel gets new live patches, about a year after it came out.

    The dates come with the package ``lifecycle-data-sle-live-patching`` (12) or
    ``lifecycle-data-sle-module-live-patching`` (15), in files under ``/var/lib/lifecycle/data``.

    kernelrelease
        What ``uname -r`` says. Default: the running kernel's

    Returns the date as ``'2026-12-31'``; None if the data are not installed or name no date for this kernel. If several
    files name one, the latest.

    Raises ``CommandExecutionError`` if the data cannot be read.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft_pkg.supported_until
    """
    package = name(kernelrelease)
    dates = []
    for path in sorted(glob.glob(os.path.join(_under("var/lib/lifecycle/data"), "*.lifecycle"))):
        try:
            with salt.utils.files.fopen(path, errors="replace") as lines:
                rows = [[column.strip() for column in line.split("#")[0].split(",")] for line in lines]
        except OSError as err:
            raise CommandExecutionError(f"Cannot read the support windows: {err}") from err
        for row in rows:
            # A date's column may hold text instead
            if len(row) == 3 and fnmatch.fnmatchcase(package, row[0]) and _is_date(row[2]):
                dates.append(row[2])
    return max(dates, default=None)


def _is_date(text):
    try:
        return datetime.datetime.strptime(text, "%Y-%m-%d").strftime("%Y-%m-%d") == text
    except ValueError:
        return False


def offered(refresh=False, lock_timeout=300):
    """
    Return the enabled repositories that offer live patches for any kernel, whoever provides them: the Customer Center,
    an RMT or SMT, a SUSE Manager channel, a cloud provider.

    refresh
        Refresh the repositories first. Default: ``False``, what zypper knows already

    lock_timeout
        Seconds to wait for another zypper before a refresh. Default: ``300``

    Returns a sorted list of their aliases; an empty one if none does. A repository that cannot be read is a warning in
    the log while others offer live patches.

    Raises ``CommandExecutionError`` if zypper fails, or if none offers any and one of them could not be read.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft_pkg.offered
    """
    warnings = _refresh(_deadline(lock_timeout)) if refresh else []
    found, more = _search("kgraft-patch-*", "kernel-livepatch-*")
    names = {repository for package, _, repository in found if _LIVE_PATCH.fullmatch(package)}
    # zypper's search prints a repository's name, which need not be its alias
    aliases = sorted(
        alias
        for alias, repository in __salt__["pkg.list_repos"](**_root()).items()
        if repository.get("enabled") is not False and repository.get("name", alias) in names
    )
    warnings = warnings or more
    for warning in warnings:
        log.warning(warning)
    if not aliases and warnings:
        raise CommandExecutionError(
            "No readable repository offers live patches, and not all could be read: {}".format("; ".join(warnings))
        )
    return aliases


def loading():
    """
    Return whether a package's script loads its patch: ``LIVEPATCH_KERNEL`` in ``/etc/sysconfig/livepatching``.

    Returns ``'always'``, ``'never'`` or ``'auto'``. ``auto``, which loads it except on transactional systems, is also
    what no file and no value mean.

    Raises ``CommandExecutionError`` if the file cannot be read or holds another word.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft_pkg.loading
    """
    path = _under("etc/sysconfig/livepatching")
    try:
        with salt.utils.files.fopen(path, errors="replace") as lines:
            words = re.findall(r"^\s*LIVEPATCH_KERNEL=[\"']?([^\s\"'#]*)", lines.read(), re.MULTILINE)
    except FileNotFoundError:
        return "auto"
    except OSError as err:
        raise CommandExecutionError(f"Cannot read {path}: {err.strerror}") from err
    # A shell reads it: the last one counts
    word = words[-1] if words else ""
    if word not in ("", "always", "never", "auto"):
        raise CommandExecutionError(f"LIVEPATCH_KERNEL in {path} is {word!r}: it must be always, never or auto")
    return word or "auto"


def transactional():
    """
    Return whether the root file system is read-only, so that only ``transactional-update`` changes its packages.

    Returns True or False.

    Raises ``CommandExecutionError`` if the root cannot be looked at.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft_pkg.transactional
    """
    root = _under("")
    try:
        return bool(os.statvfs(root).f_flag & os.ST_RDONLY)
    except OSError as err:
        raise CommandExecutionError(f"Cannot look at {root}: {err.strerror}") from err


def elsewhere():
    """
    Return the installed live patches of kernels that do not run now. They are loaded when such a kernel boots.

    Returns ``{package: version}``, such as ``{'kgraft-patch-4_4_180-94_107-default': '2-2.1'}``.

    Raises ``CommandExecutionError`` if rpm cannot tell.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft_pkg.elsewhere
    """
    packages = _query(
        "what is installed", "%{NAME} %{VERSION}-%{RELEASE}\n", "-a", "kgraft-patch-*", "kernel-livepatch-*"
    )
    found = {}
    for package, version in (line.split() for line in packages):
        found.setdefault(package, []).append(version)
    here = name()
    return {
        package: _newest_first(versions)[0]
        for package, versions in sorted(found.items())
        if package != here and _LIVE_PATCH.fullmatch(package)
    }


def base(packages=None):
    """
    Return what belongs to live patching beside the patches, and whether it is installed.

    packages
        Their names, ``pattern:`` in front of a pattern's. Default: ``sle-live-patching-release`` and ``kgraft`` on SUSE
        Linux Enterprise 12, ``sle-module-live-patching-release`` and ``pattern:lp_sles`` on 15

    Returns ``{package: version}``, such as ``{'kgraft': '1.0-13.2', 'sle-live-patching-release': None}``; None where it
    is not installed.

    Raises ``CommandExecutionError`` if rpm cannot tell, or for a kernel that cannot have live patches;
    ``SaltInvocationError`` if ``packages`` is no list of names.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft_pkg.base
    """
    return {package: _provided(package) for package in _base(packages)}


def install_base(packages=None, lock_timeout=300):
    """
    Install what belongs to live patching beside the patches; licences are agreed to.

    packages
        As for ``kgraft_pkg.base``. Default: its default

    lock_timeout
        Seconds to wait while another zypper or rpm runs. Default: ``300``

    Returns what ``kgraft_pkg.base`` says afterwards.

    Raises ``CommandExecutionError`` if no repository has one of them, if the lock did not come free, or if one is not
    installed afterwards; ``SaltInvocationError`` for an argument that cannot be.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft_pkg.install_base
    """
    deadline = _deadline(lock_timeout)
    missing = [package for package, version in base(packages).items() if version is None]
    if missing:
        _await_lock(deadline)
        try:
            __salt__["pkg.install"](pkgs=missing, refresh=False, **_root())
        except CommandExecutionError as err:
            raise CommandExecutionError("Installing {}: {}".format(", ".join(missing), _brief(str(err)))) from err
    there = base(packages)
    missing = [package for package, version in there.items() if version is None]
    if missing:
        raise CommandExecutionError("zypper ran, but {} is not installed".format(", ".join(missing)))
    return there


def _base(packages):
    if packages is None:
        if name().startswith("kgraft-"):
            return ["sle-live-patching-release", "kgraft"]
        return ["sle-module-live-patching-release", "pattern:lp_sles"]
    if not isinstance(packages, list) or not all(isinstance(package, str) and package for package in packages):
        raise SaltInvocationError(f"packages is {packages!r}: give a list of names")
    return packages


def _provided(package):
    if not package.startswith("pattern:"):
        return _installed(package)
    # Patterns are packages that provide pattern() in their own name as the version
    columns = "%{VERSION}-%{RELEASE}[ %{PROVIDENAME}=%{PROVIDEVERSION}]\n"
    command = _rpm("-q", "--queryformat", columns, "--whatprovides", "pattern()")
    if command["retcode"] and "no package provides" not in command["stdout"]:
        raise CommandExecutionError(f"rpm cannot tell whether {package} is installed: {_words(command)}")
    wanted = "pattern()={}".format(package.split(":", 1)[1])
    rows = [line.split() for line in command["stdout"].splitlines()]
    versions = [row[0] for row in rows if wanted in row[1:]]
    return _newest_first(versions)[0] if versions else None


def _active(*states):
    """The patches in the kernel, the oldest first; none where the kernel has no live patching."""
    status = __salt__["kgraft.status"]()
    if status["abi"] is None:
        return {}
    patches = __salt__["kgraft.patches"]()
    return {
        module: patches[module]
        for module in status["active"]
        if module in patches and patches[module]["state"] in (states or ("applying", "applied"))
    }


def _told(package):
    """
    What SUSE's own tools say about the loaded patches, by module: ``{module: {rpm, cves, bugs, source}}``. They know of
    no ``kgraft.root``: what they say of another kernel's patches is not for us.

    For each one a name, then indented ``key: value`` lines; a value may be ``(none …)``, ``#`` lines may occur,
    inactive patches have no more than ``active: 0``, and old tools know no ``-v`` here.
    """
    for tool in ("klp", "kgr"):
        if not salt.utils.path.which(tool):
            continue
        command = _run([tool, "-v", "patches"])
        if command["retcode"]:
            continue
        told, keys = {}, {}
        for line in command["stdout"].splitlines():
            if line.startswith("#") or not line.strip():
                continue
            if not line[0].isspace():
                keys = told.setdefault(line.strip().replace("-", "_"), {})
            elif ":" in line:
                key, value = line.split(":", 1)
                keys[key.strip()] = value.strip()
        ours = {
            module: dict(_named(" ".join(keys.values())), rpm=keys["RPM"], source=tool)
            for module, keys in told.items()
            if "CVE" in keys and keys.get("RPM", "").startswith(package + "-")
        }
        if ours:
            return ours
    return {}


def _named(text):
    return {"cves": sorted({cve.upper() for cve in _CVE.findall(text)}), "bugs": sorted(set(_BUG.findall(text)))}


def _update_names(package, version):
    """
    What the updates up to a version fix. An update says which versions it brings by a conflict with all older ones.
    """
    patches, warnings = _search("--conflicts", "--match-exact", package, kind="patch")
    brought = {}
    if patches:
        answer, _ = _zypper("info", "-t", "patch", *sorted(patch for patch, _, _ in patches))
        update = None
        for line in "".join(answer.itertext()).splitlines():
            conflict = re.fullmatch(rf"\s+{re.escape(package)}(?:\.\w+)? < (\S+)", line)
            if line.startswith("Name "):
                update = line.split(":", 1)[1].strip()
            elif conflict:
                brought[update] = conflict.group(1)
    if version not in brought.values():
        raise CommandExecutionError(
            f"Nothing says what {package} {version} fixes: it is not loaded, not installed, "
            "and no update in a repository brings it" + "".join("; " + warning for warning in warnings)
        )
    upto = [update for update, bringing in brought.items() if _compare(bringing, version) <= 0]
    found = [update for update in _updates("--all") if update["name"] in upto]
    return {key: sorted({each for update in found for each in update[key]}) for key in ("cves", "bugs")}


def _updates(option):
    updates = []
    for node in _zypper("list-patches", option)[0].iter("update"):
        issues = [(issue.get("type"), issue.get("id", "")) for issue in node.iter("issue")]
        updates.append(
            {
                "name": node.get("name"),
                "status": node.get("status"),
                "cves": [number.upper() for kind, number in issues if kind == "cve"],
                "bugs": ["bsc#" + number for kind, number in issues if kind == "bugzilla"],
            }
        )
    return updates


def _search(*criteria, kind="package"):
    """Return ``[(name, version, repository)]`` of what the repositories have, and warnings about those not read."""
    answer, warnings = _zypper("search", *(("-s",) if kind == "package" else ()) + ("-t", kind) + criteria)
    return [
        (node.get("name"), node.get("edition"), node.get("repository"))
        for node in answer.iter("solvable")
        if node.get("kind") == kind and node.get("repository") != "(System Packages)"
    ], warnings


def _zypper(*arguments):
    """Ask zypper; return its XML, and as warnings the repositories that it left out, with the reason."""
    command = ["zypper", "--non-interactive", "--no-refresh", "--xmlout"]
    if _root():
        command += ["--root", _root()["root"]]
    # As Salt's own pkg does for questions: no lock is taken, none is waited for
    answer = _run(command + list(arguments), env={"ZYPP_READONLY_HACK": "1"})
    try:
        tree = ElementTree.fromstring(answer["stdout"])
    except ElementTree.ParseError as err:
        raise CommandExecutionError(f"zypper {arguments[0]}: {_words(answer)}") from err
    messages = [(node.get("type"), _brief(node.text or "")) for node in tree.iter("message")]
    errors = [text for kind, text in messages if kind == "error"]
    # 6: no repositories; 100 to 103: no failures; 104: nothing found; 106: something found, a repository left out
    if answer["retcode"] not in (0, 6, 100, 101, 102, 103, 104, 106):
        raise CommandExecutionError("zypper {}: {}".format(arguments[0], "; ".join(errors) or _words(answer)))
    left_out = [text for kind, text in messages if kind == "warning" and text.startswith("Skipping repository")]
    if left_out or answer["retcode"] == 106:
        return tree, [" ".join(left_out + errors[:1])]
    return tree, []


def _refresh(deadline):
    """Refresh what has changed; return as warnings what could not be refreshed."""
    _await_lock(deadline)
    try:
        __salt__["pkg.refresh_db"](force=False, **_root())
    except CommandExecutionError as err:
        return ["Not every repository could be refreshed: " + _brief(str(err))]
    return []


def _await_lock(deadline):
    """
    Wait for other package managers to end. ``pkg`` would do so without a limit.

    libzypp's lock is a file with a process id, and free when that process is gone or a zombie; rpm's is a lock on a
    file, which lies beside its database.
    """
    rpm_lock = _under(_run(["rpm", "--eval", "%{?_rpmlock_path}"])["stdout"].strip().lstrip("/"))
    while True:
        holder = _lock_holder(rpm_lock)
        if holder is None:
            return
        if time.monotonic() >= deadline:
            raise CommandExecutionError(f"The packages are locked by {holder}: gave up waiting")
        time.sleep(_POLL)


def _lock_holder(rpm_lock):
    for path in ("run/zypp.pid", "var/run/zypp.pid"):
        try:
            with salt.utils.files.fopen(os.path.join(os.environ.get("ZYPP_LOCKFILE_ROOT") or _under(""), path)) as lock:
                pid = int(lock.readline() or 0)
            with salt.utils.files.fopen(f"/proc/{pid}/cmdline", errors="replace") as cmdline:
                program = cmdline.read().split("\0")[0]
        except (OSError, ValueError):
            continue
        if pid and program:
            return f"{os.path.basename(program)} ({pid})"
    try:
        with salt.utils.files.fopen(rpm_lock, "rb") as lock:
            # Shared, so that only one who writes is in the way, and no one who reads
            fcntl.lockf(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return "rpm"
    except OSError:
        # No lock file, or a directory: nobody has ever locked
        pass
    return None


def _deadline(lock_timeout):
    if isinstance(lock_timeout, bool) or not isinstance(lock_timeout, (int, float)) or lock_timeout < 0:
        raise SaltInvocationError(f"lock_timeout is {lock_timeout!r}: give seconds, 0 or more")
    return time.monotonic() + lock_timeout


def _history_size():
    try:
        return os.path.getsize(_under("var/log/zypp/history"))
    except OSError:
        return 0


def _failed_scripts(mark):
    """What zypper's history says since then about scripts that failed: pkg.install hides zypper's exit code 107."""
    try:
        with salt.utils.files.fopen(_under("var/log/zypp/history"), errors="replace") as history:
            history.seek(mark)
            blocks = re.findall(r"^# Additional rpm output:\n((?:# .*\n)*)", history.read(), re.MULTILINE)
    except OSError:
        return []
    return [
        "; ".join(line[2:].strip() for line in block.splitlines()[-3:])
        for block in blocks
        if re.search(r"scriptlet failed", block)
    ]


def _checked(version):
    """Return a version as text. YAML makes a number of 2 and of 2.1, and 2.10 has then become 2.1."""
    if version is None:
        return None
    if isinstance(version, int) and not isinstance(version, bool):
        version = str(version)
    if not isinstance(version, str) or not re.fullmatch(r"\d+(-[\w.]+)?", version):
        raise SaltInvocationError(f"version is {version!r}: quote it, as '2' or '2-2.1'")
    return version


def _matches(version, wanted):
    return wanted in (None, version, version.split("-")[0])


def _compare(one, other):
    return __salt__["pkg.version_cmp"](one, other)


def _newest_first(versions):
    return sorted(versions, key=functools.cmp_to_key(_compare), reverse=True)


def _under(path):
    return os.path.join(__opts__.get("kgraft.root") or "/", path)


def _root():
    root = os.path.normpath(_under(""))
    return {} if root == "/" else {"root": root}


def _query(question, queryformat, *arguments):
    """
    Ask rpm; return the lines of its answer, none for "there is none". pkg.list_pkgs and pkg.version say that of every
    failure, and with a broken database rpm itself does, after an error.
    """
    command = _rpm("-q", "--queryformat", queryformat, *arguments)
    none = re.search(r"is not installed$|^no package provides", command["stdout"], re.MULTILINE)
    if re.search(r"^error:", command["stderr"], re.MULTILINE) or (command["retcode"] and not none):
        raise CommandExecutionError(f"rpm cannot tell {question}: {_words(command)}")
    return [] if none else command["stdout"].splitlines()


def _rpm(*arguments):
    return _run(["rpm"] + (["--root", _root()["root"]] if _root() else []) + list(arguments))


def _run(command, env=None):
    return __salt__["cmd.run_all"](command, env=env, python_shell=False, ignore_retcode=True, output_loglevel="trace")


def _words(command):
    return _brief(command["stderr"] or command["stdout"]) or "exit code {}".format(command["retcode"])


def _brief(text):
    return " ".join(_discreet(text).split())[:500]


def _discreet(text):
    """A repository's address can hold a password or, from SUSE Manager, a token."""
    return re.sub(r"(://[^\s?'\"\]]*)\?[^\s'\"\]]+", r"\1?…", re.sub(r"(?<=://)[^/@\s]+@", "", text))
