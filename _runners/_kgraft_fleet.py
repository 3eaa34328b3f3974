"""
The fleet: whom was asked, what each machine answered, and who did not.
"""

import collections
import contextlib
import datetime
import os
import re
import sys
import tempfile
import time

import salt.utils.files
import salt.utils.yaml
from salt.exceptions import SaltException

# asked: who must be in the answer, None where nobody here knows all of them (syndics)
# answers: {id: {function: what it returned}}; silent: {id: why there is no answer}
Fleet = collections.namedtuple("Fleet", "asked answers silent")

NOBODY = "Nobody could be asked: the target matches no machine that this master knows."
MOMENT = r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})Z"
AHEAD = 300  # seconds by which a machine's clock may be ahead of ours
UNKNOWN = "this master has no key of it"


def ask(client, target, tgt_type, calls, timeout, gather_job_timeout, accepted):
    """
    Ask the machines, all functions in one job. ``calls`` is ``{function: (arguments, keywords)}``; ``accepted`` returns
    the machines whose keys are accepted.

    Whom the job was published to is whom was asked. Of several answers of a machine the first one counts.
    """
    functions, found = list(calls), {}
    arguments = [[*given, dict(named, __kwarg__=True)] if named else list(given) for given, named in calls.values()]
    if len(calls) == 1:
        functions, arguments = functions[0], arguments[0]
    try:
        # Salt prints to stdout what goes wrong, and an answer is data
        with contextlib.redirect_stdout(sys.stderr):
            job = client.run_job(target, functions, arguments, tgt_type, listen=True)
            if not job:
                raise ValueError(NOBODY)
            limits = {"timeout": timeout, "gather_job_timeout": gather_job_timeout}
            for row in client.get_iter_returns(
                job["jid"], set(job["minions"]), tgt=target, tgt_type=tgt_type, **limits
            ):
                for machine, told in row.items():
                    if isinstance(told, dict) and "ret" in told:
                        found.setdefault(machine, {functions: told["ret"]} if len(calls) == 1 else told["ret"])
    except SaltException as err:
        raise ValueError(f"Nobody could be asked: {err}") from err
    asked, knows_all = set(job["minions"]), not client.opts["order_masters"]
    late = set(found) - asked
    if late and knows_all:  # this master did not know yet that the target matches them
        late &= set(accepted())
    asked |= late
    answers = {machine: told for machine, told in found.items() if machine in asked}
    silent = dict.fromkeys(asked - set(answers), f"nothing in {timeout} s")
    return Fleet(asked if knows_all else None, answers, silent)


def remember(mine, accepted, function, max_age, now):
    """Ask the mine about the machines whose keys are accepted; what is too old is no answer, nor is a time to come."""
    if not accepted:
        raise ValueError(NOBODY)
    answers, silent = {}, {}
    for machine in accepted:
        told = mine.get(machine)
        age = now - ((moment(told.get("observed")) if isinstance(told, dict) else None) or 0)
        if -AHEAD <= age <= max_age:
            answers[machine] = {function: told}
        elif machine not in mine:
            silent[machine] = "nothing in the mine"
        else:
            why = "too old" if age > 0 else "of a time to come: its clock is wrong"
            silent[machine] = f"its answer in the mine is {why}"
    return Fleet(set(accepted), answers, silent)


def expect(fleet, expected):
    """The fleet with machines that must be in it."""
    known = (fleet.asked or set()) | set(fleet.answers) | set(fleet.silent)
    missing = dict.fromkeys(set(expected) - known, UNKNOWN)
    return Fleet(known | set(missing), fleet.answers, dict(missing, **fleet.silent)) if expected else fleet


def exceptions(path, now):
    """``{id: {reason, by, until}}`` of the master's file, ``until`` as text, and those of them that have ended."""
    try:
        with salt.utils.files.fopen(path, encoding="utf-8") as file:
            told = salt.utils.yaml.safe_load(file) or {}
        for machine in sorted(told):
            entry = told[machine] = {key: str(told[machine][key]) for key in ("reason", "by", "until")}
            if moment(entry["until"] + "T00:00:00Z") is None or "" in entry.values():
                raise ValueError(f"{machine} is excepted until {entry['until']!r}")
    except (OSError, ValueError, TypeError, KeyError, salt.utils.yaml.YAMLError) as err:
        why = f"{path}: {line(err)}; it must be machine: {{reason, by, until: 2026-12-31}}"
        raise ValueError(f"kgraft.exceptions: {why}") from err
    today = str(datetime.date.fromtimestamp(now))
    return told, {machine for machine, entry in told.items() if entry["until"] < today}


def share(argument, value, total):
    """A number of machines, given as such or as a share of all, rounded down."""
    match = re.fullmatch(r"(\d{1,9})(%?)", str(value))
    if not match:
        raise ValueError(f"{argument}={value!r}: must be a number of machines, or a share such as 1%")
    count = int(match.group(1))
    return count * total // 100 if match.group(2) else count


def line(value, most=160):
    """A value as one line that can be printed, and is not too long."""
    text = str(value)[: 10 * most]
    if not text.isprintable():
        text = "".join(sign if sign.isprintable() else " " for sign in text)
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def moment(text):
    """A time as machines write it, ``2026-11-23T02:10:00Z``, in seconds; None if it is none."""
    match = re.fullmatch(MOMENT, text) if isinstance(text, str) else None
    try:
        # strptime takes ten times as long, and a report of 3,000 machines has 6,000 times
        return match and datetime.datetime(*map(int, match.groups()), tzinfo=datetime.timezone.utc).timestamp()
    except ValueError:
        return None


def stamp(seconds):
    """The other way round."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def names(machines, most=10):
    """As "db1 db2 (+17)"."""
    more = len(machines) - most
    return " ".join(sorted(machines)[:most]) + (f" … (+{more})" if more > 0 else "")


def write(path, text):
    """Put a text there whole or not at all, for its owner and group: who is not patched is nobody else's business."""
    handle, new = tempfile.mkstemp(prefix=".kgraft.", dir=os.path.dirname(path))
    try:
        with open(handle, "w", encoding="utf-8") as file:
            os.fchmod(handle, 0o640)
            file.write(text)
        os.replace(new, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
