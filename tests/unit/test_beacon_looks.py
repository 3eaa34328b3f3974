"""What the beacon's looks tell, edges and nothing else, and what a look costs."""

import json
import os
import re
import tracemalloc

import pytest

from lab.files import BOOT_ID
from tests.support.beacon_minion import fail, tags

pytest_plugins = ["tests.support.beacon_fixtures"]


def status(*active, **changes):
    """What ``kgraft.status`` says."""
    ready = {"abi": "livepatch", "state": "ready", "direction": None, "kernelrelease": "6.4", "boot_id": BOOT_ID}
    return {**ready, "active": list(active), "moving": [], **changes}


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
        "transition": f"{BOOT_ID}-1002000000",
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
    idle = status()
    runs = status("livepatch_9", state="in_progress", direction="apply", moving=["livepatch_9"])
    minion.calls["kgraft.status"].side_effect = [
        idle,
        status("livepatch_9"),  # `transition` was read before the start, `enabled` after it
        runs,
        runs,
    ]
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


def test_a_patch_whose_functions_all_wait_for_their_modules_is_named_at_the_end_as_the_one_that_came(kernel, minion):
    """While its transition runs the kernel tells neither patch nor direction."""
    minion.look()
    kernel.start("kgraft-patch-2-2_1", functions=[("absent", "absent_function", 0, 5)])
    [started] = minion.look()
    kernel.finish()
    [finished] = minion.look()

    assert (started["patch"], started["direction"]) == (None, None)
    assert (finished["patch"], finished["direction"]) == ("kgraft_patch_2_2_1", "apply")
    assert finished["transition"] == started["transition"]


def test_a_revert_of_a_patch_whose_functions_all_wait_is_named_at_the_end_as_the_one_that_went(kernel, minion):
    kernel.patch("kgraft-patch-2-2_1", functions=[("absent", "absent_function", 0, 5)])
    minion.look()
    kernel.in_progress(True)
    [started] = minion.look()
    kernel.change("kgraft-patch-2-2_1", "inactive")
    kernel.in_progress(False)
    [finished] = minion.look()

    assert (started["patch"], started["direction"]) == (None, None)
    assert (finished["patch"], finished["direction"]) == ("kgraft_patch_2_2_1", "revert")


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


def test_of_several_patches_that_came_between_two_looks_each_is_told(kernel, minion):
    minion.look()
    for name in ("kgraft-patch-1-2_1", "kgraft-patch-2-2_1"):
        kernel.start(name, replace_all=False)
        kernel.finish()

    first, finished = minion.look()

    assert (first["patch"], first["direction"]) == ("kgraft_patch_1_2_1", "apply")
    assert (finished["patch"], finished["active"]) == (
        "kgraft_patch_2_2_1",
        ["kgraft_patch_1_2_1", "kgraft_patch_2_2_1"],
    )
    assert first["transition"] != finished["transition"]


def test_the_end_of_a_cumulative_patch_in_the_middle_of_a_look_is_no_revert_of_the_one_it_replaces(minion):
    """livepatch: the older patch was read right before the end, the newer one right after it."""
    torn = status("livepatch_8", "livepatch_9")
    ended = status("livepatch_9")
    runs = status("livepatch_8", "livepatch_9", state="in_progress", direction="apply", moving=["livepatch_9"])
    minion.calls["kgraft.status"].side_effect = [
        *(status("livepatch_8"), runs, runs, runs, torn, ended, ended),
        *(ended, ended),
    ]
    assert minion.look() == []
    assert tags(minion.look()) == ["started"]

    [finished] = minion.look()

    assert (finished["patch"], finished["active"]) == ("livepatch_9", ["livepatch_9"])
    assert minion.look() == []


def test_a_disable_in_the_middle_of_a_look_is_no_apply(minion):
    """livepatch shows ``transition`` 1 a moment before ``enabled`` 0 (__klp_disable_patch)."""
    torn = status("livepatch_9", state="in_progress", direction="apply", moving=["livepatch_9"])
    runs = status(state="in_progress", direction="revert", moving=["livepatch_9"])
    minion.calls["kgraft.status"].side_effect = [status("livepatch_9"), torn, runs, runs]
    minion.look()

    [started] = minion.look()

    assert (started["direction"], started["patch"]) == ("revert", "livepatch_9")


def test_a_kernel_that_changes_at_each_look_is_not_looked_at_for_ever(minion):
    changes = [status(f"livepatch_{number}") for number in range(100)]
    minion.calls["kgraft.status"].side_effect = changes
    minion.look()

    [finished] = minion.look()

    assert finished["tag"] == "finished"
    assert minion.calls["kgraft.status"].call_count < 10


def test_the_order_of_patches_is_no_event(minion):
    minion.calls["kgraft.status"].side_effect = [status(*names) for names in ("ab", "ba")]
    minion.look()

    assert minion.look() == []


@pytest.mark.parametrize("kernel", [{"abi": None}], indirect=True)
def test_a_kernel_without_live_patching_has_nothing_to_tell(kernel, minion):
    assert minion.look() == []
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
    minion.module.__salt__ = {"kgraft.status": status}
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


# -- loading


def test_it_loads_only_beside_the_execution_module(load):
    assert load("_beacons/kgraft.py", __salt__={"kgraft.status": None}).__virtual__() == "kgraft"
    loaded, why = load("_beacons/kgraft.py", __salt__={}).__virtual__()
    assert loaded is False
    assert "_modules/kgraft.py" in why


# -- the manual


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
