"""
A stand-in for SUSEConnect and for the server that it registers at.

    with Server() as server:
        server.codes["1234-abcd"] = subscription()
        path = install(tmp_path / "bin")     # a directory for PATH, with SUSEConnect in it
        prepare(root, server)                # a SLES 12 with its base product installed and registered

The command keeps to the options, outputs and exit codes of SUSEConnect.8 and of SUSE/connect-ng, as far as they are
here: --status, --product, --regcode, --url, --root, --de-register, --version. From version 1.14 on it reads a code from
standard input or a file (-r - or -r @file), from 1.24 on --status prints {"Error": …} where the server refuses. The
server speaks the part of SCC's API behind them.
Where the real one differs: it asks zypper for the installed products and lets zypper install the release package, here
both are files in <root>/etc/products.d; it learns the repositories from a service's index, here from the server's
answer; and its /etc/SUSEConnect is that of the running system even with --root.
"""

import argparse
import base64
import contextlib
import http.server
import json
import os
import pathlib
import secrets
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ET

BASE = "SLES/12/x86_64"
LIVE_PATCHING = "sle-live-patching/12/x86_64"
BASE_CODE = "base-code-of-the-tests"
VERSION = "1.21.0"

TRIPLET_HELP = (
    "Please provide the product identifier in this format: <internal name>/<version>/<architecture>. You can find "
    "these values by calling: 'SUSEConnect --list-extensions'"
)


# ---- for tests


def subscription(**fields):
    """What a registration code stands for."""
    return {
        "name": "SUSE Linux Enterprise Live Patching",
        "type": "full",
        "status": "ACTIVE",
        "starts_at": "2026-01-01 00:00:00 UTC",
        "expires_at": "2028-12-31 00:00:00 UTC",
        **fields,
    }


def encoded(code):
    """A code as it may stand in a URL."""
    return "".join(f"%{ord(one):02X}" for one in code)


def install(directory, version=VERSION):
    """Put SUSEConnect into a directory and return the directory, for PATH."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    command = directory / "SUSEConnect"
    command.write_text(
        f'#!/bin/sh\nSTAND_IN_VERSION={version} exec "{sys.executable}" -I "{__file__}" "$@"\n', encoding="utf-8"
    )
    command.chmod(0o755)
    return directory


def prepare(root, server, base=BASE):
    """A system whose base product is installed, and registered at a server."""
    system = System(root)
    system.add_product(base)
    (system.products / "baseproduct").symlink_to(f"{base.split('/')[0]}.prod")
    main(["--root", str(root), "--url", server.url, "--regcode", BASE_CODE], out=lambda line: None)


class Server:
    """
    A registration server on loopback.

    ``codes``        {registration code: subscription(...)}; one that is not here is refused, the refusal repeats it
    ``products``     {triplet: {"free": bool, "base": triplet or None, "repository": its URL or None}}
    ``activations``  {login: {triplet: code}}, what is registered
    ``requests``     [(method, path)], what was asked
    ``garbled``      True: answers are not JSON
    ``silent``       True: no answer until ``close``
    ``during``       called at each request, before it is answered: SUSEConnect waits as long
    """

    def __init__(self):
        self.codes = {BASE_CODE: subscription(name="SUSE Linux Enterprise Server")}
        self.products = {
            BASE: {"free": False, "base": None, "repository": None},
            LIVE_PATCHING: {"free": False, "base": BASE, "repository": None},
        }
        self.activations = {}
        self.requests = []
        self.garbled = self.silent = False
        self.during = lambda: None
        self._closing = threading.Event()
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"scc": self}))
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        # polls for the shutdown, so its interval is what a test waits for at its end
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self):
        """No longer there: the next connection is refused."""
        self._closing.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def answer(self, method, path, authorization, body):
        """The status and the JSON of an answer."""
        self.requests.append((method, path))
        self.during()
        if self.silent:
            self._closing.wait(60)
        scheme, _, credentials = authorization.partition(" ")
        if (method, path) == ("POST", "/connect/subscriptions/systems"):
            code = credentials.partition("=")[2]
            if scheme == "Token" and code and code not in self.codes:
                return self._unknown(code)
            login = f"SCC_{secrets.token_hex(16)}"
            self.activations[login] = {}
            return 201, {"login": login, "password": secrets.token_hex(8)}
        login = base64.b64decode(credentials).decode().partition(":")[0] if scheme == "Basic" else ""
        if login not in self.activations:
            return self._refusal(401, "Invalid system credentials")
        active = self.activations[login]
        if (method, path) == ("GET", "/connect/systems/activations"):
            return 200, [self._activation(triplet, code) for triplet, code in active.items()]
        if path != "/connect/systems/products":
            return self._refusal(404, "Not found")
        triplet = "/".join(body[key] for key in ("identifier", "version", "arch"))
        if triplet not in self.products:
            return self._refusal(422, f"No product found on SCC for: {triplet}")
        if method == "DELETE":
            if active.pop(triplet, None) is None:
                return self._refusal(422, f"{triplet} is not activated on this system.")
            return 200, self._service(triplet)
        product, code = self.products[triplet], body.get("token")
        if product["base"] not in (None, *active):
            return self._refusal(
                422,
                f"The product you are attempting to activate ({triplet}) requires one of these products to be "
                f"activated first: {product['base']}",
            )
        if not product["free"]:
            if not code:
                return self._refusal(422, f"Please provide a Registration Code for {triplet}.")
            if code not in self.codes:
                return self._unknown(code)
            if self.codes[code]["status"] == "EXPIRED":
                return self._refusal(422, "The subscription with the provided Registration Code is expired")
        active[triplet] = code
        return 201, self._service(triplet)

    def _unknown(self, code):
        # the real one keeps it to itself; here it is said, in all ways, for a client must not pass it on
        again = f'{{"Regcode":"{code}"}} {self.url}/{encoded(code)}?regcode={code}'
        return self._refusal(401, f"Unknown Registration Code {code}. {again}")

    def _refusal(self, status, message):
        return status, {"type": "error", "error": message, "localized_error": message}

    def _service(self, triplet):
        name = triplet.replace("/", "_")
        repository = self.products[triplet]["repository"]
        return {"id": 1, "name": name, "url": f"{self.url}/service", "repository": repository}

    def _activation(self, triplet, code):
        identifier, version, arch = triplet.split("/")
        product = {"identifier": identifier, "version": version, "arch": arch, "free": self.products[triplet]["free"]}
        bought = {} if product["free"] else {"regcode": code, **self.codes[code]}
        return {**bought, "service": {"product": product}}


class _Handler(http.server.BaseHTTPRequestHandler):
    scc = None

    def _respond(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}")
        status, answer = self.scc.answer(self.command, self.path, self.headers.get("Authorization", ""), body)
        text = b"<html>This is a proxy</html>" if self.scc.garbled else json.dumps(answer).encode()
        # whoever asked may have been killed meanwhile
        with contextlib.suppress(ConnectionError):
            self.send_response(200 if self.scc.garbled else status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    do_GET = do_POST = do_DELETE = _respond

    def log_message(self, *args):
        pass


# ---- the command


class Failure(Exception):
    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class System:
    """The files of a system that SUSEConnect and zypper write."""

    def __init__(self, root):
        self.root = pathlib.Path(root)
        self.products = self.root / "etc/products.d"
        self.config = self.root / "etc/SUSEConnect"
        self.credentials = self.root / "etc/zypp/credentials.d/SCCcredentials"

    def add_product(self, triplet):
        name, version, arch = triplet.split("/")
        product = ET.Element("product")
        for tag, text in (("vendor", "SUSE"), ("name", name), ("version", version), ("arch", arch)):
            ET.SubElement(product, tag).text = text
        self.products.mkdir(parents=True, exist_ok=True)
        (self.products / f"{name}.prod").write_bytes(ET.tostring(product))

    def installed(self):
        files = sorted(path for path in self.products.glob("*.prod") if not path.is_symlink())
        return [triplet_of(path) for path in files]

    def base(self):
        return triplet_of(self.products / "baseproduct")

    def login(self):
        """(user name, password), or None."""
        if not self.credentials.exists():
            return None
        lines = self.credentials.read_text(encoding="utf-8").split()
        return tuple(line.partition("=")[2] for line in lines)

    def zypper_lock(self):
        """zypper's own lock, which it looks at before any work."""
        try:
            pid = int((self.root / "run/zypp.pid").read_text(encoding="ascii"))
            os.kill(pid, 0)
        except (FileNotFoundError, ValueError, ProcessLookupError):
            return
        raise Failure(
            7,
            f"Error: zypper returned 7 with 'System management is locked by the application with pid {pid} (zypper).\n"
            "Close this application before trying again.'",
        )


def triplet_of(path):
    product = ET.parse(path).getroot()
    return "/".join(product.findtext(tag) for tag in ("name", "version", "arch"))


class Api:
    def __init__(self, url, system):
        self.url = url
        self.system = system

    def ask(self, method, path, authorization, body=None):
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": authorization, "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request) as response:
                text = response.read()
        except urllib.error.HTTPError as err:
            with err:
                message = json.load(err)["localized_error"]
            raise Failure(67, f"Error: Registration server returned '{message}' ({err.code})") from err
        except urllib.error.URLError as err:
            code = 64 if isinstance(err.reason, ConnectionRefusedError) else 1
            raise Failure(code, f"Error: {method} {self.url}{path}: {err.reason}") from err
        try:
            return json.loads(text)
        except ValueError as err:
            raise Failure(66, f"Error: Cannot parse response from server\n{err}") from err

    def announce(self, code):
        answer = self.ask("POST", "/connect/subscriptions/systems", f"Token token={code or ''}", {})
        self.system.credentials.parent.mkdir(parents=True, exist_ok=True)
        self.system.credentials.write_text(
            f"username={answer['login']}\npassword={answer['password']}\n", encoding="utf-8"
        )
        self.system.credentials.chmod(0o600)

    def as_system(self, method, path, body=None):
        credentials = base64.b64encode(":".join(self.system.login()).encode()).decode()
        return self.ask(method, path, f"Basic {credentials}", body)


def status(system, api):
    activations = {}
    if system.login():
        for activation in api.as_system("GET", "/connect/systems/activations"):
            product = activation.pop("service")["product"]
            activations["/".join(product[key] for key in ("identifier", "version", "arch"))] = activation
    listed = []
    for triplet in system.installed():
        identifier, version, arch = triplet.split("/")
        entry = {"identifier": identifier, "version": version, "arch": arch, "status": "Not Registered"}
        if triplet in activations:
            activation = activations[triplet]
            entry["status"] = "Registered"
            if activation.get("regcode"):
                for key in ("name", "regcode", "starts_at", "expires_at", "type"):
                    entry[key] = activation[key]
                entry["subscription_status"] = activation["status"]
        listed.append(entry)
    # Go's JSON of a slice that nothing was appended to
    return json.dumps(listed or None, separators=(",", ":"))


def register(system, api, triplet, code, out):
    if (system.root / "etc/sysconfig/rhn/systemid").exists():
        raise Failure(1, "This system is managed by SUSE Manager / Uyuni, do not use SUSEconnect.")
    out(f"Registering system to {api.url}")
    if not system.login():
        api.announce(code)
    wanted = triplet or system.base()
    identifier, version, arch = wanted.split("/")
    out(f"\nActivating {identifier} {version} {arch} ...\n")
    body = {"identifier": identifier, "version": version, "arch": arch, "token": code}
    service = api.as_system("POST", "/connect/systems/products", body)
    out("-> Adding service to system ...")
    system.zypper_lock()
    zypp = system.root / "etc/zypp"
    (zypp / "services.d").mkdir(parents=True, exist_ok=True)
    (zypp / "services.d" / f"{service['name']}.service").write_text(
        f"[{service['name']}]\nname={service['name']}\nenabled=1\nautorefresh=1\nurl = {service['url']}\ntype = ris\n",
        encoding="utf-8",
    )
    if service["repository"]:
        (zypp / "repos.d").mkdir(parents=True, exist_ok=True)
        (zypp / "repos.d" / f"{service['name']}.repo").write_text(
            f"[{service['name']}]\nname={service['name']}\nenabled=1\nautorefresh=1\n"
            f"baseurl={service['repository']}\ntype=rpm-md\ngpgcheck=0\n",
            encoding="utf-8",
        )
    if triplet:
        out("-> Installing release package ...")
        system.add_product(triplet)
    out("\nSuccessfully registered system")


def deregister(system, api, triplet, out):
    if not system.login():
        raise Failure(
            69,
            "Deregistration failed. Check if the system has been registered using the --status-text option or use the "
            "--regcode parameter to register it.",
        )
    if not triplet:
        raise Failure(1, "SUSEConnect error: the stand-in deregisters single products only")
    if triplet == system.base():
        raise Failure(70, "Can not deregister base product. Use SUSEConnect -d to deactivate the whole system.")
    identifier, version, arch = triplet.split("/")
    out(f"Deregistering system to {api.url}\n\nDeactivating {identifier} {version} {arch} ...\n")
    body = {"identifier": identifier, "version": version, "arch": arch}
    service = api.as_system("DELETE", "/connect/systems/products", body)
    system.zypper_lock()
    out("-> Removing service from system ...")
    for path in (f"services.d/{service['name']}.service", f"repos.d/{service['name']}.repo"):
        (system.root / "etc/zypp" / path).unlink(missing_ok=True)
    out("-> Removing release package ...")
    (system.products / f"{identifier}.prod").unlink(missing_ok=True)


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Failure(1, message)


def code_of(given, version):
    if version < (1, 14) or not given or not (given == "-" or given.startswith("@")):
        return given
    try:
        with contextlib.nullcontext(sys.stdin) if given == "-" else open(given[1:], encoding="utf-8") as source:
            code = source.readline().strip()
    except OSError as err:
        raise Failure(1, f"SUSEConnect error: failed to open token file '{given[1:]}': {err}") from err
    if not code:
        raise Failure(1, "SUSEConnect error: token cannot be empty after reading")
    return code


def main(argv, out=print):
    parser = Parser(prog="SUSEConnect", allow_abbrev=False)
    parser.add_argument("--product", "-p")
    parser.add_argument("--regcode", "-r")
    parser.add_argument("--url")
    parser.add_argument("--root", default="/")
    parser.add_argument("--de-register", "-d", action="store_true", dest="leave")
    parser.add_argument("--status", "-s", action="store_true")
    parser.add_argument("--version", action="store_true")
    options = parser.parse_args(argv)
    version = os.environ.get("STAND_IN_VERSION", VERSION)
    if options.version:
        out(version)
        return
    version = tuple(map(int, version.split(".")[:2]))
    if not os.path.isabs(options.root):
        raise Failure(1, "SUSEConnect error: the path specified in the --root option must be absolute.")
    if options.product and not all(options.product.split("/")[:3]) or (options.product or "//").count("/") != 2:
        raise Failure(1, TRIPLET_HELP)
    system = System(options.root)
    if options.url:
        if not urllib.parse.urlparse(options.url).netloc:
            raise Failure(1, f'SUSEConnect error: URL "{options.url}" not valid: missing scheme or host')
        url = options.url
    elif system.config.exists():
        url = system.config.read_text(encoding="utf-8").partition("url: ")[2].strip()
    else:
        raise Failure(1, "SUSEConnect error: the stand-in never goes to https://scc.suse.com")
    code = code_of(options.regcode, version)
    api = Api(url, system)
    if options.status:
        try:
            out(status(system, api))
        except Failure as failure:
            if failure.code != 67 or version < (1, 24):
                raise
            raise Failure(67, json.dumps({"Error": str(failure)})) from failure
    elif options.leave:
        deregister(system, api, options.product, out)
    else:
        register(system, api, options.product, code, out)
    if options.url:
        # --url implies --write-config
        system.config.parent.mkdir(parents=True, exist_ok=True)
        system.config.write_text(f"---\nurl: {options.url}\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Failure as failure:
        print(failure)
        sys.exit(failure.code)
