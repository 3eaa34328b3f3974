"""
A whole SUSE machine for the states: the lab's kernel over real processes, rpm's database, zypper's repositories.
"""

import json
import subprocess
import threading

import salt.config
from saltfactories.utils.functional import Loaders

from lab import Lab, procfs
from tests.support.opens import wait_for_opens
from tests.support.packages import KERNEL, PackageRepository, SuseRoot, minion_options, package_name, run, until


class Machine:
    """
    ``Machine(root, minion, repositories)``, as a context; ``minion`` is a ``Loaders`` of ``minion_options()``.

    ``machine.applied(version="2")`` runs a state on it. The packages' scripts load into its kernel; so does kgraft.load
    where PATH and KGRAFT_LAB are those of ``lab.environ``.
    """

    def __init__(self, root, minion, repositories, **options):
        self.lab = Lab(root, **{"period": 0.2, "release": KERNEL, **options})
        self.minion = minion
        self.repositories = repositories
        self.release = options.get("release", KERNEL)
        self.package = package_name(self.release)
        self.sleepers = []
        self.passing = None

    def __enter__(self):
        self.lab.__enter__()
        self.suse = SuseRoot(self.lab.root, *self.repositories)
        self.suse.insmod_with(self.lab.environ)
        self.minion.opts["kgraft.root"] = str(self.lab.root)
        return self

    def __exit__(self, *problem):
        self.minion.opts["kgraft.root"] = "/nonexistent"
        self.suse.__exit__(*problem)
        self.lab.__exit__(*problem)
        for process in self.sleepers:
            process.kill()
            process.wait()

    def __getattr__(self, state):
        if state not in ("activated", "applied", "settled"):
            raise AttributeError(state)
        function = getattr(self.minion.states.kgraft, state)

        def run(**arguments):
            if self.passing and arguments.get("settle", True) and not arguments.get("test"):
                threading.Thread(target=self._pass, args=self.passing, daemon=True).start()
                self.passing = None
            return function("a label", **arguments)

        return run

    @staticmethod
    def _pass(process, file):
        """End what holds the transition up when a run has looked so often that it waits."""
        wait_for_opens(file, 10)
        process.kill()

    def dry_live_again(self, state, **arguments):
        """Run a state dry, live, live and dry: the dry run promised what the live one did, the second did nothing."""
        return dry_live_again(getattr(self, state), **arguments)

    def run_sls(self, name, **arguments):
        return {result.id: result for result in self.minion.modules.state.sls(name, **arguments)}

    def patches(self):
        return {name: patch["state"] for name, patch in self.minion.modules.kgraft.patches().items()}

    def editions(self):
        return self.suse.editions(self.package)

    # -- what scenarios begin with, as tests/support/suse_of_files.py has it

    @property
    def abi(self):
        return self.minion.modules.kgraft.abi()

    def state(self):
        return self.minion.modules.kgraft.status()["state"]

    def edition(self):
        return next(iter(self.editions()), None)

    def settle(self):
        """End what is blocked by nobody but our sleepers, which sleep on."""
        self.minion.modules.kgraft.poke()
        self.minion.modules.kgraft.wait(timeout=60)

    def runs(self, *versions):
        for version in versions:
            self.suse.zypper("install", "--oldpackage", "--name", f"{self.package}={version}")
            self.settle()

    def holds(self, version):
        (package,) = (self.repositories[0].path / "packages").glob(f"{self.package}-{version}.*")
        options = ("--upgrade", "--oldpackage", "--force", "--noscripts", "--nosignature")
        run("rpm", "--root", self.suse.root, *options, package)

    def loads(self, version):
        kind = "kgraft-patch" if self.abi == "kgraft" else "livepatch"
        self.lab.load("{}-{}".format(kind, version.replace(".", "_")))
        self.settle()

    def moves(self, version):
        process = self.sleeper()
        self.suse.zypper("install", "--name", f"{self.package}={version}")
        assert self.state() == "in_progress"
        # what each look of ours opens, and the lab does not
        (file,) = self.lab.root.glob(
            "sys/kernel/*/*/{}".format({"kgraft": "state", "livepatch": "transition"}[self.abi])
        )
        self.passing = process, file

    def block(self):
        self.sleeper()

    def ages(self, seconds, dead=True):
        self.suse.zypper("refresh")
        if dead:
            self.suse.kill(self.repositories[0].alias)
        self.suse.age(self.repositories[0].alias, seconds)

    def repository(self, alias, packages, about):
        repository = PackageRepository(self.suse.root.parent / alias)
        for package, editions in packages.items():
            for edition in editions:
                if package == self.package:
                    repository.add_live_patch(self.release, edition)
                else:
                    repository.add_package(package, edition)
        self.suse.add_repository(alias, repository.url, repository.name, priority=about.get("priority", 99))
        if about.get("read", True):
            self.suse.zypper("refresh")
        if about.get("dead"):
            self.suse.kill(alias)
        if about.get("age"):
            self.suse.age(alias, about["age"])

    def offers_nothing(self):
        self.suse.disable(self.repositories[0].alias)

    def lock(self, name):
        self.suse.zypper("addlock", name)

    def configure(self, text):
        place = self.suse.root / "etc/sysconfig/livepatching"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def sleeper(self):
        """A process that sleeps and crosses only when something moves it."""
        process = subprocess.Popen(["sleep", "600"])
        self.sleepers.append(process)
        self.lab.watch(process.pid)
        until(lambda: state_of(process.pid) == "S")
        return process


def dry_live_again(state, **arguments):
    dry = state(test=True, **arguments)
    live = state(**arguments)
    assert dry.result is None, dry.comment
    assert live.result is True, live.comment
    assert dry.changes == live.changes
    for test in (False, True):
        again = state(test=test, **arguments)
        assert again.result is True, again.comment
        assert again.changes == {}
    return live


def state_of(pid):
    """The letter of a process: S, T, …"""
    return procfs.stat(pid)["letter"]


def stand_alone_minion(root, file_root):
    """Salt's loader and states on a SUSE minion with no master, for where the functional tests' fixtures are not."""
    options = {
        "id": "db1",
        "root_dir": str(root),
        "file_client": "local",
        "module_dirs": [str(file_root)],
        "kgraft.root": "/nonexistent",
        **minion_options(),
    }
    config = root / "etc/salt/minion"
    config.parent.mkdir(parents=True)
    # Salt reads the grains there again
    config.write_text(json.dumps(options))
    return Loaders(salt.config.minion_config(str(config)))
