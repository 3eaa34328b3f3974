"""
The Live Patching product is registered.

.. code-block:: yaml

    live patching is subscribed:
      kgraft_subscription.registered:
        - code_from: pillar:kgraft:code

The registration code is given by reference only, see
:py:mod:`kgraft_subscription <saltext.kgraft.modules.kgraft_subscription>`.
"""

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
    another code, call ``kgraft_subscription.register``.

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
        Seconds that SUSEConnect may take. Default: ``600``

    With ``test=True`` the reference is followed, so that a missing code shows
    in the dry run, but nothing is registered.

    .. code-block:: yaml

        live patching is subscribed:
          kgraft_subscription.registered:
            - code_from: /etc/kgraft.code
            - url: https://rmt.example.org
    """
    ret = {"name": name, "result": False, "changes": {}, "comment": ""}
    before = None
    try:
        before = __salt__["kgraft_subscription.status"](product)
        product = before["product"]
        if before["registered"]:
            return dict(ret, result=True, comment=f"{product} is already registered{_subscription(before)}")
        after = __salt__["kgraft_subscription.register"](
            code_from=code_from, product=product, url=url, timeout=timeout, test=__opts__["test"]
        )
        if __opts__["test"]:
            promised = {product: {"old": before["status"], "new": "Registered"}}
            return dict(ret, result=None, changes=promised, comment=f"{product} would be registered")
        ret.update(result=True, comment=f"{product} was registered{_subscription(after)}")
    except (CommandExecutionError, SaltInvocationError) as err:
        ret["comment"] = str(err)
        if before is None or __opts__["test"]:
            return ret
        try:
            # SUSEConnect may have failed half-way
            after = __salt__["kgraft_subscription.status"](product)
        except CommandExecutionError as again:
            ret["comment"] += f"\nWhat is true now could not be found out: {again}"
            return ret
    if after["status"] != before["status"]:
        ret["changes"] = {product: {"old": before["status"], "new": after["status"]}}
    return ret


def _subscription(status):
    if status["subscription_status"] in (None, "ACTIVE"):
        return ""
    return "; its subscription is {} (it ran until {})".format(status["subscription_status"], status["expires_at"])
