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


def name_of(path):
    return str(path.relative_to(REPO))


def tracked():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, check=True, capture_output=True).stdout.decode()
    return [REPO / name for name in listed.split("\0") if name and (REPO / name).is_file()]


@pytest.mark.parametrize("path", ["setup.py", "saltext/kgraft/loader.py"])
def test_the_pip_delivery_knows_every_folder_that_minions_load(path):
    kinds = re.search(r"^KINDS = (\(.*\))$", (REPO / path).read_text("utf-8"), re.MULTILINE).group(1)
    assert set(ast.literal_eval(kinds)) == {folder.name.lstrip("_") for folder in FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_a_folder_that_minions_load_has_modules_only(folder):
    assert [path.name for path in folder.iterdir() if path.suffix != ".py" and path.name != "__pycache__"] == []
    assert not (folder / "__init__.py").exists()


@pytest.mark.parametrize("path", MINION_FILES, ids=name_of)
def test_minions_need_python_3_6_only(path):
    vermin = pathlib.Path(sys.executable).parent / "vermin"
    command = [vermin, "-t=3.6-", "--violations", "--no-tips", path]
    judged = subprocess.run(command, capture_output=True, text=True, check=False)
    assert judged.returncode == 0, judged.stdout


@pytest.mark.parametrize("path", MINION_FILES, ids=name_of)
def test_minions_need_the_standard_library_and_salt_only(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    assert {name.split(".")[0] for name in imported} <= {*sys.stdlib_module_names, "salt"}
    if path.parent.name == "_states":
        assert imported & {"os", "subprocess", "pathlib", "io", "salt.utils.files"} == set(), "states ask __salt__"


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


@pytest.mark.parametrize("path", MINION_FILES, ids=name_of)
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
