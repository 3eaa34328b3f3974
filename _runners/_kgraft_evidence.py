"""
Files of evidence: what each machine said, and who said nothing, in files of which each holds the SHA-256 of the one
before it, signed by ``ssh-keygen -Y`` where there is a key.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import typing

if typing.TYPE_CHECKING:  # handed in
    from . import _kgraft_fleet as fleets
    from . import _kgraft_report as reports

FORMAT = 1
FILE = re.compile(r"kgraft-evidence-([0-9]{6}|[1-9][0-9]{6,8})\.json")
NAMESPACE = "kgraft-evidence"
# what each machine is asked, beside kgraft.overview and the CVEs
CALLS = {
    "grains.item": (("machine_id", "fqdn", "serialnumber", "osfinger"), {}),
    "kgraft.patches": ((), {}),
    "kgraft.status": ((), {}),
    "kgraft_probe.last": ((), {}),
    "kgraft_security.dates": ((), {}),
    "kgraft_security.fixes": ((), {}),
}
OF_OVERVIEW = "version observed kernelrelease boot_id state direction running package supported_until reboot notes"
_SECONDS = 60


# What is kept of a machine


def plain(value, depth=6):
    """What a machine said, as JSON can hold it, and not too long."""
    if isinstance(value, dict) and depth:
        return {fleets.line(key): plain(value[key], depth - 1) for key in value}
    if isinstance(value, (list, tuple)) and depth:
        return [plain(one, depth - 1) for one in value]
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return fleets.line(value, 1000)


def record(answer, about, cves, transitions, names):
    """
    Return what is kept of a machine: its answers to all functions, what is said ``about`` it and its ``cves``, and its
    ``transitions`` that the beacon saw finish, the oldest first. ``names`` says whether those of tasks are kept.
    """
    told = {name: value for name, value in answer.items() if isinstance(value, dict)}
    overview, dates = told.get("kgraft.overview", {}), told.get("kgraft_security.dates", {})
    kept = {key: about[key] for key in ("class", "why", "instead_of") if key in about}
    kept.update((key, overview.get(key)) for key in OF_OVERVIEW.split())
    blocking = overview.get("blocking")
    kept["blocking"] = blocking if names or not blocking else {key: blocking[key] for key in ("count", "complete")}
    kept.update(identity=told.get("grains.item"), fixes=told.get("kgraft_security.fixes"), cves=cves)
    kept.update(probes=told.get("kgraft_probe.last"), patches={} if "kgraft.patches" in told else None)
    for module, patch in told.get("kgraft.patches", {}).items():
        one = dict(patch, **(dates.get("patches") or {}).get(module, {}))
        one = {key: one.get(key) for key in ("state", "version", "released", "installed", "settled")}
        one["settled_by"] = "the kernel's log" if one["settled"] else None
        for seen in transitions if one["state"] == "applied" else ():
            if (seen.patch, seen.boot_id, seen.direction) == (module, kept["boot_id"], "apply"):
                one.update(settled=fleets.stamp(seen.last), settled_by="the beacon's history")
        released, settled = fleets.moment(one["released"]), fleets.moment(one["settled"])
        one["days"] = round((settled - released) / 86400, 1) if released and settled else None
        kept["patches"][module] = one
    # where no figures were kept it answers with None
    known = {*told, *(name for name in ["kgraft_probe.last"] if answer.get(name, name) is None)}
    missed = [(name, reports.instead(answer.get(name), name)) for name in sorted({*CALLS, "kgraft.overview"} - known)]
    kept["unread"] = [f"{name}: {why or 'is not loaded there'}" for name, why in missed] + (dates.get("unread") or [])
    return kept


def records(answers, found, matrix, transitions, names):
    """Return ``{id: what is kept of it}``. An answer may be anything."""
    kept, finished = {}, {}
    for one in transitions:
        if one.ended == "finished":
            finished.setdefault(one.machine, []).append(one)
    for machine, answer in answers.items():
        answer = answer if isinstance(answer, dict) else {"kgraft.overview": answer}
        cves = {number: of[machine] for number, of in matrix.items()}
        try:
            kept[machine] = plain(record(answer, found[machine], cves, finished.get(machine, ()), names))
        except (AttributeError, LookupError, TypeError, ValueError, RecursionError):
            kept[machine] = dict(found[machine], cves=cves, unread=["its answer cannot be understood"])
    return kept


# The files


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def files(directory):
    """Return ``{number: path}``, the oldest first."""
    found = {int(FILE.fullmatch(name).group(1)): name for name in os.listdir(directory) if FILE.fullmatch(name)}
    return {number: os.path.join(directory, found[number]) for number in sorted(found)}


def save(directory, told, key):
    """
    Write one more file, whole and, with a key, signed, or none at all. Return its path and its SHA-256.
    """
    os.makedirs(directory, mode=0o750, exist_ok=True)
    with contextlib.ExitStack() as stack:
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = list(files(directory).items())[-1:]
        previous = [{"file": os.path.basename(path), "sha256": sha256(path)} for _, path in before]
        number = before[0][0] + 1 if before else 1
        path = os.path.join(directory, f"kgraft-evidence-{number:06}.json")
        told = dict(told, format=FORMAT, number=number, previous=previous[0] if previous else None)
        with contextlib.suppress(FileNotFoundError):  # of one that was cut short
            os.unlink(path + ".sig")
        scratch = os.path.join(directory, ".writing")
        shutil.rmtree(scratch, ignore_errors=True)
        os.mkdir(scratch, mode=0o700)
        stack.callback(shutil.rmtree, scratch)
        draft = os.path.join(scratch, "evidence")
        with open(draft, "w", encoding="utf-8") as file:
            json.dump(told, file, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        for name in sign(draft, key) if key else [draft]:
            os.chmod(name, 0o640)
            os.rename(name, path + name[len(draft) :])
        os.fsync(lock)
        return path, sha256(path)


def sign(path, key):
    """Sign a file; return the signature and the file. The key must have no passphrase, or an agent that holds it."""
    _keygen("-Y", "sign", "-f", key, "-n", NAMESPACE, path)
    return [path + ".sig", path]


def _keygen(*words, stdin=subprocess.DEVNULL):
    try:
        done = subprocess.run(
            ["ssh-keygen", *words],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(os.environ, SSH_ASKPASS_REQUIRE="never", LC_ALL="C"),
            start_new_session=True,  # without a terminal it asks for no passphrase
            timeout=_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise ValueError(f"ssh-keygen: {fleets.line(err)}") from err
    told = done.stdout.decode("utf-8", "replace")
    if done.returncode:
        raise ValueError(f"ssh-keygen -Y {words[1]} failed: {fleets.line(told)}")
    return told


def signed(path, signers):
    """Check the signature of a file; return who signed it."""
    who = _keygen("-Y", "find-principals", "-s", path + ".sig", "-f", signers).splitlines()[0]
    with open(path, "rb") as file:
        _keygen("-Y", "verify", "-f", signers, "-I", who, "-n", NAMESPACE, "-s", path + ".sig", stdin=file)
    return who


def broken(found, signers):
    """Return the first file that is not as it was written, and the reason; None if all of them are."""
    before = None
    for number, path in found.items():
        name, previous = os.path.basename(path), None
        try:
            if before and number != before[0] + 1:
                raise ValueError(f"kgraft-evidence-{before[0] + 1:06}.json is missing before it")
            with open(path, "rb") as file:
                told = json.loads(file.read().decode("utf-8"))
            if (told["format"], told["number"]) != (FORMAT, number):
                raise ValueError(f"it says that it is number {told['number']!r} of format {told['format']!r}")
            previous = told["previous"]
            if before and previous != before[1]:
                raise ValueError(f"{before[1]['file']} is not the one that was there when it was written")
            if not before and (number == 1) != (previous is None):
                raise ValueError("what it says of the one before it cannot be")
            if signers and os.path.exists(path + ".sig"):
                signed(path, signers)
            elif signers and number == max(found):
                raise ValueError("it is the newest, and is not signed")
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as err:
            return name, fleets.line(err)
        before = number, {"file": name, "sha256": sha256(path)}
    return None
