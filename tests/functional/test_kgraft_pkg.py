"""The packages of live patches, with Salt's own zypper module, Debian's real zypper and rpm, and real repositories."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import time

import pytest
import salt.output
from salt.exceptions import CommandExecutionError

from lab import Lab
from tests.support.packages import FAIL, KERNEL, KERNEL_15, OTHER_KERNEL, SuseRoot, minion_options, package_name

pytest_plugins = ["tests.support.package_fixtures"]

PACKAGE = package_name(KERNEL)
MODULE = "kgraft_patch_{}".format


@pytest.fixture(scope="module")
def suse_loaders(make_loaders):
    return make_loaders(**minion_options())


@pytest.fixture
def on(suse_loaders):
    """Return ``on(root)``: kgraft_pkg of a SUSE minion whose root is this one."""

    def bind(root):
        suse_loaders.opts["kgraft.root"] = str(root)
        return suse_loaders.modules.kgraft_pkg

    yield bind
    suse_loaders.reset_state()
    suse_loaders.opts["kgraft.root"] = "/nonexistent"


@pytest.fixture
def kgraft_pkg(on, suse):
    return on(suse.root)


def test_a_minion_that_is_not_suse_has_no_kgraft_pkg_but_has_kgraft(loaders):
    assert "kgraft.status" in loaders.modules
    assert "kgraft_pkg.name" not in loaders.modules


# What there is


def test_nothing_is_installed_at_first(kgraft_pkg):
    assert kgraft_pkg.installed() is None


def test_available_lists_the_newest_first_as_rpm_compares(kgraft_pkg):
    assert kgraft_pkg.available() == ["10-2.1", "9-2.2", "2-2.1", "2-1.1", "1-8.5.1"]
    assert kgraft_pkg.available(OTHER_KERNEL) == ["6-2.1", "1-1.1"]
    assert kgraft_pkg.available(KERNEL_15) == ["10-150400.2.1", "9-2.1", "1-150400.9.3.1"]


def test_available_is_empty_for_a_kernel_that_no_repository_knows(kgraft_pkg):
    assert kgraft_pkg.available("4.4.180-94.1-default") == []


def test_available_is_empty_without_repositories(on, kernel):
    with SuseRoot(kernel.root):
        assert on(kernel.root).available() == []


def test_available_shows_what_came_since_only_after_a_refresh(on, kernel, new_repository):
    repository = new_repository("lp")
    repository.add_live_patch(KERNEL, "1-1.1")
    with SuseRoot(kernel.root, repository):
        kgraft_pkg = on(kernel.root)
        assert kgraft_pkg.available() == ["1-1.1"]

        repository.add_live_patch(KERNEL, "2-1.1")
        repository.publish()

        assert kgraft_pkg.available() == ["1-1.1"]
        assert kgraft_pkg.available(refresh=True) == ["2-1.1", "1-1.1"]


def test_an_installed_version_that_no_repository_has_is_not_available(kgraft_pkg, suse):
    kgraft_pkg.install("2-2.1")
    suse.disable("live-patching")

    assert kgraft_pkg.installed() == "2-2.1"
    assert kgraft_pkg.available() == []


def test_an_unreachable_repository_is_no_obstacle_while_another_has_the_package(kgraft_pkg, suse):
    suse.add_unreachable_repository()

    assert kgraft_pkg.available(refresh=True)[0] == "10-2.1"
    assert kgraft_pkg.offered() == ["live-patching"]


def test_nothing_available_and_a_repository_unreachable_is_no_answer(kgraft_pkg, suse):
    suse.add_unreachable_repository("far")
    suse.disable("live-patching")

    for question in (kgraft_pkg.available, kgraft_pkg.offered, kgraft_pkg.install):
        with pytest.raises(CommandExecutionError, match="far") as failure:
            question()
        assert "token-that-nobody-may-see" not in str(failure.value)


def test_questions_are_answered_while_another_zypper_runs(kgraft_pkg, suse):
    with suse.locked():
        assert kgraft_pkg.available()[0] == "10-2.1"
        assert kgraft_pkg.installed() is None
        assert kgraft_pkg.offered() == ["live-patching"]


def test_offered_names_enabled_repositories_with_live_patches_by_alias(kgraft_pkg, suse, new_repository):
    tools = new_repository("tools")
    tools.add_package("kernel-livepatch-tools-devel")
    suse.enable(tools)

    assert kgraft_pkg.offered() == ["live-patching"]
    suse.disable("live-patching")
    assert kgraft_pkg.offered() == []


def test_a_database_that_rpm_cannot_read_is_not_an_answer(kgraft_pkg, suse):
    (suse.database / "rpmdb.sqlite").write_bytes(b"no database " * 1000)

    with pytest.raises(CommandExecutionError, match="rpm cannot tell"):
        kgraft_pkg.installed()


# Installing


def test_install_takes_the_newest_and_has_nothing_to_do_the_second_time(kgraft_pkg, suse):
    assert kgraft_pkg.install() == {"name": PACKAGE, "old": None, "new": "10-2.1", "warnings": []}
    assert suse.editions(PACKAGE) == ["10-2.1"]

    assert kgraft_pkg.install() == {"name": PACKAGE, "old": "10-2.1", "new": "10-2.1", "warnings": []}


def test_install_of_a_number_takes_its_newest_release(kgraft_pkg, suse):
    assert kgraft_pkg.install(2)["new"] == "2-2.1"
    assert suse.editions(PACKAGE) == ["2-2.1"]


def test_install_goes_up_without_being_told(kgraft_pkg):
    kgraft_pkg.install("2-1.1")

    assert kgraft_pkg.install("9-2.2") == {"name": PACKAGE, "old": "2-1.1", "new": "9-2.2", "warnings": []}


def test_install_goes_back_only_when_told(kgraft_pkg, suse):
    kgraft_pkg.install("9-2.2")

    with pytest.raises(CommandExecutionError, match=r"2-2\.1 is older than 9-2\.2.*allow_downgrade=True"):
        kgraft_pkg.install("2-2.1")
    assert suse.editions(PACKAGE) == ["9-2.2"]

    assert kgraft_pkg.install("2-2.1", allow_downgrade=True)["new"] == "2-2.1"
    assert suse.editions(PACKAGE) == ["2-2.1"]


def test_install_says_which_versions_there_are_instead(kgraft_pkg, suse):
    with pytest.raises(CommandExecutionError, match=r"has kgraft-patch-\S+ 3; there are 10-2\.1, 9-2\.2"):
        kgraft_pkg.install("3")
    assert suse.editions(PACKAGE) == []


def test_install_without_any_repository_says_so(on, kernel):
    with SuseRoot(kernel.root):
        with pytest.raises(CommandExecutionError, match=f"No enabled repository has {PACKAGE}$"):
            on(kernel.root).install()


def test_install_keeps_what_is_installed_when_the_repositories_are_gone(kgraft_pkg, suse):
    kgraft_pkg.install("2-2.1")
    suse.disable("live-patching")

    assert kgraft_pkg.install()["new"] == "2-2.1"


def test_install_goes_on_past_an_unreachable_repository_and_says_so(kgraft_pkg, suse):
    suse.add_unreachable_repository("far")

    answer = kgraft_pkg.install("2-2.1")

    assert answer["new"] == "2-2.1"
    assert len(answer["warnings"]) == 1
    assert "far" in answer["warnings"][0]
    assert "token-that-nobody-may-see" not in answer["warnings"][0]


def test_install_refuses_a_repository_whose_signature_is_broken(on, kernel, new_repository):
    repository = new_repository("signed")
    repository.add_live_patch(KERNEL, "1-1.1")
    with SuseRoot(kernel.root) as suse:
        repository.sign(suse.root)
        suse.enable(repository, gpgcheck=True)
        kgraft_pkg = on(kernel.root)
        assert kgraft_pkg.available(refresh=True) == ["1-1.1"]

        repository.add_live_patch(KERNEL, "2-1.1")
        repository.sign(suse.root)
        repository.break_signature()

        with pytest.raises(CommandExecutionError, match="(?i)signature"):
            kgraft_pkg.install("2-1.1")
        assert suse.editions(PACKAGE) == []


def test_a_script_that_fails_is_a_warning_in_its_own_words(on, kernel, new_repository):
    repository = new_repository("failing")
    repository.add_live_patch(KERNEL, "3-1.1", post=FAIL)
    with SuseRoot(kernel.root, repository):
        answer = on(kernel.root).install()

    assert answer["new"] == "3-1.1"
    assert len(answer["warnings"]) == 1
    assert "Resource temporarily unavailable" in answer["warnings"][0]
    assert "scriptlet failed" in answer["warnings"][0]


def test_a_package_that_rpm_does_not_have_afterwards_is_a_failure(on, kernel, new_repository):
    repository = new_repository("failing")
    repository.add_package(
        PACKAGE, "3-1.1", headers="Requires: /bin/sh", post="exit 0\n%pre\necho 'not on a Monday' >&2; exit 1"
    )
    with SuseRoot(kernel.root, repository) as suse:
        with pytest.raises(CommandExecutionError, match="3-1.1"):
            on(kernel.root).install()
        assert suse.editions(PACKAGE) == []


def test_a_zypper_that_aborts_and_exits_with_0_is_a_failure(kgraft_pkg, suse, tmp_path, monkeypatch):
    zypper = shutil.which("zypper")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/zypper").write_text(
        f'#!/bin/sh\ncase " $* " in *" install "*) echo "ABORT request" >&2; exit 0;; esac\nexec {zypper} "$@"\n'
    )
    (tmp_path / "bin/zypper").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")

    with pytest.raises(CommandExecutionError, match=f"zypper ran, but {PACKAGE} is not installed, not 10-2.1"):
        kgraft_pkg.install()
    assert suse.editions(PACKAGE) == []


@pytest.mark.parametrize("holder", ["locked", "rpm_locked"])
def test_install_gives_up_when_the_lock_does_not_come_free(kgraft_pkg, suse, holder):
    kgraft_pkg.available()
    with getattr(suse, holder)() as pid:
        started = time.monotonic()
        with pytest.raises(CommandExecutionError, match=rf"zypper \({pid}\)" if holder == "locked" else "by rpm"):
            kgraft_pkg.install(lock_timeout=0.5)
        assert 0.5 <= time.monotonic() - started < 5
    assert suse.editions(PACKAGE) == []


def test_install_goes_on_when_the_lock_comes_free(kgraft_pkg, suse):
    with suse.locked() as pid:
        ender = subprocess.Popen(["sh", "-c", f"sleep 0.7; kill -KILL {pid}"])
        assert kgraft_pkg.install("2-2.1", lock_timeout=30)["new"] == "2-2.1"
    ender.wait()


def test_the_lock_of_a_zypper_that_died_is_no_lock(kgraft_pkg, suse):
    with suse.locked() as pid:
        pass
    assert (suse.root / "run/zypp.pid").read_text().strip() == str(pid)

    assert kgraft_pkg.install("2-2.1", lock_timeout=0)["new"] == "2-2.1"


# The package's script and the kernel


@pytest.fixture
def lab(tmp_path, live_patches):
    """A lab and a SUSE machine in one root; packages load their patches into the lab."""
    with Lab(tmp_path / "lab", period=0.1) as lab, SuseRoot(lab.root, live_patches) as suse:
        suse.insmod_with(lab.environ)
        lab.suse = suse
        yield lab


def test_installing_loads_the_patch_into_the_kernel_that_runs(on, lab, suse_loaders):
    assert on(lab.root).install("2-2.1")["warnings"] == []

    assert suse_loaders.modules.kgraft.patches()[MODULE("2_2_1")]["version"] == "2-2.1"


def test_installing_during_a_transition_leaves_the_patch_unloaded_and_says_so(on, lab, suse_loaders):
    sleeper = subprocess.Popen(["sleep", "600"])
    try:
        lab.watch(sleeper.pid)
        lab.load("kgraft-patch-1-8_5_1")

        answer = on(lab.root).install("2-2.1")

        assert answer["new"] == "2-2.1"
        assert "Resource temporarily unavailable" in answer["warnings"][0]
        assert MODULE("2_2_1") not in suse_loaders.modules.kgraft.patches()
    finally:
        sleeper.kill()
        sleeper.wait()


def test_the_administrator_can_forbid_the_script_to_load(on, lab, suse_loaders):
    place = pathlib.Path(lab.root, "etc/sysconfig/livepatching")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("LIVEPATCH_KERNEL=never\n")

    assert on(lab.root).install("2-2.1")["new"] == "2-2.1"
    assert suse_loaders.modules.kgraft.patches() == {}


# What a version fixes


def test_fixes_of_an_installed_version_come_from_its_changelog(kgraft_pkg):
    kgraft_pkg.install("9-2.2")

    assert kgraft_pkg.fixes() == {
        "version": "9-2.2",
        "cves": ["CVE-2026-0002", "CVE-2026-0009"],
        "bugs": ["bsc#1260002", "bsc#1260009"],
        "source": "changelog",
    }


def test_fixes_of_a_version_to_come_are_those_of_all_updates_up_to_it(kgraft_pkg):
    assert kgraft_pkg.fixes("9") == {
        "version": "9-2.2",
        "cves": ["CVE-2026-0002", "CVE-2026-0009"],
        "bugs": ["bsc#1260002", "bsc#1260009"],
        "source": "updateinfo",
    }


def test_fixes_of_the_initial_patch_are_none(kgraft_pkg):
    kgraft_pkg.install("1-8.5.1")

    assert kgraft_pkg.fixes()["cves"] == []


def test_fixes_of_a_version_that_nothing_names_are_not_guessed(kgraft_pkg):
    with pytest.raises(CommandExecutionError, match="2-1.1"):
        kgraft_pkg.fixes("2-1.1")
    with pytest.raises(CommandExecutionError, match="No version 4"):
        kgraft_pkg.fixes("4")
    with pytest.raises(CommandExecutionError, match="No live patch is active"):
        kgraft_pkg.fixes()


def test_fixes_of_a_loaded_patch_are_what_the_tool_says(kgraft_pkg, suse, kernel, kgr):
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

    assert kgraft_pkg.fixes() == {
        "version": "2-2.1",
        "cves": ["CVE-2026-0002", "CVE-2026-7777"],
        "bugs": ["bsc#1260002"],
        "source": "kgr",
    }


def test_what_the_tool_says_of_another_kernel_does_not_count(kgraft_pkg, kernel, kgr):
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

    assert kgraft_pkg.fixes()["source"] == "updateinfo"
    assert kgraft_pkg.cves("CVE-2026-7777") == {"CVE-2026-7777": "unknown"}


def test_a_tool_too_old_for_the_question_is_passed_over(kgraft_pkg, kernel, kgr):
    kernel.patch("kgraft-patch-2-2_1", "applied")
    kgr("usage: kgr status", exit_code=1)

    assert kgraft_pkg.fixes()["source"] == "updateinfo"


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


def test_a_cve_of_the_active_patch_is_fixed_by_it(kgraft_pkg, kernel):
    kernel.patch("kgraft-patch-9-2_2", "applied")
    kgraft_pkg.install("9-2.2")

    assert kgraft_pkg.cves("CVE-2026-0009", "cve-2026-0002") == {
        "CVE-2026-0009": "fixed by kgraft_patch_9_2_2",
        "cve-2026-0002": "fixed by kgraft_patch_9_2_2",
    }


def test_a_cve_of_a_patch_in_transition_is_pending_unless_an_applied_one_fixed_it(kgraft_pkg, kernel):
    kernel.patch("kgraft-patch-2-2_1", "applied")
    kernel.start("kgraft-patch-9-2_2")
    kgraft_pkg.install("9-2.2")

    assert kgraft_pkg.cves("CVE-2026-0002", "CVE-2026-0009") == {
        "CVE-2026-0002": "fixed by kgraft_patch_2_2_1",
        "CVE-2026-0009": "pending: kgraft_patch_9_2_2 not settled",
    }


def test_of_stacked_patches_the_one_that_fixed_it_first_is_named(kgraft_pkg, kernel):
    kernel.patch("kgraft-patch-2-2_1", "applied")
    kernel.patch("kgraft-patch-9-2_2", "applied", replace_all=False)

    assert kgraft_pkg.cves("CVE-2026-0002", "CVE-2026-0009") == {
        "CVE-2026-0002": "fixed by kgraft_patch_2_2_1",
        "CVE-2026-0009": "fixed by kgraft_patch_9_2_2",
    }


def test_a_cve_of_a_package_that_is_not_loaded_is_pending(kgraft_pkg):
    kgraft_pkg.install("2-2.1")

    assert kgraft_pkg.cves("CVE-2026-0002") == {"CVE-2026-0002": f"pending: {PACKAGE}-2-2.1 not loaded"}


def test_a_cve_of_a_patch_being_reverted_is_not_fixed_by_it(kgraft_pkg, kernel):
    kernel.patch("kgraft-patch-2-2_1", "applied")
    kernel.revert("kgraft-patch-2-2_1")

    assert not kgraft_pkg.cves("CVE-2026-0002")["CVE-2026-0002"].startswith("fixed")


def test_a_cve_in_the_running_kernels_changelog_is_fixed_by_the_kernel(kgraft_pkg, suse):
    assert kgraft_pkg.cves("CVE-2025-0001") == {"CVE-2025-0001": "unknown"}

    suse.zypper("install", "--name", "kernel-default=5.14.21-150400.24.33.1")
    assert kgraft_pkg.cves("CVE-2025-0001") == {"CVE-2025-0001": "unknown"}, "that is not the kernel that runs"

    suse.zypper("install", "--oldpackage", "--name", "kernel-default=4.4.180-94.100.1")
    assert kgraft_pkg.cves("CVE-2025-0001") == {"CVE-2025-0001": "fixed by kernel"}


def test_a_cve_of_an_update_that_zypper_calls_needed_is_open(kgraft_pkg, kernel):
    kernel.patch("kgraft-patch-2-2_1", "applied")
    kgraft_pkg.install("2-2.1")

    assert kgraft_pkg.cves("CVE-2026-0002", "CVE-2026-0010") == {
        "CVE-2026-0002": "fixed by kgraft_patch_2_2_1",
        "CVE-2026-0010": f"open: SUSE-{PACKAGE}-10",
    }


def test_an_odd_cve_gets_its_own_answer_and_spoils_none(kgraft_pkg, kernel):
    kernel.patch("kgraft-patch-2-2_1", "applied")

    assert kgraft_pkg.cves("CVE-2026-0002", "heartbleed", 7, "CVE-1999-99999") == {
        "CVE-2026-0002": "fixed by kgraft_patch_2_2_1",
        "heartbleed": "unknown: not a CVE number",
        7: "unknown: not a CVE number",
        "CVE-1999-99999": "unknown",
    }


def test_a_kernel_without_live_patching_has_its_own_fixes_all_the_same(on, make_kernel, live_patches):
    kernel = make_kernel(None, release=KERNEL)
    with SuseRoot(kernel.root, live_patches) as suse:
        suse.zypper("install", "--name", "kernel-default=4.4.180-94.100.1")

        assert on(kernel.root).cves("CVE-2025-0001", "CVE-2026-0002") == {
            "CVE-2025-0001": "fixed by kernel",
            "CVE-2026-0002": "unknown",
        }


@pytest.mark.parametrize("kernel", [{"abi": "livepatch", "release": KERNEL_15}], indirect=True)
def test_a_kernel_of_15_has_it_all_under_its_other_name(kgraft_pkg, kernel):
    kernel.patch("livepatch_9_2_1", "applied")

    assert kgraft_pkg.install("9")["name"] == package_name(KERNEL_15)
    assert kgraft_pkg.installed() == "9-2.1"
    assert kgraft_pkg.cves("CVE-2026-0009") == {"CVE-2026-0009": "fixed by livepatch_9_2_1"}


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
        answer = getattr(on(kernel.root), function.split(".")[1])(*arguments)
    except CommandExecutionError as err:
        answer = f"ERROR: {err}"

    printed = salt.output.out_format({"db1": answer}, outputter, {**suse_loaders.opts, "color": False})
    assert printed.strip() == output.strip()
