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

    ``kgraft.page``: where :py:func:`page` writes.
"""

import fnmatch
import functools
import importlib.util
import inspect
import logging
import math
import os
import time

import salt.client
import salt.utils.minions
import salt.version
from salt.exceptions import SaltException

log = logging.getLogger(__name__)

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
plans = _room("waves", fleets=fleets)
matrices = _room("matrix", fleets=fleets, reports=reports)
evidences = _room("evidence", fleets=fleets, reports=reports)
histories = _room("history", fleets=fleets)
pages = _room("page", fleets=fleets, histories=histories)


def _answered(function):
    """
    Tell whatever happens in an answer with an exit code: of a raised error salt-run makes 1, and of a TypeError, which
    is an argument that Salt itself finds wrong, 0. In an orchestration the exit code is the result of the step.
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
            except (TypeError, ValueError, OSError, SaltException) as err:
                log.debug("kgraft.%s", function.__name__, exc_info=True)
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
    limits = stuck_after, max_metadata_age, support_days
    return _report(target, tgt_type, source, expected, limits, max_age, timeout, gather_job_timeout)[0]


def _report(target, tgt_type, source, expected, limits, max_age, timeout, gather_job_timeout, named=None):
    """The report, and what each machine answered."""
    if source not in ("live", "mine"):
        raise ValueError(f"source={source!r}: must be live or mine")
    limits = reports.Limits(*map(_number, reports.Limits._fields, limits))
    max_age = _number("max_age", max_age) if source == "mine" else None
    fleet = _ask(target, tgt_type, {OVERVIEW: ((), named or {})}, timeout, gather_job_timeout, expected, max_age)
    now = time.time()
    found = _found(fleet, lambda _, told: reports.by_packages(told, limits, now), limits.stuck_after)
    return reports.tell(found, fleet.asked), fleet.answers


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
        salt-run kgraft.cves CVE-2016-5195 target='db*' not_affected='[4.4.180-*]' csv=fixes.csv
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
        ``{at, by, on, target, tgt_type, expected, cves, not_affected, version, salt, complete}``: when, by which user,
        on which master, whom and for what, by which version of this runner and of Salt; False where there may be more
        machines than the file has, since below syndics nobody knows who was asked
    ``history``
        why the beacon's history, as :py:func:`history` reads it, was not; null where it was
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
    calls = {OVERVIEW: ((), {"names": names}), **evidences.CALLS}
    calls.update({"kgraft_security.cves": (wanted, {})} if wanted else {})
    now = time.time()
    asked = {"at": fleets.stamp(now), "by": globals().get("__user__"), "on": __opts__["id"], "target": target}
    asked.update(tgt_type=tgt_type, expected=expected, cves=wanted, not_affected=never)
    asked.update(version=VERSION, salt=salt.version.__version__)
    fleet = _ask(target, tgt_type, calls, timeout, gather_job_timeout, expected)
    asked["complete"] = fleet.asked is not None
    exceptions, limits = _exceptions(now), reports.Limits(7200, DAY, 30)
    found = _found(fleet, lambda _, told: reports.by_packages(told, limits, now))
    matrix = matrices.matrix(fleet, wanted, never, *exceptions)
    told = reports.tell(found, fleet.asked)
    of_cves = matrices.tell(matrix, fleet.asked) if wanted else told
    code, words = reports.verdict({told["retcode"], of_cves["retcode"]}, fleet.asked)
    try:
        transitions, unkept = _history(math.inf)[0], None
    except ValueError as err:
        transitions, unkept = [], str(err)
    kept = {
        "asked": evidences.plain(asked),
        "history": unkept,
        "machines": evidences.records(fleet.answers, found, matrix, transitions, names),
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


@_answered
def history(machines="*", days=30):
    """
    Tell the transitions of live patches that the beacon ``kgraft`` told of: when each began, how long it took, whether
    it stuck, and how it ended. The master must keep its events; no machine is asked.

    machines
        Whose: a glob of their names. Default: ``*``
    days
        How far to look back. Default: 30

    It reads the file of ``event_return: rawfile_json``, and what logrotate made of it. Lines of one event are folded.
    Lines whose sender Salt has proved to be another machine than their tag names are refused. A beacon's event proves
    no sender, so who is root on one machine can still have lines here in the name of another.

    Returns a dict: ``retcode`` and ``report``, see above; ``transitions``, a list of ``{machine, transition, patch,
    direction, boot_id, kernelrelease, started, seconds, times, stuck, why, ended, last}``, the oldest first, and
    ``lines``, how many were ``read``, ``repeated``, ``refused`` and ``torn``. ``times`` is how often it was told that
    it is stuck, ``stuck`` the seconds that it then had run, ``why`` what blocked; ``ended`` is ``finished``,
    ``reboot`` (cut off by one), ``unseen`` (another transition came), or None: it may still run.

    CLI Example:

    .. code-block:: bash

        salt-run kgraft.history
        salt-run kgraft.history 'db*' days=7 --out=json
    """
    transitions, lines = _history(_number("days", days))
    transitions = [one for one in transitions if fnmatch.fnmatch(one.machine, str(machines))]
    told = [f"{fleets.stamp(one.started)} {histories.line(one)}" for one in transitions[-50:]]
    told += [f"The newest 50 of {len(transitions)}; --out=json has all."] if len(transitions) > 50 else []
    stuck = sum(one.stuck is not None for one in transitions)
    told += [f"{len(transitions)} transitions in {days} days, {stuck} of them stuck. {histories.counted(lines)}"]
    data = [dict(one._asdict(), started=fleets.stamp(one.started), last=fleets.stamp(one.last)) for one in transitions]
    return {"retcode": 0, "report": told, "transitions": data, "lines": lines}


def _history(days):
    kept = __opts__.get("event_return")
    if "rawfile_json" not in ([kept] if isinstance(kept, str) else kept or []):
        raise ValueError("No history is kept: event_return of this master has no rawfile_json.")
    path = __opts__.get("rawfile_json.filename", "/var/log/salt/events")
    return histories.read(histories.files(path), time.time() - days * DAY)


@_answered
def page(
    target="*",
    tgt_type="glob",
    source="live",
    path=None,
    names=False,
    days=7,
    expected=None,
    stuck_after=7200,
    max_metadata_age=DAY,
    support_days=30,
    max_age=7200,
    timeout=None,
    gather_job_timeout=None,
):
    """
    Write the report and the history of the last days as one HTML file that needs nothing else, for a browser.

    target
        As in :py:func:`report`. Default: ``*``
    tgt_type
        As in :py:func:`report`. Default: ``glob``
    source
        As in :py:func:`report`. Default: ``live``
    path
        Where to write it; at the prompt only. Default: the master option ``kgraft.page``, or else
        ``kgraft/fleet.html`` in the master's cache directory
    names
        Also name the processes that block, and their users; from the mine only if it has them. Default: False
    days
        How many days of transitions are drawn. Default: 7
    expected
        As in :py:func:`report`. Default: None
    stuck_after
        As in :py:func:`report`. Default: 7200
    max_metadata_age
        As in :py:func:`report`. Default: 86400
    support_days
        As in :py:func:`report`. Default: 30
    max_age
        As in :py:func:`report`. Default: 7200
    timeout
        As in the master's configuration. Default: from there
    gather_job_timeout
        As in the master's configuration. Default: from there

    A list of machines that are not patched is a map for an attacker: the file can be read by its owner and its group
    (0640). It is written whole or not at all.

    Returns a dict: ``retcode``, 0 if it was written, whatever it shows, and else 5; ``report``; ``path``; ``verdict``,
    the exit code that :py:func:`report` has for the same machines.

    CLI Example:

    .. code-block:: bash

        salt-run kgraft.page
        salt-run kgraft.page 'db*' path=/srv/kgraft/db.html names=True
    """
    if path is not None and not (_typed() and os.path.isabs(str(path))):
        raise ValueError(f"path={path!r}: must be absolute, and is taken at the prompt only")
    if not isinstance(names, bool):
        raise ValueError(f"names={names!r}: must be True or False")
    days = _number("days", days, 1)
    limits, named = (stuck_after, max_metadata_age, support_days), {"names": True} if names else {}
    told, answers = _report(target, tgt_type, source, expected, limits, max_age, timeout, gather_job_timeout, named)
    for machine, about in told["machines"].items():
        if {"stuck", "in transition"} & {about["class"], about.get("instead_of")}:
            about.update(pages.moving(answers[machine][OVERVIEW], names))
    try:
        transitions, unkept = _history(days)[0], ""
    except ValueError as err:
        transitions, unkept = None, str(err)
    asked = "asked live" if source == "live" else "from the mine"
    default = os.path.join(__opts__["cachedir"], "kgraft", "fleet.html")
    path = path or __opts__.get("kgraft.page") or default
    try:
        if path == default:
            os.makedirs(os.path.dirname(path), 0o750, exist_ok=True)
        fleets.write(path, pages.html(told, asked, transitions, days, time.time(), unkept))
    except OSError as err:
        raise ValueError(f"cannot write {path}: {err}") from err
    return {"retcode": 0, "report": [path, told["report"][-1]], "path": path, "verdict": told["retcode"]}


@_answered
def plan(
    target,
    tgt_type="glob",
    name=None,
    canaries=None,
    sls="kgraft",
    waves=("1%", "10%", "50%", "100%"),
    max_wave=100,
    separate_by=None,
    soak=3600,
    wave_timeout=900,
    max_failed=0,
    max_stuck="2%",
    max_missing="1%",
    not_after=None,
    timeout=None,
    gather_job_timeout=None,
):
    """
    Write down who is patched when; ``examples/orchestrate/rollout.sls`` carries it out. The machines are asked, and run
    ``sls`` dry. Those that do not answer or cannot be patched as they are, are named and left out, and at the end the
    roll-out is no success.

    target
        The machines of the roll-out, as with ``salt``
    tgt_type
        What ``target`` is: ``glob``, ``list``, ``grain``, ``compound``, … Default: ``glob``
    name
        What the plan is called, such as ``2026-12``. Required
    canaries
        The machines that come first, by name: a list, or a string with commas. All must be done before others begin.
        Required
    sls
        The SLS that patches a machine. Default: ``kgraft``
    waves
        How far the waves after the canaries reach: numbers, or shares of these machines.
        Default: ``[1%, 10%, 50%, 100%]``
    max_wave
        How many machines a wave has at most. Default: 100
    separate_by
        A grain, such as that of the cluster: no two machines with the same value are in one wave. Default: None
    soak
        Seconds after each wave for it to show trouble. Default: 3600
    wave_timeout
        Seconds that a wave may take: more than the ``timeout`` of the states, with the time for packages. Default: 900
    max_failed
        How many machines may fail before no further wave begins: a number, or a share of the plan. Default: 0
    max_stuck
        How many may be stuck, which are looked at again at the end. Default: ``2%``
    max_missing
        How many may be lost in their waves. Default: ``1%``
    not_after
        A time of day by the master's clock, as ``'04:30'``: no wave begins that may last longer. Default: None
    timeout
        As in the master's configuration, for all looks at these machines. Default: from there
    gather_job_timeout
        As in the master's configuration, for all looks at these machines. Default: from there

    Returns a dict: ``retcode``, 0, or 3 if some machines are left out; ``report``; ``plan``, what was written;
    ``waves``, a list of ``{number, machines, allowed}`` of those waves that have machines which are not done, and how
    many of these may fail.

    CLI Example:

    .. code-block:: bash

        salt-run kgraft.plan 'G@role:db' compound name=2026-12 canaries=db1,db2 separate_by=cluster not_after="'04:30'"
    """
    given = dict(locals())
    file = plans.path(__opts__["cachedir"], name)
    if os.path.exists(file):
        raise ValueError(f"There is a plan of this name, {file}: go on with it, or take another name.")
    canaries = _names("canaries", canaries)
    if not canaries or not isinstance(waves, (list, tuple)):
        raise ValueError("Give canaries, the names of the machines that come first; and waves must be a list.")
    options = {option: given[option] for option in plans.OPTIONS}
    saved = dict(options, since=None, waves=[canaries], left_out=[], begun={})
    plans.check(saved)
    return _begin(file, saved, waves)


@_answered
def wave(name, number):
    """
    Begin a wave of a plan, if that may be: a step of ``examples/orchestrate/rollout.sls``, which begins with the number
    0: machines that match the target by now come into further waves.

    A wave may begin if of the machines of the waves before it no more have failed, are stuck or missing than the plan
    allows, if all canaries are done, and if it can end by ``not_after``. A machine that was restarted since its wave
    began has failed; a restart before the run does not count.

    name
        What the plan is called
    number
        The wave's number; 1 are the canaries

    Returns what :py:func:`rollout` does, of the machines up to this wave; with the number 0 what :py:func:`plan` does.

    CLI Example:

    .. code-block:: bash

        salt-run kgraft.wave 2026-12 1
    """
    if type(number) is int and number == 0:
        file = plans.path(__opts__["cachedir"], name)
        return _begin(file, plans.load(file), ["100%"])
    file, saved, found = _look(name, number)
    before = {machine: found[machine] for machine in sum(saved["waves"][: number - 1], [])}
    why, told = plans.beyond(saved, before) or plans.late(saved, time.time()), _progress(found)
    if why is None:
        for machine in set(saved["waves"][number - 1]) - set(saved["left_out"]):
            if found[machine]["class"] not in ("gone", "excepted"):
                saved["begun"][machine] = found[machine].get("boot_id")
        plans.save(file, saved)
    words = f"Wave {number} begins." if why is None else f"Wave {number} does not begin: {why}."
    return dict(told, retcode=why and (told["retcode"] or 2) or 0, report=[*told["report"][:-1], words])


@_answered
def rollout(name, number=None):
    """
    Say how far a roll-out is, by name, and whether all machines of the plan are patched. Nothing is changed.

    name
        What the plan is called
    number
        Only the wave of this number, and whether no more of it have failed or are missing than the plan allows. A
        machine in transition has the time of the soak. Default: None, all of the plan

    Returns what :py:func:`verify` does, with these classes: ``done`` (in an orchestration and through Salt's API their
    ``machines`` are not in the data); ``failed``; ``stuck``; ``missing``, which gave no answer any more after their
    wave began; ``untouched``, whose wave has not begun; ``left out``, which did not answer when the roll-out began;
    ``gone``, of which this master has no key any more, and which is no failure; ``excepted``.

    CLI Example:

    .. code-block:: bash

        salt-run kgraft.rollout 2026-12
    """
    _, saved, found = _look(name, number, number)
    told = _progress(found)
    if number is None:
        if told["retcode"]:
            told["report"].append("To go on: " + plans.command(name, __salt__["fileserver.file_list"]()))
        return told
    why = plans.beyond(saved, found, ("failed", "missing"))
    words = f"Wave {number}: " + (why or "no more have failed or are missing than the plan allows") + "."
    return dict(told, retcode=why and (told["retcode"] or 2) or 0, report=[*told["report"][:-1], words])


def _begin(file, saved, sizes):
    """Begin a run of a plan: who can be patched, and when, by a look at all machines."""
    calls, judge = _wish(saved["sls"])
    calls.update({"grains.item": ((saved["separate_by"],), {})} if saved["separate_by"] else {})
    fleet = _ask(saved["target"], saved["tgt_type"], calls, saved["timeout"], saved["gather_job_timeout"])
    if fleet.asked is None:
        raise ValueError("Below syndics it is not known who was asked: give target as a list of names, tgt_type=list.")
    found = _found(fleet, judge)
    plans.extend(saved, found, fleet.answers, sizes)
    # restarts before it are no matter
    saved.update(since=time.time(), begun=dict.fromkeys(saved["begun"]))
    plans.save(file, saved)
    return plans.told(saved, found, __salt__["fileserver.file_list"]())


def _progress(found):
    """What is said of a roll-out. An orchestration prints all data, so there who is done is only counted."""
    lines, counts = reports.table(found, plans.CLASSES)
    code, words = reports.verdict({plans.CLASSES[name] for name in counts}, found)
    told = {"retcode": code, "report": [*lines, f"{len(found):>4} asked", words], "asked": len(found), "counts": counts}
    return {**told, "machines": {name: about for name, about in found.items() if about["class"] != "done" or _typed()}}


def _look(name, last, first=1):
    """A plan's file, the plan, and how far each machine of these waves is; without a number all of the plan."""
    file = plans.path(__opts__["cachedir"], name)
    saved = plans.load(file)
    if last is None:
        ids = sum(saved["waves"], saved["left_out"])
    elif type(last) is int and 1 <= last <= len(saved["waves"]):
        ids = sum(saved["waves"][first - 1 : last], [])
    else:
        raise ValueError(f"number={last!r}: must be that of a wave, 1 to {len(saved['waves'])}")
    calls, judge = _wish(saved["sls"])
    fleet = _ask(ids, "list", calls, saved["timeout"], saved["gather_job_timeout"])
    return file, saved, plans.progress(saved, _found(fleet, judge))


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
