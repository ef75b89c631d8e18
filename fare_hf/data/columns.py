"""The columns of a data set: where the images are, where the labels, and what the classes are called."""

from __future__ import annotations

from typing import Any, TypeAlias

import datasets
from torch.utils.data import IterableDataset

from fare_hf.data.image_folders import only_splits

__all__ = ["HuggingFaceDataset", "check_labels", "class_names_of", "find_columns", "is_stream", "stored"]

HuggingFaceDataset: TypeAlias = "datasets.Dataset | datasets.IterableDataset"


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
    for field, column in (("image_column", image_column), ("label_column", label_column)):
        if column is not None and column not in features:
            raise ValueError(f"{field}={column!r} is not in {name!r}; its columns are {', '.join(features)}.")
    images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    images = images or [key for key, feature in features.items() if _holds_files(feature)]
    if image_column is None and len(images) != 1:
        found = f"image columns {', '.join(images)}; name one" if images else f"no images, only {', '.join(features)}"
        raise ValueError(f"{name!r} has {found}; give a data set with images, or image_column.")
    classes = {key: feature.names for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)}
    labels = [key for key, names in classes.items() if not only_splits(names)]
    return image_column or images[0], label_column or (labels[0] if labels else None)


def _holds_files(feature: Any) -> bool:
    """Whether a column that others wrote (pandas, polars) holds what `datasets.Image` stores: bytes and a path."""
    return isinstance(feature, dict) and set(feature) == {"bytes", "path"}


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
        Whether there are labels: `datasets` makes a column without any out of folders such as `train/` of images, and
        test sets whose labels are kept secret have -1 everywhere.

    Raises:
        ValueError: a missing label among others, one that is no whole number, or one that is of no class.
    """
    if not isinstance(dataset, datasets.Dataset):
        return True
    labels = stored(dataset).select_columns(label_column)[:][label_column]
    if all(label is None or label == -1 for label in labels):
        return False
    for index, label in enumerate(labels):
        if not (label is None or isinstance(label, int) or (isinstance(label, float) and label.is_integer())):
            fault = (
                f"{label_column}={label!r}, no whole number; put the images into a folder a class, or make it one, "
                f"such as by dataset.class_encode_column({label_column!r})."
            )
        elif label is None or label < 0:
            fault = f"no label ({label_column}={label}); leave such images out."
        elif classes is not None and label >= classes:
            fault = f"{label_column}={label}, and there are {classes} classes; give each a name."
        else:
            continue
        raise ValueError(f"sample {index} of {name!r} has {fault}")
    return True


def is_stream(dataset: Any) -> bool:
    """Whether a data set is read from its beginning, and knows no length."""
    return isinstance(dataset, (IterableDataset, datasets.IterableDataset))


def stored(dataset: Any) -> Any:
    """A data set as it is stored, without the format or transform that a user set on its rows."""
    return dataset.with_format(None) if isinstance(dataset, datasets.Dataset) else dataset
