"""
Salt's real loader on our checkout, with no daemon.

``loaders``       ``loaders.modules.kgraft.status()``, ``loaders.states.kgraft.settled("x")``, bound to ``kernel``
``make_loaders``  loaders with options of one's own: ``make_loaders(grains={"os_family": "Suse"})``
``beacons``       Salt's loader of beacons on the same minion: ``beacons["kgraft.beacon"](config)``
"""

import pathlib
from unittest import mock

import pytest
import salt.loader
import salt.utils.event
from saltfactories.utils import random_string
from saltfactories.utils.functional import Loaders


@pytest.fixture(scope="session", autouse=True)
def _no_bus():
    """No daemon, so no event bus: without this, Salt would try without a pause, for a second, to reach one."""
    with mock.patch.object(salt.utils.event.SaltEvent, "connect_pull", autospec=True, return_value=False):
        yield


class Options(dict):
    """
    A minion's options, whose ``kgraft.root`` can be set anew for each test: it stays a link, and the link is moved. For
    Salt 3006 copies the options into a module when it loads it, for good.
    """

    def __setitem__(self, key, value):
        if key != "kgraft.root" or key not in self:
            super().__setitem__(key, value)
            return
        link = pathlib.Path(self[key])
        link.unlink(missing_ok=True)
        link.symlink_to(value)

    def update(self, options):
        for key, value in options.items():
            self[key] = value


@pytest.fixture(scope="session")
def make_loaders(salt_factories, file_root, tmp_path_factory):
    """Return ``make_loaders(**options)``; takes a second, so use ``loaders`` or ``suse_loaders`` where they will do."""

    def make(**options):
        minion = salt_factories.salt_minion_daemon(
            random_string("functional-"),
            overrides={
                "file_client": "local",
                "module_dirs": [str(file_root)],
                # who looks for a function that is not there loads all modules, and this one all utils
                "disable_modules": ["idem"],
                "kgraft.root": str(tmp_path_factory.mktemp("minion") / "root"),
                **options,
            },
        )
        # Salt keeps one module of a name, with the options of who loaded it last: each minion has names of its own
        loaders = Loaders(minion.config.copy(), loaded_base_name=minion.id)
        loaders.opts = Options(loaders.opts)
        # as with salt-call: a state takes the pillar that is there, if that is not empty, and does not read it anew
        loaders.opts["__cli"] = "salt-call"
        loaders.opts["pillar"] = loaders.opts["pillar"] or {"nothing": "of ours"}
        return loaders

    return make


@pytest.fixture(scope="session")
def _loaders(make_loaders):
    return make_loaders()


@pytest.fixture
def loaders(_loaders, kernel):
    """Loaders whose minion runs on the ``kernel`` of the same test."""
    _loaders.opts["kgraft.root"] = str(kernel.root)
    yield _loaders
    _loaders.reset_state()
    _loaders.opts["kgraft.root"] = "/nonexistent"


@pytest.fixture
def beacons(loaders):
    """The beacons that Salt finds in the checkout, with the execution modules of ``loaders``."""
    found = salt.loader.beacons(loaders.opts, loaders.modules, context=loaders.context)
    found.pack["__grains__"] = loaders.grains
    return found
