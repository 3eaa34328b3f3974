"""
Probes: the figures that come of given times, and what is refused. Real services are in
``tests/functional/test_kgraft_probe.py``.
"""

import calendar
import inspect
import sys
import time

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

PROGRAM = sys.executable
TCP = {"address": "localhost:6379", "send": "PING", "expect": "PONG"}


@pytest.fixture
def probe(load):
    return load("_modules/kgraft_probe.py")


@pytest.fixture
def seen(load):
    """What has been seen; it counts from second 100 on."""
    return load("_modules/_kgraft_prober.py").Seen(100.0)


# ----- figures


@pytest.mark.parametrize(
    ("lines", "ended", "figures"),
    [
        pytest.param([], 110, (0, None, None, None), id="no line at all is no gap, and not known to be none"),
        pytest.param([101], 101.5, (1, 0.5, 1.0, None), id="nothing is missed before the first line"),
        pytest.param([95, 96.5, 99, 102], 103, (1, 2.0, 0.0, 2.5), id="a gap that goes on is cut in two"),
        pytest.param([95, 95.1, 101, 104, 105], 105.5, (3, 3.0, 1.0, 4.9), id="the longest of several"),
        pytest.param([99, 101, 102], 109, (2, 7.0, 2.0, 1.0), id="what goes away for good is missed until the end"),
        pytest.param([95, 99], 110, (0, 10.0, 0.0, 4.0), id="only at rest"),
        pytest.param([95, 97], 99, (0, None, None, 2.0), id="it never came to count"),
    ],
)
def test_lines_of_a_program_are_timed(seen, lines, ended, figures):
    for now in lines:
        seen.answer(now, missed=now)
        seen.count(now, 1)
    seen.answer(ended, missed=ended)
    told = seen.figures
    assert (told["asked"], told["longest_gap"], told["at"], told["at_rest"]) == figures


@pytest.mark.parametrize(
    ("answers", "ended", "figures"),
    [
        # each: when it came, and when the next question was due then
        pytest.param([(100.01, 101), (101.02, 102), (102.01, 103)], 102.5, (0.02, 1.0), id="from when it was due"),
        pytest.param([(100.01, 101), (104.5, 105), (105.1, 106)], 105.5, (3.5, 1.0), id="not from the last answer"),
        pytest.param([(100.01, 101)], 109, (8.0, 1.0), id="a question without an answer counts at the end"),
        pytest.param([(100.01, 101)], 100.5, (None, None), id="one that is not due yet does not"),
        pytest.param([(95.0, 96), (98.0, 99), (103.0, 104)], 103.5, (3.0, 0.0), id="what was before was at rest"),
    ],
)
def test_a_connection_is_judged_by_when_it_should_have_asked(seen, answers, ended, figures):
    for now, due in answers:
        seen.answer(now, missed=due)
    seen.answer(ended, missed=ended)
    assert (seen.figures["longest_gap"], seen.figures["at"]) == figures


def test_failures_at_rest_are_not_told_as_of_later(seen):
    seen.count(99.0, 1, failed=1)
    seen.count(101.0, 1, failed=1)
    seen.count(102.0, 7)
    assert (seen.figures["asked"], seen.figures["failed"]) == (8, 1)


# ----- what is taken, and what is refused


@pytest.mark.parametrize(
    ("probes", "names"),
    [
        ([], []),
        ([{"exec": [PROGRAM, "-c", "pass"]}], [PROGRAM.rpartition("/")[2]]),
        ([{"exec": [PROGRAM], "name": "ask-hana"}], ["ask-hana"]),
        ([{"tcp": TCP}], ["localhost:6379"]),
        ([{"tcp": {**TCP, "interval": 0.1}}], ["localhost:6379"]),
        ([{"tcp": {**TCP, "address": "[::1]:6379", "send": "\x00\xff"}}], ["::1:6379"]),
        ([{"reachable": "db1.example.com:30015"}, {"exec": [PROGRAM], "name": "x"}], ["db1.example.com:30015", "x"]),
        ([{"reachable": "127.0.0.1:220"}], ["127.0.0.1:220"]),
    ],
)
def test_probes_have_names_and_none_is_started_for_a_test(probe, monkeypatch, probes, names):
    monkeypatch.setattr(probe.subprocess, "Popen", None)
    assert probe.start(probes, test=True) == dict.fromkeys(names)


REFUSED = [
    *((given, "must be a list") for given in ("x", None, {"exec": [PROGRAM]}, [{"reachable": "a:1"}] * 9)),
    *(([given], "must be one of exec, tcp and reachable") for given in (None, "exec", [], {}, {"ping": "db1:7"})),
    *(([given], "must be one of") for given in ({"name": "x"}, {"exec": [PROGRAM], "reachable": "a:1"})),
    *(
        ([{"exec": command}], "must be exec: a list of texts")
        for command in (None, [], PROGRAM, ["python3"], ["/nonexistent"], ["/etc"], ["/etc/passwd"], [PROGRAM, 5])
    ),
    ([{"exec": [PROGRAM, "x\0"]}], "must be exec: a list of texts"),
    *(
        ([{"tcp": {**TCP, **change}}], r"must be tcp: \{address")
        for change in (
            {"address": "localhost"},
            {"address": "localhost:ssh"},
            {"address": "localhost:22"},
            {"address": "localhost:022"},
            {"address": "localhost:0"},
            {"address": "localhost:65536"},
            {"address": ":6379"},
            {"address": "::1:6379"},
            {"address": 6379},
            {"address": None},
            {"send": ""},
            {"send": 5},
            {"send": "\u0100"},
            {"expect": ""},
            {"expect": None},
            {"interval": 0.09},
            {"interval": 61},
            {"interval": "1"},
            {"interval": True},
            {"interval": float("nan")},
            {"timeout": 5},
        )
    ),
    ([{"tcp": "localhost:6379"}], r"must be tcp: \{address"),
    ([{"tcp": {"address": "localhost:6379"}}], r"must be tcp: \{address"),
    *(([{"reachable": address}], "must be reachable: 'host:port'") for address in ("db1", "db1:22", 5, None, TCP)),
    ([{"reachable": "a:1"}, {"reachable": "a:1"}], "number 2: needs a name of its own"),
    ([{"reachable": "a:1", "name": "two\nlines"}], "needs a name of its own, in printable characters"),
]


@pytest.mark.parametrize(("probes", "words"), REFUSED, ids=lambda value: ascii(value)[:60])
@pytest.mark.parametrize("call", ["run", "start"])
def test_a_bad_probe_is_refused_before_any_is_started(probe, monkeypatch, call, probes, words):
    monkeypatch.setattr(probe.subprocess, "Popen", None)
    with pytest.raises(SaltInvocationError, match=words):
        getattr(probe, call)(probes)


@pytest.mark.parametrize(
    "given",
    [
        {"exec": ["/nonexistent", "--password=secret"]},
        {"tcp": {**TCP, "send": "AUTH secret", "interval": 0}},
        {"exec": [PROGRAM, "secret"], "name": "\n"},
    ],
)
def test_no_refusal_shows_what_would_be_run_or_sent(probe, given):
    with pytest.raises(SaltInvocationError) as refused:
        probe.start([given])
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("seconds", [0, -1, True, "5", None, float("inf"), float("nan"), 86401])
def test_a_bad_number_of_seconds_is_refused(probe, seconds):
    with pytest.raises(SaltInvocationError, match="seconds=.*: must be a positive number"):
        probe.run([], seconds=seconds)


@pytest.mark.parametrize("started", [{"x": 1}, {"x": []}, "x", None])
def test_what_was_not_started_here_cannot_be_stopped(probe, started):
    with pytest.raises(SaltInvocationError, match="must be what kgraft_probe.start returned"):
        probe.stop(started)


def test_where_no_process_can_be_started_nothing_is_known_and_nothing_fails(probe, monkeypatch):
    def fails(*_, **__):
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(probe.subprocess, "Popen", fails)
    assert probe.run([{"tcp": TCP}], seconds=0.01) == {"localhost:6379": None}


def test_what_a_state_saw_last_is_kept_and_what_is_no_such_file_is_named(load, tmp_path):
    probe = load("_modules/kgraft_probe.py", __opts__={"cachedir": str(tmp_path)})
    assert probe.last() is None
    probe.stop({"x": None})
    assert probe.last() is None
    probe.stop({"x": None}, keep=True)
    told = probe.last()
    assert told == {"at": told["at"], "probes": {"x": None}}
    assert abs(calendar.timegm(time.strptime(told["at"], "%Y-%m-%dT%H:%M:%SZ")) - time.time()) < 60
    for text in ("", "{", "[]", "1", "{}", "\xff"):
        (tmp_path / "kgraft_probe.json").write_text(text, "latin-1")
        with pytest.raises(CommandExecutionError, match=r"Cannot read .*kgraft_probe\.json"):
            probe.last()


def test_figures_that_cannot_be_kept_are_told_all_the_same(load, tmp_path):
    probe = load("_modules/kgraft_probe.py", __opts__={"cachedir": str(tmp_path / "none")})
    assert probe.stop({"x": None}, keep=True) == {"x": None}


def test_where_figures_cannot_be_kept_no_older_ones_are_told_as_the_last(load, tmp_path, monkeypatch):
    probe = load("_modules/kgraft_probe.py", __opts__={"cachedir": str(tmp_path)})
    probe.stop({"x": None}, keep=True)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(probe.files.os, "replace", full)
    probe.stop({"y": None}, keep=True)
    assert probe.last() is None


def test_it_loads_on_linux_only(probe, monkeypatch):
    assert probe.__virtual__() == "kgraft_probe"
    monkeypatch.setattr(probe.sys, "platform", "win32")
    assert probe.__virtual__() == (False, "kgraft_probe needs Linux; this is win32")


def test_the_help_names_every_figure_that_there_is(probe, seen):
    assert [name for name in seen.figures if f"``{name}``" not in inspect.getdoc(probe.run)] == []
