"""What the beacon accepts as a configuration, and what it says to write instead."""

import copy
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.soak import rounds


@pytest.fixture(scope="module")
def validate(load):
    return load("_beacons/kgraft.py").validate


@pytest.mark.parametrize(
    "config",
    [
        [],
        [{}],
        [{"stuck_after": 120}],
        [{"stuck_after": 0.5}, {"remind": 0}],
        [{"stuck_after": 120, "remind": 3600}],
        [{"stuck_after": 120}, {"interval": 5}, {"disable_during_state_run": True}],
        [{"beacon_module": "kgraft"}, {"enabled": True}, {"run_once": False}],
        [{"stuck_after": 120}, {"_beacon_name": "kgraft"}],
        [{"protect": "name:hdb*"}],
        [{"protect": ["unit:postgresql*", "user:*adm", "name:a:b"]}],
        [{"protect": []}],
    ],
)
def test_it_accepts(validate, config):
    assert validate(config) == (True, "Valid beacon configuration")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, "needs a list of options, as in '- stuck_after: 120', or [], not None."),
        ("stuck_after", "needs a list of options, as in '- stuck_after: 120', or [], not 'stuck_after'."),
        ({"stuck_after": 120}, "needs a list, not a mapping: put '- ' before each option, as in '- stuck_after: 120'."),
        (
            ["stuck_after"],
            "Write an option of the kgraft beacon as 'name: value', as in '- stuck_after: 120', not 'stuck_a",
        ),
        ([None], "not None."),
        ([["stuck_after", 120]], "not ['stuck_after', 120]."),
        ([{"stuck_afer": 120}], "The kgraft beacon has no option 'stuck_afer': write stuck_after."),
        ([{"intervall": 5}], "The kgraft beacon has no option 'intervall': write interval."),
        (
            [{"onchangeonly": True}],
            "The kgraft beacon has no option 'onchangeonly': it has beacon_module, disable_during_state_run, enabled, "
            "interval, protect, remind, run_once, stuck_after.",
        ),
        ([{1: 2}], "has no option 1: it has"),
        ([{None: 2}], "has no option None: it has"),
        (
            [{"stuck_after": 0}],
            "The option stuck_after is 0: write a number of seconds, above 0, at most a year, without",
        ),
        ([{"stuck_after": -1}], "The option stuck_after is -1: write"),
        (
            [{"stuck_after": "120"}],
            "The option stuck_after is '120': write a number of seconds, above 0, at most a year, w",
        ),
        ([{"stuck_after": None}], "The option stuck_after is None: write"),
        ([{"stuck_after": True}], "The option stuck_after is True: write"),
        ([{"stuck_after": float("nan")}], "The option stuck_after is nan: write"),
        ([{"stuck_after": float("inf")}], "The option stuck_after is inf: write"),
        ([{"stuck_after": 10**400}], "The option stuck_after is 1000"),
        ([{"stuck_after": 10**5000}], "The option stuck_after is "),
        (
            [{"remind": -1}],
            "The option remind is -1: write a number of seconds, or 0 for never, at most a year, without",
        ),
        ([{"remind": [1]}], "The option remind is [1]: write"),
        (
            [{"protect": "hdb*"}],
            "The option protect is 'hdb*': write 'name:PATTERN', 'unit:PATTERN' or 'user:PATTERN', or a list of such.",
        ),
        ([{"protect": ["name:x", "pid:1"]}], "The option protect is ['name:x', 'pid:1']: write 'name:PATTERN'"),
        ([{"protect": "name:"}], "The option protect is 'name:': write 'name:PATTERN'"),
        ([{"protect": None}], "The option protect is None: write 'name:PATTERN'"),
        ([{"protect": {"name": "x"}}], "The option protect is {'name': 'x'}: write 'name:PATTERN'"),
        ([{"protect": [1]}], "The option protect is [1]: write 'name:PATTERN'"),
        ([{"interval": "5"}], "The option interval is '5': write a number of seconds"),
        ([{"interval": 0}], "The option interval is 0: write"),
        ([{"enabled": "no"}], "The option enabled is 'no': write True or False."),
        ([{"run_once": 1}], "The option run_once is 1: write True or False."),
        ([{"disable_during_state_run": "yes"}], "The option disable_during_state_run is 'yes': write True or False."),
        ([{"beacon_module": "ps"}], "The option beacon_module is 'ps': write kgraft."),
        ([{"stuck_after": 1}, {"stuck_after": 2}], "The option stuck_after is given twice: write it once."),
        (
            [{"interval": 5, "stuck_after": 60}],
            "Salt drops what shares a list item with its own options: write each option as an item of its own.",
        ),
    ],
)
def test_it_refuses_and_says_what_to_write(validate, config, words):
    valid, text = validate(config)

    assert valid is False
    assert words in text
    assert text.endswith(".")
    assert "\n" not in text


def test_a_refusal_is_short(validate):
    assert len(validate([{"stuck_after": "x" * 100_000}])[1]) < 250


def test_it_bears_what_cannot_be_printed(validate):
    deep = []
    for _ in range(sys.getrecursionlimit() * 2):
        deep = [deep]

    assert validate([{"stuck_after": deep}])[0] is False
    assert validate(deep)[0] is False


def test_it_changes_nothing_in_the_configuration(validate):
    config = [{"stuck_after": 1}, {"interval": 2}]
    before = copy.deepcopy(config)
    validate(config)

    assert config == before


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["stuck_after", "remind", "protect", "interval", "enabled", "beacon_module", "_x"])
        | st.integers()
        | st.none(),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)


@pytest.mark.soak
@settings(max_examples=rounds(500))
@given(
    ANYTHING
    | st.lists(st.dictionaries(st.text(max_size=8) | st.sampled_from(["stuck_after", "remind", "protect"]), ANYTHING))
)
def test_it_never_raises(validate, config):
    valid, text = validate(config)

    assert isinstance(valid, bool)
    assert isinstance(text, str)


@pytest.mark.soak
@settings(max_examples=rounds(300))
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "stuck_after": st.floats(0.001, 1e6) | st.integers(1, 10**6),
            "remind": st.floats(0, 1e6) | st.integers(0, 10**6),
            "interval": st.integers(1, 3600),
            "enabled": st.just(True),
        },
    )
)
def test_the_loop_survives_whatever_it_accepts(load, validate, tmp_path_factory, options):
    """Salt's own loop, where an exception takes the events of every beacon along."""
    import salt.beacons

    ready = {"abi": None, "state": "unavailable", "direction": None, "kernelrelease": "6", "boot_id": "b", "active": []}
    module = load(
        "_beacons/kgraft.py",
        __salt__={"kgraft.status": lambda: dict(ready)},
        __opts__={"cachedir": str(tmp_path_factory.getbasetemp())},
    )
    loop = salt.beacons.Beacon.__new__(salt.beacons.Beacon)
    loop.opts = {"id": "minion", "loop_interval": 1}
    loop.interval_map = {}
    loop.beacons = {"kgraft.validate": module.validate, "kgraft.beacon": module.beacon}
    config = {"kgraft": [{name: value} for name, value in options.items()]}
    assert validate(config["kgraft"])[0]

    assert loop.process(copy.deepcopy(config), {}) == []
