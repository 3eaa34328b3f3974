"""
``kgraft.history`` over 50,000 to 200,000 lines of events, and ``kgraft.page`` for 3,000 machines and 200 transitions.

Each in a process of its own, for its memory. ``python -m benchmarks.history``
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lab import picture
from tests.support.load import load_file

LINES = (50_000, 100_000, 200_000)
MACHINES, TRANSITIONS = 3000, 200
ROUNDS = 3
NOW = picture.NOW
WHY = "A program of eBPF is on its stack, such as a security or tracing agent attaches (fexit, fmod_ret)"


def events(lines):
    """Whole transitions of 3,000 machines, each with a reminder, as Salt keeps them."""
    for number in range(lines // 3):
        machine, began = f"database-{number % MACHINES:04}.example.com", NOW - 86400 * 29 + number * 30
        data = {"id": machine, "transition": f"6ba7b810-{number}", "patch": "livepatch_14_150500_2_1"}
        data.update(direction="apply", boot_id="6ba7b810-9dad-11d1-80b4-00c04fd430c8", kernelrelease=picture.SLES15)
        data.update(abi="livepatch", active=["livepatch_14_150500_2_1"])
        task = {"pid": 731, "tids": [731], "name": "worker", "user": "root", "unit": "falcon-sensor.service"}
        task.update(kind="kernel", letter="S", start_time=1, why=WHY, help="Update the agent, or stop it.")
        stuck = {"seconds": 120.5, "times": 1, "tasks": [task] * 3, "count": 3, "complete": True, "note": None}
        for word, after, more in (("started", 0, {}), ("stuck", 120, stuck), ("finished", 200, {"seconds": 200.5})):
            stamp = picture.stamp(NOW - began - after, "%Y-%m-%dT%H:%M:%S.123456+00:00")
            yield {"tag": f"salt/beacon/{machine}/kgraft/{word}", "data": {**data, **more, "_stamp": stamp}}


def answers():
    """What 3,000 machines say; a tenth of them is stuck."""
    with tempfile.TemporaryDirectory() as directory:
        nfs = {"comm": "manager", "kthread": True, "stack": picture.NFS}
        settled = picture.Machine(Path(directory), "settled").overview()
        stuck = picture.Machine(Path(directory), "stuck", picture.NEWEST, nfs, since=3 * 3600).overview()
    return {f"database-{n:04}.example.com": {"kgraft.overview": settled if n % 10 else stuck} for n in range(MACHINES)}


def runner(path):
    opts = {"event_return": "rawfile_json", "rawfile_json.filename": str(path / "events"), "fun": "kgraft.page"}
    module = load_file("_runners/kgraft.py", __opts__={**opts, "cachedir": str(path), "output": "json"})
    module.time.time = lambda: NOW
    return module


def measured(name, path):
    """Run one of them here: ``{seconds, memory, …}``; the memory is that of this process with Salt in it, in MB."""
    module = runner(Path(path))
    if name == "page":
        told = answers()
        module._ask = lambda *_: module.fleets.Fleet(set(told), told, {})
    begin = time.process_time()
    done = module.page(path=f"{path}/page.html") if name == "page" else module.history(days=30)
    assert done["retcode"] == 0, done
    seconds, memory = time.process_time() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return {"seconds": seconds, "memory": memory, "transitions": len(done.get("transitions", ()))}


def best(name, path):
    """The fastest of some processes."""
    command = [sys.executable, "-m", "benchmarks.history", name, path]
    runs = [json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout) for _ in range(ROUNDS)]
    return min(runs, key=lambda run: run["seconds"])


def write(path, lines):
    with open(path / "events", "w", encoding="utf-8") as file:
        for event in events(lines):
            print(json.dumps(event), file=file)
    return (path / "events").stat().st_size


def opened(page):
    """Seconds until a browser has loaded the page, and until it has sorted and filtered it."""
    with picture.browser() as chromium:
        tab = chromium.new_page()
        begin = time.perf_counter()
        tab.goto(page.as_uri())
        loaded = time.perf_counter() - begin
        begin = time.perf_counter()
        tab.get_by_role("button", name="Kernel").click()
        tab.get_by_label("Search").fill("0042")
        assert tab.locator("#left").inner_text() == f"1 of {MACHINES} machines"
        return loaded, time.perf_counter() - begin


def main():
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        print(f"{'history, lines':<22}{'MB':>8}{'seconds':>10}{'us/line':>10}{'memory MB':>11}")
        for lines in LINES:
            size = write(path, lines)
            run = best("history", path)
            assert run["transitions"] == lines // 3
            each = run["seconds"] / lines * 1e6
            print(f"{lines:<22,}{size / 1e6:>8.0f}{run['seconds']:>10.2f}{each:>10.1f}{run['memory']:>11.0f}")
        write(path, 3 * TRANSITIONS)
        run = best("page", path)
        page = path / "page.html"
        print(f"\npage of {MACHINES:,} machines, {TRANSITIONS} transitions: {run['seconds']:.2f} s, ", end="")
        print(f"{page.stat().st_size:,} bytes, memory {run['memory']:.0f} MB")
        print("in Chromium: loaded in {:.2f} s, sorted and searched in {:.2f} s".format(*opened(page)))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measured(*sys.argv[1:])))
    else:
        main()
