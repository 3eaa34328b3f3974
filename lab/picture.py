"""
The picture of the page in README and manual: ``make picture``.

A fleet of kernels of files, what ``kgraft.overview`` says of each, and a history in the beacon's words; all at one
fixed time. The runner makes the page of it, Debian's Chromium the picture, and the picture keeps a hash of the page:
a test says when it is an old one.
"""

import contextlib
import hashlib
import json
import struct
import sys
import tempfile
import time
import zlib
from pathlib import Path
from unittest import mock

from lab.files import Kernel
from tests.support.load import REPO, load_file

PICTURE = REPO / "docs" / "page.png"
NOW = 1795399800  # 2026-11-23T02:10:00Z
MINUTE, HOUR, DAY = 60, 3600, 86400
SLES15, SLES12 = "5.14.21-150500.55.52-default", "4.12.14-122.186-default"
NEWEST, BEFORE = "14-150500.2.1", "13-150500.2.1"
NFS = "[<0>] nfs4_state_manager+0x1b6/0x8d0 [nfsv4]\n[<0>] nfs4_run_state_manager+0x22/0x40 [nfsv4]\n"
AGENT = "[<0>] bpf_trampoline_6442485760+0x4f/0x1000\n[<0>] do_syscall_64+0x5b/0x80\n"


def stamp(ago, form="%Y-%m-%dT%H:%M:%SZ"):
    return time.strftime(form, time.gmtime(NOW - ago))


def patch(version):
    return f"livepatch_{version.replace('-', '_').replace('.', '_')}"


class Machine:
    """A kernel of files with a patch at rest or held up by tasks, and its packages."""

    def __init__(self, directory, name, runs=NEWEST, *tasks, installed=NEWEST, since=None, abi="livepatch"):
        self.name, self.since, self.asked = name, since, 90
        self.kernel = Kernel(directory / name, abi, release=SLES15)
        for number, task in enumerate(tasks):
            self.kernel.task(731 + number, blocking=True, **task)
        if tasks:
            self.kernel.start(patch(runs))
        elif runs:
            self.kernel.patch(patch(runs))
        as_of = time.strftime("%Y-%m-%d %H:%M", time.localtime(NOW - 7 * HOUR))
        offered = {"versions": [NEWEST], "newest": NEWEST, "as_of": as_of, "unread": []}
        self.packages = {
            "kgraft_pkg.available": lambda: offered,
            "kgraft_pkg.name": lambda: "kernel-livepatch-5_14_21-150500_55_52-default",
            "kgraft_pkg.installed": lambda: installed,
            "kgraft_security.supported_until": lambda: "2027-05-31",
            "kgraft_security.reboot": lambda: {"verdict": "not needed"},
        }
        opts = {"id": name, "kgraft.root": str(self.kernel.root), "cachedir": str(directory / "cache")}
        self.module = load_file("_modules/kgraft.py", __opts__=opts, __salt__=self.packages)

    def overview(self):
        told = self.module.overview()
        return dict(told, observed=stamp(self.asked), since=self.since and stamp(self.since))

    def transition(self, began, version, seconds=None, stuck=()):
        """The beacon's events of one that ``began`` so long ago, took ``seconds``, and was told to be stuck."""
        about = {"transition": f"{self.name}-{began}", "patch": patch(version), "direction": "apply"}
        about.update(boot_id=self.kernel.boot_id, kernelrelease=SLES15, id=self.name)
        tasks = self.module.blocking()["tasks"] if stuck else []
        yield "started", began, about
        for times, after in enumerate(stuck, 1):
            yield "stuck", began - after, {**about, "seconds": after, "times": times, "tasks": tasks}
        if seconds is not None:
            yield "finished", began - seconds, {**about, "seconds": seconds, "observed": True}


def fleet(directory):
    """``(machines, events)``"""
    nfs = {"comm": "192.0.2.7-manag", "kthread": True, "stack": NFS}
    agent = {"comm": "worker", "unit": "falcon-sensor.service", "stack": AGENT}
    machines = [
        Machine(directory, "erp1", NEWEST, nfs, since=3 * HOUR + 9 * MINUTE),
        Machine(directory, "sec4", NEWEST, agent, since=2 * HOUR + 40 * MINUTE),
        Machine(directory, "db2", NEWEST, {"comm": "postgres", "unit": "postgresql.service"}, since=40),
        Machine(directory, "app3", BEFORE),
        Machine(directory, "box1", None, abi=None),
        Machine(directory, "web9", BEFORE, installed=BEFORE),
        *(Machine(directory, name) for name in ("app1", "app2", "db1", *(f"web{number}" for number in range(1, 6)))),
    ]
    of = {machine.name: machine for machine in machines}
    of["web9"].asked = 5 * HOUR
    events = [
        *of["erp1"].transition(3 * HOUR + 9 * MINUTE, NEWEST, stuck=(120, HOUR, 2 * HOUR, 3 * HOUR)),
        *of["sec4"].transition(2 * HOUR + 40 * MINUTE, NEWEST, stuck=(120, HOUR, 2 * HOUR)),
        *of["db2"].transition(40, NEWEST),
        *of["erp1"].transition(DAY + 2 * HOUR, BEFORE, 7.5 * HOUR, stuck=(120, HOUR, 7 * HOUR)),
    ]
    for number, name in enumerate(("app1", "app2", "db1", *(f"web{number}" for number in (1, 2, 3, 4, 5, 9)))):
        events += of[name].transition(DAY + 3 * HOUR - 20 * MINUTE * number, BEFORE, 8 + 5 * number % 33)
        if name != "web9":
            events += of[name].transition(3 * HOUR + 8 * MINUTE - 9 * MINUTE * number, NEWEST, 9 + 7 * number % 40)
    return machines, sorted(events, key=lambda event: -event[1])


def keep(events, path):
    """Write events as the master keeps them."""
    with open(path, "w", encoding="utf-8") as file:
        for word, ago, data in events:
            data = dict(data, _stamp=stamp(ago, "%Y-%m-%dT%H:%M:%S.000000+00:00"))
            print(json.dumps({"tag": f"salt/beacon/{data['id']}/kgraft/{word}", "data": data}), file=file)


def write(directory):
    """Have the runner write the page of the fleet; return its path."""
    machines, events = fleet(directory)
    kept, page = directory / "events.jsonl", directory / "fleet.html"
    keep(events, kept)
    exceptions = directory / "exceptions.yml"
    exceptions.write_text("lab1: {reason: waits for a new power supply, by: dba-team, until: 2026-11-29}\n", "utf-8")
    opts = {"event_return": "rawfile_json", "rawfile_json.filename": str(kept), "cachedir": str(directory)}
    opts.update({"kgraft.exceptions": str(exceptions), "fun": "kgraft.page", "color": False})
    runner = load_file("_runners/kgraft.py", __opts__=opts)
    answers = {machine.name: {"kgraft.overview": machine.overview()} for machine in machines}
    silent = dict.fromkeys(("db3", "lab1"), "nothing in 30 s")
    runner._ask = lambda *_: runner.fleets.Fleet({*answers, *silent}, answers, silent)
    with mock.patch.object(time, "time", return_value=NOW):
        told = runner.page(path=str(page))
    if told["retcode"]:
        sys.exit(str(told))
    return page


@contextlib.contextmanager
def browser():
    """Debian's Chromium, driven by Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # root has no sandbox, and the page is ours
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield chromium
        chromium.close()


def digest(page):
    return hashlib.sha256(page.read_bytes()).hexdigest()


def labelled(png, text):
    """The PNG with a text in it, before its last part."""
    part = b"tEXtpage\0" + text.encode("ascii")
    end = png.rindex(b"IEND") - 4
    return png[:end] + struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) + png[end:]


def take(chromium):
    """The picture, as the bytes of a PNG."""
    with tempfile.TemporaryDirectory() as directory:
        page = write(Path(directory))
        tab = chromium.new_page(viewport={"width": 1200, "height": 860}, device_scale_factor=1.5)
        tab.clock.set_fixed_time(stamp(0))
        tab.goto(page.as_uri())
        png = labelled(tab.screenshot(), digest(page))
        tab.close()
    return png


if __name__ == "__main__":
    with browser() as chromium:
        PICTURE.write_bytes(take(chromium))
    print(PICTURE)
