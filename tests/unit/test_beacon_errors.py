"""A look that fails is an event, once."""

from salt.exceptions import CommandExecutionError

from lab.files import BOOT_ID
from tests.support.beacon_minion import fail, tags

pytest_plugins = ["tests.support.beacon_fixtures"]


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
