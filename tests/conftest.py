"""
What every level of tests shares: kernels made of files, and our modules bound to them.

``kernel``       a kernel of files (``lab.files.Kernel``) in a fresh directory; its first generation, kGraft
``make_kernel``  the same for any generation: ``make_kernel("livepatch", transition=False)``
``kgraft``       ``_modules/kgraft.py``, bound to ``kernel``
``load``         any file of ours, with the dunders of one's choice: ``load("_states/kgraft.py", __salt__={...})``;
                 a room with what it is handed: ``load("_modules/_kgraft_zypper.py", run_all=...)``
"""

import itertools
import logging
import os
import shutil
import sys
import tempfile

import pytest
from hypothesis import HealthCheck, settings

from tests.support.load import REPO, load_file
from tests.support.soak import SOAK

SHARE_A_MASTER = tuple(f"/test_{one}.py" for one in ("prompt", "readme", "states_on_the_bus", "rooms", "it_settles"))

# A slow machine is no failure, and make test searches the same examples each time; make soak searches for new ones
settings.register_profile(
    "tests",
    deadline=None,
    derandomize=not SOAK,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("tests")

# Rooms are loaded anew for each test and each example: compile them once, whatever PYTHONDONTWRITEBYTECODE says
sys.dont_write_bytecode = False

# Salt's daemons log through handlers whose streams pytest has closed by the time they end
logging.raiseExceptions = False


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport():
    """In CI a missing tool is an error: what a laptop may skip fails there."""
    report = (yield).get_result()
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr[-1]}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """``pytest -n``: what shares daemons goes to one process, everything else to whichever is free."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            path = nodeid.partition("::")[0]
            if not path.startswith("tests/integration/"):
                return nodeid
            return "one master" if path.endswith(SHARE_A_MASTER) else path

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def repo():
    """The checkout."""
    return REPO


@pytest.fixture(scope="session")
def load():
    """Return ``load(path, **given)``; dunders not given are those of an idle minion on Linux."""
    return load_file


@pytest.fixture
def make_kernel(tmp_path):
    """Return ``make_kernel(abi, **generation)``, each in a root of its own."""
    from lab.files import Kernel

    roots = ("root" if n == 0 else f"root{n}" for n in itertools.count())

    def make(abi="kgraft", **generation):
        return Kernel(tmp_path / next(roots), abi, **generation)

    return make


@pytest.fixture
def kernel(make_kernel, request):
    """A kernel of files; ``@pytest.mark.parametrize("kernel", [{"abi": "livepatch"}], indirect=True)`` for another."""
    return make_kernel(**getattr(request, "param", {}))


@pytest.fixture
def kgraft_on(load):
    """Return ``kgraft_on(kernel, **dunders)``: ``_modules/kgraft.py``, bound to a kernel of files or of the lab."""

    def bind(kernel, **dunders):
        opts = {"id": "minion", "test": False, "kgraft.root": str(kernel.root), "cachedir": str(kernel.root / "cache")}
        return load("_modules/kgraft.py", **{"__opts__": opts, **dunders})

    return bind


@pytest.fixture
def kgraft(kgraft_on, kernel):
    """``_modules/kgraft.py``, bound to the ``kernel`` of the same test."""
    return kgraft_on(kernel)


@pytest.fixture(scope="session")
def file_root(tmp_path_factory):
    """The checkout as a Salt file root, by links, so that Salt does not walk through .venv."""
    root = tmp_path_factory.mktemp("file-root")
    for name in ("_modules", "_states", "_beacons", "_runners", "examples"):
        if (REPO / name).is_dir():
            (root / name).symlink_to(REPO / name)
    return root


@pytest.fixture(scope="session")
def event_listener():
    """
    The factories' own, but it forgets no event: theirs does after two minutes, and then a test hears too little. Here,
    for the factories keep the one that the first test of a session gives them.
    """
    from saltfactories.plugins.event_listener import EventListener

    with EventListener(timeout=24 * 60 * 60) as listener:
        yield listener


@pytest.fixture(scope="session")
def salt_factories_config():
    """Short paths: a unix socket's may have 107 bytes."""
    root = tempfile.mkdtemp(prefix="kg", dir=os.environ.get("TMPDIR", "/tmp"))
    yield {
        "code_dir": str(REPO),
        "root_dir": root,
        "inject_sitecustomize": False,
        # SIGKILL: at a SIGTERM a minion sleeps 5 s before it ends
        "slow_stop": False,
        "start_timeout": 120,
        "log_server_host": "127.0.0.1",
    }
    shutil.rmtree(root, ignore_errors=True)
