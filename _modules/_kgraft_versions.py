"""
A package's versions: as users write them, and in rpm's order.
"""

import functools
import re
import typing

from salt.exceptions import SaltInvocationError

if typing.TYPE_CHECKING:  # handed in
    from salt.modules.zypperpkg import version_cmp


def checked(version):
    """Return a version as text. YAML makes a number of 2 and of 2.1, and 2.10 has then become 2.1."""
    if version is None:
        return None
    if isinstance(version, int) and not isinstance(version, bool):
        version = str(version)
    if not isinstance(version, str) or not re.fullmatch(r"\d+(-[\w.]+)?", version):
        raise SaltInvocationError(f"version is {version!r}: quote it, as '2' or '2-2.1'")
    return version


def matches(version, wanted):
    return wanted in (None, version, version.split("-")[0])


def newest_first(versions):
    return sorted(versions, key=functools.cmp_to_key(version_cmp), reverse=True)
