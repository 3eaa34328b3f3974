"""The manual: pages in MyST, a reference from the docstrings. Built by `make docs`; a warning is an error."""

import pathlib
import re
import sys
import types

REPO = pathlib.Path(__file__).resolve().parent.parent

# The names that pip gives the modules, on the files as they lie in the checkout.
sys.path.insert(0, str(REPO))
for kind in ("modules", "states", "beacons", "runners"):
    package = types.ModuleType(f"saltext.kgraft.{kind}")
    package.__path__ = [str(REPO / f"_{kind}")]
    sys.modules[package.__name__] = package

project = "saltext-kgraft"
version = release = re.search(
    r'^VERSION = "(.+)"$', (REPO / "_modules/kgraft.py").read_text("utf-8"), re.MULTILINE
).group(1)
author = "the saltext-kgraft contributors"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
# blocks in the docstrings hold YAML with Jinja, or console output
highlight_language = "none"
suppress_warnings = ["misc.highlighting_failure"]
copybutton_prompt_text = r"[#$] "
copybutton_prompt_is_regexp = True

exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"saltext-kgraft {release}"
# it would name nobody
html_show_copyright = False
