"""What the kernel says, row by row of its files: which interface, which patches, which state."""

import contextlib
import functools
import os
import shutil

import pytest
import salt.payload
from salt.exceptions import CommandExecutionError

from lab.files import Kernel

PATCH = "kgraft-patch-2-2_1"
MODULE = "kgraft_patch_2_2_1"


# Which interface is on which machine


def test_a_kernel_with_kgraft_is_found_by_its_directory(kgraft):
    assert kgraft.abi() == "kgraft"


def test_a_kernel_with_livepatch_is_found_by_its_directory(make_kernel, kgraft_on):
    assert kgraft_on(make_kernel("livepatch")).abi() == "livepatch"


@pytest.mark.parametrize(
    ("abi", "directory", "module", "version"),
    [
        ("kgraft", "kgraft-patch-2-2_1", "kgraft_patch_2_2_1", "2-2.1"),  # SLES 12 GA to SP3
        ("livepatch", "kgraft_patch_2_2_1", "kgraft_patch_2_2_1", "2-2.1"),  # SLES 12 SP4, SP5
        ("livepatch", "livepatch_9_2_1", "livepatch_9_2_1", "9-2.1"),  # SLES 15, 16
        ("livepatch", "kpatch_4_18_0_1_2", "kpatch_4_18_0_1_2", None),  # RHEL
        ("livepatch", "lkp_Ubuntu_5_4_0_1_1_generic_77", "lkp_Ubuntu_5_4_0_1_1_generic_77", None),
    ],
)
def test_names_say_nothing_about_the_interface(make_kernel, kgraft_on, abi, directory, module, version):
    kernel = make_kernel(abi)
    kernel.patch(directory)
    kgraft = kgraft_on(kernel)
    assert kgraft.abi() == abi
    assert {name: patch["version"] for name, patch in kgraft.patches().items()} == {module: version}


def test_an_empty_livepatch_directory_beside_kgraft_is_kgraft(make_kernel, kgraft_on):
    kernel = make_kernel("both")
    assert kgraft_on(kernel).abi() == "kgraft"
    kernel.start(PATCH)
    assert kgraft_on(kernel).status()["state"] == "in_progress"


def test_a_used_livepatch_directory_beside_an_unused_kgraft_is_livepatch(make_kernel, kgraft_on):
    kernel = make_kernel("both")
    shutil.copytree(
        make_kernel("livepatch").root / "sys/kernel/livepatch", kernel.root / "sys/kernel/livepatch", dirs_exist_ok=True
    )
    patch = kernel.root / "sys/kernel/livepatch/livepatch_9_2_1"
    patch.mkdir()
    (patch / "enabled").write_text("1\n")
    (patch / "transition").write_text("1\n")
    assert kgraft_on(kernel).status()["abi"] == "livepatch"
    assert kgraft_on(kernel).status()["state"] == "in_progress"


def test_of_two_used_directories_it_is_kgraft(make_kernel, kgraft_on):
    kernel = make_kernel("both")
    kernel.start(PATCH)
    patch = kernel.root / "sys/kernel/livepatch/livepatch_9_2_1"
    patch.mkdir()
    (patch / "enabled").write_text("1\n")
    assert kgraft_on(kernel).status()["active"] == [MODULE]


@pytest.mark.parametrize("name", ["kgraft", "livepatch"])
def test_an_interface_that_may_not_be_looked_for_is_a_failed_look(kernel, kgraft, monkeypatch, name):
    stat = os.stat

    def refuse(path, *args, **kwargs):
        if str(path).endswith("sys/kernel/" + name):
            raise PermissionError(13, "Permission denied")
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(CommandExecutionError, match=f"{name}: Permission denied"):
        kgraft.abi()


def test_a_kernel_without_live_patching_is_unavailable_and_never_ready(make_kernel, kgraft_on):
    kgraft = kgraft_on(make_kernel(None))
    assert kgraft.abi() is None
    assert kgraft.summary() == "unavailable"
    assert kgraft.status() == {
        "abi": None,
        "state": "unavailable",
        "direction": None,
        "kernelrelease": "4.4.180-94.100-default",
        "active": [],
        "boot_id": "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
    }


@pytest.mark.parametrize(
    "call",
    [
        lambda kgraft: kgraft.in_progress(),
        lambda kgraft: kgraft.patches(),
        lambda kgraft: kgraft.blocking(),
        lambda kgraft: kgraft.poke(),
        lambda kgraft: kgraft.wait(),
        lambda kgraft: kgraft.load(MODULE),
        lambda kgraft: kgraft.revert(MODULE, i_accept_loss_of_support=True),
        lambda kgraft: kgraft.force(i_accept_loss_of_support=True),
    ],
    ids=["in_progress", "patches", "blocking", "poke", "wait", "load", "revert", "force"],
)
def test_without_live_patching_it_says_what_was_looked_for_and_where(make_kernel, kgraft_on, call):
    kernel = make_kernel(None)
    with pytest.raises(CommandExecutionError) as failure:
        call(kgraft_on(kernel))
    assert f"neither {kernel.root}/sys/kernel/kgraft nor {kernel.root}/sys/kernel/livepatch" in str(failure.value)


@pytest.mark.parametrize("call", ["summary", "abi", "status", "in_progress", "patches", "blocking", "poke", "wait"])
def test_a_machine_whose_sysfs_is_missing_was_not_looked_at(kernel, kgraft, call):
    shutil.rmtree(kernel.root / "sys")
    with pytest.raises(CommandExecutionError, match=f"there is no directory {kernel.root}/sys/kernel"):
        getattr(kgraft, call)()


def test_the_root_is_read_from_the_minions_configuration_only(kernel, load):
    kgraft = load(
        "_modules/kgraft.py",
        __opts__={"kgraft.root": str(kernel.root)},
        __grains__={"kgraft.root": "/elsewhere"},
        __pillar__={"kgraft.root": "/elsewhere"},
        __salt__={"config.get": lambda key: "/elsewhere"},
    )
    kernel.start(PATCH)
    assert kgraft.in_progress() is True


@pytest.mark.parametrize("root", ["relative/path", 5, ["/"]])
def test_a_root_that_is_no_absolute_path_is_refused(load, root):
    with pytest.raises(CommandExecutionError, match="kgraft.root must be an absolute path"):
        load("_modules/kgraft.py", __opts__={"kgraft.root": root}).status()


def test_it_loads_on_linux_only(kgraft, monkeypatch):
    assert kgraft.__virtual__() == "kgraft"
    monkeypatch.setattr("salt.utils.platform.is_linux", lambda: False)
    loads, why = kgraft.__virtual__()
    assert loads is False
    assert "Linux" in why


# kGraft: the files of each generation


GENERATIONS = [
    {},
    {"in_progress_mode": 0o444},
    {"force_load_module": False},
    {"heading": "Function Weak State", "force_load_module": False, "in_progress_mode": 0o444, "task_flags": False},
    {"heading": "Function Object State"},
    {"heading": "Function State Fatal"},
]


@pytest.mark.parametrize("generation", GENERATIONS, ids=str)
def test_each_generation_of_kgraft_goes_through_a_patch_life(make_kernel, kgraft_on, generation):
    kernel = make_kernel(**generation)
    kgraft = kgraft_on(kernel)
    assert kgraft.summary() == "ready no patch"
    kernel.start(PATCH)
    kernel.task(731, "nfsd", blocking=True)
    assert kgraft.summary() == f"in_progress {MODULE} apply 1 blocking: nfsd(731) user"
    kernel.finish()
    assert kgraft.summary() == f"ready {MODULE}"
    kernel.revert(PATCH)
    assert kgraft.status()["direction"] == "revert"
    assert kgraft.status()["active"] == []
    kernel.finish()
    assert kgraft.patches()[MODULE]["state"] == "inactive"
    assert kgraft.summary() == "ready no patch"


def test_plain_files_beside_patch_directories_are_no_patches(kernel, kgraft):
    kernel.write("sys/kernel/kgraft/force_load_module", "1\n")
    kernel.write("sys/kernel/kgraft/something_new", "x\n")
    kernel.patch(PATCH)
    assert list(kgraft.patches()) == [MODULE]


def test_the_owner_link_gives_the_modules_name(kernel, kgraft):
    kernel.patch(PATCH)
    kernel.link(f"sys/kernel/kgraft/{PATCH}/owner", "../../../module/another_module")
    assert list(kgraft.patches()) == ["another_module"]


@pytest.mark.parametrize("name", ["kgraft-patch-3.12-2_1", "kgraft patch,3:12 2.1"])
def test_without_an_owner_link_the_directorys_name_is_folded(kernel, kgraft, name):
    kernel.patch(name)
    os.unlink(kernel.root / f"sys/kernel/kgraft/{name}/owner")
    assert list(kgraft.patches()) == ["kgraft_patch_3_12_2_1"]


@pytest.mark.parametrize(
    ("heading", "line", "function"),
    [
        ("Function Weak State", "tcp_v4_rcv 0 2", {"object": None, "name": "tcp_v4_rcv", "sympos": None, "state": 2}),
        (
            "Function Object State",
            "tcp_v4_rcv vmlinux 2",
            {"object": "vmlinux", "name": "tcp_v4_rcv", "sympos": None, "state": 2},
        ),
        (
            "Function Object Sympos State",
            "lab lab_target 1 5",
            {"object": "lab_target", "name": "lab", "sympos": 1, "state": 5},
        ),
        ("Function State Fatal", "tcp_v4_rcv 2 0", {"object": None, "name": "tcp_v4_rcv", "sympos": None, "state": 2}),
    ],
)
def test_state_is_read_by_its_heading(kernel, kgraft, heading, line, function):
    kernel.patch(PATCH)
    kernel.write(f"sys/kernel/kgraft/{PATCH}/state", f"{heading}\n{line}\n")
    assert kgraft.patches(functions=True)[MODULE]["functions"] == [function]


@pytest.mark.parametrize(
    ("states", "in_progress", "state"),
    [
        ([0], True, "inactive"),  # right at load: neither applied nor active yet
        ([1], True, "applying"),
        ([1, 2, 5], True, "applying"),
        ([2], False, "applied"),
        ([2, 5], False, "applied"),
        ([5], False, "applied"),  # the kernel holds it ready for its module
        ([5], True, "applying"),  # may be the one that moves: not taken for applied
        ([3], True, "reverting"),
        ([3, 5], True, "reverting"),
        ([4], False, "inactive"),
        ([4, 5], False, "inactive"),
        ([2, 6], False, "applied"),  # an unknown number is passed on
        ([6], False, "inactive"),
    ],
)
def test_function_states_make_the_patchs_state(kernel, kgraft, states, in_progress, state):
    kernel.patch(PATCH, functions=[("vmlinux", f"fn{n}", 0, number) for n, number in enumerate(states)])
    kernel.in_progress(in_progress)
    seen = kgraft.patches(functions=True)[MODULE]
    assert seen["state"] == state
    assert [function["state"] for function in seen["functions"]] == states


def test_a_reverted_patch_whose_functions_all_wait_for_modules_is_told_by_its_reference_count(kernel, kgraft):
    kernel.patch(PATCH, "inactive", functions=[("nfs", "fn", 0, 5)])
    assert kgraft.patches()[MODULE]["state"] == "inactive"
    kernel.patch(PATCH, "applied", functions=[("nfs", "fn", 0, 5)])
    assert kgraft.patches()[MODULE]["state"] == "applied"


def test_a_patch_that_waits_for_modules_is_not_the_one_that_moves_when_another_is(kernel, kgraft):
    kernel.patch("kgraft-patch-1-1", replace_all=False, functions=[("nfs", "fn", 0, 5)])
    kernel.patch(PATCH, replace_all=False)
    kernel.revert(PATCH)
    seen = kgraft.status()
    assert (seen["direction"], seen["active"]) == ("revert", ["kgraft_patch_1_1"])
    assert kgraft.patches()["kgraft_patch_1_1"]["state"] == "applied"


def test_a_patch_that_waits_for_modules_is_applied_where_no_list_of_modules_was_recorded(kernel, kgraft):
    kernel.patch(PATCH, functions=[("nfs", "fn", 0, 5)])
    os.unlink(kernel.root / "proc/modules")
    assert kgraft.status()["active"] == [MODULE]


def test_in_a_transition_the_modules_of_both_patches_are_held(kernel, kgraft):
    kernel.patch("kgraft-patch-1-1", functions=[("nfs", "fn", 0, 5)])
    kernel.start(PATCH)
    assert kgraft.status()["active"] == ["kgraft_patch_1_1", MODULE]
    kernel.finish()
    assert kgraft.status()["active"] == [MODULE]


def test_in_progress_without_a_function_that_moves_has_no_direction(kernel, kgraft):
    kernel.patch(PATCH, functions=[("nfs", "fn", 0, 5)])
    kernel.in_progress(True)
    assert kgraft.status()["state"] == "in_progress"
    assert kgraft.status()["direction"] == "apply"
    kernel.patch(PATCH, functions=[("nfs", "fn", 0, 0)])
    assert kgraft.status()["state"] == "in_progress"
    assert kgraft.status()["direction"] is None


def test_long_function_names_shift_the_columns(kernel, kgraft):
    name = "a" * 60
    kernel.patch(PATCH, functions=[("a_module_with_a_very_long_name", name, 0, 2)])
    assert kgraft.patches(functions=True)[MODULE]["functions"][0]["name"] == name


def test_a_state_cut_at_one_page_in_the_middle_of_a_line_is_no_error(kernel, kgraft):
    kernel.patch(PATCH, functions=[("vmlinux", f"function_number_{n:03}", 0, 2) for n in range(200)])
    raw = (kernel.root / f"sys/kernel/kgraft/{PATCH}/state").read_bytes()
    assert len(raw) == 4095
    assert not raw.endswith(b"\n")
    seen = kgraft.patches(functions=True)[MODULE]
    assert seen["state"] == "applied"
    assert 50 < len(seen["functions"]) < 200


def test_refs_and_replace_all_are_told(kernel, kgraft):
    kernel.patch(PATCH, refs=3, replace_all=False)
    assert kgraft.patches()[MODULE] == {"state": "applied", "version": "2-2.1", "refs": 3, "cumulative": False}


def test_refs_and_replace_all_that_a_kernel_does_not_have_are_none(kernel, kgraft):
    kernel.patch(PATCH)
    for name in ("refs", "replace_all"):
        os.unlink(kernel.root / f"sys/kernel/kgraft/{PATCH}/{name}")
    assert kgraft.patches()[MODULE] == {"state": "applied", "version": "2-2.1", "refs": None, "cumulative": None}


def test_an_empty_refs_is_a_failed_look_and_not_a_kernel_that_has_none(kernel, kgraft):
    kernel.patch(PATCH)
    kernel.write(f"sys/kernel/kgraft/{PATCH}/refs", "")
    with pytest.raises(CommandExecutionError, match="came and went"):
        kgraft.patches()
    with pytest.raises(CommandExecutionError):
        kgraft.revert(PATCH, i_accept_loss_of_support=True)
    assert (kernel.root / f"sys/kernel/kgraft/{PATCH}/revert").read_text() == ""


def test_a_replaced_patch_stays_as_an_inactive_directory_with_a_stale_refs(kernel, kgraft):
    kernel.patch("kgraft-patch-1-2_2")
    kernel.start(PATCH)
    kernel.finish()
    assert {name: patch["state"] for name, patch in kgraft.patches().items()} == {
        "kgraft_patch_1_2_2": "inactive",
        MODULE: "applied",
    }
    assert kgraft.patches()["kgraft_patch_1_2_2"]["refs"] == 1
    assert kgraft.status()["active"] == [MODULE]


def test_stacked_patches_are_listed_oldest_first(kernel, kgraft):
    kernel.patch("kgraft-patch-9-1", replace_all=False)
    kernel.start("kgraft-patch-10-1", replace_all=False)
    kernel.finish()
    kernel.start("kgraft-patch-2-1", replace_all=False)
    assert kgraft.status()["active"] == ["kgraft_patch_9_1", "kgraft_patch_10_1", "kgraft_patch_2_1"]
    assert kgraft.patches()["kgraft_patch_9_1"]["refs"] == 2


def test_a_directory_that_appears_and_vanishes_while_it_is_read_is_looked_at_again(kernel, kgraft, monkeypatch):
    kernel.patch(PATCH)
    kernel.patch("kgraft-patch-3-1", "applying", functions=[("vmlinux", "fn", 0, 0)])
    scandir = os.scandir

    def list_then_remove(path):
        entries = scandir(path)
        if str(path).endswith("/kgraft") and "kgraft-patch-3-1" in kernel.patches:
            with entries as listing:
                names = list(listing)
            kernel.remove("kgraft-patch-3-1")
            entries = scandir(path)
            entries.close()
            return _Entries(names)
        return entries

    monkeypatch.setattr(os, "scandir", list_then_remove)
    assert list(kgraft.patches()) == [MODULE]


class _Entries(list):
    def __enter__(self):
        return iter(self)

    def __exit__(self, *exc):
        pass


def test_patches_that_never_stand_still_are_a_failed_look(kernel, kgraft, monkeypatch):
    kernel.patch(PATCH)
    path = kernel.root / f"sys/kernel/kgraft/{PATCH}/state"
    real_open = os.open

    def gone(name, *args, **kwargs):
        if str(name) == str(path):
            raise FileNotFoundError(2, "No such file or directory")
        return real_open(name, *args, **kwargs)

    monkeypatch.setattr(os, "open", gone)
    with pytest.raises(CommandExecutionError, match="came and went"):
        kgraft.status()


@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "-"), ProcessLookupError(3, "-"), OSError(19, "No such device")]
)
def test_a_file_of_sysfs_that_goes_while_it_is_read_is_a_patch_that_is_gone(kernel, kgraft, monkeypatch, error):
    kernel.patch(PATCH)
    kernel.patch("kgraft-patch-3-1", "inactive")
    real_open = os.open

    def vanish(path, *args, **kwargs):
        if str(path).endswith("kgraft-patch-3-1/state") and "kgraft-patch-3-1" in kernel.patches:
            kernel.remove("kgraft-patch-3-1")
            raise error
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", vanish)
    assert list(kgraft.patches()) == [MODULE]


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
@pytest.mark.parametrize("name", ["in_progress", f"{PATCH}/state"])
def test_a_file_that_cannot_be_read_is_a_failed_look_not_ready(kernel, kgraft, monkeypatch, name, error):
    kernel.patch(PATCH)
    real_open = os.open

    def refuse(path, *args, **kwargs):
        if str(path).endswith("/kgraft/" + name):
            raise error
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    for call in (kgraft.summary, kgraft.status, kgraft.in_progress, kgraft.wait, kgraft.blocking):
        with pytest.raises(CommandExecutionError, match=f"{name}: {error.strerror}"):
            call()


def test_a_missing_in_progress_is_a_failed_look_not_ready(kernel, kgraft):
    os.unlink(kernel.root / "sys/kernel/kgraft/in_progress")
    with pytest.raises(CommandExecutionError, match="in_progress: it is missing or empty"):
        kgraft.status()


def test_the_end_is_believed_only_when_flag_and_functions_agree(kernel, kgraft):
    kernel.patch(PATCH, "applying")
    kernel.in_progress(False)
    assert kgraft.status()["state"] == "in_progress"


def test_a_patch_that_ends_between_two_reads_is_seen_whole(kernel, kgraft, monkeypatch):
    kernel.start(PATCH)
    real_open, reads = os.open, []

    def finish_after_the_flag(path, *args, **kwargs):
        if str(path).endswith(f"{PATCH}/state"):
            reads.append(path)
            if len(reads) == 1:
                kernel.finish()
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", finish_after_the_flag)
    seen = kgraft.status()
    assert (seen["state"], seen["direction"], seen["active"]) == ("ready", None, [MODULE])


@pytest.mark.parametrize("abi", ["kgraft", "livepatch"])
def test_names_that_are_no_utf8_can_be_printed_and_sent(make_kernel, kgraft_on, abi):
    kernel = make_kernel(abi)
    kernel.patch("klp\udcff", functions=[("mod\udcff", "fn\udcff", 1, 2)])
    kgraft = kgraft_on(kernel)
    answers = [kgraft.status(), kgraft.patches(functions=True), kgraft.summary()]
    for path in kernel.root.glob("sys/kernel/*/klp*/*"):
        if path.name in ("state", "enabled"):
            path.chmod(0o644)
            path.write_text("?")
    with pytest.raises(CommandExecutionError) as failure:
        kgraft.status()
    salt.payload.dumps([*answers, str(failure.value)])
    assert "klp\\xff" in answers[2]


def test_an_interface_that_vanishes_while_it_is_looked_for_is_looked_for_again(make_kernel, kgraft_on, monkeypatch):
    kernel = make_kernel("both")
    kernel.patch(PATCH)
    scandir = os.scandir

    def vanish(path):
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(kernel.root / "sys/kernel/livepatch")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", vanish)
    assert kgraft_on(kernel).abi() == "kgraft"


# Names


@pytest.mark.parametrize(
    ("directory", "version"),
    [
        ("kgraft-patch-2-2_1", "2-2.1"),
        ("kgraft-patch-10-2_1", "10-2.1"),
        ("kgraft-patch-1-8_5_1", "1-8.5.1"),
        ("kgraft-patch-1-2", "1-2"),
        ("kgraft-patch-initial", None),
        ("klp_something", None),
    ],
)
def test_the_version_is_written_as_rpm_writes_it(kernel, kgraft, directory, version):
    kernel.patch(directory)
    assert [patch["version"] for patch in kgraft.patches().values()] == [version]


def test_kernelrelease_is_read_under_the_root(make_kernel, kgraft_on):
    kernel = make_kernel(release="5.14.21-150400.24.33-default")
    assert kgraft_on(kernel).status()["kernelrelease"] == "5.14.21-150400.24.33-default" != os.uname().release


def test_an_idle_status_reads_at_most_four_files_and_two_for_each_patch_and_no_process(kernel, kgraft, monkeypatch):
    for number in range(1, 6):
        kernel.patch(f"kgraft-patch-{number}-1", replace_all=False)
    opened, real_open = [], os.open
    monkeypatch.setattr(
        os, "open", lambda path, *rest, **named: opened.append(os.fsdecode(path)) or real_open(path, *rest, **named)
    )
    kgraft.status()
    assert len(opened) <= 4 + 2 * 5, opened
    assert not [path for path in opened if path.split("/proc/")[-1].split("/")[0].isdigit()]


# Upstream livepatch


LIVEPATCH = "livepatch_9_2_1"


@pytest.mark.parametrize("generation", [{}, {"replace": False}, {"stack_order": True}, {"patched": False}], ids=str)
def test_each_generation_of_livepatch_goes_through_a_patch_life(make_kernel, kgraft_on, generation):
    kernel = make_kernel("livepatch", **generation)
    kgraft = kgraft_on(kernel)
    assert kgraft.summary() == "ready no patch"
    kernel.start(LIVEPATCH)
    kernel.task(731, "nfsd", blocking=True)
    assert kgraft.summary() == f"in_progress {LIVEPATCH} apply 1 blocking: nfsd(731) user"
    kernel.finish()
    assert kgraft.summary() == f"ready {LIVEPATCH}"
    kernel.revert(LIVEPATCH)
    assert kgraft.status()["direction"] == "revert"
    kernel.finish()
    assert kgraft.patches() == {}  # the directory vanishes, the opposite of kGraft


def test_livepatch_before_4_12_has_no_transition_and_is_ready(make_kernel, kgraft_on):
    kernel = make_kernel("livepatch", transition=False)
    kernel.patch(LIVEPATCH)
    kgraft = kgraft_on(kernel)
    assert kgraft.status()["state"] == "ready"
    assert kgraft.patches()[LIVEPATCH]["state"] == "applied"
    assert kgraft.wait(timeout=1) < 1


@pytest.mark.parametrize(
    ("enabled", "transition", "state", "direction"),
    [
        ("1", "1", "applying", "apply"),
        ("1", "0", "applied", None),
        ("0", "1", "reverting", "revert"),
        ("0", "0", "inactive", None),
    ],
)
def test_enabled_and_transition_make_the_livepatchs_state(
    make_kernel, kgraft_on, enabled, transition, state, direction
):
    kernel = make_kernel("livepatch")
    kernel.patch(LIVEPATCH)
    kernel.write(f"sys/kernel/livepatch/{LIVEPATCH}/enabled", enabled + "\n")
    kernel.write(f"sys/kernel/livepatch/{LIVEPATCH}/transition", transition + "\n")
    kgraft = kgraft_on(kernel)
    assert kgraft.patches()[LIVEPATCH]["state"] == state
    assert kgraft.status()["direction"] == direction
    assert kgraft.in_progress() is (transition == "1")


def test_a_livepatch_that_is_being_loaded_is_not_being_reverted(make_kernel, kgraft_on):
    kernel = make_kernel("livepatch")
    kernel.start(LIVEPATCH)
    kernel.write(f"sys/kernel/livepatch/{LIVEPATCH}/enabled", "0\n")
    kernel.write(f"sys/module/{LIVEPATCH}/initstate", "coming\n")
    assert kgraft_on(kernel).status()["direction"] == "apply"
    kernel.write(f"sys/module/{LIVEPATCH}/initstate", "live\n")
    assert kgraft_on(kernel).status()["direction"] == "revert"


def test_a_replaced_livepatch_vanishes(make_kernel, kgraft_on):
    kernel = make_kernel("livepatch")
    kernel.patch("livepatch_1_2")
    kernel.start(LIVEPATCH)
    assert kgraft_on(kernel).status()["active"] == ["livepatch_1_2", LIVEPATCH]
    kernel.finish()
    assert list(kgraft_on(kernel).patches()) == [LIVEPATCH]


def test_a_livepatch_whose_object_is_not_loaded_is_healthy(make_kernel, kgraft_on):
    kernel = make_kernel("livepatch")
    kernel.patch(LIVEPATCH, functions=[("vmlinux", "cmdline_proc_show", 1, 2), ("nfs", "nfs_open", 1, 5)])
    seen = kgraft_on(kernel).patches(functions=True)[LIVEPATCH]
    assert seen["state"] == "applied"
    assert sorted(seen["functions"], key=lambda function: function["name"]) == [
        {"object": "vmlinux", "name": "cmdline_proc_show", "sympos": 1, "state": 2},
        {"object": "nfs", "name": "nfs_open", "sympos": 1, "state": 5},
    ]


def test_a_livepatch_that_does_not_say_what_is_patched_has_no_function_states(make_kernel, kgraft_on):
    kernel = make_kernel("livepatch", patched=False, replace=False)
    kernel.patch(LIVEPATCH)
    seen = kgraft_on(kernel).patches(functions=True)[LIVEPATCH]
    assert seen["cumulative"] is None
    assert [function["state"] for function in seen["functions"]] == [None]


def test_no_file_that_forces_reverts_or_proves_nothing_is_ever_read(make_kernel, kgraft_on, monkeypatch):
    opened, real_open = [], os.open
    monkeypatch.setattr(
        os, "open", lambda path, *rest, **named: opened.append(os.fsdecode(path)) or real_open(path, *rest, **named)
    )
    for abi, patch in (("kgraft", PATCH), ("livepatch", LIVEPATCH)):
        kernel = make_kernel(abi)
        kernel.start(patch)
        kgraft = kgraft_on(kernel)
        kgraft.patches(functions=True)
        kgraft.blocking()
    names = {path.rsplit("/", 1)[-1] for path in opened}
    assert "enabled" in names
    assert not names & {"force", "revert", "signal"}
    assert not names & {"version", "tainted", "taint"}  # uname -v and the taint prove nothing


# Orders


def test_revert_writes_to_the_patchs_revert(kernel, kgraft):
    kernel.patch(PATCH)
    assert kgraft.revert(PATCH, i_accept_loss_of_support=True) == {"name": MODULE, "state": "applied"}
    assert (kernel.root / f"sys/kernel/kgraft/{PATCH}/revert").read_text()


@pytest.mark.parametrize(
    ("abi", "patch", "name", "error", "words"),
    [
        # the oldest kGraft's in_progress is read-only; sysfs then refuses root, too
        (
            "kgraft",
            PATCH,
            "in_progress",
            PermissionError(13, "Permission denied"),
            "cannot be forced, or you are not root",
        ),
        (
            "livepatch",
            "livepatch_9_2_1",
            "force",
            FileNotFoundError(2, "No such file"),
            "cannot be forced",
        ),  # before 4.15
        ("livepatch", "livepatch_9_2_1", "force", OSError(22, "Invalid argument"), "no longer in transition"),
    ],
)
def test_a_kernel_that_cannot_be_forced_says_so(make_kernel, kgraft_on, monkeypatch, abi, patch, name, error, words):
    kernel = make_kernel(abi)
    kernel.start(patch)
    real_open = os.open

    def refuse(path, flags, *rest):
        if str(path).endswith("/" + name) and flags & os.O_WRONLY:
            raise error
        return real_open(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(CommandExecutionError, match=words):
        kgraft_on(kernel).force(i_accept_loss_of_support=True)


def test_revert_of_a_livepatch_writes_0_to_enabled(make_kernel, kgraft_on):
    kernel = make_kernel("livepatch")
    kernel.patch(LIVEPATCH)
    kgraft_on(kernel).revert(LIVEPATCH, i_accept_loss_of_support=True)
    assert (kernel.root / f"sys/kernel/livepatch/{LIVEPATCH}/enabled").read_text().startswith("0")


def test_a_livepatch_that_is_being_applied_turns_back(make_kernel, kgraft_on):
    kernel = make_kernel("livepatch")
    kernel.start(LIVEPATCH)
    assert kgraft_on(kernel).revert(LIVEPATCH, i_accept_loss_of_support=True)["state"] == "reverting"


def _refused_revert(kernel, kgraft, patch, words):
    with pytest.raises(CommandExecutionError, match=words):
        kgraft.revert(patch, i_accept_loss_of_support=True)
    # a SUSE kernel taints itself when the file is written, whatever the outcome
    assert all(path.read_text() == "" for path in kernel.root.glob("sys/kernel/kgraft/*/revert"))


def test_revert_is_refused_before_anything_is_written(kernel, kgraft):
    _refused_revert(kernel, kgraft, "kgraft_patch_7_1", "kgraft_patch_7_1 is not loaded; loaded: none")
    kernel.patch(PATCH, refs=1)
    _refused_revert(kernel, kgraft, PATCH, "1 newer patches must be reverted before")
    kernel.patch(PATCH, "inactive")
    _refused_revert(kernel, kgraft, PATCH, "already inactive")
    kernel.patch(PATCH)
    kernel.start("kgraft-patch-3-1", replace_all=False)
    kernel.patch(PATCH, refs=0)
    _refused_revert(kernel, kgraft, PATCH, "a transition is running")


def test_revert_of_a_patch_that_is_unloaded_meanwhile_is_an_error(kernel, kgraft, monkeypatch):
    kernel.patch(PATCH)
    real_open = os.open

    def unload(path, *args, **kwargs):
        if str(path).endswith("/refs"):
            kernel.remove(PATCH)
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", unload)
    with pytest.raises(CommandExecutionError, match="unloaded meanwhile"):
        kgraft.revert(PATCH, i_accept_loss_of_support=True)


@pytest.mark.parametrize(
    ("number", "words"), [(16, "newer patches"), (22, "reverted already"), (11, "a transition is running")]
)
def test_the_kernels_refusal_of_a_revert_is_put_into_words(kernel, kgraft, monkeypatch, number, words):
    kernel.patch(PATCH)
    monkeypatch.setattr(os, "write", lambda descriptor, data: _raise(OSError(number, os.strerror(number))))
    with pytest.raises(CommandExecutionError, match=words):
        kgraft.revert(MODULE, i_accept_loss_of_support=True)


def _raise(error):
    raise error


def test_force_writes_0_to_in_progress(kernel, kgraft):
    kernel.start(PATCH)
    kgraft.force(i_accept_loss_of_support=True)
    assert (kernel.root / "sys/kernel/kgraft/in_progress").read_text().startswith("0")


def test_force_of_a_livepatch_writes_1_to_the_moving_patchs_force(make_kernel, kgraft_on):
    kernel = make_kernel("livepatch")
    kernel.patch("livepatch_1_2")
    kernel.start(LIVEPATCH)
    kgraft_on(kernel).force(i_accept_loss_of_support=True)
    assert (kernel.root / f"sys/kernel/livepatch/{LIVEPATCH}/force").read_text() == "1"
    assert (kernel.root / "sys/kernel/livepatch/livepatch_1_2/force").read_text() == ""


def test_force_is_refused_when_nothing_is_in_progress(kernel, kgraft):
    kernel.patch(PATCH)
    with pytest.raises(CommandExecutionError, match="nothing to force"):
        kgraft.force(i_accept_loss_of_support=True)
    assert (kernel.root / "sys/kernel/kgraft/in_progress").read_text() == "0\n"


def _modprobe(kernel, answer=("x",), then=None):
    def load(module):
        if then:
            then(module)
        return list(answer) if isinstance(answer, tuple) else answer

    return {"kmod.load": load}


def test_load_loads_and_looks(kernel, kgraft_on):
    kgraft = kgraft_on(kernel, __salt__=_modprobe(kernel, then=lambda module: kernel.start(PATCH)))
    assert kgraft.load("kgraft-patch-2-2_1") == {"name": MODULE, "state": "applying"}
    assert kgraft.load(MODULE) == {"name": MODULE, "state": "applying"}  # active already: left alone


def test_right_after_insmod_a_livepatch_may_be_in_transition_or_through(make_kernel, kgraft_on):
    for state in ("applying", "applied"):
        kernel = make_kernel("livepatch")
        then = functools.partial(kernel.patch, LIVEPATCH, state)
        kgraft = kgraft_on(kernel, __salt__=_modprobe(kernel, then=lambda module, then=then: then()))
        assert kgraft.load(LIVEPATCH) == {"name": LIVEPATCH, "state": state}


def test_load_takes_an_error_string_for_an_error(kernel, kgraft_on):
    kgraft = kgraft_on(kernel, __salt__=_modprobe(kernel, "Error loading module x: FATAL: Module x not found."))
    with pytest.raises(CommandExecutionError, match="Module x not found"):
        kgraft.load("x")


@pytest.mark.parametrize("words", ["Resource temporarily unavailable", "Device or resource busy"])
def test_load_says_that_a_transition_is_running(kernel, kgraft_on, words):
    kgraft = kgraft_on(kernel, __salt__=_modprobe(kernel, f"Error loading module x: could not insert 'x': {words}"))
    with pytest.raises(CommandExecutionError, match="a transition is running"):
        kgraft.load("x")


def test_load_during_a_transition_is_refused_before_modprobe(kernel, kgraft_on):
    kernel.start(PATCH)
    kgraft = kgraft_on(kernel, __salt__={"kmod.load": lambda module: pytest.fail("modprobe was run")})
    with pytest.raises(CommandExecutionError, match="a transition is running"):
        kgraft.load("kgraft_patch_3_1")


def test_load_does_not_believe_modprobe(kernel, kgraft_on):
    with pytest.raises(CommandExecutionError, match="the kernel shows kgraft_patch_2_2_1 as not loaded"):
        kgraft_on(kernel, __salt__=_modprobe(kernel)).load(MODULE)


def test_load_of_an_inactive_patch_says_what_to_do(kernel, kgraft):
    kernel.patch(PATCH, "inactive")
    with pytest.raises(CommandExecutionError, match="loaded but inactive; remove it with kmod.remove"):
        kgraft.load(MODULE)


def test_every_generation_here_is_one_that_the_writer_knows(tmp_path):
    with pytest.raises(ValueError, match="abi"):
        Kernel(tmp_path, "unknown")
