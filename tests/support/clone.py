"""The checkout as a clone of it would be: what is under version control, and the new files beside that."""

import os
import pathlib
import subprocess

from tests.support.load import REPO

GIT = ("git", "-c", "user.name=x", "-c", "user.email=x@example.com", "-C")


def copy_of_the_checkout(target):
    """Copy the files; returns the directory."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPO,
        check=True,
        capture_output=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (REPO / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((REPO / name).read_bytes())
    return pathlib.Path(target)


def commit(source):
    """Commit all that there is, as the first commit or a further one."""
    for words in ("init --quiet --initial-branch=main", "add --all", "commit --quiet --message=x"):
        subprocess.run([*GIT, source, *words.split()], check=True, capture_output=True)


def make(source, *words):
    """Run make there; what it would install first is there already."""
    command = ["make", "-o", ".venv/3008/.test", "-o", ".venv/debian", *words]
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    return subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)
