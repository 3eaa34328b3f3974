"""The beacon's events as a master hears them, from a minion that is refreshed, restarted and killed."""

import datetime
import itertools
import random
import time
import uuid

import psutil
import pytest
from saltfactories.utils import random_string

from lab.files import Kernel
from tests.integration.conftest import MINION, job, sync
from tests.support.opens import wait_for_opens

EVERY_EVENT = {"transition", "abi", "direction", "patch", "active", "kernelrelease", "boot_id", "id", "_stamp"}


class Ear:
    """What the master's bus carried from one minion since ``listen()``."""

    def __init__(self, listener, master, minion):
        self.listener = listener
        self.master = master
        self.prefix = f"salt/beacon/{minion.id}/"
        self.listen()

    def listen(self):
        self.since = datetime.datetime.now(tz=datetime.timezone.utc)

    def heard(self, instance="kgraft"):
        """``[(tag, payload)]``, oldest first."""
        events = [
            # the listener has taken the stamp out
            (event.stamp, event.tag, dict(event.data, _stamp=event.stamp))
            for event in self.listener.get_events([(self.master.id, f"{self.prefix}*")], after_time=self.since)
        ]
        start = f"{self.prefix}{instance}/"
        return [
            (tag[len(start) :], data)
            for _, tag, data in sorted(events, key=lambda event: event[0])
            if tag.startswith(start)
        ]

    def wait_for(self, tag, instance="kgraft", deadline=120, **payload):
        """Return the payload of the first event with this tag that says ``payload``."""
        end = time.monotonic() + deadline
        while time.monotonic() < end:
            for one, data in self.heard(instance):
                if one == tag and payload.items() <= data.items():
                    return data
            time.sleep(0.1)
        raise AssertionError(f"no {instance}/{tag} {payload} in {deadline} s, but {self.heard(instance)}")


def until(question, what, deadline=120):
    """Ask until the answer is something, and return it."""
    end = time.monotonic() + deadline
    while not (answer := question()):
        assert time.monotonic() < end, what
        time.sleep(0.1)
    return answer


def after_looks(kernel, count=3):
    """Return when the beacon has looked ``count`` times more."""
    wait_for_opens(kernel.root / "proc/sys/kernel/random/boot_id", count)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("beacon") / "root"


@pytest.fixture(scope="module")
def kernel(root):
    """One kernel for all tests: each leaves it ready, or begins a new boot."""
    return Kernel(root)


@pytest.fixture
def patch():
    """A name that no test before has used."""
    return f"kgraft-patch-{random.randrange(1, 10**9)}-2_1"


@pytest.fixture(scope="module")
def minion(master, root, kernel):
    factory = master.salt_minion_daemon(
        random_string("beacon-"),
        overrides={
            **MINION,
            "kgraft.root": str(root),
            "beacons": {"kgraft": [{"stuck_after": 2}, {"remind": 2}]},
        },
    )
    with factory.started():
        sync(master, factory)
        yield factory


@pytest.fixture(scope="module")
def call(master, minion):
    def run(function, *arguments, **named):
        answer = job(master, minion, function, *arguments, **named)
        assert answer is True or isinstance(answer, (dict, list)), answer
        return answer

    return run


@pytest.fixture
def ear(event_listener, master, minion, kernel):
    # the first looks after a start, or what the test before left to be told
    after_looks(kernel, 2)
    ear = Ear(event_listener, master, minion)
    yield ear
    if (kernel.root / "gone").exists():
        (kernel.root / "gone").rename(kernel.root / "sys")
    kernel.finish()


def kill(minion):
    """kill -9, the daemon and all its processes, and wait for their end."""
    leader = psutil.Process(minion.pid)
    family = [leader, *leader.children(recursive=True)]
    for process in family:
        process.kill()
    psutil.wait_procs(family, timeout=30)
    minion.terminate()


@pytest.mark.smoke
def test_the_events_arrive_as_the_manual_shows_them(kernel, ear, patch):
    kernel.task(731, "nfsd", kthread=True, blocking=True, unit="nfs.service")
    kernel.start(patch)
    started = ear.wait_for("started")
    stuck = ear.wait_for("stuck", times=2)
    kernel.exit(731)
    kernel.finish()
    finished = ear.wait_for("finished")
    (kernel.root / "sys").rename(kernel.root / "gone")
    error = ear.wait_for("error")

    module = patch.replace("-", "_")
    assert set(started) == EVERY_EVENT
    assert (started["abi"], started["direction"], started["patch"], started["active"]) == (
        "kgraft",
        "apply",
        module,
        [module],
    )
    assert set(stuck) == EVERY_EVENT | {"seconds", "times", "tasks", "count", "complete", "note"}
    assert (stuck["count"], stuck["complete"]) == (1, True)
    [task] = stuck["tasks"]
    assert set(task) == {"pid", "tids", "name", "user", "unit", "letter", "kind", "start_time", "why", "help"}
    assert (task["pid"], task["name"], task["kind"], task["unit"]) == (731, "nfsd", "kernel", "nfs.service")
    assert set(finished) == EVERY_EVENT | {"seconds", "observed"}
    assert finished["observed"] is True
    assert finished["seconds"] >= 4
    # how many fit depends on how fast this machine is, but none comes early, twice or after the end
    alarms = [data for tag, data in ear.heard() if tag == "stuck"]
    assert [alarm["times"] for alarm in alarms] == list(range(1, len(alarms) + 1))
    assert all(2 * alarm["times"] <= alarm["seconds"] <= finished["seconds"] for alarm in alarms)
    assert set(error) == EVERY_EVENT | {"error"}
    assert str(kernel.root) in error["error"]
    assert started["transition"] == stuck["transition"] == finished["transition"]
    assert [tag for tag, _ in ear.heard()] == ["started", *["stuck"] * len(alarms), "finished", "error"]


def test_refreshes_and_syncs_tell_nothing_twice(kernel, ear, call, patch):
    assert call("beacons.modify", "kgraft", [{"stuck_after": 600}])["result"] is True
    kernel.start(patch)
    ear.wait_for("started")
    for refresh in (
        "saltutil.refresh_pillar",
        "saltutil.refresh_beacons",
        "saltutil.sync_beacons",
        "saltutil.refresh_modules",
    ):
        call(refresh)
        after_looks(kernel)
    # what a sync of changed files ends in
    call("saltutil.clear_cache")
    call("saltutil.sync_all", refresh=True)
    after_looks(kernel)

    assert [tag for tag, _ in ear.heard()] == ["started"]
    kernel.finish()
    ear.wait_for("finished")


def test_it_can_be_added_by_a_call_and_waits_for_state_runs_if_told(kernel, ear, call, master, minion, patch, tmp_path):
    cli = minion.salt_call_cli(timeout=180)
    refused = cli.run("beacons.add", "patient", [{"beacon_module": "kgraft"}, {"stuck_afer": 1}])
    assert refused.returncode != 0
    assert "The kgraft beacon has no option 'stuck_afer': write stuck_after." in refused.data["comment"]
    added = call("beacons.add", "patient", [{"beacon_module": "kgraft"}, {"disable_during_state_run": True}])
    assert added["result"] is True, added
    after_looks(kernel)
    command = f"touch {tmp_path}/begun; until [ -e {tmp_path}/end ]; do sleep 0.1; done"
    master.salt_cli(timeout=180).run("--async", "state.single", "cmd.run", command, minion_tgt=minion.id)
    until((tmp_path / "begun").exists, "the state run has not begun")

    kernel.start(patch)
    at_once = ear.wait_for("started")
    after_looks(kernel)
    assert ear.heard("patient") == []
    (tmp_path / "end").touch()
    patient = ear.wait_for("started", instance="patient")
    kernel.finish()
    ear.wait_for("finished", instance="patient")

    assert patient["_stamp"] > at_once["_stamp"]
    assert [tag for tag, _ in ear.heard("patient")] == ["started", "finished"]
    assert call("beacons.delete", "patient")["result"] is True


def test_it_can_be_configured_in_pillar_in_several_instances(kernel, ear, call, master, minion, patch):
    pillar = master.pillar_tree.base
    with (
        pillar.temp_file("top.sls", f"base: {{'{minion.id}': [watch]}}"),
        pillar.temp_file(
            "watch.sls",
            "beacons: {early: [{beacon_module: kgraft}, {stuck_after: 1}], late: [{beacon_module: kgraft}]}",
        ),
    ):
        call("saltutil.refresh_pillar", wait=True)
        after_looks(kernel, 6)
        kernel.start(patch)
        for instance in ("early", "late"):
            ear.wait_for("started", instance=instance)
        ear.wait_for("stuck", instance="early")
        kernel.finish()
        for instance in ("early", "late"):
            ear.wait_for("finished", instance=instance)
        assert [tag for tag, _ in ear.heard("late")] == ["started", "finished"]
    call("saltutil.refresh_pillar", wait=True)


def test_a_new_boot_is_a_new_beginning(kernel, ear, patch):
    boot = str(uuid.uuid4())
    # a look may fall in between; what it tells is of the boot before
    kernel.patch(patch)
    kernel.write("proc/sys/kernel/random/boot_id", f"{boot}\n")
    after_looks(kernel)
    assert [data for _, data in ear.heard() if data["boot_id"] == boot] == []
    kernel.revert(patch)

    started = ear.wait_for("started", direction="revert")

    assert started["boot_id"] == boot
    assert started["transition"].startswith(boot)
    kernel.finish()
    ear.wait_for("finished", direction="revert")


def test_fifteen_transitions_and_two_kills_of_the_minion(kernel, ear, minion):
    """Each is heard from its start to its end, under one id; only a kill makes an event come twice."""
    chance = random.Random(4711)
    names = [f"kgraft-patch-{number}-15_1" for number in range(15)]
    modules = [name.replace("-", "_") for name in names]
    kills = []

    def kill_and_start():
        began = datetime.datetime.now(tz=datetime.timezone.utc)
        kill(minion)
        minion.start()
        kills.append((began, datetime.datetime.now(tz=datetime.timezone.utc)))

    former = list(kernel.patches)
    for number, (name, module) in enumerate(zip(names, modules, strict=True)):
        kernel.start(name)
        if number == 4:
            # about the time of the look that sees it: before, in, or after
            end = time.monotonic() + chance.uniform(0, 1.5)
            while time.monotonic() < end:
                time.sleep(0.01)
            kill_and_start()
        ear.wait_for("started", patch=module)
        kernel.finish()
        for replaced in former:
            kernel.remove(replaced)
        former = [name]
        if number == 9:
            kill_and_start()
        ear.wait_for("finished", patch=module)

    heard = {}
    for tag, event in ear.heard():
        # after a kill, the last seconds of the test before may be told again
        if event["patch"] in modules:
            heard.setdefault((tag, event["transition"], event.get("times")), []).append(event)
    for edge in ("started", "finished"):
        patches = [events[0]["patch"] for (tag, _, _), events in heard.items() if tag == edge]
        assert patches == modules
    # a minion that needs two seconds to come back finds its patch stuck, and is right
    edges = {(tag, transition) for tag, transition, _ in heard if tag != "stuck"}
    assert len(edges) == 30
    assert {transition for _, transition, _ in heard} == {transition for _, transition in edges}
    for events in heard.values():
        for first, again in itertools.pairwise(events):
            # the stamp is the master's, which may hear of the first when its sender is dead already
            assert [kill for kill, start in kills if first["_stamp"] < start and kill < again["_stamp"]], (
                f"twice without a kill: {again}"
            )
