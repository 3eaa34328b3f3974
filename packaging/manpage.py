"""Print the reference as a manual page, from the docstrings: what docs/ref is made of, too. It needs Python alone."""

import ast
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
KINDS = {"modules": "Execution module", "states": "State", "beacons": "Beacon", "runners": "Runner"}


def quoted(text):
    """Text as it is, for a formatter to which a point or a quote at the beginning of a line is an order."""
    lines = text.replace("\\", "\\e").replace("-", "\\-").splitlines()
    return "\n".join(("\\&" if line.startswith((".", "'")) else "") + line for line in lines)


def verbatim(text):
    return f".nf\n{quoted(text)}\n.fi"


def page(version):
    title = f'.TH SALTEXT\\-KGRAFT 7 "" "saltext\\-kgraft {version}" "Live kernel patching for Salt"'
    yield title + "\n.SH NAME\nsaltext\\-kgraft \\- live kernel patching for Salt: the reference"
    for kind, what in KINDS.items():
        for path in sorted((ROOT / f"_{kind}").glob("[!_]*.py")):
            tree = ast.parse(path.read_text("utf-8"))
            yield f".SH {quoted(f'{what} {path.stem}'.upper())}\n{verbatim(ast.get_docstring(tree) or '')}"
            for node in tree.body:
                if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                    call = f"{path.stem}.{node.name}({ast.unparse(node.args)})"
                    yield f".SS {quoted(call)}\n{verbatim(ast.get_docstring(node) or '')}"


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")
    print("\n".join(page(sys.argv[1])))
