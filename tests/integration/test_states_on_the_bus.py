"""
What a master hears and shows while a minion's state waits.
"""

import time


def test_a_long_wait_shows_on_the_masters_bus_who_blocks_now(master, minion, salt_cli, kernel, event_listener):
    kernel.start("kgraft-patch-2-2_1")
    kernel.task(731, "nfsd", blocking=True, kthread=True)
    began = time.time()

    # poke_after ends the first slice of the wait early; nothing here can be poked
    waited = salt_cli.run("state.single", "kgraft.settled", "x", timeout=3, poke_after=0.1, minion_tgt=minion.id)

    (late,) = waited.data.values()
    assert late["result"] is False
    assert "nfsd (731)" in late["comment"]
    tag = f"kgraft/{minion.id}/progress"
    heard = event_listener.wait_for_events([(master.id, tag)], after_time=began, timeout=30)
    assert heard.found_all_events
    (event,) = heard.matches
    assert event.data["data"]["transition"] == "kgraft_patch_2_2_1 is applying"
    assert [(task["name"], task["kind"]) for task in event.data["data"]["tasks"]] == [("nfsd", "kernel")]


def test_a_canary_that_does_not_settle_ends_a_batch(minion, salt_cli, kernel):
    kernel.start("kgraft-patch-2-2_1")

    batch = salt_cli.run(
        "--batch-size", "10%", "--failhard", "state.single", "kgraft.settled", "x", "timeout=1", minion_tgt=minion.id
    )

    assert batch.returncode != 0
    assert "still after 1 s" in str(batch.stdout)


def test_a_roll_out_is_rehearsed_without_waiting(minion, salt_cli, kernel):
    kernel.start("kgraft-patch-2-2_1")

    dry = salt_cli.run("state.single", "kgraft.settled", "x", test=True, minion_tgt=minion.id)

    (promise,) = dry.data.values()
    assert promise["result"] is None
    assert promise["changes"]["state"] == {"old": "in_progress", "new": "ready"}
