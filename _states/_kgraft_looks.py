"""
What a look at the machine says: which patches run, which move, and what will be true when they have ended.
"""

import collections
import re

ACTIVE = ("applying", "applied")

# facts: the flat map that changes are measured by
Look = collections.namedtuple("Look", "status patches package facts")


def differences(old, new):
    return {
        fact: {"old": old.get(fact), "new": new.get(fact)}
        for fact in sorted(set(old) | set(new))
        if old.get(fact) != new.get(fact)
    }


def active(look):
    """Return what is active, as "kgraft_patch_2_2_1 is active"."""
    found = look.status["active"]
    if not found:
        return "no live patch is active"
    return "{} {} active".format(", ".join(found), "is" if len(found) == 1 else "are")


def moving(look):
    """Return what runs, as "kgraft_patch_2_2_1 is applying"."""
    found = [f"{patch} is {state}" for patch, state in look.facts.items() if state in ("applying", "reverting")]
    return ", ".join(found) or "a transition is running"


def running(look):
    """Return the version that the kernel runs, or is about to."""
    versions = [look.patches.get(patch, {}).get("version") for patch in look.status["active"]]
    return next(filter(None, reversed(versions)), None)


def module(package, version):
    # SUSE's names: the file is kgraft-patch-2-2_1.ko or livepatch-2-2_1.ko
    prefix = "kgraft_patch_" if package.startswith("kgraft-") else "livepatch_"
    return prefix + re.sub(r"[-.]", "_", version)


# ----- facts to come


def _left(look):
    # a reverted or replaced patch stays as inactive on kGraft and vanishes on livepatch
    return "inactive" if look.status["abi"] == "kgraft" else None


def ended(look):
    """Return the facts when the transition has ended as it began."""
    ends = {"in_progress": "ready", "applying": "applied", "reverting": _left(look)}
    facts = {fact: ends.get(value, value) for fact, value in look.facts.items()}
    if any(told["state"] == "applying" and told["cumulative"] for told in look.patches.values()):
        facts.update({patch: _left(look) for patch in look.patches if look.facts[patch] == "applied"})
    return facts


def replaced(look, facts):
    """Return them when a patch has been applied: SUSE's are cumulative."""
    left = {patch: _left(look) for patch, state in facts.items() if patch in look.patches and state == "applied"}
    return dict(facts, **left)
