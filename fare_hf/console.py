"""What command lines share: words read as values, no notices that ask nothing of a person, errors of one line."""

from __future__ import annotations

import argparse
import logging
import re
import warnings
from collections.abc import Sequence

__all__ = ["NEGATIVE_NUMBER", "hide_notices", "named_values", "natural", "one_line", "positive"]

NOTICES = {
    # The processors without torchvision are the ones meant: torchvision is never needed here.
    "transformers.utils.import_utils": "requires torchvision (not installed)",
    # True of every model that is not sharded, which is every model here.
    "transformers.distributed.tensor_parallel": "layers were not sharded",
}
"""Logger -> words of the notice that is hidden; whatever else that logger says is shown."""


NEGATIVE_NUMBER = re.compile(r"^-\.?\d")
"""For argparse, which before Python 3.14 takes the `-4/255` of `--eps -4/255` for an option."""


class Without(logging.Filter):
    """Drops records that hold certain words."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words = words

    def filter(self, record: logging.LogRecord) -> bool:
        """False for a record with the words."""
        return self.words not in record.getMessage()


def hide_notices() -> None:
    """Hides `NOTICES`, and the warning that a CPU has no pinned memory, in this process; for command lines."""
    for name, words in NOTICES.items():
        logger = logging.getLogger(name)
        if not any(isinstance(found, Without) for found in logger.filters):
            logger.addFilter(Without(words))
    warnings.filterwarnings("ignore", message=".*'pin_memory' argument is set as true but no accelerator")


def one_line(error: BaseException) -> str:
    """The message of an error without its line breaks, such as those of the Hub's client.

    Of what was raised in a data loader's worker, whose message is a whole traceback, the last line.
    """
    text = str(error)
    if text.startswith("Caught ") and "Original Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return " ".join(text.split()) or type(error).__name__


def positive(text: str) -> int:
    """An argument that is a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def natural(text: str) -> int:
    """An argument that is a whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 0")
    return int(text)


def named_values(option: str, words: Sequence[str], value: str = "PATH") -> dict[str, str]:
    """The words NAME=VALUE of an option, by name.

    Raises:
        ValueError: a word without a name.
    """
    wrong = [word for word in words if "=" not in word]
    if wrong:
        raise ValueError(f"{option} {wrong[0]}: give NAME={value}.")
    return dict(word.split("=", 1) for word in words)
