"""What must hold before an encoder may stand in for a tower; configurations and weights, no forward pass."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fare_hf.finite import check_finite
from fare_hf.vlm.families.family import Family, image_processor_of
from fare_hf.vlm.families.table import layers_read
from fare_hf.vlm.families.towers import kind_typed

__all__ = [
    "ARCHITECTURE_FIELDS",
    "MINIMUM_WEIGHT_COSINE",
    "check_architecture",
    "check_image_token",
    "check_normalization",
    "check_processor",
    "check_shared",
    "check_weights",
    "check_writable",
    "tower_state",
    "weight_cosine",
]

ARCHITECTURE_FIELDS: tuple[str, ...] = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_channels",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)
"""What two encoders must share to compute the same function of the same weights; layers and resolution apart."""

MINIMUM_WEIGHT_COSINE = 0.5
"""Fine-tuning turns no weight matrix further than this (the lab's encoders, with their large learning rates, keep
0.68); matrices of another training, and those of other layers or heads of the same encoder, are at 0."""

NO_ARCHITECTURE = ("_name_or_path", "architectures", "dtype", "transformers_version", "use_cache", "initializer_range")
"""Fields of a configuration that do not change what weights compute."""
PREFIX = "vision_model."
# Of an encoder, never of the features that a language model reads.
NOT_READ = ("visual_projection.", "head.", "embeddings.position_ids")
QUANTISED = (
    " is quantised or sharded ('{}' is {}): load the model with the tower as it was saved "
    "(llm_int8_skip_modules=['model.vision_tower']), swap, and quantise or shard afterwards; or merge the encoder "
    "into the model's repository with merge_vision_tower, and load the result quantised."
)
ADAPTED = re.compile(r"\.(base_layer|lora_\w+|modules_to_save|original_module)\.")
PLAIN = (nn.Parameter, torch.Tensor)


def check_architecture(config: Any, family: Family, tower: Any, new: Any, source: str, vlm: str = "") -> None:
    """Compare two vision configurations.

    Args:
        config: of the vision-language model: says which layers are read.
        family: its row.
        tower: vision configuration of its tower.
        new: vision configuration of the encoder.
        source: name of the encoder.
        vlm: name of the vision-language model, where it has one.

    Raises:
        ValueError: another kind of encoder; the first field that differs, with both values; layers that are read and
            not there; another resolution in a family that has one resolution only.
    """
    place = f"the vision tower{f' of {vlm!r}' if vlm else ''}"
    wanted = _encoder_class(tower)
    if _encoder_class(new) != wanted:
        raise ValueError(
            f"the encoder '{source}' is a {_encoder_class(new)}, {place} needs a {wanted}: pass an encoder of the "
            "tower's kind."
        )
    kind = kind_typed(tower.model_type)
    if kind is not None and kind.own:
        _check_same(tower.to_dict(), new.to_dict(), source, place)
        return
    differing = [name for name in ARCHITECTURE_FIELDS if getattr(tower, name) != getattr(new, name)]
    layers, found = tower.num_hidden_layers, new.num_hidden_layers
    read = ", ".join(map(str, sorted(layers_read(config, family, layers)))) if not differing else ""
    # SigLIP towers are published without the last block, which is not read; an encoder may bring it.
    another_depth = found < layers or (found > layers and family.features != "layers")
    if differing:
        name, its, advice = differing[0], "", "of the tower's architecture"
    elif another_depth:
        name, its, advice = "num_hidden_layers", f" (its layers {read} are read)", "with as many layers"
    elif new.image_size != tower.image_size and not family.any_size:
        fixed = f", and a {family.vlm_class} reads a fixed number of patches"
        name, its, advice = "image_size", fixed, "of the tower's resolution"
    else:
        return
    raise ValueError(
        f"the encoder '{source}' has {name} {getattr(new, name)!r}, {place} has {getattr(tower, name)!r}{its}: pass "
        f"an encoder {advice}."
    )


def _check_same(tower: Mapping[str, Any], new: Mapping[str, Any], source: str, place: str) -> None:
    """A tower of a class of its own fits where every field is the same."""
    for name, value in tower.items():
        if name not in NO_ARCHITECTURE and _listed(new.get(name)) != _listed(value):
            raise ValueError(
                f"the encoder '{source}' has {name} {new.get(name)!r}, {place} has {value!r}: pass the tower of the "
                "same model, of the same size."
            )


def _encoder_class(config: Any) -> str:
    kind = kind_typed(config.model_type)
    return repr(config.model_type) if kind is None else kind.encoder


def check_writable(towers: Mapping[str, nn.Module]) -> None:
    """Refuse towers whose weights cannot be written in place; the language model may be quantised or offloaded.

    Raises:
        ValueError: weights on the meta device (offloaded or never loaded), quantised, or partitioned.
    """
    for tower in towers.values():
        for name, parameter in tower.named_parameters():
            fault = _fault(name, parameter)
            if fault:
                raise ValueError(f"the vision tower{fault}")


def _fault(name: str, parameter: nn.Parameter) -> str | None:
    if parameter.device.type == "meta":
        return (
            f"'s '{name}' is on the meta device (offloaded or not loaded): load the model without offloading the "
            "tower (a device_map that puts it on a device), then swap."
        )
    if not parameter.dtype.is_floating_point or parameter.dtype.itemsize < 2:
        return QUANTISED.format(name, parameter.dtype)
    for kind in (type(parameter), type(parameter.data)):
        if kind not in PLAIN:  # what a quantisation or a sharding puts in a weight's place
            return QUANTISED.format(name, f"a {kind.__name__}")
    if not parameter.numel():
        return (
            f"'s '{name}' is empty in this process (partitioned by DeepSpeed or FSDP): swap before the model is "
            "partitioned."
        )
    return None


def check_shared(vlm: nn.Module, towers: Mapping[str, nn.Module]) -> None:
    """Refuse towers whose weights something else of the model uses too: it would be changed with them.

    Raises:
        ValueError: the first weight that is shared, and with what.
    """
    owned = {id(parameter): name for tower in towers.values() for name, parameter in tower.named_parameters()}
    inside = tuple(
        f"{name}."
        for name, module in vlm.named_modules(remove_duplicate=False)
        if any(module is t for t in towers.values())
    )
    for name, parameter in vlm.named_parameters(remove_duplicate=False):
        if id(parameter) in owned and not name.startswith(inside):
            raise ValueError(
                f"the vision tower's '{owned[id(parameter)]}' is also the model's '{name}' (tied): untie them "
                "first, as a swap would change both."
            )


def tower_state(state: Mapping[str, torch.Tensor], wanted: Iterable[str], source: str) -> dict[str, torch.Tensor]:
    """The encoder's weights under the tower's names, with or without the `vision_model.` level of older releases.

    Blocks and heads that the tower does not have are left out.

    Raises:
        ValueError: the encoder lacks a weight of the tower, or one of them carries adapters.
    """
    wanted = list(wanted)
    for names, owner in ((wanted, "the vision tower"), (state, f"the encoder '{source}'")):
        adapted = next((name for name in names if ADAPTED.search(name)), None)
        if adapted is not None:
            raise ValueError(
                f"{owner} carries an adapter ('{adapted}'): merge it into the weights first (PEFT's merge_and_unload)."
            )
    flat = {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}
    found = {}
    for name in wanted:
        plain = name.removeprefix(PREFIX)
        if plain not in flat:
            raise ValueError(
                f"the vision tower has '{plain}', for which the encoder '{source}' has no weights: pass an encoder "
                "with all its parts (or, if that is of a quantisation, load the tower as it was saved)."
            )
        found[name] = flat[plain].detach()
    further = [name for name in flat if not name.startswith(NOT_READ) and "encoder.layers." not in name]
    strange = sorted(set(further) - {name.removeprefix(PREFIX) for name in found})
    if strange:
        raise ValueError(f"the encoder '{source}' has weights '{strange[0]}' that the vision tower lacks.")
    return found


def check_weights(name: str, tensor: torch.Tensor, dtype: torch.dtype, source: str) -> None:
    """Refuse a weight that is absent (meta) or not finite, in its own dtype or in the tower's.

    Raises:
        ValueError: the weight is named, and the dtype that holds it.
    """
    if tensor.device.type == "meta":
        raise ValueError(f"the encoder '{source}' holds no values for '{name}' (meta device): load it fully first.")
    check_finite(tensor, f"the weights '{name}' of the encoder '{source}'", dtype)


def weight_cosine(new: torch.Tensor, old: torch.Tensor) -> float | None:
    """Cosine of two weight matrices, on the CPU; None for vectors, and where the shapes differ (other positions)."""
    if new.ndim < 2 or new.shape != old.shape or not new.is_floating_point():
        return None
    a, b = new.detach().float().cpu().flatten(), old.detach().float().cpu().flatten()
    return 1.0 if torch.equal(a, b) else float(F.cosine_similarity(a, b, dim=0))


def check_processor(family: Family, config: Any, processor: Any, tower: Any) -> None:
    """Tell a processor of another model from the model's own.

    Args:
        family: row of the vision-language model.
        config: of the model.
        processor: the processor that was passed.
        tower: vision configuration of its tower.

    Raises:
        TypeError: no processor of a vision-language model.
        ValueError: the field in which it differs.
    """
    image_processor_of(processor)
    check_image_token(family, config, processor)
    pairs = (
        ("patch_size", family.processor_patch(config, tower)),
        ("vision_feature_select_strategy", getattr(config, "vision_feature_select_strategy", None)),
    )
    for name, value in pairs:
        other = getattr(processor, name, None)
        if value is not None and other is not None and other != value:
            raise ValueError(
                f"the processor has {name} {other!r}, the model {value!r}: load both from the same repository."
            )


def check_image_token(family: Family, config: Any, processor: Any) -> None:
    """Processor and model must agree on the token that stands for an image.

    Raises:
        ValueError: they do not.
    """
    expected, token = getattr(config, "image_token_id", None), family.feature_token(processor)
    index = processor.tokenizer.convert_tokens_to_ids(token)
    if expected is not None and index != expected:
        raise ValueError(
            f"the processor's image token '{token}' has id {index}, the model expects {expected}: load both from the "
            "same repository."
        )


def check_normalization(processor: Any, images: Any | None, source: str) -> None:
    """The encoder must expect the pixels that the model's processor makes.

    Raises:
        ValueError: another mean or standard deviation.
    """
    if images is None:
        return
    own = image_processor_of(processor)
    for name in ("image_mean", "image_std"):
        ours, theirs = (_listed(getattr(holder, name, None)) for holder in (own, images))
        pairs = list(zip_longest(_numbers(ours), _numbers(theirs), fillvalue=math.nan))
        if not pairs or not all(math.isclose(a, b, abs_tol=1e-4) for a, b in pairs):
            raise ValueError(
                f"the encoder '{source}' expects {name} {theirs}, the model's processor has {ours}: pass an encoder "
                "that was fine-tuned from the model's own tower."
            )


def _listed(values: Any) -> Any:
    return list(values) if isinstance(values, tuple) else values


def _numbers(values: Any) -> list[float]:
    """What an image processor says of each channel; nothing where it says none."""
    if not isinstance(values, list):
        return []
    return [value if isinstance(value, (int, float)) else math.nan for value in values]
