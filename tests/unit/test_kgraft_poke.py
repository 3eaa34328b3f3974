"""Whom a poke spares, and why. No process is signalled here: the trees are not this machine's."""

import os

import pytest
from salt.exceptions import CommandExecutionError

PATCH = "kgraft-patch-2-2_1"


@pytest.fixture(autouse=True)
def no_signals(monkeypatch):
    monkeypatch.setattr(os, "kill", lambda pid, number: pytest.fail(f"{number} was sent to {pid}"))


@pytest.fixture
def moving(kernel):
    kernel.start(PATCH)
    return kernel


@pytest.fixture
def here(moving):
    """``here(pid, ...)``: a blocking task of the tree that has the start time of a process of this machine."""

    def task(pid, *args, **about):
        with open(f"/proc/{pid}/stat", "rb") as stat:
            start_time = int(stat.read().rpartition(b")")[2].split()[19])
        moving.task(pid, *args, blocking=True, start_time=start_time, **about)

    return task


def _reasons(answer):
    return {task["pid"]: task["reason"] for task in answer["skipped"]}


def test_a_ready_machine_has_nobody_to_poke(kernel, kgraft):
    assert kgraft.poke() == {"poked": [], "skipped": [], "vanished": [], "count": 0, "complete": True}


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        ({"kthread": True}, "a kernel thread crosses at its own safe places only"),
        ({"letter": "t"}, "it is traced: its tracer would get the signal"),
        ({"tracer": 99}, "it is traced: its tracer would get the signal"),
        ({"letter": "T"}, "it was stopped by somebody else, who must continue it"),
        ({"letter": "D"}, "it sleeps uninterruptibly: no signal reaches it"),
        ({"letter": "Z"}, "it has ended: its parent must reap it"),
        ({"letter": "R"}, "it runs, and clears by itself"),
    ],
)
def test_what_a_poke_does_not_free_is_left_alone(moving, kgraft, about, reason):
    moving.task(731, "nfsd", blocking=True, **about)
    answer = kgraft.poke()
    assert answer["poked"] == []
    assert _reasons(answer) == {731: reason}
    assert answer["count"] == 1


def test_pid_1_is_never_poked(moving, kgraft):
    moving.task(1, "init", blocking=True, start_time=1)
    assert _reasons(kgraft.poke()) == {1: "pid 1 is never poked"}


def test_this_process_and_its_ancestors_are_never_poked(here, kgraft):
    for pid in (os.getpid(), os.getppid()):
        here(pid, "shell")
    assert set(_reasons(kgraft.poke()).values()) == {"it is this process or an ancestor of it"}


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
        "systemd-journal",
        "salt-minion",
        "venv-salt-minion",
    ],
)
def test_cluster_daemons_and_the_minion_are_protected_by_name(moving, kgraft, name):
    moving.task(731, name, blocking=True)
    assert _reasons(kgraft.poke())[731].startswith("protected by name:")


@pytest.mark.parametrize("unit", ["pacemaker.service", "sbd.service", "systemd-udevd.service", "salt-minion.service"])
def test_cluster_daemons_and_the_minion_are_protected_by_unit(moving, kgraft, unit):
    moving.task(731, "worker", blocking=True, unit=unit)
    assert _reasons(kgraft.poke())[731].startswith("protected by unit:")


def test_only_protect_defaults_drops_the_list_and_the_minion_stays_on_it(moving, kgraft):
    moving.task(731, "corosync", blocking=True)
    moving.task(732, "salt-minion", blocking=True)
    assert "protected by name:corosync*" in _reasons(kgraft.poke(protect=["name:hdb*"]))[731]
    reasons = _reasons(kgraft.poke(protect_defaults=False))
    assert reasons[731] == "this machine has no process 731"
    assert reasons[732] == "protected by name:salt-minion*"


@pytest.mark.parametrize("pattern", ["name:hdbindex*", "unit:sap*.service", "user:nobo?y"])
def test_own_patterns_add_to_the_list(moving, kgraft, pattern):
    moving.task(731, "hdbindexserver", blocking=True, unit="sapinit.service", uid=65534)
    assert _reasons(kgraft.poke(protect=pattern)) == {731: f"protected by {pattern}"}


def test_a_name_longer_than_the_kernel_keeps_is_matched_whole(moving, kgraft):
    moving.task(731, "hdbcompileserver", blocking=True, cmdline=["/usr/sap/hdbcompileserver"])
    assert _reasons(kgraft.poke(protect="name:hdbcompileserver")) == {731: "protected by name:hdbcompileserver"}


@pytest.mark.parametrize("pattern", ["name:*server", "name:hdb*pile*ver", "name:hdbcompileserver-2"])
def test_a_name_that_the_kernel_cut_is_protected_by_what_it_may_be(moving, kgraft, pattern):
    moving.task(731, "hdbcompileserver", blocking=True, cmdline=["python3"])
    moving.task(732, "hdbdaemon", blocking=True)
    assert kgraft.blocking()["tasks"][0]["name"] == "hdbcompileserve"
    reasons = _reasons(kgraft.poke(protect=pattern))
    assert reasons == {731: f"protected by {pattern}", 732: "this machine has no process 732"}


def test_a_tree_that_is_not_this_machines_leads_to_nobody(moving, kgraft):
    gone = 2**22 - 7
    assert not os.path.exists(f"/proc/{gone}")
    moving.task(gone, blocking=True)
    assert _reasons(kgraft.poke()) == {gone: f"this machine has no process {gone}"}


def test_a_reused_pid_is_another_process(moving, kgraft):
    pid = os.getppid()
    moving.task(pid, blocking=True, start_time=12345)
    kgraft.poking.ancestors = lambda: set()
    assert _reasons(kgraft.poke()) == {pid: f"its start time is not that of pid {pid} on this machine: another process"}


def test_only_the_named_pids_are_poked(moving, kgraft):
    for pid in (731, 732):
        moving.task(pid, blocking=True, kthread=True)
    moving.task(733)
    answer = kgraft.poke(pids="731, 733,2000000000")
    assert list(_reasons(answer)) == [733, 731]
    assert _reasons(answer)[733] == "it does not block"
    assert answer["vanished"] == [2000000000]
    assert answer["count"] == 2


def test_in_test_mode_nothing_is_sent_and_the_same_is_shown(here, kgraft):
    here(os.getppid(), "sleeper")
    kgraft.poking.ancestors = lambda: set()
    answer = kgraft.poke(test=True)
    assert [task["name"] for task in answer["poked"]] == ["sleeper"]
    assert answer["count"] == 1


def test_a_minion_that_is_named_as_its_interpreter_is_known_by_its_command_line(moving, kgraft):
    title = "/opt/saltstack/salt/bin/python3.10 /usr/bin/salt-minion MultiMinionProcessManager"
    moving.task(731, "/opt/saltstack/", blocking=True, cmdline=[title])
    moving.task(732, "python3", blocking=True, cmdline=["/usr/bin/python3", "/usr/bin/venv-salt-minion"])
    assert _reasons(kgraft.poke(protect_defaults=False)) == {731: "it is a minion", 732: "it is a minion"}


def test_no_pids_at_all_are_nobody(here, kgraft):
    here(os.getppid(), "sleeper")
    kgraft.poking.ancestors = lambda: set()
    assert len(kgraft.poke(test=True)["poked"]) == 1
    assert kgraft.poke(pids=[], test=True)["poked"] == []
    assert kgraft.poke(pids=[], test=True)["count"] == 1


def test_a_named_process_whose_flag_cannot_be_read_is_not_said_to_have_crossed(moving, kgraft):
    moving.task(731, blocking=True)
    moving.write("proc/731/kgr_in_progress", "?\n")
    with pytest.raises(CommandExecutionError, match="proc/731/kgr_in_progress"):
        kgraft.poke(pids=731)


def test_a_pid_reused_under_the_root_since_the_walk_is_gone(here, moving, kgraft, monkeypatch):
    here(os.getppid(), "sleeper")
    refusal = kgraft.poking.refusal

    def reuse(root, task, *rest):
        moving.task(os.getppid(), "stranger", blocking=True, start_time=task["start_time"] + 1)
        return refusal(root, task, *rest)

    kgraft.poking.ancestors = lambda: set()
    monkeypatch.setattr(kgraft.poking, "refusal", reuse)
    answer = kgraft.poke(test=True)
    assert (answer["poked"], answer["vanished"]) == ([], [os.getppid()])
