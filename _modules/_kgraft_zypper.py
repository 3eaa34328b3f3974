"""
rpm and zypper: how they are asked, what their answers mean; repositories, how old their lists are, and locks.
"""

import collections
import configparser
import fcntl
import fnmatch
import functools
import glob
import os
import re
import time
import typing
from xml.etree import ElementTree

import salt.utils.files
import salt.utils.path
from salt.exceptions import CommandExecutionError, SaltInvocationError

if typing.TYPE_CHECKING:  # handed in
    from salt.modules.zypperpkg import version_cmp

    from . import _kgraft_commands as commands

    def minion_root():
        """Return the minion's option ``kgraft.root``."""


POLL = 0.25

# SUSE's own tests accept these forms of a live patch's name
LIVE_PATCH = re.compile(r"(?:kgraft-|kernel-live)patch-\d+_\d+_\d+-\d+(?:_stage_\d+|(?:_\d+){1,2})?-[a-z][a-z0-9]*")

CVE = re.compile(r"CVE-\d{4}-\d{4,}", re.IGNORECASE | re.ASCII)

# zypper's exit codes that are answers. 6: no repositories; 100 to 103: no failures; 104: nothing found; 106: something
# found, a repository left out
ANSWERS = (0, 6, 100, 101, 102, 103, 104, 106)
LOCKED = 7

# As Salt's own pkg does for questions: no lock is taken, none is waited for
READ_ONLY = {"ZYPP_READONLY_HACK": "1"}

INSTALLED = "(System Packages)"  # zypper's word for what no repository has

Repository = collections.namedtuple("Repository", "alias name priority")
Offer = collections.namedtuple("Offer", "package edition repository")
Update = collections.namedtuple("Update", "name status severity reboot cves bugs issued")


def unsupported(os_family):
    """Return why there is no zypper to ask; None where there is."""
    if os_family != "Suse":
        return f"works with zypper's packages: os_family is {os_family!r}, not 'Suse'"
    for tool in ("zypper", "rpm"):
        if not salt.utils.path.which(tool):
            return f"needs {tool}, which is not on PATH"
    return None


# ----- the root


def under(path):
    return os.path.join(minion_root() or "/", path)


def root():
    """Return it as an argument of ``pkg.*``."""
    path = os.path.normpath(under(""))
    return {} if path == "/" else {"root": path}


def _root_option():
    return ["--root", root()["root"]] if root() else []


def order(version):
    """Return what sorts versions as rpm does; None comes first."""
    return functools.cmp_to_key(_compare)(version)


def _compare(one, other):
    return version_cmp(one, other) if one and other else bool(one) - bool(other)


# ----- questions


class Packages:
    """
    The packages of this machine: all questions together have ``timeout`` seconds, and what was told is kept. With
    ``refresh`` the repositories are read again before the first question to them.
    """

    def __init__(self, timeout, refresh=False):
        self.until = commands.deadline(timeout)
        if not isinstance(refresh, bool):
            raise SaltInvocationError(f"refresh is {refresh!r}: it must be True or False")
        self._refresh_first = refresh
        self._unrefreshed = {}
        self._kept = {}

    def _once(self, key, ask):
        if key not in self._kept:
            self._kept[key] = ask()
        return self._kept[key]

    @property
    def repositories_were_asked(self):
        return "live patches" in self._kept

    def left(self):
        """The seconds that are left, at least one."""
        return max(1.0, self.until - time.monotonic())

    def forget(self):
        """What was told is no longer so."""
        self._kept.clear()

    def run(self, *command, env=None):
        return commands.run(list(command), self.until, env)

    def rpm(self, *arguments):
        return self.run("rpm", *_root_option(), *arguments)

    def query(self, question, queryformat, *arguments):
        """
        Ask rpm; return the lines of its answer, none for "there is none". pkg.list_pkgs and pkg.version say that of
        every failure, and with a broken database rpm itself does, after an error.
        """
        command = self.rpm("-q", "--queryformat", queryformat, *arguments)
        none = re.search(r"is not installed$|^no package provides", command["stdout"], re.MULTILINE)
        if re.search(r"^error:", command["stderr"], re.MULTILINE) or (command["retcode"] and not none):
            raise CommandExecutionError(f"rpm cannot tell {question}: {reason(command)}")
        return [] if none else command["stdout"].splitlines()

    def installed(self, package):
        """Return its version and release; the newest, if there are several, None if there is none."""

        def ask():
            found = self.query(f"whether {package} is installed", "%{VERSION}-%{RELEASE}\n", package)
            return max(found, key=order, default=None)

        return self._once(("installed", package), ask)

    def ask(self, *arguments):
        """Ask zypper; return its XML, and ``{repository: why}`` of those that it could not read, by their names."""
        answer = self._zypper("--no-refresh", *arguments, env=READ_ONLY)
        tree, errors, unread = _parsed(answer, arguments[0])
        if answer["retcode"] not in ANSWERS:
            raise CommandExecutionError("zypper {}: {}".format(arguments[0], "; ".join(errors) or reason(answer)))
        if answer["retcode"] == 106 and not unread:
            unread = {"a repository": " ".join(errors) or "zypper left it out"}
        return tree, unread

    def _zypper(self, *arguments, env=None):
        return self.run("zypper", "--non-interactive", "--xmlout", *_root_option(), *arguments, env=env)

    def refresh(self):
        """Read again what has changed in the repositories; return ``{repository: why}`` of those that could not be."""
        self.forget()
        while True:
            self.await_lock()
            answer = self._zypper("refresh")
            if answer["retcode"] != LOCKED or time.monotonic() >= self.until:
                break
            time.sleep(POLL)
        _, errors, unread = _parsed(answer, "refresh")
        if answer["retcode"] not in (0, 6) and not unread:
            raise CommandExecutionError("zypper refresh: {}".format("; ".join(errors) or reason(answer)))
        return unread

    # ----- repositories and what they offer

    def repositories(self):
        """Return the enabled ones, ``{alias: Repository}``."""
        return self._once("repositories", self._repositories)

    def _repositories(self):
        found = {}
        for path in sorted(glob.glob(os.path.join(glob.escape(under("etc/zypp/repos.d")), "*.repo"))):
            parser = configparser.ConfigParser(interpolation=None, strict=False)
            try:
                with salt.utils.files.fopen(path, encoding="utf-8", errors="replace") as file:
                    parser.read_file(file)
                for alias in parser.sections():
                    if parser[alias].getboolean("enabled", True):
                        name = parser[alias].get("name") or alias
                        found[alias] = Repository(alias, name, parser[alias].getint("priority", 99))
            except (OSError, ValueError, configparser.Error) as err:
                raise CommandExecutionError(f"Cannot read the repository file {path}: {brief(str(err))}") from err
        if any("$" in repository.name for repository in found.values()):
            # who knows the variables puts them in
            names = {node.get("alias"): node.get("name") for node in self.ask("repos")[0].iter("repo")}
            found = {
                alias: repository._replace(name=names.get(alias, repository.name))
                for alias, repository in found.items()
            }
        return found

    def live_patches(self):
        """Return the live patches for any kernel that the enabled repositories offer, as a list of ``Offer``, and what
        could not be read, as in :py:meth:`ask`."""
        return self._once("live patches", self._live_patches)

    def _live_patches(self):
        if self._refresh_first:
            self._unrefreshed, self._refresh_first = self.refresh(), False
        return self._search("kgraft-patch-*", "kernel-livepatch-*")

    def unread(self):
        """Return ``{repository: why}`` of those that could not be read, or not again; none where none was asked."""
        return {**self.live_patches()[1], **self._unrefreshed} if self.repositories_were_asked else {}

    def _search(self, *names):
        aliases = {}
        for repository in self.repositories().values():
            aliases.setdefault(repository.name, []).append(repository)
        answer, unread = self.ask("search", "-s", "-t", "package", *names)
        found = []
        for name in _column(answer, "repository"):
            called = aliases.get(name) or [Repository(name, name, 99)] * (name != INSTALLED)
            for repository in called:
                # zypper names a repository by its name, which several may have
                told = answer if len(called) == 1 else self.ask("search", "-s", "-r", repository.alias, *names)[0]
                found += [
                    Offer(node.get("name"), node.get("edition"), repository)
                    for node in told.iter("solvable")
                    if node.get("repository") == name and node.get("kind") == "package"
                ]
        return [offer for offer in found if LIVE_PATCH.fullmatch(offer.package)], unread

    def offered(self, package):
        """Return the versions of a live patch that there are, each once, the newest first as rpm compares them."""
        found = {offer.edition for offer in self.live_patches()[0] if offer.package == package}
        return sorted(found, key=order, reverse=True)

    def preferred(self, package):
        """Return the version that zypper itself would take: the newest of the repositories of the highest priority."""
        offers = [offer for offer in self.live_patches()[0] if offer.package == package]
        first = min((offer.repository.priority for offer in offers), default=None)
        return max((offer.edition for offer in offers if offer.repository.priority == first), key=order, default=None)

    def lists(self):
        """
        Return ``{alias: when}`` for the repositories whose lists decide which live patch is the newest: those that
        offer live patches, and those of which nothing was ever read. The time is that of the last refresh that found
        the list new or unchanged, None where it was never read.
        """
        offers, unread = self.live_patches()
        aliases = {offer.repository.alias for offer in offers}
        aliases |= {one.alias for one in self.repositories().values() if one.name in unread or one.alias in unread}
        place = _metadata()
        return {alias: _read_at(os.path.join(place, alias.replace("/", "_"))) for alias in sorted(aliases)}

    # ----- updates, which SUSE also calls patches

    def updates(self):
        """Return all that the repositories have and nobody took back, needed here or not, as a list of ``Update``, and
        what could not be read, as in :py:meth:`ask`."""
        return self._once("updates", self._updates)

    def _updates(self):
        answer, unread = self.ask("list-patches", "--all")
        found = []
        for node in answer.iter("update"):
            issues = [(issue.get("type"), issue.get("id", "")) for issue in node.iter("issue")]
            cves = [number.upper() for kind, number in issues if kind == "cve"]
            bugs = ["bsc#" + number for kind, number in issues if kind == "bugzilla"]
            if node.get("status") != "retracted":
                about = map(node.get, ("name", "status", "severity"))
                issued = node.find("issue-date")
                issued = None if issued is None else int(issued.get("time_t", 0)) or None
                found.append(Update(*about, node.get("restart") == "true", cves, bugs, issued))
        return found, unread

    def brought(self, *updates):
        """Return ``{update: {package: version}}``: an update conflicts with all that is older than what it brings."""
        found, conflicts = {}, False
        for line in "".join(self.ask("info", "-t", "patch", *updates)[0].itertext()).splitlines():
            if re.match(r"\S", line):
                conflicts = line.startswith("Conflicts")
                if re.match(r"Name\s*:", line):
                    bringing = found.setdefault(line.split(":", 1)[1].strip(), {})
            # in other lines, such as srcpackage:…, there is a colon
            elif conflicts and re.fullmatch(r"\s+[^\s:]+ < \S+", line):
                package, _, version = line.split()
                bringing[re.sub(r"\.[a-z]\w*$", "", package)] = version
        return found

    def needs_rebooting(self):
        """Whether zypper says that a reboot is needed. Before 1.14.15 it knows no such question (2), and no flag."""
        answer = self._zypper("needs-rebooting", env=READ_ONLY)
        if answer["retcode"] not in (0, 2, 102):
            raise CommandExecutionError(f"zypper needs-rebooting: {reason(answer)}")
        return answer["retcode"] == 102

    # ----- what stands in the way

    def obstacle(self, package, version):
        """Return why zypper would not install this version, None if it would."""
        answer = self._zypper(
            "--no-refresh", "install", "--dry-run", "--oldpackage", "--auto-agree-with-licenses", "--name",
            f"{package}={version}", env=READ_ONLY,
        )  # fmt: skip
        if answer["retcode"] in (0, 102, 103, 106, 107):
            return None
        tree, errors, _ = _parsed(answer, "install")
        problems = re.findall(r"Problem: (.*)", "\n".join(node.text or "" for node in tree.iter("description")))
        locks = self._locks(package)
        if locks and "remove lock" in answer["stdout"]:
            rules = " and ".join(f"rule {number} `{name}`" for number, name in locks)
            ways = ["zypper rl {}".format(" ".join(number for number, _ in locks))]
            ways += [f"zypper al {_narrower(name)}" for _, name in locks if _narrower(name)]
            return "{} is locked by {}: {}".format(package, rules, ", then ".join(ways))
        why = brief("; ".join(problems or errors)) or reason(answer)
        return f"zypper cannot install {package} {version}: {why}"

    def _locks(self, package):
        answer, _ = self.ask("locks")
        found = [(node.get("number"), node.findtext("name") or "") for node in answer.iter("lock")]
        return [(number, name) for number, name in found if fnmatch.fnmatchcase(package, name)]

    def await_lock(self, rpm=False):
        """
        Wait for other package managers to end. ``pkg`` would do so without a limit.

        libzypp's lock is a file with a process id, and free when that process is gone or a zombie; rpm's is a lock on a
        file, which lies beside its database.
        """
        rpm_lock = under(self.rpm("--eval", "%{?_rpmlock_path}")["stdout"].strip().lstrip("/")) if rpm else None
        while True:
            holder = zypp_lock() or (_rpm_lock(rpm_lock) if rpm else None)
            if holder is None:
                return
            if time.monotonic() >= self.until:
                raise CommandExecutionError(f"The packages are locked by {holder}: gave up waiting")
            time.sleep(POLL)


def _column(answer, name):
    return sorted({node.get(name) or "" for node in answer.iter("solvable")})


def _parsed(answer, what):
    """zypper's XML, the errors that it told, and ``{repository: why}`` of those that it left out."""
    try:
        tree = ElementTree.fromstring(answer["stdout"])
    except ElementTree.ParseError as err:
        raise CommandExecutionError(f"zypper {what}: {reason(answer)}") from err
    errors, unread, before = [], {}, []
    for node in tree.iter("message"):
        text = brief(node.text or "")
        skipped = re.match(r"Skipping repository '(.*)' because of the above error", text)
        if skipped:
            unread[skipped.group(1)] = " ".join(before) or "zypper left it out"
            before = []
        elif node.get("type") in ("error", "warning"):
            before.append(text.replace(" Please see the above error message for a hint.", ""))
        if node.get("type") == "error":
            errors.append(text)
    return tree, errors, unread


def _narrower(name):
    """Instead of a lock with a ``*`` in it: the one that keeps the kernel and lets its live patches come."""
    return "kernel-default" if name.endswith("*") and fnmatch.fnmatchcase("kernel-default", name) else None


def _metadata():
    """Where libzypp keeps what it has read of the repositories."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        with salt.utils.files.fopen(under("etc/zypp/zypp.conf"), encoding="utf-8", errors="replace") as file:
            parser.read_file(file)
    except (OSError, configparser.Error):
        pass  # then it is where it is by default
    cache = parser.get("main", "cachedir", fallback="/var/cache/zypp")
    return under(parser.get("main", "metadatadir", fallback=os.path.join(cache, "raw")).lstrip("/"))


def _read_at(place):
    """A refresh that finds nothing new touches the index (libzypp, RepoManager)."""
    times = []
    for index in ("repodata/repomd.xml", "content", "cookie"):
        try:
            times.append(os.stat(os.path.join(place, index)).st_mtime)
        except OSError:
            continue
    return max(times, default=None)


# ----- what failed, without secrets


def reason(command):
    return brief(command["stderr"] or command["stdout"]) or "exit code {}".format(command["retcode"])


def brief(text):
    return " ".join(redact(text).split())[:500]


def redact(text):
    """A repository's address can hold a password or, from SUSE Manager, a token."""
    return re.sub(r"(://[^\s?'\"\]]*)\?[^\s'\"\]]+", r"\1?…", re.sub(r"(?<=://)[^/@\s]+@", "", text))


def failed_scripts():
    """What zypper's history says of scripts that failed, the newest last: pkg.install hides zypper's exit code 107."""
    try:
        with salt.utils.files.fopen(under("var/log/zypp/history"), errors="replace") as history:
            blocks = re.findall(r"^# Additional rpm output:\n((?:# .*\n)*)", history.read(), re.MULTILINE)
    except OSError:
        return []
    failed = [block.splitlines() for block in blocks if "scriptlet failed" in block]
    return ["; ".join(line[2:].strip() for line in lines[-3:]) for lines in failed]


# ----- locks


def zypp_lock():
    for path in ("run/zypp.pid", "var/run/zypp.pid"):
        try:
            with salt.utils.files.fopen(os.path.join(os.environ.get("ZYPP_LOCKFILE_ROOT") or under(""), path)) as lock:
                pid = int(lock.readline())
            with salt.utils.files.fopen(f"/proc/{pid}/cmdline", errors="replace") as cmdline:
                program = cmdline.read().split("\0")[0]
        except (OSError, ValueError):
            continue
        if program:
            return f"{os.path.basename(program)} ({pid})"
    return None


def _rpm_lock(path):
    try:
        with salt.utils.files.fopen(path, "rb") as lock:
            # Shared, so that only one who writes is in the way, and no one who reads
            fcntl.lockf(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return "rpm"
    except OSError:
        # No lock file, or a directory: nobody has ever locked
        pass
    return None
