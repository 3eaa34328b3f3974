"""Whom the runner asks, what becomes of those who do not answer, and that bad arguments are answered, too."""

import inspect
import time
from unittest.mock import create_autospec

import pytest
import salt.client
from salt.exceptions import SaltClientError

from tests.unit.test_runner_report import HOSTILE, NOW, checked, overview, state

OPTS = {"timeout": 30, "gather_job_timeout": 10, "conf_file": "/etc/salt/master"}
ASK = {"kgraft.overview": ((), {})}
BOTH = {"kgraft_pkg.check": ((), {"version": ">=5"}), **ASK}


@pytest.fixture(scope="module")
def fleets(load):
    return load("_runners/_kgraft_fleet.py")


def client_of(asked, *rows, order_masters=False):
    """Salt's client, that published a job to these machines and then hears these rows."""
    client = create_autospec(salt.client.LocalClient, instance=True)
    client.opts = {"order_masters": order_masters}
    client.run_job.return_value = asked if isinstance(asked, dict) else {"jid": "1", "minions": list(asked)}
    client.get_iter_returns.return_value = iter(rows)
    return client


def ask(fleets, client, calls=ASK, accepted=()):
    return fleets.ask(client, "*", "glob", calls, 30, 10, lambda: accepted)


def test_whom_the_job_was_published_to_must_answer(fleets):
    fleet = ask(fleets, client_of(["db1", "db2", "db3"], {"db1": {"ret": "x", "retcode": 0}}, {"db3": {"ret": None}}))

    assert fleet.asked == {"db1", "db2", "db3"}
    assert fleet.answers == {"db1": {"kgraft.overview": "x"}, "db3": {"kgraft.overview": None}}
    assert fleet.silent == {"db2": "nothing in 30 s"}


def test_rows_that_salt_makes_up_are_no_answers(fleets):
    rows = [{}, {"db1": {"failed": True}}, {"error": {"name": "AuthorizationError", "message": "x"}}, {"db1": None}]
    fleet = ask(fleets, client_of(["db1"], *rows))
    assert (fleet.answers, set(fleet.silent)) == ({}, {"db1"})


def test_the_first_answer_counts_and_who_is_no_machine_of_this_master_does_not(fleets):
    rows = [{"db1": {"ret": "first"}}, {"db1": {"ret": "second"}}, {"late": {"ret": "x"}}, {"nobody": {"ret": "x"}}]
    fleet = ask(fleets, client_of(["db1"], *rows), accepted=["db1", "late", "other"])

    assert fleet.asked == {"db1", "late"}
    assert fleet.answers == {"db1": {"kgraft.overview": "first"}, "late": {"kgraft.overview": "x"}}


def test_all_functions_go_in_one_job(fleets):
    client = client_of(["db1"], {"db1": {"ret": {"kgraft_pkg.check": 1, "kgraft.overview": 2}}})
    fleet = ask(fleets, client, BOTH)

    (call,) = client.run_job.call_args_list
    assert call.args[1:3] == (list(BOTH), [[{"version": ">=5", "__kwarg__": True}], []])
    assert fleet.answers == {"db1": {"kgraft_pkg.check": 1, "kgraft.overview": 2}}


def test_below_syndics_nobody_knows_who_was_asked(fleets):
    fleet = ask(fleets, client_of(["db1"], {"far": {"ret": "x"}}, order_masters=True))
    assert fleet == (None, {"far": {"kgraft.overview": "x"}}, {"db1": "nothing in 30 s"})

    assert fleets.expect(fleet, ["far", "gone"]).asked == {"far", "db1", "gone"}
    assert fleets.expect(fleet, []).asked is None


@pytest.mark.parametrize("raised", [SaltClientError("no master"), None])
def test_nobody_could_be_asked(fleets, raised, capsys):
    client = client_of({})

    def run_job(*_, **__):
        print("No minions matched the target.")  # as Salt does
        if raised:
            raise raised
        return {}

    client.run_job.side_effect = run_job
    with pytest.raises(ValueError, match="Nobody could be asked: (no master|the target matches no machine)"):
        ask(fleets, client)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("told", HOSTILE)
def test_the_mine_is_an_answer_only_while_it_is_fresh(fleets, told):
    mine = {"old": overview(observed="2026-11-23T09:59:59Z"), "db1": overview(), "deleted": overview(), "bad": told}
    mine["ahead"] = overview(observed="2026-11-23T12:10:00Z")  # its clock would keep it fresh when it is long dead
    fleet = fleets.remember(mine, ["old", "ahead", "db1", "bad", "never"], "kgraft.overview", 7200, NOW)

    assert fleet.answers == {"db1": {"kgraft.overview": overview()}}
    assert fleet.asked == {"old", "ahead", "db1", "bad", "never"}
    assert fleet.silent == {
        "old": "its answer in the mine is too old",
        "ahead": "its answer in the mine is of a time to come: its clock is wrong",
        "bad": "its answer in the mine is too old",
        "never": "nothing in the mine",
    }


@pytest.mark.parametrize(
    ("value", "count"), [(0, 0), (3, 3), ("3", 3), ("0%", 0), ("1%", 0), ("50%", 25), ("100%", 51)]
)
def test_a_share_is_a_number_or_a_percentage(fleets, value, count):
    assert fleets.share("x", value, 51) == count


@pytest.mark.parametrize("value", [True, -1, 1.5, "", "%", "x", "1 %", "-1%", None, [], "9" * 20])
def test_no_share_is_refused_by_name(fleets, value):
    with pytest.raises(ValueError, match="allow_missing=.*: must be a number of machines, or a share such as 1%"):
        fleets.share("allow_missing", value, 10)


# -- the functions


@pytest.fixture
def runner(load, monkeypatch):
    """The runner, called through Salt's API, whose only machine is settled; ``runner.client`` is the client it uses."""
    runner = load("_runners/kgraft.py", __opts__=dict(OPTS))
    runner.__salt__["fileserver.file_list"] = list
    told = overview(supported_until=None)
    runner.answer = {"kgraft.overview": told, "kgraft_pkg.check": checked(), "state.apply": {"x": state()}}
    runner.client = client_of(["db1"])

    def rows(*_, **__):
        functions = runner.client.run_job.call_args.args[1]
        return iter([{"db1": {"ret": runner.answer[functions] if isinstance(functions, str) else runner.answer}}])

    runner.client.get_iter_returns.side_effect = rows
    runner.client.__enter__.return_value = runner.client
    monkeypatch.setattr(runner.salt.client, "get_local_client", lambda _: runner.client)
    monkeypatch.setattr(runner, "_accepted", lambda *_: ["db1"])
    return runner


def test_the_fleet_of_these_tests_is_settled(runner):
    for call in (runner.report, runner.verify, lambda: runner.verify(sls="kgraft"), lambda: runner.verify(version=5)):
        data = call()
        assert (data["retcode"], data["counts"]) == (0, {"settled": 1})
        assert runner.__context__["retcode"] == 0


BAD = [
    ("report", {"source": "x"}, "source='x': must be live or mine"),
    ("report", {"stuck_after": "1"}, "stuck_after='1': must be a number of at least 0"),
    ("report", {"stuck_after": True}, "stuck_after=True"),
    ("report", {"max_metadata_age": -1}, "max_metadata_age=-1"),
    ("report", {"support_days": float("inf")}, "support_days=inf"),
    ("report", {"support_days": float("nan")}, "support_days=nan"),
    ("report", {"timeout": 0}, "timeout=0: must be a number of at least 1"),
    ("report", {"gather_job_timeout": "x"}, "gather_job_timeout='x'"),
    ("report", {"expected": 5}, "expected=5: must be a list of names"),
    ("report", {"expected": [5]}, "expected=[5]"),
    ("report", {"expected": "@/etc/passwd"}, "a file is read at the prompt only"),
    ("report", {"target": {}}, "target={}"),
    ("report", {"target": ""}, "target=''"),
    ("report", {"target": [5], "tgt_type": "list"}, "target=[5]"),
    ("report", {"tgt_type": 5}, "tgt_type=5"),
    ("report", {"bad": 1}, "kgraft.report: got an unexpected keyword argument 'bad'"),
    ("verify", {"version": "1", "cves": ["x"]}, "Give one of version, cves and sls."),
    ("verify", {"version": 2.1}, "quote it"),
    ("verify", {"sls": ["x"]}, "sls=['x']: must be the name of an SLS"),
    ("verify", {"not_affected": ["x"]}, "not_affected needs cves"),
    ("verify", {"allow_missing": "x"}, "allow_missing='x'"),
    ("verify", {"stuck_after": None}, "stuck_after=None"),
]


@pytest.mark.parametrize(("function", "arguments", "words"), BAD)
def test_a_bad_argument_is_answered_with_5_and_nobody_is_asked(runner, function, arguments, words):
    data = getattr(runner, function)(**arguments)

    assert data["retcode"] == runner.__context__["retcode"] == 5
    assert words in data["report"][0]
    assert runner.client.run_job.call_args_list == []


def test_whatever_is_given_salt_lets_it_through(runner):
    for name in ("report", "verify"):
        assert salt.utils.args.get_function_argspec(getattr(runner, name)).keywords
        assert "target" in inspect.signature(getattr(runner, name)).parameters
        assert getattr(runner, name)(*range(50))["retcode"] == 5


def test_salts_own_keywords_are_no_matter(runner):
    assert runner.report(__jid__="1", __user__="x")["retcode"] == 0


@pytest.mark.parametrize(("output", "keys"), [(None, {"report", "retcode"}), ("json", None), ("yaml", None)])
def test_at_the_prompt_it_is_text_and_with_an_outputter_data(runner, output, keys):
    data = runner.report()
    runner.__opts__.update(fun="kgraft.report", output=output)
    typed = runner.report()
    assert typed == (data if keys is None else {"report": "\n".join(data["report"]), "retcode": 0})
    runner.__opts__.update(fun="state.orchestrate", output=None)
    assert runner.report() == data


def test_who_is_expected_and_not_there_is_named(runner, tmp_path):
    data = runner.report(expected="db1, db2")
    assert (data["retcode"], data["machines"]["db2"]["why"]) == (3, "this master has no key of it")
    assert runner.report(["db1", "db3"], "list")["machines"]["db3"]["class"] == "no answer"
    path = tmp_path / "inventory"
    path.write_text("# ours\ndb1\n\n  db4 \n")
    runner.__opts__.update(fun="kgraft.report", output="json")
    assert set(runner.report(expected=f"@{path}")["machines"]) == {"db1", "db4"}
    assert runner.report(expected="@/none")["report"] == [
        "expected: cannot read /none: [Errno 2] No such file or directory: '/none'"
    ]


def test_an_unreadable_file_of_exceptions_is_5(runner):
    runner.__opts__["kgraft.exceptions"] = "/none"
    assert runner.report()["retcode"] == 5


def test_the_mine_is_taken_where_it_is_asked_for(runner):
    told = overview(observed=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), package=None)
    runner.__salt__["mine.get"] = lambda target, function, tgt_type: {"db1": told, "deleted": told}
    data = runner.report(source="mine")
    assert (data["retcode"], data["counts"]) == (2, {"doubtful": 1})
    assert runner.client.run_job.call_args_list == []
    runner._accepted = lambda *_: []
    assert runner.report(source="mine")["retcode"] == 5
