"""
A real kernel with live patching, in a virtual machine, fresh for each test.

``guest``  a woken guest (tests.kernel.guest.Guest) with klpt_target loaded and our checkout under Salt's loader; each
           test that asks for it runs once for each kernel
"""

import itertools
import os
import pathlib
import shutil
import tempfile
from typing import NamedTuple

import pytest

from tests.kernel import debian, image, machine
from tests.kernel.guest import Guest

# QEMU, busybox for the guest's init, cpio for its initramfs, kmod, a compiler and apt for the modules
TOOLS = (
    "qemu-system-x86_64",
    "busybox",
    "cpio",
    "depmod",
    "mke2fs",
    "ldconfig",
    "gcc",
    "make",
    "strip",
    "apt-get",
    "dpkg-deb",
)
REPO = pathlib.Path(__file__).resolve().parents[2]

# KERNELS=6.1 runs on that one only, so that make can run both at a time
KERNELS = tuple(os.environ.get("KERNELS", "").split()) or debian.known()

# Words of a kernel that is no longer well. A WARNING of livepatch's own force is expected and named by its test.
SICK = ("BUG:", "Oops", "general protection", "soft lockup", "Kernel panic", "Call Trace")


def pytest_collection_modifyitems(items):
    # one kernel after the other: each is booted once
    mine = [item for item in items if hasattr(item, "callspec") and "saved" in item.callspec.params]
    order = {id(item): number for number, item in enumerate(mine)}
    rank = sorted(mine, key=lambda item: (KERNELS.index(item.callspec.params["saved"]), order[id(item)]))
    replacement = iter(rank)
    items[:] = [next(replacement) if id(item) in order else item for item in items]
    if len(mine) == len(items) and missing_tools():
        pytest.exit(
            missing_tools(), returncode=1 if os.environ.get("CI") else 0
        )  # one line instead of one for each test


def missing_tools():
    """What to say where a tool is missing; nothing where none is."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    missing = [tool for tool in TOOLS if not shutil.which(tool, path=path)]
    return missing and f"a real kernel needs {', '.join(missing)}: install the packages in requirements/debian.txt"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    report = (yield).get_result()
    guest = getattr(item, "funcargs", {}).get("guest")
    if report.failed and guest is not None and guest.process.poll() is None:
        try:
            report.sections.append((f"the log of {guest.kernel.release}", str(guest.sh("dmesg | tail -n 40"))))
        except machine.Broken as err:
            report.sections.append(("the guest", str(err)))


class Saved(NamedTuple):
    kernel: debian.Kernel
    image: pathlib.Path
    initramfs: pathlib.Path
    state: pathlib.Path
    directory: pathlib.Path


@pytest.fixture(scope="session")
def say(request):
    """Print a line of progress past pytest's capture: some steps take half a minute."""
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    capture = request.config.pluginmanager.get_plugin("capturemanager")

    def line(text):
        with capture.global_and_fixture_disabled():
            reporter.ensure_newline()
            reporter.write_line(f"  {text}")

    return line


@pytest.fixture(scope="session", params=KERNELS)
def saved(request, say):
    """A kernel, booted once with a warm Salt, and saved."""
    if missing_tools():
        pytest.skip(missing_tools())
    directory = pathlib.Path(tempfile.mkdtemp(prefix="kgvm"))
    try:
        disk = image.prepare(say)
        kernel = debian.prepare(request.param, say)
        yield Saved(kernel, disk, *machine.boot_and_save(kernel, disk, directory, say), directory)
    finally:
        shutil.rmtree(directory)  # half a gigabyte


numbers = itertools.count(1)


@pytest.fixture
def plain_guest(saved):
    """A guest just woken: no module of ours is loaded, no code of ours unpacked."""
    directory = saved.directory / str(next(numbers))
    directory.mkdir()
    code = directory / "code.tar"
    machine.pack(REPO, code)
    guest = Guest(saved.kernel, saved.image, saved.initramfs, directory, code, saved.state)
    try:
        guest.wait_for_wake()
        yield guest
        log = guest.sh("dmesg")
        sick = [line for line in log.splitlines() if any(word in line for word in SICK)]
        assert not sick, f"the kernel of the guest is not well:\n{log}"
    finally:
        guest.kill()
        shutil.rmtree(directory)


@pytest.fixture
def guest(plain_guest):
    plain_guest.ask("unpack")
    plain_guest.insert("klpt_target")
    return plain_guest
