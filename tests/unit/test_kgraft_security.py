"""What kgraft_security knows by itself: arguments and support windows."""

import time
from unittest.mock import create_autospec
from xml.etree import ElementTree

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


@pytest.mark.parametrize("timeout", [-1, "5", True, None, float("nan"), float("inf")])
def test_a_timeout_that_cannot_be_is_refused(kgraft_security, timeout):
    with pytest.raises(SaltInvocationError, match="timeout is .*: give seconds"):
        kgraft_security.fixes(timeout=timeout)
    with pytest.raises(SaltInvocationError, match="timeout is .*: give seconds"):
        kgraft_security.cves("odd", timeout=timeout)


def test_cves_wants_at_least_one(kgraft_security):
    with pytest.raises(SaltInvocationError, match="at least one"):
        kgraft_security.cves()


# What an update brings


def test_what_an_update_brings_stands_in_its_conflicts_only(kgraft_security, monkeypatch):
    told = """<stream><message type="info">Loading repository data...</message>
<message type="info">Repository  : Updates
Name        : SUSE-1
Version     : 1
Description :
    Conflicts with openssl:
    openssl &lt; 9-9
Provides    : patch:SUSE-1 = 1
Conflicts   : [5]
    srcpackage:kernel-default &lt; 5.14.21-150400.24.46.1
    kernel-default.x86_64 &lt; 5.14.21-150400.24.46.1
    kernel-default.noarch &lt; 5.14.21-150400.24.46.1
    python3.11.x86_64 &lt; 3.11-1
    kernel-livepatch-5_14_21-150400_24_46-default.x86_64 &lt; 1-150400.9.3.1
</message>
<message type="info">Name        : SUSE-2
Conflicts   : ---
</message></stream>"""
    packages = kgraft_security.zypper.Packages(5)
    monkeypatch.setattr(packages, "ask", lambda *_: (ElementTree.fromstring(told), {}))

    assert packages.brought("SUSE-1", "SUSE-2") == {
        "SUSE-1": {
            "kernel-default": "5.14.21-150400.24.46.1",
            "python3.11": "3.11-1",
            "kernel-livepatch-5_14_21-150400_24_46-default": "1-150400.9.3.1",
        },
        "SUSE-2": {},
    }


# The support window: the rules of zypper-lifecycle's source, and of its test data (SUSE/zypper-lifecycle)

OURS = "kgraft-patch-4_4_180-94_100-default"


def lifecycle(root, text, file="sle-live-patching.lifecycle", directory="var/lib"):
    place = root / directory / "lifecycle/data" / file
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(text.encode() if isinstance(text, str) else text)
    return place


@pytest.fixture
def version(monkeypatch):
    """Return ``version("9-2.2")``: this one is installed."""

    def install(security, edition):
        monkeypatch.setattr(
            security.zypper.Packages, "installed", lambda _, package: edition if package == OURS else None
        )

    return install


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


@pytest.mark.parametrize(
    ("lines", "date"),
    [
        pytest.param(f"{OURS}, *, 2026-12-31", "2026-12-31", id="three columns"),
        pytest.param(f"{OURS},*,2026-12-31,", "2026-12-31", id="an empty successor"),
        pytest.param(f"{OURS}, *, 2026-12-31, kgraft-patch-next", "2026-12-31", id="a successor"),
        pytest.param(f"{OURS}, *, , kgraft-patch-next", None, id="a successor and no date"),
        pytest.param(f"{OURS}, *", None, id="two columns"),
        pytest.param(f"\t{OURS}  ,  * ,\t2026-12-31 \r\n", "2026-12-31", id="blanks"),
        pytest.param(f'"{OURS}","*","2026-12-31"', "2026-12-31", id="quotes"),
        pytest.param(f"# a remark\n\n  # {OURS}, *, odd\n{OURS}, *, 2026-12-31\n", "2026-12-31", id="remarks"),
        pytest.param(f"#{OURS}, *, 2026-12-31", None, id="a remark only"),
        pytest.param(f"{OURS}, *, 2026-06-30\n{OURS}, *, 2026-12-31", "2026-12-31", id="the last line counts"),
        pytest.param(f"{OURS}, *, 2026-12-31\n{OURS}, *, 2026-06-30", "2026-06-30", id="also with an earlier date"),
        pytest.param(f"{OURS}, *, 2026-12-31\n{OURS}, *, , next", None, id="also without a date"),
        pytest.param(f"{OURS}, *, 2026-12-31\n{OURS}, 8-*, 2026-06-30", "2026-12-31", id="if it is about our version"),
        # names
        pytest.param("kgraft-patch-*, *, 2026-12-31", "2026-12-31", id="* in the name"),
        pytest.param("*-4_4_180-94_100-*, *, 2026-12-31", "2026-12-31", id="several * in the name"),
        pytest.param("kgraft-patch-4_4_*-rt, *, 2026-12-31", None, id="* and another end"),
        pytest.param("kgraft-patch-4_4_180-94_10[0]-default, *, 2026-12-31", None, id="[] is not special"),
        pytest.param("kgraft-patch-4.4.180-94.100-default, *, 2026-12-31", None, id="nor is ."),
        pytest.param(r"/^kgraft-patch-\d+_4_180-.*$/, *, 2026-12-31", "2026-12-31", id="regular expression"),
        pytest.param("/4_4_180/, *, 2026-12-31", "2026-12-31", id="anywhere in the name"),
        pytest.param("/^4_4_180/, *, 2026-12-31", None, id="anchored"),
        pytest.param('"/^kgraft-patch.{3,}-default$/", *, 2026-12-31', "2026-12-31", id="a comma in it, quoted"),
        # versions; 9-2.2 is installed
        pytest.param(f"{OURS}, 9-2.2, 2026-12-31", "2026-12-31", id="this version"),
        pytest.param(f"{OURS}, 9*, 2026-12-31", "2026-12-31", id="* in the version"),
        pytest.param(f"{OURS}, 9-2, 2026-12-31", None, id="another version"),
        pytest.param(f"{OURS}, 9.2.2, 2026-12-31", None, id=". in a version is not special"),
        # dates
        pytest.param(f"{OURS}, *, end of life 2026-12-31", "2026-12-31", id="text before the date"),
        pytest.param(f"{OURS}, *, 2026-12-31 (LTSS)", "2026-12-31", id="text behind the date"),
        pytest.param(f"{OURS}, *, 2026-6-1", "2026-06-01", id="short numbers"),
    ],
)
def test_the_lines_are_read_as_zypper_lifecycle_reads_them(kgraft_security, version, tmp_path, lines, date):
    version(kgraft_security, "9-2.2")
    lifecycle(tmp_path, lines)

    assert kgraft_security.supported_until() == date


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("odd", "it has no name or no version"),
        (f"{OURS}, , 2026-12-31", "it has no name or no version"),
        (", *, 2026-12-31", "it has no name or no version"),
        (f"{OURS}, *, end of life", "there is no date in 'end of life'"),
        ("other, *, soon", "there is no date in 'soon'"),
        (f"{OURS}, *, 2026-02-30", "day is out of range"),
        (f"{OURS}, *, 12026-12-312", "there is no date"),
        (f'"{OURS}"x, *, 2026-12-31', "expected after"),
        (f'"{OURS}, *, 2026-12-31', "unexpected end"),
        ("/(/, *, 2026-12-31", r"missing \), unterminated subpattern"),
        ("/a\0/, *, 2026-12-31", "null byte|NUL"),
        (b"kgraft\xff, *, 2026-12-31", "can't decode byte 0xff"),
    ],
)
def test_a_line_that_cannot_be_parsed_is_named_and_is_no_none(kgraft_security, tmp_path, line, why):
    first = b"kgraft-patch-*, *, 2026-12-31\n"
    place = lifecycle(tmp_path, first + (line if isinstance(line, bytes) else line.encode()) + b"\n")

    with pytest.raises(CommandExecutionError, match=f"Cannot read the support windows: {place}, line 2: .*({why})"):
        kgraft_security.supported_until()


def test_a_regular_expression_that_takes_for_ever_is_ended(kgraft_security, tmp_path):
    kgraft_security._LIFECYCLE_SECONDS = 1
    lifecycle(tmp_path, r"/^([a-z0-9_-]+)+!$/, *, 2026-12-31")
    begin = time.monotonic()

    with pytest.raises(CommandExecutionError, match="lifecycle, line 1: .*did not end within 1 s and was ended"):
        kgraft_security.supported_until()

    assert time.monotonic() - begin < 10


def test_a_line_for_some_versions_is_not_about_a_package_that_is_not_installed(kgraft_security, version, tmp_path):
    version(kgraft_security, None)
    lifecycle(tmp_path, f"{OURS}, *, 2026-06-30\n{OURS}, 9*, 2026-12-31\n")

    assert kgraft_security.supported_until() == "2026-06-30"


@pytest.mark.parametrize("directory", ["var/lib", "usr/lib", "usr/share"])
def test_the_data_may_lie_in_three_places(kgraft_security, tmp_path, directory):
    lifecycle(tmp_path, f"{OURS}, *, 2026-12-31", directory=directory)
    lifecycle(tmp_path, f"{OURS}, *, 2099-01-01", "old.lifecycle.rpmsave", directory)

    assert kgraft_security.supported_until() == "2026-12-31"


def test_of_one_product_the_last_directory_counts(kgraft_security, tmp_path):
    for directory, date in (("var/lib", "2026-10-31"), ("usr/share", "2026-11-30"), ("usr/lib", "2026-12-31")):
        lifecycle(tmp_path, f"{OURS}, *, {date}", directory=directory)

    assert kgraft_security.supported_until() == "2026-11-30"


def test_of_several_products_the_latest_date_counts(kgraft_security, tmp_path):
    lifecycle(tmp_path, f"{OURS}, *, 2027-03-31", "ltss.lifecycle")
    lifecycle(tmp_path, f"{OURS}, *, 2026-12-31")
    lifecycle(tmp_path, f"{OURS}, *, , next", "other.lifecycle")

    assert kgraft_security.supported_until() == "2027-03-31"


def test_support_data_that_cannot_be_read_are_not_none(kgraft_security, tmp_path):
    place = tmp_path / "usr/share/lifecycle/data/odd.lifecycle"
    place.mkdir(parents=True)

    with pytest.raises(CommandExecutionError, match=f"Cannot read the support windows: {place}: .*Is a directory"):
        kgraft_security.supported_until()


def test_a_directory_of_support_data_that_cannot_be_listed_is_not_none(kgraft_security, tmp_path):
    lifecycle(tmp_path, f"{OURS}, *, 2026-12-31")
    place = tmp_path / "usr/share/lifecycle/data"
    place.parent.mkdir(parents=True)
    place.write_text("")

    with pytest.raises(CommandExecutionError, match=f"Cannot read the support windows: {place}: .*Not a directory"):
        kgraft_security.supported_until()
