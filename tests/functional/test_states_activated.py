"""
kgraft.activated over a real zypper, with a plain repository, with a registration, and with neither.
"""

import shutil
import subprocess

import pytest

from tests.support import suseconnect
from tests.support.packages import KERNEL_15, SuseRoot, minion_options

pytest_plugins = ["tests.support.package_fixtures"]

PRODUCT = "sle-live-patching/12.3/x86_64"
CODE = "4711-secret-of-the-tests"
BASE = {
    "kgraft": {"old": None, "new": "1.0-21.1"},
    "sle-live-patching-release": {"old": None, "new": "12-2.1"},
}


@pytest.fixture
def minion(suse_loaders, kernel):
    """On the machine of ``kernel``."""
    suse_loaders.opts["kgraft.root"] = str(kernel.root)
    return suse_loaders


@pytest.fixture
def activated(minion):
    """The state."""
    return lambda **arguments: minion.states.kgraft.activated("live patches are offered", **arguments)


@pytest.fixture
def customer_center(kernel, live_patches, tmp_path, monkeypatch):
    """A machine with no repository, its base product registered at a server that knows a code, in a file."""
    with suseconnect.Server() as server, SuseRoot(kernel.root):
        server.codes[CODE] = suseconnect.subscription()
        server.products[PRODUCT] = {"free": False, "base": suseconnect.BASE, "repository": live_patches.url}
        suseconnect.prepare(kernel.root, server)
        monkeypatch.setenv("PATH", str(suseconnect.install(tmp_path / "bin")), prepend=":")
        code = tmp_path / "code"
        code.write_text(CODE)
        code.chmod(0o600)
        server.code_from = str(code)
        yield server


def promised(changes):
    """A dry run cannot know a version."""
    return {fact: dict(change, new="not known before") if fact in BASE else change for fact, change in changes.items()}


def test_a_plain_repository_is_enough(suse, activated):
    dry = activated(test=True)
    live = activated()

    assert (dry.result, live.result) == (None, True), live.comment
    assert live.changes == BASE
    assert dry.changes == promised(BASE)
    assert "live-patching" in live.comment
    for test in (True, False):
        again = activated(test=test)
        assert again.result is True
        assert again.changes == {}


def test_what_belongs_to_it_can_be_named(suse, activated):
    assert activated(packages=["kgraft"]).changes == {"kgraft": BASE["kgraft"]}
    assert activated(packages=[]).changes == {}


def test_a_package_that_nobody_has_is_a_failure_that_names_it_and_leaves_the_rest_told(suse, activated):
    refused = activated(packages=["kgraft", "no-such-package"])

    assert refused.result is False
    assert "no-such-package" in refused.comment


def test_a_machine_that_is_offered_nothing_is_not_registered_unasked(customer_center, activated):
    for test in (True, False):
        refused = activated(test=test, refresh=False)
        assert refused.result is False
        assert refused.changes == {}
        assert "write register: True" in refused.comment
    assert activated().result is False
    assert not any(PRODUCT in active for active in customer_center.activations.values())


def test_it_registers_where_nobody_offers_live_patches(customer_center, activated):
    arguments = {"register": True, "code_from": customer_center.code_from}

    dry = activated(test=True, **arguments)
    assert dry.result is None
    assert f"not known before. {PRODUCT} would be registered." in dry.comment
    assert dry.changes == {
        PRODUCT: {"old": None, "new": "Registered"},
        "repositories": {"old": [], "new": "not known before"},
        **promised(BASE),
    }

    live = activated(**arguments)
    assert live.result is True, live.comment
    assert live.changes == {
        PRODUCT: {"old": None, "new": "Registered"},
        "repositories": {"old": [], "new": ["sle-live-patching_12.3_x86_64"]},
        **BASE,
    }

    asked = len(customer_center.requests)
    for test in (True, False):
        again = activated(test=test, **arguments)
        assert again.result is True
        assert again.changes == {}
    assert len(customer_center.requests) == asked
    assert CODE not in str([result.raw for result in (dry, live, again)])


def test_a_dead_repository_of_somebody_elses_does_not_stop_it(customer_center, activated, kernel):
    repositories = kernel.root / "etc/zypp/repos.d"
    repositories.mkdir(parents=True, exist_ok=True)
    (repositories / "far.repo").write_text("[far]\nname=far\nenabled=1\nbaseurl=http://127.0.0.1:9/x\ntype=rpm-md\n")

    live = activated(register=True, code_from=customer_center.code_from)

    assert live.result is True, live.comment
    assert "Not read: far: " in live.comment
    assert live.changes[PRODUCT] == {"old": None, "new": "Registered"}


HALF = """\
#!/bin/sh
{real} "$@"
code=$?
case " $* " in *" --status "* | *" --version "*) exit $code;; esac
echo "zypper was locked" >&2
exit 7
"""


def test_a_registration_that_failed_half_way_stands_in_the_changes(customer_center, activated, tmp_path, monkeypatch):
    program = tmp_path / "half/SUSEConnect"
    program.parent.mkdir()
    program.write_text(HALF.format(real=shutil.which("SUSEConnect")))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")

    failed = activated(register=True, code_from=customer_center.code_from)

    assert failed.result is False
    assert "zypper was locked" in failed.comment
    assert failed.changes[PRODUCT] == {"old": None, "new": "Registered"}
    assert CODE not in str(failed.raw)


@pytest.mark.parametrize("kernel", [{"abi": "livepatch", "release": "6.12.0-160000.5-default"}], indirect=True)
def test_where_live_patching_is_included_there_is_nothing_to_register(kernel, make_loaders):
    sixteen = make_loaders(**minion_options(16))
    sixteen.opts["kgraft.root"] = str(kernel.root)
    with SuseRoot(kernel.root):
        assert set(sixteen.modules.kgraft_pkg.base()) == {"pattern:kernel_livepatching"}
        for test in (True, False):
            refused = sixteen.states.kgraft.activated("live patches are offered", register=True, test=test)
            assert (refused.result, refused.changes) == (False, {})
            assert "there is no product to register" in refused.comment


def test_a_code_that_the_server_refuses_is_a_failure_without_the_code(customer_center, activated):
    del customer_center.codes[CODE]

    refused = activated(register=True, code_from=customer_center.code_from)

    assert refused.result is False
    assert "the registration server said no" in refused.comment
    assert CODE not in str(refused.raw)


def test_a_code_itself_is_refused_and_not_repeated(customer_center, activated):
    for test in (True, False):
        refused = activated(register=True, code_from=CODE, test=test)
        assert refused.result is False
        assert "code_from takes a reference" in refused.comment
        assert CODE not in str(refused.raw)


def test_a_registered_machine_whose_repository_is_away_is_told_so(customer_center, activated, kernel):
    arguments = {"register": True, "code_from": customer_center.code_from}
    assert activated(**arguments).result is True
    customer_center.products[PRODUCT]["repository"] = None
    (kernel.root / "etc/zypp/repos.d/sle-live-patching_12.3_x86_64.repo").unlink()

    for test in (True, False):
        refused = activated(test=test, **arguments)
        assert refused.result is False
        assert "is its repository disabled?" in refused.comment


def test_a_repository_that_zypper_has_not_read_yet_is_read_in_a_live_run(kernel, new_repository, activated):
    repository = new_repository("late")
    with SuseRoot(kernel.root, repository) as suse:
        suse.zypper("refresh")
        repository.add_live_patch(kernel.release, "1-1.1")
        repository.publish()

        dry = activated(packages=[], test=True)
        assert (dry.result, dry.changes) == (None, {})
        assert dry.comment.startswith(
            "The repositories would be read again first, and what they then offer is not known"
        )
        assert activated(packages=[], test=True, refresh=False).result is False
        assert activated(packages=[]).result is True


@pytest.mark.parametrize("kernel", [{"abi": "livepatch", "release": KERNEL_15}], indirect=True)
def test_on_fifteen_a_pattern_belongs_to_it(suse, new_repository, activated):
    # rpm installs it, for Debian's zypper makes no patterns of the packages that are ones
    repository = new_repository("pattern")
    pattern = repository.add_package("patterns-lp-lp_sles", "20-1.1", headers="Provides: pattern() = lp_sles")
    repository.add_package("sle-module-live-patching-release", "15.3-1.1")
    suse.enable(repository)
    dry = activated(test=True)
    subprocess.run(["rpm", "--root", suse.root, "--install", pattern], check=True)
    live = activated()

    assert set(dry.changes) == {"pattern:lp_sles", "sle-module-live-patching-release"}
    assert live.result is True, live.comment
    assert live.changes == {"sle-module-live-patching-release": {"old": None, "new": "15.3-1.1"}}


def test_another_zypper_is_waited_for_with_a_deadline(suse, activated):
    with suse.locked() as pid:
        refused = activated(timeout=1)

    assert refused.result is False
    assert f"locked by zypper ({pid})" in refused.comment


@pytest.mark.parametrize("kernel", [{"abi": None}], indirect=True)
def test_a_kernel_without_live_patching_is_a_clear_failure_of_every_state(suse, minion, activated, kernel):
    states = minion.states.kgraft
    for state in (states.activated, states.applied, states.settled):
        for test in (True, False):
            refused = state("x", test=test)
            assert refused.result is False
            assert (
                refused.comment == f"This kernel, {kernel.release}, has no live patching: neither kGraft nor livepatch."
            )


@pytest.fixture
def read_only(suse):
    root = str(suse.root)
    subprocess.run(["mount", "--bind", root, root], check=True)
    try:
        subprocess.run(["mount", "--options", "remount,bind,ro", root], check=True)
        yield
    finally:
        subprocess.run(["umount", root], check=True)


def test_a_read_only_root_is_refused_before_any_work(read_only, minion, activated):
    for state in (activated, lambda test: minion.states.kgraft.applied("x", test=test)):
        for test in (True, False):
            refused = state(test=test)
            assert refused.result is False
            assert "only transactional-update changes its packages" in refused.comment


def test_a_machine_without_zypper_can_still_be_settled(loaders):
    assert loaders.states.kgraft.settled("x").result is True
    refused = loaders.states.kgraft.applied("x")
    assert refused.result is False
    assert "kgraft_pkg is not loaded on this minion" in refused.comment
