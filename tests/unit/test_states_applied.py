"""
What kgraft.applied decides, in a world of our own functions' autospecs: one kernel, one package, a list of versions.
"""

from unittest.mock import create_autospec

import pytest
from salt.exceptions import CommandExecutionError

KERNEL = "4.4.180-94.100-default"
PACKAGE = "kgraft-patch-4_4_180-94_100-default"


class World:
    """A machine as our execution modules tell of it. Attributes can be set; ``calls`` says what was done to it."""

    def __init__(self, kgraft, kgraft_pkg, kgraft_security):
        self.active, self.inactive = [], []
        self.moving = None
        self.installed = None
        self.offered = ["10-2.1", "9-2.2", "2-2.1", "2-1.1"]
        self.verdicts = {}
        self.calls = []
        self.script_loads = True
        self.salt = {}
        for module, names in (
            (kgraft, "status patches blocking wait load poke"),
            (kgraft_pkg, "name installed available install loading transactional other_kernels"),
            (kgraft_security, "cves supported_until"),
        ):
            for name in names.split():
                spec = create_autospec(getattr(module, name), side_effect=getattr(self, f"_{name}"))
                self.salt[f"{module.__virtualname__}.{name}"] = spec

    def _status(self):
        return {
            "abi": "kgraft",
            "state": "in_progress" if self.moving else "ready",
            "direction": "apply" if self.moving else None,
            "kernelrelease": KERNEL,
            "active": [module(version) for version in self.active],
            "boot_id": "x",
        }

    def _patches(self):
        told = {
            module(version): {"state": "inactive", "version": version, "cumulative": True} for version in self.inactive
        }
        for version in self.active:
            state = "applying" if version == self.moving else "applied"
            told[module(version)] = {"state": state, "version": version, "cumulative": True}
        return told

    def _blocking(self):
        return {"state": "in_progress", "tasks": [], "count": 0, "unread": 0, "complete": True}

    def _poke(self, protect=None, test=False):
        return {"poked": [], "skipped": [], "vanished": [], "count": 0, "complete": True}

    def _wait(self, timeout):
        self.calls.append("wait")
        self.moving, self.inactive, self.active = None, self.inactive + self.active[:-1], self.active[-1:]
        return 0.0

    def _load(self, name):
        version = next(version for version in [self.installed] if module(version) == name)
        self.calls.append(f"load {version}")
        self._start(version)
        return {"name": name, "state": "applying"}

    def _start(self, version):
        self.active.append(version)
        self.moving = version

    def _name(self):
        return PACKAGE

    def _installed(self):
        return self.installed

    def _available(self, refresh=False, lock_timeout=300):
        if refresh:
            self.calls.append("refresh")
        return self.offered

    def _install(self, version=None, allow_downgrade=False, refresh=True, lock_timeout=300):
        self.calls.append(f"install {version}")
        old, self.installed = self.installed, version
        if self.script_loads and not self.moving:
            self._start(version)
        return {"name": PACKAGE, "old": old, "new": version, "warnings": [] if self.script_loads else ["script failed"]}

    def _cves(self, *cves):
        return {cve: self.verdicts[cve](self) for cve in cves}

    def _supported_until(self):
        return None

    def _loading(self):
        return "auto"

    def _transactional(self):
        return False

    def _other_kernels(self):
        return {}


def module(version):
    return "kgraft_patch_" + version.replace("-", "_").replace(".", "_")


@pytest.fixture
def world(load, kgraft):
    return World(kgraft, load("_modules/kgraft_pkg.py"), load("_modules/kgraft_security.py"))


@pytest.fixture
def applied(load, world):
    def apply(test=False, **arguments):
        states = load("_states/kgraft.py", __salt__=world.salt, __opts__={"id": "db1", "test": test})
        return states.applied("x", **arguments)

    return apply


@pytest.mark.parametrize(
    ("active", "version", "brought"),
    [
        ("10-2.1", "latest", None),
        ("11-1.1", "latest", None),
        ("9-2.2", "latest", "10-2.1"),
        ("2-1.1", "2", None),
        ("1-1.1", "2", "2-2.1"),
        ("2-1.1", "2-2.1", "2-2.1"),
        ("2-2.1", "2-2.1", None),
        ("9-2.2", ">=2", None),
        ("9-2.2", ">=9-2.2", None),
        ("9-2.1", ">=9-2.2", "10-2.1"),
        ("2-2.1", {KERNEL: 9}, "9-2.2"),
        ("9-2.2", {KERNEL: "9"}, None),
    ],
)
def test_what_is_active_decides_whether_anything_is_brought(applied, world, active, version, brought):
    world.active, world.installed = [active], active

    outcome = applied(version=version)

    assert outcome["result"] is True, outcome["comment"]
    assert [call for call in world.calls if call.startswith("install")] == ([f"install {brought}"] if brought else [])


def test_a_version_that_is_met_needs_no_repository(applied, world):
    world.active = [world.installed] = ["2-2.1"]
    world.salt["kgraft_pkg.available"].side_effect = CommandExecutionError("no network")

    assert applied(version="2")["result"] is True
    assert applied(version="latest")["comment"] == "no network"


@pytest.mark.parametrize("version", [2.1, True, None, "", "newest", "5-", "<=5", "5-2.1-default", ["5"], {KERNEL: {}}])
def test_a_version_that_is_none_is_refused_and_named(applied, world, version):
    refused = applied(version=version)

    assert refused["result"] is False
    assert refused["comment"].startswith(f"version is {version[KERNEL] if isinstance(version, dict) else version!r}")
    assert world.calls == []


def test_a_float_is_told_to_be_quoted(applied):
    assert "quote it" in applied(version=2.10)["comment"]


def test_a_map_without_this_kernel_names_the_kernel_and_installs_nothing(applied, world):
    refused = applied(version={"4.4.180-94.97-default": "6"})

    assert refused["comment"] == f"version names no patch for this kernel, {KERNEL}; it does for 4.4.180-94.97-default"
    assert world.calls == []


@pytest.mark.parametrize("arguments", [{"version": "9"}, {"version": "9-2.2"}])
@pytest.mark.parametrize(("where", "how"), [("active", "active"), ("installed", "installed")])
def test_a_step_back_is_taken_only_when_allowed(applied, world, arguments, where, how):
    world.active, world.installed = (["10-2.1"], "9-2.2") if where == "active" else (["2-2.1"], "10-2.1")

    refused = applied(**arguments)
    assert refused["comment"] == f"newer is {how}: 10-2.1; write >=9 or allow_downgrade: True"
    assert world.calls == []

    assert applied(allow_downgrade=True, **arguments)["result"] is True


def test_an_installed_patch_newer_than_any_offered_is_loaded_by_latest(applied, world):
    world.active, world.installed = ["9-2.2"], "11-1.1"

    assert applied()["result"] is True
    assert world.calls == ["refresh", "load 11-1.1", "wait"]


def test_the_repositories_are_read_once_however_long_it_takes(applied, world):
    world.active, world.moving, world.installed = ["1-1.1"], "1-1.1", "1-1.1"

    assert applied(version="2")["result"] is True
    assert world.calls == ["refresh", "wait", "install 2-2.1", "wait"]


def test_settle_false_waits_for_no_end_of_its_own(applied, world):
    left = applied(settle=False)

    assert left["result"] is True
    assert left["comment"].startswith("kgraft_patch_10_2_1 is applying and settles without being waited for")
    assert world.calls == ["refresh", "install 10-2.1"]
    assert applied(settle=False)["changes"] == applied(settle=False, test=True)["changes"] == {}


def test_a_dry_run_refreshes_nothing_and_does_nothing(applied, world):
    world.active, world.installed = ["2-2.1"], "2-2.1"

    promised = applied(test=True)

    assert promised["result"] is None
    assert world.calls == []
    assert promised["changes"] == applied()["changes"]


def test_a_look_comes_before_each_act_and_after(applied, world):
    assert applied()["result"] is True

    assert world.calls == ["refresh", "install 10-2.1", "wait"]


def test_a_transition_that_runs_is_waited_out_before_the_package_comes(applied, world):
    world.active, world.moving, world.installed = ["2-1.1", "2-2.1"], "2-2.1", "2-2.1"

    assert applied()["result"] is True
    assert world.calls == ["refresh", "wait", "install 10-2.1", "wait"]


def test_another_hand_that_brings_it_meanwhile_leaves_nothing_to_install(applied, world):
    world.active, world.moving, world.installed = ["2-1.1"], "2-1.1", "2-1.1"

    def comes(timeout):
        world.active, world.moving, world.installed = ["10-2.1"], None, "10-2.1"

    world.salt["kgraft.wait"].side_effect = comes

    assert applied()["result"] is True
    assert world.calls == ["refresh"]


def test_a_script_that_did_not_load_is_no_end(applied, world):
    world.script_loads = False

    outcome = applied()

    assert outcome["result"] is True
    assert world.calls == ["refresh", "install 10-2.1", "load 10-2.1", "wait"]
    assert "zypper: script failed." in outcome["comment"]


def test_installed_and_not_loadable_is_a_failure_that_says_so_and_keeps_the_changes(applied, world):
    world.script_loads = False
    world.salt["kgraft.load"].side_effect = CommandExecutionError("Exec format error")

    failed = applied()

    assert failed["result"] is False
    assert failed["comment"].startswith(f"{PACKAGE} 10-2.1 is installed, but not loaded. Exec format error.")
    assert failed["changes"] == {PACKAGE: {"old": None, "new": "10-2.1"}}


def test_loaded_and_not_what_the_kernel_runs_is_a_failure(applied, world):
    world.script_loads = False
    world.salt["kgraft.load"].side_effect = lambda name: {"name": name, "state": "applied"}

    failed = applied()

    assert failed["result"] is False
    assert "The kernel says: no live patch is active." in failed["comment"]


def test_a_patch_that_was_turned_back_while_it_was_waited_for_is_a_failure(applied, world):
    def turn_back(timeout):
        world.active, world.inactive, world.moving = [], ["10-2.1"], None

    world.salt["kgraft.wait"].side_effect = turn_back

    failed = applied()

    assert failed["result"] is False
    assert failed["comment"] == "The transition ended otherwise than it began: no live patch is active."
    assert failed["changes"][module("10-2.1")] == {"old": None, "new": "inactive"}


@pytest.mark.parametrize("module", ["kgraft_pkg", "kgraft_security"])
def test_a_module_that_is_not_there_is_named(applied, world, module):
    world.salt = {function: spec for function, spec in world.salt.items() if not function.startswith(f"{module}.")}

    assert applied()["comment"].startswith(f"The module {module} is not loaded on this minion: ")


def test_a_failed_install_is_a_failure_in_its_words(applied, world):
    world.salt["kgraft_pkg.install"].side_effect = CommandExecutionError("zypper ran, but", info={"old": None})

    assert applied()["result"] is False
    assert applied()["comment"] == "zypper ran, but"


def test_a_patch_whose_package_is_gone_or_newer_is_told(applied, world):
    world.active, world.installed = ["2-2.1"], None
    assert "No package holds it" in applied(version="2")["comment"]

    world.installed = "9-2.2"
    assert "The package holds 9-2.2: the next boot may bring that one." in applied(version="2")["comment"]


def test_a_foreign_patch_is_not_taken_for_one_of_ours(applied, world):
    world.salt["kgraft.patches"].side_effect = lambda: {
        **world._patches(),
        "site_fix": {"state": "applied", "version": None, "cumulative": None},
    }
    world.salt["kgraft.status"].side_effect = lambda: {
        **world._status(),
        "active": ["site_fix", *world._status()["active"]],
    }

    assert applied(version="2")["result"] is True
    assert world.active == ["2-2.1"]


# ----- by CVEs


def fixed_from(version, patch="kgraft_patch"):
    """A verdict: open until that version is active, pending until it is settled."""

    def verdict(world):
        fixing = [each for each in world.active if int(each.split("-")[0]) >= int(version)]
        if not fixing:
            return f"open: SUSE-{version}"
        return f"pending: {module(fixing[-1])} not settled" if world.moving else f"fixed by {module(fixing[-1])}"

    return verdict


def test_an_open_cve_brings_the_newest_patch(applied, world):
    world.verdicts = {"CVE-1": fixed_from(9), "CVE-2": lambda world: "fixed by kernel"}
    world.active, world.installed = ["2-2.1"], "2-2.1"

    outcome = applied(cves=["CVE-1", "CVE-2"])

    assert outcome["result"] is True
    assert outcome["comment"].splitlines()[1:] == ["CVE-1: fixed by kgraft_patch_10_2_1", "CVE-2: fixed by kernel"]
    assert world.calls == ["refresh", "install 10-2.1", "wait"]


def test_fixed_cves_need_no_repository(applied, world):
    world.verdicts = {"CVE-1": lambda world: "fixed by kernel"}

    assert applied(cves=["CVE-1"])["result"] is True
    assert world.calls == []


def test_the_administrators_word_is_taken_before_anybody_is_asked(applied, world):
    assert "this is the word of not_affected" in applied(cves=["CVE-1"], not_affected=["4.4.180-*"])["comment"]
    assert world.calls == []


def test_a_cve_that_the_newest_patch_does_not_fix_is_a_failure(applied, world):
    world.verdicts = {"CVE-1": fixed_from(11)}

    failed = applied(cves=["CVE-1"])

    assert failed["result"] is False
    assert "CVE-1: open: SUSE-11" in failed["comment"]
    assert "do not fix them all" in failed["comment"]
    assert applied(cves=["CVE-1"], test=True)["result"] is False


def test_an_unknown_cve_beside_an_open_one_fails_after_the_open_one_is_fixed(applied, world):
    world.verdicts = {"CVE-1": fixed_from(9), "CVE-2": lambda world: "unknown"}

    assert applied(cves=["CVE-1", "CVE-2"], test=True)["result"] is False
    failed = applied(cves=["CVE-1", "CVE-2"])

    assert failed["result"] is False
    assert "CVE-1: fixed by kgraft_patch_10_2_1\nCVE-2: unknown" in failed["comment"]
    assert failed["changes"][PACKAGE] == {"old": None, "new": "10-2.1"}


def test_an_installed_patch_that_is_not_loaded_is_loaded_without_a_repository(applied, world):
    world.offered, world.installed = [], "9-2.2"
    world.verdicts = {"CVE-1": lambda world: fixed_from(9)(world) if world.active else f"pending: {PACKAGE} not loaded"}

    assert applied(cves=["CVE-1"])["result"] is True
    assert "load 9-2.2" in world.calls
    assert applied(cves=["CVE-1"], settle=False)["result"] is True


def test_settle_false_takes_not_settled_but_never_not_loaded(applied, world):
    world.verdicts = {"CVE-1": fixed_from(9)}
    world.active, world.installed, world.moving = ["10-2.1"], "10-2.1", "10-2.1"

    assert applied(cves=["CVE-1"], settle=False)["result"] is True
    assert world.calls == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"cves": []}, "cves is empty"),
        ({"cves": "CVE-1"}, "cves is 'CVE-1'; it must be a list"),
        ({"cves": ["CVE-1"], "version": "5"}, "version is '5' and cves are given"),
        ({"cves": ["CVE-1"], "not_affected": "4.4*"}, "not_affected is '4.4*'; it must be a list"),
        ({"not_affected": ["4.4*"]}, "not_affected is given without cves"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(applied, world, arguments, words):
    refused = applied(**arguments)

    assert refused["result"] is False
    assert refused["comment"].startswith(words)
    assert world.calls == []
