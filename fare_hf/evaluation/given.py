"""What an evaluation is given in Python: names and counts, and not objects that only look like them."""

from __future__ import annotations

import os
from typing import Any

__all__ = ["check_name", "check_samples"]


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
