"""
The real processes of this machine, as far as the lab may watch them.
"""

import contextlib
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
PF_KTHREAD = 0x00200000
STATUS = 16384  # bytes: a status file grows with the number of CPUs


def stat(pid, proc="/proc"):
    """The fields of ``/proc/<pid>/stat`` that matter here, None if the process is gone."""
    try:
        line = Path(f"{proc}/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = line[line.rindex(b")") + 2 :].split()
    return {
        "letter": fields[0].decode(),
        "session": int(fields[3]),
        "kernel": bool(int(fields[6]) & PF_KTHREAD),
        "start_time": int(fields[19]),
    }


class Processes:
    """
    Which processes are watched, and how often each of their threads was switched.

    A thread that was switched did run, and so passed the boundary between kernel and program: the one sign of it that
    an ordinary kernel shows, measured against the flags of a kernel with kGraft. Nothing else is ever counted.
    """

    def __init__(self, proc="/proc", everything=False, cgroups=()):
        self.proc = proc
        self.everything = everything
        self.cgroups = [CGROUPS / str(path).lstrip("/") if not os.path.isdir(path) else Path(path) for path in cgroups]
        self.sessions = set()  # of the lab's own children
        self.named = {}  # pid: start time, for a pid may be used again

    def watch(self, pid):
        """Watch one process; raises ProcessLookupError."""
        about = stat(pid, self.proc)
        if about is None:
            raise ProcessLookupError(f"no process {pid}")
        self.named[pid] = about["start_time"]

    def watched(self):
        """``{pid: start time}`` of each watched process that is there, the lab itself never among them."""
        pids = {}
        for pid, start_time in list(self.named.items()):
            about = stat(pid, self.proc)
            if about and about["start_time"] == start_time:
                pids[pid] = start_time
            else:
                del self.named[pid]
        for cgroup in self.cgroups:
            for path, _, files in os.walk(cgroup):
                if "cgroup.procs" in files:
                    with contextlib.suppress(OSError):  # the group may be gone by now
                        pids.update(self._about(Path(path, "cgroup.procs").read_text().split()))
        if self.everything or self.sessions:
            pids.update(self._about((name for name in os.listdir(self.proc) if name.isdigit()), not self.everything))
        pids.pop(os.getpid(), None)
        return pids

    def _about(self, pids, own=False):
        for pid in pids:
            about = stat(pid, self.proc)
            if about and not about["kernel"] and (not own or about["session"] in self.sessions):
                yield int(pid), about["start_time"]

    def threads(self, pid):
        """The threads of a process; none if it is gone."""
        try:
            return [int(tid) for tid in os.listdir(f"{self.proc}/{pid}/task")]
        except OSError:
            return []

    def look(self, pid, tid):
        """``(letter, switches)`` of a thread, None if it is gone."""
        try:
            with open(f"{self.proc}/{pid}/task/{tid}/status", "rb", buffering=0) as status:
                text = status.read(STATUS)
        except OSError:
            return None
        at = text.find(b"\nState:\t")
        counters = text[text.find(b"\nvoluntary_ctxt_switches:") :].split()
        if at < 0 or len(counters) < 4:
            return None
        return text[at + 8 : at + 9].decode(), int(counters[1]) + int(counters[3])
