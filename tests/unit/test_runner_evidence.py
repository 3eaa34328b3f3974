"""Files of evidence: what is kept of a machine, and a chain that shows each change. The signatures are real."""

import calendar
import hashlib
import json
import os
import shutil
import stat
import subprocess
import threading

import pytest

from tests.unit.test_runner_report import HOSTILE, NOW, moving, overview, task

MODULE = "kgraft_patch_9_2_2"
DATES = {"version": "9-2.2", "released": "2026-11-01T00:00:00Z", "installed": "2026-11-02T00:00:00Z"}
ANSWER = {
    "kgraft.overview": overview(),
    "kgraft.patches": {MODULE: {"state": "applied", "version": "9-2.2", "enabled": True}},
    "kgraft.status": {"kernelrelease": "4.4.180-94.100-default"},
    "kgraft_probe.last": None,
    "kgraft_security.dates": {
        "patches": {MODULE: {**DATES, "settled": "2026-11-03T12:00:00Z"}},
        "unread": ["far: away"],
    },
    "kgraft_security.fixes": {"version": "9-2.2", "cves": ["CVE-2016-5195"], "bugs": [], "source": "klp", "unread": []},
    "grains.item": {"machine_id": "1", "fqdn": "db1.example.com", "serialnumber": "x", "osfinger": "SLES-12"},
}
CVES = {"CVE-2016-5195": {"class": "fixed by a live patch", "why": MODULE}}


@pytest.fixture(scope="module")
def evidences(load):
    fleets = load("_runners/_kgraft_fleet.py")
    reports = load("_runners/_kgraft_report.py", fleets=fleets)
    return load("_runners/_kgraft_evidence.py", fleets=fleets, reports=reports)


@pytest.fixture(scope="module")
def histories(load):
    return load("_runners/_kgraft_history.py", fleets=load("_runners/_kgraft_fleet.py"))


@pytest.fixture
def of(evidences):
    """Return ``of(answer, *transitions)``: what is kept of db1, which answered that."""

    def kept(answer, *transitions, names=False):
        found = {"db1": {"class": "settled", "why": "9-2.2", "running": "9-2.2"}}
        matrix = {number: {"db1": cell} for number, cell in CVES.items()}
        return evidences.records({"db1": answer}, found, matrix, transitions, names)["db1"]

    return kept


def test_what_is_kept_of_a_machine(of):
    told = overview()
    assert of(ANSWER) == {
        **{
            key: told[key]
            for key in ("version", "observed", "kernelrelease", "boot_id", "state", "direction", "running")
        },
        **{key: told[key] for key in ("package", "supported_until", "reboot", "notes", "blocking")},
        "class": "settled",
        "why": "9-2.2",
        "identity": ANSWER["grains.item"],
        "fixes": ANSWER["kgraft_security.fixes"],
        "patches": {
            MODULE: {
                **DATES,
                "state": "applied",
                "settled": "2026-11-03T12:00:00Z",
                "settled_by": "the kernel's log",
                "days": 2.5,
            }
        },
        "cves": CVES,
        "probes": None,
        "unread": ["far: away"],
    }


BY_BEACON = ("2026-11-02T00:00:00Z", "the beacon's history", 1.0)
BY_LOG = ("2026-11-03T12:00:00Z", "the kernel's log", 2.5)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, BY_BEACON),
        ({"boot_id": "another"}, BY_LOG),
        ({"patch": "kgraft_patch_8_2_2"}, BY_LOG),
        ({"direction": "revert"}, BY_LOG),
        ({"machine": "db2"}, BY_LOG),
        ({"ended": "reboot"}, BY_LOG),
        ({"ended": None}, BY_LOG),
    ],
)
def test_the_beacons_history_knows_better_when_it_settled(of, histories, changes, told):
    seen = dict.fromkeys(histories.Transition._fields)
    seen.update(machine="db1", patch=MODULE, boot_id=overview()["boot_id"], direction="apply", ended="finished")
    last = calendar.timegm((2026, 11, 2, 0, 0, 0))
    other = histories.Transition(**{**seen, "last": last, **changes})
    patch = of(ANSWER, other._replace(last=last - 3600), other)["patches"][MODULE]
    assert (patch["settled"], patch["settled_by"], patch["days"]) == told


@pytest.mark.parametrize(("key", "value"), [("settled", None), ("released", None), ("released", "soon")])
def test_days_are_told_only_of_two_times_that_are_known(of, key, value):
    dates = {"patches": {MODULE: {**DATES, "settled": "2026-11-03T12:00:00Z", key: value}}, "unread": []}
    patch = of({**ANSWER, "kgraft_security.dates": dates})["patches"][MODULE]
    assert patch["days"] is None
    assert patch["settled_by"] == (None if key == "settled" else "the kernel's log")


def test_names_of_tasks_are_kept_only_where_they_were_asked_for(of):
    told = moving(60, task("user", "sapinit.service"))
    # by a minion that says more than it was asked
    told["blocking"]["tasks"][0].update(name="hdbindexserver", user="hdbadm", pid=4711)
    assert of({**ANSWER, "kgraft.overview": told})["blocking"] == {"count": 1, "complete": True}
    assert of({**ANSWER, "kgraft.overview": told}, names=True)["blocking"] == told["blocking"]


def test_a_patch_that_settled_once_and_moves_again_has_not_settled(of, histories):
    seen = dict.fromkeys(histories.Transition._fields, "x")
    seen.update(machine="db1", patch=MODULE, boot_id=overview()["boot_id"], direction="apply", ended="finished", last=1)
    moves = {MODULE: {"state": "applying", "version": "9-2.2"}}
    answer = {**ANSWER, "kgraft.patches": moves, "kgraft_security.dates": {"patches": {}, "unread": []}}
    patch = of(answer, histories.Transition(**seen))["patches"][MODULE]
    assert (patch["settled"], patch["settled_by"], patch["days"]) == (None, None, None)


def test_what_could_not_be_asked_is_named(of):
    absent = "Traceback …\nTypeError: 'str' object is not callable"
    failed = {"kgraft_security.fixes": "ERROR: rpm hangs", "kgraft_probe.last": absent, "kgraft.patches": None}
    answer = {**ANSWER, **failed}
    del answer["grains.item"]
    kept = of(answer)
    assert kept["unread"] == [
        "grains.item: its answer cannot be understood",
        "kgraft.patches: its answer cannot be understood",
        "kgraft_probe.last: is not loaded there",
        "kgraft_security.fixes: rpm hangs",
        "far: away",
    ]
    assert (kept["fixes"], kept["probes"], kept["patches"], kept["identity"]) == (None, None, None, None)


@pytest.mark.parametrize("odd", HOSTILE)
def test_one_odd_answer_spoils_nothing(evidences, of, odd, tmp_path):
    inside = {**ANSWER, "kgraft.overview": overview(running=odd, notes=[odd])}
    for answer in (odd, inside, *({**ANSWER, name: odd} for name in ANSWER)):
        kept = of(answer)
        assert kept["cves"] == CVES
        path, _ = evidences.save(str(tmp_path), {"machines": {"db1": kept}}, None)
        with open(path, encoding="utf-8") as file:
            assert json.load(file)["machines"]["db1"]["class"] == "settled"


# The files


@pytest.fixture
def directory(tmp_path):
    return str(tmp_path / "evidence")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """The directory of two keys, ``key`` and ``other``, and of ``signers``, which names the first one."""
    path = tmp_path_factory.mktemp("keys")
    for name, phrase in (("key", ""), ("other", ""), ("locked", "x")):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", phrase, "-f", path / name], check=True)
    public = (path / "key.pub").read_text()
    (path / "signers").write_text(f'evidence@master namespaces="kgraft-evidence" {public}')
    return path


def write(evidences, directory, count, key=None):
    return [evidences.save(directory, {"machines": {"db1": number}}, key)[0] for number in range(count)]


def broken(evidences, directory, signers=None):
    return evidences.broken(evidences.files(directory), signers)


def test_each_file_holds_the_sum_of_the_one_before_it(evidences, directory):
    first, second = write(evidences, directory, 2)
    assert sorted(os.listdir(directory)) == [name(1), name(2)]
    assert [stat.S_IMODE(os.stat(path).st_mode) for path in (directory, first)] == [0o750, 0o640]
    with open(first, "rb") as file:
        raw = file.read()
    assert raw == b'{"format":1,"machines":{"db1":0},"number":1,"previous":null}\n'
    with open(second, encoding="utf-8") as file:
        previous = json.load(file)["previous"]
    assert previous == {"file": "kgraft-evidence-000001.json", "sha256": hashlib.sha256(raw).hexdigest()}
    assert broken(evidences, directory) is None


def test_what_another_run_left_half_written_is_removed(evidences, directory, tmp_path):
    write(evidences, directory, 1)
    os.mkdir(os.path.join(directory, ".writing"))
    (tmp_path / "evidence" / ".writing" / "evidence").touch()
    (tmp_path / "evidence" / "kgraft-evidence-000002.json.sig").touch()
    write(evidences, directory, 1)
    assert sorted(os.listdir(directory)) == ["kgraft-evidence-000001.json", "kgraft-evidence-000002.json"]


def test_many_at_a_time_make_one_chain(evidences, directory):
    threads = [threading.Thread(target=write, args=(evidences, directory, 5)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(evidences.files(directory)) == list(range(1, 21))
    assert broken(evidences, directory) is None


def test_a_signature_is_what_ssh_keygen_alone_checks(evidences, directory, keys):
    (path,) = write(evidences, directory, 1, str(keys / "key"))
    who = ["-I", "evidence@master", "-n", "kgraft-evidence"]
    with open(path, "rb") as file:
        command = ["ssh-keygen", "-Y", "verify", "-f", keys / "signers", *who, "-s", path + ".sig"]
        assert subprocess.run(command, stdin=file).returncode == 0
    assert stat.S_IMODE(os.stat(path + ".sig").st_mode) == 0o640
    assert evidences.signed(path, str(keys / "signers")) == "evidence@master"


@pytest.mark.parametrize("key", ["locked", "none", "signers"])
def test_what_cannot_be_signed_is_not_there(evidences, directory, keys, key):
    write(evidences, directory, 1)
    with pytest.raises(ValueError, match="ssh-keygen -Y sign failed: "):
        write(evidences, directory, 1, str(keys / key))
    assert os.listdir(directory) == ["kgraft-evidence-000001.json"]


def test_without_ssh_keygen_nothing_is_written(evidences, directory, keys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="ssh-keygen: "):
        write(evidences, directory, 1, str(keys / "key"))
    assert os.listdir(directory) == []


def _edit(path, old, new):
    with open(path, "rb+") as file:
        text = file.read()
        assert old in text
        file.seek(0)
        file.truncate()
        file.write(text.replace(old, new))


def _put(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def name(number):
    return f"kgraft-evidence-{number:06}.json"


@pytest.mark.parametrize(
    ("harm", "at", "why"),
    [
        (lambda at: os.unlink(at(2)), 3, f"{name(2)} is missing before it"),
        (lambda at: _edit(at(2), b'"db1":1', b'"db1":9'), 3, f"{name(2)} is not the one that was there"),
        (lambda at: _edit(at(2), b"\n", b" \n"), 3, f"{name(2)} is not the one that was there"),
        (lambda at: _edit(at(2), b"}\n", b"\n"), 2, "Expecting"),
        (lambda at: _edit(at(2), b'"number":2', b'"number":3'), 2, "it says that it is number 3"),
        (lambda at: _edit(at(2), b'"format":1', b'"format":2'), 2, "format 2"),
        (lambda at: _edit(at(1), b'"previous":null', b'"previous":{}'), 1, "what it says of the one before it"),
        (lambda at: shutil.copy(at(4), at(5)), 5, "it says that it is number 4"),
        (lambda at: shutil.copy(at(3), at(4)), 4, "it says that it is number 3"),
        (lambda at: _put(at(2), ""), 2, "Expecting"),
        (lambda at: _put(at(2), "[]"), 2, "list"),
        (lambda at: _put(at(2), "{}"), 2, "format"),
        (lambda at: (os.unlink(at(2)), os.mkdir(at(2))), 2, "directory"),
        (lambda at: os.unlink(at(4)), None, None),  # nobody can tell: the auditor has the sum of the newest
        (lambda at: os.unlink(at(1)), None, None),  # it begins with 2, which is told
    ],
)
def test_the_first_broken_link_is_named(evidences, directory, harm, at, why):
    write(evidences, directory, 4)
    harm(lambda number: os.path.join(directory, name(number)))
    found = broken(evidences, directory)
    if at is None:
        assert found is None
    else:
        assert found[0] == name(at)
        assert why in found[1]


@pytest.mark.parametrize(
    ("harm", "at", "why"),
    [
        (lambda at, keys: None, None, None),
        (lambda at, keys: os.unlink(at(2) + ".sig"), None, None),  # number 3 stands for it
        (lambda at, keys: os.unlink(at(3) + ".sig"), 3, "it is the newest, and is not signed"),
        (lambda at, keys: _edit(at(3), b'"db1":2', b'"db1":9'), 3, "ssh-keygen -Y verify failed"),
        (lambda at, keys: shutil.copy(at(1) + ".sig", at(2) + ".sig"), 2, "ssh-keygen -Y verify failed"),
        (lambda at, keys: _put(at(2) + ".sig", ""), 2, "ssh-keygen -Y find-principals failed"),
        (lambda at, keys: _sign(at(3), keys / "other", "kgraft-evidence"), 3, "ssh-keygen -Y find-principals failed"),
        (lambda at, keys: _sign(at(3), keys / "key", "file"), 3, "ssh-keygen -Y verify failed"),
    ],
)
def test_a_wrong_signature_is_a_broken_link(evidences, directory, keys, harm, at, why):
    write(evidences, directory, 3, str(keys / "key"))
    harm(lambda number: os.path.join(directory, name(number)), keys)
    found = broken(evidences, directory, str(keys / "signers"))
    assert found is None if at is None else (found[0] == name(at) and why in found[1]), found


def _sign(path, key, namespace):
    os.unlink(path + ".sig")
    subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-f", key, "-n", namespace, path], check=True)


# The functions


@pytest.fixture
def runner(load, monkeypatch, directory, tmp_path):
    opts = {"timeout": 5, "gather_job_timeout": 5, "id": "master_master", "cachedir": str(tmp_path), "fun": "kgraft.x"}
    exceptions = tmp_path / "exceptions.yml"
    entry = "{reason: waits, by: dba-team, until: 2026-11-29}"
    exceptions.write_text(f"db2: {entry}\ndb9: {entry}\n")
    opts.update({"kgraft.evidence": directory, "kgraft.exceptions": str(exceptions), "output": "json"})
    runner = load("_runners/kgraft.py", __opts__=opts)
    monkeypatch.setattr(runner.time, "time", lambda: NOW)
    runner.calls, runner.said = [], f"fixed by {MODULE}"

    def ask(target, tgt_type, calls, *_):
        runner.calls.append(calls)
        number = "CVE-2016-5195"
        fixed = {"kgraft_security.cves": {number: runner.said}} if "kgraft_security.cves" in calls else {}
        silent = {"db2": "nothing", "db3": "nothing"} if target != "db1" else {}
        return runner.fleets.Fleet({"db1", *silent}, {"db1": {**ANSWER, **fixed}}, silent)

    monkeypatch.setattr(runner, "_ask", ask)
    return runner


def test_the_file_says_who_was_asked_who_did_not_answer_and_what_is_excepted(runner, directory):
    told = runner.evidence("db*", cves=["cve-2016-5195"], not_affected="3.*", expected=["db3"])
    with open(told["file"], encoding="utf-8") as file:
        kept = json.load(file)
    asked = kept["asked"]
    assert asked.pop("salt")
    assert asked == {
        "at": "2026-11-23T12:00:00Z",
        "by": None,  # here nobody called it through Salt
        "on": "master_master",
        "target": "db*",
        "tgt_type": "glob",
        "expected": ["db3"],
        "cves": ["CVE-2016-5195"],
        "not_affected": ["3.*"],
        "version": runner.VERSION,
        "complete": True,
    }
    assert kept["history"] == "No history is kept: event_return of this master has no rawfile_json."
    assert kept["no_answer"] == {"db2": "nothing", "db3": "nothing"}
    assert kept["exceptions"] == {"db2": {"reason": "waits", "by": "dba-team", "until": "2026-11-29"}}
    assert set(kept["machines"]) == {"db1"}
    assert kept["machines"]["db1"]["cves"] == CVES
    assert (told["retcode"], told["asked"], told["signed"]) == (3, 3, False)
    assert told["sha256"] == runner.evidences.sha256(told["file"])
    assert told["report"][-2:] == [
        f"SHA-256: {told['sha256']}",
        "Good so far: but not all machines gave an answer.",
    ]


def test_a_fix_that_is_open_is_not_good(runner):
    assert runner.evidence("db1", cves="CVE-2016-5195")["retcode"] == 0
    runner.said = "open: x 10-2.1"
    assert runner.evidence("db1")["retcode"] == 0
    assert runner.evidence("db1", cves="CVE-2016-5195")["retcode"] == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"cves": ["CVE-1"]}, "'CVE-1'"),
        ({"cves": {"CVE-2016-5195": 1}}, "list"),
        ({"names": "yes"}, "names='yes'"),
        ({"not_affected": 4}, "not_affected=4"),
        ({"nobody": 1}, "nobody"),
    ],
)
def test_bad_arguments_write_nothing(runner, directory, arguments, says):
    told = runner.evidence(**arguments)
    assert (told["retcode"], runner.calls) == (5, [])
    assert says in told["report"][0]
    assert not os.path.exists(directory)


def test_a_place_that_cannot_be_written_is_exit_code_5(runner, directory):
    _put(directory, "")
    told = runner.evidence()
    assert (told["retcode"], len(told["report"])) == (5, 1)
    assert directory in told["report"][0]


@pytest.mark.parametrize(
    ("fun", "path", "says"),
    [
        (
            "salt.api",
            "/srv/fixes.csv",
            "csv='/srv/fixes.csv': must be the path of a file, and is written at the prompt",
        ),
        ("kgraft.cves", True, "csv=True: must be the path of a file"),
        ("kgraft.cves", "/nowhere/fixes.csv", "csv: cannot write /nowhere/fixes.csv: "),
    ],
)
def test_a_table_that_cannot_be_is_refused(runner, fun, path, says):
    runner.__opts__["fun"] = fun
    told = runner.cves("CVE-2016-5195", csv=path)
    assert (told["retcode"], len(told["report"])) == (5, 1)
    assert told["report"][0].startswith(says)


def test_a_table_is_not_for_everybody(runner, tmp_path):
    runner.__opts__["fun"] = "kgraft.cves"
    assert runner.cves("CVE-2016-5195", csv=str(tmp_path / "fixes.csv"))["retcode"] == 3
    assert stat.S_IMODE((tmp_path / "fixes.csv").stat().st_mode) == 0o640


def test_the_beacons_history_is_read_where_it_is_kept(runner, tmp_path):
    data = {"id": "db1", "transition": "t", "patch": MODULE, "direction": "apply", "seconds": 9.0, "times": None}
    data.update(boot_id=overview()["boot_id"], kernelrelease="x", _stamp="2026-11-02T00:00:00.000000+00:00")
    lines = tmp_path / "events"
    lines.write_text(json.dumps({"tag": "salt/beacon/db1/kgraft/finished", "data": data}) + "\n")
    runner.__opts__.update({"event_return": "rawfile_json", "rawfile_json.filename": str(lines)})
    with open(runner.evidence()["file"], encoding="utf-8") as file:
        kept = json.load(file)
    assert kept["history"] is None
    assert kept["machines"]["db1"]["patches"][MODULE]["settled_by"] == "the beacon's history"


def test_below_syndics_the_file_says_that_it_may_not_have_all(runner, monkeypatch):
    monkeypatch.setattr(runner, "_ask", lambda *_: runner.fleets.Fleet(None, {"db1": ANSWER}, {}))
    told = runner.evidence()
    with open(told["file"], encoding="utf-8") as file:
        assert json.load(file)["asked"]["complete"] is False
    assert (told["retcode"], told["asked"]) == (3, None)


def test_names_are_asked_for_only_if_wished(runner):
    runner.evidence()
    runner.evidence(names=True)
    assert [calls["kgraft.overview"][1] for calls in runner.calls] == [{"names": False}, {"names": True}]


def test_the_chain_is_told(runner, directory, keys):
    assert runner.evidence_chain()["retcode"] == 5
    runner.__opts__["kgraft.evidence_key"] = str(keys / "key")
    runner.__opts__["kgraft.evidence_signers"] = str(keys / "signers")
    written = [runner.evidence() for _ in range(3)]
    told = runner.evidence_chain()
    newest = {"file": name(3), "sha256": written[-1]["sha256"]}
    assert (told["retcode"], told["files"], told["newest"], told["broken"]) == (0, 3, newest, None)
    assert told["report"][-1] == "Good: each file is as it was written."

    os.unlink(written[0]["file"])
    assert "They begin with number 2: what came before it is not here." in runner.evidence_chain()["report"]
    _edit(written[1]["file"], b"9-2.2", b"9-2.3")
    told = runner.evidence_chain()
    assert (told["retcode"], told["broken"]["file"]) == (2, name(2))
    assert told["report"][-1].startswith(f"Broken: {name(2)}: ssh-keygen -Y verify failed")
    del runner.__opts__["kgraft.evidence_signers"]
    told = runner.evidence_chain()
    assert (told["broken"]["file"], told["report"][-2]) == (
        name(3),
        "Signatures are not checked: kgraft.evidence_signers is not set.",
    )
