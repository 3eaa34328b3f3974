"""The room that asks rpm and zypper: who holds their locks, and what it keeps quiet."""

import os
import subprocess

import pytest


@pytest.fixture
def zypper(load, tmp_path):
    return load("_modules/_kgraft_zypper.py", minion_root=lambda: str(tmp_path))


# The lock of zypper: a file with a process id, as libzypp reads it


@pytest.fixture
def holder(zypper, tmp_path):
    """Return ``holder(text)``: who holds the lock when the file says this."""
    (tmp_path / "run").mkdir()

    def ask(text):
        (tmp_path / "run/zypp.pid").write_text(text)
        return zypper.zypp_lock()

    return ask


def test_a_running_process_holds_the_lock(holder):
    assert holder(f"{os.getpid()}\n").endswith(f"({os.getpid()})")


def test_a_zombie_does_not_hold_the_lock(holder):
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    assert holder(f"{child.pid}\n") is None
    child.wait()


@pytest.mark.parametrize("text", ["", "\n", "0\n", "4194305\n", "odd\n"])
def test_a_file_without_a_living_process_is_no_lock(holder, text):
    assert holder(text) is None


# Repositories' addresses in what zypper says


@pytest.mark.parametrize(
    ("said", "repeated"),
    [
        ("[a|https://scc-user:hunter2@updates.example.com/x] bad", "[a|https://updates.example.com/x] bad"),
        ("'https://manager/rhn/x?eyJhbGciOi.J9' bad", "'https://manager/rhn/x?…' bad"),
        ("[a|https://u:p@manager/x?token] 'dir:/x'", "[a|https://manager/x?…] 'dir:/x'"),
        ("why? nobody knows", "why? nobody knows"),
    ],
)
def test_passwords_and_tokens_in_addresses_are_not_repeated(zypper, said, repeated):
    assert zypper.redact(said) == repeated
