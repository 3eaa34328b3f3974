"""What the beacon told, read back from the file that Salt keeps: folded, closed, and nothing else believed."""

import gzip
import json

import pytest

NOW = 1795399800  # 2026-11-23T02:10:00Z


@pytest.fixture(scope="module")
def history(load):
    return load("_runners/_kgraft_history.py", fleets=load("_runners/_kgraft_fleet.py"))


def stamp(minutes):
    hours, left = divmod(130 + minutes, 60)  # minutes before and after NOW, on that day
    return f"2026-11-23T{hours:02}:{left:02}:00.123456+00:00"


def event(word, minutes, machine="db1", **other):
    data = {
        "id": machine,
        "_stamp": stamp(minutes),
        "transition": "boot-1",
        "patch": "kgraft_patch_2_2_1",
        "direction": "apply",
        "boot_id": "boot",
        "kernelrelease": "4.4.180-94.100-default",
        "abi": "kgraft",
        "active": [],
        **({"seconds": 60.0} if word == "finished" else {"seconds": 120.4, "times": 1} if word == "stuck" else {}),
        **other,
    }
    return json.dumps({"tag": f"salt/beacon/{machine}/kgraft/{word}", "data": data})


@pytest.fixture
def read(history, tmp_path):
    """Return ``read(*lines)``: the transitions and the counts."""

    def reader(*lines, since=0):
        path = tmp_path / "events.jsonl"
        path.write_bytes(b"".join(line if isinstance(line, bytes) else line.encode() + b"\n" for line in lines))
        return history.read(history.files(str(path)), since)

    return reader


def test_a_transition_is_its_start_its_end_and_whether_it_stuck(history, read):
    told, counts = read(
        event("started", 0),
        event("stuck", 2),
        event("stuck", 62, times=2, seconds=3720),
        event("finished", 70, seconds=4200.0),
    )

    (one,) = told
    assert one == history.Transition(
        machine="db1",
        transition="boot-1",
        patch="kgraft_patch_2_2_1",
        direction="apply",
        boot_id="boot",
        kernelrelease="4.4.180-94.100-default",
        started=NOW,
        seconds=4200.0,
        times=2,
        stuck=3720.0,
        why=None,
        ended="finished",
        last=NOW + 70 * 60,
    )
    assert counts == {"read": 4, "repeated": 0, "refused": 0, "torn": 0}


@pytest.mark.parametrize("word", ["started", "stuck", "finished"])
def test_an_event_that_came_twice_is_one(read, word):
    told, counts = read(event("started", 0), event(word, 5), event(word, 6))
    assert len(told) == 1
    assert counts["repeated"] == (2 if word == "started" else 1)


def test_a_start_that_was_not_heard_is_that_of_its_seconds(read):
    (one,), _ = read(event("finished", 10, seconds=300.0))
    assert one.started == NOW + 300
    (one,), _ = read(event("stuck", 10, seconds=120.0))
    assert (one.started, one.ended) == (NOW + 480, None)


CLOSED = [
    # what follows on the same machine, and how the first one has ended then
    ((), None),
    ((("started", {"transition": "boot-2"}),), "unseen"),
    ((("finished", {"transition": "boot-2"}),), "unseen"),
    ((("started", {"transition": "other-1", "boot_id": "other"}),), "reboot"),
    ((("started", {"transition": "other-1", "boot_id": "other", "machine": "db2"}),), None),
]


@pytest.mark.parametrize(("later", "ended"), CLOSED)
def test_an_open_end_is_closed_by_what_comes_later(read, later, ended):
    told, _ = read(event("started", 0), *(event(word, 20, **{"seconds": 1.0, **about}) for word, about in later))
    assert told[0].ended == ended


def test_each_machine_has_its_own(read):
    told, _ = read(event("started", 0), event("finished", 1), event("started", 0, "db2"))
    assert {one.machine: one.ended for one in told} == {"db1": "finished", "db2": None}


def test_what_is_too_old_is_left_out(read):
    lines = event("finished", 0), event("finished", 60, transition="boot-2")
    assert [one.transition for one in read(*lines, since=NOW + 1)[0]] == ["boot-2"]


FORGED = {
    "another machine's tag": {"id": "db2"},
    "event.fire_master": {"cmd": "_minion_event", "tag": "x", "pretag": None},
    "nested": {"data": {"transition": "boot-1"}},
    "no transition": {"transition": None},
    "no time": {"_stamp": "yesterday, or so, at noon"},
}


def test_one_that_was_sent_by_event_send_is_refused_whatever_else_it_lacks(read):
    """As Salt keeps it: what was sent is below ``data``, and the id is the sender's, checked by Salt."""
    data = {"id": "db2", "cmd": "_minion_event", "tag": "x", "pretag": None, "_stamp": stamp(0), "data": {"id": "db1"}}
    _, counts = read(json.dumps({"tag": "salt/beacon/db1/kgraft/finished", "data": data}))
    assert counts == {"read": 1, "repeated": 0, "refused": 1, "torn": 0}


@pytest.mark.parametrize("how", FORGED)
def test_a_forged_line_is_refused_and_counted(read, how):
    told, counts = read(event("started", 0), event("finished", 1, **FORGED[how]))
    assert [one.ended for one in told] == [None]
    assert counts["refused"] == 1


TORN = [
    b'{"tag": "salt/beacon/db1/kgraft/started", "data": {"id": "db1", "_sta\n',
    b"\xff\xfe\x00\n",
    b"\n",
    b"[]\n",
    b"7\n",
    b'{"tag": 5, "data": {}}\n',
    b'{"tag": "salt/beacon/db1/kgraft/started", "data": []}\n',
    b'{"tag": "salt/beacon/db1/kgraft/started", "data": {"id": "db1"}}\n',
    b'{"tag": "salt/beacon/db1/kgraft/finished", "data": {"id": "db1", "_stamp": 5}}\n',
    b"[" * 100000 + b"\n",
    event("finished", 3, seconds="long").encode() + b"\n",
    event("finished", 3, seconds=[1]).encode() + b"\n",
    event("finished", 3, seconds=float("nan")).encode() + b"\n",
    event("finished", 3, seconds=-1e9).encode() + b"\n",
    event("finished", 3, tasks=7).encode() + b"\n",
    event("finished", 3, tasks=[7]).encode() + b"\n",
    event("stuck", 3, times=[1]).encode() + b"\n",
]


@pytest.mark.parametrize("torn", TORN)
def test_a_torn_line_is_counted_and_the_others_are_read(read, torn):
    told, counts = read(event("started", 0), torn, event("finished", 5))
    assert [one.ended for one in told] == ["finished"]
    assert counts["torn"] == 1


def test_a_last_line_that_is_being_written_is_left_for_the_next_time(read):
    told, counts = read(event("started", 0), event("finished", 5).encode()[:-20])
    assert [one.ended for one in told] == [None]
    assert counts["torn"] == 1


def test_lines_of_other_beacons_are_none_of_ours(read):
    others = (
        "salt/beacon/db1/load/",
        "salt/job/2026/ret/db1",
        "salt/beacon/db1/kgraft/error",
        "salt/beacon/kgraft/started",
    )
    lines = [json.dumps({"tag": tag, "data": {"id": "db1"}}) for tag in others]
    told, counts = read(*lines)
    assert (told, counts) == ([], {"read": 4, "repeated": 0, "refused": 0, "torn": 0})


def test_values_are_one_line_that_can_be_printed(read):
    (one,), _ = read(event("started", 0, patch="\x1b[31mred\nline" + "x" * 1000, direction={"a": 1}))
    assert one.patch.isprintable() and len(one.patch) <= 100
    assert isinstance(one.direction, str)


def test_so_is_the_name_of_a_machine(read):
    (one,), _ = read(event("started", 0, "\x1b[2J" + "x" * 1000))
    assert one.machine.isprintable() and len(one.machine) <= 100


def test_rotated_files_are_read_with_it(history, tmp_path):
    (tmp_path / "events.jsonl").write_text(event("finished", 9) + "\n")
    (tmp_path / "events.jsonl.1").write_text(event("started", 0) + "\n")
    (tmp_path / "events.jsonl-20261122.gz").write_bytes(gzip.compress(event("started", 0, "db2").encode() + b"\n"))
    (tmp_path / "events.jsonl.new").write_text(event("started", 0, "db3") + "\n")
    (tmp_path / "events.jsonlike").write_text(event("started", 0, "db4") + "\n")

    told, _ = history.read(history.files(str(tmp_path / "events.jsonl")), 0)

    assert sorted((one.machine, one.ended, one.started) for one in told) == [
        ("db1", "finished", NOW),
        ("db2", None, NOW),
    ]


LINES = [
    ({}, "db1 kgraft_patch_2_2_1 apply: may still run"),
    ({"word": "finished"}, "db1 kgraft_patch_2_2_1 apply: finished after 60 s"),
    ({"word": "finished", "seconds": None}, "db1 kgraft_patch_2_2_1 apply: finished"),
    ({"word": "stuck", "seconds": 7500}, "db1 kgraft_patch_2_2_1 apply: may still run, stuck for 2 h 5 min and more"),
    ({"patch": None, "direction": None}, "db1 unknown patch: may still run"),
]


@pytest.mark.parametrize(("about", "line"), LINES)
def test_a_transition_as_a_line(history, read, about, line):
    (one,), _ = read(event(**dict({"word": "started", "minutes": 0}, **about)))
    assert history.line(one) == line


def test_the_last_that_was_told_of_who_blocks_is_kept_and_names_nobody(history, read):
    task = {"name": "secret", "user": "alice", "kind": "user", "unit": "x.service", "why": "It sleeps.", "pid": 7}
    early = event("stuck", 2, tasks=[{**task, "why": "It ran."}])
    (one,), _ = read(event("stuck", 62, times=2, seconds=3720, tasks=[task, task, {**task, "unit": None}]), early)
    assert (one.times, one.why) == (2, "user, x.service: It sleeps. (2 tasks) · user: It sleeps.")
    assert history.line(one).endswith(
        "stuck for 1 h 2 min and more (user, x.service: It sleeps. (2 tasks) · user: It sleeps.)"
    )
    assert "secret" not in str(one) and "alice" not in str(one)


def test_names_are_told_to_whom_asks_for_them(history):
    task = {"name": "nfsd\n", "user": "root", "kind": "kernel", "unit": None, "why": None}
    assert history.held([task]) == ["kernel"]
    assert history.held([task], names=True) == ["kernel, nfsd of root"]


SPANS = [(0, "0 s"), (119.4, "119 s"), (120, "2 min"), (3600, "1 h"), (7500, "2 h 5 min"), (100 * 3600, "4 d 4 h")]


@pytest.mark.parametrize(("seconds", "words"), SPANS)
def test_a_span_of_time(history, seconds, words):
    assert history.span(seconds) == words


@pytest.mark.parametrize("content", [None, b"\x1f\x8b\x08 and no more"])
def test_a_file_that_cannot_be_read_is_an_error_and_no_empty_history(history, tmp_path, content):
    path = tmp_path / "events.jsonl.1.gz"
    if content:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot read .*events.jsonl.1.gz"):
        history.read([str(path)], 0)
