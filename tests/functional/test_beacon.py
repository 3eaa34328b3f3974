"""The beacon in Salt's own loop: its traps, refreshes, instances, cost."""

import copy
import os
import random
import signal
import sys
import threading

import pytest
import salt.beacons
import salt.utils.minion

from lab import Lab, samples, wait_until
from tests.support.beacon_process import BeaconProcess
from tests.support.soak import rounds

NEIGHBOURS = """
def validate(config):
    return True, "fine"


def beacon(config):
    for option in config:
        if "raise" in option:
            raise RuntimeError(option["raise"])
    return [{"tag": "here"}]
"""


class Loop:
    """A minion's main loop, as far as beacons go."""

    def __init__(self, loaders):
        self.loaders = loaders
        self.config = {"kgraft": []}
        self.refresh()

    def refresh(self):
        """What refresh_beacons, refresh_pillar, refresh_modules and sync_beacons end in."""
        former = getattr(self, "beacons", None)
        if hasattr(former, "close_beacons"):  # not in 3006
            former.close_beacons()
        self.beacons = salt.beacons.Beacon(
            self.loaders.opts, self.loaders.modules, getattr(former, "interval_map", None)
        )

    def turn(self):
        """Return the events of one turn as ``{tag without salt/beacon/<id>/: payload}``."""
        prefix = "salt/beacon/{}/".format(self.loaders.opts["id"])
        events = self.beacons.process(copy.deepcopy(self.config), self.loaders.grains)
        assert all(event["tag"].startswith(prefix) for event in events)
        return {event["tag"][len(prefix) :]: event["data"] for event in events}

    def next_events(self):
        """Turn until there are events: two looks may be closer than the smallest ``stuck_after``."""
        heard = {}
        wait_until(lambda: heard.update(self.turn()) or heard, "an event")
        return heard


@pytest.fixture(scope="module")
def _beacon_loaders(make_loaders, file_root, tmp_path_factory):
    neighbours = tmp_path_factory.mktemp("neighbours")
    (neighbours / "_beacons").mkdir()
    (neighbours / "_beacons" / "neighbour.py").write_text(NEIGHBOURS)
    return make_loaders(module_dirs=[str(file_root), str(neighbours)], loop_interval=1)


@pytest.fixture
def loop(_beacon_loaders, kernel, tmp_path):
    loaders = _beacon_loaders
    # a cache of its own is what makes a minion another minion to the beacon
    loaders.opts.update({"kgraft.root": str(kernel.root), "cachedir": str(tmp_path)})
    yield Loop(loaders)
    loaders.reset_state()


def test_the_loop_sends_what_the_beacon_saw(kernel, loop):
    assert loop.turn() == {}
    kernel.start("kgraft-patch-2-2_1")

    events = loop.turn()

    assert list(events) == ["kgraft/started"]
    assert events["kgraft/started"]["patch"] == "kgraft_patch_2_2_1"
    assert events["kgraft/started"]["id"] == loop.loaders.opts["id"]


def test_refreshes_tell_nothing_twice(kernel, loop):
    """saltstack/salt#62711: again after each refresh of the pillar."""
    kernel.start("kgraft-patch-2-2_1")
    loop.turn()
    for _ in range(10):
        loop.refresh()
        assert loop.turn() == {}
    kernel.finish()
    loop.refresh()

    assert list(loop.turn()) == ["kgraft/finished"]


def test_a_level_that_stays_sends_no_storm(kernel, loop):
    """saltstack/salt#40145: a beacon that repeats itself at every turn."""
    loop.config = {"kgraft": [{"stuck_after": 0.001}]}
    kernel.start("kgraft-patch-2-2_1")

    heard = [tag for _ in range(300) for tag in loop.turn()]

    assert heard == ["kgraft/started", "kgraft/stuck"]


def test_a_broken_kernel_sends_no_storm_and_no_empty_event(kernel, loop):
    (kernel.root / "sys").rename(kernel.root / "gone")

    heard = [(tag, data["error"]) for _ in range(100) for tag, data in loop.turn().items()]

    [(tag, error)] = heard
    assert tag == "kgraft/error"
    assert loop.loaders.opts["kgraft.root"] in error


def test_state_runs_delay_events_and_neither_lose_nor_repeat_them(kernel, loop, monkeypatch):
    """saltstack/salt#44116: a beacon that repeats itself with disable_during_state_run."""
    loop.config = {"kgraft": [{"disable_during_state_run": True}]}
    loop.turn()
    kernel.start("kgraft-patch-2-2_1")
    jobs = [{"fun": "state.apply"}]
    monkeypatch.setattr(salt.utils.minion, "running", lambda opts: jobs)
    assert [loop.turn() for _ in range(5)] == [{}] * 5
    jobs.clear()

    assert list(loop.turn()) == ["kgraft/started"]
    jobs.append({"fun": "state.highstate"})
    loop.turn()
    jobs.clear()
    assert loop.turn() == {}


def test_a_neighbour_that_raises_takes_no_event_of_ours_along(kernel, loop):
    loop.config = {"neighbour": [{"raise": "boom"}], "kgraft": []}
    loop.turn()
    kernel.start("kgraft-patch-2-2_1")

    assert "kgraft/started" in loop.turn()


@pytest.mark.parametrize(
    "config", [{"stuck_after": 60}, {}, [{"stuck_after": "60"}], [{"interval": "5"}], [{"unknown": True}]]
)
def test_a_configuration_that_is_refused_takes_no_event_of_others_along(kernel, loop, config):
    loop.config = {"kgraft": config, "neighbour": []}

    assert list(loop.turn()) == ["neighbour/here"]


def test_several_instances_have_names_options_and_memories_of_their_own(kernel, loop):
    loop.config = {
        "early": [{"beacon_module": "kgraft"}, {"stuck_after": 0.001}],
        "late": [{"beacon_module": "kgraft"}, {"stuck_after": 1000}],
    }
    loop.turn()
    kernel.start("kgraft-patch-2-2_1")

    assert set(loop.turn()) == {"early/started", "late/started"}
    assert set(loop.next_events()) == {"early/stuck"}


def test_interval_counts_turns(kernel, loop):
    loop.config = {"kgraft": [{"interval": 3}]}
    kernel.start("kgraft-patch-2-2_1")

    assert [list(loop.turn()) for _ in range(5)] == [[], [], [], ["kgraft/started"], []]


def test_options_of_salt_reach_the_loop_beside_ours(kernel, loop):
    loop.config = {"kgraft": [{"enabled": False}, {"stuck_after": 60}]}
    kernel.start("kgraft-patch-2-2_1")
    assert loop.turn() == {}
    loop.config = {"kgraft": [{"enabled": True}, {"stuck_after": 0.001}, {"remind": 0}]}
    loop.turn()

    assert list(loop.next_events()) == ["kgraft/stuck"]


def test_a_real_process_that_holds_up_the_lab_is_named_until_it_crosses(loop, tmp_path):
    with (
        samples.process("stopped") as process,
        Lab(tmp_path / "lab", period=0.2, fake_signal=False, pids=[process.pid]) as lab,
    ):
        loop.loaders.opts["kgraft.root"] = str(lab.root)
        loop.config = {"kgraft": [{"stuck_after": 0.3}]}
        assert loop.turn() == {}
        lab.load("kgraft-patch-2-2_1")
        events = {}
        wait_until(lambda: events.update(loop.turn()) or "kgraft/stuck" in events, "the alarm", 30)
        os.kill(process.pid, signal.SIGCONT)
        wait_until(lambda: events.update(loop.turn()) or "kgraft/finished" in events, "the end", 30)

        assert set(events) == {"kgraft/started", "kgraft/stuck", "kgraft/finished"}
        [task] = events["kgraft/stuck"]["tasks"]
        assert (task["pid"], task["kind"]) == (process.pid, "stopped")
        assert events["kgraft/finished"]["active"] == ["kgraft_patch_2_2_1"]


# -- cost

WATCH = {"thread": None, "seen": []}


def _audit(event, arguments):
    # only our thread: those of the factories log, and open files, when they like
    if WATCH["thread"] == threading.get_ident() and event in (
        "open",
        "os.listdir",
        "os.scandir",
        "subprocess.Popen",
        "os.fork",
        "os.posix_spawn",
    ):
        WATCH["seen"].append((event, str(arguments[0]) if arguments else ""))


@pytest.fixture(scope="module")
def _audited():
    sys.addaudithook(_audit)  # for ever, so once


@pytest.mark.usefixtures("_audited")
@pytest.mark.parametrize("kernel", [{"abi": "kgraft"}, {"abi": "livepatch"}], indirect=True)
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_an_idle_look_opens_few_files_none_of_a_process_and_starts_nothing(kernel, loop, count):
    for number in range(count):
        kernel.patch(f"livepatch_{number}", replace_all=False)
    kernel.task(731, "nfsd")
    loop.turn()
    loop.turn()
    WATCH.update(thread=threading.get_ident(), seen=[])
    try:
        assert loop.turn() == {}
    finally:
        WATCH["thread"] = None

    seen = [(event, os.path.relpath(path, kernel.root)) for event, path in WATCH["seen"]]
    assert {event for event, _ in seen} <= {"open", "os.listdir", "os.scandir"}
    opened = [path for event, path in seen if event == "open"]
    assert 0 < len(opened) <= 4 + 2 * count, opened
    assert not [path for _, path in seen if path.startswith("proc/") and path.split("/")[1].isdigit()]


# -- the soak


@pytest.fixture
def holder():
    """A stopped process, which holds a transition up until it is continued; then it stops again."""
    with samples.process("stopped") as process:
        yield process


@pytest.fixture
def lab(tmp_path, holder):
    with Lab(tmp_path / "lab", period=0.04, fake_signal=False, pids=[holder.pid]) as lab:
        yield lab


@pytest.mark.soak
def test_five_hundred_transitions_under_refreshes_restarts_and_kills(lab, holder, loop):
    """Every transition is heard, under one id; what is heard twice was sent by the first look after a kill."""
    chance = random.Random(20260417)
    opts = dict(loop.loaders.opts, **{"kgraft.root": str(lab.root)})
    config = {"kgraft": []}
    process = BeaconProcess(opts, config)
    assert process.look() == []
    flag = lab.root / "sys/kernel/kgraft/in_progress"
    done, heard, kills, held = [], [], 0, 0

    def look():
        """Until a look has come to its end, as a minion looks again every second; some are killed, some refreshed."""
        nonlocal process, kills
        while True:
            fate = chance.random()
            if fate < 0.04:
                process.refresh()
            elif fate < 0.05:
                process.end()
                process = BeaconProcess(opts, config)
                kills += 1
            elif fate < 0.09:
                number = process.looks
                heard.extend((data, number == 0) for data in payloads(process.killed_look(chance.uniform(0, 0.004))))
                process.end()
                process = BeaconProcess(opts, config)
                kills += 1
                continue
            number = process.looks
            heard.extend((data, number == 0) for data in payloads(process.look()))
            return

    def payloads(events):
        return [dict(data, tag=tag.rpartition("/")[2]) for tag, data in events]

    active, loaded = None, set()
    for number in range(rounds(500)):
        if active and chance.random() < 0.3:
            lab.revert(active)
            done.append(("revert", active, active.replace("-", "_")))
            active = None
        else:
            active = f"kgraft-patch-{number}-2_1"
            lab.load(active)
            loaded.add(active)
            done.append(("apply", active, active.replace("-", "_")))
        fate = chance.random()
        if fate < 0.6:  # a look that sees it for sure
            look()
            held += 1
        os.kill(holder.pid, signal.SIGCONT)
        if 0.6 <= fate < 0.9:  # one that may come too late; and else none
            look()
        wait_until(lambda: flag.read_text() == "0\n", "the end of the transition")
        wait_until(lambda: holder.letter == "T", "stopped again")
        look()
        for name in loaded - {active}:
            lab.unload(name)
        loaded &= {active}
    process.end()

    ids = []
    for event, _ in heard:
        assert event["tag"] in ("started", "finished")
        if event["transition"] not in ids:
            ids.append(event["transition"])
    first = {}
    for event, after_start in heard:
        key = (event["transition"], event["tag"])
        if key in first:
            assert after_start, f"{key} was told twice, and no kill was the cause"
            assert event == first[key]
        first.setdefault(key, event)
    told = [first[(one, "finished")] for one in ids]
    assert [(event["direction"], event["patch"]) for event in told] == [(how, module) for how, _, module in done]
    assert all((one, "started") in first or not first[(one, "finished")]["observed"] for one in ids)
    assert sum(event["observed"] for event in told) >= held > rounds(250)
    assert kills > rounds(200) / 10
