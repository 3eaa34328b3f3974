"""What ``kgraft.overview`` says of a machine, and what it says of what it does not know."""

import re

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

KEYS = {"observed", "version", "state", "direction", "active", "kernelrelease", "boot_id", "abi"}
KEYS |= {"running", "since", "blocking", "package", "supported_until", "reboot", "notes"}


@pytest.fixture
def others(kgraft):
    """What other modules answer, as ``{function: answer}``; one that raises is an exception."""

    def answer(**functions):
        def call(value):
            if isinstance(value, Exception):
                raise value
            return value

        for name, value in functions.items():
            kgraft.__salt__[name.replace("__", ".")] = lambda value=value: call(value)

    return answer


OFFERED = {"versions": ["10-2.1"], "newest": "10-2.1", "as_of": "2026-11-23 02:10", "unread": ["far: it is away"]}


def test_all_that_is_known_is_in_one_answer(kernel, kgraft, others):
    kernel.patch("kgraft-patch-9-2_2")
    others(
        kgraft_pkg__available=OFFERED,
        kgraft_pkg__name="kgraft-patch-x",
        kgraft_pkg__installed="9-2.2",
        kgraft_security__supported_until="2026-12-31",
        kgraft_security__reboot={"verdict": "not needed"},
    )

    told = kgraft.overview()

    assert set(told) == KEYS
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", told["observed"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", told["version"])
    assert {key: told[key] for key in ("state", "active", "abi")} == {
        "state": "ready",
        "active": ["kgraft_patch_9_2_2"],
        "abi": "kgraft",
    }
    assert told["package"] == {
        "name": "kgraft-patch-x",
        "installed": "9-2.2",
        "newest": "10-2.1",
        "as_of": "2026-11-23 02:10",
    }
    assert (told["supported_until"], told["reboot"]) == ("2026-12-31", {"verdict": "not needed"})
    assert (told["blocking"], told["notes"]) == (None, ["far: it is away"])


def test_what_is_not_known_is_none_with_a_reason(kernel, kgraft, others):
    others(kgraft_pkg__available=CommandExecutionError("zypper did not end"))

    told = kgraft.overview()

    assert set(told) == KEYS
    assert (told["package"], told["supported_until"], told["reboot"]) == (None, None, None)
    assert told["notes"] == [
        "kgraft_pkg.available: zypper did not end",
        "kgraft_security.supported_until is not loaded here",
        "kgraft_security.reboot is not loaded here",
    ]


@pytest.mark.parametrize("kernel", [{"abi": None}], indirect=True)
def test_a_kernel_without_live_patching_is_told_as_such(kgraft):
    told = kgraft.overview()
    assert (told["state"], told["abi"], told["active"], told["blocking"]) == ("unavailable", None, [], None)


@pytest.mark.parametrize("names", [False, True])
def test_who_blocks_is_told_by_kind_and_by_name_only_if_asked(moving, names):
    kernel, kgraft = moving
    kernel.task(4711, "hdbindexserver", unit="sapinit.service", blocking=True)

    told = kgraft.overview(names=names)["blocking"]

    (task,) = told["tasks"]
    assert (told["count"], told["complete"]) == (1, True)
    assert (task["kind"], task["unit"]) == ("user", "sapinit.service")
    assert task["why"].startswith("It sleeps in the kernel since before the patch")
    assert ("name" in task, "user" in task, "pid" in task) == (names, names, names)
    assert ("hdbindexserver" in str(told)) is names


def test_a_string_is_no_truth(kgraft):
    with pytest.raises(SaltInvocationError, match="names='yes'"):
        kgraft.overview(names="yes")
