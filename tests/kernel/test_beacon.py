"""
The beacon, in Salt's beacon loop, against the kernel's own log: no transition missed, none invented.

The loop looks once a second as a minion's does; the kernel's log has the same clock, so each event is held against the
line of the log that it must follow.
"""

import json
import re

import pytest

from tests.kernel.guest import SYSFS

FIRST, SECOND, CORE, SLEEPY = "livepatch_1_1_1", "livepatch_2_1_1", "klpt_core", "klpt_sleepy"
STUCK_AFTER = 3

LINE = re.compile(
    r"livepatch: '(?P<patch>\w+)': (?:(?P<start>starting)|(?P<direction>\w+) complete|starting) ?(?P<of>\w+)?"
)


class Loop:
    def __init__(self, guest):
        self.guest = guest
        self.seen = 0
        self.pid = guest.ask("beacons", config={"kgraft": [{"stuck_after": STUCK_AFTER}]})
        self.look()

    def lines(self):
        return [json.loads(line) for line in self.guest.sh("cat /run/events 2>/dev/null; true").splitlines()]

    def look(self, times=2):
        """Wait until the loop has looked: a look that is under way, and one after it."""
        now = sum(line["tag"] == "looked" for line in self.lines())
        self.guest.until(f"[ $(grep -c looked /run/events) -ge {now + times} ]", 60, "the beacon loop")

    def events(self):
        self.look()
        self.guest.sh(f"kill {self.pid}")
        answer = []
        for line in self.lines():
            if line["tag"] != "looked":
                assert line["tag"].startswith("salt/beacon/guest/kgraft/"), line
                answer.append({"at": line["at"], "tag": line["tag"].rpartition("/")[2], **line["data"]})
        return answer


@pytest.fixture
def loop(guest):
    return Loop(guest)


def transitions(log):
    """``[[patch, direction, seconds at the start, seconds at the end or None if it was reversed]]`` of a kernel log."""
    found = []
    for at, line in log:
        started = re.match(r"livepatch: '(\w+)': starting (patching|unpatching) transition", line)
        complete = re.match(r"livepatch: '(\w+)': (patching|unpatching) complete", line)
        if started:
            found.append([started.group(1), "apply" if started.group(2) == "patching" else "revert", at, None])
        elif complete:
            assert found[-1][0] == complete.group(1)
            found[-1][3] = at
    return found


def told(events):
    """The same, as the events have it."""
    found = {}
    for event in events:
        assert event["tag"] in ("started", "finished", "stuck"), event
        one = found.setdefault(event["transition"], [event["patch"], event["direction"], None, None])
        assert one[:2] == [event["patch"], event["direction"]], event
        if event["tag"] == "started":
            one[2] = event["at"]
        elif event["tag"] == "finished":
            one[3] = event["at"]
    return list(found.values())


def assert_that_they_agree(events, log):
    real, seen = transitions(log), told(events)
    assert [one[:2] for one in seen] == [one[:2] for one in real], (seen, real)
    for (_, _, start, end), (patch, _, told_start, told_end) in zip(real, seen, strict=True):
        assert told_end is not None, f"no end of {patch}"
        assert told_start is None or told_start >= start, patch
        assert end is None or told_end >= end, patch


def test_every_transition_becomes_events_and_nothing_else_does(guest, loop):
    guest.load(CORE)
    loop.look()
    guest.load(FIRST)
    loop.look()
    guest.load(SECOND)  # which replaces both
    loop.look()
    guest.disabled(SECOND)
    loop.look()

    events, log = loop.events(), guest.kernel_log()

    assert_that_they_agree(events, log)
    assert [one[:2] for one in transitions(log)] == [
        [CORE, "apply"],
        [FIRST, "apply"],
        [SECOND, "apply"],
        [SECOND, "revert"],
    ]
    assert {event["kernelrelease"] for event in events} == {guest.kernel.release}
    assert {event["boot_id"] for event in events} == {guest.sh("cat /proc/sys/kernel/random/boot_id").strip()}
    last = [event for event in events if event["tag"] == "finished"][-1]
    assert last["active"] == []


def test_a_transition_that_is_stuck_is_told_once_with_its_blockers(guest, loop):
    pid = guest.sleeper("killable")
    guest.insert(FIRST)
    guest.until("grep -q kgraft/stuck /run/events", 60, "the event stuck")
    loop.look(4)
    guest.wake()
    guest.settled()
    loop.look()

    events = loop.events()

    assert_that_they_agree(events, guest.kernel_log())
    assert [event["tag"] for event in events] == ["started", "stuck", "finished"]
    started, stuck, finished = events
    assert (stuck["times"], stuck["patch"], stuck["direction"]) == (1, FIRST, "apply")
    assert stuck["seconds"] >= STUCK_AFTER
    # it has 0.2 s to look at all tasks, which an emulated machine may need more than
    assert [task["pid"] for task in stuck["tasks"]] == [pid] or not stuck["complete"]
    assert finished["observed"] is True
    assert finished["seconds"] >= stuck["seconds"]
    assert finished["active"] == [FIRST]


def test_a_reversal_ends_one_transition_and_starts_another(guest, loop):
    guest.sleeper("killable")
    guest.insert(SLEEPY)
    guest.sleeper_in("klpt_new_block_read")
    loop.look()
    guest.disable(SLEEPY)
    loop.look()
    guest.sh(f"echo 1 > {SYSFS}/{SLEEPY}/enabled")
    loop.look()
    guest.wake()
    guest.settled()
    loop.look()

    events, log = loop.events(), guest.kernel_log()

    assert_that_they_agree([event for event in events if event["tag"] != "stuck"], log)
    assert [one[1] for one in transitions(log)] == ["apply", "revert", "apply"]


def test_a_minion_that_restarts_in_mid_transition_tells_its_end(guest, loop):
    guest.sleeper("killable")
    guest.insert(FIRST)
    loop.look()
    guest.sh(f"kill -9 {loop.pid}")
    again = Loop(guest)
    guest.wake()
    guest.settled()

    events = again.events()

    once = list({(event["transition"], event["tag"]): event for event in events}.values())
    assert_that_they_agree([event for event in once if event["tag"] != "stuck"], guest.kernel_log())
