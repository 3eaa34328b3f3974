"""Salt's own loader, pillar and SDB, a SUSEConnect that is a process of its own, and a server that it registers at."""

import os
import pathlib
import shutil

import pytest
import salt.exceptions

from tests.support import suseconnect

CODE = "4f1d-SECRET-77aa"
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
        assert CODE not in str(ret.raw if hasattr(ret, "raw") else ret)
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
        "status": "Registered",
        "subscription_status": "ACTIVE",
        "starts_at": "2026-01-01 00:00:00 UTC",
        "expires_at": "2028-12-31 00:00:00 UTC",
        "name": "SUSE Linux Enterprise Live Patching",
        "type": "full",
    }


def test_a_second_registration_takes_the_new_code(subscription, server, secrets):
    subscription.register(str(secrets / "code"))
    server.codes["other-code"] = suseconnect.subscription(expires_at="2031-12-31 00:00:00 UTC")
    assert subscription.register("pillar:kgraft:other")["expires_at"].startswith("2031")


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


def test_a_server_that_does_not_answer_is_given_up(subscription, server, secrets):
    server.silent = True
    with pytest.raises(salt.exceptions.CommandExecutionError, match="did not end within 0.5 seconds") as failure:
        subscription.register(str(secrets / "code"), timeout=0.5)
    assert CODE not in str(failure.value)


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
