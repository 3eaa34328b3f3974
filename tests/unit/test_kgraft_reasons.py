"""
Why a task blocks: each row of the table by a kernel of files that shows its signs, and the advice that nobody regrets.
"""

import os
import re
from unittest.mock import Mock

import pytest
from salt.exceptions import CommandExecutionError

BPF = ["[<0>] klpt_read+0x10/0x20", "[<0>] bpf_trampoline_6442513422_1+0x4f/0x1000", "[<0>] vfs_read+0x9c/0x310"]
SLES15, SLES12, OLD = "5.14.21-150500.55.19-default", "4.4.180-94.100-default", "3.12.49-11-default"
SLES15_SP1 = "4.12.14-197-default"
THREAD = {"kthread": True}
PROTECTED = "It is protected: do not restart it, and send it no signal. Wait."
IN_PATCH = ["[<0>] f+0x1/0x2 [kgraft_patch_2_2_1]"]
IN_THIRD = ["[<0>] schedule+0x1/0x2", "[<0>] f+0x1/0x2 [third]"]

# abi, release, the process, taints of modules, words of the reason, words of the advice
CASES = [
    ("livepatch", SLES15, {"stack": BPF}, {}, "A program of eBPF is on its stack", "Unless it is protected"),
    ("livepatch", SLES15, {"comm": "cifsd", "stack": BPF, **THREAD}, {}, "eBPF", "settle, start it again"),
    ("kgraft", SLES12, {"stack": ["[<ffff>] return_to_handler+0x0/0x27"]}, {}, "A tracer is on its stack", "stop the"),
    ("livepatch", SLES15, {"stack": ["[<0>] arch_rethook_trampoline+0x0/0x5f"]}, {}, "kretprobe", "Ask who traces"),
    ("livepatch", SLES15, {"stack": ["[<0>] do_exit+0x33d/0xb10"]}, {}, "Probably: the patch changes", "debug output"),
    (
        "livepatch",
        SLES15,
        {"comm": "vxfs", "stack": ["[<0>] schedule+0x1/0x2", "[<0>] vx_wait+0x1/0x2 [vxfs]"], **THREAD},
        {"vxfs": "POE"},
        "in vxfs, a module that was not built with the kernel",
        "stop the service that uses vxfs",
    ),
    ("kgraft", SLES12, {"stack": IN_THIRD, **THREAD}, {"third": "P"}, "in third, a module", "vendor"),
    ("livepatch", SLES15, {"stack": IN_THIRD, **THREAD}, {"third": "O"}, "in third, a module", "vendor"),
    (
        "livepatch",
        SLES15,
        {"stack": IN_THIRD, "letter": "D"},
        {"third": "OE"},
        "It waits in third, a module that was not built with the kernel, where no signal reaches it.",
        "Ask its vendor, or who owns it here; mend what it waits for.",
    ),
    (
        "livepatch",
        SLES15,
        {"comm": "qemu-kvm", "threads": ["CPU 3/KVM"]},
        {},
        "The machine of a guest",
        "but not a guest that is a node of a cluster: it may be fenced.",
    ),
    ("livepatch", SLES15, {"comm": "qemu-system-x86"}, {}, "Probably: a guest's machine runs on it.", "virsh suspend"),
    ("livepatch", SLES15, {"comm": "vhost-4711", **THREAD}, {}, "guest. Probably: it is too busy", "6.4 has the mend"),
    ("livepatch", SLES15, {"comm": "khugepaged", **THREAD}, {}, "Probably: it is in the memory", "Probably: write"),
    ("livepatch", SLES15_SP1, {"pid": 1, "comm": "systemd"}, {}, "Probably: SUSE's 4.12", "Run kgraft.poke pids=1"),
    ("livepatch", SLES15, {"comm": "10.0.0.1-manager", **THREAD}, {}, "Probably: this is the state manager", "swapoff"),
    ("livepatch", SLES15, {"comm": "192.168.100.7-m", **THREAD}, {}, "Probably: this is the state manager", "swapoff"),
    ("livepatch", SLES15, {"comm": "fd00::1:7-manag", **THREAD}, {}, "Probably: this is the state manager", "swapoff"),
    ("livepatch", SLES15, {"comm": "10.1.1.17-manager", **THREAD}, {}, "Probably: this is the state", "swapoff"),
    (
        "livepatch",
        SLES15,
        {"stack": ["[<0>] nfs4_state_manager+0x1/0x2 [nfsv4]"], **THREAD},
        {},
        "NFS 4 keeps this thread parked",
        "unmount",
    ),
    ("kgraft", OLD, {"comm": "hwrng", **THREAD}, {}, "no safe place", "later kernel has the mend"),
    ("kgraft", SLES12, {"comm": "btrfs-cleaner", **THREAD}, {}, "no safe place", "later kernel has the mend"),
    ("kgraft", SLES12, {"comm": "usb-storage", **THREAD}, {}, "no safe place", "later kernel has the mend"),
    ("kgraft", SLES12, {"comm": "kmemleak", **THREAD}, {}, "no safe place", "later kernel has the mend"),
    ("kgraft", SLES12, {"comm": "blkback.3.xvda", **THREAD}, {}, "no safe place", "later kernel has the mend"),
    ("kgraft", SLES12, {"comm": "3.xvda-0", **THREAD}, {}, "no safe place", "later kernel has the mend"),
    ("kgraft", SLES12, {"comm": "eehd", **THREAD}, {}, "no safe place", "later kernel has the mend"),
    ("kgraft", SLES12, {"comm": "gfs2_logd", **THREAD}, {}, "GFS2 waits long", "mode first. Wait: it passes."),
    ("livepatch", SLES15, {"comm": "kworker/0:1", "letter": "R", **THREAD}, {}, "This kernel thread runs", "it sleeps"),
    # what must not be taken for another: fixed since, of the kernel itself, of the other interface, another kind
    ("kgraft", SLES12, {"comm": "hwrng", **THREAD}, {}, "has not come to a safe place", "Then stop the service"),
    ("livepatch", "6.4.0-150600.21-default", {"comm": "vhost-1", **THREAD}, {}, "has not come", "Ask who owns it."),
    ("livepatch", SLES15, {"comm": "vhost-1"}, {}, "It sleeps in the kernel", "every 15 s"),
    ("livepatch", SLES15, {"comm": "hfi1-management", **THREAD}, {}, "has not come", "Ask who owns it."),
    ("livepatch", SLES15, {"comm": "dm-manager", **THREAD}, {}, "has not come", "Ask who owns it."),
    ("livepatch", SLES15, {"comm": "qemu-ga"}, {}, "It sleeps in the kernel", "every 15 s"),
    ("livepatch", SLES15, {"comm": "btrfs-cleaner", **THREAD}, {}, "has not come to a safe place", "stop the service"),
    ("kgraft", SLES12, {"stack": BPF, **THREAD}, {}, "has not come to a safe place", "stop the service"),
    ("livepatch", SLES15, {"stack": ["[<0>] f+0x1/0x2 [nfsd]"], **THREAD}, {"nfsd": ""}, "has not come", "unload"),
    ("livepatch", SLES15, {"stack": ["[<0>] f+0x1/0x2 [gone]"], **THREAD}, {}, "has not come", "unload the module"),
    # a module of the kernel's own that a partner supports; live patches: one that was replaced, and one of kGraft's
    # whose taint does not say so
    ("livepatch", SLES15, {"stack": IN_THIRD, **THREAD}, {"third": "X"}, "has not come", "unload the module"),
    ("livepatch", SLES15, {"stack": IN_THIRD, **THREAD}, {"third": "OEK"}, "has not come", "unload the module"),
    ("kgraft", SLES12, {"stack": IN_PATCH, **THREAD}, {"kgraft_patch_2_2_1": "OE"}, "has not come", "unload the"),
    ("livepatch", SLES15, {"stack": IN_THIRD, "letter": "D"}, {"third": "OEK"}, "It waits for a device", "Mend what"),
    ("livepatch", SLES15, {"stack": ["[<0>] ioctl+0x1/0x2 [vxfs]"]}, {"vxfs": "POE"}, "It sleeps in", "every 15 s"),
    ("livepatch", SLES15, {"stack": ["[<0>] undo_exit_x+0x1/0x2"]}, {}, "It sleeps in the kernel", "every 15 s"),
    ("livepatch", "unknown", {"pid": 1, "comm": "systemd"}, {}, "It sleeps in the kernel", "every 15 s"),
    # kinds
    ("kgraft", SLES12, {"letter": "t"}, {}, "A debugger or a tracer such as strace", "Ask who traces it"),
    ("kgraft", SLES12, {"letter": "T"}, {}, "It is stopped", "Ask who stopped it; continue it"),
    ("livepatch", SLES15, {"letter": "D"}, {}, "where no signal reaches it", "Mend what it waits for"),
    ("kgraft", SLES12, {"letter": "Z"}, {}, "It has ended", "Ask who owns its parent, which must reap it."),
    ("livepatch", SLES15, {"letter": "Z"}, {}, None, None),
    ("kgraft", SLES12, {"letter": "R"}, {}, "It runs.", "it crosses when it next"),
    ("kgraft", SLES12, {}, {}, "It sleeps in the kernel", "Run kgraft.poke pids=PID, or set poke_after"),
    ("livepatch", SLES15_SP1, {}, {}, "It sleeps in the kernel since before the patch.", "pids=PID. Probably: "),
    ("livepatch", SLES15, {}, {}, "Probably: in a function that the patch changes.", "every 15 s by itself"),
]
# a cluster's daemon by its unit, and what a cluster has in the kernel
CIB = {"comm": "cib", "unit": "pacemaker.service", "letter": "T"}
PATH = {"comm": "multipathd", "stack": IN_THIRD, "letter": "D"}
CASES += [("kgraft", SLES12, CIB, {}, "It is stopped", PROTECTED)]
CASES += [("livepatch", SLES15, PATH, {"third": "OE"}, "It waits in third", "mode first. Ask its vendor")]
CASES += [
    ("livepatch", SLES15, {"comm": comm, **THREAD}, {}, "has not come to a safe place", PROTECTED)
    for comm in (
        "dlm_scand",
        "o2hb-012345678",
        "ocfs2dc",
        "gfs2_quotad",
        "watchdogd",
        "iscsi_eh",
        "kmpathd",
        "drbd_w_r0",
    )
]
EMPTY = [
    ("livepatch", SLES15, "(swapper/N)", "Probably: then run something on every processor"),
    ("kgraft", SLES12, "The kernel looks for the end every 2 s.", "Wait."),
]


@pytest.fixture
def blocked(make_kernel, kgraft_on):
    """Return ``blocked(abi, release, process, taints, **arguments)``: the answer, and the rows that were told."""

    def look(abi, release, process=None, taints=None, **arguments):
        kernel = make_kernel(abi, release=release)
        kernel.start("kgraft-patch-2-2_1" if abi == "kgraft" else "livepatch_9_2_1")
        if process is not None:
            about = dict({"pid": 731}, **process)
            about["stack"] = "".join(f"{line}\n" for line in about.get("stack", []))
            names = about.pop("threads", [])
            about["threads"] = {900 + number: {"blocking": True} for number in range(len(names))}
            kernel.task(blocking=True, **about)
            for tid, name in zip(about["threads"], names, strict=True):
                stat = (kernel.root / f"proc/731/task/{tid}/stat").read_text()
                kernel.write(f"proc/731/task/{tid}/stat", re.sub(r"\(.*\)", f"({name})", stat))
        for module, taint in (taints or {}).items():
            kernel.write(f"sys/module/{module}/taint", taint + "\n")
        kgraft = kgraft_on(kernel)
        fits, rows = kgraft.reasons._fits, []

        def spy(root, signs, seen):
            fit = fits(root, signs, seen)
            rows.extend([signs] if fit is not None else [])
            return fit

        kgraft.reasons._fits = spy
        return kgraft.blocking(**arguments), rows

    return look


@pytest.mark.parametrize(("abi", "release", "process", "taints", "why", "help"), CASES)
def test_each_reason_is_told_where_its_signs_are(blocked, abi, release, process, taints, why, help):
    ((task,), _) = (answer := blocked(abi, release, process, taints))[0]["tasks"], answer[1]
    if why is None:
        assert (task["why"], task["help"]) == (None, None)
    else:
        assert why in task["why"]
        assert help in task["help"]
        assert "{" not in task["why"] + task["help"]


@pytest.mark.parametrize(("abi", "release", "why", "help"), EMPTY)
def test_an_empty_list_says_what_it_can_mean(blocked, abi, release, why, help):
    answer, _ = blocked(abi, release)
    assert (answer["tasks"], answer["complete"]) == ([], True)
    assert why in answer["note"] and help in answer["note"]


def test_an_empty_list_that_is_not_complete_says_both(make_kernel, kgraft_on):
    kernel = make_kernel("kgraft", release=SLES12)
    kernel.start("kgraft-patch-2-2_1")
    (kernel.root / "proc/1/ns/pid").unlink()
    kgraft = kgraft_on(kernel)
    (kernel.root / "proc/1/ns/pid").symlink_to("pid:[4026532000]")
    answer = kgraft.blocking()
    assert (answer["count"], answer["complete"]) == (0, False)
    assert answer["note"].startswith("Not everything could be read or seen: what is in no list may block. Nobody ")


def test_each_row_has_a_case(blocked, load):
    met = []
    for case in CASES:
        met += blocked(*case[:4])[1]
    for case in EMPTY:
        met += blocked(*case[:2])[1]
    rows = load("_modules/kgraft.py").reasons.ROWS
    assert [row.signs for row in rows if row.signs not in met] == []


def test_what_was_only_concluded_says_so(load):
    """A source that is an excerpt, or advice that nobody was seen to follow: the facts' [S] and [I]."""
    rows = load("_modules/kgraft.py").reasons.ROWS
    assert all(row.source for row in rows)
    for row in rows:
        assert row.why.count("Probably") + row.help.count("Probably") == (row.why + row.help).count("Probably: ")
        if "an excerpt" in row.source and "bsc" not in row.source:
            assert row.why.startswith("Probably: ")


@pytest.mark.parametrize("comm", ["corosync", "sbd", "hdbindexserver", "multipathd", "mine"])
@pytest.mark.parametrize("process", [{}, {"letter": "T"}, {"letter": "R"}, {"letter": "D"}, {"stack": BPF}, THREAD])
@pytest.mark.parametrize(("abi", "release"), [("kgraft", SLES12), ("livepatch", SLES15)])
def test_nobody_is_advised_to_touch_what_is_protected(blocked, abi, release, process, comm):
    answer, _ = blocked(abi, release, dict(process, comm=comm), protect="name:mine")
    help = answer["tasks"][0]["help"]
    assert help.startswith("It is protected: do not restart it, and send it no signal. Wait.")
    assert not re.search(r"kill|kgraft\.poke|poke_after|stop the service|or end it", help, re.IGNORECASE)
    # what has to be done elsewhere is still said
    assert ("agent" in help) is ("stack" in process and abi == "livepatch")


@pytest.mark.parametrize("error", [FileNotFoundError(2, "gone"), PermissionError(13, "refused"), ValueError("torn")])
def test_whoever_cannot_be_told_is_protected(make_kernel, kgraft_on, monkeypatch, error):
    kernel = make_kernel("livepatch", release=SLES15)
    kernel.start("livepatch_9_2_1")
    kernel.task(731, "cat", blocking=True)
    kgraft = kgraft_on(kernel)
    monkeypatch.setattr(kgraft.reasons.poking, "protected", Mock(side_effect=error))
    assert kgraft.blocking()["tasks"][0]["help"].startswith("It is protected")


def test_of_many_threads_some_stacks_are_missed_aloud(make_kernel, kgraft_on):
    kernel = make_kernel("livepatch", release=SLES15)
    kernel.start("livepatch_9_2_1")
    stack = "".join(f"{line}\n" for line in BPF)
    kernel.task(731, "java", blocking=True, threads={732 + i: {"blocking": True} for i in range(15)})
    kgraft = kgraft_on(kernel)
    assert kgraft.blocking()["note"] is None
    kernel.task(731, "java", blocking=True, threads={732 + i: {"blocking": True} for i in range(16)})
    (kernel.root / "proc/731/task/747/stack").write_text(stack)
    answer = kgraft.blocking()
    assert len(answer["tasks"][0]["tids"]) == 17
    assert "eBPF" not in answer["tasks"][0]["why"]
    assert "Not all kernel stacks were read" in answer["note"]


ODD = [
    ("[<0>] f+0x1/0x2", ("f", None)),
    ("[<ffffffff810a1b2c>] f+0x1/0x2 [some_module]", ("f", "some_module")),
    ("[<0>] f.isra.0+0x6b/0x90 [m]", ("f", "m")),
    ("[<0>] f.constprop.0.isra.3.cold+0x6b/0x90", ("f", None)),
    ("[<0>] f.+0x6b/0x90", ("f", None)),
    ("[<0>] f+0x1/0x2 (E)", None),
    ("[<0>] f", None),
    ("[<0>] " + 60000 * "a", None),
    ("[<0>] " + 60000 * "a." + "b", None),
    ("", None),
]


@pytest.mark.parametrize(("line", "groups"), ODD, ids=range(len(ODD)))
def test_a_line_of_a_stack_is_read_without_what_the_compiler_added(load, line, groups):
    match = load("_modules/kgraft.py").reasons.FRAME.search(line)
    assert (match and match.groups()) == groups


def test_no_advice_is_to_restart(load):
    for row in load("_modules/kgraft.py").reasons.ROWS:
        assert "restart" not in row.help.lower()


def test_stacks_that_may_not_be_read_are_missed_aloud(blocked, monkeypatch):
    opened = os.open

    def refuse(path, flags, *mode):
        if os.fsdecode(path).endswith("/stack"):
            raise PermissionError(13, "Permission denied")
        return opened(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    answer, _ = blocked("livepatch", SLES15, {"comm": "cifsd", "stack": BPF, **THREAD})
    assert "has not come to a safe place" in answer["tasks"][0]["why"]
    assert answer["note"] == "Not all kernel stacks were read. They may tell more; only root may read them."
    assert answer["complete"] is True


def test_after_the_budget_no_stack_is_read(make_kernel, kgraft_on):
    kernel = make_kernel("livepatch", release=SLES15)
    kernel.start("livepatch_9_2_1")
    kernel.task(731, "cifsd", blocking=True, stack="".join(f"{line}\n" for line in BPF), kthread=True)
    kgraft = kgraft_on(kernel)

    class Late:
        @staticmethod
        def monotonic():
            return 1e9

    kgraft.reasons.time = Late
    answer = kgraft.blocking(budget=1)
    assert "eBPF" not in answer["tasks"][0]["why"]
    assert "Not all kernel stacks were read" in answer["note"]
    assert "eBPF" in kgraft.blocking()["tasks"][0]["why"]


def test_a_wait_that_ends_in_vain_says_why(moving, clock):
    kernel, kgraft = moving
    kernel.task(731, "nfsd", blocking=True, kthread=True)
    kernel.task(732, "mine", blocking=True)
    with pytest.raises(CommandExecutionError) as late:
        kgraft.wait(timeout=1, protect="name:mine")
    nfsd, mine = late.value.info["blocking"]["tasks"]
    assert "has not come to a safe place" in nfsd["why"]
    assert "It is protected" in mine["help"]


def test_the_line_for_many_machines_stays_one_line(moving):
    kernel, kgraft = moving
    kernel.task(731, "nfsd", blocking=True, kthread=True)
    assert kgraft.summary().endswith("1 blocking: nfsd(731) kernel")


def test_the_manuals_table_is_that_of_the_module(load):
    reasons = load("docs/reasons.py")
    assert reasons.PAGE.read_text("utf-8") == reasons.page(), "run: python docs/reasons.py"
    assert reasons.page().count("\n| ") == len(reasons.rows()) + 1
    inferred = [row for row in reasons.rows() if "Probably: " in row.why + row.help]
    assert reasons.page().count("| inferred |") == len(inferred)
    assert reasons.page().count("| read |") == len(reasons.rows()) - len(inferred)
