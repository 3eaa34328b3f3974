"""What live patches fix, with Salt's own zypper module, Debian's real zypper and rpm, and real repositories."""

import os
import pathlib
import re
import shlex
import shutil
import time

import pytest
import salt.output
from salt.exceptions import CommandExecutionError

from tests.support import grub
from tests.support.packages import (
    KERNEL,
    KERNEL_15,
    OTHER_KERNEL,
    PackageRepository,
    SuseRoot,
    package_name,
    run,
    until,
)

pytest_plugins = ["tests.support.package_fixtures"]

PACKAGE = package_name(KERNEL)
OTHER_PACKAGE = package_name(OTHER_KERNEL)
NEXT_KERNEL = "4.4.180-94.107-default"
NEXT_PACKAGE = package_name(NEXT_KERNEL)
NOBODY = "unknown: nobody names it"
ISSUED = "2026-10-26T07:33:20Z"  # 1793000000, when all updates of the tests were released


@pytest.fixture
def kgraft_security(on, suse):
    return on(suse.root).kgraft_security


@pytest.fixture
def install(suse):
    """Return ``install("9-2.2")``, with the running kernel's live patch, or ``install("openssl=1.0-1")``."""
    return lambda *what: suse.zypper(
        "install", "--oldpackage", "--name", *(each if "=" in each else f"{PACKAGE}={each}" for each in what)
    )


@pytest.fixture
def kernel_package(install):
    """The package of the running kernel, whose changelog names CVE-2025-0001."""
    install("kernel-default=4.4.180-94.100.1")


@pytest.fixture(scope="module")
def updates(tmp_path_factory):
    """A repository with updates of all sorts."""
    repository = PackageRepository(tmp_path_factory.mktemp("repositories") / "updates")
    for edition in ("1.0-1", "1.1-1"):
        repository.add_package("openssl", edition)
    libraries = {f"lib{n}": "2-1" for n in range(7)}
    for name, packages, cves, status in (
        ("SUSE-openssl", {"openssl": "1.1-1", "openssl-doc": "1.1-1"}, ["CVE-2026-5001"], "stable"),
        ("SUSE-libraries", libraries, ["CVE-2026-5001", "CVE-2026-5002"], "stable"),
        ("SUSE-nothing", {}, ["CVE-2026-5003"], "stable"),
        ("SUSE-kernel", {"kernel-default": "4.4.180-94.107.1", NEXT_PACKAGE: "1-1.1"}, ["CVE-2026-6001"], "stable"),
        ("SUSE-first", {PACKAGE: "1-8.5.1"}, ["CVE-2026-6002"], "stable"),
        ("SUSE-other", {OTHER_PACKAGE: "7-1.1"}, ["CVE-2026-6003"], "stable"),
        ("SUSE-taken-back", {PACKAGE: "12-1.1"}, ["CVE-2026-6004"], "retracted"),
        ("SUSE-before", {PACKAGE: "2-2.1"}, ["CVE-2026-6006"], "stable"),
        ("SUSE-both", {PACKAGE: "10-2.1", "openssl": "1.1-1"}, ["CVE-2026-6005"], "stable"),
    ):
        repository.add_update(name, packages, cves, status=status)
    repository.publish()
    return repository


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Return ``tool(name, script)``: puts a shell script on PATH, first of all."""
    place = tmp_path / "bin"

    def put(name, script):
        place.mkdir(exist_ok=True)
        (place / name).write_text(f"#!/bin/sh\n{script}\n")
        (place / name).chmod(0o755)

    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    return put


@pytest.fixture
def kgr(tool, tmp_path):
    """Return ``kgr(output)``: puts a kgr on PATH that prints this for ``kgr -v patches``."""

    def put(output, exit_code=0):
        lines = [line[8:] if line.startswith(" " * 8) else line for line in output.splitlines()]
        (tmp_path / "kgr-output").write_text("\n".join(lines))
        tool("kgr", f'[ "$*" = "-v patches" ] || exit 1\ncat {tmp_path}/kgr-output\nexit {exit_code}')

    return put


@pytest.fixture
def hanging(tool, tmp_path):
    """Return ``hanging(name)``: a tool that starts a child and never ends; the child writes its pid into a file."""

    def put(name):
        pid = tmp_path / f"{name}.pid"
        tool(name, f"sleep 600 &\necho $! > {pid}.new; mv {pid}.new {pid}\nwait")
        return pid

    return put


@pytest.fixture
def asked(tool, tmp_path):
    """Return ``asked()``: the names of the tools that were run, zypper and rpm."""
    log = tmp_path / "asked"
    log.touch()
    for name in ("zypper", "rpm"):
        tool(name, f'echo {name} >> {log}\nexec {shutil.which(name)} "$@"')
    return lambda: log.read_text().splitlines()


# What a version fixes


def test_fixes_of_an_installed_version_come_from_its_changelog(kgraft_security, install):
    install("9-2.2")

    assert kgraft_security.fixes() == {
        "version": "9-2.2",
        "cves": ["CVE-2026-0002", "CVE-2026-0009"],
        "bugs": ["bsc#1260002", "bsc#1260009"],
        "source": "changelog",
        "unread": [],
    }


def test_fixes_of_a_version_to_come_are_those_of_all_updates_up_to_it(kgraft_security):
    assert kgraft_security.fixes("9") == {
        "version": "9-2.2",
        "cves": ["CVE-2026-0002", "CVE-2026-0009"],
        "bugs": ["bsc#1260002", "bsc#1260009"],
        "source": "updateinfo",
        "unread": [],
    }


def test_fixes_of_the_initial_patch_are_none(kgraft_security, install):
    install("1-8.5.1")

    assert kgraft_security.fixes()["cves"] == []


def test_what_the_update_of_the_kernel_fixes_is_not_what_its_initial_patch_fixes(kgraft_security, suse, updates):
    """SUSE brings a kernel and its initial live patch by one update."""
    suse.enable(updates)

    assert kgraft_security.fixes("1-8.5.1")["cves"] == []
    assert kgraft_security.fixes("9")["cves"] == ["CVE-2026-0002", "CVE-2026-0009", "CVE-2026-6006"]


def test_fixes_of_an_update_that_was_taken_back_do_not_count(kgraft_security, suse, updates):
    suse.enable(updates)

    assert "CVE-2026-6004" not in kgraft_security.fixes("12-1.1")["cves"]


def test_fixes_of_a_version_that_nothing_names_are_not_guessed(kgraft_security):
    with pytest.raises(CommandExecutionError, match="2-1.1"):
        kgraft_security.fixes("2-1.1")
    with pytest.raises(CommandExecutionError, match="No version 4"):
        kgraft_security.fixes("4")
    with pytest.raises(CommandExecutionError, match="No live patch is active"):
        kgraft_security.fixes()


def test_what_could_not_be_read_is_told_with_the_fixes(kgraft_security, suse):
    suse.add_unreachable_repository("far")

    (unread,) = kgraft_security.fixes("9")["unread"]
    assert re.match("far: .*Failed to connect", unread)
    assert "token-that-nobody-may-see" not in unread


@pytest.mark.parametrize("version", ["4", "2-1.1"])
def test_that_nothing_says_what_it_fixes_is_told_with_what_could_not_be_read(kgraft_security, suse, version):
    suse.add_unreachable_repository("far")

    with pytest.raises(CommandExecutionError, match=f"{version}.*; far: .*Failed to connect"):
        kgraft_security.fixes(version)


def test_fixes_of_a_loaded_patch_are_what_the_tool_says(kgraft_security, kernel, kgr):
    kernel.patch("kgraft-patch-2-2_1", "applied")
    kgr(
        f"""\
        kgraft_patch_1_8_5_1
            active: 0

        # a remark
        kgraft_patch_2_2_1
            active: 1
            RPM: {PACKAGE}-2-2.1.x86_64
            CVE: CVE-2026-0002 CVE-2026-7777
            bug fixes and enhancements: bsc#1260002 (a leak)
        """
    )

    assert kgraft_security.fixes() == {
        "version": "2-2.1",
        "cves": ["CVE-2026-0002", "CVE-2026-7777"],
        "bugs": ["bsc#1260002"],
        "source": "kgr",
        "unread": [],
    }


def test_what_the_tool_says_of_another_kernel_does_not_count(kgraft_security, kernel, kgr, kernel_package):
    kernel.patch("kgraft-patch-2-2_1", "applied")
    kgr(
        f"""\
        kgraft_patch_2_2_1
            active: 1
            RPM: {OTHER_PACKAGE}-2-2.1.x86_64
            CVE: CVE-2026-7777
            bug fixes and enhancements: (none)
        """
    )

    assert kgraft_security.fixes()["source"] == "updateinfo"
    assert kgraft_security.cves("CVE-2026-7777") == {"CVE-2026-7777": NOBODY}


def test_a_tool_too_old_for_the_question_is_passed_over(kgraft_security, kernel, kgr, install):
    kernel.patch("kgraft-patch-2-2_1", "applied")
    kgr("usage: kgr status", exit_code=1)

    told = kgraft_security.fixes()
    assert (told["source"], told["unread"]) == ("updateinfo", ["kgr: usage: kgr status"])

    install("2-2.1")
    told = kgraft_security.fixes()
    assert (told["source"], told["unread"]) == ("changelog", []), "that is the package's own word"


@pytest.mark.parametrize("name", ["zypper", "rpm"])
def test_what_hangs_is_ended_with_its_children_and_named(kgraft_security, hanging, name):
    child = hanging(name)
    begin = time.monotonic()

    with pytest.raises(CommandExecutionError, match=f"{name} did not end within 1 s and was ended"):
        kgraft_security.fixes("9", timeout=1)

    assert time.monotonic() - begin < 8
    until(lambda: not pathlib.Path("/proc", child.read_text().strip()).exists(), timeout=10)


# One answer for each CVE


def test_a_cve_of_the_active_patch_is_fixed_by_it(kgraft_security, kernel, install):
    kernel.patch("kgraft-patch-9-2_2", "applied")
    install("9-2.2")

    assert kgraft_security.cves("CVE-2026-0009", "cve-2026-0002", "CVE-2026-0009", " CVE-2026-0009\n") == {
        "CVE-2026-0009": "fixed by kgraft_patch_9_2_2",
        "cve-2026-0002": "fixed by kgraft_patch_9_2_2",
        " CVE-2026-0009\n": "fixed by kgraft_patch_9_2_2",
    }


def test_a_cve_of_a_patch_in_transition_is_pending_unless_an_applied_one_fixed_it(kgraft_security, kernel, install):
    kernel.patch("kgraft-patch-2-2_1", "applied")
    kernel.start("kgraft-patch-9-2_2")
    install("9-2.2")

    assert kgraft_security.cves("CVE-2026-0002", "CVE-2026-0009") == {
        "CVE-2026-0002": "fixed by kgraft_patch_2_2_1",
        "CVE-2026-0009": "pending: settling kgraft_patch_9_2_2",
    }


def test_of_stacked_patches_the_one_that_fixed_it_first_is_named(kgraft_security, kernel):
    kernel.patch("kgraft-patch-2-2_1", "applied")
    kernel.patch("kgraft-patch-9-2_2", "applied", replace_all=False)

    assert kgraft_security.cves("CVE-2026-0002", "CVE-2026-0009") == {
        "CVE-2026-0002": "fixed by kgraft_patch_2_2_1",
        "CVE-2026-0009": "fixed by kgraft_patch_9_2_2",
    }


def test_a_cve_of_a_package_that_is_not_loaded_is_pending(kgraft_security, install):
    install("2-2.1")

    assert kgraft_security.cves("CVE-2026-0002") == {"CVE-2026-0002": f"pending: installed, not loaded {PACKAGE} 2-2.1"}


def test_a_cve_of_a_patch_being_reverted_is_not_fixed_by_it(kgraft_security, kernel):
    kernel.patch("kgraft-patch-2-2_1", "applied")
    kernel.revert("kgraft-patch-2-2_1")

    assert kgraft_security.cves("CVE-2026-0002") == {"CVE-2026-0002": f"open: {PACKAGE} 2-2.1"}


def test_a_cve_in_the_running_kernels_changelog_is_fixed_by_the_kernel(kgraft_security, install):
    unread = "unread: the kernel's changelog: rpm has no changelog of /boot/System.map-" + KERNEL
    assert kgraft_security.cves("CVE-2025-0001")["CVE-2025-0001"].startswith(unread)

    install("kernel-default=5.14.21-150400.24.33.1")
    told = kgraft_security.cves("CVE-2025-0001")["CVE-2025-0001"]
    assert told.startswith(unread), "that is not the kernel that runs"

    install("kernel-default=4.4.180-94.100.1")
    assert kgraft_security.cves("CVE-2025-0001") == {"CVE-2025-0001": "fixed by kernel"}


def test_a_cve_of_a_newer_live_patch_is_open_and_the_first_that_fixes_it_is_named(kgraft_security, kernel, install):
    kernel.patch("kgraft-patch-2-2_1", "applied")
    install("2-2.1")

    assert kgraft_security.cves("CVE-2026-0002", "CVE-2026-0009", "CVE-2026-0010") == {
        "CVE-2026-0002": "fixed by kgraft_patch_2_2_1",
        "CVE-2026-0009": f"open: {PACKAGE} 9-2.2",
        "CVE-2026-0010": f"open: {PACKAGE} 10-2.1",
    }


def test_before_the_first_live_patch_its_cves_are_open(kgraft_security):
    assert kgraft_security.cves("CVE-2026-0009") == {"CVE-2026-0009": f"open: {PACKAGE} 9-2.2"}


@pytest.mark.parametrize(
    ("cve", "answer"),
    [
        # the library's is not needed here, openssl's is
        pytest.param("CVE-2026-5001", "elsewhere: SUSE-openssl (openssl, openssl-doc)", id="needed"),
        pytest.param(
            "CVE-2026-5002", "elsewhere: SUSE-libraries (lib0, lib1, lib2, lib3, lib4, 2 more)", id="not needed"
        ),
        pytest.param("CVE-2026-5003", "elsewhere: SUSE-nothing (nothing)", id="brings nothing"),
        pytest.param("CVE-2026-6001", "elsewhere: SUSE-kernel (kernel-default)", id="kernel"),
        pytest.param("CVE-2026-6002", NOBODY, id="initial"),
        pytest.param("CVE-2026-6003", NOBODY, id="other kernel"),
        pytest.param("CVE-2026-6004", NOBODY, id="taken back"),
        pytest.param("CVE-2026-6005", f"open: {PACKAGE} 10-2.1", id="both"),
    ],
)
def test_only_an_update_of_this_kernels_live_patch_leaves_a_cve_open(
    kgraft_security, suse, updates, kernel_package, install, cve, answer
):
    suse.enable(updates)
    install("openssl=1.0-1", f"{OTHER_PACKAGE}=1-1.1")

    assert kgraft_security.cves(cve) == {cve: answer}


def test_an_update_that_brings_nothing_newer_leaves_nothing_open(
    kgraft_security, kernel, suse, updates, kernel_package, install
):
    suse.enable(updates)
    assert kgraft_security.cves("CVE-2026-6006") == {"CVE-2026-6006": f"open: {PACKAGE} 2-2.1"}

    install("9-2.2")
    assert kgraft_security.cves("CVE-2026-6006") == {"CVE-2026-6006": NOBODY}, "the installed one does not name it"

    kernel.patch("kgraft-patch-9-2_2", "applied")
    install("1-8.5.1")
    told = kgraft_security.cves("CVE-2026-6006")["CVE-2026-6006"]
    assert told == "fixed by kgraft_patch_9_2_2", "its package is not here, so the updates up to it have the word"


def test_the_updates_are_asked_at_once(kgraft_security, kernel, suse, updates, kernel_package, install, asked):
    suse.enable(updates)
    install("9-2.2")
    kernel.patch("kgraft-patch-9-2_2", "applied")
    before = len(asked())

    kgraft_security.cves("CVE-2026-0009")
    assert asked()[before:] == ["rpm"] * 2, "what is installed, its changelog"

    before = len(asked())
    kgraft_security.cves("CVE-2026-0009", "CVE-2026-0010", "CVE-2026-5001", "CVE-2026-6003", "CVE-2020-0001")
    also = "the kernel's changelog, the updates, what they bring"
    assert asked()[before:] == ["rpm"] * 3 + ["zypper"] * 2, also


def test_an_odd_cve_gets_its_own_answer_and_spoils_none(kgraft_security, kernel, kernel_package):
    kernel.patch("kgraft-patch-2-2_1", "applied")

    assert kgraft_security.cves("CVE-2026-0002", "heartbleed", 7, ["CVE-2026-0002"], "CVE-1999-99999") == {
        "CVE-2026-0002": "fixed by kgraft_patch_2_2_1",
        "heartbleed": "unknown: not a CVE number",
        "7": "unknown: not a CVE number",
        "['CVE-2026-0002']": "unknown: not a CVE number",
        "CVE-1999-99999": NOBODY,
    }


# What could not be read


def test_a_repository_that_was_not_read_could_have_named_it(kgraft_security, suse, kernel, kernel_package):
    kernel.patch("kgraft-patch-2-2_1", "applied")
    suse.add_unreachable_repository("far")
    suse.add_repository("gone", "dir:/nonexistent")

    told = kgraft_security.cves("CVE-2026-0002", "CVE-2026-0010", "CVE-2025-0001", "CVE-2020-0001", "odd")

    unread = told.pop("CVE-2020-0001")
    assert re.match(r"unread: far: .*Failed to connect.*; gone: .*nonexistent", unread)
    assert "token-that-nobody-may-see" not in unread
    assert told == {
        "CVE-2026-0002": "fixed by kgraft_patch_2_2_1",
        "CVE-2026-0010": f"open: {PACKAGE} 10-2.1",
        "CVE-2025-0001": "fixed by kernel",
        "odd": "unknown: not a CVE number",
    }


def test_a_patch_of_which_nothing_is_known_could_fix_it(kgraft_security, kernel, kernel_package):
    kernel.patch("kgraft-patch-2-2_1", "applied")
    kernel.patch("our-own-patch", "applied", replace_all=False)

    assert kgraft_security.cves("CVE-2026-0002", "CVE-2026-0010", "CVE-2020-0001") == {
        "CVE-2026-0002": "fixed by kgraft_patch_2_2_1",
        "CVE-2026-0010": f"open: {PACKAGE} 10-2.1",
        "CVE-2020-0001": "unread: our_own_patch: nothing says what it fixes",
    }


def test_a_tool_that_failed_could_have_named_it(kgraft_security, kernel, kgr, kernel_package):
    kernel.patch("kgraft-patch-2-2_1", "applied")
    kgr("kgr: cannot read sysfs", exit_code=1)

    assert kgraft_security.cves("CVE-2026-0002", "CVE-2020-0001") == {
        "CVE-2026-0002": "fixed by kgraft_patch_2_2_1",
        "CVE-2020-0001": "unread: kgr: kgr: cannot read sysfs",
    }


def test_without_rpm_what_the_kernel_says_itself_still_counts(kgraft_security, kernel, kgr, tool):
    kernel.patch("kgraft-patch-2-2_1", "applied")
    kgr(
        f"""\
        kgraft_patch_2_2_1
            active: 1
            RPM: {PACKAGE}-2-2.1.x86_64
            CVE: CVE-2026-0002
        """
    )
    tool("rpm", "echo 'error: rpmdb open failed' >&2; exit 1")

    told = kgraft_security.cves("CVE-2026-0002", "CVE-2020-0001")

    assert told["CVE-2026-0002"] == "fixed by kgraft_patch_2_2_1"
    assert re.match("unread: the installed package: rpm cannot tell .*rpmdb open failed", told["CVE-2020-0001"])
    assert "the kernel's changelog: rpm has no changelog" in told["CVE-2020-0001"]


def test_zypper_that_hangs_is_ended_with_its_children_and_spoils_no_other_answer(
    kgraft_security, kernel, kernel_package, install, hanging
):
    kernel.patch("kgraft-patch-9-2_2", "applied")
    install("9-2.2")
    child = hanging("zypper")
    begin = time.monotonic()

    told = kgraft_security.cves("CVE-2026-0009", "CVE-2025-0001", "CVE-2026-0010", timeout=3)

    assert time.monotonic() - begin < 10
    assert told.pop("CVE-2026-0010").startswith("unread: the updates: zypper did not end within ")
    assert told == {"CVE-2026-0009": "fixed by kgraft_patch_9_2_2", "CVE-2025-0001": "fixed by kernel"}
    until(lambda: not pathlib.Path("/proc", child.read_text().strip()).exists(), timeout=10)


def test_when_the_time_is_over_nobody_else_is_asked(kgraft_security, kernel, hanging):
    kernel.patch("kgraft-patch-9-2_2", "applied")
    for name in ("rpm", "zypper", "kgr"):
        hanging(name)
    begin = time.monotonic()

    told = kgraft_security.cves("CVE-2026-0009", timeout=1)

    assert time.monotonic() - begin < 8
    assert re.match("unread: kgraft_patch_9_2_2: rpm did not end within 1 s and was ended$", told["CVE-2026-0009"])


# Kernels that can have no live patch


@pytest.mark.parametrize(
    ("abi", "release"),
    [("livepatch", "5.14.21-150400.14.1-azure"), (None, "5.14.21-150400.14.1-azure"), (None, KERNEL)],
)
def test_a_kernel_without_live_patches_has_its_own_fixes_all_the_same(
    on, make_kernel, live_patches, updates, new_repository, abi, release
):
    kernels = new_repository("kernels")
    kernels.add_kernel(release, ["CVE-2025-0001"])
    version, build, flavour = release.split("-")
    with SuseRoot(make_kernel(abi, release=release).root, live_patches, updates, kernels) as suse:
        suse.zypper("install", "--name", f"kernel-{flavour}={version}-{build}.1", "openssl=1.0-1")

        assert on(suse.root).kgraft_security.cves("CVE-2025-0001", "CVE-2026-0002", "CVE-2026-5001", "CVE-2020-1") == {
            "CVE-2025-0001": "fixed by kernel",
            "CVE-2026-0002": NOBODY,
            "CVE-2026-5001": "elsewhere: SUSE-openssl (openssl, openssl-doc)",
            "CVE-2020-1": "unknown: not a CVE number",
        }


@pytest.mark.parametrize("kernel", [{"abi": "livepatch", "release": KERNEL_15}], indirect=True)
def test_a_kernel_of_15_has_it_all_under_its_other_name(kgraft_security, kernel, suse):
    kernel.patch("livepatch_9_2_1", "applied")
    suse.zypper("install", "--name", f"{package_name(KERNEL_15)}=9-2.1")

    assert kgraft_security.cves("CVE-2026-0009") == {"CVE-2026-0009": "fixed by livepatch_9_2_1"}
    assert kgraft_security.cves("CVE-2026-0010") == {"CVE-2026-0010": f"open: {package_name(KERNEL_15)} 10-150400.2.1"}


# The end of support


def test_dates_of_a_patch_are_those_of_its_update_and_of_rpm(kgraft_security, kernel, install):
    before = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    install("9-2.2")
    kernel.patch("kgraft-patch-9-2_2", "applied")

    told = kgraft_security.dates()

    patch = told["patches"]["kgraft_patch_9_2_2"]
    assert patch == {"version": "9-2.2", "released": ISSUED, "installed": patch["installed"], "settled": None}
    assert before <= patch["installed"] <= time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    assert told["unread"] == ["the kernel's log: it is that of /, not of kgraft.root"]


def test_a_version_in_the_lifecycle_data_is_the_installed_one(kgraft_security, suse, install):
    suse.lifecycle(f"{PACKAGE}, 9-*, 2026-12-31\n")
    assert kgraft_security.supported_until() is None

    install("9-2.2")
    assert kgraft_security.supported_until() == "2026-12-31"

    suse.lifecycle(f"{PACKAGE}, 10-*, 2026-12-31\n", directory="usr/share")
    assert kgraft_security.supported_until() == "2026-12-31"


# Whether to reboot


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """A repository with a newer kernel, its update, and one of a library that wants a reboot."""
    repository = PackageRepository(tmp_path_factory.mktemp("repositories") / "kernels")
    repository.add_kernel(NEXT_KERNEL, ["CVE-2025-0001", "CVE-2026-0009", "CVE-2026-0050", "CVE-2026-0051"])
    repository.add_package("glibc", "2-1")
    repository.add_package("dbus-1", "1-1", headers="Provides: installhint(reboot-needed)")
    kernel = {"kernel-default": "4.4.180-94.107.1", "glibc-doc": "2-1"}
    repository.add_update("SUSE-kernel", kernel, ["CVE-2026-0051"], severity="moderate", reboot=True)
    repository.add_update("SUSE-kernel-2", kernel, ["CVE-2026-0050"], severity="important", reboot=True)
    repository.add_update("SUSE-glibc", {"glibc": "2-1"}, reboot=True)
    repository.publish()
    return repository


@pytest.fixture
def boots(suse, kernel, kernels, install, kernel_package):
    """The running kernel and the newer one are installed, 9-2.2 is settled. Return ``boots(release, …)``."""
    suse.enable(kernels)
    suse.lifecycle(f"{PACKAGE}, *, 2099-12-31\n")
    kernel.write("proc/sys/kernel/tainted", "0\n")
    kernel.patch("kgraft-patch-9-2_2", "applied")
    install("9-2.2")
    # as zypper does on SUSE, where kernels are installed beside each other
    run("rpm", "--root", suse.root, "--install", *kernels.path.glob("packages/kernel-default-*"))

    def write(path, text):
        (suse.root / path).parent.mkdir(parents=True, exist_ok=True)
        (suse.root / path).write_text(text)

    return lambda *releases: grub.install(write, *releases)


def test_a_reboot_is_needed_for_what_the_next_kernel_fixes_and_nothing_here_does(kgraft_security, boots):
    boots(NEXT_KERNEL, KERNEL)

    assert kgraft_security.reboot() == {
        "verdict": "needed",
        "until": "2099-12-31",
        "reasons": [
            f"The next boot brings {NEXT_KERNEL}, which fixes CVE-2026-0050: "
            f"neither {KERNEL} nor a settled live patch does."
        ],
        "next_kernel": NEXT_KERNEL,
        "uncovered": ["CVE-2026-0050"],
        "below": 1,
    }
    told = kgraft_security.reboot(must="CVE-2026-0009,CVE-2025-0001")
    assert (told["verdict"], told["uncovered"], told["below"]) == ("can wait", [], 2)


def test_without_another_kernel_it_takes_more_to_ask_for_a_reboot(kgraft_security, suse, boots, install, monkeypatch):
    boots(KERNEL, NEXT_KERNEL)
    assert kgraft_security.reboot()["reasons"] == [
        f"The next boot brings {KERNEL} again, and only a kernel asks for it."
    ]

    with monkeypatch.context() as clock:
        clock.setattr(time, "clock_gettime", lambda _: -3600)  # booted in an hour: nothing was installed since then
        told = kgraft_security.reboot()
    assert (told["verdict"], told["uncovered"], told["below"]) == ("not needed", [], 0)

    install("glibc=2-1")
    assert not (suse.root / "run/reboot-needed").exists(), "the flag of a patch is not zypper's"
    assert kgraft_security.reboot()["reasons"] == ["Installed since the boot, and asking for another: glibc."]

    install("dbus-1=1-1")
    told = kgraft_security.reboot()
    assert told["reasons"] == ["Installed since the boot, and asking for another: dbus-1, glibc."]

    monkeypatch.setattr(time, "clock_gettime", lambda _: -3600)
    told = kgraft_security.reboot()
    assert told["reasons"] == ["Installed since the boot, and asking for another: what zypper does not name."]
    assert told["verdict"] == "needed"


def test_while_zypper_is_at_work_nothing_is_certain(kgraft_security, suse, boots):
    boots(NEXT_KERNEL)
    with suse.locked() as pid:
        told = kgraft_security.reboot(must="CVE-2026-0009")

    assert (told["verdict"], told["reasons"]) == ("unknown", [f"zypper ({pid}) is at work on the packages."])


def test_a_repository_that_was_not_read_may_rate_a_cve_higher(kgraft_security, suse, boots):
    boots(NEXT_KERNEL)
    suse.disable("kernels")
    suse.add_unreachable_repository("far")

    told = kgraft_security.reboot()

    assert (told["verdict"], told["next_kernel"], told["uncovered"], told["below"]) == (
        "unknown",
        NEXT_KERNEL,
        None,
        None,
    )
    assert re.match("far: .*Failed to connect", told["reasons"][0])
    assert "No update says for certain how severe CVE-2026-0050, CVE-2026-0051 is" in told["reasons"][1]
    assert "token-that-nobody-may-see" not in str(told)


def test_without_the_running_kernels_package_it_is_not_known_what_it_fixes(kgraft_security, suse, boots):
    boots(NEXT_KERNEL)
    run("rpm", "--root", suse.root, "--erase", "kernel-default-4.4.180-94.100.1")

    told = kgraft_security.reboot()

    assert (told["verdict"], told["uncovered"]) == ("unknown", None)
    assert f"rpm has no changelog of /boot/System.map-{KERNEL}" in told["reasons"][0]


def test_a_look_that_hangs_is_ended_with_its_children_and_is_no_good_word(kgraft_security, boots, hanging):
    boots(NEXT_KERNEL)
    child = hanging("zypper")
    begin = time.monotonic()

    told = kgraft_security.reboot(timeout=1)

    assert time.monotonic() - begin < 8
    assert told["verdict"] == "unknown"
    assert told["reasons"][0].endswith("a reboot cannot be told: zypper did not end within 1 s and was ended.")
    until(lambda: not pathlib.Path("/proc", child.read_text().strip()).exists(), timeout=10)


def test_the_overview_passes_it_on(on, suse, boots):
    boots(NEXT_KERNEL)

    assert on(suse.root).kgraft.overview()["reboot"] == on(suse.root).kgraft_security.reboot()


# The manual


def _shown():
    """The console blocks of the page about packages, as (machine, command, output)."""
    page = pathlib.Path(__file__).parents[2] / "docs/which-fixes-are-in.md"
    for machine, block in re.findall(
        r"<!-- machine: (.*?) -->\n```console\n(.*?)^```", page.read_text("utf-8"), re.M | re.S
    ):
        for shown in block.split("$ salt '*' ")[1:]:
            command, _, output = shown.partition("\n")
            yield pytest.param(machine, command, output, id=command)


@pytest.mark.parametrize(("machine", "command", "output"), _shown())
def test_what_the_manual_shows_is_what_is_printed(on, suse, kernel, suse_loaders, request, machine, command, output):
    if machine.endswith("a newer kernel for the next boot"):
        request.getfixturevalue("boots")(NEXT_KERNEL, KERNEL)
    else:
        kernel.patch("kgraft-patch-9-2_2", "applied")
        suse.zypper("install", "--name", f"{PACKAGE}=9-2.2", "kernel-default=4.4.180-94.100.1")
        suse.lifecycle(f"{PACKAGE}, *, 2026-12-31\n")
    function, *words = shlex.split(command)
    arguments = [word for word in words if not word.startswith("--out") and "=" not in word]
    named = dict(word.split("=") for word in words if re.match(r"\w+=", word))
    outputter = next((word.split("=")[1] for word in words if word.startswith("--out")), "nested")

    try:
        answer = on(kernel.root)[function](*arguments, **named)
    except CommandExecutionError as err:
        answer = f"ERROR: {err}"

    printed = salt.output.out_format({"db1": answer}, outputter, {**suse_loaders.opts, "color": False})
    pattern = ".*".join(re.escape(part) for part in output.strip().split("…"))
    assert re.fullmatch(pattern, printed.strip()), printed
