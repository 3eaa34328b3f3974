"""
Why a task blocks and what to do about it: one table, a row for each reason that somebody has found.

A row fits where all of its signs do; the first that fits is told, so stacks come before names, and names before kinds.
A sentence that nobody has read or run, but which follows from what was read, begins with ``Probably:``. The manual's
table is made of these rows, and ``tests/unit/test_kgraft_reasons.py`` has a case for each.
"""

import fnmatch
import os
import re
import time
import typing
from collections import namedtuple

if typing.TYPE_CHECKING:
    from . import _kgraft_files as files
    from . import _kgraft_kernel as kernel
    from . import _kgraft_poke as poking
    from . import _kgraft_tasks as tasks

# Signs, which must all be there:
#   kind, letter, pid, abi   as kgraft.blocking and kgraft.abi give them
#   name    a pattern for the name of the process or of a flagged thread
#   stack   patterns for a function on the kernel stack of a thread that has not crossed
#   foreign a function there is of a module that was not built with the kernel, and is no live patch
#   nobody  the list is empty
#   before  the first release of the kernel that does not have it
# elsewhere: the advice does nothing to the task itself, so it holds for a protected one, too.
Row = namedtuple("Row", "why help source elsewhere signs")

# The taints of a module (Documentation/admin-guide/tainted-kernels.rst): proprietary, and built outside of the kernel's
# tree. SUSE's X is none of them: modules of its own kernel have it, which a partner supports, as hv_netvsc.
FOREIGN = "PO"

PROTECTED = (
    "It is protected: do not restart it, and send it no signal. Wait. If it must go, put the cluster into maintenance"
    " mode first."
)
UNSEEN = "Not everything could be read or seen: what is in no list may block."
NO_STACKS = "Not all kernel stacks were read. They may tell more; only root may read them."

# A line of a stack: "[<0>] function.isra.0+0x6b/0x90 [module]"
FRAME = re.compile(r"\] ([^\s.+]+)(?:\.[^\s+]*)?\+0x\S+(?: \[(\w+)\])?$")

# Kernel threads of clusters, their storage, and watchdogs, beside the daemons that a poke spares.
CLUSTERS = ["dlm*", "o2*", "ocfs2*", "gfs2*", "watchdog*", "iscsi*", "kmpath*"]

THREADS = 16  # of a process, at most, are looked at more closely


def _row(signs, why, help, source, elsewhere=False):
    return Row(why, help, source, elsewhere, dict(sign.split("=") for sign in signs.split()))


UNSAFE = (
    "This kernel thread has no safe place to cross at in older kernels of SLES 12.",
    "Wait for the end of its work, or reboot when you may. A later kernel has the mend.",
)
PARKED = "parked, as with swap on NFS: not even a reversal of the patch ends then."
UNPARK = "Ask who owns the share; swapoff what lies there, or unmount it."
VCPU = (
    " Before the kernels of 2022 the kernel's signal makes it leave the guest, but not the kernel; one that never"
    " leaves its processor (isolcpus or nohz_full, and idle=poll in the guest) still blocks.",
    "Ask who owns the guest. Probably: pause the guest for a moment and resume it (virsh suspend, virsh resume), but"
    " not a guest that is a node of a cluster: it may be fenced.",
    "live-patching list, 2022 and 2026-02-02",
)

ROWS = (
    _row(
        "stack=bpf_trampoline_* abi=livepatch",
        "A program of eBPF is on its stack, such as a security or tracing agent attaches (fexit, fmod_ret): the kernel"
        " cannot trust a stack with one, and does not let the task cross.",
        "Ask who owns the agent. Unless it is protected itself: stop it, let the patch settle, start it again. A signal"
        " does not help a kernel thread. Before the kernels of late 2025 (56b3c85e153b) an agent may not start after a"
        " live patch.",
        "linux-kernel, 2025-11-20, M. Benes",
        elsewhere=True,
    ),
    _row(
        "stack=return_to_handler,ftrace_graph_caller,*kretprobe_trampoline,*rethook_trampoline",
        "A tracer is on its stack (function_graph, a kretprobe): it blocks until the task leaves that function.",
        "Ask who traces, and stop the tracer.",
        "SUSE/qa_test_klp, TC10 and TC12",
        elsewhere=True,
    ),
    _row(
        "stack=do_exit,do_group_exit abi=livepatch",
        "Probably: the patch changes the way on which this task ends (do_exit).",
        "Wait until it has ended. Leave the kernel's debug output of klp_try_switch_task off: it can lock up the"
        " machine.",
        "linux-kernel, 2025, an excerpt",
    ),
    _row(
        "kind=kernel stack=nfs4_state_manager,nfs4_run_state_manager abi=livepatch",
        f"NFS 4 keeps this thread {PARKED}",
        UNPARK,
        "vpsfreecz/vpsadminos",
    ),
    _row(
        "kind=kernel foreign=True",
        "This kernel thread is in {module}, a module that was not built with the kernel: its vendor has given it no"
        " safe place to cross at.",
        "Ask its vendor, or who owns it here; stop the service that uses {module}, or unload it.",
        "SUSE's guide; bnc#962336, bnc#904871, bnc#906140",
    ),
    _row(
        "kind=uninterruptible foreign=True",
        "It waits in {module}, a module that was not built with the kernel, where no signal reaches it.",
        "Ask its vendor, or who owns it here; mend what it waits for.",
        "SUSE/qa_test_klp, TC11, measured",
        elsewhere=True,
    ),
    _row("name=CPU?*/KVM abi=livepatch", "The machine of a guest runs on it." + VCPU[0], *VCPU[1:]),
    # kvm and system, not qemu-ga, which is in the guest
    _row("kind=user name=qemu-[ks]* abi=livepatch", "Probably: a guest's machine runs on it." + VCPU[0], *VCPU[1:]),
    _row(
        "kind=kernel name=vhost-[0-9]* before=6.4 abi=livepatch",
        "This thread serves the network of a guest. Probably: it is too busy to come to a safe place.",
        "Ask who owns the guest; quieten its network. 6.4 has the mend (05bfb338fa8d).",
        "live-patching list",
    ),
    _row(
        "kind=kernel name=khugepaged abi=livepatch",
        "Probably: it is in the memory management that the patch changes.",
        "Probably: write never to /sys/kernel/mm/transparent_hugepage/enabled for a minute, then what was there.",
        "dynup/kpatch#982",
    ),
    _row(
        "kind=user pid=1 before=5.1 abi=livepatch",
        "Process 1 sleeps until something happens, and ignores SIGSTOP. The kernel wakes sleepers itself from 5.1 on."
        " Probably: SUSE's 4.12, too, in updates since 2019.",
        "Run kgraft.poke pids=1, which traces it. Probably: any event wakes it, such as systemctl daemon-reload.",
        "dynup/kpatch#751, #753; bsc#1071995 (openSUSE-2019-1193)",
    ),
    # its name begins with the address of the server, and is cut at 15 bytes
    _row(
        "kind=kernel name=[0-9a-f]*[.:]*-m* abi=livepatch",
        f"Probably: this is the state manager of NFS 4, which is kept {PARKED}",
        UNPARK,
        "vpsfreecz/vpsadminos",
    ),
    _row("kind=kernel name=hwrng before=3.12.58 abi=kgraft", *UNSAFE, "SUSE's changes of 3.12.58"),
    _row("kind=kernel name=btrfs-* abi=kgraft", *UNSAFE, "bnc#889207"),
    _row("kind=kernel name=usb-storage abi=kgraft", *UNSAFE, "bnc#899908"),
    _row("kind=kernel name=kmemleak abi=kgraft", *UNSAFE, "SUSE's kernel changes"),
    _row("kind=kernel name=blkback.* abi=kgraft", *UNSAFE, "SUSE's kernel changes, XEN blkif"),
    _row("kind=kernel name=*.xvd[a-z]*-* abi=kgraft", *UNSAFE, "SUSE's kernel changes, XEN blkif"),
    _row("kind=kernel name=eehd abi=kgraft", *UNSAFE, "bsc#1031662, an excerpt"),
    _row(
        "kind=kernel name=gfs2_logd abi=kgraft",
        "The log daemon of GFS2 waits long in its loop.",
        "Wait: it passes. A later kernel of SLES 12 waits less.",
        "SUSE's kernel changes",
        elsewhere=True,
    ),
    _row(
        "kind=kernel letter=R abi=livepatch",
        "This kernel thread runs: it crosses only when it is found off its processor.",
        "Lower what loads it; it passes when it sleeps.",
        "live-patching list",
    ),
    _row(
        "kind=kernel",
        "This kernel thread has not come to a safe place, and no signal reaches it.",
        "Ask who owns it. Then stop the service, or unload the module that it belongs to, or reboot when you may.",
        "kernel/kgraft.c, kernel/livepatch/transition.c",
    ),
    _row(
        "kind=traced",
        "A debugger or a tracer such as strace holds it.",
        "Ask who traces it, and end the tracer.",
        "kernel/livepatch/transition.c, measured",
        elsewhere=True,
    ),
    _row(
        "kind=stopped",
        "It is stopped, by SIGSTOP or at a terminal.",
        "Ask who stopped it; continue it (kill -CONT), or end it.",
        "measured",
    ),
    _row(
        "kind=uninterruptible",
        "It waits for a device, a file system (NFS, FUSE), a page or a child (vfork), where no signal reaches it.",
        "Mend what it waits for.",
        "SUSE/qa_test_klp, TC11",
        elsewhere=True,
    ),
    _row(
        "kind=zombie abi=kgraft",
        "It has ended, and its parent did not reap it. Only 3.12 and early 4.4 kernels wait for it.",
        "Ask who owns its parent, which must reap it.",
        "kernel/kgraft.c",
    ),
    _row(
        "kind=user letter=R",
        "It runs.",
        "Wait: it crosses when it next enters or leaves the kernel.",
        "kernel/kgraft.c, kernel/livepatch/transition.c",
    ),
    _row(
        "kind=user abi=kgraft",
        "It sleeps in the kernel since before the patch.",
        "Run kgraft.poke pids=PID, or set poke_after.",
        "measured",
    ),
    _row(
        "kind=user before=5.1 abi=livepatch",
        "It sleeps in the kernel since before the patch.",
        "Run kgraft.poke pids=PID. Probably: the kernel wakes it by itself, too, if it is an update of 4.12 since"
        " 2019.",
        "dynup/kpatch#751; bsc#1071995 (openSUSE-2019-1193)",
    ),
    _row(
        "kind=user abi=livepatch",
        "It sleeps in the kernel since before the patch. Probably: in a function that the patch changes.",
        "Wait: the kernel wakes it every 15 s by itself.",
        "kernel/livepatch/transition.c",
    ),
    _row(
        "nobody=True abi=livepatch",
        "Nobody is seen to block. The kernel looks for the end every second; and processors that do nothing are"
        " part of what it looks at (swapper/N), and are in no list.",
        "Wait for two looks. Probably: then run something on every processor (taskset -c N true).",
        "kernel/livepatch/transition.c",
    ),
    _row(
        "nobody=True abi=kgraft",
        "Nobody is seen to block. The kernel looks for the end every 2 s.",
        "Wait.",
        "kernel/kgraft.c",
    ),
)


def explained(root, answer, patterns, until=None):
    """
    An answer of ``tasks.blocking``, each task with ``why`` and ``help``, and with a ``note`` on the whole.

    patterns
        pairs of a field and a pattern, as for a poke: whom nobody should touch, beside what belongs to clusters, to
        their storage, and to HANA
    until
        no stack is read after this moment of the monotonic clock; None for no end
    """
    notes = []
    if answer["state"] == "in_progress":
        look = kernel.available(root)
        release = files.word(os.path.join(root, "proc/sys/kernel/osrelease"))
        globs = poking.PROTECTED + poking.DATABASES + CLUSTERS
        patterns = patterns + [(field, glob) for glob in globs for field in ("name", "unit")]
        for task in answer["tasks"]:
            seen, unread = _look_at(root, task, until)
            task["why"], task["help"] = explain(root, look, release, seen, _is_protected(root, task, patterns))
            notes += [NO_STACKS] if unread and NO_STACKS not in notes else []
        if not answer["complete"]:
            notes.append(UNSEEN)
        if not answer["count"]:
            notes += explain(root, look, release, {"nobody": True})
    return dict(answer, note=" ".join(notes) or None)


def _look_at(root, task, until):
    """What can be seen of the signs, and whether a stack could not be read."""
    proc = os.path.join(root, "proc", str(task["pid"]))
    seen, unread = dict(task, names=[task["name"]], stack=[]), len(task["tids"]) > THREADS
    for tid in task["tids"][:THREADS]:
        try:
            seen["names"].append(files.text(tasks.thread(proc, tid).name))
            if until is not None and time.monotonic() > until:
                unread = True
            else:
                seen["stack"] += tasks.stack(proc, tid)
        except FileNotFoundError:  # it has ended, or this kernel shows no stacks
            continue
        except (OSError, ValueError):
            unread = True
    return seen, unread


def _is_protected(root, task, patterns):
    """Whether nobody should touch it, which is also so where that cannot be told."""
    try:
        return poking.protected(os.path.join(root, "proc", str(task["pid"])), task, patterns) is not None
    except (OSError, ValueError):
        return True


def explain(root, look, release, seen, protected=False):
    """
    The reason and the advice, ``(why, help)``; None for what is not known.

    seen
        what there is to see of the signs, of which ``names`` and ``stack`` are lists
    """
    seen = dict({"names": [], "stack": []}, **seen)
    frames = [match.groups() for match in map(FRAME.search, seen["stack"]) if match]
    seen.update(look=look, abi=look.kernel.abi, release=_release(release), frames=frames)
    for row in ROWS:
        module = _fits(root, row.signs, seen)
        if module is not None:
            why, help = row.why.format(module=module), row.help.format(module=module)
            if protected:
                help = f"{PROTECTED} {help}" if row.elsewhere else PROTECTED
            return why, help
    return None, PROTECTED if protected else None


def _fits(root, signs, seen):
    """Whether all signs fit: the foreign module on the stack, "" where none is asked for; None if they do not."""
    plain = ("kind", "letter", "pid", "abi", "nobody")
    if any(str(seen.get(sign)) != signs[sign] for sign in plain if sign in signs):
        return None
    if "before" in signs and not (seen["release"] and seen["release"] < _release(signs["before"])):
        return None
    if "name" in signs and not any(fnmatch.fnmatchcase(name, signs["name"]) for name in seen["names"]):
        return None
    globs = signs["stack"].split(",") if "stack" in signs else []
    if globs and not any(fnmatch.fnmatchcase(function, glob) for function, _ in seen["frames"] for glob in globs):
        return None
    if "foreign" not in signs:
        return ""
    return next((module for _, module in seen["frames"] if module and _is_foreign(root, seen["look"], module)), None)


def _is_foreign(root, look, module):
    try:
        taint = files.word(os.path.join(root, "sys/module", module, "taint"))
    except OSError:
        return False
    # kGraft's patches need not have the taint K
    is_patch = "K" in taint or kernel.find(look, module) is not None
    return not is_patch and any(letter in taint for letter in FOREIGN)


def _release(text):
    """The numbers that a release begins with, None for a text that begins with none."""
    numbers = re.match(r"[0-9]+(\.[0-9]+)*", text)
    return tuple(int(number) for number in numbers.group().split(".")) if numbers else None
