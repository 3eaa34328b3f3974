"""
Record what real kernels show, step by step, for tests/unit/test_lab_against_recordings.py.

    .venv/3008/bin/python -m tests.kernel.record [SERIES...]

writes tests/recordings/<series>.json for each kernel of tests.kernel.debian, or those that are named: at each step of a
story all files of sys/kernel/livepatch, what sys/module says of each patch, and the flags of a few tasks, each with its
mode and content (None where reading is refused even to root). Tasks go by name, for pids differ from run to run.
"""

import json
import pathlib
import shutil
import sys
import tempfile

from tests.kernel import debian, image, machine
from tests.kernel.guest import SYSFS, Guest

RECORDINGS = pathlib.Path(__file__).resolve().parents[1] / "recordings"
REPO = pathlib.Path(__file__).resolve().parents[2]

FIRST, SECOND, CORE, SLEEPY = "livepatch_1_1_1", "livepatch_2_1_1", "klpt_core", "klpt_sleepy"

SNAPSHOT = """
import os, stat
PATCHES = ("livepatch_1_1_1", "livepatch_2_1_1", "klpt_core", "klpt_sleepy")

def note(files, path, name=None):
    try:
        about = os.lstat("/" + path)
        if stat.S_ISDIR(about.st_mode):
            content = None
        else:
            try:
                with open("/" + path) as file:
                    content = file.read()
            except PermissionError:
                content = None
        files[name or path] = [stat.filemode(about.st_mode), content]
    except OSError:
        pass  # gone meanwhile

def snapshot(tasks):
    files = {}
    note(files, "sys/kernel/livepatch")
    for directory, directories, names in os.walk("/sys/kernel/livepatch"):
        for name in sorted(directories + names):
            note(files, os.path.join(directory, name)[1:])
    for patch in PATCHES:
        for name in ("refcnt", "initstate", "taint"):
            note(files, f"sys/module/{patch}/{name}")
    for name, pid in tasks.items():
        note(files, f"proc/{pid}/patch_state", f"proc/{name}/patch_state")
        for tid in os.listdir(f"/proc/{pid}/task"):
            thread = "leader" if int(tid) == pid else "thread"
            if thread == "leader" or len(os.listdir(f"/proc/{pid}/task")) == 2:
                note(files, f"proc/{pid}/task/{tid}/patch_state", f"proc/{name}/task/{thread}/patch_state")
    with open("/proc/modules") as file:
        rows = [line.split() for line in file]
    return {"files": files, "modules": [row[:1] + row[2:3] + row[4:5] + row[6:] for row in rows if row[0] in PATCHES]}
"""

LOADING = """
import subprocess, time
def value(name):
    try:
        with open("{sysfs}/{patch}/" + name) as file:
            return file.read()
    except OSError:
        return None

loading = subprocess.Popen(["modprobe", "{patch}"])
end = time.monotonic() + 20
while (value("enabled"), value("transition")) != ("0\\n", "1\\n") and time.monotonic() < end and loading.poll() is None:
    pass
answer = snapshot({tasks!r})
loading.wait(20)
"""


def story(guest, say):
    """Yield ``(step, what was done, snapshot)``."""
    bystander = int(guest.sh("sleep 3600 >/dev/null 2>&1 & echo $!"))
    tasks = {"bystander": bystander, "init": 1}

    def taken():
        return guest.python(SNAPSHOT + f"\nanswer = snapshot({tasks!r})")

    def alone(value):
        """Wait until one task alone has this flag."""
        guest.until(f"[ $(grep -lx -- {value} /proc/[0-9]*/patch_state | wc -l) = 1 ]", 20)

    yield "idle", "no patch is loaded", taken()
    guest.load(CORE)
    yield "core applied", f"modprobe {CORE}, and its transition is over", taken()
    sleeper = guest.sleeper("killable")
    tasks["sleeper"] = sleeper
    guest.insert(FIRST)
    alone(0)
    yield "first applying", f"modprobe {FIRST} while a task sleeps in a function that it patches", taken()
    guest.wake()
    guest.settled()
    del tasks["sleeper"]
    yield "first applied", "the sleeper woke", taken()
    loading = guest.python(SNAPSHOT + LOADING.format(patch=SECOND, sysfs=SYSFS, tasks=tasks))
    guest.settled()
    if (
        loading["files"].get(f"{SYSFS[1:]}/{SECOND}/enabled", [None, None])[1] == "0\n"
    ):  # a matter of a tenth of a second
        yield (
            "second being loaded",
            f"modprobe {SECOND}, which replaces both, has not put its functions in place",
            loading,
        )
    yield "second applied", "its transition is over", taken()
    guest.unload(FIRST)
    guest.unload(CORE)
    guest.disabled(SECOND)
    yield (
        "second disabled",
        f"{FIRST} and {CORE} were unloaded; echo 0 > {SECOND}/enabled, and its transition is over",
        taken(),
    )
    guest.unload(SECOND)
    guest.load(SLEEPY)
    tasks["sleeper"] = guest.sleeper_in("klpt_new_block_read")
    guest.disable(SLEEPY)
    alone(1)
    yield (
        "sleepy reverting",
        f"{SECOND} was unloaded; echo 0 > {SLEEPY}/enabled while a task sleeps in its new function",
        taken(),
    )
    guest.sh(f"echo 1 > {SYSFS}/{SLEEPY}/enabled")
    guest.settled()
    yield "sleepy turned back", f"echo 1 > {SLEEPY}/enabled in mid-air, and the transition is over", taken()
    guest.sh(f"kill {tasks.pop('sleeper')}")
    guest.unload("klpt_target")
    yield "target gone", "rmmod klpt_target, which the patch is for", taken()


def record(series, say=print):
    directory = pathlib.Path(tempfile.mkdtemp(prefix="kgvm"))
    try:
        kernel, disk = debian.prepare(series, say), image.prepare(say)
        initramfs, saved = machine.boot_and_save(kernel, disk, directory, say)
        code = directory / "code.tar"
        machine.pack(REPO, code)
        woken = directory / "woken"
        woken.mkdir()
        guest = Guest(kernel, disk, initramfs, woken, code, saved)
        try:
            guest.wait_for_wake()
            guest.insert("klpt_target")
            steps = [{"step": step, "done": done, **taken} for step, done, taken in story(guest, say)]
        finally:
            guest.kill()
        about = {"kernelrelease": kernel.release, "steps": steps}
        text = json.dumps(about, indent=1)
        RECORDINGS.mkdir(exist_ok=True)
        (RECORDINGS / f"{series}.json").write_text(text + "\n")
        say(f"{kernel.release}: {len(steps)} steps recorded")
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    for each in sys.argv[1:] or debian.known():
        record(each)
