"""The numeric proof of a conversion: both models on the same pixels and the same sentences, in fp32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fare_hf.convert.reference import image_features, text_features
from fare_hf.convert.spec import ClipSpec, TextSpec
from fare_hf.encoders import frozen
from fare_hf.finite import largest

__all__ = ["TOLERANCE", "prove"]

TOLERANCE = 1e-5


def prove(model: Any, state: Mapping[str, Tensor], spec: ClipSpec, text_model: Any = None) -> dict[str, float]:
    """Run a transformers model and the open_clip reference on the same inputs.

    Args:
        model: `CLIPModel` or `CLIPVisionModelWithProjection`, fp32, on the CPU.
        state: the same model with open_clip names.
        text_model: `CLIPModel` of the text tower, where `model` has none.
        spec: what open_clip reads in its configuration.

    Returns:
        Largest absolute difference of `image` embeddings, `hidden` states (all layers) and `text` embeddings, each as
        a fraction of the largest value there: free of the scale, which differs between encoders by orders.

    Raises:
        ValueError: one of them is above `TOLERANCE` or not a number; nothing should be written then.
    """
    size = spec.vision.image_size
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), frozen(model):
        embedding, layers = image_features(state, spec, pixels)
        output = _run_vision(model, pixels)
        found = {"image": difference(output[0], embedding)}
        found["hidden"] = largest(difference(ours, theirs) for ours, theirs in zip(output[1], layers, strict=True))
        if spec.text is not None:
            found["text"] = _text_difference(text_model or model, state, spec)
    for name, value in found.items():
        if not value <= TOLERANCE:
            raise ValueError(
                f"the two models differ by {value:.2g} of the largest value in the {name} output (at most "
                f"{TOLERANCE:g} is allowed): nothing was written."
            )
    return found


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference as a fraction of the largest absolute value; NaN or infinite if either is."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def probe_sentences(text: TextSpec) -> Tensor:
    """Three sentences of random ids `(3, L)` that end early, in the middle and at the very end."""
    end = text.vocab_size - 1 if text.eos is None else text.eos
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, text.vocab_size - 1, (3, text.positions), generator=generator)
    ids[ids == end] = text.vocab_size - 1 if text.eos is not None else 0
    for row, place in enumerate((1, text.positions // 2, text.positions - 1)):
        ids[row, place] = end
        ids[row, place + 1 :] = 0 if end else 1
    return ids


def _text_difference(model: Any, state: Mapping[str, Tensor], spec: ClipSpec) -> float:
    assert spec.text is not None
    ids = probe_sentences(spec.text)
    with frozen(model):
        pooled = model.text_model(input_ids=ids).pooler_output
        return difference(model.text_projection(pooled), text_features(state, spec, ids))


def _run_vision(model: Any, pixels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Embedding and hidden states, of a vision model or of the vision part of a whole CLIP."""
    output = model.vision_model(pixel_values=pixels, output_hidden_states=True)
    return model.visual_projection(output.pooler_output), output.hidden_states
