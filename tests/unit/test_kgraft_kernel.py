"""Which interface a kernel has, and looks that the kernel overtakes, whatever the interface."""

import contextlib
import os
import shutil

import pytest
import salt.payload
from salt.exceptions import CommandExecutionError

from lab.files import Kernel

PATCH = "kgraft-patch-2-2_1"
MODULE = "kgraft_patch_2_2_1"
LIVEPATCH = "livepatch_9_2_1"


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


def test_status_names_the_patches_that_move(moving):
    kernel, kgraft = moving
    [name] = kgraft.status()["active"]
    assert kgraft.status()["moving"] == [name]
    kernel.finish()
    assert kgraft.status()["moving"] == []
    kernel.revert(next(iter(kernel.patches)))
    assert (kgraft.status()["moving"], kgraft.status()["active"]) == ([name], [])


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
        "moving": [],
        "boot_id": "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
    }


@pytest.mark.parametrize("call", ["summary", "abi", "status", "in_progress", "patches", "blocking", "poke", "wait"])
def test_a_machine_whose_sysfs_is_missing_was_not_looked_at(kernel, kgraft, call):
    shutil.rmtree(kernel.root / "sys")
    with pytest.raises(CommandExecutionError, match=f"there is no directory {kernel.root}/sys/kernel"):
        getattr(kgraft, call)()


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


def test_every_generation_here_is_one_that_the_writer_knows(tmp_path):
    with pytest.raises(ValueError, match="abi"):
        Kernel(tmp_path, "unknown")


def test_a_sys_that_is_no_kernels_is_not_without_live_patching(make_kernel, kgraft_on):
    kernel = make_kernel(None)
    shutil.rmtree(kernel.root / "sys/module")  # as of a container with a tmpfs there
    for call in ("summary", "abi", "status", "patches"):
        with pytest.raises(CommandExecutionError, match=f"{kernel.root}/sys is not that of a kernel"):
            getattr(kgraft_on(kernel), call)()
