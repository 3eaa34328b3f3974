"""
A PostgreSQL at work: clients that query in a loop, connections that sit idle, and a TCP client that pings in a loop.
"""

import contextlib
import glob
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

import psycopg

from tests.conftest import REPO
from tests.support.packages import until

# one thread, for it stands for the many servers that sleep in select
ECHO = """
import selectors, socket
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
waiting = selectors.DefaultSelector()
waiting.register(listener, selectors.EVENT_READ)
while True:
    for key, _ in waiting.select():
        if key.fileobj is listener:
            waiting.register(listener.accept()[0], selectors.EVENT_READ)
        else:
            key.fileobj.sendall(key.fileobj.recv(100))
"""


class Client(threading.Thread):
    """Asks in a loop until ``ended``, and notes when it got an answer and which question failed."""

    def __init__(self, ask, ended):
        super().__init__(daemon=True)
        self.ask, self.ended = ask, ended
        self.answers = [time.monotonic()]
        self.failures = []

    def run(self):
        while not self.ended.is_set():
            try:
                self.ask()
            except (OSError, psycopg.Error, AssertionError) as err:
                self.failures.append(repr(err))
                return
            self.answers.append(time.monotonic())
            self.ended.wait(0.001)

    def longest_gap(self, began=0.0, ended=float("inf")):
        """The longest time without an answer, in seconds."""
        answers = [when for when in self.answers if began <= when <= ended]
        return max(later - earlier for earlier, later in zip(answers, answers[1:], strict=False))


class BusyDatabase:
    """
    Everything started, as a context.

    ``pids``      the servers' processes, the database's and the echo's
    ``clients``   ``query`` and ``ping``, each a ``Client``
    ``idle``      open connections that do nothing
    """

    def __init__(self, idle=20, queries=2):
        self._counts = (idle, queries)
        self._ended = threading.Event()

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            # not below root's own directories, where the user postgres could not go
            self.place = pathlib.Path(tempfile.mkdtemp(prefix="kgpg", dir="/tmp"))
            stack.callback(shutil.rmtree, self.place, ignore_errors=True)
            shutil.chown(self.place, "postgres", "postgres")
            self._server = stack.enter_context(self._postgres())
            self._echo = stack.enter_context(self._echo_server())
            idle, queries = self._counts
            self.idle = [stack.enter_context(self.connect()) for _ in range(idle)]
            self.clients = [Client(self._query(stack), self._ended) for _ in range(queries)]
            self.clients.append(Client(self._ping(stack), self._ended))
            for client in self.clients:
                client.start()
            stack.callback(self.stop)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *problem):
        self._stack.close()

    def stop(self):
        """Let the clients end with what they are asking."""
        self._ended.set()
        for client in self.clients:
            client.join(30)

    @contextlib.contextmanager
    def _postgres(self):
        programs = pathlib.Path(max(glob.glob("/usr/lib/postgresql/*/bin")))
        as_postgres = {"user": "postgres", "group": "postgres", "extra_groups": [], "cwd": self.place}
        with open(self.place / "log", "w") as log:
            quiet = {"stdout": log, "stderr": log, **as_postgres}
            initdb = [programs / "initdb", "--pgdata", self.place / "data", "--auth", "trust", "--no-sync"]
            subprocess.run(initdb, check=True, **quiet)
            options = ["-c", "listen_addresses=", "-k", str(self.place), "-c", "fsync=off"]
            server = subprocess.Popen([programs / "postgres", "-D", self.place / "data", *options], **quiet)
        try:
            until(self._is_open, 60)
            yield server
        finally:
            server.send_signal(2)
            server.wait(60)

    def _is_open(self):
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def connect(self):
        return psycopg.connect(host=str(self.place), user="postgres", dbname="postgres", autocommit=True)

    @contextlib.contextmanager
    def _echo_server(self):
        server = subprocess.Popen([sys.executable, "-c", ECHO], stdout=subprocess.PIPE, text=True)
        try:
            self._port = int(server.stdout.readline())
            yield server
        finally:
            server.kill()
            server.wait()
            server.stdout.close()

    def _query(self, stack):
        connection = stack.enter_context(self.connect())
        return lambda: connection.execute("SELECT count(*) FROM pg_class").fetchone()

    def _ping(self, stack):
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", self._port), 30))

        def ping():
            connection.sendall(b"ping")
            assert connection.recv(100) == b"ping"

        return ping

    @property
    def pids(self):
        children = pathlib.Path(f"/proc/{self._server.pid}/task/{self._server.pid}/children").read_text()
        return [self._server.pid, self._echo.pid, *map(int, children.split())]

    @property
    def probe(self):
        """The example of a probe, which asks this database."""
        wishes = f"host={self.place} user=postgres dbname=postgres"
        command = [sys.executable, str(REPO / "examples/probes/ask-postgresql"), wishes]
        return {"exec": command, "name": "ask-postgresql"}

    def backends(self):
        """The process behind each idle connection, which has nothing left to do."""
        # within 10 s of a query each would wake once more to report its statistics, unless it reports them now
        query = "SELECT pg_backend_pid(), pg_stat_force_next_flush()"
        return [connection.execute(query).fetchone()[0] for connection in self.idle]
