"""Which tensor of open_clip is which of transformers, both ways, without a change of any value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fare_hf.convert.spec import ClipSpec, TextSpec, VisionSpec

__all__ = ["check_open_clip", "from_open_clip", "open_clip_shapes", "to_open_clip"]

BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


@dataclass(frozen=True)
class Link:
    """One open_clip tensor: its transformers names (three where it is stacked: queries, keys, values) and shape."""

    open_clip: str
    transformers: tuple[str, ...]
    shape: tuple[int, ...]
    transposed: bool = False


def from_open_clip(state: Mapping[str, Tensor], spec: ClipSpec) -> dict[str, Tensor]:
    """Rename an open_clip state dict, with `visual.` before the vision names, to transformers' names.

    Names carry the `vision_model.` level, which every release of transformers reads.

    Raises:
        ValueError: what `check_open_clip` says.
    """
    check_open_clip(state, spec)
    found: dict[str, Tensor] = {}
    for link in _links(spec):
        tensor = state[link.open_clip].t() if link.transposed else state[link.open_clip]
        parts = (tensor,) if len(link.transformers) == 1 else [part.clone() for part in tensor.chunk(3)]
        found |= {name: part.contiguous() for name, part in zip(link.transformers, parts, strict=True)}
    return found


def to_open_clip(state: Mapping[str, Tensor], spec: ClipSpec) -> dict[str, Tensor]:
    """The inverse of `from_open_clip`.

    Raises:
        ValueError: a tensor is missing or of another shape than the configuration says.
    """
    found: dict[str, Tensor] = {}
    for link in _links(spec):
        absent = [name for name in link.transformers if name not in state]
        if absent:
            raise ValueError(f"the encoder has no {absent[0]!r}, which open_clip's {link.open_clip!r} needs.")
        parts = [state[name] for name in link.transformers]
        tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
        found[link.open_clip] = (tensor.t() if link.transposed else tensor).contiguous()
    check_open_clip(found, spec)
    return found


def open_clip_shapes(spec: ClipSpec) -> dict[str, tuple[int, ...]]:
    """Every open_clip name of such a model, with its shape."""
    return {link.open_clip: link.shape for link in _links(spec)}


def check_open_clip(state: Mapping[str, Tensor], spec: ClipSpec) -> None:
    """Compare a state dict with the configuration.

    Raises:
        ValueError: a missing or further tensor, another shape, values that are not finite; the tensor is named.
    """
    expected = open_clip_shapes(spec)
    for name, shape in expected.items():
        found = tuple(state[name].shape) if name in state else None
        if found is None:
            fault = f"the state dict has no {name!r}, which the configuration asks for."
        elif found != shape:
            fault = (
                f"{name!r} has shape {found} in the state dict and {shape} in the configuration: give the "
                "configuration of this model."
            )
        elif not bool(torch.isfinite(state[name]).all()):
            fault = f"{name!r} holds NaN or infinity: check how the model was trained."
        else:
            continue
        raise ValueError(fault)
    further = sorted(set(state) - set(expected))
    if further:
        raise ValueError(f"the state dict holds {further[0]!r}, which the configuration does not ask for.")


def _links(spec: ClipSpec) -> Iterator[Link]:
    yield from _vision_links(spec.vision, spec.embed_dim)
    if spec.text is not None:
        yield from _text_links(spec.text, spec.embed_dim)


def _vision_links(tower: VisionSpec, embed_dim: int) -> Iterator[Link]:
    width, patch = tower.width, tower.patch_size
    old, new = "visual.", "vision_model."
    yield Link(old + "class_embedding", (new + "embeddings.class_embedding",), (width,))
    yield Link(old + "conv1.weight", (new + "embeddings.patch_embedding.weight",), (width, 3, patch, patch))
    positions = new + "embeddings.position_embedding.weight"
    yield Link(old + "positional_embedding", (positions,), (tower.positions, width))
    yield from _norm_links(old + "ln_pre", new + "pre_layrnorm", width)
    yield from _block_links(old, new, tower)
    yield from _norm_links(old + "ln_post", new + "post_layernorm", width)
    yield Link(old + "proj", ("visual_projection.weight",), (width, embed_dim), transposed=True)


def _text_links(tower: TextSpec, embed_dim: int) -> Iterator[Link]:
    width, new = tower.width, "text_model."
    tokens = new + "embeddings.token_embedding.weight"
    yield Link("token_embedding.weight", (tokens,), (tower.vocab_size, width))
    positions = new + "embeddings.position_embedding.weight"
    yield Link("positional_embedding", (positions,), (tower.positions, width))
    yield from _block_links("", new, tower)
    yield from _norm_links("ln_final", new + "final_layer_norm", width)
    yield Link("text_projection", ("text_projection.weight",), (width, embed_dim), transposed=True)
    yield Link("logit_scale", ("logit_scale",), ())


def _block_links(old: str, new: str, tower: VisionSpec | TextSpec) -> Iterator[Link]:
    width, wide = tower.width, tower.mlp_width
    inputs = {"attn.out_proj": (width, width), "mlp.c_fc": (wide, width), "mlp.c_proj": (width, wide)}
    for index in range(tower.layers):
        a, b = f"{old}transformer.resblocks.{index}.", f"{new}encoder.layers.{index}."
        for kind, shape in (("weight", (3 * width, width)), ("bias", (3 * width,))):
            parts = tuple(f"{b}self_attn.{letter}_proj.{kind}" for letter in "qkv")
            yield Link(f"{a}attn.in_proj_{kind}", parts, shape)
        for name, other in BLOCK.items():
            if name in inputs:
                yield Link(f"{a}{name}.weight", (f"{b}{other}.weight",), inputs[name])
                yield Link(f"{a}{name}.bias", (f"{b}{other}.bias",), inputs[name][:1])
            else:
                yield from _norm_links(a + name, b + other, width)


def _norm_links(old: str, new: str, width: int) -> Iterator[Link]:
    for kind in ("weight", "bias"):
        yield Link(f"{old}.{kind}", (f"{new}.{kind}",), (width,))
