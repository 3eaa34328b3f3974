"""What livepatch's files say, each generation of them."""

import pytest

LIVEPATCH = "livepatch_9_2_1"


@pytest.mark.parametrize("generation", [{}, {"replace": False}, {"stack_order": True}, {"patched": False}], ids=str)
def test_each_generation_of_livepatch_goes_through_a_patch_life(make_kernel, kgraft_on, generation):
    kernel = make_kernel("livepatch", **generation)
    kgraft = kgraft_on(kernel)
    assert kgraft.summary() == "ready no live patch"
    kernel.start(LIVEPATCH)
    kernel.task(731, "nfsd", blocking=True)
    assert kgraft.summary() == f"in_progress {LIVEPATCH} apply 1 blocking: nfsd(731) user"
    kernel.finish()
    assert kgraft.summary() == f"ready {LIVEPATCH}"
    kernel.revert(LIVEPATCH)
    assert kgraft.status()["direction"] == "revert"
    kernel.finish()
    assert kgraft.patches() == {}  # the directory vanishes, the opposite of kGraft


def test_livepatch_before_4_12_has_no_transition_and_is_ready(make_kernel, kgraft_on):
    kernel = make_kernel("livepatch", transition=False)
    kernel.patch(LIVEPATCH)
    kgraft = kgraft_on(kernel)
    assert kgraft.status()["state"] == "ready"
    assert kgraft.patches()[LIVEPATCH]["state"] == "applied"
    assert kgraft.wait(timeout=1) < 1


@pytest.mark.parametrize(
    ("enabled", "transition", "state", "direction"),
    [
        ("1", "1", "applying", "apply"),
        ("1", "0", "applied", None),
        ("0", "1", "reverting", "revert"),
        ("0", "0", "inactive", None),
    ],
)
def test_enabled_and_transition_make_the_livepatchs_state(
    make_kernel, kgraft_on, enabled, transition, state, direction
):
    kernel = make_kernel("livepatch")
    kernel.patch(LIVEPATCH)
    kernel.write(f"sys/kernel/livepatch/{LIVEPATCH}/enabled", enabled + "\n")
    kernel.write(f"sys/kernel/livepatch/{LIVEPATCH}/transition", transition + "\n")
    kgraft = kgraft_on(kernel)
    assert kgraft.patches()[LIVEPATCH]["state"] == state
    assert kgraft.status()["direction"] == direction
    assert kgraft.in_progress() is (transition == "1")


def test_a_livepatch_that_is_being_loaded_is_not_being_reverted(make_kernel, kgraft_on):
    kernel = make_kernel("livepatch")
    kernel.start(LIVEPATCH)
    kernel.write(f"sys/kernel/livepatch/{LIVEPATCH}/enabled", "0\n")
    kernel.write(f"sys/module/{LIVEPATCH}/initstate", "coming\n")
    assert kgraft_on(kernel).status()["direction"] == "apply"
    kernel.write(f"sys/module/{LIVEPATCH}/initstate", "live\n")
    assert kgraft_on(kernel).status()["direction"] == "revert"


def test_a_replaced_livepatch_vanishes(make_kernel, kgraft_on):
    kernel = make_kernel("livepatch")
    kernel.patch("livepatch_1_2")
    kernel.start(LIVEPATCH)
    assert kgraft_on(kernel).status()["active"] == ["livepatch_1_2", LIVEPATCH]
    kernel.finish()
    assert list(kgraft_on(kernel).patches()) == [LIVEPATCH]


def test_a_livepatch_whose_object_is_not_loaded_is_healthy(make_kernel, kgraft_on):
    kernel = make_kernel("livepatch")
    kernel.patch(LIVEPATCH, functions=[("vmlinux", "cmdline_proc_show", 1, 2), ("nfs", "nfs_open", 1, 5)])
    seen = kgraft_on(kernel).patches(functions=True)[LIVEPATCH]
    assert seen["state"] == "applied"
    assert sorted(seen["functions"], key=lambda function: function["name"]) == [
        {"object": "vmlinux", "name": "cmdline_proc_show", "sympos": 1, "state": 2},
        {"object": "nfs", "name": "nfs_open", "sympos": 1, "state": 5},
    ]


def test_a_livepatch_that_does_not_say_what_is_patched_has_no_function_states(make_kernel, kgraft_on):
    kernel = make_kernel("livepatch", patched=False, replace=False)
    kernel.patch(LIVEPATCH)
    seen = kgraft_on(kernel).patches(functions=True)[LIVEPATCH]
    assert seen["cumulative"] is None
    assert [function["state"] for function in seen["functions"]] == [None]


@pytest.mark.parametrize("stack_order", [True, False])
def test_the_kernels_own_order_of_patches_goes_before_that_of_its_modules(make_kernel, kgraft_on, stack_order):
    kernel = make_kernel("livepatch", stack_order=stack_order)
    for name in ("livepatch_9_1", "livepatch_2_1", "livepatch_5_1"):
        kernel.patch(name, replace_all=False)
    loaded = ["livepatch_9_1", "livepatch_2_1", "livepatch_5_1"]
    assert kgraft_on(kernel).status()["active"] == loaded
    kernel.write("proc/modules", "".join(f"{name} 16384 1 - Live 0x0\n" for name in sorted(loaded)))
    assert (kgraft_on(kernel).status()["active"] == loaded) is stack_order
