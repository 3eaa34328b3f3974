"""What kgraft_security knows by itself: arguments, support windows, and what zypper's list of updates means."""

from unittest.mock import create_autospec

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

KERNEL = "4.4.180-94.100-default"


@pytest.fixture
def bind(load, tmp_path):
    """Return ``bind(salt)``: kgraft_security on a machine that runs ``KERNEL``."""
    kgraft = load("_modules/kgraft.py")
    status = create_autospec(kgraft.status, return_value={"abi": "kgraft", "kernelrelease": KERNEL, "active": []})
    on_suse = {"__opts__": {"kgraft.root": str(tmp_path)}, "__grains__": {"os_family": "Suse", "osmajorrelease": 12}}
    kgraft_pkg = load("_modules/kgraft_pkg.py", __salt__={"kgraft.status": status}, **on_suse)

    def make(**salt):
        salt = {"kgraft.status": status, "kgraft_pkg.name": kgraft_pkg.name, **salt}
        return load("_modules/kgraft_security.py", __salt__=salt, **on_suse)

    return make


@pytest.fixture
def kgraft_security(bind):
    return bind()


@pytest.mark.parametrize("tool", ["zypper", "rpm"])
def test_it_is_not_there_without_its_tools(kgraft_security, monkeypatch, tool):
    # Salt looks into /usr/bin whatever PATH says
    monkeypatch.setattr("salt.utils.path.which", lambda name: None if name == tool else name)

    assert kgraft_security.__virtual__() == (False, f"kgraft_security needs {tool}, which is not on PATH")


# Arguments


@pytest.mark.parametrize("version", [2.1, "2.10", "", "latest", ">=5", "2-", True, ["2"], "2_2_1"])
def test_a_version_that_cannot_be_is_refused_with_what_to_write(kgraft_security, version):
    with pytest.raises(SaltInvocationError, match="version is .*: quote it, as '2' or '2-2.1'"):
        kgraft_security.fixes(version)


def test_cves_wants_at_least_one(kgraft_security):
    with pytest.raises(SaltInvocationError, match="at least one"):
        kgraft_security.cves()


# The support window


def lifecycle(root, text, file="sle-live-patching.lifecycle"):
    (root / "var/lib/lifecycle/data").mkdir(parents=True, exist_ok=True)
    (root / "var/lib/lifecycle/data" / file).write_text(text)


def test_the_support_window_is_this_kernels(kgraft_security, tmp_path):
    lifecycle(
        tmp_path,
        "# package, version, date\n"
        "kgraft-patch-4_4_180-94_97-default, *, 2026-06-30\n"
        "kgraft-patch-4_4_180-94_100-default, *, 2026-12-31\n"
        "kgraft-patch-4_4_180-94_100, *, 2027-12-31\n",
    )

    assert kgraft_security.supported_until() == "2026-12-31"
    assert kgraft_security.supported_until("4.4.180-94.97-default") == "2026-06-30"
    assert kgraft_security.supported_until("4.4.180-94.107-default") is None


def test_without_the_data_there_is_no_date(kgraft_security):
    assert kgraft_security.supported_until() is None


def test_text_instead_of_a_date_is_no_date(kgraft_security, tmp_path):
    lifecycle(tmp_path, "kgraft-patch-4_4_180-94_100-default, *, end of life\n\nodd\n,,\n")

    assert kgraft_security.supported_until() is None


def test_of_several_dates_the_latest_counts(kgraft_security, tmp_path):
    lifecycle(tmp_path, "kgraft-patch-4_4_180-94_100-default,*,2026-12-31\n")
    lifecycle(tmp_path, "kgraft-patch-4_4_180-94_1*-default, *, 2027-03-31\n", "ltss.lifecycle")
    lifecycle(tmp_path, "kgraft-patch-4_4_180-94_100-default, *, 2099-01-01\n", "old.lifecycle.rpmsave")

    assert kgraft_security.supported_until() == "2027-03-31"


def test_support_data_that_cannot_be_read_are_not_none(kgraft_security, tmp_path):
    (tmp_path / "var/lib/lifecycle/data/odd.lifecycle").mkdir(parents=True)

    with pytest.raises(CommandExecutionError, match="Cannot read the support windows"):
        kgraft_security.supported_until()


# The updates that zypper lists


def test_an_update_that_is_not_needed_leaves_nothing_open(bind):
    """The list says of each update whether it is needed; only these count."""
    update = (
        '<update name="SUSE-{0}" status="{0}"><issue-list><issue type="cve" id="CVE-2026-{1}"/></issue-list></update>'
    )
    answer = "<stream>{}{}</stream>".format(update.format("needed", "0001"), update.format("applied", "0002"))
    answers = {
        "zypper": {"retcode": 0, "stdout": answer, "stderr": ""},
        "rpm": {"retcode": 1, "stdout": "package kgraft-patch is not installed", "stderr": ""},
    }
    status = {"abi": None, "kernelrelease": KERNEL}
    kgraft_security = bind(**{"cmd.run_all": lambda command, **_: answers[command[0]], "kgraft.status": lambda: status})

    assert kgraft_security.cves("CVE-2026-0001", "CVE-2026-0002") == {
        "CVE-2026-0001": "open: SUSE-needed",
        "CVE-2026-0002": "unknown",
    }
