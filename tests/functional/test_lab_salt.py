"""Salt's own modules and ours at work on the lab."""

import pytest
from salt.exceptions import CommandExecutionError

from lab import Lab, samples, wait_until

ONE, TWO = "kgraft-patch-1-2_1", "kgraft-patch-2-2_1"


@pytest.fixture
def salt_on(loaders, monkeypatch):
    """Return ``salt_on(lab)``: Salt's execution modules on that kernel."""

    def bind(lab):
        monkeypatch.setenv("PATH", lab.environ["PATH"])
        monkeypatch.setenv("KGRAFT_LAB", lab.environ["KGRAFT_LAB"])
        loaders.opts["kgraft.root"] = str(lab.root)
        return loaders.modules

    return bind


def test_salts_kmod_loads_lists_and_removes_a_patch(tmp_path, salt_on):
    with Lab(tmp_path / "lab", "livepatch", install=["livepatch-1-1_1"]) as lab:
        salt = salt_on(lab)
        assert salt.kmod.load("livepatch_1_1_1") == ["livepatch_1_1_1"]
        assert salt.kmod.is_loaded("livepatch_1_1_1")
        lab.revert("livepatch-1-1_1")
        wait_until(lambda: " 0 " in (lab.root / "proc/modules").read_text(), "disabled")
        assert salt.kmod.remove("livepatch_1_1_1") == ["livepatch_1_1_1"]


def test_salts_kmod_answers_in_words_when_a_transition_runs(tmp_path, salt_on):
    with samples.process("stopped") as process, Lab(tmp_path / "lab", pids=[process.pid], install=[ONE, TWO]) as lab:
        salt = salt_on(lab)
        salt.kmod.load("kgraft_patch_1_2_1")
        assert "Resource temporarily unavailable" in salt.kmod.load("kgraft_patch_2_2_1")
        assert "not found in directory" in salt.kmod.load("nix")


def test_the_whole_job_from_load_to_ready(tmp_path, salt_on):
    with (
        samples.process("sleep") as sleeper,
        samples.process("threads") as threads,
        samples.process("stopped") as stopped,
    ):
        pids = [sleeper.pid, threads.pid, stopped.pid]
        with Lab(tmp_path / "lab", period=0.2, pids=pids, install=[ONE]) as lab:
            salt = salt_on(lab)
            salt.kgraft.load("kgraft_patch_1_2_1")
            assert {task["pid"] for task in salt.kgraft.blocking()["tasks"]} == set(pids)

            poked = salt.kgraft.poke()

            assert {task["pid"] for task in poked["poked"]} == {sleeper.pid, threads.pid}
            assert {task["pid"] for task in poked["skipped"]} == {stopped.pid}
            with pytest.raises(CommandExecutionError, match=f"sample-stopped .{stopped.pid}. stopped"):
                salt.kgraft.wait(timeout=0.5)
            stopped.end()
            salt.kgraft.wait(timeout=20)
            assert salt.kgraft.summary() == "ready kgraft_patch_1_2_1"


def test_a_cumulative_patch_that_drops_a_function_is_one_transition_and_names_the_new_one(tmp_path, salt_on):
    with samples.process("sleep") as sleeper, Lab(tmp_path / "lab", period=0.2, pids=[sleeper.pid]) as lab:
        salt = salt_on(lab)
        lab.load(ONE, functions=[("vmlinux", "shared", 0, 1), ("vmlinux", "dropped", 0, 1)])
        salt.kgraft.poke()
        salt.kgraft.wait(timeout=20)
        lab.load(TWO, functions=[("vmlinux", "shared", 0, 1)])
        table = (lab.root / f"sys/kernel/kgraft/{ONE}/state").read_text()
        assert [line.split()[-1] for line in table.splitlines()[1:]] == ["2", "3"]
        assert salt.kgraft.summary().startswith("in_progress kgraft_patch_2_2_1 apply 1 blocking: ")
        assert {name: patch["state"] for name, patch in salt.kgraft.patches().items()} == {
            "kgraft_patch_1_2_1": "applied",
            "kgraft_patch_2_2_1": "applying",
        }
        salt.kgraft.poke()
        salt.kgraft.wait(timeout=20)
        assert salt.kgraft.summary() == "ready kgraft_patch_2_2_1"
        assert salt.kgraft.patches()["kgraft_patch_1_2_1"]["state"] == "inactive"


def test_a_revert_reaches_the_kernel_through_its_file(tmp_path, salt_on):
    with samples.process("stopped") as stopped, Lab(tmp_path / "lab", period=0.2) as lab:
        salt = salt_on(lab)
        lab.load(ONE)
        salt.kgraft.wait(timeout=20)
        lab.watch(stopped.pid)
        reverted = salt.kgraft.revert("kgraft_patch_1_2_1", i_accept_loss_of_support=True)
        assert reverted == {"name": "kgraft_patch_1_2_1", "state": "reverting"}
        stopped.end()
        salt.kgraft.wait(timeout=20)
        assert salt.kgraft.patches()["kgraft_patch_1_2_1"]["state"] == "inactive"
