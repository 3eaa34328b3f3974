"""
The words for a version that is wanted, which versions they mean, and what that makes of a machine.
"""

import collections
import re
import typing

from salt.exceptions import SaltInvocationError

if typing.TYPE_CHECKING:  # handed in

    def order(version):
        """Return what sorts versions as rpm does."""


NEWEST = ("latest", "previous")
FORMS = "latest, previous, '5' (any release of 5), '5-2.1' (exactly), '>=5' (at least), or a map of kernels to these"


class Wish(collections.namedtuple("Wish", "text at_least edition")):
    """``edition`` is a version with or without its release; None where only the repositories can tell it."""

    def is_met_by(self, version):
        if version is None or self.edition is None:
            return False
        if self.at_least:
            return order(_like(version, self.edition)) >= order(self.edition)
        return _like(version, self.edition) == self.edition

    def is_older_than(self, version):
        """Whether to get it would be a step back from ``version``."""
        if version is None or self.at_least or self.edition is None:
            return False
        return order(_like(version, self.edition)) > order(self.edition)


def _like(version, edition):
    """A version without its release, where the wished one has none."""
    return version if "-" in edition else version.split("-")[0]


def wish(version, kernelrelease):
    """Return what is wished for this kernel; None where a map does not name it."""
    if isinstance(version, dict):
        named = {str(kernel): value for kernel, value in version.items()}
        return wish(named[kernelrelease], None) if kernelrelease in named else None
    if isinstance(version, float):
        raise SaltInvocationError(f"version is {version!r}, a number to YAML, which may have lost a 0; quote it")
    if isinstance(version, int) and not isinstance(version, bool):
        version = str(version)
    if version in NEWEST:
        return Wish(version, version == "latest", None)
    match = re.fullmatch(r"(>=)?\s*(\d+(?:-\w+(?:\.\w+)*)?)", version, re.ASCII) if isinstance(version, str) else None
    if not match:
        raise SaltInvocationError(f"version is {version!r}; write {FORMS}")
    return Wish(version, bool(match.group(1)), match.group(2))


def checked(version):
    """Return an edition as text, None for none. YAML makes a number of 2 and of 2.1, and 2.10 has then become 2.1."""
    if version is None:
        return None
    if isinstance(version, int) and not isinstance(version, bool):
        version = str(version)
    if not isinstance(version, str) or not re.fullmatch(r"\d+(-[\w.]+)?", version, re.ASCII):
        raise SaltInvocationError(f"version is {version!r}: quote it, as '2' or '2-2.1'")
    return version


def matches(version, wanted):
    return wanted in (None, version, version.split("-")[0])


def before(newest, versions):
    """Return the newest of ``versions`` that has a lower number than ``newest``, whatever its release."""
    number = newest.split("-")[0]
    older = [version for version in versions if order(version.split("-")[0]) < order(number)]
    return max(older, key=order, default=None)


def step_back(wish, running, installed):
    """Return why to get it would be a step back; None where it is none."""
    for version, how in ((running, "active"), (installed, "installed")):
        if wish.is_older_than(version):
            least = wish.edition.split("-")[0]
            return f"newer is {how}: {version}; write >={least} or allow_downgrade: True"
    return None


def judge(wish, running, installed, offered, preferred):
    """
    Return ``(verdict, target, reason)`` as ``kgraft_pkg.check`` has them, for a wish with an edition.

    ``running`` is the version of the newest active patch, ``installed`` that of the package; ``offered`` all that the
    repositories have, of which zypper itself would take ``preferred``.
    """
    if wish.is_met_by(running):
        if installed is not None and order(installed) >= order(running):
            return "good", None, None
        # The next boot would bring an older one, or none: the package of what runs is wanted as well
        kept = [version for version in offered if wish.is_met_by(version) and order(version) >= order(running)]
        if not kept:
            return "good", None, None
        return "bring", running if running in kept else min(kept, key=order), None
    fitting = [version for version in [*offered, installed] if wish.is_met_by(version)]
    if not fitting:
        there = "there is " + ", ".join(offered) if offered else "there is none"
        return "refused", None, f"No enabled repository offers version {wish.text}; {there}."
    if preferred in fitting and order(installed) <= order(preferred):
        return "bring", preferred, None
    return "bring", max(fitting, key=order), None
