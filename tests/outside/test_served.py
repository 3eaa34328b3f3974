"""The page of the fleet as the example has a web server serve it: Debian's own nginx, as the user that it has."""

import base64
import getpass
import grp
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

import pytest

from tests.support.debian_programs import program

MAIN = """\
daemon off; pid {root}/pid; error_log stderr; {user}
events {{}}
http {{
    access_log off; default_type text/html;
    client_body_temp_path {root}/1; proxy_temp_path {root}/2; fastcgi_temp_path {root}/3;
    uwsgi_temp_path {root}/4; scgi_temp_path {root}/5;
    include {root}/kgraft.conf;
}}
"""


@pytest.fixture
def served(load):
    """A directory as the manual makes it, with a page in it that was written as the runner writes it."""
    # where the user of a web server comes to, unlike the directory of the tests
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        root = pathlib.Path(name)
        root.chmod(0o755)
        (root / "srv").mkdir()
        shutil.chown(root / "srv", group="www-data")
        (root / "srv").chmod(0o2750)
        load("_runners/_kgraft_fleet.py").write(str(root / "srv/fleet.html"), "<title>Live patching</title>")
        yield root


@pytest.fixture
def ask(served, repo):
    """Return ``ask(password)``: what the server answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    hashed = subprocess.run(["openssl", "passwd", "-apr1", "right"], capture_output=True, text=True, check=True).stdout
    (served / "htpasswd").write_text(f"ops:{hashed}")
    text = (repo / "examples/history/nginx.conf").read_text("utf-8")
    for there, here in (
        ("127.0.0.1:8089", f"127.0.0.1:{port}"),
        ("/etc/nginx/kgraft.htpasswd", str(served / "htpasswd")),
        ("/srv/kgraft", str(served / "srv")),
    ):
        assert there in text
        text = text.replace(there, here)
    (served / "kgraft.conf").write_text(text)
    user = "user www-data;" if getpass.getuser() == "root" else ""
    (served / "nginx.conf").write_text(MAIN.format(root=served, user=user))
    command = [program("usr/sbin/nginx", "nginx"), "-e", "stderr", "-p", served, "-c", served / "nginx.conf"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:

        def answer(password=None):
            request = urllib.request.Request(f"http://127.0.0.1:{port}/")
            if password:
                request.add_header("Authorization", "Basic " + base64.b64encode(f"ops:{password}".encode()).decode())
            return urllib.request.urlopen(request, timeout=10)

        end = time.monotonic() + 30
        while server.poll() is None and time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        assert server.poll() is None, server.stderr.read()
        yield answer
        server.terminate()


def test_the_page_is_served_to_whom_has_the_password_and_in_no_frame(ask, served):
    page = (served / "srv/fleet.html").stat()
    assert (grp.getgrgid(page.st_gid).gr_name, page.st_mode & 0o777) == ("www-data", 0o640)
    for wrong in (None, "wrong"):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            ask(wrong)
    with ask("right") as answer:
        assert answer.read() == b"<title>Live patching</title>"
        assert answer.headers["Content-Security-Policy"] == "frame-ancestors 'none'"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    os.chmod(served / "srv/fleet.html", 0o600)
    with pytest.raises(urllib.error.HTTPError, match="403"):
        ask("right")
