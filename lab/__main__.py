"""The command line: ``python -m lab --help``."""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from lab.server import MARKER, PERIOD, serve

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

Limits:
  * A refused write (revert, enabled, force, in_progress) does not fail with the kernel's errno: the files are ordinary
    ones. The outcome is right, soon after the write (revert: before it), and the log tells the errno.
  * With the fake signal nothing is sent: ordinary sleepers (S) count as crossed when the kernel would have woken them.
  * It can err by clearing too early, where a thread sleeps several times within one system call.
  * livepatch: every watched process counts as asleep in a patched function, until it runs.
  * Kernel threads are not watched: tell of those that have no safe place with --stuck-thread.
  * It never signals a process that it did not start.
"""


def parser():
    arguments = argparse.ArgumentParser(
        prog="python -m lab",
        description=DESCRIPTION,
        epilog=EPILOG % {"bin": Path(__file__).resolve().parent / "bin"},
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_argument("root", nargs="?", help="a directory to itself; default: a fresh one, deleted at the end")
    arguments.add_argument("--abi", choices=sorted(PERIOD), default="kgraft", help="default: %(default)s")
    watched = arguments.add_argument_group("what is watched (nothing else is)")
    watched.add_argument(
        "--run", action="append", default=[], metavar="'CMD'", help="start CMD (no shell) and watch it and its children"
    )
    watched.add_argument("--pid", action="append", default=[], type=int, help="watch a process")
    watched.add_argument("--cgroup", action="append", default=[], metavar="PATH", help="watch a control group")
    watched.add_argument("--all", action="store_true", help="watch every process of this machine but the lab itself")
    kernel = arguments.add_argument_group("the kernel")
    kernel.add_argument(
        "--period", type=positive, metavar="SECONDS", help="from check to check; default: 2 (kgraft), 1 (livepatch)"
    )
    kernel.add_argument(
        "--fake-signal",
        action=argparse.BooleanOptionalAction,
        help="the kernel wakes sleepers itself, at each check (kgraft; default: no) or 15th (livepatch; default: yes)",
    )
    kernel.add_argument("--old", action="store_true", help="kGraft on 3.12: zombies hold a patch up")
    kernel.add_argument(
        "--stuck-thread", action="append", default=[], metavar="NAME", help="a kernel thread with no safe place"
    )
    kernel.add_argument("--release", help="what uname -r would say; default: one of SUSE's")
    kernel.add_argument(
        "--install", action="append", default=[], metavar="PATCH", help="put PATCH.ko under ROOT/lib/modules"
    )
    arguments.add_argument("--until-eof", action="store_true", help="end when standard input ends")
    return arguments


def positive(text):
    value = float(text)
    if not value > 0:
        raise ValueError(text)
    return value


def main():
    options = parser().parse_args()
    root = options.root or tempfile.mkdtemp(prefix="kgraft-lab-")
    Path(root).mkdir(parents=True, exist_ok=True)
    print(f"This is not a kernel: a lab stands in for one with {options.abi}, in {root}", flush=True)
    try:
        serve(root, options)
    except (OSError, SystemExit) as err:
        sys.exit(f"python -m lab: {err}")
    finally:
        if not options.root and (Path(root) / MARKER).exists():
            shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
