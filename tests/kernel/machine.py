"""
A virtual machine: QEMU with software emulation, one processor, no network.

A machine is booted once and saved; each test wakes a copy of it, which takes some tenths of a second. Every step has a
deadline, and whatever fails shows the guest's console. KVM only when KGRAFT_TEST_ACCEL=kvm says so: a /dev/kvm that
opens proves nothing, it may emulate a kernel's own mode instruction by instruction and never get to init.
"""

import base64
import contextlib
import ctypes
import itertools
import json
import os
import signal
import socket
import subprocess
import tarfile
import time

QEMU = "qemu-system-x86_64"
MEMORY = "768M"
CODE_SIZE = 8 * 2**20
# mitigations=off: no page table switch on each system call, a quarter less time
COMMAND_LINE = "console=ttyS0 panic=-1 quiet mitigations=off rdinit=/init printk.time=1 log_buf_len=1M"

BOOT, WARM, SAVE, COMMAND = 90, 180, 60, 60


class Broken(Exception):
    """The machine did not do what was asked in time, or is gone. The message ends with the console's last lines."""


class Answer(str):
    """What a command in the guest wrote; ``code`` is its exit code."""

    code = 0


def _die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: an interrupted run leaves no machine behind


class Machine:
    def __init__(self, kernel, image, initramfs, directory, code=None, saved=None):
        """
        Start QEMU: a boot, or a saved guest that goes on where it was.

        ``directory`` takes the sockets and the console; its path must be short. ``code``: the tar for the second disk.
        """
        self.kernel = kernel
        self.console = directory / "console"
        self.directory = directory
        self.numbers = itertools.count(1)
        self.buffer = b""
        self.port = self.control = None
        disk = directory / "code"
        with open(disk, "wb") as file:
            file.write(code.read_bytes() if code else b"")
            file.truncate(CODE_SIZE)
        command = [
            QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "pc",
            "-accel", os.environ.get("KGRAFT_TEST_ACCEL", "tcg"), "-smp", "1", "-m", MEMORY,
            "-kernel", kernel.vmlinuz, "-initrd", initramfs, "-append", COMMAND_LINE,
            "-drive", f"file={image},format=raw,if=virtio,readonly=on",
            "-drive", f"file={disk},format=raw,if=virtio,readonly=on",
            "-chardev", f"file,id=console,path={self.console},append=on", "-serial", "chardev:console",
            "-chardev", f"socket,id=agent,path={directory}/agent,server=on,wait=off", "-serial", "chardev:agent",
            "-qmp", f"unix:{directory}/qmp,server=on,wait=off",
        ]  # fmt: skip
        if saved:
            command += ["-incoming", f"exec:cat {saved}"]
        self.console.touch()
        self.log = open(directory / "qemu", "wb")  # noqa: SIM115 closed by kill
        self.process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            preexec_fn=_die_with_parent,
        )

    # -- life

    def fail(self, what):
        lines = self.console.read_text(errors="replace").splitlines()[-40:]
        qemu = (self.directory / "qemu").read_text(errors="replace")
        state = self.process.poll()
        raise Broken(
            f"{self.kernel.release}: {what} (qemu {'runs' if state is None else f'ended with {state}'})\n"
            + "\n".join([*qemu.splitlines(), "--- console", *lines])
        )

    def wait_for(self, condition, timeout, what):
        end = time.monotonic() + timeout
        while True:
            result = condition()
            if result:
                return result
            if self.process.poll() is not None:
                self.fail(f"waiting for {what}: the machine is gone")
            if time.monotonic() > end:
                self.fail(f"waiting for {what}: not within {timeout} s")
            time.sleep(0.02)

    def connect(self, name):
        path = str(self.directory / name)

        def attempt():
            link = socket.socket(socket.AF_UNIX)
            try:
                link.connect(path)
            except OSError:
                link.close()
                return None
            return link

        return self.wait_for(attempt, 20, f"its socket {name}")

    def wait_for_boot(self):
        self.port = self.connect("agent")
        self.wait_for(lambda: "agent: ready" in self.console.read_text(errors="replace"), BOOT, "the boot")

    def wait_for_wake(self):
        self.port = self.connect("agent")
        self.wait_for(lambda: self.monitor("query-status")["status"] == "running", BOOT, "the saved guest")

    def kill(self):
        self.process.kill()
        self.process.wait(20)
        for link in (self.port, self.control):
            if link:
                link.close()
        self.log.close()
        (self.directory / "code").unlink(missing_ok=True)

    # -- QEMU's monitor

    def monitor(self, command, **arguments):
        if self.control is None:
            self.control = self.connect("qmp")
            self.control.settimeout(20)
            self.control_file = self.control.makefile("rw")
            self.control_file.readline()
            self.monitor("qmp_capabilities")
        self.control_file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.control_file.flush()
        while True:
            answer = json.loads(self.control_file.readline())
            if "error" in answer:
                self.fail(f"monitor: {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def save(self, path):
        self.monitor("migrate-set-parameters", **{"max-bandwidth": 2**32})
        self.monitor("migrate", uri=f"exec:cat > {path}")

        def done():
            status = self.monitor("query-migrate").get("status")
            if status == "failed":
                self.fail("saving")
            return status == "completed"

        self.wait_for(done, SAVE, "the saved state")

    # -- the agent in the guest

    def ask(self, do, timeout=COMMAND, **arguments):
        number = next(self.numbers)
        end = time.monotonic() + timeout
        try:
            self.port.settimeout(timeout)
            self.port.sendall(json.dumps({"id": number, "do": do, "with": arguments}).encode() + b"\n")
            while True:
                line, newline, rest = self.buffer.partition(b"\n")
                if newline:
                    self.buffer = rest
                    with contextlib.suppress(ValueError):
                        answer = json.loads(line)
                        if answer["id"] == number:
                            break
                    continue
                self.port.settimeout(max(0.01, end - time.monotonic()))
                chunk = self.port.recv(65536)
                if not chunk:
                    self.fail(f"{do}: the agent's line is closed")
                self.buffer += chunk
        except OSError as err:
            self.fail(f"{do} {arguments}: no answer within {timeout} s: {err}")
        if "broken" in answer:
            raise AssertionError(f"in the guest: {do} {arguments}\n{answer['broken']}")
        return answer["answer"]

    def sh(self, command, timeout=COMMAND, check=True, what=None):
        """Run a command in the guest. Unless ``check`` is False, an exit code that is not 0 is an error."""
        answer = self.ask("shell", timeout=timeout + 10, command=command, limit=timeout)
        output = Answer(base64.b64decode(answer["output"]).decode(errors="replace"))
        output.code = answer["code"]
        if check and output.code:
            raise AssertionError(f"in the guest: {what or command}: exit {output.code}\n{output}")
        return output

    def python(self, code, timeout=COMMAND):
        """Run Python in the agent; the answer is what it left in ``answer``."""
        return self.ask("python", timeout=timeout, code=code)

    def write(self, path, text, mode=0o644):
        data = text.encode() if isinstance(text, str) else text
        self.ask("write", path=path, data=base64.b64encode(data).decode(), mode=mode)


def pack(tree, into):
    """What the guest will load: the folders of the checkout as they are now."""
    with tarfile.open(into, "w") as tar:
        for folder in ("_modules", "_states", "_beacons"):
            if (tree / folder).is_dir():
                tar.add(tree / folder, folder, filter=lambda info: None if "__pycache__" in info.name else info)
    if into.stat().st_size > CODE_SIZE:
        raise RuntimeError(f"the checkout's code is larger than the disk for it: {into.stat().st_size} > {CODE_SIZE}")


def boot_and_save(kernel, image, directory, say=print):
    """Boot a kernel, make Salt warm, save the guest; return the path of the saved guest and of its initramfs."""
    from tests.kernel import debian

    initramfs, saved = directory / "initramfs", directory / "saved"
    debian.add_guest(kernel, initramfs)
    start = time.monotonic()
    machine = Machine(kernel, image, initramfs, directory)
    try:
        machine.wait_for_boot()
        booted = time.monotonic()
        machine.ask("warm", timeout=WARM)
        warm = time.monotonic()
        machine.save(saved)
        say(
            f"{kernel.release}: booted in {booted - start:.1f} s, Salt warm in {warm - booted:.1f} s,"
            f" saved {saved.stat().st_size >> 20} MB in {time.monotonic() - warm:.1f} s"
        )
    finally:
        machine.kill()
    return initramfs, saved
