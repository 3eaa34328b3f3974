"""Our metrics, alerts and dashboard by Prometheus's own tool."""

import json
import re
import subprocess

import pytest

EXAMPLES = "examples/prometheus"


def run(*words, **options):
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False, **options
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def write(load, kgraft_on, tmp_path):
    """Return ``write(kernel, **others)``: the file of a kernel of files, where other modules answer ``others``."""

    def metrics(kernel, **others):
        kgraft = kgraft_on(kernel, __salt__={})
        salt = {"kgraft.overview": kgraft.overview, "kgraft.patches": kgraft.patches}
        salt.update({name.replace("__", "."): lambda value=value: value for name, value in others.items()})
        kgraft.__salt__.update(salt)
        load("_modules/kgraft_metrics.py", __salt__=salt).write(str(tmp_path))
        return (tmp_path / "kgraft.prom").read_text("utf-8")

    return metrics


def _at_rest(kernel):
    kernel.patch("kgraft-patch-1-2_1")


def _in_transition(kernel):
    _at_rest(kernel)
    kernel.start("kgraft-patch-2-2_1")
    kernel.task(731, 'odd "name"\\', blocking=True)


def _unreadable(kernel):
    kernel.patch("kgraft-patch-1-2_1")
    kernel.write("sys/kernel/kgraft/in_progress", "7\n")


STORIES = {story.__name__: story for story in (_at_rest, _in_transition, _unreadable)}
OTHERS = {
    "kgraft_pkg__available": {"versions": ["2-2.1"], "newest": "2-2.1", "as_of": "2026-11-23 02:10", "unread": []},
    "kgraft_pkg__name": "kgraft-patch-x",
    "kgraft_pkg__installed": "2-2.1",
    "kgraft_security__supported_until": "2026-12-31",
    "kgraft_security__reboot": {"verdict": "can wait"},
}


@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("others", [{}, OTHERS], ids=["alone", "with packages"])
def test_a_file_of_ours_is_one_that_prometheus_reads_without_a_complaint(promtool, make_kernel, write, story, others):
    kernel = make_kernel("kgraft")
    STORIES[story](kernel)
    assert run(promtool, "check", "metrics", input=write(kernel, **others)) == ""


def test_without_live_patching_too(promtool, make_kernel, write):
    assert run(promtool, "check", "metrics", input=write(make_kernel(None))) == ""


def test_the_alerts_fire_when_they_should(promtool, repo):
    assert "SUCCESS" in run(promtool, "test", "rules", "kgraft.rules.test.yml", cwd=repo / EXAMPLES)


def test_every_alert_has_a_test(repo):
    alerts, tests = (
        re.findall(r"alert(?:name)?: (\w+)", (repo / EXAMPLES / name).read_text("utf-8"))
        for name in ("kgraft.rules.yml", "kgraft.rules.test.yml")
    )
    assert len(alerts) == len(set(alerts)) > 4
    assert set(tests) == set(alerts)


def expressions(node):
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "expr":
                yield value
            yield from expressions(value)
    elif isinstance(node, list):
        for item in node:
            yield from expressions(item)


def test_the_dashboard_asks_in_promql_for_what_we_write(promtool, repo, load, tmp_path):
    dashboard = json.loads((repo / EXAMPLES / "grafana.json").read_text("utf-8"))
    filled = [expr.replace("$instance", ".*") for expr in expressions(dashboard)]
    assert len(filled) > 5
    assert not any("$" in expr for expr in filled)
    rules = [{"record": f"each:{number}", "expr": expr} for number, expr in enumerate(filled)]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    run(promtool, "check", "rules", tmp_path / "rules.yml")

    written = set(load("_modules/kgraft_metrics.py").HELP)
    alerts = (repo / EXAMPLES / "kgraft.rules.yml").read_text("utf-8")
    asked = set(re.findall(r"\bkgraft_\w+", "\n".join([*filled, *re.findall("expr: (.*)", alerts)])))
    assert asked - written == set()
