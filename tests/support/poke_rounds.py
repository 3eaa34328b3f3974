"""
Poke one process again and again, with a trap in the process that pokes that fires while somebody is held.

``python -m tests.support.poke_rounds ROOT METHOD TRAP ROUNDS PID``: ``ROOT`` is a tree in which ``PID`` blocks. Each
round is a process of its own that pokes once. It fails as soon as a round did not reach the window, or left the process
held: also while who pokes stands still himself.
"""

import os
import signal
import sys

from lab import procfs, wait_until
from tests.support.load import load_file

# Lines of the process that pokes before which a trap goes: somebody is held there.
HELD = {
    "trace": "        # Where it is not our stop",
    "signals": "            # A SIGCONT cancels a stop",
}
# Who pokes, by number: getppid() of an orphan is process 1, which may take a SIGINT for a wish to reboot.
WHO = "int(sys.argv[2])"
TRAPS = {
    "none": "pass",
    "SIGKILL of who pokes": f"os.kill({WHO}, signal.SIGKILL)",
    "SIGINT of who pokes": f"os.kill({WHO}, signal.SIGINT)",
    "SIGTERM of who pokes": f"os.kill({WHO}, signal.SIGTERM)",
    "SIGSTOP of who pokes": f"os.kill({WHO}, signal.SIGSTOP)",
    "SIGKILL of the process that pokes": "os.kill(os.getpid(), signal.SIGKILL)",
    "SIGKILL of a process group": f"os.killpg(os.getpgid({WHO}), signal.SIGKILL)",
    "a terminal that goes away": f"[os.killpg(group, n) for group in [os.getpgid({WHO})] for n in (1, 2, 20, 15)]",
    "a service that stops": f"[os.kill(one, n) for one in (os.getpid(), {WHO}) for n in (1, 2, 3, 15)]",
}


def letters(pid):
    """The states of all threads of a process, as a set of letters."""
    looks = [procfs.Processes().look(pid, tid) for tid in procfs.Processes().threads(pid)]
    return {look[0] for look in looks if look}


def switches(pid):
    """How often each thread was switched: more often than before, it has run."""
    return {tid: procfs.Processes().look(pid, tid)[1] for tid in procfs.Processes().threads(pid)}


def prepared(root, method, trap):
    """Our module on a tree of files, which clears no flag, with the trap set."""
    kgraft = load_file("_modules/kgraft.py", __opts__={"kgraft.root": root})
    room, held = kgraft.poking, HELD[method]
    room._await_crossing = lambda root, pids: None
    room._notices = lambda parent: None
    assert room.SOURCE.count(held) == 1
    room.SOURCE = room.SOURCE.replace(held, held[: -len(held.lstrip())] + TRAPS[trap] + "\n" + held)
    return kgraft


def main(root, method, trap, rounds, pid):
    kgraft, pid = prepared(root, method, trap), int(pid)
    for number in range(int(rounds)):
        before = switches(pid)
        child = os.fork()
        if not child:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            kgraft.poke(pids=pid, method=method)
            os._exit(0)
        ended, status = os.waitpid(child, os.WUNTRACED)
        wait_until(lambda: letters(pid) == {"S"}, f"nobody held after round {number}")
        if os.WIFSTOPPED(status):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            wait_until(lambda: letters(pid) == {"S"}, f"nobody held after the end of round {number}")
        now = switches(pid)
        assert any(now[tid] > before[tid] for tid in now), f"round {number}: the window was not reached"
    print(f"{rounds} rounds")


if __name__ == "__main__":
    main(*sys.argv[1:])
