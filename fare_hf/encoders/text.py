"""Classes as sentences, embedded by the text encoder of a CLIP or SigLIP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from fare_hf.encoders.loading import check_encoder_type, load_complete
from fare_hf.encoders.modes import frozen
from fare_hf.pretrained.configuration import read_configuration
from fare_hf.pretrained.encoder_families import family_of_text, family_of_type
from fare_hf.pretrained.loading import load_tokenizer
from fare_hf.pretrained.validation import check_tokens

__all__ = [
    "check_compared",
    "compared_with_texts",
    "logit_bias_of",
    "logit_scale_of",
    "text_class_embeddings",
    "text_classifier",
]


@torch.no_grad()
def text_classifier(
    clip: PreTrainedModel,
    tokenizer: Any,
    class_names: Sequence[str],
    templates: Sequence[str],
    *,
    batch_size: int = 256,
) -> Tensor:
    """Class embeddings of a text encoder: the normalised mean of its templates (Radford et al. 2021).

    A SigLIP reads sentences in lower case, padded to its full length, and the padding with them, as it was trained.

    Args:
        clip: `CLIPModel` or `CLIPTextModelWithProjection`, `SiglipModel` or `SiglipTextModel`.
        tokenizer: its tokenizer.
        class_names: K names.
        templates: each with `{}` where the name goes.
        batch_size: sentences per forward.

    Returns:
        (K, D) fp32 unit vectors, on the model's device.

    Raises:
        ValueError: no names, no templates, a template without `{}`, or the tokenizer of another text encoder.

    Example:
        >>> from fare_hf.lab import load_clip
        >>> text_classifier(*load_clip(), ["a cat", "a dog"], ["a photo of {}"]).shape
        torch.Size([2, 128])
    """
    if not class_names:
        raise ValueError("class_names is empty; give the names of the classes.")
    if isinstance(templates, str) or not templates or any("{}" not in template for template in templates):
        raise ValueError(f"templates={templates!r} must be a list of sentences that contain {{}} for the class name.")
    sentences = [template.replace("{}", name) for name in class_names for template in templates]
    config: Any = getattr(clip.config, "text_config", clip.config)
    family = family_of_text(clip.config.model_type)
    whole = family is not None and family.sigmoid
    sentences = [sentence.lower() for sentence in sentences] if whole else sentences
    padding = "max_length" if whole else True
    options = {"padding": padding, "truncation": True, "max_length": config.max_position_embeddings}
    read = ("input_ids",) if whole else ("input_ids", "attention_mask")
    device = next(clip.parameters()).device
    parts = []
    with frozen(clip):
        for start in range(0, len(sentences), batch_size):
            tokens = tokenizer(sentences[start : start + batch_size], return_tensors="pt", **options)
            check_tokens(tokens["input_ids"], config, repr(clip.config.name_or_path))
            embedded = _text_embeds(clip, {key: tokens[key].to(device) for key in read})
            parts.append(F.normalize(embedded.float(), dim=-1))
    ensemble = torch.cat(parts).view(len(class_names), len(templates), -1).mean(dim=1)
    return F.normalize(ensemble, dim=-1)


def text_class_embeddings(
    name_or_path: str,
    class_names: Sequence[str],
    templates: Sequence[str] = ("This is a photo of a {}.",),
) -> Tensor:
    """`text_classifier` of a repository or folder of a CLIP or SigLIP, loaded here, on the CPU.

    Raises:
        ValueError: as `text_classifier`, or a repository without a text encoder.
    """
    model_type = read_configuration(name_or_path).model_type
    family = family_of_text(model_type)
    if family is None or family.text_class is None:
        raise ValueError(
            f"{name_or_path!r} is a {model_type!r} model without a CLIP text encoder; give the repository of a "
            "whole CLIP or SigLIP."
        )
    model = load_complete(family.text_class, name_or_path)
    return text_classifier(model, load_tokenizer(name_or_path), class_names, templates)


def logit_scale_of(name_or_path: str) -> float:
    """The factor that a CLIP or SigLIP was trained with on its cosines, the inverse of its temperature; a CLIP's is at
    most 100.

    Raises:
        ValueError: not a whole model, so that no scale was kept.
    """
    model_type = read_configuration(name_or_path).model_type
    family = family_of_text(model_type)
    if family is None or family.whole_class is None or model_type != family.whole:
        raise ValueError(f"{name_or_path!r} is a {model_type!r} model, which has no logit scale; give --logit_scale.")
    clip: Any = load_complete(family.whole_class, name_or_path)
    scale = clip.logit_scale.exp().item()
    return scale if family.sigmoid else min(100.0, scale)


def logit_bias_of(name_or_path: str) -> float:
    """What a SigLIP was trained to add to its scaled cosines.

    Raises:
        ValueError: not a whole SigLIP, so that there is none.
    """
    model_type = read_configuration(name_or_path).model_type
    family = family_of_text(model_type)
    if family is None or family.whole_class is None or not family.sigmoid or model_type != family.whole:
        raise ValueError(
            f"{name_or_path!r} is a {model_type!r} model, which has no logit bias; give a whole SigLIP as "
            "text_model, or use objective tecoa."
        )
    siglip: Any = load_complete(family.whole_class, name_or_path)
    return siglip.logit_bias.item()


def compared_with_texts(name_or_path: str, **options: Any) -> str:
    """The embedding of an encoder that is compared with texts, by its configuration.

    Raises:
        ValueError: not a vision encoder, or one that no texts belong to.
    """
    check_encoder_type(name_or_path, "pooled", **options)
    kind = read_configuration(name_or_path, **options).model_type
    family = family_of_type(kind)
    if family is None or family.compared is None:
        raise ValueError(
            f"{name_or_path!r} is a {kind!r} model, which has no texts to compare its images with: use a CLIP or "
            "SigLIP, or what needs no texts, such as --objective fare and --probe knn."
        )
    return family.compared


def check_compared(name_or_path: str, embedding: str, text_model: str, **options: Any) -> None:
    """An encoder's embedding can be compared with the texts of a model, as the configurations say.

    Args:
        name_or_path: the encoder, a folder or repository.
        embedding: one of `EMBEDDINGS`.
        text_model: the folder or repository whose text encoder reads the class names.
        options: of the encoder's repository, as for `read_configuration`.

    Raises:
        ValueError: as `compared_with_texts`; another embedding than that, or the text encoder of another kind of
            model.
    """
    compared = compared_with_texts(name_or_path, **options)
    kind, text_kind = read_configuration(name_or_path, **options).model_type, read_configuration(text_model).model_type
    text_family = family_of_text(text_kind)
    if embedding != compared:
        raise ValueError(f"embedding={embedding!r} of a {kind!r} model is not compared with texts; use {compared!r}.")
    if text_family not in (None, family_of_type(kind)):  # without texts it is refused where they are read
        raise ValueError(
            f"{text_model!r} is a {text_kind!r} model and {name_or_path!r} a {kind!r} model, whose embeddings have "
            "nothing in common: give the model that the encoder was made from as text_model."
        )


def _text_embeds(clip: Any, tokens: Mapping[str, Tensor]) -> Tensor:
    """Projected text embeddings (B, D) of any of the classes."""
    output = clip.get_text_features(**tokens) if hasattr(clip, "get_text_features") else clip(**tokens)
    return output.text_embeds if hasattr(output, "text_embeds") else output.pooler_output
