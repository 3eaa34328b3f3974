"""When a transition is stuck, and what is told about it."""

import os

import pytest

from tests.support.beacon_minion import fail, tags

pytest_plugins = ["tests.support.beacon_fixtures"]


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
        *("seconds", "times", "tasks", "count", "complete", "note"),
    }


def test_stuck_looks_at_processes_for_a_short_time_only(kernel, minion):
    kernel.start("kgraft-patch-2-2_1")
    minion.look()
    minion.look(after=120)

    minion.calls["kgraft.blocking"].assert_called_once_with(budget=0.2, protect=None)


@pytest.mark.parametrize("protect", ["name:nfs*", ["unit:x", "name:nfs*"]])
def test_nobody_is_told_to_touch_what_the_option_protects(kernel, minion, protect):
    minion.options = [{"protect": protect}]
    kernel.task(731, "nfsd", letter="T", blocking=True)
    kernel.task(732, "cat", letter="T", blocking=True)
    kernel.start("kgraft-patch-2-2_1")
    minion.look()

    [stuck] = minion.look(after=120)

    nfsd, cat = (task["help"] for task in stuck["tasks"])
    assert nfsd.startswith("It is protected: do not restart it")
    assert "kill -CONT" in cat


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
    minion.calls["kgraft.blocking"].side_effect = lambda **arguments: kernel.finish() or blocking(**arguments)

    assert minion.look(after=120) == []
    assert tags(minion.look()) == ["finished"]


def test_an_event_can_be_packed_whatever_a_process_calls_itself(kernel, minion):
    import salt.payload

    kernel.task(731, b"\xff\xfe\xf0bad", blocking=True)
    kernel.start("kgraft-patch-2-2_1")
    minion.look()

    [stuck] = minion.look(after=120)

    assert salt.payload.loads(salt.payload.dumps(stuck))["tasks"][0]["pid"] == 731


@pytest.mark.parametrize(
    "name", [b"a\nsalt/x {}", b"\x1b[2J\x07\r\x9b", "\u202egpj\u2028".encode(), b"\xff\xfe\0", b"%s{0}'\"\\"]
)
def test_what_users_choose_stays_in_one_short_line(kernel, minion, name):
    """Names of processes, of executables and of units; a title of 100 kB is no name at all."""
    kernel.task(731, name[:15], blocking=True, cmdline=[b"t" * 100_000 + b"--password=hunter2"])
    own = os.fsdecode(b"x" * 15 + name.replace(b"\0", b"").replace(b"/", b"") + b"y" * 200)
    kernel.task(732, b"x" * 15, blocking=True, exe="/opt/" + own)
    kernel.write(
        "proc/731/cgroup", b"1:name=systemd:/system.slice/" + name.replace(b"\n", b"") + b"u" * 200 + b".service\n"
    )
    kernel.start("kgraft-patch-2-2_1")
    minion.look()

    [stuck] = minion.look(after=120)

    assert [task["pid"] for task in stuck["tasks"]] == [731, 732]
    texts = [value for task in stuck["tasks"] for value in task.values() if isinstance(value, str)]
    assert len(texts) >= 8
    assert all(text.isprintable() and len(text) < 1100 for text in texts), texts
    assert "hunter2" not in str(stuck)


def test_no_event_shows_a_command_line(kernel, minion):
    kernel.task(731, "db", blocking=True, cmdline=["db", "--password=hunter2"])
    kernel.start("kgraft-patch-2-2_1")
    minion.look()

    assert "hunter2" not in str(minion.look(after=120))
    assert "hunter2" not in minion.memory.read_text()
