"""What kGraft's files say, row by row, each generation of them."""

import os

import pytest
from salt.exceptions import CommandExecutionError

PATCH = "kgraft-patch-2-2_1"
MODULE = "kgraft_patch_2_2_1"


GENERATIONS = [
    {},
    {"in_progress_mode": 0o444},
    {"force_load_module": False},
    {"heading": "Function Weak State", "force_load_module": False, "in_progress_mode": 0o444, "task_flags": False},
    {"heading": "Function Object State"},
    {"heading": "Function State Fatal"},
]


@pytest.mark.parametrize("generation", GENERATIONS, ids=str)
def test_each_generation_of_kgraft_goes_through_a_patch_life(make_kernel, kgraft_on, generation):
    kernel = make_kernel(**generation)
    kgraft = kgraft_on(kernel)
    assert kgraft.summary() == "ready no live patch"
    kernel.start(PATCH)
    kernel.task(731, "nfsd", blocking=True)
    assert kgraft.summary() == f"in_progress {MODULE} apply 1 blocking: nfsd(731) user"
    kernel.finish()
    assert kgraft.summary() == f"ready {MODULE}"
    kernel.revert(PATCH)
    assert kgraft.status()["direction"] == "revert"
    assert kgraft.status()["active"] == []
    kernel.finish()
    assert kgraft.patches()[MODULE]["state"] == "inactive"
    assert kgraft.summary() == "ready no live patch"


def test_plain_files_beside_patch_directories_are_no_patches(kernel, kgraft):
    kernel.write("sys/kernel/kgraft/force_load_module", "1\n")
    kernel.write("sys/kernel/kgraft/something_new", "x\n")
    kernel.patch(PATCH)
    assert list(kgraft.patches()) == [MODULE]


def test_the_owner_link_gives_the_modules_name(kernel, kgraft):
    kernel.patch(PATCH)
    kernel.link(f"sys/kernel/kgraft/{PATCH}/owner", "../../../module/another_module")
    assert list(kgraft.patches()) == ["another_module"]


@pytest.mark.parametrize("name", ["kgraft-patch-3.12-2_1", "kgraft patch,3:12 2.1"])
def test_without_an_owner_link_the_directorys_name_is_folded(kernel, kgraft, name):
    kernel.patch(name)
    os.unlink(kernel.root / f"sys/kernel/kgraft/{name}/owner")
    assert list(kgraft.patches()) == ["kgraft_patch_3_12_2_1"]


@pytest.mark.parametrize(
    ("heading", "line", "function"),
    [
        ("Function Weak State", "tcp_v4_rcv 0 2", {"object": None, "name": "tcp_v4_rcv", "sympos": None, "state": 2}),
        (
            "Function Object State",
            "tcp_v4_rcv vmlinux 2",
            {"object": "vmlinux", "name": "tcp_v4_rcv", "sympos": None, "state": 2},
        ),
        (
            "Function Object Sympos State",
            "lab lab_target 1 5",
            {"object": "lab_target", "name": "lab", "sympos": 1, "state": 5},
        ),
        ("Function State Fatal", "tcp_v4_rcv 2 0", {"object": None, "name": "tcp_v4_rcv", "sympos": None, "state": 2}),
    ],
)
def test_state_is_read_by_its_heading(kernel, kgraft, heading, line, function):
    kernel.patch(PATCH)
    kernel.write(f"sys/kernel/kgraft/{PATCH}/state", f"{heading}\n{line}\n")
    assert kgraft.patches(functions=True)[MODULE]["functions"] == [function]


@pytest.mark.parametrize(
    ("states", "in_progress", "state"),
    [
        ([0], True, "inactive"),  # right at load: neither applied nor active yet
        ([1], True, "applying"),
        ([1, 2, 5], True, "applying"),
        ([2], False, "applied"),
        ([2, 5], False, "applied"),
        ([5], False, "applied"),  # the kernel holds it ready for its module
        ([5], True, None),  # may be the one that moves: the kernel does not tell
        ([3], True, "reverting"),
        ([3, 5], True, "reverting"),
        ([4], False, "inactive"),
        ([4, 5], False, "inactive"),
        ([2, 6], False, "applied"),  # an unknown number is passed on
        ([6], False, "inactive"),
    ],
)
def test_function_states_make_the_patchs_state(kernel, kgraft, states, in_progress, state):
    kernel.patch(PATCH, functions=[("vmlinux", f"fn{n}", 0, number) for n, number in enumerate(states)])
    kernel.in_progress(in_progress)
    seen = kgraft.patches(functions=True)[MODULE]
    assert seen["state"] == state
    assert [function["state"] for function in seen["functions"]] == states


def test_a_reverted_patch_whose_functions_all_wait_for_modules_is_told_by_its_reference_count(kernel, kgraft):
    kernel.patch(PATCH, "inactive", functions=[("nfs", "fn", 0, 5)])
    assert kgraft.patches()[MODULE]["state"] == "inactive"
    kernel.patch(PATCH, "applied", functions=[("nfs", "fn", 0, 5)])
    assert kgraft.patches()[MODULE]["state"] == "applied"


def test_a_patch_that_waits_for_modules_is_not_the_one_that_moves_when_another_is(kernel, kgraft):
    kernel.patch("kgraft-patch-1-1", replace_all=False, functions=[("nfs", "fn", 0, 5)])
    kernel.patch(PATCH, replace_all=False)
    kernel.revert(PATCH)
    seen = kgraft.status()
    assert (seen["direction"], seen["active"]) == ("revert", ["kgraft_patch_1_1"])
    assert kgraft.patches()["kgraft_patch_1_1"]["state"] == "applied"


def test_a_patch_that_waits_for_modules_is_applied_where_no_list_of_modules_was_recorded(kernel, kgraft):
    kernel.patch(PATCH, functions=[("nfs", "fn", 0, 5)])
    os.unlink(kernel.root / "proc/modules")
    assert kgraft.status()["active"] == [MODULE]


def test_in_a_transition_the_modules_of_both_patches_are_held(kernel, kgraft):
    kernel.patch("kgraft-patch-1-1", functions=[("nfs", "fn", 0, 5)])
    kernel.start(PATCH)
    assert kgraft.status()["active"] == ["kgraft_patch_1_1", MODULE]
    kernel.finish()
    assert kgraft.status()["active"] == [MODULE]


def test_in_progress_without_a_function_that_moves_has_no_direction(kernel, kgraft):
    kernel.patch(PATCH, functions=[("nfs", "fn", 0, 5)])
    kernel.in_progress(True)
    assert kgraft.status()["state"] == "in_progress"
    assert kgraft.status()["direction"] is None
    kernel.patch(PATCH, functions=[("nfs", "fn", 0, 0)])
    assert kgraft.status()["state"] == "in_progress"
    assert kgraft.status()["direction"] is None


def test_long_function_names_shift_the_columns(kernel, kgraft):
    name = "a" * 60
    kernel.patch(PATCH, functions=[("a_module_with_a_very_long_name", name, 0, 2)])
    assert kgraft.patches(functions=True)[MODULE]["functions"][0]["name"] == name


def test_a_state_cut_at_one_page_in_the_middle_of_a_line_is_no_error(kernel, kgraft):
    kernel.patch(PATCH, functions=[("vmlinux", f"function_number_{n:03}", 0, 2) for n in range(200)])
    raw = (kernel.root / f"sys/kernel/kgraft/{PATCH}/state").read_bytes()
    assert len(raw) == 4095
    assert not raw.endswith(b"\n")
    seen = kgraft.patches(functions=True)[MODULE]
    assert seen["state"] == "applied"
    assert 50 < len(seen["functions"]) < 200


def test_refs_and_replace_all_are_told(kernel, kgraft):
    kernel.patch(PATCH, refs=3, replace_all=False)
    assert kgraft.patches()[MODULE] == {"state": "applied", "version": "2-2.1", "refs": 3, "cumulative": False}


def test_refs_and_replace_all_that_a_kernel_does_not_have_are_none(kernel, kgraft):
    kernel.patch(PATCH)
    for name in ("refs", "replace_all"):
        os.unlink(kernel.root / f"sys/kernel/kgraft/{PATCH}/{name}")
    assert kgraft.patches()[MODULE] == {"state": "applied", "version": "2-2.1", "refs": None, "cumulative": None}


def test_an_empty_refs_is_a_failed_look_and_not_a_kernel_that_has_none(kernel, kgraft):
    kernel.patch(PATCH)
    kernel.write(f"sys/kernel/kgraft/{PATCH}/refs", "")
    with pytest.raises(CommandExecutionError, match="came and went"):
        kgraft.patches()
    with pytest.raises(CommandExecutionError):
        kgraft.revert(PATCH, i_accept_loss_of_support=True)
    assert (kernel.root / f"sys/kernel/kgraft/{PATCH}/revert").read_text() == ""


def test_a_replaced_patch_stays_as_an_inactive_directory_with_a_stale_refs(kernel, kgraft):
    kernel.patch("kgraft-patch-1-2_2")
    kernel.start("kgraft-patch-1-3_2", replace_all=False)
    kernel.finish()
    kernel.start(PATCH)
    kernel.finish()
    assert {name: patch["state"] for name, patch in kgraft.patches().items()} == {
        "kgraft_patch_1_2_2": "inactive",
        "kgraft_patch_1_3_2": "inactive",
        MODULE: "applied",
    }
    assert kgraft.patches()["kgraft_patch_1_2_2"]["refs"] == 1
    assert kgraft.status()["active"] == [MODULE]


def test_stacked_patches_are_listed_oldest_first(kernel, kgraft):
    kernel.patch("kgraft-patch-9-1", replace_all=False)
    kernel.start("kgraft-patch-10-1", replace_all=False)
    kernel.finish()
    kernel.start("kgraft-patch-2-1", replace_all=False)
    assert kgraft.status()["active"] == ["kgraft_patch_9_1", "kgraft_patch_10_1", "kgraft_patch_2_1"]
    assert kgraft.patches()["kgraft_patch_9_1"]["refs"] == 2


# A transition is known by its moving patches and its direction

OLD, NEW = "kgraft_patch_1_1", "kgraft_patch_2_2_1"


@pytest.fixture
def two(kernel):
    """``two(old, new, running, cumulative)``: two patches by the states of their functions, the older one first."""

    def show(old, new, running=True, cumulative=True):
        for name, states, over in (("kgraft-patch-1-1", old, True), (PATCH, new, cumulative)):
            functions = [("vmlinux", f"fn{n}", 0, number) for n, number in enumerate(states)]
            state = "inactive" if set(states) <= {4} else "applied"
            kernel.patch(name, state, functions=functions, replace_all=over)
        kernel.in_progress(running)

    return show


@pytest.mark.parametrize(
    ("old", "new", "direction", "states"),
    [
        # recorded: the new one drops a function of the old one, which shows 3 for it
        ([2, 3], [1], "apply", ["applied", "applying"]),
        ([3], [1], "apply", ["applied", "applying"]),
        ([3, 5], [1, 5], "apply", ["applied", "applying"]),
        # at the end the new functions are there a moment before the old ones are gone
        ([2, 3], [2], "apply", ["applied", "applying"]),
        ([3], [2], "apply", ["applied", "applying"]),
        # all functions of the new one wait for modules
        ([2, 3], [5], "apply", ["applied", "applying"]),
        ([3], [5, 5], "apply", ["applied", "applying"]),
        # what is not cumulative replaces nobody
        ([2], [3], "revert", ["applied", "reverting"]),
        ([4], [3], "revert", ["inactive", "reverting"]),
        ([4], [2, 3], "revert", ["inactive", "reverting"]),
    ],
)
def test_who_is_being_replaced_is_not_being_reverted(kgraft, two, old, new, direction, states):
    two(old, new)
    assert kgraft.status()["direction"] == direction
    assert [kgraft.patches()[name]["state"] for name in (OLD, NEW)] == states
    moving = [name for name, state in zip((OLD, NEW), states, strict=True) if state in ("applying", "reverting")]
    assert kgraft.summary() == f"in_progress {' '.join(moving)} {direction} 0 blocking"


def test_a_stacked_patch_that_is_reverted_replaces_nobody(kgraft, two):
    two([3], [2], cumulative=False)
    assert kgraft.status()["direction"] == "revert"


def test_where_all_functions_wait_the_kernel_does_not_tell_which_way_it_goes(kernel, kgraft):
    kernel.patch(PATCH, functions=[("nfs", "fn", 0, 5)])
    assert kgraft.patches()[MODULE]["state"] == "applied"
    kernel.in_progress(True)
    seen = kgraft.status()
    assert (seen["state"], seen["direction"], seen["active"]) == ("in_progress", None, [MODULE])
    assert kgraft.patches()[MODULE]["state"] is None
    assert kgraft.summary() == "in_progress unknown unknown 0 blocking"
