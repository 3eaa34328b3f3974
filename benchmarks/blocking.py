"""
``kgraft.blocking`` beside the shell way and a bare C loop, on the same trees.

``python -m benchmarks.blocking [TASKS …]`` (default: 10000 100000)

Processor time is measured, user's and system's: the trees lie in memory, so nothing waits, and a busy machine disturbs
it less than the time on a wall's clock.
"""

import contextlib
import importlib.util
import itertools
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from lab.files import Kernel

HERE = pathlib.Path(__file__).resolve().parent
FLAGS = {"kgraft": "kgr_in_progress", "livepatch": "patch_state"}
PATCHES = {"kgraft": "kgraft-patch-2-2_1", "livepatch": "livepatch_9_2_1"}
RELEASES = {"kgraft": "4.4.180-94.100-default", "livepatch": "5.14.21-150500.55.100-default"}
SHAPES = {"many small processes": 1, "few large processes": 1000}  # threads of each process
BLOCKING = 10
FIRST_PID = 300
ROUNDS = {"C": 11, "kgraft.blocking": 11, "builtins": 3, "cat": 1}
CAT_UP_TO = 20_000  # tasks: it starts two processes for each, and takes minutes beyond

# What an administrator types, and what a careful one writes: no process is started per task, and kGraft's threads are
# read only where the process says 1 (what is typed names processes only there). Both answer with the pids.
SHELL = {
    ("kgraft", "cat"): """
        for task in [0-9]*; do
            [ "$(cat "$task/kgr_in_progress")" = 1 ] && echo "$task"
        done""",
    ("livepatch", "cat"): """
        for task in [0-9]*/task/*; do
            [ "$(cat "$task/patch_state")" = 0 ] && echo "${task%%/*}"
        done""",
    ("kgraft", "builtins"): """
        for task in [0-9]*; do
            flag=0; { read -r flag < "$task/kgr_in_progress"; } 2>/dev/null
            [ "$flag" = 1 ] || continue
            for thread in "$task"/task/*; do
                flag=0; { read -r flag < "$thread/kgr_in_progress"; } 2>/dev/null
                [ "$flag" = 1 ] && echo "$task"
            done
        done""",
    ("livepatch", "builtins"): """
        for task in [0-9]*; do
            for thread in "$task"/task/*; do
                flag=1; { read -r flag < "$thread/patch_state"; } 2>/dev/null
                [ "$flag" = 0 ] && echo "$task"
            done
        done""",
}


# Trees


def write_tree(root, abi, tasks, threads):
    """
    The files of lab.files.Kernel for that many tasks. What no walk reads (``stat`` and its like) is one file with many
    names; the flags are files of their own, and the blocking processes come from Kernel itself.
    """
    kernel = Kernel(root, abi, release=RELEASES[abi])
    kernel.start(PATCHES[abi])
    pids = [FIRST_PID + number * threads for number in range(tasks // threads)]
    blocking = set(pids[:: max(1, len(pids) // BLOCKING)][:BLOCKING])
    value = {"kgraft": b"0\n", "livepatch": b"1\n"}[abi]
    model = kernel.proc / "2"
    shared = {
        depth: [(name, str(path)) for name, path in files_below(model, depth) if name != FLAGS[abi]]
        for depth in ("", "task/2")
    }
    for pid in pids:
        tids = range(pid, pid + threads)
        if pid in blocking:
            kernel.task(pid, unit="busy.service", threads={tid: {} for tid in tids[1:]})
            kernel.flag(pid, True, tids[-1])  # the last thread, which the leader's own file does not show
            continue
        process = f"{kernel.proc}/{pid}"
        for directory in (process, f"{process}/task", *(f"{process}/task/{tid}" for tid in tids)):
            os.mkdir(directory)
            if directory.endswith("/task"):
                continue
            for name, path in shared["" if directory == process else "task/2"]:
                os.link(path, f"{directory}/{name}")
            descriptor = os.open(f"{directory}/{FLAGS[abi]}", os.O_WRONLY | os.O_CREAT, 0o400)
            os.write(descriptor, value)
            os.close(descriptor)
    return blocking


def files_below(directory, depth):
    return [(path.name, path) for path in sorted((directory / depth).iterdir()) if path.is_file()]


def layout(directory):
    """Names and modes below a process; what it is called, and so its threads, does not matter."""
    return [
        (str(path.relative_to(directory)).replace(directory.name, "PID"), oct(path.stat().st_mode))
        for path in sorted(directory.rglob("*"))
    ]


def check_layout(abi):
    """A process of ours has the files of one by lab.files.Kernel: the same names, the same modes."""
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch)
        write_tree(root, abi, tasks=24, threads=1)
        ours = sorted(path for path in (root / "proc").iterdir() if path.name.isdigit())
        layouts = {str(layout(path)) for path in ours if path.name != "1"}  # pid 1 has its namespace, too
        if len(layouts) != 1:
            raise SystemExit(f"The trees are not those of lab.files.Kernel: {layouts}")


# What is compared: each is called without arguments, and returns seconds and the blocking pids


def our_module(root):
    spec = importlib.util.spec_from_file_location("kgraft", HERE.parent / "_modules/kgraft.py")
    module = importlib.util.module_from_spec(spec)
    vars(module)["__opts__"] = {"kgraft.root": str(root)}
    spec.loader.exec_module(module)
    return module


def our_way(root):
    module = our_module(root)

    def measure():
        begin = time.process_time()
        held = module.blocking(limit=20)
        took = time.process_time() - begin
        if held["count"] != len(held["tasks"]) or not held["complete"]:
            raise SystemExit(f"kgraft.blocking did not see everything: {held}")
        return took, {task["pid"] for task in held["tasks"]}

    return measure


def shell_way(root, script):
    def measure():
        begin = of_children()
        run = subprocess.run(["bash", "-c", script], cwd=root / "proc", stdout=subprocess.PIPE, check=False)
        return of_children() - begin, {int(pid) for pid in run.stdout.split()}

    return measure


def of_children():
    """Seconds of processor time of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextlib.contextmanager
def floor(program, root, abi):
    """It stays, as a minion does, and measures itself: the start of a process is not compared."""
    with subprocess.Popen([program, abi, root / "proc"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:

        def measure():
            process.stdin.write(b"\n")
            process.stdin.flush()
            took, *pids = process.stdout.readline().split()
            return float(took), {int(pid) for pid in pids}

        yield measure
        process.stdin.close()


def interleaved(ways, expected):
    """Medians of seconds: every round measures each way that still has rounds to go. A round to warm up comes first."""
    times = {name: [] for name in ways}
    for number in range(-1, max(ROUNDS.values())):
        for name, measure in ways.items():
            if number >= ROUNDS[name] or (number < 0 and ROUNDS[name] == 1):
                continue
            took, pids = measure()
            if pids != expected:
                raise SystemExit(f"{name} found {sorted(pids)}, not {sorted(expected)}")
            if number >= 0:
                times[name].append(took)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def compare(program, root, abi, tasks, threads):
    """Write a tree, measure every way on it, remove it."""
    expected = write_tree(root, abi, tasks, threads)
    try:
        with floor(program, root, abi) as bare:
            ways = {
                "C": bare,
                "kgraft.blocking": our_way(root),
                "builtins": shell_way(root, SHELL[abi, "builtins"]),
                "cat": shell_way(root, SHELL[abi, "cat"]),
            }
            if tasks > CAT_UP_TO:
                del ways["cat"]
            return interleaved(ways, expected)
    finally:
        shutil.rmtree(root)


def main(sizes=None):
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    for abi in FLAGS:
        check_layout(abi)
    form = "{:<10}{:<22}{:>7} {:>8} {:>16} {:>6} {:>9} {:>6} {:>9} {:>6}"
    head = ("abi", "tree", "tasks", "C", "kgraft.blocking", "ratio", "builtins", "ratio", "cat", "ratio")
    print("Who holds a patch up? Ten processes do. Medians of interleaved rounds, ms of processor time; ratios to C.")
    print("kgraft.blocking also describes the ten, the others only find them.\n")
    print(form.format(*head), flush=True)
    with tempfile.TemporaryDirectory(dir=memory) as scratch:
        program = pathlib.Path(scratch, "floor")
        subprocess.run(["cc", "-O2", "-Wall", "-o", program, HERE / "floor.c"], check=True)
        root = pathlib.Path(scratch, "root")
        for abi, (shape, threads), tasks in itertools.product(FLAGS, SHAPES.items(), sizes or [10_000, 100_000]):
            took = compare(program, root, abi, tasks, threads)
            cells = [f"{took['C'] * 1000:.1f}"]
            for name in ("kgraft.blocking", "builtins", "cat"):
                known = name in took
                cells += [f"{took[name] * 1000:.1f}", f"{took[name] / took['C']:.2f}"] if known else ["-", "-"]
            print(form.format(abi, shape, tasks, *cells), flush=True)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]])
