"""
The process that pokes: it lets threads across by tracing each for a moment, or by SIGSTOP and SIGCONT.

It is executed, ``python -I -S -c <this text> METHOD PARENT``, in a session of its own: what ends the poking process, a
terminal or a service, does not reach it while it holds somebody. It reads a line for each process, ``PID START_TIME TID
TID …``, and answers with one, ``TID:WORD TID:WORD …``. The words:

``moved``
    it was stopped for a moment and went on, so it has passed the boundary between kernel and program
``gone``, ``other``
    it has ended; the process of that number is another one
``running``, ``stopped``, ``uninterruptible``, ``ended``
    what its state is instead of asleep: it was left alone
``EPERM`` or another errno
    what the kernel says to tracing or signalling it
``unreachable``
    it did not stop in time

Nothing is written while somebody is held. By tracing, the kernel itself frees everybody as soon as this process ends,
however (kernel/ptrace.c, exit_ptrace). By signals, who gave the order sends SIGCONT if this process ends without an
answer.
"""

import ctypes
import errno
import os
import select
import signal
import sys
import time

# include/uapi/linux/ptrace.h and wait.h; the same on every architecture in MACHINES
SEIZE, INTERRUPT, DETACH, WALL = 0x4206, 0x4207, 17, 0x40000000
MACHINES = ("x86_64", "ppc64le", "s390x", "aarch64")

HOLD = 0.1  # seconds
# After these this process ends: a thread that is traced and not stopped cannot be let go otherwise.
LAST = ("other", "unreachable")
STATES = {"R": "running", "T": "stopped", "t": "stopped", "D": "uninterruptible", "Z": "ended", "X": "ended"}


def trace(pid, start_time, tids):
    """Trace one thread after the other; the word for each, up to one that is ``LAST``."""
    words = []
    for tid in tids:
        word = _state(pid, start_time, tid)
        words.append(word if word != "asleep" else _let_across(pid, start_time, tid))
        if words[-1] in LAST:
            break
    return words


def _let_across(pid, start_time, tid):
    try:
        _ptrace(SEIZE, tid)
        # Until now the number may have gone to another thread.
        if _state(pid, start_time, tid) in ("gone", "other"):
            return "other"
        _ptrace(INTERRUPT, tid)
        status = _await_stop(tid)
        if status is None:
            return "unreachable"
        if not os.WIFSTOPPED(status):
            return "gone"
        # Where it is not our stop but that of a signal on its way, the signal is passed on.
        _ptrace(DETACH, tid, 0 if status >> 16 else os.WSTOPSIG(status))
    except OSError as err:
        return _refused(err)
    return "moved"


def _await_stop(tid):
    """What waitpid says of the stop; None if there is none in time."""
    deadline = time.monotonic() + HOLD
    while True:
        found, status = os.waitpid(tid, WALL | os.WNOHANG)
        left = deadline - time.monotonic()
        if found or left <= 0:
            return status if found else None
        signal.sigtimedwait([signal.SIGCHLD], left)


def _ptrace(request, tid, data=0):
    call = ctypes.CDLL(None, use_errno=True).ptrace
    call.restype, call.argtypes = ctypes.c_long, [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    if call(request, tid, None, data) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def stop_and_continue(pid, start_time, tids):
    """Stop the whole process and continue it; the same word for each thread."""
    states = [_state(pid, start_time, tid) for tid in _threads(pid) or tids]
    odd = [state for state in states if state in ("other", "stopped")]
    return [odd[0] if odd else _signals(pid)] * len(tids)


def _signals(pid):
    try:
        # It harms nobody, and shows that the last one will be allowed: a right to stop is not one to continue.
        os.kill(pid, signal.SIGCONT)
        try:
            os.kill(pid, signal.SIGSTOP)
            # A SIGCONT cancels a stop that has not reached every thread yet (kernel/signal.c, prepare_signal).
            deadline = time.monotonic() + HOLD
            while time.monotonic() < deadline and not set(_letters(pid)) <= set("TtZX"):
                pass
        finally:
            os.kill(pid, signal.SIGCONT)
    except OSError as err:
        return _refused(err)
    return "moved"


def _threads(pid):
    try:
        return [int(tid) for tid in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def _letters(pid):
    for tid in _threads(pid):
        try:
            yield _fields(f"/proc/{pid}/task/{tid}/stat")[0].decode()
        except OSError:
            continue


def _state(pid, start_time, tid):
    """``asleep``, or another of the words; a thread is that of a process by its number, start time and folder."""
    try:
        if _fields(f"/proc/{pid}/stat")[19] != start_time:
            return "other"
        return STATES.get(_fields(f"/proc/{pid}/task/{tid}/stat")[0].decode(), "asleep")
    except OSError as err:
        return _refused(err)


def _fields(path):
    with open(path, "rb") as stat:
        return stat.read().rpartition(b")")[2].split()


def _refused(err):
    gone = err.errno in (errno.ESRCH, errno.ENOENT)
    return "gone" if gone else errno.errorcode.get(err.errno, str(err.errno))


def orders(parent):
    """Lines, until there are no more: a forked sibling may hold the pipe open, so the parent is looked for, too."""
    waiting = b""
    while os.getppid() == parent:
        if select.select([0], [], [], 0.1)[0]:
            chunk = os.read(0, 65536)
            if not chunk:
                return
            *lines, waiting = (waiting + chunk).split(b"\n")
            for line in lines:
                yield line.split()


def main(method, parent):
    poke = {"trace": trace, "signals": stop_and_continue}[method]
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    os.write(1, b"ready\n")
    for pid, start_time, *tids in orders(parent):
        words = poke(int(pid), start_time, [int(tid) for tid in tids])
        answer = [f"{tid.decode()}:{word}" for tid, word in zip(tids, words)]
        os.write(1, " ".join(answer).encode() + b"\n")
        if words[-1] in LAST:
            return


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
