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
from fare_hf.files.folders import check_links
from fare_hf.pretrained.encoder_families import TEXT_TYPES, TOWER_TYPES, family_of_type
from fare_hf.pretrained.foreign_code import OwnCodeError, own_code_refused
from fare_hf.pretrained.original_llava import refuse_original_llava

__all__ = [
    "check_configuration",
    "check_image_processor",
    "check_room",
    "check_values",
    "configuration_from",
    "count_largest",
    "load_image_processor",
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
    check_links(name_or_path)
    hub = {key: options[key] for key in HUB_OPTIONS if options.get(key) is not None}
    path = cached_file(str(name_or_path), CONFIG, **hub)
    if path is None:  # a folder without one
        raise ValueError(f"'{name_or_path}' holds no {CONFIG}: name the folder or repository of a model.")
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
    check_values(values, where)
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        if "auto_map" in values:
            raise OwnCodeError(name or where)
        raise ValueError(f"{where} has model_type {_shown(kind)}, which is no model of transformers: name another.")
    try:
        config = CONFIG_MAPPING[kind].from_dict(values, **({"name_or_path": name} if name else {}))
    except Exception as error:  # whatever the constructors of that type meet in a value is a fault of the file
        raise ValueError(f"{where} is no configuration of a {kind!r} model ({_reason(error)}): mend it.") from error
    check_configuration(config, where)
    return config


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object of a model's repository: `read_object`, with the bound that a configuration needs.

    Raises:
        ValueError: no JSON, no object, or larger or nested deeper than any model's.
    """
    return read_object(path, MOST_BYTES)


def check_values(values: Mapping[str, Any], where: str) -> None:
    """What can be said of the content of a config.json before anything is made of it.

    Raises:
        ValueError: a count that is no positive whole number or beyond belief, an unknown activation or dtype, a
            number that is not finite, code of the repository.
    """
    if "configuration_files" in values:
        raise ValueError(f"{where} has configuration_files, which names other files: rename the one you mean.")
    if any("transformers_weights" in section for _, section in _sections(values)):
        raise ValueError(f"{where} has transformers_weights, which names other files: rename the ones you mean.")
    for name in ("vision_config", "text_config"):
        if not isinstance(values.get(name, {}), dict):
            raise ValueError(f"{where} has {name} {_shown(values[name])}, no object: mend it.")
    for place, section in _sections(values):
        for field, most in SIZES.items():
            if section.get(field) is not None:
                _check_size(f"{where} has {place}{field}", section[field], most, field)
        _check_words(f"{where} has {place}", section)
        if section.get("model_type") in (*TOWER_TYPES, *TEXT_TYPES):
            _check_heads(f"{where} has {place}", section.get("hidden_size", 0), section.get("num_attention_heads", 1))
        for field in (*NUMBERS, *SHARES):
            _check_number(f"{where} has {place}{field}", section.get(field), share=field in SHARES)


def check_configuration(config: Any, where: str) -> None:
    """What must hold between the fields of an encoder's configuration, those that have defaults included.

    Args:
        config: of a CLIP, SigLIP or DINOv2, whole or of one side; others are not looked into, but for their
            `vision_config`.
        where: names the file, for the message.

    Raises:
        ValueError: fields that do not fit each other, or that together ask for a model beyond belief.
    """
    vision = getattr(config, "vision_config", config)
    if isinstance(vision, dict):
        raise ValueError(f"{where} has a vision_config, which a {config.model_type!r} model has not: mend it.")
    family = family_of_type(config.model_type)
    whole = family is not None and config.model_type == family.whole
    for place, part in (("vision_config.", vision), ("text_config.", getattr(config, "text_config", None))):
        if part is not None and (whole or part is vision):
            _check_part(f"{where} has {place if part is not config else ''}", part)


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
    path = cached_file(
        str(name_or_path), "preprocessor_config.json", _raise_exceptions_for_missing_entries=False, **hub
    )
    if path is not None:
        read_json_object(Path(path))
    try:
        with own_code_refused(name_or_path):
            processor = cls.from_pretrained(name_or_path, trust_remote_code=False, **hub)
    except (ImportError, OSError, OwnCodeError):
        raise
    except Exception as error:  # as for a configuration
        raise ValueError(f"{where} is of no image processor ({_reason(error)}): mend it.") from error
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
    vision: Any = getattr(config, "vision_config", config)
    channels = getattr(vision, "num_channels", 3)
    for field in ("image_mean", "image_std"):
        _check_channels(where, field, getattr(processor, field, None), channels)
    for field in ("size", "crop_size"):
        for side, value in dict(getattr(processor, field, None) or {}).items():
            if value is not None:
                _check_size(f"{where} has {field}.{side}", value, SIZES["image_size"] * 16)
    factor = getattr(processor, "rescale_factor", None)
    _check_number(f"{where} has rescale_factor", factor)
    if factor is not None and factor <= 0:
        raise ValueError(f"{where} has rescale_factor {factor}, which makes one colour of all: set it to 1/255.")
    if factor is not None and not SMALLEST_SCALE <= factor <= LARGEST_CHANNEL:
        raise ValueError(f"{where} has rescale_factor {factor}, which leaves nothing of an image: set it to 1/255.")
    family = family_of_type(getattr(vision, "model_type", None))
    made = made_size(processor)
    if (
        family is not None
        and not family.any_size
        and made is not None
        and made != (vision.image_size, vision.image_size)
    ):
        raise ValueError(
            f"{where} makes images of {made[0]} x {made[1]} pixels, and the encoder has image_size "
            f"{vision.image_size}: take the encoder's own image processor."
        )


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


def _check_part(begin: str, part: Any) -> None:
    """One tower; `begin` is "FILE has [SECTION.]"."""
    kind = str(part.model_type)
    if kind not in (*TOWER_TYPES, *TEXT_TYPES):
        return
    family = family_of_type(kind)
    for field in ("image_size", "patch_size"):
        value = getattr(part, field, None)
        if isinstance(value, (list, tuple)) and not (family and family.any_size):
            raise ValueError(f"{begin}{field} {_shown(value)}: a {kind!r} model needs one whole number.")
    _check_heads(begin, part.hidden_size, part.num_attention_heads)
    if hasattr(part, "patch_size") and min(_pair(part.image_size)) < max(_pair(part.patch_size)):
        raise ValueError(f"{begin}patch_size {part.patch_size}, larger than image_size {part.image_size}: mend it.")
    parameters = count_largest(part)
    if parameters > MOST_PARAMETERS:
        raise ValueError(
            f"{begin}sizes that make {parameters:,} parameters, more than {MOST_PARAMETERS:,}, which no vision "
            "encoder has: do not use it."
        )


def _check_heads(begin: str, width: int | None, heads: int | None) -> None:
    if width and heads and width % heads:
        raise ValueError(f"{begin}hidden_size {width}, which num_attention_heads {heads} does not divide: mend it.")


def _check_size(begin: str, value: Any, most: int, field: str = "") -> None:
    values = value if isinstance(value, (list, tuple)) and field in ("image_size", "patch_size") else [value]
    if len(values) not in (1, 2) or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in values):
        raise ValueError(f"{begin} {_shown(value)}, which is no whole number of at least 1: mend it.")
    if max(values) > most:
        raise ValueError(f"{begin} {_shown(value)}, more than {most:,}, which no model has: do not use it.")


def _check_words(begin: str, section: Mapping[str, Any]) -> None:
    activation = section.get("hidden_act")
    if activation is not None and (not isinstance(activation, str) or activation not in ACT2FN):
        raise ValueError(f"{begin}hidden_act {_shown(activation)}, which transformers does not know: mend it.")
    for field in ("dtype", "torch_dtype"):
        if section.get(field) not in (None, "auto") and not _is_float(section[field]):
            raise ValueError(f"{begin}{field} {_shown(section[field])}, which is no floating-point type: mend it.")
    for field in IMPLEMENTATIONS:
        if "/" in str(section.get(field)):  # a repository of kernels, whose code would run
            raise ValueError(f"{begin}{field} {_shown(section[field])}, code of a repository: take it out.")
    names = section.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"{begin}architectures {_shown(names)}, which is no list of class names: mend it.")


def _is_float(name: Any) -> bool:
    dtype = getattr(torch, name.removeprefix("torch."), None) if isinstance(name, str) else name
    return isinstance(dtype, torch.dtype) and dtype.is_floating_point


def _check_number(begin: str, value: Any, *, share: bool = False) -> None:
    """Absent, or finite and not negative; a share is at most 1."""
    if value is None:
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value <= (1 if share else 1e9):
        raise ValueError(f"{begin} {_shown(value)}, which is no number from 0{' to 1' if share else ''}: mend it.")


def _check_channels(where: str, field: str, value: Any, channels: int) -> None:
    if value is None:
        raise ValueError(f"{where} has no {field}: take the image processor of the original model.")
    numbers = list(value) if isinstance(value, (list, tuple)) else [value]
    right = all(isinstance(n, (int, float)) and not isinstance(n, bool) and math.isfinite(n) for n in numbers)
    least = SMALLEST_DEVIATION if field == "image_std" else -LARGEST_CHANNEL
    if len(numbers) != channels or not right or not least <= min(numbers) <= max(numbers) <= LARGEST_CHANNEL:
        needed = "positive and finite" if field == "image_std" else "finite"
        raise ValueError(
            f"{where} has {field} {_shown(value)}: it needs {channels} numbers, {needed}, up to {LARGEST_CHANNEL:g}."
        )


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


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {_line(error)}"[:200]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
