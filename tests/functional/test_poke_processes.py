"""A poke over real processes: it frees them, spares strangers, and leaves nobody held, whoever is killed when."""

import contextlib
import os
import pty
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError

from lab import Lab, procfs, samples, wait_until
from tests.support.load import load_file
from tests.support.poke_rounds import TRAPS, letters, switches
from tests.support.soak import rounds

PATCH = "kgraft-patch-2-2_1"
BOTH = pytest.mark.parametrize("method", ["trace", "signals"])
THREADS = """
import threading, time
for _ in range(7):
    threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
print(flush=True)
time.sleep(3600)
"""


def _start_time(pid):
    return procfs.stat(pid)["start_time"]


@pytest.fixture
def sleepers():
    """``sleepers(single, threaded)``: that many sleeping processes of ours, asleep when it returns."""
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
            wait_until(lambda: all(letters(process.pid) == {"S"} for process in processes), "everybody asleep")
            return processes

        yield start


def _end(process):
    process.kill()
    process.wait()
    if process.stdout:
        process.stdout.close()


def _flag(kernel, pid):
    """The kernel of files says that a real process, with all its threads, blocks."""
    kernel.real(pid, {int(tid): True for tid in os.listdir(f"/proc/{pid}/task")})


@pytest.fixture
def moving(kernel):
    kernel.start(PATCH)
    return kernel


@pytest.fixture
def quick(kgraft):
    """The module; files clear no flag, so it does not wait for that, and the parent, pytest, is one that notices."""
    kgraft.poking._await_crossing = lambda root, pids: None
    kgraft.poking._notices = lambda parent: None
    return kgraft


@pytest.fixture
def during(quick, monkeypatch):
    """``during(call)``: ``call(pid)`` after each process that was poked."""

    def hook(call):
        real = quick.poking.Poker.poke

        def poke(self, pid, *order):
            words = real(self, pid, *order)
            call(pid)
            return words

        monkeypatch.setattr(quick.poking.Poker, "poke", poke)

    return hook


@BOTH
def test_200_processes_are_woken_with_all_their_threads_and_those_that_end_are_told(
    moving, quick, sleepers, during, method
):
    processes = sleepers(single=160, threaded=40)
    for process in processes:
        _flag(moving, process.pid)
    before = {process.pid: switches(process.pid) for process in processes}
    # by number, for that is the turn; the numbers may have begun anew between two of them
    late = {process.pid for process in sorted(processes, key=lambda process: process.pid)[20:]}
    doomed = [process for process in processes[:160] if process.pid in late][:10]
    doomed += [process for process in processes[160:] if process.pid in late][:5]
    poked = []

    def end_some_on_the_way(pid):
        poked.append(pid)
        if len(poked) == 20:
            for process in doomed:
                _end(process)
                moving.exit(process.pid)

    during(end_some_on_the_way)
    answer = quick.poke(method=method)
    gone = {process.pid for process in doomed}
    assert {task["pid"] for task in answer["poked"]} | set(answer["vanished"]) == set(before)
    assert set(answer["vanished"]) == gone
    assert set(poked) == set(before) - gone
    living = set(before) - gone

    def woken():
        return all(now > before[pid][tid] for pid in living for tid, now in switches(pid).items())

    wait_until(woken, "every thread has run")
    wait_until(lambda: {letter for pid in living for letter in letters(pid)} == {"S"}, "everybody asleep again")


@BOTH
def test_test_mode_wakes_nobody(moving, quick, sleepers, method):
    (process,) = sleepers(single=1)
    _flag(moving, process.pid)
    before = switches(process.pid)
    answer = quick.poke(test=True, method=method)
    assert [task["pid"] for task in answer["poked"]] == [process.pid]
    assert switches(process.pid) == before


# The process that pokes, alone


@pytest.fixture
def poker(quick):
    """``poker(method)``: the process that pokes; ``.poke(pid, start_time, tids)`` is what came of each thread."""
    with contextlib.ExitStack() as stack:

        def start(method):
            return stack.enter_context(contextlib.closing(quick.poking.Poker(method)))

        yield start


@BOTH
def test_a_process_with_another_start_time_is_another_one_and_not_touched(poker, sleepers, method):
    (process,) = sleepers(threaded=1)
    tids, before = procfs.Processes().threads(process.pid), switches(process.pid)
    words = poker(method).poke(process.pid, _start_time(process.pid) + 1, tids)
    assert set(words.values()) == {"other"}
    assert switches(process.pid) == before


def test_a_thread_of_another_process_is_not_traced(poker, sleepers):
    mine, other = sleepers(single=2)
    before = switches(other.pid)
    assert poker("trace").poke(mine.pid, _start_time(mine.pid), [other.pid, mine.pid]) == {
        other.pid: "gone",
        mine.pid: "moved",
    }
    assert switches(other.pid) == before


@pytest.mark.parametrize(
    ("method", "kind", "word"),
    [
        *((method, kind, "moved") for method in ("trace", "signals") for kind in ("sleep", "futex", "threads", "read")),
        *((method, kind, "stopped") for method in ("trace", "signals") for kind in ("stopped", "traced")),
        # by signals these are refused before: tests/unit/test_kgraft_poke.py
        ("trace", "vfork", "uninterruptible"),
        ("trace", "busy", "running"),
        ("trace", "zombie", "ended"),
    ],
)
def test_each_state_has_its_word_and_stays_as_it_was(poker, method, kind, word):
    with samples.process(kind) as sample:
        before = letters(sample.pid)
        words = poker(method).poke(sample.pid, _start_time(sample.pid), sample.tids)
        assert set(words.values()) == {word}
        wait_until(lambda: letters(sample.pid) == before, "as it was")


def test_a_thread_that_does_not_stop_is_let_go_by_the_end_of_the_process_that_pokes(poker, quick, sleepers):
    (free,) = sleepers(single=1)
    quick.poking.SOURCE = quick.poking.SOURCE.replace('"D": "uninterruptible", ', "")
    with samples.process("vfork") as sample:
        asked = poker("trace")
        assert asked.poke(sample.pid, _start_time(sample.pid), sample.tids) == {sample.pid: "unreachable"}
        assert asked.process is None
        assert (sample.letter, _tracer(sample.pid)) == ("D", 0)
        assert asked.poke(free.pid, _start_time(free.pid), [free.pid]) == {free.pid: "moved"}


def _tracer(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("TracerPid"))


def test_stop_comes_after_a_continue_that_was_allowed_and_before_the_other(sleepers, monkeypatch):
    poker = load_file("_modules/_kgraft_poker.py")
    (process,) = sleepers(single=1)
    real_kill, sent = os.kill, []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)) or real_kill(pid, number))
    assert poker.stop_and_continue(process.pid, str(_start_time(process.pid)).encode(), [process.pid]) == ["moved"]
    assert sent == [(process.pid, number) for number in (signal.SIGCONT, signal.SIGSTOP, signal.SIGCONT)]
    wait_until(lambda: letters(process.pid) == {"S"}, "asleep again")


def test_without_the_right_to_continue_nothing_is_stopped(sleepers, monkeypatch):
    poker = load_file("_modules/_kgraft_poker.py")
    (process,) = sleepers(single=1)
    sent = []

    def refuse(pid, number):
        sent.append(number)
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patched:
        patched.setattr(os, "kill", refuse)
        assert poker.stop_and_continue(process.pid, str(_start_time(process.pid)).encode(), [1]) == ["EPERM"]
    assert sent == [signal.SIGCONT]


@BOTH
def test_a_process_that_ends_right_before_has_vanished(moving, quick, sleepers, monkeypatch, method):
    (process,) = sleepers(single=1)
    _flag(moving, process.pid)
    real = quick.poking.Poker.poke

    def end_first(self, *order):
        _end(process)
        return real(self, *order)

    monkeypatch.setattr(quick.poking.Poker, "poke", end_first)
    answer = quick.poke(method=method)
    assert (answer["poked"], answer["skipped"], answer["vanished"]) == ([], [], [process.pid])


@BOTH
def test_a_transition_that_ends_on_the_way_ends_the_poke(moving, quick, sleepers, during, method):
    for process in sleepers(single=3):
        _flag(moving, process.pid)
    poked = []
    during(lambda pid: poked.append(pid) or moving.finish())
    answer = quick.poke(method=method)
    assert len(poked) == len(answer["poked"]) == 1
    assert (answer["count"], answer["complete"]) == (0, True)


@BOTH
def test_the_process_that_pokes_ends_with_the_poke(moving, quick, sleepers, monkeypatch, method):
    (process,) = sleepers(single=1)
    _flag(moving, process.pid)
    popen, started = subprocess.Popen, []
    monkeypatch.setattr(
        subprocess, "Popen", lambda *args, **options: started.append(popen(*args, **options)) or started[-1]
    )
    quick.poke(method=method)
    assert [one.returncode for one in started] == [0]


def test_it_starts_where_descriptors_are_many(moving, quick, sleepers):
    (process,) = sleepers(single=1)
    _flag(moving, process.pid)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(1100):  # select() takes none above 1023
                stack.callback(os.close, os.dup(0))
            assert len(quick.poke()["poked"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@BOTH
def test_it_ends_with_a_poke_that_fails_though_a_sibling_holds_its_pipe(moving, quick, sleepers, during, method):
    (process,) = sleepers(single=1)
    _flag(moving, process.pid)
    siblings = []

    def fork_then_fail(pid):
        sibling = os.fork()  # as a minion that starts a job: it inherits the pipe
        if not sibling:
            signal.alarm(60)
            signal.pause()
        siblings.append(sibling)
        raise KeyboardInterrupt

    during(fork_then_fail)
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            quick.poke(method=method)
        assert time.monotonic() - began < 30
    finally:
        for sibling in siblings:
            os.kill(sibling, signal.SIGKILL)
            os.waitpid(sibling, 0)


@BOTH
@pytest.mark.parametrize("python", ["/nonexistent/python", "/bin/true"])
def test_without_a_process_that_pokes_nobody_is_touched(moving, quick, sleepers, monkeypatch, python, method):
    processes = sleepers(single=3)
    for process in processes:
        _flag(moving, process.pid)
    before = [switches(process.pid) for process in processes]
    monkeypatch.setattr(sys, "executable", python)
    with pytest.raises(CommandExecutionError, match="Cannot start the process that pokes|did not start within 10 s"):
        quick.poke(method=method)
    assert [switches(process.pid) for process in processes] == before


# What programs notice

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


@pytest.mark.parametrize(
    ("program", "method", "seen"),
    [
        (EPOLL, "trace", "Interrupted system call"),
        (EPOLL, "signals", "Interrupted system call"),
        (SIGWAIT, "trace", None),
        (SIGWAIT, "signals", "18"),
    ],
)
def test_what_a_poke_lets_a_program_notice(moving, quick, program, method, seen):
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        wait_until(lambda: letters(process.pid) == {"S"}, "asleep")
        _flag(moving, process.pid)
        before = switches(process.pid)
        quick.poke(method=method)
        if seen is None:
            assert switches(process.pid) != before
            wait_until(lambda: letters(process.pid) == {"S"}, "asleep again")
            process.send_signal(signal.SIGUSR1)
            seen = str(int(signal.SIGUSR1))
        assert process.communicate(timeout=30)[0].strip() == seen


def test_by_tracing_the_other_threads_run_on(moving, quick):
    program = """
import threading, time
threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
print(flush=True)
while True:
    pass
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        wait_until(lambda: letters(process.pid) == {"S", "R"}, "one asleep and one busy")
        _flag(moving, process.pid)
        (sleeper,) = (tid for tid in procfs.Processes().threads(process.pid) if tid != process.pid)
        (task,) = quick.poke(test=True)["poked"]
        assert task["crossed"] == [sleeper]
        assert task["left"] == {str(process.pid): "it runs, and clears by itself"}
        process.kill()


# Killed while somebody is held


@BOTH
@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("kind", ["single", "threaded"])
@pytest.mark.soak
def test_whoever_is_killed_in_the_window_nobody_is_held(moving, sleepers, repo, trap, method, kind):
    (process,) = sleepers(**{kind: 1})
    _flag(moving, process.pid)
    many = rounds(1000, otherwise=2)
    command = [
        sys.executable,
        "-m",
        "tests.support.poke_rounds",
        moving.root,
        method,
        trap,
        str(many),
        str(process.pid),
    ]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, timeout=60 + many, check=False)
    assert done.stdout == f"{many} rounds\n", done.stderr


WHO_POKES = """
import sys
from tests.support.poke_rounds import prepared
kgraft = prepared(sys.argv[1], sys.argv[2], "none")
print("poking", flush=True)
while True:
    kgraft.poke(method=sys.argv[2])
"""


@BOTH
@pytest.mark.soak
def test_whoever_is_killed_at_random_nobody_is_held(moving, sleepers, repo, method):
    processes = sleepers(single=20, threaded=5)
    for process in processes:
        _flag(moving, process.pid)
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    for _ in range(rounds(1000, otherwise=10)):
        command = [sys.executable, "-c", WHO_POKES, str(moving.root), method]
        with subprocess.Popen(command, cwd=repo, stdout=subprocess.PIPE) as who:
            assert who.stdout.readline() == b"poking\n"
            time.sleep(dice.uniform(0, 0.3))  # where the kill falls is the dice's, not a wait for anything
            who.kill()
            who.wait(30)
        wait_until(lambda: all(letters(process.pid) == {"S"} for process in processes), f"nobody held (seed {seed})")


@BOTH
def test_somebody_else_may_stop_a_process_afterwards(poker, sleepers, method):
    (process,) = sleepers(single=1)
    asked = poker(method)
    assert set(asked.poke(process.pid, _start_time(process.pid), [process.pid]).values()) == {"moved"}
    os.kill(process.pid, signal.SIGSTOP)
    wait_until(lambda: letters(process.pid) == {"T"}, "stopped by somebody else")
    asked.close()
    assert letters(process.pid) == {"T"}


# A job with eight threads, and above it a parent that waits for stops

JOB = """
import os, sys, threading, time
for _ in range(7):
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
with open(sys.argv[1] + "/begun", "w") as begun:
    begun.write(str(os.getpid()))
os.rename(sys.argv[1] + "/begun", sys.argv[1] + "/pid")
with open(sys.argv[1] + "/end") as end:
    end.read()
open(sys.argv[1] + "/done", "w").close()
os._exit(0)
"""
PARENTS = {
    "su": ["su", "-s", "/bin/sh", "-c", "{}", "root"],
    "runuser": ["runuser", "-s", "/bin/sh", "-c", "{}", "root"],
    "sudo": ["sudo", "-n", "/bin/sh", "-c", "{}"],
    "sh -m": ["sh", "-m", "-c", "{}; true"],
    "script": ["script", "-qec", "{}", "/dev/null"],
    "tmux": ["tmux", "-S", "{directory}/tmux", "new-session", "-s", "job", "{}"],
    "screen": ["setsid", "--wait", "screen", "-D", "-m", "/bin/sh", "-c", "{}"],
    "bash on a terminal": ["bash", "--norc", "--noprofile", "-i"],
}


NOTICING = ("su", "runuser", "sh -m", "bash on a terminal")


@contextlib.contextmanager
def _job(directory, parent):
    """The job under ``parent`` on a terminal of its own; yields its pid, and ends what is left of it."""
    (directory / "job.py").write_text(JOB)
    os.mkfifo(directory / "end")
    line = f"{sys.executable} {directory}/job.py {directory}"
    environ = dict(os.environ, TERM="xterm", SHELL="/bin/sh", SCREENDIR=str(directory))
    words = [word.format(line, directory=directory) for word in PARENTS[parent]]
    shell, terminal = pty.fork()
    if not shell:
        try:
            os.execvpe(words[0], words, environ)
        finally:
            os._exit(127)  # a missing program must not leave a second pytest
    threading.Thread(target=_drain, args=(terminal,), daemon=True).start()
    pid = None
    try:
        if parent.startswith("bash"):
            os.write(terminal, f"{line}\n".encode())
        wait_until((directory / "pid").exists, f"the job under {parent}", 60)
        pid = int((directory / "pid").read_text())
        wait_until(lambda: letters(pid) == {"S"} and len(switches(pid)) == 8, "eight threads asleep", 60)
        yield pid
    finally:
        if parent == "tmux":
            subprocess.run(["tmux", "-S", f"{directory}/tmux", "kill-server"], check=False, capture_output=True)
        for one in [pid, shell]:
            with contextlib.suppress(ProcessLookupError, TypeError):
                os.kill(one, signal.SIGKILL)
        os.waitpid(shell, 0)


def _drain(terminal):
    with contextlib.suppress(OSError):
        while os.read(terminal, 4096):
            pass
    os.close(terminal)


def _chain(pid):
    """A process and those above it, up to this one."""
    while pid not in (os.getpid(), 1, 0):
        yield pid
        pid = _fields(pid)[1]


def _fields(pid):
    with open(f"/proc/{pid}/stat", "rb") as stat:
        state, *numbers = stat.read().rpartition(b")")[2].split()
    return [state.decode(), *map(int, numbers)]


@pytest.mark.parametrize("parent", PARENTS)
@BOTH
@pytest.mark.soak
def test_no_parent_sees_a_poke_and_each_job_runs_to_its_end(moving, kgraft, parent, method):
    kgraft.poking._await_crossing = lambda root, pids: None
    with tempfile.TemporaryDirectory(prefix="kg") as name, _job(Path(name), parent) as job:  # sockets want a short one
        chain = list(_chain(job))
        for pid in chain:
            _flag(moving, pid)
        before, foreground = {pid: letters(pid) for pid in chain}, _fields(job)[5]
        woken = switches(job)
        for _ in range(rounds(1000, otherwise=2)):
            answer = kgraft.poke(method=method)
            wait_until(lambda: {pid: letters(pid) for pid in chain} == before, "everybody as before")
            assert _fields(job)[5] == foreground
        poked = {task["pid"] for task in answer["poked"]}
        if method == "trace":
            assert poked == set(chain)
            assert all(now > woken[tid] for tid, now in switches(job).items())
        elif parent in NOTICING:
            assert job not in poked
            assert any("notice" in task["reason"] for task in answer["skipped"] if task["pid"] == job)
        Path(name, "end").write_text("")
        wait_until(Path(name, "done").exists, "the job's end")
        wait_until(lambda: not os.path.exists(f"/proc/{job}") or letters(job) <= {"Z"}, "the job has ended")


# Against a kernel that decides by what the processes really do


@BOTH
def test_a_poke_frees_sleepers_and_names_the_rest(kgraft_on, tmp_path, method):
    with contextlib.ExitStack() as stack:
        kept = {
            kind: stack.enter_context(samples.process(kind))
            for kind in ("sleep", "threads", "epoll", "stopped", "traced", "zombie")
        }
        pids = [sample.pid for sample in kept.values()]
        options = {"period": 0.1, "fake_signal": False, "stuck_threads": ["nfsd"]}
        lab = stack.enter_context(Lab(tmp_path / "lab", pids=pids, **options))
        kgraft = kgraft_on(lab)
        lab.load(PATCH)
        names = {sample.pid: kind for kind, sample in kept.items()}
        answer = kgraft.poke(method=method)
        assert {names[task["pid"]]: len(task["crossed"]) for task in answer["poked"]} == {
            "sleep": 1,
            "threads": 8,
            "epoll": 1,
        }
        assert [task["left"] for task in answer["poked"]] == [{}, {}, {}]
        assert {names.get(task["pid"], task["name"]) for task in answer["skipped"]} == {
            "stopped",
            "traced",
            "zombie",
            "nfsd",
        }
        assert answer["count"] == len(answer["skipped"]) == kgraft.blocking()["count"]
        assert kept["stopped"].letter == "T"
        assert kgraft.in_progress(kept["threads"].pid) is False
        os.kill(kept["stopped"].pid, signal.SIGCONT)
        wait_until(lambda: not kgraft.in_progress(kept["stopped"].pid), "the stopped one has crossed")
