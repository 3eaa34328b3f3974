"""
What the unit tests share.

``moving``  ``(kernel, kgraft)``: a kernel of files in transition, of each interface, and the module bound to it
``clock``   a clock that only sleeping moves, for the public module of the same test
``Clock``   the same for any module or room: ``kgraft.tasks.time = Clock(times)``
"""

import pytest


@pytest.fixture(params=["kgraft", "livepatch"])
def moving(request, make_kernel, kgraft_on):
    """A kernel in transition, and the module bound to it, for each interface."""
    kernel = make_kernel(request.param)
    kernel.start("kgraft-patch-2-2_1" if request.param == "kgraft" else "livepatch_9_2_1")
    return kernel, kgraft_on(kernel)


class Clock:
    """The module's own time: the global one belongs to other threads of the tests, too."""

    def __init__(self, times=None):
        self.now, self.sleeps, self._times = 100.0, [], times

    def monotonic(self):
        return self.now if self._times is None else next(self._times)

    def sleep(self, seconds):
        self.sleeps.append(seconds)
        self.now += max(seconds, 1e-9)  # as a real one: a rest too small for a float must not stand still


@pytest.fixture
def clock(request):
    """A clock that only sleeping moves, for the module of the same test."""
    kgraft = (
        request.getfixturevalue("moving")[1] if "moving" in request.fixturenames else request.getfixturevalue("kgraft")
    )
    kgraft.time = Clock()
    return kgraft.time
