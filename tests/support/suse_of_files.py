"""
A whole SUSE machine without a process: a kernel of files that obeys the lab's rules, and rpm and zypper as they
answered when they were recorded (Debian 12's rpm 4.18 and zypper 1.14.42), with this machine's versions filled in.

``tests/support/machine.py`` is the same with real processes; ``tests/support/scenarios.py`` runs on both.
"""

import datetime
import fnmatch
import os
import re
import subprocess
import time
import types
from xml.sax.saxutils import quoteattr

from salt.exceptions import CommandExecutionError

from lab.files import Kernel, module_name
from lab.rules import Rules
from tests.support.load import load_file
from tests.support.packages import ARCH, KERNEL, KERNEL_15, package_name

OFFERED = {
    KERNEL: ["1-8.5.1", "2-1.1", "2-2.1", "9-2.2", "10-2.1"],
    KERNEL_15: ["1-150400.9.3.1", "9-2.1", "10-150400.2.1"],
}
UNREACHABLE = "Valid metadata not found at specified URL"
STREAM = "<?xml version='1.0'?>\n<stream>\n{}\n</stream>\n"
SOLVABLE = '<solvable status="not-installed" name={} kind="package" edition={} arch={} repository={}/>'
PROBLEM = """<prompt id="1">
<description>Problem: {}
 Solution 1: {}
</description>
<text>Choose from above solutions by number or cancel</text>
</prompt>"""


class OneSleeper:
    """The processes that the lab's rules watch: this one, which crosses when ``switches`` goes up."""

    switches = 0
    frozen = False

    def watched(self):
        return {os.getpid(): 5}

    def threads(self, pid):
        return [pid]

    def look(self, pid, tid):
        return "S", self.switches


class Machine:
    """
    ``Machine(root, abi)``; ``machine.applied(version="2")`` runs the state on it.

    ``started`` are the programs that were started, ``clock`` the only one that time passes on.
    """

    def __init__(self, root, abi="kgraft", release=None, script="loads"):
        self.release = release or {"kgraft": KERNEL, "livepatch": KERNEL_15}[abi]
        self.package = package_name(self.release)
        self.now = 1000.0
        self.kernel = Kernel(root, abi, release=self.release)
        self.sleeper = OneSleeper()
        self.kernel.write("proc/sys/kernel/tainted", "0\n")
        self.rules = Rules(self.kernel, self.sleeper, period=1, clock=lambda: self.now)
        self.script = script
        self.installed = {}
        self.installed_at = None  # seconds since the epoch; None is now
        self.repositories = {}
        self.locks, self.updates, self.kernel_changelog = [], {}, ""
        self.kernels = {}  # {release: changelog} of other kernels
        self.new = {}  # {package: [what it provides]}: installed since the boot
        self.known = []  # the metadata: (update, status, severity, reboot, [CVEs], {package: edition})
        self.issued = {}  # {update: seconds}: when it was released
        self.dmesg = (0, "")
        self.flag = 0  # zypper's exit code on whether a reboot is needed
        self.editenv = (0, "")  # what grub2-editenv answers
        self.subvolume = (0, "")  # what btrfs answers of the next boot's
        self.started, self.changed, self.hangs = [], [], ()
        self.runs_started = []  # what each run of a state started
        self.add_repository("live-patching", {self.package: OFFERED.get(self.release, [])})
        self.salt, self.modules = {}, {}
        self.time = types.SimpleNamespace(
            monotonic=lambda: self.now, sleep=self._sleep, strftime=time.strftime, gmtime=time.gmtime
        )
        options = {"id": "db1", "test": False, "kgraft.root": str(root)}
        grains = {"os_family": "Suse", "osmajorrelease": 12 if abi == "kgraft" else 15}
        for name in ("kgraft", "kgraft_pkg", "kgraft_security"):
            module = load_file(f"_modules/{name}.py", __opts__=options, __grains__=grains, __salt__=self.salt)
            if hasattr(module, "commands"):
                module.commands.run = self._run
            if name == "kgraft":
                module.time = self.time
            self.modules[name] = module
            names = [one for one in vars(module) if callable(vars(module)[one]) and not one.startswith("_")]
            self.salt.update((f"{name}.{one}", getattr(module, one)) for one in names)
        self.salt.update(
            {
                "pkg.version_cmp": lambda one, other: (order(one) > order(other)) - (order(one) < order(other)),
                "pkg.install": self._install,
                "kmod.load": self._insmod,
                "kmod.remove": self._rmmod,
                "event.send": lambda tag, data: None,
            }
        )
        self.options = options

    # -- setting it up

    def add_repository(self, alias, packages, priority=99, age=0, dead=False, read=True, name=None):
        """``packages``: {package: [editions]}; ``age`` in seconds of its list; ``dead``: no refresh reaches it."""
        told = {"name": name or f"{alias} of the tests", "packages": dict(packages), "priority": priority, "dead": dead}
        self.repositories[alias] = told
        text = "[{}]\nname={name}\nenabled=1\npriority={priority}\n".format(alias, **told)
        self.kernel.write(f"etc/zypp/repos.d/{alias}.repo", text)
        told["index"] = f"var/cache/zypp/raw/{alias}/repodata/repomd.xml"
        if read:
            self._read(told, age)

    def _read(self, repository, age=0):
        self.kernel.write(repository["index"], "<repomd/>\n")
        when = datetime.datetime.now().timestamp() - age
        os.utime(self.kernel.root / repository["index"], (when, when))

    def runs(self, *versions):
        """Each was installed and loaded, one after the other."""
        for version in versions:
            self.holds(version)
            self.loads(version)

    def holds(self, version):
        """The package alone."""
        self.installed[self.package] = version

    def loads(self, version):
        """The kernel alone."""
        self.rules.load(self._patch_name(version))
        self.settle()

    def moves(self, version):
        """Its transition is running."""
        self.holds(version)
        self.rules.load(self._patch_name(version))

    def block(self):
        """Somebody blocks, until time passes: here the one sleeper always does."""

    def ages(self, seconds, dead=True):
        """The list of the repository is that old; a ``dead`` one cannot be read again."""
        self._read(self.repositories["live-patching"], seconds)
        self.repositories["live-patching"]["dead"] = dead

    def repository(self, alias, packages, about):
        self.add_repository(alias, packages, **about)

    def offers_nothing(self):
        self.repositories["live-patching"]["packages"].clear()

    def lock(self, name):
        self.locks.append(name)

    def settle(self):
        while self.rules.running:
            self._sleep(1)

    def configure(self, text):
        self.kernel.write("etc/sysconfig/livepatching", text)

    def _patch_name(self, version):
        return ("kgraft-patch-" if self.kernel.abi == "kgraft" else "livepatch-") + version.replace(".", "_")

    # -- what is true

    @property
    def abi(self):
        return self.kernel.abi

    def state(self):
        return self.salt["kgraft.status"]()["state"]

    def edition(self):
        return self.installed.get(self.package)

    def patches(self):
        return {name: told["state"] for name, told in self.salt["kgraft.patches"]().items()}

    def applied(self, test=False, **arguments):
        return self.run("applied", test, **arguments)

    def run(self, state, test=False, **arguments):
        options = dict(self.options, test=test)
        states = load_file("_states/kgraft.py", __salt__=self.salt, __opts__=options)
        states.time = states.arguments.time = self.time
        self.started = []
        self.runs_started.append(self.started)
        return types.SimpleNamespace(**getattr(states, state)("x", **arguments))

    # -- the kernel's side

    def _sleep(self, seconds):
        self.now += max(seconds, 0.01)
        self.sleeper.switches += not self.sleeper.frozen
        self.rules.tick()

    def _insmod(self, module):
        self.changed.append(f"load {module}")
        wanted = module_name(module)
        for edition in [self.installed.get(self.package)]:
            if edition and module_name(self._patch_name(edition)) == wanted:
                try:
                    self.rules.load(self._patch_name(edition))
                except OSError as err:
                    return f"modprobe: ERROR: could not insert '{module}': {os.strerror(err.errno)}"
                return [module]
        return f"modprobe: FATAL: Module {module} not found in directory /lib/modules/{self.release}"

    def _rmmod(self, module):
        self.changed.append(f"unload {module}")
        try:
            self.rules.unload(module)
        except OSError as err:
            return f"modprobe: ERROR: could not remove '{module}': {os.strerror(err.errno)}"
        return [module]

    # -- rpm and zypper

    def _install(self, pkgs, refresh, root=None):
        for package, edition in (next(iter(one.items())) for one in pkgs):
            self.changed.append(f"install {edition}")
            self.started += ["rpm", "zypper", "rpm"]  # as Salt's own pkg.install
            problem = self._problem(package, edition)
            if problem:
                raise CommandExecutionError(f"Zypper command failure: {problem}")
            self.installed[package] = edition
            if self.script == "loads" and self._may_load():
                try:
                    self.rules.load(self._patch_name(edition))
                except OSError:
                    self._history()
            elif self.script == "fails":
                self._history()
        return {}

    def _history(self):
        path = self.kernel.root / "var/log/zypp/history"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as history:
            history.write("# Additional rpm output:\n# insmod: ERROR: File exists\n# warning: %post scriptlet failed\n")

    def _may_load(self):
        """As the package's script finds out: a shell that sources the file."""
        path = self.kernel.root / "etc/sysconfig/livepatching"
        script = f'[ -r {path} ] && . {path}; [ "$LIVEPATCH_KERNEL" != never ]'
        return subprocess.run(["sh", "-c", script], check=False).returncode == 0

    def _problem(self, package, edition):
        if any(fnmatch.fnmatchcase(package, lock) for lock in self.locks):
            return "conflicting requests"
        offered = [told["packages"].get(package, []) for told in self.repositories.values()]
        return None if any(edition in editions for editions in offered) else f"Package '{package}' not found."

    def _run(self, command, until, env=None, stdin=""):
        program, *words = (word for word in command if word not in ("--non-interactive", "--xmlout", "--no-refresh"))
        if "--root" in words:
            del words[words.index("--root") : words.index("--root") + 2]
        question, *words = words or [""]
        self.started.append(f"{program} {question}")
        if question in self.hangs:
            raise CommandExecutionError(f"{program} did not end within 2 s and was ended")
        code, out = getattr(self, re.sub(r"[\W_]+", "_", f"_{program}_{question}"))(*words)
        return {"retcode": code, "stdout": out, "stderr": ""}

    def _rpm_q(self, *words):
        if words[0] == "--changelog":
            package = words[-1]
            if "System.map" in package:
                told = dict(self.kernels, **{self.release: self.kernel_changelog}).get(package.partition("-")[2])
                return (0, told) if told else (1, f"file {package}: not owned")
            return 0, "- Live patch: " + " ".join(self._cves(package.split("-default-")[-1]))
        form, package = words[1], words[-1]
        if "PROVIDENAME" in form:
            rows = {"bash": (7, []), "kernel-default": (7, ["kernel"])}
            rows.update((name, (int(time.time()), provided)) for name, provided in self.new.items())
            return 0, "".join(f"{when} {' '.join([name, name, *more])}\n" for name, (when, more) in rows.items())
        if form.startswith("%{VERSION}-%{RELEASE} %{INSTALLTIME}"):
            edition = self.installed.get(package)
            return (0, f"{edition} {self.installed_at}\n") if edition else (1, f"package {package} is not installed\n")
        if "INSTALLTIME" in form:
            return 0, f"{int(time.time() if self.installed_at is None else self.installed_at)}\n"
        if words[2] == "-a":
            rows = [f"{name} {edition}" for name, edition in self.installed.items() if "patch-" in name]
            return 0, "".join(f"{row}\n" for row in rows)
        edition = self.installed.get(package)
        return (0, edition + "\n") if edition else (1, f"package {package} is not installed\n")

    def _dmesg_(self):
        return self.dmesg

    def _rpm_eval(self, macro):
        return 0, "/var/lib/rpm/.rpm.lock\n"

    def _cves(self, edition):
        return [cve for cve, brought in self.updates.items() if order(brought) <= order(edition)]

    def _unread(self, repository):
        messages = [UNREACHABLE, "Skipping repository '{name}' because of the above error.".format(**repository)]
        return "".join(f'<message type="error">{message}</message>\n' for message in messages)

    def _zypper_refresh(self):
        dead = [told for told in self.repositories.values() if told["dead"]]
        for told in self.repositories.values():
            if not told["dead"]:
                self._read(told)
        return 4 if dead else 0, STREAM.format("".join(map(self._unread, dead)))

    def _zypper_search(self, *words):
        found, unread = [], ""
        if "patch" in words:
            found = [
                f'<solvable name="{name}" kind="patch"/>' for name, *_, brought in self.known if words[-1] in brought
            ]
        for told in self.repositories.values() if "patch" not in words else ():
            if not (self.kernel.root / told["index"]).exists():
                unread += self._unread(told)
                continue
            for package, editions in told["packages"].items():
                if any(fnmatch.fnmatchcase(package, word) for word in words):
                    values = [[package, edition, ARCH, told["name"]] for edition in editions]
                    found += [SOLVABLE.format(*map(quoteattr, row)) for row in values]
        body = unread + "<search-result><solvable-list>" + "\n".join(found) + "</solvable-list></search-result>"
        return (0 if found else 104) if not unread else 106, STREAM.format(body)

    def _zypper_install(self, *words):
        package, edition = words[-1].split("=")
        problem = self._problem(package, edition)
        if problem and "not found" in problem:
            return 104, STREAM.format(f'<message type="error">{problem}</message>')
        if problem:
            return 4, STREAM.format(PROBLEM.format(problem, f"remove lock to allow installation of {package}"))
        return 0, STREAM.format("")

    def _zypper_needs_rebooting(self):
        return self.flag, STREAM.format("")

    def _zypper_list_patches(self, *words):
        rows = ""
        for name, status, severity, boot, cves, _ in self.known:
            rows += f'<update kind="patch" name="{name}" status="{status}" severity="{severity}" restart="{boot}">'
            issued = self.issued.get(name)
            rows += f'<issue-date time_t="{issued}" text="x"/>' if issued else ""
            rows += "".join(f'<issue type="cve" id="{cve}"/>' for cve in cves) + "</update>\n"
        unread = "".join(self._unread(told) for told in self.repositories.values() if told["dead"])
        return 106 if unread else 0, STREAM.format(f"{unread}<update-list>{rows}</update-list>".replace("True", "true"))

    def _zypper_info(self, *words):
        told = ""
        for name, *_, brought in self.known:
            conflicts = "".join(f"    {package}.x86_64 &lt; {edition}\n" for package, edition in brought.items())
            told += f"Name        : {name}\nConflicts   : [2]\n{conflicts}" if name in words else ""
        return 0, STREAM.format(f'<message type="info">{told}</message>')

    def _btrfs_subvolume(self, *words):
        assert words == ("get-default", "/")
        return self.subvolume

    def _grub2_editenv_(self, *words):
        return self.editenv

    def _zypper_locks(self):
        rows = [f'<lock number="{n}"><name>{name}</name></lock>' for n, name in enumerate(sorted(self.locks), 1)]
        return 0, STREAM.format("<locks>" + "".join(rows) + "</locks>")


def order(version):
    return [int(number) for number in re.findall(r"\d+", version)]
