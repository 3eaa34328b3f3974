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
this module causes. Two things are out of its hands. SUSEConnect takes the code
on its command line, where every user of the machine can see it while it runs.
And pillar belongs to Salt: the master caches each minion's pillar, and whoever
renders pillar (the master, or a minion without one) logs its files at the levels
``garbage`` and ``all``. Where that is too much, use a file or an SDB.

Machines whose channels come from SUSE Manager, Uyuni or a cloud provider have
no registration of this kind, and need none.

:platform: Linux
"""

import errno
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


def __virtual__():
    """
    On Linux; whether SUSEConnect is there is found out when it is needed, so
    that a state can install it first.
    """
    if not salt.utils.platform.is_linux():
        return (False, "kgraft_subscription works on Linux only")
    return __virtualname__


def status(product=None):
    """
    Whether the Live Patching product is registered, and until when.

    product
        ``<name>/<version>/<architecture>`` as SUSEConnect writes it. Default:
        the Live Patching product of this SUSE Linux Enterprise 12 or 15

    Returns a dictionary: ``product``; ``registered`` (bool); and what
    ``SUSEConnect --status`` says of it: ``status`` (``Registered``, ``Not
    Registered``, …), ``subscription_status`` (``ACTIVE``, ``EXPIRED``, …),
    ``starts_at``, ``expires_at``, ``name``, ``type``. Each of these is None
    where SUSEConnect does not say, and all are where the product is not
    installed, for it lists installed products only. The registration code is
    never among them.

    Raises ``CommandExecutionError`` if SUSEConnect is missing, fails or answers
    something else than JSON; ``SaltInvocationError`` if ``product`` is no such
    triplet.

    CLI Example:

    .. code-block:: bash

        salt '*' kgraft_subscription.status
        salt '*' kgraft_subscription.status product=sle-live-patching/12/x86_64
    """
    product = _product(product)
    # it asks the server for the activations of this system
    answer = _suseconnect("--status", timeout=120)
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
    ret = {"product": product, "registered": entry.get("status") == "Registered"}
    ret.update((key, entry.get(key)) for key in DETAILS)
    return ret


def register(code_from=None, product=None, url=None, timeout=600, test=False):
    """
    Register the Live Patching product, which adds its repositories and installs
    its release package. The system's base product must be registered before.

    A product that is registered already is registered anew, with the code that
    was given: so a new subscription replaces an expired one.

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

    timeout
        Seconds that SUSEConnect may take. Default: ``600``

    test
        ``True`` checks the arguments and looks for the code, but registers
        nothing. Default: ``False``

    Returns the product's status afterwards, as ``kgraft_subscription.status``
    does.

    Raises ``CommandExecutionError`` if the code cannot be found, SUSEConnect
    fails, or the product is not registered afterwards; ``SaltInvocationError``
    on a bad argument, without repeating a ``code_from`` that is no reference.

    .. warning::

        Other users of the machine can see the code in the list of processes
        while SUSEConnect runs.

    CLI Example:

    .. code-block:: bash

        salt 'db*' kgraft_subscription.register code_from=pillar:kgraft:code
        salt 'db*' kgraft_subscription.register code_from=/etc/kgraft.code url=https://rmt.example.org
        salt 'sap*' kgraft_subscription.register
    """
    product = _product(product)
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or timeout <= 0:
        raise SaltInvocationError(f"timeout is {timeout!r}; it must be a number of seconds above 0")
    if url is not None and not (isinstance(url, str) and re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", url)):
        raise SaltInvocationError(
            "url must be that of an SCC, RMT or SMT server, such as https://rmt.example.org, "
            "without user and password{}".format("" if "@" in str(url) else f"; it is {url!r}")
        )
    server = ["--url", url] if url else []
    code = None if code_from is None else _code(code_from)
    if test:
        return status(product)
    _suseconnect(*server, "--product", product, code=code, timeout=timeout)
    after = status(product)
    if not after["registered"]:
        found = after["status"] or "not among its products"
        raise CommandExecutionError(f"SUSEConnect reported success, but {product} is {found}")
    return after


def deregister(product=None):
    """
    Take the Live Patching registration back: the product's repositories and its
    release package go, and no further live patch arrives. Patches that are
    loaded stay so until the next boot. Where the product is not registered,
    nothing is done; the base product's registration is never touched.

    product
        ``<name>/<version>/<architecture>`` as SUSEConnect writes it. Default:
        the Live Patching product of this SUSE Linux Enterprise 12 or 15

    Returns the product's status afterwards, as ``kgraft_subscription.status``
    does.

    Raises ``CommandExecutionError`` if SUSEConnect fails, or the product is
    still registered afterwards; ``SaltInvocationError`` if ``product`` is no
    such triplet.

    CLI Example:

    .. code-block:: bash

        salt 'old*' kgraft_subscription.deregister
    """
    before = status(product)
    if not before["registered"]:
        return before
    # never without a product: that would deregister the whole system
    _suseconnect("--de-register", "--product", before["product"], timeout=600)
    after = status(before["product"])
    if after["registered"]:
        raise CommandExecutionError("SUSEConnect reported success, but {} is still registered".format(after["product"]))
    return after


def _product(product):
    if product is None:
        return _product_of_this_system()
    if not isinstance(product, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+){2}", product):
        raise SaltInvocationError(
            f"product is {product!r}; it must be <name>/<version>/<architecture>, such as sle-live-patching/12/x86_64"
        )
    return product


def _product_of_this_system():
    family, short, full = (__grains__.get(grain) for grain in ("os_family", "os", "osfullname"))
    release = str(__grains__.get("osrelease"))
    other = re.search("opensuse|leap|tumbleweed|micro", f"{short} {full}", re.IGNORECASE)
    if family != "Suse" or other or not re.fullmatch(r"1[25](\.\d+)?", release):
        raise CommandExecutionError(f"No Live Patching product is known for {full or short} {release}: give product")
    if release.startswith("15"):
        product, version = "sle-module-live-patching", release
    else:
        # one product served 12 to 12 SP2; from SP3 on each service pack has its own
        product, version = "sle-live-patching", "12" if release in ("12.0", "12.1", "12.2") else release
    return "{}/{}/{}".format(product, version, __grains__.get("cpuarch"))


def _code(code_from):
    """
    The code that a reference leads to. No message here repeats a value.
    """
    reference = code_from if isinstance(code_from, str) else ""
    if reference.startswith("pillar:") and reference != "pillar:":
        code = __salt__["pillar.get"](reference[len("pillar:") :], default=None, **UNMASKED)
    elif reference.startswith("sdb://"):
        code = _code_in_sdb(reference)
    elif re.match(r"(file:)?/", reference):
        code = _code_in_file(re.sub(r"^file:/*", "/", reference))
    else:
        raise SaltInvocationError(
            "code_from takes a reference to the registration code, not the code itself, and what was given is none "
            "(it is not repeated here, for it may be the code). Allowed are 'pillar:some:key', 'sdb://profile/key' "
            "and the absolute path of a file that only root can read."
        )
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


def _suseconnect(*arguments, timeout, code=None):
    """
    Run SUSEConnect and return what it printed, or raise what went wrong.
    """
    command = salt.utils.path.which("SUSEConnect")
    if not command:
        raise CommandExecutionError(
            "SUSEConnect was not found in {}: install suseconnect-ng (SUSEConnect on 12). A client of SUSE Manager "
            "or Uyuni needs no registration".format(os.environ.get("PATH"))
        )
    root = os.path.normpath(__opts__.get("kgraft.root") or "/")
    full = [command] + (["--root", root] if root.strip("/") else []) + list(arguments)
    if code:
        full += ["--regcode", code]
    failure = None
    try:
        # quiet, and no retcode in the log: Salt would log the command, and with it the code
        ran = __salt__["cmd.run_all"](
            full, python_shell=False, output_loglevel="quiet", ignore_retcode=True, timeout=timeout
        )
    except (SaltException, OSError) as err:
        failure = str(err)
    # outside of the except clause: an exception that is chained to ours could carry the code
    if failure is not None:
        raise CommandExecutionError(f"SUSEConnect could not be run: {_redact(failure, code=code)}")
    if not ran["retcode"]:
        return ran["stdout"]
    # Salt's own words for it, with exit code 1 and the command line
    if re.search(r" : Timed out after [\d.]+ seconds$", ran["stdout"]):
        raise CommandExecutionError(
            f"SUSEConnect did not end within {timeout} seconds and was stopped; look at its status before another try"
        )
    raise CommandExecutionError(
        "SUSEConnect failed: {} (exit {}). It said: {}".format(
            EXITS.get(ran["retcode"], "it passed on an exit code of zypper"),
            ran["retcode"],
            _redact(ran["stdout"], ran["stderr"], code=code) or "nothing",
        )
    )


def _redact(*texts, code=None):
    """
    The last words of a failed command on one line, without secrets.
    """
    text = re.sub(r'("regcode"\s*:\s*)"[^"]*"', r'\1"***"', "\n".join(texts))
    if code:
        text = re.sub(re.escape(code), "***", text, flags=re.IGNORECASE)
    # after the code is out: a cut could leave half of it
    return " ".join(" ".join(text.split("\n")[-10:]).split())[-600:]
