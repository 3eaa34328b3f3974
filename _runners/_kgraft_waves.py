"""
The plan of a roll-out: who is patched when, as it is saved, and how far it has come.
"""

import datetime
import json
import os
import re
import tempfile
import typing

if typing.TYPE_CHECKING:  # handed in
    from . import _kgraft_fleet as fleets

LIMITS = ("failed", "stuck", "missing")
WHOLE = {"max_wave": 1, "soak": 0, "wave_timeout": 1}
OPTIONS = ("target", "tgt_type", "name", "sls", "separate_by", "not_after", *WHOLE, *("max_" + name for name in LIMITS))
WELL = ("settled", "end of support near")
COMMAND = 'To go on: salt-run state.orchestrate examples.orchestrate.rollout pillar=\'{{"rollout": "{}"}}\''


def path(cachedir, name):
    if not re.fullmatch(r"\w[\w.-]{0,80}", str("" if name is None else name), re.ASCII):
        raise ValueError(f"name={name!r}: must be a name of letters, digits, - and ., such as 2026-12")
    return os.path.join(cachedir, "kgraft", "plans", f"{name}.json")


def load(file):
    with open(file, encoding="utf-8") as plan:
        return json.load(plan)


def save(file, plan):
    """Whole or not at all, and not for everybody to read: it says who is not patched."""
    os.makedirs(os.path.dirname(file), mode=0o750, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=os.path.dirname(file), delete=False, encoding="utf-8") as new:
        json.dump(plan, new, indent=1)
        os.fchmod(new.fileno(), 0o640)
    os.replace(new.name, file)


def new(options, sizes, canaries, file):
    """A plan of these options, which has the wave of the canaries alone."""
    if os.path.exists(file):
        raise ValueError(f"There is a plan of this name, {file}: go on with it, or take another name.")
    if not canaries or not isinstance(sizes, (list, tuple)):
        raise ValueError("Give canaries, the names of the machines that come first; and waves must be a list.")
    for argument, least in WHOLE.items():
        if type(options[argument]) is not int or options[argument] < least:
            raise ValueError(f"{argument}={options[argument]!r}: must be a whole number of at least {least}")
    for argument, share in [
        *(("max_" + name, options["max_" + name]) for name in LIMITS),
        *(("waves", size) for size in sizes),
    ]:
        fleets.share(argument, share, 0)
    if options["not_after"] and not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", str(options["not_after"])):
        raise ValueError(f"not_after={options['not_after']!r}: must be a time of day in quotes, as \"'04:30'\"")
    return dict(options, sizes=list(sizes), waves=[canaries], left_out=[], begun={})


def extend(plan, found, answers):
    """
    Put the machines that are in no wave yet into further waves: growing ones, by the shares of all these machines in
    ``plan["sizes"]``, and never two of one group in one wave.
    """
    groups = {}
    for machine, answer in answers.items():
        try:
            group = json.dumps(answer["grains.item"][plan["separate_by"]])
        except (KeyError, TypeError, ValueError, RecursionError):
            group = "null"
        groups[machine] = machine if group in ("null", '""') else group
    canaries, planned = plan["waves"][0], set(sum(plan["waves"], []))
    if not plan["begun"] and len({groups.get(machine) for machine in canaries} - {None}) < len(canaries):
        raise ValueError(f"Of the canaries some do not answer, or have the same {plan['separate_by']}.")
    here = {machine: found[machine]["class"] for machine in sorted(found) if machine not in planned}
    plan["left_out"] = [machine for machine, name in here.items() if name == "no answer"]
    left = [machine for machine, name in here.items() if name not in ("no answer", "excepted")]
    total, sizes = len(left), [fleets.share("waves", size, len(left), up=True) for size in plan["sizes"]]
    while left:
        done, wave = total - len(left), {}
        room = min(next((size for size in sizes if size > done), total) - done, plan["max_wave"])
        for machine in left:
            if len(wave) < room:
                wave.setdefault(groups[machine], machine)
        plan["waves"].append(sorted(wave.values()))
        left = [machine for machine in left if machine not in wave.values()]


def told(plan, found):
    """What is said of a plan, and the waves that have something left to do."""
    waves, report = [], []
    for number, machines in enumerate(plan["waves"], 1):
        report.append(f"{len(machines):>4} in wave {number:<11} {fleets.names(machines)}")
        left = [machine for machine in machines if machine in found and found[machine]["class"] not in WELL]
        # of the canaries none may fail
        most = sum(allowed(plan, name) for name in LIMITS) if number > 1 else 0
        waves += [{"number": number, "machines": left, "allowed": most}] if left else []
    out = plan["left_out"]
    report += [f"{len(out):>4} left out            no answer: {fleets.names(out)}"] if out else []
    report.append(COMMAND.format(plan["name"]))
    return {"retcode": 3 if out else 0, "report": report, "plan": plan, "waves": waves}


def progress(plan, found):
    """Say of each machine how far it is in the roll-out, in place of where it stands."""
    for machine, about in found.items():
        name, boot = about["class"], plan["begun"].get(machine)
        restarted = name in WELL and boot not in (None, about["boot_id"])
        about["why"] = "it was restarted after its wave began" if restarted else about["why"]
        cases = (
            ("gone", fleets.UNKNOWN in about["why"]),
            ("excepted", name == "excepted"),
            ("done", name in WELL and not restarted),
            ("left out", machine in plan["left_out"]),
            ("untouched", machine not in plan["begun"]),
            ("missing", name == "no answer"),
            ("stuck", name in ("stuck", "in transition")),
            ("failed", True),
        )
        about["class"] = next(name for name, holds in cases if holds)
    return found


def stop(plan, found, number, now):
    """Return why a wave must not begin; None if it may."""
    before = {machine for wave in plan["waves"][: number - 1] for machine in wave}
    for name in LIMITS:
        ids = [machine for machine in before if found[machine]["class"] == name]
        if len(ids) > (allowed(plan, name) if set(plan["waves"][0]).isdisjoint(ids) else 0):
            return f"{len(ids)} {name}, and max_{name} is {plan['max_' + name]}, of the canaries 0: {fleets.names(ids)}"
    if plan["not_after"] and now + plan["wave_timeout"] > end(plan):
        return f"it may last {plan['wave_timeout']} s, and not_after is {plan['not_after']}"
    return None


def allowed(plan, name):
    return fleets.share("max_" + name, plan["max_" + name], sum(map(len, plan["waves"])))


def end(plan):
    """The first time ``not_after`` that comes after this run of the plan began."""
    began = datetime.datetime.fromtimestamp(plan["since"])
    hour, minute = map(int, plan["not_after"].split(":"))
    day = began.replace(hour=hour, minute=minute, second=0, microsecond=0)
    return (day + datetime.timedelta(days=day <= began)).timestamp()
