"""
The plan of a run: which steps lead from a look to what is wanted, and what each of them makes true.

A dry run prints it, a live run carries it out; so both are the same.
"""

import collections
import typing

if typing.TYPE_CHECKING:  # handed in
    from . import _kgraft_looks as looks

# kind: wait, unload, install, load or settle; name: what of; facts: what is true then
Step = collections.namedtuple("Step", "kind name facts")

WORDS = {
    "unload": "{} is in memory and inactive; it would be unloaded.",
    "install": "{} would be installed.",
    "load": "{} would be loaded{}.",
}

# What is said where a step was taken and did not bring that; then what the kernel shows.
FAILED = {
    "wait": "A transition is running again; {1}.",
    "unload": "{} is still in memory; {}.",
    "install": "{} is not installed; {}.",
    "load": "The kernel says: {1}.",
    "settle": "The transition ended otherwise than it began: {1}.",
}


def of(look, told, settle, is_in_memory):
    """
    Return the steps.

    look
        what the machine is now
    told
        the answer of ``kgraft_pkg.check``; None where only the end of a transition is wanted
    settle
        whether the end of transitions is waited for
    is_in_memory
        tells of a module that is not active whether it is in memory all the same; None where no patch may be loaded
    """
    facts, steps = look.facts, []
    target = told and told["verdict"] == "bring" and told["target"]
    if look.status["state"] == "in_progress" and (settle or target):
        facts = looks.ended(look)
        steps.append(Step("wait", looks.moving(look), facts))
    if not target:
        return steps
    module = looks.module(look.package, target)
    is_to_load = is_in_memory is not None and facts.get(module) not in looks.ACTIVE
    if is_to_load and is_in_memory(module):
        facts = {fact: value for fact, value in facts.items() if fact != module}
        steps.append(Step("unload", module, facts))
    if facts[look.package] != target:
        facts = dict(facts, **{look.package: target})
        steps.append(Step("install", f"{look.package} {target}", facts))
    if is_to_load:
        facts = dict(facts, state="in_progress", **{module: "applying"})
        steps.append(Step("load", module, facts))
        if settle:
            facts = dict(looks.replaced(look, facts), state="ready", **{module: "applied"})
            steps.append(Step("settle", module, facts))
    return steps


def holds(step, look):
    """Whether what a step makes true is so."""
    if step.kind == "wait":
        return look.status["state"] == "ready"
    if step.kind == "install":
        package, version = step.name.split()
        return look.facts[package] == version
    if step.kind == "unload":
        return step.name not in look.patches
    active = look.facts.get(step.name)
    return active in looks.ACTIVE if step.kind == "load" else active == "applied" and look.status["state"] == "ready"


def words(steps):
    """Return what a dry run says of the steps, but for the wait."""
    settled = " and settled" if any(step.kind == "settle" for step in steps) else ""
    return [WORDS[step.kind].format(step.name, settled) for step in steps if step.kind in WORDS]
