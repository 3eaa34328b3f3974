"""What README and the manual show was run, and is run again here: each console block below a ``scene`` comment."""

import pathlib
import re
import shlex

import pytest

REPO = pathlib.Path(__file__).resolve().parent.parent.parent
BLOCK = re.compile(r"<!-- scene: (.*?) -->\n+```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ salt (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)


def _held_up(make_kernel, patch="kgraft-patch-2-2_1", **generation):
    kernel = make_kernel(**generation)
    kernel.start(patch)
    kernel.task(731, "nfsd", blocking=True, kthread=True, stack="[<0>] svc_recv+0x6b/0x90 [sunrpc]\n")
    kernel.task(4711, "hdbindexserver", blocking=True, unit="sapinit.service", threads={4712: {"blocking": True}})


def _on_15(make_kernel):
    _held_up(make_kernel, "livepatch_14_150500_2_1", abi="livepatch", release="5.14.21-150500.55.110-default")


SCENES = {"held up": _held_up, "held up, SLES 15": _on_15}


def _commands():
    for page in [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]:
        for scene, block in BLOCK.findall(page.read_text("utf-8")):
            for command, output in COMMAND.findall(block):
                yield pytest.param(scene, command, output, id=f"{page.name}: salt {command}")


@pytest.mark.parametrize(("scene", "command", "output"), _commands())
def test_what_the_manual_shows_is_what_is_printed(salt_cli, minion, make_kernel, scene, command, output):
    SCENES[scene](make_kernel)
    _, *words = shlex.split(command)  # whatever the target: here only one minion listens for sure
    if not any(word.startswith("--out") for word in words):
        words.append("--out=nested")  # Salt's own default; the factories' is json
    done = salt_cli.run(*words, minion_tgt=minion.id)
    printed = done.stdout.replace(minion.id, "db1").strip()
    pattern = ".*".join(re.escape(part) for part in output.strip().split("…"))
    assert re.fullmatch(pattern, printed, re.DOTALL), f"{printed}\n\nis not\n\n{output}"
