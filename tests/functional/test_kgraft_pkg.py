"""The packages of live patches, with Salt's own zypper module, Debian's real zypper and rpm, and real repositories."""

import os
import pathlib
import shutil
import subprocess
import time

import pytest
from salt.exceptions import CommandExecutionError

from lab import Lab, samples
from tests.support.machine import state_of
from tests.support.packages import FAIL, KERNEL, KERNEL_15, OTHER_KERNEL, SuseRoot, package_name, until

pytest_plugins = ["tests.support.package_fixtures"]

PACKAGE = package_name(KERNEL)
MODULE = "kgraft_patch_{}".format


@pytest.fixture
def kgraft_pkg(on, suse):
    return on(suse.root).kgraft_pkg


def test_a_minion_that_is_not_suse_has_no_kgraft_pkg_but_has_kgraft(loaders):
    assert "kgraft.status" in loaders.modules
    assert "kgraft_pkg.name" not in loaders.modules


# What there is


def test_nothing_is_installed_at_first(kgraft_pkg):
    assert kgraft_pkg.installed() is None


def test_available_lists_the_newest_first_as_rpm_compares(kgraft_pkg):
    assert kgraft_pkg.available()["versions"] == ["10-2.1", "9-2.2", "2-2.1", "2-1.1", "1-8.5.1"]
    assert kgraft_pkg.available(OTHER_KERNEL)["versions"] == ["6-2.1", "1-1.1"]
    assert kgraft_pkg.available(KERNEL_15)["versions"] == ["10-150400.2.1", "9-2.1", "1-150400.9.3.1"]


def test_available_is_empty_for_a_kernel_that_no_repository_knows(kgraft_pkg):
    answer = kgraft_pkg.available("4.4.180-94.1-default")
    assert (answer["versions"], answer["newest"], answer["unread"]) == ([], None, [])


def test_available_is_empty_without_repositories(on, kernel):
    with SuseRoot(kernel.root):
        answer = on(kernel.root).kgraft_pkg.available()
        assert answer == {"versions": [], "newest": None, "as_of": None, "unread": []}


def test_available_shows_what_came_since_only_after_a_refresh(on, kernel, new_repository):
    repository = new_repository("lp")
    repository.add_live_patch(KERNEL, "1-1.1")
    with SuseRoot(kernel.root, repository):
        kgraft_pkg = on(kernel.root).kgraft_pkg
        assert kgraft_pkg.available()["versions"] == ["1-1.1"]

        repository.add_live_patch(KERNEL, "2-1.1")
        repository.publish()

        assert kgraft_pkg.available()["versions"] == ["1-1.1"]
        assert kgraft_pkg.available(refresh=True)["versions"] == ["2-1.1", "1-1.1"]


def test_an_installed_version_that_no_repository_has_is_not_available(kgraft_pkg, suse):
    kgraft_pkg.install("2-2.1")
    suse.disable("live-patching")

    assert kgraft_pkg.installed() == "2-2.1"
    assert kgraft_pkg.available()["versions"] == []


@pytest.mark.parametrize("others", [["live-patching"], []])
def test_what_could_not_be_read_is_part_of_the_answer(kgraft_pkg, suse, others):
    suse.add_unreachable_repository("far")
    if not others:
        suse.disable("live-patching")

    available, repositories = kgraft_pkg.available(refresh=True), kgraft_pkg.repositories()

    assert available["versions"][:1] == (["10-2.1"] if others else [])
    assert available["as_of"] is None
    assert repositories["offering"] == others
    for answer in (available, repositories):
        (sentence,) = answer["unread"]
        assert sentence.startswith("far: ")
        assert "token-that-nobody-may-see" not in sentence


def test_nothing_to_install_and_a_repository_that_could_not_be_read_are_told_together(kgraft_pkg, suse):
    suse.add_unreachable_repository("far")
    suse.disable("live-patching")

    with pytest.raises(CommandExecutionError, match=r"No enabled repository has .*; far: ") as failure:
        kgraft_pkg.install()
    assert "token-that-nobody-may-see" not in str(failure.value)


def test_questions_are_answered_while_another_zypper_runs(kgraft_pkg, suse):
    with suse.locked():
        assert kgraft_pkg.available()["newest"] == "10-2.1"
        assert kgraft_pkg.installed() is None
        assert kgraft_pkg.repositories()["offering"] == ["live-patching"]
        assert (kgraft_pkg.check()["verdict"], kgraft_pkg.check()["target"]) == ("bring", "10-2.1")


def test_repositories_are_the_enabled_ones_with_live_patches_by_alias(kgraft_pkg, suse, new_repository):
    tools = new_repository("tools")
    tools.add_package("kernel-livepatch-tools-devel")
    suse.enable(tools)

    assert kgraft_pkg.repositories()["offering"] == ["live-patching"]
    suse.disable("live-patching")
    assert kgraft_pkg.repositories() == {"offering": [], "unread": []}


def test_repositories_are_told_by_alias_whatever_their_names(kgraft_pkg, suse, new_repository, live_patches):
    suse.disable("live-patching")
    empty = new_repository("empty")
    empty.add_package("something-else")
    suse.add_repository("variable", live_patches.url, name="Updates for $basearch, 100%")
    suse.add_repository("twin", empty.url, name="one name")
    suse.add_repository("other-twin", live_patches.url, name="one name")

    assert kgraft_pkg.repositories()["offering"] == ["other-twin", "variable"]


def test_zypper_takes_the_newest_of_the_repositories_of_the_highest_priority(kgraft_pkg, suse, new_repository):
    own = new_repository("own")
    own.add_live_patch(KERNEL, "9-2.2")
    suse.enable(own)
    place = suse.root / "etc/zypp/repos.d/own.repo"
    place.write_text(place.read_text() + "priority=50\n")

    answer, checked = kgraft_pkg.available(), kgraft_pkg.check()

    assert (answer["newest"], answer["versions"][0]) == ("9-2.2", "10-2.1")
    assert (checked["verdict"], checked["target"]) == ("bring", "9-2.2")
    assert "10-2.1 is there, too, in a repository of lower priority." in checked["notes"]
    assert kgraft_pkg.install()["new"] == "9-2.2"


def test_a_list_is_as_old_as_the_last_refresh_that_found_it_current(kgraft_pkg, suse):
    day = 24 * 3600
    kgraft_pkg.available(refresh=True)
    told = suse.age("live-patching", 2 * day)

    old, other = kgraft_pkg.check(), kgraft_pkg.check(max_metadata_age=3 * day)

    assert (old["as_of"], old["stale"]) == (told, ["live-patching"])
    assert f"live-patching (as of {told})" in old["doubt"]
    assert (other["stale"], other["doubt"]) == ([], None)
    assert kgraft_pkg.check(refresh=True)["stale"] == []


@pytest.mark.parametrize(
    ("locks", "words"),
    [
        (["kgraft-*"], "is locked by rule 1 `kgraft-*`: zypper rl 1"),
        (["something", "k*"], "is locked by rule 1 `k*`: zypper rl 1, then zypper al kernel-default"),
        (["kernel-default"], None),
    ],
)
def test_a_lock_is_told_with_the_way_out_before_anything_is_done(kgraft_pkg, suse, locks, words):
    for lock in locks:
        suse.zypper("addlock", lock)

    answer = kgraft_pkg.check()

    assert (answer["verdict"], answer["target"]) == ("refused" if words else "bring", "10-2.1")
    assert (answer["reason"] or "").endswith(words or "")


def test_a_package_that_cannot_be_installed_is_told_before_anything_is_done(on, kernel, new_repository):
    repository = new_repository("broken")
    repository.add_package(PACKAGE, "3-1.1", headers="Requires: nobody-has-this")
    with SuseRoot(kernel.root, repository):
        answer = on(kernel.root).kgraft_pkg.check()

    assert answer["verdict"] == "refused"
    assert f"zypper cannot install {PACKAGE} 3-1.1: nothing provides nobody-has-this" in answer["reason"]


HANGS = """\
#!/bin/sh
case " $* " in
    *" {verb} "*) sleep 600 & echo $! >> {pids}; trap "" TERM; sleep 600 & echo $! >> {pids}; wait; wait;;
esac
exec {zypper} "$@"
"""


@pytest.mark.parametrize("verb", ["search", "refresh"])
def test_a_zypper_that_hangs_is_ended_with_its_children_in_time(kgraft_pkg, suse, tmp_path, monkeypatch, verb):
    (tmp_path / "bin").mkdir()
    program, pids = tmp_path / "bin/zypper", tmp_path / "pids"
    program.write_text(HANGS.format(verb=verb, pids=pids, zypper=shutil.which("zypper")))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    started = time.monotonic()
    with pytest.raises(CommandExecutionError, match="zypper did not end within 2 s and was ended"):
        kgraft_pkg.check(refresh=True, timeout=2)

    assert time.monotonic() - started < 30
    for pid in pids.read_text().split():
        until(lambda pid=pid: not os.path.exists(f"/proc/{pid}") or state_of(int(pid)) == "Z")


def test_a_database_that_rpm_cannot_read_is_not_an_answer(kgraft_pkg, suse):
    (suse.database / "rpmdb.sqlite").write_bytes(b"no database " * 1000)

    for question in (kgraft_pkg.installed, lambda: kgraft_pkg.base(["pattern:lp_sles"]), kgraft_pkg.other_kernels):
        with pytest.raises(CommandExecutionError, match="rpm cannot tell"):
            question()


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
            on(kernel.root).kgraft_pkg.install()


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
        kgraft_pkg = on(kernel.root).kgraft_pkg
        assert kgraft_pkg.available(refresh=True)["versions"] == ["1-1.1"]

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
        answer = on(kernel.root).kgraft_pkg.install()

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
            on(kernel.root).kgraft_pkg.install()
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
            kgraft_pkg.install(timeout=0.5)
        assert 0.5 <= time.monotonic() - started < 60
    assert suse.editions(PACKAGE) == []


def test_install_goes_on_when_the_lock_comes_free(kgraft_pkg, suse):
    with suse.locked() as pid:
        ender = subprocess.Popen(["sh", "-c", f"sleep 0.7; kill -KILL {pid}"])
        assert kgraft_pkg.install("2-2.1", timeout=30)["new"] == "2-2.1"
    ender.wait()


def test_the_lock_of_a_zypper_that_died_is_no_lock(kgraft_pkg, suse):
    with suse.locked() as pid:
        pass
    assert (suse.root / "run/zypp.pid").read_text().strip() == str(pid)

    assert kgraft_pkg.install("2-2.1", timeout=0)["new"] == "2-2.1"


# The package's script and the kernel


@pytest.fixture
def lab(tmp_path, live_patches):
    """A lab and a SUSE machine in one root; packages load their patches into the lab."""
    with Lab(tmp_path / "lab", period=0.1) as lab, SuseRoot(lab.root, live_patches) as suse:
        suse.insmod_with(lab.environ)
        lab.suse = suse
        yield lab


def test_installing_loads_the_patch_into_the_kernel_that_runs(on, lab, suse_loaders):
    assert on(lab.root).kgraft_pkg.install("2-2.1")["warnings"] == []

    assert suse_loaders.modules.kgraft.patches()[MODULE("2_2_1")]["version"] == "2-2.1"


def test_installing_during_a_transition_leaves_the_patch_unloaded_and_says_so(on, lab, suse_loaders):
    with samples.process("sleep") as sleeper:
        lab.watch(sleeper.pid)
        lab.load("kgraft-patch-1-8_5_1")

        answer = on(lab.root).kgraft_pkg.install("2-2.1")

        assert answer["new"] == "2-2.1"
        assert "Resource temporarily unavailable" in answer["warnings"][0]
        assert MODULE("2_2_1") not in suse_loaders.modules.kgraft.patches()


def test_the_administrator_can_forbid_the_script_to_load(on, lab, suse_loaders):
    place = pathlib.Path(lab.root, "etc/sysconfig/livepatching")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("LIVEPATCH_KERNEL=never\n")

    assert on(lab.root).kgraft_pkg.install("2-2.1")["new"] == "2-2.1"
    assert suse_loaders.modules.kgraft.patches() == {}
