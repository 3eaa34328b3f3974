"""The lab's second interface over real processes: upstream livepatch."""

import contextlib
import errno
import os
import signal
import subprocess

import pytest

from lab import Lab, samples, wait_until

ONE, TWO = "livepatch_1_1_1", "livepatch_2_1_1"
PERIOD = 0.1


@contextlib.contextmanager
def running(tmp_path, kinds=(), **options):
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(samples.process(kind)) for kind in kinds]
        options = dict({"period": PERIOD, "pids": [process.pid for process in processes]}, **options)
        yield (stack.enter_context(Lab(tmp_path / "root", "livepatch", **options)), *processes)


def shown(lab, name):
    """``(enabled, transition)``, None when the directory has vanished."""
    directory = lab.root / "sys/kernel/livepatch" / name
    try:
        return tuple(int((directory / file).read_text()) for file in ("enabled", "transition"))
    except FileNotFoundError:
        return None


def patch_state(lab, pid, tid=None):
    return int((lab.root / f"proc/{pid}/{f'task/{tid}/' if tid else ''}patch_state").read_text())


def write(lab, name, file, content):
    """As _modules/kgraft.py does it: no truncation."""
    descriptor = os.open(lab.root / "sys/kernel/livepatch" / name / file, os.O_WRONLY)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)


def shows(lab, name, what):
    wait_until(lambda: shown(lab, name) == what, f"{name} shows {what}")


def poke(process):
    os.kill(process.pid, signal.SIGSTOP)
    os.kill(process.pid, signal.SIGCONT)


def test_there_is_no_global_flag(tmp_path):
    with running(tmp_path) as (lab,):
        assert os.listdir(lab.root / "sys/kernel") == ["livepatch"]
        assert os.listdir(lab.root / "sys/kernel/livepatch") == []


def test_an_idle_kernel_is_patched_at_once(tmp_path):
    with running(tmp_path) as (lab,):
        lab.load(ONE)
        assert shown(lab, ONE) == (1, 0)
        assert lab.log == [
            f"livepatch: enabling patch '{ONE}'",
            f"livepatch: '{ONE}': starting patching transition",
            f"livepatch: '{ONE}': patching complete",
        ]


def test_a_sleeper_shows_0_while_a_patch_is_applied_until_it_is_poked(tmp_path):
    with running(tmp_path, ["sleep"]) as (lab, process):
        lab.load(ONE)
        assert shown(lab, ONE) == (1, 1)
        assert patch_state(lab, process.pid) == 0
        assert patch_state(lab, 1) == 1
        poke(process)
        shows(lab, ONE, (1, 0))
        assert patch_state(lab, process.pid) == -1


def test_a_disable_reads_0_at_once_and_its_blockers_show_1(tmp_path):
    with running(tmp_path) as (lab,), samples.process("sleep") as process:
        lab.load(ONE)
        lab.watch(process.pid)
        write(lab, ONE, "enabled", b"0")
        shows(lab, ONE, (0, 1))
        assert patch_state(lab, process.pid) == 1
        assert patch_state(lab, 1) == 0
        poke(process)
        shows(lab, ONE, None)
        assert lab.log[-1] == f"livepatch: '{ONE}': unpatching complete"


def test_a_zero_in_mid_air_reverses_the_transition(tmp_path):
    with running(tmp_path, ["stopped"]) as (lab, process):
        lab.load(ONE)
        write(lab, ONE, "enabled", b"0")
        shows(lab, ONE, None)
        assert patch_state(lab, process.pid) == -1


def test_the_module_stays_after_its_directory_vanished_and_can_be_unloaded_then(tmp_path):
    with running(tmp_path) as (lab,):
        lab.load(ONE)
        with pytest.raises(OSError) as enabled:
            lab.unload(ONE)
        lab.revert(ONE)
        shows(lab, ONE, None)
        with pytest.raises(OSError) as loaded:
            lab.load(ONE)
        lab.unload(ONE)
        lab.load(ONE)
    assert (enabled.value.errno, loaded.value.errno) == (errno.EAGAIN, errno.EEXIST)


def test_a_replaced_patch_vanishes(tmp_path):
    with running(tmp_path) as (lab,):
        lab.load(ONE)
        lab.load(TWO)
        assert shown(lab, ONE) is None
        assert shown(lab, TWO) == (1, 0)
        assert f"{ONE} 16384 0" in (lab.root / "proc/modules").read_text()


def test_a_second_patch_during_a_transition_is_busy(tmp_path):
    file = tmp_path / "livepatch-2-1_1.ko"
    file.touch()
    with running(tmp_path, ["stopped"]) as (lab, _):
        lab.load(ONE)
        done = subprocess.run(["insmod", str(file)], env=lab.environ, capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr.strip().endswith("Device or resource busy")
        assert shown(lab, TWO) is None


def test_force_ends_a_transition_and_leaves_the_blocker_alone(tmp_path):
    with running(tmp_path, ["stopped"]) as (lab, process):
        before = process.switches()
        lab.load(ONE)
        write(lab, ONE, "force", b"1")
        shows(lab, ONE, (1, 0))
        assert process.switches() == before


def test_the_fake_signal_comes_at_every_fifteenth_check(tmp_path):
    with running(tmp_path, ["sleep"], period=0.02) as (lab, _):
        lab.load(ONE)
        shows(lab, ONE, (1, 0))
        assert "livepatch: signaling remaining tasks" in lab.log


def test_without_the_fake_signal_a_sleeper_stays(tmp_path):
    with running(tmp_path, ["sleep"], period=0.02, fake_signal=False) as (lab, process):
        lab.load(ONE)
        wait_until(lambda: lab.checks >= 20, "more than fifteen checks")
        assert patch_state(lab, process.pid) == 0


def test_the_leaders_file_says_nothing_about_its_threads(tmp_path):
    with running(tmp_path, ["threads"]) as (lab, process):
        lab.load(ONE)
        assert {patch_state(lab, process.pid, tid) for tid in process.tids} == {0}
        assert patch_state(lab, process.pid) == patch_state(lab, process.pid, process.pid)
