"""
What the beacon told, which Salt itself keeps in a file of lines (``event_return: rawfile_json``), as transitions.

A line is a claim. Salt checks who sent an event, except for a *flat* one: a minion writes the ``id`` in that itself, so
one that was broken into can put lines of another machine here. Refused is what the tag alone forges.
"""

import collections
import glob
import gzip
import json
import re
import typing

if typing.TYPE_CHECKING:  # handed in
    from . import _kgraft_fleet as fleets

TAG = re.compile(r"salt/beacon/([^/]+)/[^/]+/(started|finished|stuck)\Z")
TEXTS = ("transition", "patch", "direction", "boot_id", "kernelrelease")
# how it ended: finished, as the beacon said; or only seen to be over, since the machine was restarted (reboot) or
# another transition came (unseen); None where it may still run
Transition = collections.namedtuple(
    "Transition", "machine transition patch direction boot_id kernelrelease started seconds stuck ended last"
)


def files(path):
    """The file, and what was made of it when it grew: ``.1``, ``.2.gz``, ``-20261123``."""
    return [path] + [one for one in glob.glob(glob.escape(path) + "[.-]*") if re.search(r"[.-]\d+(\.gz)?$", one)]


def read(paths, since):
    """
    Return the transitions that ended or were heard of after ``since``, in seconds, the oldest first, and how many lines
    were ``read``, ``repeated``, ``refused``, or ``torn``.
    """
    found, seen, counts = {}, set(), collections.Counter(read=0, repeated=0, refused=0, torn=0)
    for path in paths:
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
            for line in file:
                counts["read"] += 1
                try:
                    event = json.loads(line.decode("utf-8"))
                    match = TAG.match(event["tag"])
                    if match:
                        counts[_add(found, seen, match.group(1), match.group(2), event["data"])] += 1
                except (ValueError, LookupError, TypeError, RecursionError):
                    counts["torn"] += 1
    del counts["kept"]
    return _closed(one for one in found.values() if one["last"] >= since), dict(counts)


def _add(found, seen, machine, word, data):
    """Take an event; return what became of it: kept, repeated, or refused."""
    when = fleets.moment(data["_stamp"][:19] + "Z")
    number = data.get("times") if word == "stuck" else None
    about = {key: data[key] and fleets.line(data[key], 100) for key in TEXTS}
    if data["id"] != machine or {"cmd", "tag", "pretag", "data"} & set(data) or when is None or not about["transition"]:
        return "refused"
    key, seconds = (machine, about["transition"], word, number), float(data.get("seconds") or 0)
    if not 0 <= seconds < 1e9:
        raise ValueError(seconds)
    if key in seen:
        return "repeated"
    seen.add(key)
    one = found.setdefault(key[:2], dict.fromkeys(Transition._fields, None))
    one.update({name: value for name, value in about.items() if value}, machine=machine)
    if word == "started" or one["started"] is None:
        one["started"] = when - seconds
    one["last"] = max(one["last"] or when, when)
    one["stuck"] = max(one["stuck"] or 0, seconds) if word == "stuck" else one["stuck"]
    if word == "finished":
        one.update(ended="finished", seconds=data["seconds"] and seconds)
    return "kept"


def _closed(transitions):
    """The oldest first; one that nobody saw ending has ended where the machine tells of another one."""
    later, told = {}, []
    for one in sorted(transitions, key=lambda one: (one["started"], one["last"]), reverse=True):
        after = later.setdefault(one["machine"], one)
        if one["ended"] is None and after is not one:
            one["ended"] = "reboot" if after["boot_id"] != one["boot_id"] else "unseen"
        later[one["machine"]] = one
        told.append(Transition(**one))
    return told[::-1]


def told(one, form):
    """A transition as a line; ``form`` makes a date and time of seconds."""
    how = {None: "may still run", "reboot": "ended by a reboot", "unseen": "its end was not heard of"}
    words = f"finished after {one.seconds:.0f} s" if one.seconds else how.get(one.ended, "finished")
    words += f", stuck for {one.stuck:.0f} s and more" if one.stuck else ""
    return " ".join(filter(None, [form(one.started), one.machine, one.patch or "unknown patch", one.direction, words]))
