"""The lab over real processes: what really blocks, what really frees."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from lab import Lab, procfs, samples, wait_until

ONE, TWO = "kgraft-patch-1-2_1", "kgraft-patch-2-2_1"
SLEEPERS = ["sleep", "pause", "poll", "epoll", "read", "futex"]
PERIOD = 0.2


@contextlib.contextmanager
def running(tmp_path, kinds=(), **options):
    """A lab that watches one process of each kind; gives the lab and the processes."""
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(samples.process(kind)) for kind in kinds]
        options.setdefault("period", PERIOD)
        lab = stack.enter_context(Lab(tmp_path / "root", pids=[process.pid for process in processes], **options))
        yield (lab, *processes)


def read(lab, path):
    return (lab.root / path).read_text()


def flagged(lab, pid, tid=None):
    return read(lab, f"proc/{pid}/{f'task/{tid}/' if tid else ''}kgr_in_progress") == "1\n"


def in_progress(lab):
    return read(lab, "sys/kernel/kgraft/in_progress") == "1\n"


def state(lab, name):
    return {int(line.split()[-1]) for line in read(lab, f"sys/kernel/kgraft/{name}/state").splitlines()[1:]}


def settled(lab):
    wait_until(lambda: not in_progress(lab), "settled")


def several_checks(lab):
    """Wait until the kernel looked so often that what can cross did: a fake signal shows one check later."""
    wait_until(lambda: lab.checks >= 3, "three checks")


def poke(process):
    """STOP, then CONT once every thread has stopped: a CONT too early cancels a stop that threads did not see yet."""
    os.kill(process.pid, signal.SIGSTOP)
    wait_until(lambda: {letter for letter, _ in process.switches()} == {"T"}, "stopped")
    os.kill(process.pid, signal.SIGCONT)


def test_the_first_line_says_that_it_is_not_a_kernel(tmp_path):
    command = [sys.executable, "-m", "lab", tmp_path / "root", "--until-eof"]
    said = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout
    assert said.startswith("This is not a kernel: ")


def test_an_idle_kernel_settles_at_its_first_check(tmp_path):
    with running(tmp_path) as (lab,):
        began = time.monotonic()
        lab.load(ONE)
        settled(lab)

    assert time.monotonic() - began >= PERIOD
    assert lab.log == [f"kgr: applying patch '{ONE}'", "kgr: patching succeeded"]


@pytest.mark.parametrize("kind", SLEEPERS)
def test_a_sleeper_blocks_until_it_is_stopped_and_continued(tmp_path, kind):
    with running(tmp_path, [kind]) as (lab, process):
        lab.load(ONE)
        several_checks(lab)
        assert flagged(lab, process.pid)
        assert in_progress(lab)

        os.kill(process.pid, signal.SIGSTOP)
        os.kill(process.pid, signal.SIGCONT)

        wait_until(lambda: not flagged(lab, process.pid), "crossed")
        settled(lab)
        assert state(lab, ONE) == {2}
        assert "kgr: still in progress after timeout, will keep trying every 0.2 seconds" in lab.log


def test_sigstop_alone_frees_a_sleeper_while_it_is_stopped(tmp_path):
    with running(tmp_path, ["sleep"]) as (lab, process):
        lab.load(ONE)
        os.kill(process.pid, signal.SIGSTOP)
        settled(lab)
        assert process.letter == "T"


@pytest.mark.parametrize("number", [signal.SIGCONT, 0, signal.SIGURG], ids=["SIGCONT", "signal 0", "an ignored signal"])
def test_what_does_not_run_a_sleeper_does_not_free_it(tmp_path, number):
    with running(tmp_path, ["sleep"]) as (lab, process):
        lab.load(ONE)
        os.kill(process.pid, number)
        several_checks(lab)
        assert flagged(lab, process.pid)
        assert in_progress(lab)


@pytest.mark.parametrize("kind", ["stopped", "vfork", "traced"])
@pytest.mark.parametrize("fake_signal", [False, True])
def test_what_cannot_run_stays_with_and_without_the_fake_signal(tmp_path, kind, fake_signal):
    with running(tmp_path, [kind], fake_signal=fake_signal) as (lab, process):
        lab.load(ONE)
        several_checks(lab)
        assert flagged(lab, process.pid)
        assert in_progress(lab)


def test_the_fake_signal_frees_a_sleeper_and_sends_nothing(tmp_path):
    with running(tmp_path, ["sleep"], fake_signal=True) as (lab, process):
        before = process.switches()
        lab.load(ONE)
        settled(lab)
        assert process.switches() == before


def test_a_zombie_keeps_its_flag_but_does_not_hold_a_late_kernel_up(tmp_path):
    with running(tmp_path, ["zombie"]) as (lab, process):
        lab.load(ONE)
        settled(lab)
        assert flagged(lab, process.pid)


def test_a_zombie_holds_an_old_kernel_up(tmp_path):
    with running(tmp_path, ["zombie"], old=True) as (lab, process):
        lab.load(ONE)
        several_checks(lab)
        assert in_progress(lab)


def test_a_busy_process_clears_by_itself(tmp_path):
    with running(tmp_path, ["busy"]) as (lab, process):
        lab.load(ONE)
        settled(lab)
        assert not flagged(lab, process.pid)


def test_a_poke_frees_every_thread(tmp_path):
    with running(tmp_path, ["threads"]) as (lab, process):
        lab.load(ONE)
        assert all(flagged(lab, process.pid, tid) for tid in process.tids)
        poke(process)
        settled(lab)
        assert not any(flagged(lab, process.pid, tid) for tid in process.tids)


def test_a_process_that_ends_holds_nothing_up(tmp_path):
    with running(tmp_path) as (lab,), samples.process("sleep") as process:
        lab.watch(process.pid)
        lab.load(ONE)
        assert in_progress(lab)
        os.kill(process.pid, signal.SIGKILL)
        settled(lab)


def test_a_task_born_during_a_transition_starts_unflagged(tmp_path):
    with running(tmp_path, ["stopped"]) as (lab, _):
        lab.load(ONE)
        with samples.process("sleep") as born:
            lab.watch(born.pid)
            assert not flagged(lab, born.pid)


def test_a_watched_process_shows_its_real_letter_and_start_time(tmp_path):
    with running(tmp_path, ["sleep"]) as (lab, process):
        lab.watch(process.pid)
        for name in ("stat", "cgroup", "cmdline", f"task/{process.pid}/stat"):
            with open(f"/proc/{process.pid}/{name}") as real:
                assert read(lab, f"proc/{process.pid}/{name}") == real.read()
        os.kill(process.pid, signal.SIGSTOP)
        wait_until(lambda: "State:\tT" in read(lab, f"proc/{process.pid}/status"), "the live letter")


def test_nothing_but_what_it_was_given_is_watched(tmp_path):
    with running(tmp_path, ["sleep"]) as (lab, process):
        lab.load(ONE)
        shown = {int(path.name) for path in (lab.root / "proc").iterdir() if path.name.isdigit()}
    assert shown == {1, process.pid}


def test_a_control_group_is_watched(tmp_path):
    """Any directory with a cgroup.procs, so that the test needs no writable hierarchy."""
    with samples.process("sleep") as process:
        (tmp_path / "group/below").mkdir(parents=True)
        (tmp_path / "group/below/cgroup.procs").write_text(f"{process.pid}\n")
        with Lab(tmp_path / "root", period=PERIOD, cgroups=[tmp_path / "group"]) as lab:
            lab.load(ONE)
            assert flagged(lab, process.pid)


def test_a_second_patch_is_refused_while_one_runs(tmp_path):
    with running(tmp_path, ["stopped"]) as (lab, _):
        lab.load(ONE)
        with pytest.raises(OSError) as refused:
            lab.load(TWO)
        assert refused.value.errno == errno.EAGAIN
        assert not (lab.root / "sys/kernel/kgraft" / TWO).exists()
        assert state(lab, ONE) == {1}


def test_a_cumulative_patch_leaves_the_replaced_one_inactive_until_it_is_unloaded(tmp_path):
    with running(tmp_path) as (lab,):
        lab.load(ONE)
        settled(lab)
        lab.load(TWO)
        settled(lab)
        assert state(lab, ONE) == {4}
        assert state(lab, TWO) == {2}
        assert read(lab, "sys/module/kgraft_patch_1_2_1/refcnt") == "0\n"
        lab.unload(ONE)
        assert not (lab.root / "sys/kernel/kgraft" / ONE).exists()


def test_a_stacked_patch_must_be_reverted_before_the_one_below(tmp_path):
    with running(tmp_path) as (lab,):
        lab.load(ONE, replace_all=False)
        settled(lab)
        lab.load(TWO, replace_all=False)
        settled(lab)
        assert state(lab, ONE) == state(lab, TWO) == {2}
        assert read(lab, f"sys/kernel/kgraft/{ONE}/refs") == "1\n"

        with pytest.raises(OSError) as refused:
            lab.revert(ONE)
        assert refused.value.errno == errno.EBUSY

        lab.revert(TWO)
        settled(lab)
        lab.revert(ONE)
        settled(lab)
        assert state(lab, ONE) == state(lab, TWO) == {4}


def test_a_revert_is_refused_while_a_patch_is_applied_and_after_a_revert(tmp_path):
    with running(tmp_path, ["stopped"]) as (lab, process):
        lab.load(ONE)
        with pytest.raises(OSError) as running_one:
            lab.revert(ONE)
        process.end()
        settled(lab)
        lab.revert(ONE)
        settled(lab)
        with pytest.raises(OSError) as reverted:
            lab.revert(ONE)
    assert (running_one.value.errno, reverted.value.errno) == (errno.EAGAIN, errno.EINVAL)


def test_a_byte_written_to_revert_starts_one_and_a_sleeper_blocks_it(tmp_path):
    with running(tmp_path) as (lab,), samples.process("sleep") as process:
        lab.load(ONE)
        settled(lab)
        lab.watch(process.pid)
        (lab.root / f"sys/kernel/kgraft/{ONE}/revert").write_bytes(b"1")
        assert in_progress(lab)
        assert state(lab, ONE) == {3}
        assert flagged(lab, process.pid)
        poke(process)
        settled(lab)
        assert state(lab, ONE) == {4}
        assert lab.log[-2:] == [f"kgr: reverting patch '{ONE}'", "kgr: patching succeeded"]


def test_a_refused_write_changes_nothing_and_the_log_tells_its_errno(tmp_path):
    with running(tmp_path, ["stopped"]) as (lab, _):
        lab.load(ONE)
        (lab.root / f"sys/kernel/kgraft/{ONE}/revert").write_bytes(b"1")
        wait_until(lambda: any("EAGAIN" in line for line in lab.log), "the refusal")
        assert state(lab, ONE) == {1}


def test_a_zero_written_to_in_progress_drops_every_flag_and_the_next_check_ends(tmp_path):
    with running(tmp_path, ["stopped"], stuck_threads=["bad_driver"]) as (lab, process):
        lab.load(ONE)
        (lab.root / "sys/kernel/kgraft/in_progress").write_bytes(b"0")
        settled(lab)
        wait_until(lambda: state(lab, ONE) == {2}, "applied")
        assert not flagged(lab, process.pid)
        assert "kgr: all processes marked as migrated on admin's request" in lab.log


def test_a_zero_written_when_idle_drops_a_flag_that_was_left_over(tmp_path):
    with running(tmp_path, ["zombie"]) as (lab, process):
        lab.load(ONE)
        settled(lab)
        assert flagged(lab, process.pid)
        (lab.root / "sys/kernel/kgraft/in_progress").write_bytes(b"0")
        wait_until(lambda: not flagged(lab, process.pid), "dropped")


def test_anything_else_written_to_in_progress_is_put_back(tmp_path):
    with running(tmp_path, ["stopped"]) as (lab, process):
        lab.load(ONE)
        (lab.root / "sys/kernel/kgraft/in_progress").write_bytes(b"nonsense\n")
        wait_until(lambda: read(lab, "sys/kernel/kgraft/in_progress") == "1\n", "put back")
        assert flagged(lab, process.pid)


def test_a_stuck_kernel_thread_is_shown_and_told_apart(tmp_path):
    with running(tmp_path, stuck_threads=["bad_driver"], fake_signal=True) as (lab,):
        lab.load(ONE)
        several_checks(lab)
        flags = (lab.root / "proc").glob("*/kgr_in_progress")
        (pid,) = (path.parent.name for path in flags if path.read_text() == "1\n")
        fields = read(lab, f"proc/{pid}/stat").split()
        assert fields[1] == "(bad_driver)"
        assert int(fields[8]) & 0x00200000
        assert not os.path.exists(f"/proc/{pid}")
        lab.unstick("bad_driver")
        settled(lab)


def test_modprobe_loads_an_installed_patch_in_any_spelling(tmp_path):
    with running(tmp_path, install=[ONE]) as (lab,):
        done = subprocess.run(["modprobe", "kgraft_patch_1_2_1"], env=lab.environ, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        listed = subprocess.run(["lsmod"], env=lab.environ, capture_output=True, text=True).stdout.split()
        assert "kgraft_patch_1_2_1" in listed
        assert f"kgr: applying patch '{ONE}'" in lab.log


def test_kmod_fails_in_the_words_of_kmod(tmp_path):
    file = tmp_path / f"{TWO}.ko"
    file.touch()
    with running(tmp_path, ["stopped"], install=[ONE, TWO]) as (lab, _):

        def run(*command):
            done = subprocess.run(command, env=lab.environ, capture_output=True, text=True)
            return done.returncode, done.stderr.strip()

        missing = lab.root / "lib/modules/4.4.180-94.100-default"
        assert run("modprobe", "nix") == (1, f"modprobe: FATAL: Module nix not found in directory {missing}")
        assert run("rmmod", ONE) == (1, f"rmmod: ERROR: Module {ONE} is not currently loaded")
        assert run("modprobe", ONE) == (0, "")
        assert run("modprobe", ONE) == (0, "")
        again = "Resource temporarily unavailable"
        assert run("modprobe", TWO) == (1, f"modprobe: ERROR: could not insert 'kgraft_patch_2_2_1': {again}")
        assert run("insmod", str(file)) == (1, f"insmod: ERROR: could not insert module {file}: {again}")
        assert run("rmmod", ONE) == (1, f"rmmod: ERROR: Module {ONE} is in use")


def test_insmod_takes_the_name_from_the_file_and_rmmod_removes_it(tmp_path):
    file = tmp_path / f"{TWO}.ko"
    file.touch()
    with running(tmp_path) as (lab,):
        subprocess.run(["insmod", str(file), "replace_all=0"], env=lab.environ, check=True)
        assert read(lab, f"sys/kernel/kgraft/{TWO}/replace_all") == "0\n"
        settled(lab)
        lab.revert(TWO)
        settled(lab)
        subprocess.run(["rmmod", "kgraft_patch_2_2_1"], env=lab.environ, check=True)
        assert not (lab.root / "sys/kernel/kgraft" / TWO).exists()


def test_its_children_end_with_it_the_stopped_ones_and_grandchildren_too(tmp_path):
    grandchild = [sys.executable, "-m", "lab.samples", "stopped"]
    with running(tmp_path, run=["sleep 3600", ["sh", "-c", " ".join(grandchild) + "; :"]]) as (lab,):
        lab.load(ONE)
        shown = [path.name for path in (lab.root / "proc").iterdir() if path.name.isdigit() and path.name != "1"]
        assert len(shown) == 3
    assert [pid for pid in shown if os.path.exists(f"/proc/{pid}") and procfs.stat(pid)["letter"] != "Z"] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_it_and_leaves_a_watched_process_as_it_was(tmp_path, number):
    with samples.process("sleep") as process:
        lab = Lab(tmp_path / "root", pids=[process.pid], period=PERIOD)
        with lab:
            lab.load(ONE)
            before = process.switches()
            os.kill(lab.pid, number)
            wait_until(lambda: not (lab.root / "lab.sock").exists(), "ended")
        assert process.switches() == before


def test_it_ends_with_whoever_started_it_even_by_sigkill(tmp_path):
    program = (
        "import sys, time, lab\nwith lab.Lab(sys.argv[1], run=['sleep 3600']) as it: print(it.pid); time.sleep(3600)"
    )
    command = [sys.executable, "-uc", program, str(tmp_path / "root")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as starter:
        pid = int(starter.stdout.readline())
        starter.kill()
    wait_until(lambda: (procfs.stat(pid) or {"letter": "Z"})["letter"] == "Z", "the lab ended")


def test_it_takes_no_directory_with_a_proc_of_its_own(tmp_path):
    (tmp_path / "root/proc").mkdir(parents=True)
    with pytest.raises(RuntimeError, match="needs a directory to itself"), Lab(tmp_path / "root"):
        pass


def test_help_is_there():
    text = subprocess.run([sys.executable, "-m", "lab", "--help"], capture_output=True, text=True, check=True).stdout
    assert "It is not a kernel" in text
