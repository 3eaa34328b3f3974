"""The beacon's edges, memory and promises, on kernels made of files and a clock of our own."""

import errno
import json
import os
import re
import tracemalloc
from types import SimpleNamespace
from unittest.mock import create_autospec

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from salt.exceptions import CommandExecutionError

from lab.files import BOOT_ID
from tests.support.soak import rounds

OTHER_BOOT = "0a0a0a0a-9dad-11d1-80b4-00c04fd430c8"


class Minion:
    """A minion process as a beacon sees it: it looks, is refreshed, is killed."""

    def __init__(self, load, kgraft, cachedir, name="kgraft"):
        self.load = load
        self.cachedir = cachedir
        self.name = name
        self.options = []
        self.clock = SimpleNamespace(now=1000.0, wall=1_790_000_000.0)
        # the real functions, called only as they are meant to be
        self.calls = {
            f"kgraft.{question}": create_autospec(getattr(kgraft, question), side_effect=getattr(kgraft, question))
            for question in ("status", "patches", "blocking")
        }
        self.start()

    def start(self):
        self.module = self.load(
            "_beacons/kgraft.py", __salt__=self.calls, __opts__={"id": "minion", "cachedir": str(self.cachedir)}
        )
        self._set_clock()

    restart = start

    def refresh(self):
        source = self.module.__file__
        with open(source, encoding="utf-8") as file:
            exec(compile(file.read(), source, "exec"), vars(self.module))
        self._set_clock()

    def _set_clock(self):
        self.module.time = SimpleNamespace(monotonic=lambda: self.clock.now, time=lambda: self.clock.wall)

    def look(self, after=1):
        self.clock.now += after
        self.clock.wall += after
        return self.module.beacon([*self.options, {"_beacon_name": self.name}])

    @property
    def memory(self):
        return self.cachedir / f"kgraft_beacon_{self.name}.json"


@pytest.fixture
def minion(load, kgraft, tmp_path):
    cachedir = tmp_path / "cache"
    cachedir.mkdir()
    return Minion(load, kgraft, cachedir)


def tags(events):
    return [event["tag"] for event in events]


def fail(function, message):
    function.side_effect = CommandExecutionError(message)


# -- edges


def test_the_first_look_at_a_ready_kernel_says_nothing(kernel, minion):
    kernel.patch("kgraft-patch-2-2_1")

    assert minion.look() == []


def test_the_first_look_inside_a_transition_says_started(kernel, minion):
    kernel.start("kgraft-patch-2-2_1")

    assert tags(minion.look()) == ["started"]


def test_a_transition_is_told_at_its_start_and_at_its_end(kernel, minion):
    kernel.patch("kgraft-patch-1-2_1")
    minion.look()
    kernel.start("kgraft-patch-2-2_1")
    [started] = minion.look()
    assert minion.look() == []
    kernel.finish()
    [finished] = minion.look()
    assert minion.look() == []

    common = {
        "abi": "kgraft",
        "direction": "apply",
        "patch": "kgraft_patch_2_2_1",
        "kernelrelease": "4.4.180-94.100-default",
        "boot_id": BOOT_ID,
        "transition": f"{BOOT_ID}-1790000002",
    }
    assert started == {"tag": "started", "active": ["kgraft_patch_1_2_1", "kgraft_patch_2_2_1"], **common}
    assert finished == {
        "tag": "finished",
        "active": ["kgraft_patch_2_2_1"],
        "seconds": 2.0,
        "observed": True,
        **common,
    }


@pytest.mark.parametrize("kernel", [{"abi": "kgraft"}, {"abi": "livepatch"}], indirect=True)
def test_a_revert_is_a_transition_too(kernel, minion):
    kernel.patch("livepatch_9_2_1")
    minion.look()
    kernel.revert("livepatch_9_2_1")
    [started] = minion.look()
    kernel.finish()
    [finished] = minion.look()

    assert (started["direction"], started["patch"]) == ("revert", "livepatch_9_2_1")
    assert (finished["direction"], finished["patch"], finished["active"]) == ("revert", "livepatch_9_2_1", [])


def test_each_transition_has_an_id_of_its_own(kernel, minion):
    minion.look()
    heard = []
    for name in ("kgraft-patch-1-2_1", "kgraft-patch-2-2_1", "kgraft-patch-3-2_1"):
        kernel.start(name)
        [started] = minion.look()
        kernel.finish()
        [finished] = minion.look()
        assert started["transition"] == finished["transition"]
        heard.append(started["transition"])

    assert len(set(heard)) == 3


@pytest.mark.parametrize("kernel", [{"abi": "kgraft"}, {"abi": "livepatch"}], indirect=True)
def test_a_transition_between_two_looks_is_told_as_finished_and_not_observed(kernel, minion):
    minion.look()
    kernel.start("livepatch_9_2_1")
    kernel.finish()
    [applied] = minion.look()
    kernel.revert("livepatch_9_2_1")
    kernel.finish()
    [reverted] = minion.look()

    assert (applied["tag"], applied["observed"], applied["seconds"]) == ("finished", False, None)
    assert (applied["patch"], applied["direction"]) == ("livepatch_9_2_1", "apply")
    assert (reverted["patch"], reverted["direction"]) == ("livepatch_9_2_1", "revert")
    assert applied["transition"] != reverted["transition"]


def test_a_transition_that_takes_the_place_of_another_between_two_looks_ends_it(kernel, minion):
    kernel.start("kgraft-patch-1-2_1")
    [first] = minion.look()
    kernel.finish()
    kernel.start("kgraft-patch-2-2_1")
    finished, started = minion.look()

    assert (finished["tag"], finished["transition"]) == ("finished", first["transition"])
    assert (finished["patch"], finished["observed"]) == ("kgraft_patch_1_2_1", False)
    assert (started["tag"], started["patch"]) == ("started", "kgraft_patch_2_2_1")


def test_a_transition_that_came_and_went_behind_the_end_of_another_is_told(kernel, minion):
    kernel.start("kgraft-patch-1-2_1")
    [first] = minion.look()
    kernel.finish()
    kernel.start("kgraft-patch-2-2_1")
    kernel.finish()

    ended, unseen = minion.look(after=3600)

    assert (ended["transition"], ended["patch"], ended["observed"]) == (first["transition"], "kgraft_patch_1_2_1", True)
    assert (unseen["tag"], unseen["patch"], unseen["observed"]) == ("finished", "kgraft_patch_2_2_1", False)


def test_a_transition_that_came_and_went_before_the_start_of_another_is_told(kernel, minion):
    minion.look()
    kernel.start("kgraft-patch-1-2_1")
    kernel.finish()
    kernel.start("kgraft-patch-2-2_1")

    unseen, started = minion.look()

    assert (unseen["tag"], unseen["patch"], unseen["observed"]) == ("finished", "kgraft_patch_1_2_1", False)
    assert (started["tag"], started["patch"]) == ("started", "kgraft_patch_2_2_1")
    assert unseen["transition"] != started["transition"]


def test_a_revert_that_is_undone_between_two_looks_is_told_with_what_undid_it(kernel, minion):
    kernel.patch("kgraft-patch-1-2_1")
    minion.look()
    kernel.revert("kgraft-patch-1-2_1")
    minion.look()
    kernel.finish()
    kernel.patch("kgraft-patch-1-2_1")

    reverted, applied = minion.look()

    assert (reverted["direction"], reverted["patch"], reverted["observed"]) == ("revert", "kgraft_patch_1_2_1", True)
    assert (applied["direction"], applied["patch"], applied["observed"]) == ("apply", "kgraft_patch_1_2_1", False)


@pytest.mark.parametrize("kernel", [{"abi": "livepatch"}], indirect=True)
def test_a_reversal_in_mid_air_ends_the_one_and_starts_the_other(kernel, minion):
    kernel.start("livepatch_9_2_1")
    minion.look()
    kernel.revert("livepatch_9_2_1")

    finished, started = minion.look()

    assert (finished["tag"], finished["direction"], finished["active"]) == ("finished", "apply", [])
    assert (started["tag"], started["direction"]) == ("started", "revert")


@pytest.mark.parametrize("kernel", [{"abi": "livepatch", "transition": False}], indirect=True)
def test_a_kernel_that_shows_no_transitions_tells_of_their_ends(kernel, minion):
    minion.look()
    kernel.patch("livepatch_9_2_1")

    [finished] = minion.look()

    assert (finished["tag"], finished["observed"]) == ("finished", False)


def test_a_start_in_the_middle_of_a_look_is_not_taken_for_an_end(minion):
    idle = {"abi": "livepatch", "state": "ready", "direction": None, "kernelrelease": "6.4", "boot_id": BOOT_ID}
    minion.calls["kgraft.status"].side_effect = [
        {**idle, "active": []},
        {**idle, "active": ["livepatch_9"]},  # `transition` was read before the start, `enabled` after it
        {**idle, "active": ["livepatch_9"], "state": "in_progress", "direction": "apply"},
    ]
    minion.calls["kgraft.patches"].side_effect = lambda: {"livepatch_9": {"state": "applying"}}
    minion.look()

    [started] = minion.look()

    assert (started["tag"], started["patch"]) == ("started", "livepatch_9")


def test_a_patch_that_the_kernel_names_late_is_named_at_the_end(kernel, minion):
    minion.look()
    kernel.start("kgraft-patch-2-2_1", functions=[("vmlinux", "cmdline_proc_show", 0, 0)])
    [started] = minion.look()
    kernel.start("kgraft-patch-2-2_1")
    assert minion.look() == []
    kernel.finish()
    [finished] = minion.look()

    assert started["patch"] is None
    assert (finished["patch"], finished["direction"]) == ("kgraft_patch_2_2_1", "apply")
    assert finished["transition"] == started["transition"]


def test_a_patch_whose_functions_all_wait_for_their_modules_is_named_as_the_one_that_came(kernel, minion):
    minion.look()
    kernel.start("kgraft-patch-2-2_1", functions=[("absent", "absent_function", 0, 5)])

    assert minion.look()[0]["patch"] == "kgraft_patch_2_2_1"


def test_the_moment_between_the_last_function_and_the_end_is_no_transition_of_its_own(kernel, minion):
    kernel.patch("kgraft-patch-1-2_1")
    minion.look()
    kernel.start("kgraft-patch-2-2_1")
    minion.look()
    kernel.change("kgraft-patch-2-2_1", "applied")
    kernel.change("kgraft-patch-1-2_1", "inactive")
    assert minion.look() == []
    kernel.finish()

    assert tags(minion.look()) == ["finished"]


def test_of_several_patches_that_came_between_two_looks_the_newest_is_named(kernel, minion):
    minion.look()
    for name in ("kgraft-patch-1-2_1", "kgraft-patch-2-2_1"):
        kernel.start(name, replace_all=False)
        kernel.finish()

    [finished] = minion.look()

    assert (finished["patch"], finished["active"]) == (
        "kgraft_patch_2_2_1",
        ["kgraft_patch_1_2_1", "kgraft_patch_2_2_1"],
    )


def test_the_order_of_patches_is_no_event(minion):
    ready = {"abi": "kgraft", "state": "ready", "direction": None, "kernelrelease": "4.4", "boot_id": BOOT_ID}
    minion.calls["kgraft.status"].side_effect = [{**ready, "active": list(names)} for names in ("ab", "ba")]
    minion.look()

    assert minion.look() == []


@pytest.mark.parametrize("kernel", [{"abi": None}], indirect=True)
def test_a_kernel_without_live_patching_has_nothing_to_tell(kernel, minion):
    assert minion.look() == []
    assert minion.look() == []


# -- stuck


def test_a_transition_is_stuck_after_stuck_after_seconds(kernel, minion):
    kernel.task(731, "nfsd", kthread=True, blocking=True)
    kernel.start("kgraft-patch-2-2_1")
    minion.look()
    assert minion.look(after=119) == []

    [stuck] = minion.look(after=1)

    assert (stuck["tag"], stuck["seconds"], stuck["times"]) == ("stuck", 120.0, 1)
    assert (stuck["count"], stuck["complete"]) == (1, True)
    assert [(task["pid"], task["name"], task["kind"]) for task in stuck["tasks"]] == [(731, "nfsd", "kernel")]
    assert set(stuck) == {
        *("tag", "transition", "abi", "direction", "patch", "active", "kernelrelease", "boot_id"),
        *("seconds", "times", "tasks", "count", "complete"),
    }


def test_stuck_looks_at_processes_for_a_short_time_only(kernel, minion):
    kernel.start("kgraft-patch-2-2_1")
    minion.look()
    minion.look(after=120)

    minion.calls["kgraft.blocking"].assert_called_once_with(budget=0.2)


def test_stuck_is_told_again_each_remind_seconds(kernel, minion):
    minion.options = [{"stuck_after": 60}, {"remind": 600}]
    kernel.start("kgraft-patch-2-2_1")
    minion.look()

    heard = [event for _ in range(1900) for event in minion.look()]

    assert [(event["times"], event["seconds"]) for event in heard] == [(1, 60.0), (2, 660.0), (3, 1260.0), (4, 1860.0)]


def test_remind_0_tells_it_once(kernel, minion):
    minion.options = [{"stuck_after": 1}, {"remind": 0}]
    kernel.start("kgraft-patch-2-2_1")
    minion.look()

    assert tags(event for _ in range(100) for event in minion.look()) == ["stuck"]


def test_a_stuck_transition_whose_processes_cannot_be_read_is_told_all_the_same(kernel, minion):
    kernel.start("kgraft-patch-2-2_1")
    minion.look()
    fail(minion.calls["kgraft.blocking"], "cannot read /proc: Permission denied")

    stuck, error = minion.look(after=120)

    assert (stuck["tasks"], stuck["count"], stuck["complete"]) == ([], None, False)
    assert (error["tag"], error["error"]) == ("error", "cannot read /proc: Permission denied")
    assert error["transition"] == stuck["transition"]


def test_a_transition_that_ends_while_its_tasks_are_read_is_not_stuck(kernel, minion):
    kernel.start("kgraft-patch-2-2_1")
    minion.look()
    blocking = minion.calls["kgraft.blocking"].side_effect
    minion.calls["kgraft.blocking"].side_effect = lambda budget: kernel.finish() or blocking(budget=budget)

    assert minion.look(after=120) == []
    assert tags(minion.look()) == ["finished"]


def test_an_event_can_be_packed_whatever_a_process_calls_itself(kernel, minion):
    import salt.payload

    kernel.task(731, b"\xff\xfe\xf0bad", blocking=True)
    kernel.start("kgraft-patch-2-2_1")
    minion.look()

    [stuck] = minion.look(after=120)

    assert salt.payload.loads(salt.payload.dumps(stuck))["tasks"][0]["pid"] == 731


def test_no_event_shows_a_command_line(kernel, minion):
    kernel.task(731, "db", blocking=True, cmdline=["db", "--password=hunter2"])
    kernel.start("kgraft-patch-2-2_1")
    minion.look()

    assert "hunter2" not in str(minion.look(after=120))
    assert "hunter2" not in minion.memory.read_text()


# -- errors


def test_a_failed_look_is_told_once_until_it_passes(kernel, minion):
    kernel.patch("kgraft-patch-2-2_1")
    minion.look()
    status = minion.calls["kgraft.status"].side_effect
    fail(minion.calls["kgraft.status"], "cannot read sysfs")
    [error] = minion.look()
    assert minion.look() == []
    minion.calls["kgraft.status"].side_effect = status
    assert minion.look() == []
    fail(minion.calls["kgraft.status"], "cannot read sysfs")

    assert tags(minion.look()) == ["error"]
    assert error == {
        "tag": "error",
        "error": "cannot read sysfs",
        "transition": None,
        "direction": None,
        "patch": None,
        "abi": "kgraft",
        "active": ["kgraft_patch_2_2_1"],
        "kernelrelease": "4.4.180-94.100-default",
        "boot_id": BOOT_ID,
    }


def test_errors_that_take_turns_are_told_once_each(minion):
    minion.calls["kgraft.status"].side_effect = [CommandExecutionError(f"error {n % 2}") for n in range(10)]

    heard = [event["error"] for _ in range(10) for event in minion.look()]

    assert heard == ["error 0", "error 1"]


def test_an_error_is_not_told_again_after_a_restart(minion):
    fail(minion.calls["kgraft.status"], "cannot read sysfs")
    minion.look()
    minion.look(after=60)
    minion.restart()

    assert minion.look() == []


def test_a_transition_goes_on_behind_a_failed_look(kernel, minion):
    kernel.start("kgraft-patch-2-2_1")
    [started] = minion.look()
    status = minion.calls["kgraft.status"].side_effect
    fail(minion.calls["kgraft.status"], "cannot read sysfs")
    [error] = minion.look()
    minion.calls["kgraft.status"].side_effect = status
    kernel.finish()
    [finished] = minion.look()

    assert started["transition"] == error["transition"] == finished["transition"]
    assert finished["observed"] is True


def test_a_patch_list_that_cannot_be_read_loses_no_edge(kernel, minion):
    minion.look()
    kernel.start("kgraft-patch-2-2_1")
    patches = minion.calls["kgraft.patches"].side_effect
    fail(minion.calls["kgraft.patches"], "cannot read state")
    assert tags(minion.look()) == ["error"]
    minion.calls["kgraft.patches"].side_effect = patches

    assert tags(minion.look()) == ["started"]


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


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
MEMORY = st.fixed_dictionaries(
    {
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
        "count": st.integers() | JSON,
        "errors": st.dictionaries(st.text(), JSON) | JSON,
        "outbox": st.lists(st.tuples(st.floats(), st.fixed_dictionaries({"tag": JSON}))) | JSON,
    }
)


@pytest.mark.soak
@settings(max_examples=rounds(300))
@given(JSON | MEMORY)
def test_no_memory_file_brings_the_beacon_down(kernel, minion, content):
    minion.memory.write_text(json.dumps(content))
    kernel.start("kgraft-patch-2-2_1")
    minion.restart()

    for event in minion.look() + minion.look():
        assert isinstance(event["tag"], str)
    json.loads(minion.memory.read_text())


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

    assert again == started


def test_a_really_full_disk_is_handled(load, kgraft, kernel):
    """/dev/full takes no byte: the memory's new file is a link to it."""
    minion = Minion(load, kgraft, kernel.root)
    (kernel.root / f"{minion.memory.name}.new").symlink_to("/dev/full")

    [error] = minion.look()

    assert error["error"].endswith("No space left on device")
    assert minion.look() == []


# -- what a look costs


def test_an_idle_look_writes_nothing(kernel, minion):
    kernel.patch("kgraft-patch-2-2_1")
    minion.look()
    before = os.stat(minion.memory)
    minion.look()
    minion.look()

    after = os.stat(minion.memory)
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_an_idle_look_asks_one_question(kernel, minion):
    kernel.patch("kgraft-patch-2-2_1")
    minion.look()
    minion.look()

    assert minion.calls["kgraft.status"].call_count == 2
    minion.calls["kgraft.patches"].assert_not_called()
    minion.calls["kgraft.blocking"].assert_not_called()


def test_ten_thousand_looks_need_no_more_memory(minion):
    ready = {"abi": "kgraft", "state": "ready", "direction": None, "kernelrelease": "4.4", "boot_id": "b", "active": []}
    minion.module.__salt__ = {"kgraft.status": lambda: dict(ready)}
    for _ in range(100):
        minion.look()
    tracemalloc.start()
    try:
        for _ in range(100):
            minion.look()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(10_000):
            minion.look()
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()

    # other threads of the tests allocate too, but nothing may be left of each look
    assert after - before < 10_000


def test_ten_thousand_looks_at_a_broken_kernel_need_no_more_memory(minion):
    fail(minion.calls["kgraft.status"], "cannot read sysfs")
    for _ in range(20):
        minion.look()
    size = minion.memory.stat().st_size
    for _ in range(1000):
        minion.look()

    assert minion.memory.stat().st_size == size


# -- instances, loading


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


def test_it_loads_only_beside_the_execution_module(load):
    assert load("_beacons/kgraft.py", __salt__={"kgraft.status": None}).__virtual__() == "kgraft"
    loaded, why = load("_beacons/kgraft.py", __salt__={}).__virtual__()
    assert loaded is False
    assert "_modules/kgraft.py" in why


def test_the_manual_shows_an_event_as_it_is(kernel, minion, repo):
    page = (repo / "docs" / "hear-about-it.md").read_text("utf-8")
    [shown] = re.findall(r"kgraft/stuck\t({.*?\n})\n", page, re.DOTALL)
    shown = json.loads(shown)
    kernel.task(731, "nfsd", kthread=True, blocking=True, unit="nfs.service")
    kernel.start("kgraft-patch-2-2_1")
    minion.look()

    [stuck] = minion.look(after=120)

    same = set(stuck) - {"tag", "transition", "seconds"}
    assert {key: shown[key] for key in same} == {key: stuck[key] for key in same}
    assert set(shown) == {*stuck, "id", "_stamp"} - {"tag"}


def test_the_manual_names_every_key_of_every_event(kernel, minion, repo):
    page = (repo / "docs" / "hear-about-it.md").read_text("utf-8")
    kernel.start("kgraft-patch-2-2_1")
    events = minion.look() + minion.look(after=120)
    kernel.finish()
    events += minion.look()
    fail(minion.calls["kgraft.status"], "cannot read sysfs")
    events += minion.look()

    assert tags(events) == ["started", "stuck", "finished", "error"]
    for event in events:
        assert f"| `{event['tag']}` |" in page
        assert not [key for key in event if key != "tag" and f"`{key}`" not in page]
