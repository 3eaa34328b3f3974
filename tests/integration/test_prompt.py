"""What an administrator types, and what comes back: a real master, a real minion, real exit codes."""

import json

import pytest

PATCH = "kgraft-patch-2-2_1"


@pytest.fixture
def blocked(kernel):
    kernel.start(PATCH)
    kernel.task(731, "nfsd", blocking=True, kthread=True)
    return kernel


@pytest.mark.smoke
def test_salt_summary_is_a_line_per_machine(salt_cli, minion, kernel):
    kernel.patch(PATCH)
    done = salt_cli.run("--out=txt", "kgraft.summary", minion_tgt=minion.id)
    assert done.returncode == 0
    assert done.stdout.strip() == f"{minion.id}: ready kgraft_patch_2_2_1"


def test_salt_status_is_data(salt_cli, minion, blocked):
    done = salt_cli.run("kgraft.status", minion_tgt=minion.id)
    assert done.returncode == 0
    assert done.data == {
        "abi": "kgraft",
        "state": "in_progress",
        "direction": "apply",
        "kernelrelease": blocked.release,
        "active": ["kgraft_patch_2_2_1"],
        "moving": ["kgraft_patch_2_2_1"],
        "boot_id": blocked.boot_id,
    }


def test_blocking_goes_through_salts_plain_outputters(salt_call_cli, blocked):
    for out in ("nested", "yaml", "json", "txt"):
        done = salt_call_cli.run(f"--out={out}", "kgraft.blocking", "stacks=True")
        assert done.returncode == 0
        assert "nfsd" in done.stdout


@pytest.mark.smoke
def test_ready_is_an_exit_code_for_scripts(salt_cli, salt_call_cli, minion, kernel, make_kernel):
    def ready():
        done = salt_cli.run("kgraft.ready", minion_tgt=minion.id), salt_call_cli.run("kgraft.ready")
        return [(one.data, one.returncode) for one in done]

    assert ready() == [(True, 0), (True, 0)]
    kernel.start(PATCH)
    assert ready() == [(False, 1), (False, 1)]
    kernel.finish()
    assert ready() == [(True, 0), (True, 0)]
    make_kernel(None)
    assert [code for _, code in ready()] == [1, 1]


def test_a_wait_that_times_out_exits_with_1_and_names_the_culprit(salt_call_cli, blocked):
    done = salt_call_cli.run("kgraft.wait", "timeout=0.1")
    assert done.returncode == 1
    assert "kgraft_patch_2_2_1 still in progress after 0.1 s; blocking: nfsd (731) kernel" in done.stderr


def test_an_error_reaches_the_master_with_its_exit_code(salt_cli, minion, make_kernel):
    kernel = make_kernel(None)
    done = salt_cli.run("kgraft.patches", minion_tgt=minion.id)
    assert done.returncode == 1
    assert f"neither {kernel.root}/sys/kernel/kgraft nor" in done.stdout


def test_bad_input_exits_with_1_and_says_what_is_allowed(salt_call_cli, blocked):
    done = salt_call_cli.run("kgraft.poke", "protect=hdb*")
    assert done.returncode == 1
    assert "'name:PATTERN', 'unit:PATTERN' or 'user:PATTERN'" in done.stderr


def test_a_pid_from_the_prompt_is_a_number(salt_call_cli, blocked):
    assert salt_call_cli.run("kgraft.in_progress", "731").data is True
    skipped = salt_call_cli.run("kgraft.poke", "pids=731,999999999").data["skipped"]
    assert [task["pid"] for task in skipped] == [999999999, 731]


def test_the_mine_never_keeps_a_stale_ready(salt_call_cli, make_kernel):
    def mined():
        assert salt_call_cli.run("mine.send", "kgraft.status").returncode == 0
        return [status["state"] for status in salt_call_cli.run("mine.get", "*", "kgraft.status").data.values()]

    make_kernel().patch(PATCH)
    assert mined() == ["ready"]
    make_kernel(None)  # it came up with another kernel
    assert mined() == ["unavailable"]


def test_sys_doc_is_the_help_page(salt_cli, minion, kernel):
    done = salt_cli.run("sys.doc", "kgraft.poke", minion_tgt=minion.id)
    text = done.stdout if not done.data else json.dumps(done.data)
    for words in ("SIGSTOP", "protect_defaults", "CLI Example", "EINTR"):
        assert words in text


def test_salt_ssh_asks_without_a_minion(salt_ssh_cli, blocked):
    done = salt_ssh_cli.run("kgraft.status")
    assert done.returncode == 0, done
    assert done.data["state"] == "in_progress"
    assert done.data["kernelrelease"] == blocked.release
