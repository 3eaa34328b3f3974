"""
What ``kgraft.applied`` does when something goes another way than planned, and how it judges by CVEs; the plain ways are
in ``test_states_scenarios.py``.
"""

import pytest
from salt.exceptions import CommandExecutionError

from tests.support.suse_of_files import KERNEL, Machine

NEW, MID, OLD = "10-2.1", "9-2.2", "2-2.1"


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def module(version):
    return "kgraft_patch_" + version.replace("-", "_").replace(".", "_")


def replaced(machine, function, instead):
    """Let ``instead`` be called once in the place of a function, with that function as its first argument."""
    real = machine.salt[function]

    def once(*arguments, **options):
        machine.salt[function] = real
        return instead(real, *arguments, **options)

    machine.salt[function] = once


def failing(message):
    def fail(*_, **__):
        raise CommandExecutionError(message)

    return fail


# ----- on the way


def test_a_transition_that_runs_is_waited_out_and_the_repositories_are_read_once(machine):
    machine.moves(OLD)

    live = machine.applied()

    assert live.result is True, live.comment
    assert machine.changed == [f"install {NEW}"]
    assert machine.started.count("zypper refresh") == 1


def test_another_hand_that_brings_it_meanwhile_leaves_nothing_to_install(machine):
    machine.moves(OLD)

    def comes(wait, **options):
        waited = wait(**options)
        machine.runs(NEW)
        return waited

    replaced(machine, "kgraft.wait", comes)

    assert machine.applied().result is True
    assert [order for order in machine.changed if order.startswith("load")] == []


def test_an_installed_patch_newer_than_any_offered_is_loaded_by_latest(machine):
    machine.runs(MID)
    machine.installed[machine.package] = "11-1.1"

    assert machine.applied().result is True
    assert machine.changed == ["load kgraft_patch_11_1_1"]


def test_a_script_that_did_not_load_is_no_end(machine):
    machine.script = "fails"

    live = machine.applied()

    assert live.result is True
    assert machine.changed == [f"install {NEW}", f"load {module(NEW)}"]
    assert "%post scriptlet failed" in live.comment


def test_another_transition_that_comes_in_between_is_waited_out_before_loading(machine):
    machine.script = "fails"

    def comes(install, *arguments, **options):
        told = install(*arguments, **options)
        machine.rules.load("kgraft-patch-99-1")
        return told

    replaced(machine, "kgraft_pkg.install", comes)

    live = machine.applied()

    assert live.result is True, live.comment
    assert machine.patches()[module(NEW)] == "applied"


@pytest.mark.parametrize(
    ("function", "instead", "says", "left"),
    [
        (
            "kgraft.load",
            failing("Exec format error"),
            "{package} 10-2.1 is installed, but not loaded. Exec format error",
            NEW,
        ),
        (
            "kgraft.load",
            lambda load, name: {"name": name, "state": "applied"},
            "is installed, but not loaded. The kernel says: no live patch is active.",
            NEW,
        ),
        ("kgraft_pkg.install", failing("zypper ran, but"), "zypper ran, but", None),
        ("kgraft_pkg.installed", failing("rpm cannot tell"), "rpm cannot tell", None),
    ],
)
def test_what_failed_on_the_way_is_told_with_what_did_happen(machine, function, instead, says, left):
    machine.script = "none"
    if function == "kgraft_pkg.installed":
        machine.salt["kgraft_pkg.install"] = failing("zypper ran, but")
    replaced(machine, function, instead)

    failed = machine.applied()

    assert failed.result is False
    assert says.format(package=machine.package) in failed.comment
    assert failed.changes == ({machine.package: {"old": None, "new": left}} if left else {})


def test_a_patch_that_was_turned_back_while_it_was_waited_for_is_a_failure(machine):
    def turns_back(wait, **options):
        wait(**options)
        machine.rules.revert(machine._patch_name(NEW))
        machine.settle()

    replaced(machine, "kgraft.wait", turns_back)

    failed = machine.applied()

    assert failed.result is False
    assert "The transition ended otherwise than it began: no live patch is active." in failed.comment
    assert failed.changes[module(NEW)] == {"old": None, "new": "inactive"}


@pytest.mark.parametrize("arguments", [{"version": ">=9"}, {"version": "9"}, {"cves": ["CVE-2026-0001"]}])
def test_a_patch_on_its_way_that_was_turned_back_is_no_success(machine, told, arguments):
    told(CVE_2026_0001=fixed_from(9))
    machine.moves(MID)

    def turns_back(wait, **options):
        wait(**options)
        machine.rules.revert(machine._patch_name(MID))
        machine.settle()

    replaced(machine, "kgraft.wait", turns_back)

    failed = machine.applied(**arguments)

    assert failed.result is False, failed.comment
    assert "The transition ended otherwise than it began: no live patch is active." in failed.comment


def test_who_times_out_after_loading_is_not_told_that_nothing_was_loaded(machine):
    machine.sleeper.frozen = True

    failed = machine.applied(timeout=40)

    assert failed.comment.startswith(f"{module(NEW)} is applying, still after 40 s. 1 task blocks: ")
    assert "not loaded" not in failed.comment


def test_who_never_had_the_bug_waits_for_no_transition(machine):
    machine.sleeper.frozen = True
    machine.moves(MID)

    assert machine.applied(cves=["CVE-2026-0001"], not_affected=["4.4.*"], timeout=1).result is True


@pytest.mark.parametrize("refused", ["newer is active", "LIVEPATCH_KERNEL=never"])
def test_a_dry_run_knows_a_failure_that_no_list_could_mend(machine, refused):
    machine.add_repository("far", {}, dead=True, read=False)
    if refused == "newer is active":
        machine.runs(NEW)
    else:
        machine.configure("LIVEPATCH_KERNEL=never")

    dry, live = machine.applied(version="9", test=True), machine.applied(version="9")

    assert (dry.result, live.result) == (False, False), dry.comment
    assert refused in dry.comment and refused in live.comment


def test_another_hand_that_installs_while_it_waits_is_seen(machine):
    machine.moves(MID)

    def comes(wait, **options):
        waited = wait(**options)
        machine.holds(NEW)
        return waited

    replaced(machine, "kgraft.wait", comes)

    live = machine.applied(version=">=9")

    assert live.result is True
    assert live.changes[machine.package] == {"old": MID, "new": NEW}


def test_an_inactive_module_that_cannot_be_unloaded_is_told_before_anything_is_installed(machine):
    for version in (MID, NEW):
        machine.runs(version)
    machine.salt["kmod.remove"] = lambda name: "modprobe: ERROR: Module is in use"

    failed = machine.applied(version="previous")

    assert failed.result is False
    assert "Module is in use" in failed.comment
    assert (failed.changes, machine.installed) == ({}, {machine.package: NEW})


@pytest.mark.parametrize("name", ["kgraft_pkg", "kgraft_security"])
def test_a_module_that_is_not_there_is_named(machine, name):
    for function in [one for one in machine.salt if one.startswith(f"{name}.")]:
        del machine.salt[function]

    assert machine.applied().comment.startswith(f"The module {name} is not loaded on this minion: ")


def test_a_foreign_patch_is_not_taken_for_one_of_ours(machine):
    machine.rules.load("site-fix", replace_all=False)
    machine.settle()

    assert machine.applied(version="2").result is True
    assert machine.patches()[module(OLD)] == "applied"


@pytest.mark.parametrize("verb", ["refresh", "search"])
def test_a_zypper_that_hangs_is_a_failure_that_says_so(machine, verb):
    machine.hangs = (verb,)

    failed = machine.applied(timeout=2)

    assert (failed.result, failed.changes) == (False, {})
    assert "zypper did not end within 2 s and was ended" in failed.comment
    assert machine.applied(version=">=1").result is False
    machine.runs(NEW)
    assert machine.applied(version=">=1").result is True  # which needs no repository


@pytest.mark.parametrize("first", ["installed", "its own", "another's"])
def test_all_waits_of_a_run_have_one_deadline(machine, first):
    machine.sleeper.frozen = True
    if first == "another's":
        machine.moves(OLD)
    elif first == "its own":
        machine.installed[machine.package] = NEW
    began = machine.now

    failed = machine.applied(timeout=40)

    assert failed.result is False
    assert "still after 40 s" in failed.comment
    assert machine.now - began < 41


@pytest.mark.parametrize("before", [True, False])
def test_an_old_initrd_is_named_only_where_the_package_is_older_than_this_boot(machine, before):
    machine.runs(MID)
    machine.installed[machine.package] = NEW
    machine.installed_at = 0 if before else None

    live = machine.applied()

    assert live.result is True
    assert ("It was installed before this boot, and the kernel runs 9-2.2" in live.comment) is before


def test_a_file_of_the_support_windows_that_cannot_be_read_is_no_failure_of_a_patched_machine(machine):
    machine.runs(NEW)
    machine.kernel.write("var/lib/lifecycle/data/odd.lifecycle", "no line of it\n")

    live = machine.applied()

    assert (live.result, live.changes) == (True, {})
    assert "Until when this kernel gets live patches cannot be told: " in live.comment
    assert "odd.lifecycle" in live.comment


@pytest.mark.parametrize(
    ("state", "arguments"),
    [
        ("activated", {"register": "False"}),
        ("activated", {"refresh": "no"}),
        ("activated", {"timeout": "300"}),
        ("activated", {"packages": "kgraft"}),
        ("settled", {"timeout": float("nan")}),
        ("settled", {"poke_after": "120"}),
    ],
)
def test_a_string_is_no_truth_and_no_number(machine, state, arguments):
    (argument,) = arguments

    refused = machine.run(state, **arguments)

    assert (refused.result, refused.changes, machine.changed) == (False, {}, [])
    assert refused.comment.startswith(f"{argument} is ")


# ----- by CVEs


def fixed_from(version):
    """What ``kgraft_security.cves`` says of one: open until that version is active, pending until it is settled."""

    def verdict(machine):
        status = machine.salt["kgraft.status"]()
        fixing = [name for name in status["active"] if int(name.split("_")[2]) >= version]
        if fixing:
            return f"pending: settling {fixing[-1]}" if status["state"] == "in_progress" else f"fixed by {fixing[-1]}"
        here = machine.installed.get(machine.package)
        if here and int(here.split("-")[0]) >= version:
            return f"pending: installed, not loaded {machine.package} {here}"
        return f"open: {machine.package} {NEW}"

    return verdict


@pytest.fixture
def told(machine):
    """``told(CVE=verdict, …)``: what is true of each, a text or a function of the machine."""

    def tell(**verdicts):
        said = {name.replace("_", "-"): verdict for name, verdict in verdicts.items()}
        machine.salt["kgraft_security.cves"] = lambda *cves, timeout: {
            cve: said[cve](machine) if callable(said[cve]) else said[cve] for cve in cves
        }
        return {"cves": list(said)}

    return tell


def dry_live_again(machine, result, **arguments):
    dry, live = machine.applied(test=True, **arguments), machine.applied(**arguments)
    assert (dry.result, live.result) == (None if result and live.changes else result, result), live.comment
    assert dry.changes == live.changes
    again = machine.applied(**arguments)
    assert (again.result, again.changes) == (result, {})
    return live


def test_an_open_cve_brings_the_newest_patch(machine, told):
    machine.runs(OLD)

    live = dry_live_again(machine, True, **told(CVE_2026_0001=fixed_from(9), CVE_2026_0002="fixed by kernel"))

    assert live.comment.splitlines()[1:] == [f"CVE-2026-0001: fixed by {module(NEW)}", "CVE-2026-0002: fixed by kernel"]
    assert machine.changed == [f"install {NEW}"]


def test_fixed_cves_need_no_repository(machine, told):
    assert machine.applied(**told(CVE_2026_0001="fixed by kernel")).result is True
    assert machine.started == ["rpm -q"]


def test_a_kernel_that_can_have_no_live_patch_is_judged_by_what_fixes_it(tmp_path):
    machine = Machine(tmp_path, release="4.12.14-16.1-azure")
    machine.kernel_changelog = "- Fix CVE-2026-0001"

    assert machine.applied(cves=["CVE-2026-0001"]).result is True
    refused = machine.applied()
    assert (refused.result, refused.changes) == (False, {})
    assert "No live-patch package can exist for kernel 4.12.14-16.1-azure" in refused.comment


@pytest.mark.parametrize("release", [KERNEL, "4.12.14-16.1-azure"])
def test_the_administrators_word_is_taken_before_anybody_is_asked(tmp_path, release):
    machine = Machine(tmp_path, release=release)

    answer = machine.applied(cves=["CVE-2026-0001"], not_affected=["4.*"])

    assert answer.comment == f"{release} never had CVE-2026-0001: this is the word of not_affected."
    assert (answer.result, machine.started) == (True, [])


@pytest.mark.parametrize(
    ("verdict", "advice"),
    [
        ("unknown: nobody names it", "Unknown is no pass"),
        ("unread: far: it is away", "What could not be read may name it"),
        ("elsewhere: SUSE-1 (openssl)", "is not fixed by a live patch"),
    ],
)
@pytest.mark.parametrize("beside", [False, True])
def test_what_no_live_patch_makes_good_is_a_failure_and_installs_nothing_by_itself(
    machine, told, verdict, advice, beside
):
    cves = told(CVE_2026_0002=verdict, **({"CVE_2026_0001": fixed_from(9)} if beside else {}))

    failed = dry_live_again(machine, False, **cves)

    assert f"CVE-2026-0002: {verdict}" in failed.comment
    assert advice in failed.comment
    assert ("not_affected" in failed.comment) is verdict.startswith("unknown")
    assert bool(failed.changes) is beside


def test_a_cve_that_the_newest_patch_does_not_fix_is_a_failure_that_says_so(machine, told):
    failed = machine.applied(**told(CVE_2026_0001=fixed_from(11)))

    assert failed.result is False
    assert "The live patches that there are do not fix them all." in failed.comment
    assert machine.edition() == NEW


@pytest.mark.parametrize("settle", [True, False])
def test_a_patch_that_waits_is_taken_and_not_replaced_by_a_newer_one(machine, told, settle):
    machine.installed[machine.package] = MID

    live = machine.applied(settle=settle, **told(CVE_2026_0001=fixed_from(9)))

    assert live.result is True, live.comment
    assert machine.changed == [f"load {module(MID)}"]
    machine.settle()
    assert machine.applied(**told(CVE_2026_0001=fixed_from(9))).changes == {}


def test_a_pending_patch_is_settled_and_not_replaced_by_a_newer_one(machine, told):
    machine.moves(MID)

    live = dry_live_again(machine, True, **told(CVE_2026_0001=fixed_from(9)))

    assert machine.changed == []
    assert live.changes[module(MID)] == {"old": "applying", "new": "applied"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"cves": []}, "cves is empty"),
        ({"cves": "CVE-2026-1"}, "cves is 'CVE-2026-1': it must be a list"),
        ({"cves": ["CVE-2026-0001", "CVE-1"]}, "cves: no CVE number is 'CVE-1'"),
        ({"cves": ["CVE-2026-0001"], "version": "5"}, "version is '5' and cves are given"),
        ({"cves": ["CVE-2026-0001"], "not_affected": "4.4*"}, "not_affected is '4.4*': it must be a list"),
        ({"not_affected": ["4.4*"]}, "not_affected is given without cves"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(machine, arguments, words):
    for test in (True, False):
        refused = machine.applied(test=test, **arguments)
        assert (refused.result, refused.changes, machine.started) == (False, {}, [])
        assert refused.comment.startswith(words)
