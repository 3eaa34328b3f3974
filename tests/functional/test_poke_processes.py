"""A poke over real processes: it frees them, spares strangers, and leaves nobody stopped, whoever is killed when."""

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from salt.exceptions import CommandExecutionError

from lab import Lab, samples, wait_until

PATCH = "kgraft-patch-2-2_1"
THREADS = """
import threading, time
for _ in range(7):
    threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
print(flush=True)
time.sleep(3600)
"""


def _stat(pid):
    with open(f"/proc/{pid}/stat", "rb") as stat:
        return stat.read().rpartition(b")")[2].split()


def _letter(pid):
    return _stat(pid)[0].decode()


def _switches(pid):
    sums = {}
    for tid in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{tid}/status", encoding="utf-8", errors="replace") as status:
            sums[tid] = sum(int(line.split()[1]) for line in status if "ctxt_switches" in line)
    return sums


@pytest.fixture
def herd():
    """``herd(single, threaded)``: that many sleeping processes of ours, asleep when it returns."""
    with contextlib.ExitStack() as stack:

        def start(single=0, threaded=0):
            processes = []
            for _ in range(single):
                processes.append(subprocess.Popen(["sleep", "3600"]))
                stack.callback(_end, processes[-1])
            for _ in range(threaded):
                process = subprocess.Popen([sys.executable, "-c", THREADS], stdout=subprocess.PIPE)
                stack.callback(_end, process)
                processes.append(process)
            for process in processes[single:]:
                process.stdout.readline()
            pids = [process.pid for process in processes]
            wait_until(lambda: all(_letter(pid) == "S" for pid in pids), "everybody asleep")
            return processes

        yield start


def _end(process):
    process.kill()
    process.wait()
    if process.stdout:
        process.stdout.close()


def _no_poke(monkeypatch):
    kill = os.kill

    def refuse(pid, number):
        assert number not in (signal.SIGSTOP, signal.SIGCONT), f"{pid} was poked"
        kill(pid, number)

    monkeypatch.setattr(os, "kill", refuse)


def _flag(kernel, pid):
    """The kernel of files says that a real process, with all its threads, blocks."""
    kernel.real(pid, {int(tid): True for tid in os.listdir(f"/proc/{pid}/task")})


@pytest.fixture
def moving(kernel):
    kernel.start(PATCH)
    return kernel


@pytest.fixture
def impatient(kgraft, monkeypatch):
    """Files clear no flag, so do not wait for it."""
    monkeypatch.setattr(kgraft.poking, "await_crossing", lambda root, pids: None)
    return kgraft


def test_200_processes_are_woken_with_all_their_threads_and_those_that_end_are_told(
    moving, impatient, herd, monkeypatch
):
    processes = herd(single=160, threaded=40)
    for process in processes:
        _flag(moving, process.pid)
    before = {process.pid: _switches(process.pid) for process in processes}
    doomed = processes[100:110] + processes[170:175]
    real_kill, sent = os.kill, []

    def end_some_on_the_way(pid, number):
        real_kill(pid, number)
        if number == signal.SIGCONT:
            sent.append(pid)
        if number == signal.SIGCONT and len(sent) == 20:
            for process in doomed:
                _end(process)
                moving.exit(process.pid)

    monkeypatch.setattr(os, "kill", end_some_on_the_way)
    answer = impatient.poke()
    gone = {process.pid for process in doomed}
    assert {task["pid"] for task in answer["poked"]} | set(answer["vanished"]) == set(before)
    assert set(answer["vanished"]) == gone
    assert set(sent) == set(before) - gone
    living = set(before) - gone

    def woken():
        return all(now > before[pid][tid] for pid in living for tid, now in _switches(pid).items())

    wait_until(woken, "every thread has run")
    assert {_letter(pid) for pid in living} == {"S"}


def test_stop_and_continue_come_per_process_and_in_this_order(moving, impatient, herd, monkeypatch):
    processes = herd(single=3)
    for process in processes:
        _flag(moving, process.pid)
    real_kill, sent = os.kill, []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)) or real_kill(pid, number))
    impatient.poke()
    order = sorted(process.pid for process in processes)
    assert sent == [(pid, number) for pid in order for number in (signal.SIGSTOP, signal.SIGCONT)]


def test_test_mode_wakes_nobody(moving, impatient, herd):
    (process,) = herd(single=1)
    _flag(moving, process.pid)
    before = _switches(process.pid)
    answer = impatient.poke(test=True)
    assert [task["pid"] for task in answer["poked"]] == [process.pid]
    assert _switches(process.pid) == before


def test_a_pid_that_was_reused_since_the_walk_is_not_signalled(moving, impatient, herd, monkeypatch):
    (process,) = herd(single=1)
    _flag(moving, process.pid)
    read = impatient.tasks.threads

    def reuse(proc, tids=None):
        threads = read(proc, tids)
        # between the look and the signal the pid goes to another process
        if tids is None:
            monkeypatch.setattr(
                impatient.tasks, "thread", lambda *args: threads[0]._replace(start_time=threads[0].start_time + 1)
            )
        return threads

    monkeypatch.setattr(impatient.tasks, "threads", reuse)
    _no_poke(monkeypatch)
    answer = impatient.poke(pids=process.pid)
    assert (answer["poked"], answer["vanished"]) == ([], [process.pid])


def test_a_process_stopped_since_the_walk_is_left_to_who_stopped_it(moving, impatient, herd, monkeypatch):
    (process,) = herd(single=1)
    _flag(moving, process.pid)
    refusal = impatient.poking.refusal

    def stop_after_the_look(*about):
        reason = refusal(*about)
        os.kill(process.pid, signal.SIGSTOP)
        wait_until(lambda: _letter(process.pid) == "T", "stopped")
        return reason

    monkeypatch.setattr(impatient.poking, "refusal", stop_after_the_look)
    answer = impatient.poke()
    assert answer["skipped"][0]["reason"] == f"thread {process.pid} is stopped"
    assert _letter(process.pid) == "T"


def test_an_interrupted_poke_continues_what_it_stopped(moving, impatient, herd, monkeypatch):
    (process,) = herd(threaded=1)
    _flag(moving, process.pid)
    monkeypatch.setattr(impatient.poking, "await_stop", lambda pid: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        impatient.poke()
    wait_until(lambda: _letter(process.pid) == "S", "continued")


def test_the_guard_ends_with_the_poke(moving, impatient, herd, monkeypatch):
    (process,) = herd(single=1)
    _flag(moving, process.pid)
    popen, guards = subprocess.Popen, []
    monkeypatch.setattr(
        subprocess, "Popen", lambda *args, **options: guards.append(popen(*args, **options)) or guards[-1]
    )
    impatient.poke()
    assert [guard.returncode for guard in guards] == [0]


def test_the_guard_starts_where_descriptors_are_many(moving, impatient, herd):
    (process,) = herd(single=1)
    _flag(moving, process.pid)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(1100):  # select() takes none above 1023
                stack.callback(os.close, os.dup(0))
            assert len(impatient.poke()["poked"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_guard_whose_pipe_a_sibling_holds_ends_with_a_poke_that_fails(moving, impatient, herd, monkeypatch):
    (process,) = herd(single=1)
    _flag(moving, process.pid)
    siblings = []

    def fork_then_fail(*about):
        sibling = os.fork()  # as a minion that starts a job: it inherits the pipe to the guard
        if not sibling:
            signal.alarm(60)
            signal.pause()
        siblings.append(sibling)
        raise OSError("a look that failed")

    monkeypatch.setattr(impatient.poking, "stop_and_continue", fork_then_fail)
    began = time.monotonic()
    try:
        with pytest.raises(CommandExecutionError, match="a look that failed"):
            impatient.poke()
        assert time.monotonic() - began < 30
    finally:
        for sibling in siblings:
            os.kill(sibling, signal.SIGKILL)
            os.waitpid(sibling, 0)


def test_a_process_that_ends_right_before_the_signal_has_vanished(moving, impatient, herd, monkeypatch):
    (process,) = herd(single=1)
    _flag(moving, process.pid)
    real_kill = os.kill

    def end_first(pid, number):
        if number == signal.SIGSTOP:
            _end(process)
        real_kill(pid, number)

    monkeypatch.setattr(os, "kill", end_first)
    answer = impatient.poke()
    assert (answer["poked"], answer["skipped"], answer["vanished"]) == ([], [], [process.pid])


def test_a_process_that_may_not_be_signalled_is_skipped(moving, impatient, herd, monkeypatch):
    (process,) = herd(single=1)
    _flag(moving, process.pid)

    def refuse(pid, number):
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patched:
        patched.setattr(os, "kill", refuse)
        answer = impatient.poke()
    assert [task["reason"] for task in answer["skipped"]] == ["it may not be signalled: Operation not permitted"]


def test_who_crosses_by_itself_on_the_way_is_not_poked(moving, impatient, herd, monkeypatch):
    processes = sorted(herd(single=3), key=lambda process: process.pid)
    for process in processes:
        _flag(moving, process.pid)
    real_kill, sent = os.kill, []

    def cross(pid, number):
        real_kill(pid, number)
        sent.append(pid)
        if processes[1].pid in moving.tasks:
            moving.flag(processes[1].pid, False)

    monkeypatch.setattr(os, "kill", cross)
    answer = impatient.poke()
    assert [task["reason"] for task in answer["skipped"]] == ["it has crossed meanwhile"]
    assert set(sent) == {processes[0].pid, processes[2].pid}


def test_a_transition_that_ends_on_the_way_ends_the_poke(moving, impatient, herd, monkeypatch):
    processes = herd(single=3)
    for process in processes:
        _flag(moving, process.pid)
    real_kill, sent = os.kill, []

    def end(pid, number):
        real_kill(pid, number)
        sent.append(pid)
        if number == signal.SIGCONT:
            moving.finish()

    monkeypatch.setattr(os, "kill", end)
    answer = impatient.poke()
    assert len(set(sent)) == len(answer["poked"]) == 1
    assert (answer["count"], answer["complete"]) == (0, True)


def test_without_a_guard_nothing_is_stopped(moving, impatient, herd, monkeypatch):
    (process,) = herd(single=1)
    _flag(moving, process.pid)
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    _no_poke(monkeypatch)
    with pytest.raises(impatient.CommandExecutionError, match="Cannot start the guard"):
        impatient.poke()
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with pytest.raises(impatient.CommandExecutionError, match="guard of a poke did not start"):
        impatient.poke()


EPOLL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
descriptor = libc.epoll_create1(0)
print(flush=True)
libc.epoll_wait(descriptor, ctypes.create_string_buffer(12), 1, -1)
print(os.strerror(ctypes.get_errno()))
"""
SIGWAIT = """
import signal
everything = signal.valid_signals()
signal.pthread_sigmask(signal.SIG_BLOCK, everything)
print(flush=True)
print(int(signal.sigwait(everything)))
"""


@pytest.mark.parametrize(("program", "seen"), [(EPOLL, "Interrupted system call"), (SIGWAIT, "18")])
def test_a_poke_can_be_noticed_as_the_docstring_says(moving, impatient, program, seen):
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        wait_until(lambda: _letter(process.pid) == "S", "asleep")
        _flag(moving, process.pid)
        impatient.poke()
        assert process.communicate(timeout=30)[0].strip() == seen


# A poking process of its own, which is killed with SIGKILL

POKER = """
import os, signal, sys
from tests.conftest import load_file
kgraft = load_file("_modules/kgraft.py", __opts__={{"kgraft.root": {root!r}}})
kgraft.poking.await_crossing = lambda root, pids: None
kill = os.kill
{trap}
print("poking", flush=True)
while True:
    kgraft.poke()
    if {once}:
        break
"""
DIE = "kill(os.getpid(), signal.SIGKILL)"
BETWEEN_STOP_AND_CONT = f"""
def deadly(pid, number):
    kill(pid, number)
    if number == signal.SIGSTOP:
        {DIE}
os.kill = deadly
"""
BETWEEN_GUARD_AND_STOP = f"""
arm = kgraft.poking.Guard.arm
def deadly(guard, *about):
    arm(guard, *about)
    {DIE}
kgraft.poking.Guard.arm = deadly
"""
WITH_A_SIBLING_THAT_HOLDS_THE_PIPE = f"""
def deadly(pid, number):
    kill(pid, number)
    if number == signal.SIGSTOP:
        if os.fork():
            {DIE}
        signal.alarm(20)
        signal.pause()
os.kill = deadly
"""
WITH_A_SERVICE_THAT_STOPS = (
    BETWEEN_STOP_AND_CONT
    + """
arm = kgraft.poking.Guard.arm
def tell(guard, *about):
    arm(guard, *about)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        kill(guard.process.pid, number)
kgraft.poking.Guard.arm = tell
"""
)
WITH_ITS_PROCESS_GROUP = """
def deadly(pid, number):
    kill(pid, number)
    if number == signal.SIGSTOP:
        os.killpg(0, signal.SIGKILL)
os.kill = deadly
"""
BY_A_TERMINAL_THAT_GOES_AWAY = f"""
def deadly(pid, number):
    kill(pid, number)
    if number == signal.SIGSTOP:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
            os.killpg(os.getpgid(0), number)
        {DIE}
os.kill = deadly
"""


def _poker(repo, root, trap="", once=False):
    source = textwrap.dedent(POKER).format(root=str(root), trap=trap, once=once)
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", source], cwd=repo, stdin=pipe, stdout=pipe, start_new_session=True)


@pytest.mark.parametrize(
    ("trap", "reached"),
    [
        (BETWEEN_STOP_AND_CONT, True),
        (BETWEEN_GUARD_AND_STOP, False),
        (WITH_A_SIBLING_THAT_HOLDS_THE_PIPE, True),
        (WITH_A_SERVICE_THAT_STOPS, True),
        (WITH_ITS_PROCESS_GROUP, True),
        (BY_A_TERMINAL_THAT_GOES_AWAY, True),
    ],
    ids=[
        "between STOP and CONT",
        "between the guard's start and STOP",
        "with a sibling that holds the pipe",
        "with a service that stops",
        "with its process group",
        "with its terminal",
    ],
)
@pytest.mark.parametrize("kind", ["single", "threaded"])
def test_a_poke_killed_leaves_nobody_stopped(moving, herd, repo, trap, reached, kind):
    (process,) = herd(**{kind: 1})
    _flag(moving, process.pid)
    before = sum(_switches(process.pid).values())
    with _poker(repo, moving.root, trap, once=True) as poker:
        assert poker.stdout.readline() == b"poking\n"
        assert poker.wait(30) == -signal.SIGKILL
        wait_until(lambda: _letter(process.pid) == "S", "continued by the guard")
    if reached:
        assert sum(_switches(process.pid).values()) > before


AFTER_THE_DISARMING = f"""
disarm = kgraft.poking.Guard.disarm
def deadly(guard):
    disarm(guard)
    print(guard.process.pid, flush=True)
    sys.stdin.readline()
    {DIE}
kgraft.poking.Guard.disarm = deadly
"""


def test_a_guard_leaves_alone_what_somebody_else_stops_afterwards(moving, herd, repo):
    (process,) = herd(single=1)
    _flag(moving, process.pid)
    with _poker(repo, moving.root, AFTER_THE_DISARMING, once=True) as poker:
        assert poker.stdout.readline() == b"poking\n"
        guard = int(poker.stdout.readline())
        os.kill(process.pid, signal.SIGSTOP)
        wait_until(lambda: _letter(process.pid) == "T", "stopped by somebody else")
        poker.stdin.write(b"\n")
        poker.stdin.flush()
        assert poker.wait(30) == -signal.SIGKILL
        wait_until(lambda: not os.path.exists(f"/proc/{guard}") or _letter(guard) == "Z", "the guard has ended")
        assert _letter(process.pid) == "T"


@pytest.mark.parametrize(("later", "letter"), [(0, "S"), (1, "T")])
def test_a_guard_continues_what_it_was_told_of_and_no_stranger_with_its_pid(kgraft, herd, later, letter):
    (process,) = herd(single=1)
    os.kill(process.pid, signal.SIGSTOP)
    wait_until(lambda: _letter(process.pid) == "T", "stopped")
    told = f"{process.pid} {int(_stat(process.pid)[19]) + later}\n".encode()
    guard = [sys.executable, "-I", "-S", "-c", kgraft.poking.GUARD, str(os.getpid())]
    assert subprocess.run(guard, input=told, stdout=subprocess.PIPE, timeout=60).stdout == b"ready"
    wait_until(lambda: _letter(process.pid) == letter, "continued, or left alone")


def test_20_pokes_killed_at_random_leave_nobody_stopped(moving, herd, repo):
    processes = herd(single=20, threaded=5)
    for process in processes:
        _flag(moving, process.pid)
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    for _ in range(20):
        with _poker(repo, moving.root) as poker:
            assert poker.stdout.readline() == b"poking\n"
            time.sleep(dice.uniform(0, 0.3))  # where the kill falls is the dice's, not a wait for anything
            poker.kill()
            poker.wait(30)
            wait_until(
                lambda: all(_letter(process.pid) == "S" for process in processes), f"nobody stopped (seed {seed})"
            )


# Against a kernel that decides by what the processes really do


def test_a_poke_frees_sleepers_and_names_the_rest(kgraft_on, tmp_path):
    with contextlib.ExitStack() as stack:
        animals = {
            kind: stack.enter_context(samples.process(kind))
            for kind in ("sleep", "threads", "epoll", "stopped", "traced", "zombie")
        }
        lab = stack.enter_context(
            Lab(
                tmp_path / "lab",
                period=0.1,
                fake_signal=False,
                pids=[animal.pid for animal in animals.values()],
                stuck_threads=["nfsd"],
            )
        )
        kgraft = kgraft_on(lab)
        lab.load(PATCH)
        names = {animal.pid: kind for kind, animal in animals.items()}
        answer = kgraft.poke()
        assert {names[task["pid"]] for task in answer["poked"]} == {"sleep", "threads", "epoll"}
        assert {names.get(task["pid"], task["name"]) for task in answer["skipped"]} == {
            "stopped",
            "traced",
            "zombie",
            "nfsd",
        }
        assert answer["count"] == len(answer["skipped"]) == kgraft.blocking()["count"]
        assert animals["stopped"].letter == "T"
        assert kgraft.in_progress(animals["threads"].pid) is False
        os.kill(animals["stopped"].pid, signal.SIGCONT)
        wait_until(lambda: not kgraft.in_progress(animals["stopped"].pid), "the stopped one has crossed")
