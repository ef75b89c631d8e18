"""`lab:NAME`: what the embedded lab calls its models and sets, wherever a command or a suite asks for one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fare_hf.pretrained.loading import load_processor, load_vlm

__all__ = [
    "ENCODERS",
    "LLAVA",
    "QUESTION_SETS",
    "TEST_SETS",
    "TEXT_SETS",
    "TRAINING_SETS",
    "encoder_path",
    "is_in_lab",
    "lab_name",
    "load_vlm_and_processor",
]

PREFIX = "lab:"
LLAVA = "lab:llava"
ENCODERS = ("fare-2", "fare-4", "tecoa-2", "tecoa-4")
"""Robust encoders, by objective and eps x 255; the original is `clip`."""
TRAINING_SETS = ("drawings",)
TEST_SETS = ("twemoji", "openmoji", "fxemoji", "fashion", "digits")
"""`twemoji` is the main set, `openmoji` a far style, `fxemoji` for choices, training sees none like the others."""
QUESTION_SETS = ("yes-no", "pope")
TEXT_SETS = ("captions", *QUESTION_SETS)
"""What the lab's LLaVA is asked about."""


def is_in_lab(name: str) -> bool:
    """Whether a name is one of the lab's, such as `lab:clip`, and not of a folder or repository."""
    return name.startswith(PREFIX)


def lab_name(name: str, known: Sequence[str], what: str = "") -> str:
    """The name without `lab:`.

    Args:
        name: with or without `lab:`.
        known: what the lab has of the kind, without `lab:`.
        what: the option or setting that holds the name, for the message.

    Returns:
        One of `known`.

    Raises:
        ValueError: it is none of them.
    """
    bare = name.removeprefix(PREFIX)
    if bare not in known:
        raise ValueError(f"{what}{name!r} is not in the lab; use one of {', '.join(PREFIX + one for one in known)}.")
    return bare


def encoder_path(name: str) -> str:
    """The folder of `lab:clip` or a robust encoder of the lab; any other name as it is.

    Raises:
        ValueError: the lab has no such encoder.
    """
    from fare_hf.lab.models import encoder_folder

    return str(encoder_folder(name)) if is_in_lab(name) else name


def load_vlm_and_processor(name: str) -> tuple[Any, Any]:
    """`lab:llava`, or a vision-language model of a folder or repository, in evaluation mode, and its processor.

    Raises:
        ValueError, OSError: the lab has no such model, or as `load_vlm` and `load_processor`.
    """
    if is_in_lab(name):
        from fare_hf.lab.models import load_llava

        lab_name(name, [LLAVA.removeprefix(PREFIX)])
        return load_llava()
    processor = load_processor(name)  # first: it is small
    return load_vlm(name).eval(), processor
