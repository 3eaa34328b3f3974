"""
Fixtures over ``tests.support.packages``; a test file says ``pytest_plugins = ["tests.support.package_fixtures"]``.

``live_patches``    a repository with live patches for three kernels, their updates and kernels (built once a session)
``new_repository``  ``new_repository("alias")``: an empty repository of one's own, to ``add_…`` to
``suse_loaders``    Salt's loaders on a SUSE minion, which must be told its ``kgraft.root``
``suse``            the root of the test's ``kernel`` as a SUSE machine that has ``live_patches`` enabled
``on``              ``on(root)``: the execution modules of a SUSE minion whose root is this one
"""

import fcntl
import os
import pickle

import pytest

from tests.support.packages import PackageRepository, SuseRoot, minion_options, standard_repository


@pytest.fixture(scope="session")
def live_patches(tmp_path_factory):
    """The repository that ``tests.support.packages`` describes. Do not add to it: it is everybody's."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    with open(base / "live-patching.pickle", "a+b") as built:
        # the first of the processes of pytest -n builds it, the others wait
        fcntl.flock(built, fcntl.LOCK_EX)
        built.seek(0)
        if not built.read(1):
            pickle.dump(standard_repository(base / "live-patching"), built)
        built.seek(0)
        return pickle.load(built)


@pytest.fixture
def new_repository(tmp_path_factory):
    """Return ``new_repository(alias)``, an empty one."""
    return lambda alias: PackageRepository(tmp_path_factory.mktemp("repositories") / alias)


@pytest.fixture
def suse(kernel, live_patches):
    """The root of ``kernel`` as a SUSE machine with the repository ``live_patches``."""
    with SuseRoot(kernel.root, live_patches) as machine:
        yield machine


@pytest.fixture(scope="session")
def _suse_loaders(make_loaders):
    return make_loaders(**minion_options())


@pytest.fixture
def suse_loaders(_suse_loaders):
    """Salt's loaders on a SUSE minion."""
    yield _suse_loaders
    _suse_loaders.reset_state()
    _suse_loaders.opts["kgraft.root"] = "/nonexistent"


@pytest.fixture
def on(suse_loaders):
    """Return ``on(root)``: the execution modules of a SUSE minion whose root is this one."""

    def bind(root):
        suse_loaders.opts["kgraft.root"] = str(root)
        return suse_loaders.modules

    return bind
