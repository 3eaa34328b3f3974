"""
The runner on a real master: four minions with a kernel of files each, of which some are down, slow, stuck or killed.

Their packages are those of ``tests/support/pretended_packages.py``.
"""

import concurrent.futures
import getpass
import http.server
import json
import pathlib
import shutil
import subprocess
import sys
import threading
import time

import pytest
import salt.config
import salt.runner
from saltfactories.utils import random_string

from lab.files import Kernel
from tests.integration.conftest import MASTER, MINION

LIMITS = ("timeout=2", "gather_job_timeout=4")
EAUTH = {"auto": {"ops": ["@kgraft"]}}


class Machine:
    """A minion and its kernel."""

    def __init__(self, master, module_dirs, root, number):
        self.root = root
        self.be()
        options = {"kgraft.root": str(root), "module_dirs": module_dirs, "grains": {"number": number}}
        self.minion = master.salt_minion_daemon(random_string(f"m{number}-"), overrides={**MINION, **options})
        self.id = self.minion.id

    def up(self):
        if not self.minion.is_running():
            self.minion.start()

    def be(self, version="2-2.1", held_up=False):
        """This version is installed and runs, or is held up on the way to that."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.kernel = Kernel(self.root)
        (self.root / "installed").write_text(version)
        if held_up:
            self.kernel.task(731, "nfsd", kthread=True, blocking=True)
            self.kernel.start(f"kgraft-patch-{version.replace('.', '_')}")
        elif version:
            self.kernel.patch(f"kgraft-patch-{version.replace('.', '_')}")


@pytest.fixture(scope="module")
def exceptions(tmp_path_factory):
    path = tmp_path_factory.mktemp("exceptions") / "exceptions.yml"
    path.touch()
    return path


@pytest.fixture(scope="module")
def alerts():
    """What stands for an alert manager: a list of alerts, at ``alerts.url``."""

    class Alerts(list):
        pass

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps(alerts).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    alerts = Alerts()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        alerts.url = f"http://127.0.0.1:{server.server_port}/"
        yield alerts
        server.shutdown()


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    return tmp_path_factory.mktemp("evidence")


@pytest.fixture(scope="module")
def master(salt_factories, file_root, exceptions, evidence, alerts, tmp_path_factory):
    options = {"file_roots": {"base": [str(file_root)]}, "kgraft.exceptions": str(exceptions), "external_auth": EAUTH}
    key = tmp_path_factory.mktemp("key") / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    (key.parent / "signers").write_text(f"evidence@master {key.with_suffix('.pub').read_text()}")
    options["kgraft.evidence"] = str(evidence)
    options.update({"kgraft.evidence_key": str(key), "kgraft.evidence_signers": str(key.parent / "signers")})
    # whoever is killed in a wave costs as much
    options.update(kgraft_gate=alerts.url, gather_job_timeout=6)
    factory = salt_factories.salt_master_daemon(random_string("fleet-master-"), overrides={**MASTER, **options})
    with factory.started():
        synced = factory.salt_run_cli(timeout=60).run("saltutil.sync_runners")
        assert "runners.kgraft" in synced.data
        yield factory


@pytest.fixture(scope="module")
def fleet(master, file_root, pretended_packages, tmp_path_factory):
    """Four machines, all of them up."""
    dirs = [str(file_root), pretended_packages]
    machines = [Machine(master, dirs, tmp_path_factory.mktemp("machine") / "root", number) for number in range(4)]
    with concurrent.futures.ThreadPoolExecutor() as threads:
        list(threads.map(lambda machine: machine.minion.start(), machines))
    yield machines
    with concurrent.futures.ThreadPoolExecutor() as threads:
        list(threads.map(lambda machine: machine.minion.terminate(), machines))


@pytest.fixture
def run(master):
    """Return ``run(*words)``: what salt-run prints with --out=json, its exit code, and the data."""
    return lambda *words: master.salt_run_cli(timeout=120).run(*words)


@pytest.fixture
def prompt(master):
    """Return ``prompt(*words)``: what salt-run prints, and its exit code."""
    salt_run = [sys.executable, "-c", "from salt.scripts import salt_run; salt_run()", "-c", master.config_dir]
    options = {"capture_output": True, "text": True, "timeout": 240, "check": False}
    return lambda *words: subprocess.run([*salt_run, *words], **options)


def classes(done):
    return {machine: about["class"] for machine, about in done.data["machines"].items()}


@pytest.mark.smoke
def test_every_machine_is_told_and_those_that_are_down_are_named(fleet, run, exceptions):
    well, behind, held, down = fleet
    behind.be("1-1.1")
    held.be(held_up=True)
    down.minion.terminate()

    done = run("kgraft.report", *LIMITS)

    assert classes(done) == {well.id: "settled", behind.id: "unpatched", held.id: "in transition", down.id: "no answer"}
    assert (done.returncode, done.data["retcode"], done.data["asked"]) == (2, 2, 4)
    assert done.data["machines"][down.id]["why"] == "nothing in 2 s"
    assert "nfsd" not in done.stdout, "names of processes are nobody's business here"

    for machine in (behind, held):
        machine.be()
    exceptions.write_text(f"{down.id}: {{reason: broken, by: ops, until: 2999-01-01}}")
    with concurrent.futures.ThreadPoolExecutor() as threads:
        good = threads.submit(run, "kgraft.report", *LIMITS)
        so_far = threads.submit(run, "kgraft.verify", f"expected={well.id},nobody", *LIMITS).result()
    exceptions.write_text("")
    assert (good.result().returncode, good.result().data["counts"]) == (0, {"settled": 3, "excepted": 1})
    assert (so_far.returncode, so_far.data["counts"]) == (3, {"settled": 3, "excepted": 1, "no answer": 1})
    assert so_far.data["machines"]["nobody"]["why"] == "this master has no key of it"


@pytest.mark.smoke
def test_at_the_prompt_it_is_the_same_in_words_and_nothing_else(fleet, run, prompt):
    one, two, *_ = fleet
    one.be()
    two.be("1-1.1")
    words = ("kgraft.verify", f"{one.id},{two.id}", "list", "version=2-2.1")
    done, told = run(*words), prompt(*words)
    assert (done.returncode, told.returncode, classes(done)) == (2, 2, {one.id: "settled", two.id: "unpatched"})
    assert done.data["machines"][two.id]["why"] == "2-2.1 is needed"
    lines = [line.strip() for line in told.stdout.strip().splitlines()]
    assert lines == ["report:", *(line.strip() for line in done.data["report"]), "retcode:", "2"]


@pytest.mark.smoke
def test_who_has_which_fix_as_a_table_for_a_spreadsheet(fleet, run, tmp_path):
    one, two, *_ = fleet
    one.be()
    two.be("1-1.1")
    words = ("kgraft.cves", "cve-2016-5195", "CVE-2016-5195", f"target={one.id},{two.id}", "tgt_type=list")
    done = run(*words, f"csv={tmp_path}/fixes.csv")
    assert done.returncode == 2
    assert done.data["cves"]["CVE-2016-5195"][one.id] == {"class": "fixed by a live patch", "why": "kgraft_patch_2_2_1"}
    assert (tmp_path / "fixes.csv").read_text("utf-8").splitlines() == [
        '"machine","cve","state","detail"',
        f'"{one.id}","CVE-2016-5195","fixed by a live patch","kgraft_patch_2_2_1"',
        f'"{two.id}","CVE-2016-5195","open","\'=x 2-2.1"',
    ]
    bad = run("kgraft.cves", "CVE-2016")
    assert (bad.returncode, bad.data["report"]) == (5, ["cves: no CVE number is 'CVE-2016'"])


@pytest.mark.smoke
def test_evidence_is_a_chain_of_files_that_ssh_keygen_checks(fleet, run, evidence):
    one, two, *_ = fleet
    one.be()
    two.be("1-1.1")
    words = ("kgraft.evidence", f"{one.id},{two.id}", "list", "cves=CVE-2016-5195", "expected=nobody", *LIMITS)
    first, second = run(*words), run(*words)
    assert (first.returncode, first.data["signed"]) == (2, True)
    kept = json.loads(pathlib.Path(second.data["file"]).read_text("utf-8"))
    assert kept["previous"] == {"file": pathlib.Path(first.data["file"]).name, "sha256": first.data["sha256"]}
    assert kept["asked"]["by"] == getpass.getuser()
    assert kept["no_answer"] == {"nobody": "this master has no key of it"}
    machine, behind = kept["machines"][one.id], kept["machines"][two.id]
    patch = machine["patches"]["kgraft_patch_2_2_1"]
    assert (machine["class"], behind["class"]) == ("settled", "unpatched")
    assert (patch["state"], patch["days"]) == ("applied", 1.0)
    assert machine["cves"]["CVE-2016-5195"]["class"] == "fixed by a live patch"
    assert behind["cves"]["CVE-2016-5195"]["class"] == "open"
    assert machine["unread"] == ["kgraft_security.fixes: is not loaded there"]

    chain = run("kgraft.evidence_chain")
    assert (chain.returncode, chain.data["files"], chain.data["broken"]) == (0, 2, None)
    (evidence / "kgraft-evidence-000001.json").write_text("{}")
    chain = run("kgraft.evidence_chain")
    assert (chain.returncode, chain.data["broken"]["file"]) == (2, "kgraft-evidence-000001.json")


@pytest.mark.smoke
def test_a_verdict_by_sls_is_that_of_each_machines_own_dry_run(fleet, run, master):
    one, two, *_ = fleet
    one.be()
    two.be("1-1.1")
    sls = "installed:\n  file.managed:\n    - name: {{ opts['kgraft.root'] }}/installed\n    - contents: 2-2.1\n"
    sls += "    - contents_newline: False\n"
    with master.state_tree.base.temp_file("patched.sls", sls):
        done = run("kgraft.verify", f"{one.id},{two.id}", "list", "sls=patched")
    assert (done.returncode, classes(done)) == (2, {one.id: "settled", two.id: "unpatched"})
    assert done.data["machines"][two.id]["why"].startswith("installed: The file ")
    assert (two.root / "installed").read_text() == "1-1.1", "a dry run"
    missing = run("kgraft.verify", one.id, "sls=none.such")
    assert (missing.returncode, classes(missing)) == (2, {one.id: "failed"})


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("kgraft.report", "none*"), "Nobody could be asked"),
        (("kgraft.report", "*", "no_such_kind"), "Nobody could be asked"),
        (("kgraft.report", "stuck_after=x"), "stuck_after='x'"),
        (("kgraft.report", "no_such=1"), "unexpected keyword argument 'no_such'"),
        (("kgraft.report", *"abcdefghijk"), "too many positional arguments"),
        (("kgraft.verify", "version=2.10"), "quote it"),
    ],
)
def test_what_cannot_be_asked_ends_with_5_and_is_still_json(fleet, run, words, told):
    done = run(*words)
    assert (done.returncode, done.data["retcode"]) == (5, 5)
    assert told in done.data["report"][0]


def test_through_the_api_it_is_data_and_no_file_is_read(fleet, master):
    """What an orchestration and salt-api get; here eauth lets anybody in."""
    client = salt.runner.RunnerClient(salt.config.client_config(str(master.config["conf_file"])))
    low = {"username": "ops", "password": "x", "eauth": "auto"}
    told = client.cmd_sync({**low, "fun": "kgraft.report", "kwarg": {"target": fleet[0].id}}, timeout=60)
    assert (told["asked"], list(told["machines"])) == (1, [fleet[0].id])
    refused = client.cmd_sync({**low, "fun": "kgraft.report", "expected": "@/etc/passwd"}, timeout=60)
    assert refused == {"retcode": 5, "report": ["expected='@/etc/passwd': a file is read at the prompt only"]}
    assert client.cmd_sync({**low, "fun": "kgraft.report", "bad": 1}, timeout=60)["retcode"] == 5


# It takes longer than the time-out of a wave on the first machine; a dry run of it finds nothing to do once it is done.
PATCHED = """
installed:
  file.managed:
    - name: {{ opts["kgraft.root"] }}/installed
    - contents: 2-2.1
    - contents_newline: False
it takes a while:
  module.run:
    - test.sleep: [{length: {{ {0: 8, 2: 25}.get(grains["number"], 0) }}}]
    - onchanges: [file: installed]
no transition runs:
  kgraft.settled:
    - timeout: 1
"""


@pytest.fixture
def carry_out(master, prompt):
    """Return ``carry_out(name)``: the orchestration of a plan, its exit code and the results of its steps."""

    def call(name):
        pillar = json.dumps({"rollout": name})
        done = prompt("--out=json", "state.orchestrate", "examples.orchestrate.rollout", f"pillar={pillar}")
        (steps,) = json.loads(done.stdout)["data"].values()
        done.steps = {step["__id__"]: step for step in steps.values()}
        assert "the plan can be carried out" not in done.steps, done.stdout
        done.results = {name: step["result"] for name, step in done.steps.items()}
        return done

    return call


def killed_in_mid_wave(machine):
    """Kill a machine as soon as its state run has begun."""
    deadline = time.monotonic() + 90
    while (machine.root / "installed").read_text() != "2-2.1":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    machine.minion.terminate()


@pytest.mark.smoke
def test_a_rollout_loses_no_machine_and_its_second_run_finishes(fleet, master, run, carry_out, alerts):
    """One is slower than its wave's time-out, one sticks, one is killed, one is down before the first wave."""
    slow, sticks, killed, last = fleet
    for machine in fleet:
        machine.up()
        machine.be("1-1.1")
    off = pathlib.Path(master.config["pki_dir"]) / "minions" / "off"
    sticks.kernel.task(731, "nfsd", kthread=True, blocking=True)
    sticks.kernel.start("kgraft-patch-2-2_1")
    options = ["sls=patched", "soak=1", "wave_timeout=1", "max_wave=2", "waves=['100%']", "max_stuck=2"]
    options += LIMITS
    with master.state_tree.base.temp_file("patched.sls", PATCHED), concurrent.futures.ThreadPoolExecutor() as threads:
        plan = run("kgraft.plan", "*", "name=2026-12", f"canaries={slow.id}", *options)
        assert (plan.returncode, plan.data["plan"]["left_out"]) == (0, [])
        assert plan.data["plan"]["waves"] == [[slow.id], [sticks.id, killed.id], [last.id]]

        alerts.append("a database is down")
        held_back = carry_out("2026-12")
        assert (held_back.returncode, held_back.results["wave 1 may begin"]) == (1, False)
        counts = held_back.steps["all machines of the plan are patched"]["changes"]["return"]["counts"]
        assert counts == {"untouched": 4}

        alerts.clear()
        shutil.copy(off.parent / last.id, off)
        dead = threads.submit(killed_in_mid_wave, killed)
        first = carry_out("2026-12")
        dead.result()
        assert first.returncode == 1
        assert [first.results[f"wave {number} may begin"] for number in (1, 2, 3)] == [True, True, False]
        # the machine that is killed does not end the state, nor its time-out the slow one
        assert [first.results[f"wave {number} is patched"] for number in (1, 2)] == [True, True]
        assert [first.results[f"wave {number} is as wished"] for number in (1, 2)] == [True, False]
        told = run("kgraft.rollout", "2026-12")
        names = {slow.id: "done", sticks.id: "stuck", killed.id: "missing", last.id: "untouched", "off": "left out"}
        assert (told.returncode, classes(told)) == (4, names)
        assert told.data["counts"] == dict.fromkeys(names.values(), 1)
        assert told.data["report"][-1].startswith("To go on: salt-run state.orchestrate examples.orchestrate.rollout ")
        assert first.steps["all machines of the plan are patched"]["changes"]["return"]["counts"] == told.data["counts"]
        assert (last.root / "installed").read_text() == "1-1.1"

        sticks.kernel.exit(731)
        sticks.kernel.finish()
        killed.minion.start()
        off.unlink()
        second = carry_out("2026-12")
    assert (second.returncode, set(second.results.values())) == (0, {True})
    assert "wave 1 is patched" not in second.steps, "who is done is only looked at"
    done = second.steps["all machines of the plan are patched"]["changes"]["return"]
    assert (done["retcode"], done["counts"], done["machines"]) == (0, {"done": 4}, {})
