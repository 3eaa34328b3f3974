"""Tells Salt's loader where the modules of an installed saltext-kgraft lie."""

import pathlib

KINDS = ("modules", "states", "beacons", "runners")


def module_dirs():
    """Return ``{kind: [directory]}`` for Salt's entry point ``salt.loader``."""
    here = pathlib.Path(__file__).resolve().parent
    # Installed: beside this file. An editable installation: the checkout's own folders.
    candidates = {kind: (here / kind, here.parent.parent / ("_" + kind)) for kind in KINDS}
    return {kind: [str(path) for path in paths if path.is_dir()][:1] for kind, paths in candidates.items()}
