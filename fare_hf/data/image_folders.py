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
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets

from fare_hf.data.decoding import IMAGE_ENDINGS

__all__ = [
    "FolderListing",
    "has_configurations",
    "images_of",
    "list_folder",
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
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SHARDS = frozenset(".arrow .gz .h5 .hdf5 .lance .parquet .tar .tgz .vortex .zip".split())
TABLES = frozenset((*SHARDS, ".csv", ".json", ".jsonl"))
HIDDEN = (".", "__")
"""How names begin that are never read, as with `datasets`."""
CONFIGURED = re.compile(r"^configs:", re.MULTILINE)


@dataclass(frozen=True)
class FolderListing:
    """The regular files of a folder, and a count of what else lies there.

    Attributes:
        folder: that was listed.
        files: their paths, sorted, without hidden ones and those in hidden folders.
        others: kind -> how many entries of it were left out.
    """

    folder: Path
    files: list[Path] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    @cached_property
    def images(self) -> list[Path]:
        """Files that images are read from."""
        return [path for path in self.files if path.suffix.lower() in IMAGE_ENDINGS]

    @property
    def has_data(self) -> bool:
        """Whether any file may hold images."""
        return any(path.suffix.lower() in IMAGE_ENDINGS | TABLES for path in self.files)

    @property
    def is_of_images(self) -> bool:
        """Whether these are image files, and not shards with some pictures beside them."""
        shards = sum(path.suffix.lower() in SHARDS and path.name not in METADATA for path in self.files)
        return len(self.images) > shards

    @property
    def is_plain(self) -> bool:
        """Whether these are image files, and no table says which there are and what belongs to them."""
        return self.is_of_images and not any(path.name in METADATA for path in self.files)


def list_folder(folder: Path) -> FolderListing:
    """Lists a folder and those below it; links are followed, but for a link to a folder that was read already."""
    found = FolderListing(folder)
    seen: set[tuple[int, int]] = set()
    _is_new(folder, seen)
    for place, below, names in os.walk(folder, followlinks=True):
        shown = [Path(place, name) for name in sorted(below) if not name.startswith(HIDDEN)]
        read = [path.name for path in shown if _is_new(path, seen)]
        files = [Path(place, name) for name in names if not name.startswith(HIDDEN)]
        regular = [path for path in files if path.is_file()]
        found.files.extend(regular)
        found.others["hidden"] += len(below) - len(shown) + len(names) - len(files)
        found.others["folders linked twice"] += len(shown) - len(read)
        found.others["no regular files"] += len(files) - len(regular)
        below[:] = read
    found.files.sort(key=str)
    return found


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
    columns: dict[str, Any] = {"image": [{"bytes": None, "path": str(path)} for path in files]}
    features: dict[str, Any] = {"image": datasets.Image()}
    names = sorted({name for part in splits.values() for name in _classes(part)})
    if len(names) > 1 and all(_classes(splits[part.splitname]) for part in parts):
        number = {name: place for place, name in enumerate(names)}
        columns["label"] = [number[path.parent.name] for path in files]
        features["label"] = datasets.ClassLabel(names=names)
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


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
    """Whether the folder's card says itself which files are of which configuration and split."""
    card = folder / "README.md"
    return card.is_file() and bool(CONFIGURED.search(card.read_text(encoding="utf-8", errors="replace")))


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


def _is_new(path: Path, seen: set[tuple[int, int]]) -> bool:
    """Whether a folder is to be read: a link only once, so that links in a circle end."""
    try:
        status = path.stat()
    except OSError:
        return False
    key = (status.st_dev, status.st_ino)
    if path.is_symlink() and key in seen:
        return False
    seen.add(key)
    return True
