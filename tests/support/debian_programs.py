"""Programs of Debian packages, unpacked in the cache: an installed one may start a daemon."""

import os
import re
import subprocess

from tests.kernel import debian

ROOT = debian.CACHE.parent / "outside"


def program(path, *packages):
    """The program at ``path``, of the first of these packages that this Debian has."""
    policies = ((package, debian.run("apt-cache", "policy", package, timeout=60)) for package in packages)
    package = next(package for package, policy in policies if re.search(r"Candidate: [^(]", policy))
    with debian.locked():
        found = ROOT / f"{package}-{debian.version(package)}" / path
        if not found.exists():
            [archive] = debian.download([package], ROOT / "download")
            into = ROOT / f"{package}-{debian.version(package)}"
            into.mkdir(parents=True, exist_ok=True)
            files = subprocess.run(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE, check=True).stdout
            subprocess.run(["tar", "-x", "-C", into, f"./{path}"], input=files, check=True)
    assert os.access(found, os.X_OK)
    return found
