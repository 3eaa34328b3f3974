"""
What other programs make of what we write; they are Debian's.

``promtool``   the path of Prometheus's own checker, unpacked in the cache: an installed Prometheus starts a daemon
``browser``    Chromium, driven by Playwright
"""

import os
import subprocess

import pytest

from lab import picture
from tests.kernel import debian


@pytest.fixture(scope="session")
def promtool():
    root = debian.CACHE.parent / "outside"
    with debian.locked():
        program = root / f"prometheus-{debian.version('prometheus')}" / "usr/bin/promtool"
        if not program.exists():
            [package] = debian.download(["prometheus"], root / "download")
            program.parents[2].mkdir(parents=True, exist_ok=True)
            files = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE, check=True).stdout
            unpack = ["tar", "-x", "-C", program.parents[2], "./usr/bin/promtool"]
            subprocess.run(unpack, input=files, check=True)
    assert os.access(program, os.X_OK)
    return program


@pytest.fixture(scope="session")
def browser():
    with picture.browser() as browser:
        yield browser
