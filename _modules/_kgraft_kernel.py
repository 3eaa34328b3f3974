"""
One look at the kernel: which interface it has, its patches, the transition that runs.

``root`` is the directory that holds the kernel's ``sys/`` and ``proc/``. What could not be looked at raises ``OSError``
or ``ValueError``, see ``_kgraft_files.py``: it is never ready. Nothing here reads a file of a process.

A patch has four names that are one: rpm ``kgraft-patch-…-2-2.1``, file ``kgraft-patch-2-2_1.ko``, kGraft's directory
``kgraft-patch-2-2_1`` and module ``kgraft_patch_2_2_1``. Users see the module's.
"""

import errno
import functools
import os
import re
import time
import typing
from collections import namedtuple

if typing.TYPE_CHECKING:
    from . import _kgraft_files as files

MOVING = ("applying", "reverting")
ACTIVE = ("applying", "applied")

# kGraft's function states (kernel/kgraft.c, enum kgr_patch_state)
APPLYING, APPLIED, REVERTING, REVERTED, SKIPPED = 1, 2, 3, 4, 5

LOOKS = 10  # how often a look that was overtaken by the kernel is taken again

Patch = namedtuple("Patch", "name directory state")
# kernel: KGraft or Livepatch, None without live patching; patches: oldest first
Look = namedtuple("Look", "kernel state direction patches")


def look(root):
    """What the kernel says now, as a ``Look``; its state is ``unavailable`` without live patching."""
    kernel = interface(root)
    if not kernel:
        return Look(None, "unavailable", None, [])
    for attempt in range(LOOKS):
        running, patches = retry(kernel.look)
        states = [patch.state for patch in patches]
        moving = "applying" in states or "reverting" in states
        if running == moving:
            break
        time.sleep(0.001 * attempt)
    # Where they go on to disagree, neither alone is taken for the end.
    direction = "apply" if "applying" in states else "revert" if "reverting" in states else None
    return Look(kernel, "in_progress" if running or moving else "ready", direction, patches)


def available(root):
    """A look at a kernel that has live patching."""
    seen = look(root)
    if seen.state == "unavailable":
        neither = " nor ".join(kernel.base for kernel in (KGraft(root), Livepatch(root)))
        raise OSError(f"This kernel has no live patching: neither {neither} exists")
    return seen


def interface(root):
    """The kernel's interface, a ``KGraft`` or ``Livepatch``; None without live patching."""
    return retry(_interface, root)


def _interface(root):
    kernels = [kernel for kernel in (KGraft(root), Livepatch(root)) if files.exists(kernel.base)]
    if len(kernels) == 2:
        kgraft, livepatch = kernels
        # A SUSE 4.4 kernel shows an empty livepatch directory beside a used kgraft.
        return livepatch if files.directories(livepatch.base) and not files.directories(kgraft.base) else kgraft
    if kernels:
        return kernels[0]
    above = os.path.join(root, "sys/kernel")
    if files.is_gone(above):
        raise OSError(f"Cannot look at the kernel: there is no directory {above}")
    if files.is_gone(os.path.join(root, "sys/module")):
        raise OSError(
            f"Cannot look at the kernel: {os.path.join(root, 'sys')} is not that of a kernel, it has no module"
        )
    return None


def retry(ask, *what):
    """Ask again where the kernel was faster: a patch went while it was read."""
    for attempt in range(LOOKS):
        try:
            return ask(*what)
        except FileNotFoundError as err:
            last = err
            # A patch being loaded or refused is a directory without files for a moment: on one processor it stays so
            # until its loader gets to run again.
            time.sleep(0.005 * attempt)
    raise OSError(f"Live patches came and went during {LOOKS} looks: {files.message(last)}")


# Questions to a look


def active(seen):
    """The names of the patches that are being applied or are applied, oldest first, and of those that may be."""
    return [patch.name for patch in seen.patches if patch.state in ACTIVE or patch.state is None]


def moving(seen):
    """The names of the patches that the transition is about."""
    state = {"apply": "applying", "revert": "reverting", None: "unknown"}[seen.direction]
    return [patch.name for patch in seen.patches if patch.state == state]


def identity(seen):
    """What tells one transition from another: its moving patches and its direction."""
    return seen.state, seen.direction, moving(seen)


def find(seen, module):
    """The patch of that module, None if there is none."""
    return next((patch for patch in seen.patches if folded(patch.name) == module), None)


def folded(name):
    """A patch's name as that of its module."""
    return re.sub(r"[ ,/:.-]", "_", name)


def version(name):
    """A patch's version as rpm writes it, from its module's name; None where the name does not tell."""
    match = re.match(r"(?:kgraft_patch|livepatch)_(\d+)_(\d+(?:_\d+)*)$", name)
    return "{}-{}".format(match.group(1), match.group(2).replace("_", ".")) if match else None


def be_ready(root, order):
    """Refuse an order that the kernel would refuse while a transition runs."""
    if available(root).state != "ready":
        raise OSError(f"Cannot {order} now: a transition is running, see kgraft.blocking")


# The two interfaces. Each has abi; look() -> (running, patches); details(patch, functions); revert(patch); force(look);
# and of the tasks: flag, the name of their file; flags(look), what it says of one that has not crossed, and all that it
# says of one that has (an empty read: it ended).


class KGraft:
    abi = "kgraft"
    flag = "kgr_in_progress"

    def __init__(self, root):
        self.root = root
        self.base = os.path.join(root, "sys/kernel/kgraft")

    def look(self):
        """
        Only the global file tells the end for sure (kernel/kgraft.c), but it
        may change while the patches are read: look again until both agree.
        """
        running = files.required(files.switch, self.base + "/in_progress")
        patches = [self._patch(f"{self.base}/{name}") for name in files.directories(self.base)]
        if sum(patch.state != "inactive" for patch in patches) > 1:
            patches = self._replaced(_by_age(self.root, patches))
        # Where all of a patch's functions wait for modules, the kernel does not tell whether it is this one that moves.
        told = not running or any(patch.state in MOVING for patch in patches)
        waiting = "applied" if told else None
        return running, [patch._replace(state=waiting) if patch.state == "waiting" else patch for patch in patches]

    def _patch(self, directory):
        path = directory + "/state"
        states = _states(files.read(path), path)
        name = self._module(directory)
        if APPLYING in states:
            state = "applying"
        elif REVERTING in states:
            state = "reverting"
        elif APPLIED in states:
            state = "applied"
        # The kernel holds an active patch's module, nobody that of a replaced or reverted one.
        elif states <= {SKIPPED} and _modules(self.root).get(name) != "0":
            state = "waiting"
        else:
            state = "inactive"
        return Patch(name, directory, state)

    @staticmethod
    def _replaced(patches):
        """
        A function that a newer, cumulative patch lacks is taken out while that
        one is applied, and shows 3: its patch is being replaced, not reverted.
        Whoever has a newer patch on it cannot be reverted (EBUSY).
        """
        for number, patch in enumerate(patches):
            newer = [one for one in patches[number + 1 :] if one.state in ("applying", "applied", "waiting")]
            if patch.state == "reverting" and newer:
                over = files.optional(files.switch, os.path.join(newer[-1].directory, "replace_all"))
                if over or newer[-1].state == "applying":
                    patches[number] = patch._replace(state="applied")
                    patches[patches.index(newer[-1])] = newer[-1]._replace(state="applying")
        return patches

    @staticmethod
    def _module(directory):
        owner = files.optional(files.link, directory + "/owner")
        return files.text(os.path.basename(owner)) if owner else folded(files.text(os.path.basename(directory)))

    def details(self, patch, functions):
        record = {
            "state": patch.state,
            "version": version(patch.name),
            "refs": files.optional(files.number, os.path.join(patch.directory, "refs")),
            "cumulative": files.optional(files.switch, os.path.join(patch.directory, "replace_all")),
        }
        if functions:
            path = os.path.join(patch.directory, "state")
            record["functions"] = _functions(files.read(path), path)
        return record

    @staticmethod
    def flags(seen):
        return b"1\n", (b"0\n",)

    def revert(self, patch):
        # A SUSE kernel taints itself before it knows whether a revert is allowed: ask first.
        refs = files.optional(files.number, os.path.join(patch.directory, "refs"))
        if refs:
            raise OSError(f"{refs} newer patches must be reverted before {patch.name}")
        be_ready(self.root, f"revert {patch.name}")
        files.write(
            os.path.join(patch.directory, "revert"),
            b"1",
            {
                errno.EBUSY: "newer patches must be reverted first",
                errno.EINVAL: "it is reverted already",
                errno.EAGAIN: "a transition is running",
            },
        )

    def force(self, seen):
        path = os.path.join(self.base, "in_progress")
        files.write(path, b"0", {errno.EACCES: "this kernel cannot be forced, or you are not root"})


class Livepatch:
    abi = "livepatch"
    flag = "patch_state"

    def __init__(self, root):
        self.root = root
        self.base = os.path.join(root, "sys/kernel/livepatch")

    def look(self):
        patches = [self._patch(f"{self.base}/{name}") for name in files.directories(self.base)]
        return any(patch.state in MOVING for patch in patches), self._in_order(patches)

    def _in_order(self, patches):
        """From 6.14 on the kernel says in which order patches were loaded."""
        order = {}
        for patch in patches if len(patches) > 1 else ():
            order[patch] = files.optional(files.number, os.path.join(patch.directory, "stack_order"))
            if order[patch] is None:
                return _by_age(self.root, patches)
        return sorted(patches, key=order.get) if order else patches

    def _patch(self, directory):
        enabled = files.switch(directory + "/enabled")
        # Kernels 4.0 to 4.11 switch all tasks at once and have no such file.
        moves = files.optional(files.switch, directory + "/transition")
        name = os.path.basename(directory)
        if moves and not enabled:
            enabled = self._is_being_loaded(name) or files.switch(os.path.join(directory, "enabled"))
        states = {(True, True): "applying", (True, False): "applied", (False, True): "reverting"}
        return Patch(files.text(name), directory, states.get((enabled, bool(moves)), "inactive"))

    def _is_being_loaded(self, module):
        """
        A patch that is just being loaded looks like one being disabled, ``transition`` 1 and ``enabled`` 0, until its
        functions are in place (__klp_enable_patch in kernel/livepatch/core.c; up to 0.3 s on 6.1 and 6.12, emulated).
        Its module is not live before that.
        """
        path = os.path.join(self.root, "sys/module", module, "initstate")
        try:
            return files.read(path) == b"coming\n"
        except FileNotFoundError:
            return False

    def details(self, patch, functions):
        record = {
            "state": patch.state,
            "version": version(patch.name),
            "refs": None,
            "cumulative": files.optional(files.switch, os.path.join(patch.directory, "replace")),
        }
        if functions:
            record["functions"] = self._functions(patch)
        return record

    @staticmethod
    def _functions(patch):
        states = {"applying": APPLYING, "applied": APPLIED, "reverting": REVERTING, "inactive": REVERTED}
        functions = []
        for object_name in files.directories(patch.directory):
            directory = os.path.join(patch.directory, object_name)
            patched = files.optional(files.switch, os.path.join(directory, "patched"))
            state = SKIPPED if patched is False and patch.state != "inactive" else states[patch.state]
            for entry in files.directories(directory):
                name, _, sympos = entry.rpartition(",")
                functions.append(
                    {
                        "object": files.text(object_name),
                        "name": files.text(name or entry),
                        "sympos": int(sympos) if name and _is_count(sympos) else None,
                        "state": state if patched is not None else None,
                    }
                )
        return functions

    @staticmethod
    def flags(seen):
        # A disable reads ``enabled`` 0 at once: those still patched block it.
        waiting, crossed = (b"1\n", b"0\n") if seen.direction == "revert" else (b"0\n", b"1\n")
        return waiting, (crossed, b"-1\n")

    def revert(self, patch):
        if patch.state == "applied":
            be_ready(self.root, f"revert {patch.name}")
        files.write(
            os.path.join(patch.directory, "enabled"),
            b"0",
            {
                errno.EBUSY: "a transition is running, or newer patches are on it",
                errno.EINVAL: "it is disabled already",
            },
        )

    def force(self, seen):
        for patch in seen.patches:
            if patch.state in MOVING:
                files.write(
                    os.path.join(patch.directory, "force"),
                    b"1",
                    {errno.ENOENT: "this kernel cannot be forced", errno.EINVAL: "it is no longer in transition"},
                )


@functools.lru_cache(maxsize=64)
def _states(raw, path):
    """The states of a kGraft patch's functions. A patch at rest shows the same table at each look."""
    return frozenset(function["state"] for function in _functions(raw, path))


def _functions(raw, path):
    """
    The rows of the table in a kGraft patch's ``state``, read by its heading, which has had different columns. It ends
    at one page, in the middle of a line.
    """
    lines = files.lines(raw)[:-1]
    columns = [column.lower() for column in lines[0].split()] if lines else []
    if "function" not in columns or "state" not in columns:
        raise files.unclear(path, f"its heading is {lines[:1]!r}")
    functions = []
    for line in lines[1:]:
        row = dict(zip(columns, line.split()))
        if len(line.split()) != len(columns) or not _is_count(row["state"]):
            raise files.unclear(path, f"{line!r} under {lines[0]!r}")
        sympos = row.get("sympos", "")
        functions.append(
            {
                "object": row.get("object"),
                "name": row["function"],
                "sympos": int(sympos) if _is_count(sympos) else None,
                "state": int(row["state"]),
            }
        )
    return functions


def _is_count(word):
    return re.match(r"\d{1,9}\Z", word, re.ASCII) is not None


def left_in_memory(root, module):
    """``inactive`` for a module of a live patch (taint K) that is in memory; None where there is none."""
    directory = os.path.join(root, "sys/module", module)
    if files.is_gone(directory):
        return None
    if "K" not in files.word(os.path.join(directory, "taint")):
        raise OSError(f"{module} is in memory, and no live patch")
    return "inactive"


def _modules(root):
    """Module → reference count, oldest first; /proc/modules lists the newest first."""
    try:
        lines = files.lines(files.read(os.path.join(root, "proc/modules")))
    except FileNotFoundError:  # a recorded tree may lack it
        lines = []
    rows = [line.split() for line in reversed(lines)]
    return {row[0]: row[2] for row in rows if len(row) > 2}


def _by_age(root, patches):
    age = {name: number for number, name in enumerate(_modules(root))}
    return sorted(patches, key=lambda patch: age.get(patch.name, len(age)))
