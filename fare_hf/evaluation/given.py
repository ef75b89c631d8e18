"""What an evaluation is given in Python: names and counts, and not objects that only look like them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["check_name", "check_samples", "first_repeated", "names_for_rows", "short_name"]


def check_name(what: str, given: Any) -> None:
    """Raises ValueError for what is no folder or name of a repository, such as a model in memory."""
    if not isinstance(given, (str, os.PathLike)):
        raise ValueError(
            f"{what} is an object of type {type(given).__name__}: give a folder or the name of a repository (what is "
            "in memory becomes a folder by its save_pretrained or save_to_disk)."
        )


def check_samples(samples: Any) -> None:
    """Raises ValueError for what is neither None nor a whole number from 1."""
    if samples is not None and (not isinstance(samples, int) or isinstance(samples, bool) or samples < 1):
        raise ValueError(f"samples {samples!r} is no whole number of at least 1: give one, or None for all.")


def first_repeated(values: Sequence[str]) -> str | None:
    """The first value that stands there twice."""
    return next((value for number, value in enumerate(values) if value in values[:number]), None)


def names_for_rows(subjects: Sequence[str]) -> list[str]:
    """Names for the rows: the last part of each path, and of those that have it in common as many parts as it takes to
    tell them apart; equal where the paths are.

    Args:
        subjects: folders or repositories.
    """
    parts = [(Path(one).resolve() if Path(one).is_dir() else Path(one)).parts for one in subjects]
    depths, longest = [1] * len(parts), max(map(len, parts), default=0)
    for _ in range(longest):
        names = ["/".join(own[-depth:]) for own, depth in zip(parts, depths, strict=True)]
        depths = [depth + (names.count(name) > 1) for name, depth in zip(names, depths, strict=True)]
    return ["/".join(own[-depth:]).removeprefix("//") for own, depth in zip(parts, depths, strict=True)]


def short_name(name: str) -> str:
    """The last part of a path or of a repository's name."""
    return names_for_rows([name])[0]
