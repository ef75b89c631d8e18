"""Classes as texts: of a training set for its objective, of an evaluation for zero-shot accuracies."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fare_hf.data.class_names import mapping_line, prompt_names, several_classes
from fare_hf.data.columns import check_labels, class_names_of
from fare_hf.encoders import logit_bias_of, logit_scale_of, text_class_embeddings
from fare_hf.objectives import OBJECTIVES, ClassTexts, Objective, TecoaObjective
from fare_hf.training.config import FareConfig

__all__ = ["DataSetTexts", "make_objective", "make_validation"]

logger = logging.getLogger(__name__)


@dataclass
class DataSetTexts:
    """What `fare_hf.objectives.ClassTexts` asks for.

    Attributes:
        config: with `class_names`, `templates` and `logit_scale`, which is set to what was used.
        train_set: with `class_names`, and the labels that they are of.
        name: of the data set, for messages.
        text_model: repository or folder of a CLIP or SigLIP.
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

    def logit_bias(self) -> float:
        """The text model's own."""
        return logit_bias_of(self.text_model)

    def _check_labels(self, classes: int) -> None:
        column = getattr(self.train_set, "label_column", "labels")
        if column is None:
            raise ValueError(
                f"objective={self.config.objective!r} needs labels and {self.name!r} has none; give --label_column."
            )
        if hasattr(self.train_set, "label_column"):
            check_labels(self.train_set.dataset, column, classes, self.name)


def make_objective(args: FareConfig, texts: ClassTexts | None = None) -> Objective:
    """The objective that `args.objective` names, with its options."""
    kind = OBJECTIVES[args.objective]
    return kind.from_training(texts, {name: getattr(args, name) for name in kind.options})


def make_validation(
    args: FareConfig,
    classes: Sequence[str] | None,
    eval_dataset: Any,
    *,
    text_model: str,
    templates: Sequence[str],
    compared: str | None = "projected",
    dataset: str = "the data set",
    report: Callable[[str], None] = logger.info,
) -> TecoaObjective | None:
    """The `validation` of `FareTrainer`; None, with a warning where they were possible, if accuracies say nothing.

    Args:
        args: the configuration.
        classes: the evaluation set's own names of its classes; None where it has none.
        eval_dataset: the evaluation set, a `PixelDataset` or a list of samples.
        text_model: CLIP or SigLIP whose text encoder embeds the names.
        templates: sentences with `{}` for a name.
        compared: the encoder's embedding that is compared with texts; None where there are none.
        dataset: its name, for messages.
        report: gets one line on what the classes are called.

    Raises:
        ValueError: accuracies choose the best model and cannot be measured; class names that nothing reads.
    """
    wanted = (args.metric_for_best_model or "").removeprefix("eval_").endswith("_accuracy")
    if not classes or args.embedding != compared or not args.eval_attack_steps:
        asked = "metric_for_best_model" if wanted else "class_names"
        if wanted or (args.class_names and "class_names" not in OBJECTIVES[args.objective].options):
            raise ValueError(
                f"{asked}={getattr(args, asked)!r} needs an --eval_split with a ClassLabel column, the embedding that "
                f"is compared with texts ({compared}) and eval_attack_steps above 0; "
                f"{'or use loss' if wanted else 'leave it out'}."
            )
        return None
    try:
        names = prompt_names(classes, args.class_names, dataset)
        if not several_classes(eval_dataset):
            raise ValueError("all evaluation images are of one class; give others, or another number of --eval_images")
    except ValueError as error:
        if wanted:
            raise
        logger.warning("no zero-shot accuracy is measured: %s", error)
        return None
    report(f"evaluation: {mapping_line(classes, names)}")
    return TecoaObjective(text_class_embeddings(text_model, names, templates))
