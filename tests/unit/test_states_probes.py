"""
``probes`` and ``fail_on_gap`` of the states: when a service is asked, and what is said of the answers. The probes
themselves are ``kgraft_probe``'s.
"""

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

from tests.support.suse_of_files import Machine

PROBES = [{"exec": ["/usr/local/sbin/ask-hana"]}]
NAME = "ask-hana"
FIGURES = {"asked": 12, "failed": 0, "longest_gap": 0.251, "at": 3.2, "at_rest": 0.189, "overslept": 0.004}
TOLD = f"\nProbe {NAME}: asked 12, failed 0, longest gap 0.251 s, at 3.2 s, at rest 0.189 s, overslept 0.004 s."


class Probe:
    """``kgraft_probe``, of which every call is noted, with the clock's time."""

    def __init__(self, machine, figures):
        self.machine, self.figures, self.calls = machine, figures, []
        machine.salt.update({"kgraft_probe.start": self.start, "kgraft_probe.stop": self.stop})

    def start(self, probes, rest=0, test=False):
        if probes != PROBES:
            raise SaltInvocationError("probes: number 1: must be something else")
        if not test:
            self.calls.append(("start", self.machine.now, rest, list(self.machine.changed)))
            self.machine.now += rest
        return {NAME: None if test else 4711}

    def stop(self, started, keep=False):
        assert (started, keep) == ({NAME: 4711}, True)
        self.calls.append(("stop", self.machine.now))
        return {NAME: self.figures}


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.fixture
def probe(machine):
    return Probe(machine, FIGURES)


def test_a_service_is_asked_at_rest_before_anything_is_done_and_until_the_end(machine, probe):
    live = machine.applied(probes=PROBES)

    assert live.result is True, live.comment
    assert live.changes["probes"] == {NAME: FIGURES}
    assert "is applied and settled" in live.comment and live.comment.endswith(TOLD)
    (_, began, rest, changed), (_, ended) = probe.calls
    assert (rest, changed) == (5.0, [])
    assert ended == machine.now > began + rest


def test_the_time_at_rest_is_no_part_of_the_time_out(machine, probe):
    machine.sleeper.frozen = True
    late = machine.applied(probes=PROBES, timeout=20)

    assert "still after 20 s" in late.comment
    assert machine.now == pytest.approx(1000 + 5 + 20, abs=0.5)
    assert late.changes["probes"] == {NAME: FIGURES}
    assert (late.result, late.comment.endswith(TOLD)) == (False, True)


def test_a_dry_run_starts_none_and_says_that_gaps_will_be_measured(machine, probe):
    dry = machine.applied(probes=PROBES, test=True)

    assert dry.result is None
    assert dry.comment.endswith("\nGaps would be measured by ask-hana.")
    assert "probes" not in dry.changes
    assert probe.calls == []


@pytest.mark.parametrize("test", [True, False])
def test_where_there_is_nothing_to_do_nobody_is_asked(machine, probe, test):
    machine.runs("10-2.1")

    for state in ("applied", "settled"):
        again = machine.run(state, probes=PROBES, fail_on_gap=1, test=test)
        assert (again.result, again.changes, probe.calls) == (True, {}, [])
        assert "Gaps" not in again.comment and "Probe" not in again.comment


def test_while_a_transition_runs_nothing_is_at_rest(machine, probe):
    machine.moves("2-2.1")

    settled = machine.run("settled", probes=PROBES)

    assert settled.result is True
    assert settled.changes["probes"] == {NAME: FIGURES}
    assert probe.calls[0][:3] == ("start", 1000.0, 0)


@pytest.mark.parametrize(
    ("figures", "limit", "result", "told"),
    [
        (FIGURES, None, True, TOLD),
        (FIGURES, 0.251, True, TOLD),
        (FIGURES, 0.25, False, TOLD[:-1] + "; fail_on_gap is 0.25 s."),
        (None, None, True, f"\nProbe {NAME}: not known, for its process did not start, or ended early."),
        (
            None,
            9,
            False,
            f"\nProbe {NAME}: not known, for its process did not start, or ended early; fail_on_gap is 9 s.",
        ),
        # it got no answer at rest either: that keeps no patch out
        (
            dict(FIGURES, failed=12, longest_gap=None, at=None, at_rest=None),
            1,
            True,
            f"\nProbe {NAME}: asked 12, failed 12, overslept 0.004 s.",
        ),
    ],
)
def test_a_gap_is_a_note_unless_it_shall_be_a_failure(machine, probe, figures, limit, result, told):
    probe.figures = figures

    live = machine.applied(probes=PROBES, fail_on_gap=limit)

    assert (live.result, live.changes["probes"]) == (result, {NAME: figures})
    assert live.comment.endswith(told)
    assert machine.patches()["kgraft_patch_10_2_1"] == "applied"


def test_a_run_that_fails_ends_its_probes_and_tells_of_changes_that_there_are(machine, probe):
    def fails(*_, **__):
        raise CommandExecutionError("no space")

    machine.salt["pkg.install"] = fails
    failed = machine.applied(probes=PROBES)

    assert (failed.result, failed.changes) == (False, {})
    assert "no space" in failed.comment and failed.comment.endswith(TOLD)
    assert [call[0] for call in probe.calls] == ["start", "stop"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"probes": "x"}, "probes: number 1: must be something else"),
        ({"probes": PROBES, "fail_on_gap": 0}, "fail_on_gap is 0; it must be a number of seconds above 0"),
        ({"probes": PROBES, "fail_on_gap": "1"}, "fail_on_gap is '1'; it must be"),
        ({"fail_on_gap": 1}, "fail_on_gap is 1, but there are no probes"),
        ({"probes": [], "fail_on_gap": 1}, "fail_on_gap is 1, but there are no probes"),
    ],
)
@pytest.mark.parametrize("test", [True, False])
@pytest.mark.parametrize("state", ["applied", "settled"])
def test_a_bad_argument_is_refused_before_anything_is_done(machine, probe, state, test, arguments, words):
    machine.moves("2-2.1")

    refused = machine.run(state, test=test, **arguments)

    assert (refused.result, refused.changes, machine.changed, probe.calls) == (False, {}, [], [])
    assert refused.comment.startswith(words)
    assert machine.now == 1000.0


def test_a_minion_without_the_module_is_told_so(machine):
    refused = machine.applied(probes=PROBES)

    assert refused.result is False
    assert "The module kgraft_probe is not loaded on this minion" in refused.comment
    assert machine.changed == []
