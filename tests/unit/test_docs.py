"""What the manual says must exist; what exists, the manual must say."""

import inspect
import pathlib
import re
import shlex

import pytest
import yaml
from salt.state import STATE_INTERNAL_KEYWORDS

REPO = pathlib.Path(__file__).resolve().parent.parent.parent
KINDS = ("_modules", "_states", "_beacons", "_runners")
# what a user meets; a file that begins with _ is a room of one of these
FILES = sorted(path.relative_to(REPO) for kind in KINDS for path in (REPO / kind).glob("[!_]*.py"))
PAGES = [*REPO.glob("README.md"), *sorted((REPO / "docs").glob("*.md"))]
SLS = {f"kgraft.{path.stem}" for path in (REPO / "examples" / "states" / "kgraft").glob("*.sls")}
EVENTS = {"started", "finished", "stuck", "error"}


def functions(load, path):
    """``{name: function}`` of what a file of ours offers to a user."""
    module = load(path)
    return {
        name: function
        for name, function in vars(module).items()
        if inspect.isfunction(function) and not name.startswith("_") and function.__globals__ is vars(module)
    }


@pytest.fixture(scope="module")
def offered(load):
    """``{"_modules": {"kgraft.abi": function, …}, "_states": …, "_beacons": …, "_runners": …}``."""
    found = {kind: {} for kind in KINDS}
    for path in FILES:
        for name, function in functions(load, path).items():
            found[path.parts[0]][f"{path.stem}.{name}"] = function
    return found


@pytest.fixture(scope="module")
def everything(offered):
    return {**offered["_modules"], **offered["_states"], **offered["_runners"]}


def fenced(text, language):
    """The code blocks of a Markdown text."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def indented(text, language):
    """The code blocks of a docstring."""
    blocks = re.findall(rf"\.\. code-block:: {language}\n((?:\n|[ \t]+[^\n]*\n?)+)", inspect.cleandoc(text or ""))
    return [inspect.cleandoc(block) for block in blocks]


def call_arguments(command, name):
    """The keyword arguments of a call as it stands on a command line."""
    words = shlex.split(command, comments=True)
    return [word.split("=", 1)[0] for word in words[words.index(name) + 1 :] if re.match(r"[a-z_]+=", word)]


def assert_calls_exist(command, everything):
    for name in re.findall(r"(?<![\w.:/-])(kgraft\w*\.[a-z]\w*)(?![\w.(])", command):
        if f"state.apply {name}" in command:
            assert name in SLS, f"there is no SLS {name}: {command}"
            continue
        assert name in everything, f"{name} does not exist: {command}"
        if name in shlex.split(command, comments=True) and command.split()[0] in (
            "salt",
            "salt-call",
            "salt-ssh",
            "salt-run",
        ):
            unknown = set(call_arguments(command, name)) - set(inspect.signature(everything[name]).parameters)
            # salt-call's own options may follow
            assert {word for word in unknown if not word.startswith("-")} == set(), command


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_parameter_has_its_line_in_the_help(load, path):
    missing = []
    for name, function in functions(load, path).items():
        help_text = inspect.getdoc(function) or ""
        assert help_text, f"{name} has no docstring"
        missing += [
            f"{name}({parameter})"
            for parameter in inspect.signature(function).parameters
            if not re.search(rf"^\*{{0,2}}{parameter}$", help_text, re.MULTILINE)
        ]
    assert missing == []


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] in ("_modules", "_runners")], ids=str)
def test_every_function_at_the_prompt_shows_a_call_that_would_work(load, path, everything):
    for name, function in functions(load, path).items():
        examples = "\n".join(indented(function.__doc__, "bash"))
        assert "CLI Example" in function.__doc__, name
        assert f" {path.stem}.{name}" in examples, f"{name} shows no call of itself"
        for line in examples.splitlines():
            assert_calls_exist(line, everything)


def test_every_function_is_told_of_in_a_page(offered):
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    told = set(re.findall(r"kgraft\w*\.\w+", text))
    assert sorted({*offered["_modules"], *offered["_states"], *offered["_runners"]} - told) == []


def test_the_drawing_names_functions_and_events_that_exist(everything):
    drawing = (REPO / "docs" / "life-of-a-live-patch.svg").read_text("utf-8")
    named = set(re.findall(r"kgraft\w*\.\w+", drawing))
    assert "kgraft.poke" in named
    assert named - set(everything) == set()
    assert set(re.findall(r"the event (\w+)", drawing)) == {"started", "finished", "stuck"} < EVENTS


def test_every_module_has_its_reference_page():
    titles = {"_modules": "module", "_states": "state", "_beacons": "beacon", "_runners": "runner"}
    expected = {f"{titles[path.parts[0]]}-{path.stem}.md" for path in FILES} | {"index.md"}
    assert {page.name for page in (REPO / "docs" / "ref").glob("*.md")} == expected


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_a_page_name_functions_and_arguments_that_exist(page, everything):
    for block in fenced(page.read_text("utf-8"), "(?:console|bash|shell)"):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            command = line.partition("$ ")[2] or line.partition("# ")[2]
            if command:
                assert_calls_exist(command, everything)


def without_jinja(text):
    """The YAML that is left when Jinja has done its work, with a word for each value."""
    return re.sub(r"{{.*?}}", "JINJA", re.sub(r"{[%#].*?[%#]}", "", text, flags=re.DOTALL), flags=re.DOTALL)


def yaml_texts():
    for page in [*PAGES, *sorted((REPO / "docs" / "ref").glob("*.md"))]:
        for number, block in enumerate(fenced(page.read_text("utf-8"), "(?:yaml|sls)")):
            yield pytest.param(block, id=f"{page.name}-{number}")
    for path in sorted((REPO / "examples").rglob("*")):
        if path.suffix in (".sls", ".yaml", ".yml", ".conf"):
            yield pytest.param(path.read_text("utf-8"), id=str(path.relative_to(REPO)))
    for path in FILES:
        docstrings = re.findall(r'"""(.*?)"""', (REPO / path).read_text("utf-8"), re.DOTALL)
        for number, block in enumerate(block for text in docstrings for block in indented(text, "yaml")):
            yield pytest.param(block, id=f"{path}-{number}")


OPTIONS = ["kgraft.root", *re.findall(r"``(kgraft\.\w+)``:", (REPO / "_runners" / "kgraft.py").read_text("utf-8"))]


def assert_names_exist(node, offered, everything, load):
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "beacons" and isinstance(value, dict) and "kgraft" in value:
                valid, reason = load("_beacons/kgraft.py").validate(value["kgraft"])
                assert valid, reason
                for instance in value.values():  # every second is ten times the work, for nothing
                    assert {"interval": 10} in instance
            if isinstance(key, str) and key in offered["_states"]:
                arguments = {name for item in value or [] if isinstance(item, dict) for name in item}
                assert (
                    arguments - STATE_INTERNAL_KEYWORDS - {"names"} - set(inspect.signature(everything[key]).parameters)
                    == set()
                )
            assert_names_exist(key, offered, everything, load)
            assert_names_exist(value, offered, everything, load)
    elif isinstance(node, list):
        for item in node:
            assert_names_exist(item, offered, everything, load)
    elif isinstance(node, str):
        if re.fullmatch(r"(local\.)?kgraft\w*\.\w+", node):
            assert node.replace("local.", "") in {*everything, *OPTIONS}
        for tag in re.findall(r"salt/beacon/[^/\s]+/kgraft/(\w+)", node):
            assert tag in EVENTS


@pytest.mark.parametrize("text", yaml_texts())
def test_every_yaml_block_parses_and_names_things_that_exist(text, offered, everything, load):
    for document in yaml.safe_load_all(without_jinja(text)):
        assert_names_exist(document, offered, everything, load)


def test_every_event_of_the_manual_is_one_that_the_beacon_sends():
    for page in PAGES:
        told = set(re.findall(r"salt/beacon/[^/\s]+/kgraft/([a-z]\w*)", page.read_text("utf-8")))
        assert told <= EVENTS, page.name


def test_the_manual_shows_no_copyright_of_nobody():
    conf = (REPO / "docs" / "conf.py").read_text("utf-8")
    assert re.search("^copyright = .", conf, re.MULTILINE) or "\nhtml_show_copyright = False\n" in conf
