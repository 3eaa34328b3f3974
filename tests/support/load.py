"""Our files as fresh modules. Whatever starts many processes imports this, and no pytest."""

import functools
import pathlib
import types

REPO = pathlib.Path(__file__).resolve().parent.parent.parent


@functools.cache
def _compiled(path, mtime):
    return compile(pathlib.Path(path).read_bytes(), path, "exec", dont_inherit=True)


def load_file(path, **given):
    """Execute one of our files as a fresh module, with what Salt's loader would put into it; into a room, nothing."""
    path = REPO / path
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    if not path.name.startswith("_"):
        vars(module).update(
            {
                "__opts__": {"id": "minion", "test": False, "kgraft.root": "/"},
                "__salt__": {},
                "__context__": {},
                "__grains__": {"kernel": "Linux"},
                "__pillar__": {},
            }
        )
    vars(module).update(given)
    exec(_compiled(str(path), path.stat().st_mtime_ns), vars(module))
    return module
