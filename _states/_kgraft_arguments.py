"""
What users give to a state, and whether it can be; the words for a version, and which versions they mean.
"""

import collections
import re

from salt.exceptions import CommandExecutionError, SaltInvocationError

# pokes: the answers of kgraft.poke in this run
Limits = collections.namedtuple("Limits", "timeout poke_after protect pokes")
Options = collections.namedtuple("Options", "version cves not_affected refresh allow_downgrade settle")


def check_limits(timeout, poke_after):
    if not _is_number(timeout) or timeout <= 0:
        raise SaltInvocationError(f"timeout is {timeout!r}; it must be a number of seconds above 0")
    if poke_after is not None and (not _is_number(poke_after) or poke_after < 0):
        raise SaltInvocationError(f"poke_after is {poke_after!r}; it must be a number of seconds, or None for never")


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_options(options):
    if options.cves is None and options.not_affected is not None:
        raise SaltInvocationError("not_affected is given without cves")
    if options.cves is not None and options.version != "latest":
        raise SaltInvocationError(f"version is {options.version!r} and cves are given; write one of the two")
    for argument in ("cves", "not_affected"):
        words = getattr(options, argument) or []
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise SaltInvocationError(f"{argument} is {words!r}; it must be a list of strings")
    if options.cves is not None and not options.cves:
        raise SaltInvocationError("cves is empty; name at least one")


# ----- a version


class Wanted(collections.namedtuple("Wanted", "text at_least numbers")):
    """``numbers`` are the version's and its release's as far as they are given; None means the newest there is."""

    def is_met_by(self, version):
        found = numbers(version)
        return found >= self.numbers if self.at_least else self.numbers in (found, found[:1])

    def is_older_than(self, version):
        return not self.at_least and not self.is_met_by(version) and numbers(version) > self.numbers


def wanted(version, kernelrelease):
    if isinstance(version, dict):
        if kernelrelease not in version:
            named = ", ".join(sorted(map(str, version))) or "none"
            raise CommandExecutionError(f"version names no patch for this kernel, {kernelrelease}; it does for {named}")
        version = version[kernelrelease]
    if isinstance(version, float):
        raise SaltInvocationError(f"version is {version!r}, a number to YAML, which may have lost a 0; quote it")
    if isinstance(version, int) and not isinstance(version, bool):
        version = str(version)
    if version == "latest":
        return Wanted(version, True, None)
    match = re.match(r"(>=)?\s*(\d+(?:-\d+(?:\.\d+)*)?)$", version) if isinstance(version, str) else None
    if not match:
        raise SaltInvocationError(
            f"version is {version!r}; write latest, '5' (any release of 5), '5-2.1' (exactly), '>=5' (at least), "
            "or a map of kernels to these"
        )
    return Wanted(version, bool(match.group(1)), numbers(match.group(2)))


def numbers(version):
    """Return what sorts versions as rpm does, 10 after 9, and nothing, None, before all."""
    return tuple(int(number) for number in re.findall(r"\d+", version or ""))
