"""Vision encoders loaded from folders and repositories, complete or not at all."""

from __future__ import annotations

from typing import Any

import torch
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, PreTrainedModel

from fare_hf.encoders.embedding import check_embedding
from fare_hf.files.folders import check_model_name
from fare_hf.pretrained.configuration import check_room, read_configuration
from fare_hf.pretrained.encoder_families import REFUSED, encoder_types, family_of_type
from fare_hf.pretrained.loading import check_found, load_with_findings
from fare_hf.pretrained.validation import check_answers, check_recorded, check_weights, recorded_architecture

__all__ = ["check_encoder_type", "load_complete", "load_encoder"]


def load_encoder(name_or_path: str, embedding: str = "projected", **kwargs: Any) -> PreTrainedModel:
    """Loads a vision encoder in fp32, complete or not at all.

    Args:
        name_or_path: a Hub repository or a folder; a whole CLIP or SigLIP works too, only its vision part is read.
        embedding: one of `EMBEDDINGS`; `projected` (with tokens or without) gives a `CLIPVisionModelWithProjection`,
            others the plain class.
        kwargs: passed to `from_pretrained` (`revision`, `token`, `attn_implementation`, ...).

    Returns:
        The encoder in evaluation mode, all of its weights trainable.

    Raises:
        ValueError: not a vision encoder or CLIP, no such embedding, or weights missing from the checkpoint.

    Example:
        >>> from fare_hf.lab import encoder_folder
        >>> type(load_encoder(str(encoder_folder("fare-4")))).__name__
        'CLIPVisionModelWithProjection'
    """
    encoder = load_complete(_encoder_class(name_or_path, embedding, **kwargs), name_or_path, **kwargs)
    check_answers(encoder, f"{name_or_path!r}")
    return encoder


def check_encoder_type(name_or_path: str, embedding: str = "projected", **kwargs: Any) -> None:
    """What `load_encoder` checks of the configuration alone, before any weights are fetched.

    Raises:
        ValueError: not a model, not a vision encoder or CLIP, no such embedding, or none of that kind.
    """
    _encoder_class(name_or_path, embedding, **kwargs)


def _encoder_class(name_or_path: str, embedding: str, **kwargs: Any) -> type[PreTrainedModel]:
    check_embedding(embedding)
    check_model_name(name_or_path)
    try:
        config = read_configuration(name_or_path, **kwargs)
    except OSError as error:
        raise ValueError(
            f"{name_or_path!r} is neither a folder with a model nor found on the Hub; check the name "
            f"({str(error).splitlines()[0]})"
        ) from error
    except ValueError as error:
        raise ValueError(f"{name_or_path!r} is not a vision encoder or CLIP: {error}") from error
    model_type, family = config.model_type, family_of_type(config.model_type)
    if model_type in REFUSED:
        raise ValueError(f"{name_or_path!r} is a {model_type!r} model, which reads {REFUSED[model_type]}.")
    if family is None and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ValueError(
            f"{name_or_path!r} is a vision-language model ({model_type}), and a vision encoder or CLIP is wanted "
            "(evaluate takes such a model with --vlm, and train its tower with --embedding features)."
        )
    if family is None:
        raise ValueError(
            f"{name_or_path!r} is a {model_type!r} model, not a vision encoder or CLIP; "
            f"give one of the types {', '.join(encoder_types())} (a tower that only its own vision-language model "
            "reads is measured there: --vlm)."
        )
    cls = family.projecting if embedding.startswith("projected") else family.plain
    if cls is None:
        raise ValueError(
            f"{name_or_path!r} is a {model_type!r} model without a projection; use embedding='pooled' or 'tokens'."
        )
    check_recorded(config, recorded_architecture(name_or_path, **kwargs), f"{name_or_path!r}")
    return cls


def load_complete(cls: type[PreTrainedModel], name_or_path: str, **kwargs: Any) -> PreTrainedModel:
    """`cls.from_pretrained` in fp32 that refuses to initialise a missing weight at random.

    Raises:
        ValueError: the checkpoint lacks weights of `cls`, has them in another shape than the configuration asks for,
            or not finite; the message names the first of them. An index or a link of its folder that leads out of it.
    """
    check_room(read_configuration(name_or_path, **kwargs), name_or_path)
    # The default dtype is "auto": a half-precision file would be trained in half precision.
    options = {"dtype": torch.float32, **kwargs}
    model, info = load_with_findings(cls, name_or_path, options)
    check_found(info, name_or_path, cls.__name__, "; use embedding='pooled' or 'tokens'")
    check_weights(model, f"{name_or_path!r}")
    return model
