"""
The judge that is not ours: what the kernel's own livepatch selftests expect.

Facts from tools/testing/selftests/livepatch (test-livepatch.sh, test-sysfs.sh, test-callbacks.sh), followed with the
modules that are here: the same steps, the same values and rights in sysfs, the same lines in the log, in the same order
and no others. The selftests switch on livepatch's debugging messages, and so do we.
"""

import pytest

PATCH, SECOND, REPLACING, TARGET = "livepatch_1_1_1", "klpt_core", "livepatch_2_1_1", "klpt_target"


@pytest.fixture
def kernel_log(plain_guest):
    """Return a function: what live patching has written since the start, with our steps in between."""
    plain_guest.sh(
        "echo 'file kernel/livepatch/* +p' > /proc/dynamic_debug/control;"
        "echo 'func klp_try_switch_task -p' > /proc/dynamic_debug/control; dmesg -c > /dev/null"
    )
    return lambda: [text for _, text in plain_guest.kernel_log()]


def patching(name):
    return [
        f"livepatch: enabling patch '{name}'",
        f"livepatch: '{name}': initializing patching transition",
        f"livepatch: '{name}': starting patching transition",
        f"livepatch: '{name}': completing patching transition",
        f"livepatch: '{name}': patching complete",
    ]


def unpatching(name):
    return [
        f"livepatch: '{name}': initializing unpatching transition",
        f"livepatch: '{name}': starting unpatching transition",
        f"livepatch: '{name}': completing unpatching transition",
        f"livepatch: '{name}': unpatching complete",
    ]


def rights(guest, path):
    return str(guest.sh(f"stat -c %A /sys/kernel/livepatch/{path}")).strip()


def test_basic_function_patching(plain_guest, kernel_log):
    plain_guest.load(SECOND)
    assert plain_guest.sh("cat /proc/cmdline") == f"{SECOND}: this has been live patched\n"

    plain_guest.disabled(SECOND)
    plain_guest.unload(SECOND)
    assert "live patched" not in plain_guest.sh("cat /proc/cmdline")

    assert kernel_log() == patching(SECOND) + unpatching(SECOND)


def test_multiple_livepatches_stack(plain_guest, kernel_log):
    plain_guest.insert(TARGET)
    plain_guest.load(SECOND, PATCH)
    assert plain_guest.sh("cat /proc/cmdline /proc/klpt/state") == f"{SECOND}: this has been live patched\n{PATCH}\n"

    plain_guest.disabled(PATCH)
    plain_guest.unload(PATCH)
    assert plain_guest.sh("cat /proc/cmdline /proc/klpt/state") == f"{SECOND}: this has been live patched\norig\n"

    plain_guest.disabled(SECOND)
    plain_guest.unload(SECOND)
    assert kernel_log() == patching(SECOND) + patching(PATCH) + unpatching(PATCH) + unpatching(SECOND)


def test_an_atomic_replacement_leaves_only_itself(plain_guest, kernel_log):
    plain_guest.insert(TARGET)
    plain_guest.load(SECOND, REPLACING)
    assert plain_guest.patches() == [REPLACING]
    assert plain_guest.sh("cat /proc/cmdline") == f"{REPLACING}: this has been live patched\n"

    plain_guest.unload(SECOND)
    assert plain_guest.sh("cat /proc/cmdline") == f"{REPLACING}: this has been live patched\n"

    plain_guest.disabled(REPLACING)
    plain_guest.unload(REPLACING)
    assert "live patched" not in plain_guest.sh("cat /proc/cmdline")
    assert kernel_log() == patching(SECOND) + patching(REPLACING) + unpatching(REPLACING)


def test_sysfs_has_the_rights_and_values_of_a_patch_that_is_complete(plain_guest):
    plain_guest.load(SECOND)

    assert rights(plain_guest, SECOND) == "drwxr-xr-x"
    assert rights(plain_guest, f"{SECOND}/enabled") == "-rw-r--r--"
    assert plain_guest.value(f"{SECOND}/enabled") == "1"
    assert rights(plain_guest, f"{SECOND}/force") == "--w-------"
    assert rights(plain_guest, f"{SECOND}/transition") == "-r--r--r--"
    assert plain_guest.value(f"{SECOND}/transition") == "0"
    assert rights(plain_guest, f"{SECOND}/vmlinux/patched") == "-r--r--r--"
    assert plain_guest.value(f"{SECOND}/vmlinux/patched") == "1"


def test_patched_follows_the_loading_and_unloading_of_a_module(plain_guest, kernel_log):
    plain_guest.load(PATCH)
    assert plain_guest.value(f"{PATCH}/{TARGET}/patched") == "0"

    plain_guest.insert(TARGET)
    assert plain_guest.value(f"{PATCH}/{TARGET}/patched") == "1"

    plain_guest.unload(TARGET)
    assert plain_guest.value(f"{PATCH}/{TARGET}/patched") == "0"

    plain_guest.disabled(PATCH)
    plain_guest.unload(PATCH)
    coming = f"livepatch: applying patch '{PATCH}' to loading module '{TARGET}'"
    going = f"livepatch: reverting patch '{PATCH}' on unloading module '{TARGET}'"
    assert kernel_log() == [*patching(PATCH), coming, going, *unpatching(PATCH)]


def test_a_busy_target_stalls_the_transition_until_it_is_reversed(plain_guest, kernel_log):
    plain_guest.insert(TARGET)
    plain_guest.sleeper("killable")
    plain_guest.insert(PATCH)
    assert plain_guest.value(f"{PATCH}/transition") == "1"

    plain_guest.disabled(PATCH)
    plain_guest.unload(PATCH)

    assert kernel_log() == [
        *patching(PATCH)[:3],
        f"livepatch: '{PATCH}': reversing transition from patching to unpatching",
        *unpatching(PATCH)[1:],
    ]
    plain_guest.wake()
