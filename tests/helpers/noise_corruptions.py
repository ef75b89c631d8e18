"""The library of corruptions, or where it is not installed something that draws noise as it does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np

__all__ = ["with_corruptions"]

NAMES = ["gaussian_noise", "contrast"]


@contextmanager
def with_corruptions() -> Iterator[None]:
    """`import imagecorruptions` works."""
    try:
        import imagecorruptions  # noqa: F401
    except ImportError:
        library: Any = ModuleType("imagecorruptions")
        library.get_corruption_names = lambda subset="common": list(NAMES)
        library.corrupt = _corrupt
        with mock.patch.dict(sys.modules, {"imagecorruptions": library}):
            yield
    else:
        yield


def _corrupt(picture: np.ndarray, severity: int, name: str) -> np.ndarray:
    """Noise of numpy's global state, as the library draws it, or less contrast."""
    if name == "contrast":
        return (picture // severity).astype(np.uint8)
    return np.clip(picture + np.random.normal(scale=20 * severity, size=picture.shape), 0, 255).astype(np.uint8)
