"""Where images come from: folders, saved data sets, shards and Hub repositories, opened and looked at."""

from __future__ import annotations

import tarfile
import zlib
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import pyarrow
from PIL import Image as PillowImage
from torch.utils.data import IterableDataset

from fare_hf.folders import is_missing_path

__all__ = ["DAMAGED", "check_folder", "check_labels", "class_names_of", "find_columns", "is_stream", "load_images"]

TABLES_AND_ARCHIVES = ".arrow .csv .gz .h5 .hdf5 .json .jsonl .lance .parquet .tar .vortex .zip".split()
DATA_FILES = frozenset((*PillowImage.registered_extensions(), *TABLES_AND_ARCHIVES))
"""Endings of the files that may hold images."""
END_OF_ARCHIVE = 2 * tarfile.BLOCKSIZE
DAMAGED = (tarfile.TarError, EOFError, zlib.error, pyarrow.ArrowInvalid, datasets.exceptions.DatasetGenerationError)
"""What readers of shards raise where one is cut off or is something else."""
HuggingFaceDataset: TypeAlias = "datasets.Dataset | datasets.IterableDataset"


def load_images(
    name: str,
    split: str = "train",
    *,
    streaming: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
) -> HuggingFaceDataset:
    """Opens one split of an image data set.

    Args:
        name: a folder of images (in a folder a class, or flat), of parquet or of webdataset shards; a folder written
            by `save_to_disk`; or a Hub repository.
        split: which split.
        streaming: read on the fly instead of preparing the whole set first.
        image_column: the column with images; found when there is just one.
        label_column: the column with integer labels, checked when given.

    Raises:
        ValueError: no such folder or repository, no images in it, no such split, or no such column.
    """
    dataset = _open(name, split, streaming)
    find_columns(dataset, image_column, label_column, name)
    return dataset


def check_folder(name: str) -> None:
    """Refuses at a glance a folder without any image or data file, and a path that leads nowhere.

    Raises:
        ValueError: the folder holds none, or `name` is a path and there is nothing; a tar archive that was cut off,
            of which `datasets` would read the rest without a word.
    """
    folder = Path(name).expanduser()
    if is_missing_path(name):
        raise ValueError(f"dataset {name!r} is no folder here; check the path.")
    if folder.is_dir() and not any(path.suffix.lower() in DATA_FILES for path in folder.rglob("*")):
        raise ValueError(_no_images(name))
    for path in sorted(folder.rglob("*.tar")) if folder.is_dir() else ():
        if not _is_whole_archive(path):
            raise ValueError(f"the shard {str(path)!r} is damaged: it has no end of archive; replace that file.")


def find_columns(
    dataset: HuggingFaceDataset,
    image_column: str | None = None,
    label_column: str | None = None,
    name: str = "the data set",
) -> tuple[str, str | None]:
    """Names of the image and the label column; the label column is None where there is no `ClassLabel`.

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
    labels = [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
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
    labels = dataset.select_columns(label_column)[:][label_column]
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


def _open(name: str, split: str, streaming: bool) -> HuggingFaceDataset:
    """Opens a saved data set, a folder, or a Hub repository; the errors of `datasets` become one sentence."""
    folder = Path(name).expanduser()
    try:
        if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
            return _saved_split(datasets.load_from_disk(str(folder)), name, split, streaming)
        if folder.is_dir():
            return datasets.load_dataset(str(folder), split=split, streaming=streaming)
        return datasets.load_dataset(name, split=split, streaming=streaming)
    except FileNotFoundError as error:
        if folder.is_dir():
            raise ValueError(_no_images(name)) from error
        raise ValueError(f"dataset {name!r} is neither a folder here nor found on the Hub; check the name.") from error
    except OSError as error:
        raise ValueError(f"dataset {name!r} could not be read: {error}; check the name and the connection.") from error
    except DAMAGED as error:
        raise ValueError(f"dataset {name!r} could not be read: {_causes(error)}; replace the damaged file.") from error
    except ValueError as error:
        if "Unknown split" not in str(error) and "Bad split" not in str(error):
            raise
        raise ValueError(f"dataset {name!r} has no split {split!r}: {error}") from error


def _saved_split(saved: Any, name: str, split: str, streaming: bool) -> HuggingFaceDataset:
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise ValueError(f"dataset {name!r} has no split {split!r}; its splits are {', '.join(saved)}.")
        saved = saved[split]
    return saved.to_iterable_dataset() if streaming else saved


def _is_whole_archive(path: Path) -> bool:
    """Whether a tar archive ends with the two empty blocks of POSIX."""
    with path.open("rb") as file:
        file.seek(-min(END_OF_ARCHIVE, path.stat().st_size), 2)
        return file.read() == bytes(END_OF_ARCHIVE)


def _causes(error: BaseException) -> str:
    """What an error says, and what those say that led to it."""
    return str(error) if error.__cause__ is None else f"{error}: {_causes(error.__cause__)}"


def _no_images(name: str) -> str:
    return f"the folder {name!r} has no images; give a folder with image files."
