"""
What a comment says about tasks: which ones block, what ends that, and which ones were not poked.
"""

# What each kind of blocking task is called, and what ends it.
KINDS = (
    ("kernel", "kernel thread", "no signal moves it; stop the service or unload the module it belongs to, or reboot"),
    ("traced", "traced", "end its debugger or tracer"),
    ("stopped", "stopped", "continue it (kill -CONT PID) or end it"),
    ("uninterruptible", "uninterruptible sleep", "no signal reaches it; mend what it waits for, a disk or NFS"),
    ("zombie", "zombie", "only 3.12 and early 4.4 kernels wait for it; its parent must reap it, restart the parent"),
    ("user", "process", "run kgraft.poke, or set poke_after"),
)
USER_ON_LIVEPATCH = "the kernel signals it every 15 s by itself; wait longer"


def name(task):
    return "{} ({})".format(task["name"], task["pid"])


def names(tasks):
    return ", ".join(name(task) for task in tasks)


def blocking(answer):
    """``answer`` is that of ``kgraft.blocking``."""
    count, listed = answer["count"], names(answer["tasks"]) or "none seen"
    if not answer["complete"]:
        return f"At least {count} tasks block, not all of them could be seen: {listed}."
    if not count:
        return "No task blocks any more; the kernel sees that at its next check."
    more = count - len(answer["tasks"])
    block = "task blocks" if count == 1 else "tasks block"
    return f"{count} {block}: {listed} and {more} more." if more else f"{count} {block}: {listed}."


def advice(tasks, abi, spared):
    """Return a line for each kind that is among the tasks; ``spared``: {pid: why a poke does not move it}."""
    lines = []
    for kind, called, words in KINDS:
        found = [task for task in tasks if task["kind"] == kind]
        if kind == "user":
            words = USER_ON_LIVEPATCH if abi == "livepatch" else words
            left = [task for task in found if task["pid"] in spared]
            lines += [
                "- {}: {}: a poke leaves it: {}.".format(called, name(task), spared[task["pid"]]) for task in left
            ]
            found = [task for task in found if task not in left]
        if found:
            lines.append(f"- {called}: {names(found)}: {words}.")
    return lines


def skipped(poke):
    """``poke`` is the answer of ``kgraft.poke``."""
    if not poke["skipped"]:
        return ""
    return " Not poked: {}.".format(", ".join("{} ({})".format(name(task), task["reason"]) for task in poke["skipped"]))


def lines(comment, unread):
    """A comment, with what could not be read below it."""
    return "\n".join(filter(None, [comment, unread and "Not read: {}.".format("; ".join(unread))]))
