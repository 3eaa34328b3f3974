import json
import os
import traceback
from unittest.mock import create_autospec

import pytest
import salt.modules.cmdmod
from salt.exceptions import CommandExecutionError, SaltInvocationError

CODE = "0ab1-SECRET-c0de"
PRODUCT = "sle-live-patching/12/x86_64"
SLES_12 = {"os": "SUSE", "osfullname": "SLES", "os_family": "Suse", "osrelease": "12", "cpuarch": "x86_64"}


def listed(status="Registered", **fields):
    return {"identifier": "sle-live-patching", "version": "12", "arch": "x86_64", "status": status, **fields}


def result(retcode=0, stdout="", stderr=""):
    return {"pid": 1, "retcode": retcode, "stdout": stdout, "stderr": stderr}


class Machine:
    """The module on a machine whose SUSEConnect does as told."""

    def __init__(self, load, tmp_path, monkeypatch):
        command = tmp_path / "bin" / "SUSEConnect"
        command.parent.mkdir()
        command.touch(mode=0o755)
        monkeypatch.setenv("PATH", str(command.parent))
        self.command = str(command)
        self.pillar = {}
        self.sdb = {}
        self.products = json.dumps([listed()])
        self.registering = result()
        self.run_all = create_autospec(salt.modules.cmdmod.run_all, side_effect=self._run)
        self.module = load(
            "_modules/kgraft_subscription.py",
            __grains__=SLES_12,
            __salt__={"cmd.run_all": self.run_all, "pillar.get": self._pillar_get, "sdb.get": self._sdb_get},
        )

    def _run(self, command, **kwargs):
        if "--status" in command:
            return result(stdout=self.products)
        if "--de-register" in command:
            self.products = json.dumps([listed("Not Registered")])
            return result()
        if isinstance(self.registering, Exception):
            raise self.registering
        return self.registering

    def _pillar_get(self, key, default, unmask=False):
        return self.pillar.get(key, default)

    def _sdb_get(self, uri, strict):
        assert strict is True
        if isinstance(self.sdb, Exception):
            raise self.sdb
        return self.sdb[uri]

    @property
    def commands(self):
        return [call.args[0][1:] for call in self.run_all.call_args_list]


@pytest.fixture
def machine(load, tmp_path, monkeypatch):
    return Machine(load, tmp_path, monkeypatch)


@pytest.fixture
def code_file(tmp_path):
    path = tmp_path / "code"
    path.write_text(CODE + "\n", encoding="ascii")
    path.chmod(0o600)
    return path


# ---- the product


@pytest.mark.parametrize(
    ("release", "arch", "product"),
    [
        ("12", "x86_64", "sle-live-patching/12/x86_64"),
        ("12.2", "x86_64", "sle-live-patching/12/x86_64"),
        ("12.3", "ppc64le", "sle-live-patching/12.3/ppc64le"),
        ("12.5", "x86_64", "sle-live-patching/12.5/x86_64"),
        ("15", "x86_64", "sle-module-live-patching/15/x86_64"),
        ("15.4", "s390x", "sle-module-live-patching/15.4/s390x"),
    ],
)
def test_the_product_follows_from_the_grains(machine, release, arch, product):
    machine.module.__grains__ = {**SLES_12, "osrelease": release, "cpuarch": arch}
    assert machine.module.status()["product"] == product


@pytest.mark.parametrize(
    "grains",
    [
        {"os_family": "Debian", "osfullname": "Debian"},
        {"osfullname": "Leap", "osrelease": "15.5"},
        {"osfullname": "SLE Micro", "osrelease": "5.5"},
        {"osrelease": "16.0"},
        {"osrelease": "120"},
    ],
)
def test_a_system_without_a_known_product_asks_for_it(machine, grains):
    machine.module.__grains__ = {**SLES_12, **grains}
    with pytest.raises(CommandExecutionError, match="give product"):
        machine.module.status()


@pytest.mark.parametrize("product", ["", "sle-live-patching", "a/b", "a/b/c/d", "--root/x/y", "a/b/c\n", 12])
def test_a_product_that_is_no_triplet_is_refused(machine, product):
    with pytest.raises(SaltInvocationError, match="<name>/<version>/<architecture>"):
        machine.module.deregister(product)
    assert machine.commands == []


# ---- status


def test_status_tells_the_subscription_but_never_its_code(machine):
    bought = {"name": "Live Patching", "subscription_status": "ACTIVE", "type": "full", "expires_at": "2028"}
    machine.products = json.dumps(
        [{"identifier": "SLES", "version": "12", "arch": "x86_64"}, listed(regcode=CODE, **bought)]
    )
    assert machine.module.status() == {
        "product": PRODUCT,
        "registered": True,
        "status": "Registered",
        "starts_at": None,
        **bought,
    }


def test_status_of_a_product_that_is_not_registered(machine):
    machine.products = json.dumps([listed("Not Registered")])
    status = machine.module.status()
    assert status["registered"] is False
    assert status["status"] == "Not Registered"


@pytest.mark.parametrize(
    "answer", ["[]", "null", '[{"identifier":"SLES","version":"12","arch":"x86_64","status":"Registered"}]']
)
def test_a_product_that_is_not_installed_is_not_registered(machine, answer):
    machine.products = answer
    status = machine.module.status()
    assert status["registered"] is False
    assert status["status"] is None


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Oops",
        '[{"regcode": "0ab1-SECRET-c0de"',
        '{"regcode":"0ab1-SECRET-c0de"}',
        '["0ab1-SECRET-c0de"]',
        "[{}]",
        "7",
    ],
)
def test_an_answer_that_is_no_list_of_products_is_an_error_that_does_not_repeat_it(machine, answer):
    machine.products = answer
    with pytest.raises(CommandExecutionError, match="did not answer with a JSON list") as failure:
        machine.module.status()
    assert "SECRET" not in "".join(traceback.format_exception(failure.value))
    assert failure.value.__context__ is None


def test_a_missing_suseconnect_is_named_with_what_to_install(machine, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(CommandExecutionError, match="not found in /nowhere: install suseconnect-ng"):
        machine.module.status()


# ---- register


def test_register_passes_the_code_to_suseconnect_alone(machine, code_file):
    status = machine.module.register(str(code_file), url="https://rmt.example.org")
    assert status["registered"] is True
    assert machine.commands == [
        ["--url", "https://rmt.example.org", "--product", PRODUCT, "--regcode", CODE],
        ["--status"],
    ]
    assert machine.run_all.call_args_list[0].kwargs == {
        "python_shell": False,
        "output_loglevel": "quiet",
        "ignore_retcode": True,
        "timeout": 600,
    }


def test_register_without_a_code_passes_none(machine):
    machine.module.register()
    assert machine.commands[0] == ["--product", PRODUCT]


@pytest.mark.parametrize(("root", "arguments"), [("/", []), ("//", []), ("", []), ("/mnt/", ["--root", "/mnt"])])
def test_suseconnect_works_in_the_root_of_the_kernel(machine, root, arguments):
    machine.module.__opts__ = {"kgraft.root": root}
    machine.module.register()
    machine.module.deregister()
    assert all(command[: len(arguments)] == arguments for command in machine.commands)
    assert all(("--root" in command) == bool(arguments) for command in machine.commands)


def test_register_in_test_mode_finds_the_code_and_registers_nothing(machine):
    with pytest.raises(CommandExecutionError, match="There is no registration code in pillar:kgraft:code"):
        machine.module.register("pillar:kgraft:code", test=True)
    machine.pillar["kgraft:code"] = CODE
    machine.module.register("pillar:kgraft:code", test=True)
    assert machine.commands == [["--status"]]


def test_success_that_left_nothing_registered_is_a_failure(machine):
    machine.products = json.dumps([listed("Not Registered")])
    with pytest.raises(CommandExecutionError, match="reported success, but .* is Not Registered"):
        machine.module.register()


@pytest.mark.parametrize("timeout", [0, -1, True, "600", None])
def test_a_timeout_that_is_no_number_of_seconds_is_refused(machine, timeout):
    with pytest.raises(SaltInvocationError, match="timeout is"):
        machine.module.register(timeout=timeout)


@pytest.mark.parametrize("url", ["rmt.example.org", "ftp://rmt", "https://", "--root", "https://rmt/ x", 7])
def test_a_url_that_is_none_is_refused_and_repeated(machine, url):
    with pytest.raises(SaltInvocationError, match="url must be.*it is"):
        machine.module.register(url=url)


def test_a_password_in_a_url_is_refused_and_not_repeated(machine):
    with pytest.raises(SaltInvocationError, match="without user and password$"):
        machine.module.register(url="https://me:SECRET@rmt.example.org")


# ---- where the code comes from


def test_the_code_may_lie_in_the_pillar(machine):
    machine.pillar["kgraft:code"] = CODE + "\n"
    machine.module.register("pillar:kgraft:code")
    assert machine.commands[0][-1] == CODE


def test_the_code_may_lie_in_an_sdb(machine):
    machine.sdb["sdb://vault/kgraft"] = CODE
    machine.module.register("sdb://vault/kgraft")
    assert machine.commands[0][-1] == CODE


@pytest.mark.parametrize("form", ["{}", "file:{}", "file://{}"])
def test_the_code_may_lie_in_a_file(machine, code_file, form):
    machine.module.register(form.format(code_file))
    assert machine.commands[0][-1] == CODE


@pytest.mark.parametrize(
    "given", [CODE, "pillar", "pillar:", "file:code", "env:CODE", "", 1234, [CODE], {"code": CODE}]
)
def test_what_is_no_reference_is_refused_and_not_repeated(machine, given):
    with pytest.raises(SaltInvocationError, match="takes a reference") as failure:
        machine.module.register(given)
    assert "SECRET" not in str(failure.value)
    assert "1234" not in str(failure.value)
    assert machine.commands == []


@pytest.mark.parametrize(
    "value",
    ["two words SECRET", "-SECRET", "@/etc/SECRET", "SECRET\nSECRET", "SECRET'", "SECRÉT", 1234, {"a": "SECRET"}],
)
def test_a_value_that_is_no_code_is_refused_and_not_repeated(machine, value):
    machine.pillar["kgraft:code"] = value
    with pytest.raises(CommandExecutionError, match="What pillar:kgraft:code holds is no") as failure:
        machine.module.register("pillar:kgraft:code")
    assert not any(secret in str(failure.value) for secret in ("SECR", "1234"))
    assert machine.commands == []


@pytest.mark.parametrize("value", [None, ""])
def test_an_empty_value_is_no_code(machine, value):
    machine.sdb["sdb://vault/kgraft"] = value
    with pytest.raises(CommandExecutionError, match="There is no registration code in sdb://vault/kgraft"):
        machine.module.register("sdb://vault/kgraft")


@pytest.mark.parametrize("error", [SaltInvocationError(CODE), OSError(CODE), KeyError(CODE), ValueError(CODE)])
def test_an_sdb_that_fails_is_named_without_its_words(machine, error):
    machine.sdb = error
    with pytest.raises(CommandExecutionError, match=f"could not be resolved .{type(error).__name__}") as failure:
        machine.module.register("sdb://vault/kgraft")
    assert "SECRET" not in "".join(traceback.format_exception(failure.value))
    assert failure.value.__context__ is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_file_that_others_can_reach_is_refused(machine, code_file, mode):
    code_file.chmod(mode)
    with pytest.raises(CommandExecutionError, match="others than root can reach it; make its mode 0600"):
        machine.module.register(str(code_file))


def test_a_file_that_root_does_not_own_is_refused(machine, code_file):
    os.chown(code_file, 65534, 0)
    with pytest.raises(CommandExecutionError, match="root does not own it"):
        machine.module.register(str(code_file))


def test_a_link_to_a_file_is_refused(machine, code_file, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(code_file)
    with pytest.raises(CommandExecutionError, match="symbolic link; name the file itself"):
        machine.module.register(str(link))


def test_a_pipe_is_refused_without_waiting_for_its_writer(machine, tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(CommandExecutionError, match="it is no regular file"):
        machine.module.register(str(tmp_path / "pipe"))


def test_a_directory_is_refused(machine, tmp_path):
    with pytest.raises(CommandExecutionError, match="it is no regular file"):
        machine.module.register(str(tmp_path))


def test_a_missing_file_is_named(machine):
    with pytest.raises(CommandExecutionError, match="/nowhere/code cannot be used: No such file"):
        machine.module.register("/nowhere/code")


# ---- what SUSEConnect answers


@pytest.mark.parametrize(
    ("retcode", "meaning"),
    [
        (1, "refused to work"),
        (7, "another zypper holds the lock"),
        (8, "release package"),
        (64, "refused the connection"),
        (65, "access was denied"),
        (66, "not JSON"),
        (67, "the registration server said no"),
        (68, "file that it needs is missing or damaged"),
        (69, "register its base product first"),
        (70, "base product cannot be deregistered"),
        (71, "not registered"),
        (104, "in no repository"),
        (107, "script"),
        (3, "exit code of zypper"),
    ],
)
def test_every_exit_code_has_its_words_and_those_of_suseconnect(machine, retcode, meaning):
    machine.registering = result(retcode, "Registering\nError: its reason", "and more")
    with pytest.raises(CommandExecutionError, match=rf"{meaning}.*\(exit {retcode}\).*Error: its reason and more$"):
        machine.module.register()


@pytest.mark.parametrize(
    "words",
    [f"Unknown code {CODE}.", f'{{"regcode": "{CODE}"}}', f"token={CODE.lower()}", f"{'x' * 590}{CODE}{'y' * 590}"],
)
def test_words_of_suseconnect_are_passed_on_without_the_code(machine, code_file, words):
    machine.registering = result(67, words, words)
    with pytest.raises(CommandExecutionError) as failure:
        machine.module.register(str(code_file))
    assert "secret" not in str(failure.value).lower()
    assert len(str(failure.value)) < 800


def test_a_code_of_another_product_is_not_passed_on_either(machine):
    machine.registering = result(67, '[{"regcode":"0ab1-SECRET-c0de"}]')
    with pytest.raises(CommandExecutionError) as failure:
        machine.module.register()
    assert "SECRET" not in str(failure.value)


def test_a_timeout_is_told_without_the_command_line(machine, code_file):
    machine.registering = result(1, f"['{machine.command}', '--regcode', '{CODE}'] : Timed out after 5 seconds")
    with pytest.raises(CommandExecutionError, match="did not end within 5 seconds") as failure:
        machine.module.register(str(code_file), timeout=5)
    assert "SECRET" not in str(failure.value)


def test_a_command_that_cannot_run_is_told_without_the_command_line(machine, code_file):
    machine.registering = CommandExecutionError(f"The shell command \"['--regcode', '{CODE}']\" is not permitted")
    with pytest.raises(CommandExecutionError, match="not permitted") as failure:
        machine.module.register(str(code_file))
    assert "SECRET" not in "".join(traceback.format_exception(failure.value))
    assert failure.value.__context__ is None


# ---- deregister


def test_deregister_always_names_the_product(machine):
    assert machine.module.deregister()["registered"] is False
    assert machine.commands[1] == ["--de-register", "--product", PRODUCT]


def test_deregister_of_what_is_not_registered_does_nothing(machine):
    machine.products = "[]"
    assert machine.module.deregister()["registered"] is False
    assert machine.commands == [["--status"]]


def test_deregister_that_left_the_product_registered_is_a_failure(machine):
    machine.run_all.side_effect = lambda *args, **kwargs: result(stdout=machine.products)
    with pytest.raises(CommandExecutionError, match="still registered"):
        machine.module.deregister()


def test_the_module_is_for_linux(machine, monkeypatch):
    assert machine.module.__virtual__() == "kgraft_subscription"
    monkeypatch.setattr("salt.utils.platform.is_linux", lambda: False)
    assert machine.module.__virtual__() == (False, "kgraft_subscription works on Linux only")
