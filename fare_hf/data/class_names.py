"""What the classes of a data set are called in prompts, and whether accuracies over them would say anything."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import datasets

__all__ = ["WORDNET", "check_given_names", "mapping_line", "prompt_names", "several_classes"]

WORDNET = re.compile(r"n\d{8}")
"""The folders of ImageNet, which no text encoder can read."""
SHOWN = 20
"""Classes whose names are printed, all of them; of more the first three and the last."""


def prompt_names(own: Sequence[str] | None, given: Sequence[str] | None, name: str = "the data set") -> list[str]:
    """A name for each class, in the order of the labels.

    Names that are those of the data set in another order are taken by name. Where the data set's own are numbers, as
    of folders 0, 1, 10, 2 (sorted as text), the given ones are taken in the order of the numbers.

    Args:
        own: the data set's names, such as its folders'; None where it has none.
        given: `--class_names`; None takes the data set's.
        name: of the data set, for errors.

    Returns:
        The names; none where there are neither.

    Raises:
        ValueError: one string, or a name twice; another number of names; a name that another class has; numbers, or
            those of WordNet, and no names given.
    """
    check_given_names(given)
    if not own or not given:
        if own:
            _check_readable(own, name)
        return list(given or own or ())
    if len(own) != len(given):
        raise ValueError(f"class_names has {len(given)} names, {name!r} {len(own)} classes; give one each.")
    if set(own) == set(given):
        return list(own)
    if all(word.isdecimal() for word in own):
        places = sorted(range(len(own)), key=lambda place: int(own[place]))
        return [given[places.index(place)] for place in range(len(own))]
    _check_order(own, given, name)
    return list(given)


def mapping_line(own: Sequence[str] | None, names: Sequence[str]) -> str:
    """Each class with its name in prompts, for people to see that the order is right; of many the ends alone."""
    pairs = [f"{word!r} is {name!r}" for word, name in zip(own or map(str, range(len(names))), names, strict=True)]
    shown = pairs if len(pairs) <= SHOWN else [*pairs[:3], "...", pairs[-1]]
    return f"{len(names)} classes in prompts: {', '.join(shown)}"


def check_given_names(given: Sequence[str] | None) -> None:
    """Raises ValueError for a string, whose letters would be names, and for a name that two classes are given."""
    if isinstance(given, str):
        raise ValueError(f"class_names {given!r} is one string: give a list with a name for each class.")
    names = list(given or ())
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ValueError(f"class_names has {name!r} twice: give each class a name of its own.")


def several_classes(dataset: Any) -> bool:
    """Whether the labels of an evaluation set are of more than one class; True where that is not known.

    Args:
        dataset: a list of samples; or a `PixelDataset`, or a `Subset` of one, of which no image is decoded.
    """
    labels = _labels(dataset)
    return labels is None or len(set(labels)) != 1


def _check_readable(own: Sequence[str], name: str) -> None:
    """Refuses numbers in the place of names."""
    if any(map(WORDNET.fullmatch, own)):
        kind, order = "WordNet's numbers", "sorted folders"
    elif all(map(str.isdecimal, own)):
        kind, order = "numbers", "numbers (or these, if they are what the images show)"
    else:
        return
    raise ValueError(
        f"the classes of {name!r} are {kind}, such as {own[0]}, which no text encoder can read: give class_names "
        f"with {len(own)} names in the order of the {order}."
    )


def _check_order(own: Sequence[str], given: Sequence[str], name: str) -> None:
    """Refuses names of which one is another class's own."""
    for word, other in zip(own, given, strict=True):
        if other != word and other in own:
            raise ValueError(
                f"class_names gives {other!r} to the class {word!r} of {name!r}, which has a class {other!r}: give "
                f"the names in the order {', '.join(own[:20])}{', ...' if len(own) > 20 else ''}."
            )


def _labels(dataset: Any) -> list[int] | None:
    if isinstance(dataset, list):
        return [sample["labels"] for sample in dataset] if dataset and "labels" in dataset[0] else None
    places = getattr(dataset, "indices", None)
    images = dataset if places is None else dataset.dataset
    column, rows = getattr(images, "label_column", None), getattr(images, "dataset", None)
    if column is None or not isinstance(rows, datasets.Dataset):
        return None
    labels = rows.with_format(None).select_columns(column)[:][column]
    return labels if places is None else [labels[place] for place in places]
