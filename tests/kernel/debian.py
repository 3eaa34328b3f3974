"""
Debian's own kernels for the tests: fetched by apt, unpacked, never installed.

Nothing here touches the host's /boot: the packages are downloaded and unpacked into the cache, the tests' modules are
built against the headers, and what remains is a kernel, an initramfs and the list of what is in it.

``python3 -m tests.kernel.debian`` prints the series that apt has a kernel of: 6.1 and 6.12 on bookworm, 6.12 on trixie.
"""

import contextlib
import fcntl
import functools
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import time
from typing import NamedTuple

HERE = pathlib.Path(__file__).resolve().parent
CACHE = HERE.parents[1] / ".cache" / "kernel"

# apt-cache takes it: the one that means another series in each suite, and those that were added to a suite later
META_PACKAGES = "^linux-image-([0-9.]+-)?cloud-amd64$"
MODULES = (
    "klpt_target",
    "klpt_core",
    "klpt_sleepy",
    "livepatch_1_1_1",
    "livepatch_2_1_1",
    "livepatch_3_1_1",
    "klpt_broken",
)
DRIVERS = ("virtio_pci", "virtio_blk")


# an ordinary user's PATH may lack depmod, mke2fs and ldconfig
ENVIRONMENT = {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin", "LC_ALL": "C"}


class Kernel(NamedTuple):
    series: str
    release: str  # what uname -r says
    vmlinuz: pathlib.Path
    initramfs: pathlib.Path


@contextlib.contextmanager
def locked():
    """Two runs at a time share the cache: one of them builds."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def forget(paths, but):
    """Remove what nobody has used for a day; a run beside this one may still use what is younger."""
    os.utime(but)
    for path in paths:
        if path.stat().st_mtime < time.time() - 86400:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def run(*command, timeout, **options):
    """Run a step of the preparation; its output is shown when it fails."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=ENVIRONMENT,
        timeout=timeout,
        **options,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout.decode()}")
    return done.stdout.decode()


def dependencies(package):
    """Of a package, or of all that match a regular expression."""
    return re.findall(r"^ [ |]Depends: (\S+)$", run("apt-cache", "depends", package, timeout=60), re.MULTILINE)


@functools.cache
def images():
    """The image of each series that apt's meta-packages mean today: ``{"6.1": "linux-image-6.1.0-56-cloud-amd64"}``."""
    try:
        names = dependencies(META_PACKAGES)
    except RuntimeError as err:
        raise RuntimeError("apt knows no kernel: run apt-get update, with Debian's suites for amd64") from err
    found = {re.match(r"linux-image-(\d+\.\d+)", name).group(1): name for name in names}
    return dict(sorted(found.items(), key=lambda each: [int(number) for number in each[0].split(".")]))


def known():
    """The series to test; one that cannot be where there is no apt, for which the tests say what is missing."""
    return tuple(images()) if shutil.which("apt-cache") else ("unknown",)


def resolve(series):
    """The image of a series, and the packages that it and its headers are made of."""
    image = images().get(series)
    if image is None:
        raise RuntimeError(f"apt knows no kernel {series}, only: {', '.join(images())}")
    headers = image.replace("linux-image-", "linux-headers-", 1)
    parts = [name for name in dependencies(headers) if re.match(r"linux-(headers-.*-common|kbuild-)", name)]
    return image, [image, headers, *parts]


def version(package):
    return re.search(r"Candidate: (\S+)", run("apt-cache", "policy", package, timeout=60)).group(1)


def sources_hash():
    digest = hashlib.sha256(pathlib.Path(__file__).read_bytes())
    for path in sorted((HERE / "modules").iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def download(packages, to):
    to.mkdir(parents=True, exist_ok=True)
    files = []
    for package in packages:
        wanted = f"{package}_{version(package).replace(':', '%3a')}_"
        if not list(to.glob(wanted + "*.deb")):
            for old in to.glob(f"{package}_*.deb"):
                old.unlink()
            # as root apt would rather be somebody else, who cannot write here
            run("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package, timeout=300, cwd=to)
        files.append(next(to.glob(wanted + "*.deb")))
    return files


def build_modules(tree, release, into):
    headers = tree / "usr/src" / f"linux-headers-{release}"
    makefile = headers / "Makefile"
    makefile.write_text(makefile.read_text().replace("include /usr/src/", f"include {tree}/usr/src/"))
    shutil.copytree(HERE / "modules", into)
    # the 6.12 headers ship a vmlinux, for which the build would want pahole: no BTF for the modules
    run("make", "-s", f"-j{os.cpu_count()}", "-C", headers, f"M={into}", "modules", "CONFIG_DEBUG_INFO_BTF_MODULES=",
        timeout=120)  # fmt: skip
    for name in MODULES:
        run("strip", "--strip-debug", into / f"{name}.ko", timeout=20)


def driver_files(modules, release):
    """The drivers and what they need, in no particular order: the guest has modprobe."""
    wanted = set()
    dep = dict(line.split(":", 1) for line in (modules / "modules.dep").read_text().splitlines())
    by_name = {pathlib.Path(path).name.split(".ko")[0]: path for path in dep}
    for name in DRIVERS:
        if name in by_name:  # otherwise it is built in
            wanted.update((by_name[name], *dep[by_name[name]].split()))
    return sorted(wanted)


def build_initramfs(tree, release, built, into):
    modules = tree / "lib/modules" / release
    run("depmod", "-b", tree, release, timeout=60)
    root = built.parent / "initramfs"
    target = root / "lib/modules" / release
    target.mkdir(parents=True)
    for path in driver_files(modules, release):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(modules / path, target / path)
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        if (modules / name).exists():
            shutil.copy(modules / name, target)
    (target / "livepatch").mkdir()
    for name in MODULES:
        shutil.copy(built / f"{name}.ko", target / "livepatch")
    run("depmod", "-b", root, release, timeout=60)
    (root / "bin").mkdir()
    shutil.copy("/bin/busybox", root / "bin")
    run("sh", "-c", f"find . | cpio --quiet -o -H newc -R 0:0 > {into}", timeout=60, cwd=root)


def add_guest(kernel, into):
    """Write the initramfs that is booted: the kernel's, which the cache keeps, and after it the guest's own files."""
    command = f"(cat {kernel.initramfs}; ls | cpio --quiet -o -H newc -R 0:0) > {into}"
    run("sh", "-c", command, timeout=60, cwd=HERE / "initramfs")


def prepare(series, say=print):
    """Return the :class:`Kernel` of a series, built if the cache does not have it. Takes 10 to 20 seconds cold."""
    with locked():
        kernel = _prepare(series, say)
        forget(CACHE.glob(f"{series}.*"), kernel.vmlinuz.parent)
        return kernel


def _prepare(series, say):
    image, packages = resolve(series)
    release = image.replace("linux-image-", "", 1)
    place = CACHE / f"{release}-{version(image)}-{sources_hash()}"
    kernel = Kernel(series, release, place / "vmlinuz", place / "initramfs")
    if place.is_dir():
        return kernel
    say(f"{release}: fetching {len(packages)} packages")
    debs = download(packages, CACHE / "debs" / series)
    scratch = CACHE / f"building-{series}-{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        say(f"{release}: unpacking, building {len(MODULES)} modules")
        for deb in debs:
            run("dpkg-deb", "-x", deb, scratch / "tree", timeout=120)
        if not (scratch / "tree/lib").exists():  # since trixie the packages have /usr/lib/modules
            (scratch / "tree/lib").symlink_to("usr/lib")
        build_modules(scratch / "tree", release, scratch / "modules")
        done = scratch / "done"
        done.mkdir()
        build_initramfs(scratch / "tree", release, scratch / "modules", done / "initramfs")
        shutil.copy(scratch / "tree/boot" / f"vmlinuz-{release}", done / "vmlinuz")
        done.rename(place)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return kernel


if __name__ == "__main__":
    print(*known())
