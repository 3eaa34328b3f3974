"""What kgraft_pkg knows by itself: names of packages, and arguments."""

from unittest.mock import create_autospec

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

KERNEL = "4.4.180-94.100-default"


@pytest.fixture
def bind(load, tmp_path):
    """Return ``bind(**dunders)``: kgraft_pkg on a machine that runs ``KERNEL``."""
    kgraft = load("_modules/kgraft.py")
    status = create_autospec(kgraft.status, return_value={"abi": "kgraft", "kernelrelease": KERNEL, "active": []})

    def make(**dunders):
        return load(
            "_modules/kgraft_pkg.py",
            **{
                "__opts__": {"kgraft.root": str(tmp_path)},
                "__grains__": {"os_family": "Suse", "osmajorrelease": 12},
                "__salt__": {"kgraft.status": status},
                **dunders,
            },
        )

    return make


@pytest.fixture
def kgraft_pkg(bind):
    return bind()


# Names, from packaging.md: every form of a release, both schemes, each flavour


@pytest.mark.parametrize(
    ("kernelrelease", "package"),
    [
        ("3.12.28-4-default", "kgraft-patch-3_12_28-4-default"),
        ("3.12.51-52.31-default", "kgraft-patch-3_12_51-52_31-default"),
        ("3.12.51-52.31-xen", "kgraft-patch-3_12_51-52_31-xen"),
        ("4.4.21-69-default", "kgraft-patch-4_4_21-69-default"),
        ("4.4.38-81.stage.3-default", "kgraft-patch-4_4_38-81_stage_3-default"),
        ("4.4.180-94.100-default", "kgraft-patch-4_4_180-94_100-default"),
        ("4.12.14-94.41-default", "kgraft-patch-4_12_14-94_41-default"),  # 12 SP4
        ("4.12.14-95.3-default", "kgraft-patch-4_12_14-95_3-default"),
        ("4.12.14-120-default", "kgraft-patch-4_12_14-120-default"),  # 12 SP5
        ("4.12.14-122.228-default", "kgraft-patch-4_12_14-122_228-default"),
        ("4.12.14-23-default", "kernel-livepatch-4_12_14-23-default"),  # 15
        ("4.12.14-25.28-default", "kernel-livepatch-4_12_14-25_28-default"),
        ("4.12.14-150.90-default", "kernel-livepatch-4_12_14-150_90-default"),
        ("4.12.14-195-default", "kernel-livepatch-4_12_14-195-default"),  # 15 SP1
        ("4.12.14-197.108-default", "kernel-livepatch-4_12_14-197_108-default"),
        ("5.3.18-24.107-default", "kernel-livepatch-5_3_18-24_107-default"),
        ("5.14.21-150400.24.33-default", "kernel-livepatch-5_14_21-150400_24_33-default"),
        ("5.14.21-150400.15.11-rt", "kernel-livepatch-5_14_21-150400_15_11-rt"),
        ("6.12.0-160000.5-default", "kernel-livepatch-6_12_0-160000_5-default"),
    ],
)
def test_a_package_is_named_after_its_kernel(kgraft_pkg, kernelrelease, package):
    assert kgraft_pkg.name(kernelrelease) == package


@pytest.mark.parametrize(
    "grains",
    [
        {"os": "SUSE", "osfullname": "Leap"},
        {"os": "Leap", "osfullname": "Leap"},
        {"os": "openSUSE", "osfullname": "openSUSE Tumbleweed"},
    ],
)
def test_opensuse_has_the_same_kernels_and_no_live_patches(bind, grains):
    kgraft_pkg = bind(__grains__={"os_family": "Suse", **grains})

    with pytest.raises(CommandExecutionError, match="openSUSE has no live patches"):
        kgraft_pkg.name()
    assert kgraft_pkg.name(KERNEL) == "kgraft-patch-4_4_180-94_100-default"


def test_the_running_kernel_is_meant_unless_told_otherwise(kgraft_pkg):
    assert kgraft_pkg.name() == "kgraft-patch-4_4_180-94_100-default"


@pytest.mark.parametrize(
    ("kernelrelease", "reason"),
    [
        ("3.0.101-108.7-default", "live patching began with 3.12"),
        ("4.12.14-6.3-azure", "none for the flavour 'azure', only for default, rt, xen"),
        ("6.1.0-18-amd64", "none for the flavour 'amd64'"),
        ("6.4.0-150600.23.7-64kb", "none for the flavour '64kb'"),
        ("4.4.120-3.11.1-rt", "real-time kernels have live patches from 5.14.21"),
        ("4.12.14-10.3-rt", "real-time kernels have live patches from 5.14.21"),
        ("5.3.18-8.13-rt", "real-time kernels have live patches from 5.14.21"),
        ("4.4.21-69-xen", "the flavour 'xen' has them on SUSE Linux Enterprise 12 and 12 SP1 only"),
        ("5.14.0-427.el9.x86_64", "not named as SUSE names kernels"),
        ("5.3.18-lp152.19-default", "not named as SUSE names kernels"),
        ("4.4.180-94.100.1.1-default", "not named as SUSE names kernels"),
        ("4.4.180-94.100", "not named as SUSE names kernels"),
        ("", "not named as SUSE names kernels"),
    ],
)
def test_a_kernel_without_live_patches_is_an_error_that_says_why(kgraft_pkg, kernelrelease, reason):
    with pytest.raises(CommandExecutionError, match=reason):
        kgraft_pkg.name(kernelrelease)


# Where it loads


def test_it_is_not_there_where_pkg_is_not_zyppers(bind):
    assert bind(__grains__={"os_family": "Debian"}).__virtual__() == (
        False,
        "kgraft_pkg works with zypper's packages: os_family is 'Debian', not 'Suse'",
    )


@pytest.mark.parametrize("tool", ["zypper", "rpm"])
def test_it_is_not_there_without_its_tools(kgraft_pkg, monkeypatch, tool):
    # Salt looks into /usr/bin whatever PATH says
    monkeypatch.setattr("salt.utils.path.which", lambda name: None if name == tool else name)

    assert kgraft_pkg.__virtual__() == (False, f"kgraft_pkg needs {tool}, which is not on PATH")


# Arguments


@pytest.mark.parametrize("version", [2.1, "2.10", "", "latest", ">=5", "2-", True, ["2"], "2_2_1"])
def test_a_version_that_cannot_be_is_refused_with_what_to_write(kgraft_pkg, version):
    with pytest.raises(SaltInvocationError, match="version is .*: quote it, as '2' or '2-2.1'"):
        kgraft_pkg.install(version)


@pytest.mark.parametrize("timeout", [-1, "5", None, True])
def test_a_time_out_that_is_no_time_is_refused(kgraft_pkg, timeout):
    with pytest.raises(SaltInvocationError, match="timeout is "):
        kgraft_pkg.install(timeout=timeout)


@pytest.mark.parametrize("function", ["available", "repositories", "install", "check"])
def test_a_string_is_no_truth(kgraft_pkg, function):
    with pytest.raises(SaltInvocationError, match="refresh is 'no': it must be True or False"):
        getattr(kgraft_pkg, function)(refresh="no")


def test_a_string_does_not_allow_a_downgrade(kgraft_pkg):
    with pytest.raises(SaltInvocationError, match="allow_downgrade is 'False'"):
        kgraft_pkg.install("1", allow_downgrade="False")
