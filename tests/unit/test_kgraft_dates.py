"""When a live patch was released, installed and settled: on a machine of files, with logs as kernels write them."""

import time

import pytest
from salt.exceptions import SaltInvocationError

from tests.support.packages import KERNEL, KERNEL_15, package_name
from tests.support.suse_of_files import Machine

RELEASES = {"kgraft": KERNEL, "livepatch": KERNEL_15}
MODULES = {"kgraft": "kgraft_patch_2_2_1", "livepatch": "livepatch_9_2_1"}
VERSIONS = {"kgraft": "2-2.1", "livepatch": "9-2.1"}
NONE = dict.fromkeys(("released", "installed", "settled"))


def stamp(seconds):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def boot_time():
    with open("/proc/stat", encoding="ascii") as stat:
        return next(int(line.split()[1]) for line in stat if line.startswith("btime "))


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Return ``make(abi)``: a machine that runs a patch, with the whole log of this boot as its own."""

    def machine(abi="kgraft", runs=True):
        made = Machine(tmp_path, abi)
        monkeypatch.setattr(made.modules["kgraft_security"].zypper, "root", lambda: {})
        made.installed_at = 1700000000
        if runs:
            made.runs(VERSIONS[abi])
        package = package_name(RELEASES[abi])
        made.known = [
            ("SUSE-again", "applied", "important", False, [], {package: VERSIONS[abi]}),
            ("SUSE-first", "applied", "important", False, [], {package: VERSIONS[abi]}),
            ("SUSE-next", "needed", "important", False, [], {package: "10-2.1"}),
            ("SUSE-other", "applied", "important", False, [], {"other": VERSIONS[abi]}),
        ]
        made.issued = {"SUSE-again": 1690000000, "SUSE-first": 1680000000, "SUSE-next": 1, "SUSE-other": 2}
        return made

    return machine


def ask(machine, **arguments):
    return machine.salt["kgraft_security.dates"](**arguments)


@pytest.mark.parametrize("abi", ["kgraft", "livepatch"])
def test_a_patch_has_three_dates(make, abi):
    machine = make(abi)
    machine.dmesg = (
        0,
        {
            "kgraft": "[   60.1] kgr: applying patch 'kgraft-patch-2-2_1'\n[   75.5] kgr: patching succeeded\n",
            "livepatch": "[   75.5] livepatch: 'livepatch_9_2_1': patching complete\n",
        }[abi],
    )

    assert ask(machine) == {
        "patches": {
            MODULES[abi]: {
                "version": VERSIONS[abi],
                "released": stamp(1680000000),
                "installed": stamp(1700000000),
                "settled": stamp(boot_time() + 75),
            }
        },
        "unread": [],
    }


APPLY, BACK = "kgr: applying patch 'kgraft-patch-2-2_1'", "kgr: reverting patch 'kgraft_patch_2_2_1'"
OTHER, OK = "kgr: applying patch 'kgraft-patch-1-1'", "kgr: patching succeeded"
COMPLETE = "livepatch: 'livepatch_9_2_1': patching complete"


@pytest.mark.parametrize(
    ("abi", "lines", "settled"),
    [
        ("kgraft", [APPLY, "kgr succeeded"], 1),  # older kernels
        ("kgraft", [OTHER, OK, APPLY, "kgr: still in progress after timeout, will keep trying every 2 seconds", OK], 4),
        ("kgraft", [APPLY, OK, BACK, OK, APPLY, OK], 5),
        ("kgraft", [APPLY, OK, OK], 1),  # an end of something that the log does not name
        ("kgraft", [APPLY], None),
        ("kgraft", [OK], None),  # the log has lost what came before
        ("kgraft", [APPLY, BACK, OK], None),  # the end of the revert
        ("kgraft", [OTHER, OK], None),
        ("kgraft", [], None),
        ("livepatch", [COMPLETE, "livepatch: 'livepatch_10_1': patching complete"], 0),
        ("livepatch", ["livepatch: enabling patch 'livepatch_9_2_1'"], None),
        ("livepatch", ["livepatch: 'livepatch_9_2_1': unpatching complete"], None),
        ("livepatch", ["x: 'livepatch_9_2_1': patching complete"], None),
        ("livepatch", [COMPLETE + " not"], None),
        # no patch of this name is looked for with what another one is called
        ("livepatch", ["livepatch: 'a livepatch_9_2_1': patching complete"], None),
    ],
)
@pytest.mark.parametrize("form", ["[{:5}.123456] {}\n", "[{:5}.123456][ T4711] {}\n"])
def test_when_it_settled_is_read_in_the_kernels_log(make, form, abi, lines, settled):
    machine = make(abi)
    machine.dmesg = 0, "".join(form.format(second, line) for second, line in enumerate(lines))
    told = ask(machine)["patches"][MODULES[abi]]["settled"]
    assert told == (None if settled is None else stamp(boot_time() + settled))


def test_what_is_not_known_is_none_and_not_a_guess(make):
    machine = make()
    machine.known, machine.installed = [], {}
    assert ask(machine) == {"patches": {"kgraft_patch_2_2_1": dict(NONE, version="2-2.1")}, "unread": []}
    machine.holds("10-2.1")  # another version is installed
    assert ask(machine)["patches"]["kgraft_patch_2_2_1"]["installed"] is None


def test_a_patch_that_settles_has_no_dates_yet(make):
    machine = make(runs=False)
    machine.moves("2-2.1")
    machine.dmesg = 0, f"[  5.0] {APPLY}\n[  6.0] {OK}\n"  # of an earlier time
    assert ask(machine)["patches"] == {"kgraft_patch_2_2_1": dict(NONE, version="2-2.1")}


def test_where_nothing_is_applied_nobody_is_asked(make):
    machine = make(runs=False)
    assert ask(machine) == {"patches": {}, "unread": []}
    assert machine.started == []


def test_what_could_not_be_read_is_named_and_the_rest_is_told(make):
    machine = make()
    machine.repositories["live-patching"]["dead"] = True
    machine.dmesg = 1, ""
    machine.hangs = ["-q"]
    told = ask(machine)
    assert told["patches"]["kgraft_patch_2_2_1"] == dict(NONE, version="2-2.1", released=stamp(1680000000))
    assert [line.partition(":")[0] for line in told["unread"]] == [
        "live-patching of the tests",
        "rpm",
        "the kernel's log",
    ]


def test_another_root_has_another_log(tmp_path):
    machine = Machine(tmp_path)
    machine.runs("2-2.1")
    machine.installed_at = 1700000000
    assert ask(machine)["unread"] == ["the kernel's log: it is that of /, not of kgraft.root"]


def test_a_timeout_that_cannot_be_is_refused(make):
    with pytest.raises(SaltInvocationError, match="timeout"):
        ask(make(), timeout="soon")
