"""The picture of the page in README and manual is one of the page as it is now."""

import re

from lab import picture


def part(png, kind):
    """What is in a part of a PNG."""
    at = png.index(kind)
    return png[at + 4 : at + 4 + int.from_bytes(png[at - 4 : at], "big")]


def test_the_picture_shows_the_page_as_it_is(tmp_path):
    label, _, digest = part(picture.PICTURE.read_bytes(), b"tEXt").partition(b"\0")
    assert label == b"page"
    assert digest.decode() == picture.digest(picture.write(tmp_path)), "run make picture, and look at it"


def test_it_shows_what_the_page_is_for(tmp_path):
    text = picture.write(tmp_path).read_text("utf-8")
    shown = re.findall(r'<tr data-class="([^"]*)"', text)
    assert {"no answer", "stuck", "unpatched", "in transition", "unavailable", "excepted", "settled"} == set(shown)
    assert shown[0] == "no answer" and shown[-1] == "settled"
    for words in (
        "NFS 4 keeps this thread parked",
        "▲ stuck, 3 h 9 min so far",
        "user, falcon-sensor.service: A program of eBPF",
    ):
        assert words in text


def test_the_label_of_a_png_is_a_part_as_the_format_has_it():
    png = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\0IEND\xaeB`\x82"
    labelled = picture.labelled(png, "abc")
    assert labelled.endswith(png[8:])
    assert part(labelled, b"tEXt") == b"page\0abc"
