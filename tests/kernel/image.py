"""
The guest's disk: Salt and the Python it needs, from the virtual environment that runs the tests.

An ext4 image, read-only, made without root's rights or a loop device. It is the same for every kernel, and is kept in
the cache until Salt, one of its dependencies or Python changes.
"""

import compileall
import hashlib
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig

import packaging.requirements

from tests.kernel.debian import CACHE, forget, locked, run

PROGRAMS = ("/bin/busybox", "/bin/kmod", "/bin/bash")
STDLIB_LEFT_OUT = (
    "test",
    "idlelib",
    "ensurepip",
    "turtledemo",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "config-*",
)
DIRECTORIES = ("usr/bin", "usr/sbin", "usr/lib/modules", "usr/lib64", "etc", "opt", "root")
MOUNT_POINTS = ("proc", "sys", "dev", "run", "tmp", "var", "srv")


def distributions():
    """Salt and everything that its metadata says it needs here."""
    found, todo = {}, ["salt"]
    while todo:
        name = todo.pop()
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        key = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        if key in found:
            continue
        found[key] = distribution
        for text in distribution.requires or ():
            requirement = packaging.requirements.Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append(requirement.name)
    return found


def fingerprint(found):
    digest = hashlib.sha256(pathlib.Path(__file__).read_bytes() + sys.version.encode())
    for name, distribution in sorted(found.items()):
        digest.update(f"{name}={distribution.version}\n".encode())
    return digest.hexdigest()[:12]


def place(root, path):
    """Where a file of this machine goes in the image, with /bin, /lib ... under /usr as Debian has it."""
    return root / re.sub(r"^/(bin|sbin|lib|lib64)/", r"/usr/\1/", str(path)).lstrip("/")


def copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copy(source, target)


def libraries(files):
    """What the dynamic linker would load for these files."""
    # ldd says "not a dynamic executable" with an exit code of 1 for the static ones
    told = subprocess.run(
        ["ldd", *map(str, files)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=120, check=False
    ).stdout.decode()
    return set(re.findall(r"(?:=> |^\s)(/\S+) \(0x", told, re.MULTILINE))


def fill(root, found):
    for directory in DIRECTORIES + MOUNT_POINTS:
        (root / directory).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")

    python = pathlib.Path(os.path.realpath(sys.executable))
    stdlib = pathlib.Path(sysconfig.get_path("stdlib"))
    copy(python, place(root, python))
    (root / "opt/python").symlink_to(python)
    shutil.copytree(stdlib, place(root, stdlib), ignore=shutil.ignore_patterns(*STDLIB_LEFT_OUT))

    packages = root / "opt/salt"
    for distribution in found.values():
        for file in distribution.files or ():
            source = distribution.locate_file(file)
            # a record may name scripts that the installer put elsewhere
            if not {"..", "__pycache__"} & set(file.parts) and os.path.isfile(source):
                copy(source, packages / file)

    binaries = [python, *map(pathlib.Path, (*PROGRAMS, "/sbin/ldconfig"))]
    binaries += [*stdlib.rglob("*.so"), *packages.rglob("*.so")]
    for name in PROGRAMS:
        copy(name, place(root, pathlib.Path(name)))
    copy("/sbin/ldconfig", place(root, "/sbin/ldconfig"))
    loaded = sorted(libraries(binaries))
    for library in loaded:
        copy(library, place(root, library))
    # ctypes finds libcrypto by the linker's cache; the guest makes it, since ldconfig -r needs root
    (root / "etc/ld.so.conf").write_text("".join(f"{path}\n" for path in {pathlib.Path(one).parent for one in loaded}))
    (root / "etc/ld.so.cache").symlink_to("/run/ld.so.cache")

    for name in ("modprobe", "insmod", "rmmod", "lsmod", "modinfo"):
        (root / "usr/sbin" / name).symlink_to("/bin/kmod")
    for applet in run("/bin/busybox", "--list", timeout=20).split():
        if not any(os.path.lexists(root / "usr" / where / applet) for where in ("bin", "sbin")):
            (root / "usr/bin" / applet).symlink_to("busybox")

    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nordinary:x:1000:1000::/:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nordinary:x:1000:\n")
    shutil.copy("/etc/os-release", root / "etc")
    # Salt's core grains ask Debian's package manager for the architecture
    (root / "usr/bin/dpkg").unlink(missing_ok=True)
    (root / "usr/bin/dpkg").write_text("#!/bin/sh\necho amd64\n")
    (root / "usr/bin/dpkg").chmod(0o755)

    # what the guest would have to compile, at a tenth of the speed
    for directory in (packages, place(root, stdlib)):
        compileall.compile_dir(
            directory, quiet=2, workers=os.cpu_count(), stripdir=str(root), prependdir="/",
            invalidation_mode=compileall.py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )  # fmt: skip


def prepare(say=print):
    """Return the path of the image, made if the cache does not have it."""
    with locked():
        image = _prepare(say)
        forget(CACHE.glob("salt-*.ext4"), image)
        return image


def _prepare(say):
    found = distributions()
    image = CACHE / f"salt-{found['salt'].version}-{fingerprint(found)}.ext4"
    if image.exists():
        return image
    say(f"the guest's disk: Salt {found['salt'].version} with {len(found) - 1} dependencies")
    scratch = CACHE / f"filling-{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        fill(scratch, found)
        needed = sum(file.lstat().st_size + 4096 for file in scratch.rglob("*"))
        new = image.with_suffix(".new")
        new.unlink(missing_ok=True)
        run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-E", "root_owner=0:0", "-d", scratch, new,
            f"{needed * 12 // 10 // 2**20}M", timeout=180)  # fmt: skip
        new.rename(image)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return image
