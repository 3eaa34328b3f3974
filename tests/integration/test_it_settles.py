"""
A kernel that sends no signal itself, and on which everybody blocks: the minion, its parent, the shell above salt-call,
and who stands in for pid 1. A poke by signals never gets through there; by tracing the state settles.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from saltfactories.utils import random_string

from lab import Lab, wait_until
from tests.integration.conftest import MINION, job
from tests.support.packages import KERNEL, SuseRoot, minion_options

pytest_plugins = ["tests.support.package_fixtures"]

STATE = ["state.single", "kgraft.applied", "the kernel", "version=2", "timeout=120", "poke_after=1"]


@pytest.fixture
def lab(tmp_path, live_patches, monkeypatch):
    """A kernel of before April 2015, with packages; its modprobe is on PATH."""
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(Lab(tmp_path / "lab", release=KERNEL, fake_signal=False, period=0.5))
        suse = stack.enter_context(SuseRoot(lab.root, live_patches))
        suse.insmod_with(lab.environ)
        monkeypatch.setenv("PATH", lab.environ["PATH"])
        monkeypatch.setenv("KGRAFT_LAB", lab.environ["KGRAFT_LAB"])
        yield lab


@pytest.fixture
def first_process(tmp_path, lab):
    """Who stands in for pid 1: named as it is, asleep, the parent of a sleeping service."""
    init = tmp_path / "systemd"
    init.symlink_to("/bin/sh")
    with subprocess.Popen([init, "-c", "sleep 3600; true"], start_new_session=True) as process:
        wait_until(lambda: psutil.Process(process.pid).children(), "its service")
        for one in (process.pid, *(child.pid for child in psutil.Process(process.pid).children())):
            lab.watch(one)
        yield process
        os.killpg(process.pid, 9)


@contextlib.contextmanager
def watched(lab, pid):
    """The lab watches a process and all that it starts, as soon as it has started it."""
    ended = threading.Event()
    known = set()

    def follow():
        while not ended.is_set():
            with contextlib.suppress(psutil.NoSuchProcess):
                family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
                for one in family:
                    if one.pid not in known:
                        with contextlib.suppress(OSError):
                            lab.watch(one.pid)
                        known.add(one.pid)
            ended.wait(0.05)

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield known
    finally:
        ended.set()
        thread.join()


def _poked(told):
    assert told["result"] is True, told["comment"]
    assert told["comment"].startswith("2-2.1 is applied and settled.")
    assert told["changes"]["kgraft_patch_2_2_1"] == {"old": None, "new": "applied"}
    return told["changes"]["poked"]


def test_below_a_shell_without_a_master(lab, first_process, file_root, tmp_path):
    options = {
        "id": "db1",
        "root_dir": str(tmp_path / "minion"),
        "file_client": "local",
        "module_dirs": [str(file_root)],
        "kgraft.root": str(lab.root),
        **minion_options(),
    }
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/minion").write_text(json.dumps(options))
    salt_call = Path(sys.executable).with_name("salt-call")
    line = f"{salt_call} --local -c {tmp_path}/conf --out=json {' '.join(repr(word) for word in STATE)}; true"
    with subprocess.Popen(["sh", "-c", line], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as shell:
        with watched(lab, shell.pid):
            out, err = shell.communicate(timeout=300)
    (told,) = json.loads(out)["local"].values()
    poked = _poked(told)
    assert {f"sh ({shell.pid})", f"systemd ({first_process.pid})"} <= set(poked), err


def _family(pid):
    return {pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))}


def test_on_a_minion_that_keeps_its_master(lab, first_process, master, file_root):
    minion = master.salt_minion_daemon(
        random_string("settles-"),
        overrides={
            **MINION,
            "kgraft.root": str(lab.root),
            "module_dirs": [str(file_root)],
            # or its job at the start may be there still
            "mine_enabled": False,
            **minion_options(),
        },
    )
    cli = master.salt_cli(timeout=300)
    with minion.started():
        processes = _family(minion.pid)
        assert job(master, minion, "test.ping") is True
        processes &= _family(minion.pid)  # without those that did a job
        with watched(lab, minion.pid):
            done = cli.run(*STATE, minion_tgt=minion.id)
        (told,) = done.data.values()
        poked = _poked(told)
        pids = {int(name.rpartition("(")[2].rstrip(")")) for name in poked}
        assert first_process.pid in pids
        assert len(processes) > 1
        assert processes <= pids, "the minion and its parent were not among those that were poked"
        assert job(master, minion, "test.ping") is True
        assert processes <= _family(minion.pid)
        assert job(master, minion, "kgraft.summary") == "ready kgraft_patch_2_2_1"


WHO_POKES = """
import json, os, sys
from lab import wait_until
from tests.support.load import load_file
kgraft = load_file("_modules/kgraft.py", __opts__={"kgraft.root": sys.argv[1]})
print(os.getpid(), flush=True)
sys.stdin.readline()
spared = kgraft.poke(method="signals")["skipped"]
wait_until(lambda: not kgraft.in_progress(os.getpid()), "who runs crosses by itself")
left, poked = kgraft.blocking()["tasks"], kgraft.poke()
print(json.dumps([spared, left, poked, kgraft.wait(timeout=120)]), flush=True)
"""


def test_by_signals_it_would_never_settle(lab, first_process, repo, tmp_path):
    """Who pokes has a parent of its own here: that of the tests may run at any time, and cross by itself."""
    (tmp_path / "who_pokes.py").write_text(WHO_POKES)
    line = f"{sys.executable} {tmp_path}/who_pokes.py {lab.root}; true"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(["sh", "-c", line], env={**os.environ, "PYTHONPATH": str(repo)}, **pipes) as shell:
        family = {shell.pid, first_process.pid}
        for pid in {int(shell.stdout.readline()), *family}:
            lab.watch(pid)
        lab.load("kgraft-patch-2-2_1")
        out, _ = shell.communicate("\n")
    spared, left, poked, _ = json.loads(out)
    assert family <= {task["pid"] for task in spared}
    assert family <= {task["pid"] for task in left}
    assert family <= {task["pid"] for task in poked["poked"]}
    assert (poked["skipped"], poked["count"]) == ([], 0)
