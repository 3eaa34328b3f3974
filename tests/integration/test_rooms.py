"""
A running minion works with the rooms that were synced last: in jobs, and in the beacon.

The file root of the tests is laid over by a folder of the master's own, so that a room can be another one for a while.
"""

import datetime
import pathlib
import re
import time

import pytest
from saltfactories.utils import random_string

from lab.files import Kernel
from tests.integration.conftest import MINION, job
from tests.integration.conftest import sync as sync_all


@pytest.fixture(scope="module", params=[True, False], ids=["processes", "threads"])
def running(request, master, tmp_path_factory):
    """``(minion, kernel)``: jobs in processes of their own, or in threads of the minion, where old code may live on."""
    kernel = Kernel(tmp_path_factory.mktemp("kernel") / "root")
    factory = master.salt_minion_daemon(
        random_string("rooms-"),
        overrides={
            **MINION,
            "kgraft.root": str(kernel.root),
            "multiprocessing": request.param,
            "beacons": {"kgraft": []},
        },
    )
    with factory.started():
        yield factory, kernel


@pytest.fixture
def sync(master, running):
    """
    ``sync(name=text)``: what ``_modules`` holds on the master's side, and now on the minion's; no text, no file. All is
    synced at first, and then the modules only, which takes a third of the time.
    """
    minion, _ = running
    overlay = master.state_tree.base.paths[0] / "_modules"

    def call(**files):
        overlay.mkdir(exist_ok=True)
        for name, text in files.items():
            path = overlay / f"{name}.py"
            if text is None:
                path.unlink(missing_ok=True)
            else:
                path.write_text(text)
        if files:
            synced = job(master, minion, "saltutil.sync_modules")
            assert isinstance(synced, list), synced
        else:
            sync_all(master, minion)

    yield call
    call(kgraft=None, _kgraft_kernel=None, _kgraft_extra=None)


@pytest.fixture
def heard(event_listener, master, running):
    """``heard(tag, words)``: waits until the beacon has told an event with these words."""
    minion, _ = running
    since = datetime.datetime.now(tz=datetime.timezone.utc)

    def wait_for(tag, words):
        deadline = time.monotonic() + 120
        pattern = (master.id, f"salt/beacon/{minion.id}/kgraft/{tag}")
        while not any(words in str(event.data) for event in event_listener.get_events([pattern], after_time=since)):
            assert time.monotonic() < deadline, f"the beacon has not said {words!r}"
            time.sleep(0.1)

    return wait_for


def _failing(source, words):
    """A kernel room whose every look fails with these words."""
    text, count = re.subn(r"\ndef look\(root\):\n", f'\ndef look(root):\n    raise OSError("{words}")\n', source)
    assert count == 1
    return text


@pytest.mark.smoke
def test_a_changed_room_a_new_one_and_its_removal_reach_jobs_and_the_beacon(repo, master, running, sync, heard):
    minion, _ = running
    source = {path.stem: path.read_text() for path in (repo / "_modules").glob("*kgraft*.py")}

    def summary():
        return job(master, minion, "kgraft.summary")

    sync()
    assert summary().startswith("ready ")
    for words in ("the second room", "the third room"):
        sync(_kgraft_kernel=_failing(source["_kgraft_kernel"], words))
        assert words in summary()
        heard("error", words)

    # an upgrade that brings one more room, and the way back
    anchor = 'files = _room("files")\n'
    assert anchor in source["kgraft"]
    sync(
        _kgraft_kernel=_failing(source["_kgraft_kernel"], "").replace('OSError("")', "OSError(extra.WORDS)"),
        _kgraft_extra='WORDS = "the extra room"\n',
        kgraft=source["kgraft"]
        .replace(anchor, f'{anchor}extra = _room("extra")\n')
        .replace('_room("kernel", files=files)', '_room("kernel", files=files, extra=extra)'),
    )
    assert "the extra room" in summary()
    synced = pathlib.Path(minion.config["extension_modules"])
    assert list(synced.rglob("_kgraft_extra.py"))
    heard("error", "the extra room")
    sync(kgraft=None, _kgraft_kernel=None, _kgraft_extra=None)
    assert summary().startswith("ready ")
    assert not list(synced.rglob("_kgraft_extra.py"))
    running[1].start("kgraft-patch-2-2_1")
    heard("started", "kgraft_patch_2_2_1")
