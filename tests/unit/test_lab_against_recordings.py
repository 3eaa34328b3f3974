"""
The lab's livepatch files against those of real kernels, file by file: names, modes, contents.

tests/recordings holds what Debian's 6.1 and 6.12 kernels showed at each step of a story (tests/kernel/record.py,
which says how to record again). The same story is told to ``lab.files.Kernel`` here. Our module is asked about the
recordings, too.
"""

import json
import os
import pathlib
import stat

import pytest

from lab.files import Kernel

RECORDINGS = {
    path.stem: json.loads(path.read_text())
    for path in sorted(pathlib.Path(__file__).parents[1].glob("recordings/*.json"))
}
STEPS = [(series, step["step"]) for series, recording in RECORDINGS.items() for step in recording["steps"]]

FIRST, SECOND, CORE, SLEEPY = "livepatch_1_1_1", "livepatch_2_1_1", "klpt_core", "klpt_sleepy"
TARGET = [("klpt_target", f"klpt_{name}", 1) for name in ("block_read", "killable_read", "kthread_wait", "state_read")]
VMLINUX = [("vmlinux", "cmdline_proc_show", 1)]

# Processes of the story: init is the lab's own.
BYSTANDER, SLEEPER = 500, 600
PIDS = {"bystander": BYSTANDER, "init": 1, "sleeper": SLEEPER}


def functions(rows, state):
    return [(*row, state) for row in rows]


class Story:
    """The steps of tests/kernel/record.py, told to the lab. Each method is one step and follows the one before."""

    def __init__(self, kernel):
        self.kernel = kernel

    def idle(self):
        self.kernel.task(BYSTANDER, "sleep")

    def core_applied(self):
        self.kernel.start(CORE, functions=functions(VMLINUX, 1), replace_all=False)
        self.kernel.finish()

    def first_applying(self):
        self.kernel.start(FIRST, functions=functions(TARGET, 1), replace_all=False)
        self.kernel.task(SLEEPER, "cat", blocking=True, letter="D")

    def first_applied(self):
        self.kernel.finish()
        self.kernel.exit(SLEEPER)

    def second_applied(self):
        self.kernel.start(SECOND, functions=functions(TARGET + VMLINUX, 1), replace_all=True)
        self.kernel.finish()

    def second_disabled(self):
        self.kernel.remove(FIRST)
        self.kernel.remove(CORE)
        self.kernel.revert(SECOND)
        self.kernel.finish()

    def sleepy_reverting(self):
        self.kernel.remove(SECOND)
        self.kernel.start(SLEEPY, functions=functions(TARGET, 1), replace_all=False)
        self.kernel.finish()
        self.kernel.task(SLEEPER, "cat")
        self.kernel.revert(SLEEPY)
        self.kernel.flag(SLEEPER, True)

    def sleepy_turned_back(self):
        self.kernel.change(SLEEPY, "applying")
        self.kernel.flag(SLEEPER, False)
        self.kernel.finish()

    def target_gone(self):
        self.kernel.exit(SLEEPER)
        self.kernel.patch(SLEEPY, "applied", functions=functions(TARGET, 5), replace_all=False)


# The lab has no moment at which a patch is loaded and its functions are not in place.
NOT_IN_THE_LAB = ("second being loaded",)


def lab_files(kernel, recorded):
    """The same files as a recording holds, read from the lab."""
    files = {}

    def note(path, name):
        about = os.lstat(path)
        mode = stat.filemode(about.st_mode)
        if stat.S_ISDIR(about.st_mode):
            files[name] = [mode, None]
        else:
            # a file that is only written is empty in the lab, and unreadable in a kernel
            files[name] = [mode, None if about.st_mode & 0o444 == 0 else pathlib.Path(path).read_text()]

    top = kernel.root / "sys/kernel/livepatch"
    note(top, "sys/kernel/livepatch")
    for path in top.rglob("*"):
        note(path, str(path.relative_to(kernel.root)))
    for path in (kernel.root / "sys/module").glob("*/refcnt"):
        note(path, str(path.relative_to(kernel.root)))
    for name in {path.split("/")[1] for path in recorded if path.startswith("proc/")}:
        proc = kernel.root / "proc" / str(PIDS[name])
        note(proc / "patch_state", f"proc/{name}/patch_state")
        note(proc / "task" / str(PIDS[name]) / "patch_state", f"proc/{name}/task/leader/patch_state")
    return files


def told(root, series):
    kernel = Kernel(root, abi="livepatch", release=RECORDINGS[series]["kernelrelease"], replace=series == "6.12")
    return kernel, Story(kernel)


def test_there_are_recordings_of_both_kernels():
    assert set(RECORDINGS) == {"6.1", "6.12"}
    for recording in RECORDINGS.values():
        told_here = {name for name in vars(Story) if not name.startswith("_")}
        recorded = {step["step"].replace(" ", "_") for step in recording["steps"] if step["step"] not in NOT_IN_THE_LAB}
        assert told_here == recorded


@pytest.mark.parametrize("series", RECORDINGS)
def test_the_lab_shows_the_files_of_a_real_kernel_at_each_step(tmp_path, series):
    kernel, story = told(tmp_path / "root", series)
    for step in RECORDINGS[series]["steps"]:
        if step["step"] in NOT_IN_THE_LAB:
            continue
        getattr(story, step["step"].replace(" ", "_"))()
        # what the lab has no use for; what it does with it is no claim of ours
        recorded = {path: file for path, file in step["files"].items() if not path.endswith(("/initstate", "/taint"))}

        assert lab_files(kernel, recorded) == recorded, step["step"]


@pytest.mark.parametrize("series", RECORDINGS)
def test_the_lab_lists_modules_as_the_kernel_does_newest_first(tmp_path, series):
    kernel, story = told(tmp_path / "root", series)
    for step in RECORDINGS[series]["steps"]:
        if step["step"] in NOT_IN_THE_LAB:
            continue
        getattr(story, step["step"].replace(" ", "_"))()
        rows = [line.split() for line in (kernel.root / "proc/modules").read_text().splitlines()]

        ours = [[row[0], row[2], row[4], *row[6:]] for row in rows if row[0] in (FIRST, SECOND, CORE, SLEEPY)]
        assert ours == step["modules"], step["step"]


# -- our module on the recorded files themselves

SAYS = {  # state, direction, active
    "idle": ("ready", None, []),
    "core applied": ("ready", None, [CORE]),
    "first applying": ("in_progress", "apply", [CORE, FIRST]),
    "first applied": ("ready", None, [CORE, FIRST]),
    "second being loaded": ("in_progress", "apply", [CORE, FIRST, SECOND]),
    "second applied": ("ready", None, [SECOND]),
    "second disabled": ("ready", None, []),
    "sleepy reverting": ("in_progress", "revert", []),
    "sleepy turned back": ("ready", None, [SLEEPY]),
    "target gone": ("ready", None, [SLEEPY]),
}


@pytest.fixture
def recorded(tmp_path, series, step):
    """A root with the recorded files, over a lab's kernel for what was not recorded."""
    kernel = Kernel(tmp_path / "root", abi="livepatch", release=RECORDINGS[series]["kernelrelease"])
    files, modules = next((one["files"], one["modules"]) for one in RECORDINGS[series]["steps"] if one["step"] == step)
    for name, pid in PIDS.items():
        if f"proc/{name}/patch_state" in files:
            kernel.task(pid, name)
    for path, (mode, content) in files.items():
        parts = path.split("/")
        if parts[0] == "proc":
            parts[1:] = [
                str(PIDS[parts[1]]),
                *(str(PIDS[parts[1]]) if part == "leader" else part for part in parts[2:]),
            ]
        place = kernel.root.joinpath(*parts)
        if mode[0] == "d":
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(content or "")
    lines = [f"{name} 16384 {used} - {state} 0x0 {' '.join(taint)}\n" for name, used, state, *taint in modules]
    (kernel.root / "proc/modules").write_text("".join(lines))
    (kernel.proc / "2/task/2/patch_state").write_text(files["proc/init/patch_state"][1])
    return kernel


@pytest.mark.parametrize(("series", "step"), STEPS)
def test_our_module_says_what_was_going_on_when_it_was_recorded(kgraft_on, recorded, step):
    status = kgraft_on(recorded).status()

    assert (status["state"], status["direction"], status["active"]) == SAYS[step]


@pytest.mark.parametrize(
    ("series", "step"), [(series, step) for series, step in STEPS if step in ("first applying", "sleepy reverting")]
)
def test_our_module_names_who_blocked_when_it_was_recorded(kgraft_on, recorded):
    blocking = kgraft_on(recorded).blocking()

    assert [task["pid"] for task in blocking["tasks"]] == [SLEEPER]
