from unittest.mock import create_autospec

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

PRODUCT = "sle-live-patching/12/x86_64"


def reading(status, subscription=None):
    return {
        "product": PRODUCT,
        "registered": status == "Registered",
        "status": status,
        "subscription_status": subscription,
        "starts_at": None,
        "expires_at": "2026-01-31",
        "name": None,
        "type": None,
    }


@pytest.fixture
def module(load):
    return load("_modules/kgraft_subscription.py")


@pytest.fixture
def status(module):
    return create_autospec(module.status, return_value=reading("Not Registered"))


@pytest.fixture
def register(module):
    return create_autospec(module.register, return_value=reading("Registered"))


@pytest.fixture
def run(load, status, register):
    def run(test=False, **arguments):
        functions = {"kgraft_subscription.status": status, "kgraft_subscription.register": register}
        states = load("_states/kgraft_subscription.py", __salt__=functions, __opts__={"test": test})
        ret = states.registered("subscribed", **arguments)
        return ret["result"], ret["changes"], ret["comment"]

    return run


CHANGES = {PRODUCT: {"old": "Not Registered", "new": "Registered"}}


def test_what_is_not_registered_is_registered(run, register):
    assert run(code_from="pillar:a", url="https://rmt", timeout=5) == (True, CHANGES, f"{PRODUCT} was registered")
    register.assert_called_once_with(code_from="pillar:a", product=PRODUCT, url="https://rmt", timeout=5, test=False)


@pytest.mark.parametrize("test", [True, False])
def test_what_is_registered_stays_as_it_is(run, status, register, test):
    status.return_value = reading("Registered", "ACTIVE")
    assert run(test) == (True, {}, f"{PRODUCT} is already registered")
    register.assert_not_called()


def test_an_expired_subscription_is_told(run, status):
    status.return_value = reading("Registered", "EXPIRED")
    result, changes, comment = run()
    assert (result, changes) == (True, {})
    assert "its subscription is EXPIRED (it ran until 2026-01-31)" in comment


def test_a_dry_run_promises_the_registration_and_only_follows_the_reference(run, register):
    assert run(test=True, code_from="pillar:a") == (None, CHANGES, f"{PRODUCT} would be registered")
    register.assert_called_once_with(code_from="pillar:a", product=PRODUCT, url=None, timeout=600, test=True)


@pytest.mark.parametrize("test", [True, False])
@pytest.mark.parametrize("error", [CommandExecutionError("no code"), SaltInvocationError("no code")])
def test_a_reference_that_leads_nowhere_fails_live_and_dry(run, register, test, error):
    register.side_effect = error
    assert run(test) == (False, {}, "no code")


def test_a_look_that_fails_is_no_traceback(run, status, register):
    status.side_effect = CommandExecutionError("SUSEConnect was not found")
    assert run() == (False, {}, "SUSEConnect was not found")
    register.assert_not_called()


def test_changes_tell_what_a_half_failed_registration_did(run, status, register):
    status.side_effect = [reading("Not Registered"), reading("Registered")]
    register.side_effect = CommandExecutionError("a script failed")
    assert run() == (False, CHANGES, "a script failed")


def test_a_second_look_that_fails_is_told_with_the_failure(run, status, register):
    status.side_effect = [reading("Not Registered"), CommandExecutionError("no network")]
    register.side_effect = CommandExecutionError("no network")
    assert run() == (False, {}, "no network\nWhat is true now could not be found out: no network")


def test_the_state_needs_its_module(load):
    states = load("_states/kgraft_subscription.py", __salt__={})
    assert states.__virtual__() == (
        False,
        "the execution module kgraft_subscription is not loaded: it works on Linux only",
    )
