"""
The scenario of SUSE's article: "During the patch there was no interruption of the query and no break of the access".
"""

import time

import pytest

from tests.support.busy_database import BusyDatabase
from tests.support.machine import Machine, stand_alone_minion, state_of
from tests.support.packages import KERNEL, package_name

pytest_plugins = ["tests.support.package_fixtures"]


@pytest.fixture
def machine(tmp_path, file_root, live_patches, monkeypatch):
    with Machine(tmp_path / "lab", stand_alone_minion(tmp_path / "minion", file_root), [live_patches]) as machine:
        monkeypatch.setenv("PATH", machine.lab.environ["PATH"])
        monkeypatch.setenv("KGRAFT_LAB", machine.lab.environ["KGRAFT_LAB"])
        yield machine


def test_a_database_is_patched_under_load_and_nobody_notices(machine):
    with BusyDatabase() as database:
        backends = database.backends()
        for pid in database.pids:
            machine.lab.watch(pid)
        answered = [len(client.answers) for client in database.clients]

        began = time.monotonic()
        live = machine.applied(version="2", timeout=60, poke_after=1, probes=[database.probe], fail_on_gap=5)
        ended = time.monotonic()

        database.stop()
        assert live.result is True, live.comment
        assert live.changes[package_name(KERNEL)] == {"old": None, "new": "2-2.1"}
        assert live.changes["kgraft_patch_2_2_1"] == {"old": None, "new": "applied"}
        # the idle ones, the postmaster and its workers slept, and were moved
        assert {f"postgres ({pid})" for pid in backends} <= set(live.changes["poked"])

        assert [client.failures for client in database.clients] == [[], [], []]
        assert all(len(client.answers) > before + 10 for client, before in zip(database.clients, answered, strict=True))
        assert max(client.longest_gap(began, ended) for client in database.clients) < 5
        assert database.backends() == backends

        seen = live.changes["probes"]["ask-postgresql"]
        assert (seen["asked"] > 10, seen["failed"]) == (True, 0)
        assert 0.05 <= seen["longest_gap"] < 5
        assert 0.05 <= seen["at_rest"] < 5
        assert f"\nProbe ask-postgresql: asked {seen['asked']}, failed 0, longest gap " in live.comment
        assert [pid for pid in database.pids if state_of(pid) == "T"] == []
