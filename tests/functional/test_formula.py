"""What a form hands on, applied by Salt to a machine: the lab's kernel, a real zypper. A beacon needs a minion: there,
tests/integration/test_packages.py has it."""

import pytest
import yaml

from tests.support.load import REPO
from tests.support.machine import Machine
from tests.support.packages import minion_options

pytest_plugins = ["tests.support.package_fixtures"]

EXAMPLE = yaml.safe_load((REPO / "formula" / "pillar.example").read_text("utf-8"))["kgraft"]
POKED = {"enabled": True, "after": 0, "protect": ["name:hdb*"]}
FORMS = {
    "the example": (EXAMPLE, "10-2.1"),
    "one version, waited for": ({"wish": "one version", "version": "9", "settle": True, "timeout": "120"}, "9-2.2"),
    "poked": ({"settle": True, "timeout": 120, "poke": POKED}, "10-2.1"),
}


@pytest.fixture(scope="session")
def minion(make_loaders):
    """A SUSE minion to which the formula is a state, as to one of a server."""
    return make_loaders(**minion_options(), file_roots={"base": [str(REPO / "formula")]})


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_promised_applied_and_then_there(minion, live_patches, tmp_path, monkeypatch, form):
    fields, version = FORMS[form]
    pillar = {"kgraft": fields}
    with Machine(tmp_path / "lab", minion, [live_patches]) as machine:
        for variable in ("PATH", "KGRAFT_LAB"):
            monkeypatch.setenv(variable, machine.lab.environ[variable])
        if form != "one version, waited for":
            machine.sleeper()
        machine.suse.zypper("refresh")

        def applied(test):
            told = machine.run_sls("kgraft", pillar=pillar, test=test)
            # without a minion there is no beacon and no schedule
            return {name: told[name] for name in told if name not in ("kgraft: the beacon", "kgraft: the metrics")}

        dry, live = applied(True), applied(False)
        assert [one.comment for one in live.values() if one.result is not True] == []
        assert [one.result for one in dry.values()] == [None, None]
        changes = dict(live["kgraft: the kernel is patched"].changes)
        assert bool(changes.pop("poked", None)) == (form == "poked")
        assert dry["kgraft: the kernel is patched"].changes == changes
        assert machine.edition() == version
        if not fields.get("settle"):
            machine.settle()
        assert machine.state() == "ready"
        again = applied(False)
        assert {name: (one.result, one.changes) for name, one in again.items()} == dict.fromkeys(live, (True, {}))
