"""A woken guest as the tests use it: our functions, the kernel's log, tasks that block."""

import itertools
import re
import time

from tests.kernel.machine import Machine

SYSFS = "/sys/kernel/livepatch"

SLEEPER = """
import os, subprocess, time
program = {program!r}
process = subprocess.Popen(program, stdin=subprocess.DEVNULL, stdout=open({output!r}, "wb"), stderr=subprocess.STDOUT,
                           start_new_session=True, user={user!r})
end = time.monotonic() + {limit}
answer = None
while answer is None:
    if time.monotonic() > end:
        raise AssertionError("no thread of %s sleeps in {function}: %s" % (program, open({output!r}).read()))
    for tid in os.listdir("/proc/%d/task" % process.pid):
        with open("/proc/%d/task/%s/stack" % (process.pid, tid)) as stack:
            if "{function}" in stack.read():
                answer = [process.pid, int(tid)]
    time.sleep(0.01)
agent.__dict__.setdefault("children", []).append(process)
"""

POKER = """
poking = agent.caller.sminion.functions["kgraft.poke"].__globals__["poking"]
process = poking.Poker("{method}")
with open("/proc/{pid}/stat") as stat:
    start_time = int(stat.read().rpartition(")")[2].split()[19])
answer = {{str(tid): word for tid, word in process.poke({pid}, start_time, [{pid}]).items()}}
process.close()
"""

# One thread of eight sleeps in the patched function, the leader and the rest elsewhere.
MANY_THREADS = """
import threading, time
for _ in range(6):
    threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
threading.Thread(target=lambda: print(open("/proc/klpt/block").read()), daemon=True).start()
time.sleep(3600)
"""


class Refused(Exception):
    """One of our functions raised; ``kind`` is the exception's name, ``info`` what it carries."""

    def __init__(self, kind, message, info):
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.info = info


class Guest(Machine):
    outputs = itertools.count(1)

    # -- our checkout, under Salt's loader

    def call(self, function, /, *args, **kwargs):
        answer = self.ask("call", timeout=120, name=function, args=args, kwargs=kwargs)
        if "raised" in answer:
            raise Refused(answer["raised"], answer["message"], answer["info"])
        return answer["return"]

    def state(self, name, **arguments):
        return self.ask("state", timeout=120, name=name, arguments=arguments)

    # -- the kernel

    def value(self, path):
        return self.sh(f"cat {SYSFS}/{path}").strip()

    def patches(self):
        return sorted(self.sh(f"ls {SYSFS}").split())

    def insert(self, name, *parameters, check=True):
        return self.sh(f"modprobe {name} {' '.join(parameters)}", check=check)

    def load(self, *names):
        """Load patches one after the other, each until it is settled."""
        for name in names:
            self.insert(name)
            self.until(f"grep -qx 0 {SYSFS}/{name}/transition", what=f"{name} to be patched")

    def disable(self, name):
        self.sh(f"echo 0 > {SYSFS}/{name}/enabled")

    def disabled(self, name):
        self.disable(name)
        self.until(f"! [ -e {SYSFS}/{name} ]", what=f"{name} to be gone")

    def unload(self, name):
        # a module is held for a moment longer than its directory is seen
        self.until(f"rmmod {name} 2>/dev/null", what=f"{name} to be unloaded")

    def until(self, condition, timeout=40, what=None):
        """Wait until a shell condition holds, at most ``timeout`` seconds; it is asked in the guest."""
        self.sh(
            f"now() {{ read up idle < /proc/uptime; echo ${{up%.*}}; }}; end=$(($(now) + {timeout}));"
            f"until {condition}; do [ $(now) -le $end ] || {{ echo waited in vain; exit 1; }}; usleep 50000; done",
            timeout=timeout + 40,
            what=f"waiting {timeout} s for {what or condition}",
        )

    def kernel_log(self, since=0.0):
        """``[(seconds since boot, line)]`` of live patching, as the kernel wrote them."""
        lines = re.findall(r"^\[ *(\d+\.\d+)\] (.*)$", self.sh("dmesg"), re.MULTILINE)
        return [(float(at), text) for at, text in lines if text.startswith("livepatch: ") and float(at) >= since]

    # -- tasks that block

    def sleeper(self, file="block", user=None):
        """A process asleep in a function of klpt_target; its pid. ``file``: ``block`` or ``killable``."""
        return self._asleep(["cat", f"/proc/klpt/{file}"], f"klpt_{file}_read", user)[0]

    def sleeper_in(self, function):
        """The same in a function of a patch."""
        return self._asleep(["cat", "/proc/klpt/block"], function, None)[0]

    def many_threads(self):
        """A process of eight threads, one asleep in the patched function: its pid and that thread's id."""
        return self._asleep(["/opt/python", "-I", "-S", "-c", MANY_THREADS], "klpt_block_read", None)

    def _asleep(self, program, function, user):
        output = f"/run/sleeper{next(self.outputs)}"
        pid, tid = self.python(
            SLEEPER.format(program=program, output=output, function=function, user=user, limit=20), timeout=60
        )
        self.wrote = {**getattr(self, "wrote", {}), pid: output}
        return pid, tid

    def first_process(self):
        """Let pid 1 itself sleep in the patched function; what it read is then in /run/pid1-said."""
        self.sh("kill -USR1 1")
        self.until("grep -q klpt_block_read /proc/1/stack", 10)

    def poker(self, method, pid):
        """What the process that pokes says of one, whatever kgraft.poke would think of it."""
        return self.python(POKER.format(method=method, pid=pid))[str(pid)]

    def said(self, pid):
        """What a sleeper wrote when it was free."""
        return self.sh(f"cat {self.wrote[pid]}").strip()

    def kernel_thread(self, function="klpt_kthread_wait"):
        """Start klpt_target's thread, and wait until it is in a function; its pid."""
        self.sh("echo 1 > /sys/module/klpt_target/parameters/kthread")
        pid = int(
            self.sh("for p in /proc/[0-9]*; do read c < $p/comm; [ $c = klpt_kthread ] && echo ${p#/proc/}; done; true")
        )
        self.until(f"grep -q {function} /proc/{pid}/stack", 10)
        return pid

    def wake(self):
        """Wake whoever sleeps in klpt_target's own functions."""
        self.sh("echo 1 > /proc/klpt/wake")

    def settled(self, timeout=40):
        self.until(f"! grep -qsx 1 {SYSFS}/*/transition", timeout, "the end of the transition")

    def later(self, command, seconds):
        """Run a shell command in the guest some seconds from now."""
        self.sh(f"(sleep {seconds}; {command}) >/dev/null 2>&1 &")

    def stopped(self, pid):
        self.sh(f"kill -STOP {pid}")
        self.until(f"grep -q '^State:.T' /proc/{pid}/status", 10)

    def crossed(self, pid, timeout=10):
        """Wait until one process has the flag of the other side, and say how long it took."""
        began = time.monotonic()
        self.until(f"[ $(cat /proc/{pid}/patch_state) != 0 ]", timeout, f"{pid} to cross")
        return time.monotonic() - began
