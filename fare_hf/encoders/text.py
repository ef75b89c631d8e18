"""Classes as sentences, embedded by the text encoder of a CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from fare_hf.encoders.loading import load_complete
from fare_hf.encoders.modes import frozen
from fare_hf.pretrained.configuration import read_configuration
from fare_hf.pretrained.encoder_families import family_of_text
from fare_hf.pretrained.loading import load_tokenizer
from fare_hf.pretrained.validation import check_tokens

__all__ = ["logit_scale_of", "text_class_embeddings", "text_classifier"]


@torch.no_grad()
def text_classifier(
    clip: PreTrainedModel,
    tokenizer: Any,
    class_names: Sequence[str],
    templates: Sequence[str],
    *,
    batch_size: int = 256,
) -> Tensor:
    """Class embeddings of a CLIP text encoder: the normalised mean of its templates (Radford et al. 2021).

    Args:
        clip: `CLIPModel` or `CLIPTextModelWithProjection`.
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
    options = {"padding": True, "truncation": True, "max_length": config.max_position_embeddings}
    device = next(clip.parameters()).device
    parts = []
    with frozen(clip):
        for start in range(0, len(sentences), batch_size):
            tokens = tokenizer(sentences[start : start + batch_size], return_tensors="pt", **options)
            ids, mask = (tokens[key].to(device) for key in ("input_ids", "attention_mask"))
            check_tokens(ids, config, repr(clip.config.name_or_path))
            parts.append(F.normalize(_text_embeds(clip, ids, mask).float(), dim=-1))
    ensemble = torch.cat(parts).view(len(class_names), len(templates), -1).mean(dim=1)
    return F.normalize(ensemble, dim=-1)


def text_class_embeddings(
    name_or_path: str,
    class_names: Sequence[str],
    templates: Sequence[str] = ("This is a photo of a {}.",),
) -> Tensor:
    """`text_classifier` of a CLIP repository or folder, loaded here: `(K, D)` fp32 unit vectors on the CPU.

    Raises:
        ValueError: as `text_classifier`, or a repository without a text encoder.
    """
    model_type = read_configuration(name_or_path).model_type
    family = family_of_text(model_type)
    if family is None or family.text_class is None:
        raise ValueError(
            f"{name_or_path!r} is a {model_type!r} model without a CLIP text encoder; give a CLIP repository."
        )
    model = load_complete(family.text_class, name_or_path)
    return text_classifier(model, load_tokenizer(name_or_path), class_names, templates)


def logit_scale_of(name_or_path: str) -> float:
    """The factor that a CLIP was trained with on its cosines, at most 100: the inverse of its temperature.

    Raises:
        ValueError: not a whole CLIP, so that no scale was kept.
    """
    model_type = read_configuration(name_or_path).model_type
    family = family_of_text(model_type)
    if family is None or family.whole_class is None or model_type != family.whole:
        raise ValueError(f"{name_or_path!r} is a {model_type!r} model, which has no logit scale; give --logit_scale.")
    clip: Any = load_complete(family.whole_class, name_or_path)
    return min(100.0, clip.logit_scale.exp().item())


def _text_embeds(clip: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Projected text embeddings (B, D) of either class."""
    if hasattr(clip, "get_text_features"):
        return clip.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
    return clip(input_ids=ids, attention_mask=mask).text_embeds
