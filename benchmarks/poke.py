"""
A poke: how long it holds a process up, and what it costs, by tracing and by signals.

``python -m benchmarks.poke``
"""

import contextlib
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

from benchmarks.blocking import our_module
from lab import procfs, wait_until
from lab.files import Kernel

HERE = pathlib.Path(__file__).resolve().parent
THREADS = (2, 100, 1000)
SLEEPERS = 1000
ROUNDS = 9
METHODS = ("trace", "signals")


def compiled(directory, name):
    program = pathlib.Path(directory, name)
    subprocess.run(["cc", "-O2", "-pthread", "-o", program, HERE / f"{name}.c"], check=True)
    return program


@contextlib.contextmanager
def flagged(directory, pids):
    """Our module on a kernel of files on which these processes block, all their threads; files clear no flag."""
    kernel = Kernel(directory)
    kernel.start("kgraft-patch-2-2_1")
    for pid in pids:
        kernel.real(pid, {int(tid): True for tid in os.listdir(f"/proc/{pid}/task")})
    kgraft = our_module(directory)
    kgraft.poking._await_crossing = lambda root, pids: None
    kgraft.poking._notices = lambda parent: None
    yield kgraft


def gaps(program, threads, directory):
    """``{way: longest gaps in ms}`` of a process's own work, at rest and under each kind of poke, in turn."""
    found = {}
    with subprocess.Popen([program, str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def longest():
            process.stdin.write("\n")
            process.stdin.flush()
            return int(process.stdout.readline()) / 1000

        process.stdout.readline()
        wait_until(lambda: len(procfs.Processes().threads(process.pid)) == threads, "all threads")
        with flagged(directory, [process.pid]) as kgraft:
            for _ in range(ROUNDS):
                for way in ("rest", *METHODS):
                    done = False
                    while not done:  # who works just now is not poked
                        longest()
                        if way == "rest":
                            time.sleep(0.2)
                        done = way == "rest" or kgraft.poke(method=way)["poked"]
                    found.setdefault(way, []).append(longest())
        process.stdin.close()
        process.kill()
    return found


def costs(directory):
    """``{way: (wall seconds, processor seconds)}`` of a poke of many sleepers; ``test`` only looks."""
    sleepers = [subprocess.Popen(["sleep", "3600"]) for _ in range(SLEEPERS)]
    found = {}
    try:
        with flagged(directory, [process.pid for process in sleepers]) as kgraft:
            for _ in range(3):
                for way in ("test", *METHODS):
                    begin, before = time.monotonic(), os.times()
                    answer = kgraft.poke(**({"test": True} if way == "test" else {"method": way}))
                    after = os.times()
                    if len(answer["poked"]) != SLEEPERS:
                        raise SystemExit(f"{way}: {len(answer['poked'])} poked")
                    found.setdefault(way, []).append((time.monotonic() - begin, sum(after[:4]) - sum(before[:4])))
    finally:
        for process in sleepers:
            process.kill()
        for process in sleepers:
            process.wait()
    return found


def main():
    with tempfile.TemporaryDirectory() as scratch:
        program = compiled(scratch, "held")
        print("Longest gap in a process's own work, ms: median (and largest) of interleaved rounds\n")
        print(f"{'threads':>8} {'at rest':>16} {'by tracing':>16} {'by signals':>16}", flush=True)
        for threads in THREADS:
            found = gaps(program, threads, pathlib.Path(scratch, str(threads)))
            cells = [f"{statistics.median(times):.2f} ({max(times):.2f})" for times in found.values()]
            print(f"{threads:>8} " + " ".join(f"{cell:>16}" for cell in cells), flush=True)
        print(f"\nA poke of {SLEEPERS} sleepers, medians of interleaved rounds\n")
        print(f"{'':<12} {'seconds':>8} {'of them processor':>18} {'ratio to a look':>16}")
        found = costs(pathlib.Path(scratch, "sleepers"))
        looked = statistics.median(wall for wall, _ in found["test"])
        for way, times in found.items():
            wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
            print(f"{way:<12} {wall:>8.2f} {cpu:>18.2f} {wall / looked:>16.2f}")


if __name__ == "__main__":
    main()
