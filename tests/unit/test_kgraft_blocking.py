"""Who holds a transition up: flags, kinds, and what could not be seen."""

import itertools
import json
import os
import pwd
import shutil
import time

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

PATCH = "kgraft-patch-2-2_1"
READY = {"state": "ready", "tasks": [], "count": 0, "unread": 0, "complete": True}


@pytest.fixture(params=["kgraft", "livepatch"])
def moving(request, make_kernel, kgraft_on):
    """A kernel in transition, and the module bound to it, for each interface."""
    kernel = make_kernel(request.param)
    kernel.start(PATCH if request.param == "kgraft" else "livepatch_9_2_1")
    return kernel, kgraft_on(kernel)


class Clock:
    """The module's own time: the global one belongs to other threads of the tests, too."""

    def __init__(self, times=None):
        self.now, self.sleeps, self._times = 100.0, [], times

    def monotonic(self):
        return self.now if self._times is None else next(self._times)

    def sleep(self, seconds):
        self.sleeps.append(seconds)
        self.now += max(seconds, 1e-9)  # as a real one: a rest too small for a float must not stand still


@pytest.fixture
def clock(request):
    """A clock that only sleeping moves, for the module of the same test."""
    kgraft = (
        request.getfixturevalue("moving")[1] if "moving" in request.fixturenames else request.getfixturevalue("kgraft")
    )
    kgraft.time = Clock()
    return kgraft.time


def _flag(kernel, pid, tid, content):
    name = "kgr_in_progress" if kernel.abi == "kgraft" else "patch_state"
    kernel.write(f"proc/{pid}/task/{tid}/{name}", content)
    if kernel.abi == "kgraft":
        kernel.write(f"proc/{pid}/{name}", content)


def test_nothing_blocks_when_ready(kernel, kgraft):
    assert kgraft.blocking() == READY


def test_no_process_is_looked_at_when_ready(kernel, kgraft, monkeypatch):
    kernel.task(731, blocking=True, letter="Z")  # a flag left over by a zombie
    monkeypatch.setattr(os, "listdir", lambda path: pytest.fail(f"{path} was listed"))
    assert kgraft.blocking() == READY
    assert kgraft.in_progress(731) is False
    assert kgraft.summary() == "ready no patch"


def test_a_blocking_process_is_told_with_all_that_helps(moving):
    kernel, kgraft = moving
    kernel.task(
        731,
        "hdbindexserver",
        blocking=True,
        unit="sapinit.service",
        start_time=4242,
        threads={732: {"blocking": True}, 733: {}},
    )
    kernel.task(740, "bash")
    assert kgraft.blocking() == {
        "state": "in_progress",
        "tasks": [
            {
                "pid": 731,
                "tids": [731, 732],
                "name": "hdbindexserver",
                "user": "root",
                "unit": "sapinit.service",
                "letter": "S",
                "kind": "user",
                "start_time": 4242,
            }
        ],
        "count": 1,
        "unread": 0,
        "complete": True,
    }


def test_a_blocking_thread_is_found_though_the_leader_has_crossed(moving):
    kernel, kgraft = moving
    kernel.task(731, threads={732: {"blocking": True}})
    assert [task["tids"] for task in kgraft.blocking()["tasks"]] == [[732]]
    assert kgraft.in_progress(731) is True


def test_kernels_that_flag_leaders_only_have_no_file_for_threads(make_kernel, kgraft_on):
    kernel = make_kernel(task_flags=False)
    kernel.start(PATCH)
    kernel.task(731, blocking=True, threads={732: {}})
    held = kgraft_on(kernel).blocking()
    assert [task["tids"] for task in held["tasks"]] == [[731]]
    assert held["complete"] is True


def test_in_progress_with_an_empty_list_is_normal_and_complete(moving):
    kernel, kgraft = moving
    assert kgraft.blocking() == dict(READY, state="in_progress")
    assert kgraft.summary().endswith("apply 0 blocking")


def test_of_a_livepatch_the_leaders_own_file_tells_nothing_about_its_threads(make_kernel, kgraft_on):
    kernel = make_kernel("livepatch")
    kernel.start("livepatch_9_2_1")
    kernel.task(731, threads={732: {"blocking": True}})
    assert (kernel.root / "proc/731/patch_state").read_text() == "1\n"
    assert kgraft_on(kernel).blocking()["count"] == 1


def test_minus_one_is_no_transition(make_kernel, kgraft_on):
    kernel = make_kernel("livepatch")
    kernel.start("livepatch_9_2_1")
    kernel.task(731)
    kernel.write("proc/731/task/731/patch_state", "-1\n")
    assert kgraft_on(kernel).blocking() == dict(READY, state="in_progress")


def test_during_a_disable_those_still_patched_block(make_kernel, kgraft_on):
    kernel = make_kernel("livepatch")
    kernel.patch("livepatch_9_2_1")
    kernel.revert("livepatch_9_2_1")
    kernel.task(731, "patched", blocking=True)
    kernel.task(732, "back")
    assert (kernel.root / "proc/731/task/731/patch_state").read_text() == "1\n"
    assert [task["name"] for task in kgraft_on(kernel).blocking()["tasks"]] == ["patched"]


def test_a_reversal_in_mid_walk_is_walked_again(make_kernel, kgraft_on, monkeypatch):
    kernel = make_kernel("livepatch")
    kernel.start("livepatch_9_2_1")
    kernel.task(731, "unpatched", blocking=True)
    kernel.task(732, "patched")
    kgraft, listdir, turned = kgraft_on(kernel), os.listdir, []

    def turn(path):
        if not turned and os.fsdecode(path).endswith("/proc/"):
            turned.append(path)
            kernel.write("sys/kernel/livepatch/livepatch_9_2_1/enabled", "0\n")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", turn)
    # pid 1 and 2 have crossed forwards, so they now block backwards
    assert [task["name"] for task in kgraft.blocking()["tasks"]] == ["systemd", "kthreadd", "patched"]


def test_a_transition_that_ends_in_mid_walk_is_ready(moving, monkeypatch):
    kernel, kgraft = moving
    kernel.task(731, blocking=True)
    listdir, ended = os.listdir, []

    def end(path):
        names = listdir(path)
        if not ended and os.fsdecode(path).endswith("/proc/"):
            ended.append(path)
            kernel.finish()
        return names

    monkeypatch.setattr(os, "listdir", end)
    assert kgraft.blocking() == READY


@pytest.mark.parametrize("call", ["summary", "wait"])
def test_an_end_in_mid_walk_is_told_as_an_end(moving, clock, monkeypatch, call):
    kernel, kgraft = moving
    kernel.task(731, blocking=True)
    listdir, ended = os.listdir, []

    def end(path):
        if not ended:
            ended.append(path)
            kernel.finish()
        return listdir(path)

    monkeypatch.setattr(os, "listdir", end)
    answer = kgraft.summary() if call == "summary" else kgraft.wait(timeout=1)
    assert ended
    assert answer == 1 or answer.startswith("ready ")


@pytest.mark.parametrize(
    ("about", "kind"),
    [
        ({"kthread": True, "letter": "S"}, "kernel"),
        ({"kthread": True, "letter": "I"}, "kernel"),
        ({"letter": "t"}, "traced"),
        ({"letter": "S", "tracer": 99}, "traced"),
        ({"letter": "T"}, "stopped"),
        ({"letter": "D"}, "uninterruptible"),
        ({"letter": "Z"}, "zombie"),
        ({"letter": "S"}, "user"),
        ({"letter": "R"}, "user"),
    ],
)
def test_each_kind_is_told(moving, about, kind):
    kernel, kgraft = moving
    kernel.task(731, blocking=True, **about)
    (task,) = kgraft.blocking()["tasks"]
    assert (task["kind"], task["letter"]) == (kind, about["letter"])


def test_the_kind_is_the_first_that_is_true_of_a_flagged_thread(moving):
    kernel, kgraft = moving
    kernel.task(
        731, blocking=True, threads={732: {"blocking": True, "letter": "D"}, 733: {"blocking": True, "letter": "T"}}
    )
    (task,) = kgraft.blocking()["tasks"]
    assert (task["kind"], task["letter"]) == ("stopped", "T")


def test_an_unflagged_thread_does_not_make_the_kind(moving):
    kernel, kgraft = moving
    kernel.task(731, blocking=True, threads={732: {"letter": "D"}})
    (task,) = kgraft.blocking()["tasks"]
    assert (task["kind"], task["letter"]) == ("user", "S")


def test_a_running_flagged_thread_makes_the_letter(moving):
    kernel, kgraft = moving
    kernel.task(731, blocking=True, threads={732: {"blocking": True, "letter": "R"}})
    assert kgraft.blocking()["tasks"][0]["letter"] == "R"


def test_behind_a_zombie_leader_the_living_flagged_thread_makes_the_kind(moving):
    kernel, kgraft = moving
    kernel.task(731, blocking=True, letter="Z", threads={732: {"blocking": True}})
    (task,) = kgraft.blocking()["tasks"]
    assert (task["kind"], task["tids"]) == ("user", [731, 732])


def test_a_name_may_hold_anything(moving):
    kernel, kgraft = moving
    kernel.task(731, "a) R 1 (b", blocking=True)
    kernel.task(732, b"\xff\xfe caf\xe9", blocking=True)
    kernel.task(733, "x\rTracerPid:\t9", blocking=True)
    held = kgraft.blocking()
    assert [task["name"] for task in held["tasks"]] == ["a) R 1 (b", "\\xff\\xfe caf\\xe9", "x\rTracerPid:\t9"]
    assert {task["kind"] for task in held["tasks"]} == {"user"}
    json.dumps(held).encode("utf-8")


def test_a_name_that_the_kernel_cut_is_completed_from_its_own_command(moving):
    kernel, kgraft = moving
    kernel.task(731, "hdbcompileserver", blocking=True, cmdline=["/usr/sap/hdbcompileserver", "-port"])
    kernel.task(732, "some_other_name_cut", blocking=True, cmdline=["/usr/bin/python3"])
    assert [task["name"] for task in kgraft.blocking()["tasks"]] == ["hdbcompileserver", "some_other_name"]


def test_the_user_is_the_effective_one(moving):
    kernel, kgraft = moving
    kernel.task(731, blocking=True)
    status = kernel.root / "proc/731/status"
    kernel.write("proc/731/status", status.read_text().replace("Uid:\t0\t0", "Uid:\t0\t54321"))
    assert kgraft.blocking()["tasks"][0]["user"] == "54321"


def test_a_user_without_a_name_is_a_number(moving):
    kernel, kgraft = moving
    kernel.task(731, blocking=True, uid=54321)
    kernel.task(732, blocking=True, uid=65534)
    assert [task["user"] for task in kgraft.blocking()["tasks"]] == ["54321", pwd.getpwuid(65534).pw_name]


def test_a_users_name_that_is_no_utf8_can_be_sent(moving, monkeypatch):
    kernel, kgraft = moving
    kernel.task(731, blocking=True)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: pwd.struct_passwd(("m\udcfcller", "x", 0, 0, "", "", "")))
    assert kgraft.blocking()["tasks"][0]["user"] == "m\\xfcller"


@pytest.mark.parametrize(
    ("unit", "told"),
    [
        (None, None),
        ("sshd.service", "sshd.service"),
        ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope"),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/app.service", "user@1000.service"),
        ("/system.slice", None),
    ],
)
def test_the_unit_is_the_systems_own(moving, unit, told):
    kernel, kgraft = moving
    kernel.task(731, blocking=True, unit=unit)
    assert kgraft.blocking()["tasks"][0]["unit"] == told


def test_command_lines_and_stacks_are_told_only_when_asked_for(moving):
    kernel, kgraft = moving
    kernel.task(
        731,
        blocking=True,
        cmdline=["mysql", "--password=secret", b"\xff"],
        stack="[<0>] pipe_wait+0x6b/0x90\n[<0>] vfs_read\n",
    )
    assert "secret" not in str(kgraft.blocking()) + kgraft.summary() + str(kgraft.poke(test=True))
    (task,) = kgraft.blocking(cmdline=True, stacks=True)["tasks"]
    assert task["cmdline"] == ["mysql", "--password=secret", "\\xff"]
    assert task["stack"] == {"731": ["[<0>] pipe_wait+0x6b/0x90", "[<0>] vfs_read"]}


def test_a_stack_that_the_kernel_does_not_show_is_none(moving):
    kernel, kgraft = moving
    kernel.task(731, blocking=True)
    os.unlink(kernel.root / "proc/731/task/731/stack")
    assert kgraft.blocking(stacks=True)["tasks"][0]["stack"] == {"731": None}


def test_limit_cuts_the_list_and_not_the_count(moving):
    kernel, kgraft = moving
    for pid in range(1000, 1030):
        kernel.task(pid, blocking=True)
    held = kgraft.blocking()
    assert ([task["pid"] for task in held["tasks"]], held["count"], held["complete"]) == (
        list(range(1000, 1020)),
        30,
        True,
    )
    assert [task["pid"] for task in kgraft.blocking(limit=2)["tasks"]] == [1000, 1001]
    assert len(kgraft.blocking(limit=None)["tasks"]) == 30
    assert kgraft.summary().endswith("30 blocking: sleep(1000) user, sleep(1001) user, sleep(1002) user, and 27 more")


def test_a_walk_that_its_budget_ends_is_not_complete(moving):
    kernel, kgraft = moving
    for pid in range(1000, 1010):
        kernel.task(pid, blocking=True)
    kgraft.time = Clock(itertools.count(0, 0.1))
    held = kgraft.blocking(budget=0.5)
    assert held["complete"] is False
    assert held["count"] < 10


def test_threads_that_cross_between_the_processs_file_and_their_own_are_not_unread(make_kernel, kgraft_on, monkeypatch):
    kernel = make_kernel()
    kernel.start(PATCH)
    kernel.task(731, blocking=True)
    kgraft, listdir = kgraft_on(kernel), os.listdir

    def cross(path):
        if os.fsdecode(path).endswith("proc/731/task"):
            kernel.flag(731, False)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", cross)
    held = kgraft.blocking()
    assert (held["tasks"], held["unread"], held["complete"]) == ([], 0, True)


def test_a_flagged_process_with_no_flagged_thread_is_unread(make_kernel, kgraft_on):
    kernel = make_kernel()
    kernel.start(PATCH)
    kernel.task(731)
    kernel.write("proc/731/kgr_in_progress", "1\n")
    held = kgraft_on(kernel).blocking()
    assert (held["count"], held["unread"], held["complete"]) == (0, 1, False)


def test_a_thread_whose_directory_is_no_number_is_unread(moving):
    kernel, kgraft = moving
    kernel.task(731, blocking=True)
    (kernel.root / "proc/731/task/731").rename(kernel.root / "proc/731/task/x")
    held = kgraft.blocking()
    assert (held["count"], held["unread"], held["complete"]) == (0, 1, False)


def test_a_proc_of_odd_things_is_unread_and_no_traceback(moving):
    kernel, kgraft = moving
    proc = kernel.root / "proc"
    (proc / "801").write_text("a file")
    (proc / "802").mkdir()
    (proc / "802/task").write_text("a file")
    (proc / "803").symlink_to("803")
    (proc / "804").mkdir()
    for name in ("kgr_in_progress", "patch_state"):
        (proc / "804" / name).mkdir()
    (proc / "not a pid").mkdir()
    held = kgraft.blocking()
    assert (held["count"], held["unread"], held["complete"]) == (0, 4, False)
    for pid in (801, 802, 803, 804):
        with pytest.raises(CommandExecutionError):
            kgraft.in_progress(pid)


def test_the_command_line_of_an_uninterruptible_sleeper_is_not_read(moving):
    # who holds its memory's lock would hold the reader, too
    kernel, kgraft = moving
    kernel.task(731, "a_name_of_15_bytes", blocking=True, letter="D", cmdline=["a_name_of_15_bytes"])
    assert kgraft.blocking()["tasks"][0]["name"] == "a_name_of_15_by"


def test_a_budget_that_ends_among_the_details_cuts_the_list_and_not_the_count(moving, monkeypatch):
    kernel, kgraft = moving
    for pid in range(1000, 1010):
        kernel.task(pid, blocking=True)
    now, details = [0], kgraft._task

    def slowly(*args):
        now[0] += 0.4
        return details(*args)

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(kgraft, "_task", slowly)
    held = kgraft.blocking(budget=1)
    assert (len(held["tasks"]), held["count"], held["complete"]) == (3, 10, False)


def test_a_walk_that_is_ended_before_it_found_anybody_is_not_complete(moving):
    kernel, kgraft = moving
    kgraft.time = Clock(itertools.chain([0], itertools.repeat(100)))
    assert kgraft.blocking(budget=1) == dict(READY, state="in_progress", complete=False)


# What vanished, what could not be read, what cannot be seen


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


def test_in_progress_of_a_process_that_does_not_exist_is_an_error(moving):
    kernel, kgraft = moving
    with pytest.raises(CommandExecutionError, match="There is no process 4711"):
        kgraft.in_progress(4711)


# wait, with a clock of its own


def test_wait_returns_at_once_when_ready(kernel, kgraft, clock):
    assert kgraft.wait() == 0
    assert clock.sleeps == []


def test_wait_looks_every_fifth_of_a_second_and_tells_how_long_it_took(moving, clock):
    kernel, kgraft = moving
    sleep = clock.sleep

    def finish_at_the_tenth(seconds):
        sleep(seconds)
        if len(clock.sleeps) == 10:
            kernel.finish()

    clock.sleep = finish_at_the_tenth
    assert kgraft.wait(timeout=30) == pytest.approx(2)
    assert max(clock.sleeps) <= 0.2


def test_wait_names_the_tasks_it_waited_for(moving, clock):
    kernel, kgraft = moving
    kernel.task(731, "nfsd", blocking=True, kthread=True)
    with pytest.raises(CommandExecutionError, match=r"nfsd \(731\) kernel") as failure:
        kgraft.wait(timeout=7.1)
    assert sum(clock.sleeps) == pytest.approx(7.1)
    assert failure.value.info == {"timed_out": True, "blocking": kgraft.blocking()}


def test_wait_that_finds_nobody_says_so(moving, clock):
    kernel, kgraft = moving
    kernel.exit(1)
    with pytest.raises(CommandExecutionError, match=r"nothing that was found \(not everything could be read\)"):
        kgraft.wait(timeout=1)


def test_a_look_that_fails_while_waiting_is_no_time_out(moving, clock):
    kernel, kgraft = moving
    sleep = clock.sleep

    def break_the_look(seconds):
        sleep(seconds)
        for path in kernel.root.glob("sys/kernel/*/in_progress"):
            path.unlink()
        for path in kernel.root.glob("sys/kernel/livepatch/*/enabled"):
            path.write_text("?")

    clock.sleep = break_the_look
    with pytest.raises(CommandExecutionError) as failure:
        kgraft.wait()
    assert not failure.value.info


# Bad input


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda k: k.in_progress(0), r"pid=0: must be a positive integer"),
        (lambda k: k.in_progress("731x"), r"pid='731x': must be a positive integer"),
        (lambda k: k.in_progress(True), r"pid=True: must be a positive integer"),
        (lambda k: k.patches(functions="yes"), r"functions='yes': must be True or False"),
        (lambda k: k.blocking(cmdline=1), r"cmdline=1: must be True or False"),
        (lambda k: k.blocking(stacks=None), r"stacks=None: must be True or False"),
        (lambda k: k.blocking(limit=0), r"limit=0: must be a positive integer, or None for all"),
        (lambda k: k.blocking(limit=2.5), r"limit=2.5: must be"),
        (lambda k: k.blocking(budget=-1), r"budget=-1: must be a positive number of seconds"),
        (lambda k: k.blocking(budget=float("nan")), r"budget=nan: must be"),
        (lambda k: k.wait(timeout=0), r"timeout=0: must be a positive number of seconds"),
        (lambda k: k.wait(timeout="5m"), r"timeout='5m': must be"),
        (lambda k: k.wait(timeout=float("inf")), r"timeout=inf: must be"),
        (lambda k: k.wait(timeout=10**400), r"timeout=10+: must be"),
        (lambda k: k.blocking(budget=10**400), r"budget=10+: must be"),
        (lambda k: k.wait(timeout=True), r"timeout=True: must be"),
        (
            lambda k: k.poke(pids="731,x"),
            r"pids='731,x': must be a process id, a list of them, or a string such as '731,740'",
        ),
        (lambda k: k.poke(pids=[731, -1]), r"pids=-1: must be"),
        (lambda k: k.poke(pids={"a": 1}), r"pids=\{'a': 1\}: must be"),
        (
            lambda k: k.poke(protect="hdb*"),
            r"protect='hdb\*': must be 'name:PATTERN', 'unit:PATTERN' or 'user:PATTERN'",
        ),
        (lambda k: k.poke(protect=["name:"]), r"protect='name:': must be"),
        (lambda k: k.poke(protect=[5]), r"protect=5: must be"),
        (lambda k: k.poke(protect=5), r"protect=5: must be a list of patterns"),
        (lambda k: k.poke(protect_defaults="no"), r"protect_defaults='no': must be True or False"),
        (lambda k: k.poke(test="no"), r"test='no': must be True or False"),
        (lambda k: k.load("a b"), r"name='a b': must be the name of a patch's module"),
        (lambda k: k.load("../x"), r"name='../x': must be"),
        (lambda k: k.load("x\n"), r"name='x\\n': must be"),
        (lambda k: k.load("-a"), r"name='-a': must be"),
        (lambda k: k.load(221), r"name=221: must be"),
        (lambda k: k.revert(None, i_accept_loss_of_support=True), r"name=None: must be"),
        (lambda k: k.revert("x"), r"i_accept_loss_of_support=False: must be True"),
        (lambda k: k.revert("x", i_accept_loss_of_support="True"), r"i_accept_loss_of_support='True': must be True"),
        (lambda k: k.force(), r"i_accept_loss_of_support=False: must be True"),
        (lambda k: k.force(i_accept_loss_of_support=1), r"i_accept_loss_of_support=1: must be True"),
    ],
)
def test_a_bad_argument_is_named_with_its_value_and_what_is_allowed(kgraft, call, words):
    with pytest.raises(SaltInvocationError, match=words):
        call(kgraft)
