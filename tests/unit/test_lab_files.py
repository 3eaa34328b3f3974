"""The writer of files: what each generation of each kernel shows."""

import os
import stat
import threading

import pytest

from lab.files import Kernel

NAME, OLDER, STACKED = "kgraft-patch-2-2_1", "kgraft-patch-1-2_1", "kgraft-patch-1-3_1"


def read(kernel, path):
    return (kernel.root / path).read_text()


def mode(kernel, path):
    return stat.S_IMODE((kernel.root / path).stat().st_mode)


def names(kernel, path):
    return sorted(os.listdir(kernel.root / path))


def refs(kernel, name):
    return int(read(kernel, f"sys/kernel/kgraft/{name}/refs"))


def states(kernel, name):
    """The states of a patch's functions, in its order."""
    return [int(line.split()[-1]) for line in read(kernel, f"sys/kernel/kgraft/{name}/state").splitlines()[1:]]


def test_kgraft_exists_from_boot_also_with_no_patch_loaded(make_kernel):
    kernel = make_kernel()
    assert names(kernel, "sys/kernel") == ["kgraft"]
    assert read(kernel, "sys/kernel/kgraft/in_progress") == "0\n"


@pytest.mark.parametrize(
    ("abi", "directories"),
    [("kgraft", ["kgraft"]), ("livepatch", ["livepatch"]), ("both", ["kgraft", "livepatch"]), (None, [])],
)
def test_an_abi_is_a_directory(make_kernel, abi, directories):
    kernel = make_kernel(abi)
    assert names(kernel, "sys/kernel") == directories
    if abi == "both":
        assert names(kernel, "sys/kernel/livepatch") == []


def test_an_unknown_abi_is_refused(make_kernel):
    with pytest.raises(ValueError, match="kpatch"):
        make_kernel("kpatch")


def test_the_oldest_kgraft_cannot_be_written_to_and_has_no_force_load_module(make_kernel):
    kernel = make_kernel(in_progress_mode=0o444, force_load_module=False)
    assert mode(kernel, "sys/kernel/kgraft/in_progress") == 0o444
    assert names(kernel, "sys/kernel/kgraft") == ["in_progress"]


def test_the_files_of_a_patch_have_the_kernels_modes(kernel):
    kernel.patch(NAME)
    directory = f"sys/kernel/kgraft/{NAME}"
    modes = {name: mode(kernel, f"{directory}/{name}") for name in names(kernel, directory) if name != "owner"}
    assert modes == {"state": 0o444, "refs": 0o444, "replace_all": 0o444, "revert": 0o200}


def test_the_owner_leads_to_the_module(kernel):
    kernel.patch(NAME)
    assert os.readlink(kernel.root / f"sys/kernel/kgraft/{NAME}/owner") == "../../../module/kgraft_patch_2_2_1"
    assert read(kernel, f"sys/kernel/kgraft/{NAME}/owner/refcnt") == "1\n"


def test_the_state_table_is_the_kernels_to_the_letter(kernel):
    kernel.patch(NAME, "applying", [("vmlinux", "cmdline_proc_show", 0, 1), ("lab_target", "lab_target_fn", 0, 5)])
    assert read(kernel, f"sys/kernel/kgraft/{NAME}/state") == (
        "Function              Object                Sympos  State\n"
        "cmdline_proc_show     vmlinux                    0      1\n"
        "lab_target_fn         lab_target                 0      5\n"
    )


@pytest.mark.parametrize(
    ("heading", "row"),
    [
        ("Function Weak State", ["f", "0", "2"]),
        ("Function Object State", ["f", "ext4", "2"]),
        ("Function Object Sympos State", ["f", "ext4", "1", "2"]),
        ("Function State Fatal", ["f", "2", "0"]),
    ],
)
def test_each_generation_has_its_own_columns(make_kernel, heading, row):
    kernel = make_kernel(heading=heading)
    kernel.patch(NAME, functions=[("ext4", "f", 1, 2)])
    first, second = read(kernel, f"sys/kernel/kgraft/{NAME}/state").splitlines()
    assert (first.split(), second.split()) == (heading.split(), row)


def test_the_state_table_is_cut_at_4095_bytes_in_the_middle_of_a_line(kernel):
    kernel.patch(NAME, functions=[("vmlinux", f"function_{number}", 0, 2) for number in range(100)])
    text = read(kernel, f"sys/kernel/kgraft/{NAME}/state")
    assert len(text) == 4095
    assert not text.endswith("\n")


def test_applying_takes_the_functions_from_1_to_2(kernel):
    kernel.start(NAME)
    assert read(kernel, f"sys/kernel/kgraft/{NAME}/state").split()[-1] == "1"
    assert read(kernel, "sys/kernel/kgraft/in_progress") == "1\n"
    kernel.finish()
    assert read(kernel, f"sys/kernel/kgraft/{NAME}/state").split()[-1] == "2"
    assert read(kernel, "sys/kernel/kgraft/in_progress") == "0\n"


def test_reverting_takes_the_functions_to_3_then_4(kernel):
    kernel.patch(NAME)
    kernel.revert(NAME)
    assert read(kernel, f"sys/kernel/kgraft/{NAME}/state").split()[-1] == "3"
    kernel.finish()
    assert read(kernel, f"sys/kernel/kgraft/{NAME}/state").split()[-1] == "4"


def test_a_function_whose_module_is_not_loaded_stays_5(kernel):
    kernel.start(NAME, functions=[("vmlinux", "f", 0, 1), ("ext4", "g", 0, 5)])
    kernel.finish()
    assert [line.split()[-1] for line in read(kernel, f"sys/kernel/kgraft/{NAME}/state").splitlines()[1:]] == ["2", "5"]


def test_a_replaced_patch_stays_inactive_and_its_module_is_unused(kernel):
    kernel.patch(OLDER)
    kernel.start(NAME)
    assert read(kernel, "sys/module/kgraft_patch_1_2_1/refcnt") == "1\n"
    kernel.finish()
    assert read(kernel, f"sys/kernel/kgraft/{OLDER}/state").split()[-1] == "4"
    assert read(kernel, "sys/module/kgraft_patch_1_2_1/refcnt") == "0\n"


def test_a_stacked_patch_counts_as_a_reference_until_it_is_reverted(kernel):
    kernel.patch(OLDER)
    kernel.start(NAME, replace_all=False)
    kernel.finish()
    assert read(kernel, f"sys/kernel/kgraft/{OLDER}/refs") == "1\n"
    assert read(kernel, f"sys/kernel/kgraft/{OLDER}/state").split()[-1] == "2"
    kernel.revert(NAME)
    kernel.finish()
    assert read(kernel, f"sys/kernel/kgraft/{OLDER}/refs") == "0\n"


def test_a_cumulative_patch_raises_no_refs_and_leaves_a_stale_one(kernel):
    kernel.patch(OLDER)
    kernel.start(STACKED, replace_all=False)
    kernel.finish()
    kernel.start(NAME)
    assert [refs(kernel, name) for name in (OLDER, STACKED, NAME)] == [1, 0, 0]
    kernel.finish()
    assert [refs(kernel, name) for name in (OLDER, STACKED, NAME)] == [1, 0, 0]


@pytest.mark.parametrize(
    ("cumulative", "meanwhile", "afterwards"),
    [(True, [2, 3, 3, 5], [4, 4, 4, 5]), (False, [2, 2, 2, 5], [2, 2, 2, 5])],
)
def test_what_a_cumulative_patch_drops_is_being_reverted_while_it_is_applied(kernel, cumulative, meanwhile, afterwards):
    shared = ("vmlinux", "shared", 0)
    older = [shared, ("vmlinux", "dropped", 0), ("vmlinux", "shared", 2)]
    kernel.patch(OLDER, functions=[(*row, 2) for row in older] + [("absent", "waiting", 0, 5)])
    kernel.start(NAME, functions=[(*shared, 1), ("vmlinux", "new", 0, 1)], replace_all=cumulative)
    assert (states(kernel, OLDER), states(kernel, NAME)) == (meanwhile, [1, 1])
    assert read(kernel, "sys/module/kgraft_patch_1_2_1/refcnt") == "1\n"
    kernel.finish()
    assert (states(kernel, OLDER), states(kernel, NAME)) == (afterwards, [2, 2])


def test_modules_are_listed_newest_first(kernel):
    kernel.patch(OLDER)
    kernel.patch(NAME)
    kernel.patch(OLDER, "inactive")
    listed = [line.split()[0] for line in read(kernel, "proc/modules").splitlines()]
    assert listed == ["kgraft_patch_2_2_1", "kgraft_patch_1_2_1", "ext4"]


def test_an_unloaded_patch_leaves_nothing(kernel):
    kernel.patch(NAME)
    kernel.remove(NAME)
    assert names(kernel, "sys/module") == []
    assert names(kernel, "sys/kernel/kgraft") == ["force_load_module", "in_progress"]
    assert "kgraft_patch" not in read(kernel, "proc/modules")


def test_the_pid_file_is_1_if_any_thread_is_flagged(kernel):
    kernel.task(731, "nfsd", threads={732: {"blocking": True}})
    assert read(kernel, "proc/731/kgr_in_progress") == "1\n"
    assert read(kernel, "proc/731/task/731/kgr_in_progress") == "0\n"
    kernel.flag(731, False, 732)
    assert read(kernel, "proc/731/kgr_in_progress") == "0\n"
    assert mode(kernel, "proc/731/kgr_in_progress") == 0o400


def test_a_kernel_before_may_2015_flags_leaders_only_and_has_no_task_file(make_kernel):
    kernel = make_kernel(task_flags=False)
    kernel.task(731, "nfsd", threads={732: {"blocking": True}})
    assert read(kernel, "proc/731/kgr_in_progress") == "0\n"
    assert "kgr_in_progress" not in names(kernel, "proc/731/task/732")


def test_the_end_clears_every_flag_but_a_zombies(kernel):
    kernel.start(NAME)
    kernel.task(731, blocking=True)
    kernel.task(732, blocking=True, letter="Z")
    kernel.finish()
    assert read(kernel, "proc/731/kgr_in_progress") == "0\n"
    assert read(kernel, "proc/732/kgr_in_progress") == "1\n"


def test_a_task_is_described_as_the_kernel_does(kernel):
    kernel.task(731, "nfsd", letter="D", uid=5, unit="nfs.service", start_time=4242, tracer=7, threads={732: {}})
    fields = read(kernel, "proc/731/stat").split()
    assert len(fields) == 52
    assert (fields[1], fields[2], fields[19], fields[21]) == ("(nfsd)", "D", "2", "4242")
    status = dict(line.split(":\t") for line in read(kernel, "proc/731/task/732/status").splitlines())
    assert (status["Tgid"], status["Pid"], status["State"], status["TracerPid"]) == ("731", "732", "S (sleeping)", "0")
    assert "TracerPid:\t7" in read(kernel, "proc/731/status")
    assert "1:name=systemd:/system.slice/nfs.service\n" in read(kernel, "proc/731/cgroup")
    assert read(kernel, "proc/731/cmdline") == "nfsd\0"


def test_a_kernel_thread_has_its_flag_and_no_command_line(kernel):
    kernel.task(40, "kworker/0:1", kthread=True)
    assert int(read(kernel, "proc/40/stat").split()[8]) & 0x00200000
    assert read(kernel, "proc/40/cmdline") == ""


def test_a_comm_need_not_be_utf8_and_may_hold_anything(kernel):
    kernel.task(731, b"a) R\xff\n\\")
    assert (kernel.root / "proc/731/stat").read_bytes().startswith(b"731 (a) R\xff\\n\\\\) S 1 ")


def test_a_comm_has_fifteen_bytes(kernel):
    kernel.task(731, "pacemaker-controld")
    assert read(kernel, "proc/731/status").startswith("Name:\tpacemaker-contr\n")


def test_a_thread_that_is_not_told_again_is_gone(kernel):
    kernel.task(731, threads={732: {}})
    kernel.task(731)
    assert names(kernel, "proc/731/task") == ["731"]


def test_a_process_that_exits_leaves_nothing(kernel):
    kernel.task(731)
    kernel.exit(731)
    assert not (kernel.root / "proc/731").exists()


def test_livepatch_has_the_files_of_its_generation(make_kernel):
    newest = make_kernel("livepatch", stack_order=True)
    newest.patch("livepatch_9_2_1")
    directory = "sys/kernel/livepatch/livepatch_9_2_1"
    assert names(newest, directory) == ["enabled", "force", "replace", "stack_order", "transition", "vmlinux"]
    assert names(newest, f"{directory}/vmlinux") == ["cmdline_proc_show,1", "patched"]
    assert mode(newest, f"{directory}/force") == 0o200

    oldest = make_kernel("livepatch", transition=False, replace=False, patched=False)
    oldest.patch("livepatch_9_2_1")
    assert names(oldest, directory) == ["enabled", "vmlinux"]
    assert "patch_state" not in names(oldest, "proc/1")


def test_livepatch_names_its_directory_as_the_module(make_kernel):
    kernel = make_kernel("livepatch")
    kernel.patch("kgraft-patch-2-2_1")
    assert names(kernel, "sys/kernel/livepatch") == ["kgraft_patch_2_2_1"]


def test_patch_state_is_minus_one_without_a_transition(make_kernel):
    kernel = make_kernel("livepatch")
    kernel.task(731, blocking=True)
    assert read(kernel, "proc/731/patch_state") == "-1\n"


def test_who_blocks_shows_the_other_side_of_the_transition(make_kernel):
    kernel = make_kernel("livepatch")
    kernel.task(731, blocking=True, threads={732: {}})
    kernel.start("livepatch_9_2_1")
    assert read(kernel, "proc/731/patch_state") == "0\n"
    assert read(kernel, "proc/731/task/732/patch_state") == "1\n"
    kernel.finish()
    assert read(kernel, "proc/731/patch_state") == "-1\n"

    kernel.task(731, blocking=True)
    kernel.revert("livepatch_9_2_1")
    assert read(kernel, "sys/kernel/livepatch/livepatch_9_2_1/enabled") == "0\n"
    assert read(kernel, "sys/kernel/livepatch/livepatch_9_2_1/transition") == "1\n"
    assert read(kernel, "proc/731/patch_state") == "1\n"


def test_a_disabled_or_replaced_livepatch_vanishes_and_its_module_stays(make_kernel):
    kernel = make_kernel("livepatch")
    kernel.patch("livepatch_8_2_1")
    kernel.start("livepatch_9_2_1")
    kernel.finish()
    assert names(kernel, "sys/kernel/livepatch") == ["livepatch_9_2_1"]
    kernel.revert("livepatch_9_2_1")
    kernel.finish()
    assert names(kernel, "sys/kernel/livepatch") == []
    assert names(kernel, "sys/module") == ["livepatch_8_2_1", "livepatch_9_2_1"]


def test_an_object_that_is_not_loaded_is_not_patched(make_kernel):
    kernel = make_kernel("livepatch")
    kernel.patch("livepatch_9_2_1", functions=[("ext4", "f", 1, 5)])
    assert read(kernel, "sys/kernel/livepatch/livepatch_9_2_1/ext4/patched") == "0\n"


def test_a_real_process_is_shown_by_links_and_only_its_flags_are_ours(kernel):
    me = os.getpid()
    kernel.real(me, {me: True})
    assert os.readlink(kernel.root / f"proc/{me}/stat") == f"/proc/{me}/stat"
    assert read(kernel, f"proc/{me}/cmdline")
    assert read(kernel, f"proc/{me}/kgr_in_progress") == "1\n"
    kernel.real(me, {})
    assert names(kernel, f"proc/{me}/task") == []


def test_who_holds_a_control_file_open_still_writes_to_the_one_that_is_seen(kernel):
    kernel.patch(NAME)
    with open(kernel.root / f"sys/kernel/kgraft/{NAME}/revert", "wb") as revert:
        kernel.change(NAME, "applied")
        kernel.in_progress(True)
        revert.write(b"1")
    assert read(kernel, f"sys/kernel/kgraft/{NAME}/revert") == "1"


def test_a_reader_never_sees_half_a_file(kernel):
    """Thousands of rewrites under the eyes of a reader: every file whole at any time."""
    kernel.patch(NAME)
    kernel.task(731, blocking=True)
    broken, over = [], threading.Event()

    def look():
        while not over.is_set():
            table = read(kernel, f"sys/kernel/kgraft/{NAME}/state")
            flag = read(kernel, "proc/731/kgr_in_progress")
            if not table.endswith(("1\n", "2\n")) or flag not in ("0\n", "1\n"):
                broken.append((table, flag))

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(200):
        kernel.change(NAME, "applying" if number % 2 else "applied")
        kernel.flag(731, bool(number % 2))
    over.set()
    reader.join()
    assert broken == []


def test_the_kernel_needs_no_root_of_its_own_beforehand(tmp_path):
    assert Kernel(tmp_path / "deep/down").root.is_dir()
