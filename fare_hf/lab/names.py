"""`lab:NAME`: what the embedded lab calls its models and sets, wherever a command or a suite asks for one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = [
    "ENCODERS",
    "LLAVA",
    "MODELS",
    "QUESTION_SETS",
    "TEST_SETS",
    "TEXT_SETS",
    "TRAINING_SETS",
    "check_vlm",
    "encoder_folder",
    "encoder_path",
    "is_in_lab",
    "lab_name",
]

PREFIX = "lab:"
MODELS = Path(__file__).parent / "models"
LLAVA = "lab:llava"
ENCODERS = ("fare-2", "fare-4", "tecoa-2", "tecoa-4")
"""Robust encoders, by objective and eps x 255; the original is `clip`."""
TRAINING_SETS = ("drawings",)
TEST_SETS = ("twemoji", "openmoji", "fxemoji", "fashion", "digits")
"""`twemoji` is the main set, `openmoji` a far style, `fxemoji` for choices, training sees none like the others."""
QUESTION_SETS = ("yes-no", "pope")
TEXT_SETS = ("captions", *QUESTION_SETS)
"""What the lab's LLaVA is asked about."""
KINDS = {
    "an encoder": ("clip", *ENCODERS),
    "a vision-language model": ("llava",),
    "a training set": TRAINING_SETS,
    "a set of labelled images": TEST_SETS,
    "a set of texts": TEXT_SETS,
}


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
        ValueError: it is none of them; of another kind, or not in the lab.
    """
    bare = name.removeprefix(PREFIX)
    one_of = ", ".join(PREFIX + one for one in known)
    for kind, names in KINDS.items():
        if bare in names and bare not in known:
            raise ValueError(f"{what}{name!r} is {kind} of the lab, which is not wanted here; use one of {one_of}.")
    if bare not in known:
        raise ValueError(f"{what}{name!r} is not in the lab; use one of {one_of}.")
    return bare


def encoder_folder(name: str) -> Path:
    """Folder of `clip` (the original) or of a robust encoder such as `fare-4`, for `from_pretrained`.

    Raises:
        ValueError: if there is no such encoder.
    """
    return MODELS / lab_name(name, ("clip", *ENCODERS))


def encoder_path(name: str) -> str:
    """The folder of `lab:clip` or a robust encoder of the lab; any other name as it is.

    Raises:
        ValueError: the lab has no such encoder.
    """
    return str(encoder_folder(name)) if is_in_lab(name) else name


def check_vlm(name: str, what: str = "") -> None:
    """Raises ValueError, with `what` before the name, for one of the lab's that is no vision-language model."""
    if is_in_lab(name):
        lab_name(name, [LLAVA.removeprefix(PREFIX)], what)
