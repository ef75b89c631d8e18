"""The zero-shot classes that a training is validated on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from fare_hf.data.class_names import mapping_line, prompt_names, several_classes
from fare_hf.encoders import text_class_embeddings
from fare_hf.objectives import OBJECTIVES, TecoaObjective
from fare_hf.training.config import FareConfig

__all__ = ["make_validation"]

logger = logging.getLogger(__name__)


def make_validation(
    args: FareConfig,
    classes: Sequence[str] | None,
    samples: Any,
    *,
    text_model: str,
    templates: Sequence[str],
    dataset: str = "the data set",
    report: Callable[[str], None] = logger.info,
) -> TecoaObjective | None:
    """The `validation` of `FareTrainer`; None, with a warning where they were possible, if accuracies say nothing.

    Args:
        args: the configuration.
        classes: the evaluation set's own names of its classes; None where it has none.
        samples: the evaluation set, a `PixelDataset` or a list of samples.
        text_model: CLIP whose text encoder embeds the names.
        templates: sentences with `{}` for a name.
        dataset: its name, for messages.
        report: gets one line on what the classes are called.

    Raises:
        ValueError: accuracies choose the best model and cannot be measured; class names that nothing reads.
    """
    wanted = (args.metric_for_best_model or "").removeprefix("eval_").endswith("_accuracy")
    if not classes or args.embedding != "projected" or not args.eval_attack_steps:
        asked = "metric_for_best_model" if wanted else "class_names"
        if wanted or (args.class_names and "class_names" not in OBJECTIVES[args.objective].options):
            raise ValueError(
                f"{asked}={getattr(args, asked)!r} needs an --eval_split with a ClassLabel column, the projected "
                f"embedding and eval_attack_steps above 0; {'or use loss' if wanted else 'leave it out'}."
            )
        return None
    try:
        names = prompt_names(classes, args.class_names, dataset)
        if not several_classes(samples):
            raise ValueError("all evaluation images are of one class; give others, or another number of --eval_images")
    except ValueError as error:
        if wanted:
            raise
        logger.warning("no zero-shot accuracy is measured: %s", error)
        return None
    report(f"evaluation: {mapping_line(classes, names)}")
    return TecoaObjective(text_class_embeddings(text_model, names, templates))
