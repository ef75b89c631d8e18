"""The data sets of the paper's zero-shot table: where they are on the Hub, and how they become pixels and prompts.

All are webdataset mirrors of CLIP_benchmark (`clip-benchmark/wds_*`): images and integer labels (`cls`) in shards, and
`classnames.txt` and `zeroshot_classification_templates.txt` (with `{c}` for the name) beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from torch.utils.data import Dataset

from fare_hf.data.columns import find_columns
from fare_hf.data.opening import explained, load_images
from fare_hf.data.pixel_datasets import PixelDataset
from fare_hf.files.folders import path_inside

__all__ = [
    "ZERO_SHOT_SETS",
    "NativePixels",
    "ZeroShotData",
    "ZeroShotSet",
    "is_zero_shot_set",
    "load_zero_shot_set",
    "other_size",
    "zero_shot_set",
]

CLASS_NAMES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"


@dataclass(frozen=True)
class ZeroShotSet:
    """One data set of the table.

    Attributes:
        name: as reports give it.
        repo: on the Hub.
        classes: how many there are.
        native: attacked at the images' own resolution, with the resize inside, as the paper's code does for these.
        samples: shuffled images that the paper takes.
        split, label_column: as the mirror names them; the image column is the only one with images.
    """

    name: str
    repo: str
    classes: int
    native: bool = False
    samples: int = 1000
    split: str = "test"
    label_column: str = "cls"


ZERO_SHOT_SETS: tuple[ZeroShotSet, ...] = (
    ZeroShotSet("CIFAR-10", "clip-benchmark/wds_vtab-cifar10", 10, native=True),
    ZeroShotSet("CIFAR-100", "clip-benchmark/wds_vtab-cifar100", 100, native=True),
    ZeroShotSet("STL-10", "clip-benchmark/wds_stl10", 10, native=True),
    ZeroShotSet("Cars", "clip-benchmark/wds_cars", 196),
    ZeroShotSet("Caltech-101", "clip-benchmark/wds_vtab-caltech101", 102),
    ZeroShotSet("Pets", "clip-benchmark/wds_vtab-pets", 37),
    ZeroShotSet("Flowers", "clip-benchmark/wds_vtab-flowers", 102),
    ZeroShotSet("DTD", "clip-benchmark/wds_vtab-dtd", 47),
    ZeroShotSet("EuroSAT", "clip-benchmark/wds_vtab-eurosat", 10),
    ZeroShotSet("FGVC-Aircraft", "clip-benchmark/wds_fgvc_aircraft", 100),
    ZeroShotSet("PCAM", "clip-benchmark/wds_vtab-pcam", 2),
    ZeroShotSet("ImageNet-R", "clip-benchmark/wds_imagenet-r", 200),
    ZeroShotSet("ImageNet-Sketch", "clip-benchmark/wds_imagenet_sketch", 1000),
    ZeroShotSet("ImageNet", "clip-benchmark/wds_imagenet1k", 1000, samples=5000),
)
"""The paper's 13 sets and ImageNet; others stand after them."""


@dataclass(frozen=True)
class ZeroShotData:
    """A data set ready for `evaluate_zero_shot`.

    Attributes:
        name: as reports give it.
        images: map-style, items of `{"pixel_values", "labels"}`.
        class_names: K names.
        templates: sentences with `{}` for the name.
        native: whether to pass `native=True`.
        skipped: corrupt images that were left out, each with its reason.
        groups: one number per sample for a cluster bootstrap, or None.
        own_names: what the data set itself calls its classes, whatever names were given; None where it does not.
    """

    name: str
    images: Any
    class_names: list[str]
    templates: list[str]
    native: bool
    skipped: list[str] = field(default_factory=list)
    groups: list[int] | None = None
    own_names: list[str] | None = None


def other_size(images: Any, encoder: Any) -> bool:
    """Whether images, a tensor or a data set, were made for another encoder: an attack then resizes them inside.

    Those of an encoder's own image processor never were, as that is checked.
    """
    first = images[0]
    pixels = first if isinstance(first, torch.Tensor) else first["pixel_values"]
    return pixels.shape[-1] != encoder.config.image_size


def zero_shot_set(name: str) -> ZeroShotSet:
    """The row of a name such as "CIFAR-10"; case, hyphens and underscores do not matter.

    Raises:
        ValueError: no such row.
    """
    for row in ZERO_SHOT_SETS:
        if _plain(row.name) == _plain(name):
            return row
    known = ", ".join(row.name for row in ZERO_SHOT_SETS)
    raise ValueError(f"there is no zero-shot set {name!r}: use one of {known}.")


def is_zero_shot_set(name: str) -> bool:
    """Whether a name is of a row of the table, as `zero_shot_set` reads it."""
    return any(_plain(row.name) == _plain(name) for row in ZERO_SHOT_SETS)


def load_zero_shot_set(
    row: ZeroShotSet | str,
    processor: Any,
    *,
    root: str | Path | None = None,
    samples: int | None = None,
    seed: int = 0,
    skip_corrupt: bool = False,
) -> ZeroShotData:
    """Read one data set of the table, from the Hub or from a folder with copies of the mirrors.

    Args:
        row: of `ZERO_SHOT_SETS`, or its name.
        processor: the encoder's image processor; native sets are not resized by it.
        root: folder with a sub-folder for each repository's own name (`wds_cars`); None asks the Hub.
        samples: images, shuffled; None takes the paper's number, or all where there are fewer.
        seed: of the shuffling.
        skip_corrupt: leave unreadable images out, named in `skipped`; otherwise the first one is an error. Reads all
            chosen images once more.

    Raises:
        ValueError: no such set, split, class name or template; an empty split; another number of classes; a template
            without a place for the name; a corrupt image.
    """
    row = zero_shot_set(row) if isinstance(row, str) else row
    place = row.repo if root is None else str(Path(root) / row.repo.split("/")[-1])
    if root is not None and not Path(place).is_dir():
        raise ValueError(
            f"{row.name}: there is no folder {place!r}: root must hold copies of the mirrors by their names."
        )
    class_names, templates = _class_names(place, row), _templates(place, row)
    dataset: Any = load_images(place, row.split, label_column=row.label_column)
    image_column, label_column = find_columns(dataset, None, row.label_column, row.name)
    wanted = row.samples if samples is None else samples
    if len(dataset) == 0 or wanted < 1:
        raise ValueError(f"{row.name}: {len(dataset)} images in the split {row.split!r}, {wanted} wanted: need one.")
    dataset = dataset.shuffle(seed=seed).select(range(min(wanted, len(dataset))))
    kind = NativePixels if row.native else PixelDataset
    pixels: Any = kind(dataset, processor, image_column, label_column)
    skipped: list[str] = []
    if skip_corrupt:
        readable, skipped = _readable(pixels)
        if not readable:
            raise ValueError(f"{row.name}: none of {len(pixels)} images is readable ({skipped[0]})")
        pixels = torch.utils.data.Subset(pixels, readable)
    return ZeroShotData(row.name, pixels, class_names, templates, row.native, skipped)


class NativePixels(Dataset):
    """`PixelDataset` without resizing: images at their own resolution, which must be the same for all.

    Args:
        dataset, image_column, label_column: as `PixelDataset`.
        processor: the encoder's image processor (only its rescaling is used).
    """

    def __init__(self, dataset: Any, processor: Any, image_column: str, label_column: str | None = None) -> None:
        self._images = PixelDataset(dataset, processor, image_column, label_column)
        self._images.processor = _as_it_is
        self._shape: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self._images[index]
        shape = tuple(sample["pixel_values"].shape)
        self._shape = self._shape or shape
        if shape != self._shape:
            raise ValueError(
                f"sample {index} is {shape[2]} x {shape[1]} pixels, others are {self._shape[2]} x {self._shape[1]}: "
                "attack this set at the encoder's resolution (native=False)."
            )
        return sample


def _as_it_is(images: Any, return_tensors: str) -> dict[str, Any]:
    """What an image processor would be that does nothing but divide by 255."""
    array = np.asarray(images.convert("RGB"))
    return {"pixel_values": torch.from_numpy(array.copy()).permute(2, 0, 1).float().div(255)[None]}


def _readable(pixels: Any) -> tuple[list[int], list[str]]:
    readable, skipped = [], []
    for index in range(len(pixels)):
        try:
            pixels[index]
        except ValueError as error:
            skipped.append(str(error))
        else:
            readable.append(index)
    return readable, skipped


def _class_names(place: str, row: ZeroShotSet) -> list[str]:
    names = _lines(place, CLASS_NAMES)
    if len(names) != row.classes:
        raise ValueError(f"{row.name}: {CLASS_NAMES} names {len(names)} classes, there are {row.classes}.")
    return names


def _templates(place: str, row: ZeroShotSet) -> list[str]:
    templates = [line.replace("{c}", "{}") for line in _lines(place, TEMPLATES)]
    bad: Sequence[str] = [template for template in templates if "{}" not in template]
    if bad or not templates:
        raise ValueError(f"{row.name}: {TEMPLATES} needs lines with {{c}} for the class name, not {bad!r}.")
    return templates


def _lines(place: str, name: str) -> list[str]:
    """Lines of a file in a folder or a data set repository."""
    folder = Path(place)
    path = path_inside(folder, name) if folder.is_dir() else _fetched(place, name)
    if not path.is_file():
        raise ValueError(f"{str(folder)!r} has no {name}: give a copy of the mirror with its text files.")
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _fetched(repo: str, name: str) -> Path:
    """A file of a data set repository."""
    try:
        return Path(hf_hub_download(repo, name, repo_type="dataset"))
    except OSError as error:
        raise explained(repo, error) from error


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
