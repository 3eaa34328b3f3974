"""
Real packages, real repositories, a real zypper: what a SUSE machine has, in a directory, built by Debian's own tools.

Fixtures are in ``tests/support/package_fixtures.py``. With other roots, such as a lab's::

    with Lab(tmp_path / "lab") as lab, SuseRoot(lab.root) as suse:
        suse.enable(live_patches)
        suse.insmod_with(lab.environ)     # now %post loads a patch into the lab, or fails as the lab's insmod does
        loaders.opts["kgraft.root"] = str(lab.root)
        loaders.modules.kgraft_pkg.install("2-2.1")

The minion must believe that it is SUSE, so that Salt's own zypper module does the work:
``make_loaders(**minion_options())``. Give its ``kgraft.root`` for each test.

``live_patches`` has (``KERNEL`` is the release of ``lab.files.Kernel``'s kGraft kernel)

================  ====================================  =================================================
kernel            versions                              CVEs: a version has those before it too
================  ====================================  =================================================
``KERNEL``        1-8.5.1, 2-1.1, 2-2.1, 9-2.2, 10-2.1  2: CVE-2026-0002, 9: …-0009, 10: …-0010
``OTHER_KERNEL``  1-1.1, 6-2.1                          6: CVE-2026-0002, CVE-2026-0006
``KERNEL_15``     1-150400.9.3.1, 9-2.1, 10-150400.2.1  9: CVE-2026-0009, 10: CVE-2026-0010
================  ====================================  =================================================

each version above 1 (but 2-1.1) with an update ``SUSE-<package>-<number>``, and with a changelog, that name them; the
packages ``kernel-default`` of ``KERNEL`` and ``KERNEL_15``, whose own changelogs name CVE-2025-0001; ``kgraft`` and
``kernel-livepatch-tools``; and ``sle-live-patching-release``, which wants its licence agreed to.
"""

import atexit
import contextlib
import datetime
import fcntl
import functools
import hashlib
import os
import pathlib
import platform
import re
import shutil
import subprocess
import tempfile
import threading
import time
from xml.sax.saxutils import escape, quoteattr

KERNEL = "4.4.180-94.100-default"
OTHER_KERNEL = "4.4.180-94.97-default"
KERNEL_15 = "5.14.21-150400.24.33-default"
ARCH = platform.machine()

SPEC = """\
Name: {name}
Version: {version}
Release: {release}
Summary: {name} for tests
License: GPL-2.0-only
AutoReqProv: no
{headers}

%description
{name}

%install
cp -a {tree}/. %{{buildroot}}/

{post}

%files -f {tree}.files

%changelog
{changelog}
"""

# As SUSE's script does: only into the kernel it was made for, and not if the administrator forbade it
LOAD = """\
[ -r /etc/sysconfig/livepatching ] && . /etc/sysconfig/livepatching
[ "$LIVEPATCH_KERNEL" = never ] && exit 0
read -r running < /proc/sys/kernel/osrelease || exit 0
[ "$running" = {kernelrelease} ] && [ -x /sbin/insmod ] || exit 0
/sbin/insmod {module}"""

FAIL = """\
echo "insmod: ERROR: could not insert module {module}: Resource temporarily unavailable" >&2
exit 1"""

# rpm runs a script in a chroot, where the lab's insmod cannot run: somebody outside does it for us
INSMOD = """\
#!/bin/sh
ask=/run/insmod/$$
echo "$1" > $ask.new
/bin/busybox mv $ask.new $ask.request
waited=0
while [ ! -e $ask.code ]; do
    waited=$((waited + 1))
    [ $waited -gt 1500 ] && { echo "insmod: ERROR: the test's kernel does not answer" >&2; exit 1; }
    /bin/busybox usleep 20000
done
/bin/busybox cat $ask.stderr >&2
read -r code < $ask.code
exit $code
"""


def minion_options(major=12):
    """The options of a minion that believes it is a SUSE Linux Enterprise Server, 12 or 15."""
    return {
        "grains": {
            "os": "SUSE",
            "os_family": "Suse",
            "osarch": ARCH,
            "osmajorrelease": major,
            "osrelease": f"{major}.3",
            "oscodename": f"SUSE Linux Enterprise Server {major} SP3",
        },
        # no systemd-run around zypper
        "systemd.scope": False,
    }


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert not done.returncode, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def package_name(kernelrelease):
    """Spelled out here a second time on purpose: a test of the module must not ask the module."""
    scheme = "kernel-livepatch" if kernelrelease.startswith(("5.", "6.")) else "kgraft-patch"
    return f"{scheme}-{kernelrelease.replace('.', '_')}"


class PackageRepository:
    """A directory of packages with metadata, as ``dir:`` for zypper. ``add_…`` build at once, ``url`` publishes."""

    def __init__(self, path, alias=None):
        self.path = pathlib.Path(path)
        self.alias = alias or self.path.name
        self.name = f"{self.alias} of the tests"
        self.updates = []
        self.eulas = {}
        self._published = False
        (self.path / "packages").mkdir(parents=True)

    def add_package(self, name, edition="1-1", files=(), headers="", post=None, changelog="", eula=None):
        """Build a package. ``files`` maps paths to their content; ``eula`` is a licence that must be agreed to."""
        version, release = edition.split("-")
        self._published = False
        with tempfile.TemporaryDirectory(prefix="rpm") as build:
            tree = pathlib.Path(build, "tree")
            tree.mkdir()
            for path, content in dict(files).items():
                place = tree / path.lstrip("/")
                place.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, pathlib.Path):
                    shutil.copy2(content, place)
                elif content.startswith("->"):
                    place.symlink_to(content[2:])
                else:
                    place.write_text(content)
            listed = "".join(f'"{path}"\n' for path in dict(files))
            pathlib.Path(f"{tree}.files").write_text(listed or "%defattr(-,root,root)\n")
            spec = pathlib.Path(build, "package.spec")
            spec.write_text(
                SPEC.format(
                    name=name,
                    version=version,
                    release=release,
                    headers=headers,
                    tree=tree,
                    post=f"%post\n{post}" if post else "",
                    changelog=f"* Mon Nov 02 2026 Maintenance <maint@example.com> - {edition}\n{changelog}"
                    if changelog
                    else "",
                )
            )
            options = {
                "_topdir": f"{build}/top",
                "_rpmdir": build,
                "_build_name_fmt": "%{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}.rpm",
                "__os_install_post": "%{nil}",
                "_binary_payload": "w1.gzdio",
            }
            defines = [part for key, value in options.items() for part in ("--define", f"{key} {value}")]
            run("rpmbuild", "-bb", "--quiet", "--target", ARCH, *defines, spec)
            (built,) = pathlib.Path(build).glob("*.rpm")
            target = self.path / "packages" / built.name
            shutil.move(built, target)
        if eula:
            self.eulas[target] = (name, version, release, eula)
        return target

    def add_live_patch(self, kernelrelease, edition, cves=(), bugs=(), post=LOAD, update=True):
        """
        Build a live patch for a kernel. ``cves`` and ``bugs`` are all that it fixes: they stand in its changelog and,
        but for ``update=False``, in an update that brings it. ``post=FAIL`` makes its script fail as insmod does.
        """
        name = package_name(kernelrelease)
        kind, prefix = ("livepatch", "livepatch") if name.startswith("kernel") else ("kgraft", "kgraft-patch")
        module = f"/lib/modules/{kernelrelease}/{kind}/{prefix}-{edition.replace('.', '_')}.ko"
        issues = " ".join([*cves, *bugs])
        self.add_package(
            name,
            edition,
            files={module: "not a module\n"},
            headers="Requires: /bin/sh",
            post=post.format(kernelrelease=kernelrelease, module=module),
            changelog=f"- Live patch {edition}: {issues or 'initial'}",
        )
        if update and issues:
            self.add_update(f"SUSE-{name}-{edition.split('-')[0]}", {name: edition}, cves, bugs)

    def add_kernel(self, kernelrelease, cves=()):
        """Build the package of a kernel: two small files of it, and a changelog."""
        version, build, flavour = kernelrelease.split("-")
        self.add_package(
            f"kernel-{flavour}",
            f"{version}-{build}.1",
            files={f"/boot/System.map-{kernelrelease}": "0 T x\n", f"/boot/vmlinuz-{kernelrelease}": "no kernel\n"},
            headers="Provides: kernel\nProvides: multiversion(kernel)",
            changelog=f"- Fix {' '.join(cves) or 'nothing of note'}",
        )

    def add_update(self, name, packages, cves=(), bugs=(), status="stable", severity="important", reboot=False):
        """
        An update (SUSE calls it a patch) that brings ``{package: edition}``; ``bugs`` as ``bsc#1``. SUSE takes one back
        by the status ``retracted``. With ``reboot`` it says that it needs one.
        """
        self._published = False
        references = [f'<reference href="https://example.com" id="{cve}" title="{cve}" type="cve"/>' for cve in cves]
        for bug in bugs:
            references.append(
                f'<reference href="https://example.com" id="{bug.split("#")[-1]}" title="{bug}" type="bugzilla"/>'
            )
        listed, boot = [], "<reboot_suggested>True</reboot_suggested>" if reboot else ""
        for package, edition in packages.items():
            version, release = edition.split("-")
            listed.append(
                f'<package name="{package}" version="{version}" release="{release}" epoch="0" arch="{ARCH}" '
                f'src="{package}-{edition}.src.rpm"><filename>{package}-{edition}.{ARCH}.rpm</filename>{boot}</package>'
            )
        self.updates.append(
            f'<update from="maint@example.com" status="{status}" type="security" version="1"><id>{escape(name)}</id>'
            f"<title>Update of {escape(', '.join(packages))}</title><severity>{severity}</severity>"
            f'<release>SLE</release><issued date="1793000000"/><references>{"".join(references)}</references>'
            f"<description>x</description><pkglist><collection short={quoteattr(name)}><name>{escape(name)}</name>"
            f"{''.join(listed)}</collection></pkglist></update>"
        )

    def publish(self):
        """Write the metadata; without this, zypper sees what was there before."""
        shutil.rmtree(self.path / "repodata", ignore_errors=True)
        run("createrepo_c", "--quiet", "--no-database", self.path)
        if self.updates:
            self._add_metadata("updateinfo", f"<updates>{''.join(self.updates)}</updates>")
        if self.eulas:
            packages = []
            for path, (name, version, release, eula) in self.eulas.items():
                packages.append(
                    f'<package pkgid="{hashlib.sha256(path.read_bytes()).hexdigest()}" name="{name}" arch="{ARCH}">'
                    f'<version epoch="0" ver="{version}" rel="{release}"/><eula>{escape(eula)}</eula></package>'
                )
            self._add_metadata(
                "susedata",
                '<susedata xmlns="http://linux.duke.edu/metadata/susedata" packages="{}">{}</susedata>'.format(
                    len(packages), "".join(packages)
                ),
            )
        self._published = True

    def _add_metadata(self, kind, text):
        with tempfile.TemporaryDirectory(prefix="md") as place:
            file = pathlib.Path(place, f"{kind}.xml")
            file.write_text(f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n')
            run("modifyrepo_c", "--mdtype", kind, file, self.path / "repodata")

    @property
    def url(self):
        if not self._published:
            self.publish()
        return f"dir:{self.path}"

    def sign(self, root):
        """Sign the metadata with a new key, which the machine in ``root`` trusts."""
        assert self.url
        with tempfile.TemporaryDirectory(prefix="gpg") as home:
            gpg = ("gpg", "--homedir", home, "--batch", "--pinentry-mode", "loopback", "--passphrase", "")
            run(*gpg, "--quick-generate-key", "maint@example.com", "rsa2048", "sign")
            metadata = self.path / "repodata/repomd.xml"
            run(*gpg, "--armor", "--detach-sign", "--output", f"{metadata}.asc", metadata)
            pathlib.Path(f"{metadata}.key").write_text(run(*gpg, "--armor", "--export"))
            run("gpgconf", "--homedir", home, "--kill", "all")
        run("rpm", "--root", root, "--import", f"{metadata}.key")

    def break_signature(self):
        """Change the metadata after they were signed."""
        metadata = self.path / "repodata/repomd.xml"
        metadata.write_text(metadata.read_text() + "<!-- changed on the way -->\n")


@functools.cache
def _bare_machine():
    """The directory of a machine with a shell and nothing else, to copy from."""
    place = pathlib.Path(tempfile.mkdtemp(prefix="suse"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    repository = PackageRepository(place / "base")
    built = repository.add_package(
        "busybox-static",
        files={"/bin/busybox": pathlib.Path("/bin/busybox"), "/bin/sh": "->busybox"},
        headers="Provides: /bin/sh",
    )
    run("rpm", "--root", place / "root", "--install", built)
    return place


class SuseRoot:
    """
    A SUSE machine in a directory: a package database, repositories, zypper with ``--root``. Any files of a kernel that
    are in the directory stay. Leaving it as a context ends what it has started.
    """

    def __init__(self, root, *repositories):
        self.root = pathlib.Path(root)
        shutil.copytree(_bare_machine() / "root", self.root, symlinks=True, dirs_exist_ok=True)
        # a newer zypper would mount the machine's /proc over the root's while it installs, but where this is
        (self.root / "proc/self").mkdir(parents=True, exist_ok=True)
        self._ended = threading.Event()
        self._insmod = None
        for repository in repositories:
            self.enable(repository)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._ended.set()
        if self._insmod:
            self._insmod.join()

    def enable(self, repository, gpgcheck=False):
        """Let zypper use a ``PackageRepository``; it reads its metadata when it first needs them."""
        self.add_repository(repository.alias, repository.url, repository.name, gpgcheck)

    def add_repository(self, alias, url, name=None, gpgcheck=False, enabled=True, priority=99):
        place = self.root / "etc/zypp/repos.d" / f"{alias}.repo"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(
            f"[{alias}]\nname={name or alias}\nenabled={enabled:d}\nautorefresh=0\nbaseurl={url}\ntype=rpm-md\n"
            f"gpgcheck={gpgcheck:d}\npriority={priority}\n"
        )

    def add_unreachable_repository(self, alias="far"):
        """A server that nobody listens at; its address holds a token, as SUSE Manager's do."""
        self.add_repository(alias, "http://127.0.0.1:9/repo?token-that-nobody-may-see")

    def age(self, alias, seconds):
        """Let a repository's list be that old; returns when that was, as the modules say it."""
        index = self.root / "var/cache/zypp/raw" / alias / "repodata/repomd.xml"
        content = index.read_bytes()
        index.unlink()  # libzypp links it to the repository's own, which other tests use, too
        index.write_bytes(content)
        when = time.time() - seconds
        os.utime(index, (when, when))
        return datetime.datetime.fromtimestamp(when).strftime("%Y-%m-%d %H:%M")

    def kill(self, alias):
        """Let a repository go away: what was read of it stays, and it cannot be read again."""
        place = self.root / "etc/zypp/repos.d" / f"{alias}.repo"
        place.write_text(re.sub("^baseurl=.*", "baseurl=dir:/nonexistent", place.read_text(), flags=re.MULTILINE))

    def disable(self, alias):
        place = self.root / "etc/zypp/repos.d" / f"{alias}.repo"
        place.write_text(place.read_text().replace("enabled=1", "enabled=0"))

    def zypper(self, *arguments):
        """Run zypper as an administrator would; returns its output."""
        return run("zypper", "--non-interactive", "--root", self.root, *arguments)

    def editions(self, package):
        """What rpm says is installed of a package, as ``['2-2.1']``."""
        return run("rpm", "--root", self.root, "-qa", "--queryformat", "%{VERSION}-%{RELEASE}\n", package).split()

    @property
    def database(self):
        """rpm's, which is not where SUSE has it, for Debian's rpm is not for packages of the machine."""
        return self.root / run("rpm", "--eval", "%_dbpath").strip().lstrip("/")

    @contextlib.contextmanager
    def locked(self):
        """While a second zypper holds the lock: its shell, waiting for its next command. Yields its process id."""
        lock, said = self.root / "run/zypp.pid", self.root / "run/shell"
        command = ["zypper", "--root", str(self.root), "--no-refresh", "shell"]
        said.parent.mkdir(exist_ok=True)
        with open(said, "w") as out:
            shell = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=out, text=True)
        try:
            shell.stdin.write("search no-such-package\n")
            shell.stdin.flush()
            # it prompts a second time when it has read the repositories, which nobody else can at that moment
            until(lambda: lock.is_file() and lock.read_text().strip() == str(shell.pid))
            until(lambda: said.read_text().count("zypper>") == 2)
            yield shell.pid
        finally:
            shell.kill()
            shell.wait()
            shell.stdin.close()

    @contextlib.contextmanager
    def rpm_locked(self):
        """While a transaction of rpm's holds its lock, from a process of its own: locks are not seen by their owner."""
        path = self.database / ".rpm.lock"
        ready, started = os.pipe()
        holder = os.fork()
        if not holder:
            try:
                fcntl.lockf(os.open(path, os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)
                os.write(started, b"x")
                time.sleep(600)
            finally:
                os._exit(0)
        os.read(ready, 1)
        try:
            yield holder
        finally:
            os.kill(holder, 9)
            os.waitpid(holder, 0)
            os.close(ready)
            os.close(started)

    def insmod_with(self, environ):
        """Let the packages' scripts load modules with the ``insmod`` on PATH in ``environ``, such as a lab's."""
        talk = self.root / "run/insmod"
        talk.mkdir(parents=True, exist_ok=True)
        insmod = self.root / "sbin/insmod"
        insmod.parent.mkdir(exist_ok=True)
        insmod.write_text(INSMOD)
        insmod.chmod(0o755)
        tool = shutil.which("insmod", path=environ["PATH"])

        def serve():
            while not self._ended.wait(0.02):
                for request in talk.glob("*.request"):
                    module = self.root / request.read_text().strip().lstrip("/")
                    done = subprocess.run([tool, module], env=environ, stderr=subprocess.PIPE, text=True, check=False)
                    request.with_suffix(".stderr").write_text(done.stderr)
                    request.with_suffix(".answer").write_text(f"{done.returncode}\n")
                    request.unlink()
                    request.with_suffix(".answer").rename(request.with_suffix(".code"))

        self._insmod = threading.Thread(target=serve, daemon=True)
        self._insmod.start()

    def lifecycle(self, text, file="sle-live-patching.lifecycle", directory="var/lib"):
        """Write a file of the support windows: SUSE Linux Enterprise 12 has it in ``var/lib``, 15 in ``usr/share``."""
        place = self.root / directory / "lifecycle/data" / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


def until(condition, timeout=120):
    """Wait for a condition, with a deadline."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def standard_repository(path):
    """Build the repository of the table above; takes a second."""
    repository = PackageRepository(path)
    for kernelrelease, editions in (
        (KERNEL, {"1-8.5.1": "", "2-1.1": "2", "2-2.1": "2", "9-2.2": "2 9", "10-2.1": "2 9 10"}),
        (OTHER_KERNEL, {"1-1.1": "", "6-2.1": "2 6"}),
        (KERNEL_15, {"1-150400.9.3.1": "", "9-2.1": "9", "10-150400.2.1": "9 10"}),
    ):
        for edition, fixed in editions.items():
            numbers = [int(number) for number in fixed.split()]
            repository.add_live_patch(
                kernelrelease,
                edition,
                [f"CVE-2026-{number:04}" for number in numbers],
                [f"bsc#{1260000 + number}" for number in numbers],
                update=edition != "2-1.1",
            )
    repository.add_kernel(KERNEL, ["CVE-2025-0001"])
    repository.add_kernel(KERNEL_15, ["CVE-2025-0001"])
    repository.add_package("kgraft", "1.0-21.1")
    repository.add_package("kernel-livepatch-tools", "1.2-10.1")
    repository.add_package("sle-live-patching-release", "12-2.1", eula="A licence that nobody reads.\n")
    repository.publish()
    return repository
