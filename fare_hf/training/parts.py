"""What `FareTrainer` is made of: loaded by name, or refused where it is something else."""

from __future__ import annotations

import os
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from fare_hf.encoders import load_encoder
from fare_hf.encoders.reading import FEATURES
from fare_hf.pretrained.configuration import load_image_processor
from fare_hf.training.config import FareConfig

__all__ = ["load_parts"]


def load_parts(model: Any, args: Any, processing_class: Any) -> tuple[PreTrainedModel, Any]:
    """The encoder and its image processor.

    Args:
        model: an encoder, or the folder or repository to load it from.
        args: the configuration.
        processing_class: of `FareTrainer`; None takes the one of a `model` that is loaded.

    Raises:
        TypeError: `args` is no `FareConfig`, or `model` neither a name nor a model.
        ValueError: a name for `features`, which need the whole vision-language model; what `load_encoder` refuses.
    """
    if not isinstance(args, FareConfig):
        raise TypeError(
            f"args is a {type(args).__name__}; give a FareConfig, which has the options of the Trainer too."
        )
    if not isinstance(model, (str, os.PathLike)):
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}; give an encoder, or its folder or repository.")
        return model, processing_class  # type: ignore[return-value]
    if args.embedding == FEATURES:
        raise ValueError(
            f"embedding='features' is of a tower in its model; give what load_vision_tower({model!r}) gives, as "
            "model= and reading=."
        )
    loaded = load_encoder(str(model), args.embedding)
    return loaded, load_image_processor(str(model)) if processing_class is None else processing_class
