"""The scenarios of ``kgraft.applied`` over a real zypper, real packages, and the lab's kernel over real processes."""

import sys

import pytest

from tests.support.machine import Machine
from tests.support.packages import KERNEL, KERNEL_15
from tests.support.scenarios import NAMES, SCENARIOS, play
from tests.support.soak import SOAK

pytest_plugins = ["tests.support.package_fixtures"]

ALL = [(name, abi) for name in NAMES for abi in ("kgraft", "livepatch")]
# make test plays these: all that a machine can be before a run, each kind of step, both interfaces
FEW = {
    "latest": "livepatch",
    "without waiting": "kgraft",
    "back to what is in memory": "kgraft",
    "on to what is in memory": "livepatch",
    "installed only": "livepatch",
    "no package holds it": "kgraft",
    "it is on its way": "livepatch",
    "another is on its way": "kgraft",
    "sysconfig 'LIVEPATCH_KERNEL=never\\n'": "livepatch",
    "dead, read long ago": "kgraft",
    "a newer one of lower priority": "livepatch",
    "nobody offers any": "kgraft",
    "locked": "livepatch",
}


@pytest.mark.soak
@pytest.mark.parametrize(("name", "abi"), ALL if SOAK else FEW.items())
def test_dry_live_and_again(suse_loaders, live_patches, tmp_path, monkeypatch, name, abi):
    release = {"kgraft": KERNEL, "livepatch": KERNEL_15}[abi]
    with Machine(tmp_path / "lab", suse_loaders, [live_patches], abi=abi, release=release) as machine:
        for variable in ("PATH", "KGRAFT_LAB"):
            monkeypatch.setenv(variable, machine.lab.environ[variable])
        play(machine, name)


def test_what_is_played_has_all_that_a_machine_can_be():
    played, all_of_them = (
        {verb for _, before, *_ in rows for verb, *_ in before}
        for rows in ([row for row in SCENARIOS if row[0] in FEW], SCENARIOS)
    )
    assert played == all_of_them


STARTED = None  # what this process starts, while somebody counts


def _count(event, arguments):
    if event == "subprocess.Popen" and STARTED is not None:
        STARTED.append(arguments[1])


def test_a_run_starts_few_programs(suse_loaders, live_patches, tmp_path, monkeypatch):
    """Those that the minion starts itself: at most 3 where there is nothing to do, at most 12 for a change."""
    sys.addaudithook(_count)
    with Machine(tmp_path / "lab", suse_loaders, [live_patches]) as machine:
        for variable in ("PATH", "KGRAFT_LAB"):
            monkeypatch.setenv(variable, machine.lab.environ[variable])
        machine.suse.zypper("refresh")
        for most in (12, 3):
            monkeypatch.setattr(sys.modules[__name__], "STARTED", [])
            assert machine.applied().result is True
            ours = [
                words for words in STARTED if not str(words[0]).endswith("insmod")
            ]  # a script's, in the test's stead
            assert len(ours) <= most, ours
