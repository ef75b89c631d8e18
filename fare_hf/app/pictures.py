"""Pictures for the page: some of the lab's, and files of strangers, bounded before they are decoded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from fare_hf.data.decoding import FORMATS, MOST_PIXELS, UNREADABLE, to_rgb
from fare_hf.data.pixels import to_pil
from fare_hf.evaluation.vlm.captions import NamesConcept
from fare_hf.lab.drawings import all_concepts
from fare_hf.lab.measure import part

__all__ = ["LARGEST_FILE", "Picture", "lab_pictures", "read_upload"]

LARGEST_FILE = 10 * 2**20
"""Bytes of an upload."""


@dataclass(frozen=True)
class Picture:
    """What is attacked.

    Attributes:
        image: square, RGB.
        shows: the name of what is in it, where that is known; else "".
    """

    image: Image.Image
    shows: str = ""

    def named_in(self, answer: str) -> bool:
        """Whether an answer names what the picture shows; never where that is not known."""
        return bool(self.shows) and NamesConcept(all_concepts())(answer, self.shows)


def lab_pictures(count: int = 12) -> list[Picture]:
    """Some of the lab's main test set, spread evenly over it.

    Example:
        >>> [picture.shows for picture in lab_pictures(2)]
        ['ambulance', 'whale']
    """
    test = part("twemoji", count)
    names = [test.class_names[label] for label in test.labels.tolist()]
    return [Picture(image, name) for image, name in zip(to_pil(test.pixels), names, strict=True)]


def read_upload(path: str | Path, size: int) -> Picture:
    """A stranger's file as a square picture: its middle, resized.

    Args:
        path: of the file.
        size: pixels a side.

    Raises:
        ValueError: a file or a picture that is too large, or no picture; in one sentence.
    """
    path = Path(path)
    if (held := path.stat().st_size) > LARGEST_FILE:
        raise ValueError(
            f"{path.name} has {held:,} bytes, more than {LARGEST_FILE:,}: save it smaller, and upload it again."
        )
    try:
        with Image.open(path, formats=FORMATS) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise ValueError(f"it is {opened.width} x {opened.height} pixels, more than {MOST_PIXELS:,} in all")
            image = to_rgb(opened)
    except UNREADABLE as error:
        why = str(error).replace(str(path), path.name)  # where it lies here is nobody's business
        raise ValueError(f"{path.name} is no image that can be read ({why}): upload a PNG, JPEG or WebP.") from None
    return Picture(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))
