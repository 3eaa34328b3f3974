"""Write the table of why-it-blocks.md, from the rows that the module has: `python docs/reasons.py`."""

import importlib.util
import pathlib
import re

REPO = pathlib.Path(__file__).resolve().parent.parent
PAGE = REPO / "docs/why-it-blocks.md"
WORDS = {
    "kind": "{}",
    "name": "named `{}`",
    "stack": "on the stack `{}`",
    "foreign": "on the stack a function of a foreign module",
    "letter": "in state {}",
    "pid": "pid {}",
    "nobody": "nobody is listed",
    "before": "kernel before {}",
    "abi": "{}",
}


def rows():
    spec = importlib.util.spec_from_file_location("reasons", REPO / "_modules/_kgraft_reasons.py")
    room = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(room)
    return room.ROWS


def table():
    lines = ["| sign | why | what to do | read or inferred | source |", "|---|---|---|---|---|"]
    for row in rows():
        signs = ", ".join(WORDS[sign].format(row.signs[sign]) for sign in WORDS if sign in row.signs)
        told = [words.format(module="*module*") for words in (row.why, row.help)]
        known = "inferred" if "Probably:" in row.why + row.help else "read"
        lines.append(f"| {' | '.join([signs, *told, known, row.source])} |")
    return "\n".join(lines)


def page():
    """The page as it should be."""
    return re.sub(r"(?s)\| sign \|.*?\n\n", lambda _: table() + "\n\n", PAGE.read_text("utf-8"), count=1)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
