"""
How much does a live patch interrupt a busy database? Run as root: ``python -m benchmarks.interruption``

A PostgreSQL answers two clients that query in a loop, a small server answers one that pings in a loop, and 20
connections sit idle. Each run measures the longest time without an answer in two windows of the same length: while
``kgraft.applied`` installs a package and settles the patch over all those processes, poking those that sleep, and right
after it, while nothing happens. The kernel is the lab's; processes, signals, zypper and the database are real.
"""

import argparse
import contextlib
import os
import pathlib
import statistics
import tempfile
import time

from tests.support.busy_database import BusyDatabase
from tests.support.machine import Machine, stand_alone_minion
from tests.support.packages import standard_repository

REPO = pathlib.Path(__file__).resolve().parent.parent


def longest_gaps(place, file_root, repository):
    """One run: (seconds of the window, longest gap at rest, longest gap while patching, processes poked)."""
    with contextlib.ExitStack() as stack:
        machine = stack.enter_context(
            Machine(place / "lab", stand_alone_minion(place / "minion", file_root), [repository])
        )
        os.environ.update({name: machine.lab.environ[name] for name in ("PATH", "KGRAFT_LAB")})
        # Salt's loader reads its modules once, and not in the measured window
        assert machine.applied(version="1", test=True).result is None
        database = stack.enter_context(BusyDatabase())
        for pid in database.pids:
            machine.lab.watch(pid)

        began = time.monotonic()
        patched = machine.applied(version="2", timeout=60, poke_after=1)
        ended = time.monotonic()
        assert patched.result is True, patched.comment
        rested = ended + (ended - began)
        time.sleep(rested - ended)
        database.stop()
        assert not any(client.failures for client in database.clients)
        while_patching = max(client.longest_gap(began, ended) for client in database.clients)
        at_rest = max(client.longest_gap(ended, rested) for client in database.clients)
        return ended - began, at_rest, while_patching, len(patched.changes["poked"])


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=int, default=3, help="default: 3")
    runs = arguments.parse_args().runs
    gaps = []
    with tempfile.TemporaryDirectory(prefix="kgbench") as place:
        place = pathlib.Path(place)
        repository = standard_repository(place / "live-patching")
        # links, so that Salt does not take the checkout's own files for modules
        (place / "file-root").mkdir()
        for name in ("_modules", "_states"):
            (place / "file-root" / name).symlink_to(REPO / name)
        for run in range(runs):
            seconds, at_rest, while_patching, poked = longest_gaps(place / str(run), place / "file-root", repository)
            gaps.append((at_rest, while_patching))
            print(
                f"run {run + 1}: {seconds:4.1f} s, {poked} processes poked; longest gap at rest "
                f"{at_rest * 1000:6.1f} ms, while patching {while_patching * 1000:6.1f} ms",
                flush=True,
            )
    at_rest, while_patching = (statistics.median(column) for column in zip(*gaps, strict=True))
    print(
        f"median of {runs}: {at_rest * 1000:.1f} ms at rest, {while_patching * 1000:.1f} ms while patching, "
        f"ratio {while_patching / at_rest:.1f}"
    )


if __name__ == "__main__":
    main()
