"""The rules of the house that a machine can check; ruff's are in pyproject.toml."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

REPO = pathlib.Path(__file__).resolve().parent.parent.parent
FOLDERS = sorted(path for path in REPO.glob("_*") if path.is_dir() and path.name != "__pycache__")
MINION_FILES = [path for folder in FOLDERS for path in sorted(folder.glob("*.py"))]
SLS = [REPO / "formula" / "kgraft" / "init.sls"]  # Python, too
ROOMS = [path for path in MINION_FILES if path.name.startswith("_")]
PUBLIC_FILES = [path for path in MINION_FILES if path not in ROOMS]


def name_of(path):
    return str(path.relative_to(REPO))


def tracked():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, check=True, capture_output=True).stdout.decode()
    return [REPO / name for name in listed.split("\0") if name and (REPO / name).is_file()]


def python_files(place):
    return [REPO / place] if place.endswith(".py") else sorted((REPO / place).rglob("*.py"))


@pytest.mark.parametrize("path", ["setup.py", "saltext/kgraft/loader.py"])
def test_the_pip_delivery_knows_every_folder_that_minions_load(path):
    kinds = re.search(r"^KINDS = (\(.*\))$", (REPO / path).read_text("utf-8"), re.MULTILINE).group(1)
    assert set(ast.literal_eval(kinds)) == {folder.name.lstrip("_") for folder in FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_a_folder_that_minions_load_has_modules_only(folder):
    assert [path.name for path in folder.iterdir() if path.suffix != ".py" and path.name != "__pycache__"] == []
    assert not (folder / "__init__.py").exists()


@pytest.mark.parametrize("path", [*MINION_FILES, *SLS], ids=name_of)
def test_minions_need_python_3_6_only(path):
    vermin = pathlib.Path(sys.executable).parent / "vermin"
    command = [vermin, "-t=3.6-", "--violations", "--no-tips", path]
    judged = subprocess.run(command, capture_output=True, text=True, check=False)
    assert judged.returncode == 0, judged.stdout


@pytest.mark.parametrize("path", [*MINION_FILES, *SLS], ids=name_of)
def test_minions_need_the_standard_library_and_salt_only(path):
    text = path.read_text("utf-8")
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            imported.add(node.module)
    # on the master Salt itself needs Jinja
    salts = {"salt", "jinja2"} if path.parent.name == "_runners" else {"salt"}
    assert {name.split(".")[0] for name in imported} <= {*sys.stdlib_module_names, *salts}
    if path.parent.name == "_states":
        assert imported & {"subprocess", "pathlib", "io", "salt.utils.files"} == set(), "states ask __salt__"
        assert re.findall(r"\bos\.(?!path\b).*|\bfrom os\b.*|\bimport os as\b.*", text) == [], "os.path finds rooms"


@pytest.mark.parametrize("path", ROOMS, ids=name_of)
def test_a_room_is_handed_all_that_it_needs(path):
    """Salt sets dunders in the public file only, and an import of another room would go stale after a sync."""
    tree = ast.parse(path.read_text("utf-8"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    # Python itself sets this one
    assert {name for name in names if re.fullmatch("__.+__", name)} <= {"__name__"}
    assert re.fullmatch(r"_kgraft_[a-z]+\.py", path.name), "one leading underscore: salt-ssh carries no more"
    for_readers = [node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    within = [node for block in for_readers for node in ast.walk(block)]
    siblings = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    assert [ast.unparse(node) for node in siblings if node not in within] == []
    for alias in (alias for node in siblings for alias in node.names):
        assert (path.parent / f"{alias.name}.py").is_file()


def test_every_public_file_loads_its_rooms_by_the_same_lines():
    loaders = {
        ast.get_source_segment(text, node)
        for text in (path.read_text("utf-8") for path in PUBLIC_FILES)
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef) and node.name == "_room"
    }
    assert len(loaders) == 1


@pytest.mark.parametrize(
    "path",
    [*MINION_FILES, *(path for place in ("setup.py", "saltext", "lab") for path in python_files(place))],
    ids=name_of,
)
def test_a_file_is_short_enough_to_be_read_at_once(path):
    text = path.read_text("utf-8")
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = [
        node.body[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, documented) and ast.get_docstring(node) is not None
    ]
    lines = len(text.splitlines()) - sum(node.end_lineno - node.lineno + 1 for node in docstrings)
    assert lines <= 500, f"{lines} lines beside its docstrings"


@pytest.mark.parametrize("path", MINION_FILES, ids=name_of)
def test_no_failure_is_swallowed_and_no_argument_is_anonymous(path):
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ExceptHandler) and (
            node.type is None or (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException"))
        ):
            found.append(f"line {node.lineno}: a blind except")
        if isinstance(node, ast.FunctionDef):
            if node.name.startswith("get_"):
                found.append(f"line {node.lineno}: {node.name}: a question is a noun")
            if node.args.kwarg and not node.name.startswith("_"):
                found.append(f"line {node.lineno}: {node.name} takes **{node.args.kwarg.arg}")
    assert found == []


@pytest.mark.parametrize("path", PUBLIC_FILES, ids=name_of)
def test_file_name_and_virtual_name_are_one(path, load):
    assert load(path).__virtualname__ == path.stem


def test_no_file_names_a_place_of_the_machine_it_was_written_on():
    # put together here, so that this file does not name them
    places = re.compile("|".join(["/" + "work/", "/" + "tmp/team"]))
    named = []
    for path in tracked():
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        named += [f"{name_of(path)}: {match.group()}" for match in places.finditer(text)]
    assert named == []
