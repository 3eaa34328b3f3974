"""
Small files of the kernel, and their races.

Patches and tasks come and go while they are read. Three things can happen to a reader, each with an exception of
Python's own:

``FileNotFoundError``
    *gone*: there is no such file any more. The kernel says so at open (ENOENT), at read (ESRCH for a task, ENODEV for a
    node of sysfs) or by an empty read.
Any other ``OSError``
    *unreadable*: the file is there, and may not or cannot be read. A single text as its only argument is the whole
    message.
``ValueError``
    *unclear*: it was read and makes no sense.

Whether the patch or the task that a file belongs to is gone, too, is told by its directory alone: :py:func:`is_gone`.
"""

import errno
import os
import re
import tempfile

UNPRINTABLE = "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"

# At open, at read of a task's file, at read of a sysfs node.
MISSING = (errno.ENOENT, errno.ESRCH, errno.ENODEV)


def read(path):
    """All bytes of a file, never none."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            raw = chunk = os.read(descriptor, 65536)
            while chunk:
                chunk = os.read(descriptor, 65536)
                raw += chunk
        finally:
            os.close(descriptor)
    except OSError as err:
        raise failure(path, err) from err
    if not raw:
        raise missing(path)
    return raw


def link(path):
    """Where a symbolic link leads, as it is written."""
    try:
        return os.readlink(path)
    except OSError as err:
        raise failure(path, err) from err


def directories(path):
    """The directories in one, as sorted names; plain files and links beside them do not count."""
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError as err:
        raise failure(path, err) from err


def number(path):
    """The integer in a file."""
    return _number(path, read(path))


def _number(path, raw):
    if not re.match(rb"-?[0-9]{1,18}\n?\Z", raw):
        raise unclear(path, f"{raw[:40]!r} is no number")
    return int(raw)


def switch(path):
    """The boolean in a file that holds 0 or 1."""
    raw = read(path)
    if raw in (b"0\n", b"1\n"):  # each look reads one or two of them
        return raw == b"1\n"
    value = _number(path, raw)
    if value not in (0, 1):
        raise unclear(path, f"{value} is neither 0 nor 1")
    return value == 1


def word(path):
    """The text in a file, without blanks around it."""
    return text(read(path).strip())


def optional(ask, path):
    """What ``ask(path)`` says; None where this generation of kernels has no such file."""
    try:
        return ask(path)
    except FileNotFoundError:
        # An empty read is no missing file, and a patch that is gone says nothing of a generation.
        if os.path.lexists(path) or is_gone(os.path.dirname(path)):
            raise
        return None


def required(ask, path):
    """What ``ask(path)`` says; to be without this file is a failed look, not something that went meanwhile."""
    try:
        return ask(path)
    except FileNotFoundError as err:
        raise OSError(message(err)) from err


def write(path, value, refusals):
    """Write one byte; ``refusals`` puts the kernel's errno into words."""
    try:
        descriptor = os.open(path, os.O_WRONLY)
        try:
            os.write(descriptor, value)
        finally:
            os.close(descriptor)
    except OSError as err:
        raise OSError(f"Cannot write {text(path)}: {refusals.get(err.errno, err.strerror)}") from err


def replace(path, content, mode):
    """
    Write a whole file, or leave the old one. Not salt.utils.atomicfile: it passes over an error of flush, and a full
    disk is one.
    """
    beside = None
    try:
        descriptor, beside = tempfile.mkstemp(prefix=".kgraft.", dir=os.path.dirname(path))
        with open(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, mode)
            file.write(content)
        os.replace(beside, path)
    except OSError as err:
        if beside:
            os.unlink(beside)
        raise OSError(f"Cannot write {text(path)}: {err.strerror}") from err


def exists(directory):
    """Whether it is there; that it may not be looked for is no answer."""
    try:
        os.stat(directory)
    except OSError as err:
        if err.errno == errno.ENOENT:
            return False
        raise failure(directory, err) from err
    return True


def is_gone(directory):
    """Whether the patch, process or thread that has this directory is no longer there."""
    return not os.path.isdir(directory)


def text(raw):
    """
    Names in the kernel are bytes, and users choose many of them: what leaves the module is one line, without what a
    terminal obeys (control characters, line and paragraph separators, marks that turn the direction of writing).
    """
    told = raw if isinstance(raw, str) else raw.decode("utf-8", "backslashreplace")
    if told.isprintable():  # most are, and this is quick
        return told
    return re.sub(UNPRINTABLE, _escaped, os.fsencode(raw).decode("utf-8", "backslashreplace"))


def _escaped(match):
    return match.group().encode("unicode_escape").decode("ascii")


def lines(raw):
    """The lines of a file."""
    return [text(line) for line in raw.split(b"\n")]


def missing(path):
    return FileNotFoundError(errno.ENOENT, "it is missing or empty", path)


def failure(path, err):
    """An error of the system as one of the two that readers here know."""
    return missing(path) if err.errno in MISSING else OSError(err.errno, err.strerror, path)


def unclear(path, why):
    return ValueError(f"Cannot understand {text(path)}: {why}")


def message(err):
    """One line for who asked: what could not be read, written or understood, and why."""
    if isinstance(err, OSError) and err.filename is not None:
        return f"Cannot read {text(err.filename)}: {err.strerror}"
    return str(err)
