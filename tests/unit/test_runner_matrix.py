"""The matrix of machines and CVEs: what each answer counts as, and what is said of all."""

import csv
import io
import re

import pytest

from tests.conftest import REPO
from tests.unit.test_runner_report import HOSTILE

ONE, TWO = "CVE-2016-5195", "CVE-2017-1000364"
KERNEL = "4.4.180-94.100-default"


@pytest.fixture(scope="module")
def fleets(load):
    return load("_runners/_kgraft_fleet.py")


@pytest.fixture(scope="module")
def matrices(load, fleets):
    return load("_runners/_kgraft_matrix.py", fleets=fleets, reports=load("_runners/_kgraft_report.py", fleets=fleets))


@pytest.fixture(scope="module")
def of(matrices, fleets):
    """Return ``of(answers, silent, never, exceptions, asked)``: what is told of machines, by their answers to ONE."""

    def told(answers, silent=(), never=(), exceptions=({}, ()), asked=True):
        whole = {
            machine: {"kgraft_security.cves": {ONE: said}, "kgraft.status": {"kernelrelease": KERNEL}}
            for machine, said in answers.items()
        }
        fleet = fleets.Fleet({*answers, *silent}, whole, dict.fromkeys(silent, "nothing in 30 s"))
        return matrices.tell(matrices.matrix(fleet, [ONE], never, *exceptions), {*answers, *silent} if asked else None)

    return told


@pytest.mark.parametrize(
    ("said", "state", "detail"),
    [
        ("fixed by kgraft_patch_9_2_2", "fixed by a live patch", "kgraft_patch_9_2_2"),
        ("fixed by kernel", "fixed by the kernel", KERNEL),
        ("pending: settling kgraft_patch_9_2_2", "settling", "kgraft_patch_9_2_2"),
        ("pending: installed, not loaded kgraft-patch-x 9-2.2", "installed, not loaded", "kgraft-patch-x 9-2.2"),
        ("open: kgraft-patch-x 10-2.1", "open", "kgraft-patch-x 10-2.1"),
        ("elsewhere: SUSE-1 (openssl)", "elsewhere", "SUSE-1 (openssl)"),
        ("unread: pool: it is away", "unread", "pool: it is away"),
        ("unknown: nobody names it", "nobody names it", "unknown"),
        # a minion's answer may be anything: what is not known is not good
        ("unknown: not a CVE number", "unread", "unknown: not a CVE number"),
        ("fixed", "unread", "fixed"),
        ("Fixed by me", "unread", "Fixed by me"),
        ({"fixed by": "kernel"}, "unread", "{'fixed by': 'kernel'}"),
        (None, "unread", "None"),
    ],
)
def test_each_answer_is_one_state(of, said, state, detail):
    told = of({"db1": said})
    assert told["cves"] == {ONE: {"db1": {"class": state, "why": detail}}}
    good = state in ("fixed by a live patch", "fixed by the kernel")
    assert (told["retcode"], told["counts"]) == (0 if good else 2, {ONE: {state: 1}})
    never = of({"db1": said}, never=["3.*", "4.4.180-*"])["cves"][ONE]["db1"]
    assert never == ({"class": state, "why": detail} if good else {"class": "not affected", "why": never["why"]})
    assert good or never["why"] == f"{KERNEL}, by not_affected"


def test_every_answer_that_the_minions_module_documents_has_its_state(matrices):
    text = (REPO / "_modules" / "kgraft_security.py").read_text("utf-8")
    text = text[text.index("def cves(") : text.index("def _package(")]
    forms = [
        form for line in re.findall(r"^    (``.*``)$", text, re.MULTILINE) for form in re.findall("``(.+?)``", line)
    ]
    known = [form for form in forms if any(form.startswith(beginning) for beginning, _ in matrices.BEGINNINGS)]
    assert len(forms) == 9, forms
    assert [form for form in forms if form not in known] == [
        "unread: <repository>: <why>",
        "unknown: not a CVE number",
    ]


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        ("Traceback …\nTypeError: 'str' object is not callable", "kgraft_security is not loaded there"),
        ("'kgraft_security.cves' is not available.", "kgraft_security is not loaded there"),
        ("ERROR: zypper does not answer", "zypper does not answer"),
        ("", "nothing"),
        (None, "its answer cannot be understood"),
        ([], "its answer cannot be understood"),
    ],
)
def test_a_machine_that_could_not_say_is_unread_unless_its_kernel_never_had_it(matrices, answer, detail):
    assert matrices.cell(answer, ONE, KERNEL, []) == ("unread", detail)
    assert matrices.cell(answer, ONE, KERNEL, ["4.4.180-94.*"])[0] == "not affected"
    assert matrices.cell(answer, ONE, None, ["4.4.180-94.*"])[0] == "unread", "without its kernel nobody knows"


@pytest.mark.parametrize("odd", HOSTILE)
def test_one_odd_answer_spoils_nothing(matrices, fleets, odd):
    good = {"kgraft_security.cves": {ONE: "fixed by kernel"}, "kgraft.status": {"kernelrelease": KERNEL}}
    answers = {"db1": good, "db2": odd, "db3": {"kgraft_security.cves": odd, "kgraft.status": odd}}
    told = matrices.tell(matrices.matrix(fleets.Fleet(set(answers), answers, {}), [ONE, TWO], ["9*"], {}, ()), answers)
    assert told["counts"][ONE] == {"fixed by the kernel": 1, "unread": 2}
    assert told["retcode"] == 2
    assert all(line.isprintable() for line in told["report"])


def test_who_gave_no_answer_is_a_state_of_its_own(of):
    assert of({"db1": "fixed by kernel"}, ["db2"])["retcode"] == 3
    told = of({"db1": "open: x 2"}, ["db2"])
    assert (told["retcode"], told["asked"]) == (2, 2)
    assert told["cves"][ONE]["db2"] == {"class": "no answer", "why": "nothing in 30 s"}
    assert of({"db1": "fixed by kernel"}, asked=False)["retcode"] == 3


def test_exceptions_count_and_end(of):
    entry = {"reason": "waits", "by": "dba-team", "until": "2026-11-29"}
    excepted = of({"db1": "open: x 2", "db2": "fixed by kernel"}, exceptions=({"db1": entry, "db2": entry}, ()))
    assert (excepted["retcode"], excepted["counts"][ONE]) == (0, {"fixed by the kernel": 1, "excepted": 1})
    assert excepted["cves"][ONE]["db1"]["instead_of"] == "open"
    ended = of({"db1": "open: x 2"}, exceptions=({"db1": entry}, {"db1"}))
    assert ended["retcode"] == 2
    assert ended["cves"][ONE]["db1"]["why"] == "x 2; its exception ended on 2026-11-29"


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        (("cve-2016-5195", " CVE-2016-5195 "), [ONE]),
        ((f"{TWO},{ONE}",), [TWO, ONE]),
    ],
)
def test_numbers_are_taken_as_they_were_meant(matrices, words, numbers):
    assert matrices.numbers(words) == numbers


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((), "given"),
        (("",), "''"),
        ((ONE, "CVE-2016-519"), "'CVE-2016-519'"),
        (("CVE-2016-5195x",), "5195X"),
        ((5,), "'5'"),
    ],
)
def test_what_is_no_number_is_named(matrices, words, named):
    with pytest.raises(ValueError, match="no CVE number is .*" + re.escape(named)):
        matrices.numbers(words)


def test_a_spreadsheet_finds_no_formula_in_the_table(of, matrices):
    hostile = ["=1+1", "+1", "-1", "@SUM(A1)", '"=1', "a,b", "\t=1", "\r\n=1", "a\x00b\u2028c"]
    told = of({name: f"open: {name}" for name in hostile})
    rows = list(csv.reader(io.StringIO(matrices.table(told["cves"])), strict=True))
    assert rows[0] == ["machine", "cve", "state", "detail"]
    assert len(rows) == len(hostile) + 1
    assert all(row[1:3] == [ONE, "open"] for row in rows[1:])
    assert not [cell for row in rows for cell in row if re.match(r"\s*[=+@-]", cell) or not cell.isprintable()]
    assert ["'=1+1", ONE, "open", "'=1+1"] in rows


def test_the_text_names_the_machines_that_have_it_not(of):
    told = of({"db1": "fixed by kgraft_patch_9_2_2", "db2": "open: x 10-2.1", "db3": "open: x 10-2.1"})
    assert told["report"] == [
        ONE,
        "   1 fixed by a live patch kgraft_patch_9_2_2",
        "   2 OPEN                  x 10-2.1",
        "                           db2 db3",
        "   3 asked",
        "Not good: not every machine has every fix, or it is not known.",
    ]
