"""
The bundle and the RPMs, made of this checkout, on a real master and minion that have nothing else of ours.

The server's files lie below a directory of the tests: what a drop-in of ours names is looked for there.
"""

import datetime
import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import tarfile

import pytest
import yaml
from saltfactories.utils import random_string

from lab.files import Kernel
from tests.integration.conftest import MASTER, MINION, job
from tests.integration.conftest import sync as sync_all
from tests.support.clone import commit, copy_of_the_checkout, make
from tests.support.load import REPO, load_file
from tests.support.packages import PackageRepository, SuseRoot, minion_options, until

pytest_plugins = ["tests.support.package_fixtures"]

VERSION = load_file("_modules/kgraft.py").VERSION
STATES = "usr/share/salt-formulas/states"
# as openSUSE's salt-standalone-formulas-configuration has it
ROOTS = "file_roots:\n  base:\n    - /usr/share/salt-formulas/states\n    - /srv/salt\n"
DROP_IN = "etc/salt/master.d/kgraft.conf"
FORM = {
    "kgraft": {
        "wish": "one per kernel",
        "versions": {"4.4.180-94.100-default": ">=2"},
        "beacon": {"enabled": True, "interval": "1"},
        "probes": [],
    }
}


def files(root):
    """What lies below a root, without what zypper and rpm write for themselves."""
    found = {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}
    return {
        path for path in found if not path.startswith(("var/", "etc/zypp/", "run/")) and "rpm" not in path.split("/")
    }


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """This checkout, committed."""
    source = copy_of_the_checkout(tmp_path_factory.mktemp("clone") / "saltext-kgraft")
    commit(source)
    # make looks for the Python of the tests there
    (source / ".git/info/exclude").write_text("/.venv\n")
    (source / ".venv").symlink_to(REPO / ".venv")
    return source


@pytest.fixture(scope="module")
def bundle(clone):
    done = make(clone, "bundle")
    assert done.returncode == 0, done.stdout + done.stderr
    return clone / f"dist/saltext-kgraft-{VERSION}.tar.gz"


@pytest.fixture(scope="module")
def rpms(clone, tmp_path_factory):
    """A repository with what ``make rpm`` builds, of this version; ``add_newer`` adds one of another."""
    repository = PackageRepository(tmp_path_factory.mktemp("rpms") / "ours")
    repository.add_package("salt-formulas-configuration", files={"/etc/salt/master.d/standalone.conf": ROOTS})

    def add(*options):
        built = make(clone, "rpm", *options)
        assert built.returncode == 0, built.stdout + built.stderr
        for path in (clone / "dist/rpm").glob("*.noarch.rpm"):
            shutil.copy(path, repository.path / "packages")
        repository.publish()
        assert "; 0 errors, 0 warnings" in built.stdout
        return (clone / "dist/rpm/build.log").read_text()

    def add_newer():
        for name in ("_modules/kgraft.py", "_runners/kgraft.py", "packaging/saltext-kgraft.spec"):
            text = (clone / name).read_text("utf-8")
            assert VERSION in text
            (clone / name).write_text(text.replace(VERSION, "9.9.9"), "utf-8")
        commit(clone)
        # the tests were run when the first was built
        add("RPMBUILD=--nocheck")

    repository.log, repository.add_newer = add(f"PY={os.sys.executable}"), add_newer
    return repository


class Server:
    """A master whose files are below ``root``, and one minion, on a SUSE machine that has 10-2.1 and runs it."""

    def __init__(self, suse, master, minion, kernel):
        self.suse, self.master, self.minion, self.kernel = suse, master, minion, kernel
        self.root, self.zypper = suse.root, suse.zypper

    def job(self, function, *arguments, **named):
        return job(self.master, self.minion, function, *arguments, **named)

    def sync(self):
        """What users do after they have installed, upgraded or removed it."""
        place = f"{self.master.config_dir}/master.d/kgraft.conf"
        os.makedirs(os.path.dirname(place), exist_ok=True)
        text = (self.root / DROP_IN).read_text() if (self.root / DROP_IN).exists() else ""
        with open(place, "w") as file:
            file.write(text.replace("- /", f"- {self.root}/"))
        sync_all(self.master, self.minion)

    def wipe(self):
        """What a new image of a container has not got, and more: nothing that was synced is left."""
        for config in (self.master.config, self.minion.config):
            shutil.rmtree(config["extension_modules"], ignore_errors=True)

    def run(self, *words):
        return self.master.salt_run_cli(timeout=120).run(*words)

    def told_of(self):
        """The class that the runner's report has for the minion."""
        return self.run("kgraft.report", "--out=json").data["machines"][self.minion.id]["class"]

    def apply(self, name, **named):
        told = self.job("state.apply", name, **named)
        assert isinstance(told, dict), told
        return {one["__id__"]: one for one in told.values()}

    def left(self):
        """Files of ours on the minion and the master, but for what Salt itself keeps of each file that it served."""
        found = set()
        for config in (self.master.config, self.minion.config):
            for place in (config["cachedir"], os.path.dirname(config["conf_file"]), config["extension_modules"]):
                for folder, _, names in os.walk(place):
                    found |= {f"{folder}/{name}" for name in names if "kgraft" in name and "/files/" not in folder}
        return sorted(path for path in found if "/roots/" not in path and os.path.getsize(path))


@pytest.fixture(scope="module")
def server(salt_factories, live_patches, rpms, tmp_path_factory):
    root = tmp_path_factory.mktemp("server") / "root"
    roots = [f"{root}/{path}" for path in (STATES, "srv/salt")]
    assert yaml.safe_load(ROOTS)["file_roots"]["base"] == ["/" + path.replace(f"{root}/", "") for path in roots]
    kernel = Kernel(tmp_path_factory.mktemp("kernel") / "root")
    kernel.patch("kgraft-patch-10-2_1")
    with SuseRoot(root, rpms) as suse, SuseRoot(kernel.root, live_patches) as machine:
        machine.zypper("install", "kgraft", "kgraft-patch-4_4_180-94_100-default")
        options = {**MASTER, "file_roots": {"base": roots}}
        master = salt_factories.salt_master_daemon(random_string("server-"), overrides=options)
        options = {**MINION, **minion_options(), "kgraft.root": str(kernel.root)}
        with master.started():
            minion = master.salt_minion_daemon(random_string("client-"), overrides=options)
            with minion.started():
                yield Server(suse, master, minion, kernel)


@pytest.fixture(scope="module")
def unpacked(server, bundle):
    """The server with the bundle; after the test of the RPMs, which must not have both."""
    assert not list((server.root / "usr/share").rglob("*kgraft*"))
    subprocess.run(["tar", "-xzf", bundle, "-C", server.root], check=True)
    server.sync()
    return server


def works(server, event_listener, version=VERSION):
    """Modules, states, beacon and runner, each by what it says."""
    assert server.job("kgraft.overview")["version"] == version
    made = server.apply("kgraft", pillar=FORM)
    assert [one["comment"] for one in made.values() if not one["result"]] == []
    since = datetime.datetime.now(tz=datetime.timezone.utc)
    server.kernel.start("kgraft-patch-11-2_1")
    pattern = (server.master.id, f"salt/beacon/{server.minion.id}/kgraft/started")
    until(lambda: event_listener.get_events([pattern], after_time=since))
    server.kernel.finish()
    assert server.told_of() == "settled"


@pytest.mark.smoke
def test_a_bundle_is_files_of_root_that_leave_the_folders_as_they_are(bundle):
    with tarfile.open(bundle) as archive:
        members = archive.getmembers()
    # a folder in it would give its owner and mode to the one that is there, such as /etc/salt
    assert {(member.type, member.uid, member.gid, member.mode) for member in members} == {
        (tarfile.REGTYPE, 0, 0, 0o644)
    }
    volumes = ("srv/salt/", "srv/formula_metadata/kgraft/", "etc/salt/master.d/")
    assert [member.name for member in members if not member.name.startswith(volumes)] == []
    ours = {f"srv/salt/{path.parent.name}/{path.name}" for path in REPO.glob("_*/*.py")}
    assert ours <= {member.name for member in members}


@pytest.mark.smoke
def test_the_rpms_are_installed_upgraded_and_removed(server, rpms, event_listener):
    assert re.search(r"\n\d{3} passed", rpms.log), "%check was not run"
    before = files(server.root)
    server.zypper("install", "kgraft-formula")
    assert server.suse.editions("saltext-kgraft") == [f"{VERSION}-0"]
    assert f"{STATES}/_modules/_kgraft_kernel.py" in files(server.root)
    page = server.root / "usr/share/man/man7/saltext-kgraft.7.gz"
    assert "kgraft.blocking(cmdline=False" in gzip.decompress(page.read_bytes()).decode()
    server.sync()
    works(server, event_listener)

    rpms.add_newer()
    server.zypper("refresh")
    server.zypper("update", "saltext-kgraft")
    assert server.suse.editions("*kgraft*") == ["9.9.9-0"] * 2
    # the master is of another version than its minion
    assert server.told_of() == "not synced"
    server.sync()
    works(server, event_listener, "9.9.9")

    with open(server.root / DROP_IN, "a") as file:
        file.write("# mine\n")
    server.apply("kgraft.absent")
    server.zypper("remove", "saltext-kgraft", "salt-formulas-configuration")
    assert files(server.root) - before == {f"{DROP_IN}.rpmsave"}
    assert not (server.root / "usr/share/salt-formulas").exists()
    server.sync()
    assert server.left() == []


@pytest.mark.smoke
def test_an_unpacked_bundle_is_all_that_a_server_needs(unpacked, event_listener):
    works(unpacked, event_listener)
    unpacked.wipe()
    assert "is not available" in str(unpacked.job("kgraft.overview"))
    unpacked.sync()
    works(unpacked, event_listener)
    plan = unpacked.run("kgraft.plan", unpacked.minion.id, "name=x", f"canaries={unpacked.minion.id}", "soak=0")
    assert plan.returncode == 0, plan.data
    words = shlex.split(plan.data["report"][-1].partition(": salt-run ")[2])
    assert words[1] == "kgraft.rollout"
    done = unpacked.run(*words)
    assert done.returncode == 0, done.data


@pytest.mark.smoke
def test_the_formula_sets_up_a_beacon_and_a_job_that_stay(unpacked, tmp_path):
    server, states = unpacked, {"kgraft: the beacon", "kgraft: the metrics"}
    pillar = {"kgraft": {**FORM["kgraft"], "metrics_directory": str(tmp_path)}}
    made = server.apply("kgraft", pillar=pillar)
    assert {name for name, one in made.items() if "live" not in name and "kernel" not in name} == states
    assert [one["comment"] for one in made.values() if one["result"] is not True] == []
    beacon = [{"interval": 1}, {"stuck_after": 120}, {"remind": 3600}, {"protect": ["name:hdb*"]}]
    configured = os.path.join(os.path.dirname(server.minion.config["conf_file"]), "minion.d")

    def saved(kind):
        with open(f"{configured}/{kind}.conf") as file:
            return yaml.safe_load(file)

    assert server.job("beacons.list", return_yaml=False)["kgraft"] == beacon
    assert saved("beacons")["beacons"]["kgraft"] == beacon
    assert saved("_schedule")["schedule"]["kgraft metrics"]["kwargs"] == {"directory": str(tmp_path)}
    again = server.apply("kgraft", pillar=pillar)
    assert {name: (one["result"], one["changes"]) for name, one in again.items()} == dict.fromkeys(made, (True, {}))
    assert "in correct state" in again["kgraft: the beacon"]["comment"]
    assert "in correct state" in again["kgraft: the metrics"]["comment"]

    off = {"kgraft": {**FORM["kgraft"], "beacon": {"enabled": False}}}
    server.apply("kgraft", pillar=off)
    assert "kgraft" not in server.job("beacons.list", return_yaml=False)
    assert "kgraft" not in (saved("beacons") or {}).get("beacons", {})
    assert "kgraft" not in (saved("_schedule") or {}).get("schedule", {})


@pytest.mark.smoke
def test_a_pillar_that_is_wrong_is_one_sentence_at_the_prompt(unpacked):
    for test in (True, False):
        [told] = unpacked.apply("kgraft", pillar={"kgraft": {"timeout": "soon"}}, test=test).values()
        assert told["result"] is False
        assert told["name"].startswith("The field \"Timeout (seconds)\" of the form of kgraft is 'soon'; it must be ")


@pytest.mark.smoke
def test_what_absent_takes_away_and_a_sync_after_it_leave_nothing(unpacked, bundle, tmp_path):
    """The last one: it takes the bundle away."""
    server = unpacked
    server.apply("kgraft", pillar={"kgraft": {**FORM["kgraft"], "metrics_directory": str(tmp_path)}})
    cache = server.minion.config["cachedir"]
    other = {"name": "kgraft-oncall", "beacon_data": [{"beacon_module": "kgraft"}, {"interval": 1}]}
    server.job("beacons.add", **other)
    server.job("beacons.save")
    server.job("kgraft_metrics.write", str(tmp_path))
    server.job("kgraft.support")
    server.job("mine.send", "kgraft.status")
    for name in ("kgraft_beacon_kgraft.json.aside", "kgraft_probe.json"):
        with open(f"{cache}/{name}", "w") as file:
            file.write("{")
    conf = os.path.join(os.path.dirname(server.minion.config["conf_file"]), "minion.d", "kgraft.conf")
    with open(conf, "w") as file:
        file.write((REPO / "examples/beacon/minion.conf").read_text())
    server.run("kgraft.report")
    until(lambda: os.path.exists(f"{cache}/kgraft_beacon_kgraft-oncall.json"))
    assert server.job("mine.get", server.minion.id, "kgraft.status")

    # beside a beacon that a pillar sets up, which no state can take away
    tree, late = server.master.pillar_tree.base, f"{cache}/kgraft_beacon_kgraft-late.json"
    pillar = json.dumps({"beacons": {"kgraft-late": other["beacon_data"]}})
    with tree.temp_file("top.sls", "base: {'*': [late]}"), tree.temp_file("late.sls", pillar):
        server.job("saltutil.refresh_pillar", wait=True)
        beacons = {"kgraft", "kgraft-oncall", "kgraft-late"}
        until(lambda: beacons <= set(server.job("beacons.list", return_yaml=False)))
        dry = server.apply("kgraft.absent", test=True)
        made = server.apply("kgraft.absent")
        assert {name: one["comment"] for name, one in made.items() if one["result"] is not True} == {
            "beacon kgraft-late": "Cannot delete beacon item kgraft-late, it is configured in pillar."
        }
    # which looks when it likes
    assert set(dry) - {late} == set(made) - {late}
    assert {f"{cache}/{name}" for name in os.listdir(cache) if name.startswith("kgraft")} <= {late}
    assert os.listdir(tmp_path) == []
    assert not os.path.exists(conf)
    assert "kgraft" not in str(server.job("schedule.list", return_yaml=False))
    assert server.job("mine.get", server.minion.id, "kgraft.status") == {}
    server.job("saltutil.refresh_pillar", wait=True)
    assert "kgraft" not in str(server.job("beacons.list", return_yaml=False))
    # with Salt 3006 the beacon of the pillar runs on until the next refresh of the modules
    server.job("saltutil.refresh_modules", refresh_pillar=False)
    until(lambda: not any(one["changes"] for one in server.apply("kgraft.absent").values()))
    again = server.apply("kgraft.absent")
    assert {name: (one["result"], one["changes"]) for name, one in again.items()} == dict.fromkeys(again, (True, {}))

    subprocess.run(f"tar -tzf {bundle} | (cd {server.root} && xargs rm -f)", shell=True, check=True)
    server.sync()
    assert server.run("saltutil.sync_all").returncode == 0
    assert "is not available" in str(server.job("kgraft.summary"))
    assert server.left() == []
