"""What is uploaded: square and upright in the end, bounded before it is decoded, refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from fare_hf.app.pictures import lab_pictures, read_upload


def test_an_upload_is_its_middle_upright_at_the_size_of_the_tower(tmp_path: Path) -> None:
    image = Image.new("RGB", (30, 90), "red")
    image.paste("blue", (0, 30, 30, 60))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "turned.png", exif=exif)
    picture = read_upload(tmp_path / "turned.png", 40)
    assert picture.image.size == (40, 40) and picture.shows == ""
    count, colour = max(picture.image.getcolors())
    assert colour == (0, 0, 255) and count > 1500  # the rest is at the seams


def test_what_is_no_picture_or_too_large_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no image")
    with pytest.raises(ValueError, match=r"^notes.png is no image that can be read \(.*'notes.png'\): upload a "):
        read_upload(tmp_path / "notes.png", 40)
    Image.new("1", (9000, 9000)).save(tmp_path / "wide.png")  # 81 million pixels in 11 kB
    with pytest.raises(ValueError, match="it is 9000 x 9000 pixels, more than 33,554,432 in all"):
        read_upload(tmp_path / "wide.png", 40)
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(2**34)  # 16 GB, of which nothing is stored
    with pytest.raises(ValueError, match="large.png has 17,179,869,184 bytes, more than 10,485,760"):
        read_upload(tmp_path / "large.png", 40)


def test_pictures_of_the_lab_are_named() -> None:
    pictures = lab_pictures(3)
    assert [picture.image.size for picture in pictures] == [(160, 160)] * 3
    assert pictures[0].named_in(f"a photo of a {pictures[0].shows}") and not pictures[0].named_in("a photo of a spoon")
