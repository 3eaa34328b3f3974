"""Whom a poke spares, in which order it goes, and what it says. Nobody is touched here."""

import os

import pytest
from salt.exceptions import CommandExecutionError

PATCH = "kgraft-patch-2-2_1"
BOTH = pytest.mark.parametrize("method", ["trace", "signals"])


@pytest.fixture(autouse=True)
def touched(monkeypatch):
    """Nobody gets a signal."""
    monkeypatch.setattr(os, "kill", lambda pid, number: pytest.fail(f"{number} was sent to {pid}"))


@pytest.fixture
def moving(kernel):
    kernel.start(PATCH)
    return kernel


@pytest.fixture
def poke(kgraft):
    """``poke(...)`` with a process that would poke, and tells in ``poke.words`` what would have come of each thread."""

    class Poker:
        def __init__(self, method):
            self.method = method

        def poke(self, pid, start_time, tids):
            call.asked.append((pid, tids))
            if call.broken:
                raise ChildProcessError(call.broken)
            return {tid: call.words.get(tid, "moved") for tid in tids}

        def close(self):
            pass

    def call(**arguments):
        return kgraft.poke(**arguments)

    call.asked, call.words, call.broken = [], {}, None
    kgraft.poking.Poker = Poker
    kgraft.poking._await_crossing = lambda root, pids: None
    call.room = kgraft.poking
    return call


@pytest.fixture
def here(moving):
    """``here(pid, ...)``: a blocking task of the tree that has the start time of a process of this machine."""

    def task(pid, *args, **about):
        with open(f"/proc/{pid}/stat", "rb") as stat:
            start_time = int(stat.read().rpartition(b")")[2].split()[19])
        moving.task(pid, *args, **{"blocking": True, "start_time": start_time, **about})

    return task


@pytest.fixture
def own(tmp_path, poke):
    """``own(pid, ...)``: this machine's own /proc, as a tree of files beside that of the kernel."""
    from lab.files import Kernel

    machine = Kernel(tmp_path / "own")
    (machine.root / "proc/self").symlink_to(str(os.getpid()))
    poke.room.HERE = str(machine.root)
    return machine


def _reasons(answer):
    return {task["pid"]: task["reason"] for task in answer["skipped"]}


@BOTH
def test_a_ready_machine_has_nobody_to_poke(kernel, kgraft, method):
    assert kgraft.poke(method=method) == {"poked": [], "skipped": [], "vanished": [], "count": 0, "complete": True}


@BOTH
@pytest.mark.parametrize(
    ("about", "reason"),
    [
        ({"kthread": True}, "a kernel thread crosses at its own safe places only"),
        ({"letter": "t"}, "it is traced by process 0"),
        ({"tracer": 99}, "it is traced by process 99"),
        ({"letter": "T"}, "it was stopped by somebody else, who must continue it"),
        ({"letter": "D"}, "it sleeps uninterruptibly: nothing reaches it"),
        ({"letter": "Z"}, "it has ended: its parent must reap it; only 3.12 and early 4.4 kernels wait for that"),
        ({"letter": "R"}, "it runs, and clears by itself"),
    ],
)
def test_what_a_poke_does_not_free_is_left_alone(moving, poke, about, reason, method):
    moving.task(731, "nfsd", blocking=True, **about)
    answer = poke(method=method)
    assert (answer["poked"], poke.asked) == ([], [])
    assert _reasons(answer) == {731: reason}
    assert answer["count"] == 1


@pytest.mark.parametrize("method", ["trace", "signals"])
def test_by_tracing_each_thread_that_sleeps_is_moved_by_signals_only_a_whole_process(here, poke, method):
    pid = os.getppid()
    here(pid, threads={2000001: {"blocking": True, "letter": "D"}, 2000002: {"blocking": True}, 2000003: {}})
    answer = poke(method=method, test=True)
    uninterruptible = "it sleeps uninterruptibly: nothing reaches it"
    if method == "trace":
        (task,) = answer["poked"]
        assert (task["crossed"], task["left"]) == ([pid, 2000002], {"2000001": uninterruptible})
    else:
        assert _reasons(answer) == {pid: uninterruptible}
    assert poke.asked == []


def test_by_signals_pid_1_this_process_its_ancestors_and_the_minion_are_never_poked(here, moving, poke):
    for pid, name in ((1, "init"), (os.getpid(), "pytest"), (os.getppid(), "shell")):
        here(pid, name)
    moving.task(731, "salt-minion", blocking=True)
    moving.task(732, "python3", blocking=True, unit="venv-salt-minion.service")
    reasons = {
        1: "pid 1 takes no signals",
        os.getpid(): "it is this process or an ancestor of it",
        os.getppid(): "it is this process or an ancestor of it",
        731: "protected by name:salt-minion*",
        732: "protected by unit:venv-salt-minion*",
    }
    for protect_defaults in (True, False):
        assert _reasons(poke(method="signals", protect_defaults=protect_defaults)) == reasons
    assert poke.asked == []


def test_by_tracing_they_are_poked_last(own, moving, poke):
    family = [os.getpid(), os.getppid()]
    for pid in (1, *family, 2000001, 2000002, 2000003):
        about = {"start_time": pid, "blocking": True, "unit": "systemd-udevd.service" if pid == 2000002 else None}
        moving.task(pid, "some", **about)
        own.task(pid, "some", start_time=pid)
    poke.room.ancestors = lambda: family[1:]
    poke()
    assert [pid for pid, tids in poke.asked] == [2000001, 2000003, 2000002, *sorted(family), 1]


@BOTH
@pytest.mark.parametrize(
    "name",
    [
        "corosync",
        "corosync-qdevice",
        "sbd",
        "pacemakerd",
        "pacemaker-fenced",
        "crmd",
        "lrmd",
        "dlm_controld",
        "multipathd",
        "iscsid",
        "ocssd.bin",
        "cssdagent",
        "ctdbd",
        "drbdsetup",
    ],
)
def test_the_daemons_of_clusters_and_storage_are_protected_by_name_and_unit(moving, poke, name, method):
    moving.task(731, name, blocking=True)
    moving.task(732, "worker", blocking=True, unit=f"{name}.service")
    reasons = _reasons(poke(method=method))
    assert reasons[731].startswith("protected by name:")
    assert (reasons[732].startswith("protected by unit:")) or name in ("crmd", "lrmd")
    assert poke.asked == []


@pytest.mark.parametrize("name", ["hdbindexserver", "sapstartsrv", "systemd-journal", "systemd"])
def test_what_a_stop_would_hurt_is_protected_from_signals_only(moving, poke, name):
    moving.task(731, name, blocking=True)
    assert _reasons(poke(method="signals"))[731].startswith("protected by name:")
    assert _reasons(poke(method="trace"))[731] == "this machine has no process 731"


@BOTH
def test_only_protect_defaults_drops_the_list(moving, poke, method):
    moving.task(731, "corosync", blocking=True)
    assert "protected by name:corosync*" in _reasons(poke(protect=["name:hdb*"], method=method))[731]
    assert _reasons(poke(protect_defaults=False, method=method))[731] == "this machine has no process 731"
    assert _reasons(poke(protect_defaults=False, protect="name:coro*", method=method)) == {
        731: "protected by name:coro*"
    }


@BOTH
@pytest.mark.parametrize("pattern", ["name:hdbindex*", "unit:sap*.service", "user:nobo?y"])
def test_own_patterns_add_to_the_list(moving, poke, pattern, method):
    moving.task(731, "hdbindexserver", blocking=True, unit="sapinit.service", uid=65534)
    assert poke(protect=pattern, protect_defaults=False, method=method)["skipped"][0]["reason"] == (
        f"protected by {pattern}"
    )


def test_a_name_longer_than_the_kernel_keeps_is_matched_whole(moving, poke):
    moving.task(731, "hdbcompileserver", blocking=True, exe="/usr/sap/hdbcompileserver")
    assert _reasons(poke(protect="name:hdbcompileserver")) == {731: "protected by name:hdbcompileserver"}
    assert _reasons(poke(protect="name:hdbcompileserver-2")) == {731: "this machine has no process 731"}


@pytest.mark.parametrize(
    ("name", "kept", "pattern"),
    [
        ("hdbcompileserver", "hdbcompileserve", "name:*server"),
        ("hdbcompileserver", "hdbcompileserve", "name:hdb*pile*ver"),
        ("hdbcompileserver", "hdbcompileserve", "name:hdbcompileserver-2"),
        # 15 bytes are 13 letters here, and 14 and a half there
        ("größe-datenbank-dienst", "größe-datenba", "name:größe-datenbank-dienst"),
        ("datenbank-größe", "datenbank-grö\\xc3", "name:datenbank-größe"),
        ("datenbank-größe", "datenbank-grö\\xc3", "name:daten*-größe-*"),
    ],
)
def test_a_name_that_the_kernel_cut_is_protected_by_what_it_may_be(moving, kgraft, poke, name, kept, pattern):
    moving.task(731, name, blocking=True)
    moving.task(732, "other", blocking=True)
    assert kgraft.blocking()["tasks"][0]["name"] == kept
    assert _reasons(poke(protect=pattern)) == {731: f"protected by {pattern}", 732: "this machine has no process 732"}


# Who it is


@BOTH
def test_a_tree_that_is_not_this_machines_leads_to_nobody(moving, poke, method):
    gone = 2**22 - 7
    assert not os.path.exists(f"/proc/{gone}")
    moving.task(gone, blocking=True)
    assert _reasons(poke(method=method)) == {gone: f"this machine has no process {gone}"}


def test_a_reused_pid_is_another_process(moving, poke):
    pid = os.getppid()
    moving.task(pid, blocking=True, start_time=12345)
    assert _reasons(poke()) == {pid: f"its start time is not that of pid {pid} on this machine: another process"}


def test_a_pid_reused_under_the_root_since_the_walk_is_gone(here, moving, poke):
    here(os.getppid(), "sleeper")
    turn = poke.room.turn

    def reuse(task, family):
        moving.task(os.getppid(), "stranger", blocking=True, start_time=task["start_time"] + 1)
        return turn(task, family)

    poke.room.turn = reuse
    answer = poke()
    assert (answer["poked"], answer["vanished"], poke.asked) == ([], [os.getppid()], [])


@BOTH
@pytest.mark.parametrize("test", [False, True])
def test_where_proc_is_of_another_pid_namespace_nobody_is_poked(own, moving, poke, method, test):
    moving.task(731, blocking=True)
    os.unlink(own.root / "proc/self")
    (own.root / "proc/self").symlink_to("42")
    with pytest.raises(CommandExecutionError, match="Nobody is poked: this is process .* of another pid namespace"):
        poke(method=method, test=test)
    moving.finish()
    assert poke(method=method, test=test)["poked"] == []


def test_an_architecture_whose_numbers_are_not_known_is_refused_for_tracing(here, poke, monkeypatch):
    here(os.getppid(), "sleeper")
    machine = os.uname()[:4] + ("riscv64",)
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(machine))
    with pytest.raises(CommandExecutionError, match="not on riscv64; write method='signals'"):
        poke()


# What is asked for, and what is answered


def test_only_the_named_pids_are_poked(moving, poke):
    for pid in (731, 732):
        moving.task(pid, blocking=True, kthread=True)
    moving.task(733)
    answer = poke(pids="731, 733,2000000000")
    assert _reasons(answer) == {
        731: "a kernel thread crosses at its own safe places only",
        733: "it does not block",
        2000000000: "there is no such process, or it cannot be seen from here",
    }
    assert answer["vanished"] == []
    assert answer["count"] == 2


@BOTH
def test_in_test_mode_nobody_is_touched_and_the_same_is_shown(own, moving, poke, method):
    moving.task(731, "sleeper", blocking=True, start_time=5)
    own.task(731, "sleeper", start_time=5)
    answer = poke(test=True, method=method)
    assert [(task["name"], task["crossed"], task["left"]) for task in answer["poked"]] == [("sleeper", [731], {})]
    assert (answer["count"], poke.asked) == (1, [])


def test_no_pids_at_all_are_nobody(here, poke):
    here(os.getppid(), "sleeper")
    assert len(poke(test=True)["poked"]) == 1
    assert poke(pids=[], test=True)["poked"] == []
    assert poke(pids=[], test=True)["count"] == 1


def test_a_named_process_whose_flag_cannot_be_read_is_not_said_to_have_crossed(moving, poke):
    moving.task(731, blocking=True)
    moving.write("proc/731/kgr_in_progress", "?\n")
    with pytest.raises(CommandExecutionError, match="proc/731/kgr_in_progress"):
        poke(pids=731)


def test_what_was_done_to_a_thread_is_no_proof_that_it_crossed(own, moving, poke):
    for pid in (731, 732):
        moving.task(pid, blocking=True, start_time=5)
        own.task(pid, start_time=5)
    poke.room._await_crossing = lambda root, pids: moving.flag(731, False)
    answer = poke()
    assert [(task["pid"], task["crossed"], task["left"]) for task in answer["poked"]] == [
        (731, [731], {}),
        (732, [], {"732": "it was moved, and is still in the old code"}),
    ]
    assert answer["count"] == 1


@pytest.mark.parametrize("crosses", [True, False])
def test_who_did_not_stop_in_time_was_interrupted_all_the_same_and_may_cross_late(own, moving, poke, crosses):
    for kernel in (moving, own):
        kernel.task(731, blocking=True, start_time=5)
    poke.words = {731: "unreachable"}
    poke.room._await_crossing = lambda root, pids: moving.flag(731, not crosses)
    answer = poke()
    assert [task["crossed"] for task in answer["poked"]] == ([[731]] if crosses else [])
    assert [task["reason"] for task in answer["skipped"]] == ([] if crosses else ["it did not stop within 0.1 s"])


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ({11: "uninterruptible"}, {"11": "it sleeps uninterruptibly: nothing reaches it"}),
        ({11: "lost", 12: "lost"}, dict.fromkeys(("11", "12"), "the process that pokes ended before it was done")),
        ({11: "gone"}, {}),
        ({12: "EIO"}, {"12": "the kernel refuses: EIO"}),
    ],
)
def test_each_thread_that_was_not_moved_has_its_reason(own, moving, poke, words, left):
    for kernel in (moving, own):
        kernel.task(731, blocking=True, start_time=5, threads={11: {"blocking": True}, 12: {"blocking": True}})
    poke.words = words
    poke.room._await_crossing = lambda root, pids: [moving.flag(731, False, tid) for tid in (731, 11, 12)]
    (task,) = poke()["poked"]
    assert (task["crossed"], task["left"]) == ([tid for tid in (11, 12, 731) if tid not in words], left)


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda own: own.task(731, start_time=5, tracer=99), "it is traced by process 99"),
        (
            lambda own: own.write("proc/sys/kernel/yama/ptrace_scope", "3\n"),
            "Yama forbids all tracing (kernel.yama.ptrace_scope is 3)",
        ),
        (
            lambda own: own.write("proc/self/status", "CapEff:\t0000000000000000\n"),
            "no right to trace it: CAP_SYS_PTRACE is missing",
        ),
        (
            lambda own: own.write("sys/fs/selinux/booleans/deny_ptrace", "1 1"),
            "SELinux forbids tracing (deny_ptrace)",
        ),
        (lambda own: own.write("sys/fs/selinux/booleans/deny_ptrace", "0 0"), "the kernel refuses: EPERM"),
    ],
)
def test_why_a_thread_may_not_be_traced_is_told_in_the_kernels_terms(own, moving, poke, prepare, reason):
    moving.task(731, blocking=True, start_time=5)
    own.task(731, start_time=5)
    (own.root / "proc/self").unlink()
    (own.root / "proc/self").mkdir()
    own.write("proc/self/status", "CapEff:\t000001ffffffffff\n")
    prepare(own)
    poke.room.must_be_possible = lambda method: None
    poke.words = {731: "EPERM"}
    assert _reasons(poke()) == {731: reason}


def test_a_poke_that_fails_on_the_way_keeps_what_it_did_and_one_that_did_nothing_fails(own, moving, poke):
    for pid in (731, 732, 733):
        moving.task(pid, blocking=True, start_time=5)
        own.task(pid, start_time=5)
    poke.broken = "Cannot start the process that pokes: No such file or directory"
    with pytest.raises(CommandExecutionError, match=poke.broken):
        poke()
    poke.broken = None
    real = poke.room.Poker.poke

    def break_after_the_first(self, *order):
        words = real(self, *order)
        poke.broken = "broken"
        return words

    poke.room.Poker.poke = break_after_the_first
    answer = poke()
    assert [task["pid"] for task in answer["poked"]] == [731]
    assert _reasons(answer) == {732: "broken", 733: "broken"}


def test_a_look_that_fails_after_the_poke_loses_no_answer(own, moving, poke):
    moving.task(731, blocking=True, start_time=5)
    own.task(731, start_time=5)
    poke.room._await_crossing = lambda root, pids: os.unlink(moving.root / "sys/kernel/kgraft/in_progress")
    answer = poke()
    assert [task["pid"] for task in answer["poked"]] == [731]
    assert (answer["count"], answer["complete"]) == (None, False)


def test_who_crosses_by_itself_or_ends_on_the_way_is_not_poked(own, moving, poke):
    for pid in (731, 732, 733):
        moving.task(pid, blocking=True, start_time=5)
        own.task(pid, start_time=5)
    real = poke.room.Poker.poke

    def cross(self, *order):
        moving.flag(732, False)
        moving.exit(733)
        return real(self, *order)

    poke.room.Poker.poke = cross
    answer = poke()
    assert (_reasons(answer), answer["vanished"]) == ({732: "it has crossed meanwhile"}, [733])
    assert poke.asked == [(731, [731])]


# Whose parent would notice, by signals

WAIT4 = {"x86_64": "61 0xffffffff 0x7ffc {} 0x0 0x0 0x0 0x7ffc00000000 {}"}
SLEEPS = "230 0x0 0x0 0x7ffc 0x7ffc 0x0 0x0 0x7ffc00000000 0x7f0000000000"


@pytest.mark.parametrize(
    ("masks", "syscalls", "reason"),
    [
        ((0, 0), [SLEEPS], None),
        ((0, 0), [WAIT4["x86_64"].format("0x0", "0x7f0000000000")], None),
        ((0, 0), [WAIT4["x86_64"].format("0x2", "0x7f0000000000")], "waits for stops (WUNTRACED)"),
        ((0, 0), [WAIT4["x86_64"].format("0xa", "0x7f0000000000")], "waits for stops (WUNTRACED)"),
        ((0, 0), [SLEEPS, WAIT4["x86_64"].format("0x2", "0x7f0000000000")], "waits for stops (WUNTRACED)"),
        ((0, 0), ["247 0x0 0x0 0x7ffc 0x6 0x0 0x0 0x7ffc00000000 0x7f0000000000"], "waits for stops (WUNTRACED)"),
        ((0, 0), ["247 0x0 0x0 0x7ffc 0x4 0x0 0x0 0x7ffc00000000 0x7f0000000000"], None),
        ((0, 0), ["-1 0x7ffc00000000 0x7f0000000000"], None),
        ((1 << 16, 0), [SLEEPS], "catches or blocks SIGCHLD"),
        ((0, 1 << 16), [SLEEPS], "catches or blocks SIGCHLD"),
        ((1 << 15, 1 << 17), [SLEEPS], None),
        ((0, 0), ["running"], "cannot be told"),
        ((0, 0), [None], "cannot be told"),
        ((0, 0), ["7 0xffffffff 0xff8e 0x2 0x0 0x0 0x0 0xff8e0000 0xf7f00000"], "cannot be told"),  # 32 bits
    ],
)
def test_a_child_is_left_alone_by_signals_where_its_parent_can_notice(
    own, moving, poke, monkeypatch, masks, syscalls, reason
):
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "host", "4.4", "#1", "x86_64")))
    moving.task(731, "job", blocking=True, start_time=5)
    own.task(731, "job", start_time=5)
    own.task(500, "su", threads={500 + number: {} for number in range(1, len(syscalls))})
    stat = own.root / "proc/731/stat"
    own.write("proc/731/stat", stat.read_text().replace(") S 1 ", ") S 500 "))
    assert ") S 500 " in stat.read_text()
    status = (own.root / "proc/500/status").read_text()
    own.write("proc/500/status", status + "SigBlk:\t{:016x}\nSigCgt:\t{:016x}\n".format(*masks))
    for number, line in enumerate(syscalls):
        if line:
            own.write(f"proc/500/task/{500 + number}/syscall", line + "\n")
    answer = poke(method="signals")
    if reason is None:
        assert [task["pid"] for task in answer["poked"]] == [731]
    else:
        assert reason in answer["skipped"][0]["reason"]
        assert "su(500)" in answer["skipped"][0]["reason"]
    assert [task["pid"] for task in poke(method="trace")["poked"]] == [731]


def test_init_asks_for_ends_only(own, moving, poke):
    moving.task(731, "daemon", blocking=True, start_time=5)
    own.task(731, "daemon", start_time=5)
    assert [task["pid"] for task in poke(method="signals")["poked"]] == [731]


@pytest.mark.parametrize("lost", ["stat", "status", "task", "masks"])
def test_a_parent_that_cannot_be_looked_at_is_no_leave_to_stop_its_child(own, moving, poke, lost):
    moving.task(731, "job", blocking=True, start_time=5)
    own.task(731, "job", start_time=5)
    own.task(500, "su")
    stat = own.root / "proc/731/stat"
    own.write("proc/731/stat", stat.read_text().replace(") S 1 ", ") S 500 "))
    masks = "" if lost == "masks" else "SigBlk:\t0\nSigCgt:\t0\n"
    own.write("proc/500/status", (own.root / "proc/500/status").read_text() + masks)
    gone = own.root / "proc/500" / lost
    if gone.exists():
        gone.rename(gone.with_name("away"))
    (skipped,) = poke(method="signals")["skipped"]
    assert "cannot be told whether its parent would notice" in skipped["reason"]
