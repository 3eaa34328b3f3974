#!py
"""
What the form asks for (form.yml), as states. A value that is wrong makes one state that fails, whose sentence names the
field as the form does.

A form hands on what it has: empty fields as "" or None, numbers as text, and the values of fields that are hidden. So
everything is read here by one table, and a field that the form hides is not looked at.
"""

import re
import shlex

YEAR = 366 * 24 * 3600
WISHES = ("newest", "one version", "one per kernel")
# which the form does not have: a reactor's, which reads it itself (docs/react-to-it.md)
OTHERS = ("poke:tries",)


def _switch(value):
    _must(isinstance(value, bool), "True or False, without quotes", value)
    return value


def _seconds(lowest):
    def read(value):
        if isinstance(value, str) and re.match(r"\d{1,9}(\.\d{1,9})?\Z", value.strip(), re.ASCII):
            value = float(value) if "." in value else int(value)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        _must(is_number and lowest <= value <= YEAR, f"seconds, {lowest} to {YEAR}", value)
        return value

    return read


def _wish(value):
    _must(value in WISHES, " or ".join(WISHES), value)
    return value


def _version(value):
    value = str(value) if type(value) is int else value
    is_version = isinstance(value, str) and re.match(r"(>=)?\s*\d+(-\w+(\.\w+)*)?\Z", value, re.ASCII)
    _must(is_version, "a version as 5, 5-2.1 or >=5", value)
    return value


def _versions(value):
    _must(isinstance(value, dict), "a version for each kernel", value)
    # a row that nobody filled in is none
    rows = {kernel: version for kernel, version in value.items() if not (_is_empty(kernel) and _is_empty(version))}
    for kernel in rows:
        is_release = isinstance(kernel, str) and re.match(r"[\w.+~-]+\Z", kernel)
        _must(is_release, "versions below kernel releases, as uname -r says them", kernel)
    return {kernel: _version(rows[kernel]) for kernel in sorted(rows)}


def _patterns(value):
    patterns = _texts(value)
    for pattern in patterns:
        _must(re.match("(name|unit|user):.", pattern), "patterns that begin with name:, unit: or user:", pattern)
    return patterns


def _programs(value):
    """What is wrong is not shown, for it may hold a password."""
    programs = []
    for number, line in enumerate(_texts(value), 1):
        try:
            words = shlex.split(line)
        except ValueError:
            words = []
        _must(words and words[0].startswith("/"), "paths of programs, with their arguments")
        programs.append({"name": "{} {}".format(words[0].split("/")[-1], number), "exec": words})
    return programs


def _reference(value):
    """What is no reference is not shown, for it may be the code."""
    is_reference = isinstance(value, str) and re.match(r"pillar:.|sdb://|(file:)?/", value)
    _must(is_reference, "pillar:some:key, sdb://… or the path of a file, never the code itself")
    return value


def _directory(value):
    _must(isinstance(value, str) and value.startswith("/"), "an absolute path", value)
    return value


def _texts(value):
    is_list = isinstance(value, list) and all(isinstance(one, str) or one is None for one in value)
    _must(is_list, "a list of texts")
    return [one.strip() for one in value if not _is_empty(one)]


def _must(is_right, allowed, *shown):
    if not is_right:
        said = [repr(one)[:60] if isinstance(one, (str, int, float)) else f"a {type(one).__name__}" for one in shown]
        raise ValueError("".join(f"is {what}; it " for what in said) + f"must be {allowed}")


def _is_empty(value):
    return value is None or isinstance(value, str) and not value.strip()


# where it stands in the pillar: its label in the form, how it is read, and what it is where it is empty
FIELDS = {
    "activate": ("Activate", _switch, True),
    "register": ("Register the product", _switch, False),
    "code_from": ("Registration code from", _reference, None),
    "wish": ("Live patch", _wish, "newest"),
    "version": ("Version", _version, None),
    "versions": ("Versions by kernel", _versions, None),
    "settle": ("Wait until it has settled", _switch, False),
    "timeout": ("Timeout (seconds)", _seconds(1), 600),
    "poke:enabled": ("Poke sleeping processes", _switch, False),
    "poke:after": ("Poke after (seconds)", _seconds(0), 120),
    "poke:protect": ("Protect", _patterns, ["name:hdb*"]),
    "beacon:enabled": ("Send events", _switch, True),
    "beacon:stuck_after": ("Stuck after (seconds)", _seconds(1), 120),
    "beacon:remind": ("Remind after (seconds)", _seconds(0), 3600),
    "beacon:interval": ("Look every (seconds)", _seconds(1), 10),
    "probes": ("Probes", _programs, None),
    "metrics_directory": ("Metrics directory", _directory, None),
}


def run():
    try:
        return _states(_given(__pillar__.get("kgraft")))
    except ValueError as err:
        return {"kgraft: the form": _failure(str(err))}


def _given(pillar, above=""):
    """``{path: value}`` of all that is not empty."""
    if _is_empty(pillar):
        return {}
    if not isinstance(pillar, dict):
        raise ValueError("kgraft in the pillar{} is no mapping, as the form writes it.".format(above and ", " + above))
    found = {}
    for key, value in pillar.items():
        path = f"{above}{key}"
        if any(field.startswith(f"{path}:") for field in FIELDS):
            found.update(_given(value, f"{path}:"))
        elif path in FIELDS:
            found.update({} if _is_empty(value) else {path: value})
        elif path not in OTHERS:
            known = ", ".join(sorted(FIELDS))
            raise ValueError(f"The form of kgraft has no field for {path[:60]!r} in the pillar; it has {known}.")
    return found


def _states(given):
    def ask(path, must=False):
        label, read, found = FIELDS[path]
        try:
            if path in given:
                found = read(given[path])
        except ValueError as err:
            raise ValueError(f'The field "{label}" of the form of kgraft {err}.') from err
        if must and not found:
            raise ValueError(f'The field "{label}" of the form of kgraft is empty.')
        return found

    states, timeout = {}, ask("timeout")
    if ask("activate"):
        register = ask("register")
        wanted = {"register": register, "code_from": ask("code_from") if register else None, "timeout": timeout}
        states["kgraft: live patches are offered"] = _state("kgraft.activated", wanted)
    version = {"newest": "latest", "one version": "version", "one per kernel": "versions"}[ask("wish")]
    wanted = {"version": version if version == "latest" else ask(version, must=True)}
    protect = ask("poke:protect")
    wanted.update(settle=ask("settle"), timeout=timeout, protect=protect or None, probes=ask("probes") or None)
    if ask("poke:enabled"):
        wanted["poke_after"] = ask("poke:after")
    wanted["require"] = [{"kgraft": name} for name in states]
    states["kgraft: the kernel is patched"] = _state("kgraft.applied", wanted)
    beacon = ask("beacon:enabled")
    wanted = {"name": "kgraft", "save": True}
    if beacon:
        wanted.update((option, ask(f"beacon:{option}")) for option in ("interval", "stuck_after", "remind"))
        wanted["protect"] = protect
    states["kgraft: the beacon"] = _state("beacon.present" if beacon else "beacon.absent", wanted)
    directory = ask("metrics_directory")
    wanted = {"name": "kgraft metrics"}
    if directory:
        wanted.update(function="kgraft_metrics.write", minutes=5, splay=60, job_kwargs={"directory": directory})
    states["kgraft: the metrics"] = _state("schedule.present" if directory else "schedule.absent", wanted)
    if directory and "kgraft_metrics.write" not in __salt__:
        states["kgraft: the metrics"] = _failure("The module kgraft_metrics is not loaded on this minion: sync it.")
    return states


def _state(function, arguments):
    return {function: [{name: value} for name, value in arguments.items()]}


def _failure(sentence):
    # as the name, too, for a dry run says no comment but its own
    return _state("test.fail_without_changes", {"name": sentence, "comment": sentence})
