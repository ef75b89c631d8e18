"""Anybody's labelled images, opened for zero-shot classification: a folder a class, saved data sets, the Hub's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets

from fare_hf.data.class_names import mapping_line, prompt_names
from fare_hf.data.columns import HuggingFaceDataset, check_labels, class_names_of, find_columns, stored
from fare_hf.data.folder_listing import list_folder
from fare_hf.data.image_folders import only_splits
from fare_hf.data.opening import load_images, whole_split
from fare_hf.data.pixel_datasets import PixelDataset
from fare_hf.evaluation.zero_shot.sets import ZeroShotData

__all__ = ["TEMPLATES", "check_templates", "load_labelled_images"]

TEMPLATES = ("a photo of a {}.",)


def load_labelled_images(
    name: str,
    processor: Any,
    *,
    split: str | None = None,
    dataset_config: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    samples: int | None = None,
    seed: int = 0,
    report: Callable[[str], None] | None = None,
) -> ZeroShotData:
    """Opens labelled images as one encoder reads them.

    Args:
        name: as for `load_images`.
        processor: the encoder's image processor.
        split: None takes "test", or of a folder of images that is not divided all of it.
        dataset_config: of a data set with several configurations.
        image_column, label_column: as for `load_images`; labels are whole numbers or words.
        class_names: a name a class, in the order of the labels; None takes the data set's.
        templates: sentences with `{}` for the name; None is `TEMPLATES`.
        samples: how many, drawn by `seed`; None takes all, in their order.
        seed: of the choice.
        report: gets a line on the images, and one on what their classes are called.

    Raises:
        ValueError: as `load_images`; no classes, less than two, names of another number than they are, labels that
            fit no names, a template without `{}`.
    """
    check_templates(templates or TEMPLATES)
    columns: dict[str, Any] = {"image_column": image_column, "label_column": label_column}
    rows: Any = load_images(name, split or whole_split(name), config=dataset_config, report=report, **columns)
    images, labels = find_columns(rows, **columns, name=name)
    if labels is None:
        raise _without_classes(name, rows)
    rows, own = _numbered(rows, labels, name)
    names = prompt_names(own, class_names, name)
    if not names:
        raise ValueError(f"the labels {labels!r} of {name!r} have no names: give class_names, one a class.")
    if len(names) < 2:
        raise ValueError(f"{name!r} has one class, {names[0]!r}: zero-shot accuracy needs at least 2.")
    if not len(rows) or not check_labels(rows, labels, len(names), name):
        raise _without_classes(name, rows)
    if report is not None:
        report(mapping_line(own, names))
    if samples is not None:
        rows = rows.shuffle(seed=seed).select(range(min(samples, len(rows))))
    called = Path(name).expanduser().resolve().name if Path(name).expanduser().is_dir() else name
    pixels = PixelDataset(rows, processor, images, labels)
    return ZeroShotData(called, pixels, names, list(templates or TEMPLATES), native=False, own_names=own)


def check_templates(templates: Sequence[str]) -> None:
    """Raises ValueError for one string instead of a list, and a template without a place for the class name."""
    if isinstance(templates, str):
        raise ValueError(f"templates is one string: give a list of sentences, such as [{templates!r}].")
    if bad := [template for template in templates if "{}" not in template]:
        raise ValueError(
            f"the template {bad[0]!r} has no {{}} for the class name: give sentences such as 'a photo of a {{}}.'."
        )


def _without_classes(name: str, rows: HuggingFaceDataset) -> ValueError:
    folder = Path(name).expanduser().resolve()
    images = list_folder(folder).images if folder.is_dir() else []
    inside = {path.parent for path in images}
    loose = [path.name for path in images if path.parent == folder]
    if loose and len(inside) > 2:
        return ValueError(
            f"{name!r} has {len(inside) - 1} folders of images, and {len(loose)} beside them ({loose[0]}): move these "
            "away, and each folder is a class."
        )
    if len(inside) == 1 and folder not in inside and not only_splits(called := [path.name for path in inside]):
        return ValueError(f"{name!r} has one class, the folder {called[0]!r}: zero-shot accuracy needs at least 2.")
    return ValueError(
        f"{name!r} has no classes (its columns are {', '.join(rows.features or {})}): put the images into a folder a "
        "class, or name the labels with label_column and their classes with class_names; images with captions "
        "are for a vision-language model (--vlm, --task captions)."
    )


def _numbered(rows: Any, column: str, name: str) -> tuple[Any, list[str] | None]:
    """The rows with whole numbers as labels, and what the data set calls its classes."""
    feature = rows.features[column]
    if isinstance(feature, datasets.ClassLabel) or datasets.Value("bool") == feature:
        return rows, class_names_of(rows, column)
    kind = str(getattr(feature, "dtype", "list"))
    if "int" in kind:
        return rows, None
    words = stored(rows).select_columns(column)[:][column]
    if kind not in ("string", "large_string") or any(word is None for word in words):
        raise ValueError(
            f"the labels {column!r} of {name!r} are of type {kind}, or some are missing: give whole "
            "numbers or words, one an image."
        )
    own = sorted(set(words))
    numbers = [own.index(word) for word in words]
    return rows.remove_columns(column).add_column(column, numbers), own
