"""Folders of image files: what lies in them, which split and class each image is of, and what is passed over.

A folder is divided into splits where all its sub-folders with images have a split's name (`train/`, `validation/`,
...), or where only those hold class folders. Anything else is one split, "train", with every image in it: a folder
`test` beside `bus` is a class, and `validation_1.png` a name.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

from fare_hf.data.folder_listing import FolderListing

__all__ = [
    "has_configurations",
    "images_of",
    "only_splits",
    "passed_over",
    "split_patterns",
    "splits_of",
]

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Split -> names of its folder, as `datasets` has them."""
CONFIGURED = re.compile(r"^configs:", re.MULTILINE)
CARDS = ("README.md", ".huggingface.yaml")
"""Where `datasets` looks for that."""


def images_of(splits: dict[str, list[Path]], split: str) -> datasets.Dataset:
    """A split of a folder of image files: `image`, and `label` where there are class folders.

    Args:
        splits: of the folder, see `splits_of`.
        split: its name, perhaps with a slice as `datasets` writes it, such as "train[:10%]".

    Raises:
        ValueError: no such split.
    """
    name = _split_of(split) if split not in splits and split.isalpha() else split  # "val" is the validation split
    lengths = {name: len(files) for name, files in splits.items()}
    parts = datasets.ReadInstruction.from_spec(name if name in splits else split).to_absolute(lengths)
    files = [path for part in parts for path in splits[part.splitname][part.from_ : part.to]]
    columns: dict[str, Any] = {"image": [str(path) for path in files]}
    features: dict[str, Any] = {"image": datasets.Value("string")}
    names = sorted({name for part in splits.values() for name in _classes(part)})
    if len(names) > 1 and all(_classes(splits[part.splitname]) for part in parts):
        number = {name: place for place, name in enumerate(names)}
        columns["label"] = [number[path.parent.name] for path in files]
        features["label"] = datasets.ClassLabel(names=names)
    # Cast, not encoded, for which each file would be looked at.
    return datasets.Dataset.from_dict(columns, datasets.Features(features)).cast_column("image", datasets.Image())


def split_patterns(listing: FolderListing) -> dict[str, list[str]]:
    """Patterns of the files of each split, for `data_files` of `datasets`, which reads the tables of metadata."""
    return {
        split: [f"{glob.escape(str(folder))}/**" for folder in folders]
        for split, folders in _split_folders(listing).items()
    }


def splits_of(listing: FolderListing) -> dict[str, list[Path]]:
    """The images of each split."""
    folders, images = _split_folders(listing), listing.images
    if list(folders.values()) == [[listing.folder]]:
        return {"train": images}
    return {
        split: [path for path in images if any(folder in path.parents for folder in inside)]
        for split, inside in folders.items()
    }


def passed_over(listing: FolderListing, used: set[Path]) -> str:
    """What of a folder is in no split, by kind: "; passed over: 3 .txt, 1 .jpg"; empty where there is nothing."""
    left = Counter(path.suffix.lower() or "without ending" for path in listing.files if path not in used)
    kinds = [f"{count} {kind}" for kind, count in (*sorted(left.items()), *listing.others.items()) if count]
    return f"; passed over: {', '.join(kinds)}" if kinds else ""


def only_splits(names: Sequence[str]) -> bool:
    """Whether class names are the names of splits, which `datasets` makes of flat `train/` and `validation/`."""
    return bool(names) and all(_split_of(name) for name in names)


def has_configurations(folder: Path) -> bool:
    """Whether the folder says itself, in its card or beside it, which files are of which configuration and split."""
    cards = (folder / name for name in CARDS)
    texts = (card.read_text(encoding="utf-8", errors="replace") for card in cards if card.is_file())
    return any(CONFIGURED.search(text) for text in texts)


def _split_folders(listing: FolderListing) -> dict[str, list[Path]]:
    """The folders of each split; the folder itself is "train" where it is not divided."""
    images = listing.images
    root = _common(images, listing.folder)
    depths: dict[str, set[int]] = {}
    for path in images:
        inside = path.relative_to(root).parts
        depths.setdefault(inside[0] if len(inside) > 1 else "", set()).add(len(inside))
    named = sorted(name for name in depths if _split_of(name))
    others = {depth for name, found in depths.items() if name not in named for depth in found}
    if not named or (others and min(min(depths[name]) for name in named) <= max(others)):
        return {"train": [listing.folder]}
    splits: dict[str, list[Path]] = {}
    for name in named:
        splits.setdefault(_split_of(name), []).append(root / name)
    return splits


def _common(images: Sequence[Path], folder: Path) -> Path:
    """The folder where they part: `photos` of `photos/images/...`, and what holds it where that has a split's name."""
    if not images:
        return folder
    common = Path(os.path.commonpath([path.parent for path in images]))
    for place in (common, *common.parents):
        if place == folder:
            break
        if _split_of(place.name):
            return place.parent
    return common


def _classes(images: Sequence[Path]) -> set[str]:
    """Names of the folders of a split's images; none where depths differ, or where it is the split's own folder."""
    names = {path.parent.name for path in images}
    return names if len({len(path.parts) for path in images}) == 1 and not only_splits(sorted(names)) else set()


def _split_of(name: str) -> str:
    """The split that a folder's name such as "val", "Train" or "images-test_2" means; "" for others."""
    words = re.split(r"[-._ 0-9]+", name.lower())
    return next((split for split, meant in SPLITS.items() if any(word in meant for word in words)), "")
