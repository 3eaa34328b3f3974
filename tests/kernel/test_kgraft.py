"""
Our execution module on a real kernel: what it says before, during and after, and what it does.

Each test has a kernel of its own. The kernel wakes interruptible sleepers every 15 s by itself; where a test must not
race with that, its sleeper is killable only.
"""

import pytest

from tests.kernel.guest import SYSFS, Refused
from tests.support.load import load_file

FIRST, SECOND, THIRD = "livepatch_1_1_1", "livepatch_2_1_1", "livepatch_3_1_1"
SLEEPY, CORE = "klpt_sleepy", "klpt_core"


def pids(answer):
    return [task["pid"] for task in answer["tasks"]]


# -- what it says


def test_a_kernel_without_patches_is_ready(guest):
    status = guest.call("kgraft.status")

    assert status == {
        "abi": "livepatch",
        "state": "ready",
        "direction": None,
        "kernelrelease": guest.kernel.release,
        "active": [],
        "moving": [],
        "boot_id": guest.sh("cat /proc/sys/kernel/random/boot_id").strip(),
    }
    assert guest.call("kgraft.patches") == {}
    assert guest.call("kgraft.in_progress") is False
    ready = {"state": "ready", "tasks": [], "count": 0, "unread": 0, "complete": True, "note": None}
    assert guest.call("kgraft.blocking") == ready
    assert guest.call("kgraft.summary") == "ready no live patch"
    assert guest.call("kgraft.wait", timeout=5) < 1


def test_before_during_and_after_a_transition(guest):
    pid = guest.sleeper("killable")
    bystander = int(guest.sh("sleep 600 >/dev/null 2>&1 & echo $!"))

    guest.insert(FIRST)

    cumulative = guest.value(f"{FIRST}/replace") == "1" if guest.kernel.series != "6.1" else None
    assert guest.call("kgraft.patches") == {
        FIRST: {"state": "applying", "version": "1-1.1", "refs": None, "cumulative": cumulative}
    }
    # the others cross at the kernel's next looks
    guest.until(f"[ $(cat /proc/{bystander}/patch_state) = 1 ]", 10)
    status = guest.call("kgraft.status")
    assert (status["state"], status["direction"], status["active"]) == ("in_progress", "apply", [FIRST])
    assert guest.call("kgraft.in_progress") is True
    assert guest.call("kgraft.in_progress", pid) is True
    assert guest.call("kgraft.in_progress", bystander) is False
    assert guest.call("kgraft.summary") == f"in_progress {FIRST} apply 1 blocking: cat({pid}) uninterruptible"

    guest.wake()
    guest.settled()

    assert guest.call("kgraft.patches")[FIRST]["state"] == "applied"
    assert guest.call("kgraft.summary") == f"ready {FIRST}"
    assert guest.call("kgraft.in_progress", pid=bystander) is False
    assert guest.said(pid) == "orig"
    assert guest.sh("cat /proc/klpt/state").strip() == FIRST


def test_the_kernels_log_says_when_a_patch_settled(guest):
    log = load_file("_modules/kgraft_security.py")._LOG
    guest.sleeper("killable")
    guest.insert(FIRST)
    assert log.findall(guest.sh("dmesg")) == []
    guest.wake()
    guest.settled()

    ((seconds, settled, *_),) = log.findall(guest.sh("dmesg"))

    assert settled == FIRST
    assert 0 <= float(guest.sh("cut -d ' ' -f 1 /proc/uptime")) - int(seconds) <= 60


def test_the_functions_of_a_patch_are_those_in_sysfs(guest):
    guest.load(SECOND)
    guest.unload("klpt_target")

    functions = guest.call("kgraft.patches", functions=True)[SECOND]["functions"]

    target = ("klpt_block_read", "klpt_killable_read", "klpt_kthread_wait", "klpt_state_read")
    assert functions == [
        *({"object": "klpt_target", "name": name, "sympos": 1, "state": 5} for name in target),
        {"object": "vmlinux", "name": "cmdline_proc_show", "sympos": 1, "state": 2},
    ]


def test_a_patch_that_waits_for_its_module_is_applied(guest):
    guest.unload("klpt_target")
    guest.load(FIRST)

    assert guest.value(f"{FIRST}/klpt_target/patched") == "0"
    assert guest.call("kgraft.patches")[FIRST]["state"] == "applied"
    assert guest.call("kgraft.status")["state"] == "ready"


def test_a_patch_being_loaded_is_never_taken_for_one_being_reverted(guest):
    """
    It shows transition 1 and enabled 0, as one being disabled does, until its functions are in place. That is a matter
    of a tenth of a second, which one load in several may show to nobody.
    """
    windows, looks, broken = guest.python(BEING_LOADED.format(patch=SECOND, sysfs=SYSFS), timeout=120)

    assert windows > 0, "the kernel did not show what this test is about"
    assert broken == []
    allowed = [("in_progress", "apply", [SECOND]), ("ready", None, [SECOND]), ("ready", None, [])]
    assert [look for look in map(tuple, looks) if look not in allowed] == []


BEING_LOADED = """
import os, subprocess, time
def read(name):
    try:
        with open("{sysfs}/{patch}/" + name) as file:
            return file.read()
    except OSError:
        return None

windows, looks, broken = 0, [], []
for attempt in range(6):
    loading = subprocess.Popen(["modprobe", "{patch}"])
    end = time.monotonic() + 20
    while loading.poll() is None and time.monotonic() < end:
        if [read("enabled"), read("transition")] == ["0\\n", "1\\n"]:
            windows += 1
            break
    while time.monotonic() < end:
        look = agent.call("kgraft.status")
        if "return" not in look:
            broken.append(look)
            break
        look = [look["return"][key] for key in ("state", "direction", "active")]
        if look not in looks:
            looks.append(look)
        if look == ["ready", None, ["{patch}"]]:
            break
    loading.wait(20)
    if windows > 1:
        break
    with open("{sysfs}/{patch}/enabled", "w") as enabled:
        enabled.write("0")
    while os.path.isdir("{sysfs}/{patch}") and time.monotonic() < end:
        time.sleep(0.01)
    while subprocess.call(["rmmod", "{patch}"], stderr=subprocess.DEVNULL) and time.monotonic() < end:
        time.sleep(0.01)
answer = windows, looks, broken
"""


# -- who blocks


def test_blocking_finds_exactly_the_sleeping_thread_of_many(guest):
    pid, tid = guest.many_threads()
    assert tid != pid
    assert len(guest.sh(f"ls /proc/{pid}/task").split()) == 8

    guest.insert(FIRST)
    guest.until(f"[ $(cat /proc/{pid}/patch_state) = 1 ]", 10)  # the leader's own, and it says 1

    answer = guest.call("kgraft.blocking", stacks=True, cmdline=True)

    assert (answer["state"], answer["count"], answer["unread"], answer["complete"]) == ("in_progress", 1, 0, True)
    (task,) = answer["tasks"]
    assert (task["pid"], task["tids"], task["kind"], task["letter"]) == (pid, [tid], "user", "S")
    assert (task["user"], task["unit"]) == ("root", None)
    assert task["start_time"] == int(guest.sh(f"cat /proc/{pid}/stat").rpartition(")")[2].split()[19])
    assert task["cmdline"][:4] == ["/opt/python", "-I", "-S", "-c"]
    assert "klpt_block_read" in task["stack"][str(tid)][0]
    assert guest.call("kgraft.in_progress", pid) is True


def test_blocking_names_the_user_of_a_task(guest):
    pid = guest.sleeper("killable", user="ordinary")
    guest.insert(FIRST)
    guest.until("[ $(grep -lx 0 /proc/[0-9]*/patch_state | wc -l) = 1 ]", 10)

    (task,) = guest.call("kgraft.blocking")["tasks"]

    assert (task["pid"], task["user"], task["kind"], task["name"]) == (pid, "ordinary", "uninterruptible", "cat")
    # klpt_killable_read is klpt_target's
    assert task["why"].startswith("It waits in klpt_target, a module that was not built with the kernel, where no")
    assert task["help"] == "Ask its vendor, or who owns it here; mend what it waits for."


def test_a_kernel_thread_blocks_until_it_is_let_go(guest):
    pid = guest.kernel_thread()
    guest.insert(FIRST)
    guest.until("[ $(grep -lx 0 /proc/[0-9]*/patch_state | wc -l) = 1 ]", 10)

    answer = guest.call("kgraft.blocking", stacks=True)
    (task,) = answer["tasks"]
    assert (task["pid"], task["name"], task["kind"]) == (pid, "klpt_kthread", "kernel")
    assert "is in klpt_target, a module that was not built with the kernel" in task["why"]
    assert "stop the service that uses klpt_target" in task["help"]
    assert any("klpt_kthread_wait" in line for line in task["stack"][str(pid)])

    poked = guest.call("kgraft.poke")
    assert (poked["poked"], pids({"tasks": poked["skipped"]}), poked["count"]) == ([], [pid], 1)
    guest.wake()  # it enters the old function again
    assert guest.call("kgraft.in_progress", pid) is True

    guest.sh("echo 0 > /sys/module/klpt_target/parameters/kthread")
    assert guest.call("kgraft.wait", timeout=20) < 20


def test_a_program_of_ebpf_on_the_stack_blocks_and_is_told(guest):
    """
    A sleeper in no patched function crosses, and one with a trampoline on its stack does not. The program is of the
    kind fexit, on proc_reg_read: one of the kind fentry alone has left the stack when the function sleeps.
    """
    free = guest.sleeper("killable")
    guest.python(FEXIT.format(function="proc_reg_read"))
    held = guest.sleeper("killable")
    guest.insert(CORE)
    guest.until(f"[ $(cat /proc/{free}/patch_state) = 1 ]", 10)
    guest.until("[ $(grep -lx 0 /proc/[0-9]*/patch_state | wc -l) = 1 ]", 10)

    (task,) = guest.call("kgraft.blocking", stacks=True)["tasks"]

    assert task["pid"] == held
    assert any("bpf_trampoline_" in line for line in task["stack"][str(held)])
    assert not any(CORE in line for line in task["stack"][str(held)])
    assert "A program of eBPF is on its stack" in task["why"]
    assert "Ask who owns the agent. Unless it is protected itself: stop it" in task["help"]

    guest.python("import os; os.close(agent.link)")  # the agent stops, and who sleeps has it on the stack still
    assert guest.call("kgraft.in_progress", held) is True
    guest.wake()
    assert guest.call("kgraft.wait", timeout=20) < 20


FEXIT = """
import ctypes, os, struct

def number_of(function):
    with open("/sys/kernel/btf/vmlinux", "rb") as file:
        raw = file.read()
    header, first, size, strings = struct.unpack_from("<4xIIII", raw)
    at, end, strings, number = header + first, header + first + size, header + strings, 1
    # how much follows a type, by its kind: so much, and so much for each member (Documentation/bpf/btf.rst)
    more = {{1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 13: (0, 8), 14: (4, 0), 15: (0, 12), 17: (4, 0),
            19: (0, 12)}}
    while at < end:
        name, info = struct.unpack_from("<II", raw, at)
        kind, members = info >> 24 & 0x1F, info & 0xFFFF
        if kind == 12 and raw[strings + name : raw.index(b"\\0", strings + name)] == function.encode():
            return number
        once, each = more.get(kind, (0, 0))
        at, number = at + 12 + once + each * members, number + 1
    raise AssertionError("the kernel has no type of " + function)

def bpf(command, attributes):
    buffer = ctypes.create_string_buffer(attributes, 144)
    result = libc.syscall(321, command, buffer, len(buffer))  # x86-64
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(command))
    return result

libc = ctypes.CDLL(None, use_errno=True)
# return 0
code = ctypes.create_string_buffer(struct.pack("<QQ", 0xB7, 0x95), 16)
licence = ctypes.create_string_buffer(b"GPL")
load = struct.pack("<IIQQ", 26, 2, ctypes.addressof(code), ctypes.addressof(licence))  # BPF_PROG_TYPE_TRACING
load += bytes(44) + struct.pack("<I", 25) + bytes(36) + struct.pack("<I", number_of("{function}"))  # BPF_TRACE_FEXIT
program = bpf(5, load)  # BPF_PROG_LOAD
agent.link = bpf(17, struct.pack("<QI", 0, program))  # BPF_RAW_TRACEPOINT_OPEN
answer = agent.link
"""


def test_a_stopped_process_blocks_only_while_it_is_in_the_old_function(guest):
    """
    A stop takes a process out of an interruptible sleep, and out of the old function: here a stopped process crosses,
    unlike with kGraft. A killable sleeper is not stopped by it.
    """
    free, held = guest.sleeper("block"), guest.sleeper("killable")
    guest.stopped(free)
    guest.sh(f"kill -STOP {held}")

    guest.insert(FIRST)
    guest.until(f"[ $(cat /proc/{free}/patch_state) = 1 ]", 10)

    (task,) = guest.call("kgraft.blocking")["tasks"]
    assert (task["pid"], task["letter"], task["kind"]) == (held, "D", "uninterruptible")
    assert guest.sh(f"grep State: /proc/{free}/status").split()[1] == "T"


def test_a_traced_process_is_told_as_traced(guest):
    """The kernel cannot interrupt a killable sleep for a tracer either, so the tracer is seen by TracerPid."""
    pid = guest.sleeper("killable")
    tracer = guest.python(
        f"""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
tracer = os.fork()
if not tracer:
    libc.ptrace(0x4206, {pid}, 0, 0)  # PTRACE_SEIZE
    while True:
        __import__("time").sleep(600)
answer = tracer
"""
    )
    guest.until(f"grep -q '^TracerPid:.{tracer}$' /proc/{pid}/status", 10)
    guest.insert(FIRST)
    guest.until("[ $(grep -lx 0 /proc/[0-9]*/patch_state | wc -l) = 1 ]", 10)

    (task,) = guest.call("kgraft.blocking")["tasks"]

    assert (task["pid"], task["kind"]) == (pid, "traced")
    guest.sh(f"kill -9 {tracer}")


def test_an_ordinary_user_gets_an_error_and_no_empty_list(guest):
    guest.sleeper("killable")
    guest.insert(FIRST)

    said = guest.python(
        """
import json, os
read, write = os.pipe()
child = os.fork()
if not child:
    os.setuid(1000)
    os.write(write, json.dumps(agent.call("kgraft.blocking")).encode())
    os._exit(0)
os.waitpid(child, 0)
answer = json.loads(os.read(read, 65536))
"""
    )
    blocking = said.get("return", {"complete": False, "unread": 1})

    assert blocking["complete"] is False
    assert blocking["unread"] > 0


# -- other transitions


def test_a_replacement_is_shown_with_both_patches_until_it_is_over(guest):
    guest.load(CORE, FIRST)
    assert guest.call("kgraft.status")["active"] == [CORE, FIRST]
    pid = guest.kernel_thread("klpt_new_kthread_wait")

    guest.insert(SECOND)
    guest.until("[ $(grep -lx 0 /proc/[0-9]*/patch_state | wc -l) = 1 ]", 10)

    status = guest.call("kgraft.status")
    assert (status["state"], status["direction"], status["active"]) == ("in_progress", "apply", [CORE, FIRST, SECOND])
    states = {name: patch["state"] for name, patch in guest.call("kgraft.patches").items()}
    assert states == {CORE: "applied", FIRST: "applied", SECOND: "applying"}
    (task,) = guest.call("kgraft.blocking", stacks=True)["tasks"]
    assert task["pid"] == pid
    # it is in a function of FIRST, which klpt_target called: a live patch is no vendor's module
    assert any(f"[{FIRST}]" in line for line in task["stack"][str(pid)])
    assert "is in klpt_target, a module that was not built with the kernel" in task["why"]

    guest.sh("echo 0 > /sys/module/klpt_target/parameters/kthread")
    guest.settled()

    assert guest.call("kgraft.status")["active"] == [SECOND]
    expected = {"state": "applied", "version": "2-1.1", "refs": None, "cumulative": True}
    if guest.kernel.series == "6.1":
        expected["cumulative"] = None  # it does not say
    assert guest.call("kgraft.patches") == {SECOND: expected}


def test_a_disable_is_a_revert_and_its_blockers_are_those_still_patched(guest):
    guest.load(SLEEPY)
    pid = guest.sleeper_in("klpt_new_block_read")

    guest.disable(SLEEPY)

    assert guest.value(f"{SLEEPY}/enabled") == "0"
    status = guest.call("kgraft.status")
    assert (status["state"], status["direction"], status["active"]) == ("in_progress", "revert", [])
    assert guest.call("kgraft.patches")[SLEEPY]["state"] == "reverting"
    guest.until("[ $(grep -lx 1 /proc/[0-9]*/patch_state | wc -l) = 1 ]", 10)
    assert pids(guest.call("kgraft.blocking")) == [pid]
    assert guest.call("kgraft.in_progress", pid) is True

    guest.sh(f"kill {pid}")
    guest.settled()
    assert guest.call("kgraft.status")["active"] == []
    assert guest.call("kgraft.patches") == {}


def test_a_reversal_in_mid_air_turns_the_direction_and_the_blockers_around(guest):
    old = guest.sleeper("killable")
    guest.insert(SLEEPY)
    guest.until("[ $(grep -lx 0 /proc/[0-9]*/patch_state | wc -l) = 1 ]", 10)
    new = guest.sleeper_in("klpt_new_block_read")
    assert pids(guest.call("kgraft.blocking")) == [old]

    guest.disable(SLEEPY)
    guest.until("[ $(grep -lx 1 /proc/[0-9]*/patch_state | wc -l) = 1 ]", 10)
    assert guest.call("kgraft.status")["direction"] == "revert"
    assert pids(guest.call("kgraft.blocking")) == [new]

    guest.sh(f"echo 1 > {SYSFS}/{SLEEPY}/enabled")
    guest.until("[ $(grep -lx 0 /proc/[0-9]*/patch_state | wc -l) = 1 ]", 10)
    status = guest.call("kgraft.status")
    assert (status["state"], status["direction"], status["active"]) == ("in_progress", "apply", [SLEEPY])
    assert pids(guest.call("kgraft.blocking")) == [old]

    guest.wake()
    guest.settled()
    assert guest.call("kgraft.patches")[SLEEPY]["state"] == "applied"


# -- waiting, and poking


def test_wait_ends_when_the_transition_does(guest):
    guest.sleeper("killable")
    guest.insert(FIRST)
    guest.later("echo 1 > /proc/klpt/wake", 2)

    took = guest.call("kgraft.wait", timeout=30)

    assert 1 < took < 20
    assert guest.call("kgraft.status")["state"] == "ready"


def test_wait_names_whom_it_waited_for(guest):
    pid = guest.sleeper("killable")
    guest.insert(FIRST)
    guest.until("[ $(grep -lx 0 /proc/[0-9]*/patch_state | wc -l) = 1 ]", 10)

    with pytest.raises(Refused, match=rf"cat \({pid}\)") as refused:
        guest.call("kgraft.wait", timeout=1)

    assert refused.value.kind == "CommandExecutionError"
    assert refused.value.info["timed_out"] is True
    assert pids(refused.value.info["blocking"]) == [pid]


@pytest.mark.parametrize("method", ["trace", "signals"])
@pytest.mark.parametrize("threads", [False, True], ids=["one thread", "eight threads"])
def test_poke_frees_an_interruptible_sleeper_who_notices_nothing(guest, threads, method):
    pid, tid = guest.many_threads() if threads else [guest.sleeper("block")] * 2
    stranger = guest.sleeper("killable")
    guest.insert(FIRST)
    guest.until("[ $(grep -lx 0 /proc/[0-9]*/task/*/patch_state | wc -l) = 2 ]", 10)
    before = guest.sh(f"grep ctxt /proc/{stranger}/status")

    shown = guest.call("kgraft.poke", test=True, method=method)
    assert pids({"tasks": shown["poked"]}) == [pid]
    assert guest.call("kgraft.in_progress", pid) is True
    answer = guest.call("kgraft.poke", method=method)

    assert [(task["pid"], task["crossed"], task["left"]) for task in answer["poked"]] == [(pid, [tid], {})]
    assert pids({"tasks": answer["skipped"]}) == [stranger]
    assert "uninterruptibly" in answer["skipped"][0]["reason"]
    assert (answer["vanished"], answer["count"]) == ([], 1)
    assert guest.call("kgraft.in_progress", pid) is False
    assert guest.call("kgraft.in_progress", stranger) is True
    assert guest.sh(f"grep ctxt /proc/{stranger}/status") == before
    if not threads:  # the read went on, in the new code
        assert guest.said(pid) == FIRST
    else:
        assert guest.sh(f"grep State: /proc/{pid}/status").split()[1] == "S"


def test_a_reader_goes_on_reading_after_it_was_traced(guest):
    pid = guest.sleeper("block")
    calls = guest.sh(f"cat /proc/{pid}/syscall")

    assert guest.poker("trace", pid) == "moved"

    guest.until(f"grep -q klpt_block_read /proc/{pid}/stack", 10)
    assert guest.sh(f"cat /proc/{pid}/syscall") == calls
    guest.wake()
    guest.until(f"grep -qx orig {guest.wrote[pid]}", 10)


def test_pid_1_is_moved_by_tracing_and_never_by_signals(guest):
    guest.first_process()
    guest.insert(FIRST)
    guest.until("[ $(grep -lx 0 /proc/[0-9]*/task/*/patch_state | wc -l) = 1 ]", 10)

    spared = guest.call("kgraft.poke", method="signals")
    assert [(task["pid"], task["reason"]) for task in spared["skipped"]] == [(1, "pid 1 takes no signals")]
    answer = guest.call("kgraft.poke")

    assert [(task["pid"], task["crossed"]) for task in answer["poked"]] == [(1, [1])]
    assert guest.call("kgraft.wait", timeout=10) < 10
    # a shell reads byte by byte, and who goes on in the new code gets the first one only; the old one says "orig"
    guest.until(f"grep -qx {FIRST[0]} /run/pid1-said", 10)


@pytest.mark.parametrize("method", ["trace", "signals"])
def test_epoll_is_interrupted_by_a_poke_as_the_manual_says(guest, method):
    pid = guest.python(EPOLL)
    guest.until(f"grep -q epoll /proc/{pid}/stack", 10)

    assert guest.poker(method, pid) == "moved"

    guest.until("grep -qx 'Interrupted system call' /run/epoll", 10)


EPOLL = """
import subprocess
program = "import ctypes, os; libc = ctypes.CDLL(None, use_errno=True);" \
    "libc.epoll_wait(libc.epoll_create1(0), ctypes.create_string_buffer(12), 1, -1);" \
    "print(os.strerror(ctypes.get_errno()))"
process = subprocess.Popen(["/opt/python", "-I", "-S", "-c", program], stdout=open("/run/epoll", "w"))
agent.__dict__.setdefault("children", []).append(process)
answer = process.pid
"""


def test_what_cannot_be_moved_is_left_as_it_was(guest):
    killable, stopped, thread = guest.sleeper("killable"), guest.sleeper("block"), guest.kernel_thread()
    guest.stopped(stopped)

    assert guest.poker("trace", killable) == "uninterruptible"
    assert guest.poker("trace", stopped) == "stopped"
    assert guest.poker("trace", thread) == "EPERM"

    letters = [guest.sh(f"grep State: /proc/{pid}/status").split()[1] for pid in (killable, stopped)]
    assert letters == ["D", "T"]
    guest.wake()
    guest.until(f"grep -qx orig {guest.wrote[killable]}", 10)
    guest.sh("echo 0 > /sys/module/klpt_target/parameters/kthread")


def test_the_kernel_itself_wakes_sleepers_after_fifteen_seconds(guest):
    pid = guest.sleeper("block")
    guest.insert(FIRST)

    took = guest.call("kgraft.wait", timeout=40)

    assert 5 < took < 30
    assert any("signaling remaining tasks" in line for _, line in guest.kernel_log())
    assert guest.said(pid) == FIRST


# -- acting on a machine that may be thrown away


def test_load_starts_a_transition_and_a_second_one_is_refused(guest):
    guest.sleeper("killable")

    assert guest.call("kgraft.load", FIRST) == {"name": FIRST, "state": "applying"}
    with pytest.raises(Refused, match="a transition is running"):
        guest.call("kgraft.load", CORE)
    assert guest.insert(CORE, check=False).code != 0  # the kernel's own word for the same

    guest.wake()
    guest.settled()
    assert guest.call("kgraft.load", "livepatch-1-1-1") == {"name": FIRST, "state": "applied"}
    assert guest.call("kgraft.load", CORE)["state"] in ("applying", "applied")


def test_loading_what_is_not_installed_is_an_error(guest):
    with pytest.raises(Refused, match="livepatch_9_9_9 not found"):
        guest.call("kgraft.load", "livepatch_9_9_9")


def test_loading_a_disabled_patch_that_is_still_in_memory_is_an_error(guest):
    """
    modprobe calls a module that is loaded a success, so the kernel must be looked at: the code is there, the patch not.
    """
    guest.load(FIRST)
    guest.disabled(FIRST)
    assert guest.insert(FIRST).code == 0

    with pytest.raises(Refused, match=f"{FIRST} as not loaded"):
        guest.call("kgraft.load", FIRST)
    assert guest.call("kgraft.patches") == {}


def test_going_back_to_a_patch_that_was_replaced_takes_it_out_of_memory_first(guest):
    guest.load(SECOND, THIRD)
    assert guest.patches() == [THIRD]

    for name in (SECOND, THIRD, SECOND):
        assert guest.call("kgraft.unload", name, test=True) == {"name": name, "state": "inactive"}
        with pytest.raises(Refused, match=f"{name} as not loaded"):
            guest.call("kgraft.load", name)
        assert guest.call("kgraft.unload", name) == {"name": name, "state": None}
        assert guest.call("kgraft.unload", name) == {"name": name, "state": None}
        assert guest.call("kgraft.load", name)["state"] in ("applying", "applied")
        guest.settled()
        assert guest.call("kgraft.status")["active"] == [name]
        assert guest.sh("cat /proc/klpt/state").strip() == name

    for name, why in ((SECOND, "only an inactive patch is unloaded"), ("klpt_target", "no live patch")):
        with pytest.raises(Refused, match=why):
            guest.call("kgraft.unload", name)


def test_revert_takes_a_patch_away(guest):
    guest.load(FIRST)

    with pytest.raises(Refused, match="i_accept_loss_of_support"):
        guest.call("kgraft.revert", FIRST)
    assert guest.value(f"{FIRST}/enabled") == "1"
    answer = guest.call("kgraft.revert", FIRST, i_accept_loss_of_support=True)

    assert answer["state"] in ("reverting", "inactive")
    guest.until(f"! [ -e {SYSFS}/{FIRST} ]")
    assert guest.sh("cat /proc/klpt/state").strip() == "orig"


def test_revert_turns_an_apply_back_even_in_mid_air(guest):
    guest.sleeper("killable")
    guest.call("kgraft.load", FIRST)

    guest.call("kgraft.revert", FIRST, i_accept_loss_of_support=True)

    assert guest.call("kgraft.wait", timeout=20) < 20  # the sleeper is on the right side already
    assert guest.call("kgraft.patches") == {}


def test_revert_is_refused_while_another_patch_is_in_transition(guest):
    guest.load(CORE)
    guest.sleeper("killable")
    guest.insert(FIRST)

    with pytest.raises(Refused, match="a transition is running"):
        guest.call("kgraft.revert", CORE, i_accept_loss_of_support=True)

    assert guest.value(f"{CORE}/enabled") == "1"


def test_force_ends_a_transition_though_the_sleeper_stays(guest):
    pid = guest.sleeper("killable")
    with pytest.raises(Refused, match="nothing to force"):
        guest.call("kgraft.force", i_accept_loss_of_support=True)
    guest.insert(FIRST)
    with pytest.raises(Refused, match="i_accept_loss_of_support"):
        guest.call("kgraft.force")

    guest.call("kgraft.force", i_accept_loss_of_support=True)

    guest.settled(10)
    assert guest.call("kgraft.patches")[FIRST]["state"] == "applied"
    assert load_file("_modules/kgraft_security.py")._FORCED.search(guest.sh("dmesg"))
    guest.wake()
    guest.until(f"! [ -e /proc/{pid} ] || grep -q 'State:.Z' /proc/{pid}/status", 10)
    assert guest.said(pid) == "orig"  # it ran the old code to its end


def test_patches_that_vanish_while_they_are_listed(guest):
    """Two hundred patches come and go while we look; each look is a whole one, none fails."""
    answer = guest.python(CHURN, timeout=150)

    assert answer["broken"] == []
    assert answer["vanished"] == 200
    assert answer["looks"] >= 50
    assert set(answer["states"]) <= {"applying", "applied", "reverting", "inactive"}
    assert answer["states"], "no look met a patch"


# A child loads patches and takes them away, by the bare system calls: a process for each would take most of the time. A
# transition takes 6.12 half a second here, so most are such as the kernel refuses once they have shown in sysfs.
CHURN = """
import collections, ctypes, os, time
libc = ctypes.CDLL(None, use_errno=True)
images = {}
for name in ("klpt_core", "klpt_broken"):
    with open(f"/lib/modules/{os.uname().release}/livepatch/{name}.ko", "rb") as file:
        images[name] = file.read()
base = "/sys/kernel/livepatch/"

def load(name):
    return libc.syscall(175, images[name], ctypes.c_ulong(len(images[name])), b"")

def applied_and_gone(name):
    assert load(name) == 0, ctypes.get_errno()
    until(lambda: read(base + name + "/transition") == "0\\n")
    with open(base + name + "/enabled", "w") as enabled:
        enabled.write("0")
    until(lambda: not os.path.isdir(base + name))
    until(lambda: libc.syscall(176, name.encode(), 0) == 0)

def read(path):
    with open(path) as file:
        return file.read()

def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)

child = os.fork()
if not child:
    try:
        for number in range(200):
            if number % 20 == 0:
                applied_and_gone("klpt_core")
            else:
                assert load("klpt_broken") == -1
                time.sleep(0.02)  # and let the other look
        os._exit(0)
    finally:
        os._exit(1)

looks, broken, states = 0, [], collections.Counter()
ended = 0, 0
while ended == (0, 0):
    answers = [agent.call(name, kwargs=kwargs) for name, kwargs in (
        ("kgraft.status", {}), ("kgraft.patches", {"functions": True}), ("kgraft.summary", {}))]
    broken += [answer for answer in answers if "return" not in answer]
    states.update(patch["state"] for patch in answers[1].get("return", {}).values())
    looks += 1
    ended = os.waitpid(child, os.WNOHANG)
answer = {"looks": looks, "broken": broken, "states": states, "vanished": 200 if ended[1] == 0 else "the child failed"}
"""
