"""
The report: where a machine stands, by what it answered, and how a fleet is told in a few lines and an exit code.
"""

import collections
import datetime
import functools
import re
import typing

if typing.TYPE_CHECKING:  # handed in
    from . import _kgraft_fleet as fleets

# What is told of a machine, in the order of the lines, and the exit code that it makes.
# fmt: off
CLASSES = {
    "settled": 0, "end of support near": 0, "end of support past": 2, "unpatched": 2, "stuck": 4, "in transition": 2,
    "doubtful": 2, "unavailable": 2, "without packages": 2, "not synced": 2, "failed": 2, "no answer": 3, "excepted": 0,
}
# fmt: on
SHOUTED = ("end of support past", "unpatched", "stuck", "failed", "open")
QUIET = ("settled", "fixed by a live patch", "fixed by the kernel", "not affected")
VERDICTS = (  # by urgency
    (4, "Not good: some machines are stuck."),
    (2, "Not good: not all machines are patched."),
    (3, "Good so far: but not all machines gave an answer."),
    (0, "Good: every machine that was asked is applied and settled."),
)

# kept of an answer
KEPT = ("running", "kernelrelease", "boot_id", "observed", "supported_until")
Limits = collections.namedtuple("Limits", "stuck_after max_metadata_age support_days")


def where(told, rest, version, stuck_after, now):
    """
    Return the class of a machine and the reason, by its answer to ``kgraft.overview``. ``rest`` tells where no
    transition runs; ``version`` is ours.
    """
    if told["version"] != version:
        return "not synced", f"{str(told['version'])[:20]}, not {version}: run saltutil.sync_all"
    if told["state"] == "unavailable":
        return "unavailable", "no live patching in this kernel"
    if told["state"] == "ready":
        return rest(told)
    tasks, since = (told["blocking"] or {"tasks": []})["tasks"], fleets.moment(told["since"])
    # of several tasks, one of which the reason is known stands for all
    task = next((task for task in tasks if task["why"]), tasks[0] if tasks else None)
    words = "nothing was found that blocks" if task is None else task["why"] or "a task of kind " + task["kind"]
    unit = task["unit"] + ": " if task and task["unit"] else ""
    return "stuck" if since is not None and now - since > stuck_after else "in transition", unit + words


def instead(told, function):
    """What a machine says where it does not answer; None if it has no such function."""
    if not isinstance(told, str):
        return "its answer cannot be understood"
    # in a job of several functions a failure is a traceback, and a function that is not there a TypeError
    last = told.rstrip().rpartition("\n")[2] if told.startswith("Traceback") else told
    if last in ("TypeError: 'str' object is not callable", f"'{function}' is not available."):
        return None
    return re.sub(r"^(ERROR|[\w.]+(Error|Exception)): ", "", last[:1000]) or "nothing"


def by_packages(told, limits, now):
    """Where a machine stands on which no transition runs, by its packages and the end of its support."""
    package, running, until = told["package"], told["running"], told["supported_until"] or ""
    unread = [note for note in told["notes"] if not note.startswith("kgraft_security.")]
    words = "not read: " + ("; ".join(unread) or "the packages")
    if package is None:
        none = re.search("^kgraft_pkg.*(is not loaded here|package can exist).*", "\n".join(unread), re.MULTILINE)
        return ("without packages", none.group()) if none else ("doubtful", words)
    installed, newest, as_of = (package[key] for key in ("installed", "newest", "as_of"))
    # both by the machine's own clock, whatever it shows; a list may come while it looks
    observed, listed = fleets.moment(told["observed"]), fleets.moment(as_of)
    fresh = None not in (observed, listed) and -60 <= observed - listed <= limits.max_metadata_age
    today = datetime.date.fromtimestamp(now)
    cases = (
        ("doubtful", words, any(note.startswith("kgraft_pkg.") for note in unread)),
        ("unpatched", "nothing is installed", newest and not installed and not running),
        ("unpatched", "installed, not loaded", order(installed) > order(running)),
        ("unpatched", "newer offered", order(newest) > order(running)),
        ("unpatched", "loaded, not installed", order(newest) >= order(running) > order(installed)),
        ("doubtful", "no repository offers a live patch", newest is None),
        ("doubtful", words, unread),
        ("doubtful", "the repositories' lists are too old", not fresh),
        ("end of support past", "since " + until, until and until < str(today)),
        ("end of support near", "on " + until, until and until <= str(today + datetime.timedelta(limits.support_days))),
        ("settled", running, True),
    )
    return next((name, why) for name, why, holds in cases if holds)


@functools.lru_cache(maxsize=1000)  # most machines of a fleet have the same few
def order(version):
    """What sorts versions as rpm does; a longer number is a greater one, and may be too long for an int."""
    parts = [re.findall("(?:0(?=[0-9]))*([0-9]+|[a-zA-Z]+)", part) for part in (version or "").split("-")]
    return [[(word.isdigit(), word.isdigit() and len(word), word) for word in words] for words in parts]


def by_check(told, check):
    """Where a machine stands on which no transition runs, by its answer to ``kgraft_pkg.check``."""
    if not isinstance(check, dict):
        words = instead(check, "kgraft_pkg.check")
        return ("failed", words) if words else ("without packages", "kgraft_pkg is not loaded there")
    cases = (
        ("unpatched", check["reason"] or f"{check['target']} is needed", check["verdict"] != "good"),
        ("doubtful", check["doubt"], check["doubt"] is not None),
        ("failed", "the patch changed while it was looked at", check["running"] not in (None, told["running"])),
        ("settled", told["running"] or "fixed", True),
    )
    return next((name, why) for name, why, holds in cases if holds)


def by_states(told, states):
    """Where a machine stands on which no transition runs, by a dry run of its states."""
    if not states or not isinstance(states, dict):
        return "failed", instead(states[0] if isinstance(states, list) and states else states, "state.apply")
    for state in sorted(states.values(), key=lambda state: state["__run_num__"]):
        if state["result"] is not True:
            return "unpatched", f"{state['__id__']}: {state['comment']}"
    return "settled", told["running"] or "no live patch"


def machines(fleet, judge, version, stuck_after, now, granted, ended):
    """
    Return ``{id: {class, why, …}}`` of all who were asked. ``judge`` gets what a machine answered to the whole job, and
    its overview. An answer may be anything; one that cannot be understood is a failure of that machine alone.
    """
    found = {machine: {"class": "no answer", "why": why} for machine, why in fleet.silent.items()}
    for machine, answer in fleet.answers.items():
        told, about = answer.get("kgraft.overview") if isinstance(answer, dict) else answer, {}
        try:
            name, why = where(told, lambda told, answer=answer: judge(answer, told), version, stuck_after, now)
            kept = dict({key: told[key] for key in KEPT}, as_of=told["package"] and told["package"]["as_of"])
            about = {key: value and fleets.line(value, 60) for key, value in kept.items()}
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
            name, why = "failed", instead(told, "kgraft.overview")
            if why is None:
                name, why = "not synced", "kgraft is not loaded there: run saltutil.sync_all"
        found[machine] = dict(about, **{"class": name, "why": fleets.line(why)})
    return grant(found, granted, ended)


def grant(found, granted, ended, classes=CLASSES):
    """Except those of whom it is known, unless that has ended."""
    for machine in set(found) & set(granted):
        about, entry = found[machine], granted[machine]
        if classes[about["class"]] and machine in ended:
            about["why"] += f"; its exception ended on {entry['until']}"
        elif classes[about["class"]]:
            words = fleets.line(f"{entry['reason']}, until {entry['until']} ({entry['by']})")
            about.update({"class": "excepted", "instead_of": about["class"], "why": words})
    return found


def table(found, classes=CLASSES):
    """Return the lines that tell of these machines, and ``{class: number}``."""
    of = {name: [machine for machine in found if found[machine]["class"] == name] for name in classes}
    lines, width = [], max(19, *map(len, classes))
    for name, ids in of.items():
        groups = collections.Counter(found[machine]["why"] for machine in ids).most_common()
        words = [why if len(groups) == 1 else f"{fleets.line(why, 80)}: {count}" for why, count in groups[:4]]
        words += [f"{len(groups) - 4} more reasons"] if len(groups) > 4 else []
        words = [" · ".join(words)] if sum(map(len, words)) < 90 else words
        words += [fleets.names(ids)] if name not in QUIET else []
        label = name.upper() if name in SHOUTED else name
        indent = " " * (width + 6)
        lines += [f"{len(ids):>4} {label:<{width}} {words[0]}", *(indent + each for each in words[1:])] if ids else []
    return lines, {name: len(ids) for name, ids in of.items() if ids}


def verdict(codes, asked, verdicts=VERDICTS):
    """The most urgent exit code, and what it means; ``asked`` is None where not all who were asked are known."""
    code, words = next(row for row in verdicts if row[0] in codes | ({3} if asked is None else {0}))
    return code, words + (" Below syndics it is not known who was asked: give expected." if asked is None else "")


def tell(found, asked, allowed=0):
    """Return ``{retcode, report, asked, counts, machines}``."""
    lines, counts = table(found)
    told = [about["as_of"] for about in found.values() if about["class"] == "settled" and about.get("as_of")]
    lines += ["{:>4} asked{}".format(len(found), f"; the oldest list of packages is of {min(told)}" if told else "")]
    silent = counts.get("no answer", 0)
    code, words = verdict({CLASSES[name] for name in counts if name != "no answer" or silent > allowed}, asked)
    words += f" {silent} gave no answer, which is allowed." if silent and not code else ""
    asked = None if asked is None else len(found)
    return {"retcode": code, "report": [*lines, words], "asked": asked, "counts": counts, "machines": found}
