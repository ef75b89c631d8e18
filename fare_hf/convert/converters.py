"""Conversion between open_clip and transformers; nothing is written that was not proven to compute the same."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPModel, CLIPVisionModelWithProjection

from fare_hf.convert.checkpoints import (
    OPEN_CLIP_CONFIG,
    VISUAL_WEIGHTS,
    WEIGHTS,
    Checkpoint,
    copy_tokenizer,
    find_file,
    read_checkpoint,
)
from fare_hf.convert.names import from_open_clip, to_open_clip
from fare_hf.convert.open_clip_config import read_open_clip_config, write_open_clip_config
from fare_hf.convert.proof import prove
from fare_hf.convert.spec import ACTIVATIONS, ClipSpec
from fare_hf.convert.transformers_config import (
    CLIP_VOCABULARY,
    image_processor,
    read_transformers_config,
    transformers_config,
)
from fare_hf.convert.transformers_source import clip_config, images_of, load_clip, text_of
from fare_hf.encoders import load_complete
from fare_hf.files.documents import read_object
from fare_hf.files.folders import check_new_folder, whole_folder

__all__ = ["Conversion", "convert_from_open_clip", "convert_to_open_clip"]


@dataclass(frozen=True)
class Conversion:
    """What was converted, and how far the two models are apart.

    Attributes:
        name_or_path: as given.
        folder: where the result is.
        format: what it holds: "CLIPModel", "CLIPVisionModelWithProjection", "open_clip" or "open_clip visual".
        activation: "gelu" or "quick_gelu".
        evidence: where the activation was read.
        tokenizer: whether tokenizer files were there and were copied.
        differences: of the `image`, `hidden` and `text` outputs, as fractions of the largest value (see `prove`).
    """

    name_or_path: str
    folder: Path
    format: str
    activation: str
    evidence: str
    tokenizer: bool
    differences: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        measured = ", ".join(f"{name} {value:.1e}" for name, value in self.differences.items())
        lines = [
            f"{self.name_or_path} -> {self.folder} ({self.format})",
            f"activation: {self.activation} ({self.evidence})",
            f"largest relative difference, fp32: {measured}",
        ]
        if "text" in self.differences and not self.tokenizer:
            lines.append("tokenizer: none at the source; add CLIP's own before you embed text")
        return "\n".join(lines)


def convert_from_open_clip(
    name_or_path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    activation: str | None = None,
    visual_only: bool = False,
    revision: str | None = None,
    max_shard_size: str = "5GB",
) -> Conversion:
    """Write an open_clip ViT as a folder that plain transformers loads.

    A whole CLIP gives a `CLIPModel` (from which the vision classes load too), a vision tower alone gives a
    `CLIPVisionModelWithProjection`. Weights keep their values and dtype; mixed dtypes become fp32. The folder is
    written beside its place, loaded with `from_pretrained`, compared with what open_clip computes, and then moved.

    Args:
        name_or_path: a Hub repository such as `chs20/fare4-clip`, a folder, or one file with the state dict of the
            vision tower (`.pt` as RobustVLM wrote them, or `.safetensors`).
        folder: absent or empty.
        base: the CLIP that a bare file was fine-tuned from, in either format (or its open_clip JSON): says shape,
            activation and preprocessing, which are not in the weights. For a repository, only what it lacks.
        activation: "gelu" or "quick_gelu" for a configuration that does not say; refused where it says otherwise.
        visual_only: leave the text tower out.
        revision: of a repository on the Hub.
        max_shard_size: weights above are written in several files.

    Returns:
        What was written, and how far the two models differ.

    Raises:
        ValueError: see `read_checkpoint`, `read_open_clip_config` and `prove`; no preprocessing known; an activation
            that contradicts the configuration; a folder in use. Nothing is left behind.
        OSError: it cannot be read, or the folder cannot be written.

    Example:
        >>> from tempfile import mkdtemp
        >>> from fare_hf.lab import encoder_folder
        >>> folder = Path(mkdtemp())
        >>> there = convert_to_open_clip(str(encoder_folder("clip")), folder / "open_clip")
        >>> back = convert_from_open_clip(folder / "open_clip", folder / "transformers")
        >>> (folder / "transformers" / "model.safetensors").exists()
        True
    """
    name_or_path, folder = os.fspath(name_or_path), Path(folder)
    check_new_folder(folder)
    checkpoint = read_checkpoint(name_or_path, revision)
    visual_only = visual_only or checkpoint.visual_only
    spec = _spec_of(checkpoint, None if base is None else os.fspath(base), activation, visual_only, revision)
    selected = {n: t for n, t in checkpoint.state.items() if not visual_only or n.startswith("visual.")}
    state, dtype = _one_dtype(selected)
    weights = from_open_clip(state, spec)
    assert spec.images is not None
    images = image_processor(spec.images, spec.vision.image_size)
    config = transformers_config(spec, dtype)
    with whole_folder(folder) as staging:
        config.save_pretrained(staging)
        images.save_pretrained(staging)
        save_torch_state_dict(weights, staging, max_shard_size=max_shard_size)
        tokenizer = not visual_only and copy_tokenizer([(name_or_path, revision), (base, None)], staging)
        del weights
        cls = CLIPVisionModelWithProjection if visual_only else CLIPModel
        differences = prove(load_complete(cls, str(staging)), state, spec)
    return Conversion(name_or_path, folder, cls.__name__, spec.activation, spec.evidence, tokenizer, differences)


def convert_to_open_clip(
    name_or_path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    visual_only: bool = False,
    revision: str | None = None,
) -> Conversion:
    """Write a CLIP of transformers as an open_clip folder (`open_clip.create_model("local-dir:FOLDER")`).

    A vision encoder alone becomes a whole CLIP with the text tower of `base`; without a base, `visual.safetensors` is
    written, for `model.visual.load_state_dict(safetensors.torch.load_file(...))`.

    Args:
        name_or_path: folder or Hub repository of a `CLIPModel` or a `CLIPVisionModelWithProjection`.
        folder: absent or empty.
        base: the CLIP the encoder was fine-tuned from, in the format of transformers; gives the text tower and, where
            the original has none, the image processor.
        visual_only: leave the text tower out.
        revision: of a repository on the Hub.

    Returns:
        What was written, and how far the two models differ.

    Raises:
        ValueError: not a CLIP with a visual projection, an activation, image processor or text pooling that open_clip
            lacks, a base of another embedding length or activation, models that differ; a folder in use. Nothing is
            left behind.
        OSError: it cannot be read, or the folder cannot be written.

    Example:
        >>> from tempfile import mkdtemp
        >>> from fare_hf.lab import encoder_folder
        >>> done = convert_to_open_clip(str(encoder_folder("clip")), Path(mkdtemp()) / "open_clip")
    """
    name_or_path, folder = os.fspath(name_or_path), Path(folder)
    base = None if base is None else os.fspath(base)
    check_new_folder(folder)
    model, has_text = load_clip(name_or_path, revision)
    spec = read_transformers_config(model.config, f"'{name_or_path}'", text=has_text and not visual_only)
    state = dict(model.state_dict())
    texts = name_or_path if has_text else None
    if base is not None and spec.text is None and not visual_only:
        spec, text_state = text_of(base, spec)
        state |= text_state
        texts = base
    spec = replace(spec, images=images_of([(name_or_path, revision), (base, None)], spec))
    state, _ = _one_dtype(to_open_clip(state, spec))
    names = {name.removeprefix("visual."): tensor for name, tensor in state.items()} if spec.text is None else state
    weights = VISUAL_WEIGHTS if spec.text is None else WEIGHTS[0]
    with whole_folder(folder) as staging:
        config = write_open_clip_config(spec, _tokenizer_name(spec, texts))
        (staging / OPEN_CLIP_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file(names, staging / weights)
        tokenizer = spec.text is not None and copy_tokenizer([(name_or_path, revision), (base, None)], staging)
        del state, names
        differences = _prove_written(name_or_path, revision, base, staging, weights)
    form = "open_clip visual" if spec.text is None else "open_clip"
    return Conversion(name_or_path, folder, form, spec.activation, spec.evidence, tokenizer, differences)


def _prove_written(
    name_or_path: str, revision: str | None, base: str | None, staging: Path, weights: str
) -> dict[str, float]:
    """Compare the original with the files, read again: weights and configuration."""
    spec = read_open_clip_config(read_object(staging / OPEN_CLIP_CONFIG), OPEN_CLIP_CONFIG)
    state = load_file(staging / weights)
    if weights == VISUAL_WEIGHTS:
        state = {f"visual.{name}": tensor for name, tensor in state.items()}
    model, has_text = load_clip(name_or_path, revision, torch.float32)
    borrowed = None if spec.text is None or has_text or base is None else load_complete(CLIPModel, base)
    return prove(model, state, spec, borrowed)


def _spec_of(
    checkpoint: Checkpoint, base: str | None, activation: str | None, visual_only: bool, revision: str | None
) -> ClipSpec:
    """Shape, activation and preprocessing of a checkpoint, from its configuration and its base."""
    own = checkpoint.config
    if own is None and base is None:
        raise ValueError(
            f"'{checkpoint.name_or_path}' holds weights alone, which do not say the activation (gelu or quick_gelu), "
            "the number of heads or the preprocessing: name the CLIP it was fine-tuned from as base, such as "
            "openai/clip-vit-large-patch14."
        )
    found = None if base is None else _read_base(base)
    where = f"{OPEN_CLIP_CONFIG} of '{checkpoint.name_or_path}'"
    spec = found if own is None else read_open_clip_config(own, where, text=not visual_only)
    assert spec is not None
    if activation is not None:
        spec = _with_activation(
            spec, activation, silent=own is not None and "quick_gelu" not in own.get("model_cfg", own)
        )
    images = spec.images or (found.images if found else None)
    if images is None:
        raise ValueError(
            f"{where} has no preprocess_cfg (mean and std of the pixels), and no base says it: add it, or name the "
            "CLIP it was fine-tuned from as base."
        )
    return replace(spec, images=images, text=None if visual_only else spec.text)


def _with_activation(spec: ClipSpec, activation: str, silent: bool) -> ClipSpec:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is unknown: give one of {', '.join(ACTIVATIONS)}.")
    if silent:
        return replace(spec, activation=activation, evidence="given by the caller; the configuration does not say")
    if activation != spec.activation:
        raise ValueError(f"activation {activation!r} was given, but {spec.evidence}: correct one of the two.")
    return spec


def _read_base(base: str) -> ClipSpec:
    """Vision part of a base in either format, or of an open_clip JSON file."""
    path = Path(base) if base.endswith(".json") else find_file(base, OPEN_CLIP_CONFIG)
    if path is not None:
        return read_open_clip_config(read_object(path), f"the base '{base}'", text=False)
    spec = read_transformers_config(clip_config(base, None), f"the base '{base}'", text=False)
    return replace(spec, images=images_of([(base, None)], spec))


def _tokenizer_name(spec: ClipSpec, name_or_path: str | None) -> str | None:
    """Nothing for CLIP's own vocabulary, which open_clip ships; else where the text tower is from."""
    if spec.text is None or name_or_path is None or spec.text.vocab_size == CLIP_VOCABULARY:
        return None
    return Path(name_or_path).name if Path(name_or_path).is_dir() else name_or_path


def _one_dtype(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], torch.dtype]:
    """As it is, or all in fp32 (which holds every half-precision value exactly) where dtypes are mixed.

    Raises:
        ValueError: whole numbers, or floats of 8 bits, whose scale is not known.
    """
    for name, tensor in state.items():
        if not tensor.is_floating_point() or tensor.dtype.itemsize < 2:
            raise ValueError(f"{name!r} is quantised ({tensor.dtype}): give the weights as they were trained.")
    dtypes = {tensor.dtype for tensor in state.values()}
    if len(dtypes) == 1:
        return state, dtypes.pop()
    return {name: tensor.float() for name, tensor in state.items()}, torch.float32
