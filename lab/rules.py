"""
What a kernel with live patching does, and when: patches begin, tasks cross, transitions end.

``Rules`` decides, ``files.Kernel`` shows it, ``procfs.Processes`` tells what the watched tasks really did. The clock is
an argument. What is refused raises ``OSError`` with the kernel's own number.
"""

import errno
import os
import re
import time

from lab.files import module_name

SIGNAL_EVERY = 15  # upstream livepatch: checks from one fake signal to the next
MODULE = re.compile(r"\w[\w.+-]{0,54}", re.ASCII)  # what may be the name of one, and is only a name as a path, too
ASLEEP = "SR"  # what the fake signal moves: ordinary sleepers and what runs anyway; not D, T, t, Z


def refuse(number, why):
    raise OSError(number, f"{os.strerror(number)}: {why}")


class Rules:
    """
    One kernel.

    period
        seconds between two checks whether the transition can end
    fake_signal
        the kernel wakes sleepers itself, at each check (kGraft) or each 15th (livepatch). Nothing is sent here:
        ordinary sleepers count as crossed then, for a stop could outlive a lab that is killed before it continues them
    old
        kGraft on 3.12: a zombie holds the end up
    stuck_threads
        names of kernel threads that have no safe place
    """

    def __init__(
        self,
        kernel,
        processes,
        *,
        period,
        fake_signal=False,
        old=False,
        stuck_threads=(),
        clock=time.monotonic,
        log=lambda line: None,
    ):
        self.kernel = kernel
        self.processes = processes
        self.period = period
        self.fake_signal = fake_signal
        self.old = old
        self.clock = clock
        self.log = log
        self.running = None  # the patch in transition
        self.due = None  # when the next check is
        self.checks = 0
        self.baseline = {}  # {pid: {tid: switches}} of the flagged threads
        self.start_times = {}
        self.stuck = {}
        for pid, name in enumerate(stuck_threads, _first_free_pid()):
            # Made up: counters cannot show such a thread, and no signal must ever find one.
            self.stuck[name] = pid
            kernel.task(pid, name, kthread=True, stack=f"[<0>] {name}+0x42/0x80\n[<0>] kthread+0xd0/0x100\n")

    # -- orders

    def load(self, name, **patch):
        """insmod: begin to apply a patch."""
        if not MODULE.fullmatch(name):
            refuse(errno.EINVAL, f"{name!r} is no name of a module")
        if self.find(name):
            refuse(errno.EEXIST, f"{name} is loaded")
        if self.running:
            self._appear_for_a_moment(name, patch)
            self._refuse_while_one_runs()
        self._say(f"kgr: applying patch '{name}'", f"livepatch: enabling patch '{module_name(name)}'")
        self._flag_all()
        self.kernel.start(name, **patch)
        self._begin(name)

    def revert(self, name):
        """A byte written to ``revert`` (kGraft), ``0`` to ``enabled`` (livepatch)."""
        patch = self.find(name) or refuse(errno.ENOENT, f"{name} is not loaded")
        if self.kernel.abi == "livepatch" and self.running is patch and patch.state == "applying":
            self._reverse(patch)
            return
        if self.kernel.abi == "kgraft" and patch.refs:
            self._cannot_patch(errno.EBUSY, "this patch is still referenced")
        if self.running:
            self._refuse_while_one_runs()
        if not patch.active:
            self._cannot_patch(errno.EINVAL, "this one was already reverted")
        self._say(
            f"kgr: reverting patch '{patch.name}'", f"livepatch: '{patch.module}': starting unpatching transition"
        )
        self._flag_all()
        self.kernel.revert(patch.name)
        self._begin(patch.name)

    def unload(self, name):
        """rmmod."""
        patch = self.find(name) or refuse(errno.ENOENT, f"{name} is not loaded")
        if patch.active:
            refuse(errno.EAGAIN, f"{name} is in use")
        self.kernel.remove(patch.name)

    def drop_flags(self):
        """``0`` written to kGraft's ``in_progress``: every flag goes, also one left over from before."""
        self._cross()
        self.log("kgr: all processes marked as migrated on admin's request")

    def force(self, name):
        """``1`` written to livepatch's ``force``."""
        patch = self.find(name)
        if not self.running or patch is not self.running:
            refuse(errno.EINVAL, f"{name} is not in transition")
        self.log("livepatch: forcing remaining tasks to the patched state")
        self._cross()

    def enable(self, name, value):
        """Any digit written to livepatch's ``enabled``; ``value`` is what it becomes."""
        patch = self.find(name) or refuse(errno.ENOENT, f"{name} is not loaded")
        if value == patch.enabled:
            refuse(errno.EINVAL, f"enabled is {int(value)} already")
        if not value:
            self.revert(name)
        elif self.running is patch:
            self._reverse(patch)
        else:
            refuse(errno.EINVAL, f"{name} was disabled: unload and load it again")

    def unstick(self, name):
        """The kernel thread ``name`` reaches a safe place after all."""
        pid = self.stuck.get(name) or refuse(errno.ESRCH, f"no kernel thread {name}")
        self.kernel.flag(pid, False)

    # -- time passes

    def tick(self):
        """Look at the flagged threads, and check for the end when it is time."""
        self._look()
        if self.running and self.clock() >= self.due:
            self._check()

    def find(self, name):
        """The loaded patch of this name in any spelling, or None."""
        for patch in self.kernel.patches.values():
            if patch.module == module_name(name):
                return patch
        return None

    def _blocked(self):
        """Something holds up the end."""
        threads = [thread for task in self.kernel.tasks.values() for thread in task.threads.values()]
        return any(thread.blocking and (self.old or thread.letter != "Z") for thread in threads)

    def _refuse_while_one_runs(self):
        number = errno.EBUSY if self.kernel.abi == "livepatch" else errno.EAGAIN
        self._cannot_patch(number, "another patching not yet finalized")

    def _cannot_patch(self, number, why):
        self._say(f"kgr: can't patch, {why}", "")
        refuse(number, why)

    def _say(self, kgraft, livepatch):
        line = kgraft if self.kernel.abi == "kgraft" else livepatch
        if line:
            self.log(line)

    def _appear_for_a_moment(self, name, patch):
        if self.kernel.abi == "kgraft":
            self.kernel.patch(name, "inactive", **dict(patch, functions=[("vmlinux", "cmdline_proc_show", 0, 0)]))
            self.kernel.remove(name)

    def _begin(self, name):
        self.running = self.kernel.patches[name]
        self.checks = 0
        self.due = self.clock() + self.period
        if self.kernel.abi == "livepatch":
            if self.running.state == "applying":
                self.log(f"livepatch: '{self.running.module}': starting patching transition")
            if not self._blocked():
                self._end()  # it tries at once, kGraft waits for its first check

    def _flag_all(self):
        """The counters first, then the flags: what moves in between did cross."""
        self.baseline = {}
        for pid, start_time in self._watched().items():
            looks = {tid: self.processes.look(pid, tid) for tid in self.processes.threads(pid)}
            looks = {tid: look for tid, look in looks.items() if look}
            if self.kernel.abi == "livepatch":  # a dead task has no stack that could hold an old function
                flags = {tid: letter != "Z" for tid, (letter, _) in looks.items()}
            else:
                flags = dict.fromkeys(looks, True)
            if not looks:
                self._forget(pid)
                continue
            self.start_times[pid] = start_time
            # A zombie may still be switched away from for the last time: it is not looked at any more.
            self.baseline[pid] = {tid: switches for tid, (letter, switches) in looks.items() if letter != "Z"}
            self.kernel.real(pid, flags)
            for tid, (letter, _) in looks.items():
                self.kernel.tasks[pid].threads[tid].letter = letter
        for pid in self.stuck.values():
            self.kernel.flag(pid, True)

    def _watched(self):
        """``{pid: start time}`` of each watched process; those that are gone since the last time are forgotten."""
        watched = self.processes.watched()
        for pid in list(self.start_times):
            if watched.get(pid) != self.start_times[pid]:
                self._forget(pid)
        return watched

    def _forget(self, pid):
        self.start_times.pop(pid, None)
        self.baseline.pop(pid, None)
        if pid in self.kernel.tasks:
            self.kernel.exit(pid)

    def show(self):
        """Let the tree have each watched process: new ones have crossed, gone ones vanish."""
        for pid, start_time in self._watched().items():
            known = self.kernel.tasks[pid].threads if pid in self.kernel.tasks else {}
            threads = self.processes.threads(pid)
            if threads and set(threads) != set(known):
                self.start_times[pid] = start_time
                flags = {tid: tid in known and known[tid].blocking for tid in threads}
                self.kernel.real(pid, flags)

    def _look(self):
        for pid, counters in list(self.baseline.items()):
            for tid, switches in list(counters.items()):
                look = self.processes.look(pid, tid)
                if look is None:
                    self._forget_thread(pid, tid)
                    continue
                self.kernel.tasks[pid].threads[tid].letter = look[0]
                if look[1] != switches:
                    self._clear(pid, tid)

    def _forget_thread(self, pid, tid):
        if not self.processes.threads(pid):
            self._forget(pid)
            return
        del self.baseline[pid][tid]
        known = self.kernel.tasks[pid].threads
        self.kernel.real(pid, {one: thread.blocking for one, thread in known.items() if one != tid})

    def _clear(self, pid, tid):
        self.baseline.get(pid, {}).pop(tid, None)
        self.kernel.flag(pid, False, tid)

    def _cross(self, crosses=lambda pid, thread: True):
        for pid, task in list(self.kernel.tasks.items()):
            for tid, thread in list(task.threads.items()):
                if thread.blocking and crosses(pid, thread):
                    self._clear(pid, tid)

    def _check(self):
        self.due = self.clock() + self.period
        self.checks += 1
        if not self._blocked():
            self._end()
            return
        if self.checks == 1:
            self._say(f"kgr: still in progress after timeout, will keep trying every {self.period:g} seconds", "")
        if self.fake_signal and (self.kernel.abi == "kgraft" or self.checks % SIGNAL_EVERY == 0):
            self._say("", "livepatch: signaling remaining tasks")
            own = set(self.stuck.values())
            self._cross(lambda pid, thread: pid not in own and thread.letter in ASLEEP)

    def _reverse(self, patch):
        """Who had not crossed yet need not go back, and the others can: nobody sleeps in the new code."""
        self.log(f"livepatch: '{patch.module}': reversing transition")
        self._cross()
        self.kernel.change(patch.name, "reverting" if patch.state == "applying" else "applying")
        self.due = self.clock() + self.period

    def _end(self):
        word = "unpatching" if self.running.state == "reverting" else "patching"
        self._say("kgr: patching succeeded", f"livepatch: '{self.running.module}': {word} complete")
        self.kernel.finish()
        self.running = self.due = None
        self.baseline = {}


def _first_free_pid():
    try:
        with open("/proc/sys/kernel/pid_max", encoding="ascii") as limit:
            return int(limit.read()) + 1
    except OSError:
        return 4194305
