"""
One idle look of the kgraft beacon beside those of Salt's own ``ps``, ``service`` and ``load``, in Salt's own loop.

``python -m benchmarks.beacon``
"""

import itertools
import pathlib
import statistics
import tempfile
import time

import salt.beacons
import salt.config
import salt.loader

from lab.files import Kernel

REPO = pathlib.Path(__file__).resolve().parent.parent
ROUNDS = 50
CONFIG = {
    "kgraft": [],
    "load": [{"averages": {"1m": [0.0, 10**6], "5m": [0.0, 10**6], "15m": [0.0, 10**6]}}],
    "ps": [{"processes": {"salt-master": "nonexistent"}}],
    "service": [{"services": {"cron": {"onchangeonly": True}}}],
}


def loop(scratch):
    opts = salt.config.minion_config(None)
    for kind in ("_modules", "_beacons"):
        (scratch / kind).symlink_to(REPO / kind)
    opts.update(
        {
            "id": "bench",
            "root_dir": str(scratch),
            "cachedir": str(scratch),
            "file_client": "local",
            "module_dirs": [str(scratch)],
            "kgraft.root": str(scratch / "root"),
        }
    )
    opts["grains"] = salt.loader.grains(opts)
    return salt.beacons.Beacon(opts, salt.loader.minion_mods(opts)), opts["grains"]


def main():
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        Kernel(scratch / "root").patch("kgraft-patch-2-2_1")
        beacons, grains = loop(scratch)
        times = {name: [] for name in CONFIG}
        for number, name in itertools.product(range(-5, ROUNDS), CONFIG):  # the first load, and say how things stand
            begin, processor = time.perf_counter(), time.process_time()
            beacons.process({name: [dict(item) for item in CONFIG[name]]}, grains)
            if number >= 0:
                times[name].append((time.perf_counter() - begin, time.process_time() - processor))
        print(f"Medians of {ROUNDS} interleaved idle looks, one patch loaded\n")
        print(f"{'beacon':<10}{'ms':>10}{'ms of processor':>18}")
        for name, looks in times.items():
            wall, processor = (statistics.median(column) * 1000 for column in zip(*looks, strict=True))
            print(f"{name:<10}{wall:>10.2f}{processor:>18.2f}")
        idle, heaviest = (statistics.median(wall for wall, _ in times[name]) for name in ("kgraft", "ps"))
        print(f"\nkgraft / ps: {idle / heaviest:.2f}")


if __name__ == "__main__":
    main()
