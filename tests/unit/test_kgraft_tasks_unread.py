"""What ended, what could not be read and what cannot be seen, among those who block."""

import os
import shutil

import pytest
import salt.payload
from salt.exceptions import CommandExecutionError


def _flag(kernel, pid, tid, content):
    name = "kgr_in_progress" if kernel.abi == "kgraft" else "patch_state"
    kernel.write(f"proc/{pid}/task/{tid}/{name}", content)
    if kernel.abi == "kgraft":
        kernel.write(f"proc/{pid}/{name}", content)


def test_a_process_that_ends_while_it_is_looked_at_is_left_out(moving, monkeypatch):
    kernel, kgraft = moving
    kernel.task(731, blocking=True)
    kernel.task(732, blocking=True)
    real_open, gone = os.open, []

    def exit_first(path, *args, **kwargs):
        if os.fsdecode(path).endswith(("proc/731/kgr_in_progress", "proc/731/task/731/patch_state")) and not gone:
            gone.append(731)
            kernel.exit(731)
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", exit_first)
    held = kgraft.blocking()
    assert ([task["pid"] for task in held["tasks"]], held["count"], held["unread"], held["complete"]) == (
        [732],
        1,
        0,
        True,
    )


def test_a_process_that_ends_before_its_details_are_read_is_left_out(moving, monkeypatch):
    kernel, kgraft = moving
    kernel.task(731, blocking=True)
    kernel.task(732, blocking=True)
    real_open, gone = os.open, []

    def exit_first(path, *args, **kwargs):
        if os.fsdecode(path).endswith("proc/731/task/731/stat") and not gone:
            gone.append(731)
            kernel.exit(731)
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", exit_first)
    held = kgraft.blocking()
    assert ([task["pid"] for task in held["tasks"]], held["count"], held["complete"]) == ([732], 1, True)


def test_a_thread_that_ends_before_its_details_are_read_does_not_lose_the_process(moving, monkeypatch):
    kernel, kgraft = moving
    kernel.task(731, blocking=True, threads={732: {"blocking": True}})
    real_open, gone = os.open, []

    def exit_first(path, *args, **kwargs):
        if os.fsdecode(path).endswith("proc/731/task/732/stat") and not gone:
            gone.append(732)
            shutil.rmtree(kernel.root / "proc/731/task/732")
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", exit_first)
    held = kgraft.blocking()
    assert ([task["tids"] for task in held["tasks"]], held["count"], held["complete"]) == ([[731]], 1, True)
    assert gone


def test_esrch_at_read_is_a_vanished_task_and_its_descriptor_is_closed(moving, monkeypatch):
    kernel, kgraft = moving
    kernel.task(731, blocking=True)
    real_open, real_read, doomed, opened = os.open, os.read, set(), []

    def mark(path, *args, **kwargs):
        descriptor = real_open(path, *args, **kwargs)
        if os.fsdecode(path).endswith(("proc/731/kgr_in_progress", "proc/731/task/731/patch_state")):
            doomed.add(descriptor)
            opened.append(descriptor)
            kernel.exit(731)
        return descriptor

    def vanish(descriptor, size):
        if descriptor in doomed:
            doomed.remove(descriptor)  # its number may be given to another file
            raise ProcessLookupError(3, "No such process")
        return real_read(descriptor, size)

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "open", mark)
    monkeypatch.setattr(os, "read", vanish)
    held = kgraft.blocking()
    assert (held["tasks"], held["unread"], held["complete"]) == ([], 0, True)
    assert len(opened) == 1
    assert not doomed
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("content", ["2\n", "x", "11\n", "1", "-", "\x00"])
def test_a_flag_that_makes_no_sense_is_unread_not_crossed(moving, content):
    kernel, kgraft = moving
    kernel.task(731, blocking=True)
    _flag(kernel, 731, 731, content)
    held = kgraft.blocking()
    assert (held["count"], held["unread"], held["complete"]) == (0, 1, False)


def test_a_process_whose_flag_makes_no_sense_is_neither_in_progress_nor_not(moving):
    kernel, kgraft = moving
    kernel.task(731, blocking=True)
    _flag(kernel, 731, 731, "2\n")
    with pytest.raises(CommandExecutionError, match="Cannot understand"):
        kgraft.in_progress(731)


def test_a_flag_that_may_not_be_read_makes_the_list_incomplete(moving, monkeypatch):
    kernel, kgraft = moving
    kernel.task(731, blocking=True)
    real_open = os.open

    def refuse(path, *args, **kwargs):
        if os.fsdecode(path).endswith(("proc/731/kgr_in_progress", "proc/731/task/731/patch_state")):
            raise PermissionError(13, "Permission denied")
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    held = kgraft.blocking()
    assert (held["tasks"], held["unread"], held["complete"]) == ([], 1, False)
    assert "0+ blocking" in kgraft.summary()
    with pytest.raises(CommandExecutionError, match="Permission denied"):
        kgraft.in_progress(731)


def test_a_threads_flag_that_may_not_be_read_is_not_made_up_for_by_another_threads(moving, monkeypatch):
    kernel, kgraft = moving
    kernel.task(731, blocking=True, threads={732: {"blocking": True}})
    real_open = os.open

    def refuse(path, *args, **kwargs):
        if os.fsdecode(path).endswith(("task/732/kgr_in_progress", "task/732/patch_state")):
            raise PermissionError(13, "Permission denied")
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    held = kgraft.blocking()
    assert (held["unread"], held["complete"]) == (1, False)


def test_a_living_process_without_a_flag_is_unread(moving):
    kernel, kgraft = moving
    kernel.task(731, blocking=True)
    for name in ("kgr_in_progress", "patch_state"):
        for path in kernel.root.glob(f"proc/731/**/{name}"):
            path.unlink()
    assert kgraft.blocking()["unread"] == 1
    with pytest.raises(CommandExecutionError, match="missing"):
        kgraft.in_progress(731)


def test_a_flagged_process_whose_details_make_no_sense_is_counted_and_unread(moving):
    kernel, kgraft = moving
    kernel.task(731, blocking=True)
    kernel.task(732, blocking=True)
    kernel.write("proc/731/task/731/stat", "nonsense")
    held = kgraft.blocking()
    assert ([task["pid"] for task in held["tasks"]], held["count"], held["unread"], held["complete"]) == (
        [732],
        2,
        1,
        False,
    )


def test_in_a_pid_namespace_nothing_is_complete(moving):
    kernel, kgraft = moving
    kernel.link("proc/1/ns/pid", "pid:[4026532198]")
    assert kgraft.blocking()["complete"] is False


def test_where_pid_1_is_hidden_nothing_is_complete(moving):
    kernel, kgraft = moving
    kernel.exit(1)
    assert kgraft.blocking()["complete"] is False


def test_where_the_namespace_may_not_be_asked_nothing_is_complete(moving, monkeypatch):
    kernel, kgraft = moving
    readlink = os.readlink

    def refuse(path):
        if str(path).endswith("/ns/pid"):
            raise PermissionError(13, "Permission denied")
        return readlink(path)

    monkeypatch.setattr(os, "readlink", refuse)
    assert kgraft.blocking()["complete"] is False


def test_a_kernel_without_namespaces_is_complete(moving):
    kernel, kgraft = moving
    os.unlink(kernel.root / "proc/1/ns/pid")
    assert kgraft.blocking()["complete"] is True


def test_a_proc_that_cannot_be_listed_is_a_failed_look(moving, monkeypatch):
    kernel, kgraft = moving
    listdir = os.listdir

    def refuse(path):
        if os.fsdecode(path).endswith("/proc/"):
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(CommandExecutionError, match="proc/: Permission denied"):
        kgraft.blocking()


@pytest.mark.parametrize("over", [False, True])
def test_in_progress_of_a_process_that_does_not_exist_is_an_error(moving, over):
    kernel, kgraft = moving
    if over:
        kernel.finish()
    with pytest.raises(CommandExecutionError, match="There is no process 4711"):
        kgraft.in_progress(4711)


@pytest.mark.parametrize("name", ["stat", "status", "task/731/stat", "task/731/status"])
@pytest.mark.parametrize("content", [None, b""])
def test_a_flagged_process_whose_details_are_missing_while_it_is_there_is_unread(moving, name, content):
    kernel, kgraft = moving
    kernel.task(731, blocking=True)
    kernel.task(732, blocking=True)
    if content is None:
        os.unlink(kernel.root / "proc/731" / name)
    else:
        kernel.write(f"proc/731/{name}", content)
    held = kgraft.blocking()
    assert ([task["pid"] for task in held["tasks"]], held["count"], held["unread"], held["complete"]) == (
        [732],
        2,
        1,
        False,
    )


@pytest.mark.parametrize("abi", ["kgraft", "livepatch"])
def test_a_walk_across_two_transitions_is_taken_again(make_kernel, kgraft_on, monkeypatch, abi):
    kernel = make_kernel(abi)
    first, second = ("kgraft-patch-1-1", "kgraft-patch-2-1") if abi == "kgraft" else ("livepatch_1_1", "livepatch_2_1")
    kernel.start(first)
    for pid in range(700, 710):
        kernel.task(pid, blocking=True)
    kgraft, listdir, done = kgraft_on(kernel), os.listdir, []

    def the_next_one_begins(path):
        names = listdir(path)
        if not done and os.fsdecode(path).endswith("/proc/"):
            done.append(path)
            kernel.finish()
            kernel.start(second)
            for pid in range(700, 760):
                kernel.task(pid, blocking=True)
        return names

    monkeypatch.setattr(os, "listdir", the_next_one_begins)
    held = kgraft.blocking()
    assert (held["count"], held["complete"]) == (60, True)


@pytest.mark.parametrize("path", ["proc/99999999999999999999", "proc/731/task/99999999999999999999"])
def test_a_number_that_no_task_can_have_is_unread_and_breaks_no_serializer(moving, path):
    kernel, kgraft = moving
    kernel.task(731, blocking=True)
    shutil.copytree(kernel.root / "proc/731/task/731", kernel.root / path)
    if path.count("/") == 1:
        shutil.copytree(kernel.root / "proc/731/task", kernel.root / path / "task")
    held = kgraft.blocking()
    assert (held["unread"], held["complete"]) == (1, False)
    salt.payload.dumps(held)


def test_a_start_time_beyond_64_bits_is_unread_and_breaks_no_serializer(moving):
    kernel, kgraft = moving
    kernel.task(731, blocking=True, start_time=2**70)
    held = kgraft.blocking()
    assert (held["count"], held["unread"], held["complete"]) == (1, 1, False)
    salt.payload.dumps(held)


def test_an_empty_flag_of_a_thread_that_is_there_is_unread(kernel, kgraft):
    kernel.start("kgraft-patch-2-2_1")
    kernel.task(731, blocking=True, threads={732: {"blocking": True}})
    kernel.write("proc/731/task/732/kgr_in_progress", "")
    held = kgraft.blocking()
    assert (held["unread"], held["complete"]) == (1, False)
