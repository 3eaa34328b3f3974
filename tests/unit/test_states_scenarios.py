"""The scenarios of ``kgraft.applied`` on a machine of files, and how many programs each starts."""

import pytest

from tests.support.scenarios import NAMES, play
from tests.support.suse_of_files import Machine


@pytest.mark.parametrize("abi", ["kgraft", "livepatch"])
@pytest.mark.parametrize("name", NAMES)
def test_dry_live_and_again(tmp_path, abi, name):
    machine = Machine(tmp_path, abi)

    live = play(machine, name)

    most = 3 if live.result and not live.changes else 12
    assert all(len(started) <= most for started in machine.runs_started[1:]), machine.runs_started
