"""A minion as a beacon sees it, with a clock of our own; ``tests/support/beacon_fixtures.py`` has one as a fixture."""

from types import SimpleNamespace
from unittest.mock import create_autospec

from salt.exceptions import CommandExecutionError

OTHER_BOOT = "0a0a0a0a-9dad-11d1-80b4-00c04fd430c8"


class Minion:
    """A minion process as a beacon sees it: it looks, is refreshed, is killed."""

    def __init__(self, load, kgraft, cachedir, name="kgraft"):
        self.load = load
        self.cachedir = cachedir
        self.name = name
        self.options = []
        self.clock = SimpleNamespace(now=1000.0, wall=1_790_000_000.0)
        # the real functions, called only as they are meant to be
        self.calls = {
            f"kgraft.{question}": create_autospec(getattr(kgraft, question), side_effect=getattr(kgraft, question))
            for question in ("status", "patches", "blocking")
        }
        self.start()

    def start(self):
        self.module = self.load(
            "_beacons/kgraft.py", __salt__=self.calls, __opts__={"id": "minion", "cachedir": str(self.cachedir)}
        )
        self._set_clock()

    restart = start

    def refresh(self):
        source = self.module.__file__
        with open(source, encoding="utf-8") as file:
            exec(compile(file.read(), source, "exec"), vars(self.module))
        self._set_clock()

    def _set_clock(self):
        self.module.time = SimpleNamespace(monotonic=lambda: self.clock.now, time=lambda: self.clock.wall)

    def look(self, after=1):
        self.clock.now += after
        self.clock.wall += after
        return self.module.beacon([*self.options, {"_beacon_name": self.name}])

    @property
    def memory(self):
        return self.cachedir / f"kgraft_beacon_{self.name}.json"


def tags(events):
    return [event["tag"] for event in events]


def fail(function, message):
    function.side_effect = CommandExecutionError(message)
