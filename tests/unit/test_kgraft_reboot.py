"""Whether a machine has to be rebooted: the cases, on a machine of files."""

import datetime
import os
import re

import pytest
from salt.exceptions import SaltInvocationError

from tests.support import grub
from tests.support.packages import KERNEL, package_name
from tests.support.suse_of_files import Machine

NEXT = "4.4.180-94.107-default"
PACKAGE = package_name(KERNEL)
BOOT_NEXT = "sys/firmware/efi/efivars/BootNext-8be4df61-93ca-11d2-aa0d-00e098032b8c"
TAINTED = "proc/sys/kernel/tainted"

# CVE-…-0001 is fixed in the running kernel, 9 and 10 by its live patches of these numbers
CHANGELOG = "- Fix CVE-2026-0001, CVE-2026-0009"
SEVERE, CRITICAL, MILD, UNRATED = "CVE-2026-0010", "CVE-2026-0020", "CVE-2026-0030", "CVE-2026-0040"


@pytest.fixture
def machine(tmp_path):
    """It runs kernel and live patch 9-2.2, and the next boot brings the same kernel."""
    machine = Machine(tmp_path)
    machine.kernel_changelog = "- Fix CVE-2026-0001"
    machine.updates = {"CVE-2026-0009": "9-2.2", SEVERE: "10-2.1"}
    machine.runs("9-2.2")
    machine.known = [
        ("SUSE-live-patch-9", "applied", "important", False, ["CVE-2026-0009"], {PACKAGE: "9-2.2"}),
        ("SUSE-live-patch", "needed", "important", False, [SEVERE], {PACKAGE: "10-2.1"}),
        ("SUSE-kernel", "applied", "critical", True, [CRITICAL], {"kernel-default": "4.4.180-94.107.1"}),
        ("SUSE-old", "not-needed", "moderate", False, [MILD, SEVERE], {"other": "1-1"}),
        ("SUSE-odd", "applied", "unspecified", False, [UNRATED], {"other": "1-1"}),
    ]
    grub.install(machine.kernel.write, KERNEL)
    lifecycle(machine, datetime.date.today() + datetime.timedelta(days=90))
    return machine


def lifecycle(machine, date):
    machine.until = str(date)
    machine.kernel.write("var/lib/lifecycle/data/sle-live-patching.lifecycle", f"{PACKAGE}, *, {date}\n")


def next_kernel(machine, changelog=CHANGELOG, **variables):
    machine.new["kernel-default"] = ["kernel"]
    machine.kernels[NEXT] = changelog
    grub.install(machine.kernel.write, NEXT, KERNEL, **variables)


def ask(machine, **arguments):
    told = machine.salt["kgraft_security.reboot"](**arguments)
    assert set(told) == {"verdict", "until", "reasons", "next_kernel", "uncovered", "below"}
    assert told["reasons"] and all(reason.endswith(".") for reason in told["reasons"])
    return told


# Which verdict


def older(*cves):
    """The same as ``newer``, and the kernel was installed before this boot."""

    def step(machine):
        newer(*cves)(machine)
        machine.new.clear()

    return step


def newer(*cves):
    return lambda machine: next_kernel(machine, CHANGELOG + "".join(f", {cve}" for cve in cves))


def write(path, text):
    return lambda machine: machine.kernel.write(path, text)


def installed(name, *provides):
    return lambda machine: machine.new.update({name: list(provides)})


def flagged(name, **brought):
    """An applied update with the reboot flag."""
    return lambda machine: machine.known.append((name, "applied", "important", True, [], brought))


def needed(name, **brought):
    return lambda machine: machine.known.append((name, "needed", "important", True, [], brought))


def set_to(**values):
    return lambda machine: vars(machine).update(values)


def dead(machine):
    machine.repositories["live-patching"]["dead"] = True


def ended(machine):
    lifecycle(machine, datetime.date.today() - datetime.timedelta(days=1))


def last_day(machine):
    lifecycle(machine, datetime.date.today())


FORCED = "livepatch: forcing remaining tasks to the patched state"
FORCED_BACK = FORCED.replace("patched", "unpatched")
CLEARED = "kgr: all processes marked as migrated on admin's request"


def logged(line, retcode=0):
    def log(machine):
        # the log is that of /, so this must be the machine's own root
        machine.modules["kgraft_security"].zypper.root = lambda: {}
        machine.dmesg = retcode, f"[    5.123456] something\n[   60.123456][ T4711] {line}\n"

    return log


def reverted(machine):
    machine.rules.revert("kgraft-patch-9-2_2")
    machine.settle()


def reverting(machine):
    machine.rules.revert("kgraft-patch-9-2_2")


def replaced(machine):
    machine.runs("10-2.1")


def moving(machine):
    machine.moves("10-2.1")


def locked(machine):
    machine.kernel.write("run/zypp.pid", f"{os.getpid()}\n")


def own_patch(machine):
    machine.kernel.patch("our-own-patch", "applied", replace_all=False)


def first_module(machine):
    """Another module is newer than the live patch."""
    modules = (machine.kernel.root / "proc/modules").read_text("utf-8")
    machine.kernel.write("proc/modules", "odd 16384 0 - Live 0xffffffffc0020000\n" + modules)


def module(flags):
    return write("proc/modules", f"odd 16384 0 - Live 0xffffffffc0020000 ({flags})\n")


AGAIN = "The next boot brings 4.4.180-94.100-default again, and"
WAITS = "The next boot brings 4.4.180-94.107-default; of what it fixes, all that matters is fixed"
FIXES = "The next boot brings 4.4.180-94.107-default, which fixes CVE"
ASKS = "Installed since the boot, and asking for another: "
UNRATED_IS = "No update says for certain how severe CVE"


@pytest.mark.parametrize(
    ("arrange", "verdict", "reasons", "uncovered", "below"),
    [
        # the running kernel comes again
        pytest.param([], "not needed", [AGAIN + " nothing asks"], [], 0, id="the same kernel"),
        pytest.param(
            [installed("vim")], "not needed", [AGAIN + " nothing"], [], 0, id="something new asks for nothing"
        ),
        pytest.param(
            [flagged("SUSE-a", vim="1-1")], "not needed", [AGAIN + " nothing"], [], 0, id="flagged, before it"
        ),
        pytest.param(
            [installed("kernel-default", "kernel")], "can wait", [AGAIN + " only a kernel"], [], 0, id="pinned"
        ),
        pytest.param(
            [installed("kernel-default", "kernel"), set_to(known=[])],
            "can wait",
            [AGAIN + " only a"],
            [],
            0,
            id="unflagged",
        ),
        pytest.param([set_to(flag=2)], "not needed", [AGAIN + " nothing"], [], 0, id="a zypper that knows no flag"),
        pytest.param([last_day], "not needed", [AGAIN], [], 0, id="the last day"),
        pytest.param([replaced], "not needed", [AGAIN], [], 0, id="a replaced live patch"),
        pytest.param([own_patch], "not needed", [AGAIN], [], 0, id="an unknown live patch"),
        # another kernel comes
        pytest.param([newer()], "can wait", [WAITS], [], 0, id="all is fixed"),
        pytest.param([newer(), set_to(flag=102)], "can wait", [WAITS], [], 0, id="the flag is the kernel's"),
        pytest.param([newer(MILD)], "can wait", [WAITS], [SEVERE][:0], 1, id="what is left is moderate"),
        pytest.param([newer(CRITICAL)], "needed", [FIXES + "-2026-0020: neither"], [CRITICAL], 0, id="critical"),
        pytest.param(
            [newer(MILD, SEVERE)], "needed", [FIXES + "-2026-0010: n"], [SEVERE], 1, id="important in one of two"
        ),
        pytest.param([replaced, newer(SEVERE)], "can wait", [WAITS], [], 0, id="the newer live patch fixes it"),
        pytest.param([moving, newer(SEVERE)], "needed", [FIXES], [SEVERE], 0, id="it is not settled yet"),
        pytest.param([newer(UNRATED)], "unknown", [UNRATED_IS], None, None, id="unrated"),
        pytest.param(
            [newer("CVE-2026-9999")], "unknown", [UNRATED_IS + "-2026-9999"], None, None, id="nobody names it"
        ),
        pytest.param([newer(UNRATED, SEVERE)], "needed", [FIXES, UNRATED_IS], [SEVERE], None, id="unrated, but needed"),
        pytest.param(
            [newer(MILD), dead],
            "unknown",
            ["live-patching of the tests: Valid metadata", UNRATED_IS + "-2026-0030 is"],
            None,
            None,
            id="a repository may rate it higher",
        ),
        pytest.param(
            [newer(SEVERE), dead], "needed", [FIXES, "live-patching of"], [SEVERE], 0, id="it cannot rate lower"
        ),
        pytest.param(
            [newer(MILD), own_patch],
            "unknown",
            ["What that one alone fixes cannot be told: our_own_patch: nothing says what it fixes"],
            None,
            None,
            id="an unknown live patch may fix it",
        ),
        pytest.param(
            [newer(MILD), set_to(kernel_changelog="")], "unknown", ["changelog: rpm"], None, None, id="purged"
        ),
        pytest.param(
            [newer(), set_to(kernels={})],
            "unknown",
            ["rpm has no changelog of /boot/System.map-.*107"],
            None,
            None,
            id="no",
        ),
        pytest.param([older(), set_to(hangs=("list-patches",))], "can wait", [WAITS], [], 0, id="nothing left to rate"),
        pytest.param([older(MILD), dead], "unknown", ["live-patching of", UNRATED_IS], None, None, id="no rating"),
        # something asks
        pytest.param([installed("a", "installhint(reboot-needed)")], "needed", [ASKS + "a"], [], 0, id="hint"),
        pytest.param(
            [installed("glibc"), write("etc/zypp/needreboot", "# core\nglibc\n")],
            "needed",
            [ASKS + "glibc"],
            [],
            0,
            id="list",
        ),
        pytest.param(
            [installed("u", "lib"), write("etc/zypp/needreboot.d/x", "provides:lib\n")],
            "needed",
            [ASKS + "u"],
            [],
            0,
            id="d",
        ),
        pytest.param([installed("a"), needed("SUSE-a", a="1-2")], "not needed", [AGAIN], [], 0, id="a patch to come"),
        pytest.param([installed("other")], "not needed", [AGAIN], [], 0, id="a patch without the flag"),
        pytest.param([installed("a"), flagged("SUSE-a", a="1-1", b="1-1")], "needed", [ASKS + "a"], [], 0, id="patch"),
        pytest.param(
            [newer(), installed("kernel-macros"), flagged("S", **{"kernel-default": "1-1", "kernel-macros": "1-1"})],
            "can wait",
            [WAITS],
            [],
            0,
            id="what a kernel's update brings is the kernel's",
        ),
        pytest.param(
            [newer(), installed("a", "installhint(reboot-needed)")], "needed", [ASKS + "a"], [], 0, id="and a"
        ),
        pytest.param([set_to(flag=102)], "needed", [ASKS + "what zypper does not name"], [], 0, id="zypper's flag"),
        pytest.param([write("run/reboot-needed", "")], "needed", [ASKS + "what zypper"], [], 0, id="the file"),
        pytest.param(
            [set_to(flag=7)], "unknown", ["Whether zypper wants a reboot cannot be told: zypper needs"], [], 0, id="7"
        ),
        pytest.param([set_to(flag=1)], "unknown", ["zypper wants a reboot cannot be told"], [], 0, id="zypper fails"),
        pytest.param([locked], "unknown", [r" \(\d+\) is at work on the packages"], [], 0, id="locked"),
        pytest.param(
            [installed("a"), dead], "unknown", ["live-patching of the tests: Valid"], [], 0, id="unread flags"
        ),
        # what the kernel shows
        pytest.param([reverted], "needed", ["kgraft_patch_9_2_2 was reverted, and no"], [], 0, id="reverted"),
        pytest.param(
            [reverted, first_module], "needed", ["kgraft_patch_9_2_2 was reverted, and no"], [], 0, id="and a module"
        ),
        pytest.param([reverting], "needed", ["kgraft_patch_9_2_2 is being reverted"], [], 0, id="reverting"),
        pytest.param([logged(FORCED)], "needed", ["A transition was forced, as the kernel"], [], 0, id="forced"),
        pytest.param([logged(FORCED_BACK)], "needed", ["A transition was forced"], [], 0, id="forced back"),
        pytest.param([logged(CLEARED)], "needed", ["A transition was forced"], [], 0, id="cleared by hand"),
        pytest.param([logged("x: " + FORCED)], "not needed", [AGAIN], [], 0, id="another says so"),
        pytest.param(
            [logged("", 1)], "unknown", ["Whether a transition was forced cannot be told"], [], 0, id="no log"
        ),
        pytest.param([write(TAINTED, f"{1 << 30}\n")], "needed", ["marked as unsupported"], [], 0, id="N"),
        pytest.param([write(TAINTED, f"{1 << 30}\n"), module("OEN")], "not needed", [AGAIN], [], 0, id="N of a module"),
        pytest.param(
            [write(TAINTED, f"{1 << 30}\n"), module("OEK")], "needed", ["marked as"], [], 0, id="N of no module"
        ),
        pytest.param([write(TAINTED, "45056\n")], "not needed", [AGAIN], [], 0, id="other taints"),
        pytest.param(
            [write(TAINTED, "odd\n")], "unknown", ["as unsupported cannot be told: invalid"], [], 0, id="odd taint"
        ),
        # the end of support
        pytest.param([ended], "needed", ["Live patches for 4.4.180-94.100-default ended on 20"], [], 0, id="ended"),
        pytest.param([newer(), ended], "needed", ["Live patches for .* ended"], [], 0, id="ended, and another kernel"),
    ],
)
def test_the_verdict_has_its_reasons(machine, arrange, verdict, reasons, uncovered, below):
    for step in arrange:
        step(machine)

    told = ask(machine)

    assert (told["verdict"], told["uncovered"], told["below"]) == (verdict, uncovered, below), told
    for reason, pattern in zip(told["reasons"], reasons, strict=True):
        assert re.search(pattern, reason), reason
    assert told["until"] == machine.until
    assert machine.changed == []


def test_all_reasons_are_told_at_once_and_a_certain_one_decides(machine):
    for step in (
        newer(SEVERE, UNRATED),
        installed("a", "installhint(reboot-needed)"),
        ended,
        reverting,
        set_to(flag=102),
    ):
        step(machine)

    told = ask(machine)

    assert (told["verdict"], told["next_kernel"]) == ("needed", NEXT)
    assert [reason.split()[0] for reason in told["reasons"]] == ["Installed", "kgraft_patch_9_2_2", "The", "Live", "No"]
    assert "CVE-2026-0009, CVE-2026-0010: neither" in told["reasons"][2], (
        "what is being reverted fixes nothing for sure"
    )


@pytest.mark.parametrize("abi", [None, "kgraft"])
def test_a_kernel_that_can_have_no_live_patch_gets_its_answer(tmp_path, abi):
    machine = Machine(tmp_path, abi, release="4.4.180-94.100-azure")
    machine.kernel_changelog = "- Fix CVE-2026-0001"
    machine.known = [("SUSE-kernel", "needed", "important", True, ["CVE-2026-0002"], {"kernel-azure": "1-1"})]
    machine.kernels[NEXT] = "- Fix CVE-2026-0001"
    grub.install(machine.kernel.write, NEXT)

    told = ask(machine)
    assert (told["verdict"], told["until"], told["uncovered"]) == ("can wait", None, [])

    machine.kernels[NEXT] += ", CVE-2026-0002"
    told = ask(machine)
    assert (told["verdict"], told["until"], told["uncovered"]) == ("needed", None, ["CVE-2026-0002"])


def test_without_a_date_the_end_of_support_is_not_known(machine):
    machine.kernel.write("var/lib/lifecycle/data/sle-live-patching.lifecycle", "other, *, 2020-01-01\n")
    told = ask(machine)
    assert (told["verdict"], told["until"]) == ("not needed", None)

    machine.kernel.write("var/lib/lifecycle/data/sle-live-patching.lifecycle", "odd\n")
    told = ask(machine)
    assert (told["verdict"], told["until"]) == ("unknown", None)
    assert re.match("Until when 4.4.180-94.100-default gets live patches cannot be told: .*line 1", told["reasons"][0])


# What matters


@pytest.mark.parametrize("must", [[" cve-2026-0030", SEVERE], f"{MILD},{SEVERE.lower()} ", [MILD, SEVERE, MILD]])
def test_what_matters_can_be_said(machine, must):
    newer(MILD, CRITICAL, UNRATED)(machine)

    told = ask(machine, must=must)

    assert (told["verdict"], told["uncovered"], told["below"]) == ("needed", [MILD], 2)


def test_what_must_be_fixed_and_is_can_wait(machine):
    newer(MILD, CRITICAL, UNRATED)(machine)

    told = ask(machine, must=["CVE-2026-0009", "CVE-2026-0001", SEVERE])

    assert (told["verdict"], told["uncovered"], told["below"]) == ("can wait", [], 3)


@pytest.mark.parametrize("must", [[], "", "CVE-2026-1", [SEVERE, "heartbleed"], [7], 7, {SEVERE: 1}, True, [None]])
def test_what_is_no_cve_number_is_refused_by_name(machine, must):
    with pytest.raises(
        SaltInvocationError, match="must: no CVE number is ('CVE-2026-1'|'heartbleed'|7|{|True|None|'|given)"
    ):
        machine.salt["kgraft_security.reboot"](must=must)


@pytest.mark.parametrize("timeout", [-1, "5", True, None, float("nan")])
def test_a_timeout_that_cannot_be_is_refused(machine, timeout):
    with pytest.raises(SaltInvocationError, match="timeout is .*: give seconds"):
        machine.salt["kgraft_security.reboot"](timeout=timeout)


# What cannot be asked


@pytest.mark.parametrize(("hanging", "flag"), [("needs-rebooting", 0), ("-q", 0), ("-q", 102), ("list-patches", 0)])
def test_what_hangs_is_named_and_leaves_no_good_word(machine, hanging, flag):
    next_kernel(machine)
    machine.hangs, machine.flag = (hanging,), flag

    told = ask(machine)

    assert (told["verdict"], told["next_kernel"]) == ("unknown", NEXT)
    assert "did not end within 2 s and was ended" in told["reasons"][0]


def test_when_the_time_is_over_and_that_is_said_nobody_else_is_asked(machine):
    newer(SEVERE)(machine)
    machine.hangs = ("needs-rebooting",)
    machine.started = []

    told = ask(machine, timeout=0)

    assert (told["verdict"], len(told["reasons"]), machine.started) == ("unknown", 1, ["zypper needs-rebooting"])


def test_what_is_certain_counts_whatever_else_cannot_be_told(machine):
    for step in (newer(SEVERE), installed("a", "installhint(reboot-needed)"), set_to(flag=7), locked):
        step(machine)
    machine.hangs = ("list-patches", "grub2-editenv")
    saved(env_block="512+1")(machine)

    told = ask(machine)

    assert (told["verdict"], told["next_kernel"], told["uncovered"]) == ("needed", None, None)
    sure, busy, *rest = told["reasons"]
    assert sure == "Installed since the boot, and asking for another: a."
    assert "is at work on the packages" in busy
    assert [" ".join(reason.split()[:2]) for reason in rest] == ["Whether zypper", "Which updates", "Which kernel"]


def test_a_look_at_a_machine_where_nothing_is_new_asks_little(machine):
    machine.started = []
    ask(machine)
    assert machine.started == ["zypper needs-rebooting", "rpm -q"]


# Which kernel comes


def edited(old, new, count=-1):
    def step(machine):
        text = grub.menu(NEXT, KERNEL)
        assert old in text
        machine.kernel.write("boot/grub2/grub.cfg", text.replace(old, new, count))

    return step


def saved(**variables):
    return write("boot/grub2/grubenv", grub.environment(**variables))


def removed(path):
    return lambda machine: (machine.kernel.root / path).unlink()


SAVED = 'set default="${saved_entry}"'
LINUX = f"\tlinux\t/boot/vmlinuz-{NEXT}"
OUTSIDE = "a part of grubenv lies outside of the file"
ONCE = "GRUB, the firmware or kexec has something else for one boot"
FIRST = "only the first entry of its menu is read"


@pytest.mark.parametrize(
    ("step", "why"),
    [
        pytest.param(saved(), None, id="nothing is saved"),
        pytest.param(removed("boot/grub2/grubenv"), None, id="no grubenv"),
        pytest.param(saved(saved_entry=""), None, id="an empty entry"),
        pytest.param(saved(saved_entry="0"), None, id="a number"),
        pytest.param(saved(saved_entry="SLES 12-SP3"), None, id="a title"),
        pytest.param(saved(saved_entry="gnulinux-simple-1f"), None, id="an id"),
        pytest.param(saved(next_entry="", saved_entry="SLES 12-SP3"), None, id="an entry for one boot that is over"),
        pytest.param(edited(SAVED, 'set default="0"'), None, id="written there"),
        pytest.param(edited(SAVED, "set default='SLES 12-SP3'"), None, id="a title written there"),
        pytest.param(edited("linux\t/boot/", "linuxefi\t/@/boot/"), None, id="another way to load it"),
        pytest.param(write("etc/sysconfig/bootloader", "LOADER_TYPE=grub2-efi\n"), None, id="EFI"),
        pytest.param(write("sys/kernel/kexec_loaded", "0\n"), None, id="no kernel for kexec"),
        # in doubt
        pytest.param(saved(next_entry="SLES 12-SP3"), ONCE, id="an entry for one boot"),
        pytest.param(saved(prev_saved_entry="SLES 12-SP3"), ONCE, id="an entry for one boot of old tools"),
        pytest.param(write(BOOT_NEXT, "x"), ONCE, id="the firmware"),
        pytest.param(write("sys/kernel/kexec_loaded", "1\n"), ONCE, id="a kernel for kexec"),
        pytest.param(saved(env_block="512+1"), OUTSIDE, id="Btrfs, in another root"),
        pytest.param(saved(saved_entry="1"), FIRST, id="another number"),
        pytest.param(saved(saved_entry="SLES 12-SP2"), FIRST, id="an entry that is gone"),
        pytest.param(saved(saved_entry="sles"), FIRST, id="a class"),
        pytest.param(saved(saved_entry="Advanced options for SLES 12-SP3>1"), FIRST, id="in a submenu"),
        pytest.param(edited(SAVED, 'set default="${other}"'), FIRST, id="computed"),
        pytest.param(edited(SAVED, SAVED + '\nset default="1"'), FIRST, id="set twice"),
        pytest.param(write("boot/grub2/custom.cfg", "set default=1\n"), FIRST, id="set in custom.cfg"),
        pytest.param(edited("menuentry 'SLES", "if true; then\nmenuentry 'SLES", 1), FIRST, id="in an if"),
        pytest.param(
            edited("menuentry 'SLES", "menuentry 'x' { fwsetup }\nmenuentry 'SLES", 1), FIRST, id="in one line"
        ),
        pytest.param(edited(LINUX, "\tchainloader\t+1", 1), "starts no kernel in /boot", id="no kernel"),
        pytest.param(edited(LINUX, LINUX + "\n" + LINUX, 1), "starts no kernel in /boot", id="two kernels"),
        pytest.param(
            edited(LINUX, "\tlinux\t/boot/vmlinuz", 1), "starts no kernel in /boot", id="a kernel of any release"
        ),
        pytest.param(removed(f"boot/vmlinuz-{NEXT}"), "starts no kernel in /boot", id="a kernel that is gone"),
        pytest.param(write("boot/grub2/grub.cfg", ""), "starts no kernel in /boot", id="no menu"),
        pytest.param(removed("boot/grub2/grub.cfg"), "starts no kernel in /boot", id="no grub.cfg"),
        pytest.param(removed("etc/sysconfig/bootloader"), "the boot loader is not named", id="no boot loader"),
        pytest.param(
            write("etc/sysconfig/bootloader", 'LOADER_TYPE="grub2-bls"\n'), "is grub2-bls, and only", id="BLS"
        ),
        pytest.param(write("etc/sysconfig/bootloader", 'LOADER_TYPE=""\n'), "is not named, and only", id="empty"),
    ],
)
def test_the_next_kernel_is_told_only_where_it_is_certain(machine, step, why):
    next_kernel(machine, CHANGELOG)
    step(machine)

    told = ask(machine)

    if why:
        assert (told["verdict"], told["next_kernel"], told["uncovered"]) == ("unknown", None, None)
        assert re.match(f"Which kernel the next boot brings cannot be told: .*{why}", *told["reasons"])
    else:
        assert (told["verdict"], told["next_kernel"], told["uncovered"]) == ("can wait", NEXT, [])


@pytest.mark.parametrize("path", ["boot/grub2/grub.cfg", "boot/grub2/grubenv", "etc/sysconfig/bootloader", TAINTED])
def test_a_file_that_cannot_be_read_is_no_missing_one(machine, path):
    place = machine.kernel.root / path
    place.unlink()
    place.mkdir()

    told = ask(machine)

    assert told["verdict"] == "unknown"
    assert re.search(f"Is a directory: .*{path}", *told["reasons"])


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        pytest.param((0, "env_block=512+1\nsaved_entry=SLES 12-SP3\n"), "not needed", id="nothing for one boot"),
        pytest.param((0, "env_block=512+1\nnext_entry=SLES 12-SP3\n"), "unknown", id="an entry for one boot"),
        pytest.param((1, "env_block=512+1\n"), "unknown", id="the tool fails"),
    ],
)
def test_on_btrfs_the_tool_is_asked_for_the_entry_for_one_boot(machine, monkeypatch, answer, verdict):
    saved(env_block="512+1", saved_entry="SLES 12-SP3")(machine)
    security = machine.modules["kgraft_security"]
    monkeypatch.setattr(security.boot.zypper, "root", lambda: {})
    machine.editenv = answer

    assert ask(machine)["verdict"] == verdict


SUBVOLUME = "ID 257 gen 7 top level 256 path @/.snapshots/{}/snapshot\n"
BTRFS = [
    # the mounted root, what btrfs says (both recorded with btrfs-progs 6.2), and what comes of it
    pytest.param("/@/.snapshots/1/snapshot", (0, SUBVOLUME.format(1)), "", id="the same"),
    pytest.param("/", (0, "ID 5 (FS_TREE)\n"), "", id="no subvolume"),
    pytest.param("/@/.snapshots/1/snapshot", (0, SUBVOLUME.format(2)), "as after a rollback", id="another one"),
    pytest.param("/@/.snapshots/1/snapshot", (0, "ID 5 (FS_TREE)\n"), "as after a rollback", id="none"),
    pytest.param("/@/.snapshots/1/snapshot", (1, ""), "was not read", id="the tool fails"),
]


@pytest.mark.parametrize(("mounted", "answer", "why"), BTRFS)
def test_a_rollback_that_waits_for_a_boot_is_seen(machine, monkeypatch, mounted, answer, why):
    line = f"43 27 0:39 {mounted} / rw,relatime - btrfs /dev/loop0 rw,subvolid=257,subvol={mounted}\n"
    machine.kernel.write("proc/1/mountinfo", "20 43 0:5 / /dev rw - devtmpfs udev rw\n" + line)
    monkeypatch.setattr(machine.modules["kgraft_security"].boot.zypper, "root", lambda: {})
    machine.subvolume = answer

    told = ask(machine)

    assert told["verdict"] == ("unknown" if why else "not needed"), told
    assert why in told["reasons"][0]


def test_a_rollback_below_another_root_cannot_be_seen(machine):
    machine.kernel.write("proc/1/mountinfo", "43 27 0:39 / / rw,relatime - btrfs /dev/loop0 rw\n")
    assert ask(machine)["verdict"] == "unknown"


def test_on_a_read_only_root_another_one_may_come(machine, monkeypatch):
    security = machine.modules["kgraft_security"]
    read_only = os.statvfs_result((4096, 4096, 1, 1, 1, 1, 1, 1, os.ST_RDONLY, 255))
    monkeypatch.setattr(security.boot.os, "statvfs", lambda path: read_only)

    told = ask(machine)

    assert (told["verdict"], told["next_kernel"]) == ("unknown", None)
    assert "the root file system is read-only" in told["reasons"][0]
