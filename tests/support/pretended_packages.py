"""
Modules for minions without zypper, in place of ours that ask it: what is installed stands in a file beside the kernel,
and 2-2.1 is the newest. A function that is missing would cost half a second in each job: Salt looks for it in all of
its modules.
"""

import time

PACKAGES = """
import os
__virtualname__ = "kgraft_pkg"

def name():
    return "kgraft-patch-x"

def installed():
    path = os.path.join(__opts__["kgraft.root"], "installed")
    return open(path).read().strip() if os.path.exists(path) else None

def available():
    return {"versions": ["2-2.1"], "newest": "2-2.1", "as_of": "AS OF", "unread": []}

def check(version="latest"):
    running = __salt__["kgraft.overview"]()["running"]
    good = running == ("2-2.1" if version == "latest" else version)
    told = dict.fromkeys(("target", "reason", "doubt"))
    return dict(told, verdict="good" if good else "bring", target="2-2.1", running=running)
"""
SECURITY = """
__virtualname__ = "kgraft_security"

def cves(*cves):
    running = __salt__["kgraft.overview"]()["running"]
    return {cve: "fixed by kgraft_patch_2_2_1" if running == "2-2.1" else "open: =x 2-2.1" for cve in cves}

def supported_until():
    return "2999-12-31"

def reboot():
    return None

def dates():
    when = {"released": "2026-11-01T00:00:00Z", "installed": None, "settled": "2026-11-02T00:00:00Z"}
    return {"patches": {"kgraft_patch_2_2_1": {"version": "2-2.1", **when}}, "unread": []}
"""


def write(directory):
    """Make ``directory`` one for ``module_dirs``."""
    modules = directory / "modules"
    modules.mkdir()
    (modules / "kgraft_pkg.py").write_text(PACKAGES.replace("AS OF", time.strftime("%Y-%m-%d %H:%M")))
    (modules / "kgraft_security.py").write_text(SECURITY)
    return str(directory)
