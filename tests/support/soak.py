"""How long a test goes on: ``make soak`` runs all the rounds that it names, ``make test`` a tenth of them or fewer."""

import os

SOAK = bool(os.environ.get("KGRAFT_SOAK"))


def rounds(number, otherwise=None):
    """The rounds to run now, of a test that names ``number``; mark it with ``@pytest.mark.soak``."""
    if SOAK:
        return number
    return number // 10 if otherwise is None else otherwise
