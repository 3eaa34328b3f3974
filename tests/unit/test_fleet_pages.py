"""What the manual shows of a fleet is what the runner says of these machines: each console block below its comment."""

import re
import shlex
import subprocess
import time

import pytest
import salt.output
import salt.utils.args

from lab import picture
from tests.conftest import REPO
from tests.unit.test_runner_report import NOW, VERSION, ago, checked, moving, overview, package, task

BLOCK = re.compile(r"<!-- (fleet|proof) -->\n+```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)(?:^\$ echo \$\?\n(\d)\n)?", re.MULTILINE)
LIVE_PATCH, MODULE = "kernel-livepatch-5_14_21-150500_53-default", "livepatch_14_150500_2_1"
EVIDENCE, SIGNERS = "/var/cache/salt/master/kgraft/evidence", "/etc/salt/kgraft-signers"
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


def fixes(name):
    """What ``kgraft_security.cves`` says on a machine of that name."""
    kinds = {
        "box": "'kgraft_security.cves' is not available.",
        "erp": f"pending: installed, not loaded {LIVE_PATCH} 14-150500.2.1",
        "old": f"open: {LIVE_PATCH} 14-150500.2.1",
        "nfs": f"pending: settling {MODULE}",
        "sec": f"pending: settling {MODULE}",
    }
    told = kinds.get(name[:3], f"fixed by {MODULE}")
    return told if name[:3] == "box" else {"CVE-2026-0014": told}


@pytest.fixture
def runner(load, tmp_path, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    exceptions = tmp_path / "exceptions.yml"
    exceptions.write_text(EXCEPTIONS)
    key, signers = tmp_path / "key", tmp_path / "signers"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    signers.write_text(f'evidence@master namespaces="kgraft-evidence" {(tmp_path / "key.pub").read_text()}')
    files = {"exceptions": exceptions, "evidence": tmp_path / "evidence", "evidence_key": key}
    opts = {
        "timeout": 30,
        "gather_job_timeout": 10,
        **{f"kgraft.{name}": str(path) for name, path in files.items()},
        "kgraft.evidence_signers": str(signers),
        "id": "master_master",
        "kgraft.page": "/srv/kgraft/fleet.html",
        "event_return": "rawfile_json",
        "rawfile_json.filename": str(tmp_path / "events.jsonl"),
        "cachedir": str(tmp_path),
        "fun": "kgraft.x",
        "color": False,
    }
    picture.keep(picture.fleet(tmp_path)[1], tmp_path / "events.jsonl")
    runner = load("_runners/kgraft.py", __opts__=opts)
    runner.__salt__["fileserver.file_list"] = list
    assert runner.VERSION == VERSION
    monkeypatch.setattr(runner.time, "time", lambda: NOW)
    monkeypatch.setattr(runner.fleets, "write", lambda path, text: None)

    def ask(target, tgt_type, calls, *_):
        answers, silent = fleet()
        check = checked(running=None)
        answers = {
            name: {"kgraft.overview": told, "kgraft_pkg.check": check, "kgraft_security.cves": fixes(name)}
            for name, told in answers.items()
        }
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


def commands(kind):
    for page in [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]:
        for block in [text for name, text in BLOCK.findall(page.read_text("utf-8")) if name == kind]:
            for command, output, code in COMMAND.findall(block):
                yield pytest.param(command, output, code, id=f"{page.name}: {command}")


def test_there_is_something_to_test():
    assert len(list(commands("fleet"))) >= 6
    assert len(list(commands("proof"))) >= 4


def said(runner, command):
    """What salt-run says, as it is printed, and its exit code."""
    function, *words = shlex.split(command)[1:]
    arguments = salt.utils.args.parse_input(words)
    named = arguments.pop() if words and isinstance(arguments[-1], dict) else {}
    named.pop("__kwarg__", None)
    told = getattr(runner, function.partition(".")[2])(*arguments, **named)
    return salt.output.out_format(told, "nested", runner.__opts__), told["retcode"]


def is_shown(runner, output, printed):
    for name, path in (("evidence", EVIDENCE), ("evidence_signers", SIGNERS)):
        printed = printed.replace(runner.__opts__[f"kgraft.{name}"], path)
    printed = re.sub("[0-9a-f]{64}|(?<=SHA256:)\\S{43}", "…", printed)
    assert printed.strip() == output.strip(), printed


@pytest.mark.parametrize(("command", "output", "code"), commands("fleet"))
def test_what_the_manual_shows_of_a_fleet_is_what_is_said(runner, command, output, code):
    printed, retcode = said(runner, command)
    is_shown(runner, output, printed)
    assert code in ("", str(retcode))


@pytest.mark.parametrize(("command", "output", "code"), commands("proof"))
def test_what_the_manual_shows_of_evidence_is_what_an_auditor_sees(runner, command, output, code):
    directory = runner.__opts__["kgraft.evidence"]
    for _ in range(2):
        runner.evidence("web1")
    if command.startswith("salt-run "):
        printed = said(runner, command)[0]
    else:
        command = command.replace(SIGNERS, runner.__opts__["kgraft.evidence_signers"])
        printed = subprocess.run(command, shell=True, cwd=directory, check=True, capture_output=True, text=True).stdout
    is_shown(runner, output, printed)
