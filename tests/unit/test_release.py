"""One version, one changelog, and what ``make release-check`` says is missing."""

import importlib.util
import shutil
import subprocess

import pytest

from tests.support.clone import GIT, commit
from tests.support.load import REPO

SPEC = importlib.util.spec_from_file_location("release", REPO / "packaging" / "release.py")
release = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(release)
VERSION = release.newest(REPO)[0]


def test_the_version_is_the_same_wherever_it_stands():
    assert release.versions(REPO) == dict.fromkeys(release.VERSIONS, VERSION)


def test_the_changelog_of_the_rpm_is_that_of_the_project():
    assert release.read(REPO, release.CHANGES) == release.changes(REPO), "python3 packaging/release.py changes"


def write(root, name, old, new):
    text = release.read(root, name)
    assert old in text
    (root / name).write_text(text.replace(old, new), "utf-8")


@pytest.fixture
def ready(tmp_path):
    """A checkout from which nothing is missing."""
    root = tmp_path / "checkout"
    for name in release.VERSIONS:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / name, root / name)
    title = release.read(REPO, "CHANGELOG.md").splitlines()[4]
    write(root, "CHANGELOG.md", title, f"## {VERSION} (2026-12-01)")
    (root / "Makefile").write_text("bundle rpm:\n\ttrue\n")
    release.main(root, "changes")
    commit(root)
    tag(root)
    return root


def tag(root, *options):
    subprocess.run([*GIT, root, "tag", f"v{VERSION}", *options], check=True, capture_output=True)


def test_a_checkout_from_which_nothing_is_missing_is_told_as_that(ready, capsys):
    assert release.main(ready, "check") == 0
    assert capsys.readouterr().out == "nothing is missing\n"
    assert f"\nTue Dec  1 12:00:00 UTC 2026 - {release.AUTHOR}\n\n- Version {VERSION}\n" in release.changes(ready)


def test_each_thing_that_is_missing_is_a_line_and_the_exit_code_says_so(ready, capsys):
    write(ready, "_runners/kgraft.py", f'VERSION = "{VERSION}"', 'VERSION = "9.9.9"')
    write(ready, "CHANGELOG.md", f"## {VERSION} (2026-12-01)", f"## Unreleased: {VERSION}")
    write(ready, "CHANGELOG.md", "* Execution module `kgraft`:", "* The execution module `kgraft`:")
    (ready / "Makefile").write_text("bundle:\n\ttrue\nrpm:\n\tfalse\n")
    subprocess.run([*GIT, ready, "tag", "--delete", f"v{VERSION}"], check=True, capture_output=True)

    assert release.main(ready, "check") == 1

    assert capsys.readouterr().out.splitlines() == [
        f"_runners/kgraft.py is of version 9.9.9, CHANGELOG.md of {VERSION}",
        f"CHANGELOG.md: the section of {VERSION} has no day: write '## {VERSION} (YYYY-MM-DD)'",
        "packaging/saltext-kgraft.changes is not what CHANGELOG.md says: python3 packaging/release.py changes",
        "the checkout has changes that are not committed",
        f"the commit has no tag v{VERSION}",
        "make rpm fails",
    ]


def test_a_tag_of_another_commit_is_none(ready):
    (ready / "more").touch()
    commit(ready)
    assert list(release.missing(ready)) == [f"the commit has no tag v{VERSION}"]
