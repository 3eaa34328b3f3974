"""
The plan of a roll-out: who is patched when, as it is saved, and how far it has come.
"""

import datetime
import json
import os
import re
import typing

if typing.TYPE_CHECKING:  # handed in
    from . import _kgraft_fleet as fleets

LIMITS = ("failed", "stuck", "missing")
WHOLE = {"max_wave": 1, "soak": 0, "wave_timeout": 1}
OPTIONS = (
    *("target", "tgt_type", "name", "sls", "separate_by", "not_after", "timeout", "gather_job_timeout"),
    *WHOLE,
    *("max_" + name for name in LIMITS),
)
# they cannot be patched as they are, and would only stop the roll-out in their waves
UNABLE = ("no answer", "unavailable", "not synced", "failed")
# how far a machine is, in the order of the lines, and the exit code that it makes
CLASSES = {"done": 0, "stuck": 4, "failed": 2, "untouched": 2, "missing": 3, "left out": 3, "gone": 0, "excepted": 0}
# what carries a plan out, as the formula brings it and as a checkout has it
ORCHESTRATIONS = ("kgraft/rollout.sls", "examples/orchestrate/rollout.sls")


def path(cachedir, name):
    if not re.fullmatch(r"\w[\w.-]{0,80}", str("" if name is None else name), re.ASCII):
        raise ValueError(f"name={name!r}: must be a name of letters, digits, _, - and ., such as 2026-12")
    return os.path.join(cachedir, "kgraft", "plans", f"{name}.json")


def load(file):
    try:
        with open(file, encoding="utf-8") as text:
            plan = json.load(text)
        check(plan)
    except FileNotFoundError as err:
        raise ValueError(f"There is no such plan, {file}; kgraft.plan with a target writes one.") from err
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as err:
        raise ValueError(f"The plan {file} cannot be read: {fleets.line(repr(err))}") from err
    return plan


def save(file, plan):
    os.makedirs(os.path.dirname(file), 0o750, exist_ok=True)
    fleets.write(file, json.dumps(plan, indent=1))


def check(plan):
    """Refuse what cannot be."""
    for argument, least in WHOLE.items():
        if type(plan[argument]) is not int or plan[argument] < least:
            raise ValueError(f"{argument}={plan[argument]!r}: must be a whole number of at least {least}")
    for name in LIMITS:
        allowed(plan, name)
    if plan["not_after"] and not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", str(plan["not_after"])):
        raise ValueError(f"not_after={plan['not_after']!r}: must be a time of day in quotes, as \"'04:30'\"")
    if not all(isinstance(name, str) for name in [*sum(plan["waves"], []), *plan["left_out"], *plan["begun"].keys()]):
        raise ValueError("waves, left_out and begun must be names")


def extend(plan, found, answers, sizes):
    """
    Put the machines that are in no wave yet into further ones, growing by ``sizes``, shares of these, and never two of
    one group in one wave. Note who cannot be patched.
    """
    groups = {}
    for machine, answer in answers.items():
        try:
            group = json.dumps(answer["grains.item"][plan["separate_by"]])
        except (KeyError, TypeError, ValueError, RecursionError):
            group = "null"
        groups[machine] = machine if group in ("null", '""') else group
    canaries, planned = plan["waves"][0], set(sum(plan["waves"], []))
    gone = {name for name, about in found.items() if about["class"] == "no answer" and fleets.UNKNOWN in about["why"]}
    if gone and plan["since"] is None:
        raise ValueError(f"In the target are names of which this master has no key: {fleets.names(gone)}")
    for machine in canaries if not plan["begun"] else ():
        about = found.get(machine, {"class": "no answer", "why": "it is not in the target"})
        if about["class"] in (*UNABLE, "excepted"):
            raise ValueError(f"The canary {machine} cannot be patched: {about['why']}")
    if not plan["begun"] and len({groups[machine] for machine in canaries}) < len(canaries):
        raise ValueError(f"Of the canaries some are the same, or have the same {plan['separate_by']}.")
    if plan["separate_by"] and all(machine == group for machine, group in groups.items()):
        raise ValueError(f"separate_by={plan['separate_by']!r}: no machine has such a grain")
    here = {name: about["class"] for name, about in sorted(found.items()) if name not in gone}
    plan["left_out"] = [name for name, where in here.items() if where in UNABLE and name not in plan["begun"]]
    left = [name for name in here if name not in {*planned, *plan["left_out"]} and here[name] != "excepted"]
    total, sizes = len(left), [max(1, fleets.share("waves", size, len(left))) for size in sizes]
    while left:
        done, wave = total - len(left), {}
        room = min(next((size for size in sizes if size > done), total) - done, plan["max_wave"])
        for machine in left:
            if len(wave) < room:
                wave.setdefault(groups[machine], machine)
        plan["waves"].append(sorted(wave.values()))
        left = [machine for machine in left if machine not in wave.values()]


def command(name, files):
    """What a user types to carry a plan out, where the master has these files."""
    sls = next((path for path in ORCHESTRATIONS if path in files), ORCHESTRATIONS[-1])
    return 'salt-run state.orchestrate {} pillar=\'{{"rollout": "{}"}}\''.format(sls[:-4].replace("/", "."), name)


def told(plan, found, files):
    """What is said of a plan, and the waves that have something left to do."""
    waves, report = [], []
    for number, machines in enumerate(plan["waves"], 1):
        report.append(f"{len(machines):>4} in wave {number:<11} {fleets.names(machines)}")
        # who is silent is not waited for; where a wave of theirs had begun they are missing all the same
        other = {"settled", "excepted", "no answer"}
        left = [name for name in machines if name in found and found[name]["class"] not in other]
        left = [name for name in left if name not in plan["left_out"]]
        # of the canaries none may fail
        most = sum(allowed(plan, name) for name in LIMITS) if number > 1 else 0
        waves += [{"number": number, "machines": left, "allowed": most}] if left else []
    for name, label in ((name, "left out") for name in UNABLE):
        ids = [machine for machine in plan["left_out"] if found[machine]["class"] == name]
        report += [f"{len(ids):>4} {label:<19} {name}: {fleets.names(ids)}"] if ids else []
    ids = [machine for machine, about in found.items() if about["class"] == "excepted"]
    report += [f"{len(ids):>4} {'excepted':<19} {fleets.names(ids)}"] if ids else []
    report += [f"{len(waves)} waves have something to do, with {len(waves) * plan['soak'] / 3600:.1f} h of soak."]
    report += ["To carry it out: " + command(plan["name"], files)]
    return {"retcode": 3 if plan["left_out"] else 0, "report": report, "plan": plan, "waves": waves}


def progress(plan, found):
    """Say of each machine how far it is in the roll-out, in place of where it stands."""
    for machine, about in found.items():
        name, boot = about["class"], plan["begun"].get(machine)
        restarted = name == "settled" and boot not in (None, about["boot_id"])
        about["why"] = "it was restarted after its wave began" if restarted else about["why"]
        cases = (
            ("gone", name == "no answer" and fleets.UNKNOWN in about["why"]),
            ("excepted", name == "excepted"),
            ("done", name == "settled" and not restarted),
            ("left out", machine in plan["left_out"] and name == "no answer"),
            ("untouched", machine not in plan["begun"]),
            ("missing", name == "no answer"),
            ("stuck", name in ("stuck", "in transition")),
            ("failed", True),
        )
        about["class"] = next(name for name, holds in cases if holds)
    return found


def beyond(plan, found, limits=LIMITS):
    """Return which limit of the plan these machines are beyond; None if none. Of the canaries none may be any of it."""
    for name in limits:
        ids = [machine for machine, about in found.items() if about["class"] == name]
        if len(ids) > (allowed(plan, name) if set(plan["waves"][0]).isdisjoint(ids) else 0):
            return f"{len(ids)} {name}, and max_{name} is {plan['max_' + name]}, of the canaries 0: {fleets.names(ids)}"
    return None


def late(plan, now):
    """Return why no wave can end in time; None if it can."""
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
