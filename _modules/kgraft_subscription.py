"""
The subscription that live patches come with: SUSE's Live Patching product,
registered by SUSEConnect at the SUSE Customer Center (SCC) or at a local
RMT or SMT server.

A registration code is a secret. No function here takes one: ``code_from`` says
where it lies, and it is read only when it is needed.

=====================  =====================================================
``pillar:some:key``    a key of this minion's pillar
``sdb://profile/key``  an SDB URI, resolved on the minion
``/etc/kgraft.code``   a file on the minion that only root can read;
                       ``file:/etc/kgraft.code`` says the same
=====================  =====================================================

The code appears in no log at any level, no return, event or cache file that
this module causes. Two things are out of its hands. SUSEConnect before
suseconnect-ng 1.14 takes the code on its command line only, where every user of
the machine can see it while it runs; a newer one reads it from standard input,
where nobody else does. And pillar belongs to Salt: the master caches each
minion's pillar, and whoever renders pillar (the master, or a minion without one)
logs its files at the levels ``garbage`` and ``all``. Where that is too much, use
a file or an SDB.

Machines whose channels come from SUSE Manager, Uyuni or a cloud provider have
no registration of this kind, and need none. SUSE Linux Enterprise 16 and SUSE
Linux Micro 6 include live patching: there is no product to register.

:platform: Linux
"""

import errno
import importlib.util
import json
import os
import re
import stat

import salt.utils.path
import salt.utils.platform
from salt.exceptions import CommandExecutionError, SaltException, SaltInvocationError

try:
    import salt.utils.secret

    # since Salt 3008 pillar.get answers with asterisks where nobody asks for more
    UNMASKED = {"unmask": True}
except ImportError:
    UNMASKED = {}

__virtualname__ = "kgraft_subscription"

# of a line of `SUSEConnect --status`, what is not a secret
DETAILS = ("status", "subscription_status", "starts_at", "expires_at", "name", "type")

# SUSEConnect.8 names 0 to 67, its source the others; below 64, and above 100, it passes zypper's own
EXITS = {
    1: "it refused to work",
    4: "zypper could not do its part",
    5: "zypper lacks the privileges",
    6: "zypper has no repositories",
    7: "another zypper holds the lock; try again when it has ended",
    8: "zypper could not install or remove the product's release package",
    64: "the registration server refused the connection; check the url, the proxy and the network",
    65: "access was denied to a file or directory that it needs",
    66: "the registration server's answer is not JSON; is the url that of an SCC, RMT or SMT, or did a proxy answer?",
    67: "the registration server said no",
    68: "a file that it needs is missing or damaged",
    69: "this system is not registered; register its base product first",
    70: "the base product cannot be deregistered alone",
    71: "this system is not registered, so there is nothing to keep alive",
    104: "the product's release package is in no repository",
    106: "some repositories could not be refreshed",
    107: "a script of the product's release package failed",
}


# codes and passwords in what SUSEConnect says, as JSON or not: "Regcode":"x", regcode: x, token=x
SECRET = re.compile(
    r"""((?:reg(?:istration)?[-_ ]?code|token|password)\\*["']?\s*[:=]\s*\\*["']?)(?:[^\s,;&}\]"'\\]|\\u)+""",
    re.IGNORECASE,
)


def _room(name, **others):
    """Execute the private sibling ``_kgraft_<name>.py``, which gets ``others`` first (docs/architecture.md, Rooms)."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"_kgraft_{name}.py")
    spec = importlib.util.spec_from_file_location(f"{__name__}_{name}", path)
    room = importlib.util.module_from_spec(spec)
    vars(room).update(others)
    spec.loader.exec_module(room)
    return room


commands = _room("commands")


def __virtual__():
    """
    On Linux; whether SUSEConnect is there is found out when it is needed, so
    that a state can install it first.
    """
    if not salt.utils.platform.is_linux():
        return (False, "kgraft_subscription works on Linux only")
    return __virtualname__


def status(product=None, timeout=120):
    """
    Whether the Live Patching product is registered, and until when.

    product
        ``<name>/<version>/<architecture>`` as SUSEConnect writes it. Default:
        the Live Patching product of this SUSE Linux Enterprise 12 or 15

    timeout
        Seconds that SUSEConnect may take, one at least; then it is ended with
        all that it has started. Default: ``120``

    Returns a dictionary: ``product``; ``registered`` (bool); ``note``; and what
    ``SUSEConnect --status`` says of it: ``status`` (``Registered``, ``Not
    Registered``, …), ``subscription_status`` (``ACTIVE``, ``EXPIRED``, …),
    ``starts_at``, ``expires_at``, ``name``, ``type``. Each of these is None
    where SUSEConnect does not say, and all are where the product is not
    installed, for it lists installed products only. The registration code is
    never among them.

    On SUSE Linux Enterprise 16 and SUSE Linux Micro 6, which include live
    patching, ``product`` is None, ``registered`` False, and ``note`` says why in
    one sentence; elsewhere, and where a product is given, ``note`` is None.

    Raises ``CommandExecutionError`` if SUSEConnect is missing, fails, does not
    end in time or answers something else than JSON; ``SaltInvocationError`` on a
    bad argument.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft_subscription.status
        salt '*' kgraft_subscription.status product=sle-live-patching/12/x86_64
    """
    return _status(*_product(product), commands.deadline(timeout))


def _status(product, note, until, code=None):
    ret = {"product": product, "registered": False, "note": note, **dict.fromkeys(DETAILS)}
    if product is None:
        return ret
    # it asks the server for the activations of this system
    answer = _suseconnect(until, "--status", code=code)
    words = _error(answer)
    if words is not None:
        raise CommandExecutionError(f"SUSEConnect --status failed. It said: {_redact(words, code)}")
    try:
        # `null` is how SUSEConnect's Go version writes an empty list
        listed = json.loads(answer) or []
        found = [entry for entry in listed if "/".join(entry[k] for k in ("identifier", "version", "arch")) == product]
    except (ValueError, KeyError, TypeError):
        # neither quoted nor chained: what came instead of JSON may hold a code
        found = None
    if found is None:
        raise CommandExecutionError("SUSEConnect --status did not answer with a JSON list of products")
    entry = found[0] if found else {}
    ret.update((key, entry.get(key)) for key in DETAILS)
    return dict(ret, registered=ret["status"] == "Registered")


def register(code_from=None, product=None, url=None, renew=False, timeout=600, test=False):
    """
    Register the Live Patching product, which adds its repositories and installs
    its release package. The system's base product must be registered before.

    A product that is registered already stays as it is, whatever code it was
    registered with, and no code is read.

    code_from
        Where the registration code lies, never the code itself:
        ``pillar:some:key``, ``sdb://profile/key`` or the absolute path of a file
        that root owns and nobody else can read. Default: no code, which is
        enough for SLES for SAP Applications and for most RMT servers

    product
        ``<name>/<version>/<architecture>`` as SUSEConnect writes it. Default:
        the Live Patching product of this SUSE Linux Enterprise 12 or 15

    url
        The registration server, such as ``https://rmt.example.org``; SUSEConnect
        keeps it in ``/etc/SUSEConnect`` for all its later calls. Default: the
        one it uses already

    renew
        ``True`` registers a product that is registered already anew, with the
        code that is given: so a new subscription replaces an expired one.
        Default: ``False``

    timeout
        Seconds for all that SUSEConnect is asked and told, the looks before and
        after included. A SUSEConnect that is still at work then is ended with
        all that it has started; the product may be registered all the same.
        Default: ``600``

    test
        ``True`` checks the arguments, looks at the product and reads the code
        where it would be needed, but registers nothing. Default: ``False``

    Returns the product's status afterwards, as ``kgraft_subscription.status``
    does, with two more keys: ``changed``, whether the product was registered by
    this call, or with ``test`` whether it would be; and ``before``, the
    product's ``status`` before the call. Where live patching is included in the
    system ``changed`` is False, and ``note`` says why.

    Raises ``CommandExecutionError`` if the code cannot be found, SUSEConnect
    fails, or the product is not registered afterwards, with
    ``info={'before': …}``, the whole status before, if SUSEConnect may have
    changed something; ``SaltInvocationError`` on a bad argument, without
    repeating a ``code_from`` that is no reference.

    .. warning::

        Other users of the machine can see the code in the list of processes
        while a SUSEConnect before suseconnect-ng 1.14 runs.

    CLI Example:

    .. code-block:: bash

        salt 'db*' kgraft_subscription.register code_from=pillar:kgraft:code
        salt 'db*' kgraft_subscription.register code_from=/etc/kgraft.code url=https://rmt.example.org
        salt 'db*' kgraft_subscription.register code_from=pillar:kgraft:code renew=True
        salt 'sap*' kgraft_subscription.register
    """
    until = commands.deadline(timeout)
    for flag, value in (("renew", renew), ("test", test)):
        if not isinstance(value, bool):
            raise SaltInvocationError(f"{flag} is {value!r}; it must be True or False")
    if url is not None and not (isinstance(url, str) and re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", url)):
        raise SaltInvocationError(
            "url must be that of an SCC, RMT or SMT server, such as https://rmt.example.org, "
            "without user and password{}".format("" if re.search("[@?#%=]", str(url)) else f"; it is {url!r}")
        )
    if code_from is not None:
        _check_reference(code_from)
    product, note = _product(product)
    before = _status(product, note, until)
    ret = dict(before, before=before["status"], changed=product is not None and (renew or not before["registered"]))
    if not ret["changed"]:
        return ret
    code = None if code_from is None else _code(code_from)
    if test:
        return ret
    try:
        arguments = (["--url", url] if url else []) + ["--product", product]
        if code is None:
            _suseconnect(until, *arguments)
        elif _reads_standard_input(until):
            _suseconnect(until, *arguments, "--regcode", "-", code=code, stdin=f"{code}\n")
        else:
            _suseconnect(until, *arguments, "--regcode", code, code=code)
        after = _status(product, note, until, code)
        if not after["registered"]:
            found = after["status"] or "not among its products"
            raise CommandExecutionError(f"SUSEConnect reported success, but {product} is {found}")
    except CommandExecutionError as err:
        # set here, for Salt's constructor would write it into the message
        err.info = {"before": before}
        raise
    return dict(ret, **after)


def _reads_standard_input(until):
    """
    Return whether SUSEConnect takes ``--regcode -`` for "read it from standard input".

    It was documented on 2024-11-28, two weeks after suseconnect-ng 1.13: 1.14 is the first that has it for certain. An
    older one would take "-" for the code. Asking is safe: each prints its version, a number, before it reads its
    configuration or calls a server. An answer without a number counts as old: others can see the code, but it works.
    """
    version = re.search(r"(\d+)\.(\d+)", _suseconnect(until, "--version"))
    return version is not None and (int(version.group(1)), int(version.group(2))) >= (1, 14)


def deregister(product=None, timeout=600):
    """
    Take the Live Patching registration back: the product's repositories and its
    release package go, and no further live patch arrives. Patches that are
    loaded stay so until the next boot. Where the product is not registered,
    nothing is done; the base product's registration is never touched.

    product
        ``<name>/<version>/<architecture>`` as SUSEConnect writes it. Default:
        the Live Patching product of this SUSE Linux Enterprise 12 or 15

    timeout
        Seconds for all that SUSEConnect is asked and told, as with
        ``kgraft_subscription.register``. Default: ``600``

    Returns the product's status afterwards, as ``kgraft_subscription.status``
    does.

    Raises ``CommandExecutionError`` if SUSEConnect fails, or the product is
    still registered afterwards; ``SaltInvocationError`` on a bad argument.

    CLI Example:

    .. code-block:: bash

        salt 'old*' kgraft_subscription.deregister
    """
    until = commands.deadline(timeout)
    product, note = _product(product)
    before = _status(product, note, until)
    if not before["registered"]:
        return before
    # never without a product: that would deregister the whole system
    _suseconnect(until, "--de-register", "--product", product)
    after = _status(product, note, until)
    if after["registered"]:
        raise CommandExecutionError(f"SUSEConnect reported success, but {product} is still registered")
    return after


def _product(product):
    """
    Return the product, or None and a sentence where there is none to register.
    """
    if product is None:
        return _product_of_this_system()
    if not isinstance(product, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+){2}", product):
        raise SaltInvocationError(
            f"product is {product!r}; it must be <name>/<version>/<architecture>, such as sle-live-patching/12/x86_64"
        )
    return product, None


def _product_of_this_system():
    family, short, full = (__grains__.get(grain) for grain in ("os_family", "os", "osfullname"))
    release = str(__grains__.get("osrelease"))
    suse = family == "Suse" and not re.search("opensuse|leap|tumbleweed", f"{short} {full}", re.IGNORECASE)
    micro = re.search("micro", f"{short} {full}", re.IGNORECASE)
    # SL Micro 6.2 says SLES 16.0 in its os-release, and Salt 3006 repeats it
    if suse and re.fullmatch(r"6(\.\d+)?" if micro else r"16(\.\d+)?", release):
        return None, f"Live patching is included in {full or short} {release}: there is no product to register."
    if not suse or micro or not re.fullmatch(r"1[25](\.\d+)?", release):
        raise CommandExecutionError(f"No Live Patching product is known for {full or short} {release}: give product")
    if release.startswith("15"):
        product, version = "sle-module-live-patching", release
    else:
        # one product served 12 to 12 SP2; from SP3 on each service pack has its own
        product, version = "sle-live-patching", "12" if release in ("12.0", "12.1", "12.2") else release
    return "{}/{}/{}".format(product, version, __grains__.get("cpuarch")), None


def _check_reference(code_from):
    if not isinstance(code_from, str) or not re.match(r"pillar:.|sdb://|(file:)?/", code_from):
        raise SaltInvocationError(
            "code_from takes a reference to the registration code, not the code itself, and what was given is none "
            "(it is not repeated here, for it may be the code). Allowed are 'pillar:some:key', 'sdb://profile/key' "
            "and the absolute path of a file that only root can read."
        )


def _code(code_from):
    """
    The code that a reference leads to. No message here repeats a value.
    """
    if code_from.startswith("pillar:"):
        code = __salt__["pillar.get"](code_from[len("pillar:") :], default=None, **UNMASKED)
    elif code_from.startswith("sdb://"):
        code = _code_in_sdb(code_from)
    else:
        code = _code_in_file(re.sub(r"^file:/*", "/", code_from))
    if code is None or code == "":
        raise CommandExecutionError(f"There is no registration code in {code_from}")
    if not isinstance(code, str):
        raise CommandExecutionError(
            f"What {code_from} holds is no text; if it is the registration code, quote it in its source, "
            "for YAML takes digits for a number"
        )
    code = code.strip()
    # SUSEConnect takes a leading @ or - for a file and for standard input
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+=-]*", code):
        raise CommandExecutionError(
            f"What {code_from} holds is no registration code: one word of letters, digits and . _ + = - is one"
        )
    return code


def _code_in_sdb(uri):
    try:
        return __salt__["sdb.get"](uri, strict=True)
    except (SaltException, OSError, LookupError, ValueError) as err:
        kind = type(err).__name__
    # the driver's words may hold what it read, so they are neither quoted nor chained
    raise CommandExecutionError(f"{uri} could not be resolved ({kind}); is its profile in the minion's configuration?")


def _code_in_file(path):
    # a link is refused, for who may write it could lead to any secret of root's; a FIFO must not block
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except OSError as err:
        reason = "it is a symbolic link; name the file itself" if err.errno == errno.ELOOP else err.strerror
        raise CommandExecutionError(f"code_from: {path} cannot be used: {reason}") from err
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            reason = "it is no regular file"
        elif found.st_uid != 0:
            reason = "root does not own it"
        elif found.st_mode & 0o077:
            reason = "others than root can reach it; make its mode 0600"
        else:
            return os.read(descriptor, 4096).decode("ascii", "replace")
    finally:
        os.close(descriptor)
    raise CommandExecutionError(f"code_from: {path} cannot be used: {reason}")


def _suseconnect(until, *arguments, stdin="", code=None):
    """
    Run SUSEConnect and return what it printed, or raise what went wrong, without the code.
    """
    command = salt.utils.path.which("SUSEConnect")
    if not command:
        raise CommandExecutionError(
            "SUSEConnect was not found in {}: install suseconnect-ng (SUSEConnect on 12). A client of SUSE Manager "
            "or Uyuni needs no registration".format(os.environ.get("PATH"))
        )
    root = os.path.normpath(__opts__.get("kgraft.root") or "/")
    root = ["--root", root] if root.strip("/") else []
    ran = commands.run([command, *root, *arguments], until, stdin=stdin)
    retcode = ran["retcode"]
    if not retcode:
        return ran["stdout"]
    meaning = EXITS.get(retcode, "it passed on an exit code of zypper" if retcode > 0 else "a signal ended it")
    words = _error(ran["stdout"])
    said = _redact("{stdout}\n{stderr}".format(**ran) if words is None else words, code)
    raise CommandExecutionError(f"SUSEConnect failed: {meaning} (exit {retcode}). It said: {said or 'nothing'}")


def _error(answer):
    """
    Return SUSE's words where the answer is ``{"Error": "…"}``, as from suseconnect-ng 1.24 on; None where it is not.
    """
    try:
        answer = json.loads(answer)
    except ValueError:
        return None
    words = answer.get("Error") if isinstance(answer, dict) else None
    return words if isinstance(words, str) else None


def _redact(text, code=None):
    """
    The last words of a failed command on one line, without secrets.
    """
    if code:
        # each character as it is, or as URLs (%2B, %252b) and JSON (\u002b) write it
        forms = (rf"(?:{re.escape(one)}|%(?:25)*{ord(one):02x}|\\u{ord(one):04x})" for one in code)
        text = re.sub("".join(forms), "***", text, flags=re.IGNORECASE)
    text = SECRET.sub(r"\1***", text)
    # an address can hold a password or, behind its question mark, a code or a token
    text = re.sub(r"(://[^\s?'\"\]]*)\?[^\s'\"\]]+", r"\1?***", re.sub(r"(?<=://)[^/@\s]+@", "", text))
    # after the code is out: a cut could leave half of it
    return " ".join(" ".join(text.split("\n")[-10:]).split())[-600:]
