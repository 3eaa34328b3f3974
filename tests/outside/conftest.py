"""
What other programs make of what we write. They are Debian's, fetched by apt and unpacked in the cache, never installed.

``promtool``   the path of Prometheus's own checker
``browser``    Chromium
"""

import os
import subprocess

import pytest
from playwright.sync_api import sync_playwright

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
    """Debian's Chromium, driven by Playwright."""
    with sync_playwright() as playwright:
        # root has no sandbox, and the page is ours
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield browser
        browser.close()
