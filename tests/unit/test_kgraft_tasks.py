"""Who holds a transition up: flags, kinds, and what is told of each process."""

import itertools
import json
import os
import pwd
from types import SimpleNamespace

import pytest
from salt.exceptions import CommandExecutionError

from tests.unit.conftest import Clock

PATCH = "kgraft-patch-2-2_1"
READY = {"state": "ready", "tasks": [], "count": 0, "unread": 0, "complete": True, "note": None}


def test_nothing_blocks_when_ready(kernel, kgraft):
    assert kgraft.blocking() == READY


def test_no_process_is_looked_at_when_ready(kernel, kgraft, monkeypatch):
    kernel.task(731, blocking=True, letter="Z")  # a flag left over by a zombie
    monkeypatch.setattr(os, "listdir", lambda path: pytest.fail(f"{path} was listed"))
    assert kgraft.blocking() == READY
    assert kgraft.in_progress(731) is False
    assert kgraft.summary() == "ready no live patch"


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
    held = kgraft.blocking()
    # what is said of it is in test_kgraft_reasons.py
    assert all(isinstance(held["tasks"][0].pop(key), str) for key in ("why", "help"))
    assert held == {
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
        "note": None,
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
    held = kgraft.blocking()
    assert held == dict(READY, state="in_progress", note=held["note"])
    assert "The kernel looks for the end every" in held["note"]
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
    assert kgraft_on(kernel).blocking()["tasks"] == []


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


HOSTILE = [
    (b"a) R 1 (b", "a) R 1 (b"),
    (b"\xff\xfe caf\xe9", "\\xff\\xfe caf\\xe9"),
    (b"x\rTracerPid:\t9", "x\\rTracerPid:\\t9"),
    (b"x\ndb2: ready", "x\\ndb2: ready"),
    (b"\x1b[2J\x00\x7f", "\\x1b[2J\\x00\\x7f"),
    ("a\x85b\u2028c".encode(), "a\\x85b\\u2028c"),
    ("\u202ekcatta".encode(), "\\u202ekcatta"),
    ("größe".encode(), "größe"),
]


@pytest.mark.parametrize(("raw", "told"), HOSTILE)
def test_a_name_may_hold_anything_and_one_line_stays_one_line(moving, raw, told):
    kernel, kgraft = moving
    kernel.task(731, raw, blocking=True)
    held = kgraft.blocking()
    assert [(task["name"], task["kind"]) for task in held["tasks"]] == [(told, "user")]
    assert kgraft.summary().endswith(f"1 blocking: {told}(731) user")
    json.dumps(held).encode("utf-8")


def test_whatever_bytes_of_users_leave_are_one_line_each(moving):
    kernel, kgraft = moving
    kernel.task(
        731,
        "job",
        blocking=True,
        unit="/user.slice/a\x1b[2J.service",
        cmdline=["job", "two\nlines", "\x1b]0;title\x07"],
        stack="[<0>] one+0x1\n[<0>] two\x1b[2J+0x2\n",
    )
    (task,) = kgraft.blocking(cmdline=True, stacks=True)["tasks"]
    assert task["unit"] == "a\\x1b[2J.service"
    assert task["cmdline"] == ["job", "two\\nlines", "\\x1b]0;title\\x07"]
    assert task["stack"] == {"731": ["[<0>] one+0x1", "[<0>] two\\x1b[2J+0x2"]}


@pytest.mark.parametrize(
    ("exe", "name"),
    [
        ("/usr/sap/hdbcompileserver", "hdbcompileserver"),
        ("/usr/sap/hdbcompileserver (deleted)", "hdbcompileserver"),
        ("/usr/sap/hdbcompileserve", "hdbcompileserve"),
        ("/usr/bin/python3", "hdbcompileserve"),
        (None, "hdbcompileserve"),
    ],
)
def test_a_name_that_the_kernel_cut_is_completed_from_its_executable_only(moving, exe, name):
    kernel, kgraft = moving
    secret = "hdbcompileserver --password=secret " + "x" * 100_000
    kernel.task(731, "hdbcompileserver", blocking=True, exe=exe, cmdline=[secret])
    assert kgraft.blocking()["tasks"][0]["name"] == name
    assert "secret" not in str(kgraft.blocking()) + kgraft.summary() + str(kgraft.poke(test=True))


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
    kgraft.tasks.time = Clock(itertools.count(0, 0.1))
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


def test_a_command_line_that_nobody_asked_for_is_not_read(moving, monkeypatch):
    # it lies in the process's memory: who holds its lock would hold the reader, too
    kernel, kgraft = moving
    kernel.task(731, "a_name_of_15_bytes", blocking=True, letter="D", cmdline=["a_name_of_15_bytes"])
    real_open = os.open

    def refuse(path, *rest, **named):
        assert not os.fsdecode(path).endswith("/cmdline")
        return real_open(path, *rest, **named)

    monkeypatch.setattr(os, "open", refuse)
    assert kgraft.blocking()["tasks"][0]["name"] == "a_name_of_15_by"


def test_a_budget_that_ends_among_the_details_cuts_the_list_and_not_the_count(moving, monkeypatch):
    kernel, kgraft = moving
    for pid in range(1000, 1010):
        kernel.task(pid, blocking=True)
    now, details = [0], kgraft.tasks.task

    def slowly(*args):
        now[0] += 0.4
        return details(*args)

    kgraft.tasks.time = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(kgraft.tasks, "task", slowly)
    held = kgraft.blocking(budget=1)
    assert (len(held["tasks"]), held["count"], held["complete"]) == (3, 10, False)


def test_a_walk_that_is_ended_before_it_found_anybody_is_not_complete(moving):
    kernel, kgraft = moving
    kgraft.tasks.time = Clock(itertools.chain([0], itertools.repeat(100)))
    answer = kgraft.blocking(budget=1)
    unseen = "Not everything could be read or seen: what is in no list may block. Nobody is seen to block. The kernel"
    assert answer.pop("note").startswith(unseen)
    assert dict(answer, note=None) == dict(READY, state="in_progress", complete=False)
