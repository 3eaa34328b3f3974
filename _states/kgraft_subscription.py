"""
The Live Patching product is registered.

.. code-block:: yaml

    live patching is subscribed:
      kgraft_subscription.registered:
        - code_from: pillar:kgraft:code

The registration code is given by reference only, see
:py:mod:`kgraft_subscription <saltext.kgraft.modules.kgraft_subscription>`.
"""

import time

from salt.exceptions import CommandExecutionError, SaltInvocationError

__virtualname__ = "kgraft_subscription"


def __virtual__():
    if "kgraft_subscription.status" in __salt__:
        return __virtualname__
    return (False, "the execution module kgraft_subscription is not loaded: it works on Linux only")


def registered(name, code_from=None, product=None, url=None, timeout=600):
    """
    The Live Patching product is registered at SCC or at an RMT or SMT server.

    A product that is registered already stays as it is, whatever code it was
    registered with; an expired subscription is told in the comment. To give it
    another code, call ``kgraft_subscription.register`` with ``renew=True``.

    On SUSE Linux Enterprise 16 and SUSE Linux Micro 6, which include live
    patching, there is nothing to do, and the comment says so.

    name
        A free label

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
        keeps it for all its later calls. Default: the one it uses already

    timeout
        Seconds for all that SUSEConnect is asked and told; what is still at work
        then is ended. Default: ``600``

    With ``test=True`` the reference is followed where the code would be needed,
    so that a missing one shows in the dry run, but nothing is registered.

    .. code-block:: yaml

        live patching is subscribed:
          kgraft_subscription.registered:
            - code_from: /etc/kgraft.code
            - url: https://rmt.example.org
    """
    ret = {"name": name, "result": False, "changes": {}, "comment": ""}
    began = time.monotonic()
    try:
        found = __salt__["kgraft_subscription.register"](
            code_from=code_from, product=product, url=url, timeout=timeout, test=__opts__["test"]
        )
    except (CommandExecutionError, SaltInvocationError) as err:
        ret["comment"] = str(err)
        before = (getattr(err, "info", None) or {}).get("before")
        return _halfway(ret, before, began + timeout) if before else ret
    product = found["product"]
    if found["note"]:
        return dict(ret, result=True, comment=found["note"])
    if not found["changed"]:
        return dict(ret, result=True, comment=f"{product} is already registered{_subscription(found)}")
    if __opts__["test"]:
        return dict(
            ret,
            result=None,
            changes={product: {"old": found["before"], "new": "Registered"}},
            comment=f"{product} would be registered",
        )
    return dict(
        ret,
        result=True,
        changes={product: {"old": found["before"], "new": found["status"]}},
        comment=f"{product} was registered{_subscription(found)}",
    )


def _halfway(ret, before, until):
    """SUSEConnect may have done a part of its work: compare what is true now with the look before."""
    product = before["product"]
    try:
        after = __salt__["kgraft_subscription.status"](product, timeout=max(0, until - time.monotonic()))
    except CommandExecutionError as again:
        return dict(ret, comment="{comment}\nWhat is true now could not be found out: {}".format(again, **ret))
    if after["status"] == before["status"]:
        return ret
    return dict(ret, changes={product: {"old": before["status"], "new": after["status"]}})


def _subscription(status):
    if status["subscription_status"] in (None, "ACTIVE"):
        return ""
    return "; its subscription is {} (it ran until {})".format(status["subscription_status"], status["expires_at"])
