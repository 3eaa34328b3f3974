"""
Events when a live patch starts, ends, or does not get through

The master hears ``salt/beacon/<minion>/kgraft/<tag>``; the payload is flat:

=============  ================================================================================================
``started``    a transition runs
``finished``   it is over: ``seconds`` it took, ``observed`` (False: it came and went between two looks)
``stuck``      it has run for ``stuck_after`` seconds: ``seconds`` so far, ``times`` said, ``tasks`` that block,
               with ``why`` and ``help``, their ``count``, ``complete`` (False: there may be more) and ``note``, as
               ``kgraft.blocking`` gives them
``error``      the beacon could not look or could not remember: ``error`` says what; each distinct one once, three at
               most, until that works again
=============  ================================================================================================

Each carries ``transition`` (an id that no other transition has: the boot's id, and the microsecond since boot of the
first look that saw it), ``abi``, ``direction`` and ``patch`` (None where the kernel does not tell), ``active``,
``kernelrelease``, ``boot_id``, and Salt's own ``id``.

An event is sent at least once, also over a restart or a kill of the minion and over refreshes. What is sent again is
the same event: same ``transition``, tag and ``times``. What happens while the minion is not connected is dropped by
Salt.

.. code-block:: yaml

    beacons:
      kgraft:
        - interval: 10
        - stuck_after: 120
        - remind: 3600

A transition lasts seconds at least, and what falls between two looks is told all the same, so every ten seconds is
enough.

:depends: the execution module ``kgraft``
:platform: Linux
"""

import copy
import difflib
import json
import os
import re
import time
from urllib.parse import quote

import salt.utils.beacons
from salt.exceptions import CommandExecutionError

__virtualname__ = "kgraft"

DEFAULTS = {"stuck_after": 120, "remind": 3600, "protect": None}
YEAR = 366 * 24 * 3600
SWITCHES = ("enabled", "run_once", "disable_during_state_run")
SALTS_OWN = ("interval", "beacon_module") + SWITCHES

KERNEL = ("abi", "active", "boot_id", "kernelrelease")

# What stays true from look to look. Who changes its shape gives it another number.
FORMAT = 2

# What a memory that somebody else wrote can lead to.
UNUSABLE = (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError)

LOOKS = 5  # how often a look is taken again until two in a row agree
ERRORS = 3  # how many of one source are told until it works again
LONGEST = 500  # characters of an error

# Salt sends the events to the master after we return and does not say when it is done; for this long (seconds) a new
# minion process sends them again.
RESEND = 10

# A refresh of any kind executes this file again, in the same namespace: what it finds there survives until a restart.
CACHE = globals().get("CACHE", {})  # {path: (memory, its text in the file)}


def __virtual__():
    if "kgraft.status" in __salt__:
        return __virtualname__
    return False, "The kgraft beacon asks the execution module kgraft (_modules/kgraft.py), which is not loaded."


def validate(config):
    """
    Tell whether Salt's beacon loop and this beacon can work with ``config``.

    config
        The beacon's configuration, as the user wrote it.

    Returns ``(True, text)``, or ``(False, text)`` where the text says what to write instead. Never raises.
    """
    refusal = next(_refusals(config), None)
    return refusal is None, refusal or "Valid beacon configuration"


def beacon(config):
    """
    Look once at the kernel and tell what changed since the last look.

    config
        A list of options, each an item of its own:

        stuck_after
            Seconds after which a transition counts as stuck, from the first look that saw it. The kernel itself
            may need a minute on a healthy machine. Default: ``120``

        remind
            Seconds after which a stuck transition is told again, with ``times`` 2, 3 … Salt drops what happens while
            a minion is offline, so one alarm may get lost. ``0``: never. Default: ``3600``

        protect
            Processes of which no advice is to touch them: a pattern or a list of ``name:``, ``unit:`` and ``user:``
            patterns, beside those that ``kgraft.blocking`` knows. Default: ``None``

        Salt's own ``interval`` (seconds between two looks; default: every second; ``10`` is enough),
        ``disable_during_state_run``, ``beacon_module``, ``enabled`` and ``run_once`` work as in any beacon.

    Returns the list of events, each with its ``tag``. Never raises for a kernel that cannot be looked at: that is the
    event ``error``.

    .. code-block:: yaml

        beacons:
          kgraft:
            - interval: 10
            - stuck_after: 120
            - remind: 3600
            - protect: ['unit:postgresql*']
            - disable_during_state_run: True
    """
    options = dict(DEFAULTS, **salt.utils.beacons.list_to_dict(config))
    instance = quote(options.get("_beacon_name", __virtualname__), safe="")
    path = os.path.join(__opts__["cachedir"], f"kgraft_beacon_{instance}.json")
    # Since boot, and no clock that anybody sets.
    now = round(time.monotonic(), 6)
    try:
        if _is_idle(path):
            return []
        memory, events = _load(path, now)
        events += _events(memory, options, now)
        return _save(path, memory, events, now)
    except UNUSABLE as err:
        # If the memory is not to blame, this raises with an empty one, too.
        memory = _fresh()
        events = _events(memory, options, now)
        events += _errors(memory, {"memory": _set_aside(path, err)})
        return _save(path, memory, events, now)


# -- the configuration


def _refusals(config):
    """Yield what is wrong. Only the first is asked for, so nothing runs behind it."""
    if isinstance(config, dict):
        yield "The kgraft beacon needs a list, not a mapping: put '- ' before each option, as in '- stuck_after: 120'."
    if not isinstance(config, list):
        yield f"The kgraft beacon needs a list of options, as in '- stuck_after: 120', or [], not {_show(config)}."
    given = set()
    for item in config:
        if not isinstance(item, dict):
            found = _show(item)
            yield f"Write an option of the kgraft beacon as 'name: value', as in '- stuck_after: 120', not {found}."
        # To take its own options out of a list, Salt deletes the whole item they stand in.
        if len(item) > 1 and any(name in SALTS_OWN for name in item):
            yield "Salt drops what shares a list item with its own options: write each option as an item of its own."
        for name, value in item.items():
            yield from _refusals_of_option(name, value, given)
            given.add(name)


def _refusals_of_option(name, value, given):
    known = sorted(tuple(DEFAULTS) + SALTS_OWN)
    if name == "_beacon_name":
        return
    if name not in known:
        near = difflib.get_close_matches(name, known, 1) if isinstance(name, str) else []
        instead = f"write {near[0]}" if near else "it has " + ", ".join(known)
        yield f"The kgraft beacon has no option {_show(name)}: {instead}."
    if name in given:
        yield f"The option {name} is given twice: write it once."
    if name in SWITCHES:
        fits, allowed = isinstance(value, bool), "True or False"
    elif name == "beacon_module":
        fits, allowed = value == __virtualname__, __virtualname__
    elif name == "protect":
        patterns = value if isinstance(value, list) else [value]
        fits = all(isinstance(one, str) and re.match("(name|unit|user):.", one) for one in patterns)
        allowed = "'name:PATTERN', 'unit:PATTERN' or 'user:PATTERN', or a list of such"
    else:
        lowest, words = (0, "or 0 for never") if name == "remind" else (0.001, "above 0")
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and lowest <= value <= YEAR
        allowed = f"a number of seconds, {words}, at most a year, without quotes"
    if not fits:
        yield f"The option {name} is {_show(value)}: write {allowed}."


def _show(value):
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # too deep, or a number of more digits than Python likes to print
        return type(value).__name__
    return text if len(text) <= 60 else text[:59] + "…"


# -- one look


def _is_idle(path):
    """Whether there is nothing to do but to look, and the look shows nothing new: what nearly every look is."""
    memory, saved = CACHE.get(path, (None, None))
    if not saved or memory["format"] != FORMAT or memory["transition"] or memory["outbox"] or memory["errors"]:
        return False
    try:
        return not _is_edge(memory, __salt__["kgraft.status"]()) and os.path.exists(path)
    except CommandExecutionError:
        return False


def _events(memory, options, now):
    try:
        status = _look(memory)
    except CommandExecutionError as err:
        return _errors(memory, {"look": str(err)})
    problems = {"look": None}
    events = _edges(memory, status, now) + _stuck(memory, options, now, problems)
    return events + _errors(memory, problems)


def _look(memory):
    """
    Return the kernel's status. What it says of a change counts when two looks in a row agree: the kernel's files are
    read one after the other, and a start or an end in between shows what never was.
    """
    status = __salt__["kgraft.status"]()
    for _ in range(LOOKS):
        before = status
        if not _is_edge(memory, status):
            break
        status = __salt__["kgraft.status"]()
        if status == before:
            break
    return status


def _is_edge(memory, status):
    before, running, seen = memory["kernel"], memory["transition"], _seen(status)
    if _begins(before, status):
        return seen is not None
    changed = sorted(before["active"]) != sorted(status["active"])
    if running:
        return not seen or _is_another(running, seen)
    return changed or seen is not None


def _begins(before, status):
    """Whether this is the first look of a boot."""
    return before == {} or before["boot_id"] != status["boot_id"]


def _seen(status):
    """Return the transition that runs, as far as the kernel tells; None where none runs."""
    if status["state"] != "in_progress":
        return None
    return {"direction": status["direction"], "patch": status["moving"][0] if len(status["moving"]) == 1 else None}


def _is_another(running, seen):
    return any(running[key] and seen[key] and running[key] != seen[key] for key in seen)


# -- from looks to events


def _edges(memory, status, now):
    kernel, seen = {key: status[key] for key in KERNEL}, _seen(status)
    if _begins(memory["kernel"], status):
        memory.update(transition=None, stamp=0, settled=_undone(kernel["active"], seen))
    memory["kernel"] = kernel
    running = memory["transition"]
    goes_on = bool(running and seen) and not _is_another(running, seen)
    if goes_on and (running["patch"] or not seen["patch"]):
        running["direction"] = running["direction"] or seen["direction"]
        return []
    unseen = _unseen(memory["settled"], kernel["active"], running, seen)
    events = []
    if running and not goes_on:
        # The kernel did not name its patch; what has changed does, if it takes one transition.
        alone = len(unseen) == 1 and unseen[0]["patch"]
        if alone and not running["patch"] and not _is_another(running, unseen[0]):
            running.update(unseen.pop())
        seconds = round(now - running["since"], 1)
        events.append(_event("finished", kernel, running, seconds=seconds, observed=not seen))
    for missed in unseen:
        missed = _transition(memory, missed, now)
        events.append(_event("finished", kernel, missed, seconds=None, observed=False))
    if goes_on:
        running.update(seen)
    else:
        memory["transition"] = _transition(memory, seen, now) if seen else None
    if seen and not goes_on:
        events.append(_event("started", kernel, memory["transition"]))
    if not seen or seen["patch"]:
        memory["settled"] = _undone(kernel["active"], seen)
    return events


def _done(settled, transition):
    """Return what is active after a transition, but for the patches that it may have replaced."""
    patch = transition and transition["patch"]
    others = [name for name in settled if name != patch]
    return others + [patch] if patch and transition["direction"] == "apply" else others


def _undone(active, transition):
    """Return what was active before a transition, of which ``active`` was seen."""
    patch = transition and transition["patch"]
    others = [name for name in active if name != patch]
    return others + [patch] if patch and transition["direction"] == "revert" else others


def _unseen(settled, active, running, seen):
    """
    Return the transitions that nobody saw: what must have happened since ``settled`` beside ``running``, which was seen
    before, and ``seen``, which runs now. Each did happen, unless a patch came and went, or went and came back, unseen.
    """
    if seen and not seen["patch"]:
        # It may be the one that explains what has changed. Later the kernel tells more.
        return []
    after, before = _done(settled, running), _undone(active, seen)
    came = [name for name in before if name not in after]
    went = [name for name in after if name not in before]
    if came:
        # A patch that came may have replaced those that went.
        return [{"direction": "apply", "patch": name} for name in came]
    if seen and seen["direction"] == "apply":
        # At its end it shows those that it replaced as gone already.
        return []
    if running and running["direction"] == "apply":
        went = [name for name in went if name == running["patch"]]
    # Of several nobody can say how many transitions it took, nor which was the last.
    return [{"direction": "revert", "patch": went[0] if len(went) == 1 else None}] if went else []


def _transition(memory, seen, now):
    # A clock can stand still for two of one look, or begin anew in a container that comes back.
    memory["stamp"] = max(int(now * 1e6), memory["stamp"] + 1)
    number = "{}-{}".format(memory["kernel"]["boot_id"], memory["stamp"])
    return dict(seen, id=number, since=now, times=0, told=now)


def _stuck(memory, options, now, problems):
    running = memory["transition"]
    if running is None:
        return []
    wait = options["remind"] if running["times"] else options["stuck_after"]
    if running["times"] and not wait or now - running["told"] < wait:
        return []
    problems["blocking"] = None
    try:
        # A beacon holds up the minion's main loop: a list cut short is better than a minion that does not answer.
        blocking = __salt__["kgraft.blocking"](budget=0.2, protect=options["protect"])
    except CommandExecutionError as err:
        problems["blocking"] = str(err)
        blocking = {"state": "in_progress", "tasks": [], "count": None, "complete": False, "note": None}
    if blocking["state"] != "in_progress":
        return []
    running["times"] += 1
    running["told"] = now
    found = {key: blocking[key] for key in ("tasks", "count", "complete", "note")}
    found.update(seconds=round(now - running["since"], 1), times=running["times"])
    return [_event("stuck", memory["kernel"], running, **found)]


def _errors(memory, problems):
    """
    Return an ``error`` event for each problem that was not told yet. ``problems`` holds what each source ran into, None
    where it worked again; a source that was not tried is not in it. A text that is another at each look tells a user
    nothing new after a while.
    """
    events = []
    for source, problem in sorted(problems.items()):
        if problem is None:
            memory["errors"].pop(source, None)
            continue
        problem, told = _line(problem), memory["errors"].setdefault(source, [])
        if problem not in told and len(told) < ERRORS:
            told.append(problem)
            events.append(_event("error", memory["kernel"], memory["transition"], error=problem))
    return events


def _line(text):
    """Return a text as one line of printable characters, cut where it is long."""
    line = "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text[: LONGEST + 1]
    )
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def _event(tag, kernel, running, **more):
    running = running or {}
    event = {"tag": tag, "transition": running.get("id")}
    event.update((key, running.get(key)) for key in ("direction", "patch"))
    event.update((key, kernel.get(key)) for key in KERNEL)
    return dict(event, **more)


# -- the memory


def _load(path, now):
    """Return the memory, and the events that a former process may not have got through to the master."""
    memory = copy.deepcopy(CACHE[path][0]) if path in CACHE else _read(path)
    if memory["format"] != FORMAT:
        raise ValueError("another format")
    if path in CACHE:
        return memory, []
    events = [event for _, event in memory["outbox"]]
    if not all(isinstance(event["tag"], str) for event in events):
        raise ValueError("no events")
    memory["outbox"] = []
    if memory["transition"]:
        # Behind us, whatever became of the clock: a container may come back with another one.
        for key in ("since", "told"):
            memory["transition"][key] = min(memory["transition"][key], now)
    return memory, events


def _read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return _fresh()


def _fresh():
    return {
        "format": FORMAT,
        "kernel": {},  # as the last look saw it
        "settled": [],  # what was active before the transition that runs, or at the last look if none does
        "transition": None,
        "stamp": 0,  # of the newest id
        "errors": {},  # {source: [text]}
        "outbox": [],
    }


def _set_aside(path, err):
    """Put the file out of the way; return what was wrong with it."""
    CACHE.pop(path, None)
    why = getattr(err, "strerror", None) or "it is torn, or of another format"
    try:
        os.replace(path, path + ".aside")
    except OSError as failure:
        return f"cannot use the memory {path} ({why}), nor set it aside: {failure.strerror}"
    return f"cannot use the memory ({why}), which now lies in {path}.aside: events may be missing"


def _save(path, memory, events, now):
    """Remember, then return the events: who dies in between has them in the file and sends them again."""
    memory["outbox"] = [[when, event] for when, event in memory["outbox"] if 0 <= now - when < RESEND]
    memory["outbox"] += [[now, event] for event in events]
    told = memory["errors"].pop("memory", [])
    saved = CACHE[path][1] if path in CACHE else None
    text = json.dumps(memory, sort_keys=True, allow_nan=False)
    if text != saved or not os.path.exists(path):
        try:
            _write(path, text)
            saved = text
        except OSError as err:
            # Until it works again this process remembers for itself; only a restart would tell things twice.
            saved = None
            _forget_what_is_over(path, memory)
            memory["errors"]["memory"] = told
            events += _errors(memory, {"memory": f"cannot write the memory {path}: {err.strerror}"})
    CACHE[path] = (memory, saved)
    # Salt changes what it gets.
    return copy.deepcopy(events)


def _forget_what_is_over(path, memory):
    """Delete a file that cannot be written and names a transition that is over: a new process gave its id away."""
    try:
        old, running = _read(path)["transition"], memory["transition"]
        if old and not memory["outbox"] and (not running or old["id"] != running["id"]):
            os.unlink(path)
    except UNUSABLE:
        pass


def _write(path, text):
    # Not salt.utils.atomicfile: it passes over an error of flush, and a full disk is one.
    beside = path + ".new"
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    os.replace(beside, path)
