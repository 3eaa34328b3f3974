"""The state ``kgraft.settled`` on a real kernel, run by Salt's own state compiler."""

import pytest

FIRST = "livepatch_1_1_1"


@pytest.fixture
def held(guest):
    """The pid of a sleeper that holds up the patch just loaded."""
    pid = guest.sleeper("killable")
    guest.insert(FIRST)
    guest.until("[ $(grep -lx 0 /proc/[0-9]*/patch_state | wc -l) = 1 ]", 10)
    return pid


def test_a_kernel_with_no_transition_is_settled_and_nothing_changes(guest):
    guest.load(FIRST)

    result = guest.state("kgraft.settled")

    assert (result["result"], result["changes"]) == (True, {})
    assert FIRST in result["comment"]


def test_it_waits_for_the_end_and_tells_what_changed(guest, held):
    guest.later("echo 1 > /proc/klpt/wake", 2)

    result = guest.state("kgraft.settled", timeout=30)

    assert result["result"] is True, result
    assert result["changes"] == {
        FIRST: {"old": "applying", "new": "applied"},
        "state": {"old": "in_progress", "new": "ready"},
    }


def test_a_time_out_names_who_blocks(guest, held):
    result = guest.state("kgraft.settled", timeout=2)

    assert (result["result"], result["changes"]) == (False, {})
    assert f"cat({held})" in result["comment"].replace(" (", "(")
    assert "where no signal reaches it" in result["comment"]


def test_poke_after_leaves_it_to_the_kernel_and_says_so(guest, held):
    result = guest.state("kgraft.settled", timeout=2, poke_after=0)

    assert result["result"] is False
    assert "the kernel signals the tasks itself" in result["comment"]
    assert "poked" not in result["changes"]


def test_a_kernel_thread_is_named_as_one(guest):
    pid = guest.kernel_thread()
    guest.insert(FIRST)
    guest.until("[ $(grep -lx 0 /proc/[0-9]*/patch_state | wc -l) = 1 ]", 10)

    result = guest.state("kgraft.settled", timeout=1)

    assert result["result"] is False
    assert f"klpt_kthread({pid})" in result["comment"].replace(" (", "(")
    assert "kernel thread" in result["comment"]
