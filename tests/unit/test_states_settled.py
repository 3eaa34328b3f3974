"""
kgraft.settled and the waiting of all states: our real module on a kernel of files, a clock that tests turn.
"""

from unittest.mock import create_autospec

import pytest
from salt.exceptions import CommandExecutionError


class Clock:
    """Time that only passes when someone waits; ``at`` says what happens when."""

    def __init__(self):
        self.now = 1000.0
        self.plans = []

    def monotonic(self):
        return self.now

    def at(self, second, happen):
        self.plans.append((1000.0 + second, happen))

    def sleep(self, seconds):
        self.now += seconds
        due = [plan for plan in self.plans if plan[0] <= self.now]
        self.plans = [plan for plan in self.plans if plan[0] > self.now]
        for _, happen in due:
            happen()


@pytest.fixture
def clock(states, kgraft):
    # their own time, not everybody's
    states.time = states.arguments.time = kgraft.time = Clock()
    return states.time


@pytest.fixture
def poke(kgraft):
    """No process here is real: what would be poked is what our module says, and then they cross."""
    return create_autospec(
        kgraft.poke, side_effect=lambda protect=None, test=False: kgraft.poke(protect=protect, test=True)
    )


@pytest.fixture
def sent():
    return []


@pytest.fixture
def states(load, kgraft, poke, sent):
    salt = {f"kgraft.{name}": getattr(kgraft, name) for name in ("status", "patches", "blocking", "wait")}
    salt["kgraft.poke"] = poke
    salt["event.send"] = lambda tag, data: sent.append((tag, data))
    return load("_states/kgraft.py", __salt__=salt, __opts__={"id": "db1", "test": False})


def test_a_kernel_at_rest_is_settled_and_the_comment_names_the_patch(states, kernel):
    kernel.patch("kgraft-patch-2-2_1")

    assert states.settled("x") == {
        "name": "x",
        "result": True,
        "changes": {},
        "comment": "No transition is running; kgraft_patch_2_2_1 is active.",
    }


def test_a_transition_is_waited_for_and_the_changes_are_what_two_looks_saw(states, kernel, clock):
    kernel.patch("kgraft-patch-1-1_1")
    kernel.start("kgraft-patch-2-2_1")
    clock.at(12, kernel.finish)

    settled = states.settled("x")

    assert settled["result"] is True
    assert settled["comment"] == "Settled after 12 s; kgraft_patch_2_2_1 is active."
    assert settled["changes"] == {
        "kgraft_patch_1_1_1": {"old": "applied", "new": "inactive"},
        "kgraft_patch_2_2_1": {"old": "applying", "new": "applied"},
        "state": {"old": "in_progress", "new": "ready"},
    }


@pytest.mark.parametrize("kernel", [{}, {"abi": "livepatch"}], indirect=True)
@pytest.mark.parametrize("cumulative", [True, False])
@pytest.mark.parametrize("order", ["start", "revert"])
def test_a_dry_run_promises_what_the_live_one_then_does(states, kernel, clock, cumulative, order):
    kernel.patch("livepatch_1_1_1")
    if order == "start":
        kernel.start("livepatch_2_2_1", replace_all=cumulative)
    else:
        kernel.revert("livepatch_1_1_1")
    clock.at(2, kernel.finish)

    states.__opts__["test"] = True
    promised = states.settled("x")["changes"]
    states.__opts__["test"] = False

    assert promised == states.settled("x")["changes"]


def test_a_dry_run_waits_for_nothing_and_says_who_blocks(states, kernel, clock):
    states.__opts__["test"] = True
    kernel.start("kgraft-patch-2-2_1")
    kernel.task(731, "nfsd", blocking=True, kthread=True)

    promised = states.settled("x")

    assert clock.now == 1000.0
    assert promised["result"] is None
    assert promised["comment"] == (
        "kgraft_patch_2_2_1 is applying; its end would be waited for, 300 s at most. 1 task blocks: nfsd (731)."
    )
    assert promised["changes"]["state"] == {"old": "in_progress", "new": "ready"}


def test_the_time_out_names_each_kind_of_task_and_what_to_do_about_it(states, kernel, clock):
    kernel.start("kgraft-patch-2-2_1")
    kernel.task(700, "khungd", blocking=True, kthread=True)
    kernel.task(701, "gdbed", blocking=True, letter="t", tracer=9)
    kernel.task(702, "paused", blocking=True, letter="T")
    kernel.task(703, "nfs-reader", blocking=True, letter="D")
    kernel.task(704, "defunct", blocking=True, letter="Z")
    kernel.task(705, "sleep", blocking=True)

    late = states.settled("x", timeout=20)

    assert late["result"] is False
    assert late["changes"] == {}
    first, *kinds = late["comment"].splitlines()
    assert first.startswith("kgraft_patch_2_2_1 is applying, still after 20 s. 6 tasks block: khungd (700), ")
    assert [line.partition(".")[0] for line in kinds] == [
        "- khungd (700): This kernel thread has not come to a safe place, and no signal reaches it",
        "- gdbed (701): A debugger or a tracer such as strace holds it",
        "- paused (702): It is stopped, by SIGSTOP or at a terminal",
        "- nfs-reader (703): It waits for a device, a file system (NFS, FUSE), a page or a child (vfork), where no"
        " signal reaches it",
        "- defunct (704): It has ended, and its parent did not reap it",
        "- sleep (705): It sleeps in the kernel since before the patch",
    ]
    assert all(len(line.partition(". ")[2]) > 20 for line in kinds)


def test_tasks_of_one_reason_share_a_line(states, kernel, clock):
    kernel.start("kgraft-patch-2-2_1")
    kernel.task(700, "khungd", blocking=True, kthread=True)
    kernel.task(701, "nfsd", blocking=True, kthread=True)

    assert "\n- khungd (700), nfsd (701): This kernel thread has not " in states.settled("x", timeout=20)["comment"]


@pytest.mark.parametrize("name", ["corosync", "sbd", "hdbindexserver", "mine"])
def test_no_advice_about_what_is_protected_is_to_touch_it(states, kernel, clock, poke, name):
    kernel.start("kgraft-patch-2-2_1")
    kernel.task(700, name, blocking=True, letter="T")
    kernel.task(701, name, blocking=True)

    _, *advice = states.settled("x", timeout=20, protect=["name:mine"])["comment"].splitlines()

    assert len(advice) == 2
    for line in advice:
        assert "do not restart it, and send it no signal. Wait." in line
        assert "kill" not in line and "run kgraft.poke" not in line.lower()


def test_a_list_that_is_not_complete_is_never_called_empty(states, kernel, clock):
    kernel.start("kgraft-patch-2-2_1")
    (kernel.root / "proc/1/ns/pid").unlink()
    (kernel.root / "proc/1/ns/pid").symlink_to("pid:[4026532000]")

    late = states.settled("x", timeout=1)

    assert late["result"] is False
    assert "not all of them could be seen: none seen" in late["comment"]


def test_more_tasks_than_are_listed_are_counted(states, kernel, clock):
    kernel.start("kgraft-patch-2-2_1")
    for pid in range(700, 725):
        kernel.task(pid, "sleep", blocking=True)

    assert "25 tasks block: " in states.settled("x", timeout=1)["comment"]
    assert " and 5 more." in states.settled("x", timeout=1)["comment"]


@pytest.mark.parametrize(("ends", "result"), [(62, True), (64, True), (70, False)])
def test_where_nobody_blocks_any_more_the_kernels_next_check_is_waited_for(states, kernel, clock, ends, result):
    kernel.start("kgraft-patch-2-2_1")
    clock.at(ends, kernel.finish)

    waited = states.settled("x", timeout=60)

    assert waited["result"] is result, waited["comment"]
    assert clock.now - 1000 <= 66
    assert (
        "No task is seen to block any more.\nNobody is seen to block. The kernel looks for the end every 2 s."
        in waited["comment"]
    ) is not result


def test_a_long_wait_tells_the_master_at_least_every_thirty_seconds_who_blocks(states, kernel, clock, sent):
    kernel.start("kgraft-patch-2-2_1")
    kernel.task(731, "nfsd", blocking=True, kthread=True, cmdline="nfsd --password=secret")

    states.settled("x", timeout=100)

    seconds = [data["seconds"] for _, data in sent]
    assert all(later - earlier <= 30 for earlier, later in zip([0, *seconds], [*seconds, 100], strict=True))
    tag, data = sent[0]
    assert tag == "kgraft/db1/progress"
    assert data["transition"] == "kgraft_patch_2_2_1 is applying"
    assert (data["count"], data["complete"], data["timeout"]) == (1, True, 100)
    assert [(task["pid"], task["kind"]) for task in data["tasks"]] == [(731, "kernel")]
    assert set(data) == {"transition", "seconds", "timeout", "count", "complete", "tasks", "note"}
    assert "secret" not in str(sent)


def test_a_short_wait_tells_the_master_nothing(states, kernel, clock, sent):
    kernel.start("kgraft-patch-2-2_1")
    clock.at(4, kernel.finish)

    assert states.settled("x")["result"] is True
    assert sent == []


def test_nobody_is_poked_unless_asked(states, kernel, clock, poke):
    kernel.start("kgraft-patch-2-2_1")
    kernel.task(705, "sleep", blocking=True)

    late = states.settled("x", timeout=200)

    assert all(call.kwargs["test"] is True for call in poke.call_args_list)
    assert "poked" not in late["changes"]


@pytest.mark.parametrize("poke_after", [None, 5])
def test_who_is_left_by_any_poke_is_told_so_and_nothing_says_to_poke(states, kernel, clock, poke, poke_after):
    kernel.start("kgraft-patch-2-2_1")
    kernel.task(705, "corosync", blocking=True)
    kernel.task(706, "nfsd", blocking=True, kthread=True)

    late = states.settled("x", timeout=50, poke_after=poke_after)

    assert "- corosync (705): It sleeps in the kernel" in late["comment"]
    assert "A poke leaves it: protected by name:corosync*. It is protected: do not restart it" in late["comment"]
    assert "- nfsd (706): This kernel thread has not come to a safe place, and no signal reaches it" in late["comment"]
    assert "run kgraft.poke" not in late["comment"].lower()


def test_a_poke_that_fails_is_a_note_and_the_wait_goes_on(states, kernel, clock, poke):
    poke.side_effect = CommandExecutionError("Cannot start the process that pokes: No such file or directory")
    kernel.start("kgraft-patch-2-2_1")
    kernel.task(705, "sleep", blocking=True)

    late = states.settled("x", timeout=50, poke_after=5)
    assert late["result"] is False
    assert late["comment"].count("A poke failed: Cannot start the process that pokes: No such file or directory") == 1
    assert "sleep (705)" in late["comment"]

    clock.at(30, kernel.finish)
    assert states.settled("x", timeout=50, poke_after=5)["result"] is True


def test_sleepers_are_poked_when_it_is_time_and_again(states, kernel, clock, poke):
    poked_at = []
    poke.side_effect = lambda **arguments: poked_at.append(clock.now - 1000) or poking([705])
    kernel.start("kgraft-patch-2-2_1")
    kernel.task(705, "sleep", blocking=True)
    clock.at(70, kernel.finish)

    settled = states.settled("x", poke_after=40)

    assert poked_at == pytest.approx([40, 55, 70], abs=0.5) or poked_at == pytest.approx([40, 55], abs=0.5)
    assert settled["result"] is True
    assert settled["changes"]["poked"] == ["sleep (705)"]


def poking(pids):
    tasks = [{"pid": pid, "name": "sleep", "kind": "user"} for pid in pids]
    return {"poked": tasks, "skipped": [], "vanished": [], "count": 0, "complete": True}


@pytest.mark.parametrize(
    ("kernel", "pokes"),
    [
        ({"abi": "livepatch", "release": release}, pokes)
        for release, pokes in [
            ("4.12.14-197-default", True),
            ("5.0.21-1-default", True),
            ("5.1.0-1-default", False),
            ("5.14.21-150500.55.19-default", False),
            ("6.12.0-160000.5-default", False),
            ("40.1", False),
            ("unknown", False),
        ]
    ],
    indirect=["kernel"],
)
def test_where_the_kernel_signals_for_sure_poke_after_does_nothing_and_says_so(states, kernel, clock, poke, pokes):
    poke.side_effect = lambda **arguments: poking([705])
    kernel.start("livepatch_2_2_1")
    kernel.task(705, "sleep", blocking=True)

    late = states.settled("x", timeout=50, poke_after=5)

    assert poke.called is pokes
    assert late["result"] is False
    assert "sleep (705): It sleeps" in late["comment"]
    assert ("the kernel wakes it every 15 s by itself" in late["comment"]) is not pokes
    idle = "\npoke_after does nothing here: from 5.1 on the kernel signals the tasks itself."
    assert late["comment"].endswith(idle) is not pokes
    assert late["changes"].get("poked") == (["sleep (705)"] if pokes else None)


def test_a_pattern_that_is_none_is_refused_before_any_waiting(states, kernel, clock):
    kernel.start("kgraft-patch-2-2_1")

    refused = states.settled("x", protect=["hdb*"])

    assert clock.now == 1000.0
    assert refused["result"] is False
    assert "name:PATTERN" in refused["comment"]


@pytest.mark.parametrize(
    "arguments", [{"timeout": 0}, {"timeout": "5m"}, {"timeout": True}, {"poke_after": -1}, {"poke_after": "x"}]
)
def test_a_bad_number_is_refused_with_its_name_and_value(states, arguments):
    ((argument, value),) = arguments.items()

    refused = states.settled("x", **arguments)

    assert refused["result"] is False
    assert refused["comment"].startswith(f"{argument} is {value!r}; it must be a number of seconds")


@pytest.mark.parametrize("kernel", [{"abi": None}], indirect=True)
def test_a_kernel_without_live_patching_is_not_settled(states, kernel):
    assert states.settled("x") == {
        "name": "x",
        "result": False,
        "changes": {},
        "comment": f"This kernel, {kernel.release}, has no live patching: neither kGraft nor livepatch.",
    }


def test_a_look_that_fails_while_waiting_is_told_from_a_time_out(states, kernel, clock):
    kernel.start("kgraft-patch-2-2_1")
    clock.at(3, lambda: kernel.write("sys/kernel/kgraft/in_progress", "2\n"))

    failed = states.settled("x")

    assert failed["result"] is False
    assert "is neither 0 nor 1" in failed["comment"]
    assert "What changed cannot be told" in failed["comment"]


def test_a_wait_that_fails_otherwise_has_its_words_in_the_comment(states, kernel, kgraft):
    kernel.start("kgraft-patch-2-2_1")
    states.__salt__["kgraft.wait"] = create_autospec(kgraft.wait, side_effect=CommandExecutionError("EACCES", info="x"))

    failed = states.settled("x")

    assert failed["result"] is False
    assert failed["comment"] == "EACCES"


def test_it_loads_where_our_module_is_and_says_what_is_missing_elsewhere(load, states):
    assert states.__virtual__() == "kgraft"
    assert load("_states/kgraft.py").__virtual__()[0] is False
    assert "_modules/kgraft.py" in load("_states/kgraft.py").__virtual__()[1]
