"""
The words for a version, such as ``latest``, ``'5'``, ``'5-2.1'`` and ``'>=5'``: which versions they mean.
"""

import collections
import re

from salt.exceptions import CommandExecutionError, SaltInvocationError

FORMS = "write latest, '5' (any release of 5), '5-2.1' (exactly), '>=5' (at least), or a map of kernels to these"

# number None: the newest there is; release (): any
Wanted = collections.namedtuple("Wanted", "text number release at_least")


def wanted(version, kernelrelease):
    if isinstance(version, dict):
        if kernelrelease not in version:
            raise CommandExecutionError(
                "version names no patch for this kernel, {}; it does for {}".format(
                    kernelrelease, ", ".join(sorted(map(str, version))) or "none"
                )
            )
        version = version[kernelrelease]
    if isinstance(version, float):
        raise SaltInvocationError(f"version is {version!r}, a number to YAML, which may have lost a 0; quote it")
    if isinstance(version, int) and not isinstance(version, bool):
        version = str(version)
    if version == "latest":
        return Wanted(version, None, (), True)
    match = re.match(r"(>=)?\s*(\d+)(?:-(\d+(?:\.\d+)*))?$", version) if isinstance(version, str) else None
    if not match:
        raise SaltInvocationError(f"version is {version!r}; {FORMS}")
    return Wanted(version, int(match.group(2)), _numbers(match.group(3) or ""), bool(match.group(1)))


def _numbers(text):
    return tuple(int(number) for number in re.findall(r"\d+", text))


def key(version):
    """Number and release as rpm orders them: 10 is newer than 9."""
    number, _, release = version.partition("-")
    return _numbers(number)[0], _numbers(release)


def is_met(wanted, version):
    if version is None:
        return False
    number, release = key(version)
    if wanted.at_least:
        return (number, release) >= (wanted.number, wanted.release)
    return number == wanted.number and (not wanted.release or release == wanted.release)


def is_newer(wanted, version):
    if version is None or wanted.at_least:
        return False
    number, release = key(version)
    return number > wanted.number or bool(wanted.release) and (number, release) > (wanted.number, wanted.release)
