"""
The real processes of this machine, as far as the lab may watch them.
"""

import contextlib
import os
import time
from pathlib import Path

from lab.files import PF_KTHREAD

CGROUPS = Path("/sys/fs/cgroup")
LARGEST = 16384  # bytes: a status file grows with the number of CPUs


def _read(path):
    """What is in a file below ``/proc``, None if its process or thread is gone."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(LARGEST)
    except OSError:
        return None


def stat(pid, proc="/proc"):
    """The fields of ``/proc/<pid>/stat`` that matter here, None if the process is gone."""
    line = _read(f"{proc}/{pid}/stat")
    if line is None:
        return None
    fields = line[line.rindex(b")") + 2 :].split()
    return {
        "letter": fields[0].decode(),
        "session": int(fields[3]),
        "kernel": bool(int(fields[6]) & PF_KTHREAD),
        "start_time": int(fields[19]),
    }


def stats(pids=None, proc="/proc"):
    """``(pid, stat)`` of each of these processes that is not gone; default: of all."""
    for pid in os.listdir(proc) if pids is None else pids:
        about = stat(pid, proc) if str(pid).isdigit() else None
        if about:
            yield int(pid), about


def end(sessions, *signals, timeout):
    """Send signals to every process of these sessions, and wait until none lives, so many seconds at most."""

    def living():
        return [pid for pid, about in stats() if about["session"] in sessions and about["letter"] not in "ZX"]

    for pid in living() if sessions else ():
        for number in signals:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    deadline = time.monotonic() + timeout
    while sessions and living() and time.monotonic() < deadline:
        time.sleep(0.01)


class Processes:
    """
    Which processes are watched, and how often each of their threads was switched.

    A thread that was switched did run, and so passed the boundary between kernel and program: the one sign of it that
    an ordinary kernel shows, measured against the flags of a kernel with kGraft. Nothing else is ever counted.
    """

    def __init__(self, proc="/proc", everything=False, cgroups=()):
        self.proc = proc
        self.everything = everything
        self.cgroups = cgroups
        self.sessions = set()  # of the lab's own children,
        self.children = {}  # who belongs to them: {pid: [start time, session]}
        self.named = {}  # pid: start time, for a pid may be used again

    def watch(self, pid):
        """Watch one process; raises ProcessLookupError."""
        about = stat(pid, self.proc)
        if about is None:
            raise ProcessLookupError(f"no process {pid}")
        self.named[pid] = about["start_time"]

    def watched(self):
        """``{pid: start time}`` of each watched process that is not gone, the lab itself never among them."""
        self.named = {
            pid: about["start_time"]
            for pid, about in stats(self.named, self.proc)
            if about["start_time"] == self.named[pid]
        }
        found = []
        for cgroup in self.cgroups:
            for path, _, files in os.walk(cgroup):
                if "cgroup.procs" in files:
                    with contextlib.suppress(OSError):  # the group may be gone by now
                        found += stats(Path(path, "cgroup.procs").read_text().split(), self.proc)
        if self.everything or self.sessions:
            everyone = list(stats(proc=self.proc))
            self.sessions &= {about["session"] for _, about in everyone}  # who is next of this number is not ours
            own = [(pid, about) for pid, about in everyone if about["session"] in self.sessions]
            self.children = {pid: [about["start_time"], about["session"]] for pid, about in own}
            found += everyone if self.everything else own
        pids = {pid: about["start_time"] for pid, about in found if not about["kernel"]}
        pids.update(self.named)
        pids.pop(os.getpid(), None)
        return pids

    def threads(self, pid):
        """The threads of a process; none if it is gone."""
        try:
            return [int(tid) for tid in os.listdir(f"{self.proc}/{pid}/task")]
        except OSError:
            return []

    def look(self, pid, tid):
        """``(letter, switches)`` of a thread, None if it is gone."""
        text = _read(f"{self.proc}/{pid}/task/{tid}/status") or b""
        at = text.find(b"\nState:\t")
        counters = text[text.find(b"\nvoluntary_ctxt_switches:") :].split()
        if at < 0 or len(counters) < 4:
            return None
        return text[at + 8 : at + 9].decode(), int(counters[1]) + int(counters[3])
