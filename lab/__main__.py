"""The command line: ``python -m lab --help``."""

import argparse
import contextlib
import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from lab import procfs
from lab.root import take
from lab.rules import MODULE
from lab.server import PERIOD, serve

DESCRIPTION = """\
A kernel with live patching in user space, over real processes of this machine: for tests, demonstrations, rehearsals.
It is not a kernel and patches nothing.

It keeps ROOT/sys and ROOT/proc as such a kernel would. When a patch is loaded it flags the processes that it watches,
and clears a thread when it was really switched (its context-switch counters moved), since then it passed the boundary
between kernel and program. So a sleeper really blocks, SIGSTOP then SIGCONT really frees it, a stopped one stays.
"""

EPILOG = """\
In another shell:
  export KGRAFT_LAB=ROOT PATH=%(bin)s:$PATH
  modprobe kgraft-patch-2-2_1      load an installed patch (ROOT/lib/modules/<release>/kgraft/*.ko)
  insmod X.ko replace_all=0        load a patch from a file, its name is the patch's; this one stacks
  rmmod, lsmod                     as ever
  echo 1 > ROOT/sys/kernel/kgraft/kgraft-patch-2-2_1/revert
A minion sees this kernel with "kgraft.root: ROOT" in its configuration.

What it does as a kernel does, and what it does not: docs/rehearse.md.
"""


def line(text):
    """Text in one line, whatever is in it: names of files can be anything."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: error: {line(str(message))}\n")


def checked(what, value):
    """A type of argument: what ``value`` makes of its text; if that is nothing, or a ValueError, it is no ``what``."""

    def check(text):
        with contextlib.suppress(ValueError):
            found = value(text)
            if found:
                return found
        raise argparse.ArgumentTypeError(f"{text!r} is no {what}")

    return check


def seconds(text):
    return float(text) if 0 < float(text) < float("inf") else None


def command(text):
    words = shlex.split(text)
    return words if words and shutil.which(words[0]) else None


def process(text):
    return int(text) if re.fullmatch("[1-9][0-9]{0,9}", text) and procfs.stat(text) else None


def control_group(text):
    paths = (Path(text), procfs.CGROUPS / text.lstrip("/")) if text else ()
    return next((path for path in paths if path.is_dir()), None)


def matching(pattern):
    return lambda text: re.fullmatch(pattern, text) and text


def parser():
    arguments = Parser(
        prog="python -m lab",
        description=DESCRIPTION,
        epilog=EPILOG % {"bin": Path(__file__).resolve().parent / "bin"},
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def many(group, name, metavar, what, value, description):
        group.add_argument(
            name, action="append", default=[], metavar=metavar, type=checked(what, value), help=description
        )

    arguments.add_argument(
        "root",
        nargs="?",
        type=checked("directory", str),
        help="a directory to itself; default: a fresh one, deleted at the end",
    )
    arguments.add_argument("--abi", choices=sorted(PERIOD), default="kgraft", help="default: %(default)s")
    watched = arguments.add_argument_group("what is watched (nothing else is)")
    many(watched, "--run", "'CMD'", "command", command, "start CMD (no shell) and watch it and its children")
    many(watched, "--pid", "PID", "process of this machine", process, "watch a process")
    many(watched, "--cgroup", "PATH", "control group", control_group, "watch a control group")
    watched.add_argument("--all", action="store_true", help="watch every process of this machine but the lab itself")
    kernel = arguments.add_argument_group("the kernel")
    kernel.add_argument(
        "--period",
        type=checked("number of seconds above 0", seconds),
        metavar="SECONDS",
        help="from check to check; default: 2 (kgraft), 1 (livepatch)",
    )
    kernel.add_argument(
        "--fake-signal",
        action=argparse.BooleanOptionalAction,
        help="the kernel wakes sleepers itself, at each check (kgraft; default: no) or 15th (livepatch; default: yes)",
    )
    kernel.add_argument("--old", action="store_true", help="kGraft on 3.12: zombies hold a patch up")
    thread = matching("[ -~]{1,15}")
    many(kernel, "--stuck-thread", "NAME", "name of a kernel thread", thread, "a kernel thread with no safe place")
    kernel.add_argument(
        "--release",
        type=checked("release of a kernel", matching(r"(?a:\w[\w.+~-]{0,63})")),
        help="what uname -r would say; default: one of SUSE's",
    )
    many(kernel, "--install", "PATCH", "name of a module", matching(MODULE), "put PATCH.ko under ROOT/lib/modules")
    arguments.add_argument("--until-eof", action="store_true", help="end when standard input ends")
    return arguments


def main():
    arguments = parser()
    options = arguments.parse_args()
    if options.until_eof and sys.stdin is None:
        arguments.error("--until-eof: there is no standard input")
    with contextlib.ExitStack() as stack:
        try:
            if not options.root:
                options.root = tempfile.mkdtemp(prefix="kgraft-lab-")
                stack.callback(shutil.rmtree, options.root, ignore_errors=True)
            root, lock = take(options.root)
            stack.enter_context(lock)
            print(f"This is not a kernel: a lab stands in for one with {options.abi}, in {line(str(root))}", flush=True)
            serve(root, options)
        except OSError as err:
            arguments.error(f"{err.filename}: {err.strerror}" if err.filename else err)


if __name__ == "__main__":
    main()
