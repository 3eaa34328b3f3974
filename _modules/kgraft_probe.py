"""
How long a service did not answer.

A *probe* asks a service again and again, from a process of its own, and notes the longest time without an answer. With
``probes`` the states ``kgraft.applied`` and ``kgraft.settled`` do so while a patch comes. There are three kinds:

.. code-block:: yaml

    - exec: [/usr/local/sbin/ask-hana]
    - tcp: {address: 'localhost:6379', send: "PING\\r\\n", expect: "+PONG\\r\\n"}
    - reachable: 'db1.example.com:30015'

``exec``
    A program that asks as often as it likes and prints a line for each answer; the lines are timed. It must not keep
    them back (a pipe makes most programs do so, until told to flush), and give up a question itself after a few
    seconds. One that has ended, or printed no line for 10 seconds, is ended with all that it started (SIGKILL), counts
    as failed, and is started again, once a second at most. It runs as the minion does, so whoever may name it may run
    anything.
``tcp``
    A connection that is held. Every ``interval`` seconds (default: 1, at least 0.1) ``send`` goes out, and it is
    answered when ``expect`` has come; best the end of the answer. Each character is one byte. The time counts from when
    it *should* have asked. A connection that is lost, or brought no answer for 10 seconds, counts as failed, and is
    made anew when the next question is due.
``reachable``
    A connection that is made and closed each second. The kernel accepts it even where the service stands still, so this
    tells of no gap, only of failures.

Each may have a ``name`` beside its kind. By default it is the program's name, or the address. Port 22 is refused: sshd
counts such connections, and logs them.

:maturity: new
:platform: Linux
"""

import contextlib
import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
import time

from salt.exceptions import CommandExecutionError, SaltInvocationError

log = logging.getLogger(__name__)

__virtualname__ = "kgraft_probe"

MOST = 8  # probes: each is a process
ADDRESS = re.compile(r"(\[[\w:.%]+\]|[^\s:\[\]]+):[1-9][0-9]{0,4}\Z", re.ASCII)
FORMS = {
    "exec": "exec: a list of texts, the first of them the absolute path of a program that there is",
    "tcp": "tcp: {address: 'host:port', send: TEXT, expect: TEXT, interval: 0.1 to 60 (seconds)}, and not port 22",
    "reachable": "reachable: 'host:port', and not port 22",
    None: "one of exec, tcp and reachable, and beside it a name at most",
}
_processes = {}


def _room(name, **others):
    """Execute the private sibling ``_kgraft_<name>.py``, which gets ``others`` first (docs/architecture.md, Rooms)."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"_kgraft_{name}.py")
    spec = importlib.util.spec_from_file_location(f"{__name__}_{name}", path)
    room = importlib.util.module_from_spec(spec)
    vars(room).update(others)
    spec.loader.exec_module(room)
    return room


files = _room("files")
prober = _room("prober")
SOURCE = prober.__loader__.get_source(prober.__name__)


def __virtual__():
    return __virtualname__ if sys.platform == "linux" else (False, f"kgraft_probe needs Linux; this is {sys.platform}")


def run(probes, seconds=10):
    """
    Probe for a while.

    probes
        A list, see above.
    seconds
        How long. Default: 10

    Returns a dict from the name of a probe to its figures, or to None where its process did not start, or ended early:

    ``asked``, ``failed``
        how often it was asked, and of these without an answer
    ``longest_gap``
        the longest time without an answer, in seconds; None where there never was one, and of ``reachable``. Time
        before the first answer is no gap. Between two lines of a program lies at least its own pause.
    ``at``
        when that gap began, in seconds from the beginning
    ``at_rest``
        the longest gap before that, in the ``rest`` of :py:func:`start`
    ``overslept``
        by how much the probe itself woke late, at most, which it wants to each 0.05 seconds: where this is as long as
        the gap, it was the machine that stood still, and not the service alone

    Raises ``SaltInvocationError`` for a bad argument, before anything is started.

    CLI Example:

    .. code-block:: bash

        salt db1 kgraft_probe.run probes='[{exec: [/usr/local/sbin/ask-hana]}]' seconds=60
    """
    if type(seconds) not in (int, float) or not 0 < seconds <= 86400:
        raise SaltInvocationError(f"seconds={seconds!r}: must be a positive number, at most 86400")
    started = start(probes)
    time.sleep(seconds)
    return stop(started)


def start(probes, rest=0, test=False):
    """
    Start probes, for a state to stop. They end by themselves when the process that started them does, so at a prompt
    this is of use with ``test=True`` only.

    probes
        A list, see above.
    rest
        Seconds that are measured apart, as ``at_rest``; it returns when they are over. Default: 0
    test
        Check the argument and start none. Default: False

    Returns a dict from the name of each probe to its process id, to None where no process could be started; with
    ``test=True`` to None.

    Raises as :py:func:`run`.

    CLI Example:

    .. code-block:: bash

        salt db1 kgraft_probe.start '[{reachable: "db1:30015"}]' test=True
    """
    orders = _orders(probes)
    if test:
        return dict.fromkeys(orders)
    command = [sys.executable, "-I", "-S", "-c", SOURCE, str(os.getpid())]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "bufsize": 0}
    begins, started = time.monotonic() + rest, dict.fromkeys(orders)
    for name, order in orders.items():
        with contextlib.suppress(OSError):  # that nothing is known of a probe is told in its figures
            process = subprocess.Popen(command, start_new_session=True, **pipes)
            started[name], _processes[process.pid] = process.pid, process
            process.stdin.write(json.dumps([order, begins]).encode() + b"\n")
    time.sleep(max(0, begins - time.monotonic()))
    return started


def stop(started, keep=False):
    """
    Stop probes.

    started
        What :py:func:`start` returned, in the same process.
    keep
        Keep the figures in the minion's cache directory, for :py:func:`last`. The states do. Default: False

    Returns the figures, as :py:func:`run` does.

    Raises ``SaltInvocationError`` for a process that was not started here.

    CLI Example:

    .. code-block:: bash

        salt-call --local kgraft_probe.stop '{}'
    """
    if not isinstance(started, dict) or not all(pid in [None, *_processes] for pid in started.values()):
        raise SaltInvocationError(f"started={started!r}: must be what kgraft_probe.start returned in this process")
    seen = dict.fromkeys(started)
    for name in filter(started.get, started):
        process = _processes.pop(started[name])
        try:
            told = process.communicate(timeout=10)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            told = process.communicate()[0]
        seen[name] = json.loads(told.decode()) if told else None
    if keep:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        try:
            files.replace(_kept(), json.dumps({"at": at, "probes": seen}), 0o640)
        except OSError as err:
            log.warning("%s", err)
            with contextlib.suppress(OSError):  # older figures would be taken for these
                os.unlink(_kept())
    return seen


def last():
    """
    Return what was seen while a state ran last: ``{'at': '2026-11-23T02:10:00Z', 'probes': …}``, the time of its end
    and figures as of :py:func:`run`; None if none were kept.

    Raises ``CommandExecutionError`` if that cannot be read.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft_probe.last
    """
    try:
        with open(_kept(), encoding="utf-8") as file:
            told = json.load(file)
            return {key: told[key] for key in ("at", "probes")}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as err:
        raise CommandExecutionError(f"Cannot read {_kept()}: {err}") from err


def _kept():
    return os.path.join(__opts__["cachedir"], "kgraft_probe.json")


def _orders(probes):
    """``{name: options}``. A refusal does not show what would be run or sent: it may hold a password."""
    if not isinstance(probes, list) or len(probes) > MOST:
        raise SaltInvocationError(f"probes: must be a list, of {MOST} at most")
    orders = {}
    for number, probe in enumerate(probes, 1):
        probe = dict(probe) if isinstance(probe, dict) else {}
        name = probe.pop("name", None)
        kind, value = probe.popitem() if len(probe) == 1 else (None, None)
        order = _program(value) if kind == "exec" else _connection(kind, value)
        if not order:
            raise SaltInvocationError(f"probes: number {number}: must be {FORMS.get(kind, FORMS[None])}")
        name = str(name or (os.path.basename(value[0]) if kind == "exec" else "{}:{}".format(*order["address"])))
        if not name.isprintable() or name in orders:
            raise SaltInvocationError(f"probes: number {number}: needs a name of its own, in printable characters")
        orders[name] = order
    return orders


def _program(command):
    texts = isinstance(command, list) and all(isinstance(word, str) and "\0" not in word for word in command)
    is_there = texts and command and os.path.isabs(command[0]) and os.path.isfile(command[0])
    return {"command": command} if is_there and os.access(command[0], os.X_OK) else None


def _connection(kind, value):
    given = {"interval": 1, "send": "", "expect": ""}
    given.update(value if kind == "tcp" and isinstance(value, dict) else {"address": value})
    address, interval, texts = str(given.get("address")), given["interval"], (given["send"], given["expect"])
    host, _, port = address.rpartition(":")
    good = ADDRESS.match(address) and int(port) != 22 and int(port) < 65536 and len(given) == 4
    good = good and all(isinstance(text, str) and max(text, default="") < "\u0100" for text in texts)
    good = good and (all(texts) if kind == "tcp" else kind == "reachable")
    if good and type(interval) in (int, float) and 0.1 <= interval <= 60:
        return dict(given, address=[host.strip("[]"), int(port)])
    return None
