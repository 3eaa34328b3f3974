"""What live patches fix, with Salt's own zypper module, Debian's real zypper and rpm, and real repositories."""

import os
import pathlib
import re
import shlex

import pytest
import salt.output
from salt.exceptions import CommandExecutionError

from tests.support.packages import KERNEL, KERNEL_15, OTHER_KERNEL, SuseRoot, package_name

pytest_plugins = ["tests.support.package_fixtures"]

PACKAGE = package_name(KERNEL)


@pytest.fixture
def kgraft_pkg(on, suse):
    return on(suse.root).kgraft_pkg


@pytest.fixture
def kgraft_security(on, suse):
    return on(suse.root).kgraft_security


# What a version fixes


def test_fixes_of_an_installed_version_come_from_its_changelog(kgraft_pkg, kgraft_security):
    kgraft_pkg.install("9-2.2")

    assert kgraft_security.fixes() == {
        "version": "9-2.2",
        "cves": ["CVE-2026-0002", "CVE-2026-0009"],
        "bugs": ["bsc#1260002", "bsc#1260009"],
        "source": "changelog",
    }


def test_fixes_of_a_version_to_come_are_those_of_all_updates_up_to_it(kgraft_security):
    assert kgraft_security.fixes("9") == {
        "version": "9-2.2",
        "cves": ["CVE-2026-0002", "CVE-2026-0009"],
        "bugs": ["bsc#1260002", "bsc#1260009"],
        "source": "updateinfo",
    }


def test_fixes_of_the_initial_patch_are_none(kgraft_pkg, kgraft_security):
    kgraft_pkg.install("1-8.5.1")

    assert kgraft_security.fixes()["cves"] == []


def test_fixes_of_a_version_that_nothing_names_are_not_guessed(kgraft_security):
    with pytest.raises(CommandExecutionError, match="2-1.1"):
        kgraft_security.fixes("2-1.1")
    with pytest.raises(CommandExecutionError, match="No version 4"):
        kgraft_security.fixes("4")
    with pytest.raises(CommandExecutionError, match="No live patch is active"):
        kgraft_security.fixes()


def test_fixes_of_a_loaded_patch_are_what_the_tool_says(kgraft_security, suse, kernel, kgr):
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
    }


def test_what_the_tool_says_of_another_kernel_does_not_count(kgraft_security, kernel, kgr):
    kernel.patch("kgraft-patch-2-2_1", "applied")
    kgr(
        f"""\
        kgraft_patch_2_2_1
            active: 1
            RPM: {package_name(OTHER_KERNEL)}-2-2.1.x86_64
            CVE: CVE-2026-7777
            bug fixes and enhancements: (none)
        """
    )

    assert kgraft_security.fixes()["source"] == "updateinfo"
    assert kgraft_security.cves("CVE-2026-7777") == {"CVE-2026-7777": "unknown"}


def test_a_tool_too_old_for_the_question_is_passed_over(kgraft_security, kernel, kgr):
    kernel.patch("kgraft-patch-2-2_1", "applied")
    kgr("usage: kgr status", exit_code=1)

    assert kgraft_security.fixes()["source"] == "updateinfo"


@pytest.fixture
def kgr(tmp_path, monkeypatch):
    """Return ``kgr(output)``: puts a kgr on PATH that prints this for ``kgr -v patches``."""

    def install(output, exit_code=0):
        lines = [line[8:] if line.startswith(" " * 8) else line for line in output.splitlines()]
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin/output").write_text("\n".join(lines))
        tool = tmp_path / "bin/kgr"
        tool.write_text(f'#!/bin/sh\n[ "$*" = "-v patches" ] || exit 1\ncat {tmp_path}/bin/output\nexit {exit_code}\n')
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")

    return install


# One answer for each CVE


def test_a_cve_of_the_active_patch_is_fixed_by_it(kgraft_pkg, kgraft_security, kernel):
    kernel.patch("kgraft-patch-9-2_2", "applied")
    kgraft_pkg.install("9-2.2")

    assert kgraft_security.cves("CVE-2026-0009", "cve-2026-0002") == {
        "CVE-2026-0009": "fixed by kgraft_patch_9_2_2",
        "cve-2026-0002": "fixed by kgraft_patch_9_2_2",
    }


def test_a_cve_of_a_patch_in_transition_is_pending_unless_an_applied_one_fixed_it(kgraft_pkg, kgraft_security, kernel):
    kernel.patch("kgraft-patch-2-2_1", "applied")
    kernel.start("kgraft-patch-9-2_2")
    kgraft_pkg.install("9-2.2")

    assert kgraft_security.cves("CVE-2026-0002", "CVE-2026-0009") == {
        "CVE-2026-0002": "fixed by kgraft_patch_2_2_1",
        "CVE-2026-0009": "pending: kgraft_patch_9_2_2 not settled",
    }


def test_of_stacked_patches_the_one_that_fixed_it_first_is_named(kgraft_security, kernel):
    kernel.patch("kgraft-patch-2-2_1", "applied")
    kernel.patch("kgraft-patch-9-2_2", "applied", replace_all=False)

    assert kgraft_security.cves("CVE-2026-0002", "CVE-2026-0009") == {
        "CVE-2026-0002": "fixed by kgraft_patch_2_2_1",
        "CVE-2026-0009": "fixed by kgraft_patch_9_2_2",
    }


def test_a_cve_of_a_package_that_is_not_loaded_is_pending(kgraft_pkg, kgraft_security):
    kgraft_pkg.install("2-2.1")

    assert kgraft_security.cves("CVE-2026-0002") == {"CVE-2026-0002": f"pending: {PACKAGE}-2-2.1 not loaded"}


def test_a_cve_of_a_patch_being_reverted_is_not_fixed_by_it(kgraft_security, kernel):
    kernel.patch("kgraft-patch-2-2_1", "applied")
    kernel.revert("kgraft-patch-2-2_1")

    assert not kgraft_security.cves("CVE-2026-0002")["CVE-2026-0002"].startswith("fixed")


def test_a_cve_in_the_running_kernels_changelog_is_fixed_by_the_kernel(kgraft_security, suse):
    assert kgraft_security.cves("CVE-2025-0001") == {"CVE-2025-0001": "unknown"}

    suse.zypper("install", "--name", "kernel-default=5.14.21-150400.24.33.1")
    assert kgraft_security.cves("CVE-2025-0001") == {"CVE-2025-0001": "unknown"}, "that is not the kernel that runs"

    suse.zypper("install", "--oldpackage", "--name", "kernel-default=4.4.180-94.100.1")
    assert kgraft_security.cves("CVE-2025-0001") == {"CVE-2025-0001": "fixed by kernel"}


def test_a_cve_of_an_update_that_zypper_calls_needed_is_open(kgraft_pkg, kgraft_security, kernel):
    kernel.patch("kgraft-patch-2-2_1", "applied")
    kgraft_pkg.install("2-2.1")

    assert kgraft_security.cves("CVE-2026-0002", "CVE-2026-0010") == {
        "CVE-2026-0002": "fixed by kgraft_patch_2_2_1",
        "CVE-2026-0010": f"open: SUSE-{PACKAGE}-10",
    }


def test_an_odd_cve_gets_its_own_answer_and_spoils_none(kgraft_security, kernel):
    kernel.patch("kgraft-patch-2-2_1", "applied")

    assert kgraft_security.cves("CVE-2026-0002", "heartbleed", 7, "CVE-1999-99999") == {
        "CVE-2026-0002": "fixed by kgraft_patch_2_2_1",
        "heartbleed": "unknown: not a CVE number",
        7: "unknown: not a CVE number",
        "CVE-1999-99999": "unknown",
    }


def test_a_kernel_without_live_patching_has_its_own_fixes_all_the_same(on, make_kernel, live_patches):
    kernel = make_kernel(None, release=KERNEL)
    with SuseRoot(kernel.root, live_patches) as suse:
        suse.zypper("install", "--name", "kernel-default=4.4.180-94.100.1")

        assert on(kernel.root).kgraft_security.cves("CVE-2025-0001", "CVE-2026-0002") == {
            "CVE-2025-0001": "fixed by kernel",
            "CVE-2026-0002": "unknown",
        }


@pytest.mark.parametrize("kernel", [{"abi": "livepatch", "release": KERNEL_15}], indirect=True)
def test_a_kernel_of_15_has_it_all_under_its_other_name(kgraft_pkg, kgraft_security, kernel):
    kernel.patch("livepatch_9_2_1", "applied")

    assert kgraft_pkg.install("9")["name"] == package_name(KERNEL_15)
    assert kgraft_pkg.installed() == "9-2.1"
    assert kgraft_security.cves("CVE-2026-0009") == {"CVE-2026-0009": "fixed by livepatch_9_2_1"}


# The manual


def _shown():
    """The console blocks of the page about packages, as (command, output)."""
    page = pathlib.Path(__file__).parents[2] / "docs/which-fixes-are-in.md"
    for block in re.findall(r"<!-- machine: .*? -->\n```console\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
        for shown in block.split("$ salt '*' ")[1:]:
            command, _, output = shown.partition("\n")
            yield pytest.param(command, output, id=command)


@pytest.mark.parametrize(("command", "output"), _shown())
def test_what_the_manual_shows_is_what_is_printed(on, suse, kernel, suse_loaders, command, output):
    kernel.patch("kgraft-patch-9-2_2", "applied")
    suse.zypper("install", "--name", f"{PACKAGE}=9-2.2", "kernel-default=4.4.180-94.100.1")
    suse.lifecycle(f"{PACKAGE}, *, 2026-12-31\n")
    function, *words = shlex.split(command)
    arguments = [word for word in words if not word.startswith("--out")]
    outputter = next((word.split("=")[1] for word in words if word.startswith("--out")), "nested")

    try:
        answer = on(kernel.root)[function](*arguments)
    except CommandExecutionError as err:
        answer = f"ERROR: {err}"

    printed = salt.output.out_format({"db1": answer}, outputter, {**suse_loaders.opts, "color": False})
    assert printed.strip() == output.strip()
