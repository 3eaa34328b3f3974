"""
The page with each message of the states is about messages that there are.
"""

import ast
import re

import pytest

PAGE = "docs/when-it-does-not-finish.md"
SOURCES = ("_states/kgraft.py", "_states/_kgraft_*.py", "_modules/kgraft_pkg.py", "_modules/_kgraft_*.py")


def test_each_message_of_the_page_is_one_that_our_files_can_print(repo):
    table = (repo / PAGE).read_text("utf-8").partition("## Each message")[2]
    # adjacent literals are one message, and what stands in braces is somebody's name
    source = "".join(path.read_text("utf-8") for source in SOURCES for path in sorted(repo.glob(source)))
    source = re.sub(r'"\s*\n\s*f?"', "", source)
    messages = re.findall(r"^\| `(.+?)`", table, re.MULTILINE)
    assert len(messages) > 20

    for message in messages:
        fragments = [words.strip() for words in re.split(r"…|[,;:.(]|\b[N\d][\d.-]*\b|kgraft-patch-", message)]
        longest = max(fragments, key=len)
        assert longest and longest in source, (message, longest)


def _sentences(path):
    """What a file may say, names left out as ``…``: literals of four words and more that are no docstrings."""
    tree = ast.parse(path.read_text("utf-8"))
    scopes = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)]
    skipped = {id(scope.body[0].value) for scope in scopes if ast.get_docstring(scope)}
    texts = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped.update(map(id, node.values))
            texts.append(
                "".join(getattr(part, "value", "") if isinstance(part, ast.Constant) else "…" for part in node.values)
            )
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            texts.append(re.sub(r"\{.*?\}", "…", node.value))
    return [text for text in texts if len(text.split()) > 3]


@pytest.mark.parametrize("source", ["_states/kgraft.py", "_states/_kgraft_plan.py"])
def test_each_message_of_the_states_is_on_the_page(repo, source):
    page = " ".join((repo / PAGE).read_text("utf-8").split())
    sentences = [text for text in _sentences(repo / source) if "kgraft states need" not in text]
    assert len(sentences) > 3
    for sentence in sentences:
        longest = max((part.strip(" .,:;\n") for part in sentence.split("…")), key=len)
        assert " ".join(longest.split()) in page, sentence
