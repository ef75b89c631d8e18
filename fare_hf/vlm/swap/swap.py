"""Put a robust vision encoder into a published vision-language model, in place and verified."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from fare_hf.convert.checkpoints import names_repository
from fare_hf.data.pixels import Normalization
from fare_hf.encoders import load_encoder
from fare_hf.encoders.modes import depth_of
from fare_hf.finite import largest, smallest
from fare_hf.vlm.families.family import Family, image_processor_of
from fare_hf.vlm.families.table import family_of, layers_read, placement, towers_of, unwrapped
from fare_hf.vlm.families.towers import kind_of
from fare_hf.vlm.processors import complete_processor
from fare_hf.vlm.swap import compatibility, proof
from fare_hf.vlm.swap.encoder_files import Encoder, read_encoder
from fare_hf.vlm.swap.report import SwapReport, only_one
from fare_hf.vlm.swap.resolution import resize_configs, resize_processor, resize_tower

__all__ = ["SwapReport", "swap_vision_tower"]

SLOW_FROM = 50_000_000
"""Weights of a tower from which a forward pass on a CPU is worth a line of progress: a ViT-B has 86 million."""


def swap_vision_tower(
    vlm: PreTrainedModel,
    encoder: str | os.PathLike[str] | PreTrainedModel,
    processor: Any = None,
    *,
    base: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    minimum_cosine: float = proof.MINIMUM_COSINE,
) -> SwapReport:
    """Replace the weights of a vision-language model's tower by those of a robust encoder.

    The weights are copied into the old tower, so its device, dtype, hooks, mode, `requires_grad` and attention
    implementation stay, and everything else of the model is untouched. A probe image then has to give the same
    hidden states as the encoder on its own, and, with a processor, the whole model runs once. The old weights are
    kept in main memory for `SwapReport.undo`.

    Args:
        vlm: a model of `vlm.families.table.FAMILIES`; may be compiled, or wrapped for data parallelism or by PEFT.
        encoder: a module (`CLIPVisionModel`, `CLIPVisionModelWithProjection`, `CLIPModel`, `SiglipVisionModel`), a
            folder or Hub name in the format of transformers or open_clip (converted on the fly), or a file with the
            open_clip state dict of a vision tower.
        processor: the model's processor; needed for an encoder of another resolution, which changes it too. One of an
            older repository is told what it lacks to count an image's tokens.
        base: for a bare file, the CLIP it was fine-tuned from; None takes what the file does not say from the tower.
        revision: of the encoder on the Hub.
        minimum_cosine: a warning is given where the clean embeddings of encoder and tower agree less than this, or the
            weights of a matrix (less than this and 0.5); -1 never warns.

    Returns:
        What was done and proven; `undo()` puts the tower back, and so does leaving it as a context.

    Raises:
        TypeError: the model is not of a known family, or `encoder` is not a vision encoder.
        ValueError: another architecture (the field and both values are named), another resolution without a
            processor, the processor of another model, a folder without weights, weights that are not finite, a tower
            that is quantised, offloaded to the meta device, tied or carries adapters.
        RuntimeError: the swapped tower does not compute what the encoder computes; everything is put back then.

    Example:
        >>> from fare_hf.lab import encoder_folder, load_llava
        >>> llava, processor = load_llava()
        >>> report = swap_vision_tower(llava, str(encoder_folder("fare-4")), processor)
        >>> report.probe_difference
        0.0
    """
    if not -1 <= minimum_cosine <= 1:
        raise ValueError(f"minimum_cosine is {minimum_cosine}: give a number from -1 (never warn) to 1.")
    with only_one(towers_of(vlm).values()):
        return _swap(vlm, encoder, processor, base, revision, minimum_cosine)


@dataclass(frozen=True)
class _Parts:
    """What a swap brings together."""

    vlm: Any
    family: Family
    towers: Mapping[str, Any]
    new: Encoder
    processor: Any

    @property
    def first(self) -> Any:
        """The tower for images."""
        return next(iter(self.towers.values()))


def _swap(vlm: Any, encoder: Any, processor: Any, base: Any, revision: str | None, minimum: float) -> SwapReport:
    """One thread at a time; what is given is checked from the cheapest to the dearest, and written last."""
    family, towers = family_of(vlm), towers_of(vlm)
    compatibility.check_writable(towers)
    compatibility.check_shared(unwrapped(vlm), towers)
    new = read_encoder(encoder, next(iter(towers.values())).config, base=base, revision=revision)
    parts = _Parts(unwrapped(vlm), family, towers, new, processor)
    _check_fit(parts)
    states = {path: _new_state(tower, new) for path, tower in towers.items()}
    old = {path: {n: t.detach().to("cpu", copy=True) for n, t in towers[path].state_dict().items()} for path in towers}
    changed = sum(_differs(tensor, old[path][name]) for path in states for name, tensor in states[path].items())
    if not changed:
        warnings.warn(
            f"the vision tower holds the weights of the encoder '{new.source}' already: the swap changes nothing.",
            UserWarning,
            stacklevel=3,
        )
    with _progress(parts.first, processor) as step:
        report = _describe(parts, step)
        report.tensors, report.changed, report.old_states = sum(map(len, states.values())), changed, old
        _warn_of_origin(report, states, minimum)
        _apply(parts, report, states, step)
    return report


@contextmanager
def _progress(tower: nn.Module, processor: Any) -> Iterator[Callable[[str], None]]:
    """A line that says which forward passes run, for a tower of ordinary size on a CPU, where each takes seconds."""
    slow = placement(tower)[0].type == "cpu" and sum(map(torch.numel, tower.parameters())) > SLOW_FROM
    with tqdm(total=3 if processor is None else 4, unit="step", leave=False, disable=not slow) as bar:

        def step(words: str) -> None:
            bar.set_description(f"swap: {words}")  # drawn at once
            bar.update()

        yield step


def _check_fit(parts: _Parts) -> None:
    """Everything that can be said before a forward pass."""
    config, new, processor = parts.vlm.config, parts.new, parts.processor
    for tower in parts.towers.values():
        compatibility.check_architecture(config, parts.family, tower.config, new.module.config, new.source)
    old, size = (kind_of(parts.first).side(part.config) for part in (parts.first, new.module))
    if processor is not None:
        complete_processor(parts.family, config, processor)
        compatibility.check_processor(parts.family, config, processor, parts.first.config)
        compatibility.check_normalization(processor, new.images, new.source)
    elif old != size:
        raise ValueError(
            f"the encoder '{new.source}' has image_size {size}, the vision tower has {old}: pass processor=, whose "
            "resolution has to change too."
        )


def _new_state(tower: nn.Module, new: Encoder) -> dict[str, torch.Tensor]:
    """The encoder's weights under the tower's names, checked."""
    state = compatibility.tower_state(new.module.state_dict(), tower.state_dict(), new.source)
    for name, tensor in state.items():
        compatibility.check_weights(name, tensor, placement(tower)[1], new.source)
    return state


def _differs(tensor: torch.Tensor, old: torch.Tensor) -> bool:
    return tensor.shape != old.shape or not torch.equal(tensor.to("cpu", old.dtype), old)


def _describe(parts: _Parts, step: Callable[[str], None]) -> SwapReport:
    """The report before anything is changed."""
    first, new = parts.first, parts.new
    dtype = proof.probe_dtype(first)
    layers = max(layers_read(parts.vlm.config, parts.family, depth_of(first.config)))
    normalization, borrowed = _normalization(new, parts.processor)

    def embed(vision: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
        return proof.clean_embeddings(vision, normalization, layers, dtype)

    step(f"clean images through the encoder, in {dtype}")
    theirs = embed(proof.twin_of(new.module, first, dtype))
    base = _of_base_model(new, lambda base: embed(proof.twin_of(base, first, dtype)))
    step("clean images through the old tower")
    ours = [embed(tower, dtype) for tower in parts.towers.values()]

    def cosine(others: torch.Tensor) -> float:
        return smallest(proof.mean_cosine(embeddings, others) for embeddings in ours)

    return SwapReport(
        vlm_class=type(parts.vlm).__name__,
        tower=", ".join(parts.towers),
        source=new.source,
        converted=new.converted,
        tensors=0,
        changed=0,
        resolution=(kind_of(first).side(first.config), kind_of(first).side(new.module.config)),
        cosine=cosine(theirs),
        base_model=new.base_model,
        base_cosine=None if base is None else cosine(base),
        normalization=borrowed,
        towers=parts.towers,
    )


def _warn_of_origin(report: SwapReport, states: Mapping[str, dict[str, torch.Tensor]], minimum: float) -> None:
    """Say so where encoder and tower have another origin: by what they make of clean images, then by their weights."""
    found = [
        (cosine, name)
        for path, state in states.items()
        for name, tensor in state.items()
        if (cosine := compatibility.weight_cosine(tensor, report.old_states[path][name])) is not None
    ]
    # NaN, of an old tower that held it, counts as the lowest.
    report.weight_cosine, matrix = min(found, key=lambda pair: (not math.isnan(pair[0]), pair[0]))
    lowest = smallest([report.cosine] if report.base_cosine is None else [report.cosine, report.base_cosine])
    base = f" (base model {report.base_model})" if report.base_model else ""
    if not lowest >= minimum:
        reason = f"clean images have embeddings with cosine {lowest:.2f} only in the encoder '{report.source}'{base}"
    elif not report.weight_cosine >= min(minimum, compatibility.MINIMUM_WEIGHT_COSINE):
        reason = f"'{matrix}' has cosine {report.weight_cosine:.2f} only in the encoder '{report.source}'{base}"
    else:
        return
    warnings.warn(
        f"{reason} and in the model's own tower: it seems to be fine-tuned from another model, or too far, or its "
        "weights are mixed up; the language model may not understand it.",
        UserWarning,
        stacklevel=4,
    )


def _apply(parts: _Parts, report: SwapReport, states: Mapping[str, Any], step: Callable[[str], None]) -> None:
    """Write, verify, and put everything back where the proof fails."""
    vlm, processor, first, module = parts.vlm, parts.processor, parts.first, parts.new.module
    before = None if processor is None else proof.image_tokens(vlm, processor)
    step(f"a probe image through encoder and tower, in {placement(first)[1]}")
    expected = proof.probe_states(proof.twin_of(module, first), first, report.source)
    report.in_force()
    try:
        _write(parts, report, states)
        for tower in parts.towers.values():
            _prove(tower, expected, report)
        if before is not None:
            step("an image through the whole model")
            report.image_tokens = (before, proof.forward_check(vlm, processor))
    except BaseException:
        report.undo()
        raise


def _prove(tower: nn.Module, expected: Sequence[torch.Tensor], report: SwapReport) -> None:
    """The tower, in its own precision and with its own hooks, computes what the encoder computes."""
    difference, allowed = proof.tower_difference(tower, expected)
    report.probe_difference = largest([report.probe_difference, difference])
    if not difference <= allowed:
        raise RuntimeError(
            f"the swapped tower differs from the encoder '{report.source}' by {difference:.3g} on a probe image: the "
            "old weights were put back; remove hooks or adapters from the tower and swap again."
        )


def _write(parts: _Parts, report: SwapReport, states: Mapping[str, Any]) -> None:
    old, size = report.resolution
    if size != old:
        resize_processor(parts.family, parts.processor, old, size, report.edits)
        for tower in parts.towers.values():
            resize_tower(tower, size, report.edits)
        resize_configs(parts.vlm, parts.family, parts.towers.values(), size, report.edits)
    for path, tower in parts.towers.items():
        tower.load_state_dict(states[path], strict=True)


def _normalization(new: Encoder, processor: Any) -> tuple[Normalization, str | None]:
    """Of the processor, else of what came with the encoder, else the usual one of its kind; whose, if not its own."""
    images = new.images if processor is None else image_processor_of(processor)
    if images is not None:
        return Normalization.from_processor(images), None if new.images is not None else "by the model's own processor"
    kind = kind_of(new.module)
    return Normalization(kind.mean, kind.std), kind.usual


def _of_base_model(new: Encoder, embed: Callable[[Any], torch.Tensor]) -> torch.Tensor | None:
    """Clean embeddings of the base model that the card names, if it is on this machine: nothing is downloaded."""
    if new.base_model is None or not (os.path.isdir(new.base_model) or names_repository(new.base_model)):
        return None
    try:
        base = load_encoder(new.base_model, "tokens", local_files_only=True)
        same = type(base) is type(new.module) and base.config.hidden_size == new.module.config.hidden_size
        return embed(base) if same else None
    except Exception:  # whatever is wrong with it: it is compared for information only
        return None
