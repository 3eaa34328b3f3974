"""
``kgraft.applied`` on many machines: dry, live, live again. The dry run promises what the live run does, the second run
has nothing to do, and the result is what the kernel says.

The table runs on ``suse_of_files.Machine`` and on ``machine.Machine``, which has real processes.
"""

from tests.support.packages import KERNEL, KERNEL_15

V = {"kgraft": ("2-2.1", "9-2.2", "10-2.1"), "livepatch": ("1-150400.9.3.1", "9-2.1", "10-150400.2.1")}
NOT_KNOWN = "not known before"
DAY = 24 * 3600


# id, what the machine is before (methods of a machine), arguments; then what must be: result, active and installed
# version (None: as before),
# what the comment says. {old} {mid} {new} are versions that are offered.
SCENARIOS = [
    # nothing there yet
    ("latest", [], {}, True, "{new}", "{new}", "{new} is applied and settled, and is the newest offered as of 20"),
    ("a number", [], {"version": "9"}, True, "{mid}", "{mid}", "{mid} is applied and settled."),
    ("a number as YAML has it", [], {"version": 9}, True, "{mid}", "{mid}", "{mid} is applied"),
    ("an edition", [], {"version": "{mid}"}, True, "{mid}", "{mid}", "{mid} is applied"),
    ("at least", [], {"version": ">=2"}, True, "{new}", "{new}", "{new} is applied"),
    ("previous", [], {"version": "previous"}, True, "{mid}", "{mid}", "{mid} is applied"),
    ("a map", [], {"version": {KERNEL: "9", KERNEL_15: "9"}}, True, "{mid}", "{mid}", "{mid} is applied"),
    ("a map without this kernel", [], {"version": {"x": "9"}}, False, None, None, "version names no patch for this"),
    ("a number that is not there", [], {"version": "7"}, False, None, None, "offers version 7; there is {new}"),
    ("an edition that is not there", [], {"version": "9-9.9"}, False, None, None, "offers version 9-9.9; there is"),
    ("more than there is", [], {"version": ">=11"}, False, None, None, "offers version >=11; there is {new}"),
    ("without waiting", [], {"settle": False}, True, "{new}", "{new}", "settles without being waited for"),
    # there already
    (
        "latest again",
        [("runs", "{new}")],
        {},
        True,
        None,
        None,
        "{new} is already applied and settled, and is the newest",
    ),
    ("a number again", [("runs", "{mid}")], {"version": "9"}, True, None, None, "{mid} is already applied"),
    ("at least again", [("runs", "{mid}")], {"version": ">=2"}, True, None, None, "{mid} is already applied"),
    ("more than wished", [("runs", "{new}")], {"version": ">=2"}, True, None, None, "{new} is already applied"),
    ("previous again", [("runs", "{mid}")], {"version": "previous"}, True, None, None, "{mid} is already applied"),
    # going on
    ("to the newest", [("runs", "{mid}")], {}, True, "{new}", "{new}", "{new} is applied and settled, and is"),
    ("over two", [("runs", "{old}", "{mid}")], {}, True, "{new}", "{new}", "{new} is applied and settled"),
    ("on without waiting", [("runs", "{mid}")], {"settle": False}, True, "{new}", "{new}", "without being waited for"),
    ("at least, from less", [("runs", "{old}")], {"version": ">=9"}, True, "{new}", "{new}", "{new} is applied"),
    # going back
    ("back unasked", [("runs", "{new}")], {"version": "9"}, False, None, None, "newer is active: {new}; write >=9 or"),
    ("back", [("runs", "{new}")], {"version": "9", "allow_downgrade": True}, True, "{mid}", "{mid}", "is applied"),
    (
        "to previous",
        [("runs", "{new}")],
        {"version": "previous"},
        True,
        "{mid}",
        "{mid}",
        "{mid} is applied and settled.",
    ),
    (
        "back to what is in memory",
        [("runs", "{mid}", "{new}")],
        {"version": "9", "allow_downgrade": True},
        True,
        "{mid}",
        "{mid}",
        "{mid} is applied and settled.",
    ),
    (
        "previous, in memory",
        [("runs", "{mid}", "{new}")],
        {"version": "previous"},
        True,
        "{mid}",
        "{mid}",
        "{mid} is applied",
    ),
    (
        "on to what is in memory",
        [("runs", "{new}", "{mid}")],
        {},
        True,
        "{new}",
        "{new}",
        "{new} is applied and settled",
    ),
    (
        "package only is newer",
        [("runs", "{mid}"), ("holds", "{new}")],
        {"version": "9"},
        True,
        None,
        None,
        "The package holds {new}",
    ),
    # installed and not loaded, loaded and not installed
    ("installed only", [("holds", "{new}")], {}, True, "{new}", "{new}", "{new} is applied and settled"),
    (
        "installed, an older one runs",
        [("runs", "{mid}"), ("holds", "{new}")],
        {},
        True,
        "{new}",
        "{new}",
        "{new} is applied",
    ),
    ("no package holds it", [("loads", "{new}")], {}, True, "{new}", "{new}", "{new} is applied and settled"),
    (
        "no package holds an older one",
        [("loads", "{mid}")],
        {"version": "9"},
        True,
        "{mid}",
        "{mid}",
        "{mid} is applied and settled.",
    ),
    (
        "an older package",
        [("runs", "{new}"), ("holds", "{mid}")],
        {},
        True,
        "{new}",
        "{new}",
        "{new} is applied and settled",
    ),
    # a transition is running
    ("it is on its way", [("moves", "{new}")], {}, True, "{new}", "{new}", "{new} is applied and settled"),
    (
        "on its way, not waited",
        [("moves", "{new}")],
        {"settle": False},
        True,
        "{new}",
        "{new}",
        "without being waited for",
    ),
    ("another is on its way", [("moves", "{mid}")], {}, True, "{new}", "{new}", "{new} is applied and settled"),
    ("at least is on its way", [("moves", "{mid}")], {"version": ">=9"}, True, "{mid}", "{mid}", "{mid} is applied"),
    # LIVEPATCH_KERNEL
    *(
        (
            f"sysconfig {text!r}",
            [("configure", text)],
            {},
            result,
            "{new}" if result else None,
            "{new}",
            "{new} is applied" if result else "LIVEPATCH_KERNEL=never",
        )
        for text, result in (
            ("LIVEPATCH_KERNEL=never\n", False),
            ('LIVEPATCH_KERNEL="never"\n', False),
            ("export LIVEPATCH_KERNEL=never # not here\n", False),
            ("LIVEPATCH_KERNEL=auto\nLIVEPATCH_KERNEL='never'\n", False),
            ("LIVEPATCH_KERNEL=NEVER\n", True),
            ("LIVEPATCH_KERNEL=yes\n", True),
            ("LIVEPATCH_KERNEL=\n", True),
            ("# LIVEPATCH_KERNEL=never\n", True),
            ("LIVEPATCH_KERNEL=always\n", True),
        )
    ),
    # repositories
    ("dead, read an hour ago", [("runs", "{new}"), ("ages", 3600)], {}, True, None, None, "Not read: live-patching of"),
    (
        "dead, read long ago",
        [("runs", "{new}"), ("ages", 2 * DAY)],
        {},
        False,
        None,
        None,
        "these lists are too old: live-",
    ),
    (
        "dead, and older is allowed",
        [("runs", "{new}"), ("ages", 2 * DAY)],
        {"max_metadata_age": 3 * DAY},
        True,
        None,
        None,
        "is the newest offered as of 20",
    ),
    ("dead, a number", [("runs", "{new}"), ("ages", 2 * DAY)], {"version": "10"}, True, None, None, "{new} is already"),
    (
        "old, and can be read again",
        [("runs", "{new}"), ("ages", 9 * DAY, False)],
        {},
        True,
        None,
        None,
        "is the newest offered",
    ),
    (
        "old, and not to be read again",
        [("runs", "{new}"), ("ages", 9 * DAY, False)],
        {"refresh": False},
        False,
        None,
        None,
        "these lists are too old",
    ),
    (
        "another one is dead",
        [("runs", "{new}"), ("repository", "far", {"x": ["1-1"]}, {"dead": True})],
        {},
        True,
        None,
        None,
        "Not read: far of the tests",
    ),
    (
        "another one died long ago",
        [("runs", "{new}"), ("repository", "far", {"x": ["1-1"]}, {"dead": True, "age": 9 * DAY})],
        {},
        True,
        None,
        None,
        "Not read: far of the tests",
    ),
    (
        "another one was never read",
        [("runs", "{new}"), ("repository", "far", {}, {"dead": True, "read": False})],
        {},
        False,
        None,
        None,
        "far (as of never)",
    ),
    (
        "it is there twice",
        [("repository", "copy", {"{package}": ["{new}", "{mid}"]}, {})],
        {},
        True,
        "{new}",
        "{new}",
        "is the newest",
    ),
    (
        "a newer one of lower priority",
        [("repository", "own", {"{package}": ["{mid}"]}, {"priority": 50})],
        {},
        True,
        "{mid}",
        "{mid}",
        "{new} is there, too, in a repository of lower priority.",
    ),
    (
        "nobody offers any",
        [("offers_nothing",)],
        {},
        False,
        None,
        None,
        "kgraft.activated sees to that",
    ),
    (
        "nobody offers any, it runs",
        [("runs", "{mid}"), ("offers_nothing",)],
        {"version": "9"},
        True,
        None,
        None,
        "{mid} is already applied",
    ),
    (
        "locked",
        [("lock", "k*")],
        {},
        False,
        None,
        None,
        "is locked by rule 1 `k*`: zypper rl 1, then zypper al kernel-default",
    ),
    (
        "locked, and there already",
        [("runs", "{new}"), ("lock", "k*")],
        {},
        True,
        None,
        None,
        "{new} is already",
    ),
    # arguments
    *(
        (f"{argument} {value!r}", [("runs", "{mid}")], {argument: value}, False, None, None, argument)
        for argument, value in (
            ("version", 2.1),
            ("version", "newest"),
            ("version", True),
            ("version", ["9"]),
            ("timeout", float("nan")),
            ("timeout", "300"),
            ("timeout", 0),
            ("timeout", True),
            ("poke_after", -1),
            ("poke_after", float("inf")),
            ("refresh", "no"),
            ("settle", "no"),
            ("allow_downgrade", "False"),
            ("allow_downgrade", 1),
            ("max_metadata_age", "1d"),
            ("cves", []),
            ("cves", "CVE-2026-0009"),
            ("cves", ["CVE-1"]),
            ("not_affected", ["x"]),
        )
    ),
]


NAMES = [row[0] for row in SCENARIOS]


def filled(value, words):
    """A value of the table, with the versions of one machine."""
    if isinstance(value, str):
        return value.format(**words)
    if isinstance(value, (list, tuple)):
        return type(value)(filled(one, words) for one in value)
    if isinstance(value, dict):
        return {filled(key, words): filled(one, words) for key, one in value.items()}
    return value


def play(machine, name):
    """Run one of the table; returns the answer of the live run."""
    _, before, arguments, result, active, installed, says = next(row for row in SCENARIOS if row[0] == name)
    old, mid, new = V[machine.abi]
    words = {"old": old, "mid": mid, "new": new, "package": machine.package}
    before, arguments, says = filled(before, words), filled(arguments, words), filled(says, words)
    if not arguments.get("settle", True):
        machine.block()
    for verb, *values in before:
        getattr(machine, verb)(*values)
    was = machine.patches(), machine.edition()

    dry = machine.applied(test=True, **arguments)
    assert (machine.patches(), machine.edition()) == was
    live = machine.applied(**arguments)

    assert live.result is result, live.comment
    assert says in live.comment
    if NOT_KNOWN in dry.comment:
        assert dry.result is None
    else:
        assert dry.changes == live.changes, dry.comment
        assert dry.result is (None if result and live.changes else result), dry.comment
    is_active = [patch for patch, state in machine.patches().items() if state in ("applied", "applying")]
    if active:
        assert is_active[-1].endswith(filled(active, words).replace("-", "_").replace(".", "_"))
    elif not live.changes:
        assert machine.patches() == was[0]
    assert machine.edition() == (filled(installed, words) if installed else was[1])
    if result and arguments.get("settle", True):
        assert machine.state() == "ready"
    if not arguments.get("settle", True):
        machine.settle()

    again = machine.applied(**arguments)
    assert (again.result, again.changes) == (result, {}), again.comment
    return live
