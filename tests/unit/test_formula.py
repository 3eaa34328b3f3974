"""
The formula: its form by what Uyuni documents of forms, and what its SLS makes of what a form hands on.

The list of types and attributes is that of Uyuni's manual (specialized guides, Custom Salt Formulas); ``pillar`` and
``adjusted`` are what its ext_pillar does with a layout (modules/pillar/suma_minion.py), written again.
"""

import inspect
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.support.load import REPO, load_file

FORM = yaml.safe_load((REPO / "formula" / "form.yml").read_text("utf-8"))
EXAMPLE = yaml.safe_load((REPO / "formula" / "pillar.example").read_text("utf-8"))
SLS = "formula/kgraft/init.sls"
PLAIN = ["text", "password", "number", "url", "email", "date", "time", "datetime", "boolean", "color", "select"]
GROUPS = ["group", "namespace"]
ATTRIBUTES = {
    **dict.fromkeys(("$name", "$help", "$itemName", "$placeholder", "$visible", "$disabled", "$match"), str),
    **dict.fromkeys(("$type", "$scope"), str),
    **dict.fromkeys(("$minItems", "$maxItems"), int),
    **dict.fromkeys(("$optional",), bool),
    **dict.fromkeys(("$default", "$ifEmpty", "$required"), object),
    **{"$values": list, "$prototype": dict, "$key": dict},
}
CONDITION = r"formValues(\.\w+)+( == '[^']*')?"


def elements(layout, above=()):
    """``(path, element)`` of all that the form shows."""
    for name, element in layout.items():
        if not name.startswith("$"):
            yield (*above, name), element
            if element.get("$type") in GROUPS:
                yield from elements(element, (*above, name))


FIELDS = {path: element for path, element in elements(FORM) if element["$type"] not in GROUPS}
LABELS = {":".join(path[1:]): element["$name"] for path, element in FIELDS.items()}


def adjusted(layout, saved):
    """The pillar of what was saved of a form: fields that were never touched have their default, or are empty."""
    found = {}
    for name, element in layout.items():
        if name.startswith("$"):
            continue
        if element["$type"] in GROUPS:
            found[name] = adjusted(element, saved.get(name, {}))
            continue
        value = saved.get(name, element.get("$default", element.get("$placeholder", "")))
        if value or not element.get("$optional"):
            found[name] = value
    return found


def states(pillar, **salt):
    """``{function: arguments}`` of what the SLS makes of a pillar."""
    dunders = {"__pillar__": pillar, "__salt__": {"kgraft_metrics.write": None, **salt}}
    made = load_file(SLS, **dunders).run()
    found = {}
    for chunk in made.values():
        [(function, arguments)] = chunk.items()
        assert function not in found
        found[function] = {name: value for argument in arguments for name, value in argument.items()}
        assert len(found[function]) == len(arguments)
    return found


def refusal(pillar):
    """The sentence, and nothing else."""
    [(function, arguments)] = states(pillar).items()
    assert function == "test.fail_without_changes"
    assert arguments["name"] == arguments["comment"]
    assert arguments["name"].isprintable()
    return arguments["name"]


def filled(**fields):
    """The form as it is with some fields filled in, ``poke__after`` for one of a group."""
    saved = {}
    for name, value in fields.items():
        *above, name = name.split("__")
        place = saved
        for key in above:
            place = place.setdefault(key, {})
        place[name] = value
    return adjusted(FORM, {"kgraft": saved})


# -- the form


@pytest.mark.parametrize(
    ("path", "element"), list(elements(FORM)), ids=lambda value: ".".join(value) if isinstance(value, tuple) else ""
)
def test_an_element_has_what_forms_have(path, element):
    assert element["$type"] in [*PLAIN, *GROUPS, "edit-group"]
    own = {name: value for name, value in element.items() if name.startswith("$")}
    for name, value in own.items():
        assert isinstance(value, ATTRIBUTES[name]), name
    assert ("$values" in own) == (element["$type"] == "select")
    assert ("$prototype" in own) == (element["$type"] == "edit-group")
    if path != ("kgraft",):
        assert element["$help"].endswith("."), "each has its help"
        assert element["$name"]
    if element["$type"] not in GROUPS:
        assert set(element) == set(own)
    if "$prototype" in own:
        assert set(own["$prototype"]) <= {"$type", "$key"}
        assert own["$prototype"]["$type"] in PLAIN
    # a placeholder would count as the value, and False as empty
    assert "$placeholder" not in own
    assert not (element["$type"] == "boolean" and "$optional" in own)
    if element["$type"] in ("boolean", "number", "select"):
        assert type(own["$default"]) is {"boolean": bool, "number": int, "select": str}[element["$type"]]
    assert own.get("$default") in own.get("$values", [own.get("$default")])


def test_what_a_field_depends_on_is_in_the_form_with_that_value():
    for path, element in FIELDS.items():
        for part in filter(None, element.get("$visible", "").split(" && ")):
            assert re.fullmatch(CONDITION, part), path
            name, _, value = part.removeprefix("formValues.").partition(" == ")
            switch = FIELDS[tuple(name.split("."))]
            assert value.strip("'") in switch["$values"] if value else switch["$type"] == "boolean"


def test_the_sls_and_the_form_have_the_same_fields_under_the_same_labels_and_defaults():
    sls = load_file(SLS).FIELDS
    assert {path: label for path, (label, *_) in sls.items()} == LABELS
    assert len(set(LABELS.values())) == len(LABELS)
    for path, element in FIELDS.items():
        assert sls[":".join(path[1:])][2] == element.get("$default")


def test_the_metadata_are_those_of_a_formula():
    metadata = yaml.safe_load((REPO / "formula" / "metadata.yml").read_text("utf-8"))
    assert set(metadata) == {"description", "group"}


def test_no_field_takes_a_code():
    assert [path for path, element in FIELDS.items() if element["$type"] == "password"] == []


def test_the_page_has_the_form_field_by_field_and_shows_a_refusal_as_it_is():
    page = (REPO / "docs" / "uyuni.md").read_text("utf-8")

    def shown(default):
        words = {True: "on", False: "off", None: ""}
        return ", ".join(default) if isinstance(default, list) else str(words.get(default, default))

    table = page.partition("| field | is at first | |\n|---|---|---|\n")[2].partition("\n\n")[0]
    fields = [(one["$name"], shown(one.get("$default")), one["$help"]) for one in FIELDS.values()]
    assert table.splitlines() == [f"| {name} | {default} | {help_text} |" for name, default, help_text in fields]
    assert f"<!-- formula -->\n```text\n{refusal(filled(timeout='soon'))}\n```" in page


# -- what comes of it


def test_the_form_as_it_is_pokes_nobody_registers_nothing_and_waits_for_nothing():
    assert (
        states(filled())
        == states({})
        == states({"kgraft": None})
        == {
            "kgraft.activated": {"register": False, "code_from": None, "timeout": 600},
            "kgraft.applied": {
                "version": "latest",
                "settle": False,
                "timeout": 600,
                "protect": ["name:hdb*"],
                "probes": None,
                "require": [{"kgraft": "kgraft: live patches are offered"}],
            },
            "beacon.present": {
                "name": "kgraft",
                "save": True,
                "interval": 10,
                "stuck_after": 120,
                "remind": 3600,
                "protect": ["name:hdb*"],
            },
            "schedule.absent": {"name": "kgraft metrics"},
        }
    )


def test_the_example_is_what_the_form_makes_of_a_version_map():
    versions = EXAMPLE["kgraft"]["versions"]
    assert filled(wish="one per kernel", versions=versions, probes=[]) == EXAMPLE
    assert states(EXAMPLE)["kgraft.applied"]["version"] == versions


FILLED = [
    ({"activate": False}, "kgraft.applied", {"require": []}),
    ({"register": True}, "kgraft.activated", {"register": True, "code_from": None}),
    ({"register": True, "code_from": "pillar:x:y"}, "kgraft.activated", {"register": True, "code_from": "pillar:x:y"}),
    ({"wish": "one version", "version": ">=2"}, "kgraft.applied", {"version": ">=2"}),
    ({"wish": "one version", "version": "5-2.1"}, "kgraft.applied", {"version": "5-2.1"}),
    ({"settle": True}, "kgraft.applied", {"settle": True}),
    ({"poke__enabled": True}, "kgraft.applied", {"poke_after": 120, "protect": ["name:hdb*"]}),
    ({"poke__enabled": True, "poke__protect": None}, "kgraft.applied", {"protect": ["name:hdb*"]}),
    ({"poke__enabled": True, "poke__protect": []}, "kgraft.applied", {"poke_after": 120, "protect": None}),
    # who is not poked is not to be touched by hand either
    ({"poke__protect": ["unit:x*"]}, "kgraft.applied", {"protect": ["unit:x*"], "poke_after": "missing"}),
    ({"poke__protect": ["unit:x*"]}, "beacon.present", {"protect": ["unit:x*"]}),
    ({"poke__protect": ["", None]}, "beacon.present", {"protect": []}),
    ({"beacon__remind": 0}, "beacon.present", {"remind": 0}),
    ({"beacon__enabled": False}, "beacon.absent", {"name": "kgraft", "save": True}),
    (
        {"probes": ["/usr/local/sbin/ask-hana PROBE", "/bin/x 'a b'"]},
        "kgraft.applied",
        {
            "probes": [
                {"name": "ask-hana 1", "exec": ["/usr/local/sbin/ask-hana", "PROBE"]},
                {"name": "x 2", "exec": ["/bin/x", "a b"]},
            ]
        },
    ),
    (
        {"metrics_directory": "/var/lib/x"},
        "schedule.present",
        {"function": "kgraft_metrics.write", "minutes": 5, "splay": 60, "job_kwargs": {"directory": "/var/lib/x"}},
    ),
    # numbers that come as text; a version that comes as a number
    ({"timeout": "300"}, "kgraft.applied", {"timeout": 300}),
    ({"timeout": " 0300.5 "}, "kgraft.applied", {"timeout": 300.5}),
    ({"beacon__interval": "5"}, "beacon.present", {"interval": 5}),
    ({"wish": "one version", "version": 5}, "kgraft.applied", {"version": "5"}),
    # empty fields
    ({"timeout": ""}, "kgraft.applied", {"timeout": 600}),
    ({"timeout": None, "wish": " ", "settle": ""}, "kgraft.applied", {"timeout": 600, "version": "latest"}),
    ({"probes": ["", None]}, "kgraft.applied", {"probes": None}),
    ({"beacon__enabled": "", "beacon__stuck_after": None}, "beacon.present", {"stuck_after": 120}),
    ({"wish": "one per kernel", "versions": {"": "", "a": "5"}}, "kgraft.applied", {"version": {"a": "5"}}),
    # values of fields that are hidden
    ({"register": False, "code_from": "4711"}, "kgraft.activated", {"code_from": None}),
    ({"version": "5", "versions": {"a": "5"}}, "kgraft.applied", {"version": "latest"}),
    ({"wish": "one per kernel", "version": "x", "versions": {"a": "5"}}, "kgraft.applied", {"version": {"a": "5"}}),
    ({"beacon__enabled": False, "beacon__interval": "x"}, "beacon.absent", {"name": "kgraft"}),
]


@pytest.mark.parametrize(("fields", "function", "arguments"), FILLED, ids=str)
def test_a_form_that_is_filled_in_asks_for_this(fields, function, arguments):
    made = states(filled(**fields))
    assert {name: made[function].get(name, "missing") for name in arguments} == arguments


@pytest.mark.parametrize("fields", [{"activate": False, "register": True}, {"poke__after": "x"}])
def test_a_switch_that_is_off_hides_what_is_below_it(fields):
    made = states(filled(**fields))
    assert "kgraft.activated" not in made or "activate" not in fields
    assert "poke_after" not in made["kgraft.applied"]


REFUSED = [
    (
        {"timeout": "soon"},
        "The field \"Timeout (seconds)\" of the form of kgraft is 'soon'; it must be seconds, 1 to 31622400.",
    ),
    ({"timeout": 0}, "Timeout (seconds)"),
    ({"timeout": float("nan")}, "Timeout (seconds)"),
    ({"timeout": True}, "Timeout (seconds)"),
    ({"timeout": [1]}, 'The field "Timeout (seconds)" of the form of kgraft is a list; it must be'),
    ({"activate": "False"}, "'False'; it must be True or False, without quotes"),
    ({"activate": 1}, "Activate"),
    ({"wish": "latest"}, "it must be newest or one version or one per kernel"),
    ({"wish": "one version"}, 'The field "Version" of the form of kgraft is empty.'),
    ({"wish": "one version", "version": "2.1"}, "is '2.1'; it must be a version as 5, 5-2.1 or >=5"),
    ({"wish": "one version", "version": 2.1}, "is 2.1; it must be"),
    ({"wish": "one per kernel"}, 'The field "Versions by kernel" of the form of kgraft is empty.'),
    ({"wish": "one per kernel", "versions": {"": ""}}, "is empty"),
    ({"wish": "one per kernel", "versions": {"4.4": ""}}, "Versions by kernel"),
    ({"wish": "one per kernel", "versions": {"a b": "5"}}, "is 'a b'; it must be versions below kernel releases"),
    ({"wish": "one per kernel", "versions": ["5"]}, "Versions by kernel"),
    ({"poke__enabled": True, "poke__protect": ["hdb*"]}, "Protect"),
    ({"poke__enabled": True, "poke__protect": "name:x"}, 'The field "Protect" of the form of kgraft must be a list of'),
    ({"poke__enabled": True, "poke__after": -1}, "Poke after (seconds)"),
    ({"beacon__stuck_after": 0}, "Stuck after (seconds)"),
    ({"probes": ["ask-hana"]}, 'The field "Probes" of the form of kgraft must be paths of programs'),
    ({"probes": ["/x 'y"]}, "Probes"),
    ({"metrics_directory": "var"}, "is 'var'; it must be an absolute path"),
    ({"poke": "x"}, "kgraft in the pillar, poke: is no mapping"),
]


@pytest.mark.parametrize(("fields", "says"), REFUSED, ids=str)
def test_a_wrong_field_makes_one_sentence_that_names_it_as_the_form_does(fields, says):
    pillar = filled(**fields) if "poke" not in fields else {"kgraft": fields}
    assert says in refusal(pillar)


@pytest.mark.parametrize("pillar", [{"kgraft": {"timeuot": 5}}, {"kgraft": {"poke": {"timeuot": 5}}}])
def test_a_key_that_the_form_does_not_have_is_refused_by_name(pillar):
    assert re.match(
        "The form of kgraft has no field for '(poke:)?timeuot' in the pillar; it has activate, ", refusal(pillar)
    )


def test_the_policy_of_the_reactor_may_stand_beside_the_form():
    policy = yaml.safe_load((REPO / "examples" / "reactor" / "pillar.sls").read_text("utf-8"))
    protect = policy["kgraft"]["poke"]["protect"]
    assert states(policy) == states(filled(poke__protect=protect)) != states({})


@pytest.mark.parametrize("code", ["4711-SECRET", "SECRET", ["SECRET"], 4711])
def test_a_code_in_the_place_of_its_reference_is_not_shown(code):
    sentence = refusal(filled(register=True, code_from=code))
    assert sentence.startswith('The field "Registration code from" of the form of kgraft must be pillar:some:key, ')
    assert "SECRET" not in sentence and "4711" not in sentence


def test_a_probe_that_is_wrong_is_not_shown():
    assert "hunter2" not in refusal(filled(probes=["ask --password=hunter2"]))


def test_metrics_without_their_module_are_told_and_keep_no_patch_out():
    made = load_file(SLS, __pillar__=filled(metrics_directory="/x")).run()
    [arguments] = [chunk["test.fail_without_changes"] for name, chunk in made.items() if name == "kgraft: the metrics"]
    assert {"comment": "The module kgraft_metrics is not loaded on this minion: sync it."} in arguments
    assert "kgraft.applied" in made["kgraft: the kernel is patched"]


CHOICES = st.sampled_from([*LABELS, *load_file(SLS).WISHES])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | CHOICES,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=5,
)


@given(st.data())
def test_whatever_a_field_holds_comes_to_a_sentence_or_to_arguments_that_the_states_have(data):
    names = data.draw(st.lists(st.sampled_from(sorted(LABELS)), max_size=4, unique=True))
    pillar = filled(**{name.replace(":", "__"): data.draw(ANYTHING) for name in names})
    made = states(pillar)
    if "test.fail_without_changes" in made:
        sentence = refusal(pillar)
        assert [label for label in LABELS.values() if f'"{label}"' in sentence] or "is no mapping" in sentence
        return
    ours = load_file("_states/kgraft.py")
    for name in ("activated", "applied"):
        arguments = made.get(f"kgraft.{name}", {})
        assert set(arguments) <= {*inspect.signature(getattr(ours, name)).parameters, "require"}
    assert made["kgraft.applied"]["timeout"] > 0
    if "beacon.present" in made:
        config = [{name: value} for name, value in made["beacon.present"].items() if name not in ("name", "save")]
        assert load_file("_beacons/kgraft.py").validate(config)[0]
