"""The examples of automation at work: a real master with their reactor, real minions, a real orchestration."""

import concurrent.futures
import http.server
import json
import pathlib
import queue
import threading
import time

import pytest
import salt.runner
import yaml
from saltfactories.utils import random_string

from lab.files import Kernel
from tests.integration.conftest import MASTER, MINION, job
from tests.integration.test_beacon import Ear, after_looks, until

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples"
TRIES = 2


def example(path):
    return yaml.safe_load((EXAMPLES / path).read_text())


@pytest.fixture(scope="module")
def humans():
    """A webhook, the messages that it got, and their ``times``."""
    got = queue.Queue()
    got.times = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.times.append(time.time())
            got.put((self.path, self.headers["Content-Type"], body))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        got.url = f"http://127.0.0.1:{server.server_port}/hook"
        yield got
        server.shutdown()


@pytest.fixture(scope="module")
def master(salt_factories, file_root, humans, tmp_path_factory):
    # beside the examples, the classic of loops: every event of the beacon has the beacon loaded anew
    loop = tmp_path_factory.mktemp("loop") / "reload.sls"
    loop.write_text("reload:\n  local.saltutil.refresh_beacons:\n    - tgt: {{ data['id'] }}\n")
    config = example("reactor/master.conf")
    config["kgraft_webhook"] = humans.url
    config["reactor"].append({"salt/beacon/*/kgraft/*": [str(loop)]})
    factory = salt_factories.salt_master_daemon(
        random_string("reactor-master-"),
        overrides={**MASTER, "file_roots": {"base": [str(file_root)]}, **config},
    )
    with factory.started():
        yield factory


@pytest.fixture(scope="module")
def fleet(master, file_root, tmp_path_factory):
    """Three minions with a kernel each: ``[(minion, kernel)]``. The first has the beacon and the policy."""
    machines = []
    for number in range(3):
        kernel = Kernel(tmp_path_factory.mktemp("machine") / "root")
        overrides = {
            **MINION,
            "kgraft.root": str(kernel.root),
            "module_dirs": [str(file_root)],
            "grains": {"role": "canary" if number == 0 else "web"},
        }
        if number == 0:
            overrides.update(example("beacon/minion.conf"))
            overrides["beacons"] = {"kgraft": [{"stuck_after": 2}, {"remind": 4}]}
        machines.append((master.salt_minion_daemon(random_string(f"fleet{number}-"), overrides=overrides), kernel))
    policy = example("reactor/pillar.sls")
    assert policy["kgraft"]["poke"]["tries"] == TRIES
    pillar = master.pillar_tree.base
    with pillar.temp_file("top.sls", "base: {'*': [policy]}"), pillar.temp_file("policy.sls", yaml.safe_dump(policy)):
        with concurrent.futures.ThreadPoolExecutor() as threads:
            list(threads.map(lambda machine: machine[0].start(), machines))
        yield machines
        with concurrent.futures.ThreadPoolExecutor() as threads:
            list(threads.map(lambda machine: machine[0].terminate(), machines))


@pytest.fixture
def ear(event_listener, master, fleet):
    # after a restart, the first look tells again what may have been lost
    after_looks(fleet[0][1], 2)
    return Ear(event_listener, master, fleet[0][0])


def mine(master, minion):
    runner = salt.runner.RunnerClient(master.config.copy())
    return runner.cmd("mine.get", [minion.id, "kgraft.status"], print_event=False).get(minion.id, {})


def test_a_stuck_patch_is_poked_as_often_as_the_policy_allows_and_then_a_human_hears(
    fleet, master, ear, humans, event_listener
):
    """And none of it runs away, though every event has the beacon reloaded and each poke leaves the machine stuck."""
    minion, kernel = fleet[0]
    kernel.task(731, 'nf"sd: {{ x', kthread=True, blocking=True)
    kernel.start("kgraft-patch-2-2_1")
    last = ear.wait_for("stuck", times=TRIES + 1)
    path, kind, body = humans.get(timeout=120)

    def runs():
        returns = event_listener.get_events([(master.id, f"salt/job/*/ret/{minion.id}")], after_time=ear.since)
        return [event.data for event in returns if event.data["fun"] == "state.apply"]

    def pokes():
        return [
            run for run in runs() if any("kgraft.poke" in str(one.get("changes")) for one in run["return"].values())
        ]

    assert last["_stamp"].timestamp() < humans.times[0]
    assert (path, kind) == ("/hook", "application/json")
    assert json.loads(body)["text"] == (
        f'live patch stuck on {minion.id}: in_progress kgraft_patch_2_2_1 apply 1 blocking: nf"sd: {{{{ x(731) kernel'
    )
    ear.wait_for("stuck", times=TRIES + 2)
    until(lambda: len(pokes()) >= TRIES, "not every try had its poke")
    kernel.exit(731)
    kernel.finish()
    ear.wait_for("finished")
    after_looks(kernel, 5)

    heard = [(tag, data.get("times")) for tag, data in ear.heard()]
    times = [number for tag, number in heard if tag == "stuck"]
    assert times == list(range(1, len(times) + 1))
    assert [tag for tag, _ in heard] == ["started"] + ["stuck"] * len(times) + ["finished"]
    until(lambda: len(runs()) >= len(times), "not every event had its run")
    assert len(runs()) == len(times)
    assert len(pokes()) == TRIES
    [skipped] = [task for one in pokes()[0]["return"].values() for task in one["changes"]["kgraft.poke"]["skipped"]]
    assert skipped["pid"] == 731


def test_the_masters_picture_follows_the_events(fleet, master, ear):
    minion, kernel = fleet[0]
    kernel.start("kgraft-patch-3-2_1")
    ear.wait_for("started")
    until(lambda: mine(master, minion).get("state") == "in_progress", "the mine does not know that a patch started")
    kernel.finish()
    ear.wait_for("finished")

    until(lambda: mine(master, minion).get("state") == "ready", "the mine does not know that the patch has settled")
    assert mine(master, minion)["active"] == ["kgraft_patch_3_2_1"]


def test_the_masters_picture_is_true_of_a_machine_that_came_up_with_another_kernel(fleet, master):
    minion, kernel = fleet[0]
    minion.terminate()
    kernel.write("proc/sys/kernel/osrelease", "4.4.200-1-default\n")
    kernel.write("proc/sys/kernel/random/boot_id", "11111111-9dad-11d1-80b4-00c04fd430c8\n")
    kernel.remove("kgraft-patch-3-2_1")
    minion.start()

    until(lambda: mine(master, minion).get("kernelrelease") == "4.4.200-1-default", "the mine is of the former kernel")
    assert mine(master, minion)["active"] == []


def test_an_error_that_has_the_beacon_reloaded_is_told_once(fleet, master, ear, event_listener):
    """The reactor of this master reloads it on each event; a beacon that forgot would tell it again, for ever."""
    minion, kernel = fleet[0]

    (kernel.root / "sys").rename(kernel.root / "gone")
    error = ear.wait_for("error")

    def reloads():
        returns = event_listener.get_events([(master.id, f"salt/job/*/ret/{minion.id}")], after_time=error["_stamp"])
        jobs = [event.data for event in returns if event.data["fun"] == "saltutil.refresh_beacons"]
        # not those that an event before had begun: the id of a job is when it was published
        return [job for job in jobs if job["jid"] > f"{error['_stamp'].astimezone():%Y%m%d%H%M%S%f}"]

    until(reloads, "the reactor did not reload the beacon")
    job(master, minion, "test.sleep", 3)  # three looks at least
    (kernel.root / "gone").rename(kernel.root / "sys")
    after_looks(kernel)

    assert [tag for tag, _ in ear.heard()] == ["error"]
    assert len(reloads()) == 1


def test_a_forged_event_does_no_more_than_have_a_look_taken_and_a_true_one_right_after_it_acts(
    fleet, master, ear, humans, event_listener
):
    minion, kernel = fleet[0]
    call = fleet[1][0].salt_call_cli(timeout=60)
    stuck, human = f"salt/beacon/{minion.id}/kgraft/stuck", f"kgraft/{minion.id}/needs-a-human"
    event = {"id": minion.id, "times": 1, "transition": "forged"}
    bent = {**event, "transition": 'x\nowned:\n  local.cmd.run:\n    - tgt: "*"\n    - arg: [id]\n'}

    def jobs(suffix):
        found = event_listener.get_events([(master.id, f"salt/job/*/{suffix}")], after_time=ear.since)
        return [one.data for one in sorted(found, key=lambda one: one.stamp)]

    def applied():
        return [job["return"] for job in jobs(f"ret/{minion.id}") if job["fun"] == "state.apply"]

    # under the other's tag, as any minion can; the master sets the id to the sender's
    call.run("event.fire_master", json.dumps(event), stuck)
    call.run("event.send", human, json.dumps({"id": minion.id, "summary": "forged"}))
    # as a beacon's events are sent, where the master leaves the id as it is
    events = [{"tag": stuck, "data": data} for data in (bent, event)]
    call.run("event.fire_master", "{}", stuck, preload=json.dumps({"events": events}))
    until(applied, "the last of the forged events did not come through")
    kernel.task(734, "nfsd", kthread=True, blocking=True)
    kernel.start("kgraft-patch-4-2_1")
    ear.wait_for("stuck", times=1, direction="apply", deadline=120)
    looked, acted, *_ = until(lambda: len(applied()) >= 2 and applied(), "the true event had no run")
    kernel.exit(734)
    kernel.finish()
    ear.wait_for("finished")
    after_looks(kernel)

    assert [key.split("_|-")[1] for key in looked] == ["nothing is stuck any more"]
    assert [key.split("_|-")[1] for key in acted] == ["what may be poked is poked"]
    # the loop of this master is no example: it believes every event
    started = [(job["fun"], job["minions"]) for job in jobs("new") if job["fun"] != "saltutil.refresh_beacons"]
    assert {fun for fun, _ in started} == {"state.apply", "mine.update"}
    assert [minions for _, minions in started if minions != [minion.id]] == []
    told = [humans.get_nowait() for _ in range(humans.qsize())]  # by the tests before this one
    assert [body for _, _, body in told if b"forged" in body] == []


@pytest.fixture
def rollout(master, fleet):
    """Return ``rollout(**options)``: the orchestration over the fleet, and what it returned."""

    def run(**options):
        pillar = {"rollout": {"sls": "patched", "soak": 1, "batch": "1", **options}}
        with master.state_tree.base.temp_file("patched.sls", "settled:\n  kgraft.settled:\n    - timeout: 2\n"):
            result = master.salt_run_cli(timeout=180).run(
                "state.orchestrate", "examples.orchestrate.rollout", pillar=json.dumps(pillar)
            )
        # a batch writes its progress to the same stream
        answer, _ = json.JSONDecoder().raw_decode(result.stdout[result.stdout.index("{\n") :])
        states = {key.split("_|-")[1]: one for key, one in answer["data"][master.id].items()}
        return result, states

    return run


def test_a_rollout_reaches_every_machine(rollout, fleet):
    result, states = rollout()

    assert result.returncode == 0, result
    assert [one["result"] for one in states.values()] == [True] * 4


def test_a_rollout_stops_at_the_first_machine_that_sticks_and_says_which_and_why(rollout, fleet):
    for _, kernel in fleet[1:]:
        kernel.task(732, "iscsid", blocking=True, letter="D")
        kernel.start("kgraft-patch-2-2_1")
    result, states = rollout()
    for _, kernel in fleet[1:]:
        kernel.exit(732)
        kernel.finish()

    assert result.returncode != 0
    rest = states["the rest is patched"]
    assert rest["result"] is False
    [failed] = [minion.id for minion, _ in fleet if minion.id in rest["comment"]]
    assert failed != fleet[0][0].id
    assert "iscsid" in str(rest["changes"]["ret"][failed])
    assert list(rest["changes"]["ret"]) == [failed], "a machine after the one that stuck was touched"


def test_a_rollout_ends_with_a_canary_that_sticks(rollout, fleet, master):
    minion, kernel = fleet[0]
    # the reactor's run on the stuck canary, if it is just under way, would not let the roll-out's begin
    assert job(master, minion, "beacons.disable")["result"] is True
    kernel.task(733, "khungd", kthread=True, blocking=True)
    kernel.start("kgraft-patch-5-2_1")
    result, states = rollout()
    kernel.exit(733)
    kernel.finish()

    assert result.returncode != 0
    assert minion.id in states["the canaries are patched"]["comment"]
    assert "khungd" in str(states["the canaries are patched"]["changes"])
    assert states["the rest is patched"]["result"] is False
    assert "One or more requisite failed" in states["the rest is patched"]["comment"]


def test_a_canary_that_was_restarted_in_the_soak_is_not_quiet(master, fleet):
    minion, _ = fleet[0]
    result = master.salt_cli(timeout=180).run(
        "state.apply", "examples.orchestrate.quiet", pillar='{"soak": 1000000000}', minion_tgt=minion.id
    )

    [no_restart] = [one for key, one in result.data.items() if "no restart" in key]
    assert no_restart["result"] is False
    assert no_restart["name"] == f"{minion.id} was restarted less than 1000000000 s ago"
