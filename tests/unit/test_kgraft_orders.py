"""load, revert and force: what is written, what is refused before, and what the kernel refuses."""

import functools
import os

import pytest
from salt.exceptions import CommandExecutionError

PATCH = "kgraft-patch-2-2_1"
MODULE = "kgraft_patch_2_2_1"
LIVEPATCH = "livepatch_9_2_1"


def test_revert_writes_to_the_patchs_revert(kernel, kgraft):
    kernel.patch(PATCH)
    assert kgraft.revert(PATCH, i_accept_loss_of_support=True) == {"name": MODULE, "state": "applied"}
    assert (kernel.root / f"sys/kernel/kgraft/{PATCH}/revert").read_text()


@pytest.mark.parametrize(
    ("abi", "patch", "name", "error", "words"),
    [
        # the oldest kGraft's in_progress is read-only; sysfs then refuses root, too
        (
            "kgraft",
            PATCH,
            "in_progress",
            PermissionError(13, "Permission denied"),
            "cannot be forced, or you are not root",
        ),
        (
            "livepatch",
            "livepatch_9_2_1",
            "force",
            FileNotFoundError(2, "No such file"),
            "cannot be forced",
        ),  # before 4.15
        ("livepatch", "livepatch_9_2_1", "force", OSError(22, "Invalid argument"), "no longer in transition"),
    ],
)
def test_a_kernel_that_cannot_be_forced_says_so(make_kernel, kgraft_on, monkeypatch, abi, patch, name, error, words):
    kernel = make_kernel(abi)
    kernel.start(patch)
    real_open = os.open

    def refuse(path, flags, *rest):
        if str(path).endswith("/" + name) and flags & os.O_WRONLY:
            raise error
        return real_open(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(CommandExecutionError, match=words):
        kgraft_on(kernel).force(i_accept_loss_of_support=True)


def test_revert_of_a_livepatch_writes_0_to_enabled(make_kernel, kgraft_on):
    kernel = make_kernel("livepatch")
    kernel.patch(LIVEPATCH)
    kgraft_on(kernel).revert(LIVEPATCH, i_accept_loss_of_support=True)
    assert (kernel.root / f"sys/kernel/livepatch/{LIVEPATCH}/enabled").read_text().startswith("0")


def test_a_livepatch_that_is_being_applied_turns_back(make_kernel, kgraft_on):
    kernel = make_kernel("livepatch")
    kernel.start(LIVEPATCH)
    assert kgraft_on(kernel).revert(LIVEPATCH, i_accept_loss_of_support=True)["state"] == "reverting"


def _refused_revert(kernel, kgraft, patch, words):
    with pytest.raises(CommandExecutionError, match=words):
        kgraft.revert(patch, i_accept_loss_of_support=True)
    # a SUSE kernel taints itself when the file is written, whatever the outcome
    assert all(path.read_text() == "" for path in kernel.root.glob("sys/kernel/kgraft/*/revert"))


def test_revert_is_refused_before_anything_is_written(kernel, kgraft):
    _refused_revert(kernel, kgraft, "kgraft_patch_7_1", "kgraft_patch_7_1 is not loaded; loaded: none")
    kernel.patch(PATCH, refs=1)
    _refused_revert(kernel, kgraft, PATCH, "1 newer patches must be reverted before")
    kernel.patch(PATCH, "inactive")
    _refused_revert(kernel, kgraft, PATCH, "already inactive")
    kernel.patch(PATCH)
    kernel.start("kgraft-patch-3-1", replace_all=False)
    kernel.patch(PATCH, refs=0)
    _refused_revert(kernel, kgraft, PATCH, "a transition is running")


def test_revert_of_a_patch_that_is_unloaded_meanwhile_is_an_error(kernel, kgraft, monkeypatch):
    kernel.patch(PATCH)
    real_open = os.open

    def unload(path, *args, **kwargs):
        if str(path).endswith("/refs"):
            kernel.remove(PATCH)
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", unload)
    with pytest.raises(CommandExecutionError, match="unloaded meanwhile"):
        kgraft.revert(PATCH, i_accept_loss_of_support=True)


@pytest.mark.parametrize(
    ("number", "words"), [(16, "newer patches"), (22, "reverted already"), (11, "a transition is running")]
)
def test_the_kernels_refusal_of_a_revert_is_put_into_words(kernel, kgraft, monkeypatch, number, words):
    kernel.patch(PATCH)
    monkeypatch.setattr(os, "write", lambda descriptor, data: _raise(OSError(number, os.strerror(number))))
    with pytest.raises(CommandExecutionError, match=words):
        kgraft.revert(MODULE, i_accept_loss_of_support=True)


def _raise(error):
    raise error


def test_force_writes_0_to_in_progress(kernel, kgraft):
    kernel.start(PATCH)
    kgraft.force(i_accept_loss_of_support=True)
    assert (kernel.root / "sys/kernel/kgraft/in_progress").read_text().startswith("0")


def test_force_of_a_livepatch_writes_1_to_the_moving_patchs_force(make_kernel, kgraft_on):
    kernel = make_kernel("livepatch")
    kernel.patch("livepatch_1_2")
    kernel.start(LIVEPATCH)
    kgraft_on(kernel).force(i_accept_loss_of_support=True)
    assert (kernel.root / f"sys/kernel/livepatch/{LIVEPATCH}/force").read_text() == "1"
    assert (kernel.root / "sys/kernel/livepatch/livepatch_1_2/force").read_text() == ""


def test_force_is_refused_when_nothing_is_in_progress(kernel, kgraft):
    kernel.patch(PATCH)
    with pytest.raises(CommandExecutionError, match="nothing to force"):
        kgraft.force(i_accept_loss_of_support=True)
    assert (kernel.root / "sys/kernel/kgraft/in_progress").read_text() == "0\n"


def _modprobe(kernel, answer=("x",), then=None):
    def load(module):
        if then:
            then(module)
        return list(answer) if isinstance(answer, tuple) else answer

    return {"kmod.load": load}


def test_load_loads_and_looks(kernel, kgraft_on):
    kgraft = kgraft_on(kernel, __salt__=_modprobe(kernel, then=lambda module: kernel.start(PATCH)))
    assert kgraft.load("kgraft-patch-2-2_1") == {"name": MODULE, "state": "applying"}
    assert kgraft.load(MODULE) == {"name": MODULE, "state": "applying"}  # active already: left alone


def test_right_after_insmod_a_livepatch_may_be_in_transition_or_through(make_kernel, kgraft_on):
    for state in ("applying", "applied"):
        kernel = make_kernel("livepatch")
        then = functools.partial(kernel.patch, LIVEPATCH, state)
        kgraft = kgraft_on(kernel, __salt__=_modprobe(kernel, then=lambda module, then=then: then()))
        assert kgraft.load(LIVEPATCH) == {"name": LIVEPATCH, "state": state}


def test_load_takes_an_error_string_for_an_error(kernel, kgraft_on):
    kgraft = kgraft_on(kernel, __salt__=_modprobe(kernel, "Error loading module x: FATAL: Module x not found."))
    with pytest.raises(CommandExecutionError, match="Module x not found"):
        kgraft.load("x")


@pytest.mark.parametrize(
    ("words", "starts", "told"),
    [
        ("Resource temporarily unavailable", False, "a transition is running"),
        ("Resource temporarily unavailable", True, "a transition is running"),
        ("Device or resource busy", True, "a transition is running"),
        ("Device or resource busy", False, "a kprobe may be on one of its functions"),
    ],
)
def test_load_says_why_the_kernel_refused(kernel, kgraft_on, words, starts, told):
    def refuse(module):
        if starts:  # between our look and modprobe
            kernel.start(PATCH)
        return f"Error loading module x: could not insert 'x': {words}"

    kgraft = kgraft_on(kernel, __salt__={"kmod.load": refuse})
    with pytest.raises(CommandExecutionError, match=told):
        kgraft.load("x")


def test_load_during_a_transition_is_refused_before_modprobe(kernel, kgraft_on):
    kernel.start(PATCH)
    kgraft = kgraft_on(kernel, __salt__={"kmod.load": lambda module: pytest.fail("modprobe was run")})
    with pytest.raises(CommandExecutionError, match="a transition is running"):
        kgraft.load("kgraft_patch_3_1")


def test_load_does_not_believe_modprobe(kernel, kgraft_on):
    with pytest.raises(CommandExecutionError, match="the kernel shows kgraft_patch_2_2_1 as not loaded"):
        kgraft_on(kernel, __salt__=_modprobe(kernel)).load(MODULE)


def test_load_of_an_inactive_patch_says_what_to_do(kernel, kgraft):
    kernel.patch(PATCH, "inactive")
    with pytest.raises(CommandExecutionError, match="loaded but inactive; unload it with kgraft.unload"):
        kgraft.load(MODULE)


# Unloading


@pytest.fixture
def rmmod(kernel, kgraft_on):
    """The module, on a kernel whose modules can be unloaded; ``rmmod.unloaded`` are those that were."""

    def remove(module):
        kgraft.unloaded.append(module)
        kernel.remove(PATCH)
        return [module]

    kgraft = kgraft_on(kernel, __salt__={"kmod.remove": remove})
    kgraft.unloaded = []
    return kgraft


def test_unload_takes_an_inactive_patch_away_and_in_test_mode_says_so(kernel, rmmod):
    kernel.patch(PATCH, "inactive")
    assert rmmod.unload("kgraft-patch-2-2_1", test=True) == {"name": MODULE, "state": "inactive"}
    assert rmmod.unloaded == []
    assert rmmod.unload(MODULE) == rmmod.unload(MODULE) == {"name": MODULE, "state": None}
    assert rmmod.unloaded == [MODULE]


@pytest.mark.parametrize("state", ["applying", "applied", "reverting"])
def test_unload_touches_no_patch_that_is_not_inactive(kernel, rmmod, state):
    kernel.patch(PATCH, state)
    kernel.in_progress(state != "applied")
    with pytest.raises(CommandExecutionError, match="only an inactive patch is unloaded"):
        rmmod.unload(MODULE)
    assert rmmod.unloaded == []


def test_unload_waits_for_the_end_of_another_transition(kernel, rmmod):
    kernel.patch(PATCH, "inactive")
    kernel.start("kgraft-patch-3-1")
    with pytest.raises(CommandExecutionError, match="a transition is running"):
        rmmod.unload(MODULE)
    assert rmmod.unloaded == []


@pytest.mark.parametrize("test", [True, False])
def test_unload_touches_no_module_that_is_no_live_patch(kernel, rmmod, test):
    kernel.write("sys/module/ext4/taint", "\n")
    kernel.write("sys/module/nvidia/taint", "POE\n")
    for module in ("ext4", "nvidia"):
        with pytest.raises(CommandExecutionError):
            rmmod.unload(module, test=test)
    assert rmmod.unloaded == []
