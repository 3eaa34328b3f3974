"""
Where a registration code is seen: a master and a minion that log all they can, and a search of everything they wrote.

A reference to a file or to an SDB keeps the code out of all of it. A code in the pillar is handled by Salt's master
before this project sees it: at level all the master logs the rendered pillar file, and it caches the minion's pillar.
The minion, the returns, the events and the job cache are free of it there too.
"""

import os
import pathlib
import time

import pytest
from saltfactories.utils import random_string

from tests.integration.conftest import MASTER, MINION, sync
from tests.support import suseconnect

CODES = {"pillar": "aaaa-SECRET-pillar", "sdb": "bbbb-SECRET-sdb", "file": "cccc-SECRET-file"}
LITERAL = "dddd-SECRET-literal"
SLES_12 = {"os": "SUSE", "osfullname": "SLES", "os_family": "Suse", "osrelease": "12", "cpuarch": "x86_64"}
LOUD = {"log_level": "all", "log_level_logfile": "all"}


class Places:
    """The sources of the codes. They lie apart from what the daemons write."""

    def __init__(self, directory):
        self.bin = directory / "bin"
        self.pillar = directory / "pillar"
        self.pillar.mkdir()
        (self.pillar / "top.sls").write_text("base: {'*': [codes]}")
        (self.pillar / "codes.sls").write_text(f"kgraft: {{code: {CODES['pillar']}}}")
        self.sdb = directory / "sdb.yaml"
        self.sdb.write_text(f"kgraft: {{code: {CODES['sdb']}}}")
        self.file = directory / "code"
        self.file.touch(mode=0o600)
        self.file.write_text(f"{CODES['file']}\n")
        self.states = directory / "states"
        self.states.mkdir()
        self.references = {"pillar": "pillar:kgraft:code", "sdb": "sdb://codes/kgraft:code", "file": str(self.file)}
        for kind, reference in self.references.items():
            (self.states / f"{kind}.sls").write_text(
                f"subscribed: {{kgraft_subscription.registered: [{{code_from: '{reference}'}}]}}"
            )


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return Places(tmp_path_factory.mktemp("places"))


@pytest.fixture(scope="module")
def loud_master(salt_factories, places, file_root):
    factory = salt_factories.salt_master_daemon(
        random_string("loud-master-"),
        overrides={
            **MASTER,
            **LOUD,
            "file_roots": {"base": [str(file_root), str(places.states)]},
            "pillar_roots": {"base": [str(places.pillar)]},
        },
    )
    with factory.started():
        yield factory


@pytest.fixture(scope="module")
def loud_minion(loud_master, salt_factories, places, tmp_path_factory):
    directory = tmp_path_factory.mktemp("system")
    path = f"{suseconnect.install(places.bin)}:{os.environ['PATH']}"
    with pytest.MonkeyPatch.context() as patch:
        # the daemon takes its environment from the one, salt-call from the other
        patch.setitem(salt_factories.environ, "PATH", path)
        patch.setenv("PATH", path)
        factory = loud_master.salt_minion_daemon(
            random_string("loud-minion-"),
            overrides={
                **MINION,
                **LOUD,
                "grains": SLES_12,
                "kgraft.root": str(directory / "root"),
                "codes": {"driver": "yaml", "files": [str(places.sdb)]},
            },
        )
        with factory.started():
            sync(loud_master, factory)
            yield factory


@pytest.fixture(scope="module")
def seen(loud_master, loud_minion, places, event_listener):
    """
    Use every code in every way, then return ``seen(code)``: the names of the files, outputs and events that hold it,
    as it is or encoded as in a URL.
    """
    began = time.time()
    outputs = {}
    salt = loud_master.salt_cli(timeout=180)
    salt_call = loud_minion.salt_call_cli(timeout=180)

    def run(name, cli, *arguments, succeeds):
        target = {"minion_tgt": loud_minion.id} if cli is salt else {}
        ran = cli.run("--log-level=all", *arguments, **target)
        outputs[name] = f"{ran.stdout}\n{ran.stderr}"
        assert (ran.returncode == 0) == succeeds, ran

    with suseconnect.Server() as server:
        suseconnect.prepare(loud_minion.config["kgraft.root"], server)
        (activations,) = server.activations.values()
        for kind, reference in places.references.items():
            # the server repeats the code that it does not know
            run(f"refused {kind}", salt, "kgraft_subscription.register", reference, succeeds=False)
            assert "Unknown Registration Code ***" in outputs[f"refused {kind}"]
            server.codes[CODES[kind]] = suseconnect.subscription()
            run(f"state {kind}", salt, "state.apply", kind, succeeds=True)
            assert "was registered" in outputs[f"state {kind}"]
            assert CODES[kind] in activations.values()
            # an old one, which takes the code on its command line
            suseconnect.install(places.bin, "1.13.0")
            run(f"module {kind}", salt_call, "kgraft_subscription.register", reference, "renew=True", succeeds=True)
            assert "ACTIVE" in outputs[f"module {kind}"]
            suseconnect.install(places.bin)
            activations.pop(suseconnect.LIVE_PATCHING)
        server.silent = True
        run("timeout", salt, "kgraft_subscription.register", places.references["file"], "timeout=1", succeeds=False)
        assert "did not end within 1 s" in outputs["timeout"]
        last = time.time()
        run("literal", salt, "kgraft_subscription.register", LITERAL, succeeds=False)

    # events take their own way to the listener: the last job's return comes after all others
    returned = event_listener.wait_for_events(
        [(loud_master.id, f"salt/job/*/ret/{loud_minion.id}")], after_time=last, timeout=120
    )
    assert returned.found_all_events
    events = event_listener.get_events([(loud_master.id, "*")], after_time=began)

    def seen(code):
        forms = (code, suseconnect.encoded(code))
        found = {name for name, output in outputs.items() if any(form in output for form in forms)}
        found.update("event" for event in events if any(form in str(event.data) for form in forms))
        for daemon in (loud_master, loud_minion):
            root = pathlib.Path(daemon.config["root_dir"])
            files = (path for path in root.rglob("*") if path.is_file())
            for path in files:
                text = path.read_bytes()
                found.update(str(path.relative_to(root)) for form in forms if form.encode() in text)
        return found

    return seen


def test_a_code_given_as_an_argument_is_all_over_the_place(seen):
    """The reason for the references; and the proof that the search finds what is there."""
    found = seen(LITERAL)
    assert {"event", "logs/master.log", "logs/minion.log"} <= found
    assert any(name.startswith("cache/jobs/") for name in found)


@pytest.mark.parametrize("kind", ["file", "sdb"])
def test_a_code_in_a_file_or_an_sdb_is_nowhere(seen, kind):
    assert seen(CODES[kind]) == set()


def test_a_code_in_the_pillar_is_only_where_the_master_keeps_pillars(seen, loud_master, loud_minion, places):
    caches = {f"cache/pillar/{loud_minion.id}.p", f"cache/minions/{loud_minion.id}/data.p"}
    assert seen(CODES["pillar"]) - caches == {"logs/master.log"}

    log = (pathlib.Path(loud_master.config["root_dir"]) / "logs/master.log").read_text(encoding="utf-8")
    source = places.pillar / "codes.sls"
    rendered = f"Rendered data from file: {source}:\n{source.read_text(encoding='utf-8')}"
    assert rendered in log
    assert CODES["pillar"] not in log.replace(rendered, "")
