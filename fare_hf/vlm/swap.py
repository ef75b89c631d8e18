"""Put a robust vision encoder into a published vision-language model, in place and verified."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from transformers import PreTrainedModel

from fare_hf.encoders import frozen, load_encoder
from fare_hf.vlm.families import family_of, tower_of

__all__ = ["ARCHITECTURE_FIELDS", "SwapReport", "swap_vision_tower"]

ARCHITECTURE_FIELDS: tuple[str, ...] = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)
"""What two encoders must share to compute the same function of the same weights."""

PREFIX = "vision_model."
# The projection is not part of a tower; old files also carry the position index buffer.
NOT_IN_TOWER = ("visual_projection.weight", "embeddings.position_ids")


@dataclass
class SwapReport:
    """What a swap did, and the way back.

    Use it as a context manager to have the new tower only for a while:

        with swap_vision_tower(llava, "user/robust-encoder"):
            ...  # robust
        ...      # the old weights again

    Attributes:
        vlm_class: class of the vision-language model.
        tower: path of the tower inside it.
        source: folder, repository or class name of the encoder that was put in.
        tensors: number of weight tensors written.
        changed: how many of them differ from the old ones.
        probe_difference: largest absolute difference, over all hidden states of one probe image, between the
            swapped tower and the encoder run on its own in the same dtype (0.0 where the kernels are the same).
    """

    vlm_class: str
    tower: str
    source: str
    tensors: int
    changed: int
    probe_difference: float
    module: PreTrainedModel = field(repr=False)
    old_state: dict[str, torch.Tensor] = field(repr=False)

    def undo(self) -> None:
        """Put the weights back that the tower had before this swap; calling it again changes nothing more."""
        self.module.load_state_dict(self.old_state, strict=True)

    def __enter__(self) -> SwapReport:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


def swap_vision_tower(vlm: PreTrainedModel, encoder: str | os.PathLike[str] | PreTrainedModel) -> SwapReport:
    """Replace the weights of a vision-language model's tower by those of a robust encoder.

    The weights are copied into the old tower, so its device, dtype, hooks, mode, `requires_grad` and attention
    implementation stay, and everything else of the model is untouched. A probe image then has to give the same
    hidden states as the encoder on its own. The old weights are kept in main memory for `SwapReport.undo`.

    Args:
        vlm: a model of `fare_hf.vlm.families.FAMILIES`.
        encoder: a folder, a Hub name, or a module: `CLIPVisionModel`, `CLIPVisionModelWithProjection`, `CLIPModel`.

    Raises:
        TypeError: the model is not of a known family, or `encoder` is not a CLIP vision encoder.
        ValueError: another architecture (the field and both values are named), a folder without weights, weights
            that are not finite, a tower that is quantised or offloaded to the meta device.
        RuntimeError: the swapped tower does not compute what the encoder computes; the old weights are back then.
    """
    family = family_of(vlm)
    tower = tower_of(vlm)
    _check_writable(vlm, tower)
    new, source = _vision_module(encoder)
    _check_architecture(tower, new, source)
    state = _tower_state(new, tower.state_dict().keys())
    _check_weights(state, tower, source)
    old = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tower.state_dict().items()}
    reference = _twin(new, tower)
    tower.load_state_dict(state, strict=True)
    changed = sum(not torch.equal(tensor.cpu(), old[name]) for name, tensor in tower.state_dict().items())
    report = SwapReport(type(vlm).__name__, family.tower, source, len(state), changed, 0.0, tower, old)
    report.probe_difference = _probe(report, reference)
    return report


def _check_writable(vlm: PreTrainedModel, tower: PreTrainedModel) -> None:
    """Refuse towers whose weights cannot be written in place."""
    for name, parameter in tower.named_parameters():
        if parameter.device.type == "meta":
            raise ValueError(
                f"the vision tower's '{name}' is on the meta device (offloaded or not loaded): load the model "
                "without offloading before the swap."
            )
        if not parameter.dtype.is_floating_point or parameter.dtype.itemsize < 2:
            raise ValueError(
                f"the vision tower is quantised ('{name}' is {parameter.dtype}): load the model unquantised, swap, "
                "and quantise afterwards."
            )
    if getattr(vlm, "is_quantized", False):
        raise ValueError("this model is quantised: load it unquantised, swap, and quantise afterwards.")


def _vision_module(encoder: str | os.PathLike[str] | PreTrainedModel) -> tuple[PreTrainedModel, str]:
    """Return the `CLIPVisionModel` inside what was passed, and a name for it."""
    if isinstance(encoder, (str, os.PathLike)):
        _check_folder(Path(encoder))
        return load_encoder(os.fspath(encoder), "tokens"), os.fspath(encoder)
    inner = getattr(encoder, "vision_model", encoder)
    if not isinstance(inner, PreTrainedModel) or type(inner).__name__ != "CLIPVisionModel":
        raise TypeError(
            f"{type(encoder).__name__} is not a CLIP vision encoder: pass a folder, a Hub name, a CLIPVisionModel or "
            "a CLIPVisionModelWithProjection."
        )
    return inner, type(encoder).__name__


def _check_folder(folder: Path) -> None:
    """Say at once that a local folder holds no weights (transformers' own message speaks of the Hub)."""
    if not folder.is_dir():
        return
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise ValueError(f"the folder '{folder}' holds no weights: it needs a model.safetensors.")


def _check_architecture(tower: PreTrainedModel, new: PreTrainedModel, source: str) -> None:
    """Raise ValueError at the first configuration field in which the two encoders differ."""
    for name in ARCHITECTURE_FIELDS:
        old_value, new_value = getattr(tower.config, name), getattr(new.config, name)
        if old_value != new_value:
            raise ValueError(
                f"the encoder '{source}' has {name} {new_value!r}, the vision tower has {old_value!r}: pass an "
                "encoder of the tower's architecture."
            )


def _tower_state(new: PreTrainedModel, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Weights of `new` under the tower's names, with or without the `vision_model.` level of older releases."""
    prefix = PREFIX if any(name.startswith(PREFIX) for name in names) else ""
    flat = {name.removeprefix(PREFIX): tensor for name, tensor in new.state_dict().items()}
    return {prefix + name: tensor.detach() for name, tensor in flat.items() if name not in NOT_IN_TOWER}


def _check_weights(state: dict[str, torch.Tensor], tower: PreTrainedModel, source: str) -> None:
    """Refuse weights that are absent (meta) or not finite, in their own dtype or in the tower's."""
    dtype = next(tower.parameters()).dtype
    for name, tensor in state.items():
        if tensor.device.type == "meta":
            raise ValueError(
                f"the encoder '{source}' holds no values for '{name}' (meta device): load it fully first."
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.to(dtype)).all()):
            raise ValueError(
                f"the weights '{name}' of the encoder '{source}' hold NaN or infinity in {dtype}: check its training."
            )


def _twin(new: PreTrainedModel, tower: PreTrainedModel) -> Any:
    """A copy of the encoder with the tower's device, dtype and attention, to compare the swapped tower with."""
    parameter = next(tower.parameters())
    twin: Any = copy.deepcopy(new)
    twin.to(device=parameter.device, dtype=parameter.dtype).eval()
    twin.set_attn_implementation(tower.config._attn_implementation)
    return twin


def _probe(report: SwapReport, reference: Any) -> float:
    """Largest difference of any hidden state on a probe image; undo the swap and raise if it is no rounding."""
    parameter = next(report.module.parameters())
    size = report.module.config.image_size
    probe = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    probe = probe.to(device=parameter.device, dtype=parameter.dtype)
    with torch.no_grad(), frozen(report.module):
        ours = report.module(pixel_values=probe, output_hidden_states=True).hidden_states
        theirs = reference(pixel_values=probe, output_hidden_states=True).hidden_states
    difference = max(float((a.float() - b.float()).abs().max()) for a, b in zip(ours, theirs, strict=True))
    scale = max(float(b.float().abs().max()) for b in theirs)
    tolerance = 1e-4 if parameter.dtype in (torch.float32, torch.float64) else 2e-2
    if not difference <= tolerance * scale:
        report.undo()
        raise RuntimeError(
            f"the swapped tower differs from the encoder '{report.source}' by {difference:.3g} on a probe image: the "
            "old weights were put back; remove hooks or adapters from the tower and swap again."
        )
    return difference
