"""
What a probe sees of pokes, beside a bare C client on the same schedule.

``python -m benchmarks.probe``
"""

import contextlib
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks.poke import METHODS, THREADS, compiled, flagged
from tests.conftest import load_file

INTERVAL = 0.1
SECONDS = 4
ROUNDS = 5
SERVER = """
import socket, sys, threading, time
threading.stack_size(65536)
for _ in range(int(sys.argv[1]) - 1):
    threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
def echo(peer):
    while peer.send(peer.recv(100)):
        pass
while True:
    threading.Thread(target=echo, args=[listener.accept()[0]], daemon=True).start()
"""


@contextlib.contextmanager
def running(*command):
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def window(kgraft, way):
    """Poke all the time, or rest as long; returns how often somebody was poked."""
    until, pokes = time.monotonic() + SECONDS, 0
    while time.monotonic() < until:
        if way != "rest":
            pokes += bool(kgraft.poke(method=way)["poked"])
        time.sleep(0.02)
    return pokes


def longest_gaps(program, threads, directory):
    """``{way: [(the client's, the probe's, how often was poked)]}``, in ms, in turn; the pokes are as many as go."""
    probe, found = load_file("_modules/kgraft_probe.py"), {}
    with running(sys.executable, "-c", SERVER, str(threads)) as server:
        port = int(server.stdout.readline())
        tcp = {"address": f"127.0.0.1:{port}", "send": "ping", "expect": "ping", "interval": INTERVAL}
        with running(program, str(port), str(int(INTERVAL * 1000))) as client:

            def longest():
                client.stdin.write("\n")
                client.stdin.flush()
                return int(client.stdout.readline()) / 1000

            for _ in range(ROUNDS):
                for way in ("rest", *METHODS):
                    started = probe.start([{"tcp": tcp, "name": "probe"}], rest=0.5)
                    with flagged(directory / str(len(found.get(way, ()))) / way, [server.pid]) as kgraft:
                        longest()
                        pokes = window(kgraft, way)
                        seen = probe.stop(started)["probe"]
                        found.setdefault(way, []).append((longest(), seen["longest_gap"] * 1000, pokes))
                    if seen["failed"]:
                        raise SystemExit(f"{way}: {seen}")
    return found


def main():
    with tempfile.TemporaryDirectory() as scratch:
        program = compiled(scratch, "client")
        print(f"Longest gap in {SECONDS} s of a server that is asked each {INTERVAL} s, ms: median (and largest)\n")
        print(f"{'threads':>8} {'asked by':>9} {'at rest':>14} {'by tracing':>14} {'by signals':>14}  pokes in a round")
        for threads in THREADS:
            found = longest_gaps(program, threads, pathlib.Path(scratch, str(threads)))
            for column, who in enumerate(("bare C", "a probe")):
                cells = [[row[column] for row in rows] for rows in found.values()]
                cells = [f"{statistics.median(times):.1f} ({max(times):.1f})" for times in cells]
                pokes = [f"{statistics.median(row[2] for row in found[way]):.0f}" for way in METHODS]
                print(f"{threads:>8} {who:>9} " + " ".join(f"{cell:>14}" for cell in cells), *pokes, flush=True)


if __name__ == "__main__":
    main()
