"""What the beacon promises over restarts, kills and refreshes; its memory on disk, whole, torn, foreign or full."""

import errno
import json
import os
from types import SimpleNamespace
from unittest.mock import create_autospec

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.files import BOOT_ID
from tests.support.beacon_minion import OTHER_BOOT, Minion, fail, tags
from tests.support.soak import rounds

pytest_plugins = ["tests.support.beacon_fixtures"]


# -- the promise


def test_a_restart_in_a_transition_tells_nothing_twice(kernel, minion):
    kernel.start("kgraft-patch-2-2_1")
    [started] = minion.look()
    minion.look(after=60)
    minion.restart()

    assert minion.look(after=59) == []
    [stuck] = minion.look(after=1)
    assert (stuck["transition"], stuck["seconds"]) == (started["transition"], 120.0)


def test_what_a_killed_minion_may_not_have_sent_is_sent_again_as_it_was(kernel, minion):
    kernel.start("kgraft-patch-2-2_1")
    lost = minion.look()
    minion.restart()

    assert minion.look() == lost
    assert minion.look() == []


def test_what_a_minion_killed_seconds_later_may_not_have_sent_is_sent_again(kernel, minion):
    """Salt sends after the beacon has returned; a master that is slow to answer gets its time."""
    kernel.start("kgraft-patch-2-2_1")
    lost = minion.look()
    minion.look(after=5)
    minion.restart()

    assert minion.look() == lost


def test_what_salt_does_to_an_event_is_not_remembered(kernel, minion):
    kernel.start("kgraft-patch-2-2_1")
    lost = minion.look()
    lost[0].pop("tag")
    lost[0]["active"].clear()
    minion.look()
    minion.restart()

    [again] = minion.look()

    assert (again["tag"], again["active"]) == ("started", ["kgraft_patch_2_2_1"])


def test_an_end_that_a_killed_minion_did_not_send_is_not_lost_to_a_reboot(kernel, minion):
    kernel.start("kgraft-patch-2-2_1")
    minion.look()
    minion.look(after=60)
    kernel.finish()
    lost = minion.look()
    minion.restart()
    kernel.write("proc/sys/kernel/random/boot_id", OTHER_BOOT + "\n")
    minion.clock.now = 5.0

    assert minion.look() == lost
    assert lost[0]["boot_id"] == BOOT_ID


def test_a_kill_before_the_memory_is_written_loses_nothing(kernel, minion, monkeypatch):
    minion.look()
    kernel.start("kgraft-patch-2-2_1")
    with monkeypatch.context() as patched:
        patched.setattr(minion.module, "_write", create_autospec(minion.module._write, side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            minion.look()
    minion.restart()

    assert tags(minion.look()) == ["started"]


def test_what_was_handed_over_long_ago_is_not_sent_again(kernel, minion):
    kernel.start("kgraft-patch-2-2_1")
    minion.look()
    minion.look(after=10)
    minion.restart()

    assert minion.look() == []


def test_a_refresh_tells_nothing_twice(kernel, minion):
    kernel.start("kgraft-patch-2-2_1")
    minion.look()
    minion.refresh()

    assert minion.look() == []


def test_an_end_while_the_minion_was_down_is_told(kernel, minion):
    kernel.start("kgraft-patch-2-2_1")
    [started] = minion.look()
    minion.look(after=60)
    kernel.finish()
    minion.restart()

    [finished] = minion.look()

    assert (finished["tag"], finished["transition"]) == ("finished", started["transition"])


def test_a_reboot_is_a_new_beginning(kernel, minion):
    kernel.start("kgraft-patch-2-2_1")
    [before] = minion.look()
    minion.look(after=60)
    kernel.finish()
    kernel.write("proc/sys/kernel/random/boot_id", OTHER_BOOT + "\n")
    minion.restart()
    minion.clock.now = 5.0
    assert minion.look() == []
    kernel.start("kgraft-patch-3-2_1")

    [after] = minion.look()

    assert after["boot_id"] == OTHER_BOOT
    assert after["transition"] != before["transition"]


def test_a_reboot_into_a_transition_says_started(kernel, minion):
    kernel.start("kgraft-patch-2-2_1")
    [before] = minion.look()
    minion.look(after=60)
    kernel.write("proc/sys/kernel/random/boot_id", OTHER_BOOT + "\n")
    minion.restart()
    minion.clock.now = 5.0

    [after] = minion.look()

    assert (after["tag"], after["boot_id"], after["patch"]) == ("started", OTHER_BOOT, "kgraft_patch_2_2_1")
    assert after["transition"] != before["transition"]


@pytest.mark.parametrize("jump", [-86400 * 365, 86400 * 365])
def test_a_clock_that_jumps_changes_nothing(kernel, minion, jump):
    kernel.start("kgraft-patch-2-2_1")
    minion.look()
    minion.clock.wall += jump

    assert minion.look() == []
    kernel.finish()
    assert minion.look()[0]["seconds"] == 2.0


def test_a_time_namespace_that_is_behind_delays_no_alarm(kernel, minion):
    kernel.start("kgraft-patch-2-2_1")
    minion.look()
    minion.look(after=60)
    minion.restart()
    minion.clock.now = 10.0
    minion.look()

    assert tags(minion.look(after=120)) == ["stuck"]


def test_an_id_never_comes_back_when_the_memory_is_lost(kernel, minion):
    kernel.start("kgraft-patch-2-2_1")
    [before] = minion.look()
    kernel.finish()
    minion.look()
    minion.memory.unlink()
    minion.restart()
    kernel.start("kgraft-patch-3-2_1")

    assert minion.look()[0]["transition"] != before["transition"]


def test_a_memory_that_somebody_deletes_is_written_again(kernel, minion):
    kernel.start("kgraft-patch-2-2_1")
    minion.look()
    minion.look(after=60)
    minion.memory.unlink()
    minion.look()
    minion.restart()

    assert minion.look() == []


# -- memory files of others


def memory(**changes):
    """The content of a memory file of today's format, but for some of it."""
    fields = {
        **{"format": 2, "kernel": {}, "settled": [], "transition": None, "stamp": 0, "errors": {}, "outbox": []},
        **changes,
    }
    return json.dumps(fields).encode()


KERNEL = {"abi": "kgraft", "active": [], "boot_id": BOOT_ID, "kernelrelease": "4.4"}
RUNNING = {"id": "x", "direction": None, "patch": None, "since": 0, "times": 0, "told": 0}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"kernel": {"abi": "kg',
        b"\0" * 4096,
        b"\xff\xfe",
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"kernel": {}, "transition": {}, "count": 0, "errors": {}, "outbox": []}',
        b'{"kernel": {}, "transition": null, "count": true, "errors": {}, "outbox": []}',
        b'{"kernel": {}, "transition": null, "count": 0, "errors": {}, "outbox": [[0, {}]]}',
        b'{"kernel": {"active": []}, "transition": null, "count": 0, "errors": {}, "outbox": []}',
        b'{"format": 1, "kernel": {}, "transition": null, "count": 0, "errors": {}, "outbox": []}',
        memory(format=None),
        memory(format=1),
        memory(format=3),
        memory(kernel=None),
        memory(kernel={"active": []}),
        memory(kernel={**KERNEL, "active": None}),
        memory(transition=5),
        memory(kernel=KERNEL, stamp="many"),
        memory(kernel=KERNEL, settled=None),
        memory(kernel=KERNEL, settled=7),
        memory(kernel=KERNEL, transition={**RUNNING, "since": "now"}),
        memory(kernel=KERNEL, transition={**RUNNING, "since": float("nan")}),
        memory(kernel=KERNEL, transition={"id": "x"}),
        memory(kernel=KERNEL, stamp=None),
        memory(kernel=KERNEL, stamp=float("inf")),
        memory(errors=[]),
        memory(outbox=None),
        memory(outbox=[[0, {}]]),
        memory(outbox=[[0, {"tag": 7}]]),
        memory(outbox=[[0, "tag"]]),
    ],
)
def test_a_torn_or_foreign_memory_is_kept_aside_and_told(kernel, minion, content):
    minion.memory.write_bytes(content)
    kernel.start("kgraft-patch-2-2_1")

    started, error = minion.look()

    assert (started["tag"], error["tag"]) == ("started", "error")
    assert f"{minion.memory}.aside: events may be missing" in error["error"]
    assert (minion.cachedir / f"{minion.memory.name}.aside").read_bytes() == content
    assert minion.look() == []


def test_a_directory_in_the_place_of_the_memory_is_kept_aside(minion):
    minion.memory.mkdir()

    [error] = minion.look()

    assert "Is a directory" in error["error"]
    assert minion.memory.is_file()


@pytest.mark.parametrize(
    ("content", "after"),
    [
        (memory(kernel=KERNEL, transition={**RUNNING, "since": -(10**400)}), 120),
        (memory(kernel=KERNEL, transition={**RUNNING, "times": "once"}), 3600),
    ],
)
def test_a_memory_that_breaks_later_is_kept_aside_then(kernel, minion, content, after):
    kernel.start("kgraft-patch-2-2_1", functions=[("vmlinux", "cmdline_proc_show", 0, 0)])
    minion.memory.write_bytes(content)
    minion.clock.now = 0.0
    assert minion.look() == []

    assert tags(minion.look(after)) == ["started", "error"]
    assert (minion.cachedir / f"{minion.memory.name}.aside").exists()
    assert minion.look() == []


def test_a_memory_of_another_format_in_a_process_that_got_a_new_beacon_is_kept_aside(kernel, minion):
    kernel.start("kgraft-patch-2-2_1")
    minion.look()
    minion.module.FORMAT = 3

    assert tags(minion.look()) == ["started", "error"]
    assert minion.look() == []


def test_a_failure_that_the_memory_is_not_to_blame_for_leaves_it_alone(kernel, minion):
    kernel.start("kgraft-patch-2-2_1")
    [started] = minion.look()
    status = minion.calls["kgraft.status"].side_effect
    minion.calls["kgraft.status"].side_effect = KeyError("a mistake of ours")
    with pytest.raises(KeyError, match="a mistake of ours"):
        minion.look()
    minion.calls["kgraft.status"].side_effect = status
    kernel.finish()

    [finished] = minion.look()

    assert finished["transition"] == started["transition"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
MEMORY = st.fixed_dictionaries(
    {
        "format": st.just(2) | JSON,
        "kernel": JSON
        | st.fixed_dictionaries(
            {
                "abi": JSON,
                "active": st.lists(st.text()) | JSON,
                "boot_id": st.just(BOOT_ID) | JSON,
                "kernelrelease": JSON,
            }
        ),
        "transition": st.fixed_dictionaries(dict.fromkeys(("id", "direction", "patch", "since", "times", "told"), JSON))
        | JSON,
        "settled": st.lists(st.text()) | JSON,
        "stamp": st.integers() | JSON,
        "errors": st.dictionaries(st.sampled_from(["look", "blocking", "memory"]), JSON) | JSON,
        "outbox": st.lists(st.tuples(st.floats(), st.fixed_dictionaries({"tag": st.text() | JSON}))) | JSON,
    }
)


@pytest.mark.soak
@settings(max_examples=rounds(300))
@given(st.binary() | (JSON | MEMORY).map(lambda content: json.dumps(content).encode()))
def test_no_memory_file_brings_the_beacon_down(kernel, minion, content):
    minion.memory.write_bytes(content)
    minion.restart()
    status = minion.calls["kgraft.status"].side_effect

    kernel.start("kgraft-patch-2-2_1")
    events = minion.look() + minion.look(after=120)
    fail(minion.calls["kgraft.status"], "cannot read sysfs")
    events += minion.look()
    minion.calls["kgraft.status"].side_effect = status
    kernel.finish()
    events += minion.look()

    assert all(isinstance(event["tag"], str) for event in events)
    assert json.loads(minion.memory.read_text())["format"] == 2


# -- a full disk


@pytest.fixture
def full_disk(minion, monkeypatch):
    """Return a switch; while it is on, no memory can be written by this minion."""
    switch = SimpleNamespace(on=True)
    fsync = os.fsync

    def no_space(descriptor):
        if switch.on:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", create_autospec(os.fsync, side_effect=no_space))
    return switch


def test_a_full_disk_is_told_once_and_loses_no_event(kernel, minion, full_disk):
    [error] = minion.look()
    kernel.start("kgraft-patch-2-2_1")
    heard = [tags(minion.look()) for _ in range(3)]
    kernel.finish()
    heard += [tags(minion.look()) for _ in range(3)]

    assert error["error"] == f"cannot write the memory {minion.memory}: No space left on device"
    assert heard == [["started"], [], [], ["finished"], [], []]


def test_a_full_disk_that_passes_is_told_when_it_comes_back(kernel, minion, full_disk):
    minion.look()
    full_disk.on = False
    minion.look()
    minion.look()
    full_disk.on = True
    kernel.start("kgraft-patch-2-2_1")

    assert tags(minion.look()) == ["started", "error"]


def test_what_happened_on_a_full_disk_is_remembered_once_there_is_room(kernel, minion, full_disk):
    full_disk.on = False
    minion.look()
    full_disk.on = True
    kernel.start("kgraft-patch-2-2_1")
    minion.look()
    minion.look(after=60)
    full_disk.on = False
    minion.look()
    minion.restart()

    assert minion.look() == []


def test_what_happened_on_a_full_disk_is_told_again_after_a_restart(kernel, minion, full_disk):
    full_disk.on = False
    minion.look()
    full_disk.on = True
    kernel.start("kgraft-patch-2-2_1")
    [started, _] = minion.look()
    minion.restart()

    [again, _] = minion.look()

    # nothing could remember the id, and another transition may have come in between
    assert again["transition"] != started["transition"]
    assert {**again, "transition": None} == {**started, "transition": None}


def test_a_full_disk_and_a_memory_of_another_format_are_both_told(minion, full_disk):
    minion.module.CACHE[str(minion.memory)] = ({"format": 0}, None)
    minion.memory.write_text("{}")

    unusable, full = minion.look()

    assert "which now lies in" in unusable["error"]
    assert full["error"] == f"cannot write the memory {minion.memory}: No space left on device"


def test_a_really_full_disk_is_handled(load, kgraft, kernel):
    """/dev/full takes no byte: the memory's new file is a link to it."""
    minion = Minion(load, kgraft, kernel.root)
    (kernel.root / f"{minion.memory.name}.new").symlink_to("/dev/full")

    [error] = minion.look()

    assert error["error"].endswith("No space left on device")
    assert minion.look() == []


# -- instances


@pytest.mark.parametrize("name", ["kgraft", "night/../../watch", "ü", "."])
def test_instances_have_memories_of_their_own(load, kgraft, kernel, minion, name):
    kernel.start("kgraft-patch-2-2_1")
    other = Minion(load, kgraft, minion.cachedir, name="another")
    minion.name = name
    minion.look()
    other.look()

    files = [path.name for path in minion.cachedir.iterdir()]
    assert len(files) == 2
    assert all(file.startswith("kgraft_beacon_") and file.endswith(".json") for file in files)


def test_the_memory_is_for_its_owner_only(minion):
    minion.look()

    assert minion.memory.stat().st_mode & 0o777 == 0o600
