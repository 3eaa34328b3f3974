"""What the lab takes: its directory, which may be somebody's, and its arguments, which may be anything."""

import fcntl
import json
import os
import signal
import subprocess
import sys

import pytest

from lab import HERE, Lab, procfs, samples, wait_until
from lab.root import MARKER, OWN, note, take

ONE, TWO = "kgraft-patch-1-2_1", "kgraft-patch-2-2_1"


def run(*arguments, **options):
    """``python -m lab`` to its end: with no standard input it ends as soon as it has started."""
    return subprocess.run(
        [sys.executable, "-m", "lab", *map(os.fspath, arguments), "--until-eof"],
        **{"stdin": subprocess.DEVNULL, "capture_output": True, "timeout": 30, **options},
        env=dict(os.environ, PYTHONPATH=str(HERE.parent)),
    )


def refused(*arguments, **options):
    """The one line in which it says no."""
    done = run(*arguments, **options)
    assert done.returncode == 2, done
    (line,) = done.stderr.decode().splitlines()
    prefix = "python -m lab: error: "
    assert line.startswith(prefix)
    return line[len(prefix) :]


def tree(directory):
    """All that is below a directory: names, kinds, contents."""
    return {
        path.relative_to(directory): (path.lstat().st_mode, path.read_bytes() if path.is_file() else None)
        for path in directory.rglob("*")
    }


def letter(pid):
    return (procfs.stat(pid) or {"letter": "X"})["letter"]


def alive(pid):
    return letter(pid) not in "ZX"


# -- whose directory it is


@pytest.mark.parametrize("content", ["mine\n", ""])
@pytest.mark.parametrize("path", ["kernel.log", ".new/mine", "mine.new", "lab.out", "lab.sock", "proc/x", MARKER, "x"])
def test_it_leaves_a_directory_alone_that_is_not_empty_and_not_its_own(tmp_path, path, content):
    (tmp_path / "root/sub").mkdir(parents=True)
    (tmp_path / "root" / path).parent.mkdir(exist_ok=True)
    (tmp_path / "root" / path).write_text(content)
    before = tree(tmp_path)

    assert "needs a directory to itself" in refused(tmp_path / "root")
    with pytest.raises(RuntimeError, match="needs a directory to itself"), Lab(tmp_path / "root"):
        pass

    assert tree(tmp_path) == before


@pytest.mark.parametrize("link", [MARKER, "proc", "kernel.log"])
def test_it_leaves_a_directory_alone_that_holds_a_link_only(tmp_path, link):
    (tmp_path / "root").mkdir()
    (tmp_path / "mine").write_bytes(OWN)
    (tmp_path / "root" / link).symlink_to(tmp_path / "mine")
    before = tree(tmp_path)
    refused(tmp_path / "root")
    assert tree(tmp_path) == before


def test_it_takes_a_new_directory_an_empty_one_and_its_own(tmp_path):
    (tmp_path / "empty").mkdir()
    for root in ("deep/down", "empty", "deep/down", "empty"):
        assert run(tmp_path / root, "--install", ONE).returncode == 0
        assert (tmp_path / root / "sys/kernel/kgraft/in_progress").read_text() == "0\n"
        assert not (tmp_path / root / "lab.sock").exists()


def test_a_start_that_was_cut_short_does_not_lock_it_out(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / MARKER).touch()
    assert run(tmp_path / "root").returncode == 0


def test_what_became_a_link_in_its_own_directory_is_not_followed(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    run(root)
    (outside / "kernel").mkdir(parents=True)
    for name in ("proc", "sys", ".new", "kernel.log", "lab.sock", "children"):
        subprocess.run(["rm", "-rf", root / name], check=True)
        (root / name).symlink_to(outside)
    assert run(root).returncode == 0
    assert [path.name for path in outside.rglob("*")] == ["kernel"]


def test_without_a_root_it_leaves_no_directory_behind(tmp_path, place, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert run().returncode == 0
    assert list(tmp_path.iterdir()) == []
    assert "Exec format error" in refused("--run", place / "no-format")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nix"))


# -- one lab a directory


def test_a_second_lab_in_a_directory_is_refused_and_the_first_goes_on(tmp_path):
    with Lab(tmp_path / "root", run=["sleep 3600"]) as lab:
        lab.load(ONE)
        before = sorted(lab.root.rglob("*"))
        assert "another lab is at work there" in refused(tmp_path / "root")
        with pytest.raises(RuntimeError, match="another lab is at work there"), Lab(tmp_path / "root"):
            pass
        assert sorted(lab.root.rglob("*")) == before
        with pytest.raises(OSError, match="not yet finalized"):
            lab.load(TWO)
    assert run(tmp_path / "root").returncode == 0


def test_what_a_lab_starts_does_not_hold_its_lock(tmp_path):
    with Lab(tmp_path / "root", run=["sleep 3600"]) as lab:
        os.kill(lab.pid, signal.SIGKILL)
        wait_until(lambda: not alive(lab.pid), "killed")
        with open(lab.root / MARKER) as marker:
            fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
    take(tmp_path / "root")  # and ends its child


# -- what a kill left


def shown(lab):
    return [int(path.name) for path in (lab.root / "proc").iterdir() if path.name.isdigit() and path.name != "1"]


def test_what_a_killed_lab_left_is_cleaned_up_by_the_next_in_its_directory(tmp_path):
    """Its children run on: one asleep, one stopped, one whose parent, the session's leader, has ended."""
    stopped = f"{sys.executable} -m lab.samples stopped"
    commands = ["sleep 3600", stopped, f"sh -c '(sleep 1; {stopped}; :) & exec true'"]
    with samples.process("sleep") as watched:
        lab = Lab(tmp_path / "root", run=commands, pids=[watched.pid], period=0.2)
        with lab:
            wait_until(lambda: [letter(pid) for pid in shown(lab)].count("T") == 2, "both are stopped")
            children = {pid for pid in shown(lab) if alive(pid)} - {watched.pid}
            assert len(children) == 4
            wait_until(lambda: all(f'"{pid}"' in (lab.root / "children").read_text() for pid in children), "noted")
            lab.load(ONE)
            os.kill(lab.pid, signal.SIGKILL)
            wait_until(lambda: not alive(lab.pid), "killed")
        assert all(alive(pid) for pid in children)
        (lab.root / ".new/7").write_text("half-writ")
        assert (lab.root / "lab.sock").exists()

        with Lab(tmp_path / "root") as again:
            assert [pid for pid in children if alive(pid)] == []
            assert alive(watched.pid)
            assert list((again.root / ".new").iterdir()) == []
            again.load(ONE)
            assert again.log == [f"kgr: applying patch '{ONE}'"]


def changed(note, **values):
    return json.dumps({**json.loads(note), **values})


@pytest.mark.parametrize(
    ("change", "ended"),
    [
        (lambda note, pid, start, session: note, True),
        (lambda note, pid, start, session: changed(note, processes={pid: [start + 1, session]}), False),
        (lambda note, pid, start, session: changed(note, processes={pid: [start, session + 1]}), False),
        (lambda note, pid, start, session: changed(note, boot_id="another"), False),
        (lambda note, pid, start, session: changed(note, processes=[pid]), False),
        (lambda note, pid, start, session: note[:-1], False),
        (None, False),
    ],
    ids=["as noted", "start time", "session", "boot", "no pairs", "half a note", "owner"],
)
def test_nobody_else_is_ended_for_what_a_killed_lab_noted(tmp_path, change, ended):
    """Pids are used again, machines boot, a note may be half a note or somebody else's."""
    run(tmp_path / "root")
    with samples.process("sleep") as process:
        about = procfs.stat(process.pid)
        start, session = about["start_time"], about["session"]
        true = note({process.pid: [start, session]})
        path = tmp_path / "root/children"
        path.write_text(change(true, process.pid, start, session) if change else true)
        if not change:
            os.chown(path, 65534, -1)

        assert run(tmp_path / "root").returncode == 0

        assert alive(process.pid) is not ended


# -- arguments

NO_DIRECTORY = ["", "file", "file/below", "/proc/nix", "loop", "x" * 300]
VALUES = {  # by option: what is said, and of what
    "--period": ("seconds above 0", ["0", "-1", "nan", "inf", "1e999", "soon", ""]),
    "--pid": ("is no process", ["0", "-1", "99999999999", "4194305", "self", "٣", "1.0", "1/fd", ""]),
    "--cgroup": ("is no control group", ["", "/nix", "file", "a\nb"]),
    "--run": ("is no command", ["", " ", "/no/such/program", "/etc", "./file", "''", "sleep 'unbalanced"]),
    "--stuck-thread": ("is no name of a kernel thread", ["", "a\nb", "x" * 16, "\udcff"]),
    "--release": (
        "is no release of a kernel",
        ["", ".", "..", "../../../outside", "/proc/nix", "a/b", "a\nb", "a b", "x" * 65, "-x", "ü"],
    ),
    "--install": (
        "is no name of a module",
        ["", ".", "..", "../../../../../outside", "/proc/nix", "a/b", "a\nb", "a b", "x" * 56, "-x", "ü"],
    ),
}
BAD = [
    *(((f"{option}={value}",), words) for option, (words, values) in VALUES.items() for value in values),
    (("--run=./no-format",), "Exec format error"),
    (("--abi=kpatch",), "invalid choice"),
    (("--nix",), "unrecognized arguments"),
    (("another", "a\nb"), "unrecognized arguments"),
    (("--pid",), "expected one argument"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where relative paths of the arguments lie."""
    place = tmp_path_factory.mktemp("arguments")
    (place / "file").write_text("mine\n")
    (place / "loop").symlink_to("loop")
    (place / "no-format").write_bytes(b"\x7fELF no more")
    (place / "no-format").chmod(0o755)
    return place


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[ascii(" ".join(arguments))[1:40] for arguments, _ in BAD])
def test_a_bad_argument_is_refused_in_one_line_and_starts_nothing(place, tmp_path, arguments, words):
    assert words in refused(tmp_path / "root", *arguments, cwd=place)
    assert not list(tmp_path.rglob("*.ko"))
    assert not (tmp_path / "root/lab.sock").exists()


@pytest.mark.parametrize("root", NO_DIRECTORY, ids=[name[:10] for name in NO_DIRECTORY])
def test_what_cannot_be_a_directory_is_refused_in_one_line(place, root):
    before = tree(place)
    refused(root, cwd=place)
    assert tree(place) == before


def test_the_end_of_a_standard_input_that_is_closed_cannot_be_waited_for(tmp_path):
    assert "standard input" in refused(tmp_path / "root", stdin=None, preexec_fn=lambda: os.close(0))


def test_a_root_of_any_bytes_is_named_in_one_line(tmp_path):
    root = os.fsencode(tmp_path) + b"/a\xff\nb"
    done = run(os.fsdecode(root))
    assert (done.returncode, done.stderr) == (0, b"")
    (line,) = done.stdout.decode().splitlines()
    assert line.startswith("This is not a kernel: ")


@pytest.mark.parametrize("link", ["lib", "lib/modules", "lib/modules/r/kgraft", f"lib/modules/r/kgraft/{ONE}.ko"])
def test_an_installed_patch_does_not_follow_a_link_out_of_the_root(tmp_path, link):
    root, outside = tmp_path / "root", tmp_path / "outside"
    run(root)
    outside.mkdir()
    (root / link).parent.mkdir(parents=True, exist_ok=True)
    (root / link).symlink_to(outside / "x.ko" if link.endswith(".ko") else outside)
    assert "leads out of" in refused(root, "--release=r", f"--install={ONE}")
    assert list(outside.iterdir()) == []


def test_an_installed_patch_may_follow_a_link_within_the_root(tmp_path):
    run(tmp_path / "root")
    (tmp_path / "root/usr/lib").mkdir(parents=True)
    (tmp_path / "root/lib").symlink_to("usr/lib")
    assert run(tmp_path / "root", "--release=r", f"--install={ONE}").returncode == 0
    assert (tmp_path / f"root/usr/lib/modules/r/kgraft/{ONE}.ko").is_file()


@pytest.mark.parametrize("tool", ["modprobe nix", "insmod nix.ko", "rmmod nix", "rmmod", "lsmod"])
@pytest.mark.parametrize("root", [None, "", "nix", "."])
def test_its_module_tools_say_so_where_no_lab_is(tmp_path, tool, root):
    environ = dict(os.environ, PATH=f"{HERE / 'bin'}:{os.environ['PATH']}")
    if root is not None:
        environ["KGRAFT_LAB"] = root
    done = subprocess.run(tool.split(), env=environ, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"{tool.split()[0]}: ERROR: KGRAFT_LAB must name the root of a running lab\n"
