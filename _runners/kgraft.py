"""
The fleet, on the master: where all machines stand, who did not answer, and a roll-out that loses none of them.

:maturity: new
:depends: the execution module ``kgraft`` on the minions, and ``kgraft_pkg`` where it is SUSE's

*Silence is never "patched"*: whoever was asked and gave no answer is named, and the exit code says so. Each function
returns a dict with ``report``, lines for a human, and ``retcode``, with which ``salt-run`` ends:

====  ==================================================================
code  meaning
====  ==================================================================
0     good
2     some machines are not patched
3     good so far, but some machines gave no answer
4     some machines are stuck, whatever the others are
5     nobody could be asked, or an argument or a file that cannot be
====  ==================================================================

At the prompt, that is all that is shown; ``--out=json`` and everybody else gets the data as well.

Master options
    ``kgraft.exceptions``: a YAML file, ``machine: {reason, by, until}``, all three required. What is known of a machine
    until that day, inclusive, is counted as *excepted* and makes no exit code.

    ``kgraft.evidence``: the directory of the files of evidence. Default: ``kgraft/evidence`` below the master's
    ``cachedir``

    ``kgraft.evidence_key``: a private key of SSH, without a passphrase or held by an agent, that signs them. Default:
    none, and they are not signed

    ``kgraft.evidence_signers``: who may have signed them, a file as ``ssh-keygen(1)`` has it under "ALLOWED SIGNERS".
    Default: none, and signatures are not checked
"""

import functools
import importlib.util
import inspect
import math
import os
import time

import salt.client
import salt.utils.minions
import salt.version

__virtualname__ = "kgraft"

# The version of the execution module that is asked: a test compares them.
VERSION = "0.2.0"
DAY = 24 * 3600
OVERVIEW = "kgraft.overview"


def _room(name, **others):
    """Execute the private sibling ``_kgraft_<name>.py``, which gets ``others`` first (docs/architecture.md, Rooms)."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"_kgraft_{name}.py")
    spec = importlib.util.spec_from_file_location(f"{__name__}_{name}", path)
    room = importlib.util.module_from_spec(spec)
    vars(room).update(others)
    spec.loader.exec_module(room)
    return room


fleets = _room("fleet")
reports = _room("report", fleets=fleets)
matrices = _room("matrix", fleets=fleets, reports=reports)
evidences = _room("evidence", fleets=fleets, reports=reports)


def _answered(function):
    """
    Tell whatever happens in an answer with an exit code: of a raised error salt-run makes 1, and of an argument that
    Salt itself finds wrong 0. In an orchestration the exit code is the result of the step.
    """

    @functools.wraps(function)
    def _call(*args, **kwargs):
        kwargs = {name: value for name, value in kwargs.items() if not name.startswith("__")}  # Salt's own
        try:
            inspect.signature(function).bind(*args, **kwargs)
        except TypeError as err:
            data = {"retcode": 5, "report": [f"kgraft.{function.__name__}: {err}"]}
        else:
            try:
                data = function(*args, **kwargs)
            except ValueError as err:
                data = {"retcode": 5, "report": [str(err)]}
        __context__["retcode"] = data["retcode"]
        if not _typed() or __opts__.get("output"):
            return data
        return {"report": "\n".join(data["report"]), "retcode": data["retcode"]}

    _call.__signature__ = inspect.signature(function)
    _call.__wrapped__ = lambda *args, **kwargs: None  # Salt looks here for what it takes: anything
    return _call


def _typed():
    """Whether it was called by salt-run on this machine, and not by an orchestration or through Salt's API."""
    return str(__opts__.get("fun")).startswith("kgraft.")


@_answered
def report(
    target="*",
    tgt_type="glob",
    source="live",
    expected=None,
    stuck_after=7200,
    max_metadata_age=DAY,
    support_days=30,
    max_age=7200,
    timeout=None,
    gather_job_timeout=None,
):
    """
    Tell where the fleet stands: how many machines are settled, and which are not, and why.

    target
        Whom to ask, as with ``salt``. Default: ``*``
    tgt_type
        What ``target`` is: ``glob``, ``list``, ``grain``, ``compound``, … Default: ``glob``
    source
        ``live`` asks the machines; ``mine`` takes what they last sent to the mine, where ``kgraft.overview`` is mined.
        Default: ``live``
    expected
        Machines that must be in the answer, from an inventory outside Salt: a list, names with commas, or ``@FILE``,
        one name a line (at the prompt only). Default: None
    stuck_after
        Seconds after which a transition is stuck. Default: 7200
    max_metadata_age
        Seconds after which the lists of a machine's repositories are too old to say what is the newest. Default: 86400
    support_days
        Days before the end of a kernel's support from which on it is told. Default: 30
    max_age
        Seconds after which an answer in the mine is none any more. Default: 7200
    timeout
        As in the master's configuration. Default: from there
    gather_job_timeout
        As in the master's configuration. Default: from there

    Each machine is of one *class*, the first of these that is true of it:

    ``no answer``
        it was asked, or is expected, and did not answer
    ``failed``, ``not synced``
        it could not look, or answered nonsense; it has no ``kgraft`` module, or another version of it
    ``unavailable``
        its kernel has no live patching
    ``stuck``, ``in transition``
        a patch is being applied or reverted, for longer than ``stuck_after``, or for less or an unknown time
    ``without packages``
        it has none to compare with: it is not SUSE's
    ``unpatched``
        nothing is installed and something is offered; installed, not loaded; newer offered; loaded, and the installed
        package is older, so that the next boot would lose it
    ``doubtful``
        settled, but what is the newest is not known: a repository could not be read, or its list is too old
    ``end of support past``, ``end of support near``
        settled; the second one is good
    ``settled``
        the newest patch is applied, and every task runs it

    Returns a dict: ``retcode`` and ``report``, see above; ``asked``, how many, None if nobody knows (below syndics);
    ``counts``, a dict from class to number; ``machines``, ``{id: {class, why, running, kernelrelease, boot_id,
    observed, supported_until, as_of}}``, the last six where it answered, and ``instead_of`` where it is excepted.

    CLI Example:

    .. code-block:: bash

        salt-run kgraft.report
        salt-run kgraft.report 'db*' expected=@/etc/inventory --out=json
        salt-run kgraft.report source=mine
    """
    if source not in ("live", "mine"):
        raise ValueError(f"source={source!r}: must be live or mine")
    given = {"stuck_after": stuck_after, "max_metadata_age": max_metadata_age, "support_days": support_days}
    limits = reports.Limits(**{name: _number(name, value) for name, value in given.items()})
    max_age = _number("max_age", max_age) if source == "mine" else None
    fleet = _ask(target, tgt_type, {OVERVIEW: ((), {})}, timeout, gather_job_timeout, expected, max_age)
    now = time.time()
    return reports.tell(_found(fleet, lambda _, told: reports.by_packages(told, limits, now), stuck_after), fleet.asked)


@_answered
def verify(
    target="*",
    tgt_type="glob",
    version=None,
    cves=None,
    not_affected=None,
    sls=None,
    allow_missing=0,
    expected=None,
    stuck_after=7200,
    timeout=None,
    gather_job_timeout=None,
):
    """
    Say whether every machine is applied and settled as wished; for cron, CI and roll-outs. Nothing is changed.

    target
        Whom to ask, as with ``salt``. Default: ``*``
    tgt_type
        What ``target`` is: ``glob``, ``list``, ``grain``, ``compound``, … Default: ``glob``
    version
        What must run, as in ``kgraft_pkg.check``. Default: ``latest``, if neither ``cves`` nor ``sls`` is given
    cves
        Instead: a list of CVE numbers that must be fixed, as in ``kgraft_pkg.check``. Default: None
    not_affected
        With ``cves``: kernels that never had these bugs, as in ``kgraft_pkg.check``. Default: None
    sls
        Instead: an SLS, such as ``kgraft``. Each machine runs it dry, with its own pillar, once the state runs that are
        under way have ended: nothing may be left to do. Default: None
    allow_missing
        How many machines may give no answer: a number, or a share such as ``1%``. Default: 0
    expected
        As in :py:func:`report`. Default: None
    stuck_after
        As in :py:func:`report`. Default: 7200
    timeout
        As in the master's configuration. Default: from there
    gather_job_timeout
        As in the master's configuration. Default: from there

    Returns what :py:func:`report` does. Here ``settled`` is who is as wished, ``unpatched`` who is not, with what is in
    the way, and ``doubtful`` where it is not known, such as for a list that is too old. A machine of which a transition
    runs is never as wished.

    CLI Example:

    .. code-block:: bash

        salt-run kgraft.verify 'db*' version='>=5'
        salt-run kgraft.verify cves='[CVE-2016-5195]' allow_missing=1%
        salt-run kgraft.verify 'G@role:db' compound sls=kgraft
    """
    if [version, cves, sls].count(None) < 2:
        raise ValueError("Give one of version, cves and sls.")
    if isinstance(version, float):
        raise ValueError(f"version={version!r}: a number, which may have lost a 0; quote it, as \"'5-2.1'\"")
    if not_affected is not None and cves is None:
        raise ValueError("not_affected needs cves.")
    check = {"version": version, "cves": cves, "not_affected": not_affected}
    calls, judge = _wish(sls, {name: value for name, value in check.items() if value is not None})
    _number("stuck_after", stuck_after)
    fleets.share("allow_missing", allow_missing, 0)
    fleet = _ask(target, tgt_type, calls, timeout, gather_job_timeout, expected)
    found = _found(fleet, judge, stuck_after)
    return reports.tell(found, fleet.asked, fleets.share("allow_missing", allow_missing, len(found)))


@_answered
def cves(
    *cves,
    target="*",
    tgt_type="glob",
    not_affected=None,
    csv=None,
    expected=None,
    timeout=None,
    gather_job_timeout=None,
):
    """
    Say of each CVE and each machine whether the kernel that runs there has the fix.

    cves
        One or more CVE numbers, such as ``CVE-2016-5195``; or several with commas
    target
        Whom to ask, as with ``salt``. Default: ``*``
    tgt_type
        What ``target`` is: ``glob``, ``list``, ``grain``, ``compound``, … Default: ``glob``
    not_affected
        A list of kernel releases (as ``uname -r`` says them, ``*`` allowed) that never had these bugs, by your word.
        Default: None
    csv
        A file to write as well (at the prompt only), with the columns machine, cve, state, detail. Text that a
        spreadsheet would take for a formula gets an apostrophe in front. Default: None
    expected
        As in :py:func:`report`. Default: None
    timeout
        As in the master's configuration. Default: from there
    gather_job_timeout
        As in the master's configuration. Default: from there

    Each machine is of one state for each CVE, by its answer to ``kgraft_security.cves``, with the detail in brackets:

    ``fixed by a live patch`` (which), ``fixed by the kernel`` (which)
        it runs, and every task does
    ``not affected`` (by ``not_affected``)
        that kernel is not fixed otherwise
    ``settling`` (the patch), ``installed, not loaded`` (the package)
        not yet
    ``open`` (what brings it)
        a live patch that fixes it is in a repository
    ``elsewhere`` (the update)
        only an update of something else fixes it: live patching does not help
    ``nobody names it``
        this kernel may have never had it, or no fix is out; that is no good answer
    ``unread`` (what)
        nobody who could be read names it
    ``no answer``, ``excepted``
        as in :py:func:`report`

    Returns a dict: ``retcode`` and ``report``, see above, 0 where all are fixed, not affected or excepted; ``asked``,
    as in :py:func:`report`; ``counts``, ``{CVE: {state: number}}``; ``cves``, ``{CVE: {id: {class, why}}}``, and
    ``instead_of`` where a machine is excepted.

    CLI Example:

    .. code-block:: bash

        salt-run kgraft.cves CVE-2016-5195 CVE-2017-1000364
        salt-run kgraft.cves CVE-2016-5195 target='db*' not_affected='[4.4.180-*]' csv=/root/fixes.csv
    """
    wanted = matrices.numbers(cves)
    never = _list("not_affected", not_affected)
    if csv is not None and (not isinstance(csv, str) or not _typed()):
        raise ValueError(f"csv={csv!r}: must be the path of a file, and is written at the prompt only")
    calls = {"kgraft_security.cves": (wanted, {}), "kgraft.status": ((), {})}
    fleet = _ask(target, tgt_type, calls, timeout, gather_job_timeout, expected)
    found = matrices.matrix(fleet, wanted, never, *_exceptions(time.time()))
    told = matrices.tell(found, fleet.asked)
    if csv:
        try:
            with open(csv, "w", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o640)) as file:
                file.write(matrices.table(found))
        except OSError as err:
            raise ValueError(f"csv: cannot write {csv}: {err}") from err
        told["report"].insert(-1, f"Written: {csv}")
    return told


@_answered
def evidence(
    target="*",
    tgt_type="glob",
    cves=None,
    not_affected=None,
    names=False,
    expected=None,
    timeout=None,
    gather_job_timeout=None,
):
    """
    Write down for an auditor where the fleet stands: one more file of evidence, which holds the SHA-256 of the one
    before it.

    target
        Whom to ask, as with ``salt``. Default: ``*``
    tgt_type
        What ``target`` is: ``glob``, ``list``, ``grain``, ``compound``, … Default: ``glob``
    cves
        A list of CVE numbers to ask for as well, as in :py:func:`cves`. Default: None
    not_affected
        As in :py:func:`cves`. Default: None
    names
        Also write down the names and users of processes that block a transition. Default: False
    expected
        As in :py:func:`report`. Default: None
    timeout
        As in the master's configuration. Default: from there
    gather_job_timeout
        As in the master's configuration. Default: from there

    The file ``kgraft-evidence-NNNNNN.json``, mode 0640, is one line of JSON in UTF-8 with sorted keys:

    ``format``, ``number``, ``previous``
        1; the file's number; ``{file, sha256}`` of the one before it, null for the first
    ``asked``
        ``{at, by, on, target, tgt_type, expected, cves, not_affected, version, salt}``: when, by which user, on which
        master, whom and for what, by which version of this runner and of Salt
    ``machines``
        ``{id: {…}}`` of those that answered: ``class`` and ``why``, as :py:func:`report` says with its defaults, and
        ``instead_of`` for one that is excepted; what ``kgraft.overview`` says of it, but the names of tasks;
        ``identity``, some of its grains; ``patches``, ``{module: {state, version, released, installed, settled,
        settled_by, days}}``, the days from the release to the end of the transition; ``fixes``, as
        ``kgraft_security.fixes`` says; ``cves``, as :py:func:`cves` says; ``probes``, as ``kgraft_probe.last`` says;
        ``unread``, what could not be asked
    ``no_answer``
        ``{id: why}`` of all others that were asked or expected
    ``exceptions``
        ``{id: {reason, by, until}}`` of any of these machines, ended or not

    Times are UTC, such as ``2026-11-23T02:10:00Z``; what is not known is null.

    Returns a dict: ``retcode``, as of :py:func:`report` and :py:func:`cves` together, and ``report``; ``asked``,
    ``counts``, as in :py:func:`report`; ``file``, ``sha256``, ``signed``. If the file cannot be written, or not be
    signed though there is a key, there is none, and ``retcode`` is 5.

    CLI Example:

    .. code-block:: bash

        salt-run kgraft.evidence cves='[CVE-2016-5195]' expected=@/etc/inventory/linux
    """
    wanted = matrices.numbers(_list("cves", cves)) if cves else []
    never = _list("not_affected", not_affected)
    if not isinstance(names, bool):
        raise ValueError(f"names={names!r}: must be True or False")
    functions = (
        "kgraft.patches",
        "kgraft.status",
        "kgraft_probe.last",
        "kgraft_security.dates",
        "kgraft_security.fixes",
    )
    calls = {
        OVERVIEW: ((), {"names": names}),
        "grains.item": (evidences.GRAINS, {}),
        **dict.fromkeys(functions, ((), {})),
    }
    calls.update({"kgraft_security.cves": (wanted, {})} if wanted else {})
    now = time.time()
    asked = {"at": fleets.stamp(now), "by": globals().get("__user__"), "on": __opts__["id"], "target": target}
    asked.update(tgt_type=tgt_type, expected=expected, cves=wanted, not_affected=never)
    asked.update(version=VERSION, salt=salt.version.__version__)
    fleet = _ask(target, tgt_type, calls, timeout, gather_job_timeout, expected)
    exceptions, limits = _exceptions(now), reports.Limits(7200, DAY, 30)
    found = _found(fleet, lambda _, told: reports.by_packages(told, limits, now))
    matrix = matrices.matrix(fleet, wanted, never, *exceptions)
    told = reports.tell(found, fleet.asked)
    of_cves = matrices.tell(matrix, fleet.asked) if wanted else told
    code, words = reports.verdict({told["retcode"], of_cves["retcode"]}, fleet.asked)
    kept = {
        "asked": evidences.plain(asked),
        "machines": evidences.records(fleet.answers, found, matrix, {}),
        "no_answer": fleet.silent,
        "exceptions": {machine: entry for machine, entry in exceptions[0].items() if machine in found},
    }
    key = __opts__.get("kgraft.evidence_key")
    try:
        path, digest = evidences.save(_evidence(), kept, key)
    except OSError as err:
        raise ValueError(f"The evidence could not be written: {err}") from err
    lines = told["report"][:-1] + (of_cves["report"][:-2] if wanted else [])
    lines += [f"Written{' and signed' if key else ''}: {path}", f"SHA-256: {digest}", words]
    about = {"file": path, "sha256": digest, "signed": bool(key)}
    return {"retcode": code, "report": lines, "asked": told["asked"], "counts": told["counts"], **about}


def _evidence():
    return __opts__.get("kgraft.evidence") or os.path.join(__opts__["cachedir"], "kgraft", "evidence")


@_answered
def evidence_chain():
    """
    Check the files of evidence: that none is missing between others, that each holds the SHA-256 of the one before it,
    and, with the option ``kgraft.evidence_signers``, that each signature is good and the newest file has one. It stands
    for all files before it, of which older ones may have none.

    Nobody can tell here whether the *newest* files were taken away: compare the number and the SHA-256 that are told
    with what the auditor noted last.

    Returns a dict: ``retcode``, 0 if all is well, 2 if not, 5 if there is none; ``report``; ``files``, how many;
    ``newest``, ``{file, sha256}``; ``broken``, ``{file, why}`` of the first that is not as it was written, else None.

    CLI Example:

    .. code-block:: bash

        salt-run kgraft.evidence_chain
    """
    signers = __opts__.get("kgraft.evidence_signers")
    try:
        found = evidences.files(_evidence())
        paths = list(found.values())
        newest = {"file": os.path.basename(paths[-1]), "sha256": evidences.sha256(paths[-1])}
    except (OSError, IndexError) as err:
        raise ValueError(f"{_evidence()}: no file of evidence can be read there: {err}") from err
    broken = evidences.broken(found, signers)
    lines = [f"{len(found)} files in {_evidence()}", f"newest: {newest['file']}, SHA-256 {newest['sha256']}"]
    if min(found) > 1:
        lines += [f"They begin with number {min(found)}: what came before it is not here."]
    if not signers:
        lines += ["Signatures are not checked: kgraft.evidence_signers is not set."]
    lines += ["Broken: {}: {}".format(*broken) if broken else "Good: each file is as it was written."]
    told = {"files": len(found), "newest": newest, "broken": broken and dict(zip(("file", "why"), broken))}
    return {"retcode": 2 if broken else 0, "report": lines, **told}


def _wish(sls, check=None):
    """The functions that tell whether a machine is as wished, and what judges the answer."""
    if sls is None:
        name, call, by = "kgraft_pkg.check", ((), check), reports.by_check
    elif isinstance(sls, str):
        # a number, since with True a queued run answers late and as another job
        name, call, by = "state.apply", ((sls,), {"test": True, "queue": 10}), reports.by_states
    else:
        raise ValueError(f"sls={sls!r}: must be the name of an SLS")
    return {name: call, OVERVIEW: ((), {})}, lambda answer, told: by(told, answer.get(name))


def _ask(target, tgt_type, calls, timeout, gather_job_timeout, expected=None, max_age=None):
    """Ask the machines; with ``max_age`` the mine."""
    target = str(target) if type(target) is int else target
    if (
        not isinstance(tgt_type, str)
        or not isinstance(target, (list if tgt_type == "list" else str, str))
        or not target
    ):
        raise ValueError(f"target={target!r} tgt_type={tgt_type!r}: must be a target as salt takes it")
    given = (("timeout", timeout), ("gather_job_timeout", gather_job_timeout))
    limits = [_number(name, __opts__[name] if value is None else value, 1) for name, value in given]
    target = _names("target", target) if tgt_type == "list" else target
    expected = _names("expected", expected) + (target if tgt_type == "list" else [])
    if max_age is not None:
        mine = __salt__["mine.get"](target, OVERVIEW, tgt_type)
        fleet = fleets.remember(mine, _accepted(target, tgt_type), OVERVIEW, max_age, time.time())
    else:
        with salt.client.get_local_client(__opts__["conf_file"]) as client:
            fleet = fleets.ask(client, target, tgt_type, calls, *limits, _accepted)
    return fleets.expect(fleet, expected)


def _accepted(target="*", tgt_type="glob"):
    return salt.utils.minions.CkMinions(__opts__).check_minions(target, tgt_type)["minions"]


def _found(fleet, judge, stuck_after=7200):
    now = time.time()
    return reports.machines(fleet, judge, VERSION, stuck_after, now, *_exceptions(now))


def _exceptions(now):
    path = __opts__.get("kgraft.exceptions")
    return fleets.exceptions(path, now) if path else ({}, ())


# Arguments


def _number(argument, value, least=0):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < math.inf:
        raise ValueError(f"{argument}={value!r}: must be a number of at least {least}")
    return value


def _names(argument, value):
    """Names of machines: a list, a string with commas, or ``@FILE``, one a line, # for a comment."""
    if isinstance(value, str) and value.startswith("@"):
        if not _typed():
            raise ValueError(f"{argument}={value!r}: a file is read at the prompt only")
        try:
            with open(value[1:], encoding="utf-8") as file:
                value = [line for line in file if not line.startswith("#")]
        except (OSError, UnicodeDecodeError) as err:
            raise ValueError(f"{argument}: cannot read {value[1:]}: {err}") from err
    return _list(argument, value)


def _list(argument, value):
    value = value.split(",") if isinstance(value, str) else value or []
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{argument}={value!r}: must be a list of names")
    return [name.strip() for name in value if name.strip()]
