"""
rpm and zypper: how they are asked, what their answers and exit codes mean, their versions, and who holds their locks.
"""

import fcntl
import functools
import os
import re
import time
import typing
from xml.etree import ElementTree

import salt.utils.files
import salt.utils.path
from salt.exceptions import CommandExecutionError, SaltInvocationError

if typing.TYPE_CHECKING:  # handed in
    from salt.modules.cmdmod import run_all
    from salt.modules.zypperpkg import version_cmp

    def minion_root():
        """Return the minion's option ``kgraft.root``."""


POLL = 0.25


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


# ----- versions


def checked(version):
    """Return a version as text. YAML makes a number of 2 and of 2.1, and 2.10 has then become 2.1."""
    if version is None:
        return None
    if isinstance(version, int) and not isinstance(version, bool):
        version = str(version)
    if not isinstance(version, str) or not re.fullmatch(r"\d+(-[\w.]+)?", version):
        raise SaltInvocationError(f"version is {version!r}: quote it, as '2' or '2-2.1'")
    return version


def matches(version, wanted):
    return wanted in (None, version, version.split("-")[0])


def order(version):
    """Return what sorts versions as rpm does."""
    return functools.cmp_to_key(version_cmp)(version)


# ----- questions


def run(command, env=None):
    return run_all(command, env=env, python_shell=False, ignore_retcode=True, output_loglevel="trace")


def rpm(*arguments):
    return run(["rpm"] + _root_option() + list(arguments))


def query(question, queryformat, *arguments):
    """
    Ask rpm; return the lines of its answer, none for "there is none". pkg.list_pkgs and pkg.version say that of every
    failure, and with a broken database rpm itself does, after an error.
    """
    command = rpm("-q", "--queryformat", queryformat, *arguments)
    none = re.search(r"is not installed$|^no package provides", command["stdout"], re.MULTILINE)
    if re.search(r"^error:", command["stderr"], re.MULTILINE) or (command["retcode"] and not none):
        raise CommandExecutionError(f"rpm cannot tell {question}: {reason(command)}")
    return [] if none else command["stdout"].splitlines()


def installed(package):
    found = query(f"whether {package} is installed", "%{VERSION}-%{RELEASE}\n", package)
    return max(found, key=order, default=None)


def ask(*arguments):
    """Ask zypper; return its XML, and as warnings the repositories that it left out, with the reason."""
    command = ["zypper", "--non-interactive", "--no-refresh", "--xmlout"] + _root_option()
    # As Salt's own pkg does for questions: no lock is taken, none is waited for
    answer = run(command + list(arguments), env={"ZYPP_READONLY_HACK": "1"})
    try:
        tree = ElementTree.fromstring(answer["stdout"])
    except ElementTree.ParseError as err:
        raise CommandExecutionError(f"zypper {arguments[0]}: {reason(answer)}") from err
    messages = [(node.get("type"), brief(node.text or "")) for node in tree.iter("message")]
    errors = [text for kind, text in messages if kind == "error"]
    # 6: no repositories; 100 to 103: no failures; 104: nothing found; 106: something found, a repository left out
    if answer["retcode"] not in (0, 6, 100, 101, 102, 103, 104, 106):
        raise CommandExecutionError("zypper {}: {}".format(arguments[0], "; ".join(errors) or reason(answer)))
    left_out = [text for kind, text in messages if kind == "warning" and text.startswith("Skipping repository")]
    unread = left_out or answer["retcode"] == 106
    return tree, [" ".join(left_out + errors[:1])] if unread else []


def search(*criteria, kind="package"):
    """Return ``[(name, version, repository)]`` of what the repositories have, and warnings about those not read."""
    answer, warnings = ask("search", *(("-s",) if kind == "package" else ()) + ("-t", kind) + criteria)
    return [
        (node.get("name"), node.get("edition"), node.get("repository"))
        for node in answer.iter("solvable")
        if node.get("kind") == kind and node.get("repository") != "(System Packages)"
    ], warnings


def available(package):
    # pkg.list_repo_pkgs waits for locks without end, and raises alike for "there is none" and for every failure
    found, warnings = search("--match-exact", package)
    return sorted({version for _, version, _ in found}, key=order, reverse=True), warnings


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


def await_lock(deadline):
    """
    Wait for other package managers to end. ``pkg`` would do so without a limit.

    libzypp's lock is a file with a process id, and free when that process is gone or a zombie; rpm's is a lock on a
    file, which lies beside its database.
    """
    rpm_lock = under(run(["rpm", "--eval", "%{?_rpmlock_path}"])["stdout"].strip().lstrip("/"))
    while True:
        holder = lock_holder(rpm_lock)
        if holder is None:
            return
        if time.monotonic() >= deadline:
            raise CommandExecutionError(f"The packages are locked by {holder}: gave up waiting")
        time.sleep(POLL)


def lock_holder(rpm_lock):
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
