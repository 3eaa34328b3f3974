"""
What users give to a state, and whether it can be.
"""

import collections

from salt.exceptions import SaltInvocationError

# pokes: the answers of kgraft.poke in this run
Limits = collections.namedtuple("Limits", "timeout poke_after protect pokes")
Options = collections.namedtuple("Options", "version cves not_affected refresh allow_downgrade settle")


def check_limits(limits):
    if not _is_number(limits.timeout) or limits.timeout <= 0:
        raise SaltInvocationError(f"timeout is {limits.timeout!r}; it must be a number of seconds above 0")
    if limits.poke_after is not None and (not _is_number(limits.poke_after) or limits.poke_after < 0):
        raise SaltInvocationError(
            f"poke_after is {limits.poke_after!r}; it must be a number of seconds, or None for never"
        )


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_options(options):
    if options.cves is None:
        if options.not_affected is not None:
            raise SaltInvocationError("not_affected is given without cves")
        return
    if options.version != "latest":
        raise SaltInvocationError(f"version is {options.version!r} and cves are given; write one of the two")
    for argument in ("cves", "not_affected"):
        words = getattr(options, argument) or []
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise SaltInvocationError(f"{argument} is {words!r}; it must be a list of strings")
    if not options.cves:
        raise SaltInvocationError("cves is empty; name at least one")
