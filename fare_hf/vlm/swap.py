"""Put a robust vision encoder into a published vision-language model, in place and verified."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel

from fare_hf.convert.checkpoints import names_repository
from fare_hf.encoders import load_encoder
from fare_hf.pixels import Normalization
from fare_hf.vlm import checks, verify
from fare_hf.vlm.families import (
    ENCODER_OF,
    Family,
    family_of,
    image_processor_of,
    layers_read,
    placement,
    towers_of,
    unwrapped,
)
from fare_hf.vlm.resolution import Edits, resize_configs, resize_processor, resize_tower
from fare_hf.vlm.sources import Encoder, read_encoder

__all__ = ["SwapReport", "swap_vision_tower"]

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# Swaps in force, oldest first, by tower: only the newest can be put back.
_active: WeakKeyDictionary[nn.Module, list[SwapReport]] = WeakKeyDictionary()


@dataclass(eq=False)
class SwapReport:
    """What a swap did, and the way back.

    Use it as a context manager to have the new tower only for a while:

        with swap_vision_tower(llava, "user/robust-encoder"):
            ...  # robust
        ...      # the old weights again

    Attributes:
        vlm_class: class of the vision-language model.
        tower: path of the tower inside it; several are joined by commas.
        source: folder, repository, file or class name of the encoder that was put in.
        converted: whether it came in open_clip's format.
        tensors: number of weight tensors written.
        changed: how many of them differ from the old ones.
        resolution: pixels a side, before and after.
        weight_cosine: lowest cosine of a weight matrix with the tower's old one; about 0 in an encoder of another
            training, or where layers or heads were mixed up.
        image_tokens: placeholders of one image, before and after; None without a processor.
        probe_difference: largest absolute difference, over all hidden states of one probe image, between the
            swapped tower and the encoder run on its own in the same dtype (0.0 where the kernels are the same).
        cosine: mean cosine of the clean embeddings of old tower and new encoder; near 1 for an encoder that was
            fine-tuned from this tower with FARE.
        base_model: what the encoder's card says it was fine-tuned from, or None.
        base_cosine: mean cosine of that base model and the old tower (1.0 for the very same), where it is at hand.
    """

    vlm_class: str
    tower: str
    source: str
    converted: bool
    tensors: int
    changed: int
    resolution: tuple[int, int]
    cosine: float
    base_model: str | None = None
    base_cosine: float | None = None
    weight_cosine: float = 1.0
    image_tokens: tuple[int, int] | None = None
    probe_difference: float = 0.0
    towers: Mapping[str, Any] = field(repr=False, default_factory=dict)
    old_states: Mapping[str, dict[str, torch.Tensor]] = field(repr=False, default_factory=dict)
    edits: Edits = field(repr=False, default_factory=Edits)

    def undo(self) -> None:
        """Put back weights, configuration and processor; calling it again changes nothing more.

        Raises:
            RuntimeError: a later swap of the same tower is in force.
            ValueError: the tower was offloaded or quantised since; it keeps the new weights.
        """
        stacks = [_active.get(tower, []) for tower in self.towers.values()]
        if not any(self in stack for stack in stacks):
            return
        for stack in stacks:
            if stack and stack[-1] is not self:
                raise RuntimeError(
                    f"the encoder '{stack[-1].source}' was swapped in after '{self.source}': undo that swap first."
                )
        checks.check_writable(self.towers)
        self.edits.undo()
        for path, tower in self.towers.items():
            tower.load_state_dict(self.old_states[path], strict=True)
        for stack in stacks:
            stack.pop()

    def __enter__(self) -> SwapReport:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def __str__(self) -> str:
        lines = [f"{self.source} -> {self.tower} of {self.vlm_class}{' (from open_clip)' if self.converted else ''}"]
        lines += [
            f"{self.changed} of {self.tensors} tensors changed; probe image differs by {self.probe_difference:g}"
        ]
        if self.resolution[0] != self.resolution[1]:
            lines += [f"resolution {self.resolution[0]} -> {self.resolution[1]} px"]
        if self.image_tokens and self.image_tokens[0] != self.image_tokens[1]:
            lines += [f"image tokens {self.image_tokens[0]} -> {self.image_tokens[1]}"]
        base = f"; its base {self.base_model}" if self.base_model else ""
        base += f": {self.base_cosine:.3f}" if self.base_cosine is not None else ""
        lines += [f"lowest cosine of a weight matrix to the old tower: {self.weight_cosine:.3f}"]
        return "\n".join([*lines, f"cosine of clean embeddings to the old tower: {self.cosine:.3f}{base}"])


def swap_vision_tower(
    vlm: PreTrainedModel,
    encoder: str | os.PathLike[str] | PreTrainedModel,
    processor: Any = None,
    *,
    base: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    minimum_cosine: float = verify.MINIMUM_COSINE,
) -> SwapReport:
    """Replace the weights of a vision-language model's tower by those of a robust encoder.

    The weights are copied into the old tower, so its device, dtype, hooks, mode, `requires_grad` and attention
    implementation stay, and everything else of the model is untouched. A probe image then has to give the same
    hidden states as the encoder on its own, and, with a processor, the whole model runs once. The old weights are
    kept in main memory for `SwapReport.undo`.

    Args:
        vlm: a model of `fare_hf.vlm.families.FAMILIES`; may be compiled, or wrapped for data parallelism or by PEFT.
        encoder: a module (`CLIPVisionModel`, `CLIPVisionModelWithProjection`, `CLIPModel`, `SiglipVisionModel`), a
            folder or Hub name in the format of transformers or open_clip (converted on the fly), or a file with the
            open_clip state dict of a vision tower.
        processor: the model's processor; needed for an encoder of another resolution, which changes it too.
        base: for a bare file, the CLIP it was fine-tuned from; None takes what the file does not say from the tower.
        revision: of the encoder on the Hub.
        minimum_cosine: a warning is given where the clean embeddings of encoder and tower agree less than this, or the
            weights of a matrix (less than this and 0.5); -1 never warns.

    Raises:
        TypeError: the model is not of a known family, or `encoder` is not a vision encoder.
        ValueError: another architecture (the field and both values are named), another resolution without a
            processor, the processor of another model, a folder without weights, weights that are not finite, a tower
            that is quantised, offloaded to the meta device, tied or carries adapters.
        RuntimeError: the swapped tower does not compute what the encoder computes; everything is put back then.
    """
    if not -1 <= minimum_cosine <= 1:
        raise ValueError(f"minimum_cosine is {minimum_cosine}: give a number from -1 (never warn) to 1.")
    family = family_of(vlm)
    vlm, towers = unwrapped(vlm), towers_of(vlm)
    first = next(iter(towers.values()))
    checks.check_writable(towers)
    checks.check_shared(vlm, towers)
    new = read_encoder(encoder, first.config, base=base, revision=revision)
    _check_fit(vlm, family, towers, new, processor)
    states = {path: _new_state(tower, new) for path, tower in towers.items()}
    old = {path: {n: t.detach().to("cpu", copy=True) for n, t in towers[path].state_dict().items()} for path in towers}
    changed = sum(_differs(tensor, old[path][name]) for path in states for name, tensor in states[path].items())
    if not changed:
        warnings.warn(
            f"the vision tower holds the weights of the encoder '{new.source}' already: the swap changes nothing.",
            UserWarning,
            stacklevel=2,
        )
    report = _describe(vlm, family, towers, new, processor)
    report.tensors, report.changed, report.old_states = sum(map(len, states.values())), changed, old
    _warn_of_origin(report, states, minimum_cosine)
    _apply(vlm, family, report, states, new, processor)
    return report


def _check_fit(vlm: Any, family: Family, towers: Mapping[str, Any], new: Encoder, processor: Any) -> None:
    """Everything that can be said before a forward pass."""
    for tower in towers.values():
        wanted = ENCODER_OF[type(tower).__name__]
        if type(new.module).__name__ != wanted:
            raise ValueError(
                f"the encoder '{new.source}' is a {type(new.module).__name__}, the vision tower needs a {wanted}: "
                "pass an encoder of the tower's kind."
            )
        checks.check_architecture(vlm.config, family, tower.config, new.module.config, new.source)
    tower_config = next(iter(towers.values())).config
    old, size = tower_config.image_size, new.module.config.image_size
    if processor is not None:
        checks.check_processor(vlm.config, processor, tower_config)
        checks.check_normalization(processor, new.images, new.source)
    elif old != size:
        raise ValueError(
            f"the encoder '{new.source}' has image_size {size}, the vision tower has {old}: pass processor=, whose "
            "resolution has to change too."
        )


def _new_state(tower: nn.Module, new: Encoder) -> dict[str, torch.Tensor]:
    """The encoder's weights under the tower's names, checked."""
    state = checks.tower_state(new.module.state_dict(), tower.state_dict(), new.source)
    _, dtype = placement(tower)
    for name, tensor in state.items():
        checks.check_weights(name, tensor, dtype, new.source)
    return state


def _differs(tensor: torch.Tensor, old: torch.Tensor) -> bool:
    return tensor.shape != old.shape or not torch.equal(tensor.to("cpu", old.dtype), old)


def _describe(vlm: Any, family: Family, towers: Mapping[str, Any], new: Encoder, processor: Any) -> SwapReport:
    """The report before anything is changed."""
    first = next(iter(towers.values()))
    layers = max(layers_read(vlm.config, family, first.config.num_hidden_layers))
    normalization = _normalization(new, processor)
    theirs = verify.clean_embeddings(verify.twin_of(new.module, first), normalization, layers)
    ours = [verify.clean_embeddings(tower, normalization, layers) for tower in towers.values()]
    cosine = min(verify.mean_cosine(embeddings, theirs) for embeddings in ours)
    base = _base_embeddings(new, first, normalization, layers)
    base_cosine = None if base is None else min(verify.mean_cosine(embeddings, base) for embeddings in ours)
    sizes = (int(first.config.image_size), int(new.module.config.image_size))
    path = ", ".join(towers)
    return SwapReport(
        type(vlm).__name__, path, new.source, new.converted, 0, 0, sizes, cosine, new.base_model, base_cosine,
        towers=towers,
    )  # fmt: skip


def _warn_of_origin(report: SwapReport, states: Mapping[str, dict[str, torch.Tensor]], minimum: float) -> None:
    """Say so where encoder and tower have another origin: by what they make of clean images, then by their weights."""
    found = [
        (cosine, name)
        for path, state in states.items()
        for name, tensor in state.items()
        if (cosine := checks.weight_cosine(tensor, report.old_states[path][name])) is not None
    ]
    report.weight_cosine, matrix = min(found)
    lowest = min(report.cosine, 1.0 if report.base_cosine is None else report.base_cosine)
    base = f" (base model {report.base_model})" if report.base_model else ""
    if not lowest >= minimum:
        reason = f"clean images have embeddings with cosine {lowest:.2f} only in the encoder '{report.source}'{base}"
    elif not report.weight_cosine >= min(minimum, checks.MINIMUM_WEIGHT_COSINE):
        reason = f"'{matrix}' has cosine {report.weight_cosine:.2f} only in the encoder '{report.source}'{base}"
    else:
        return
    warnings.warn(
        f"{reason} and in the model's own tower: it seems to be fine-tuned from another CLIP, or too far, or its "
        "weights are mixed up; the language model may not understand it.",
        UserWarning,
        stacklevel=3,
    )


def _apply(
    vlm: Any, family: Family, report: SwapReport, states: Mapping[str, Any], new: Encoder, processor: Any
) -> None:
    """Write, verify, and put everything back where the proof fails."""
    before = None if processor is None else verify.forward_check(vlm, family, processor)
    twin = verify.twin_of(new.module, next(iter(report.towers.values())))
    for tower in report.towers.values():
        _active.setdefault(tower, []).append(report)
    try:
        _write(vlm, report, states, processor)
        for tower in report.towers.values():
            difference, allowed = verify.tower_difference(tower, twin)
            report.probe_difference = max(report.probe_difference, difference)
            if not difference <= allowed:
                raise RuntimeError(
                    f"the swapped tower differs from the encoder '{report.source}' by {difference:.3g} on a probe "
                    "image: the old weights were put back; remove hooks or adapters from the tower and swap again."
                )
        if before is not None:
            report.image_tokens = (before, verify.forward_check(vlm, family, processor))
    except BaseException:
        report.undo()
        raise


def _write(vlm: Any, report: SwapReport, states: Mapping[str, Any], processor: Any) -> None:
    old, size = report.resolution
    if size != old:
        resize_processor(processor, old, size, report.edits)
        for tower in report.towers.values():
            resize_tower(tower, size, report.edits)
        resize_configs(vlm, report.towers.values(), size, report.edits)
    for path, tower in report.towers.items():
        tower.load_state_dict(states[path], strict=True)


def _normalization(new: Encoder, processor: Any) -> Normalization:
    """Of the processor, else of what came with the encoder, else the usual one of its kind."""
    images = new.images if processor is None else image_processor_of(processor)
    if images is not None:
        return Normalization.from_processor(images)
    siglip = type(new.module).__name__.startswith("Siglip")
    return Normalization([0.5] * 3, [0.5] * 3) if siglip else Normalization(CLIP_MEAN, CLIP_STD)


def _base_embeddings(new: Encoder, tower: nn.Module, normalization: Normalization, layers: int) -> torch.Tensor | None:
    """Clean embeddings of the base model that the card names, if it is on this machine: nothing is downloaded."""
    if new.base_model is None or not (os.path.isdir(new.base_model) or names_repository(new.base_model)):
        return None
    try:
        base = load_encoder(new.base_model, "tokens", local_files_only=True)
        if type(base) is not type(new.module) or base.config.hidden_size != new.module.config.hidden_size:
            return None
        return verify.clean_embeddings(verify.twin_of(base, tower), normalization, layers)
    except (OSError, ValueError, RuntimeError):
        return None
