"""The images of a run that could not be read: said when they are met, counted and named at the end."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

__all__ = ["ReplacedImages", "replaced_images"]

FILE = "replaced_images.{}.txt"
logger = logging.getLogger(__name__)


class ReplacedImages(TrainerCallback):
    """Keeps the names in a file for each process, so that a kill does not lose them.

    Args:
        output_dir: of the run.
        process: that meets them.
    """

    def __init__(self, output_dir: str, process: int) -> None:
        self.folder = Path(output_dir)
        self.path = self.folder / FILE.format(process)
        self.known: set[str] = set()

    def add(self, names: Sequence[str]) -> None:
        """Writes down what is new, and warns of it."""
        for name in (name for name in names if name not in self.known):
            self.known.add(name)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(name.replace("\n", " ") + "\n")
            logger.warning("another image took the place of one that cannot be read: %s", name)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Counts and names them all; every process has written its own before its last step."""
        names = replaced_images(self.folder)
        if state.is_world_process_zero and names:
            logger.warning("%d images could not be read and were replaced: %s", len(names), "; ".join(names))


def replaced_images(output_dir: str | Path) -> list[str]:
    """What the run in a folder replaced so far, each image once."""
    files = Path(output_dir).glob(FILE.format("*"))
    return sorted({line for path in files for line in path.read_text(encoding="utf-8").splitlines()})
