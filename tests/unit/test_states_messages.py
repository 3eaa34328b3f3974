"""
The page with each message of the states is about messages that there are.
"""

import re

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
