"""
The files that a kernel with live patching shows, written by hand: no processes, no rules, no clock.

``Kernel`` keeps ``<root>/sys`` and ``<root>/proc`` for unit tests and for the lab. It knows each generation of kGraft
and of upstream livepatch that differs in its files. A reader at work sees whole files only, as with a kernel:
everything is written under ``<root>/.new`` and renamed into place, but for one digit that takes the place of another.
"""

import contextlib
import itertools
import os
import shutil
import stat
from pathlib import Path

BOOT_ID = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
INIT_PID_NAMESPACE = "pid:[4026531836]"
PAGE = 4096
PF_KTHREAD = 0x00200000
FUNCTION_STATE = {"applying": 1, "applied": 2, "reverting": 3, "inactive": 4}
SKIPPED = 5  # the function's module is not loaded
LETTER_NAMES = {
    "R": "running",
    "S": "sleeping",
    "D": "disk sleep",
    "T": "stopped",
    "t": "tracing stop",
    "Z": "zombie",
    "X": "dead",
    "I": "idle",
}
COLUMN = {
    "Function": "{:<20}",
    "Object": "{:<20}",
    "Sympos": "{:>6}",
    "Weak": "{:>4}",
    "State": "{:>5}",
    "Fatal": "{:>5}",
}


def module_name(patch):
    """The module behind a patch's name: the kernel folds dashes (and SUSE's tools dots) to underscores."""
    return patch.replace("-", "_").replace(".", "_")


def _bytes(content):
    return content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape")


class Patch:
    """What the kernel holds about one loaded patch."""

    def __init__(self, name, state, functions, refs, replace_all):
        self.name = name
        self.module = module_name(name)
        self.state = state
        self.functions = functions
        self.refs = refs
        self.replace_all = replace_all

    @property
    def active(self):
        return self.state != "inactive"

    @property
    def enabled(self):
        return self.state in ("applying", "applied")

    @property
    def transition(self):
        return self.state in ("applying", "reverting")

    def rows(self):
        """``(object, name, sympos, state number)`` of each function; given ones are shown as given."""
        if self.functions is None:
            return [("vmlinux", "cmdline_proc_show", 0, FUNCTION_STATE[self.state])]
        return self.functions


class Thread:
    def __init__(self, blocking=False, letter="S", tracer=0):
        self.blocking = blocking
        self.letter = letter
        self.tracer = tracer


class Task:
    """A process: its leader and other threads, and what is common to them."""

    def __init__(self, pid, threads, **details):
        self.pid = pid
        self.threads = threads
        self.__dict__.update(details)


class Kernel:
    """
    A kernel made of files under ``root``.

    abi
        ``kgraft``, ``livepatch``, ``both`` (an empty livepatch directory beside kGraft) or None (neither)
    force_load_module, in_progress_mode, heading, task_flags
        the generations of kGraft; the oldest are ``False``, ``0o444``, ``"Function Weak State"`` and ``False``
        (no ``task/<tid>/kgr_in_progress``, leaders only)
    transition, replace, stack_order, patched
        which files a livepatch has; ``transition=False`` is 4.0 to 4.11, which also has no ``patch_state``
    """

    def __init__(
        self,
        root,
        abi="kgraft",
        *,
        release="4.4.180-94.100-default",
        boot_id=BOOT_ID,
        force_load_module=True,
        in_progress_mode=0o644,
        heading="Function Object Sympos State",
        task_flags=True,
        transition=True,
        replace=True,
        stack_order=False,
        patched=True,
    ):
        if abi not in ("kgraft", "livepatch", "both", None):
            raise ValueError(f"abi {abi!r}: kgraft, livepatch, both or None")
        self.root = Path(root).absolute()
        self.abi = "kgraft" if abi == "both" else abi
        self.release = release
        self.boot_id = boot_id
        self.heading = heading.split()
        self.in_progress_mode = in_progress_mode
        self.task_flags = task_flags
        self.has_transition = transition
        self.has_replace = replace
        self.has_stack_order = stack_order
        self.has_patched = patched
        self.patches = {}  # by name, oldest first
        self.tasks = {}
        self._numbers = itertools.count()
        self._new = self.root / ".new"
        self._new.mkdir(parents=True, exist_ok=True)
        self.sys = self.root / "sys/kernel"
        self.proc = self.root / "proc"

        self.sys.mkdir(parents=True, exist_ok=True)
        (self.root / "sys/module").mkdir(exist_ok=True)
        self.write("proc/sys/kernel/osrelease", release + "\n")
        self.write("proc/sys/kernel/random/boot_id", boot_id + "\n")
        self._write_modules()
        if self.abi == "kgraft":
            self.in_progress(False)
            if force_load_module:
                self.write("sys/kernel/kgraft/force_load_module", "0\n", 0o644)
        if abi in ("livepatch", "both"):
            (self.sys / "livepatch").mkdir(exist_ok=True)
        self.task(1, "systemd", start_time=1, unit="init.scope")
        self.task(2, "kthreadd", kthread=True, start_time=1)
        (self.proc / "1/ns").mkdir(exist_ok=True)
        self.link("proc/1/ns/pid", INIT_PID_NAMESPACE)

    # -- whole files only

    def write(self, path, content, mode=0o444):
        """Put ``content`` (text or bytes) at ``path`` under the root in one step."""
        content = _bytes(content)
        target = self.root / path
        if len(content) != 2 or not self._overwrite(target, content):
            target.parent.mkdir(parents=True, exist_ok=True)
            fresh = self._fresh()
            self._fill(fresh, content, mode)
            os.replace(fresh, target)

    @staticmethod
    def _overwrite(path, content):
        """Write where a file of this length is, if one is: who holds it open (to write to it) keeps the right file."""
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            about = os.fstat(descriptor)
            return stat.S_ISREG(about.st_mode) and about.st_size == len(content) == os.write(descriptor, content)
        finally:
            os.close(descriptor)

    def link(self, path, destination):
        """Put a symbolic link at ``path`` under the root in one step."""
        fresh = self._fresh()
        os.symlink(destination, fresh)
        os.replace(fresh, self.root / path)

    def _fresh(self):
        return self._new / str(next(self._numbers))

    @staticmethod
    def _fill(path, content, mode):
        with open(path, "wb") as new:
            new.write(_bytes(content))
        os.chmod(path, mode)

    def _write_tree(self, path, files):
        """``files``: {relative path: (content, mode)}; None as content is an empty directory, a Path a link."""
        target = self.root / path
        place = target if target.exists() else self._fresh()
        for name, (content, mode) in files.items():
            one = place / name
            one.parent.mkdir(parents=True, exist_ok=True)
            if mode == 0o200 and one.exists():
                continue  # only ever written by others
            if content is None:
                one.mkdir(exist_ok=True)
            elif isinstance(content, Path):
                self.link(one, content)
            elif place is target:
                self.write(one, content, mode)
            else:
                self._fill(one, content, mode)
        if place is not target:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(place, target)

    def _delete(self, path):
        gone = self._fresh()
        try:
            os.rename(self.root / path, gone)
        except FileNotFoundError:
            return
        shutil.rmtree(gone, ignore_errors=True)

    # -- patches

    def patch(self, name, state="applied", functions=None, refs=0, replace_all=True):
        """
        Create or rewrite a loaded patch.

        name
            as the kernel's directory: ``kgraft-patch-2-2_1``, ``livepatch_9_2_1``
        state
            ``applying``, ``applied``, ``reverting``, ``inactive``
        functions
            ``(object, name, sympos, state number)`` each; default: one function of vmlinux in the matching state
        refs, replace_all
            as the kernel's files of these names (livepatch: ``replace``)
        """
        if state not in FUNCTION_STATE:
            raise ValueError(f"state {state!r}: one of {', '.join(FUNCTION_STATE)}")
        self.patches[name] = Patch(name, state, functions, refs, replace_all)
        self._show(self.patches[name])

    def remove(self, name):
        """Unload a patch: its directory, its module."""
        patch = self.patches.pop(name)
        self._delete(self.directory(patch))
        self._delete(f"sys/module/{patch.module}")
        self._write_modules()

    def in_progress(self, flag):
        """Write kGraft's global file."""
        self.write("sys/kernel/kgraft/in_progress", f"{int(flag)}\n", self.in_progress_mode)

    def start(self, name, **patch):
        """Begin to apply a patch; it counts as one above the older ones, or takes back what a cumulative one drops."""
        self.patch(name, **dict({"state": "applying"}, **patch))
        patch = self.patches[name]
        kept = {tuple(row[:3]) for row in patch.rows()}
        for older in self.patches.values():
            if not older.active or older is patch:
                continue
            if not patch.replace_all:
                older.refs += 1
            elif self.abi == "kgraft":
                older.functions = [
                    (*row, FUNCTION_STATE["reverting"] if number == 2 and tuple(row) not in kept else number)
                    for *row, number in older.rows()
                ]
            self._show(older)
        if self.abi == "kgraft":
            self.in_progress(True)

    def revert(self, name):
        """Begin to revert a patch."""
        self.change(name, "reverting")
        if self.abi == "kgraft":
            self.in_progress(True)

    def change(self, name, state):
        """Move a patch to another state; functions that were given keep 5, the rest follow."""
        patch = self.patches[name]
        patch.state = state
        if patch.functions is not None:
            patch.functions = [
                (where, what, sympos, number if number == SKIPPED else FUNCTION_STATE[state])
                for where, what, sympos, number in patch.functions
            ]
        self._show(patch)

    def finish(self):
        """End the transition that runs: every living task has crossed."""
        for task in self.tasks.values():
            for tid, thread in task.threads.items():
                # A zombie never runs again, so its flag is left over when kGraft is done.
                if thread.letter != "Z" or self.abi != "kgraft":
                    self.flag(task.pid, False, tid)
        for patch in list(self.patches.values()):
            if patch.state == "applying":
                self.change(patch.name, "applied")
                if patch.replace_all:
                    for older in self.patches.values():
                        if older is patch:
                            break
                        if older.active:
                            self._retire(older)
            elif patch.state == "reverting":
                self._retire(patch)
                for older in self.patches.values():
                    if older.active and older.refs:
                        older.refs -= 1
                        self._show(older)
        if self.abi == "kgraft":
            self.in_progress(False)
        self._show_flags()

    def _retire(self, patch):
        self.change(patch.name, "inactive")
        if self.abi == "livepatch" and self.has_transition:
            # The directory vanishes, the module stays loaded until rmmod.
            self._delete(self.directory(patch))

    def directory(self, patch):
        """Where a patch lies: kGraft names it as the file of the module, livepatch as the module."""
        return self.sys / str(self.abi) / (patch.name if self.abi == "kgraft" else patch.module)

    def _show(self, patch):
        self._show_flags()  # as the kernel does: who sees a transition begin or end sees the tasks of it
        files = self._kgraft_files(patch) if self.abi == "kgraft" else self._livepatch_files(patch)
        self._write_tree(self.directory(patch), files)
        self.write(f"sys/module/{patch.module}/refcnt", f"{int(patch.active)}\n")
        self.write(f"sys/module/{patch.module}/taint", "OEK\n")
        self._write_modules()

    def _kgraft_files(self, patch):
        lines = ["  ".join(COLUMN[column].format(column) for column in self.heading)]
        for where, what, sympos, number in patch.rows():
            cells = {"Function": what, "Object": where, "Sympos": sympos, "State": number, "Weak": 0, "Fatal": 0}
            lines.append("  ".join(COLUMN[column].format(cells[column]) for column in self.heading))
        table = _bytes("\n".join(lines) + "\n")
        return {
            "state": (table[: PAGE - 1], 0o444),
            "refs": (f"{patch.refs}\n", 0o444),
            "replace_all": (f"{int(patch.replace_all)}\n", 0o444),
            "revert": ("", 0o200),
            "owner": (Path("../../../module") / patch.module, None),
        }

    def _livepatch_files(self, patch):
        files = {"enabled": (f"{int(patch.enabled)}\n", 0o644)}
        if self.has_transition:
            files["transition"] = (f"{int(patch.transition)}\n", 0o444)
            files["force"] = ("", 0o200)
        if self.has_replace:
            files["replace"] = (f"{int(patch.replace_all)}\n", 0o444)
        if self.has_stack_order:
            active = [one for one in self.patches.values() if one.active]
            files["stack_order"] = (f"{active.index(patch) + 1 if patch in active else 0}\n", 0o444)
        for where, what, sympos, number in patch.rows():
            files[f"{where}/{what},{sympos or 1}"] = (None, None)
            if self.has_patched:
                files[f"{where}/patched"] = (f"{int(number in (1, 2, 3))}\n", 0o444)
        return files

    def _write_modules(self):
        lines = [
            f"{patch.module} 16384 {int(patch.active)} - Live 0xffffffffc0{index:02x}f000 (OEK)\n"
            for index, patch in enumerate(self.patches.values())
        ]
        self.write("proc/modules", "".join(reversed(lines)) + "ext4 770048 1 - Live 0xffffffffc0000000\n")

    # -- tasks

    def task(
        self,
        pid,
        comm="sleep",
        blocking=False,
        letter="S",
        *,
        uid=0,
        unit=None,
        kthread=False,
        start_time=None,
        tracer=0,
        threads=None,
        cmdline=None,
        exe=None,
        stack=None,
    ):
        """
        Create or rewrite a process.

        blocking
            its leader has not crossed (livepatch: shown while a patch is in transition)
        threads
            the other threads: ``{tid: {"blocking": False, "letter": "S", "tracer": 0}}``
        start_time
            clock ticks since boot; default: 1000 + pid
        comm, cmdline
            text or bytes; ``cmdline`` may also be a list of arguments
        exe
            where the link to its executable leads; default: there is none
        """
        everyone = {pid: Thread(blocking, letter, tracer)}
        everyone.update((tid, Thread(**about)) for tid, about in (threads or {}).items())
        former = self.tasks.get(pid)
        task = self.tasks[pid] = Task(
            pid,
            everyone,
            comm=_bytes(comm)[:15],
            uid=uid,
            unit=unit,
            kthread=kthread,
            start_time=1000 + pid if start_time is None else start_time,
            cmdline=cmdline,
            exe=exe,
            stack=stack or "",
        )
        self._write_tree(f"proc/{pid}", self._task_files(task))
        for tid in set(former.threads if former else ()) - set(everyone):
            self._delete(f"proc/{pid}/task/{tid}")

    def real(self, pid, flags):
        """
        Show a process of this machine: its flags, ``{tid: blocking}``, are ours, all else are links to its real files.
        """
        task = self.tasks.setdefault(pid, Task(pid, {}))
        fresh = [tid for tid in flags if tid not in task.threads]
        gone = [tid for tid in task.threads if tid not in flags]
        files = {}
        for tid in fresh:
            task.threads[tid] = Thread(flags[tid])
            for name in ("stat", "status", "stack"):
                files[f"task/{tid}/{name}"] = (Path(f"/proc/{pid}/task/{tid}/{name}"), None)
        for tid in gone:
            del task.threads[tid]
        if fresh:
            if pid in fresh:
                for name in ("stat", "status", "cgroup", "cmdline"):
                    files[name] = (Path(f"/proc/{pid}/{name}"), None)
                with contextlib.suppress(OSError):  # a kernel thread or a zombie has none
                    files["exe"] = (Path(os.readlink(f"/proc/{pid}/exe")), None)
            self._write_tree(f"proc/{pid}", dict(files, **self._flag_files(task)))
        for tid in gone:
            self._delete(f"proc/{pid}/task/{tid}")
        summary = self._flag_files(task).get(self._flag_name()) if gone and flags else None
        if summary:
            self.write(f"proc/{pid}/{self._flag_name()}", *summary)
        for tid, blocking in flags.items():
            self.flag(pid, blocking, tid)

    def flag(self, pid, blocking, tid=None):
        """Set or clear the flag of one thread (default: the leader)."""
        task = self.tasks[pid]
        tid = pid if tid is None else tid
        if task.threads[tid].blocking != blocking:
            task.threads[tid].blocking = blocking
            files = self._flag_files(task)
            for name in (f"task/{tid}/{self._flag_name()}", self._flag_name()):
                if name in files:
                    self.write(f"proc/{pid}/{name}", *files[name])

    def exit(self, pid):
        """A process ends and is reaped."""
        del self.tasks[pid]
        self._delete(f"proc/{pid}")

    def _flag_name(self):
        return "kgr_in_progress" if self.abi == "kgraft" else "patch_state"

    def _flag_files(self, task):
        """Only the flags: ``{path below proc/<pid>: (content, mode)}``."""
        if self.abi == "kgraft":
            flags = {tid: thread.blocking for tid, thread in task.threads.items()}
            if not self.task_flags:
                return {"kgr_in_progress": (f"{int(flags[task.pid])}\n", 0o400)}
            files = {f"task/{tid}/kgr_in_progress": (f"{int(flag)}\n", 0o400) for tid, flag in flags.items()}
            return dict(files, kgr_in_progress=(f"{int(any(flags.values()))}\n", 0o400))
        if self.abi == "livepatch" and self.has_transition:
            patch = next((patch for patch in self.patches.values() if patch.transition), None)
            files = {}
            for tid, thread in task.threads.items():
                value = int(patch.enabled != thread.blocking) if patch else -1
                files[f"task/{tid}/patch_state"] = (f"{value}\n", 0o400)
            return dict(files, patch_state=files[f"task/{task.pid}/patch_state"])
        return {}

    def _show_flags(self):
        """livepatch shows every task's side of a transition, kGraft its own flag only."""
        if self.abi == "livepatch":
            for task in self.tasks.values():
                for name, (content, mode) in self._flag_files(task).items():
                    self.write(f"proc/{task.pid}/{name}", content, mode)

    def _task_files(self, task):
        leader = task.threads[task.pid]
        files = {
            "stat": (self._stat(task, task.pid, leader), 0o444),
            "status": (self._status(task, task.pid, leader), 0o444),
            "cgroup": (self._cgroup(task), 0o444),
            "cmdline": (self._cmdline(task, leader), 0o444),
            **({"exe": (Path(task.exe), None)} if task.exe else {}),
        }
        for tid, thread in task.threads.items():
            files[f"task/{tid}/stat"] = (self._stat(task, tid, thread), 0o444)
            files[f"task/{tid}/status"] = (self._status(task, tid, thread), 0o444)
            files[f"task/{tid}/stack"] = (task.stack, 0o400)
        return dict(files, **self._flag_files(task))

    @staticmethod
    def _escaped(comm):
        return comm.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")

    @staticmethod
    def _parent(task):
        return 0 if task.pid in (1, 2) else 2 if task.kthread else 1

    def _stat(self, task, tid, thread):
        flags = PF_KTHREAD | 0x8040 if task.kthread else 0x400000
        fields = [0] * 53  # numbered as in proc(5), from 1
        fields[3:10] = [thread.letter, self._parent(task), task.pid, task.pid, 0, -1, flags]
        fields[18:21] = [20, 0, len(task.threads)]
        fields[22] = task.start_time
        fields[25] = 18446744073709551615
        fields[38] = 17
        tail = " ".join(str(field) for field in fields[3:])
        return b"%d (%s) %s\n" % (tid, self._escaped(task.comm), tail.encode())

    def _status(self, task, tid, thread):
        ids = "\t".join([str(task.uid)] * 4)
        name = b"Name:\t%s\n" % self._escaped(task.comm)
        rest = (
            f"Umask:\t0022\nState:\t{thread.letter} ({LETTER_NAMES.get(thread.letter, 'unknown')})\nTgid:\t{task.pid}\n"
            f"Ngid:\t0\nPid:\t{tid}\nPPid:\t{self._parent(task)}\nTracerPid:\t{thread.tracer}\nUid:\t{ids}\nGid:\t{ids}\n"
            f"FDSize:\t64\nGroups:\t \nThreads:\t{len(task.threads)}\n"
            "voluntary_ctxt_switches:\t1\nnonvoluntary_ctxt_switches:\t0\n"
        )
        return name + rest.encode()

    def _cgroup(self, task):
        if task.unit is None:
            path = "/"
        elif task.unit.startswith("/"):
            path = task.unit
        else:
            path = "/init.scope" if task.unit == "init.scope" else f"/system.slice/{task.unit}"
        if self.abi == "kgraft":  # these kernels have version 1 hierarchies
            return f"2:cpu,cpuacct:{path}\n1:name=systemd:{path}\n"
        return f"0::{path}\n"

    @staticmethod
    def _cmdline(task, leader):
        if task.cmdline is None:
            return b"" if task.kthread or leader.letter == "Z" else task.comm + b"\0"
        if isinstance(task.cmdline, (list, tuple)):
            return b"".join(_bytes(argument) + b"\0" for argument in task.cmdline)
        return _bytes(task.cmdline)
