"""
What falls between two looks: right, or None.

The table says what is told for which two looks. Below it every short history of a kernel is played, with a look after
any of its steps left out, and what the beacon tells is held against what happened.
"""

import itertools
from types import SimpleNamespace

import pytest

from lab.files import BOOT_ID
from tests.support.beacon_minion import tags
from tests.support.soak import rounds

pytest_plugins = ["tests.support.beacon_fixtures"]


def shown(active, seen=None):
    """A status with these patches active, "AB"; ``seen`` is "apply B", "revert B", "" where the kernel says neither."""
    direction, _, patch = (seen or "").partition(" ")
    return {
        **{"abi": "livepatch", "kernelrelease": "6.4", "boot_id": BOOT_ID, "active": list(active)},
        "state": "ready" if seen is None else "in_progress",
        "direction": direction or None,
        "moving": [patch] if patch else [],
    }


def told(minion, status):
    """The events of a look as "finished apply B" and, of a transition that was not seen, "unseen apply B"."""
    minion.calls["kgraft.status"].side_effect = lambda: status
    events = minion.look()
    assert len({event["transition"] for event in events}) == len(events)
    return [
        "{} {} {}".format(
            "unseen" if event.get("seconds", 0) is None else event["tag"], event["direction"], event["patch"]
        )
        for event in events
    ]


# before, now: what is active, and the transition that runs; the events of the second look
CASES = [
    # nothing ran at either look
    (("",), ("A",), ["unseen apply A"]),
    (("A",), ("",), ["unseen revert A"]),
    (("A",), ("AB",), ["unseen apply B"]),
    (("A",), ("B",), ["unseen apply B"]),  # B replaced A, or A was reverted before: not told
    (("AB",), ("C",), ["unseen apply C"]),
    (("AB",), ("AC",), ["unseen apply C"]),
    (("",), ("AB",), ["unseen apply A", "unseen apply B"]),
    (("A",), ("BC",), ["unseen apply B", "unseen apply C"]),
    (("AB",), ("A",), ["unseen revert B"]),
    (("AB",), ("",), ["unseen revert None"]),  # two reverts, or C replaced both and was reverted
    (("ABC",), ("A",), ["unseen revert None"]),
    (("AB",), ("BA",), []),
    # one began
    (("",), ("A", "apply A"), ["started apply A"]),
    (("A",), ("", "revert A"), ["started revert A"]),
    (("A",), ("AB", ""), ["started None None"]),  # applied unseen while another is just loading, or B's own end
    (("A",), ("A", ""), ["started None None"]),
    (("",), ("AB", "apply B"), ["unseen apply A", "started apply B"]),
    (("A",), ("BC", "apply C"), ["unseen apply B", "started apply C"]),
    (("A",), ("B", "apply B"), ["started apply B"]),  # at its end it shows A as gone already
    (("A",), ("", "revert B"), ["unseen apply B", "started revert B"]),  # B replaced A
    (("A",), ("A", "revert B"), ["unseen apply B", "started revert B"]),
    (("AB",), ("", "revert A"), ["unseen revert B", "started revert A"]),
    # one ended
    (("A", "apply A"), ("A",), ["finished apply A"]),
    (("AB", "apply B"), ("AB",), ["finished apply B"]),
    (("AB", "apply B"), ("B",), ["finished apply B"]),
    (("", "revert A"), ("",), ["finished revert A"]),
    (("A", "revert B"), ("A",), ["finished revert B"]),
    (("A", "apply A"), ("",), ["finished apply A", "unseen revert A"]),
    (("AB", "apply B"), ("A",), ["finished apply B", "unseen revert B"]),
    (("AB", "apply B"), ("",), ["finished apply B", "unseen revert B"]),
    (("AB", "apply B"), ("C",), ["finished apply B", "unseen apply C"]),
    (("", "revert A"), ("A",), ["finished revert A", "unseen apply A"]),
    (("A", "revert B"), ("",), ["finished revert B", "unseen revert A"]),
    (("AB", "revert C"), ("",), ["finished revert C", "unseen revert None"]),
    # one took the place of another
    (("A", "apply A"), ("AB", "apply B"), ["finished apply A", "started apply B"]),
    (("A", "apply A"), ("", "revert A"), ["finished apply A", "started revert A"]),
    (("A", "apply A"), ("BC", "apply C"), ["finished apply A", "unseen apply B", "started apply C"]),
    (("A", "revert B"), ("", "revert A"), ["finished revert B", "started revert A"]),
    (("AB", "revert C"), ("", "revert A"), ["finished revert C", "unseen revert B", "started revert A"]),
    # the kernel told no name
    (("A", ""), ("A",), ["finished None None"]),  # the first look of all: it may have been active before
    (("A", ""), ("AB",), ["finished apply B"]),
    (("AB", ""), ("A",), ["finished revert B"]),
    (("AB", ""), ("",), ["finished None None", "unseen revert None"]),
    (("", ""), ("AB",), ["finished None None", "unseen apply A", "unseen apply B"]),
    (("A", ""), ("A", "apply A"), []),
    (("A", "apply A"), ("A", ""), []),
    (("A", "apply A"), ("A", "apply A"), []),
]


@pytest.mark.parametrize(("before", "now", "events"), CASES)
def test_what_two_looks_tell(minion, before, now, events):
    told(minion, shown(*before))

    assert told(minion, shown(*now)) == events
    assert [line for line in told(minion, shown(*now)) if not line.startswith("started")] == []


def test_one_that_was_applied_beside_one_that_is_just_loading_is_told_when_the_kernel_names_the_other(minion):
    told(minion, shown("A"))
    assert told(minion, shown("AB", "")) == ["started None None"]
    assert told(minion, shown("ABC", "apply C")) == ["unseen apply B"]

    assert told(minion, shown("ABC")) == ["finished apply C"]


def test_a_transition_without_a_name_is_the_one_that_explains_what_changed_since_it_was_not_there(minion):
    told(minion, shown("A"))
    told(minion, shown("AB", ""))

    assert told(minion, shown("B")) == ["finished apply B"]


# -- every short history


class Machine:
    """A kernel in letters: what is active and what moves. ``steps`` are all that can happen next."""

    def __init__(self, active="", moves=None):
        self.active, self.moves = active, moves

    def steps(self):
        if self.moves:
            direction, patch, over = self.moves
            if direction == "revert":
                yield "end", Machine(self.active)
                yield f"apply {patch}", Machine(self.active + patch, ("apply", patch, ""))
            else:
                yield "end", Machine(patch if over else self.active)
                yield f"revert {patch}", Machine(self.active.replace(patch, ""), ("revert", patch, ""))
            return
        for patch in "ABCD":
            if patch in self.active:
                yield f"revert {patch}", Machine(self.active.replace(patch, ""), ("revert", patch, ""))
            else:
                for over in (True, False):
                    yield f"apply {patch}", Machine(self.active + patch, ("apply", patch, over))

    def shown(self):
        return shown(self.active, "{} {}".format(*self.moves[:2]) if self.moves else None)


def histories(machine, length):
    """All ``[(step, machine after it)]``."""
    if not length:
        yield []
        return
    for step, after in machine.steps():
        for rest in histories(after, length - 1):
            yield [(step, after), *rest]


def came_and_went(before, hidden):
    """Whether a patch turned twice between two looks, which leaves no trace and is in the manual as a limit."""
    turns = {}
    active = before.active
    for _, machine in hidden:
        for patch in set(active) ^ set(machine.active):
            turns[patch] = turns.get(patch, 0) + 1
        active = machine.active
    return any(number > 1 for number in turns.values())


def is_told_in_order(lines, happened):
    """Whether each line is one of what happened, in this order; None fits anything."""
    rest = iter(happened)
    for line in lines:
        _, direction, patch = line.split(" ")
        if not any(direction in (one[0], "None") and patch in (one[1], "None") for one in rest):
            return False
    return True


@pytest.mark.parametrize("first", ["", "A", "AB"])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5])
def test_whatever_happens_between_two_looks_what_is_told_did_happen(load, tmp_path, first, length):
    """A look before the first step and after the last, and one after the first if it shows something else."""
    played = 0
    for history, seen in itertools.product(histories(Machine(first), length), (False, True)):
        before, hidden = (history[0][1], history[1:]) if seen else (Machine(first), history)
        if came_and_went(before, hidden):
            continue
        calls = {}
        module = load("_beacons/kgraft.py", __salt__=calls, __opts__={"cachedir": str(tmp_path)})
        module._write = lambda path, text: None
        module.os = SimpleNamespace(path=module.os.path)
        minion = SimpleNamespace(
            calls={"kgraft.status": SimpleNamespace()}, look=lambda module=module: module.beacon([])
        )
        calls["kgraft.status"] = lambda minion=minion: minion.calls["kgraft.status"].side_effect()
        told(minion, Machine(first).shown())
        lines = told(minion, history[0][1].shown()) if seen else []
        lines += told(minion, history[-1][1].shown())

        # what is started and finished is one, and a step that ends one is none of its own
        ids = [line for line in lines if not line.startswith("started")] + [
            line for line in lines[-1:] if line.startswith("started")
        ]
        happened = [tuple(step.split(" ")) for step, _ in history if step != "end"]
        assert is_told_in_order(ids, happened), (first, history, lines)
        # one transition alone is always told, and by its name
        if len(happened) == 1:
            assert [line.split(" ", 1)[1] for line in ids] == [" ".join(happened[0])], (first, history, lines)
        played += 1
    assert played


# -- ids


def test_two_transitions_told_in_one_look_have_two_ids(kernel, minion):
    minion.look()
    kernel.start("kgraft-patch-1-2_1")
    kernel.finish()
    kernel.start("kgraft-patch-2-2_1")

    events = minion.look()

    assert tags(events) == ["finished", "started"]
    assert events[0]["transition"] != events[1]["transition"]


@pytest.mark.soak
@pytest.mark.parametrize("writable", [True, False])
@pytest.mark.parametrize("restarts", [True, False])
def test_no_id_is_that_of_two_transitions(kernel, minion, writable, restarts):
    """Many transitions, a restart after each look, and a memory that cannot be written."""
    ids = {}
    if not writable:
        minion.cachedir.rmdir()
    for number in range(rounds(200)):
        module = f"kgraft_patch_{number}_1"
        for step in (lambda name: kernel.start(name), lambda name: kernel.finish()):
            step(f"kgraft-patch-{number}-1")
            if restarts:
                minion.restart()
            for event in minion.look(after=0.001):
                if event["tag"] != "error":
                    ids.setdefault(event["transition"], set()).add((event["direction"], event["patch"]))
        if number % 2:
            for name in list(kernel.patches):
                if name != f"kgraft-patch-{number}-1":
                    kernel.remove(name)
        assert ("apply", module) in set().union(*ids.values())

    assert all(len(patches) == 1 for patches in ids.values())
    if writable:
        assert len(ids) == rounds(200)


def test_an_id_is_the_same_over_restarts_where_the_memory_could_be_written(kernel, minion):
    kernel.start("kgraft-patch-2-2_1")
    [started] = minion.look()
    for _ in range(5):
        minion.restart()
        minion.look(after=20)
    kernel.finish()

    assert minion.look()[0]["transition"] == started["transition"] == f"{BOOT_ID}-1001000000"


def test_a_container_that_comes_back_with_a_clock_from_the_past_gives_no_id_twice(kernel, minion):
    ids = []
    for number in range(4):
        minion.restart()
        minion.clock.now = 1000.0
        kernel.start(f"kgraft-patch-{number}-1")
        ids += [event["transition"] for event in minion.look() if event["tag"] == "started"]
        kernel.finish()
        minion.look(after=60)

    assert len(set(ids)) == len(ids) == 4


def test_a_file_that_cannot_be_written_does_not_give_the_id_of_what_is_over_to_another(kernel, minion, monkeypatch):
    """The same patch is applied again after its revert, and only a file of long ago knows of the first time."""
    kernel.start("kgraft-patch-2-2_1")
    [first] = minion.look()

    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(minion.module, "_write", full)
    kernel.finish()
    minion.look()
    kernel.revert("kgraft-patch-2-2_1")
    kernel.finish()
    minion.look()
    kernel.remove("kgraft-patch-2-2_1")
    minion.look(after=60)
    minion.restart()
    kernel.start("kgraft-patch-2-2_1")

    [second] = minion.look()

    assert (second["tag"], second["patch"]) == ("started", first["patch"])
    assert second["transition"] != first["transition"]


def test_a_file_that_cannot_be_written_is_kept_while_an_end_may_not_have_been_sent(kernel, minion, monkeypatch):
    kernel.start("kgraft-patch-2-2_1")
    [started] = minion.look()
    minion.look(after=60)

    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(minion.module, "_write", full)
    kernel.finish()
    lost, _ = minion.look()
    minion.look(after=5)
    minion.restart()

    [again] = minion.look()

    assert (
        (again["tag"], again["transition"]) == ("finished", started["transition"]) == (lost["tag"], lost["transition"])
    )


def test_a_file_that_cannot_be_written_goes_on_to_name_what_still_runs(kernel, minion, monkeypatch):
    kernel.start("kgraft-patch-2-2_1")
    [started] = minion.look()

    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(minion.module, "_write", full)
    assert tags(minion.look(after=60)) == ["error"]
    minion.restart()
    kernel.finish()

    assert minion.look()[0]["transition"] == started["transition"]
