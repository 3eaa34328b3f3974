"""
What other programs make of what we write; they are Debian's.

``promtool``   the path of Prometheus's own checker, unpacked in the cache
``browser``    Chromium, driven by Playwright
"""

import pytest

from lab import picture
from tests.support.debian_programs import program


@pytest.fixture(scope="session")
def promtool():
    return program("usr/bin/promtool", "promtool", "prometheus")  # in trixie a package of its own


@pytest.fixture(scope="session")
def browser():
    with picture.browser() as browser:
        yield browser
