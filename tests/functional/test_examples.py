"""
Every shipped reactor, orchestration and SLS, compiled by Salt itself from values that a minion which was broken into
may send: the same functions on the same targets come out as from harmless ones, or nothing at all.
"""

import copy
import fnmatch
import functools
import itertools
import json
import logging
import re
from unittest import mock

import jinja2
import pytest
import salt.loader
import salt.utils.reactor
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from saltfactories.utils import random_string

from lab.files import Kernel
from tests.support.load import REPO

EXAMPLES = REPO / "examples"
MASTER = yaml.safe_load((EXAMPLES / "reactor" / "master.conf").read_text("utf-8"))
TEMPLATES = {
    str(path.relative_to(EXAMPLES)): path.read_text("utf-8")
    for path in sorted(EXAMPLES.rglob("*"))
    # what stands in double braces for Prometheus and Grafana is nothing that Salt renders
    if path.is_file() and path.parent.name != "prometheus" and re.search("^#!(?!/)|{[{%]", path.read_text("utf-8"))
}

# -- what is harmless


def beacons(minion, number):
    """An event as a beacon sends it: flat."""
    return {
        "id": minion,
        "_stamp": f"2026-11-2{number}T01:45:10.316254+00:00",
        "abi": ["kgraft", "livepatch"][number % 2],
        "active": [f"kgraft_patch_{number}_2_1"],
        "boot_id": f"{number}ba7b810-9dad-11d1-80b4-00c04fd430c8",
        "complete": number == 1,
        "count": number,
        "direction": ["apply", "revert"][number % 2],
        "kernelrelease": f"4.4.180-94.{number}-default",
        "patch": f"kgraft_patch_{number}_2_1",
        "seconds": 120.4 + number,
        "tasks": [{"pid": number, "tids": [number], "name": f"nfsd{number}", "kind": "kernel"}],
        "times": number,
        "transition": f"{number}ba7b810-9dad-11d1-80b4-00c04fd430c8-1795398190",
    }


def sent(minion, number):
    """An event that is sent alone, by ``event.send``: what it says is below ``data``."""
    return {
        "id": minion,
        "_stamp": f"2026-11-2{number}T01:45:10.316254+00:00",
        "cmd": "_minion_event",
        "pretag": None,
        "tag": f"kgraft/{minion}/needs-a-human",
        "data": {"transition": f"{number}ba7b810-1", "tries": number, "summary": f"in_progress patch_{number} apply"},
    }


EVENTS = {"salt/beacon/*/kgraft/*": beacons, "kgraft/*/needs-a-human": sent}


def reactors():
    """``{file: (pattern of its tags, what makes its events)}``"""
    for entry in MASTER["reactor"]:
        for pattern, names in entry.items():
            [event] = [event for tags, event in EVENTS.items() if fnmatch.fnmatch(pattern, tags)]
            yield from ((name.replace("salt://examples/", ""), (pattern, event)) for name in names)


def stuck(number, times, tries):
    return {
        "kgraft_stuck": {"times": times, "transition": f"{number}ba7b810-1"},
        "kgraft": {"poke": {"tries": tries, "protect": ["name:x"] * number}},
    }


def rollout(number, *numbers):
    """The name of a plan, and what ``kgraft.plan`` tells of it: these waves have something left to do."""
    plan = {"name": f"2026-{number}", "sls": f"patched{number}", "soak": number, "wave_timeout": 900 + number}
    waves = [{"number": wave, "machines": [f"db{number}{wave}"], "allowed": number * wave} for wave in numbers]
    return {"rollout": f"2026-{number}", "told": {"plan": plan, "waves": waves}}


def patched(number):
    policy = {"version": f">={number}", "timeout": number, "poke_after": number, "protect": ["name:x"] * number}
    return {"kgraft": {"register": number == 1, "code_from": f"sdb://{number}", **policy}}


def cves(number):
    return {"kgraft": {"cves": ["CVE-2016-5195"] * number, "not_affected": ["4.4"] * number}}


REACTORS = dict(reactors())
# What a machine has, which examples/states/kgraft/absent.sls asks; here is neither a minion nor a bus to answer.
MACHINE = {
    "beacons.list": {"kgraft": [], "on\ncall: 'x'": [{"beacon_module": "kgraft"}], "load": [{"interval": 1}]},
    "schedule.list": {
        '"]\nx': {"function": "kgraft_metrics.write", "kwargs": {"directory": "/a\nb: {{ c }}"}},
        "other": {"function": "test.ping"},
        "enabled": True,
    },
    "mine.get": {"minion": {"state": "ready"}},
}
# For each branch of a file two pillars, or two events and the minions of their tags, that have nothing in common.
HARMLESS = {
    **{
        name: [[{"minion": minion, "data": event(minion, number)} for number, minion in ((1, "db1"), (2, "db2"))]]
        for name, (_, event) in REACTORS.items()
    },
    "reactor/poke.sls": [[stuck(1, 1, 1), stuck(2, 2, 2)], [stuck(1, 2, 1), stuck(2, 3, 2)]],
    "orchestrate/rollout.sls": [[rollout(1, 1, 2), rollout(2, 1, 2)], [rollout(1), rollout(2)]],
    "states/kgraft/init.sls": [[patched(1), patched(2)]],
    "states/kgraft/cves.sls": [[cves(1), cves(2)]],
    # which asks the machine, and takes nothing from the pillar
    "states/kgraft/absent.sls": [[patched(1), patched(2)]],
}

# -- what is hostile


def nest(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


REACTION = 'owned:\n  local.cmd.run:\n    - tgt: "*"\n    - arg: [id]\n'
STATE = "owned:\n  cmd.run:\n    - name: id\n"
MISSING = object()
# fmt: off
HOSTILE = [
    MISSING,
    # out of the value by a line break, a quote or a bracket, and what else means something to YAML
    *(f"{way}\n{more}" for way in ("1", "", '"', "'", '"]', "]", '"}]', "1}}]") for more in (REACTION, STATE)),
    # the same, so that the lines of the file that come after it go on
    *(f"1\n{more}    - x:\n{' ' * depth}y: 1" for more in (REACTION, STATE) for depth in (8, 10, 12)),
    *(f"1\n{REACTION}".replace("\n", end) for end in ("\r", "\x85", "\u2028", "\u2029", "\x0b", "\x0c", "\\n")),
    "# x", "x # y", "- x", "-", "--- x", "x\n--- x", "...", "%YAML 1.2", "&a", "*a", "? x", "x: y", "{",
    "]", "|", ">", "@",
    "!!python/object/apply:os.system ['id']", "!!binary aWQ=", "<<", "'", '"', "\\", '\\"', "\\\n",
    "null", "on", "~", "1", "0x1f", "1e5", "1_0", ".inf", ".nan", "2026-11-24", "", " ", "\t", "1\n", "\u0661",
    # Jinja
    "{{ salt['cmd.run']('id') }}", "{% raw %}", "{#", "#}", "{{", "}}", "{% include 'x' %}",
    # targets that are no minion's name
    "*", "db*", "E@.*", "db1,db2", "db2 or *", "N@all", "x ) or ( *", "db2/kgraft/stuck", "/", "..", "$(id)", "`id`",
    "db1\n",
    # text that YAML or a terminal takes for something else, no text, long text
    "\x00", "\x1b[2J", "\x7f", "\x9b", "\ufeff", "\ufffe", "\ud800", "\u202e", "\U0001f600", "ä", "x" * 5000,
    "x y " * 5000,
    "<!channel>", "<http://x|y>", "@all",
    # other types
    0, -1, 1, 2, 2**63, 10**30, 1.0, 1.5, -0.0, float("nan"), float("inf"), True, False, None, b"1", b"\xff",
    [], ["db1"], ["db1", "*"], [REACTION], {}, {"a": "b"}, {1: 2, "a": {"b": None}}, {"x\ny": REACTION}, {"id": "db1"},
    {"times": 1, "summary": "x"}, ("db1",), nest(100), nest(2000), {"": nest(2000)},
]
# fmt: on
ANYTHING = st.sampled_from(HOSTILE) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=5,
)


def fields(tree, above=()):
    """The paths of all that stands in a tree."""
    for key, value in tree.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from fields(value, (*above, key))


def put(tree, path, value):
    """A copy of ``tree`` with ``value`` at ``path``, if the tree goes so far."""
    key, *deeper = path
    tree = dict(tree)
    if deeper:
        if isinstance(tree.get(key), dict):
            tree[key] = put(tree[key], deeper, value)
    elif value is MISSING:
        tree.pop(key, None)
    else:
        tree[key] = value
    return tree


def possible(name, tree):
    """Salt's bus carries a dict, under a text."""
    return name not in REACTORS or (isinstance(tree.get("minion"), str) and isinstance(tree.get("data"), dict))


# -- what comes out


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """Stuck, so that there is something to poke."""
    kernel = Kernel(tmp_path_factory.mktemp("kernel") / "root")
    kernel.start("kgraft-patch-2-2_1")
    return kernel


@pytest.fixture(scope="module")
def templates():
    """Salt has Jinja compile a file for each rendering; here each is compiled once, and rendered each time."""
    compiled = {}
    compile_it = jinja2.Environment.compile

    def once(environment, source, *others, **named):
        key = (type(environment), source, others, tuple(named.items()))
        if key not in compiled:
            compiled[key] = compile_it(environment, source, *others, **named)
        return compiled[key]

    with mock.patch.object(jinja2.Environment, "compile", once):
        yield


@pytest.fixture(scope="module")
def compiled(salt_factories, make_loaders, kernel, templates):
    """Return ``compiled(name, tree)``: the low data that Salt makes of a file of the examples."""
    loaders = make_loaders(**{"kgraft.root": str(kernel.root)})
    opts = dict(loaders.opts, grains=loaders.grains)
    # A module of Salt keeps the options of what loaded it last under a name: another name here, and the master last.
    functions = salt.loader.minion_mods(opts, loaded_base_name="minion")
    for name, answer in MACHINE.items():
        assert name in functions
        functions._dict[name] = functools.partial(lambda answer, *_, **__: answer, answer)
    minions = salt.loader.render(opts, functions, loaded_base_name="minion")
    packs = [functions["pillar.get"].loader.pack, minions["jinja"].loader.pack]
    # the runner of a master, which is not there
    functions._dict["saltutil.runner"] = lambda name, arg: packs[0]["__pillar__"]["told"]

    config = salt_factories.salt_master_daemon(random_string("functional-master-"), overrides=MASTER).config.copy()
    reactor = salt.utils.reactor.Reactor(config)
    masters = reactor.rend

    def compiled(name, tree):
        path = [str(EXAMPLES / name)]
        if name in REACTORS:
            reactor.rend = masters
            return reactor.reactions(REACTORS[name][0].replace("*", tree["minion"]), tree["data"], path)
        reactor.rend = minions
        for pack in packs:
            pack["__pillar__"] = tree
        return reactor.reactions("", {}, path)

    yield compiled
    getattr(reactor.minion, "destroy", lambda: None)()


def fits(one, other, got, value_fits):
    """``got`` is ``one``, but where ``other`` is not: there may be any value that ``value_fits(one, got)``."""
    if type(one) is not type(other):
        return value_fits(one, got)
    if isinstance(one, dict) and one.keys() == other.keys():
        return (
            isinstance(got, dict)
            and got.keys() == one.keys()
            and all(fits(one[key], other[key], got[key], value_fits) for key in one)
        )
    if isinstance(one, list) and len(one) == len(other):
        return (
            isinstance(got, list)
            and len(got) == len(one)
            and all(fits(*items, value_fits) for items in zip(one, other, got, strict=True))
        )
    return (type(got) is type(one) and got == one) if one == other else value_fits(one, got)


def same_type(one, got):
    return type(got) is type(one)


def any_value(_, got):
    """States check the types of their arguments themselves."""
    return True


def refusal(low):
    """Nothing is done, and it is said."""
    return all((chunk["state"], chunk["fun"]) == ("test", "fail_without_changes") for chunk in low)


def asked(name, tree):
    """The targets that may come of a tree."""
    if name in REACTORS:
        return "list", [[tree["minion"]]]
    return "list", [wave["machines"] for wave in tree["told"]["waves"]]


def folded(target):
    """YAML makes one space of some line breaks in a text, which is all it does to one."""
    return " ".join(target.split()) if isinstance(target, str) else target


@pytest.fixture(scope="module")
def problem(compiled):
    """Return ``problem(name, tree)``: what is wrong with that which Salt makes of a tree, None if nothing is."""
    harmless = {
        name: [[copy.deepcopy(compiled(name, tree)) for tree in versions] for versions in branches]
        for name, branches in HARMLESS.items()
    }

    def problem(name, tree):
        low = compiled(name, tree)
        if refusal(low):
            return None
        values = same_type if name in REACTORS else any_value
        if not any(fits(one, other, low, values) for one, other in harmless[name]):
            return f"other functions or arguments: {short(low)}"
        for chunk in low:
            if "tgt" in chunk:
                kind, targets = asked(name, tree)
                if chunk.get("tgt_type") != kind or folded(chunk["tgt"]) not in map(folded, targets):
                    return f"another target: {short(chunk['tgt'])}"
            if chunk["fun"] == "http.query":
                [body] = [argument["data"] for argument in chunk["args"] if "data" in argument]
                message = json.loads(body)
                if list(message) != ["text"] or not message["text"].isprintable() or len(message["text"]) > 500:
                    return f"no short line of text: {short(body)}"
        return None

    return problem


def short(value):
    """For a failure."""
    try:
        return "missing" if value is MISSING else ascii(value)[:500]
    except RecursionError:
        return "nested"


@pytest.fixture
def log(caplog):
    """Return ``log()``: what Salt complains of since the last call."""
    caplog.set_level(logging.WARNING)

    def log():
        lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        caplog.clear()
        return lines

    return log


def test_every_file_that_takes_a_value_is_tested_here():
    assert sorted(HARMLESS) == sorted(TEMPLATES)


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_value_goes_through_the_json_filter(name):
    values = re.findall("{{.*?}}", TEMPLATES[name], re.DOTALL)
    assert [value for value in values if not value.endswith(" | json }}")] == []


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_values_are_acted_on(name, compiled, problem):
    for tree in (tree for versions in HARMLESS[name] for tree in versions):
        low = compiled(name, tree)
        assert low and not refusal(low)
        assert problem(name, tree) is None


@pytest.mark.parametrize("name", HARMLESS)
def test_one_hostile_value_changes_neither_functions_nor_targets(name, problem, log):
    failures = []
    for (tree, _), value in itertools.product(HARMLESS[name], HOSTILE):
        # an id also with the tag that says the same; the fields that the file does not name, all together
        named = [path for path in fields(tree) if path[-1] in TEMPLATES[name]]
        others = [path for path in fields(tree) if path not in named]
        for paths in filter(
            None, [*([path] for path in named), name in REACTORS and [("minion",), ("data", "id")], others]
        ):
            bent = tree
            for path in paths:
                bent = put(bent, path, value)
            if possible(name, bent):
                log()
                wrong = problem(name, bent) or (name in REACTORS and next(iter(log()), None))
                if wrong:
                    failures.append((paths, short(value), wrong))
    assert failures == []


@pytest.mark.parametrize("name", HARMLESS)
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_hostile_values_together_change_neither_functions_nor_targets(problem, log, name, data):
    tree = data.draw(st.sampled_from(HARMLESS[name]))[0]
    for path in data.draw(st.lists(st.sampled_from(list(fields(tree))), unique=True)):
        tree = put(tree, path, data.draw(ANYTHING))
    if name in REACTORS and isinstance(tree.get("data"), dict) and data.draw(st.booleans()):
        # whatever the id is, the tag says so too
        tree = {**tree, "minion": tree["data"].get("id")}
    if possible(name, tree):
        log()
        assert problem(name, tree) is None
        assert name not in REACTORS or log() == []


def forged():
    """Events about db1 that db2 sent by ``event.fire_master`` or ``event.send``, or that are not as a beacon's."""
    for name, (pattern, event) in REACTORS.items():
        about = event("db1", 1)
        alone = {**sent("db2", 1), "tag": pattern.replace("*", "db1"), "data": about}
        yield name, "sent alone", alone
        yield name, "sent alone, with the event's keys beside", {**about, **alone}
        yield name, "with the sender's id", {**about, "id": "db2"}
        yield name, "with both ids", {**about, "id": ["db1", "db2"]}
        yield name, "without an id", put(about, ["id"], MISSING)
        if event is beacons:
            yield name, "sent alone, by db1 itself", {**about, **alone, "id": "db1"}


@pytest.mark.parametrize(("name", "how", "event"), forged(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_forged_event_comes_to_nothing_and_is_not_worth_a_line_in_the_log(name, how, event, compiled, log):
    log()
    assert compiled(name, {"minion": "db1", "data": event}) == []
    assert log() == []


def test_a_machine_on_which_no_transition_runs_does_nothing(compiled, kernel):
    """A forged event that no reactor can tell from a beacon's has the machine look at its kernel, and that is all."""
    kernel.finish()
    try:
        for tree, _ in HARMLESS["reactor/poke.sls"]:
            assert [(low["state"], low["fun"]) for low in compiled("reactor/poke.sls", tree)] == [("test", "nop")]
    finally:
        kernel.start("kgraft-patch-3-2_1")


def test_a_wave_is_a_list_that_waits_for_other_runs_and_for_its_own_end(compiled):
    steps = compiled("orchestrate/rollout.sls", rollout(1, 1))
    [wave] = [step for step in steps if (step["state"], step["fun"]) == ("salt", "state")]
    assert {
        "tgt": ["db11"],
        "tgt_type": "list",
        "sls": "patched1",
        "timeout": 901,
        "allow_fail": 1,
    }.items() <= wave.items()
    assert (wave["queue"], wave["pillar"]) == (10, {"kgraft": {"settle": True}})
    assert wave.keys() & {"batch", "subset", "expect_minions", "concurrent"} == set()


NO_NUMBERS = ["0", "1", "", -1, 0.0, 1.0, float("nan"), False, True, None, [], [1], {}]
REFUSED = ["test.fail_without_changes"]


@pytest.mark.parametrize(
    ("name", "field", "values", "done"),
    [
        ("reactor/poke.sls", "kgraft_stuck.times", NO_NUMBERS, REFUSED),
        ("reactor/poke.sls", "kgraft_stuck.transition", [1, None, [], ["x"], {}], REFUSED),
        # as without a policy
        ("reactor/poke.sls", "kgraft.poke.tries", NO_NUMBERS, ["event.send"]),
        # kgraft.plan refuses: a text of Salt's, or no plan in the answer
        ("orchestrate/rollout.sls", "told", ["", "x", [], None, {"retcode": 5, "report": ["x"]}], REFUSED),
    ],
)
def test_a_value_that_decides_has_its_type_checked(name, field, values, done, compiled):
    for value in values:
        low = compiled(name, put(HARMLESS[name][0][0], field.split("."), value))
        assert sorted(f"{one['state']}.{one['fun']}" for one in low) == done, value


def test_what_is_taken_away_is_what_is_of_kgraft_whatever_its_name(compiled):
    low = compiled("states/kgraft/absent.sls", {})
    done = {(f"{one['state']}.{one['fun']}", one["name"]) for one in low if one["state"] in ("beacon", "schedule")}
    beacons = {("beacon.absent", name) for name in ("kgraft", "on\ncall: 'x'")}
    assert done == {*beacons, ("schedule.absent", '"]\nx')}
    mine = [one["mine.delete"][0]["fun"] for one in low if one["state"] == "module"]
    assert sorted(mine) == ["kgraft.overview", "kgraft.status", "kgraft.summary"]
    files = [one["name"] for one in low if one["state"] == "file"]
    metrics = {"/var/lib/prometheus/node-exporter/kgraft.prom", "/a\nb: {{ c }}/kgraft.prom"}
    assert metrics == {name for name in files if not name.endswith("/minion.d/kgraft.conf")}
    assert len(files) == 3
