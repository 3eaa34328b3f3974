"""
What live kernel patches are for, on SUSE Linux Enterprise: the CVEs and bugs that they fix, how long a kernel gets
new ones, and whether a reboot can wait.

:depends: the execution module ``kgraft_pkg``, zypper and rpm
:platform: Linux, ``os_family`` Suse

Everything happens under the minion's option ``kgraft.root``, as in ``kgraft``. Questions ask zypper read-only and are
answered while another zypper runs. What could not be read is part of an answer.
"""

import datetime
import importlib.util
import os
import re
import time

import salt.utils.path
from salt.exceptions import CommandExecutionError, SaltInvocationError

__virtualname__ = "kgraft_security"

_BUG = re.compile(r"\b(?:bsc|bnc|boo)#\d+")
# livepatch names the patch at the end (kernel/livepatch/transition.c), kGraft when it begins (kernel/kgraft.c, where
# the end of a revert is called a success, too)
_LOG = re.compile(
    r"^\[ *(\d+)\.\d+\](?:\[ *[TC]\d+\])? (?:livepatch: '([^']+)': patching complete"
    r"|kgr: (applying|reverting) patch '([^']+)'|(kgr: patching succeeded|kgr succeeded))$",
    re.MULTILINE,
)
_FORCED = re.compile(
    r"^\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? (?:livepatch: forcing remaining tasks to the (?:un)?patched state"
    r"|kgr: all processes marked as migrated on admin's request)$",
    re.MULTILINE,
)
# All that may take long about the support window: rpm, and regular expressions
_LIFECYCLE_SECONDS = 30


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
lifecycle = _room("lifecycle", zypper=zypper)
boot = _room("boot", zypper=zypper)
versions = _room("versions", order=zypper.order)


def __virtual__():
    reason = zypper.unsupported(__grains__.get("os_family"))
    return (False, f"kgraft_security {reason}") if reason else __virtualname__


def fixes(version=None, timeout=300):
    """
    Return the CVEs and bugs that a version of the running kernel's live patch fixes, with those of the versions before
    it: live patches are cumulative.

    Asked are, in this order: ``kgr`` or ``klp`` if the patch is loaded and they are installed; the package's
    changelog if it is installed; the repositories' update metadata.

    version
        ``'2-2.1'``, or ``'2'`` for the newest release of 2. Default: the newest active patch, or the installed one if
        none is active

    timeout
        Seconds that all questions to zypper and rpm may take together. Default: ``300``

    Returns ``{'version': '2-2.1', 'cves': ['CVE-2015-0002'], 'bugs': ['bsc#123456'], 'source': …, 'unread': []}`` with
    a source of ``kgr``, ``klp``, ``changelog`` or ``updateinfo``. An empty list means that it fixes none. ``unread``
    names what could not be read and might have more to say, as ``'<repository>: <why>'``.

    Raises ``CommandExecutionError`` if nothing names that version, with what could not be read, or if rpm or zypper
    cannot be asked or do not end in time; ``SaltInvocationError`` for a version or a ``timeout`` that cannot be.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft_security.fixes
        salt '*' kgraft_security.fixes 2-2.1
    """
    version = versions.checked(version)
    packages = zypper.Packages(timeout)
    package = __salt__["kgraft_pkg.name"]()
    known = [patch["version"] for patch in _active(__salt__["kgraft.status"]()).values() if patch["version"]]
    unread = {}
    if version is None:
        known = known or [packages.installed(package)]
    elif "-" in version:
        known = [version]
    else:
        known += [packages.installed(package)] + packages.offered(package)
        unread = packages.live_patches()[1]
    known = [each for each in known if each and version in (None, each, each.split("-")[0])]
    if not known:
        wanted = f"No version {version} of {package} is loaded, installed or in a repository"
        none = wanted if version else f"No live patch is active, and {package} is not installed"
        raise CommandExecutionError("; ".join([none] + _sentences(unread)))
    told, missed = _fixes(packages, package, max(known, key=zypper.order), _loaded(packages, package))
    return dict(told, unread=_sentences({**unread, **missed}))


def _sentences(unread):
    return [f"{who}: {unread[who]}" for who in sorted(unread)]


def _fixes(packages, package, version, loaded):
    """Return what ``fixes`` does, and ``{who: why}`` of what could not be read and might have more to say."""
    patches, unread = loaded
    edition = f"{package}-{version}"
    for patch in patches.values():
        if patch["rpm"] == edition or patch["rpm"].startswith(edition + "."):
            return {"version": version, "cves": patch["cves"], "bugs": patch["bugs"], "source": patch["source"]}, {}
    if version == packages.installed(package):
        return dict(_changelog(packages, edition), version=version, source="changelog"), {}
    issues, missed = _update_issues(packages, package, version, unread)
    return dict(issues, version=version, source="updateinfo"), {**unread, **missed}


def _changelog(packages, *of):
    command = packages.rpm("-q", "--changelog", *of)
    if command["retcode"]:
        raise CommandExecutionError(f"rpm has no changelog of {of[-1]}: {zypper.reason(command)}")
    return _issues(command["stdout"])


def _update_issues(packages, package, version, unread):
    """What the updates up to a version fix."""
    brought, missed = _bringing(packages, package)
    if version not in brought.values():
        told = (
            f"Nothing says what {package} {version} fixes: it is not loaded, not installed, "
            "and no update in a repository brings it"
        )
        raise CommandExecutionError("; ".join([told] + _sentences({**unread, **missed})))
    upto = [name for name, of in brought.items() if not _is_initial(of) and zypper.order(of) <= zypper.order(version)]
    updates = [update for update in packages.updates()[0] if update.name in upto]
    cves, bugs = ({each for update in updates for each in getattr(update, key)} for key in ("cves", "bugs"))
    return {"cves": sorted(cves), "bugs": sorted(bugs)}, missed


def _bringing(packages, package):
    """``{update: version}`` of the updates that bring a package."""
    found, unread = packages.ask("search", "-t", "patch", "--conflicts", "--match-exact", package)
    names = sorted({node.get("name") for node in found.iter("solvable")})
    return {name: of.get(package) for name, of in packages.brought(*names).items()} if names else {}, unread


def _is_initial(version):
    """The first one fixes nothing. It comes with its kernel, in one update, which names what the kernel fixes."""
    return version.split("-")[0] == "1"


def cves(*cves, timeout=300):
    """
    Say of each CVE whether it is fixed on this machine, as it runs now.

    cves
        One or more CVE numbers, such as ``CVE-2016-5195``

    timeout
        Seconds that all questions to zypper and rpm may take together. Default: ``300``

    Returns one answer for each. Asked are, as long as one is left: the applied patches, the kernel's changelog, the
    patches that are settling, the installed package, the updates in the repositories. The first that names a CVE has
    the word.

    ``fixed by <module>``, ``fixed by kernel``
        an applied patch names it, or the running kernel's own changelog
    ``pending: settling <module>``
        the patch that names it is in transition
    ``pending: installed, not loaded <package> <version>``
        it is only installed. This never ends by itself: see ``kgraft.load``
    ``open: <package> <version>``
        an update brings this version of the running kernel's own live patch, which is newer than what is here and the
        oldest that fixes it
    ``elsewhere: <update> (<packages>)``
        only an update of something else names it, such as openssl or the kernel itself: live patching does not help.
        Needed ones are named if there are any; whether others are in already, ``zypper info -t patch`` tells
    ``unread: <repository>: <why>``
        nobody who could be read names it, and these could not be read: repositories, the kernel's changelog, a patch
        that nothing knows
    ``unknown: nobody names it``
        this kernel may have never had it, or no fix is out. An update says nothing about this kernel where it brings
        other kernels' live patches only, or one that is not newer than what is here and does not name it itself
    ``unknown: not a CVE number``
        nor can it be

    Raises ``CommandExecutionError`` if the kernel cannot be looked at; ``SaltInvocationError`` without any CVE, or for
    a ``timeout`` that cannot be.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft_security.cves CVE-2016-5195 CVE-2017-1000364
    """
    if not cves:
        raise SaltInvocationError("cves: give at least one, such as CVE-2016-5195")
    packages = zypper.Packages(timeout)
    numbers = {str(cve): str(cve).strip().upper() for cve in cves}
    wanted = {number for number in numbers.values() if zypper.CVE.fullmatch(number)}
    told, unread = _told(packages, wanted) if wanted else ({}, {})
    rest = "unread: " + "; ".join(_sentences(unread)) if unread else "unknown: nobody names it"
    return {
        cve: told.get(number, rest) if number in wanted else "unknown: not a CVE number"
        for cve, number in numbers.items()
    }


def _package(status):
    """The name of the running kernel's live-patch package; None for a kernel that has none."""
    try:
        return __salt__["kgraft_pkg.name"](status["kernelrelease"]) if status["abi"] else None
    except CommandExecutionError:
        return None


def _told(packages, wanted, settled=False):
    """
    Return ``{CVE: answer}`` of those that somebody names, and ``{who: why}`` of what could not be read; if ``settled``,
    of those that are fixed.
    """
    status = __salt__["kgraft.status"]()
    active, package = _active(status), _package(status)
    loaded = _loaded(packages, package) if active and package else ({}, {})
    told, unread = {}, {}

    def ask(who, witness, *arguments):
        left = wanted - set(told)
        if not left or (unread and time.monotonic() >= packages.until):
            return
        try:
            found, missed = witness(packages, *arguments, left)
        except CommandExecutionError as err:
            found, missed = {}, {who: str(err)}
        unread.update(missed)
        told.update((cve, found[cve]) for cve in left & set(found))

    def ask_patches(state, verdict):
        # of several that name a CVE, the oldest fixed it
        for module, patch in active.items():
            if patch["state"] == state:
                ask(module, _by_patch, package, module, patch["version"], loaded, verdict.format(module))

    ask_patches("applied", "fixed by {}")
    ask("the kernel's changelog", _by_kernel, status["kernelrelease"])
    if settled:
        return told, unread
    ask_patches("applying", "pending: settling {}")
    ask("the installed package", _by_package, package, active)
    ask("the updates", _by_updates, package, active)
    return told, unread


def _by_patch(packages, package, module, version, loaded, verdict, _):
    told, unread = loaded[0].get(module), {}
    if not told:
        if not package or not version:
            raise CommandExecutionError("nothing says what it fixes")
        told, unread = _fixes(packages, package, version, loaded)
    return dict.fromkeys(told["cves"], verdict), unread


def _by_kernel(packages, kernelrelease, _):
    """Of all arches alike, a kernel package's files have System.map; its other files differ by arch and release."""
    issues = _changelog(packages, "-f", f"/boot/System.map-{kernelrelease}")
    return dict.fromkeys(issues["cves"], "fixed by kernel"), {}


def _by_package(packages, package, active, _):
    here = packages.installed(package) if package else None
    if not here or here in [patch["version"] for patch in active.values()]:
        return {}, {}
    issues = _changelog(packages, f"{package}-{here}")
    return dict.fromkeys(issues["cves"], f"pending: installed, not loaded {package} {here}"), {}


def _by_updates(packages, package, active, left):
    updates, unread = packages.updates()
    updates = [update for update in updates if left & set(update.cves)]
    brought = packages.brought(*sorted({update.name for update in updates})) if updates else {}
    here = [patch["version"] for patch in active.values()] + [packages.installed(package) if package else None]
    ours, others = {}, {}
    for update in updates:
        bringing = brought.get(update.name, {})
        version = bringing.get(package)
        names = [name for name in sorted(bringing) if not zypper.LIVE_PATCH.fullmatch(name)]
        for cve in left & set(update.cves):
            if version and not _is_initial(version):
                ours.setdefault(cve, []).append(version)
            elif names or not bringing:
                told = "{} ({})".format(update.name, _few(names, 5) or "nothing")
                others.setdefault(cve, {}).setdefault(update.status == "needed", set()).add(told)
    answers = {}
    for cve in left:
        newer = [version for version in ours.get(cve, []) if zypper.order(version) > max(map(zypper.order, here))]
        if newer:
            answers[cve] = f"open: {package} {min(newer, key=zypper.order)}"
        elif cve in others:
            answers[cve] = "elsewhere: " + _few(sorted(others[cve].get(True) or others[cve][False]), 3)
    return answers, unread


def _few(words, most):
    more = [f"{len(words) - most} more"] if len(words) > most else []
    return ", ".join(words[:most] + more)


def supported_until(kernelrelease=None):
    """
    Return the day until which a kernel gets new live patches, about a year after it came out.

    The dates come with the package ``lifecycle-data-sle-live-patching`` (12) or
    ``lifecycle-data-sle-module-live-patching`` (15), and are read as ``zypper lifecycle`` reads them: from the files
    ``<product>.lifecycle`` in ``/var/lib/lifecycle/data``, ``/usr/lib/lifecycle/data`` and
    ``/usr/share/lifecycle/data``, of products that are not installed, too. Of a product's lines that are about this
    package, the last one counts; of several products, the latest date. A line may be about some versions only: they are
    compared with the installed one.

    kernelrelease
        What ``uname -r`` says. Default: the running kernel's

    Returns the date as ``'2026-12-31'``; None if the data are not installed or name no date for this kernel.

    Raises ``CommandExecutionError`` if a file cannot be read or parsed, naming it and the line, or if rpm cannot tell
    which version is installed.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft_security.supported_until
    """
    return lifecycle.end(__salt__["kgraft_pkg.name"](kernelrelease), zypper.Packages(_LIFECYCLE_SECONDS))


def reboot(must=None, timeout=300):
    """
    Say whether this machine has to be rebooted, now or at all, and why. Nothing is changed, and nothing of this project
    ever reboots a machine.

    must
        The CVEs that matter, as a list or as text with commas between. Default: those that an update of severity
        *important* or *critical* names. A live patch comes for CVSS 7 and above only, so of all CVEs some are always
        open

    timeout
        Seconds that all questions to zypper, rpm and the boot loader's tool may take together. Default: ``300``

    Returns a dict:

    ``verdict``
        ``needed``
            at least one of these is certain, whatever else cannot be told:

            * something else than a kernel, which was installed since the boot, asks for a reboot: by
              ``zypper needs-rebooting`` or the file ``/run/reboot-needed``, by zypper's rules for it
              (``installhint(reboot-needed)``, ``/etc/zypp/needreboot``), or by an applied update that is flagged so. An
              update that brings a kernel counts as the kernel
            * the next boot brings a kernel that fixes a CVE that matters, and neither the running kernel nor its
              settled live patches fix it (``uncovered``)
            * live patches for the running kernel have ended (``until``): if the next boot brings it again, it takes a
              newer kernel, too
            * a live patch was reverted and no other one replaced it, or the kernel is marked as unsupported and no
              loaded module accounts for that: SUSE's kernels do so when a live patch is reverted
            * a transition was forced, by the kernel's log of this boot, as far back as that reaches; with
              ``kgraft.root`` it is not looked at, for it is that of ``/``
        ``unknown``
            none of these, and something could not be told: which kernel comes (see below), a changelog, an update, how
            severe a CVE is, what a loaded patch fixes, or zypper is at work
        ``can wait``
            the next boot brings another kernel, and all that matters of what it fixes is fixed; or only a kernel asks
            for a reboot that would not bring it
        ``not needed``
            the next boot brings the running kernel again, and nothing asks for it
    ``until``
        the end of live patches for the running kernel, as ``kgraft_security.supported_until`` says it; None where
        nothing names it
    ``reasons``
        sentences: what was decisive, then what could not be told
    ``next_kernel``
        the release of the kernel that the next boot brings; None where that cannot be told
    ``uncovered``, ``below``
        the CVEs that matter, and how many others there are, which that kernel fixes and neither the running one nor its
        settled live patches; None where that cannot be told. What a kernel fixes is what its package's changelog names

    Which kernel comes is told of GRUB 2 alone (``LOADER_TYPE`` in ``/etc/sysconfig/bootloader``), where its default is
    the first entry of ``/boot/grub2/grub.cfg``: by number, title or id, written there or saved in ``grubenv``. It is
    not told if there is an entry for one boot (GRUB's, the firmware's, a kernel loaded for kexec), where the next boot
    takes another subvolume of Btrfs (a rollback of snapper's), or on a read-only root.

    Raises ``CommandExecutionError`` if the kernel cannot be looked at; ``SaltInvocationError`` for a ``must`` that is
    empty or has something else than CVE numbers, or for a ``timeout`` that cannot be.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft_security.reboot
        salt '*' kgraft_security.reboot must='[CVE-2016-5195]' timeout=60
    """
    packages, must = zypper.Packages(timeout), must if must is None else _numbers(must)
    status = __salt__["kgraft.status"]()
    running, package, needed = status["kernelrelease"], _package(status), []
    doubts = [f"{who} is at work on the packages" for who in [zypper.zypp_lock()] if who]

    def ask(what, otherwise, question, *arguments):
        try:
            return question(*arguments) if not doubts or time.monotonic() < packages.until else otherwise
        except (CommandExecutionError, OSError, ValueError) as err:
            doubts.append(f"{what} cannot be told: {err}")
            return otherwise

    names, kernels, unread = ask("What asks for a reboot", ([], False, {}), boot.asking, packages, ask)
    needed += [f"Installed since the boot, and asking for another: {_few(names, 5)}"] if names else []
    doubts += _sentences(unread)
    needed += ask("What was reverted", [], boot.reverted, __salt__["kgraft.patches"]() if status["abi"] else {})
    needed += ask("Whether the kernel is marked as unsupported", [], boot.unsupported)
    needed += ask("Whether a transition was forced", [], _forced, packages) if status["abi"] else []
    coming = ask("Which kernel the next boot brings", None, boot.next_kernel, packages)
    uncovered, below = ([], 0) if coming == running else (None, None)
    if coming not in (None, running):
        uncovered, below = ask("What that one alone fixes", (None, None), _uncovered, packages, coming, must, doubts)
    if uncovered:
        fixes = f"The next boot brings {coming}, which fixes {_few(uncovered, 5)}"
        needed.append(f"{fixes}: neither {running} nor a settled live patch does")
    until = package and ask(f"Until when {running} gets live patches", None, lifecycle.end, package, packages)
    if until and until < datetime.date.today().isoformat():
        needed.append(f"Live patches for {running} ended on {until}")
    good = "can wait", f"The next boot brings {coming}; of what it fixes, all that matters is fixed"
    if coming == running:
        asks = "only a kernel asks" if kernels else "nothing asks"
        good = "can wait" if kernels else "not needed", f"The next boot brings {running} again, and {asks} for it"
    verdict = "needed" if needed else "unknown" if doubts else good[0]
    reasons = [why.rstrip(".") + "." for why in dict.fromkeys(needed + doubts or [good[1]])]
    told = {"verdict": verdict, "until": until, "reasons": reasons, "next_kernel": coming}
    return dict(told, uncovered=uncovered, below=below)


def dates(timeout=300):
    """
    Say when each applied live patch was released, installed, and settled, for who has to show how long that took.

    timeout
        Seconds that all questions to zypper, rpm and dmesg may take together. Default: ``300``

    Returns ``{'patches': {module: {'version': '2-2.1', 'released': …, 'installed': …, 'settled': …}}, 'unread': []}``
    with times such as ``'2026-11-23T02:10:00Z'``, None where that is not known:

    ``released``
        when SUSE released the update that brings this version, by the repositories' update metadata
    ``installed``
        when rpm installed this version, if it is the installed one
    ``settled``
        when the last task went over, by the kernel's log of this boot, while that reaches so far back. The kernel
        counts seconds since the boot there, so the time may be off by some minutes after months

    ``unread`` names what could not be read. Raises ``CommandExecutionError`` if the kernel cannot be looked at;
    ``SaltInvocationError`` for a ``timeout`` that cannot be.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft_security.dates
    """
    packages, status, unread = zypper.Packages(timeout), __salt__["kgraft.status"](), {}
    package, active = _package(status), _active(status)

    def ask(who, otherwise, question, *arguments):
        try:
            told, missed = question(*arguments)
        except (CommandExecutionError, OSError, ValueError) as err:
            told, missed = otherwise, {who: str(err)}
        unread.update(missed)
        return told

    told, brought, updates, here = {}, {}, [], []
    if package and active:
        brought = ask("the updates", {}, _bringing, packages, package)
        updates = ask("the updates", [], packages.updates)
        here = ask("rpm", [], _installed_at, packages, package)
    log = ask("the kernel's log", [], _transitions, packages) if active else []
    for module, patch in active.items():
        version = patch["version"] if patch["state"] == "applied" else None
        names = {name for name in brought if version and brought[name] == version}
        released = min((update.issued for update in updates if update.name in names and update.issued), default=None)
        installed = max((when for edition, when in here if edition == version), default=None)
        settled = max((when for name, when in log if version and name == module), default=None)
        when = {"released": released, "installed": installed, "settled": settled}
        told[module] = dict(
            {word: seconds and _stamp(seconds) for word, seconds in when.items()}, version=patch["version"]
        )
    return {"patches": told, "unread": _sentences(unread)}


def _stamp(seconds):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _installed_at(packages, package):
    form = "%{VERSION}-%{RELEASE} %{INSTALLTIME}\n"
    lines = packages.query(f"when {package} was installed", form, package)
    return [(version, int(when)) for version, when in map(str.split, lines)], {}


def _kernel_log(packages):
    command = packages.run("dmesg")
    if command["retcode"]:
        raise CommandExecutionError(zypper.reason(command))
    return command["stdout"]


def _forced(packages):
    """The log is that of /."""
    forced = not zypper.root() and _FORCED.search(_kernel_log(packages))
    return ["A transition was forced, as the kernel's log says"] * bool(forced)


def _transitions(packages):
    """The patches of which a transition to them ended, each with the time, by the kernel's log of this boot."""
    if zypper.root():
        return [], {"the kernel's log": "it is that of /, not of kgraft.root"}
    log = _kernel_log(packages)
    with open("/proc/stat", encoding="ascii") as stat:
        boot_time = int(re.search(r"^btime (\d+)$", stat.read(), re.MULTILINE).group(1))
    found, applying = [], None
    for seconds, applied, verb, begun, ended in _LOG.findall(log):
        applying = begun if verb == "applying" else None if verb else applying
        settled = applied or (applying if ended else None)
        found += [(settled.replace("-", "_"), boot_time + int(seconds))] if settled else []
        applying = None if ended else applying
    return found, {}


def _numbers(must):
    words = must.split(",") if isinstance(must, str) else must if isinstance(must, list) else [must]
    odd = [word for word in words if not zypper.CVE.fullmatch(str(word).strip())]
    if odd or not words:
        raise SaltInvocationError("must: no CVE number is {}".format(", ".join(map(repr, odd)) or "given"))
    return {word.strip().upper() for word in words}


def _uncovered(packages, kernelrelease, must, doubts):
    """
    Return what a kernel fixes and neither the running one nor a settled live patch: the CVEs that matter, and how many
    others; None where that is in doubt.
    """
    fixed = set(_changelog(packages, "-f", f"/boot/System.map-{kernelrelease}")["cves"])
    told, unread = _told(packages, fixed, settled=True)
    left = fixed - set(told)
    if left and unread:
        raise CommandExecutionError("; ".join(_sentences(unread)))
    if must is not None or not left:
        return sorted(left & (must or set())), len(left - (must or set()))
    updates, unread = packages.updates()
    severe = {cve for update in updates if update.severity in ("critical", "important") for cve in update.cves}
    mild = {cve for update in updates if update.severity in ("moderate", "low") for cve in update.cves}
    unrated = left - severe if unread else left - severe - mild
    if unrated:
        doubts += _sentences(unread) + [f"No update says for certain how severe {_few(sorted(unrated), 5)} is"]
    return sorted(left & severe) or (None if unrated else []), None if unrated else len(left - severe)


def _active(status):
    """The active patches, the oldest first as the kernel module lists them; none where there is no live patching."""
    patches = __salt__["kgraft.patches"]() if status["abi"] else {}
    return {module: patch for module, patch in patches.items() if patch["state"] in ("applying", "applied")}


def _loaded(packages, package):
    """
    What SUSE's own tools say about the loaded patches, by module: ``{module: {rpm, cves, bugs, source}}``; and ``{tool:
    why}`` of those that did not answer. They know of no ``kgraft.root``: what they say of another kernel's patches is
    not for us.

    For each one a name, then indented ``key: value`` lines; a value may be ``(none …)``, ``#`` lines may occur,
    inactive patches have no more than ``active: 0``, and old tools know no ``-v`` here.
    """
    unread = {}
    for tool in filter(salt.utils.path.which, ("klp", "kgr")):
        try:
            command = packages.run(salt.utils.path.which(tool), "-v", "patches")
            failed = zypper.reason(command) if command["retcode"] else None
        except CommandExecutionError as err:
            failed = str(err)
        if failed:
            unread[tool] = failed
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
            return ours, {}
    return {}, unread


def _issues(text):
    cves = {cve.upper() for cve in zypper.CVE.findall(text)}
    return {"cves": sorted(cves), "bugs": sorted(set(_BUG.findall(text)))}
