"""
The matrix of machines and CVEs: who has which fix, by what each machine answered.
"""

import csv
import fnmatch
import io
import re
import typing

if typing.TYPE_CHECKING:  # handed in
    from . import _kgraft_fleet as fleets
    from . import _kgraft_report as reports

CVE = re.compile(r"CVE-[0-9]{4}-[0-9]{4,19}")
# What is told of a machine and a CVE, in the order of the lines, and the exit code that it makes.
# fmt: off
CLASSES = {
    "fixed by a live patch": 0, "fixed by the kernel": 0, "not affected": 0, "settling": 2, "installed, not loaded": 2,
    "open": 2, "elsewhere": 2, "nobody names it": 2, "unread": 2, "no answer": 3, "excepted": 0,
}
# fmt: on
# How answers of kgraft_security.cves begin; what is not here is unread.
BEGINNINGS = (
    ("fixed by kernel", "fixed by the kernel"),
    ("fixed by ", "fixed by a live patch"),
    ("pending: settling ", "settling"),
    ("pending: installed, not loaded ", "installed, not loaded"),
    ("open: ", "open"),
    ("elsewhere: ", "elsewhere"),
    ("unknown: nobody names it", "nobody names it"),
)
VERDICTS = (  # by urgency
    (2, "Not good: not every machine has every fix, or it is not known."),
    (3, "Good so far: but not all machines gave an answer."),
    (0, "Good: every machine that was asked has every fix."),
)


def numbers(words):
    """CVE numbers as they were meant: in capitals, each once."""
    found = [word.strip().upper() for words in words for word in str(words).split(",")]
    odd = [word for word in found if not CVE.fullmatch(word)]
    if odd or not found:
        raise ValueError("cves: no CVE number is {}".format(", ".join(map(repr, odd)) or "given"))
    return list(dict.fromkeys(found))


def cell(answer, number, kernelrelease, never):
    """
    Return the class of a machine and a CVE, and the reason. ``answer`` is what ``kgraft_security.cves`` said; ``never``
    are patterns of the kernels that never had these bugs, by the word of who asks.
    """
    told = str(answer.get(number)) if isinstance(answer, dict) else ""
    beginning, name = next((row for row in BEGINNINGS if told.startswith(row[0])), ("unread: ", "unread"))
    if CLASSES[name] and any(fnmatch.fnmatchcase(str(kernelrelease), pattern) for pattern in never):
        return "not affected", f"{kernelrelease}, by not_affected"
    if not isinstance(answer, dict):
        return "unread", reports.instead(answer, "kgraft_security.cves") or "kgraft_security is not loaded there"
    told = told[len(beginning) :] if told.startswith(beginning) else told
    return name, told or (kernelrelease if name == "fixed by the kernel" else "unknown")


def matrix(fleet, wanted, never, granted, ended):
    """Return ``{CVE: {machine: {class, why}}}`` of all who were asked, with ``instead_of`` where one is excepted."""
    found = {number: {} for number in wanted}
    for number, of in found.items():
        of.update((machine, {"class": "no answer", "why": why}) for machine, why in fleet.silent.items())
        for machine, answer in fleet.answers.items():
            told = answer if isinstance(answer, dict) else {"kgraft_security.cves": answer}
            status = told.get("kgraft.status")
            kernelrelease = status.get("kernelrelease") if isinstance(status, dict) else None
            name, why = cell(told.get("kgraft_security.cves"), number, kernelrelease, never)
            of[machine] = {"class": name, "why": fleets.line(why)}
        reports.grant(of, granted, ended, CLASSES)
    return found


def tell(found, asked):
    """Return ``{retcode, report, asked, counts, cves}``; ``asked`` is None where not all of them are known."""
    lines, counts = [], {}
    for number, of in found.items():
        told, counts[number] = reports.table(of, CLASSES)
        lines += [number, *told]
    known = max(map(len, found.values()))
    code, words = reports.verdict({CLASSES[name] for of in counts.values() for name in of}, asked, VERDICTS)
    report, asked = [*lines, f"{known:>4} asked", words], None if asked is None else known
    return {"retcode": code, "report": report, "asked": asked, "counts": counts, "cves": found}


def table(found):
    """The matrix as CSV, in which a spreadsheet finds no formula: what would be one gets an apostrophe in front."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(["machine", "cve", "state", "detail"])
    for number, of in found.items():
        for machine in sorted(of):
            row = fleets.line(machine), number, of[machine]["class"], of[machine]["why"]
            writer.writerow("'" + word if re.match("[=+@-]", word) else word for word in row)
    return text.getvalue()
