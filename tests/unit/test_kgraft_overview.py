"""What ``kgraft.overview`` says of a machine, and what it says of what it does not know."""

import datetime
import json
import pathlib
import re
import time

import pytest
import yaml
from salt.exceptions import CommandExecutionError, SaltInvocationError

KEYS = {"observed", "version", "state", "direction", "active", "kernelrelease", "boot_id", "abi"}
KEYS |= {"running", "since", "blocking", "package", "fixes", "supported_until", "reboot", "notes"}


@pytest.fixture
def others(kgraft):
    """What other modules answer, as ``{function: answer}``; one that raises is an exception."""

    def answer(**functions):
        def call(value):
            if isinstance(value, Exception):
                raise value
            return value

        for name, value in functions.items():
            kgraft.__salt__[name.replace("__", ".")] = lambda value=value: call(value)

    return answer


OFFERED = {"versions": ["10-2.1"], "newest": "10-2.1", "as_of": "2026-11-23 02:10", "unread": ["far: it is away"]}


def test_all_that_is_known_is_in_one_answer(kernel, kgraft, others, monkeypatch):
    monkeypatch.setenv("TZ", "XXX-2")  # two hours east
    time.tzset()
    kernel.patch("kgraft-patch-9-2_2")
    others(
        kgraft_pkg__available=OFFERED,
        kgraft_pkg__name="kgraft-patch-x",
        kgraft_pkg__installed="9-2.2",
        kgraft_security__supported_until="2026-12-31",
        kgraft_security__reboot={"verdict": "not needed"},
    )

    told = kgraft.overview()

    assert set(told) == KEYS
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", told["observed"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", told["version"])
    assert {key: told[key] for key in ("state", "active", "abi")} == {
        "state": "ready",
        "active": ["kgraft_patch_9_2_2"],
        "abi": "kgraft",
    }
    assert told["package"] == {
        "name": "kgraft-patch-x",
        "installed": "9-2.2",
        "newest": "10-2.1",
        "as_of": "2026-11-23T00:10:00Z",
    }
    assert (told["supported_until"], told["reboot"]) == ("2026-12-31", {"verdict": "not needed"})
    assert (told["blocking"], told["fixes"], told["notes"]) == (None, None, ["far: it is away"])


FIXES = {"version": "9-2.2", "cves": ["CVE-2015-0002"], "bugs": [], "source": "kgr", "unread": []}


def test_what_the_running_patch_fixes_is_told_if_asked(kernel, kgraft, others):
    kernel.patch("kgraft-patch-9-2_2")
    others(kgraft_security__fixes=FIXES)
    assert kgraft.overview()["fixes"] is None
    assert kgraft.overview(fixes=True)["fixes"] == FIXES

    others(kgraft_security__fixes=CommandExecutionError("nothing names it"))
    told = kgraft.overview(fixes=True)
    assert set(told) == KEYS
    assert told["fixes"] is None
    assert "kgraft_security.fixes: nothing names it" in told["notes"]


def test_a_transition_that_ends_meanwhile_is_told_as_ended_and_as_asked(kernel, kgraft, others, monkeypatch):
    kernel.start("kgraft-patch-2-2_1")
    kernel.task(731, "nfsd", blocking=True)
    others(kgraft_security__fixes=FIXES)
    blocking = kgraft.blocking

    def late():
        kernel.finish()
        return blocking()

    monkeypatch.setattr(kgraft, "blocking", late)
    told = kgraft.overview(names=True, fixes=True)
    assert (told["state"], told["blocking"], told["fixes"]) == ("ready", None, FIXES)


def test_what_is_not_known_is_none_with_a_reason(kernel, kgraft, others):
    others(kgraft_pkg__available=CommandExecutionError("zypper did not end"))

    told = kgraft.overview()

    assert set(told) == KEYS
    assert (told["package"], told["supported_until"], told["reboot"]) == (None, None, None)
    assert told["notes"] == [
        "kgraft_pkg.available: zypper did not end",
        "kgraft_security.supported_until is not loaded here",
        "kgraft_security.reboot is not loaded here",
    ]


@pytest.mark.parametrize("kernel", [{"abi": None}], indirect=True)
def test_a_kernel_without_live_patching_is_told_as_such(kgraft):
    told = kgraft.overview()
    assert (told["state"], told["abi"], told["active"], told["blocking"]) == ("unavailable", None, [], None)


@pytest.mark.parametrize("names", [False, True])
def test_who_blocks_is_told_by_kind_and_by_name_only_if_asked(moving, names):
    kernel, kgraft = moving
    kernel.task(4711, "hdbindexserver", unit="sapinit.service", blocking=True)

    told = kgraft.overview(names=names)["blocking"]

    (task,) = told["tasks"]
    assert (told["count"], told["complete"]) == (1, True)
    assert (task["kind"], task["unit"]) == ("user", "sapinit.service")
    assert task["why"].startswith("It sleeps in the kernel since before the patch")
    assert ("name" in task, "user" in task, "pid" in task) == (names, names, names)
    assert ("hdbindexserver" in str(told)) is names


@pytest.mark.parametrize("argument", ["names", "fixes"])
def test_a_string_is_no_truth(kgraft, argument):
    with pytest.raises(SaltInvocationError, match=f"{argument}='yes'"):
        kgraft.overview(**{argument: "yes"})


@pytest.fixture
def remembered(moving):
    """Return ``remembered(name="kgraft", **transition)``: a beacon's memory of the transition that runs."""
    kernel, kgraft = moving
    status = kgraft.status()

    def write(name="kgraft", boot_id=status["boot_id"], **transition):
        known = {"direction": "apply", "patch": status["moving"][0], "since": time.monotonic() - 7200}
        memory = {"format": 2, "kernel": {"boot_id": boot_id}, "transition": {**known, **transition}}
        path = pathlib.Path(kgraft.__opts__["cachedir"]) / f"kgraft_beacon_{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(memory))
        return path

    return write


def _age(told):
    seen = datetime.datetime.strptime(told["since"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.timezone.utc)
    return (datetime.datetime.now(datetime.timezone.utc) - seen).total_seconds()


def test_since_when_it_runs_is_what_a_beacon_remembers(moving, remembered):
    remembered()
    remembered("another", since=time.monotonic() - 60)
    assert abs(_age(moving[1].overview()) - 7200) < 5


@pytest.mark.parametrize(
    "other",
    [
        {"boot_id": "another boot"},
        {"direction": "revert"},
        {"patch": "kgraft_patch_1_1"},
        {"since": "torn"},
        None,
    ],
)
def test_a_memory_of_something_else_is_none(moving, remembered, other):
    path = remembered(**(other or {}))
    if other is None:
        path.write_text('{"format": 2, "kern')
    told = moving[1].overview()
    assert told["since"] is None
    assert "Since when it runs is not known: no memory of the beacon kgraft tells it" in told["notes"]


def test_at_rest_nothing_is_missed(kernel, kgraft):
    kernel.patch("kgraft-patch-9-2_2")
    told = kgraft.overview()
    assert (told["running"], told["since"]) == ("9-2.2", None)
    assert not any("Since when" in note for note in told["notes"])


# the file for SUSE

DMESG = """\
[    0.000000] Command line: root=/dev/sda1 livepatch.secret=geheim
[    0.000000] Kernel command line: root=/dev/sda1 livepatch.secret=geheim
[   12.345678] usb 1-1: new device
[   13.000000] x: in the background
[   99.000000] kgr: starting patching of kgraft_patch_2_2_1 \x1b[31m
[  100.000000] livepatch: enabling patch 'livepatch_9_2_1'
"""


def dmesg(cmd, **options):
    assert cmd == ["dmesg", "--kernel"]
    return {"retcode": 0, "stdout": DMESG, "stderr": ""}


@pytest.fixture
def support(kernel, kgraft, others, monkeypatch):
    """Return ``support()``: the answer, and what is in the file."""
    for name in ("overview", "patches", "blocking"):
        kgraft.__salt__[f"kgraft.{name}"] = getattr(kgraft, name)
    kgraft.__salt__["cmd.run_all"] = dmesg
    kgraft.__salt__["pkg.list_locks"] = lambda root=None: {"kernel-default": {"root": root}}
    others(test__versions_information={"Salt Version": {}})
    others(kgraft_security__fixes=FIXES)
    pathlib.Path(kgraft.__opts__["cachedir"]).mkdir()

    def write(root=None, **arguments):
        if root:
            monkeypatch.setattr(kgraft, "_root", lambda: root)
        answer = kgraft.support(**arguments)
        return answer, yaml.safe_load(pathlib.Path(answer["path"]).read_text("utf-8"))

    return write


def test_the_file_for_suse_has_all_that_is_known(kernel, kgraft, support):
    kernel.start("kgraft-patch-2-2_1")
    kernel.task(731, "nfsd", blocking=True, cmdline="nfsd --password=geheim", stack="[<0>] svc_recv+0x1/0x2\n")

    answer, told = support()

    assert set(told) == {
        *("overview", "patches", "blocking", "kernel log", "locks", "repositories", "other kernels", "loading"),
        *("versions", "notes"),
    }
    assert (told["overview"]["state"], told["overview"]["fixes"]) == ("in_progress", FIXES)
    assert [task["name"] for task in told["overview"]["blocking"]["tasks"]] == ["nfsd"]
    assert told["patches"]["kgraft_patch_2_2_1"]["functions"]
    (task,) = told["blocking"]["tasks"]
    assert (task["name"], task["stack"]) == ("nfsd", {"731": ["[<0>] svc_recv+0x1/0x2"]})
    assert task["why"] and task["help"]
    assert told["locks"] == {"kernel-default": {"root": str(kernel.root)}}
    assert set(told["versions"]) == {"Salt Version", "kgraft"}
    assert told["notes"] == answer["notes"]
    assert "kgraft_pkg.repositories is not loaded here" in answer["notes"]
    assert "geheim" not in pathlib.Path(answer["path"]).read_text("utf-8")


def test_the_file_for_suse_tells_nobody_to_touch_what_is_protected(kernel, kgraft, support):
    kernel.start("kgraft-patch-2-2_1")
    kernel.task(731, "postgres", blocking=True, letter="T")

    (task,) = support(protect="name:postgres*")[1]["blocking"]["tasks"]

    assert task["help"].startswith("It is protected: do not restart it")
    kgraft.__salt__.clear()  # before anybody is asked
    with pytest.raises(SaltInvocationError, match="protect='postgres'"):
        kgraft.support(protect="postgres")


def test_the_file_for_suse_is_roots_alone_and_replaces_an_older_one(kgraft, support):
    path = pathlib.Path(kgraft.__opts__["cachedir"]) / "kgraft_support.yaml"
    assert support()[0]["path"] == support()[0]["path"] == str(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_the_kernels_log_is_that_of_live_patches_without_the_command_line(kgraft, monkeypatch):
    kgraft.__salt__["cmd.run_all"] = dmesg
    monkeypatch.setattr(kgraft, "_root", lambda: "/")
    assert kgraft._kernel_log([]) == [
        "[   99.000000] kgr: starting patching of kgraft_patch_2_2_1 \\x1b[31m",
        "[  100.000000] livepatch: enabling patch 'livepatch_9_2_1'",
    ]


def test_a_log_that_may_not_be_read_is_a_note(kgraft, monkeypatch):
    refused = {"retcode": 1, "stdout": "", "stderr": "dmesg: Operation not permitted"}
    kgraft.__salt__["cmd.run_all"] = lambda *words, **options: refused
    notes = []
    monkeypatch.setattr(kgraft, "_root", lambda: "/")
    assert (kgraft._kernel_log(notes), notes) == (None, ["dmesg: dmesg: Operation not permitted"])


def test_the_log_of_this_machine_is_none_of_another_root(support):
    answer, told = support()
    assert told["kernel log"] is None
    assert any("The kernel's log is that of /" in note for note in answer["notes"])
