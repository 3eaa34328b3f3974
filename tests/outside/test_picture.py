"""The picture of README and manual can be made again."""

from lab import picture


def test_the_picture_is_made_by_our_script_and_has_the_size_of_the_one_that_is_shown(monkeypatch, tmp_path):
    shown = picture.PICTURE.read_bytes()
    monkeypatch.setattr(picture, "PICTURE", tmp_path / "page.png")
    picture.main()
    made = picture.PICTURE.read_bytes()
    size = slice(16, 24)  # width and height
    assert (made[:8], made[size]) == (shown[:8], shown[size])
    assert made[made.index(b"tEXt") :] == shown[shown.index(b"tEXt") :], "of one and the same page"
