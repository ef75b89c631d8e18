"""Vision encoders of transformers as embedding functions: load, freeze, embed.

Three embeddings of an image `x` are known by name (`EMBEDDINGS`):

- `projected`: the CLIP image embedding after the visual projection, `(B, D)`, not normalised: what FARE trains on.
- `pooled`: the encoder's own pooled output before any projection, `(B, D)`.
- `tokens`: patch tokens of one hidden layer without the class token, `(B, N, D)`: what LLaVA reads (layer -2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    Dinov2Model,
    PreTrainedModel,
    SiglipVisionModel,
)

from fare_hf.configuration import check_room, read_configuration
from fare_hf.loading import check_found, load_tokenizer, load_with_findings
from fare_hf.validation import check_answers, check_recorded, check_tokens, check_weights, recorded_architecture

__all__ = [
    "EMBEDDINGS",
    "check_encoder_type",
    "embed",
    "evaluating",
    "freeze",
    "freeze_unused",
    "frozen",
    "load_encoder",
    "logit_scale_of",
    "make_embed",
    "matmul_patch_embedding",
    "other_forwards",
    "text_class_embeddings",
    "text_classifier",
]

EMBEDDINGS = ("projected", "pooled", "tokens")

# model_type of the configuration -> (class for `pooled` and `tokens`, class for `projected`)
ENCODER_CLASSES: dict[str, tuple[type[PreTrainedModel], type[PreTrainedModel] | None]] = {
    "clip": (CLIPVisionModel, CLIPVisionModelWithProjection),
    "clip_vision_model": (CLIPVisionModel, CLIPVisionModelWithProjection),
    "dinov2": (Dinov2Model, None),
    "siglip": (SiglipVisionModel, None),
    "siglip_vision_model": (SiglipVisionModel, None),
}


def load_encoder(name_or_path: str, embedding: str = "projected", **kwargs: Any) -> PreTrainedModel:
    """Loads a vision encoder in fp32, complete or not at all.

    Args:
        name_or_path: a Hub repository or a folder; a whole `CLIPModel` works too, only its vision part is read.
        embedding: one of `EMBEDDINGS`; `projected` gives a `CLIPVisionModelWithProjection`, others the plain class.
        kwargs: passed to `from_pretrained` (`revision`, `token`, `attn_implementation`, ...).

    Raises:
        ValueError: not a vision encoder or CLIP, no such embedding, or weights missing from the checkpoint.
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
    _check_embedding(embedding)
    try:
        config = read_configuration(name_or_path, **kwargs)
    except OSError as error:
        raise ValueError(
            f"{name_or_path!r} is neither a folder with a model nor found on the Hub; check the name "
            f"({str(error).splitlines()[0]})"
        ) from error
    except ValueError as error:
        raise ValueError(f"{name_or_path!r} is not a vision encoder or CLIP: {error}") from error
    model_type = config.model_type
    if model_type not in ENCODER_CLASSES:
        raise ValueError(
            f"{name_or_path!r} is a {model_type!r} model, not a vision encoder or CLIP; "
            f"give one of the types {', '.join(sorted(ENCODER_CLASSES))}."
        )
    plain, projecting = ENCODER_CLASSES[model_type]
    cls = projecting if embedding == "projected" else plain
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


def embed(encoder: nn.Module, pixel_values: Tensor, embedding: str = "projected", layer: int = -2) -> Tensor:
    """Embeds normalised images.

    Args:
        encoder: from `load_encoder`; may be wrapped (DDP, FSDP, compiled).
        pixel_values: `(B, 3, H, W)`, normalised as the encoder expects.
        embedding: one of `EMBEDDINGS`.
        layer: index into the hidden states for `tokens`; -2 is what LLaVA reads.

    Returns:
        `(B, D)`, or `(B, N, D)` for `tokens` (the class token is dropped).

    Raises:
        ValueError: the encoder has no such embedding.
    """
    _check_embedding(embedding)
    if embedding == "tokens":
        hidden = encoder(pixel_values=pixel_values, output_hidden_states=True).hidden_states[layer]
        return _patch_tokens(hidden, pixel_values, _unwrap(encoder).config.patch_size)
    output = encoder(pixel_values=pixel_values)
    value = getattr(output, "image_embeds" if embedding == "projected" else "pooler_output", None)
    if value is None:
        raise ValueError(
            f"{type(_unwrap(encoder)).__name__} has no {embedding!r} embedding; "
            f"load it with load_encoder(..., embedding={embedding!r})."
        )
    return value


def make_embed(
    encoder: nn.Module, normalization: Callable[[Tensor], Tensor], embedding: str = "projected", layer: int = -2
) -> Callable[[Tensor], Tensor]:
    """Closes over the normalisation: a function from pixels in [0,1], `(B, 3, H, W)`, to embeddings."""

    def embed_pixels(pixels: Tensor) -> Tensor:
        return embed(encoder, normalization(pixels), embedding, layer)

    return embed_pixels


def freeze(module: nn.Module) -> nn.Module:
    """Puts `module` in eval mode without weight gradients, for good, and returns it."""
    return module.eval().requires_grad_(False)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[nn.Module]:
    """Eval mode inside; every sub-module gets its own mode back, also after an exception."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield module
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """`evaluating`, and no parameter requires a gradient: an attack then stores no activations for the weights."""
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    with evaluating(module):
        try:
            for parameter, _ in flags:
                parameter.requires_grad_(False)
            yield module
        finally:
            for parameter, requires_grad in flags:
                parameter.requires_grad_(requires_grad)


def freeze_unused(encoder: PreTrainedModel, embedding: str) -> list[str]:
    """Freezes what the embedding never reads, such as `post_layernorm` for `tokens`, and returns the names.

    DDP waits for every trainable parameter's gradient, and a parameter without one would only decay. What is read is
    found by one forward and backward pass of a grey image, so that it holds for any encoder.

    Raises:
        ValueError: no trainable parameter is left.
    """
    named = [(name, parameter) for name, parameter in encoder.named_parameters() if parameter.requires_grad]
    size = encoder.config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    pixels = torch.zeros(1, encoder.config.num_channels, height, width, device=encoder.device, dtype=encoder.dtype)
    with torch.enable_grad(), evaluating(encoder):
        total = embed(encoder, pixels, embedding).sum()
        if not total.requires_grad:
            raise ValueError(
                f"{type(encoder).__name__} has no trainable parameter behind {embedding!r}; unfreeze some."
            )
        gradients = torch.autograd.grad(total, [parameter for _, parameter in named], allow_unused=True)
    unused = [(name, parameter) for (name, parameter), grad in zip(named, gradients, strict=True) if grad is None]
    for _, parameter in unused:
        parameter.requires_grad_(False)
    return [name for name, _ in unused]


@contextmanager
def matmul_patch_embedding(module: nn.Module) -> Iterator[nn.Module]:
    """Computes non-overlapping patch convolutions as reshape and matrix product inside; restored after.

    The input gradient of a stride-p convolution is slow on CPU, and an attack needs nothing else; values agree with
    the convolution to 1e-5.
    """
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d) and _is_patch_convolution(part)]
    with other_forwards({part: MethodType(_matmul_forward, part) for part in convolutions}):
        yield module


@contextmanager
def other_forwards(forwards: Mapping[nn.Module, Callable[..., Tensor]]) -> Iterator[None]:
    """Modules compute with other functions inside; afterwards as before, with what a hook had put there."""
    saved = {part: vars(part).get("forward") for part in forwards}
    for part, forward in forwards.items():
        vars(part)["forward"] = forward
    try:
        yield
    finally:
        for part, own in saved.items():
            if own is None:
                del vars(part)["forward"]
            else:
                vars(part)["forward"] = own


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
    if model_type not in ("clip", "clip_text_model"):
        raise ValueError(
            f"{name_or_path!r} is a {model_type!r} model without a CLIP text encoder; give a CLIP repository."
        )
    model = load_complete(CLIPTextModelWithProjection, name_or_path)
    return text_classifier(model, load_tokenizer(name_or_path), class_names, templates)


def logit_scale_of(name_or_path: str) -> float:
    """The factor that a CLIP was trained with on its cosines, at most 100: the inverse of its temperature.

    Raises:
        ValueError: not a whole CLIP, so that no scale was kept.
    """
    model_type = read_configuration(name_or_path).model_type
    if model_type != "clip":
        raise ValueError(f"{name_or_path!r} is a {model_type!r} model, which has no logit scale; give --logit_scale.")
    clip: Any = load_complete(CLIPModel, name_or_path)
    return min(100.0, clip.logit_scale.exp().item())


def _matmul_forward(conv: nn.Conv2d, pixels: Tensor) -> Tensor:
    """A patch convolution's forward as one matrix product over `(B * patches, 3 * p * p)`.

    A function, not an object made anew in every step, which would make torch.compile start again.
    """
    batch, channels, height, width = pixels.shape
    p, q = int(conv.kernel_size[0]), int(conv.kernel_size[1])
    rows, columns = height // p, width // q
    pixels = pixels[:, :, : rows * p, : columns * q]
    patches = pixels.reshape(batch, channels, rows, p, columns, q).permute(0, 2, 4, 1, 3, 5)
    patches = patches.reshape(batch, rows * columns, channels * p * q)
    output = F.linear(patches, conv.weight.reshape(conv.out_channels, -1), conv.bias)
    return output.transpose(1, 2).reshape(batch, conv.out_channels, rows, columns)


def _is_patch_convolution(conv: nn.Conv2d) -> bool:
    plain = conv.groups == 1 and set(conv.dilation) == {1} and conv.padding in ((0, 0), "valid")
    return plain and tuple(conv.kernel_size) == tuple(conv.stride)


def _patch_tokens(hidden: Tensor, pixel_values: Tensor, patch_size: int) -> Tensor:
    """Drops what stands before the patch tokens: one class token in CLIP and DINOv2, nothing in SigLIP."""
    patches = (pixel_values.shape[-2] // patch_size) * (pixel_values.shape[-1] // patch_size)
    return hidden[:, hidden.shape[1] - patches :]


def _unwrap(encoder: nn.Module) -> Any:
    return encoder.module if isinstance(encoder, nn.parallel.DistributedDataParallel) else encoder


def _check_embedding(embedding: str) -> None:
    if embedding not in EMBEDDINGS:
        raise ValueError(f"embedding={embedding!r} is not known; give one of {', '.join(EMBEDDINGS)}.")


def _text_embeds(clip: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Projected text embeddings (B, D) of either class."""
    if hasattr(clip, "get_text_features"):
        return clip.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
    return clip(input_ids=ids, attention_mask=mask).text_embeds
