"""The lab's rules, with processes and a clock of our own: one test for each row of the kernel's life of a patch."""

import errno

import pytest

from lab import procfs
from lab.rules import Rules

ONE, TWO, THREE = "kgraft-patch-1-2_1", "kgraft-patch-2-2_1", "kgraft-patch-3-2_1"
BUSY, REFERENCED, REVERTED = (
    f"kgr: can't patch, {why}"
    for why in (
        "another patching not yet finalized",
        "this patch is still referenced",
        "this one was already reverted",
    )
)


class Processes:
    """As ``procfs.Processes``, from a table ``{pid: {tid: [letter, switches]}}``."""

    def __init__(self):
        self.table = {}
        self.start_times = {}

    def watched(self):
        return {pid: self.start_times.get(pid, 4242) for pid in self.table}

    def threads(self, pid):
        return list(self.table.get(pid, {}))

    def look(self, pid, tid):
        about = self.table.get(pid, {}).get(tid)
        return about and tuple(about)

    def run(self, pid, tid=None):
        self.table[pid][tid or pid][1] += 1


class World:
    def __init__(self, kernel, **options):
        self.kernel = kernel
        self.processes = Processes()
        self.now = 100.0
        self.log = []
        options.setdefault("period", 2)
        self.rules = Rules(kernel, self.processes, clock=lambda: self.now, log=self.log.append, **options)

    def task(self, pid, letter="S", threads=(), switches=7):
        self.processes.table[pid] = {tid: [letter, switches] for tid in (pid, *threads)}

    def later(self, seconds):
        self.now += seconds
        self.rules.tick()

    def read(self, path):
        return (self.kernel.root / path).read_text()

    def flagged(self, pid, tid=None):
        return self.read(f"proc/{pid}/{f'task/{tid}/' if tid else ''}kgr_in_progress") == "1\n"

    @property
    def in_progress(self):
        return self.read("sys/kernel/kgraft/in_progress") == "1\n"


@pytest.fixture
def world(make_kernel):
    def make(abi="kgraft", **options):
        return World(make_kernel(abi), **options)

    return make


def refused(order, *arguments):
    with pytest.raises(OSError) as error:
        order(*arguments)
    return error.value.errno


def test_insmod_returns_as_soon_as_patching_has_started(world):
    here = world()
    here.rules.load(ONE)
    assert here.in_progress


def test_an_idle_kernel_clears_at_its_first_check_not_before(world):
    here = world()
    here.rules.load(ONE)
    here.later(1.9)
    assert here.in_progress
    here.later(0.1)
    assert not here.in_progress


def test_a_flag_clears_when_the_thread_ran_and_the_global_file_at_the_next_check_only(world):
    here = world()
    here.task(731)
    here.rules.load(ONE)
    here.later(2)
    here.processes.run(731)
    here.later(0.1)
    assert not here.flagged(731)
    assert here.in_progress
    here.later(1.9)
    assert not here.in_progress


def test_it_never_gives_up_by_itself(world):
    here = world()
    here.task(731, "T")
    here.rules.load(ONE)
    for _ in range(1000):
        here.later(2)
    assert here.in_progress
    assert sum("still in progress" in line for line in here.log) == 1


def test_what_ran_between_the_baseline_and_the_flag_has_crossed(world):
    """The counters are read first, so nothing that crosses in between is held for good."""
    here = world()
    here.task(731)
    shown = here.kernel.start

    def start(*arguments, **patch):
        here.processes.run(731)
        shown(*arguments, **patch)

    here.kernel.start = start
    here.rules.load(ONE)
    here.rules.tick()
    assert not here.flagged(731)


def test_a_task_without_a_baseline_has_crossed(world):
    here = world()
    here.rules.load(ONE)
    here.task(800)
    here.rules.show()
    assert not here.flagged(800)


def test_a_thread_without_a_baseline_has_crossed(world):
    here = world()
    here.task(731)
    here.rules.load(ONE)
    here.processes.table[731][732] = ["S", 1]
    here.rules.show()
    assert here.flagged(731, 731)
    assert not here.flagged(731, 732)


def test_the_process_is_flagged_while_any_of_its_threads_is(world):
    here = world()
    here.task(731, threads=(732,))
    here.rules.load(ONE)
    here.processes.run(731)
    here.later(0.1)
    assert not here.flagged(731, 731)
    assert here.flagged(731)
    here.processes.run(731, 732)
    here.later(0.1)
    assert not here.flagged(731)


def test_a_zombie_that_is_reaped_is_gone_and_who_gets_its_pid_starts_unflagged(world):
    here = world()
    here.task(731, "Z")
    here.task(732, "Z")
    here.rules.load(ONE)
    assert here.flagged(731)
    assert here.flagged(732)
    del here.processes.table[731]
    here.processes.start_times[732] = 4343
    here.rules.show()
    assert not (here.kernel.root / "proc/731").exists()
    assert not here.flagged(732)


def test_who_is_gone_holds_nothing_up(world):
    here = world()
    here.task(731)
    here.rules.load(ONE)
    del here.processes.table[731]
    here.later(0.1)
    assert not (here.kernel.root / "proc/731").exists()
    here.later(2)
    assert not here.in_progress


def test_a_thread_that_is_gone_holds_nothing_up(world):
    here = world()
    here.task(731, threads=(732,))
    here.rules.load(ONE)
    here.processes.run(731)
    del here.processes.table[731][732]
    here.later(0.1)
    assert not here.flagged(731)


def test_a_zombie_holds_3_12_up_and_not_4_4(world):
    for old in (False, True):
        here = world(old=old)
        here.task(731, "Z")
        here.rules.load(ONE)
        here.later(2)
        assert here.in_progress is old
        assert here.flagged(731)


def test_a_zombie_that_is_switched_away_from_for_the_last_time_keeps_its_flag(world):
    here = world()
    here.task(731, "Z")
    here.rules.load(ONE)
    here.processes.run(731)
    here.later(0.1)
    assert here.flagged(731)


def test_who_is_killed_while_flagged_has_crossed_on_its_way_out(world):
    here = world()
    here.task(731)
    here.rules.load(ONE)
    here.processes.table[731][731] = ["Z", 8]
    here.later(0.1)
    assert not here.flagged(731)


def test_a_zombie_leader_does_not_hide_its_living_thread(world):
    here = world()
    here.task(731, "Z", threads=(732,))
    here.processes.table[731][732] = ["S", 1]
    here.rules.load(ONE)
    here.later(2)
    assert here.in_progress
    here.processes.run(731, 732)
    here.later(2)
    assert not here.in_progress


@pytest.mark.parametrize(("letter", "moves"), [("S", True), ("R", True), ("D", False), ("T", False), ("t", False)])
def test_the_fake_signal_moves_ordinary_sleepers_only(world, letter, moves):
    here = world(fake_signal=True)
    here.task(731, letter)
    here.rules.load(ONE)
    here.later(2)
    assert here.flagged(731) is not moves
    here.later(2)
    assert here.in_progress is not moves


def test_a_stuck_kernel_thread_stays_whatever_the_kernel_sends(world):
    here = world(fake_signal=True, stuck_threads=["bad_driver"])
    here.rules.load(ONE)
    for _ in range(5):
        here.later(2)
    assert here.in_progress
    here.rules.unstick("bad_driver")
    here.later(2)
    assert not here.in_progress


def test_a_second_patch_and_a_revert_are_refused_while_one_runs_and_are_not_queued(world):
    here = world()
    here.rules.load(ONE)
    assert refused(here.rules.load, TWO) == errno.EAGAIN
    assert refused(here.rules.revert, ONE) == errno.EAGAIN
    here.later(2)
    assert list(here.kernel.patches) == [ONE]


def test_a_failed_insmod_makes_its_directory_appear_for_a_moment(world):
    here = world()
    here.rules.load(ONE)
    seen = []
    here.kernel.remove = lambda name: seen.append(here.read(f"sys/kernel/kgraft/{name}/state").split()[-1])
    refused(here.rules.load, TWO)
    assert seen == ["0"]


def test_a_loaded_module_cannot_be_loaded_again(world):
    here = world()
    here.rules.load(ONE)
    here.later(2)
    assert refused(here.rules.load, "kgraft_patch_1_2_1") == errno.EEXIST


def test_a_patch_with_others_above_it_is_busy_and_a_reverted_one_invalid(world):
    here = world()
    here.rules.load(ONE)
    here.later(2)
    here.rules.load(TWO, replace_all=False)
    here.later(2)
    assert refused(here.rules.revert, ONE) == errno.EBUSY
    here.rules.revert(TWO)
    here.later(2)
    assert refused(here.rules.revert, TWO) == errno.EINVAL
    assert refused(here.rules.revert, "nix") == errno.ENOENT


def test_a_replaced_patch_with_a_stale_refs_is_busy_and_one_without_is_invalid(world):
    here = world()
    for name, cumulative in ((ONE, True), (TWO, False), (THREE, True)):
        here.rules.load(name, replace_all=cumulative)
        here.later(2)
    assert here.read(f"sys/kernel/kgraft/{ONE}/refs") == "1\n"
    assert refused(here.rules.revert, ONE) == errno.EBUSY
    assert refused(here.rules.revert, TWO) == errno.EINVAL


def test_the_log_tells_in_the_kernels_words_why_an_order_is_refused(world):
    here = world()
    here.rules.load(ONE)
    here.later(2)
    here.rules.load(TWO, replace_all=False)
    del here.log[:]
    # what lies below is told first, also while a transition runs
    assert refused(here.rules.revert, ONE) == errno.EBUSY
    assert refused(here.rules.load, THREE) == errno.EAGAIN
    assert refused(here.rules.revert, TWO) == errno.EAGAIN
    here.later(2)
    here.rules.revert(TWO)
    here.later(2)
    assert refused(here.rules.revert, TWO) == errno.EINVAL
    assert [line for line in here.log if "can't" in line] == [REFERENCED, BUSY, BUSY, REVERTED]


def test_the_end_of_a_revert_is_told_as_that_of_an_application(world):
    here = world()
    here.rules.load(ONE)
    here.later(2)
    here.rules.revert(ONE)
    here.later(2)
    assert here.log == [
        f"kgr: applying patch '{ONE}'",
        "kgr: patching succeeded",
        f"kgr: reverting patch '{ONE}'",
        "kgr: patching succeeded",
    ]


def test_livepatch_refuses_without_a_word_in_the_log(world):
    here = world("livepatch")
    here.task(731)
    here.rules.load("livepatch_8_2_1")
    told = list(here.log)
    assert refused(here.rules.load, "livepatch_9_2_1") == errno.EBUSY
    assert here.log == told


@pytest.mark.parametrize("name", ["", ".", "..", "../../../escaped", "/proc/nix", "a/b", "a\nb", "-x", "x" * 56, "ü"])
def test_what_is_no_name_of_a_module_is_not_loaded(world, name):
    here = world()
    assert refused(here.rules.load, name) == errno.EINVAL
    assert not here.in_progress
    assert here.kernel.patches == {}


def test_an_active_module_is_not_unloaded(world):
    here = world()
    here.rules.load(ONE)
    here.later(2)
    assert refused(here.rules.unload, ONE) == errno.EAGAIN
    here.rules.revert(ONE)
    here.later(2)
    here.rules.unload(ONE)
    assert here.kernel.patches == {}


def test_livepatch_ends_at_once_if_nobody_blocks(world):
    here = world("livepatch")
    here.rules.load("livepatch_9_2_1")
    assert here.rules.running is None


def test_livepatch_refuses_a_second_patch_as_busy(world):
    here = world("livepatch")
    here.task(731)
    here.rules.load("livepatch_8_2_1")
    assert refused(here.rules.load, "livepatch_9_2_1") == errno.EBUSY


def test_livepatch_does_not_wait_for_a_zombie(world):
    here = world("livepatch")
    here.task(731, "Z")
    here.task(732)
    here.rules.load("livepatch_9_2_1")
    assert [here.read(f"proc/{pid}/patch_state") for pid in (731, 732)] == ["1\n", "0\n"]


def test_livepatch_signals_at_the_fifteenth_check(world):
    here = world("livepatch", period=1, fake_signal=True)
    here.task(731)
    here.rules.load("livepatch_9_2_1")
    for _ in range(14):
        here.later(1)
    assert here.read("proc/731/patch_state") == "0\n"
    here.later(1)
    assert here.read("proc/731/patch_state") == "1\n"
    here.later(1)
    assert here.rules.running is None


def test_enabled_refuses_the_value_that_it_has(world):
    here = world("livepatch")
    here.rules.load("livepatch_9_2_1")
    assert refused(here.rules.enable, "livepatch_9_2_1", True) == errno.EINVAL


def test_a_reversal_can_itself_be_reversed(world):
    here = world("livepatch")
    here.task(731, "T")
    here.rules.load("livepatch_9_2_1")
    here.rules.enable("livepatch_9_2_1", False)
    assert here.read("sys/kernel/livepatch/livepatch_9_2_1/enabled") == "0\n"
    here.rules.enable("livepatch_9_2_1", True)
    here.later(2)
    assert here.read("sys/kernel/livepatch/livepatch_9_2_1/enabled") == "1\n"
    assert here.read("sys/kernel/livepatch/livepatch_9_2_1/transition") == "0\n"


def test_a_disabled_livepatch_cannot_be_enabled_again(world):
    here = world("livepatch")
    here.rules.load("livepatch_9_2_1")
    here.rules.enable("livepatch_9_2_1", False)
    assert refused(here.rules.enable, "livepatch_9_2_1", True) == errno.EINVAL


def test_force_is_for_the_patch_in_transition_only(world):
    here = world("livepatch")
    here.task(731, "T")
    here.rules.load("livepatch_9_2_1")
    assert refused(here.rules.force, "livepatch_8_2_1") == errno.EINVAL
    here.rules.force("livepatch_9_2_1")
    here.later(2)
    assert refused(here.rules.force, "livepatch_9_2_1") == errno.EINVAL


def write_stat(proc, pid, start_time, flags=0x400000):
    (proc / str(pid)).mkdir(exist_ok=True)
    line = f"{pid} (a) b) S 1 {pid} 700 0 -1 {flags} 0 0 0 0 0 0 0 0 20 0 1 0 {start_time} 0 0\n"
    (proc / str(pid) / "stat").write_text(line)


def test_a_pid_that_is_used_again_is_another_process(tmp_path):
    """Named by pid and start time: the next one of this number is not watched."""
    write_stat(tmp_path, 731, 4242)
    processes = procfs.Processes(proc=str(tmp_path))
    processes.watch(731)
    assert processes.watched() == {731: 4242}
    write_stat(tmp_path, 731, 9999)
    assert processes.watched() == {}


def test_of_all_processes_the_kernels_own_are_not_watched(tmp_path):
    write_stat(tmp_path, 2, 1, flags=procfs.PF_KTHREAD | 0x8040)
    write_stat(tmp_path, 731, 4242)
    (tmp_path / "uptime").touch()
    assert procfs.Processes(proc=str(tmp_path), everything=True).watched() == {731: 4242}


def test_a_session_that_has_nobody_left_is_nobodys(tmp_path):
    """The next one of its number is not the lab's, which would end it."""
    write_stat(tmp_path, 731, 4242)
    processes = procfs.Processes(proc=str(tmp_path))
    processes.sessions.add(700)
    assert processes.watched() == {731: 4242}
    assert processes.children == {731: [4242, 700]}
    (tmp_path / "731/stat").unlink()
    assert processes.watched() == {}
    write_stat(tmp_path, 731, 9999)
    assert processes.watched() == {}
    assert processes.children == {}


def test_a_process_that_is_not_there_cannot_be_watched(tmp_path):
    with pytest.raises(ProcessLookupError):
        procfs.Processes(proc=str(tmp_path)).watch(731)
