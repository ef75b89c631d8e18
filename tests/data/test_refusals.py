"""Data that cannot be read, and the sentence that names the file, the column or the class."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from helpers.refusals import Refusal, table
from PIL import Image
from transformers import CLIPImageProcessor

from fare_hf.data.batches import collate_pixels
from fare_hf.data.class_names import prompt_names
from fare_hf.data.columns import check_labels, find_columns
from fare_hf.data.opening import explained, load_images
from fare_hf.data.pixel_datasets import PixelDataset
from fare_hf.data.pixels import Normalization, resize, to_pil, unnormalized

PICTURE = Image.new("RGB", (32, 32))
SAMPLE = {"pixel_values": torch.zeros(3, 4, 4), "index": 0, "labels": 1}
PIXELS = torch.full((2, 3, 8, 8), 0.5)
NUMBERS = sorted(str(number) for number in range(12))
WORDNET = ["n01440764", "n01443537"]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Two classes with an image each."""
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        PICTURE.save(tmp_path / "images" / name / "0.png")
    return str(tmp_path / "images")


@pytest.fixture
def texts(tmp_path: Path) -> str:
    """A folder that holds a text."""
    (tmp_path / "notes.txt").write_text("no picture here")
    return str(tmp_path)


def line(width: int, height: int) -> dict[str, Any]:
    """A thin picture as a file."""
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": "long.png"}


def first(rows: list[Any], processor: Any) -> Any:
    return PixelDataset(rows, processor)[0]


def two_image_columns() -> datasets.Dataset:
    rows = datasets.Dataset.from_dict({"a": [None], "b": [None]})
    return rows.cast(datasets.Features({"a": datasets.Image(), "b": datasets.Image()}))


def written(folder: Path) -> Path:
    """A file where a folder is wanted."""
    (folder / "photos.txt").write_text("no folder")
    return folder / "photos.txt"


def misspelt() -> None:
    """What `datasets` says of a name where no network is."""
    raise explained("fotos", ConnectionError("Couldn't reach 'fotos' on the Hub"))


def scaled(processor: CLIPImageProcessor, **changes: Any) -> Any:
    for name, value in changes.items():
        setattr(processor, name, value)
    return unnormalized(processor)


CLASS_NAMES = [
    Refusal(
        "one string of names",
        lambda: prompt_names(["x", "y", "z"], "abc"),
        ValueError,
        "class_names 'abc' is one string: give a list with a name for each class.",
    ),
    Refusal(
        "a name twice",
        lambda: prompt_names(None, ["a", "b", "a"]),
        ValueError,
        "class_names has 'a' twice: give each class a name of its own.",
    ),
    Refusal(
        "a name of another class",
        lambda: prompt_names(["a", "b"], ["b", "bird"]),
        ValueError,
        "class_names gives 'b' to the class 'a' … which has a class 'b'…a, b",
    ),
    Refusal(
        "too few names",
        lambda: prompt_names(["a", "b"], ["a"], "set"),
        ValueError,
        "class_names has 1 names, 'set' 2 classes; give one each.",
    ),
    Refusal(
        "numbers of WordNet",
        lambda: prompt_names(WORDNET, None),
        ValueError,
        "are WordNet's numbers, such as n01440764, …: give class_names with 2",
    ),
    Refusal(
        "numbers",
        lambda: prompt_names(NUMBERS, None, "set"),
        ValueError,
        "'set' are numbers, such as 0, …: give class_names with 12",
    ),
]
VALUES = [
    Refusal(
        f"no image: {name}",
        partial(lambda value, processor: first([{"image": value}], processor), value),
        ValueError,
        f"sample 0…is not a readable image: …{sentence}…; remove or replace it",
    )
    for name, value, sentence in [
        ("None", None, "there is none"),
        ("two pictures", [PICTURE, PICTURE], "a list of 2 Image is no image"),
        ("an empty list", [], "an empty list is no image"),
        ("a number", 7, "a value of type int is no image"),
        ("two channels", np.zeros((5, 5, 2), np.uint8), "shape (5, 5, 2) is no image"),
        (
            "floats above 1",
            np.full((4, 4, 3), 1.5),
            "values from 1.5 to 1.5, and not bytes or floats in [0, 1]; leave normalising out",
        ),
        ("NaN", np.full((4, 4, 3), np.nan), "values from nan to nan"),
        ("negative numbers", np.full((4, 4, 3), -1), "values from -1 to -1"),
        ("letters", np.full((4, 4), "a"), "an array of <U1 is no image"),
        ("a path that is not there", "no/such/file.png", "No such file"),
        ("bytes of something else", b"no image", "cannot identify image file"),
    ]
]
LONG = "sample 0 (long.png) is not a readable image: …become 1,003,520,000 when the short edge is resized"
SAMPLES = [
    Refusal("a wide line", lambda: first([{"image": line(20_000, 1)}], CLIPImageProcessor()), ValueError, LONG),
    Refusal("a high line", lambda: first([{"image": line(1, 20_000)}], CLIPImageProcessor()), ValueError, LONG),
    Refusal(
        "rows that are tuples",
        lambda processor: first([(PICTURE, 1)], processor),
        ValueError,
        "sample 0 is a tuple; give rows as mappings, such as {'image': picture}.",
    ),
    Refusal(
        "another image column",
        lambda processor: first([{"picture": PICTURE, "target": 2}], processor),
        ValueError,
        "sample 0 has no 'image', only picture, target; give image_column.",
    ),
    Refusal(
        "labels in one sample of two",
        lambda: collate_pixels([SAMPLE, {"pixel_values": torch.zeros(3, 4, 4), "index": 1}]),
        ValueError,
        "'labels' is in 1 of 2 samples; give it in all or in none.",
    ),
    Refusal(
        "images of two sizes",
        lambda: collate_pixels([SAMPLE, {**SAMPLE, "pixel_values": torch.zeros(3, 4, 5)}]),
        ValueError,
        "pixel_values have the shapes [(3, 4, 4), (3, 4, 5)]; use a processor that crops to one size.",
    ),
]
LABELS = [
    Refusal(
        "labels that are words",
        lambda: check_labels(datasets.Dataset.from_dict({"kind": ["cat", "dog"]}), "kind", name="pets"),
        ValueError,
        "sample 0 of 'pets' has kind='cat', no whole number; put the images into a folder a class, or make it one, "
        "such as by dataset.class_encode_column('kind').",
    ),
    Refusal(
        "labels that are fractions",
        lambda: check_labels(datasets.Dataset.from_dict({"kind": [1.0, 0.5]}), "kind"),
        ValueError,
        "sample 1 of 'the data set' has kind=0.5, no whole number",
    ),
    Refusal(
        "a missing label",
        lambda: check_labels(datasets.Dataset.from_dict({"kind": [1, -1]}), "kind"),
        ValueError,
        "sample 1 of 'the data set' has no label (kind=-1); leave such images out.",
    ),
]
OPENING = [
    Refusal("a file", lambda tmp_path: load_images(str(written(tmp_path))), ValueError, "is a file; give the folder"),
    Refusal(
        "a misspelt folder",
        misspelt,
        ValueError,
        "there is no folder 'fotos' here, and on the Hub it could not be read: …; check the name and the connection.",
    ),
    Refusal("an empty folder", lambda tmp_path: load_images(str(tmp_path)), ValueError, "has no images"),
    Refusal("a folder of texts", lambda texts: load_images(texts), ValueError, "has no images, only text"),
    Refusal("a split that is not there", lambda folder: load_images(folder, "test"), ValueError, "no split 'test'"),
    Refusal(
        "a column of images that is not there",
        lambda folder: load_images(folder, image_column="picture"),
        ValueError,
        "image_column='picture' is not in …its columns are image, label",
    ),
    Refusal(
        "a column of labels that is not there",
        lambda folder: load_images(folder, label_column="target"),
        ValueError,
        "label_column='target' is not in",
    ),
    Refusal(
        "a name that is nowhere",
        lambda tmp_path: load_images(str(tmp_path / "nowhere")),
        ValueError,
        "neither a folder here nor found on the Hub",
    ),
    Refusal(
        "two columns of images", lambda: find_columns(two_image_columns()), ValueError, "image columns a, b; name one"
    ),
]
PIXEL_TENSORS = [
    Refusal("a mean shorter than the std", lambda: Normalization((0.5,), (0.5, 0.5)), ValueError, "differ in length"),
    Refusal(
        "a std of 0", lambda: Normalization((0.5,), (0.0,)), ValueError, "pass finite numbers, and every std above 0."
    ),
    Refusal("no processor", lambda: Normalization.from_processor(object()), ValueError, "no image_mean"),
    Refusal(
        "pixels in [-1, 1]",
        lambda processor: scaled(processor, rescale_factor=1 / 127.5),
        ValueError,
        "set it to 1/255, so that pixels are in [0, 1].",
    ),
    Refusal("pixels as bytes", lambda processor: scaled(processor, do_rescale=False), ValueError, "do_rescale off"),
    Refusal("a size of 0", lambda: resize(PIXELS, 0), ValueError, "size 0 is not positive"),
    Refusal("pictures of one channel", lambda: to_pil(PIXELS[:, :1]), ValueError, "pixels have 1 channels"),
    Refusal("pictures above 1", lambda: to_pil(PIXELS * 3), ValueError, "pixels spans [1.5, 1.5], outside [0, 1]"),
]


@table(*CLASS_NAMES, *VALUES, *SAMPLES, *LABELS, *OPENING, *PIXEL_TENSORS)
def test_what_cannot_be_read_is_refused_in_a_sentence(row: Refusal, request: pytest.FixtureRequest) -> None:
    row.check(request)
