"""The classes of a training set as texts, for objectives that compare images with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fare_hf.data.class_names import mapping_line, prompt_names
from fare_hf.data.columns import check_labels, class_names_of
from fare_hf.encoders import logit_scale_of, text_class_embeddings
from fare_hf.objectives import OBJECTIVES
from fare_hf.training.config import FareConfig

__all__ = ["DataSetTexts"]


@dataclass
class DataSetTexts:
    """What `fare_hf.objectives.ClassTexts` asks for.

    Attributes:
        config: with `class_names`, `templates` and `logit_scale`, which is set to what was used.
        train_set: with `class_names`, and the labels that they are of.
        name: of the data set, for messages.
        text_model: a CLIP repository or folder.
        say: prints a line.
    """

    config: FareConfig
    train_set: Any
    name: str
    text_model: str
    say: Callable[[str], None]

    def embeddings(self) -> Tensor:
        """(K, D) unit vectors.

        Raises:
            ValueError: no class names, no labels where the objective needs them, or labels that fit no names.
        """
        own = class_names_of(self.train_set)
        names = prompt_names(own, self.config.class_names, self.name)
        if not names:
            raise ValueError(
                f"objective={self.config.objective!r} needs class names and {self.name!r} has none; give "
                "--class_names, or a data set with a ClassLabel column (--label_column)."
            )
        if OBJECTIVES[self.config.objective].needs_labels:
            self._check_labels(len(names))
        self.say(mapping_line(own, names))
        return text_class_embeddings(self.text_model, names, self.config.templates)

    def logit_scale(self) -> float:
        """The one that was asked for, or the text model's own, which the recipe then names."""
        if self.config.logit_scale is None:
            self.config.logit_scale = logit_scale_of(self.text_model)
        return self.config.logit_scale

    def _check_labels(self, classes: int) -> None:
        column = getattr(self.train_set, "label_column", "labels")
        if column is None:
            raise ValueError(
                f"objective={self.config.objective!r} needs labels and {self.name!r} has none; give --label_column."
            )
        if hasattr(self.train_set, "label_column"):
            check_labels(self.train_set.dataset, column, classes, self.name)
