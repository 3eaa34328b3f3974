"""A process that does with beacons what a minion's main loop does, to be killed at any moment."""

import multiprocessing
import os
import signal
import time

# Salt is imported once, and each process is a fork of that: a new one costs milliseconds.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["salt.beacons", "salt.loader"])


def _serve(opts, config, commands, events):
    import salt.beacons
    import salt.loader

    def load():
        return salt.beacons.Beacon(opts, salt.loader.minion_mods(opts))

    loop = load()
    while True:
        command = commands.recv()
        if command == "refresh":
            loop.close_beacons() if hasattr(loop, "close_beacons") else None
            loop = load()
        else:
            for event in loop.process(config, {}):
                events.send((event["tag"], event["data"]))
        events.send(None)


class BeaconProcess:
    """``look()`` and ``refresh()`` as a minion would; ``killed_look()`` ends the process somewhere in a look."""

    def __init__(self, opts, config):
        self._commands, commands = multiprocessing.Pipe()
        self._events, events = multiprocessing.Pipe()
        self._process = FORKS.Process(target=_serve, args=(opts, config, commands, events), daemon=True)
        self._process.start()
        commands.close()
        events.close()
        self.looks = 0

    def look(self):
        self.looks += 1
        return self._command("look")

    def refresh(self):
        self._command("refresh")

    def killed_look(self, after):
        """Begin a look, kill the process ``after`` seconds, and return what it had sent."""
        self.looks += 1
        self._commands.send("look")
        deadline = time.monotonic() + after
        while time.monotonic() < deadline:
            pass
        os.kill(self._process.pid, signal.SIGKILL)
        return list(self._received())

    def end(self):
        self._process.kill()
        self._process.join()

    def _command(self, command):
        self._commands.send(command)
        return list(self._received())

    def _received(self):
        try:
            while self._events.poll(60):
                event = self._events.recv()
                if event is None:
                    return
                yield event
        except EOFError:
            self._process.join()
            return
        raise TimeoutError("the process neither answers nor ends")
