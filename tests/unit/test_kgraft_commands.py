"""The room that runs commands which may hang, over real processes."""

import logging
import os
import pathlib
import signal
import threading
import time
import traceback

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

SECRET = "0ab1-SECRET-c0de"


@pytest.fixture
def commands(load):
    return load("_modules/_kgraft_commands.py")


@pytest.fixture
def shell(commands, tmp_path):
    """``shell(script, timeout)``: run it by a shell; tests look at the processes that it writes to ``pids``."""

    def run(script, timeout=30, **arguments):
        script = f"cd {tmp_path}\n{script}"
        return commands.run(["sh", "-c", script, "sh", SECRET], commands.deadline(timeout), **arguments)

    run.pids = tmp_path / "pids"
    return run


def running(path):
    """The processes of that list that still run; one that has ended may wait for its parent to look."""
    found = []
    for pid in path.read_text("ascii").split():
        try:
            stat = pathlib.Path("/proc", pid, "stat").read_text("utf-8", errors="replace")
        except FileNotFoundError:
            continue
        if stat.rpartition(")")[2].split()[0] != "Z":
            found.append(pid)
    return found


def test_what_a_command_said_and_how_it_ended_is_returned(shell):
    assert shell("echo out; echo err >&2; exit 3") == {"retcode": 3, "stdout": "out\n", "stderr": "err\n"}


def test_output_that_is_no_utf_8_is_passed_on_as_far_as_it_is_text(shell):
    assert shell(r"printf 'a\377b'; printf '\303' >&2") == {"retcode": 0, "stdout": "a\ufffdb", "stderr": "\ufffd"}


def test_a_command_speaks_english_and_knows_its_environment(shell, monkeypatch):
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("KEPT", "kept")
    said = shell("echo $LC_ALL $LANGUAGE $KEPT $MORE", env={"MORE": "more"})["stdout"]
    assert said == "C.UTF-8 C kept more\n"


def test_a_command_reads_what_it_is_given_and_then_the_end(shell):
    assert shell("cat; echo end", stdin="a code\n")["stdout"] == "a code\nend\n"
    assert shell("cat; echo end")["stdout"] == "end\n"


def test_a_command_need_not_read_what_it_is_given(shell):
    assert shell("exec <&-; exit 4", stdin="x" * 1_000_000)["retcode"] == 4


def test_a_child_that_holds_no_pipe_may_go_on(shell):
    shell("sleep 30 </dev/null >/dev/null 2>&1 & echo $! >pids")
    (pid,) = running(shell.pids)
    os.kill(int(pid), signal.SIGKILL)


HOLDER = "a grandchild that holds the pipes of a command that has ended"
HANGS = {
    "itself": "echo $$ >pids; exec sleep 60",
    "a child": "echo $$ >pids; sleep 60 & echo $! >>pids; wait",
    "a grandchild": "sh -c 'sleep 60 & echo $! >>pids; wait' & echo $$ $! >>pids; wait",
    HOLDER: "(sleep 60 & echo $! >>pids); echo $$ >>pids",
    "one that ignores SIGTERM": "trap '' TERM; echo $$ >pids; while :; do sleep 1; done",
    "a child that ignores SIGTERM": "(trap '' TERM; while :; do sleep 1; done) & echo $$ $! >pids; wait",
    "a child in a group of its own": "set -m; sleep 60 & echo $$ $! >pids; wait",
    "a silent child that ignores SIGTERM": (
        "(trap '' TERM; while :; do sleep 1; done) >/dev/null 2>&1 & echo $$ $! >pids; wait"
    ),
}


@pytest.mark.parametrize("script", HANGS.values(), ids=HANGS)
def test_a_command_that_hangs_is_ended_with_all_that_it_started(shell, script):
    began = time.monotonic()
    with pytest.raises(CommandExecutionError, match=r"^sh did not end within 1 s and was ended$"):
        shell(script, timeout=0)
    assert time.monotonic() - began < 5
    assert shell.pids.read_text("ascii").split() != []
    assert running(shell.pids) == []


def test_a_child_is_asked_to_end_and_has_a_moment_for_it(shell, tmp_path):
    """What zypper and rpm need; also where the command that started them ends at once."""
    with pytest.raises(CommandExecutionError):
        shell("(trap 'sleep 0.3; echo tidy >told; exit' TERM; while :; do sleep 0.05; done) & wait", timeout=0)
    assert (tmp_path / "told").read_text("ascii") == "tidy\n"


class Interrupted(BaseException):
    """As KeyboardInterrupt, which subprocess itself knows, and as what a signal handler of a daemon raises."""


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, Interrupted])
@pytest.mark.parametrize("script", [HANGS["a child"], HANGS[HOLDER]], ids=["a child", HOLDER])
def test_an_interrupt_leaves_nobody(shell, script, interrupt, monkeypatch):
    def interrupted(number, frame):
        raise interrupt

    previous = signal.signal(signal.SIGUSR1, interrupted)
    main = threading.main_thread().ident
    timer = threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGUSR1))
    timer.start()
    try:
        with pytest.raises(interrupt):
            shell(script)
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, previous)
    assert shell.pids.read_text("ascii").split() != []
    assert running(shell.pids) == []


@pytest.mark.parametrize(
    "timeout", ["5", "", None, True, False, float("nan"), float("inf"), -float("inf"), -1, -0.1, [5]]
)
def test_a_timeout_that_is_no_number_of_seconds_is_refused(commands, timeout):
    with pytest.raises(SaltInvocationError, match="^timeout is .*: give seconds, 0 or more$"):
        commands.deadline(timeout)


@pytest.mark.parametrize("timeout", [0, 0.5, 60, 10**8, 10**400], ids=["0", "0.5", "60", "10**8", "10**400"])
def test_any_number_of_seconds_is_taken(commands, shell, timeout):
    began = time.monotonic()
    assert began <= commands.deadline(timeout) <= time.monotonic() + min(timeout, 10**9)
    assert shell("exit 0", timeout)["retcode"] == 0


def test_a_deadline_that_is_over_leaves_a_second(commands):
    assert commands.run(["sh", "-c", "sleep 0.2; echo said"], time.monotonic() - 5)["stdout"] == "said\n"


# ---- what nobody may see


def failures(commands, tmp_path):
    """Each way in which a command fails, with a secret in its arguments."""
    script = tmp_path / "script"
    script.touch(mode=0o644)
    broken = tmp_path / "broken"
    broken.write_text("#!/no/such/interpreter\n", "ascii")
    broken.chmod(0o755)
    return {
        "missing cannot be run: No such file or directory": ["/nowhere/missing", SECRET],
        "script cannot be run: Permission denied": [str(script), SECRET],
        "broken cannot be run: No such file or directory": [str(broken), SECRET],
        "sh did not end within 1 s and was ended": ["sh", "-c", "sleep 60", SECRET],
    }


def test_no_message_and_no_log_holds_what_a_command_was_given(commands, tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_TESTS", SECRET)
    with caplog.at_level(logging.NOTSET):
        for message, command in failures(commands, tmp_path).items():
            with pytest.raises(CommandExecutionError) as failure:
                commands.run(command, commands.deadline(0), env={"MORE": SECRET}, stdin=SECRET)
            assert str(failure.value) == message
            assert SECRET not in "".join(traceback.format_exception(failure.value))
        commands.run(["true", SECRET], commands.deadline(30), env={"MORE": SECRET}, stdin=SECRET)
    assert SECRET not in caplog.text
