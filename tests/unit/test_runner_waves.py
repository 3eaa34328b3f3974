"""The plan of a roll-out: who is patched when, what is saved of it, and what ends it."""

import datetime
import os
import re
import shlex
import stat

import pytest
import salt.output
import salt.utils.args

from tests.conftest import REPO
from tests.unit.test_runner_fleet import client_of, runner  # noqa: F401, a fixture
from tests.unit.test_runner_report import HOSTILE, moving, overview, state, task

OPTIONS = {
    "target": "*",
    "tgt_type": "glob",
    "name": "2026-12",
    "sls": "kgraft",
    "separate_by": None,
    "not_after": None,
    "timeout": None,
    "gather_job_timeout": None,
    "max_wave": 100,
    "soak": 0,
    "wave_timeout": 900,
    "max_failed": 0,
    "max_stuck": "2%",
    "max_missing": "1%",
}
SHARES = ["1%", "10%", "50%", "100%"]


@pytest.fixture(scope="module")
def fleets(load):
    return load("_runners/_kgraft_fleet.py")


@pytest.fixture(scope="module")
def plans(load, fleets):
    return load("_runners/_kgraft_waves.py", fleets=fleets)


def machines(number, **classes):
    """So many machines that are not patched, ``{id: {class, why, boot_id}}``; and others of the classes given."""
    names = {**{f"db{each:03}": "unpatched" for each in range(number)}, **classes}
    return {name: {"class": about, "why": "x", "boot_id": "b1"} for name, about in names.items()}


@pytest.fixture
def planned(plans):
    """Return ``planned(found, answers, sizes, **options)``: the plan of these machines; ``db000`` is the canary."""

    def call(found, answers=None, sizes=SHARES, canaries=("db000",), **options):
        plan = {**OPTIONS, **options, "since": None, "waves": [list(canaries)], "left_out": [], "begun": {}}
        plans.check(plan)
        plans.extend(plan, found, dict.fromkeys(found) if answers is None else answers, sizes)
        return plan

    return call


@pytest.mark.parametrize(
    ("number", "sizes", "most", "waves"),
    [
        (101, SHARES, 100, [1, 1, 9, 40, 50]),
        (4, SHARES, 100, [1, 1, 2]),
        (1, SHARES, 100, [1]),
        (101, ["100%"], 30, [1, 30, 30, 30, 10]),
        # not all: the rest comes last
        (11, [2, "50%"], 100, [1, 2, 3, 5]),
        (11, [], 100, [1, 10]),
        (3001, SHARES, 1000, [1, 30, 270, 1000, 200, 1000, 500]),
    ],
)
def test_waves_grow_by_the_shares_and_no_further_than_allowed(planned, number, sizes, most, waves):
    plan = planned(machines(number), sizes=sizes, max_wave=most)
    assert [len(wave) for wave in plan["waves"]] == waves
    assert sorted(sum(plan["waves"], [])) == sorted(machines(number)), "each once"


def test_no_two_of_one_group_are_in_one_wave(planned):
    found = machines(13)
    grains = {name: {"cluster": f"c{number // 3}"} for number, name in enumerate(found)}
    grains.update(db010={}, db011={"cluster": ""}, db012={"cluster": None})  # of no cluster
    answers = {name: {"grains.item": about} for name, about in grains.items()}

    plan = planned(found, answers, ["100%"], separate_by="cluster")

    assert sorted(sum(plan["waves"], [])) == sorted(found)
    for wave in plan["waves"]:
        clusters = [grains[name]["cluster"] for name in wave if grains[name].get("cluster")]
        assert len(set(clusters)) == len(clusters)
    assert [len(wave) for wave in plan["waves"]] == [1, 7, 3, 2]


@pytest.mark.parametrize("grain", HOSTILE)
def test_a_grain_may_be_anything(planned, grain):
    found = machines(3)
    answers = {"db000": {"grains.item": {"cluster": 1}}}
    answers.update(db001={"grains.item": grain}, db002={"grains.item": {"cluster": grain}})
    assert sorted(sum(planned(found, answers, separate_by="cluster")["waves"], [])) == sorted(found)


def test_who_cannot_be_patched_is_left_out_and_who_is_excepted_is_not_asked_for(planned):
    others = {"off": "no answer", "old": "unavailable", "new": "not synced", "bad": "failed"}
    plan = planned(machines(2, lab="excepted", **others))
    assert (plan["left_out"], plan["waves"]) == (sorted(others), [["db000"], ["db001"]])


def test_newcomers_come_last_and_nobody_changes_their_wave(plans, planned):
    plan = planned(machines(3, off="no answer"), sizes=["100%"])
    assert plan["waves"] == [["db000"], ["db001", "db002"]]
    plan.update(begun={"db000": None}, since=1.0)
    found = machines(5, off="unpatched", db000="no answer")
    del found["db001"]  # its key was deleted

    plans.extend(plan, found, dict.fromkeys(found), ["100%"])

    assert plan["waves"] == [["db000"], ["db001", "db002"], ["db003", "db004", "off"]]
    assert plan["left_out"] == []


def test_who_went_down_before_the_first_wave_is_left_out_and_who_was_deleted_is_not(plans, planned):
    plan = planned(machines(4), sizes=["100%"])
    plan["since"] = 1.0
    found = machines(2, db002="unavailable", db003="no answer", db004="no answer")
    found["db003"]["why"] = "this master has no key of it"
    plan["waves"][1].append("db004")

    plans.extend(plan, found, dict.fromkeys(found), ["100%"])

    assert (plan["waves"][1], plan["left_out"]) == (["db001", "db002", "db003", "db004"], ["db002", "db004"])
    assert [wave["machines"] for wave in plans.told(plan, found, [])["waves"]] == [["db000"], ["db001"]]


@pytest.mark.parametrize(
    ("files", "sls"),
    [
        ([], "examples.orchestrate.rollout"),
        (["examples/orchestrate/rollout.sls"], "examples.orchestrate.rollout"),
        (["examples/orchestrate/rollout.sls", "kgraft/rollout.sls"], "kgraft.rollout"),
    ],
)
def test_what_carries_it_out_is_named_as_this_master_has_it(plans, files, sls):
    assert plans.command("x", files) == f'salt-run state.orchestrate {sls} pillar=\'{{"rollout": "x"}}\''


@pytest.mark.parametrize(
    ("canaries", "found", "words"),
    [
        (["db000", "db001"], machines(1), "canary db001 cannot be patched: it is not in the target"),
        (["db000", "off"], machines(1, off="no answer"), "canary off cannot be patched: x"),
        (["db000", "off"], machines(1, off="excepted"), "canary off cannot be patched: x"),
        (["db000", "bad"], machines(1, bad="failed"), "canary bad cannot be patched: x"),
        (["db000", "db002"], machines(3), "some are the same, or have the same cluster"),
        (["db000", "db000"], machines(3), "some are the same"),
    ],
)
def test_canaries_must_be_able_and_of_different_groups(planned, canaries, found, words):
    answers = {name: {"grains.item": {"cluster": 1}} for name in found if found[name]["class"] != "no answer"}
    with pytest.raises(ValueError, match=words):
        planned(found, answers, canaries=canaries, separate_by="cluster")


def test_a_grain_that_no_machine_has_separates_nothing_and_is_refused(planned):
    found = machines(3)
    answers = {name: {"grains.item": {"cluster": ""}} for name in found}
    with pytest.raises(ValueError, match="separate_by='cluster': no machine has such a grain"):
        planned(found, answers, separate_by="cluster")


def test_a_name_that_the_master_does_not_know_is_refused_and_not_gone(planned):
    found = machines(2, db9="no answer")
    found["db9"]["why"] = "this master has no key of it"
    with pytest.raises(ValueError, match="of which this master has no key: db9"):
        planned(found)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sizes": ["x"]}, "waves='x'"),
        ({"max_failed": "x"}, "max_failed='x'"),
        ({"max_stuck": None}, "max_stuck=None"),
        ({"max_missing": 0.5}, "max_missing=0.5"),
        ({"max_wave": 0}, "max_wave=0: must be a whole number of at least 1"),
        ({"max_wave": "5"}, "max_wave='5'"),
        ({"soak": -1}, "soak=-1"),
        ({"wave_timeout": True}, "wave_timeout=True"),
        ({"not_after": "25:00"}, "not_after='25:00': must be a time of day in quotes"),
        ({"not_after": 16200}, "not_after=16200"),  # 04:30 to YAML
        ({"not_after": 270}, "not_after=270"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(planned, options, words):
    with pytest.raises(ValueError, match=words):
        planned(machines(3), **options)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "-x", "x" * 90, "x\n", "é", None, [], {"a": 1}])
def test_a_name_leads_to_no_other_place(plans, name):
    with pytest.raises(ValueError, match="must be a name of letters"):
        plans.path("/c", name)


def test_a_plan_is_written_whole_and_for_the_masters_user_alone(plans, planned, tmp_path):
    file = plans.path(str(tmp_path), "2026-12")
    plan = planned(machines(3))
    plans.save(file, plan)
    plans.save(file, plan)
    assert plans.load(file) == plan
    assert [stat.S_IMODE(os.stat(path).st_mode) for path in (file, os.path.dirname(file))] == [0o640, 0o750]
    assert os.listdir(os.path.dirname(file)) == ["2026-12.json"]


# -- how far it is


@pytest.fixture
def halfway(planned):
    """A plan of seven machines in waves of 1, 2 and 4, of which the first two have begun."""
    found = machines(7)
    plan = planned({**found, "off": {"class": "no answer", "why": "x"}}, sizes=[2, "100%"], max_stuck=0, max_missing=0)
    plan.update(since=0.0, begun=dict.fromkeys(("db000", "db001", "db002"), "b1"))
    assert list(map(len, plan["waves"])) == [1, 2, 4]
    return plan


@pytest.mark.parametrize(
    ("machine", "name", "why", "boot", "progress"),
    [
        ("db001", "settled", "9-2.2", "b1", "done"),
        ("db001", "settled", "9-2.2", "b2", "failed"),
        ("db001", "settled", "9-2.2", None, "failed"),
        ("db001", "unpatched", "x", "b1", "failed"),
        ("db001", "doubtful", "x", "b1", "failed"),
        ("db001", "failed", "x", "b1", "failed"),
        ("db001", "stuck", "x", "b1", "stuck"),
        ("db001", "in transition", "x", "b2", "stuck"),
        ("db001", "no answer", "nothing in 3 s", None, "missing"),
        ("db001", "no answer", "this master has no key of it", None, "gone"),
        # what a machine says itself
        ("db001", "failed", "this master has no key of it", "b1", "failed"),
        ("db001", "excepted", "x", "b1", "excepted"),
        ("db005", "unpatched", "x", "b1", "untouched"),
        ("db005", "no answer", "x", None, "untouched"),
        ("db005", "stuck", "x", "b1", "untouched"),
        ("db005", "settled", "x", "b1", "done"),
        ("off", "no answer", "x", None, "left out"),
        ("off", "unpatched", "x", "b1", "untouched"),
        ("off", "no answer", "this master has no key of it", None, "gone"),
        ("off", "settled", "x", "b1", "done"),
    ],
)
def test_each_machine_of_a_plan_is_told_by_how_far_it_is(plans, halfway, machine, name, why, boot, progress):
    about = plans.progress(halfway, {machine: {"class": name, "why": why, "boot_id": boot}})
    assert about[machine]["class"] == progress


def test_a_restart_before_this_run_of_the_plan_does_not_count(plans, halfway):
    halfway["begun"] = dict.fromkeys(halfway["begun"])
    told = plans.progress(halfway, {"db001": {"class": "settled", "why": "x", "boot_id": "b9"}})
    assert told["db001"]["class"] == "done"


@pytest.mark.parametrize(
    ("classes", "options", "words"),
    [
        ({}, {}, None),
        ({"db001": "gone", "db002": "excepted"}, {}, None),
        ({"db001": "failed"}, {}, "1 failed, and max_failed is 0"),
        ({"db001": "stuck"}, {}, "1 stuck, and max_stuck is 0"),
        ({"db001": "missing"}, {}, "1 missing, and max_missing is 0"),
        ({"db001": "failed"}, {"max_failed": 1}, None),
        ({"db001": "failed", "db002": "failed"}, {"max_failed": 1}, "2 failed, and max_failed is 1.*: db001 db002"),
        # a share of the whole plan, rounded down: 14 % of 7 is 0
        ({"db001": "stuck"}, {"max_stuck": "14%"}, "1 stuck"),
        ({"db001": "stuck"}, {"max_stuck": "15%"}, None),
        ({"db001": "stuck", "db002": "missing"}, {"max_stuck": 1, "max_missing": 1}, None),
        # of the canaries none
        ({"db000": "stuck"}, {"max_stuck": 7}, "of the canaries 0: db000"),
    ],
)
def test_beyond_its_limits_no_further_wave_begins(plans, halfway, classes, options, words):
    found = {name: {"class": classes.get(name, "done"), "why": "x"} for name in sum(halfway["waves"][:2], [])}
    why = plans.beyond({**halfway, **options}, found)
    assert (why is None) if words is None else re.search(words, why)


@pytest.mark.parametrize(
    ("began", "not_after", "now", "words"),
    [
        ("22:00", "04:30", "03:45", None),
        ("22:00", "04:30", "04:16", "it may last 900 s, and not_after is 04:30"),
        ("22:00", "04:30", "05:00", "not_after"),
        ("22:00", "04:30", "23:50", None),
        ("03:00", "04:30", "04:10", None),
        ("03:00", "04:30", "04:20", "not_after"),
        ("04:30", "04:30", "04:31", None),  # tomorrow's
        ("22:00", None, "12:00", None),
    ],
)
def test_no_wave_begins_that_cannot_end_by_then(plans, halfway, began, not_after, now, words):
    day = datetime.datetime(2026, 11, 23)

    def at(text):
        hour, minute = map(int, text.split(":"))
        return day.replace(hour=hour, minute=minute)

    later = at(now) + datetime.timedelta(days=at(now) < at(began))
    why = plans.late({**halfway, "since": at(began).timestamp(), "not_after": not_after}, later.timestamp())
    assert (why is None) if words is None else words in why


# -- the functions


@pytest.fixture
def fleet(runner, tmp_path, monkeypatch):  # noqa: F811
    """The runner, over machines that are ``fleet.well``, each with its overview; all that are asked by name answer."""
    runner.__opts__["cachedir"] = str(tmp_path)
    runner.well = {f"db{number}": overview() for number in range(4)}
    runner.states = {name: {"x": state(result=None, comment="would be installed")} for name in runner.well}
    runner.off = {"off"}
    runner.clusters = {}

    def ask(target, tgt_type, calls, *_):
        names = set(target if tgt_type == "list" else [*runner.well, *runner.off])
        answers = {
            name: {
                "kgraft.overview": told,
                "state.apply": runner.states[name],
                "grains.item": {"cluster": runner.clusters.get(name)},
            }
            for name, told in runner.well.items()
            if name in names
        }
        told = runner.fleets.Fleet(
            set(answers) | runner.off & names, answers, dict.fromkeys(runner.off & names, "nothing in 30 s")
        )
        return runner.fleets.expect(told, names)

    monkeypatch.setattr(runner, "_ask", ask)
    return runner


def done(fleet, *names):
    for name in names:
        fleet.states[name] = {"x": state()}


def test_a_plan_is_made_carried_out_and_told(fleet):
    plan = fleet.plan("*", name="2026-12", canaries="db0", waves=["100%"], max_wave=2)
    assert (plan["retcode"], plan["waves"]) == (
        3,
        [
            {"number": 1, "machines": ["db0"], "allowed": 0},
            {"number": 2, "machines": ["db1", "db2"], "allowed": 0},
            {"number": 3, "machines": ["db3"], "allowed": 0},
        ],
    )
    assert plan["report"][0] == "   1 in wave 1           db0"
    assert plan["report"][3] == "   1 left out            no answer: off"
    assert fleet.rollout("2026-12")["counts"] == {"untouched": 4, "left out": 1}

    # a wave is opened, not those after it
    assert fleet.wave("2026-12", 1)["retcode"] == 0
    assert fleet.rollout("2026-12")["counts"] == {"failed": 1, "untouched": 3, "left out": 1}
    first = fleet.rollout("2026-12", 1)
    assert (first["retcode"], first["counts"]) == (2, {"failed": 1})
    assert first["report"][-1] == "Wave 1: 1 failed, and max_failed is 0, of the canaries 0: db0."
    refused = fleet.wave("2026-12", 2)
    assert (refused["retcode"], fleet.__context__["retcode"]) == (2, 2)
    assert refused["report"][-1].startswith(
        "Wave 2 does not begin: 1 failed, and max_failed is 0, of the canaries 0: db0"
    )
    assert fleet.rollout("2026-12")["counts"]["untouched"] == 3, "nothing was written down"

    done(fleet, "db0")
    assert fleet.rollout("2026-12", 1)["retcode"] == 0
    begun = fleet.wave("2026-12", 2)
    assert (begun["retcode"], begun["report"][-1], begun["machines"].keys()) == (0, "Wave 2 begins.", {"db1", "db2"})
    fleet.well["db1"] = moving(10, task())
    done(fleet, "db2")
    soaking = fleet.rollout("2026-12", 2)
    assert (soaking["retcode"], soaking["counts"]) == (0, {"done": 1, "stuck": 1}), "it has the time of the soak"
    assert fleet.wave("2026-12", 3)["report"][-1].startswith("Wave 3 does not begin: 1 stuck, and max_stuck is 2%")
    fleet.states["db2"] = {"x": state(result=False)}
    fleet.well["db0"] = overview(boot_id="another")
    told = fleet.rollout("2026-12")
    assert told["counts"] == {"stuck": 1, "failed": 2, "untouched": 1, "left out": 1}
    assert told["machines"]["db0"]["why"] == "it was restarted after its wave began"
    assert told["retcode"] == 4
    assert told["report"][-1] == (
        'To go on: salt-run state.orchestrate examples.orchestrate.rollout pillar=\'{"rollout": "2026-12"}\''
    )

    # go on: what is done is not patched again, who came is last, who was deleted is gone
    fleet.well["db1"] = overview()
    done(fleet, "db1")
    fleet.well["off"], fleet.states["off"], fleet.off = overview(), {"x": state(result=None)}, set()
    del fleet.well["db3"]
    again = fleet.wave("2026-12", 0)
    assert [(wave["number"], wave["machines"]) for wave in again["waves"]] == [(2, ["db2"]), (4, ["off"])]
    assert fleet.wave("2026-12", 2)["retcode"] == 0
    done(fleet, "db2", "off")
    assert fleet.wave("2026-12", 4)["retcode"] == 0
    last = fleet.rollout("2026-12")
    assert (last["retcode"], last["counts"], last["machines"].keys()) == (0, {"done": 4, "gone": 1}, {"db3"})
    assert fleet.wave("2026-12", 0)["waves"] == []


def test_of_the_canaries_none_may_fail_and_of_the_others_as_many_as_all_limits_allow(fleet):
    limits = {"max_failed": 1, "max_stuck": 2, "max_missing": 3}
    plan = fleet.plan("*", name="2026-12", canaries="db0", waves=["100%"], **limits)
    assert [wave["allowed"] for wave in plan["waves"]] == [0, 6]


def test_a_wave_that_cannot_end_in_time_does_not_begin(fleet, monkeypatch):
    fleet.plan("*", name="2026-12", canaries="db0", not_after="04:30")
    monkeypatch.setattr(fleet.plans, "late", lambda plan, now: f"{plan['not_after']} is near")
    told = fleet.wave("2026-12", 1)
    assert (told["retcode"], told["report"][-1]) == (2, "Wave 1 does not begin: 04:30 is near.")
    assert fleet.rollout("2026-12")["counts"]["untouched"] == 4


def test_who_is_gone_or_excepted_is_not_waited_for_when_a_wave_begins(fleet):
    fleet.plan("*", name="2026-12", canaries="db0", waves=["100%"])
    done(fleet, "db0")
    fleet.wave("2026-12", 1)
    told = fleet.well.pop("db3")
    assert fleet.wave("2026-12", 2)["retcode"] == 0
    # it comes back, as a new machine, of which no wave has begun
    fleet.well["db3"] = told
    assert fleet.rollout("2026-12")["machines"]["db3"]["class"] == "untouched"


def test_below_syndics_a_plan_must_name_its_machines(fleet, monkeypatch):
    monkeypatch.setattr(fleet, "_ask", lambda *_: fleet.fleets.Fleet(None, {}, {}))
    told = fleet.plan("*", name="2026-12", canaries="db0")
    assert told["retcode"] == 5
    assert "Below syndics it is not known who was asked" in told["report"][0]


def test_who_was_lost_in_a_wave_is_missing_also_in_the_next_run(fleet):
    fleet.plan("*", name="2026-12", canaries="db0", waves=["100%"])
    done(fleet, "db0")
    fleet.wave("2026-12", 0)
    fleet.wave("2026-12", 1)
    fleet.wave("2026-12", 2)
    done(fleet, "db1", "db2")
    del fleet.well["db3"]
    fleet.off = {"off", "db3"}

    again = fleet.wave("2026-12", 0)

    assert (again["waves"], again["plan"]["left_out"]) == ([], ["off"])
    told = fleet.rollout("2026-12")
    assert (told["retcode"], told["counts"]) == (3, {"done": 3, "missing": 1, "left out": 1})


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda fleet: fleet.plan(), "missing a required argument: 'target'"),
        (lambda fleet: fleet.plan("*", canaries="db0"), "name=None"),
        (lambda fleet: fleet.plan("*", name="x"), "Give canaries"),
        (lambda fleet: fleet.plan("*", name="x", canaries="db0", waves="1%"), "waves must be a list"),
        (lambda fleet: fleet.plan("*", name="x", canaries="nobody"), "The canary nobody cannot be patched"),
        (lambda fleet: fleet.plan("*", name="x", canaries="db0", sls=5), "sls=5: must be the name of an SLS"),
        (lambda fleet: fleet.plan("*", name="x", canaries="db0", bad=1), "unexpected keyword argument 'bad'"),
        (lambda fleet: fleet.plan("*", name="../x", canaries="db0"), "must be a name"),
        (lambda fleet: fleet.plan("*", name="there", canaries="db0"), "There is a plan of this name"),
        (lambda fleet: fleet.wave("none", 0), "There is no such plan"),
        (lambda fleet: fleet.wave("none", 1), "There is no such plan"),
        (lambda fleet: fleet.wave("there"), "missing a required argument: 'number'"),
        (lambda fleet: fleet.wave("there", -1), "number=-1"),
        (lambda fleet: fleet.wave("there", False), "number=False"),
        (lambda fleet: fleet.wave("there", 9), "number=9"),
        (lambda fleet: fleet.wave("there", 1.5), "number=1.5"),
        (lambda fleet: fleet.rollout(), "missing a required argument: 'name'"),
        (lambda fleet: fleet.rollout("there", 0), "number=0"),
        (lambda fleet: fleet.rollout("there", 1, 2), "too many positional arguments"),
        *(
            (lambda fleet, name=name: fleet.rollout(name), f"{name}.json cannot be read: ")
            for name in ("torn", "list", "number", "other", "empty")
        ),
    ],
)
def test_what_cannot_be_is_answered_with_5_and_nothing_is_written(fleet, tmp_path, call, words):
    assert fleet.plan("*", name="there", canaries="db0")["retcode"] == 3
    folder = tmp_path / "kgraft" / "plans"
    text = (folder / "there.json").read_text()
    torn = {"torn": text[:99], "list": "[]", "number": "5", "other": text.replace("waves", "x"), "empty": ""}
    for name, text in torn.items():
        (folder / f"{name}.json").write_text(text)
    before = {path.name: path.read_text() for path in folder.iterdir()}

    data = call(fleet)

    assert (data["retcode"], fleet.__context__["retcode"]) == (5, 5)
    assert words in data["report"][0]
    assert {path.name: path.read_text() for path in folder.iterdir()} == before


# -- the manual


def shown(data):
    """As salt-run prints it."""
    told = {"report": "\n".join(data["report"]), "retcode": data["retcode"]}
    return salt.output.out_format(told, "nested", {"color": False}) + "\n"


@pytest.mark.parametrize("scene", ["planned", "stopped"])
def test_what_the_manual_shows_of_a_rollout_is_what_is_said(fleet, scene):
    page = (REPO / "docs" / "roll-out.md").read_text("utf-8")
    [command, output, code] = re.search(
        rf"<!-- roll-out: {scene} -->\n+```console\n\$ (.*)\n((?s:.*?))\$ echo \$\?\n(\d)\n```", page
    ).groups()
    fleet.well = {f"db{number}": overview(running="14-150500.2.1") for number in range(1, 25)}
    fleet.clusters = {name: f"c{(number + 1) // 2}" for number, name in enumerate(fleet.well, 1)}
    fleet.states = {name: {"x": state(result=None, comment="14-150500.2.1 would be installed")} for name in fleet.well}
    fleet.off = {"db25"}

    def say(command):
        function, *words = shlex.split(command)[1:]
        arguments = salt.utils.args.parse_input(words)
        named = arguments.pop() if isinstance(arguments[-1], dict) else {}
        named.pop("__kwarg__", None)
        return getattr(fleet, function.partition(".")[2])(*arguments, **named)

    plan = say(re.search(r"\$ (salt-run kgraft.plan .*)", page).group(1))
    if scene == "stopped":
        waves = plan["plan"]["waves"]
        fleet.wave("2026-12", 0)
        for number, names in enumerate(waves[:4], 1):
            assert fleet.wave("2026-12", number)["retcode"] == 0
            done(fleet, *names)
        fleet.well[waves[3][0]] = moving(9999, task("kernel", None, "NFS 4 keeps this thread parked"))
        fleet.states[waves[3][1]] = {"x": state(result=False, comment="rpm: no space left on the device")}
        fleet.off.add(waves[3][2])
        del fleet.well[waves[3][2]]
        plan = say(command)
    assert (shown(plan), plan["retcode"]) == (output, int(code))
