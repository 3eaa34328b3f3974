"""
Live patching as numbers for Prometheus: a file that its node exporter reads (the textfile collector).

Salt's own scheduler keeps it fresh:

.. code-block:: yaml

    schedule:
      kgraft metrics:
        function: kgraft_metrics.write
        minutes: 5
        splay: 60

:maturity: new
:depends: the execution module ``kgraft``
:platform: Linux
"""

import calendar
import importlib.util
import os
import time

from salt.exceptions import CommandExecutionError, SaltInvocationError

__virtualname__ = "kgraft_metrics"

# Debian's; SUSE's node exporter has none until --collector.textfile.directory names one
DIRECTORY = "/var/lib/prometheus/node-exporter"

# name: what it says. There is no pid and no name of a task: each would be a series of its own.
HELP = {
    "kgraft_up": "Whether the kernel could be looked at.",
    "kgraft_observed_timestamp_seconds": "When it was looked at.",
    "kgraft_info": "The interface of the kernel (none without live patching), its release, and this module's version.",
    "kgraft_transition_in_progress": "Whether a transition runs.",
    "kgraft_transition_started_timestamp_seconds": "When the beacon kgraft first saw the transition that runs.",
    "kgraft_blocking_tasks": "Processes that hold the transition up; at least, where kgraft_blocking_complete is 0.",
    "kgraft_blocking_complete": "Whether all processes could be looked at.",
    "kgraft_patch_info": "A live patch that the kernel knows, and its state (unknown where the kernel does not say).",
    "kgraft_package_info": "The package of live patches: the version that is installed, the newest offered, what runs.",
    "kgraft_package_lists_timestamp_seconds": "When the lists of the repositories were read last.",
    "kgraft_supported_until_timestamp_seconds": "The end of live patches for this kernel.",
    "kgraft_reboot_needed": "Whether a reboot is needed; verdict has it in words.",
}


def _room(name, **others):
    """Execute the private sibling ``_kgraft_<name>.py``, which gets ``others`` first (docs/architecture.md, Rooms)."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"_kgraft_{name}.py")
    spec = importlib.util.spec_from_file_location(f"{__name__}_{name}", path)
    room = importlib.util.module_from_spec(spec)
    vars(room).update(others)
    spec.loader.exec_module(room)
    return room


files = _room("files")


def __virtual__():
    if "kgraft.overview" in __salt__:
        return __virtualname__
    return False, "kgraft_metrics asks the execution module kgraft, which is not loaded"


def write(directory=DIRECTORY):
    """
    Write ``kgraft.prom`` for Prometheus's node exporter, atomically and readable for all (0644).

    directory
        Where the exporter looks (its option ``--collector.textfile.directory``). It must be there. Default: Debian's,
        ``/var/lib/prometheus/node-exporter``

    Returns ``{path, up, notes}``: ``up`` is False where the kernel could not be looked at, which the file says, too
    (``kgraft_up 0``); ``notes`` as in ``kgraft.overview``. What is not known is not in the file. A file that nobody
    writes any more is told by ``kgraft_observed_timestamp_seconds``.

    Raises ``CommandExecutionError`` if the file could not be written; ``SaltInvocationError`` if ``directory`` is no
    absolute path.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft_metrics.write
        salt '*' kgraft_metrics.write directory=/var/lib/node_exporter
    """
    if not isinstance(directory, str) or not os.path.isabs(directory):
        raise SaltInvocationError(f"directory={directory!r}: must be an absolute path")
    try:
        told, patches = __salt__["kgraft.overview"](), {}
        if told["abi"]:
            patches = __salt__["kgraft.patches"]()
        metrics, notes = _metrics(told, patches), told["notes"]
    except CommandExecutionError as err:
        metrics, notes = [("kgraft_up", {}, 0), ("kgraft_observed_timestamp_seconds", {}, int(time.time()))], [str(err)]
    path = os.path.join(directory, "kgraft.prom")
    try:
        # the exporter drops a whole file that it cannot understand, and reads none whose name ends otherwise
        files.replace(path, _text(metrics), 0o644)
    except OSError as err:
        raise CommandExecutionError(str(err)) from err
    return {"path": path, "up": metrics[0][2] == 1, "notes": notes}


def _metrics(told, patches):
    """``[(name, labels, value)]``; a value of None is not known."""
    package, reboot = told["package"] or {}, told["reboot"] or {}
    found = [
        ("kgraft_up", {}, 1),
        ("kgraft_observed_timestamp_seconds", {}, _seconds(told["observed"])),
        ("kgraft_info", {key: told[key] or "none" for key in ("abi", "kernelrelease", "version")}, 1),
    ]
    if told["abi"]:
        held = told["blocking"] or {"count": 0, "complete": True}
        found += [
            ("kgraft_transition_in_progress", {}, int(told["state"] == "in_progress")),
            ("kgraft_transition_started_timestamp_seconds", {}, _seconds(told["since"])),
            ("kgraft_blocking_tasks", {}, held["count"]),
            ("kgraft_blocking_complete", {}, int(held["complete"])),
        ]
    for name, patch in sorted(patches.items()):
        found.append(("kgraft_patch_info", {"patch": name, "state": patch["state"] or "unknown"}, 1))
    if package:
        versions = {key: package[key] or "none" for key in ("installed", "newest")}
        found.append(("kgraft_package_info", dict(versions, running=told["running"] or "none"), 1))
        found.append(("kgraft_package_lists_timestamp_seconds", {}, _seconds(package["as_of"])))
    found.append(("kgraft_supported_until_timestamp_seconds", {}, _seconds(told["supported_until"])))
    if reboot:
        found.append(("kgraft_reboot_needed", {"verdict": reboot["verdict"]}, int(reboot["verdict"] == "needed")))
    return found


def _seconds(text):
    """A time or a day as kgraft.overview writes it, UTC, as seconds; None for none."""
    return text and calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ" if "T" in text else "%Y-%m-%d"))


def _text(metrics):
    lines, told = [], set()
    for name, labels, value in metrics:
        if value is None:
            continue
        if name not in told:
            lines += [f"# HELP {name} {HELP[name]}", f"# TYPE {name} gauge"]
            told.add(name)
        pairs = ",".join(f'{key}="{_escaped(labels[key])}"' for key in sorted(labels))
        lines.append("{}{} {}".format(name, f"{{{pairs}}}" if pairs else "", value))
    return "\n".join(lines) + "\n"


def _escaped(value):
    return str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
