from unittest.mock import create_autospec

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

PRODUCT = "sle-live-patching/12/x86_64"


def reading(status, subscription=None, **more):
    return {
        "product": PRODUCT,
        "registered": status == "Registered",
        "note": None,
        "status": status,
        "subscription_status": subscription,
        "starts_at": None,
        "expires_at": "2026-01-31",
        "name": None,
        "type": None,
        **more,
    }


@pytest.fixture
def module(load):
    return load("_modules/kgraft_subscription.py")


@pytest.fixture
def status(module):
    return create_autospec(module.status, return_value=reading("Not Registered"))


@pytest.fixture
def register(module):
    done = reading("Registered", changed=True, before="Not Registered")
    return create_autospec(module.register, return_value=done)


@pytest.fixture
def run(load, status, register):
    def run(test=False, **arguments):
        functions = {"kgraft_subscription.status": status, "kgraft_subscription.register": register}
        states = load("_states/kgraft_subscription.py", __salt__=functions, __opts__={"test": test})
        ret = states.registered("subscribed", **arguments)
        return ret["result"], ret["changes"], ret["comment"]

    return run


CHANGES = {PRODUCT: {"old": "Not Registered", "new": "Registered"}}


def failure(words, before):
    err = CommandExecutionError(words)
    err.info = {"before": before}
    return err


def test_what_is_not_registered_is_registered(run, register, status):
    assert run(code_from="pillar:a", url="https://rmt", timeout=5) == (True, CHANGES, f"{PRODUCT} was registered")
    register.assert_called_once_with(code_from="pillar:a", product=None, url="https://rmt", timeout=5, test=False)
    status.assert_not_called()


@pytest.mark.parametrize("test", [True, False])
def test_what_is_registered_stays_as_it_is(run, status, register, test):
    register.return_value = reading("Registered", "ACTIVE", changed=False, before="Registered")
    assert run(test) == (True, {}, f"{PRODUCT} is already registered")
    register.assert_called_once_with(code_from=None, product=None, url=None, timeout=600, test=test)
    status.assert_not_called()


def test_an_expired_subscription_is_told(run, register):
    register.return_value = reading("Registered", "EXPIRED", changed=False, before="Registered")
    result, changes, comment = run()
    assert (result, changes) == (True, {})
    assert "its subscription is EXPIRED (it ran until 2026-01-31)" in comment


@pytest.mark.parametrize("test", [True, False])
def test_where_there_is_nothing_to_register_the_state_holds_and_says_why(run, register, test):
    note = "Live patching is included in SLES 16.0: there is no product to register."
    register.return_value = dict(reading(None, changed=False, before=None), product=None, note=note)
    assert run(test) == (True, {}, note)


def test_a_dry_run_promises_the_registration(run, register):
    register.return_value = reading("Not Registered", changed=True, before="Not Registered")
    assert run(test=True, code_from="pillar:a") == (None, CHANGES, f"{PRODUCT} would be registered")
    register.assert_called_once_with(code_from="pillar:a", product=None, url=None, timeout=600, test=True)


@pytest.mark.parametrize("test", [True, False])
@pytest.mark.parametrize("error", [CommandExecutionError("no code"), SaltInvocationError("no code")])
def test_what_fails_before_suseconnect_has_done_anything_is_a_failure_live_and_dry(run, status, register, test, error):
    register.side_effect = error
    assert run(test) == (False, {}, "no code")
    status.assert_not_called()


def test_changes_tell_what_a_half_failed_registration_did(run, status, register):
    status.return_value = reading("Registered")
    register.side_effect = failure("a script failed", reading("Not Registered"))
    assert run() == (False, CHANGES, "a script failed")


def test_a_registration_that_did_nothing_has_no_changes(run, status, register):
    register.side_effect = failure("no network", reading("Not Registered"))
    assert run() == (False, {}, "no network")


def test_a_second_look_that_fails_is_told_with_the_failure(run, status, register):
    status.side_effect = CommandExecutionError("no network")
    register.side_effect = failure("refused", reading("Not Registered"))
    assert run() == (False, {}, "refused\nWhat is true now could not be found out: no network")


def test_the_second_look_has_what_is_left_of_the_time(run, status, register):
    register.side_effect = failure("no network", reading("Not Registered"))
    run(timeout=50)
    (call,) = status.call_args_list
    assert call.args == (PRODUCT,)
    assert 0 < call.kwargs["timeout"] <= 50

    run(timeout=0)
    assert status.call_args.kwargs["timeout"] == 0


def test_the_state_needs_its_module(load):
    states = load("_states/kgraft_subscription.py", __salt__={})
    assert states.__virtual__() == (
        False,
        "the execution module kgraft_subscription is not loaded: it works on Linux only",
    )
