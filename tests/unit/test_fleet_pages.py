"""What the manual shows of a fleet is what the runner says of these machines: each console block below its comment."""

import re
import shlex
import time

import pytest
import salt.output
import salt.utils.args

from lab import picture
from tests.conftest import REPO
from tests.unit.test_runner_report import NOW, VERSION, ago, checked, moving, overview, package, task

BLOCK = re.compile(r"<!-- fleet -->\n+```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ salt-run (kgraft.*)\n((?:(?!\$ ).*\n)*)(?:^\$ echo \$\?\n(\d)\n)?", re.MULTILINE)
AGENT = "A program of eBPF is on its stack, such as a security or tracing agent attaches (fexit, fmod_ret)"
EXCEPTIONS = """\
lab1: {reason: waits for a new power supply, by: dba-team, until: 2026-11-29}
lab2: {reason: waits for a new power supply, by: dba-team, until: 2026-11-29}
db12: {reason: is taken down in November, by: dba-team, until: 2026-11-20}
"""


def running(version, newest, **changes):
    as_of = ago(9 * 3600, "%Y-%m-%dT%H:%M:00Z")
    return overview(running=version, package=package(installed=version, newest=newest, as_of=as_of, **changes))


def fleet():
    """``(answers, silent)``: 3,012 machines that were asked."""
    newest = "14-150500.2.1"
    settled = running(newest, newest)
    answers = {f"web{number}": settled for number in range(2000)}
    answers.update({f"app{number}": settled for number in range(871)})
    answers.update({f"erp{number}": {**settled, "running": "13-150500.2.1"} for number in range(61)})
    answers.update({f"old{number}": running("13-150500.2.1", newest) for number in range(35)})
    agent = moving(3 * 3600, task("kernel", None, AGENT), package=settled["package"])
    nfs = moving(3 * 3600, task("kernel", None, "NFS 4 keeps this thread parked"), package=settled["package"])
    answers.update({f"sec{number}": agent for number in range(7)}, nfs1=nfs, nfs2=nfs)
    answers.update({f"box{number}": {**settled, "state": "unavailable"} for number in range(12)})
    silent = [
        "db12",
        "lab1",
        "lab2",
        *(f"db{number}" for number in (3, 7, 9)),
        *(f"pos{number}" for number in range(18)),
    ]
    return answers, silent


@pytest.fixture
def runner(load, tmp_path, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    exceptions = tmp_path / "exceptions.yml"
    exceptions.write_text(EXCEPTIONS)
    opts = {
        "timeout": 30,
        "gather_job_timeout": 10,
        "kgraft.exceptions": str(exceptions),
        "kgraft.page": "/srv/kgraft/fleet.html",
        "event_return": "rawfile_json",
        "rawfile_json.filename": str(tmp_path / "events.jsonl"),
        "cachedir": str(tmp_path),
        "fun": "kgraft.x",
        "color": False,
    }
    picture.keep(picture.fleet(tmp_path)[1], tmp_path / "events.jsonl")
    runner = load("_runners/kgraft.py", __opts__=opts)
    assert runner.VERSION == VERSION
    monkeypatch.setattr(runner.time, "time", lambda: NOW)
    monkeypatch.setattr(runner.pages, "write", lambda path, text: None)

    def ask(target, tgt_type, calls, *_):
        answers, silent = fleet()
        check = checked(running=None)
        answers = {name: {"kgraft.overview": told, "kgraft_pkg.check": check} for name, told in answers.items()}
        if target != "*":
            answers = {
                name: answer for name, answer in answers.items() if re.fullmatch(target.replace("*", ".*"), name)
            }
            silent = []
        return runner.fleets.Fleet({*answers, *silent}, answers, dict.fromkeys(silent, "nothing in 30 s"))

    monkeypatch.setattr(runner, "_ask", ask)
    yield runner
    monkeypatch.undo()
    time.tzset()


def commands():
    for page in [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]:
        for block in BLOCK.findall(page.read_text("utf-8")):
            for command, output, code in COMMAND.findall(block):
                yield pytest.param(command, output, code, id=f"{page.name}: {command}")


def test_there_is_something_to_test():
    assert len(list(commands())) >= 4


@pytest.mark.parametrize(("command", "output", "code"), commands())
def test_what_the_manual_shows_of_a_fleet_is_what_is_said(runner, command, output, code):
    function, *words = shlex.split(command)
    arguments = salt.utils.args.parse_input(words)
    named = arguments.pop() if words and isinstance(arguments[-1], dict) else {}
    named.pop("__kwarg__", None)
    told = getattr(runner, function.partition(".")[2])(*arguments, **named)
    printed = salt.output.out_format(told, "nested", runner.__opts__)
    assert printed.strip() == output.strip(), printed
    assert code in ("", str(told["retcode"]))
