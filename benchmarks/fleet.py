"""
The master of 3,000 machines: ``kgraft.report`` beside the bare collection of the same answers, and the beacon's events
with our reactors.

``python -m benchmarks.fleet``
"""

import contextlib
import json
import os
import pathlib
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import psutil
import salt.channel.client
import salt.client
import salt.config
import salt.crypt
import salt.utils.event
import yaml

from tests.conftest import load_file
from tests.unit.test_runner_report import moving, overview, package, task

REPO = pathlib.Path(__file__).resolve().parent.parent
MACHINES = [f"db{number:04}" for number in range(3000)]
ROUNDS = 11
EVENTS = 6000
SECONDS = 120  # five times as fast as in ten minutes
STUCK = 100  # of these machines the patch sticks before it finishes


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextlib.contextmanager
def master(directory, **options):
    """A master with 3,000 keys, and its options. Nobody listens to what it publishes."""
    options = {
        "root_dir": str(directory),
        "interface": "127.0.0.1",
        "publish_port": free_port(),
        "ret_port": free_port(),
        "auto_accept": True,
        "file_roots": {"base": [str(REPO)]},
        "log_level": "critical",
        "log_level_logfile": "critical",
        **options,
    }
    (directory / "master").write_text(json.dumps(options))  # which is YAML
    keys = directory / "etc/salt/pki/master/minions"
    keys.mkdir(parents=True)
    for machine in MACHINES:
        (keys / machine).write_text("none")
    command = [pathlib.Path(sys.executable).with_name("salt-master"), "-c", directory]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process, salt.config.client_config(str(directory / "master"))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def minion(directory, opts):
    """Return ``send(events)``: what a minion's beacons do, over its own connection."""
    options = salt.config.DEFAULT_MINION_OPTS.copy()
    options.update(id="sender", root_dir=str(directory), master_port=opts["ret_port"], __role="minion")
    options.update(pki_dir=str(directory / "pki"), cachedir=str(directory / "cache"), sock_dir=str(directory / "run"))
    options["master_uri"] = "tcp://127.0.0.1:{ret_port}".format(**opts)
    (directory / "pki").mkdir(parents=True)
    with salt.channel.client.ReqChannel.factory(options) as channel:
        token = salt.crypt.SAuth(options).gen_token(b"salt")

        def send(*events):
            channel.send({"id": "sender", "cmd": "_minion_event", "pretag": None, "tok": token, "events": events})

        send({"tag": "ready", "data": {}})
        yield send


def answers():
    """What 3,000 machines say: most are well, some are behind, a few are stuck."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    well = overview(observed=now, supported_until=None, package=package(as_of=now))
    behind = {**well, "package": package(as_of=now, newest="10-2.1")}
    why = "A program of eBPF is on its stack, such as a security or tracing agent attaches (fexit, fmod_ret)"
    held = {**moving(9999, *(task(unit="falcon-sensor.service", why=why) for _ in range(5))), "observed": now}
    return {
        machine: held if number % 300 == 0 else behind if number % 30 == 0 else well
        for number, machine in enumerate(MACHINES)
    }


def answer(opts, told, listens):
    """Answer each job as all the machines would, until this process ends."""
    with salt.utils.event.get_master_event(opts, opts["sock_dir"], listen=True) as bus:
        listens.set()
        while True:
            job = bus.get_event(wait=5, tag="salt/job/", match_type="startswith")
            if job and job.get("fun") == "kgraft.overview" and "minions" in job:
                about = {"cmd": "_return", "jid": job["jid"], "fun": job["fun"], "fun_args": [], "retcode": 0}
                for machine in job["minions"]:
                    data = {**about, "id": machine, "return": told[machine], "success": True}
                    bus.fire_event(data, f"salt/job/{job['jid']}/ret/{machine}")


def ask(way, conf_file):
    """Collect the answers once, in this process, and tell what it cost."""
    opts = salt.config.client_config(conf_file)
    if way == "kgraft.report":
        runner = load_file(REPO / "_runners/kgraft.py", __opts__={**opts, "conf_file": conf_file}, __context__={})
        collect = lambda: sum(runner.report("db*", timeout=60)["counts"].values())  # noqa: E731
    else:

        def collect():
            with salt.client.get_local_client(conf_file) as client:
                told = {}
                for row in client.cmd_iter("db*", "kgraft.overview", timeout=60):
                    told.update(row)
                return len(told)

    began, wall = time.process_time(), time.monotonic()
    count = collect()
    took = {"count": count, "cpu": time.process_time() - began, "wall": time.monotonic() - wall}
    print(json.dumps({**took, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def reports(directory):
    with master(directory) as (_, opts), minion(directory / "sender", opts):
        listens = threading.Event()
        threading.Thread(target=answer, args=(opts, answers(), listens), daemon=True).start()
        listens.wait()
        figures = {}
        for number in range(-1, ROUNDS):  # the first fills caches
            for way in ("cmd_iter", "kgraft.report"):
                command = [sys.executable, "-m", "benchmarks.fleet", way, directory / "master"]
                run = subprocess.run(command, cwd=REPO, stdout=subprocess.PIPE, check=True)
                told = json.loads(run.stdout)
                if told["count"] != len(MACHINES):
                    raise SystemExit(f"{way}: {told}")
                if number >= 0:
                    figures.setdefault(way, []).append(told)
    print(f"{len(MACHINES)} answers, medians of {ROUNDS} interleaved rounds\n")
    print(f"{'':<16}{'processor s':>12}{'wall s':>8}{'memory MB':>11}")
    middle = {
        way: {name: statistics.median(told[name] for told in rounds) for name in ("cpu", "wall", "memory")}
        for way, rounds in figures.items()
    }
    for way, told in middle.items():
        print(f"{way:<16}{told['cpu']:>12.2f}{told['wall']:>8.2f}{told['memory']:>11.0f}")
    bare, ours = middle.values()
    print(f"{'ratio':<16}{ours['cpu'] / bare['cpu']:>12.2f}{ours['wall'] / bare['wall']:>8.2f}")


def beacon(machine, tag, number):
    """An event as our beacon sends it."""
    about = {"id": machine, "transition": f"6ba7b810-{number}", "abi": "kgraft", "direction": "apply"}
    about.update(patch="kgraft_patch_10_2_1", active=["kgraft_patch_9_2_2"], kernelrelease="4.4.180-94.100-default")
    if tag == "stuck":
        tasks = [{"pid": pid, "name": "nfsd", "kind": "kernel", "letter": "S", "unit": None} for pid in range(20)]
        about.update(times=1, seconds=130, tasks=tasks, count=20, complete=True)
    return {"tag": f"salt/beacon/{machine}/kgraft/{tag}", "data": about}


def processor_time(process):
    """Seconds of a master and its processes."""
    seconds = 0
    for each in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            times = each.cpu_times()
            seconds += times.user + times.system
    return seconds


def hear(directory, reactor):
    """Send the events of a roll-out to a master, and count what became of them."""
    kinds = [(machine, tag) for machine in MACHINES for tag in ("started", "finished")]
    kinds[-STUCK:] = [(machine, "stuck") for machine in MACHINES[:STUCK]]
    heard, jobs, over = set(), [], threading.Event()
    with master(directory, **reactor) as (process, opts), minion(directory / "sender", opts) as send:
        with salt.utils.event.get_master_event(opts, opts["sock_dir"], listen=True) as bus:

            def listen():
                while not over.is_set():
                    event = bus.get_event(wait=1, full=True)
                    if event and event["tag"].startswith("salt/beacon/"):
                        heard.add(event["tag"])
                    elif event and event["tag"].startswith("salt/job/") and event["tag"].endswith("/new"):
                        jobs.append(event["tag"])

            thread = threading.Thread(target=listen)
            thread.start()
            all_of_it = psutil.Process(process.pid)
            time.sleep(5)
            began, cpu = time.monotonic(), processor_time(all_of_it)
            for number, (machine, tag) in enumerate(kinds):
                time.sleep(max(0, began + number * SECONDS / len(kinds) - time.monotonic()))
                send(beacon(machine, tag, number))
            sent = time.monotonic() - began
            wanted = len([tag for _, tag in kinds if tag != "started"]) + STUCK if reactor else 0
            while (len(heard) < len(kinds) or len(jobs) < wanted) and time.monotonic() - began < 3 * SECONDS:
                time.sleep(0.1)
            done, cpu = time.monotonic() - began, processor_time(all_of_it) - cpu
            over.set()
            thread.join()
    what = "with our reactors" if reactor else "without reactors"
    print(
        f"{what:<18}{len(kinds) - len(heard):>6}{wanted:>6}{wanted - len(jobs):>6}"
        f"{sent:>7.0f}{done:>7.0f}{cpu:>8.0f}{cpu / 600:>10.1%}"
    )


def main():
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        for name in ("report", "bare", "reactors"):
            (scratch / name).mkdir()
        reports(scratch / "report")
        print(f"\n{EVENTS} events of {len(MACHINES)} machines in {SECONDS} s\n")
        print(
            f"{'':<18}{'lost':>6}{'jobs':>6}{'lost':>6}{'sent s':>7}{'done s':>7}{'cpu s':>8}{'/ 600 s':>10}",
            flush=True,
        )
        hear(scratch / "bare", {})
        hear(scratch / "reactors", yaml.safe_load((REPO / "examples/reactor/master.conf").read_text()))


if __name__ == "__main__":
    ask(*sys.argv[1:]) if len(sys.argv) > 1 else main()
