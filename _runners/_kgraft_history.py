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
import zlib

if typing.TYPE_CHECKING:  # handed in
    from . import _kgraft_fleet as fleets

TAG = re.compile(r"salt/beacon/([^/]+)/[^/]+/(started|finished|stuck)\Z")
TEXTS = ("transition", "patch", "direction", "boot_id", "kernelrelease")
# how it ended: finished, as the beacon said; or only seen to be over, since the machine was restarted (reboot) or
# another transition came (unseen); None where it may still run
# times, stuck: how often it was told that it is stuck, and the seconds so far then; why: what blocked, in words
Transition = collections.namedtuple(
    "Transition", "machine transition patch direction boot_id kernelrelease started seconds times stuck why ended last"
)
HOW = {None: "may still run", "reboot": "ended by a reboot", "unseen": "its end was not heard of"}


def files(path):
    """The file, and what was made of it when it grew: ``.1``, ``.2.gz``, ``-20261123``."""
    return [path] + [one for one in glob.glob(glob.escape(path) + "[.-]*") if re.search(r"[.-]\d+(\.gz)?$", one)]


def read(paths, since):
    """
    Return the transitions that ended or were heard of after ``since``, in seconds, the oldest first, and how many lines
    were ``read``, ``repeated``, ``refused``, or ``torn``.
    """
    found, seen, counts = {}, set(), collections.Counter(read=0, repeated=0, refused=0, torn=0)
    for line in _lines(paths):
        counts["read"] += 1
        try:
            event = json.loads(line.decode("utf-8"))
            match = TAG.match(event["tag"])
            if match:
                counts[_add(found, seen, match.group(1), match.group(2), event["data"])] += 1
        except (AttributeError, ValueError, LookupError, TypeError, RecursionError):
            counts["torn"] += 1
    del counts["kept"]
    return _closed(one for one in found.values() if one["last"] >= since), dict(counts)


def _lines(paths):
    for path in paths:
        try:
            with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
                yield from file
        except (OSError, EOFError, zlib.error) as err:
            raise ValueError(f"cannot read {path}: {err}") from err


def _add(found, seen, machine, word, data):
    """Take an event; return what became of it: kept, repeated, or refused."""
    if data["id"] != machine or {"cmd", "tag", "pretag", "data"} & set(data):
        return "refused"
    when = fleets.moment(data["_stamp"][:19] + "Z")
    number = data.get("times") if word == "stuck" else None
    about = {key: data[key] and fleets.line(data[key], 100) for key in TEXTS}
    if when is None or not about["transition"]:
        return "refused"
    key, seconds = (machine, about["transition"], word, number), float(data.get("seconds") or 0)
    why = " · ".join(held(data.get("tasks") or []))
    if not 0 <= seconds < 1e9:
        raise ValueError(seconds)
    if key in seen:
        return "repeated"
    seen.add(key)
    one = found.setdefault(key[:2], dict.fromkeys(Transition._fields, None))
    one.update({name: value for name, value in about.items() if value}, machine=fleets.line(machine, 100))
    if word == "started" or one["started"] is None:
        one["started"] = when - seconds
    one["last"] = max(one["last"] or when, when)
    if word == "stuck":
        one["times"] = (one["times"] or 0) + 1
        if seconds >= (one["stuck"] or 0):
            one.update(stuck=seconds, why=why or one["why"])
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


def held(tasks, names=False):
    """What blocks, in words; names of processes and users only where they are asked for."""
    counts = collections.Counter()
    for task in tasks[:20]:
        who = f"{task['name']} of {task['user']}" if names and "name" in task else None
        words = ", ".join(filter(None, [task["kind"], task["unit"], who]))
        counts[fleets.line(f"{words}: {task['why']}" if task.get("why") else words)] += 1
    return [words if count == 1 else f"{words} ({count} tasks)" for words, count in counts.most_common(5)]


def span(seconds):
    """As "45 s", "12 min", "2 h 5 min" or "3 d 4 h"."""
    for unit, part, word, small in ((86400, 3600, "d", "h"), (3600, 60, "h", "min")):
        if seconds >= unit:
            rest = seconds % unit // part
            return f"{seconds // unit:.0f} {word}" + (f" {rest:.0f} {small}" if rest else "")
    return f"{seconds // 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def told(one):
    """How a transition went, in words."""
    words = HOW.get(one.ended, "finished") + (f" after {span(one.seconds)}" if one.seconds else "")
    return words + (f", stuck for {span(one.stuck)} and more" if one.stuck else "")


def line(one):
    """A transition, without its time."""
    words = [one.machine, one.patch or "unknown patch", *filter(None, [one.direction])]
    return f"{' '.join(words)}: {told(one)}" + (f" ({fleets.line(one.why, 80)})" if one.why else "")


def counted(lines):
    words = [f"{count} {word}" for word, count in lines.items() if count and word != "read"]
    return ", ".join([f"{lines['read']} lines read", *words]) + "."
