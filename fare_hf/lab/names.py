"""`lab:NAME`: what the embedded lab calls its models and sets, wherever a command or a suite asks for one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = [
    "ENCODERS",
    "LAB_VLMS",
    "LLAVA",
    "MODELS",
    "QUESTION_SETS",
    "SMOLVLM",
    "TEST_SETS",
    "TEXT_SETS",
    "TOWERS",
    "TRAINING_SETS",
    "VLMS",
    "captioned_set",
    "check_vlm",
    "encoder_folder",
    "encoder_path",
    "is_in_lab",
    "lab_name",
    "trained_path",
]

PREFIX = "lab:"
MODELS = Path(__file__).parent / "models"
LLAVA, SMOLVLM = "lab:llava", "lab:smolvlm"
VLMS = ("llava", "smolvlm")
LAB_VLMS = " and ".join(PREFIX + name for name in VLMS)
"""For messages."""
ENCODERS = ("fare-2", "fare-4", "tecoa-2", "tecoa-4")
"""Robust encoders, by objective and eps x 255; the original is `clip`."""
TOWERS = ("smolvlm-4",)
"""Robust towers of the lab's SmolVLM, by eps x 255."""
TRAINING_SETS = ("drawings", "images")
TEST_SETS = ("twemoji", "openmoji", "fxemoji", "fashion", "digits")
"""`twemoji` is the main set, `openmoji` a far style, `fxemoji` for choices, training sees none like the others."""
QUESTION_SETS = ("yes-no", "yes-no-fashion", "yes-no-digits", "pope")
TEXT_SETS = ("captions", "scenes", *QUESTION_SETS)
"""What the lab's vision-language models are asked about."""
KINDS = {
    "an encoder": ("clip", *ENCODERS),
    "a vision tower": TOWERS,
    "a vision-language model": VLMS,
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
    """Folder of `clip` (the original), of a robust encoder such as `fare-4`, or of a robust tower.

    Raises:
        ValueError: if there is no such encoder.
    """
    return MODELS / lab_name(name, ("clip", *ENCODERS, *TOWERS))


def encoder_path(name: str) -> str:
    """The folder of `lab:clip` or a robust encoder of the lab; any other name as it is.

    Raises:
        ValueError: the lab has no such encoder.
    """
    return str(encoder_folder(name)) if is_in_lab(name) else name


def trained_path(name: str) -> str:
    """As `encoder_path`, and the folder of a vision-language model of the lab whose tower can be trained.

    Raises:
        ValueError: the lab has no such model.
    """
    return str(MODELS / name.removeprefix(PREFIX)) if name in (LLAVA, SMOLVLM) else encoder_path(name)


def captioned_set(name: str) -> str:
    """Whose images are captioned: `captions` are those of the main set."""
    return TEST_SETS[0] if name == "captions" else name


def check_vlm(name: str, what: str = "") -> None:
    """Raises ValueError, with `what` before the name, for one of the lab's that is no vision-language model."""
    if is_in_lab(name):
        lab_name(name, VLMS, what)
