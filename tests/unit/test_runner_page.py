"""``kgraft.page`` and ``kgraft.history`` as they are called: what they read, where they write, and for whom."""

import json
import os
import re

import pytest

from tests.unit.test_runner_history import NOW as STARTED
from tests.unit.test_runner_history import event
from tests.unit.test_runner_report import HOSTILE, NOW, moving, overview, task

HELD = {"name": "nfsd", "user": "root", **task("kernel", "nfs.service", "It is parked.")}


@pytest.fixture
def kept(tmp_path):
    """The file of the master's events."""
    path = tmp_path / "events.jsonl"
    path.write_text(event("started", 0) + "\n" + event("finished", 5, seconds=300.0) + "\n")
    return path


@pytest.fixture
def runner(load, kept, tmp_path, monkeypatch):
    """At the prompt; ``runner.answers`` is what machines say, and ``runner.asked`` what they were asked."""
    opts = {"fun": "kgraft.page", "output": "json", "cachedir": str(tmp_path / "cache"), "event_return": "rawfile_json"}
    runner = load("_runners/kgraft.py", __opts__={**opts, "rawfile_json.filename": str(kept)})
    monkeypatch.setattr(runner.time, "time", lambda: NOW)
    runner.answers = {"db1": overview(boot_id="boot")}
    runner.asked = []

    def ask(target, tgt_type, calls, *_):
        runner.asked.append(calls)
        answers = {machine: {"kgraft.overview": told} for machine, told in runner.answers.items()}
        return runner.fleets.Fleet({*answers, "gone"}, answers, {"gone": "nothing in 30 s"})

    monkeypatch.setattr(runner, "_ask", ask)
    return runner


def rows(path):
    """``{machine: [text of each cell]}``"""
    with open(path, encoding="utf-8") as file:
        body = file.read().partition('<table id="machines">')[2].partition("</table>")[0]
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in body.split("<tr ")[1:]]
    return {name: others for name, *others in cells}


def test_the_page_shows_the_report_beside_the_history(runner, tmp_path):
    told = runner.page()
    assert told["path"] == str(tmp_path / "cache/kgraft/fleet.html")
    assert (told["retcode"], told["verdict"]) == (0, 3)
    assert told["report"] == [told["path"], "Good so far: but not all machines gave an answer."]
    text = (tmp_path / "cache/kgraft/fleet.html").read_text("utf-8")
    assert "Good so far: but not all machines gave an answer." in text
    assert "finished after 5 min" in text
    assert rows(told["path"]) == {
        "gone": ["no answer", "nothing in 30 s", "", "", "", "", ""],
        "db1": [
            "settled", "", "2026-11-23 02:15", "9-2.2", "4.4.180-94.100-default", "2026-11-23 11:59", "2027-06-30",
        ],
    }  # fmt: skip


def test_settled_since_when_is_of_this_boot_only(runner):
    runner.answers = {"db1": overview(boot_id="another")}
    assert rows(runner.page()["path"])["db1"][2] == ""


def test_it_can_be_read_by_owner_and_group_and_leaves_nothing_beside_it(runner, tmp_path):
    before = os.umask(0o077)
    try:
        runner.page()
        runner.page()
    finally:
        os.umask(before)
    directory = tmp_path / "cache/kgraft"
    assert [path.name for path in directory.iterdir()] == ["fleet.html"]
    assert (directory.stat().st_mode & 0o777, (directory / "fleet.html").stat().st_mode & 0o777) == (0o700, 0o640)


def test_what_breaks_while_it_is_written_leaves_the_old_page(runner, tmp_path, monkeypatch):
    path = tmp_path / "fleet.html"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runner.fleets.os, "fchmod", full)
    told = runner.page(path=str(path))
    assert (told["retcode"], path.read_text()) == (5, "old")
    assert told["report"] == [f"cannot write {path}: [Errno 28] No space left on device"]
    assert sorted(one.name for one in tmp_path.iterdir() if one.name.startswith(".")) == []


def test_a_link_in_its_place_is_replaced_and_not_followed(runner, tmp_path):
    other = tmp_path / "precious"
    other.write_text("precious")
    (tmp_path / "fleet.html").symlink_to(other)
    assert runner.page(path=str(tmp_path / "fleet.html"))["retcode"] == 0
    assert other.read_text() == "precious"


@pytest.mark.parametrize(("fun", "path"), [(None, "/x.html"), ("state.orchestrate", "/x.html"), ("kgraft.page", "x")])
def test_a_path_of_ones_own_is_for_the_prompt(runner, fun, path):
    runner.__opts__["fun"] = fun
    told = runner.page(path=path)
    assert told == {"retcode": 5, "report": [f"path={path!r}: must be absolute, and is taken at the prompt only"]}
    assert runner.asked == []


def test_the_master_option_says_where_for_everybody(runner, tmp_path):
    runner.__opts__.update({"fun": None, "kgraft.page": str(tmp_path / "served.html")})
    assert runner.page()["path"] == str(tmp_path / "served.html")
    assert (tmp_path / "served.html").exists()


def test_a_directory_that_is_not_there_is_told(runner, tmp_path):
    told = runner.page(path=str(tmp_path / "none/x.html"))
    assert told["retcode"] == 5
    assert "No such file or directory" in told["report"][0]


@pytest.mark.parametrize("named", [False, True])
def test_processes_and_users_are_named_only_where_they_are_asked_for(runner, named):
    runner.answers = {"db1": moving(60, HELD), "db2": moving(8000, HELD, HELD, task("user"))}
    page = rows(runner.page(names=named)["path"])
    assert runner.asked == [{"kgraft.overview": ((), {"names": True} if named else {})}]
    words = f"kernel, nfs.service{', nfsd of root' if named else ''}: It is parked."
    assert page["db1"][:4] == ["in transition", words, "2026-11-23 11:59", "9-2.2, applying"]
    assert page["db2"][:2] == ["stuck", f"{words} (2 tasks) · user"]


def test_who_floods_the_history_fills_no_page_and_hides_nothing_that_is_stuck(runner, kept):
    with open(kept, "w") as file:
        print(event("stuck", 0, "db2", seconds=7200, times=3, transition="x"), file=file)
        for number in range(3000):
            print(event("finished", 1, seconds=30.0, transition=f"t{number}"), file=file)
    with open(runner.page()["path"], encoding="utf-8") as file:
        text = file.read()
    assert len(text) < 600_000
    assert text.count("<tr><td>") == 1000
    assert "the 1000 most urgent of 3001" in text
    assert re.search(r'class="words bad">▲ stuck, .* so far', text)


def test_it_knows_every_class_of_the_report(runner):
    assert set(runner.pages.LOOKS) == set(runner.reports.CLASSES)


def test_nothing_that_was_heard_of_is_said_and_has_no_dead_link(runner, kept):
    kept.write_text("")
    with open(runner.page()["path"], encoding="utf-8") as file:
        text = file.read()
    assert re.search(r"of the last 7 days:\s+none was heard of<", text)
    assert "#transitions" not in text


@pytest.mark.parametrize("answer", HOSTILE)
def test_an_answer_may_be_anything(runner, answer):
    runner.answers = {"odd": answer, "db1": overview()}
    assert rows(runner.page()["path"])["db1"][0] == "settled"


# fmt: off
BENT = [
    {"blocking": {"tasks": 7}}, {"blocking": {"tasks": [7]}}, {"blocking": {}}, {"blocking": 7}, {"since": [1]},
    {"blocking": {"tasks": [{"kind": None, "unit": {"a": 1}, "why": None}]}}, {"observed": {}}, {"boot_id": ["x"]},
    {"blocking": {"tasks": [{"kind": "x" * 10**6, "unit": "\x1b[2J", "why": "\u2028<script>" * 1000, "name": 5}]}},
    {"kernelrelease": "<b>"}, {"direction": "<b>"}, {"direction": ["x"]},
    {"supported_until": {"<i>": 1}}, {"running": None},
]
# fmt: on


@pytest.mark.parametrize("bent", BENT, ids=lambda bent: ascii(bent)[:60])
@pytest.mark.parametrize("named", [False, True])
def test_no_part_of_an_answer_spoils_the_page(runner, bent, named):
    runner.answers = {"odd": dict(moving(60, HELD), **bent), "db1": overview()}
    path = runner.page(names=named)["path"]
    assert rows(path)["db1"][0] == "settled"
    with open(path, encoding="utf-8") as file:
        text = file.read()
    assert len(text) < 50_000
    assert not re.search("<b>(?!<|[0-9])|<i>|<script>[^\n]|[\x00-\x09\x0b-\x1f\x7f\x9b\u2028]", text)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"names": "yes"}, "names='yes': must be True or False"),
        ({"days": 0}, "days=0: must be a number of at least 1"),
        ({"source": "x"}, "source='x': must be live or mine"),
        ({"stuck_after": "x"}, "stuck_after='x': must be a number of at least 0"),
    ],
)
def test_bad_arguments_of_the_page(runner, words, told):
    assert runner.page(**words) == {"retcode": 5, "report": [told]}


# -- history


def test_history_tells_each_transition_and_what_was_refused(runner, kept):
    with open(kept, "a") as file:
        forged = event("finished", 9, "web1", id="db2")
        print(event("started", 20, "web1"), event("started", 21, "web1"), forged, "torn {", sep="\n", file=file)
    told = runner.history()
    assert told["report"] == [
        "2026-11-23T02:10:00Z db1 kgraft_patch_2_2_1 apply: finished after 5 min",
        "2026-11-23T02:30:00Z web1 kgraft_patch_2_2_1 apply: may still run",
        "2 transitions in 30 days, 0 of them stuck. 6 lines read, 1 repeated, 1 refused, 1 torn.",
    ]
    assert told["lines"] == {"read": 6, "repeated": 1, "refused": 1, "torn": 1}
    assert [(one["machine"], one["started"], one["ended"]) for one in told["transitions"]] == [
        ("db1", "2026-11-23T02:10:00Z", "finished"),
        ("web1", "2026-11-23T02:30:00Z", None),
    ]
    assert json.loads(json.dumps(told)) == told
    assert [one["machine"] for one in runner.history("web*")["transitions"]] == ["web1"]
    assert runner.history(days=0.1)["transitions"] == []


def test_of_a_long_history_the_newest_are_told(runner, kept):
    kept.write_text("\n".join(event("started", n % 50, f"db{n}") for n in range(99)) + "\n")
    told = runner.history()
    assert (len(told["report"]), len(told["transitions"])) == (52, 99)
    assert told["report"][50] == "The newest 50 of 99; --out=json has all."


NOT_KEPT = "No history is kept: event_return of this master has no rawfile_json."


@pytest.mark.parametrize("kept_by", [None, "", "local", ["local", "pgjsonb"]])
def test_where_nothing_is_kept_it_is_said(runner, kept_by):
    runner.__opts__["event_return"] = kept_by
    assert runner.history() == {"retcode": 5, "report": [NOT_KEPT]}
    told = runner.page()
    assert told["retcode"] == 0
    with open(told["path"], encoding="utf-8") as file:
        assert NOT_KEPT in file.read()


def test_events_may_be_kept_in_several_ways(runner):
    runner.__opts__["event_return"] = ["local", "rawfile_json"]
    assert len(runner.history()["transitions"]) == 1


def test_a_file_that_is_not_there_is_no_empty_history(runner, kept):
    kept.unlink()
    assert runner.history() == {
        "retcode": 5,
        "report": [f"cannot read {kept}: [Errno 2] No such file or directory: '{kept}'"],
    }


@pytest.mark.parametrize("days", [-1, "7", True, float("nan")])
def test_bad_days_of_the_history(runner, days):
    assert runner.history(days=days)["retcode"] == 5


def test_the_story_of_the_tests_is_of_one_day():
    assert 0 < NOW - STARTED < 86400
