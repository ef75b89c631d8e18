"""Configurations that strangers wrote: read, bounded and checked before a model is built from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoImageProcessor
from transformers.activations import ACT2FN
from transformers.utils import cached_file

from fare_hf.files.documents import read_object
from fare_hf.files.folders import check_links, check_model_name, encoder_inside
from fare_hf.pretrained.encoder_families import TEXT_TYPES, TOWER_TYPES, family_of_type
from fare_hf.pretrained.foreign_code import OwnCodeError, foreign_files, own_code_refused
from fare_hf.pretrained.original_llava import refuse_original_llava

__all__ = [
    "check_configuration",
    "check_image_processor",
    "check_room",
    "configuration_from",
    "load_image_processor",
    "optional_file",
    "read_configuration",
    "read_json_object",
]

CONFIG = "config.json"
HUB_OPTIONS = ("cache_dir", "local_files_only", "revision", "subfolder", "token")
MOST_BYTES = 16 << 20
"""Of a JSON file: those of published models have some kilobytes, an index of thousands of tensors some hundreds."""

SIZES = {
    "num_hidden_layers": 1_000,
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "num_attention_heads": 1 << 12,
    "num_channels": 1 << 10,
    "patch_size": 1 << 14,
    "image_size": 1 << 14,
    "projection_dim": 1 << 17,
    "vocab_size": 1 << 24,
    "max_position_embeddings": 1 << 31,
}
"""Fields that count something -> the most that is believed, far above any published model."""

LARGEST_SIDE = 16 * SIZES["image_size"]
"""Of an image that a processor makes."""

MOST_PARAMETERS = 25_000_000_000
"""Of an encoder; the largest ViT that was ever trained has 22 billion."""

SHARES = ("attention_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate", "dropout")
NUMBERS = ("layer_norm_eps", "initializer_range", "initializer_factor", "logit_scale_init_value", "layerscale_value")
IMPLEMENTATIONS = ("attn_implementation", "_attn_implementation", "experts_implementation")
SMALLEST_SCALE, SMALLEST_DEVIATION, LARGEST_CHANNEL = 1e-6, 1e-4, 1e4
"""Of means and deviations, which are below 1 in nearly all models, and below 256 in the others."""


def read_configuration(name_or_path: str, **options: Any) -> Any:
    """The configuration of a model, as `AutoConfig` gives it, without running anything of the repository.

    Args:
        name_or_path: folder or Hub name.
        options: of a Hub repository: `cache_dir`, `local_files_only`, `revision`, `subfolder`, `token`; others are
            for the weights.

    Raises:
        OSError: no such folder or repository, or not to be read.
        ValueError: no config.json in it, or one that holds what no model can have; the file, the field and its value
            are named; a link that leaves the folder.
    """
    check_model_name(name_or_path)
    check_links(name_or_path)
    path = cached_file(str(name_or_path), CONFIG, **_hub_options(options))
    if path is None:  # a folder without one
        what = encoder_inside(name_or_path) or "the folder or repository of a model"
        raise ValueError(f"'{name_or_path}' holds no {CONFIG}: name {what}.")
    where = _where(name_or_path, CONFIG)
    return configuration_from(read_json_object(Path(path)), where, str(name_or_path))


def configuration_from(values: dict[str, Any], where: str, name: str = "") -> Any:
    """A configuration made of the content of a config.json, checked.

    Args:
        values: the content.
        where: names the file, for the message.
        name: of the model, which the configuration carries.

    Raises:
        ValueError: as `read_configuration`.
    """
    refuse_original_llava(values, name or where)
    _refuse(where, _value_faults(values))
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        if "auto_map" in values:
            raise OwnCodeError(name or where)
        raise ValueError(f"{where} has model_type {_shown(kind)}, which is no model of transformers: name another.")
    with foreign_files(f"{where} is no configuration of a {kind!r} model", "mend it"):
        config = CONFIG_MAPPING[kind].from_dict(values, **({"name_or_path": name} if name else {}))
    check_configuration(config, where)
    return config


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object of a model's repository: `read_object`, with the bound that a configuration needs.

    Raises:
        ValueError: no JSON, no object, or larger or nested deeper than any model's.
    """
    return read_object(path, MOST_BYTES)


def optional_file(name_or_path: str, file: str, **options: Any) -> Path | None:
    """A file of a folder or repository; None where it is not there, or the Hub gives no answer.

    Args:
        name_or_path: folder or Hub name.
        file: its name.
        options: as for `read_configuration`.
    """
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    path = cached_file(str(name_or_path), file, **_hub_options(options), **quiet)
    return None if path is None else Path(path)


def check_configuration(config: Any, where: str) -> None:
    """What must hold between the fields of an encoder's configuration, those that have defaults included.

    Args:
        config: of a CLIP, SigLIP or DINOv2, whole or of one side; others are not looked into, but for their
            `vision_config`.
        where: names the file, for the message.

    Raises:
        ValueError: fields that do not fit each other, or that together ask for a model beyond belief.
    """
    _refuse(where, _configuration_faults(config))


def check_room(config: Any, name_or_path: str) -> None:
    """A folder's files are large enough for the weights that its configuration asks for.

    What is missing would be made at random before it is told, in memory that a few bytes of JSON ask for.

    Args:
        config: of an encoder.
        name_or_path: folder; of a Hub repository, only `MOST_PARAMETERS` is held.

    Raises:
        ValueError: less than a byte a parameter.
    """
    folder = Path(name_or_path)
    files = [path for path in folder.glob("*") if path.name.endswith((".safetensors", ".bin"))]
    parts = [part for part in (getattr(config, "vision_config", config),) if part.model_type in TOWER_TYPES]
    wanted, there = sum(map(count_largest, parts)), sum(path.stat().st_size for path in files)
    if files and wanted > there:
        raise ValueError(
            f"'{folder}' holds {there:,} bytes of weights, and its config.json asks for {wanted:,} parameters: "
            "weights and configuration are of different models."
        )


def load_image_processor(
    name_or_path: str, config: Any | None = None, *, cls: Any = AutoImageProcessor, **hub: Any
) -> Any:
    """The image processor of a folder or repository, checked.

    Args:
        name_or_path: folder or Hub name.
        config: of the encoder that reads the images, where it is known.
        cls: of the image processor, where it is known.
        hub: as for `read_configuration`.

    Raises:
        OSError: there is none.
        ValueError: it makes no pixels that a model can read; the field and its value are named; a link that leaves
            the folder.
    """
    check_links(name_or_path)
    where = _where(name_or_path, "preprocessor_config.json")
    if (path := optional_file(name_or_path, "preprocessor_config.json", **hub)) is not None:
        read_json_object(path)
    with foreign_files(f"{where} is of no image processor", "mend it", (ImportError, OSError)):
        with own_code_refused(name_or_path):
            processor = cls.from_pretrained(name_or_path, trust_remote_code=False, **hub)
    check_image_processor(processor, where, config)
    return processor


def check_image_processor(processor: Any, where: str, config: Any | None = None) -> None:
    """A processor's numbers make images that a model can read.

    Args:
        processor: image processor.
        where: names it, for the message.
        config: of the encoder that reads the images, where it is known: CLIP and SigLIP read one size only.

    Raises:
        ValueError: a mean that is not finite, a standard deviation that is not positive, not one of each a channel, a
            size that is not positive or not the encoder's.
    """
    _refuse(where, _processor_faults(processor, getattr(config, "vision_config", config)))


def made_size(processor: Any) -> tuple[int, int] | None:
    """Height and width of what an image processor makes; None where they depend on the image."""
    names = ("crop_size",) if getattr(processor, "do_center_crop", False) else ("size",)
    if names == ("size",) and not getattr(processor, "do_resize", False):
        return None
    sides = dict(getattr(processor, names[0], None) or {})
    if sides.get("height") and sides.get("width"):
        return int(sides["height"]), int(sides["width"])
    return None


def count_largest(part: Any) -> int:
    """Roughly the parameters that a configuration asks for: blocks, and tables of words, positions and patches."""
    width = part.hidden_size
    inner = getattr(part, "intermediate_size", None) or width * getattr(part, "mlp_ratio", 4)
    tables = [getattr(part, "vocab_size", None), getattr(part, "projection_dim", None)]
    if hasattr(part, "patch_size"):
        sides = zip(_pair(part.image_size), _pair(part.patch_size), strict=True)
        patches = math.prod(side // patch for side, patch in sides)
        tables += [part.num_channels * math.prod(_pair(part.patch_size)), patches]
    else:
        tables += [getattr(part, "max_position_embeddings", None)]
    return int(part.num_hidden_layers * (4 * width**2 + 2 * width * inner) + width * sum(t or 0 for t in tables))


def _refuse(where: str, faults: Iterator[str]) -> None:
    """The first fault is the one that is told; what comes after it is not looked at, and may rely on it."""
    if (fault := next(faults, None)) is not None:
        raise ValueError(f"{where} {fault}")


def _value_faults(values: Mapping[str, Any]) -> Iterator[str]:
    """What can be said of the content of a config.json before anything is made of it."""
    if "configuration_files" in values:
        yield "has configuration_files, which names other files: rename the one you mean."
    if any("transformers_weights" in section for _, section in _sections(values)):
        yield "has transformers_weights, which names other files: rename the ones you mean."
    for name in ("vision_config", "text_config"):
        if not isinstance(values.get(name, {}), dict):
            yield f"has {name} {_shown(values[name])}, no object: mend it."
    for place, section in _sections(values):
        yield from (f"has {place}{fault}" for fault in _section_faults(section))


def _section_faults(section: Mapping[str, Any]) -> Iterator[str]:
    for field, most in SIZES.items():
        if section.get(field) is not None:
            yield from _size_faults(field, section[field], most)
    yield from _word_faults(section)
    if section.get("model_type") in (*TOWER_TYPES, *TEXT_TYPES):
        yield from _heads_faults(section.get("hidden_size", 0), section.get("num_attention_heads", 1))
    for field in (*NUMBERS, *SHARES):
        yield from _number_faults(field, section.get(field), share=field in SHARES)


def _configuration_faults(config: Any) -> Iterator[str]:
    vision = getattr(config, "vision_config", config)
    if isinstance(vision, dict):
        yield f"has a vision_config, which a {config.model_type!r} model has not: mend it."
    family = family_of_type(config.model_type)
    whole = family is not None and config.model_type == family.whole
    for place, part in (("vision_config.", vision), ("text_config.", getattr(config, "text_config", None))):
        if part is not None and (whole or part is vision):
            yield from (f"has {place if part is not config else ''}{fault}" for fault in _part_faults(part))


def _part_faults(part: Any) -> Iterator[str]:
    """Of one tower."""
    kind = str(part.model_type)
    if kind not in (*TOWER_TYPES, *TEXT_TYPES):
        return
    family = family_of_type(kind)
    for field in ("image_size", "patch_size"):
        value = getattr(part, field, None)
        if isinstance(value, (list, tuple)) and not (family and family.any_size):
            yield f"{field} {_shown(value)}: a {kind!r} model needs one whole number."
    yield from _heads_faults(part.hidden_size, part.num_attention_heads)
    if hasattr(part, "patch_size") and min(_pair(part.image_size)) < max(_pair(part.patch_size)):
        yield f"patch_size {part.patch_size}, larger than image_size {part.image_size}: mend it."
    if (parameters := count_largest(part)) > MOST_PARAMETERS:
        yield (
            f"sizes that make {parameters:,} parameters, more than {MOST_PARAMETERS:,}, which no vision encoder has: "
            "do not use it."
        )


def _processor_faults(processor: Any, vision: Any) -> Iterator[str]:
    for field in ("image_mean", "image_std"):
        yield from _channel_faults(field, getattr(processor, field, None), getattr(vision, "num_channels", 3))
    areas = getattr(processor, "merge_size", None) is not None  # the sizes of Qwen's are numbers of pixels
    most = LARGEST_SIDE**2 if areas else LARGEST_SIDE
    for field in ("size", "crop_size"):
        for side, value in dict(getattr(processor, field, None) or {}).items():
            if value is not None:
                yield from (f"has {fault}" for fault in _size_faults(f"{field}.{side}", value, most))
    factor = getattr(processor, "rescale_factor", None)
    yield from (f"has {fault}" for fault in _number_faults("rescale_factor", factor))
    if factor is not None and not SMALLEST_SCALE <= factor <= LARGEST_CHANNEL:
        why = "leaves nothing of an image" if factor > 0 else "makes one colour of all"
        yield f"has rescale_factor {factor}, which {why}: set it to 1/255."
    family, made = family_of_type(getattr(vision, "model_type", None)), made_size(processor)
    fixed = family is not None and not family.any_size
    if fixed and made is not None and made != (vision.image_size, vision.image_size):
        yield (
            f"makes images of {made[0]} x {made[1]} pixels, and the encoder has image_size {vision.image_size}: take "
            "the encoder's own image processor."
        )


def _heads_faults(width: int | None, heads: int | None) -> Iterator[str]:
    if width and heads and width % heads:
        yield f"hidden_size {width}, which num_attention_heads {heads} does not divide: mend it."


def _size_faults(field: str, value: Any, most: int) -> Iterator[str]:
    values = value if isinstance(value, (list, tuple)) and field in ("image_size", "patch_size") else [value]
    if len(values) not in (1, 2) or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in values):
        yield f"{field} {_shown(value)}, which is no whole number of at least 1: mend it."
    if max(values) > most:
        yield f"{field} {_shown(value)}, more than {most:,}, which no model has: do not use it."


def _word_faults(section: Mapping[str, Any]) -> Iterator[str]:
    activation = section.get("hidden_act")
    if activation is not None and (not isinstance(activation, str) or activation not in ACT2FN):
        yield f"hidden_act {_shown(activation)}, which transformers does not know: mend it."
    for field in ("dtype", "torch_dtype"):
        if section.get(field) not in (None, "auto") and not _is_float(section[field]):
            yield f"{field} {_shown(section[field])}, which is no floating-point type: mend it."
    for field in IMPLEMENTATIONS:
        if "/" in str(section.get(field)):  # a repository of kernels, whose code would run
            yield f"{field} {_shown(section[field])}, code of a repository: take it out."
    names = section.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        yield f"architectures {_shown(names)}, which is no list of class names: mend it."


def _is_float(name: Any) -> bool:
    dtype = getattr(torch, name.removeprefix("torch."), None) if isinstance(name, str) else name
    return isinstance(dtype, torch.dtype) and dtype.is_floating_point


def _number_faults(field: str, value: Any, *, share: bool = False) -> Iterator[str]:
    """Of one that is there and no finite number from 0; a share is at most 1."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (number and 0 <= value <= (1 if share else 1e9)):
        yield f"{field} {_shown(value)}, which is no number from 0{' to 1' if share else ''}: mend it."


def _channel_faults(field: str, value: Any, channels: int) -> Iterator[str]:
    if value is None:
        yield f"has no {field}: take the image processor of the original model."
    numbers = list(value) if isinstance(value, (list, tuple)) else [value]
    right = all(isinstance(n, (int, float)) and not isinstance(n, bool) and math.isfinite(n) for n in numbers)
    least = SMALLEST_DEVIATION if field == "image_std" else -LARGEST_CHANNEL
    if len(numbers) != channels or not right or not least <= min(numbers) <= max(numbers) <= LARGEST_CHANNEL:
        needed = "positive and finite" if field == "image_std" else "finite"
        yield f"has {field} {_shown(value)}: it needs {channels} numbers, {needed}, up to {LARGEST_CHANNEL:g}."


def _hub_options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in HUB_OPTIONS if options.get(key) is not None}


def _sections(values: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The configuration and those inside, with the beginning of the names of their fields."""
    yield "", values
    for name, section in values.items():
        if isinstance(section, dict) and name.endswith("_config"):
            yield f"{name}.", section


def _pair(value: Any) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _where(name_or_path: str, file: str) -> str:
    return f"'{str(name_or_path).rstrip('/')}/{file}'"


def _shown(value: Any) -> str:
    """A value that came from outside, bounded."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
