"""`from_pretrained` of strangers' files: quiet, and in one sentence where they are damaged."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

__all__ = ["load_with_findings"]


def load_with_findings(cls: type[PreTrainedModel], name_or_path: str, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """`cls.from_pretrained`: the model, and its `missing_keys` and `mismatched_keys`, which the caller refuses.

    Args:
        cls: class of the model.
        name_or_path: folder or Hub name.
        options: of `from_pretrained`.

    Raises:
        ValueError: files that no such model can be read from.
    """
    try:
        with _quiet_loading():
            found: Any = cls.from_pretrained(
                name_or_path, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
            return found
    except (ImportError, OSError, TypeError, ValueError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of files that somebody else wrote: SafetensorError, KeyError, RuntimeError, ...
        told = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{name_or_path!r} cannot be loaded as a {cls.__name__} ({type(error).__name__}: {told}): its files are "
            "damaged, or of another model; download or save them again."
        ) from error


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """No table of what a whole CLIP holds besides the part that is read (what is missing is an error here anyway), and
    no list of layers that were not sharded."""
    names = ("transformers.modeling_utils", "transformers.distributed.tensor_parallel")
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
