"""
``kgraft.status`` on an idle machine: what it opens, and what it costs beside ``test.ping``.

``python -m benchmarks.status``
"""

import itertools
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

from benchmarks.blocking import PATCHES, RELEASES, of_children, our_module
from lab.files import Kernel

REPO = pathlib.Path(__file__).resolve().parent.parent
ROUNDS = 5


def idle_kernel(root, abi):
    """A kernel with one patch that is settled, and some processes."""
    kernel = Kernel(root, abi, release=RELEASES[abi])
    kernel.patch(PATCHES[abi])
    for pid in range(300, 400):
        kernel.task(pid)
    return kernel


def opened(root):
    """What ``status`` opens and lists, by Python's audit. Its hooks stay for good: call this in a fresh process."""
    status = our_module(root).status
    paths = []
    watched = ("open", "os.listdir", "os.scandir", "os.chdir")
    sys.addaudithook(lambda event, arguments: paths.append(os.fsdecode(arguments[0])) if event in watched else None)
    status()
    return [path for path in paths if path.startswith(str(root))]


def files_of_processes(root, abi):
    """How many files ``status`` opens, and which of them belong to a process."""
    idle_kernel(root, abi)
    script = "import json, sys; from benchmarks.status import opened; print(json.dumps(opened(sys.argv[1])))"
    run = subprocess.run([sys.executable, "-c", script, root], cwd=REPO, stdout=subprocess.PIPE, check=True)
    paths = [str(pathlib.Path(path).relative_to(root)) for path in json.loads(run.stdout)]
    return paths, [path for path in paths if re.match(r"proc(/\d+(/|$)|$)", path)]


def minion(directory, root, synced):
    """The configuration of a minion that has our modules by ``module_dirs``, or synced from its file root."""
    file_root = directory / "srv"
    file_root.mkdir(parents=True)
    options = {"id": "bench", "root_dir": str(directory), "file_client": "local", "kgraft.root": str(root)}
    if synced:
        for name in ("_modules", "_states", "_beacons"):
            (file_root / name).symlink_to(REPO / name)
        options["file_roots"] = {"base": [str(file_root)]}
    else:
        options["module_dirs"] = [str(REPO)]
    (directory / "minion").write_text(json.dumps(options))
    if synced:
        salt_call(directory, "saltutil.sync_all")
    return directory


def salt_call(configuration, function):
    """Seconds of processor time, and the answer."""
    begin = of_children()
    command = [
        pathlib.Path(sys.executable).with_name("salt-call"),
        "--local",
        "-c",
        configuration,
        "--out=json",
        function,
    ]
    run = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return of_children() - begin, json.loads(run.stdout)["local"]


def main():
    with tempfile.TemporaryDirectory() as scratch:
        for abi in PATCHES:
            paths, wrong = files_of_processes(pathlib.Path(scratch, abi), abi)
            print(f"idle {abi}: kgraft.status opens {len(paths)} files, {len(wrong)} of them of a process")
            if wrong or not paths:
                raise SystemExit(f"It opens {paths}")
        print("\nMedians of interleaved salt-call runs, ms of processor time\n")
        print(f"{'the module comes by':<22}{'test.ping':>10} {'kgraft.status':>14} {'ratio':>6}", flush=True)
        root = pathlib.Path(scratch, "kgraft")
        minions = {
            "module_dirs": minion(pathlib.Path(scratch, "dirs"), root, synced=False),
            "saltutil.sync_all": minion(pathlib.Path(scratch, "synced"), root, synced=True),
        }
        times = {}
        for number in range(-1, ROUNDS):  # the first compiles, and fills caches
            for (name, configuration), function in itertools.product(minions.items(), ("test.ping", "kgraft.status")):
                took, answer = salt_call(configuration, function)
                if answer is not True and answer["state"] != "ready":
                    raise SystemExit(f"{function} says {answer}")
                if number >= 0:
                    times.setdefault((name, function), []).append(took * 1000)
        for name in minions:
            ping, status = (statistics.median(times[name, function]) for function in ("test.ping", "kgraft.status"))
            print(f"{name:<22}{ping:>10.0f} {status:>14.0f} {status / ping:>6.2f}")


if __name__ == "__main__":
    main()
