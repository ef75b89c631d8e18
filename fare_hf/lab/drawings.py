"""Reads the lab's parquet files: drawings of every style, and the two grey data sets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet
from datasets import Dataset
from datasets.table import InMemoryTable
from PIL import Image

from fare_hf.lab.scenes import IMAGE_SIZE

DATA = Path(__file__).parent / "data"
TRAIN_STYLES = ("noto", "noto-v1", "fluent-emoji", "fluent-emoji-flat", "emojione", "emojione-v1")
VALIDATION_STYLE = "fxemoji"
TEST_STYLES = ("twemoji", "openmoji")


@dataclass(frozen=True)
class Drawing:
    """One thing in one style.

    Attributes:
        image: RGBA, 128 x 128.
        concept: what a caption calls it.
        main: is it one of the zero-shot classes.
    """

    image: Image.Image
    concept: str
    main: bool


def read_parquet(name: str) -> Dataset:
    """One of the lab's parquet files, with its images decoded, read from the package and cached nowhere else."""
    table = InMemoryTable(pyarrow.parquet.read_table(DATA / f"{name}.parquet"))
    return Dataset(table, fingerprint=name)


@cache
def drawings(style: str) -> tuple[Drawing, ...]:
    """All drawings of one style, in the order of the file."""
    split = "train" if style in TRAIN_STYLES else "validation" if style == VALIDATION_STYLE else "test"
    rows = read_parquet(f"{split}-{style}")
    return tuple(Drawing(row["image"].convert("RGBA"), row["concept"], row["main"] == "1") for row in rows)


@cache
def main_concepts() -> tuple[str, ...]:
    """Words for the 168 main concepts, sorted: what the test styles hold."""
    return tuple(sorted(drawing.concept for drawing in drawings(TEST_STYLES[0])))


@cache
def all_concepts() -> tuple[str, ...]:
    """Words for everything that the training styles draw, sorted."""
    return tuple(sorted({drawing.concept for style in TRAIN_STYLES for drawing in drawings(style)}))


@cache
def grey_images(name: str, split: str) -> tuple[tuple[Image.Image, ...], tuple[str, ...]]:
    """`fashion` or `digits` as RGB images of 160 x 160 (bicubic from 28 and 8 pixels) and their class names."""
    rows = read_parquet(f"{split}-{name}")
    size = (IMAGE_SIZE, IMAGE_SIZE)
    images = tuple(image.convert("RGB").resize(size, Image.Resampling.BICUBIC) for image in rows["image"])
    return images, tuple(rows["concept"])


def stack_pixels(images: list[Image.Image]) -> np.ndarray:
    """RGB images as one uint8 array `(B, 3, H, W)`."""
    return np.stack([np.asarray(image).transpose(2, 0, 1) for image in images])
