"""
Which kernel the next boot brings, what asks for a boot, and what only a boot takes from the kernel.

Of the boot loaders only GRUB 2 is read, as SUSE sets it up, and only where its files leave no doubt. What cannot be
told raises ``CommandExecutionError``, ``OSError`` or ``ValueError``.
"""

import glob
import os
import re
import time
import typing

import salt.utils.files

if typing.TYPE_CHECKING:  # handed in
    from . import _kgraft_zypper as zypper

BOOT_NEXT = "sys/firmware/efi/efivars/BootNext-8be4df61-93ca-11d2-aa0d-00e098032b8c"


def _read(path):
    try:
        with salt.utils.files.fopen(zypper.under(path), encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def next_kernel(packages):
    """
    Return the release of the kernel that the next boot brings, if that is the first one of GRUB's menu; an entry does
    not count which SUSE has there only after somebody chose a snapshot.

    On Btrfs next_entry lies outside of any file. Only SUSE's grub2-editenv finds it, and knows no other root.
    """
    loader = re.findall(r"(?m)^LOADER_TYPE=\W?([\w-]+)", _read("etc/sysconfig/bootloader"))[-1:]
    if loader not in (["grub2"], ["grub2-efi"]):
        raise ValueError("the boot loader is {}, and only grub2 is read".format("".join(loader) or "not named"))
    if os.statvfs(zypper.under("")).f_flag & os.ST_RDONLY:
        raise ValueError("the root file system is read-only, so that another one may be prepared for it")
    mounted = re.findall(r"(?m)^\d+ \d+ \S+ /(\S*) / .* - btrfs ", _read("proc/1/mountinfo"))[-1:]
    if mounted:
        # A rollback of snapper's names another subvolume for the next boot.
        command = packages.run("btrfs", "subvolume", "get-default", "/") if not zypper.root() else {"retcode": 1}
        if command["retcode"]:
            raise ValueError("which subvolume of Btrfs the next boot takes was not read")
        if command["stdout"].strip().partition(" path ")[2] != mounted[0]:
            raise ValueError("the next boot takes another subvolume of Btrfs, as after a rollback")
    settings = _read("boot/grub2/grubenv")
    if "\nenv_block=" in settings:
        command = packages.run("grub2-editenv", "-", "list") if not zypper.root() else {"retcode": 1}
        if command["retcode"]:
            raise ValueError("a part of grubenv lies outside of the file and was not read")
        settings = command["stdout"]
    settings = dict(re.findall(r"(?m)^(\w+)=(.+)$", settings))
    kexec = _read("sys/kernel/kexec_loaded").strip()
    if {"next_entry", "prev_saved_entry"} & set(settings) or kexec == "1" or os.path.lexists(zypper.under(BOOT_NEXT)):
        raise ValueError("GRUB, the firmware or kexec has something else for one boot")
    menu = _read("boot/grub2/grub.cfg") + _read("boot/grub2/custom.cfg")
    menu = re.sub(r'(?ms)^if \[ -n "\$extra_cmdline" \].*?^fi$', "", menu)
    defaults = set(re.findall(r"(?m)^\s*(?:set )?default=[\"']?(.*?)[\"']?\s*$", menu)) - {"${next_entry}"}
    wanted = settings.get("saved_entry", "") if defaults == {"${saved_entry}"} else "".join(sorted(defaults))
    before, _, entry = re.sub(r"(?m)^[ \t]*(?=(menuentry|submenu) )", "\0", menu).partition("\0")
    title, _, body = entry.partition("{\n")
    names = [name for _, _, name in re.findall(r"(menuentry|option|--id) +(['\"])(.*?)\2", title)]
    kernels = re.findall(r"(?m)^\s*linux(?:efi|16)?\s+\S*/(\w+-[^/\s]+)", body.partition("\n}")[0])
    open_ifs = len(re.findall(r"(?m)^\s*if\b", before)) - len(re.findall(r"(?m)\bfi\s*$", before))
    if open_ifs or "\n" in title or wanted not in ("", "0", *names):
        raise ValueError(f"GRUB's default is {wanted!r}, and only the first entry of its menu is read")
    if len(kernels) != 1 or not os.path.lexists(zypper.under("boot/" + kernels[0])):
        raise ValueError("the first entry of GRUB's menu starts no kernel in /boot")
    return kernels[0].partition("-")[2]


def asking(packages, ask):
    """
    Return what was installed since the boot and asks for another one, as ``(names, whether a kernel does, too)``, and
    ``{repository: why}`` of what could not be read. Asked are zypper's flag, libzypp's rules for it (``needrebootSpec``
    in zypp/target/TargetImpl.cc), and the flag of patches, which does not set that one; a kernel's update brings more
    than the kernel, and all of that counts as the kernel. ``ask`` is the caller's: a question that fails is no end to
    the others.
    """
    flag = ask("Whether zypper wants a reboot", False, packages.needs_rebooting)
    columns = "%{INSTALLTIME} %{NAME}[ %{PROVIDENAME}]\n"
    rows = ask("What was installed since the boot", [], packages.query, "what is installed", columns, "-a")
    kernels = {name for _, name, *provided in map(str.split, rows) if "kernel" in provided}
    booted = time.time() - time.clock_gettime(7)  # CLOCK_BOOTTIME: Python names it from 3.7 on
    new = {name: provided for when, name, *provided in map(str.split, rows) if int(when) >= booted}
    lists = ["etc/zypp/needreboot", *glob.glob(zypper.under("etc/zypp/needreboot.d/*"))]
    rules = {"provides:installhint(reboot-needed)", "provides:kernel", *"\n".join(map(_read, lists)).split()}
    asks = {name for name in new if rules & {name, *("provides:" + word for word in new[name])}}
    updates, unread = ask("Which updates want a reboot", ([], {}), packages.updates) if new else ([], {})
    flagged = [update.name for update in updates if update.reboot and update.status == "applied"]
    for brought in ask("What they brought", {}, packages.brought, *flagged).values() if flagged else ():
        asks |= set(new) & (kernels if kernels & set(brought) else set(brought))
    unnamed = bool(rows) and not asks and (flag or os.path.lexists(zypper.under("run/reboot-needed")))
    return sorted(asks - kernels) or ["what zypper does not name"] * unnamed, bool(asks & kernels), unread


def reverted(patches):
    """Return sentences on what the kernel shows of live patches that were reverted."""
    states = {name: patch["state"] for name, patch in patches.items()}
    newest = next((name for name in re.findall(r"(?m)^\S+", _read("proc/modules")) if name in states), None)
    told = [f"{name} is being reverted" for name in states if states[name] == "reverting"]
    return told + [f"{newest} was reverted, and no live patch replaced it"] * (states.get(newest) == "inactive")


def unsupported():
    """
    Return a sentence if the kernel is marked as unsupported and no loaded module accounts for it. It is SUSE's taint
    flag N, bit 30 (suse-module-tools.spec), which kgr_taint_kernel and klp_taint_kernel set at a revert.
    """
    marked = int(_read("proc/sys/kernel/tainted")) >> 30 & 1
    if marked and not re.search(r"(?m)\(\w*N.*\)$", _read("proc/modules")):
        return ["The kernel is marked as unsupported (N), as by a revert, and no loaded module accounts for it"]
    return []
