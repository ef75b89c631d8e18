"""Opens data sets: folders of images or shards, sets written by `save_to_disk`, and Hub repositories."""

from __future__ import annotations

import ast
import hashlib
import logging
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from huggingface_hub.errors import GatedRepoError

from fare_hf.data.columns import HuggingFaceDataset, class_names_of, find_columns
from fare_hf.data.decoding import IMAGE_ENDINGS
from fare_hf.data.folder_listing import FolderListing, found_once, list_folder
from fare_hf.data.image_folders import (
    has_configurations,
    images_of,
    passed_over,
    split_patterns,
    splits_of,
)
from fare_hf.data.tar_archives import ARCHIVE_ERRORS, check_archives
from fare_hf.files.documents import read_object
from fare_hf.files.folders import check_no_lab_name, is_missing_path

__all__ = [
    "DAMAGED",
    "check_folder",
    "explained",
    "is_image_folder",
    "load_images",
    "open_split",
    "whole_split",
]

logger = logging.getLogger(__name__)
CONFIGURATIONS = re.compile(r"(?:available configs: |Available: )(\[.*?\])")
KINDS = re.compile(r"changed from (array to string|string to array)")
DAMAGED = (*ARCHIVE_ERRORS, EOFError, zlib.error, pyarrow.ArrowInvalid, datasets.exceptions.DatasetGenerationError)
"""What readers of shards raise where one is cut off or is something else."""
NO_IMAGES = "the folder {!r} has no images; give a folder with image files."


def load_images(
    name: str,
    split: str = "train",
    *,
    streaming: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    config: str | None = None,
    report: Callable[[str], None] | None = None,
) -> HuggingFaceDataset:
    """Opens one split of an image data set.

    Args:
        name: a folder of images (in a folder a class, or flat), of parquet or of webdataset shards; a folder written
            by `save_to_disk`; or a Hub repository.
        split: which split.
        streaming: read on the fly instead of preparing the whole set first.
        image_column: the column with images; found when there is just one.
        label_column: the column with integer labels, checked when given.
        config: of a repository with several configurations.
        report: gets one line: how many images there are, in how many classes, and what of a folder is passed over, by
            kind; None logs it, as a warning where something is.

    Raises:
        ValueError: no such folder or repository, or one that is gated, needs a script or a configuration; no images
            in it, no such split, or no such column.
    """
    dataset, left = open_split(name, split, streaming=streaming, config=config)
    _, labels = find_columns(dataset, image_column, label_column, name)
    line = f"{name!r} ({split}): {_count(dataset, labels)}{left}"
    if report is not None:
        report(line)
    else:
        logger.log(logging.WARNING if "passed over" in left else logging.INFO, line)
    return dataset


def check_folder(name: str) -> None:
    """Refuses at a glance a folder without any image or data file, and a path that leads nowhere.

    Raises:
        ValueError: the folder holds none, or `name` is a path and there is nothing; tar archives of which `datasets`
            would leave images out without a word (see `check_archives`).
    """
    folder = Path(name).expanduser()
    if is_missing_path(name) or folder.is_file():
        fault = "is a file; give the folder that it is in" if folder.is_file() else "is no folder here; check the path"
        raise ValueError(f"dataset {name!r} {fault}.")
    if folder.is_dir() and not _looked_at(folder).has_data:
        raise ValueError(NO_IMAGES.format(name))


def is_image_folder(name: str) -> bool:
    """Whether a data set is a folder of image files, with nothing that says more about them."""
    folder = Path(name).expanduser()
    return folder.is_dir() and not has_configurations(folder) and list_folder(folder).is_plain


def whole_split(name: str, otherwise: str = "test") -> str:
    """The split to measure on where none is named: the only one of what lies here, `otherwise` of what has several."""
    folder = Path(name).expanduser()
    if (folder / "dataset_dict.json").is_file():
        splits = list(read_object(folder / "dataset_dict.json").get("splits", []))
    elif (folder / "state.json").is_file():
        splits = [_own_split(read_object(folder / "state.json").get("_split"))]
    elif folder.is_dir() and not has_configurations(folder):
        listing = list_folder(folder)
        splits = list(split_patterns(listing)) if listing.is_of_images else []
        if listing.has_data and not listing.is_of_images:
            splits = _splits_of_shards(listing.folder, name, otherwise)
    else:
        splits = []
    return splits[0] if len(splits) == 1 else otherwise


def open_split(
    name: str, split: str, *, streaming: bool = False, config: str | None = None
) -> tuple[HuggingFaceDataset, str]:
    """Opens a saved data set, a folder, or a Hub repository, whatever its columns.

    Args:
        name, split, streaming, config: as for `load_images`.

    Returns:
        The rows, and what is to be said of a folder's other splits and of the files that are passed over.

    Raises:
        ValueError: what cannot be opened, as for `load_images`.
    """
    check_no_lab_name(name)
    folder = Path(name).expanduser()
    with _explaining(name, split):
        if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
            if config is not None:
                raise ValueError(f"dataset_config={config!r}: {name!r} is a saved data set and has none.")
            return _saved_split(datasets.load_from_disk(str(folder)), name, split, streaming), ""
        if folder.is_file():
            raise ValueError(f"dataset {name!r} is a file; give the folder that it is in.")
        if folder.is_dir():
            return _open_folder(_looked_at(folder), name, split, streaming, config)
        return datasets.load_dataset(name, config, split=split, streaming=streaming), ""


@contextmanager
def _explaining(name: str, split: str) -> Iterator[None]:
    """Says what went wrong inside as one sentence."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, *DAMAGED) as error:
        told = explained(name, error, split)
        if told is error:
            raise
        raise told from error


def explained(name: str, error: Exception, split: str = "train") -> ValueError:
    """The error with which opening a data set failed, as one sentence that says what to do.

    Args:
        name: of the data set.
        error: what was raised; a ValueError that says enough is returned as it is.
        split: that was asked for.
    """
    said, what = _causes(error), f"dataset {name!r}"
    if isinstance(error, GatedRepoError) or "is a gated dataset on the Hub" in said:
        page = f"https://huggingface.co/datasets/{name}"
        return ValueError(f"{what} is gated: ask for access at {page} and log in with `hf auth login`.")
    if "scripts are no longer supported" in said:
        return ValueError(
            f"{what} has a loading script, and datasets {datasets.__version__} runs none; give a copy in parquet, or "
            "a folder of its images."
        )
    if listed := CONFIGURATIONS.search(said):
        names = ", ".join(map(str, ast.literal_eval(listed[1])))
        return ValueError(f"{what} has the configurations {names}; give one with --dataset_config.")
    if KINDS.search(said):
        return ValueError(
            f"{what} has a column with a text in some rows and a list in others ({said}): make all of them lists."
        )
    if isinstance(error, DAMAGED):
        return ValueError(f"{what} could not be read: {said}; replace the damaged file.")
    if isinstance(error, FileNotFoundError):
        if Path(name).expanduser().is_dir():
            return ValueError(NO_IMAGES.format(name))
        return ValueError(
            f"{what} is neither a folder here nor found on the Hub; check the name (a private one needs "
            "`hf auth login`)."
        )
    if isinstance(error, OSError):
        if not Path(name).expanduser().exists():
            what = f"there is no folder {name!r} here, and on the Hub it"
        return ValueError(f"{what} could not be read: {said}; check the name and the connection.")
    if isinstance(error, ValueError):
        unknown = re.search("Unknown split|Bad split", said)
        return ValueError(f"{what} has no split {split!r}; name one of its own: {error}") if unknown else error
    return ValueError(f"{what} could not be opened: {said}")


def _looked_at(folder: Path) -> FolderListing:
    """What lies in a folder; its archives are whole."""
    listing = list_folder(folder)
    archives = [path for path in listing.files if path.suffix.lower() == ".tar"]
    found_once(("archives", listing.folder), lambda: check_archives(archives))
    return listing


def _open_folder(
    listing: FolderListing, name: str, split: str, streaming: bool, config: str | None
) -> tuple[HuggingFaceDataset, str]:
    """Image files as they lie there; tables of metadata, shards and what a card says as `datasets` reads them."""
    own = config is not None or has_configurations(listing.folder)
    if not own and listing.is_plain:
        splits = splits_of(listing)
        images = images_of(splits, split)
        used = {path for files in splits.values() for path in files}
        others = ", ".join(f"{name} {len(files):,}" for name, files in splits.items())
        note = f"; splits: {others}" if len(splits) > 1 else ""
        return (images.to_iterable_dataset() if streaming else images), note + passed_over(listing, used)
    options: dict[str, Any] = {"path": str(listing.folder), "name": config}
    if not own and listing.is_of_images:
        options = {"path": "imagefolder", "data_files": split_patterns(listing)}
    builder = _builder(listing.folder, options, name, split)
    if streaming:
        dataset = builder.as_streaming_dataset(split=split)
    else:
        builder.download_and_prepare()  # by one process of a machine, as the others wait for its lock
        dataset = builder.as_dataset(split=split)
    files = builder.config.data_files or {}
    read = {Path(path) for paths in files.values() for path in paths}
    return dataset, passed_over(listing, read - _unlisted(dataset, read))


def _splits_of_shards(folder: Path, name: str, split: str) -> list[str]:
    """Of a folder of shards, by the names of their files, as `datasets` reads them."""
    builder = _builder(folder, {"path": str(folder), "name": None}, name, split)
    return list(builder.config.data_files or {})


def _builder(folder: Path, options: dict[str, Any], name: str, split: str) -> Any:
    """What `datasets` reads a folder with, and its list of the files; the first process's where paths are the same."""

    def listed() -> tuple[Path, Any]:
        with _explaining(name, split):
            builder = datasets.load_dataset_builder(**options)
            if has_configurations(folder):
                builder = datasets.load_dataset_builder(**options, cache_dir=_cache_of(builder))
            return folder, builder

    where, builder = found_once(("builder", folder, str(options)), listed)
    return builder if where == folder else listed()[1]


def _cache_of(builder: Any) -> str:
    """A folder of the cache for the files of a configuration as they are now.

    What it prepared of a folder with configurations `datasets` (5.2.0) knows by the folder's last name and by what its
    card says: a file that was changed, or another folder called so, would be read as what was there before.
    """
    files = builder.config.data_files or {}
    now = [(split, list(map(str, paths)), paths.origin_metadata) for split, paths in files.items()]
    return str(Path(datasets.config.HF_DATASETS_CACHE, hashlib.sha256(repr(now).encode()).hexdigest()[:16]))


def _own_split(split: Any) -> str:
    """What the only split of a saved data set is called: as it was opened, "train" where that is not known."""
    return str(split or "train").partition("[")[0]


def _saved_split(saved: Any, name: str, split: str, streaming: bool) -> HuggingFaceDataset:
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise ValueError(f"dataset {name!r} has no split {split!r}; its splits are {', '.join(saved)}.")
        saved = saved[split]
    elif split != (own := _own_split(saved.split)):
        raise ValueError(f"dataset {name!r} is one saved data set and has no split {split!r}; give {own!r}.")
    return saved.to_iterable_dataset() if streaming else saved


def _unlisted(dataset: HuggingFaceDataset, read: set[Path]) -> set[Path]:
    """The image files that a table of metadata does not list, where the length of the data set is known."""
    images = {path for path in read if path.suffix.lower() in IMAGE_ENDINGS}
    if not images or not isinstance(dataset, datasets.Dataset):
        return set()
    columns = [key for key, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    plain = dataset.select_columns(columns).cast(
        datasets.Features({key: datasets.Image(decode=False) for key in columns})
    )
    return images - {Path(row[key]["path"]) for row in plain for key in columns if row[key] and row[key]["path"]}


def _count(dataset: HuggingFaceDataset, label_column: str | None) -> str:
    images = f"{len(dataset):,} images" if isinstance(dataset, datasets.Dataset) else "a stream of images"
    names = class_names_of(dataset, label_column)
    return f"{images} in {len(names)} classes" if names else f"{images} without classes"


def _causes(error: BaseException) -> str:
    """What an error says, and what those say that led to it."""
    return str(error) if error.__cause__ is None else f"{error}: {_causes(error.__cause__)}"
