"""The same files reach minions and masters in different ways; Salt's own loader must find the same functions."""

import ast
import json
import os
import subprocess
import sys
import venv

import pytest
import salt.config

from tests.support.clone import commit, copy_of_the_checkout

KINDS = ("modules", "states", "beacons", "runners")

# Runs in a process of its own: what Salt's loader imports, it keeps. It asks for what should be there, since
# walking through all of Salt's modules takes half a minute; a name that is missing makes Salt walk all the same.
PROBE = """
import json, os, sys, types
import salt.config, salt.loader

opts = salt.config.minion_config(os.path.join(sys.argv[1], "minion"))
opts["grains"] = salt.loader.grains(opts)
modules = salt.loader.minion_mods(opts)
loaders = {
    "modules": modules,
    "states": salt.loader.states(opts, modules, salt.loader.utils(opts), None),
    "beacons": salt.loader.beacons(opts, modules),
    "runners": salt.loader.runner(salt.config.master_config(os.path.join(sys.argv[1], "master"))),
}
expected = json.loads(sys.argv[2])
found = {kind: [name for name in expected[kind] if name in loader] for kind, loader in loaders.items()}
ours = {kind: sorted(name for name in loader._dict if "kgraft" in name) for kind, loader in loaders.items()}
functions = [loader[name] for kind, loader in loaders.items() for name in found[kind]]
files = {function.__code__.co_filename for function in functions}
# the rooms that a module of ours has taken in, one inside the other
rooms, todo = set(), [function.__globals__ for function in functions]
while todo:
    for value in todo.pop().values():
        file = getattr(value, "__file__", None) or ""
        if isinstance(value, types.ModuleType) and os.path.basename(file).startswith("_kgraft_") and file not in rooms:
            rooms.add(file)
            todo.append(vars(value))
json.dump([ours, sorted(files | rooms)], sys.stdout)
"""

SYNC_RUNNERS = """
import sys
import salt.config, salt.loader

runners = salt.loader.runner(salt.config.master_config(sys.argv[1]))
runners["fileserver.update"]()  # which a running master does by itself
runners["saltutil.sync_runners"]()
"""


def public_functions(path):
    """The functions of a file that a user can call, by Salt's rules."""
    names = [node.name for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)]
    return [name for name in names if not name.startswith("_")]


@pytest.fixture(scope="module")
def expected(repo):
    """``{kind: ["kgraft.abi", ...]}``, as it stands in the folders."""
    return {
        kind: sorted(
            f"{path.stem}.{name}" for path in (repo / f"_{kind}").glob("[!_]*.py") for name in public_functions(path)
        )
        for kind in KINDS
    }


@pytest.fixture(scope="module")
def source(repo, tmp_path_factory):
    """The files under version control and the new ones beside them, as a clone would have them."""
    return copy_of_the_checkout(tmp_path_factory.mktemp("source") / "saltext-kgraft")


class Environment:
    """A Python environment that sees this one's Salt and has nothing of ours but what is installed into it."""

    def __init__(self, path):
        venv.create(path, with_pip=False, symlinks=True)
        self.python = path / "bin" / "python"
        self.packages = next(path.glob("lib/python*/site-packages"))
        salts = next(entry for entry in sys.path if entry.endswith("site-packages"))
        (self.packages / "salt.pth").write_text(salts + "\n", "utf-8")

    def pip(self, *arguments):
        run(
            [sys.executable, "-m", "pip", "--python", self.python, "--quiet", "--disable-pip-version-check", *arguments]
        )

    def sync(self, config_dir):
        """saltutil.sync_all on the minion, sync_runners on the master; returns where Salt puts what it synced."""
        salt_call = [self.python, "-c", "from salt.scripts import salt_call; salt_call()"]
        run([*salt_call, "--local", "--config-dir", config_dir, "saltutil.sync_all"], cwd=config_dir)
        # as salt-run does, which would wait for a master's event bus
        run([self.python, "-c", SYNC_RUNNERS, config_dir / "master"], cwd=config_dir)
        return [config_dir.parent / f"root/var/cache/salt/{who}/extmods" for who in ("minion", "master")]

    def load(self, config_dir, expected):
        """Return what a minion finds, and in which files."""
        return json.loads(run([self.python, "-c", PROBE, config_dir, json.dumps(expected)], cwd=config_dir))


def run(command, **options):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [str(word) for word in command]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def environment(tmp_path):
    return Environment(tmp_path / "venv")


@pytest.fixture
def config_dir(source, tmp_path):
    """A minion on a SUSE machine, and a master, whose file roots are the checkout."""
    config = {
        "id": "minion",
        "root_dir": str(tmp_path / "root"),
        "file_client": "local",
        "file_roots": {"base": [str(source)]},
        "grains": {"os_family": "Suse"},
        "enable_fqdns_grains": False,
        "enable_gpu_grains": False,
    }
    path = tmp_path / "conf"
    path.mkdir()
    for who in ("minion", "master"):
        (path / who).write_text(json.dumps(config), "utf-8")
    return path


def configure(config_dir, **options):
    for path in (config_dir / "minion", config_dir / "master"):
        path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **options}), "utf-8")


def assert_delivered(loaded, expected, repo, *below, kinds=KINDS):
    """Every function that a user can call is there and no other, each of our files serves, and none from elsewhere."""
    found, files = loaded
    assert found == {kind: expected[kind] if kind in kinds else [] for kind in KINDS}
    assert [path for path in files if not path.startswith(tuple(f"{place}/" for place in below))] == []
    ours = sorted(path.name for kind in kinds for path in (repo / f"_{kind}").glob("*.py"))
    assert sorted(path.rpartition("/")[2] for path in files) == ours


def test_nothing_is_loaded_where_nothing_was_delivered(environment, expected, config_dir):
    assert environment.load(config_dir, expected) == [{kind: [] for kind in KINDS}, []]


def test_who_syncs_the_checkout_loads_every_function(environment, repo, expected, config_dir):
    extmods = environment.sync(config_dir)
    assert_delivered(environment.load(config_dir, expected), expected, repo, *extmods)


def test_who_syncs_from_gitfs_loads_every_function(environment, source, repo, expected, config_dir):
    commit(source)
    gitfs = {"fileserver_backend": ["gitfs"], "gitfs_remotes": [f"file://{source}"], "gitfs_base": "main"}
    configure(config_dir, file_roots={}, **gitfs)
    extmods = environment.sync(config_dir)
    assert_delivered(environment.load(config_dir, expected), expected, repo, *extmods)


def test_a_pip_installed_package_loads_every_function_and_carries_nothing_else(
    environment, source, repo, expected, config_dir
):
    environment.pip("install", source)

    assert_delivered(environment.load(config_dir, expected), expected, repo, environment.packages)
    installed = {str(path.relative_to(environment.packages)) for path in environment.packages.rglob("*.py")}
    ours = {f"saltext/kgraft/{kind}/{path.name}" for kind in KINDS for path in (repo / f"_{kind}").glob("*.py")}
    assert installed == ours | {"saltext/kgraft/__init__.py", "saltext/kgraft/loader.py"}


def test_an_editable_installation_loads_every_function_from_the_checkout(
    environment, source, repo, expected, config_dir
):
    environment.pip("install", "--editable", source)

    assert_delivered(environment.load(config_dir, expected), expected, repo, source)


def test_a_master_whose_runner_dirs_name_the_folder_loads_every_runner(environment, source, repo, expected, config_dir):
    configure(config_dir, runner_dirs=[str(source / "_runners")])

    loaded = environment.load(config_dir, expected)
    assert_delivered(loaded, expected, repo, source / "_runners", kinds=["runners"])


def test_our_drop_in_adds_to_those_of_others_and_takes_no_file_root_away(tmp_path, source):
    """In master.d a list is added to those of other files there, and replaces what /etc/salt/master has of it."""
    drop_ins = tmp_path / "master.d"
    drop_ins.mkdir()
    (tmp_path / "master").write_text("file_roots: {base: [/srv/own]}\nrunner_dirs: [/srv/own-runners]\n")
    ours = source / "packaging" / "kgraft.conf"
    (drop_ins / ours.name).write_text(ours.read_text())
    (drop_ins / "susemanager.conf").write_text("runner_dirs: [/usr/share/susemanager/modules/runners]\n")
    config = salt.config.master_config(str(tmp_path / "master"))
    assert config["file_roots"]["base"] == ["/srv/own"]
    assert config["runner_dirs"] == ["/srv/salt/_runners", "/usr/share/susemanager/modules/runners"]

    (drop_ins / "roots.conf").write_text("file_roots: {base: [/usr/share/salt-formulas/states]}\n")
    config = salt.config.master_config(str(tmp_path / "master"))
    assert config["file_roots"]["base"] == ["/usr/share/salt-formulas/states"]


def test_module_dirs_that_name_the_checkout_load_every_function(environment, source, repo, expected, config_dir):
    configure(config_dir, module_dirs=[str(source)])

    assert_delivered(environment.load(config_dir, expected), expected, repo, source)


def test_a_synced_copy_comes_before_an_installed_one_with_all_its_rooms(
    environment, source, repo, expected, config_dir
):
    environment.pip("install", source)

    extmods = environment.sync(config_dir)
    assert_delivered(environment.load(config_dir, expected), expected, repo, *extmods)


def test_a_private_sibling_is_no_module_of_its_own(environment, source, config_dir):
    configure(config_dir, module_dirs=[str(source)])
    salt_call = [environment.python, "-c", "from salt.scripts import salt_call; salt_call()"]
    asked = [*salt_call, "--local", "--config-dir", config_dir, "--out=json", "sys.doc"]
    told = json.loads(run(asked, cwd=config_dir))["local"]
    assert "Raises ``CommandExecutionError``" in told["kgraft.status"]
    assert {name.split(".")[0] for name in told if "kgraft" in name} == {
        path.stem for path in (source / "_modules").glob("[!_]*.py")
    }


@pytest.mark.parametrize("setuptools", ["raise ImportError('no setuptools')", "raise AssertionError('distutils')"])
def test_the_checkout_as_a_minions_module_directory_is_searched_without_a_word(
    environment, source, config_dir, tmp_path, setuptools
):
    """Salt imports all that lies at the root, where there may be no setuptools, or one that came too late."""
    (environment.packages / "setuptools.py").write_text(f"{setuptools}\n", "utf-8")
    command = "from salt.scripts import salt_call; salt_call()"
    call = [environment.python, "-c", command, "--local", "--config-dir", config_dir, "-m", source]

    missing = subprocess.run([*call, "no.such_function"], cwd=tmp_path, capture_output=True, text=True, check=False)
    told = missing.stdout + missing.stderr
    assert "'no.such_function' is not available." in told
    assert "Traceback" not in told
    assert "ERROR" not in told

    modules = set(json.loads(run([*call, "--out=json", "sys.list_modules"], cwd=tmp_path))["local"])
    ours = {path.stem for path in (source / "_modules").glob("[!_]*.py")}
    assert ours <= modules
    at_the_root = {path.stem for path in source.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert "setup" in at_the_root
    assert modules & at_the_root == set()
