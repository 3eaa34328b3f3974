"""
One idle look of the kgraft beacon beside those of Salt's own ``load``, ``ps`` and ``service``, in Salt's own loop.

``python -m benchmarks.beacon``
"""

import copy
import logging
import pathlib
import random
import statistics
import tempfile
import time

import salt.beacons
import salt.config
import salt.loader

from lab.files import Kernel

REPO = pathlib.Path(__file__).resolve().parent.parent
ROUNDS = 1000
HEAVY_ROUNDS = 30
DAY = 24 * 3600
INTERVAL = {"kgraft": 10}  # seconds, as the examples have it; Salt's default is every second
NOTHING = """
def validate(config):
    return True, "fine"


def beacon(config):
    return []
"""
CONFIG = {
    "nothing": [],  # what Salt's loop itself costs
    "kgraft": [],
    "load": [{"averages": {"1m": [0.0, 10**6], "5m": [0.0, 10**6], "15m": [0.0, 10**6]}}],
}
HEAVY = {
    **CONFIG,
    "ps": [{"processes": {"salt-master": "nonexistent"}}],
    "service": [{"services": {"cron": {"onchangeonly": True}}}],
}


def loop(scratch):
    opts = salt.config.minion_config(None)
    for kind in ("_modules", "_beacons"):
        (scratch / kind).symlink_to(REPO / kind)
    (scratch / "nothing/_beacons").mkdir(parents=True)
    (scratch / "nothing/_beacons/nothing.py").write_text(NOTHING)
    opts.update(
        {
            "id": "bench",
            "root_dir": str(scratch),
            "cachedir": str(scratch),
            "file_client": "local",
            "module_dirs": [str(scratch), str(scratch / "nothing")],
            "kgraft.root": str(scratch / "root"),
        }
    )
    opts["grains"] = salt.loader.grains(opts)
    return salt.beacons.Beacon(opts, salt.loader.minion_mods(opts)), opts["grains"]


def measure(beacons, grains, configurations, rounds):
    """Milliseconds of processor time of each turn, in a new order each round: behind a heavy one caches are cold."""
    times = {name: [] for name in configurations}
    missing = [name for name in configurations if f"{name}.beacon" not in beacons.beacons]
    if missing:
        raise SystemExit(f"Salt does not load {missing}")
    for number in range(-20, rounds):  # the first load, and say how things stand
        for name in random.sample(sorted(configurations), len(configurations)):
            config = {name: copy.deepcopy(configurations[name])}
            begin = time.process_time()
            events = beacons.process(config, grains)
            took = (time.process_time() - begin) * 1000
            if number >= 0:
                times[name].append(took)
                if events and name == "kgraft":
                    raise SystemExit(f"This is no idle look: {events}")
    return times


def show(title, times):
    print(f"\n{title}, ms of processor time\n")
    print(f"{'beacon':<10}{'median':>8}{'least':>8}{'/ load':>8}{'own':>8}{'every s':>9}{'s a day':>9}{'/ load':>8}")
    medians = {name: statistics.median(turns) for name, turns in times.items()}
    a_day = {name: median / 1000 * DAY / INTERVAL.get(name, 1) for name, median in medians.items()}
    for name, median in medians.items():
        print(
            f"{name:<10}{median:>8.3f}{min(times[name]):>8.3f}{median / medians['load']:>8.2f}"
            f"{median - medians['nothing']:>8.3f}{INTERVAL.get(name, 1):>9}"
            f"{a_day[name]:>9.2f}{a_day[name] / a_day['load']:>8.2f}"
        )


def main():
    logging.root.setLevel(logging.WARNING)  # as a minion's; all that load does otherwise is to make records
    for abi, patch in (("kgraft", "kgraft-patch-2-2_1"), ("livepatch", "livepatch_9_2_1")):
        with tempfile.TemporaryDirectory() as scratch:
            scratch = pathlib.Path(scratch)
            Kernel(scratch / "root", abi).patch(patch)
            beacons, grains = loop(scratch)
            show(f"{ROUNDS} turns of Salt's loop, {abi}, one patch", measure(beacons, grains, CONFIG, ROUNDS))
            if abi == "kgraft":
                show("The same among heavy beacons", measure(beacons, grains, HEAVY, HEAVY_ROUNDS))


if __name__ == "__main__":
    main()
