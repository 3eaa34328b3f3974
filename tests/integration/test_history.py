"""
History and page as the examples have it: a real master keeps the events of a real beacon, renews the page by its own
schedule, and logrotate takes its turn.
"""

import gzip
import json
import os
import pathlib
import stat
import subprocess

import pytest
import salt.config
import salt.runner
import yaml
from saltfactories.utils import random_string

from lab.files import Kernel
from tests.integration.conftest import MASTER, MINION
from tests.integration.test_beacon import until
from tests.support.debian_programs import program

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples/history"
LOGS, SERVED = "/var/log/salt/kgraft", "/srv/kgraft"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """What the example calls ``/var/log/salt/kgraft`` and ``/srv/kgraft``, made as the manual says."""
    root = tmp_path_factory.mktemp("history")
    os.chmod(root, 0o755)
    (root / "logs").mkdir(mode=0o750)
    (root / "served").mkdir(mode=0o750)
    events = root / "logs/events.jsonl"
    events.touch(mode=0o640)
    return root


def example(name, place):
    text = (EXAMPLES / name).read_text("utf-8")
    for there, here in ((LOGS, "logs"), (SERVED, "served")):
        text = text.replace(there, str(place / here))
    return text


@pytest.fixture(scope="module")
def master(salt_factories, file_root, place):
    options = yaml.safe_load(example("master.conf", place))
    assert options["schedule"]["kgraft page"].pop("minutes") == 15
    options["schedule"]["kgraft page"]["seconds"] = 3
    options.update(
        loop_interval=1, runner_dirs=[str(file_root / "_runners")], external_auth={"auto": {"x": ["@kgraft"]}}
    )
    factory = salt_factories.salt_master_daemon(
        random_string("history-master-"),
        # a page that is asked for while the minions start waits for them
        overrides={
            **MASTER,
            "timeout": 10,
            "gather_job_timeout": 5,
            "file_roots": {"base": [str(file_root)]},
            **options,
        },
    )
    with factory.started():
        yield factory


@pytest.fixture(scope="module")
def dirs(file_root, pretended_packages):
    return {"module_dirs": [str(file_root), pretended_packages]}


@pytest.fixture(scope="module")
def machine(master, dirs, tmp_path_factory):
    """``(minion, kernel)``, with the beacon."""
    kernel = Kernel(tmp_path_factory.mktemp("machine") / "root")
    overrides = {**MINION, **dirs, "kgraft.root": str(kernel.root)}
    overrides["beacons"] = {"kgraft": [{"stuck_after": 1}, {"remind": 2}]}
    factory = master.salt_minion_daemon(random_string("kept-"), overrides=overrides)
    with factory.started():
        yield factory, kernel


@pytest.fixture(scope="module")
def other(master, dirs):
    """A minion that was broken into."""
    factory = master.salt_minion_daemon(random_string("other-"), overrides={**MINION, **dirs})
    with factory.started():
        yield factory


@pytest.fixture
def history(master):
    """Return ``history()``: what the runner tells."""

    def told():
        done = master.salt_run_cli(timeout=60).run("kgraft.history")
        assert done.returncode == done.data["retcode"], done
        return done.data

    return told


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def transitions(told, minion):
    return [one for one in told["transitions"] if one["machine"] == minion.id]


def finish(kernel, place, patch):
    """Take a patch through, and wait until the master has kept its end."""
    kernel.exit(731)
    kernel.finish()
    module = patch.replace("-", "_")

    def kept():
        events = map(json.loads, (place / "logs/events.jsonl").read_text().splitlines())
        return any(event["tag"].endswith("/finished") and event["data"]["patch"] == module for event in events)

    until(kept, "the master kept no end of it")


@pytest.mark.smoke
def test_the_master_keeps_what_the_beacon_tells_and_the_history_reads_it(machine, place, history):
    minion, kernel = machine
    events = place / "logs/events.jsonl"
    kernel.task(731, "nfsd", kthread=True, blocking=True, unit="nfs.service")
    kernel.start("kgraft-patch-2-2_1")
    until(lambda: '"times": 2' in events.read_text(), "the master kept no second stuck")
    [running] = transitions(history(), minion)
    finish(kernel, place, "kgraft-patch-2-2_1")

    told = history()
    [one] = transitions(told, minion)
    assert (running["ended"], one["ended"]) == (None, "finished")
    assert (one["patch"], one["direction"]) == ("kgraft_patch_2_2_1", "apply")
    assert one["times"] >= 2
    assert 3 <= one["stuck"] <= one["seconds"] < 120
    assert (
        one["why"] == "kernel, nfs.service: This kernel thread has not come to a safe place, and no signal reaches it."
    )
    assert (told["lines"]["refused"], told["lines"]["torn"]) == (0, 0)
    kept = {json.loads(line)["tag"].rpartition("/")[0] for line in events.read_text().splitlines()}
    assert kept == {f"salt/beacon/{minion.id}/kgraft"}, "the bus has more, and none of it is kept"
    assert (mode(place / "logs"), mode(events)) == (0o750, 0o640)


@pytest.mark.smoke
def test_an_event_that_salt_knows_to_be_anothers_is_refused_and_one_like_a_beacons_cannot_be(
    machine, other, place, history
):
    minion, _ = machine
    before = history()
    tag = f"salt/beacon/{minion.id}/kgraft/finished"
    data = {"id": minion.id, "transition": "forged-1", "patch": "x", "direction": "apply", "seconds": 1.0}
    data.update(boot_id="x", kernelrelease="x")
    call = other.salt_call_cli(timeout=60)
    call.run("event.send", tag, json.dumps(data))
    call.run("event.fire_master", json.dumps(data), tag)
    # as a beacon's events are sent: the master leaves the id as it is
    flat = {"tag": tag, "data": {**data, "transition": "forged-2"}}
    call.run("event.fire_master", "{}", tag, preload=json.dumps({"events": [flat]}))
    until(lambda: "forged-2" in (place / "logs/events.jsonl").read_text(), "the master kept no forged event")

    told = history()
    assert told["lines"]["refused"] - before["lines"]["refused"] == 2
    new = [one["transition"] for one in transitions(told, minion) if one not in transitions(before, minion)]
    assert new == ["forged-2"], "which the manual says"


@pytest.mark.smoke
def test_what_logrotate_turned_is_read_with_the_rest(machine, place, history):
    minion, kernel = machine
    config = place / "logrotate"
    config.write_text(example("logrotate", place))
    before = [one["transition"] for one in transitions(history(), minion)]
    os.chmod(config, 0o644)
    rotate = [program("usr/sbin/logrotate", "logrotate"), "--force", "--state", place / "state", config]
    done = subprocess.run(rotate, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    [turned] = (place / "logs").glob("events.jsonl?*")
    assert (turned.name, mode(turned), mode(place / "logs/events.jsonl")) == ("events.jsonl.1.gz", 0o640, 0o640)
    assert gzip.decompress(turned.read_bytes()).endswith(b"}\n")

    kernel.task(731, "nfsd", kthread=True, blocking=True)
    kernel.start("kgraft-patch-3-2_1")
    until(lambda: "started" in (place / "logs/events.jsonl").read_text(), "the master kept nothing more")
    finish(kernel, place, "kgraft-patch-3-2_1")
    after = transitions(history(), minion)
    assert [one["transition"] for one in after][:-1] == before
    assert (after[-1]["patch"], after[-1]["ended"]) == ("kgraft_patch_3_2_1", "finished")
    assert mode(place / "logs/events.jsonl") == 0o640


@pytest.mark.smoke
def test_the_masters_schedule_keeps_the_page_fresh(machine, place, history):
    minion, _ = machine
    page = place / "served/fleet.html"
    until(page.exists, "the schedule wrote no page")
    first = page.stat().st_ino
    until(lambda: page.stat().st_ino != first, "the page was not renewed")
    text = page.read_text("utf-8")
    assert f'<th scope="row">{minion.id}</th>' in text
    assert "kgraft_patch_3_2_1" in text, "of the history"
    assert mode(page) == 0o640
    assert [path for path in (place / "served").iterdir() if path.suffix == ".html"] == [page]


@pytest.mark.smoke
def test_through_the_api_the_page_goes_where_the_master_says(machine, master, place, tmp_path):
    client = salt.runner.RunnerClient(salt.config.client_config(str(master.config["conf_file"])))
    low = {"username": "x", "password": "x", "eauth": "auto", "fun": "kgraft.page"}
    path = str(tmp_path / "elsewhere.html")
    refused = client.cmd_sync({**low, "path": path}, timeout=60)
    assert refused == {"retcode": 5, "report": [f"path={path!r}: must be absolute, and is taken at the prompt only"]}
    told = client.cmd_sync({**low, "target": machine[0].id}, timeout=60)
    assert (told["retcode"], told["path"]) == (0, str(place / "served/fleet.html"))
    done = master.salt_run_cli(timeout=60).run("kgraft.page", machine[0].id, f"path={path}", "names=True")
    assert (done.returncode, done.data["path"]) == (0, path)
    assert mode(pathlib.Path(path)) == 0o640
