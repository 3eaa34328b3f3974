"""
What is missing for a release, and the RPM's changelog, which is CHANGELOG.md's newest section.

    python3 packaging/release.py check      # one line for each thing that is missing; exit code 1 if something is
    python3 packaging/release.py changes    # write packaging/saltext-kgraft.changes
"""

import datetime
import pathlib
import re
import subprocess
import sys

CHANGES = "packaging/saltext-kgraft.changes"
AUTHOR = "the saltext-kgraft contributors"
# one is meant, the others say the same (tests/unit/test_release.py)
VERSIONS = {
    "_modules/kgraft.py": r'^VERSION = "(.+)"$',
    "_runners/kgraft.py": r'^VERSION = "(.+)"$',
    "packaging/saltext-kgraft.spec": r"^Version: +(\S+)$",
    "CHANGELOG.md": r"^## (?:Unreleased: )?(\S+)",
    CHANGES: r"^- Version (\S+)$",
}


def read(root, name):
    return (root / name).read_text("utf-8")


def versions(root):
    found = {name: re.search(pattern, read(root, name), re.MULTILINE) for name, pattern in VERSIONS.items()}
    return {name: match and match.group(1) for name, match in found.items()}


def newest(root):
    """The version of CHANGELOG.md's newest section, its day (None where it has none yet), and its lines."""
    title, text = re.search(r"^## (.*)\n+((?:(?!## ).*\n)*)", read(root, "CHANGELOG.md"), re.MULTILINE).groups()
    dated = re.fullmatch(r"(\S+) \((\d{4}-\d\d-\d\d)\)", title)
    return (*dated.groups(), text) if dated else (title.split()[-1], None, text)


def changes(root):
    """What the RPM's changelog must be. Where the section has no day yet, the day that stands there is as good."""
    version, day, text = newest(root)
    if day:
        stamp = datetime.datetime.fromisoformat(day).strftime("%a %b %e 12:00:00 UTC %Y")
    else:
        stamp = read(root, CHANGES).splitlines()[1].partition(" - ")[0]
    lines = [f"  {line}".rstrip() for line in text.strip().splitlines()]
    return "\n".join(["-" * 67, f"{stamp} - {AUTHOR}", "", f"- Version {version}", *lines, ""])


def missing(root):
    version, day, _ = newest(root)
    for name, found in versions(root).items():
        if found != version:
            yield f"{name} is of version {found}, CHANGELOG.md of {version}"
    if not day:
        yield f"CHANGELOG.md: the section of {version} has no day: write '## {version} (YYYY-MM-DD)'"
    if read(root, CHANGES) != changes(root):
        yield f"{CHANGES} is not what CHANGELOG.md says: python3 packaging/release.py changes"
    if git(root, "status", "--porcelain"):
        yield "the checkout has changes that are not committed"
    if f"v{version}" not in git(root, "tag", "--points-at", "HEAD").split():
        yield f"the commit has no tag v{version}"
    for target in ("bundle", "rpm"):
        if subprocess.run(["make", target], cwd=root, capture_output=True, check=False).returncode:
            yield f"make {target} fails"


def git(root, *arguments):
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


def main(root, order):
    if order == "changes":
        (root / CHANGES).write_text(changes(root), "utf-8")
        return 0
    found = list(missing(root))
    print("\n".join(found) or "nothing is missing")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(__file__).resolve().parent.parent, sys.argv[1]))
