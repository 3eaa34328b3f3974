"""The scenarios of ``kgraft.applied`` over a real zypper, real packages, and the lab's kernel over real processes."""

import sys

import pytest

from tests.support.machine import Machine
from tests.support.packages import KERNEL, KERNEL_15, minion_options
from tests.support.scenarios import NAMES, play
from tests.support.soak import SOAK

pytest_plugins = ["tests.support.package_fixtures"]

ALL = [(name, abi) for name in NAMES for abi in ("kgraft", "livepatch")]


@pytest.fixture(scope="module")
def minion(make_loaders):
    return make_loaders(**minion_options())


@pytest.mark.soak
@pytest.mark.parametrize(("name", "abi"), ALL if SOAK else ALL[::8])
def test_dry_live_and_again(minion, live_patches, tmp_path, monkeypatch, name, abi):
    release = {"kgraft": KERNEL, "livepatch": KERNEL_15}[abi]
    with Machine(tmp_path / "lab", minion, [live_patches], abi=abi, release=release) as machine:
        for variable in ("PATH", "KGRAFT_LAB"):
            monkeypatch.setenv(variable, machine.lab.environ[variable])
        play(machine, name)


STARTED = None  # what this process starts, while somebody counts


def _count(event, arguments):
    if event == "subprocess.Popen" and STARTED is not None:
        STARTED.append(arguments[1])


def test_a_run_starts_few_programs(minion, live_patches, tmp_path, monkeypatch):
    """Those that the minion starts itself: at most 3 where there is nothing to do, at most 12 for a change."""
    sys.addaudithook(_count)
    with Machine(tmp_path / "lab", minion, [live_patches]) as machine:
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
