"""
The lab at work: one loop that looks at the processes, at the files that users write to, and at a socket for orders.
"""

import contextlib
import errno
import fcntl
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import uuid

from lab import client, files, procfs
from lab.root import CHILDREN, LOG, inside, note
from lab.rules import Rules

PERIOD = {"kgraft": 2.0, "livepatch": 1.0}
RELEASE = {"kgraft": "4.4.180-94.100-default", "livepatch": "6.4.0-150600.23.25-default"}
LOOK = 0.02  # seconds between two looks at the flagged threads
IDLE = 0.01  # and at the files that users write to, when nothing is flagged
SHOW = 0.25  # seconds between two looks for new and gone processes
START_TIMEOUT = 2  # seconds that children get at most until they sleep,
QUIET = 0.1  # which is when they did not move for so long


class RevertFile:
    """
    kGraft's ``revert``: any byte written to it is an order.

    A lease holds whoever opens it for writing until the order is carried out, so that he finds the kernel changed when
    his write returns. Where there are no leases (some file systems), he finds it changed a moment later.
    """

    def __init__(self, path):
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY)
        self.leased = False
        self.done = False  # the order of who has it open now

    def close(self):
        os.close(self.descriptor)

    def poll(self, revert):
        """Call ``revert`` once for each write."""
        written = os.fstat(self.descriptor).st_size > 0
        if self.leased:
            opened = fcntl.fcntl(self.descriptor, fcntl.F_GETLEASE) != fcntl.F_RDLCK
            if not opened and not written:
                return
            revert()
            self.done = True
            fcntl.fcntl(self.descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            self.leased = False
        elif written:
            if not self.done:
                revert()
            self.done = False
            os.truncate(self.path, 0)
        else:
            with contextlib.suppress(OSError):  # somebody has it open
                fcntl.fcntl(self.descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
                self.leased, self.done = True, False


class Controls:
    """
    The files that a user writes to.

    They are ordinary files here: what was written is found a moment later and put back. So the outcome is the kernel's,
    but a refused write does not fail with its errno; the log tells.
    """

    def __init__(self, kernel, rules, log):
        self.kernel = kernel
        self.rules = rules
        self.log = log
        self.empty = 0
        self.revert_files = {}
        self.settle()

    def poll(self):
        if self.kernel.abi == "kgraft":
            self._in_progress()
            self._reverts()
        else:
            for patch in [patch for patch in self.kernel.patches.values() if patch.active]:
                directory = self.kernel.directory(patch)
                self._enabled(directory / "enabled", patch)
                if self._taken(directory / "force").strip() == b"1":
                    self._try(directory / "force", self.rules.force, patch.name)

    def settle(self):
        """Remember what we wrote ourselves."""
        if self.kernel.abi == "kgraft":
            self.seen = (self.kernel.sys / "kgraft/in_progress").stat().st_mtime_ns

    def _try(self, path, order, *arguments):
        try:
            order(*arguments)
        except OSError as err:
            where, name = path.relative_to(self.kernel.root), errno.errorcode.get(err.errno, "?")
            self.log(f"lab: a write to {where} would have failed with {name}: {err.strerror}")

    @staticmethod
    def _taken(path):
        try:
            content = path.read_bytes()
            if content:
                os.truncate(path, 0)
        except FileNotFoundError:
            return b""
        return content

    def _reverts(self):
        paths = {self.kernel.directory(patch) / "revert": patch.name for patch in self.kernel.patches.values()}
        for path in set(self.revert_files) - set(paths):
            self.revert_files.pop(path).close()
        for path, name in paths.items():
            if path not in self.revert_files:
                self.revert_files[path] = RevertFile(path)
            self.revert_files[path].poll(functools.partial(self._try, path, self.rules.revert, name))

    def _in_progress(self):
        path = self.kernel.sys / "kgraft/in_progress"
        expected = b"1\n" if self.rules.running else b"0\n"
        content = path.read_bytes()
        if content == expected and path.stat().st_mtime_ns == self.seen:
            return
        if not content and self.empty < 3:
            self.empty += 1  # opened with O_TRUNC, not written yet
            return
        self.empty = 0
        if content.startswith(b"0"):
            self.rules.drop_flags()
        self.kernel.in_progress(bool(self.rules.running))

    def _enabled(self, path, patch):
        content = path.read_bytes()
        expected = b"%d\n" % patch.enabled
        if content in (expected, b""):
            return
        if content[:1] in (b"0", b"1") and content[:1] != expected[:1]:
            self._try(path, self.rules.enable, patch.name, content[:1] == b"1")
        if patch.active:
            self.kernel.write(path, f"{int(patch.enabled)}\n", 0o644)


class Server:
    def __init__(self, root, options):
        self.options = options
        self.kernel = files.Kernel(
            root, options.abi, release=options.release or RELEASE[options.abi], boot_id=str(uuid.uuid4())
        )
        self.processes = procfs.Processes(everything=options.all, cgroups=options.cgroup)
        self.children = []
        self.noted = {}
        self.stopping = False
        # Pid 1 must be there for a reader to believe that he sees all; it is the real one, and not watched.
        self.kernel.exit(2)
        self.kernel.exit(1)
        self.kernel.real(1, {1: False})
        (self.kernel.proc / "1/ns").mkdir()
        self.kernel.link("proc/1/ns/pid", files.INIT_PID_NAMESPACE)
        self.started = time.monotonic()
        self.rules = Rules(
            self.kernel,
            self.processes,
            period=options.period or PERIOD[options.abi],
            fake_signal=options.abi == "livepatch" if options.fake_signal is None else options.fake_signal,
            old=options.old,
            stuck_threads=options.stuck_thread,
            log=self.log,
        )
        self.controls = Controls(self.kernel, self.rules, self.log)
        for name in options.install:
            installed = self.kernel.root / "lib/modules" / self.kernel.release / options.abi / f"{name}.ko"
            inside(self.kernel.root, installed)
            installed.parent.mkdir(parents=True, exist_ok=True)
            installed.touch()

    def log(self, line):
        line = f"[{time.monotonic() - self.started:12.6f}] {line}"
        print(line, flush=True)
        with open(self.kernel.root / LOG, "a", encoding="utf-8") as log:
            log.write(line + "\n")

    def run(self, listener):
        """Serve until told to stop; leaves no process of ours behind."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGIO, signal.SIG_IGN)  # what a broken lease sends; we look soon enough
        try:
            for command in self.options.run:
                # A session of its own, by which its descendants are known and ended.
                child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
                self.children.append(child)
                self.processes.sessions.add(child.pid)
                self.processes.watched()
                self._note_children()
            if self.children:
                self._wait_for_children()
            for pid in self.options.pid:
                self.processes.watch(pid)
            self._serve(listener)
        finally:
            self._end_children()

    def _wait_for_children(self):
        """Who still loads its libraries would cross at once: be ready when all sleep (or are busy by nature)."""
        deadline = time.monotonic() + START_TIMEOUT
        former, since = None, 0
        while time.monotonic() < deadline and not self.stopping:
            watched = self.processes.watched()
            looks = [self.processes.look(pid, tid) for pid in watched for tid in self.processes.threads(pid)]
            if looks != former or any(look and look[0] == "R" for look in looks):
                former, since = looks, time.monotonic()
            elif time.monotonic() - since > QUIET:
                break
            time.sleep(LOOK)

    def _note_children(self):
        if self.processes.children != self.noted:
            self.noted = self.processes.children
            self.kernel.write(CHILDREN, note(self.noted))

    def _stop(self, number, frame):
        self.stopping = True

    def _serve(self, listener):
        inputs = [listener, sys.stdin] if self.options.until_eof else [listener]
        shown = 0
        while not self.stopping:
            began = time.monotonic()
            self.controls.poll()
            self.rules.tick()
            if began - shown >= SHOW:
                shown = began
                for child in self.children:
                    child.poll()
                self.rules.show()
                self._note_children()
            self.controls.settle()
            # On a machine full of watched processes a look takes its time: at most a third of a core is ours.
            pause = max(LOOK if self.rules.running else IDLE, 2 * (time.monotonic() - began))
            ready = select.select(inputs, [], [], pause)[0]
            if sys.stdin in ready and not os.read(sys.stdin.fileno(), 4096):
                self.stopping = True
            if listener in ready:
                with contextlib.suppress(OSError), listener.accept()[0] as connection:
                    self._answer(connection)

    def _answer(self, connection):
        connection.settimeout(2)
        with connection.makefile("rw") as lines:
            # Who has the answer sees the files that go with it.
            lines.write(json.dumps(self._carry_out(lines.readline())) + "\n")

    def _carry_out(self, request):
        try:
            arguments = json.loads(request)
            return {"answer": self._orders()[arguments.pop("order")](**arguments)}
        except OSError as err:
            return {"errno": err.errno, "error": err.strerror}
        except (ValueError, KeyError, TypeError) as err:
            return {"errno": errno.EINVAL, "error": repr(err)}

    def _orders(self):
        return {
            "load": self.rules.load,
            "revert": self.rules.revert,
            "unload": self.rules.unload,
            "force": self.rules.force,
            "unstick": self.rules.unstick,
            "watch": self._watch,
            "pid": os.getpid,
            "checks": lambda: self.rules.checks,
        }

    def _watch(self, pid):
        self.processes.watch(pid)
        self.rules.show()

    def _end_children(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        procfs.end(self.processes.sessions, signal.SIGTERM, signal.SIGCONT, timeout=1)
        procfs.end(self.processes.sessions, signal.SIGKILL, timeout=5)


def serve(root, options):
    """Run a lab in ``root``, which ``take`` gave, until SIGTERM or SIGINT."""
    server = Server(root, options)
    with socket.socket(socket.AF_UNIX) as listener, client.socket_path(root) as path:
        listener.bind(path)
        listener.listen(64)
        try:
            server.run(listener)
        finally:
            with contextlib.suppress(FileNotFoundError):  # the directory may be gone by now
                os.unlink(path)
