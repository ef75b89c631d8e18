"""Where images come from: folders, saved data sets, shards and Hub repositories, opened and looked at."""

from __future__ import annotations

import ast
import logging
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import pyarrow
from huggingface_hub.errors import GatedRepoError
from torch.utils.data import IterableDataset

from fare_hf.data.archives import ARCHIVE_ERRORS, check_archives
from fare_hf.data.image_folders import (
    FolderListing,
    has_configurations,
    images_of,
    list_folder,
    only_splits,
    passed_over,
    split_patterns,
    splits_of,
)
from fare_hf.data.pictures import IMAGE_ENDINGS
from fare_hf.files.folders import is_missing_path

__all__ = [
    "DAMAGED",
    "check_folder",
    "check_labels",
    "class_names_of",
    "explained",
    "find_columns",
    "is_image_folder",
    "is_stream",
    "load_images",
    "open_split",
    "stored",
]

logger = logging.getLogger(__name__)
CONFIGURATIONS = re.compile(r"(?:available configs: |Available: )(\[.*?\])")
DAMAGED = (*ARCHIVE_ERRORS, EOFError, zlib.error, pyarrow.ArrowInvalid, datasets.exceptions.DatasetGenerationError)
"""What readers of shards raise where one is cut off or is something else."""
HuggingFaceDataset: TypeAlias = "datasets.Dataset | datasets.IterableDataset"


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
    if is_missing_path(name):
        raise ValueError(f"dataset {name!r} is no folder here; check the path.")
    if folder.is_file():
        raise ValueError(f"dataset {name!r} is a file; give the folder that it is in.")
    if folder.is_dir() and not _looked_at(folder).has_data:
        raise ValueError(_no_images(name))


def is_image_folder(name: str) -> bool:
    """Whether a data set is a folder of image files, with nothing that says more about them."""
    folder = Path(name).expanduser()
    return folder.is_dir() and not has_configurations(folder) and list_folder(folder).is_plain


def find_columns(
    dataset: HuggingFaceDataset,
    image_column: str | None = None,
    label_column: str | None = None,
    name: str = "the data set",
) -> tuple[str, str | None]:
    """Names of the image and the label column; the label column is None where there is no `ClassLabel`.

    One whose classes are "train" and "validation" is none: `datasets` makes it of such folders without classes.

    Raises:
        ValueError: a column that is not there, no image column, or several to choose from.
    """
    features = dataset.features or {}
    images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    for field, column in (("image_column", image_column), ("label_column", label_column)):
        if column is not None and column not in features:
            raise ValueError(f"{field}={column!r} is not in {name!r}; its columns are {', '.join(features)}.")
    if image_column is None and len(images) != 1:
        found = f"image columns {', '.join(images)}; name one" if images else f"no images, only {', '.join(features)}"
        raise ValueError(f"{name!r} has {found}; give a data set with images, or image_column.")
    labels = [
        key
        for key, feature in features.items()
        if isinstance(feature, datasets.ClassLabel) and not only_splits(feature.names)
    ]
    return image_column or images[0], label_column or (labels[0] if labels else None)


def class_names_of(dataset: Any, label_column: str | None = None) -> list[str] | None:
    """Class names: the attribute `class_names`, else those of the `ClassLabel` column; None where there are none."""
    names = getattr(dataset, "class_names", None)
    if names is not None:
        return list(names)
    feature = (getattr(dataset, "features", None) or {}).get(label_column)
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def check_labels(dataset: Any, label_column: str, classes: int | None = None, name: str = "the data set") -> bool:
    """Looks at every label of a map-style data set, without decoding an image.

    Args:
        dataset: rows, as `load_images` opens them; of a stream nothing is looked at.
        label_column: where the integer label is.
        classes: how many classes there are; None takes any number from 0.
        name: of the data set, for errors.

    Returns:
        Whether there are labels: `datasets` makes a column without any out of folders such as `train/` of images.

    Raises:
        ValueError: a missing label among others, or one that is of no class.
    """
    if not isinstance(dataset, datasets.Dataset):
        return True
    labels = stored(dataset).select_columns(label_column)[:][label_column]
    if all(label is None for label in labels):
        return False
    for index, label in enumerate(labels):
        if label is None or int(label) < 0:
            raise ValueError(
                f"sample {index} of {name!r} has no label ({label_column}={label}); leave such images out."
            )
        if classes is not None and int(label) >= classes:
            raise ValueError(
                f"sample {index} of {name!r} has {label_column}={label}, and there are {classes} classes; give each "
                "a name."
            )
    return True


def is_stream(dataset: Any) -> bool:
    """Whether a data set is read from its beginning, and knows no length."""
    return isinstance(dataset, (IterableDataset, datasets.IterableDataset))


def stored(dataset: Any) -> Any:
    """A data set as it is stored, without the format or transform that a user set on its rows."""
    return dataset.with_format(None) if isinstance(dataset, datasets.Dataset) else dataset


def explained(name: str, error: Exception) -> ValueError:
    """The error with which opening a data set of the Hub failed, as one sentence that says what to do."""
    said, page = _causes(error), f"https://huggingface.co/datasets/{name}"
    if isinstance(error, GatedRepoError) or "is a gated dataset on the Hub" in said:
        return ValueError(f"dataset {name!r} is gated: ask for access at {page} and log in with `hf auth login`.")
    if "scripts are no longer supported" in said:
        return ValueError(
            f"dataset {name!r} has a loading script, and datasets {datasets.__version__} runs none; give a copy in "
            "parquet, or a folder of its images."
        )
    if listed := CONFIGURATIONS.search(said):
        names = ", ".join(map(str, ast.literal_eval(listed[1])))
        return ValueError(f"dataset {name!r} has the configurations {names}; give one with --dataset_config.")
    if isinstance(error, DAMAGED):
        return ValueError(f"dataset {name!r} could not be read: {said}; replace the damaged file.")
    if isinstance(error, FileNotFoundError):
        return ValueError(
            f"dataset {name!r} is neither a folder here nor found on the Hub; check the name (a private one needs "
            "`hf auth login`)."
        )
    if isinstance(error, OSError):
        return ValueError(f"dataset {name!r} could not be read: {said}; check the name and the connection.")
    return ValueError(f"dataset {name!r} could not be opened: {said}")


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
    folder = Path(name).expanduser()
    try:
        if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
            if config is not None:
                raise ValueError(f"dataset_config={config!r}: {name!r} is a saved data set and has none.")
            return _saved_split(datasets.load_from_disk(str(folder)), name, split, streaming), ""
        if folder.is_dir():
            return _open_folder(_looked_at(folder), split, streaming, config)
        return datasets.load_dataset(name, config, split=split, streaming=streaming), ""
    except (OSError, RuntimeError, *DAMAGED) as error:
        if isinstance(error, FileNotFoundError) and folder.is_dir():
            raise ValueError(_no_images(name)) from error
        raise explained(name, error) from error
    except ValueError as error:
        if re.search("Unknown split|Bad split", str(error)):
            raise ValueError(f"dataset {name!r} has no split {split!r}: {error}") from error
        if not CONFIGURATIONS.search(str(error)):
            raise
        raise explained(name, error) from error


def _looked_at(folder: Path) -> FolderListing:
    """What lies in a folder; its archives are whole."""
    listing = list_folder(folder.resolve())  # as `datasets` names its files
    check_archives([path for path in listing.files if path.suffix.lower() == ".tar"])
    return listing


def _open_folder(
    listing: FolderListing, split: str, streaming: bool, config: str | None
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
    dataset = datasets.load_dataset(**options, split=split, streaming=streaming)
    files = datasets.load_dataset_builder(**options).config.data_files or {}
    read = {Path(path) for paths in files.values() for path in paths}
    return dataset, passed_over(listing, read - _unlisted(dataset, read))


def _saved_split(saved: Any, name: str, split: str, streaming: bool) -> HuggingFaceDataset:
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise ValueError(f"dataset {name!r} has no split {split!r}; its splits are {', '.join(saved)}.")
        saved = saved[split]
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


def _no_images(name: str) -> str:
    return f"the folder {name!r} has no images; give a folder with image files."
