"""
``minion``  a minion whose beacon looks at the test's ``kernel`` when told to; is refreshed, is killed

A test file says ``pytest_plugins = ["tests.support.beacon_fixtures"]``.
"""

import pytest

from tests.support.beacon_minion import Minion


@pytest.fixture
def minion(load, kgraft, tmp_path):
    cachedir = tmp_path / "cache"
    cachedir.mkdir()
    return Minion(load, kgraft, cachedir)
