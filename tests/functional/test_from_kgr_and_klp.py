"""
The manual's table from `kgr` and `klp` to `kgraft`: no row of it is empty, and what stands in each is run here.
"""

import pathlib
import re

import pytest

from tests.support.machine import Machine
from tests.support.packages import minion_options

REPO = pathlib.Path(__file__).resolve().parent.parent.parent
PAGE = REPO / "docs/who-is-holding-my-patch-up.md"

pytest_plugins = ["tests.support.package_fixtures"]


def rows():
    table = PAGE.read_text("utf-8").partition("## From `kgr` and `klp` to `kgraft`")[2]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.fixture(scope="module")
def minion(make_loaders):
    return make_loaders(**minion_options())


@pytest.fixture
def machine(minion, live_patches, tmp_path, monkeypatch):
    with Machine(tmp_path / "lab", minion, [live_patches]) as machine:
        for name in ("PATH", "KGRAFT_LAB"):
            monkeypatch.setenv(name, machine.lab.environ[name])
        yield machine


def test_every_row_names_a_tool_what_is_here_and_what_differs():
    assert len(rows()) > 12
    for kgr, klp, here, differs in rows():
        assert kgr or klp
        assert here and differs


def test_what_stands_in_the_rows_does_what_they_say(machine):
    modules, told = machine.minion.modules, {}

    def call(words, **arguments):
        name, *options = words.split()
        for option in options:
            key, _, value = option.partition("=")
            arguments[key] = {"True": True}.get(value, value)
        told[words] = modules[name](**arguments)
        return told[words]

    machine.suse.lifecycle(f"{machine.package}, *, 2099-06-30\n")

    # installed, and not loaded
    machine.holds("2-2.1")
    told["kgraft.load kgraft_patch_2_2_1"] = modules.kgraft.load("kgraft_patch_2_2_1")
    machine.settle()
    assert machine.patches() == {"kgraft_patch_2_2_1": "applied"}
    assert call("kgraft.ready") is True
    sleeper = machine.sleeper()
    machine.suse.zypper("install", "--name", f"{machine.package}=10-2.1")

    # it moves, and the sleeper holds it up
    assert call("kgraft.status")["state"] == "in_progress"
    assert f"sleep({sleeper.pid}) user" in call("kgraft.summary")
    assert call("kgraft.patches")["kgraft_patch_10_2_1"]["state"] == "applying"
    assert call("kgraft_security.fixes")["version"] == "10-2.1"
    told["kgraft_security.cves"] = modules.kgraft_security.cves("CVE-2015-0002")
    assert list(told["kgraft_security.cves"]) == ["CVE-2015-0002"]
    overview = call("kgraft.overview fixes=True")
    assert (overview["running"], overview["package"]["installed"]) == ("10-2.1", "10-2.1")
    assert overview["fixes"]["cves"] == ["CVE-2026-0002", "CVE-2026-0009", "CVE-2026-0010"]
    assert overview["supported_until"] == "2099-06-30"
    assert [task["pid"] for task in call("kgraft.blocking")["tasks"]] == [sleeper.pid]
    assert {"cmdline", "why", "help"} < set(call("kgraft.blocking cmdline=True")["tasks"][0])
    assert {"stack", "cmdline"} < set(call("kgraft.blocking stacks=True cmdline=True")["tasks"][0])
    assert call("kgraft.ready") is False
    assert call("kgraft.abi") == "kgraft"
    support = pathlib.Path(call("kgraft.support")["path"])
    assert support.stat().st_mode & 0o777 == 0o600
    told["kgraft.in_progress PID"] = modules.kgraft.in_progress(sleeper.pid)
    assert told["kgraft.in_progress PID"] is True

    # it is helped across
    assert [task["pid"] for task in call("kgraft.poke")["poked"]] == [sleeper.pid]
    told["kgraft.wait timeout=600"] = modules.kgraft.wait(timeout=600)
    assert call("kgraft.ready") is True

    # what was replaced goes, and back
    assert machine.patches()["kgraft_patch_2_2_1"] == "inactive"
    told["kgraft.unload kgraft_patch_2_2_1"] = modules.kgraft.unload("kgraft_patch_2_2_1")
    assert "kgraft_patch_2_2_1" not in machine.patches()
    back = machine.applied(version="previous", poke_after=0)
    told["kgraft.applied version: previous"] = back
    assert back.result is True, back.comment

    named = [call for row in rows() for call in re.findall(r"`(kgraft[^`]*)`", row[2])]
    named = ["kgraft.applied version: previous" if call == "kgraft.applied" else call for call in named]
    assert sorted(named) == sorted(told)
