"""Small files of the kernel: gone, unreadable, unclear, and who is gone with them."""

import errno
import os

import pytest


@pytest.fixture
def files(load):
    return load("_modules/_kgraft_files.py")


@pytest.fixture
def put(tmp_path):
    """``put(name, content)``: the path of a file; no content, no file; a directory where it is an errno at open."""

    def write(name, content):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        return str(path)

    return write


def _outcome(call, *arguments):
    """What is returned, or the class of what is raised."""
    try:
        return call(*arguments)
    except (OSError, ValueError) as err:
        return type(err)


@pytest.mark.parametrize(
    ("ask", "content", "outcome"),
    [
        ("read", b"1\n", b"1\n"),
        ("read", b"x" * 200_000, b"x" * 200_000),
        ("read", b"", FileNotFoundError),
        ("read", None, FileNotFoundError),
        ("word", b" 4.4.180-94.100-default\n", "4.4.180-94.100-default"),
        ("word", b"\xff\n", "\\xff"),
        ("number", b"-1\n", -1),
        ("number", b"12", 12),
        ("number", b"1\n\n", ValueError),
        ("number", b"1_0\n", ValueError),
        ("number", b" 1\n", ValueError),
        ("number", "\N{ARABIC-INDIC DIGIT ONE}\n".encode(), ValueError),
        ("number", b"9" * 19, ValueError),
        ("number", None, FileNotFoundError),
        ("switch", b"0\n", False),
        ("switch", b"1\n", True),
        ("switch", b"2\n", ValueError),
        ("switch", b"-1\n", ValueError),
        ("switch", b"", FileNotFoundError),
    ],
)
def test_each_kind_of_file_is_read_or_told_apart(files, put, ask, content, outcome):
    assert _outcome(getattr(files, ask), put("file", content)) == outcome


@pytest.mark.parametrize(
    ("number", "outcome"),
    [
        (errno.ENOENT, FileNotFoundError),
        (errno.ESRCH, FileNotFoundError),
        (errno.ENODEV, FileNotFoundError),
        (errno.EACCES, PermissionError),
        (errno.EIO, OSError),
        (errno.ENOTDIR, NotADirectoryError),
    ],
)
@pytest.mark.parametrize(
    ("where", "ask"), [("open", "read"), ("read", "read"), ("readlink", "link"), ("scandir", "directories")]
)
def test_the_kernel_says_in_three_ways_that_it_is_gone(files, put, monkeypatch, where, ask, number, outcome):
    path, before = put("file", b"1\n"), len(os.listdir("/proc/self/fd"))

    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, where, fail)
        assert _outcome(getattr(files, ask), path) is outcome
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_optional_file_is_none_only_where_its_patch_is_still_there(files, put, tmp_path):
    assert files.optional(files.number, put("refs", b"3\n")) == 3
    assert files.optional(files.number, put("replace_all", None)) is None
    assert _outcome(files.optional, files.number, put("empty", b"")) is FileNotFoundError
    assert _outcome(files.optional, files.number, put("odd", b"x")) is ValueError
    assert _outcome(files.optional, files.number, str(tmp_path / "gone" / "refs")) is FileNotFoundError


def test_a_required_file_that_is_missing_is_no_thing_that_went_meanwhile(files, put):
    assert files.required(files.switch, put("in_progress", b"1\n")) is True
    path = put("missing", None)
    with pytest.raises(OSError, match=f"^Cannot read {path}: it is missing or empty$") as failure:
        files.required(files.switch, path)
    assert not isinstance(failure.value, FileNotFoundError)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError(13, "Permission denied", "/proc/1/x"), "Cannot read /proc/1/x: Permission denied"),
        (PermissionError(13, "Permission denied", b"/proc/\xff"), "Cannot read /proc/\\xff: Permission denied"),
        (OSError("There is no directory /sys"), "There is no directory /sys"),
        (ValueError("Cannot understand /sys/x: 2"), "Cannot understand /sys/x: 2"),
    ],
)
def test_what_failed_is_one_line(files, error, told):
    assert files.message(error) == told


def test_the_kernels_refusal_of_a_write_is_put_into_words(files, put, monkeypatch):
    path = put("revert", b"")
    files.write(path, b"1", {})
    with open(path) as written:
        assert written.read() == "1"
    for number, why in ((errno.EBUSY, "newer patches"), (errno.EIO, os.strerror(errno.EIO))):
        monkeypatch.setattr(
            os, "write", lambda *_, number=number: (_ for _ in ()).throw(OSError(number, os.strerror(number)))
        )
        with pytest.raises(OSError, match=f"^Cannot write {path}: {why}$"):
            files.write(path, b"1", {errno.EBUSY: "newer patches"})


def test_only_directories_are_listed_and_in_order(files, tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("a")
    assert files.directories(str(tmp_path)) == ["a", "b"]


def test_who_has_no_directory_any_more_is_gone(files, tmp_path):
    (tmp_path / "731").mkdir()
    (tmp_path / "732").write_text("")
    assert [files.is_gone(str(tmp_path / pid)) for pid in ("731", "732", "733")] == [False, True, True]
