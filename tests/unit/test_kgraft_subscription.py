import json
import os
import time
import traceback
from unittest.mock import create_autospec

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

CODE = "0ab1-SECRET-c0de"
STRANGE = "0ab1+SECRET=c0.de"
PRODUCT = "sle-live-patching/12/x86_64"
SLES_12 = {"os": "SUSE", "osfullname": "SLES", "os_family": "Suse", "osrelease": "12", "cpuarch": "x86_64"}


def listed(status="Registered", **fields):
    return {"identifier": "sle-live-patching", "version": "12", "arch": "x86_64", "status": status, **fields}


REGISTERED = json.dumps([listed()])
NOT_REGISTERED = json.dumps([listed("Not Registered")])


def result(retcode=0, stdout="", stderr=""):
    return {"retcode": retcode, "stdout": stdout, "stderr": stderr}


class Machine:
    """The module on a machine whose SUSEConnect does as told."""

    def __init__(self, load, tmp_path, monkeypatch):
        command = tmp_path / "bin" / "SUSEConnect"
        command.parent.mkdir()
        command.touch(mode=0o755)
        monkeypatch.setenv("PATH", str(command.parent))
        self.pillar = {}
        self.sdb = {}
        self.version = "1.21.0"
        self.products, self.afterwards = NOT_REGISTERED, REGISTERED
        self.looking = result()
        self.registering = result()
        self.module = load(
            "_modules/kgraft_subscription.py",
            __grains__=SLES_12,
            __salt__={"pillar.get": self._pillar_get, "sdb.get": self._sdb_get},
        )
        self.run = create_autospec(self.module.commands.run, side_effect=self._run)
        self.module.commands.run = self.run

    def _run(self, command, until, stdin=""):
        if "--version" in command:
            return result(stdout=f"{self.version}\n")
        if "--status" in command:
            return dict(self.looking, stdout=self.looking["stdout"] or self.products)
        if "--de-register" in command:
            self.products = NOT_REGISTERED
            return result()
        if isinstance(self.registering, Exception):
            raise self.registering
        if not self.registering["retcode"]:
            self.products = self.afterwards
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
        return [call.args[0][1:] for call in self.run.call_args_list]

    @property
    def registrations(self):
        """What SUSEConnect got, as arguments and as input, each time that it was told to register something."""
        calls = [(call.args[0][1:], call.kwargs["stdin"]) for call in self.run.call_args_list]
        return [call for call in calls if "--product" in call[0] and "--de-register" not in call[0]]


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
        {"osfullname": "Leap", "osrelease": "16.0"},
        {"osfullname": "openSUSE Leap Micro", "osrelease": "6.1"},
        {"osfullname": "SLE Micro", "osrelease": "5.5"},
        {"osfullname": "SL-Micro", "osrelease": "16.0"},
        {"osrelease": "6.0"},
        {"osrelease": "17.0"},
        {"osrelease": "120"},
    ],
)
def test_a_system_without_a_known_product_asks_for_it(machine, grains):
    machine.module.__grains__ = {**SLES_12, **grains}
    with pytest.raises(CommandExecutionError, match="give product"):
        machine.module.status()


# what Salt 3006 and 3008 make of their /etc/os-release; of SL Micro 6.2's 3006 makes SLES 16.0
INCLUDED = {
    "SLES 16.0": {"osfullname": "SLES", "osrelease": "16.0"},
    "SLES_SAP 16.0": {"osfullname": "SLES_SAP", "osrelease": "16.0"},
    "SL-Micro 6.0": {"osfullname": "SL-Micro", "osrelease": "6.0"},
    "SL-Micro 6.1": {"osfullname": "SL-Micro", "osrelease": "6.1"},
    "SUSE Linux Micro 6.2": {"osfullname": "SUSE Linux Micro", "osrelease": "6.2"},
}


@pytest.mark.parametrize("system", INCLUDED)
def test_where_live_patching_is_included_nothing_is_registered_and_a_sentence_says_so(machine, system):
    machine.module.__grains__ = {**SLES_12, **INCLUDED[system]}
    note = f"Live patching is included in {system}: there is no product to register."
    expected = {"product": None, "registered": False, "note": note, **dict.fromkeys(machine.module.DETAILS)}
    assert machine.module.status() == expected
    assert machine.module.deregister() == expected
    for arguments in ({}, {"test": True}, {"renew": True}, {"code_from": "pillar:no:code"}):
        assert machine.module.register(**arguments) == {**expected, "changed": False, "before": None}
    assert machine.commands == []


def test_where_live_patching_is_included_a_product_can_be_given(machine):
    machine.module.__grains__ = {**SLES_12, "osrelease": "16.0"}
    assert machine.module.register(product=PRODUCT)["changed"] is True


def test_where_live_patching_is_included_bad_arguments_are_refused_all_the_same(machine):
    machine.module.__grains__ = {**SLES_12, "osrelease": "16.0"}
    for arguments in ({"timeout": "600"}, {"test": "no"}, {"url": "rmt"}, {"code_from": CODE}):
        with pytest.raises(SaltInvocationError):
            machine.module.register(**arguments)


@pytest.mark.parametrize("product", ["", "sle-live-patching", "a/b", "a/b/c/d", "--root/x/y", "a/b/c\n", 12])
def test_a_product_that_is_no_triplet_is_refused(machine, product):
    with pytest.raises(SaltInvocationError, match="<name>/<version>/<architecture>"):
        machine.module.deregister(product)
    assert machine.commands == []


# ---- status


def test_status_tells_the_subscription_but_never_its_code(machine):
    bought = {"name": "Live Patching", "subscription_status": "ACTIVE", "type": "full", "expires_at": "2028"}
    machine.products = json.dumps(
        [{"identifier": "SLES", "version": "12", "arch": "x86_64"}, listed(regcode=CODE, Regcode=CODE, **bought)]
    )
    assert machine.module.status() == {
        "product": PRODUCT,
        "registered": True,
        "note": None,
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


@pytest.mark.parametrize("retcode", [0, 67])
def test_an_error_instead_of_a_list_is_told_in_suses_words(machine, retcode):
    words = 'Invalid system credentials. {"Regcode": "0ab1-SECRET"} https://scc/x?code=0ab1-SECRET'
    machine.looking = result(retcode, json.dumps({"Error": words}))
    with pytest.raises(CommandExecutionError, match="It said: Invalid system credentials") as failure:
        machine.module.status()
    assert "SECRET" not in "".join(traceback.format_exception(failure.value))


# ---- time


@pytest.mark.parametrize("timeout", [-1, True, "600", "", None, float("nan"), float("inf")])
@pytest.mark.parametrize("function", ["status", "register", "deregister"])
def test_a_timeout_that_is_no_number_of_seconds_is_refused(machine, function, timeout):
    with pytest.raises(SaltInvocationError, match="timeout is"):
        getattr(machine.module, function)(timeout=timeout)
    assert machine.commands == []


@pytest.mark.parametrize(
    ("function", "products", "runs"),
    [("status", REGISTERED, 1), ("register", NOT_REGISTERED, 4), ("deregister", REGISTERED, 3)],
)
def test_all_that_suseconnect_is_asked_has_one_deadline(machine, function, products, runs, code_file):
    machine.products = products
    began = time.monotonic()
    arguments = {"code_from": str(code_file)} if function == "register" else {}
    getattr(machine.module, function)(timeout=50, **arguments)
    ended = time.monotonic()
    deadlines = [call.args[1] for call in machine.run.call_args_list]
    assert len(deadlines) == runs
    assert len(set(deadlines)) == 1
    assert began + 50 <= deadlines[0] <= ended + 50


# ---- register


def test_a_new_suseconnect_reads_the_code_from_standard_input(machine, code_file):
    status = machine.module.register(str(code_file), url="https://rmt.example.org")
    assert status["registered"] is True
    assert machine.registrations == [
        (["--url", "https://rmt.example.org", "--product", PRODUCT, "--regcode", "-"], f"{CODE}\n")
    ]
    assert CODE not in str(machine.commands)


@pytest.mark.parametrize("version", ["1.14", "1.14.0", "1.21.0-git1", "2.0.0", "SUSEConnect 1.23.1"])
def test_which_suseconnect_reads_standard_input(machine, code_file, version):
    machine.version = version
    machine.module.register(str(code_file))
    assert machine.registrations == [(["--product", PRODUCT, "--regcode", "-"], f"{CODE}\n")]


@pytest.mark.parametrize("version", ["0.3.36", "0.2.4", "1.9.0", "1.13.0", "1.2.0~git0.abd0fec", "", "unknown"])
def test_an_old_suseconnect_knows_no_other_way_than_its_arguments(machine, code_file, version):
    machine.version = version
    machine.module.register(str(code_file))
    assert machine.registrations == [(["--product", PRODUCT, "--regcode", CODE], "")]


def test_register_without_a_code_passes_none_and_asks_for_no_version(machine):
    machine.module.register()
    assert machine.registrations == [(["--product", PRODUCT], "")]
    assert machine.commands == [["--status"], ["--product", PRODUCT], ["--status"]]


def test_register_tells_what_it_has_changed(machine):
    machine.afterwards = json.dumps([listed(subscription_status="ACTIVE")])
    assert machine.module.register() == {
        "product": PRODUCT,
        "registered": True,
        "note": None,
        "status": "Registered",
        "subscription_status": "ACTIVE",
        **dict.fromkeys(("starts_at", "expires_at", "name", "type")),
        "changed": True,
        "before": "Not Registered",
    }


@pytest.mark.parametrize("test", [True, False])
def test_a_product_that_is_registered_stays_as_it_is(machine, test):
    machine.products = REGISTERED
    found = machine.module.register("pillar:no:code", test=test)
    assert (found["registered"], found["changed"], found["before"]) == (True, False, "Registered")
    assert machine.commands == [["--status"]]


@pytest.mark.parametrize("test", [True, False])
def test_a_product_that_is_registered_is_renewed_on_demand(machine, code_file, test):
    machine.products = REGISTERED
    found = machine.module.register(str(code_file), renew=True, test=test)
    assert (found["registered"], found["changed"], found["before"]) == (True, True, "Registered")
    assert len(machine.registrations) == (0 if test else 1)


def test_what_fails_after_the_look_carries_it(machine, code_file):
    machine.registering = result(8)
    with pytest.raises(CommandExecutionError, match="It said: nothing$") as failure:
        machine.module.register(str(code_file))
    assert failure.value.info["before"]["status"] == "Not Registered"
    assert CODE not in str(failure.value.info)


@pytest.mark.parametrize("flag", ["test", "renew"])
@pytest.mark.parametrize("value", ["False", "no", "", 0, 1, None, []])
def test_what_is_no_truth_is_refused(machine, flag, value):
    with pytest.raises(SaltInvocationError, match=f"^{flag} is .*; it must be True or False$"):
        machine.module.register(**{flag: value})
    assert machine.commands == []


@pytest.mark.parametrize(("root", "arguments"), [("/", []), ("//", []), ("", []), ("/mnt/", ["--root", "/mnt"])])
def test_suseconnect_works_in_the_root_of_the_kernel(machine, root, arguments):
    machine.module.__opts__ = {"kgraft.root": root}
    machine.module.register()
    machine.module.deregister()
    assert len(machine.commands) == 6
    assert all(command[: len(arguments)] == arguments for command in machine.commands)
    assert all(("--root" in command) == bool(arguments) for command in machine.commands)


def test_register_in_test_mode_finds_the_code_and_registers_nothing(machine):
    with pytest.raises(CommandExecutionError, match="There is no registration code in pillar:kgraft:code"):
        machine.module.register("pillar:kgraft:code", test=True)
    machine.pillar["kgraft:code"] = CODE
    found = machine.module.register("pillar:kgraft:code", test=True)
    assert (found["registered"], found["changed"], found["before"]) == (False, True, "Not Registered")
    assert machine.commands == [["--status"], ["--status"]]


def test_success_that_left_nothing_registered_is_a_failure(machine):
    machine.afterwards = NOT_REGISTERED
    with pytest.raises(CommandExecutionError, match="reported success, but .* is Not Registered"):
        machine.module.register()


@pytest.mark.parametrize("url", ["rmt.example.org", "ftp://rmt", "https://", "--root", "https://rmt/ x", 7])
def test_a_url_that_is_none_is_refused_and_repeated(machine, url):
    with pytest.raises(SaltInvocationError, match="url must be.*it is"):
        machine.module.register(url=url)


@pytest.mark.parametrize(
    "url",
    [
        "https://me:SECRET@rmt.example.org",
        "https://rmt.example.org/?regcode=SECRET",
        "https://rmt.example.org/#SECRET",
        "regcode=SECRET",
        "https%3A%2F%2Fme%3ASECRET%40rmt",
    ],
)
def test_a_secret_in_a_url_is_refused_and_not_repeated(machine, url):
    with pytest.raises(SaltInvocationError, match="without user and password$"):
        machine.module.register(url=url)


# ---- where the code comes from


def test_the_code_may_lie_in_the_pillar(machine):
    machine.pillar["kgraft:code"] = CODE + "\n"
    machine.module.register("pillar:kgraft:code")
    assert machine.registrations[0][1] == f"{CODE}\n"


def test_the_code_may_lie_in_an_sdb(machine):
    machine.sdb["sdb://vault/kgraft"] = CODE
    machine.module.register("sdb://vault/kgraft")
    assert machine.registrations[0][1] == f"{CODE}\n"


@pytest.mark.parametrize("form", ["{}", "file:{}", "file://{}"])
def test_the_code_may_lie_in_a_file(machine, code_file, form):
    machine.module.register(form.format(code_file))
    assert machine.registrations[0][1] == f"{CODE}\n"


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
    assert machine.registrations == []


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
        (-9, "a signal ended it"),
    ],
)
def test_every_exit_code_has_its_words_and_those_of_suseconnect(machine, retcode, meaning):
    machine.registering = result(retcode, "Registering\nError: its reason", "and more")
    with pytest.raises(CommandExecutionError, match=rf"{meaning}.*\(exit {retcode}\).*Error: its reason and more$"):
        machine.module.register()


@pytest.mark.parametrize(
    "words",
    [
        "Unknown code {}.",
        '{{"regcode": "{}"}}',
        '{{"Error": "Unknown code {}"}}',
        "Post https://scc.suse.com/connect/{}/products: EOF",
        f"{'x' * 590}{{}}{'y' * 590}",
    ],
)
@pytest.mark.parametrize(
    "code",
    [
        STRANGE,
        STRANGE.lower(),
        "0ab1%2BSECRET%3Dc0.de",
        "0ab1%2bsecret%3dc0%2ede",
        "0ab1%252BSECRET%253Dc0.de",
        r"0ab1\u002bSECRET\u003Dc0.de",
    ],
)
def test_words_of_suseconnect_are_passed_on_without_the_code(machine, code_file, words, code):
    code_file.write_text(STRANGE, encoding="ascii")
    said = words.format(code)
    machine.registering = result(67, said, said)
    with pytest.raises(CommandExecutionError, match=r"said no \(exit 67\)") as failure:
        machine.module.register(str(code_file))
    told = "".join(traceback.format_exception(failure.value))
    assert "secret" not in told.lower()
    assert "***" in told
    assert len(str(failure.value)) < 800


@pytest.mark.parametrize("version", ["1.21.0", "0.3.36"])
def test_no_run_of_suseconnect_repeats_the_code(machine, code_file, version):
    """The look after a registration knows it, too."""
    machine.version = version
    machine.afterwards = json.dumps({"Error": f"{CODE} is expired"})
    with pytest.raises(CommandExecutionError, match=r"It said: \*\*\* is expired") as failure:
        machine.module.register(str(code_file))
    assert "SECRET" not in "".join(traceback.format_exception(failure.value))


@pytest.mark.parametrize(
    "words",
    [
        '[{"regcode":"0ab1-SECRET-c0de"}]',
        '[{"Regcode" : "0ab1-SECRET-c0de", "x": 1}]',
        '{"REGCODE":"0ab1\\u002bSECRET"}',
        r'"body": "{\"regcode\":\"0ab1-SECRET-c0de\"}"',
        '{"registration_code":"SECRET","password":"SECRET","system_token":"SECRET"}',
        "Regcode: 0ab1-SECRET-c0de",
        "Authorization: Token token=0ab1-SECRET-c0de",
        "Get https://scc.suse.com/connect?x=1&regcode=0ab1-SECRET-c0de: EOF",
        "Get 'https://updates.suse.com/SUSE/x?eyJSECRET' failed",
        "Get https://SCC_1:SECRET@scc.suse.com/x: EOF",
        "Registration Code: 0ab1-SECRET-c0de",
    ],
)
def test_other_codes_and_passwords_are_not_passed_on_either(machine, words):
    machine.registering = result(67, words)
    with pytest.raises(CommandExecutionError, match="It said: .") as failure:
        machine.module.register()
    assert "SECRET" not in str(failure.value)


def test_words_without_a_secret_are_passed_on_whole(machine):
    words = f"Please provide a Registration Code for {PRODUCT}. See https://scc.suse.com/x for 'more' (67)"
    machine.registering = result(67, words)
    with pytest.raises(CommandExecutionError) as failure:
        machine.module.register()
    assert str(failure.value).endswith(f"It said: {words}")


def test_a_suseconnect_that_cannot_be_run_is_told(machine, code_file):
    machine.registering = CommandExecutionError("SUSEConnect cannot be run: Permission denied")
    with pytest.raises(CommandExecutionError, match="^SUSEConnect cannot be run: Permission denied$"):
        machine.module.register(str(code_file))


# ---- deregister


def test_deregister_always_names_the_product(machine):
    machine.products = REGISTERED
    assert machine.module.deregister()["registered"] is False
    assert machine.commands[1] == ["--de-register", "--product", PRODUCT]


def test_deregister_of_what_is_not_registered_does_nothing(machine):
    machine.products = "[]"
    assert machine.module.deregister()["registered"] is False
    assert machine.commands == [["--status"]]


def test_deregister_that_left_the_product_registered_is_a_failure(machine):
    machine.run.side_effect = lambda *args, **kwargs: result(stdout=REGISTERED)
    with pytest.raises(CommandExecutionError, match="still registered"):
        machine.module.deregister()


def test_the_module_is_for_linux(machine, monkeypatch):
    assert machine.module.__virtual__() == "kgraft_subscription"
    monkeypatch.setattr("salt.utils.platform.is_linux", lambda: False)
    assert machine.module.__virtual__() == (False, "kgraft_subscription works on Linux only")
