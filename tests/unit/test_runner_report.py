"""Where a machine stands, by what it answered; what is said of a fleet, and with which exit code."""

import calendar
import json
import time

import pytest

from tests.support.load import load_file

NOW = calendar.timegm((2026, 11, 23, 12, 0, 0))
VERSION = load_file("_runners/kgraft.py").VERSION


def ago(seconds, form="%Y-%m-%dT%H:%M:%SZ"):
    return time.strftime(form, time.gmtime(NOW - seconds))


def package(**changes):
    return {"name": "kgraft-patch-x", "installed": "9-2.2", "newest": "9-2.2", "as_of": ago(3600), **changes}


def overview(**changes):
    """An answer of ``kgraft.overview``: settled, and the newest patch runs."""
    settled = {
        "observed": ago(2),
        "version": VERSION,
        "state": "ready",
        "direction": None,
        "active": ["kgraft_patch_9_2_2"],
        "running": "9-2.2",
        "since": None,
        "kernelrelease": "4.4.180-94.100-default",
        "boot_id": "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        "abi": "kgraft",
        "blocking": None,
        "package": package(),
        "fixes": None,
        "supported_until": "2027-06-30",
        "reboot": None,
        "notes": [],
    }
    return {**settled, **changes}


def moving(seconds=None, *tasks, **changes):
    """One in transition, for so many seconds as far as it is known."""
    blocking = {"count": len(tasks), "complete": True, "tasks": list(tasks)}
    since = None if seconds is None else ago(seconds)
    return overview(state="in_progress", direction="apply", since=since, blocking=blocking, **changes)


def task(kind="user", unit=None, why=None):
    return {"kind": kind, "unit": unit, "why": why}


@pytest.fixture(scope="module")
def fleets(load):
    return load("_runners/_kgraft_fleet.py")


@pytest.fixture(scope="module")
def reports(load, fleets):
    return load("_runners/_kgraft_report.py", fleets=fleets)


@pytest.fixture(scope="module")
def machines(reports, fleets):
    """Return ``machines(judge, answers, silent)``: what the report knows of a fleet."""

    def found(judge, answers, silent=(), exceptions=({}, set())):
        fleet = fleets.Fleet({*answers, *silent}, answers, dict.fromkeys(silent, "nothing in 30 s"))
        return reports.machines(fleet, judge, VERSION, 7200, NOW, *exceptions)

    return found


@pytest.fixture(scope="module")
def of(reports, machines):
    """The same of answers to ``kgraft.overview`` alone, as ``report`` asks for them."""
    limits = reports.Limits(7200, 86400, 30)

    def found(answers, *silent_and_exceptions):
        asked = {machine: {"kgraft.overview": told} for machine, told in answers.items()}
        return machines(lambda _, told: reports.by_packages(told, limits, NOW), asked, *silent_and_exceptions)

    return found


NOT_LOADED = "kgraft_pkg.available is not loaded here"
NO_PACKAGE = (
    "kgraft_pkg.available: No live-patch package can exist for kernel 6.1: it is not named as SUSE names kernels"
)
OLD, AHEAD = ago(90000), ago(-100)


@pytest.mark.parametrize(
    ("told", "name", "why"),
    [
        (overview(), "settled", "9-2.2"),
        # what runs is newer than what is offered: it came by another hand
        (overview(running="11-2.1", package=package(installed="11-2.1")), "settled", "11-2.1"),
        # numbers are compared as such
        (overview(running="10-2.1", package=package(installed="10-2.1")), "settled", "10-2.1"),
        (overview(notes=["kgraft_security.reboot is not loaded here"]), "settled", "9-2.2"),
        (overview(supported_until=None), "settled", "9-2.2"),
        (overview(supported_until="2026-12-23"), "end of support near", "on 2026-12-23"),
        (overview(supported_until="2026-12-24"), "settled", "9-2.2"),
        (overview(supported_until="2026-11-23"), "end of support near", "on 2026-11-23"),
        (overview(supported_until="2026-11-22"), "end of support past", "since 2026-11-22"),
        (overview(package=package(newest="10-2.1")), "unpatched", "newer offered"),
        (overview(running="8-2.1", package=package(newest="10-2.1")), "unpatched", "installed, not loaded"),
        (overview(running=None, active=[]), "unpatched", "installed, not loaded"),
        (overview(running=None, package=package(newest=None)), "unpatched", "installed, not loaded"),
        (overview(running=None, package=package(installed=None)), "unpatched", "nothing is installed"),
        (overview(package=package(installed=None)), "unpatched", "loaded, not installed"),
        (overview(package=package(installed="8-2.1")), "unpatched", "loaded, not installed"),
        (overview(package=package(newest=None)), "doubtful", "no repository offers a live patch"),
        (overview(running=None, package=package(installed=None, newest=None)), "doubtful", "no repository"),
        (overview(notes=["far: it is away"]), "doubtful", "not read: far: it is away"),
        (overview(package=package(as_of=OLD)), "doubtful", "lists are too old"),
        (overview(package=package(as_of=None)), "doubtful", "lists are too old"),
        (overview(package=package(as_of="soon")), "doubtful", "lists are too old"),
        (overview(package=package(as_of="2026-11-23 11:00")), "doubtful", "lists are too old"),
        # the machine's own clock, years behind: only its own two times are compared
        (overview(observed="1970-01-01T02:00:00Z", package=package(as_of="1970-01-01T01:00:00Z")), "settled", "9-2.2"),
        (overview(observed="1970-01-03T02:00:00Z", package=package(as_of="1970-01-01T01:00:00Z")), "doubtful", "old"),
        (overview(package=package(as_of=ago(-30))), "settled", "9-2.2"),
        (overview(observed="x", package=package(as_of="soon")), "doubtful", "lists are too old"),
        (overview(observed="x"), "doubtful", "lists are too old"),
        (overview(package=package(as_of=AHEAD)), "doubtful", "lists are too old"),
        (overview(package=package(as_of=OLD), supported_until="2026-01-01"), "doubtful", "lists are too old"),
        (
            overview(package=package(installed=None), notes=["kgraft_pkg.installed: x"]),
            "doubtful",
            "not read: kgraft_pkg",
        ),
        (overview(package=None, notes=["kgraft_pkg.available: zypper did not end"]), "doubtful", "zypper did not end"),
        (overview(package=None), "doubtful", "not read: the packages"),
        (overview(package=None, notes=[NOT_LOADED]), "without packages", NOT_LOADED),
        (overview(package=None, notes=[NO_PACKAGE]), "without packages", "not named as SUSE names kernels"),
        (overview(state="unavailable", abi=None), "unavailable", "no live patching in this kernel"),
        (moving(7100, task(why="by nfsd")), "in transition", "by nfsd"),
        (moving(7300, task(why="by nfsd")), "stuck", "by nfsd"),
        (moving(None, task(why="by nfsd")), "in transition", "by nfsd"),
        (moving(7300, task("kernel")), "stuck", "a task of kind kernel"),
        (moving(7300, task("user", "x.service")), "stuck", "x.service: a task of kind user"),
        # of several tasks the one of which the reason is known
        (moving(7300, task(), task(why="by a bpf program")), "stuck", "by a bpf program"),
        (moving(7300), "stuck", "nothing was found that blocks"),
        # a transition comes before all that is about packages
        (moving(7300, package=None), "stuck", "nothing was found that blocks"),
        (overview(version="0.0.9"), "not synced", f"0.0.9, not {VERSION}: run saltutil.sync_all"),
        (overview(version="0.0.9", state="in_progress"), "not synced", "0.0.9"),
        ("'kgraft.overview' is not available.", "not synced", "run saltutil.sync_all"),
        ("Traceback (most recent call last):\nTypeError: 'str' object is not callable\n", "not synced", "sync_all"),
        ("ERROR: Cannot read /sys: Permission denied", "failed", "Cannot read /sys: Permission denied"),
        ("Traceback (most …):\n x\nsalt.exceptions.CommandExecutionError: no sysfs\n", "failed", "no sysfs"),
        ("Minion did not return. [No response]", "failed", "Minion did not return. [No response]"),
    ],
)
def test_a_machine_is_told_by_the_first_that_is_true_of_it(of, told, name, why):
    machine = of({"db1": told})["db1"]
    assert machine["class"] == name
    assert why in machine["why"]


def test_what_kgraft_overview_answers_is_what_these_tests_take_for_it(of, kernel, kgraft):
    kernel.patch("kgraft-patch-2-2_1")
    assert kgraft.overview().keys() == overview().keys()
    assert of({"db1": kgraft.overview()})["db1"]["class"] == "without packages"
    kernel.start("kgraft-patch-3-2_1")
    kernel.task(731, "nfsd", blocking=True)
    told = kgraft.overview()
    assert told["blocking"]["count"] == 1
    assert told["blocking"]["tasks"][0].keys() == task().keys()
    assert of({"db1": told})["db1"]["class"] == "in transition"


def test_the_runner_and_the_module_that_it_asks_are_of_one_version(load):
    assert load("_runners/kgraft.py").VERSION == load("_modules/kgraft.py").VERSION


def nest(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


HOSTILE = [
    None,
    True,
    False,
    0,
    -1,
    2**200,
    1.5,
    float("nan"),
    b"\xff",
    "",
    "x" * 100_000,
    "9" * 10_000 + "-1",
    "\x1b[2J\x00\r\n\u2028\u202ex",
    "1-1\n2-2",
    "0001-01-01T00:00:00Z",
    "9999-12-31 23:59",
    [],
    ["x", 1],
    {},
    {1: 2, "a": nest(2000)},
    nest(2000),
    ["{0} {db2}"],
]


def bent():
    """Answers of which one field, at any depth, is a hostile value; and those values alone."""
    for value in HOSTILE:
        yield value
        for base in (overview(), moving(7300, task()), overview(package=None)):
            for key in base:
                yield {**base, key: value}
                yield {name: about for name, about in base.items() if name != key}
            for key in base["package"] or ():
                yield {**base, "package": {**base["package"], key: value}}
            for key in base["blocking"] or ():
                yield {**base, "blocking": {**base["blocking"], key: value}}
            for key in task():
                yield moving(7300, {**task(), key: value})


def test_whatever_one_machine_answers_the_others_are_told_and_each_text_is_one_line(of, reports):
    told = dict(enumerate(bent()))
    answers = {f"bad{number}": answer for number, answer in told.items()}

    found = of({**answers, "db1": overview(), "db2": moving(7300, task(why="by nfsd"))}, ["db3"])
    data = reports.tell(found, set(found))

    assert len(found) == len(answers) + 3
    assert [found[name]["class"] for name in ("db1", "db2", "db3")] == ["settled", "stuck", "no answer"]
    assert {machine["class"] for machine in found.values()} <= set(reports.CLASSES)
    whys = [machine["why"] for machine in found.values()]
    assert [why for why in [*whys, *data["report"]] if not why.isprintable() or not why] == []
    assert max(map(len, whys)) <= 160
    assert len(data["report"]) <= 6 * len(reports.CLASSES) + 2
    assert len(json.dumps(data)) < 1000 * len(found)


@pytest.mark.parametrize("answer", HOSTILE)
def test_an_answer_that_is_none_is_a_failure(of, answer):
    assert of({"db1": answer})["db1"]["class"] == "failed"


# -- the fleet

STUCK, UNPATCHED = moving(7300, task()), overview(package=package(newest="10-2.1"))
LOOKS_OFF = overview(package=package(as_of=OLD))


@pytest.mark.parametrize(
    ("answers", "silent", "code", "words"),
    [
        ([overview()], 0, 0, "Good: "),
        ([overview(), overview(supported_until="2026-12-01")], 0, 0, "Good: "),
        ([overview(), UNPATCHED], 0, 2, "Not good: not all machines are patched."),
        ([overview(), LOOKS_OFF], 0, 2, "Not good"),
        ([overview(), moving(10, task())], 0, 2, "Not good"),
        ([overview(), overview(supported_until="2026-01-01")], 0, 2, "Not good"),
        ([overview(), overview(state="unavailable")], 0, 2, "Not good"),
        ([overview(), "ERROR: x"], 0, 2, "Not good"),
        ([overview()], 1, 3, "Good so far: but not all machines gave an answer."),
        ([], 1, 3, "Good so far"),
        ([UNPATCHED], 1, 2, "Not good"),
        ([STUCK, UNPATCHED], 1, 4, "Not good: some machines are stuck."),
    ],
)
def test_the_exit_code_and_the_last_line_say_the_worst(of, reports, answers, silent, code, words):
    named = {f"db{number}": answer for number, answer in enumerate(answers)}
    found = of(named, [f"silent{number}" for number in range(silent)])

    data = reports.tell(found, set(found))

    assert data["retcode"] == code
    assert data["report"][-1].startswith(words)
    assert data["asked"] == len(found) == sum(data["counts"].values())


def test_silence_within_what_is_allowed_is_good_and_said(of, reports):
    found = of({"db1": overview()}, ["db2", "db3"])
    assert reports.tell(found, set(found), 1)["retcode"] == 3
    data = reports.tell(found, set(found), 2)
    assert (data["retcode"], data["report"][-1]) == (
        0,
        "Good: every machine that was asked is applied and settled. 2 gave no answer, which is allowed.",
    )


def test_where_nobody_knows_who_was_asked_nothing_is_good(of, reports):
    data = reports.tell(of({"db1": overview()}), None)
    assert (data["retcode"], data["asked"]) == (3, None)
    assert "Below syndics it is not known who was asked: give expected." in data["report"][-1]


def test_three_thousand_machines_fit_on_a_screen(of, reports):
    answers = {f"web{number}": overview() for number in range(2871)}
    answers.update({f"db{number}": overview(running=None) for number in range(61)})
    answers.update({f"app{number}": UNPATCHED for number in range(35)})
    answers.update({f"nfs{number}": moving(7300, task(why=f"by {number % 9}")) for number in range(27)})

    data = reports.tell(of(answers, [f"off{number:02}" for number in range(19)]), {})

    oldest = answers["db1"]["package"]["as_of"]
    assert data["report"] == [
        "2871 settled             9-2.2",
        "  96 UNPATCHED           installed, not loaded: 61 · newer offered: 35",
        "                         app0 app1 app10 app11 app12 app13 app14 app15 app16 app17 … (+86)",
        "  27 STUCK               by 0: 3 · by 1: 3 · by 2: 3 · by 3: 3 · 5 more reasons",
        "                         nfs0 nfs1 nfs10 nfs11 nfs12 nfs13 nfs14 nfs15 nfs16 nfs17 … (+17)",
        "  19 no answer           nothing in 30 s",
        "                         off00 off01 off02 off03 off04 off05 off06 off07 off08 off09 … (+9)",
        f"3013 asked; the oldest list of packages is of {oldest}",
        "Not good: some machines are stuck.",
    ]
    assert [name for name, machine in data["machines"].items() if machine["class"] == "no answer"] == sorted(
        f"off{number:02}" for number in range(19)
    )


# -- exceptions


@pytest.fixture
def file(tmp_path):
    """Return ``file(text)``: the path of a file with it."""

    def write(text):
        path = tmp_path / "exceptions.yml"
        path.write_text(text, "utf-8")
        return str(path)

    return write


EXCEPTION = "db1: {reason: the\x20disk is broken, by: ops, until: 2026-11-23}\n"


@pytest.mark.parametrize("answers", [{"db1": UNPATCHED}, {"db1": STUCK}, {"db1": "ERROR: x"}, {}])
def test_what_is_excepted_is_counted_and_makes_no_exit_code(of, fleets, reports, file, answers):
    exceptions = fleets.exceptions(file(EXCEPTION), NOW)
    found = of({"db2": overview(), **answers}, [] if answers else ["db1"], exceptions)

    data = reports.tell(found, set(found))

    assert (data["retcode"], data["counts"]) == (0, {"settled": 1, "excepted": 1})
    assert found["db1"]["instead_of"] in ("unpatched", "stuck", "failed", "no answer")
    assert "   1 excepted            the disk is broken, until 2026-11-23 (ops)" in data["report"]


def test_the_day_after_it_is_a_failure_again(of, fleets, reports, file):
    exceptions = fleets.exceptions(file(EXCEPTION), NOW + 86400)
    found = of({"db1": UNPATCHED}, [], exceptions)
    assert found["db1"]["class"] == "unpatched"
    assert found["db1"]["why"] == "newer offered; its exception ended on 2026-11-23"


def test_a_machine_that_is_well_needs_no_exception(of, fleets, file):
    found = of({"db1": overview()}, [], fleets.exceptions(file(EXCEPTION), NOW))
    assert found["db1"]["class"] == "settled"


@pytest.mark.parametrize(
    "text",
    [
        "db1: {reason: x, by: y}",
        "db1: {reason: x, by: y, until: soon}",
        "db1: {reason: x, by: y, until: 2026-13-31}",
        "db1: {reason: x, by: y, until: }",
        "db1: {reason: x, until: 2026-12-31}",
        "db1: {reason: '', by: y, until: 2026-12-31}",
        "db1: no idea",
        "db1:",
        "db1: [reason, by, until]",
        "1: {reason: x, by: y}",
        "1: x\ndb1: y",
        "[db1]",
        "db1",
        "5",
        "db1: {",
        "\x00",
    ],
)
def test_a_file_of_exceptions_that_cannot_be_is_refused_with_what_it_must_be(fleets, file, text):
    path = file(text)
    with pytest.raises(ValueError, match=r"must be machine: {reason, by, until: 2026-12-31}") as refused:
        fleets.exceptions(path, NOW)
    assert str(refused.value).startswith(f"kgraft.exceptions: {path}: ")
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("text", ["", "db1: {reason: x, by: y, until: '2026-12-31'}"])
def test_an_empty_file_and_a_date_in_quotes_will_do(fleets, file, text):
    granted, expired = fleets.exceptions(file(text), NOW)
    assert (len(granted), expired) == (1 if text else 0, set())


def test_a_file_of_exceptions_that_is_not_there_is_refused(fleets, tmp_path):
    with pytest.raises(ValueError, match="none: .*No such file"):
        fleets.exceptions(str(tmp_path / "none"), NOW)


# -- verify


JUDGED = ("verdict", "reason", "doubt", "running")


def checked(**changes):
    good = {"verdict": "good", "target": None, "reason": None, "doubt": None, "running": "9-2.2", "wish": "latest"}
    return {**good, **changes}


@pytest.mark.parametrize(
    ("check", "name", "why"),
    [
        (checked(), "settled", "9-2.2"),
        # a kernel that fixes all of the CVEs by itself
        (checked(running=None), "settled", "9-2.2"),
        (checked(verdict="bring", target="10-2.1"), "unpatched", "10-2.1 is needed"),
        (checked(verdict="refused", reason="none is offered"), "unpatched", "none is offered"),
        (checked(doubt="the lists are too old"), "doubtful", "the lists are too old"),
        (checked(running="8-1.1"), "failed", "the patch changed while it was looked at"),
        (
            "Traceback (most recent call last):\nTypeError: 'str' object is not callable\n",
            "without packages",
            "kgraft_pkg",
        ),
        ("Traceback (most …):\n x\nsalt.exceptions.SaltInvocationError: version is 'x'\n", "failed", "version is 'x'"),
        *((value, "failed", "") for value in HOSTILE),
        *(({**checked(), "verdict": value}, "unpatched", "") for value in (None, True, [], "Good")),
        *(({name: about for name, about in checked().items() if name != key}, "failed", "") for key in JUDGED),
        (checked(doubt=""), "doubtful", ""),
        (checked(doubt=False), "doubtful", ""),
        (checked(running=[]), "failed", ""),
    ],
)
def test_a_wish_is_met_by_a_good_verdict_without_a_doubt_alone(reports, machines, check, name, why):
    judge = lambda answer, told: reports.by_check(told, answer["kgraft_pkg.check"])  # noqa: E731
    told = machines(judge, {"db1": {"kgraft_pkg.check": check, "kgraft.overview": overview()}})["db1"]
    assert told["class"] == name
    assert why in told["why"]
    assert told["why"].isprintable()


def state(**changes):
    return {"__id__": "kernel is patched", "comment": "it is", "result": True, "__run_num__": 0, **changes}


@pytest.mark.parametrize(
    ("states", "name", "why"),
    [
        ({"a": state(), "b": state(__run_num__=1)}, "settled", "9-2.2"),
        ({"a": state(result=None, comment="would be installed")}, "unpatched", "kernel is patched: would be installed"),
        ({"a": state(result=False)}, "unpatched", "kernel is patched: it is"),
        # the first that failed, not the one that needed it
        ({"a": state(result=False, __run_num__=2), "b": state(result=False, comment="x")}, "unpatched", "patched: x"),
        ({"a": state(result="True")}, "unpatched", ""),
        ({"a": {"__id__": "x", "comment": "y", "__run_num__": 0}}, "failed", ""),
        ({}, "failed", ""),
        (["No matching sls found for 'x'"], "failed", "No matching sls found for 'x'"),
        *((value, "failed", "") for value in HOSTILE),
        *(({1: state(), "a": value}, "failed", "") for value in HOSTILE),
        *(({"a": state(result=value)}, "unpatched", "") for value in HOSTILE if value is not True),
    ],
)
def test_an_sls_is_met_if_each_state_says_true(reports, machines, states, name, why):
    judge = lambda answer, told: reports.by_states(told, answer["state.apply"])  # noqa: E731
    told = machines(judge, {"db1": {"state.apply": states, "kgraft.overview": overview()}})["db1"]
    assert told["class"] == name
    assert why in told["why"]
    assert told["why"].isprintable()
