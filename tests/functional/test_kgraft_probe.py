"""
Probes of real services, which stand still for known times, close connections, and go away; and that a probe harms
nobody, and outlives nobody who ordered it.
"""

import contextlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest
import yaml

from lab import wait_until
from tests.conftest import REPO
from tests.support.busy_database import BusyDatabase
from tests.support.paused_server import Server
from tests.support.soak import rounds

# It asks 50 times a second, and says so by a word that nobody shall see.
ASK = """
import socket, sys, time
host, port = sys.argv[1].split(":")
held = socket.create_connection((host, int(port)))
while True:
    held.sendall(b"ping\\n")
    if not held.recv(100):
        sys.exit("secret: it went away")
    print("secret", flush=True)
    time.sleep(0.02)
"""
# It answers, and leaves a process in a session of its own, which is no child of it any more.
LEAVE = """
import os, subprocess, sys, time
if not os.fork():
    os.setsid()
    if not os.fork():
        os.execvp("sleep", ["sleep", "3600"])
    os._exit(0)
os.wait()
while True:
    print(flush=True)
    time.sleep(0.02)
"""
INTERVAL = 0.1  # of a connection's questions
PERIOD = 0.02  # of a program's
SLACK = 0.1  # for a process that was answered, and has to wait for a processor


@pytest.fixture
def probe(loaders):
    return loaders.modules.kgraft_probe


@pytest.fixture
def make_server(tmp_path):
    servers = []

    def make(**options):
        servers.append(Server(tmp_path / "log", **options).__enter__())
        return servers[-1]

    yield make
    for server in servers:
        server.__exit__()


def program(server):
    return {"exec": [sys.executable, "-c", ASK, server.address], "name": "program"}


def connection(server):
    tcp = {"address": server.address, "send": "ping\n", "expect": "pong\n", "interval": INTERVAL}
    return {"tcp": tcp, "name": "connection"}


def watched(pid):
    """A process that probes, its program, and what that has left: those that run, not the zombies of earlier ones."""
    found = []

    def run():
        found[:] = []
        for one in psutil.Process(pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.extend([(one.name() == "sleep", one)] if one.status() != psutil.STATUS_ZOMBIE else [])
        found.sort(key=lambda pair: pair[0])
        return [is_left for is_left, _ in found] == [False, True]

    wait_until(run, "a program, and an orphan of it that sleeps")
    return [psutil.Process(pid), *(one for _, one in found)]


def ended(processes, but=()):
    return all(not one.is_running() or one.status() == psutil.STATUS_ZOMBIE for one in processes if one not in but)


@pytest.mark.soak
def test_a_gap_is_as_long_as_the_server_itself_says(probe, make_server):
    server = make_server()
    for _ in range(rounds(30, 1)):
        started = probe.start([program(server), connection(server)], rest=1)
        began = time.monotonic()
        time.sleep(0.3)
        paused = time.monotonic()
        server.pause(random.uniform(0.8, 1.2))
        time.sleep(0.3)
        seen = probe.stop(started)
        lasted = time.monotonic() - began

        logged = server.gap(began)
        for name, missed, extra in (("program", 0, PERIOD), ("connection", INTERVAL, 0)):
            told = seen[name]
            assert told["failed"] == 0
            assert logged - missed - SLACK < told["longest_gap"] < logged + extra + told["overslept"] + SLACK, seen
            assert told["at"] == pytest.approx(paused - began, abs=INTERVAL + SLACK)
            assert 0 <= told["at_rest"] < 0.5
        assert seen["program"]["asked"] > 10
        assert 3 <= seen["connection"]["asked"] <= lasted / INTERVAL - logged / INTERVAL + 2


@pytest.mark.parametrize("hears_last", [False, True], ids=["after an answer", "instead of an answer"])
def test_a_server_that_closes_connections_has_failed_and_is_asked_again(probe, make_server, hears_last):
    seen = probe.run([connection(make_server(answers=3, hears_last=hears_last))], seconds=2)["connection"]

    # three answers, then a question that comes too late
    assert 3 <= seen["failed"] <= 6
    assert seen["asked"] >= 3 * seen["failed"]
    assert INTERVAL - SLACK < seen["longest_gap"] < INTERVAL + seen["overslept"] + SLACK


def test_a_server_that_goes_away_for_good_is_missed_until_the_end(probe, make_server):
    server = make_server()
    started = probe.start([program(server), connection(server), {"reachable": server.address}], rest=0.5)
    server.process.kill()
    gone = time.monotonic()
    time.sleep(2.2)
    seen = probe.stop(started)
    told = time.monotonic()

    for name in ("program", "connection"):
        assert 2.2 - INTERVAL - SLACK < seen[name]["longest_gap"] < told - gone + PERIOD + SLACK
        assert seen[name]["failed"] >= 2
    # a program is started again once a second, a connection made when it is due
    assert seen["program"]["failed"] <= 4
    assert seen["connection"]["failed"] == pytest.approx(22, abs=6)
    assert seen[server.address]["failed"] >= 2


def test_a_stopped_server_is_reachable_which_claims_no_gap(probe, make_server):
    server = make_server()
    server.process.send_signal(signal.SIGSTOP)

    seen = probe.run([{"reachable": server.address}, connection(server)], seconds=1.5)

    assert (seen[server.address]["failed"], seen[server.address]["longest_gap"]) == (0, None)
    assert seen[server.address]["asked"] == 2
    # it never answered: what has not begun is not interrupted
    assert (seen["connection"]["longest_gap"], seen["connection"]["at_rest"]) == (None, None)


def test_what_comes_late_of_an_answer_is_no_answer_to_the_next_question(probe):
    # it answers the first question twice, and no other one
    twice = textwrap.dedent("""
        import socket, time
        listener = socket.create_server(("127.0.0.1", 0))
        print(listener.getsockname()[1], flush=True)
        peer = listener.accept()[0]
        peer.recv(100)
        peer.sendall(b"pong\\n")
        time.sleep(0.03)
        peer.sendall(b"pong\\n")
        time.sleep(60)
    """)
    with subprocess.Popen([sys.executable, "-c", twice], stdout=subprocess.PIPE, text=True) as server:
        address = f"127.0.0.1:{server.stdout.readline().strip()}"
        tcp = {"address": address, "send": "ping\n", "expect": "pong\n", "interval": 1}
        seen = probe.run([{"tcp": tcp}], seconds=2.5)[address]
        server.kill()

    assert seen["asked"] == 1
    # from when the second question was due
    assert seen["longest_gap"] == pytest.approx(1.5, abs=0.2 + SLACK)


def test_nothing_of_what_a_program_says_is_seen_anywhere(probe, make_server, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    server = make_server(answers=10)

    seen = probe.run([program(server)], seconds=1)

    assert seen["program"]["asked"] >= 10
    assert "secret" not in f"{seen}{caplog.text}{capfd.readouterr()}"


@pytest.mark.parametrize("command", [["/bin/false"], ["/bin/sh", "-c", "exec >&-; sleep 60"]], ids=["ends", "closes"])
def test_a_program_that_does_not_run_on_has_failed(probe, command):
    seen = probe.run([{"exec": command, "name": "x"}], seconds=1.5)["x"]

    assert (seen["asked"], seen["failed"], seen["longest_gap"]) == (2, 2, None)


def test_a_program_that_hangs_is_ended_with_all_it_left_and_started_again():
    """It would hold up a patch on a kernel that wakes nobody. Its 10 s are 0.5 s here."""
    source = (REPO / "_modules/_kgraft_prober.py").read_text()
    assert source.count("\nLIMIT = 10 ") == 1
    command = [sys.executable, "-I", "-S", "-c", source.replace("\nLIMIT = 10 ", "\nLIMIT = 0.5 "), str(os.getpid())]
    hanging = {"command": [sys.executable, "-c", LEAVE.replace("time.sleep(0.02)", "time.sleep(60)")]}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.write(json.dumps([hanging, time.monotonic()]).encode() + b"\n")
        process.stdin.flush()
        below = watched(process.pid)[1:]
        wait_until(lambda: ended(below), "an end of what hangs")
        again = watched(process.pid)
        told = json.loads(process.communicate(timeout=10)[0])

    assert told["failed"] == 1
    assert told["longest_gap"] > 0.5
    assert ended(again)


@pytest.mark.soak
def test_an_end_is_not_held_up_by_a_program_that_has_just_been_started_again(probe):
    again = {"exec": [sys.executable, "-c", LEAVE]}
    for _ in range(rounds(20, 1)):
        started = probe.start([dict(again, name=str(number)) for number in range(8)])
        processes = [one for pid in started.values() for one in watched(pid)]
        time.sleep(1)  # from now on what has ended may be started again
        began = time.monotonic()
        seen = probe.stop(started)

        assert time.monotonic() - began < 8
        assert None not in seen.values()
        assert ended(processes)


START = """
import sys, time
from tests.conftest import load_file
started = load_file("_modules/kgraft_probe.py").start([{{"exec": [sys.executable, "-c", {program!r}], "name": "x"}}])
print(started["x"], flush=True)
{then}
time.sleep(60)
"""


@pytest.fixture
def start():
    """``start(then)``: a process that has started a probe and does this then; and those that shall end with it."""
    orders = []

    def start(then=""):
        command = [sys.executable, "-c", START.format(program=LEAVE, then=then)]
        orders.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True))
        return orders[-1], watched(int(orders[-1].stdout.readline()))

    yield start
    for process in orders:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.soak
@pytest.mark.parametrize(
    ("number", "then"),
    [
        (signal.SIGKILL, ""),
        (signal.SIGTERM, ""),
        # the pipe to the process that probes stays open in it
        (signal.SIGKILL, "import os; os.fork()"),
    ],
    ids=["SIGKILL", "SIGTERM", "a forked sibling"],
)
def test_a_probe_ends_with_who_ordered_it_and_all_that_its_program_left(start, number, then):
    for _ in range(rounds(30, 1)):
        order, processes = start(then)

        order.send_signal(number)

        wait_until(lambda processes=processes: ended(processes), "an end of all of them", 5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_program_ends_with_the_process_that_times_it(start, number):
    _, (prober, *below) = start()

    prober.send_signal(number)

    # when it is killed nobody is left to look for orphans
    orphans = [one for one in below if one.name() == "sleep"] if number == signal.SIGKILL else []
    wait_until(lambda: ended([prober, *below], orphans), "an end of all of them", 5)
    for one in orphans:
        one.kill()


def test_where_a_process_that_probes_was_killed_nothing_is_known(probe):
    started = probe.start([{"exec": [sys.executable, "-c", LEAVE], "name": "x"}, {"reachable": "127.0.0.1:9"}])
    for one in watched(started["x"])[::-1]:
        one.kill()

    seen = probe.stop(started)

    assert seen["x"] is None
    assert seen["127.0.0.1:9"]["failed"] >= 1


@pytest.mark.parametrize("method", ["trace", "signals"])
def test_a_poke_leaves_alone_who_probes_and_all_that_it_has_started(probe, kernel, kgraft, method):
    kernel.start("kgraft-patch-2-2_1")
    kgraft.poking._notices = lambda parent: None
    kgraft.poking._await_crossing = lambda root, pids: None
    started = probe.start([{"exec": [sys.executable, "-c", LEAVE], "name": "x"}])
    with subprocess.Popen(["sleep", "3600"]) as other:
        spared = [one.pid for one in watched(started["x"])]
        for pid in (other.pid, *spared):
            kernel.real(pid, {int(tid): True for tid in os.listdir(f"/proc/{pid}/task")})

        answer = kgraft.poke(method=method)

        other.kill()
    assert [task["pid"] for task in answer["poked"]] == [other.pid]
    reasons = {task["pid"]: task["reason"] for task in answer["skipped"]}
    assert sorted(reasons) == sorted(spared)
    assert set(reasons.values()) <= {
        "it measures how long a service does not answer (kgraft_probe)",
        "it runs, and clears by itself",
    }
    assert reasons[spared[-1]].startswith("it measures")
    assert probe.stop(started)["x"]["failed"] == 0


def test_a_pause_of_a_real_postgresql_is_found_and_so_is_a_connection_that_it_ends(probe):
    backend = "SELECT pid FROM pg_stat_activity WHERE query = 'SELECT 1'"
    with BusyDatabase(idle=0, queries=0) as database, database.connect() as other:
        started = probe.start([database.probe], rest=1)
        [[pid]] = other.execute(backend).fetchall()
        began = time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.8)
        os.kill(pid, signal.SIGCONT)
        paused = time.monotonic() - began
        time.sleep(0.3)
        seen = probe.stop(started)["ask-postgresql"]

        assert seen["failed"] == 0
        assert 0.8 - SLACK < seen["longest_gap"] < paused + 0.05 + SLACK + seen["overslept"]
        assert seen["at"] < 0.05 + SLACK
        assert 0 < seen["at_rest"] < 0.05 + 2 * SLACK

        started = probe.start([database.probe], rest=1)
        [[pid]] = other.execute(backend).fetchall()
        other.execute(f"SELECT pg_terminate_backend({pid})")
        questions = set()

        def asks_anew():
            begun = f"SELECT query_start FROM pg_stat_activity WHERE query = 'SELECT 1' AND pid != {pid}"
            questions.update(other.execute(begun).fetchall())
            return len(questions) > 4

        wait_until(asks_anew, "questions on a connection made anew")
        seen = probe.stop(started)["ask-postgresql"]

        assert (seen["failed"], seen["asked"] > 3) == (1, True)


HDBSQL = """\
#!/bin/sh
# stands in for HANA's own: it checks how it is called
[ "$*" = "-U OF-PROBES SELECT 1 FROM DUMMY" ] && [ ! -e {down} ] && echo "1 row selected"
"""


def test_the_probes_of_the_example_are_ones(probe, repo):
    text = (repo / "examples/states/kgraft/measured.sls").read_text()
    assert "/usr/local/sbin/" in text
    sls = yaml.safe_load(text.replace("/usr/local/sbin/", f"{repo}/examples/probes/"))
    [probes] = [one["probes"] for one in sls["kernel is patched"]["kgraft.applied"] if "probes" in one]

    assert list(probe.start(probes, test=True)) == ["ask-hana", "localhost:6379"]


def test_the_example_for_hana_goes_on_after_a_question_that_failed(probe, tmp_path, monkeypatch):
    """No HANA was there to be asked."""
    down = tmp_path / "down"
    (tmp_path / "hdbsql").write_text(HDBSQL.format(down=down))
    (tmp_path / "hdbsql").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    started = probe.start([{"exec": [str(REPO / "examples/probes/ask-hana"), "OF-PROBES"]}], rest=0.5)
    down.touch()
    began = time.monotonic()
    time.sleep(1)
    down.unlink()
    missed = time.monotonic() - began
    time.sleep(0.5)
    seen = probe.stop(started)["ask-hana"]

    assert (seen["asked"] > 1, seen["failed"]) == (True, 0)
    assert missed - SLACK < seen["longest_gap"] < missed + 0.1 + 2 * SLACK + seen["overslept"]
    assert seen["at_rest"] < 0.1 + 2 * SLACK
