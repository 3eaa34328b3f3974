"""The module as users type it: its root, its arguments, its words; wait."""

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

PATCH = "kgraft-patch-2-2_1"
MODULE = "kgraft_patch_2_2_1"


@pytest.mark.parametrize(
    "call",
    [
        lambda kgraft: kgraft.in_progress(),
        lambda kgraft: kgraft.patches(),
        lambda kgraft: kgraft.blocking(),
        lambda kgraft: kgraft.poke(),
        lambda kgraft: kgraft.wait(),
        lambda kgraft: kgraft.load(MODULE),
        lambda kgraft: kgraft.revert(MODULE, i_accept_loss_of_support=True),
        lambda kgraft: kgraft.force(i_accept_loss_of_support=True),
    ],
    ids=["in_progress", "patches", "blocking", "poke", "wait", "load", "revert", "force"],
)
def test_without_live_patching_it_says_what_was_looked_for_and_where(make_kernel, kgraft_on, call):
    kernel = make_kernel(None)
    with pytest.raises(CommandExecutionError) as failure:
        call(kgraft_on(kernel))
    assert f"neither {kernel.root}/sys/kernel/kgraft nor {kernel.root}/sys/kernel/livepatch" in str(failure.value)


def test_the_root_is_read_from_the_minions_configuration_only(kernel, load):
    kgraft = load(
        "_modules/kgraft.py",
        __opts__={"kgraft.root": str(kernel.root)},
        __grains__={"kgraft.root": "/elsewhere"},
        __pillar__={"kgraft.root": "/elsewhere"},
        __salt__={"config.get": lambda key: "/elsewhere"},
    )
    kernel.start(PATCH)
    assert kgraft.in_progress() is True


@pytest.mark.parametrize("root", ["relative/path", 5, ["/"], "", None, False])
def test_a_root_that_is_no_absolute_path_is_refused(load, root):
    with pytest.raises(CommandExecutionError, match="kgraft.root must be an absolute path"):
        load("_modules/kgraft.py", __opts__={"kgraft.root": root}).status()


def test_it_loads_on_linux_only(kgraft, monkeypatch):
    assert kgraft.__virtual__() == "kgraft"
    monkeypatch.setattr("salt.utils.platform.is_linux", lambda: False)
    loads, why = kgraft.__virtual__()
    assert loads is False
    assert "Linux" in why


def test_ready_is_false_with_an_exit_code_while_a_transition_runs(moving):
    kernel, kgraft = moving
    assert kgraft.ready() is False
    assert kgraft.__context__.pop("retcode") == 1
    kernel.finish()
    assert kgraft.ready() is True
    assert "retcode" not in kgraft.__context__


def test_wait_returns_at_once_when_ready(kernel, kgraft, clock):
    assert kgraft.wait() == 0
    assert clock.sleeps == []


def test_wait_looks_every_fifth_of_a_second_and_tells_how_long_it_took(moving, clock):
    kernel, kgraft = moving
    sleep = clock.sleep

    def finish_at_the_tenth(seconds):
        sleep(seconds)
        if len(clock.sleeps) == 10:
            kernel.finish()

    clock.sleep = finish_at_the_tenth
    assert kgraft.wait(timeout=30) == pytest.approx(2)
    assert max(clock.sleeps) <= 0.2


def test_wait_names_the_tasks_it_waited_for(moving, clock):
    kernel, kgraft = moving
    kernel.task(731, "nfsd", blocking=True, kthread=True)
    with pytest.raises(CommandExecutionError, match=r"nfsd \(731\) kernel") as failure:
        kgraft.wait(timeout=7.1)
    assert sum(clock.sleeps) == pytest.approx(7.1)
    assert failure.value.info == {"timed_out": True, "blocking": kgraft.blocking()}


def test_wait_that_finds_nobody_says_so(moving, clock):
    kernel, kgraft = moving
    kernel.exit(1)
    with pytest.raises(CommandExecutionError, match=r"nothing that was found \(not everything could be read\)"):
        kgraft.wait(timeout=1)


def test_a_look_that_fails_while_waiting_is_no_time_out(moving, clock):
    kernel, kgraft = moving
    sleep = clock.sleep

    def break_the_look(seconds):
        sleep(seconds)
        for path in kernel.root.glob("sys/kernel/*/in_progress"):
            path.unlink()
        for path in kernel.root.glob("sys/kernel/livepatch/*/enabled"):
            path.write_text("?")

    clock.sleep = break_the_look
    with pytest.raises(CommandExecutionError) as failure:
        kgraft.wait()
    assert not failure.value.info


# Bad input


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda k: k.in_progress(0), r"pid=0: must be a positive integer"),
        (lambda k: k.in_progress("731x"), r"pid='731x': must be a positive integer"),
        (lambda k: k.in_progress(True), r"pid=True: must be a positive integer"),
        (lambda k: k.patches(functions="yes"), r"functions='yes': must be True or False"),
        (lambda k: k.blocking(cmdline=1), r"cmdline=1: must be True or False"),
        (lambda k: k.blocking(stacks=None), r"stacks=None: must be True or False"),
        (lambda k: k.blocking(limit=0), r"limit=0: must be a positive integer, or None for all"),
        (lambda k: k.blocking(limit=2.5), r"limit=2.5: must be"),
        (lambda k: k.blocking(budget=-1), r"budget=-1: must be a positive number of seconds"),
        (lambda k: k.blocking(budget=float("nan")), r"budget=nan: must be"),
        (lambda k: k.wait(timeout=0), r"timeout=0: must be a positive number of seconds"),
        (lambda k: k.wait(timeout="5m"), r"timeout='5m': must be"),
        (lambda k: k.wait(timeout=float("inf")), r"timeout=inf: must be"),
        (lambda k: k.wait(timeout=10**400), r"timeout=10+: must be"),
        (lambda k: k.blocking(budget=10**400), r"budget=10+: must be"),
        (lambda k: k.wait(timeout=True), r"timeout=True: must be"),
        (
            lambda k: k.poke(pids="731,x"),
            r"pids='731,x': must be a process id, a list of them, or a string such as '731,740'",
        ),
        (lambda k: k.poke(pids=[731, -1]), r"pids=-1: must be"),
        (lambda k: k.poke(pids="\N{ARABIC-INDIC DIGIT THREE}"), r"pids='.': must be"),
        (lambda k: k.poke(pids="731\n,"), r"pids='731.n,': must be"),
        (lambda k: k.poke(method="ptrace"), r"method='ptrace': must be trace or signals"),
        (lambda k: k.poke(pids={"a": 1}), r"pids=\{'a': 1\}: must be"),
        (
            lambda k: k.poke(protect="hdb*"),
            r"protect='hdb\*': must be 'name:PATTERN', 'unit:PATTERN' or 'user:PATTERN'",
        ),
        (lambda k: k.poke(protect=["name:"]), r"protect='name:': must be"),
        (lambda k: k.poke(protect=[5]), r"protect=5: must be"),
        (lambda k: k.poke(protect=5), r"protect=5: must be a list of patterns"),
        (lambda k: k.poke(protect_defaults="no"), r"protect_defaults='no': must be True or False"),
        (lambda k: k.poke(test="no"), r"test='no': must be True or False"),
        (lambda k: k.load("a b"), r"name='a b': must be the name of a patch's module"),
        (lambda k: k.load("../x"), r"name='../x': must be"),
        (lambda k: k.load("x\n"), r"name='x\\n': must be"),
        (lambda k: k.load("-a"), r"name='-a': must be"),
        (lambda k: k.load(221), r"name=221: must be"),
        (lambda k: k.revert(None, i_accept_loss_of_support=True), r"name=None: must be"),
        (lambda k: k.revert("x"), r"i_accept_loss_of_support=False: must be True"),
        (lambda k: k.revert("x", i_accept_loss_of_support="True"), r"i_accept_loss_of_support='True': must be True"),
        (lambda k: k.force(), r"i_accept_loss_of_support=False: must be True"),
        (lambda k: k.force(i_accept_loss_of_support=1), r"i_accept_loss_of_support=1: must be True"),
    ],
)
def test_a_bad_argument_is_named_with_its_value_and_what_is_allowed(kgraft, call, words):
    with pytest.raises(SaltInvocationError, match=words):
        call(kgraft)
