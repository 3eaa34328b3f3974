"""The file for Prometheus: what is in it, what is not known is not, and how it is replaced."""

import os
import re

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

READY = {
    "observed": "2026-11-23T02:10:00Z",
    "version": "0.2.0",
    "state": "ready",
    "abi": "livepatch",
    "kernelrelease": "5.14.21-150500.55.19-default",
    "running": "10-2.1",
    "since": None,
    "blocking": None,
    "package": {"name": "p", "installed": "10-2.1", "newest": None, "as_of": "2026-11-23T00:10:00Z"},
    "supported_until": "2026-12-31",
    "reboot": {"verdict": "can wait"},
    "notes": ["far: it is away"],
}
MOVING = {"state": "in_progress", "since": "2026-11-23T02:00:00Z", "blocking": {"count": 3, "complete": False}}
NOTHING = {"abi": None, "state": "unavailable", "package": None, "supported_until": None, "reboot": None}
PATCHES = {"livepatch_10_2_1": {"state": "applied"}, 'odd"\\\n': {"state": None}}


@pytest.fixture
def metrics(load, tmp_path):
    """Return ``metrics(**differences)``: the answer, and the file as ``{series: value}``."""

    def write(directory=tmp_path, **other):
        def overview():
            if "failure" in other:
                raise CommandExecutionError(other["failure"])
            return {**READY, **other}

        salt = {"kgraft.overview": overview, "kgraft.patches": lambda: PATCHES}
        answer = load("_modules/kgraft_metrics.py", __salt__=salt).write(str(directory))
        text = (tmp_path / "kgraft.prom").read_text("utf-8")
        assert text.endswith("\n")
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        return answer, dict(line.rsplit(" ", 1) for line in lines), text

    return write


def test_all_that_is_known_is_a_series(metrics, tmp_path):
    answer, series, _ = metrics()

    assert answer == {"path": str(tmp_path / "kgraft.prom"), "up": True, "notes": ["far: it is away"]}
    assert series == {
        "kgraft_up": "1",
        "kgraft_observed_timestamp_seconds": "1795399800",
        'kgraft_info{abi="livepatch",kernelrelease="5.14.21-150500.55.19-default",version="0.2.0"}': "1",
        "kgraft_transition_in_progress": "0",
        "kgraft_blocking_tasks": "0",
        "kgraft_blocking_complete": "1",
        'kgraft_patch_info{patch="livepatch_10_2_1",state="applied"}': "1",
        'kgraft_patch_info{patch="odd\\"\\\\\\n",state="unknown"}': "1",
        'kgraft_package_info{installed="10-2.1",newest="none",running="10-2.1"}': "1",
        "kgraft_package_lists_timestamp_seconds": "1795392600",
        "kgraft_supported_until_timestamp_seconds": "1798675200",
        'kgraft_reboot_needed{verdict="can wait"}': "0",
    }


def test_a_transition_has_its_start_and_who_blocks(metrics):
    _, series, _ = metrics(**MOVING)
    keys = ("in_progress", "started_timestamp_seconds")
    assert [series[f"kgraft_transition_{key}"] for key in keys] == ["1", "1795399200"]
    assert (series["kgraft_blocking_tasks"], series["kgraft_blocking_complete"]) == ("3", "0")


def test_a_kernel_without_live_patching_is_up_and_has_no_state(metrics):
    _, series, _ = metrics(**NOTHING)
    assert (
        series["kgraft_up"],
        series['kgraft_info{abi="none",kernelrelease="5.14.21-150500.55.19-default",version="0.2.0"}'],
    ) == ("1", "1")
    assert not any("transition" in name or "blocking" in name or "patch" in name for name in series)


def test_a_look_that_failed_is_never_the_state_of_the_last_one(metrics):
    metrics(**MOVING)
    answer, series, _ = metrics(failure="Cannot read it")
    assert (answer["up"], answer["notes"]) == (False, ["Cannot read it"])
    assert series["kgraft_up"] == "0"
    assert set(series) == {"kgraft_up", "kgraft_observed_timestamp_seconds"}


@pytest.mark.parametrize("verdict", ["needed", "can wait", "not needed", "unknown"])
def test_a_reboot_is_needed_only_where_that_is_the_verdict(metrics, verdict):
    _, series, _ = metrics(reboot={"verdict": verdict})
    assert series[f'kgraft_reboot_needed{{verdict="{verdict}"}}'] == str(int(verdict == "needed"))


def test_each_series_has_help_and_type_once(metrics):
    _, series, text = metrics(**MOVING)
    names = {name.partition("{")[0] for name in series}
    assert re.findall(r"^# TYPE (\S+) gauge$", text, re.MULTILINE) == re.findall(
        r"^# HELP (\S+) \S.*\.$", text, re.MULTILINE
    )
    assert set(re.findall(r"^# TYPE (\S+) gauge$", text, re.MULTILINE)) == names


def test_no_series_names_a_process(metrics):
    held = {"count": 1, "complete": True, "tasks": [{"kind": "user", "unit": "secret.service", "why": "w"}]}
    assert "secret" not in metrics(**{**MOVING, "blocking": held})[2]


def test_the_file_is_for_all_to_read_and_nothing_is_left_beside_it(metrics, tmp_path):
    mask = os.umask(0o077)
    try:
        metrics()
        metrics()
    finally:
        os.umask(mask)
    assert [path.name for path in tmp_path.iterdir()] == ["kgraft.prom"]
    assert (tmp_path / "kgraft.prom").stat().st_mode & 0o777 == 0o644


def test_a_disk_that_is_full_loses_nothing(metrics, tmp_path, monkeypatch):
    metrics()
    before = (tmp_path / "kgraft.prom").read_text()
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(CommandExecutionError, match=r"kgraft\.prom: No space left on device"):
        metrics(**MOVING)
    assert [path.name for path in tmp_path.iterdir()] == ["kgraft.prom"]
    assert (tmp_path / "kgraft.prom").read_text() == before


def test_a_directory_that_is_not_there_is_an_error(metrics, tmp_path):
    with pytest.raises(CommandExecutionError, match="No such file or directory"):
        metrics(directory=tmp_path / "gone")


@pytest.mark.parametrize("directory", ["relative", 5, None, ""])
def test_a_directory_must_be_an_absolute_path(load, directory):
    salt = {"kgraft.overview": dict}
    with pytest.raises(SaltInvocationError, match="must be an absolute path"):
        load("_modules/kgraft_metrics.py", __salt__=salt).write(directory)


def test_without_kgraft_it_does_not_load(load):
    assert load("_modules/kgraft_metrics.py").__virtual__()[0] is False
