"""
The process that probes: it asks a service again and again, and notes the longest time without an answer.

It is executed, ``python -I -S -c <this text> PARENT``, in a session of its own, one for each probe, so that neither
Salt's work nor another probe is in the way of its clock. The first line of its standard input is JSON: the options of
the probe, and when that begins which counts, by the monotonic clock; what was before was at rest. When that input ends
it writes its figures as JSON, and ends. It ends, too, when its parent has. What it has started ends with it, orphans as
well: they become its own children.

What a program prints is counted and thrown away; what a connection sends and hears is written nowhere.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time

NAME = b"kgraft-prober"  # by it a poke knows this process, and what it has started
TICK = 0.05  # seconds that it sleeps: when the machine stands still, it oversleeps
LIMIT = 10  # seconds without an answer, then it begins anew: a program that hangs can itself hold a patch up
AGAIN = 1  # seconds between two starts of a program, and for a connection to be made
DEATH_SIGNAL, SET_NAME, SUBREAPER = 1, 15, 36  # include/uapi/linux/prctl.h
prctl = ctypes.CDLL(None).prctl


class Seen:
    """What was seen so far; all times are of the monotonic clock. Who asks writes it, but for ``overslept``."""

    def __init__(self, begins):
        self.begins = begins
        self.missed = float("inf")  # since when an answer is missing: what has not begun is not interrupted
        self.figures = {"asked": 0, "failed": 0, "longest_gap": None, "at": None, "at_rest": None, "overslept": 0.0}

    def count(self, now, asked, failed=0):
        if now >= self.begins:
            self.figures["asked"] += asked
            self.figures["failed"] += failed

    def answer(self, now, missed):
        """One has come, and the next is missed from then on."""
        gap, rest = now - max(self.missed, self.begins), min(now, self.begins) - self.missed
        if rest >= (self.figures["at_rest"] or 0):
            self.figures["at_rest"] = round(rest, 3)
        if gap >= (self.figures["longest_gap"] or 0):
            self.figures.update(longest_gap=round(gap, 3), at=round(now - gap - self.begins, 3))
        self.missed = missed


def run_program(seen, command):
    """It prints a line for each answer; where it has ended, or is silent for too long, it is started anew."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "bufsize": 0}
    pipes["preexec_fn"] = lambda: prctl(DEATH_SIGNAL, ctypes.c_ulong(signal.SIGKILL))
    while True:
        began, said = time.monotonic(), b"\n"
        with contextlib.suppress(OSError), subprocess.Popen(command, **pipes).stdout as lines:
            while said and select.select([lines], [], [], LIMIT)[0]:
                said, now = lines.read(65536), time.monotonic()
                if b"\n" in said:
                    seen.answer(now, missed=now)
                    seen.count(now, said.count(b"\n"))
        end_children()
        seen.count(time.monotonic(), 1, failed=1)
        time.sleep(max(0, began + AGAIN - time.monotonic()))


def hold_connection(seen, address, interval, send, expect):
    """It is asked when that is due, and made anew where it was lost; without a question one is made each time."""
    held, due = None, time.monotonic()
    while True:
        try:
            held = held or socket.create_connection(address, AGAIN)
            held.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                while send and held.recv(65536):
                    pass  # the rest of an answer is none to the next question
            held.settimeout(LIMIT)
            held.sendall(send.encode("latin-1"))
            answer, said = b"", b"."
            while expect.encode("latin-1") not in answer and said:
                said = held.recv(65536)
                answer = (answer + said)[-1000000:]
            is_lost = not said
        except (OSError, UnicodeError):  # the latter where a name cannot be one
            is_lost = True
        now = time.monotonic()
        due += interval * ((now - due) // interval + 1)
        seen.count(now, 1, failed=int(is_lost))
        if send and not is_lost:
            seen.answer(now, missed=due)
        elif held:
            held = held.close()
        time.sleep(max(0, due - time.monotonic()))


def end_children():
    """End them all, and those whom they leave to us. Only we reap them, so no number is another process's."""
    with contextlib.suppress(ChildProcessError):
        for _ in range(200):  # one that sleeps uninterruptibly ends later
            for pid in filter(str.isdigit, os.listdir("/proc")):
                with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as stat:
                    if int(stat.read().rpartition(b")")[2].split()[1]) == os.getpid():
                        os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.01)
            os.waitpid(-1, os.WNOHANG)  # no waiting: who asks may just have started the program again


def main(parent):
    prctl(SET_NAME, NAME)
    prctl(SUBREAPER, ctypes.c_ulong(1))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    options, begins = json.loads(sys.stdin.readline())
    seen, is_ended = Seen(begins), False
    ask = run_program if "command" in options else hold_connection
    asker = threading.Thread(target=ask, args=[seen], kwargs=options, daemon=True)
    asker.start()
    try:
        # a forked sibling may hold the pipe open, so the parent is looked for, too
        while not is_ended and asker.is_alive() and os.getppid() == parent:
            due = time.monotonic() + TICK
            is_ended = bool(select.select([0], [], [], TICK)[0])
            now = time.monotonic()
            if now >= begins:
                seen.figures["overslept"] = max(seen.figures["overslept"], round(now - due, 3))
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)  # no zombie that a program leaves shall hold an old kernel's patch up
        if is_ended and asker.is_alive():
            seen.answer(now, missed=now)  # none has come
            os.write(1, json.dumps(seen.figures).encode())
    finally:
        end_children()


if __name__ == "__main__":
    main(int(sys.argv[1]))
