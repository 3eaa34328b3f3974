"""Any bytes in any file of the kernel: an answer or a CommandExecutionError, and never a wrong "ready"."""

import contextlib
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from salt.exceptions import CommandExecutionError

from tests.support.load import load_file
from tests.support.soak import rounds

pytestmark = pytest.mark.soak

PATCH = "kgraft-patch-2-2_1"
LIVEPATCH = "livepatch_9_2_1"

NUMBERS = st.one_of(
    st.binary(max_size=40),
    st.from_regex(rb"-?[0-9 _+]{0,30}\n?", fullmatch=True),
    st.sampled_from(
        [b"", b"0\n", b"1\n", b"0", b"1", b"\n", b"00\n", b"0\n\n", b"1_0\n", b" 1\n", "١\n".encode(), b"9" * 5000]
    ),
)
WORDS = st.one_of(
    st.binary(max_size=12).map(lambda raw: raw.replace(b"\n", b"")),
    st.sampled_from(
        [
            b"Function",
            b"Object",
            b"Sympos",
            b"State",
            b"Weak",
            b"Fatal",
            b"vmlinux",
            b"0",
            b"1",
            b"2",
            b"5",
            b"4294967296",
            b"-1",
        ]
    ),
)
TABLES = st.one_of(
    st.binary(max_size=200),
    st.lists(st.lists(WORDS, max_size=6).map(b" ".join), max_size=6).map(b"\n".join),
    st.lists(st.lists(WORDS, min_size=4, max_size=4).map(b" ".join), max_size=6).map(
        lambda rows: b"\n".join([b"Function Object Sympos State", *rows]) + b"\n"
    ),
)
STATS = st.one_of(
    st.binary(max_size=200),
    st.tuples(
        st.binary(max_size=16),
        st.binary(max_size=3),
        st.lists(st.from_regex(rb"-?[0-9]{1,30}", fullmatch=True), max_size=60),
    ).map(lambda parts: b"731 (" + parts[0] + b") " + parts[1] + b" " + b" ".join(parts[2]) + b"\n"),
)
QUICK = settings(max_examples=rounds(300), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _bound(kernel):
    kgraft = load_file("_modules/kgraft.py", __opts__={"kgraft.root": str(kernel.root)})
    # between two looks that disagree it sleeps for milliseconds, which adds up here
    kgraft.kernel.time = SimpleNamespace(sleep=lambda seconds: None)
    return kgraft


def _calls(kernel):
    kgraft = _bound(kernel)
    for call in (
        kgraft.status,
        kgraft.summary,
        lambda: kgraft.patches(functions=True),
        lambda: kgraft.blocking(cmdline=True, stacks=True),
        lambda: kgraft.poke(test=True),
        lambda: kgraft.in_progress(731),
    ):
        with contextlib.suppress(CommandExecutionError):
            call()
    try:
        return kgraft.status()["state"]
    except CommandExecutionError:
        return None


@given(NUMBERS)
@QUICK
def test_bytes_in_in_progress(kernel, raw):
    kernel.task(731, blocking=True)
    kernel.write("sys/kernel/kgraft/in_progress", raw)
    state = _calls(kernel)
    if state == "ready":
        assert raw.rstrip(b"\n").strip(b"-0") == b""
        assert b"0" in raw
    if state == "in_progress":
        assert int(raw) == 1


@given(TABLES)
@QUICK
def test_bytes_in_state(kernel, raw):
    kernel.patch(PATCH)
    kernel.task(731, blocking=True)
    kernel.in_progress(True)
    kernel.write(f"sys/kernel/kgraft/{PATCH}/state", raw)
    assert _calls(kernel) in (None, "in_progress")


@given(st.sampled_from(["refs", "replace_all"]), NUMBERS)
@QUICK
def test_bytes_in_a_kgraft_patchs_numbers(kernel, name, raw):
    kernel.patch(PATCH)
    kernel.write(f"sys/kernel/kgraft/{PATCH}/{name}", raw)
    assert _calls(kernel) == "ready"  # status does not ask for them; patches does, and may fail


@given(st.sampled_from(["enabled", "transition", "replace"]), NUMBERS)
@QUICK
def test_bytes_in_a_livepatchs_numbers(make_kernel, name, raw):
    kernel = make_kernel("livepatch")
    kernel.start(LIVEPATCH)
    kernel.task(731, blocking=True)
    kernel.write(f"sys/kernel/livepatch/{LIVEPATCH}/{name}", raw)
    state = _calls(kernel)
    if name == "transition" and state == "ready":
        assert int(raw) == 0


@given(NUMBERS)
@QUICK
def test_bytes_in_a_tasks_flag(make_kernel, raw):
    for abi, patch, name in (("kgraft", PATCH, "kgr_in_progress"), ("livepatch", LIVEPATCH, "patch_state")):
        kernel = make_kernel(abi)
        kernel.start(patch)
        kernel.task(731, blocking=True)
        kernel.write(f"proc/731/{name}", raw)
        kernel.write(f"proc/731/task/731/{name}", raw)
        assert _calls(kernel) == "in_progress"
        held = _bound(kernel).blocking()
        told = held["count"] + held["unread"]
        crossed = {"kgraft": (b"0\n",), "livepatch": (b"1\n", b"-1\n")}[abi]  # an empty read says nothing
        assert told == (0 if raw in crossed else 1)
        assert held["complete"] is (held["unread"] == 0)


@given(
    st.sampled_from(["stat", "status", "cgroup", "cmdline", "task/731/stat", "task/731/status", "task/731/stack"]),
    st.one_of(STATS, TABLES),
)
@QUICK
def test_bytes_in_a_tasks_details(kernel, name, raw):
    kernel.start(PATCH)
    kernel.task(731, blocking=True)
    kernel.write(f"proc/731/{name}", raw)
    assert _calls(kernel) == "in_progress"


@given(
    st.sampled_from(["proc/modules", "proc/sys/kernel/osrelease", "proc/sys/kernel/random/boot_id"]),
    st.binary(max_size=100),
)
@QUICK
def test_bytes_in_what_is_common(kernel, name, raw):
    kernel.patch(PATCH, replace_all=False, functions=[("nfs", "fn", 0, 5)])
    kernel.start("kgraft-patch-3-1", replace_all=False)
    kernel.write(name, raw)
    assert _calls(kernel) in (None, "in_progress")
