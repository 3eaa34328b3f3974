"""
The states over Salt's real loader, a real zypper with real packages, and the lab's kernel over real processes.
"""

import contextlib
import datetime
import os
import shutil
import signal
import subprocess

import pytest

from tests.support.machine import Machine, state_of
from tests.support.packages import FAIL, KERNEL, KERNEL_15, OTHER_KERNEL, minion_options, package_name, until

pytest_plugins = ["tests.support.package_fixtures"]

PACKAGE = package_name(KERNEL)


@pytest.fixture(scope="module")
def sls(tmp_path_factory):
    """Where SLS files lie."""
    return tmp_path_factory.mktemp("sls")


@pytest.fixture(scope="module")
def minion(make_loaders, sls, repo):
    examples = repo / "examples/states"
    return make_loaders(
        file_roots={"base": [str(sls), str(examples)]},
        pillar_roots={"base": [str(examples / "pillar")]},
        **minion_options(),
    )


@pytest.fixture
def make_machine(minion, live_patches, tmp_path, monkeypatch):
    """Return ``make_machine(repositories, **of the lab)``: booted, a repository enabled, nothing installed."""
    with contextlib.ExitStack() as stack:

        def make(repositories=(live_patches,), **options):
            machine = stack.enter_context(Machine(tmp_path / "lab", minion, repositories, **options))
            for name in ("PATH", "KGRAFT_LAB"):
                monkeypatch.setenv(name, machine.lab.environ[name])
            return machine

        yield make


@pytest.fixture
def machine(make_machine):
    return make_machine()


def test_the_newest_patch_is_installed_loaded_and_settled(machine):
    live = machine.dry_live_again("applied")

    assert live.changes == {
        PACKAGE: {"old": None, "new": "10-2.1"},
        "kgraft_patch_10_2_1": {"old": None, "new": "applied"},
    }
    assert machine.patches() == {"kgraft_patch_10_2_1": "applied"}
    assert machine.editions() == ["10-2.1"]


@pytest.mark.parametrize("release", [KERNEL, OTHER_KERNEL])
def test_each_form_of_a_version_says_what_it_would_bring(make_machine, release):
    machine = make_machine(release=release)
    forms = {
        KERNEL: {"latest": "10-2.1", "2": "2-2.1", 9: "9-2.2", "2-1.1": "2-1.1", ">=2": "10-2.1", ">=9-2.2": "10-2.1"},
        OTHER_KERNEL: {"latest": "6-2.1", "1": "1-1.1", 6: "6-2.1", "1-1.1": "1-1.1", ">=2": "6-2.1"},
    }

    for version, brought in forms[release].items():
        assert machine.applied(version=version, test=True).changes[package_name(release)]["new"] == brought
    per_kernel = machine.applied(version={KERNEL: 2, OTHER_KERNEL: ">=1"}, test=True)
    assert per_kernel.changes[package_name(release)]["new"] == {KERNEL: "2-2.1", OTHER_KERNEL: "6-2.1"}[release]
    nameless = machine.applied(version={"4.4.180-94.1-default": 2})
    assert nameless.result is False
    assert f"version names no patch for this kernel, {release}" in nameless.comment


def test_a_newer_patch_replaces_the_older_one(machine):
    assert machine.applied(version="2-2.1").result is True

    live = machine.dry_live_again("applied")

    assert live.changes == {
        PACKAGE: {"old": "2-2.1", "new": "10-2.1"},
        "kgraft_patch_2_2_1": {"old": "applied", "new": "inactive"},
        "kgraft_patch_10_2_1": {"old": None, "new": "applied"},
    }


def test_on_livepatch_the_older_one_vanishes_and_poke_after_is_said_to_do_nothing(make_machine):
    machine = make_machine(abi="livepatch", release=KERNEL_15)
    assert machine.applied(version="9").result is True

    live = machine.dry_live_again("applied", poke_after=0)

    assert live.changes == {
        package_name(KERNEL_15): {"old": "9-2.1", "new": "10-150400.2.1"},
        "livepatch_9_2_1": {"old": "applied", "new": None},
        "livepatch_10_150400_2_1": {"old": None, "new": "applied"},
    }
    assert "poke_after does nothing here" in live.comment


def test_a_blocking_task_is_named_at_the_time_out_and_the_next_run_goes_on_from_there(machine):
    sleeper = machine.sleeper()

    timed_out = machine.applied(version="2", timeout=1)

    assert timed_out.result is False
    assert (
        f"- sleep ({sleeper.pid}): It sleeps in the kernel since before the patch. Run kgraft.poke" in timed_out.comment
    )
    assert timed_out.changes == {
        PACKAGE: {"old": None, "new": "2-2.1"},
        "kgraft_patch_2_2_1": {"old": None, "new": "applying"},
        "state": {"old": "ready", "new": "in_progress"},
    }

    dry = machine.applied(version="2", poke_after=0, test=True)
    assert dry.result is None
    assert f"After 0 s these would be poked: sleep ({sleeper.pid})." in dry.comment

    live = machine.applied(version="2", poke_after=0)
    assert live.result is True
    assert live.changes == {
        "kgraft_patch_2_2_1": {"old": "applying", "new": "applied"},
        "state": {"old": "in_progress", "new": "ready"},
        "poked": [f"sleep ({sleeper.pid})"],
    }
    assert state_of(sleeper.pid) == "S"


def test_who_is_protected_is_not_poked_and_said_so(machine):
    sleeper = machine.sleeper()

    timed_out = machine.applied(version="2", timeout=5, poke_after=0, protect=["name:sleep"])

    assert timed_out.result is False
    assert f"Not poked: sleep ({sleeper.pid}) (protected by name:sleep)" in timed_out.comment
    assert "poked" not in timed_out.changes


def test_a_stopped_process_is_told_how_to_go_on(machine):
    sleeper = machine.sleeper()
    os.kill(sleeper.pid, signal.SIGSTOP)
    until(lambda: state_of(sleeper.pid) == "T")

    timed_out = machine.applied(version="2", timeout=1, poke_after=0)

    assert timed_out.result is False
    assert f"- sleep ({sleeper.pid}): It is stopped, by SIGSTOP or at a terminal. Ask who stopped it; continue it" in (
        timed_out.comment
    )


def test_settle_false_leaves_the_waiting_to_others(machine):
    sleeper = machine.sleeper()

    left = machine.dry_live_again("applied", version="2", settle=False)
    assert left.changes["kgraft_patch_2_2_1"] == {"old": None, "new": "applying"}

    os.kill(sleeper.pid, signal.SIGSTOP)
    os.kill(sleeper.pid, signal.SIGCONT)
    assert machine.settled().result is True
    assert machine.patches() == {"kgraft_patch_2_2_1": "applied"}


def test_a_transition_that_runs_already_is_waited_out_before_anything_is_installed(machine):
    sleeper = machine.sleeper()
    machine.lab.load("kgraft-patch-1-8_5_1")

    timed_out = machine.applied(version="2", timeout=1)
    assert timed_out.result is False
    assert "Nothing was installed." in timed_out.comment
    assert timed_out.changes == {}

    live = machine.applied(version="2", poke_after=0)
    assert live.result is True
    assert live.changes["poked"] == [f"sleep ({sleeper.pid})"]
    assert machine.patches() == {"kgraft_patch_1_8_5_1": "inactive", "kgraft_patch_2_2_1": "applied"}


def test_a_newer_patch_is_not_replaced_unasked(machine):
    assert machine.applied(version="10").result is True

    for test in (True, False):
        refused = machine.applied(version="9", test=test)
        assert refused.result is False
        assert refused.comment == "newer is active: 10-2.1; write >=9 or allow_downgrade: True"
        assert refused.changes == {}

    assert machine.dry_live_again("applied", version="9", allow_downgrade=True).changes == {
        PACKAGE: {"old": "10-2.1", "new": "9-2.2"},
        "kgraft_patch_10_2_1": {"old": "applied", "new": "inactive"},
        "kgraft_patch_9_2_2": {"old": None, "new": "applied"},
    }


def test_an_administrator_who_forbids_loading_is_obeyed_and_named(machine):
    (machine.suse.root / "etc/sysconfig").mkdir(parents=True, exist_ok=True)
    (machine.suse.root / "etc/sysconfig/livepatching").write_text('LIVEPATCH_KERNEL="never"\n')

    dry = machine.applied(version="2", test=True)
    live = machine.applied(version="2")

    assert (dry.result, live.result) == (False, False)
    assert dry.changes == live.changes == {PACKAGE: {"old": None, "new": "2-2.1"}}
    for again in (machine.applied(version="2", test=True), machine.applied(version="2")):
        assert again.result is False
        assert again.changes == {}
        assert "LIVEPATCH_KERNEL=never" in again.comment
    assert machine.patches() == {}


def test_a_package_whose_script_failed_is_loaded_by_the_state(make_machine, new_repository):
    repository = new_repository("failing")
    repository.add_live_patch(KERNEL, "3-1.1", post=FAIL)
    machine = make_machine([repository])

    live = machine.applied()

    assert live.result is True, live.comment
    assert "Resource temporarily unavailable" in live.comment
    assert machine.patches() == {"kgraft_patch_3_1_1": "applied"}


def test_a_patch_that_came_by_another_hand_leaves_nothing_to_do(machine):
    machine.suse.zypper("install", f"{PACKAGE}=2-2.1")
    until(lambda: machine.patches() == {"kgraft_patch_2_2_1": "applied"})

    done = machine.applied(version="2")

    assert done.result is True
    assert done.changes == {}
    assert done.comment == "2-2.1 is already applied and settled."


def test_a_patch_that_came_by_another_hand_may_still_have_to_be_waited_for(machine):
    machine.sleeper()
    machine.suse.zypper("install", f"{PACKAGE}=2-2.1")

    waited = machine.applied(version="2", poke_after=0)

    assert waited.result is True
    assert waited.changes["kgraft_patch_2_2_1"] == {"old": "applying", "new": "applied"}
    assert PACKAGE not in waited.changes


def test_a_patch_that_is_only_installed_is_loaded(machine, live_patches):
    package = next((live_patches.path / "packages").glob(f"{PACKAGE}-2-2.1.*"))
    subprocess.run(["rpm", "--root", machine.suse.root, "--install", "--noscripts", package], check=True)
    machine.lab.load("kgraft-patch-1-8_5_1")
    until(lambda: machine.patches() == {"kgraft_patch_1_8_5_1": "applied"})

    live = machine.applied(version="2")

    assert live.result is True, live.comment
    assert PACKAGE not in live.changes
    assert "initrd" not in live.comment  # the package is younger than this boot: its script did not load it


def test_what_no_repository_offers_is_refused_with_the_state_that_helps(make_machine):
    machine = make_machine([])

    for test in (True, False):
        for version in ("latest", "2"):
            refused = machine.applied(version=version, test=test)
            assert refused.result is False
            assert refused.comment == f"No enabled repository offers {PACKAGE}; kgraft.activated sees to that."


def test_a_patch_for_the_next_boots_kernel_is_told_apart(machine):
    machine.suse.zypper("install", package_name(OTHER_KERNEL))
    machine.suse.disable("live-patching")

    refused = machine.applied()

    assert refused.result is False
    assert f"For kernels that do not run now there is {package_name(OTHER_KERNEL)} 6-2.1: reboot" in refused.comment


def test_a_version_that_is_not_there_is_refused_with_those_that_are(machine):
    refused = machine.applied(version="5")

    assert refused.result is False
    assert "there is 10-2.1, 9-2.2, 2-2.1, 2-1.1, 1-8.5.1" in refused.comment


def test_an_unreachable_repository_is_a_failure_only_where_the_newest_could_be_there(machine, new_repository):
    machine.suse.add_unreachable_repository()

    for test in (True, False):
        refused = machine.applied(test=test)
        assert refused.result is (None if test else False)
        assert "token-that-nobody-may-see" not in refused.comment
    assert "What is the newest cannot be told, for these lists are too old: far (as of never)." in refused.comment
    assert machine.applied(version="10").result is True
    machine.suse.disable("far")

    other = new_repository("other")
    other.add_package("something-else")
    machine.suse.enable(other)
    assert machine.applied().result is True
    shutil.rmtree(other.path)

    done = machine.applied()
    assert done.result is True
    assert "Not read: other of the tests: " in done.comment


@pytest.mark.parametrize(("age", "result"), [(3600, True), (2 * 24 * 3600, False)])
def test_the_newest_of_an_old_list_is_not_the_newest(machine, live_patches, tmp_path, age, result):
    assert machine.applied().result is True
    place = machine.suse.root / "etc/zypp/repos.d/live-patching.repo"
    place.write_text(place.read_text().replace(live_patches.url, "dir:/nonexistent"))
    as_of = machine.suse.age("live-patching", age)

    told = machine.applied()

    assert told.result is result, told.comment
    assert told.changes == {}
    assert f"10-2.1 is already applied and settled, and is the newest offered as of {as_of}." in told.comment
    assert (f"live-patching (as of {as_of})" in told.comment) is not result
    assert "Not read: live-patching of the tests: " in told.comment
    assert machine.applied(version=">=9").result is True


@pytest.mark.parametrize(
    ("abi", "release", "versions"),
    [("kgraft", KERNEL, ["9-2.2", "10-2.1"]), ("livepatch", KERNEL_15, ["9-2.1", "10-150400.2.1"])],
)
def test_going_back_and_forth_unloads_what_is_in_memory_and_loads_it_again(make_machine, abi, release, versions):
    machine = make_machine(abi=abi, release=release)

    for version in versions * 2:
        live = machine.dry_live_again("applied", version=version, allow_downgrade=True)
        assert machine.editions() == [version], live.comment


def test_previous_is_the_one_before_the_newest_and_stays_it(machine):
    assert machine.applied().result is True

    live = machine.dry_live_again("applied", version="previous")

    assert live.changes[PACKAGE] == {"old": "10-2.1", "new": "9-2.2"}
    assert machine.patches()["kgraft_patch_9_2_2"] == "applied"


def test_a_newer_patch_that_can_no_longer_be_fetched_is_a_failure_in_zyppers_words(machine):
    assert machine.applied(version="9").result is True
    machine.suse.kill("live-patching")

    failed = machine.applied()

    assert (failed.result, failed.changes) == (False, {})
    assert "/nonexistent" in failed.comment
    assert "Not read: live-patching of the tests: " in failed.comment


def test_a_broken_signature_is_a_failure_in_zyppers_words(make_machine, new_repository):
    repository = new_repository("signed")
    repository.add_live_patch(KERNEL, "3-1.1")
    machine = make_machine([])
    repository.sign(machine.suse.root)
    machine.suse.enable(repository, gpgcheck=True)
    repository.break_signature()

    refused = machine.applied()

    assert refused.result is False
    assert "signature" in refused.comment.lower()
    assert machine.editions() == []


def test_another_zypper_is_waited_for_with_a_deadline(machine):
    with machine.suse.locked() as pid:
        refused = machine.applied(timeout=1)

    assert refused.result is False
    assert f"locked by zypper ({pid})" in refused.comment
    assert machine.applied(version="2").result is True


def test_the_end_of_support_is_warned_of_from_thirty_days_before(machine):
    assert machine.applied(version="2").result is True

    for days, warning in ((31, None), (30, "in 30 days"), (0, "in 0 days"), (-1, "ended on")):
        day = datetime.date.today() + datetime.timedelta(days=days)
        machine.suse.lifecycle(f"{PACKAGE}, *, {day}\n")
        warned = machine.applied(version="2")
        assert warned.result is True
        assert (str(day) in warned.comment) is bool(warning)
        assert (warning or "settled") in warned.comment


def test_cves_are_brought_by_the_newest_patch(machine):
    assert machine.applied(version="2").result is True

    live = machine.dry_live_again("applied", cves=["CVE-2026-0002", "CVE-2026-0009"])

    assert live.changes[PACKAGE] == {"old": "2-2.1", "new": "10-2.1"}
    assert "CVE-2026-0009: fixed by kgraft_patch_10_2_1" in live.comment


def test_cves_bring_the_first_patch_that_a_kernel_gets(machine):
    live = machine.dry_live_again("applied", cves=["CVE-2026-0009"])

    assert live.changes[PACKAGE] == {"old": None, "new": "10-2.1"}


def test_cves_of_a_patch_that_is_not_settled_are_waited_for(machine):
    sleeper = machine.sleeper()
    assert machine.applied(version="2", settle=False).result is True

    for test in (True, False):
        pending = machine.applied(cves=["CVE-2026-0002"], timeout=1, test=test)
        assert pending.result is (None if test else False)
        assert f"sleep ({sleeper.pid})" in pending.comment
    assert machine.applied(cves=["CVE-2026-0002"], settle=False).changes == {}

    settled = machine.applied(cves=["CVE-2026-0002"], poke_after=0)
    assert settled.result is True
    assert settled.changes["kgraft_patch_2_2_1"] == {"old": "applying", "new": "applied"}
    assert "CVE-2026-0002: fixed by kgraft_patch_2_2_1" in settled.comment


def test_a_cve_that_nobody_names_is_a_failure_and_not_a_pass(machine):
    machine.suse.zypper("install", "kernel-default=4.4.180")

    for test in (True, False):
        unknown = machine.applied(cves=["CVE-1999-0001"], test=test)
        assert unknown.result is False
        assert unknown.changes == {}
        assert "CVE-1999-0001: unknown" in unknown.comment
        assert "not_affected" in unknown.comment


def test_a_kernel_that_never_had_the_bug_passes_on_the_administrators_word(machine):
    for test in (True, False):
        passed = machine.applied(cves=["CVE-1999-0001"], not_affected=["4.4.180-*"], test=test)
        assert passed.result is True
        assert passed.comment == f"{KERNEL} never had CVE-1999-0001: this is the word of not_affected."


@pytest.mark.parametrize("requisite", ["watch", "onchanges", "require"])
def test_other_states_can_hang_on_it(machine, sls, requisite):
    sls.joinpath("hanging.sls").write_text(f"""
patched:
  kgraft.applied:
    - version: '2'
after:
  test.succeed_with_changes:
    - {requisite}:
      - kgraft: patched
""")

    first, second = machine.run_sls("hanging"), machine.run_sls("hanging")

    assert first["patched"].result is True and first["patched"].changes
    assert first["after"].changes
    assert second["patched"].changes == {}
    assert bool(second["after"].changes) is (requisite != "onchanges")


def test_it_can_hang_on_other_states(machine, sls):
    sls.joinpath("hanging.sls").write_text("""
reason:
  test.succeed_with_changes: []
trouble:
  test.fail_without_changes: []
watching:
  kgraft.settled:
    - watch:
      - test: reason
patched:
  kgraft.applied:
    - require:
      - test: trouble
""")

    outcome = machine.run_sls("hanging")

    assert outcome["watching"].result is True
    assert outcome["patched"].result is False
    assert machine.patches() == {}


def test_the_example_with_its_pillar_takes_a_machine_all_the_way(machine):
    dry, first = (machine.run_sls("kgraft", test=test) for test in (True, False))
    machine.minion.modules.kgraft.wait(timeout=60)
    late = machine.run_sls("kgraft.later")["no transition runs"]
    second = machine.run_sls("kgraft")

    assert [result.result for result in dry.values()] == [None, None]
    assert [result.result for result in first.values()] == [True, True]
    assert "settles without being waited for" in first["kernel is patched"].comment
    assert first["kernel is patched"].changes["kgraft_patch_10_2_1"]["old"] is None
    assert machine.patches()["kgraft_patch_10_2_1"] == "applied"
    assert (late.result, late.changes) == (True, {})
    assert [(result.result, result.changes) for result in second.values()] == [(True, {}), (True, {})]


def test_the_example_passes_by_kernels_without_live_patching(make_machine):
    machine = make_machine()
    shutil.rmtree(machine.suse.root / "sys/kernel/kgraft")

    for result in machine.run_sls("kgraft").values():
        assert result.result is True
        assert result.comment == "onlyif condition is false"


@pytest.mark.parametrize(
    ("name", "pillar"),
    [
        ("kgraft.cves", {"kgraft": {"cves": ["CVE-2026-0009", "CVE-2025-0001"]}}),
        ("kgraft.cves", {"kgraft": {"cves": ["CVE-2016-5195"], "not_affected": ["4.4.*"]}}),
        ("kgraft.later", {}),
        # dry, for Salt's pkg.held knows no root but the machine's own; it promises True
        ("kgraft.held", {}),
    ],
)
def test_each_other_example_applies(machine, name, pillar):
    if name == "kgraft.cves":
        machine.suse.zypper("install", "kernel-default=4.4.180")

    (result,) = machine.run_sls(name, pillar=pillar, test=name == "kgraft.held").values()

    assert result.result is True, result.comment
