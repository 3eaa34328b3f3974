"""
The poke: it moves sleeping tasks across the boundary; whom not, who it is, and what came of it.

``root`` is where the tasks were found, but what is done to a process knows no root: it is done only to one that has the
same start time under ``root`` and in this machine's own ``/proc``. The act itself is that of a process of its own,
``_kgraft_poker.py``.
"""

import codecs
import contextlib
import fnmatch
import os
import select
import signal
import subprocess
import sys
import time
import typing

if typing.TYPE_CHECKING:
    from . import _kgraft_files as files
    from . import _kgraft_poker as poker
    from . import _kgraft_prober as prober
    from . import _kgraft_tasks as tasks

METHODS = ("trace", "signals")

# Names and units of a cluster's and of storage's daemons: one that stands still for a moment can fence a node.
PROTECTED = ["corosync*", "sbd*", "pacemaker*", "crmd", "lrmd", "dlm_controld*", "multipathd*", "iscsid*"]
PROTECTED += ["ocssd*", "cssd*", "ctdbd*", "drbd*"]
# By signals a whole process stands still, and others can see it.
DATABASES = ["hdb*", "sapstart*"]
PROTECTED_FROM_SIGNALS = DATABASES + ["systemd*"]
MINIONS = ["salt-minion*", "venv-salt-minion*"]  # the second is the Salt Bundle's

HERE = "/"  # the root of this machine's own proc/ and sys/
AT_A_TIME = 500  # threads in one order to the process that pokes
NO_PROCESS = "this machine has no process {}"
CANNOT_TELL = "it cannot be told whether its parent would notice: {}"
REASONS = {
    "kernel": "a kernel thread crosses at its own safe places only",
    "traced": "it is traced by process {}",
    "stopped": "it was stopped by somebody else, who must continue it",
    "uninterruptible": "it sleeps uninterruptibly: nothing reaches it",
    "zombie": "it has ended: its parent must reap it; only 3.12 and early 4.4 kernels wait for that",
    "running": "it runs, and clears by itself",
    "unreachable": "it did not stop within 0.1 s",
    "lost": "the process that pokes ended before it was done",
    "other": "its number went to another process",
    "crossed": "it has crossed meanwhile",
    "probe": "it measures how long a service does not answer (kgraft_probe)",
    "still": "it was moved, and is still in the old code",
}
REASONS["ended"] = REASONS["zombie"]

# The program as it was when this room was loaded.
SOURCE = poker.__loader__.get_source(poker.__name__)

# Numbers of wait4 and waitid, whose third and fourth argument are the options (arch/*/entry/syscalls in the kernel).
WAITS = {
    "x86_64": {61: 2, 247: 3},
    "aarch64": {260: 2, 95: 3},
    "ppc64le": {114: 2, 272: 3},
    "s390x": {114: 2, 281: 3},
}
CAP_SYS_PTRACE = 19  # include/uapi/linux/capability.h


def poke(root, wanted, patterns, defaults, method, test):
    """
    The answer of ``kgraft.poke``; its arguments are checked.

    wanted
        a set of process ids, None for all that block
    patterns
        pairs of a field (``name``, ``unit``, ``user``) and a pattern: whom not
    defaults
        whether the lists of names above add to them
    """
    held = tasks.blocking(root, limit=None)
    blocking = held["tasks"]
    result = {"poked": [], "skipped": [], "vanished": [], "count": held["count"], "complete": held["complete"]}
    if wanted is not None:
        result["skipped"] = _not_blocking(root, wanted - {task["pid"] for task in blocking})
        blocking = [task for task in blocking if task["pid"] in wanted]
    if not blocking:
        return result
    must_be_possible(method)
    family = ancestors()
    patterns = patterns + default_patterns(method, defaults)
    with contextlib.closing(Poker(method)) as process:
        for task in sorted(blocking, key=lambda task: turn(task, family)):
            try:
                reason, left = refusal(root, task, patterns, family, method)
                crossed = [tid for tid in task["tids"] if tid not in left]
                if not reason and not test:
                    crossed, reason = _act(root, process, task, crossed, left)
            except FileNotFoundError:
                result["vanished"].append(task["pid"])
                continue
            except ChildProcessError as err:
                if not result["poked"]:
                    raise
                reason, left = files.message(err), {}
            except (OSError, ValueError) as err:
                reason, left = files.message(err), {}
            left = {str(tid): why for tid, why in left.items() if why}
            if not reason:
                result["poked"].append(dict(task, crossed=crossed, left=left))
            else:
                result["skipped"].append(dict(task, reason=reason, **({"left": left} if len(left) > 1 else {})))
    if result["poked"] and not test:
        _look_again(root, result)
    return result


def _act(root, process, task, tids, left):
    """The threads that were moved, and why none was; adds to ``left`` why others were not."""
    words = process.poke(task["pid"], task["start_time"], tids)
    late = [tid for tid in tids if words[tid] == "unreachable"]
    if late:
        # It was interrupted all the same: on a busy machine it may only have been slow.
        _await_crossing(root, [task["pid"]])
        still = tasks.flagged(root, task["pid"])
        words.update((tid, "moved") for tid in late if tid not in still)
    moved = [tid for tid in tids if words[tid] == "moved"]
    left.update((tid, _why_not(task["pid"], tid, word)) for tid, word in words.items() if word != "moved")
    why = next((why for why in left.values() if why), None)
    if not moved and not why:
        raise files.missing(_own(task["pid"]))
    return moved, None if moved else why


def _not_blocking(root, pids):
    skipped = []
    for pid in sorted(pids):
        task = {"pid": pid, "name": None}
        try:
            reason = "it blocks only since this look" if tasks.holds(root, pid) else "it does not block"
            task = dict(tasks.task(root, pid, [pid]), tids=[])
        except FileNotFoundError:
            reason = "there is no such process, or it cannot be seen from here"
        skipped.append(dict(task, reason=reason))
    return skipped


def _await_crossing(root, pids, timeout=1):
    """Give the poked a moment to run: the flag clears when they do, or when the kernel next looks."""
    deadline = time.monotonic() + timeout
    while pids and time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError):  # told by the look that follows
            if tasks.holds(root, pids[0]):
                time.sleep(0.01)
                continue
        pids = pids[1:]


def _look_again(root, result):
    """Tell who has really crossed: what was done to a thread proves nothing."""
    _await_crossing(root, [task["pid"] for task in result["poked"]])
    for task in result["poked"]:
        why = REASONS["still"]
        try:
            still = tasks.flagged(root, task["pid"])
        except FileNotFoundError:
            still = []
        except (OSError, ValueError) as err:
            still, why = task["crossed"], files.message(err)
        task["left"].update((str(tid), why) for tid in task["crossed"] if tid in still)
        task["crossed"] = [tid for tid in task["crossed"] if tid not in still]
    try:
        held = tasks.blocking(root, limit=1)
    except (OSError, ValueError):
        held = {"count": None, "complete": False}
    result["count"], result["complete"] = held["count"], held["complete"]


# Whom not, and in which order


def _own(*parts):
    return os.path.join(HERE, "proc", *map(str, parts))


def must_be_possible(method):
    """Refuse where a number under /proc need not be the same process for a system call, or tracing is not known."""
    here = files.required(files.link, _own("self"))
    if here != str(os.getpid()):
        raise OSError(
            f"Nobody is poked: this is process {os.getpid()}, and /proc/self {here}, of another pid namespace"
        )
    machine = os.uname().machine
    if method == "trace" and machine not in poker.MACHINES:
        raise OSError(f"Tracing is known on {', '.join(poker.MACHINES)}, not on {machine}; write method='signals'")


def default_patterns(method, names):
    globs = (PROTECTED if names else []) + ([] if method == "trace" else MINIONS)
    if names and method == "signals":
        globs = globs + PROTECTED_FROM_SIGNALS
    return [(field, glob) for glob in globs for field in ("name", "unit")]


def ancestors():
    """The ancestors of this process, in this machine's own /proc."""
    return [one.tid for one in _lineage(os.getpid())][1:]


def _lineage(pid):
    """A process and its ancestors, in this machine's own /proc, up to one that ends meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        while pid:
            one = tasks.thread(_own(pid))
            yield one
            pid = one.parent


def turn(task, family):
    """Whose turn it is: on whom all others depend comes last."""
    systems = any(fnmatch.fnmatchcase(task[field] or "", "systemd*") for field in ("name", "unit"))
    pid = task["pid"]
    return (pid == 1, pid in family or pid == os.getpid(), systems, pid)


def refusal(root, task, patterns, family, method):
    """Why a task is not poked, or None; and the reason for each thread that is left alone."""
    proc = os.path.join(root, "proc", str(task["pid"]))
    left = {}
    for thread in tasks.threads(proc, task["tids"]):
        kind = tasks.kind(thread)
        if kind != "user" or thread.letter == "R":
            left[thread.tid] = REASONS["running" if kind == "user" else kind].format(thread.tracer)
    # A signal stops all threads, so it is for a process whose threads all sleep.
    reason = None if method == "trace" and len(left) < len(task["tids"]) else next(iter(left.values()), None)
    if method == "signals":
        reason = reason or _seen_by_others(task["pid"], family)
    reason = reason or protected(proc, task, patterns) or other_process(proc, task)
    if not reason and any(one.name == prober.NAME for one in _lineage(task["pid"])):
        reason = REASONS["probe"]
    if not reason and not tasks.holds(root, task["pid"]):
        reason = REASONS["crossed"]
    return reason, left


def protected(proc, task, patterns):
    """Which pattern protects a task, as a reason; None where none does."""
    name = tasks.thread(proc).name
    # The kernel keeps 15 bytes of a name: where it may go on, what a pattern says of the rest is taken for true.
    cut = len(name) >= 15 and task["name"] == files.text(name)
    start = codecs.getincrementaldecoder("utf-8")("backslashreplace").decode(name)  # without half a letter at its end
    for field, glob in patterns:
        if field == "name" and cut:
            matches = any(fnmatch.fnmatchcase(start, glob[:end]) for end in range(1, len(glob) + 1))
        else:
            matches = fnmatch.fnmatchcase(task[field] or "", glob)
        if matches:
            return f"protected by {field}:{glob}"
    return None


def other_process(proc, task):
    """A pid is a process's name only together with its start time, in this machine's own /proc: what else it is."""
    if tasks.thread(proc).start_time != task["start_time"]:
        raise files.missing(proc)
    try:
        start_time = tasks.thread(_own(task["pid"])).start_time
    except FileNotFoundError:
        if files.is_gone(proc):
            raise
        return NO_PROCESS.format(task["pid"])
    if start_time != task["start_time"]:
        return "its start time is not that of pid {} on this machine: another process".format(task["pid"])
    return None


def _seen_by_others(pid, family):
    """Why a process may not be stopped by a signal for a moment, whatever its name; None if it may."""
    if pid == 1:
        return "pid 1 takes no signals"
    if pid == os.getpid() or pid in family:
        return "it is this process or an ancestor of it"
    try:
        parent = tasks.thread(_own(pid)).parent
        # Init asks for the ends of its children only.
        return _notices(parent) if parent > 1 else None
    except FileNotFoundError as err:
        # Either it has ended, which its identity will tell, or its parent has, and it has another one now.
        return None if files.is_gone(_own(pid)) else CANNOT_TELL.format(files.message(err))
    except (OSError, ValueError) as err:
        return CANNOT_TELL.format(files.message(err))


def _notices(parent):
    """How a parent can see that a child stops and goes on."""
    proc = _own(parent)
    who = f"its parent {files.text(tasks.thread(proc).name)}({parent})"
    chld = 1 << (signal.SIGCHLD - 1)
    if any(int(tasks.status(proc, mask), 16) & chld for mask in (b"SigBlk", b"SigCgt")):
        return f"{who} catches or blocks SIGCHLD: it may notice"
    waits = WAITS.get(os.uname().machine, {})
    for tid in files.directories(os.path.join(proc, "task")):
        # "running", a kernel without this file, or code that lies low, as in a 32-bit program, whose numbers are others
        number, *rest = (files.optional(files.word, os.path.join(proc, "task", tid, "syscall")) or "running").split()
        if not waits or not rest or int(rest[-1], 16) < 1 << 32:
            return f"it cannot be told whether {who} would notice"
        options = int(rest[waits[int(number)]], 16) if int(number) in waits else 0
        if options & (os.WUNTRACED | os.WCONTINUED):
            return f"{who} waits for stops (WUNTRACED): it would notice"
    return None


def _why_not(pid, tid, word):
    """Why a thread was not moved, in words; None if it has ended."""
    if word == "gone":
        return None
    if word == "EPERM":
        try:
            return _no_right(_own(pid, "task", tid))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            pass  # then the kernel's own word is all there is
    return REASONS.get(word, f"the kernel refuses: {word}")


def _no_right(thread):
    tracer = int(tasks.status(thread, b"TracerPid"))
    if tracer:
        return REASONS["traced"].format(tracer)
    if _setting("proc/sys/kernel/yama/ptrace_scope") == "3":
        return "Yama forbids all tracing (kernel.yama.ptrace_scope is 3)"
    if not int(tasks.status(_own("self"), b"CapEff"), 16) >> CAP_SYS_PTRACE & 1:
        return "no right to trace it: CAP_SYS_PTRACE is missing"
    if _setting("sys/fs/selinux/booleans/deny_ptrace").startswith("1"):
        return "SELinux forbids tracing (deny_ptrace)"
    return "the kernel refuses: EPERM"


def _setting(path):
    """The text in a file of this machine; none where the kernel lacks what it is about."""
    try:
        return files.word(os.path.join(HERE, path))
    except FileNotFoundError:
        return ""


# The process that does it


class Poker:
    """``_kgraft_poker.py`` at work: started when it is first needed, and again where it had to end."""

    def __init__(self, method):
        self.method = method
        self.process = None
        self.broken = None  # why it does not start
        self.stopped = None  # (pid, start time): who may stand still by our signal

    def poke(self, pid, start_time, tids):
        """{tid: word}, see ``_kgraft_poker.py``; ``lost`` where the process ended on the way."""
        words = {}
        while len(words) < len(tids):
            todo = tids[len(words) :][:AT_A_TIME]
            if self.process is None:
                self._start()
            self.stopped = (pid, start_time)
            answer = self._ask("{} {} {}\n".format(pid, start_time, " ".join(map(str, todo))), 2 + 0.2 * len(todo))
            told = [pair.partition(":")[2] for pair in answer.split()]
            if answer:
                self.stopped = None
            if len(told) < len(todo) or told[-1] in poker.LAST:
                self.close()
            words.update(zip(todo, told or ["lost"] * len(todo)))
        return words

    def _start(self):
        if not self.broken:
            try:
                self.process = subprocess.Popen(  # exec, not fork: a minion has threads
                    [sys.executable, "-I", "-S", "-c", SOURCE, self.method, str(os.getpid())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    bufsize=0,
                    start_new_session=True,
                )
            except OSError as err:
                self.broken = f"Cannot start the process that pokes: {err.strerror}"
            else:
                if self._ask("", 10) == "ready\n":
                    return
                self.broken = "The process that pokes did not start within 10 s"
                self.close()
        raise ChildProcessError(self.broken)

    def _ask(self, order, timeout):
        """Its next line; empty if it ended or did not answer in time."""
        deadline, answer = time.monotonic() + timeout, b""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(order.encode())
        poll = select.poll()  # select() takes no descriptor above 1023
        poll.register(self.process.stdout, select.POLLIN)
        while not answer.endswith(b"\n"):
            if not poll.poll(max(0, deadline - time.monotonic()) * 1000):
                return ""
            chunk = os.read(self.process.stdout.fileno(), 65536)
            if not chunk:
                return ""
            answer += chunk
        return answer.decode()

    def close(self):
        """End it; who it traced is freed by the kernel, who stands still by its signal is continued here."""
        process, self.process = self.process, None
        if process is None:
            return
        process.stdin.close()
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        # One that came to its own end has continued whom it stopped.
        if self.stopped and self.method == "signals" and process.returncode:
            pid, start_time = self.stopped
            with contextlib.suppress(OSError, ValueError):
                if tasks.thread(_own(pid)).start_time == start_time:
                    os.kill(pid, signal.SIGCONT)
        self.stopped = None
