"""
What live kernel patches are for, on SUSE Linux Enterprise: the CVEs and bugs that they fix, and how long a kernel gets
new ones.

:depends: the execution module ``kgraft_pkg``, zypper and rpm
:platform: Linux, ``os_family`` Suse

Everything happens under the minion's option ``kgraft.root``, as in ``kgraft``. Questions ask zypper read-only and are
answered while another zypper runs.
"""

import datetime
import fnmatch
import glob
import importlib.util
import logging
import os
import re

import salt.utils.files
import salt.utils.path
from salt.exceptions import CommandExecutionError, SaltInvocationError

log = logging.getLogger(__name__)

__virtualname__ = "kgraft_security"

_CVE = re.compile(r"CVE-\d{4}-\d{4,}", re.IGNORECASE)
_BUG = re.compile(r"\b(?:bsc|bnc|boo)#\d+")


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


def __virtual__():
    reason = zypper.unsupported(__grains__.get("os_family"))
    return (False, f"kgraft_security {reason}") if reason else __virtualname__


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

        salt '*' kgraft_security.fixes
        salt '*' kgraft_security.fixes 2-2.1
    """
    version = zypper.checked(version)
    package = __salt__["kgraft_pkg.name"]()
    known = [patch["version"] for patch in _active().values() if patch["version"]]
    here = zypper.installed(package)
    if version is None:
        known = known or [here]
    elif "-" in version:
        known = [version]
    else:
        known += [here] + zypper.available(package)[0]
    known = [each for each in known if each and zypper.matches(each, version)]
    if not known:
        raise CommandExecutionError(
            f"No version {version} of {package} is loaded, installed or in a repository"
            if version
            else f"No live patch is active, and {package} is not installed"
        )
    return _fixes(package, max(known, key=zypper.order), here, _loaded(package))


def _fixes(package, version, here, loaded):
    edition = f"{package}-{version}"
    for patch in loaded.values():
        if patch["rpm"] == edition or patch["rpm"].startswith(edition + "."):
            return {"version": version, "cves": patch["cves"], "bugs": patch["bugs"], "source": patch["source"]}
    if version == here:
        command = zypper.rpm("-q", "--changelog", edition)
        if command["retcode"]:
            raise CommandExecutionError(f"rpm has no changelog of {edition}: {zypper.reason(command)}")
        return dict(_issues(command["stdout"]), version=version, source="changelog")
    return dict(_update_issues(package, version), version=version, source="updateinfo")


def cves(*cves, timeout=300):
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

        salt '*' kgraft_security.cves CVE-2016-5195 CVE-2017-1000364
    """
    if not cves:
        raise SaltInvocationError("cves: give at least one, such as CVE-2016-5195")
    answers = {cve: None if _CVE.fullmatch(str(cve).strip()) else "unknown: not a CVE number" for cve in cves}
    # Ask what is quick first, and the next only if something is left
    for ask in (lambda: _verdicts("applied", "fixed by {}"), _fixed_by_kernel, _pending, _open):
        if None not in answers.values():
            break
        verdicts = ask()
        for cve, answer in answers.items():
            if answer is None:
                answers[cve] = verdicts.get(str(cve).strip().upper())
    return {cve: answer or "unknown" for cve, answer in answers.items()}


def _fixed_by_kernel():
    """Of all arches alike, a kernel package's files have System.map; its other files differ by arch and release."""
    path = "/boot/System.map-" + __salt__["kgraft.status"]()["kernelrelease"]
    command = zypper.rpm("-q", "--changelog", "-f", path)
    if command["retcode"]:
        log.info("rpm knows no package with %s, so what the kernel itself fixes is not known", path)
        return {}
    return dict.fromkeys(_issues(command["stdout"])["cves"], "fixed by kernel")


def _pending():
    try:
        package = __salt__["kgraft_pkg.name"]()
    except CommandExecutionError:
        # A kernel for which there are no live patches has none that waits
        return {}
    here = zypper.installed(package)
    unloaded = []
    if here and here not in [patch["version"] for patch in _active().values()]:
        unloaded = _fixes(package, here, here, {})["cves"]
    verdicts = dict.fromkeys(unloaded, f"pending: {package}-{here} not loaded")
    return {**verdicts, **_verdicts("applying", "pending: {} not settled")}


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
        package = __salt__["kgraft_pkg.name"]()
    except CommandExecutionError:
        return {}
    available = [] if zypper.installed(package) else zypper.available(package)[0]
    if not available:
        return {}
    return dict.fromkeys(_known_cves(package, available[0], None, {}), f"open: {package} {available[0]}")


def _verdicts(state, verdict):
    """Of several patches that name a CVE, the oldest fixed it: taken last, it has the last word."""
    patches = [(module, patch) for module, patch in _active().items() if patch["state"] == state]
    if not patches:
        return {}
    package = __salt__["kgraft_pkg.name"]()
    loaded = _loaded(package)
    here = zypper.installed(package)
    verdicts = {}
    for module, patch in reversed(patches):
        told = loaded.get(module)
        found = told["cves"] if told else _known_cves(package, patch["version"], here, loaded)
        verdicts.update(dict.fromkeys(found, verdict.format(module)))
    return verdicts


def _known_cves(package, version, here, loaded):
    if version is None:
        return []
    try:
        return _fixes(package, version, here, loaded)["cves"]
    except CommandExecutionError as err:
        log.info("What %s %s fixes is not known: %s", package, version, err)
        return []


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

        salt '*' kgraft_security.supported_until
    """
    package = __salt__["kgraft_pkg.name"](kernelrelease)
    dates = []
    for path in sorted(glob.glob(os.path.join(zypper.under("var/lib/lifecycle/data"), "*.lifecycle"))):
        try:
            with salt.utils.files.fopen(path, errors="replace") as lines:
                rows = [[column.strip() for column in line.split("#")[0].split(",")] for line in lines]
        except OSError as err:
            raise CommandExecutionError(f"Cannot read the support windows: {err}") from err
        ours = [row for row in rows if len(row) == 3 and fnmatch.fnmatchcase(package, row[0])]
        # A date's column may hold text instead
        dates += [date for _, _, date in ours if _is_date(date)]
    return max(dates, default=None)


def _is_date(text):
    try:
        return datetime.datetime.strptime(text, "%Y-%m-%d").strftime("%Y-%m-%d") == text
    except ValueError:
        return False


def _active():
    """The active patches, the oldest first as the kernel module lists them; none where there is no live patching."""
    patches = __salt__["kgraft.patches"]() if __salt__["kgraft.status"]()["abi"] else {}
    return {module: patch for module, patch in patches.items() if patch["state"] in ("applying", "applied")}


def _loaded(package):
    """
    What SUSE's own tools say about the loaded patches, by module: ``{module: {rpm, cves, bugs, source}}``. They know of
    no ``kgraft.root``: what they say of another kernel's patches is not for us.

    For each one a name, then indented ``key: value`` lines; a value may be ``(none …)``, ``#`` lines may occur,
    inactive patches have no more than ``active: 0``, and old tools know no ``-v`` here.
    """
    for tool in filter(salt.utils.path.which, ("klp", "kgr")):
        command = zypper.run([tool, "-v", "patches"])
        if command["retcode"]:
            continue
        loaded, keys = {}, {}
        for line in command["stdout"].splitlines():
            key, _, value = line.partition(":")
            if line[:1].isspace():
                keys[key.strip()] = value.strip()
            elif line and not line.startswith("#"):
                keys = loaded.setdefault(line.strip().replace("-", "_"), {})
        ours = {
            module: dict(_issues(" ".join(keys.values())), rpm=keys["RPM"], source=tool)
            for module, keys in loaded.items()
            if "CVE" in keys and keys.get("RPM", "").startswith(package + "-")
        }
        if ours:
            return ours
    return {}


def _issues(text):
    return {"cves": sorted({cve.upper() for cve in _CVE.findall(text)}), "bugs": sorted(set(_BUG.findall(text)))}


def _update_issues(package, version):
    """
    What the updates up to a version fix. An update says which versions it brings by a conflict with all older ones.
    """
    patches, warnings = zypper.search("--conflicts", "--match-exact", package, kind="patch")
    brought = {}
    if patches:
        answer, _ = zypper.ask("info", "-t", "patch", *sorted(patch for patch, _, _ in patches))
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
    upto = [update for update, bringing in brought.items() if zypper.order(bringing) <= zypper.order(version)]
    found = [update for update in _updates("--all") if update["name"] in upto]
    return {key: sorted({each for update in found for each in update[key]}) for key in ("cves", "bugs")}


def _updates(option):
    for node in zypper.ask("list-patches", option)[0].iter("update"):
        issues = [(issue.get("type"), issue.get("id", "")) for issue in node.iter("issue")]
        yield {
            "name": node.get("name"),
            "status": node.get("status"),
            "cves": [number.upper() for kind, number in issues if kind == "cve"],
            "bugs": ["bsc#" + number for kind, number in issues if kind == "bugzilla"],
        }
