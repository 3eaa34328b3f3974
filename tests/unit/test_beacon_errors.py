"""A look that fails is an event, once, in one line, however many ways it fails in."""

import pytest
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


@pytest.mark.parametrize("before", [1, 2])
def test_a_look_that_fails_at_an_edge_loses_no_edge(kernel, minion, before):
    """An edge is looked at again; it is told when that has worked."""
    minion.look()
    kernel.start("kgraft-patch-2-2_1")
    status = minion.calls["kgraft.status"].side_effect
    answers = [status()] * before
    minion.calls["kgraft.status"].side_effect = [*answers, CommandExecutionError("cannot read state")]
    assert tags(minion.look()) == ["error"]
    minion.calls["kgraft.status"].side_effect = status

    assert tags(minion.look()) == ["started"]


def test_an_error_that_is_another_at_each_look_does_not_storm(kernel, minion):
    status = minion.calls["kgraft.status"].side_effect
    minion.calls["kgraft.status"].side_effect = [CommandExecutionError(f"error {n} of {n * n}") for n in range(300)]

    heard = [event["error"] for _ in range(300) for event in minion.look()]

    assert heard == ["error 0 of 0", "error 1 of 1", "error 2 of 4"]
    assert minion.memory.stat().st_size < 1000
    minion.calls["kgraft.status"].side_effect = status
    assert minion.look() == []
    fail(minion.calls["kgraft.status"], "error 300 of 90000")
    assert tags(minion.look()) == ["error"]


def test_an_error_is_one_line_whatever_it_says(minion):
    fail(minion.calls["kgraft.status"], "cannot\nread\x1b[2J \u202egpj \ud800ü\u2028" + "x" * 100_000)

    [error] = minion.look()

    assert error["error"].startswith(r"cannot\nread\x1b[2J \u202egpj \ud800ü\u2028xxx")
    assert error["error"].isprintable()
    assert len(error["error"]) == 500
    assert minion.memory.stat().st_size < 5000


@pytest.mark.parametrize(
    "raw", [b"\n" * 4000, b"Function State\n\x1b]0;owned\x07 " + b"y" * 4000, bytes(range(256)) * 15]
)
def test_bytes_of_a_file_stay_in_the_line_of_the_error(kernel, minion, raw):
    kernel.patch("kgraft-patch-2-2_1")
    kernel.write("sys/kernel/kgraft/kgraft-patch-2-2_1/state", raw + b"\n")

    [error] = minion.look()

    assert error["error"].isprintable()
    assert len(error["error"]) <= 500
