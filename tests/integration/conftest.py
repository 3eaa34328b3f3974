"""
A real master, minion and event bus, with the checkout synced to the minion.

The minion's kernel is a directory that each test fills anew: ``kernel`` here writes to the minion's ``kgraft.root``.

``salt_cli``       ``salt_cli.run("kgraft.status", minion_tgt=minion.id)``
``salt_call_cli``  the same minion's salt-call
``salt_run_cli``   the master's runners
``salt_ssh_cli``   salt-ssh to this machine, through an sshd of the tests; the same kernel

Not fixtures: ``job(master, minion, "kgraft.status")``, what the minion answered; ``sync(master, minion)``.
"""

import getpass
import pathlib
import shutil

import pytest
from saltfactories.utils import random_string

from tests.support import pretended_packages as pretended

# Fewer processes; what the daemons log costs a third of each call; a slow minion is waited for, not given up after 5 s
MASTER = {
    "worker_threads": 3,
    # no salt-key and no second knock for each minion
    "auto_accept": True,
    "timeout": 60,
    "gather_job_timeout": 60,
    # what a test puts into a file root counts at once
    "fileserver_list_cache_time": 0,
    "log_level_logfile": "warning",
    "pytest-master": {"log": {"level": "error"}},
}
MINION = {
    # the default of the factories, 0.05, would make a beacon's interval twenty times as long
    "loop_interval": 1,
    # who looks for a function that is not there loads all modules, and this one all utils
    "disable_modules": ["idem"],
    "log_level_logfile": "warning",
    "pytest-minion": {"log": {"level": "error"}},
}


def job(master, minion, function, *arguments, **named):
    """What ``salt`` does, without the half second that it takes to start; an error is a text."""
    return master.salt_client().run(function, *arguments, minion_tgt=minion.id, **named)


def sync(master, minion):
    """Bring the minion what the master's file roots hold."""
    synced = job(master, minion, "saltutil.sync_all")
    assert isinstance(synced, dict), synced


@pytest.fixture(scope="session")
def kernel_root(tmp_path_factory):
    """The minion's ``kgraft.root``."""
    return tmp_path_factory.mktemp("kernel") / "root"


@pytest.fixture
def make_kernel(kernel_root):
    """As in tests/conftest.py, but always where the minion looks: the newest one counts."""
    from lab.files import Kernel

    def make(abi="kgraft", **generation):
        shutil.rmtree(kernel_root, ignore_errors=True)
        return Kernel(kernel_root, abi, **generation)

    return make


@pytest.fixture(scope="session")
def pretended_packages(tmp_path_factory):
    """For a minion's ``module_dirs``."""
    return pretended.write(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="session")
def master(salt_factories, file_root):
    factory = salt_factories.salt_master_daemon(
        random_string("master-"),
        overrides={**MASTER, "file_roots": {"base": [str(file_root)]}},
    )
    with factory.started():
        yield factory


@pytest.fixture(scope="session")
def minion(master, kernel_root):
    factory = master.salt_minion_daemon(
        random_string("minion-"),
        overrides={**MINION, "kgraft.root": str(kernel_root)},
    )
    with factory.started():
        sync(master, factory)
        yield factory


@pytest.fixture(scope="session")
def salt_cli(master, minion):
    return master.salt_cli(timeout=180)


@pytest.fixture(scope="session")
def salt_call_cli(minion):
    return minion.salt_call_cli(timeout=180)


@pytest.fixture(scope="session")
def salt_run_cli(master):
    return master.salt_run_cli(timeout=180)


@pytest.fixture(scope="session")
def sshd(salt_factories):
    # Debian's sshd wants it, and only its service makes it
    pathlib.Path("/run/sshd").mkdir(exist_ok=True)
    config_dir = salt_factories.get_root_dir_for_daemon("sshd")
    factory = salt_factories.get_sshd_daemon(
        sshd_config_dict={
            "Protocol": "2",
            "StrictModes": "no",
            "UsePAM": "no",
            "PermitRootLogin": "yes",
            "PasswordAuthentication": "no",
            "PubkeyAuthentication": "yes",
            "AuthorizedKeysFile": str(config_dir / "client_key.pub"),
            # scp speaks sftp since OpenSSH 9
            "Subsystem": "sftp internal-sftp",
        },
        config_dir=config_dir,
    )
    with factory.started():
        yield factory
    shutil.rmtree(config_dir, ignore_errors=True)


@pytest.fixture(scope="session")
def salt_ssh_cli(master, sshd, kernel_root, tmp_path_factory):
    work = tmp_path_factory.mktemp("ssh")
    roster = work / "roster"
    roster.write_text(
        f"""
localhost:
  host: 127.0.0.1
  port: {sshd.listen_port}
  user: {getpass.getuser()}
  set_path: /usr/sbin:/usr/bin:/sbin:/bin
  thin_dir: {work / "thin"}
  minion_opts:
    kgraft.root: {kernel_root}
  ssh_options:
    - StrictHostKeyChecking=no
    - UserKnownHostsFile={work / "known_hosts"}
""",
        encoding="utf-8",
    )
    return master.salt_ssh_cli(
        timeout=180,
        roster_file=str(roster),
        target_host="localhost",
        client_key=str(sshd.config_dir / "client_key"),
        base_script_args=["--ignore-host-keys"],
    )
