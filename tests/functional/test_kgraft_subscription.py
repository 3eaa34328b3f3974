"""Salt's own loader, pillar and SDB, a SUSEConnect that is a process of its own, and a server that it registers at."""

import logging
import os
import pathlib
import shutil
import subprocess
import time

import pytest
import salt.exceptions

from tests.support import suseconnect

CODE = f"4f1d-SECRET-{os.getpid()}"  # what one process of pytest -n uses, no other may see in a list of processes
PRODUCT = suseconnect.LIVE_PATCHING
SLES_12 = {"os": "SUSE", "osfullname": "SLES", "os_family": "Suse", "osrelease": "12", "cpuarch": "x86_64"}
CHANGES = {PRODUCT: {"old": None, "new": "Registered"}}


@pytest.fixture(scope="module")
def secrets(tmp_path_factory):
    """The three places where a code may lie."""
    directory = tmp_path_factory.mktemp("secrets")
    (directory / "pillar").mkdir()
    (directory / "pillar" / "top.sls").write_text("base: {'*': [codes]}")
    (directory / "pillar" / "codes.sls").write_text(f"kgraft: {{code: {CODE}, other: other-code}}")
    (directory / "sdb.yaml").write_text(f"kgraft: {{code: {CODE}}}")
    (directory / "code").touch(mode=0o600)
    (directory / "code").write_text(f"{CODE}\n")
    return directory


@pytest.fixture(scope="module")
def minion(make_loaders, secrets, tmp_path_factory):
    return make_loaders(
        **{"kgraft.root": str(tmp_path_factory.mktemp("system") / "root")},
        grains=SLES_12,
        pillar_roots={"base": [str(secrets / "pillar")]},
        codes={"driver": "yaml", "files": [str(secrets / "sdb.yaml")]},
    )


@pytest.fixture
def server():
    with suseconnect.Server() as server:
        server.codes[CODE] = suseconnect.subscription()
        yield server


@pytest.fixture
def root(tmp_path, server, minion, monkeypatch):
    """A SLES 12 whose base product is registered, made anew where the minion looks."""
    root = pathlib.Path(minion.opts["kgraft.root"])
    shutil.rmtree(root, ignore_errors=True)
    suseconnect.prepare(root, server)
    monkeypatch.setenv("PATH", f"{suseconnect.install(tmp_path / 'bin')}:{os.environ['PATH']}")
    return root


@pytest.fixture
def subscription(minion, root):
    """The execution module."""
    return minion.modules.kgraft_subscription


@pytest.fixture
def registered(minion, root):
    """The state."""

    def run(**arguments):
        ret = minion.states.kgraft_subscription.registered("live patching", **arguments)
        told = str(ret.raw if hasattr(ret, "raw") else ret)
        assert CODE not in told
        assert suseconnect.encoded(CODE) not in told
        return ret

    return run


def reference(kind, secrets):
    return {"pillar": "pillar:kgraft:code", "sdb": "sdb://codes/kgraft:code", "file": str(secrets / "code")}[kind]


@pytest.mark.parametrize("kind", ["pillar", "sdb", "file"])
def test_a_code_is_used_wherever_it_lies(registered, subscription, server, secrets, kind):
    code_from = reference(kind, secrets)

    dry = registered(code_from=code_from, test=True)
    assert (dry.result, dry.changes) == (None, CHANGES)
    assert not subscription.status()["registered"]

    live = registered(code_from=code_from)
    assert (live.result, live.changes) == (True, CHANGES)
    assert [CODE in active.values() for active in server.activations.values()] == [True]

    for test in (True, False):
        again = registered(code_from=code_from, test=test)
        assert (again.result, again.changes) == (True, {})


def test_status_tells_the_subscription_without_its_code(subscription, secrets):
    subscription.register(str(secrets / "code"))
    assert subscription.status() == {
        "product": PRODUCT,
        "registered": True,
        "note": None,
        "status": "Registered",
        "subscription_status": "ACTIVE",
        "starts_at": "2026-01-01 00:00:00 UTC",
        "expires_at": "2028-12-31 00:00:00 UTC",
        "name": "SUSE Linux Enterprise Live Patching",
        "type": "full",
    }


def test_a_second_registration_takes_the_new_code_on_demand_only(subscription, server, secrets):
    assert subscription.register(str(secrets / "code"))["changed"] is True
    server.codes["other-code"] = suseconnect.subscription(expires_at="2031-12-31 00:00:00 UTC")
    left = subscription.register("pillar:kgraft:other")
    assert (left["changed"], left["expires_at"][:4]) == (False, "2028")
    renewed = subscription.register("pillar:kgraft:other", renew=True)
    assert (renewed["changed"], renewed["expires_at"][:4]) == (True, "2031")


def test_a_product_that_needs_no_code_is_registered_without_one(registered, server):
    server.products[PRODUCT]["free"] = True
    ret = registered()
    assert (ret.result, ret.changes) == (True, CHANGES)


def test_a_missing_code_is_what_the_server_says(registered):
    ret = registered()
    assert (ret.result, ret.changes) == (False, {})
    assert "the registration server said no (exit 67)" in ret.comment
    assert f"Please provide a Registration Code for {PRODUCT}" in ret.comment


def test_a_refused_code_is_not_repeated_though_the_server_repeats_it(registered, server, secrets):
    del server.codes[CODE]
    ret = registered(code_from=str(secrets / "code"))
    assert (ret.result, ret.changes) == (False, {})
    assert "Unknown Registration Code ***" in ret.comment


def test_an_expired_code_is_what_the_server_says(registered, server, secrets):
    server.codes[CODE]["status"] = "EXPIRED"
    assert "is expired" in registered(code_from=str(secrets / "code")).comment


def test_an_unknown_product_is_what_the_server_says(registered):
    ret = registered(product="sle-live-patching/99/x86_64")
    assert ret.result is False
    assert "No product found on SCC for: sle-live-patching/99/x86_64" in ret.comment


def test_a_literal_code_is_refused_and_not_repeated(registered):
    ret = registered(code_from=CODE)
    assert (ret.result, ret.changes) == (False, {})
    assert "takes a reference" in ret.comment


def test_a_system_whose_base_is_not_registered_is_told_so(registered, root, server, secrets):
    server.activations = {login: {} for login in server.activations}
    ret = registered(code_from=str(secrets / "code"))
    assert ret.result is False
    assert f"requires one of these products to be activated first: {suseconnect.BASE}" in ret.comment


def test_no_network_is_a_failure_live_and_dry(registered, server, secrets):
    server.close()
    for test in (True, False):
        ret = registered(code_from=str(secrets / "code"), test=test)
        assert (ret.result, ret.changes) == (False, {})
        assert "refused the connection" in ret.comment


def test_a_proxy_that_answers_html_is_a_failure(subscription, server):
    server.garbled = True
    with pytest.raises(salt.exceptions.CommandExecutionError, match="not JSON.*exit 66"):
        subscription.status()


@pytest.mark.parametrize("call", ["status", "register", "deregister"])
def test_a_server_that_does_not_answer_is_given_up(subscription, server, secrets, call):
    server.silent = True
    arguments = {"code_from": str(secrets / "code")} if call == "register" else {}
    began = time.monotonic()
    with pytest.raises(salt.exceptions.CommandExecutionError, match="did not end within 1 s and was ended") as failure:
        getattr(subscription, call)(timeout=0.5, **arguments)
    assert time.monotonic() - began < 10
    assert CODE not in str(failure.value)


def test_a_suseconnect_that_hangs_is_ended_with_the_zypper_that_it_waits_for(
    registered, tmp_path, monkeypatch, secrets
):
    """Once SUSEConnect itself ended in time, and what it had started kept the state waiting."""
    directory = tmp_path / "hanging"
    directory.mkdir()
    command = directory / "SUSEConnect"
    command.write_text(
        "#!/bin/sh\n"
        'case "$*" in *--version*) echo 1.21.0; exit;; *--status*) echo "[]"; exit;; esac\n'
        f"sleep 60 & echo $$ $! >{directory}/pids; wait\n"
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(directory), prepend=":")

    began = time.monotonic()
    ret = registered(code_from=str(secrets / "code"), timeout=2)

    assert time.monotonic() - began < 10
    assert (ret.result, ret.changes) == (False, {})
    assert "SUSEConnect did not end within" in ret.comment
    for pid in (directory / "pids").read_text().split():
        state = pathlib.Path("/proc", pid, "stat")
        assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_system_that_the_server_does_not_know_is_told_in_suses_words(subscription, server, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(suseconnect.install(tmp_path / "new", "1.24.0")), prepend=":")
    server.activations.clear()
    with pytest.raises(salt.exceptions.CommandExecutionError) as failure:
        subscription.status()
    assert str(failure.value) == (
        "SUSEConnect failed: the registration server said no (exit 67). "
        "It said: Error: Registration server returned 'Invalid system credentials' (401)"
    )


# ---- where a code can be seen while SUSEConnect runs


def seen_by_anybody(times):
    """What ``ps`` shows of arguments, and of environments where it may, to a user without privileges."""
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "ps", "axeww"]
    return [subprocess.run(nobody, check=True, capture_output=True, text=True).stdout for _ in range(times)]


def environments():
    """Those of all processes, as root sees them."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
        try:
            found.append(path.read_bytes())
        except OSError:  # it has ended, or is a kernel's
            continue
    return b"".join(found)


def files_with(code, *directories):
    paths = (path for directory in directories for path in pathlib.Path(directory).rglob("*"))
    return [path for path in paths if path.is_file() and code.encode() in path.read_bytes()]


@pytest.fixture
def looks(server, tmp_path, monkeypatch, root):
    """60 looks at the list of processes while SUSEConnect registers; the places where a file could hold the code."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    taken = []

    def look():
        if server.requests[-1] == ("POST", "/connect/systems/products"):
            taken.extend(seen_by_anybody(60))
            taken.append(environments().decode(errors="replace"))
            taken.extend(str(path) for path in files_with(CODE, temporary, root))

    server.during = look
    yield taken
    assert files_with(CODE, temporary, root) == []


def test_nobody_sees_the_code_while_a_suseconnect_that_reads_it_registers(subscription, looks, secrets, caplog):
    with caplog.at_level(logging.NOTSET):
        subscription.register(str(secrets / "code"))
    assert len(looks) == 61
    assert all("--product" in look for look in looks[:60])
    assert [look for look in looks if CODE in look] == []
    assert CODE not in caplog.text


@pytest.mark.parametrize("version", ["0.3.36", "1.13.0"])
def test_everybody_sees_the_code_while_an_old_suseconnect_registers(
    subscription, looks, secrets, caplog, tmp_path, monkeypatch, version
):
    """What the docs warn of, and the proof that the looks find what is there."""
    monkeypatch.setenv("PATH", str(suseconnect.install(tmp_path / "old", version)), prepend=":")
    with caplog.at_level(logging.NOTSET):
        assert subscription.register(str(secrets / "code"))["changed"] is True
    assert len(looks) == 61
    assert all(CODE in look for look in looks[:60])
    assert CODE not in looks[60]
    assert CODE not in caplog.text


def test_a_client_of_suse_manager_is_told_so(registered, root, secrets):
    (root / "etc/sysconfig/rhn").mkdir(parents=True)
    (root / "etc/sysconfig/rhn/systemid").touch()
    ret = registered(code_from=str(secrets / "code"))
    assert ret.result is False
    assert "managed by SUSE Manager" in ret.comment


def test_a_registration_that_zypper_could_not_end_is_ended_by_the_next_run(registered, root, server, secrets):
    (root / "run").mkdir()
    (root / "run/zypp.pid").write_text(str(os.getpid()))
    ret = registered(code_from=str(secrets / "code"))
    assert (ret.result, ret.changes) == (False, {})
    assert "another zypper holds the lock" in ret.comment

    (root / "run/zypp.pid").unlink()
    ret = registered(code_from=str(secrets / "code"))
    assert (ret.result, ret.changes) == (True, CHANGES)


def test_a_url_is_kept_by_suseconnect(subscription, root, secrets):
    with suseconnect.Server() as rmt:
        rmt.products[PRODUCT].update(free=True, base=None)
        rmt.activations = {
            (root / "etc/zypp/credentials.d/SCCcredentials").read_text().split()[0].partition("=")[2]: {}
        }
        assert subscription.register(url=rmt.url)["registered"] is True
        assert f"url: {rmt.url}" in (root / "etc/SUSEConnect").read_text()
        assert subscription.status()["registered"] is True


def test_deregister_takes_the_product_away_and_leaves_the_base(subscription, server, root, secrets):
    server.products[PRODUCT]["repository"] = "https://example.org/updates"
    subscription.register(str(secrets / "code"))
    repositories = root / "etc/zypp/repos.d"
    assert len(list(repositories.iterdir())) == 1

    assert subscription.deregister()["registered"] is False
    assert list(repositories.iterdir()) == []
    assert subscription.status(suseconnect.BASE)["registered"] is True
    assert subscription.deregister()["registered"] is False


def test_deregister_leaves_the_base_product_alone(subscription):
    with pytest.raises(salt.exceptions.CommandExecutionError, match="base product cannot be deregistered"):
        subscription.deregister(suseconnect.BASE)
    assert subscription.status(suseconnect.BASE)["registered"] is True
