"""
What users give to a state, and whether it can be.
"""

import collections
import time

from salt.exceptions import SaltInvocationError

Options = collections.namedtuple("Options", "version cves not_affected refresh allow_downgrade settle max_metadata_age")


class Run:
    """One run of a state: the time and the pokes that it may use, and what was seen and done so far."""

    def __init__(self, timeout, poke_after=None, protect=None, probes=None, fail_on_gap=None, **switches):
        self.timeout, self.poke_after, self.protect = timeout, poke_after, protect
        self.probes, self.fail_on_gap = probes, fail_on_gap
        self.before = None  # the first look
        self.look = None  # takes another one
        self.installed = None  # the package's version; Ellipsis where it is not known what became of it
        self.pokes = []  # the answers of kgraft.poke
        self.seen = {}  # the answer of kgraft_probe.stop
        _check_number("timeout", timeout, 0, "a number of seconds above 0")
        if poke_after is not None:
            _check_number("poke_after", poke_after, -1, "a number of seconds, or None for never")
        if fail_on_gap is not None:
            _check_number("fail_on_gap", fail_on_gap, 0, "a number of seconds above 0, or None for never")
        if fail_on_gap is not None and not probes:
            raise SaltInvocationError(f"fail_on_gap is {fail_on_gap!r}, but there are no probes")
        for argument, value in switches.items():
            if not isinstance(value, bool):
                raise SaltInvocationError(f"{argument} is {value!r}; it must be True or False, without quotes")
        self.until = time.monotonic() + timeout

    def left(self):
        """The seconds that are left of ``timeout``, never none: a question to another module takes a moment."""
        return max(1.0, self.until - time.monotonic())


def _check_number(argument, value, above, must):
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not above < value < float("inf") or value < 0:
        raise SaltInvocationError(f"{argument} is {value!r}; it must be {must}")
