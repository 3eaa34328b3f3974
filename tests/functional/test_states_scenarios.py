"""The scenarios of ``kgraft.applied`` over a real zypper, real packages, and the lab's kernel over real processes."""

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
