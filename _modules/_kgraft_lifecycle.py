"""
How long SUSE says that it supports a package: the data of ``zypper lifecycle``, read as SUSE/zypper-lifecycle does.

A line is ``name, version, date, successor``, and a later one counts over an earlier one. The successor is left aside.
"""

import csv
import datetime
import os
import re
import sys
import typing

import salt.utils.files
from salt.exceptions import CommandExecutionError

if typing.TYPE_CHECKING:  # handed in
    from . import _kgraft_zypper as zypper

# In the order in which they are read
DIRECTORIES = ("var/lib/lifecycle/data", "usr/lib/lifecycle/data", "usr/share/lifecycle/data")

# A process of its own can be ended: a regular expression may take for ever
SEARCH = "import re, sys; sys.exit(10 if re.search(sys.argv[1], sys.argv[2]) else 11)"
FOUND, NOT_FOUND = 10, 11


def end(package, packages):
    """
    Return the date for a package as text; None where there is none. Of several products' dates, the latest.

    Raises ``CommandExecutionError`` that names the file and the line.
    """
    dates = {}
    for directory in map(zypper.under, DIRECTORIES):
        try:
            products = sorted(file for file in os.listdir(directory) if file.endswith(".lifecycle"))
        except FileNotFoundError:
            continue
        except OSError as err:
            raise _unreadable(directory, err) from err
        for product in products:
            for date in _dates(os.path.join(directory, product), package, packages):
                dates[product] = date
    return max(filter(None, dates.values()), default=None)


def _dates(path, package, packages):
    """Return the date of each line that is about the package; None where the line has none."""
    try:
        with salt.utils.files.fopen(path, "rb") as file:
            lines = file.read().splitlines()
    except OSError as err:
        raise _unreadable(path, err) from err
    found = []
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode().strip()
            if text and not text.startswith("#"):
                name, version, date = _parsed(text)
                if _is_named(name, package, packages) and _is_version(version, package, packages):
                    found.append(date)
        except (ValueError, csv.Error, CommandExecutionError) as err:
            raise _unreadable(f"{path}, line {number}", err) from err
    return found


def _unreadable(place, err):
    return CommandExecutionError(f"Cannot read the support windows: {place}: {zypper.brief(str(err))}")


def _parsed(text):
    name, version, date = ([column.strip() for column in next(csv.reader([text], strict=True))] + ["", ""])[:3]
    if not name or not version:
        raise ValueError("it has no name or no version")
    if not date:
        return name, version, None
    found = re.search(r"(?<!\d)(\d{4})-(\d\d?)-(\d\d?)(?!\d)", date, re.ASCII)
    if not found:
        raise ValueError(f"there is no date in {date!r}")
    return name, version, datetime.date(*map(int, found.groups())).isoformat()


def _is_named(name, package, packages):
    if not (name.startswith("/") and name.endswith("/")):
        return _is_like(name, package)
    command = packages.run(sys.executable, "-I", "-S", "-c", SEARCH, name[1:-1], package)
    if command["retcode"] not in (FOUND, NOT_FOUND):
        told = command["stderr"].strip().splitlines() or ["it was ended"]
        raise ValueError(f"{name}: {told[-1]}")
    return command["retcode"] == FOUND


def _is_version(version, package, packages):
    # that of a package which is not installed is like * only
    return not version.strip("*") or _is_like(version, packages.installed(package) or "")


def _is_like(pattern, text):
    """Nothing but ``*`` is special in a pattern."""
    return bool(re.fullmatch(".*".join(map(re.escape, re.split(r"\*+", pattern))), text))
