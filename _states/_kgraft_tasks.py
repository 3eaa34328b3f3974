"""
What a comment says about tasks: which ones block, why, what ends that, and which ones were not poked.
"""


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
        return "No task is seen to block any more."
    more = count - len(answer["tasks"])
    block = "task blocks" if count == 1 else "tasks block"
    return f"{count} {block}: {listed} and {more} more." if more else f"{count} {block}: {listed}."


def advice(answer, spared):
    """Return a line for each reason that is among the tasks; ``spared``: {pid: why a poke does not move it}."""
    lines = {}
    for task in answer["tasks"]:
        why, help = task["why"], task["help"]
        if task["kind"] == "user" and task["pid"] in spared:
            poke = "A poke leaves it: {}.".format(spared[task["pid"]])
            help = poke if not help or "poke" in help else f"{poke} {help}"
        words = " ".join(filter(None, [why, help])) or "Why is not known."
        lines.setdefault(words, []).append(task)
    told = [f"- {names(found)}: {words}" for words, found in lines.items()]
    return told + ([answer["note"]] if answer["note"] else [])


def skipped(poke):
    """``poke`` is the answer of ``kgraft.poke``."""
    if not poke["skipped"]:
        return ""
    return " Not poked: {}.".format(", ".join("{} ({})".format(name(task), task["reason"]) for task in poke["skipped"]))


def lines(comment, unread):
    """A comment, with what could not be read below it."""
    return "\n".join(filter(None, [comment, unread and "Not read: {}.".format("; ".join(unread))]))
