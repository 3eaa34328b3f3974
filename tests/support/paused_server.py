"""
A server that a test holds still for known times: it answers lines, and logs when it did.

``python -m tests.support.paused_server LOG ANSWERS HEARS_LAST``: after so many answers it closes a connection,
or, where the last argument is 1, when it is asked again.
"""

import contextlib
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent.parent


class Server:
    """``Server(log)``, as a context; ``server.address`` is where it answers ``ping`` with ``pong``."""

    def __init__(self, log, answers=10**9, hears_last=False):
        self.log, self.options = log, [str(answers), str(int(hears_last))]

    def __enter__(self):
        command = [sys.executable, "-m", "tests.support.paused_server", self.log, *self.options]
        self.process = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True)
        self.address = f"127.0.0.1:{self.process.stdout.readline().strip()}"
        return self

    def __exit__(self, *problem):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def pause(self, seconds):
        """Hold it still; whoever asks meanwhile is answered after."""
        self.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self.process.send_signal(signal.SIGCONT)

    def gap(self, began):
        """The longest time between two answers from then on, by its own log."""
        times = [began, *(float(line) for line in Path(self.log).read_text().split() if float(line) > began)]
        return max(later - earlier for earlier, later in zip(times, times[1:], strict=False))


def main(log, answers, hears_last):
    listener = socket.create_server(("127.0.0.1", 0))
    waiting, left = selectors.DefaultSelector(), {}
    waiting.register(listener, selectors.EVENT_READ)
    print(listener.getsockname()[1], flush=True)
    with open(log, "a", buffering=1) as times:
        while True:
            for key, _ in waiting.select():
                peer = key.fileobj
                if peer is listener:
                    peer = listener.accept()[0]
                    left[peer] = int(answers)
                    waiting.register(peer, selectors.EVENT_READ)
                    continue
                left[peer] -= 1
                with contextlib.suppress(ConnectionError):
                    if peer.recv(1000) and left[peer] >= 0:
                        peer.sendall(b"pong\n")
                        times.write(f"{time.monotonic()}\n")
                        if left[peer] or int(hears_last):
                            continue
                waiting.unregister(peer)
                peer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
