"""`open_clip_config.json`, read and written.

A field that changes what the network computes, and that CLIP of transformers does not have, is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fare_hf.convert.spec import ClipSpec, ImageSpec, TextSpec, VisionSpec

__all__ = ["read_open_clip_config", "write_open_clip_config"]

HEAD_WIDTH = 64
MOST, MOST_OF_ANY = {"layers": 1_000}, 1 << 24
"""What is believed of a number, far above any published model: of layers, each of which costs time, and of others."""
# What may stand in a configuration without changing what is computed at inference: any value, or these alone.
ANY = object()
NEUTRAL_MODEL: dict[str, Any] = {
    **dict.fromkeys(("cast_dtype", "custom_text", "init_logit_scale", "output_dict"), ANY),
    **dict.fromkeys(("init_logit_bias", "act_kwargs"), None),
    "nonscalar_logit_scale": False,
}
NEUTRAL_BLOCK: dict[str, Any] = {
    **dict.fromkeys(("act_kwargs", "block_type", "ls_init_value"), None),
    **dict.fromkeys(("qk_norm", "scale_attn", "scale_attn_inner", "scale_fc", "scale_heads"), False),
    "scaled_cosine_attn": False,
    "output_tokens": ANY,
}
TIMM_DETAILS = [f"timm_{name}" for name in ("model_pretrained", "pool", "proj", "proj_bias", "drop", "drop_path")]
NEUTRAL_VISION: dict[str, Any] = {
    **NEUTRAL_BLOCK,
    # Of the class token (any other pooling is refused) the last norm is the same before and after.
    **dict.fromkeys(("attn_pooler_heads", "attn_pooler_queries", "final_ln_after_pool", "patch_dropout"), ANY),
    **dict.fromkeys(TIMM_DETAILS, ANY),
    **dict.fromkeys(("attentional_pool", "no_ln_pre"), False),
    "pool_type": "tok",
    "pos_embed_type": "learnable",
    "timm_model_name": None,
}
NO_CLIP = {"no_ln_pre": "normalises before the first block", "pool_type": "pools the class token of images"}
"""Fields of towers that no weights of a `CLIPVisionModel` can imitate -> what it always does."""
HF_DETAILS = [f"hf_{name}" for name in ("model_pretrained", "pooler_type", "proj_type", "tokenizer_name")]
NEUTRAL_TEXT: dict[str, Any] = {
    **NEUTRAL_BLOCK,
    **dict.fromkeys((*HF_DETAILS, "pad_id", "tokenizer_kwargs", "tokenizer_mode"), ANY),
    **dict.fromkeys(("embed_cls", "final_ln_after_pool", "no_causal_mask", "proj_bias"), False),
    "hf_model_name": None,
    "proj_type": "linear",
}


def read_open_clip_config(content: Mapping[str, Any], where: str, text: bool = True) -> ClipSpec:
    """Read the configuration of an open_clip repository.

    An absent `quick_gelu` is false by open_clip's definition of the format; `evidence` says so.

    Args:
        content: the file, or its `model_cfg` alone.
        where: its name, for messages.
        text: read the text tower too, where there is one.

    Raises:
        ValueError: a field is missing, of another type, or has no counterpart in transformers' CLIP.
    """
    model = content.get("model_cfg", content)
    if not isinstance(model, Mapping) or not isinstance(model.get("vision_cfg"), Mapping):
        raise ValueError(f"{where} has no vision_cfg: it is not the configuration of an open_clip model.")
    _refuse(model, {"embed_dim": ANY, "quick_gelu": ANY, "vision_cfg": ANY, "text_cfg": ANY}, NEUTRAL_MODEL, where)
    activation, evidence = _activation(model, where)
    tower = model.get("text_cfg")
    return ClipSpec(
        embed_dim=_integer(model, "embed_dim", where),
        activation=activation,
        evidence=evidence,
        vision=_vision(model["vision_cfg"], f"{where}: vision_cfg"),
        text=_text(tower, f"{where}: text_cfg") if text and isinstance(tower, Mapping) else None,
        images=_images(content.get("preprocess_cfg"), where),
    )


def write_open_clip_config(spec: ClipSpec, tokenizer: str | None = None) -> dict[str, Any]:
    """The content of `open_clip_config.json`; `quick_gelu` is always written.

    Args:
        tokenizer: Hub name of a tokenizer other than CLIP's own.
    """
    vision, text, images = spec.vision, spec.text, spec.images
    tower: dict[str, Any] = {name: getattr(vision, name) for name in ("image_size", "layers", "width", "patch_size")}
    tower |= {"head_width": vision.width // vision.heads, **_common(vision)}
    model: dict[str, Any] = {"embed_dim": spec.embed_dim, "quick_gelu": spec.activation == "quick_gelu"}
    model["vision_cfg"] = tower
    found: dict[str, Any] = {"model_cfg": model}
    if text is not None:
        names = {name: getattr(text, name) for name in ("vocab_size", "width", "heads", "layers")}
        model["text_cfg"] = {"context_length": text.positions, **names, **_common(text)}
        if text.eos is not None:
            model["text_cfg"] |= {"pool_type": "eos", "eos_id": text.eos}
        if tokenizer is not None:
            model["text_cfg"]["hf_tokenizer_name"] = tokenizer
    if images is not None:
        found["preprocess_cfg"] = asdict(images) | {"mean": list(images.mean), "std": list(images.std)}
    return found


def _activation(model: Mapping[str, Any], where: str) -> tuple[str, str]:
    if "quick_gelu" not in model:
        return "gelu", f"{where} has no quick_gelu, which open_clip reads as false"
    value = model["quick_gelu"]
    if not isinstance(value, bool):
        raise ValueError(f"{where}: quick_gelu is {_shown(value)}; it must be true or false.")
    return ("quick_gelu" if value else "gelu"), f"{where} has quick_gelu {str(value).lower()}"


def _vision(tower: Mapping[str, Any], where: str) -> VisionSpec:
    read = ("image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size", "norm_kwargs")
    _refuse(tower, dict.fromkeys(read, ANY), NEUTRAL_VISION, where)
    width, head = _integer(tower, "width", where), _integer(tower, "head_width", where, HEAD_WIDTH)
    return VisionSpec(
        **_blocks(tower, where, width, width // head, head),
        image_size=_integer(tower, "image_size", where),
        patch_size=_integer(tower, "patch_size", where),
    )


def _text(tower: Mapping[str, Any], where: str) -> TextSpec:
    read = ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "norm_kwargs")
    _refuse(tower, dict.fromkeys((*read, "pool_type", "eos_id"), ANY), NEUTRAL_TEXT, where)
    pool = tower.get("pool_type", "argmax")
    if pool not in ("argmax", "eos"):
        raise ValueError(
            f"{where}: pool_type {_shown(pool)} does not exist in transformers' CLIP; convert the visual only."
        )
    width, heads = _integer(tower, "width", where, 512), _integer(tower, "heads", where, 8)
    return TextSpec(
        **_blocks(tower, where, width, heads, width // heads, 12),
        positions=_integer(tower, "context_length", where, 77),
        vocab_size=_integer(tower, "vocab_size", where, 49408),
        eos=_integer(tower, "eos_id", where, 2) if pool == "eos" else None,
    )


def _blocks(
    tower: Mapping[str, Any], where: str, width: int, heads: int, head: int, layers: int | None = None
) -> dict[str, Any]:
    """What the blocks of both towers are made of."""
    ratio, norm = _number(tower.get("mlp_ratio", 4.0), "mlp_ratio", where), tower.get("norm_kwargs") or {}
    wide, known = int(width * ratio), isinstance(norm, Mapping) and not set(norm) - {"eps"}
    for wrong, sentence in (
        (heads * head != width, f"{heads} heads of {head} do not make the width {width}: correct one of them."),
        (not 1 <= wide <= MOST_OF_ANY, f"mlp_ratio is {ratio!r} of a width of {width}: no model is so wide."),
        (not known, f"norm_kwargs {_shown(norm)} does not exist in transformers' CLIP; only eps does."),
    ):
        if wrong:
            raise ValueError(f"{where}: {sentence}")
    eps, layers = _number(norm.get("eps", 1e-5), "eps of norm_kwargs", where), _integer(tower, "layers", where, layers)
    return {"width": width, "layers": layers, "heads": heads, "mlp_width": wide, "eps": eps}


def _images(content: Any, where: str) -> ImageSpec | None:
    if not isinstance(content, Mapping):
        return None
    for name in ("mean", "std"):
        if not isinstance(content.get(name), (list, tuple)) or len(content[name]) != 3:
            raise ValueError(f"{where}: preprocess_cfg has no {name} of three numbers, one a colour.")
    images = ImageSpec(
        mean=tuple(_number(value, "mean", where, positive=False) for value in content["mean"]),
        std=tuple(_number(value, "std", where) for value in content["std"]),
        interpolation=content.get("interpolation", "bicubic"),
        resize_mode=content.get("resize_mode", "shortest"),
    )
    if images.interpolation not in ("bicubic", "bilinear") or images.resize_mode not in ("shortest", "squash"):
        raise ValueError(
            f"{where}: preprocess_cfg has interpolation {_shown(images.interpolation)} and resize_mode "
            f"{_shown(images.resize_mode)}; only bicubic or bilinear, and shortest or squash, exist in both libraries."
        )
    return images


def _refuse(found: Mapping[str, Any], read: Mapping[str, Any], neutral: Mapping[str, Any], where: str) -> None:
    """Stop at the first field whose effect would be lost."""
    allowed = {**read, **neutral}
    for name, value in found.items():
        if name not in allowed:
            raise ValueError(
                f"{where}: the field {name[:80]!r} is unknown here, so the conversion could not be right."
            )
        wanted = allowed[name]
        if wanted is not ANY and value != wanted and not (not value and not wanted):
            hint = "; convert the visual only" if where.endswith("text_cfg") else ""
            if name in NO_CLIP and not hint:
                hint = f": no CLIPVisionModel can hold this model, as each {NO_CLIP[name]}; use it with open_clip"
            shown = f"{name} is {_shown(value)}"
            raise ValueError(f"{where}: {shown}, which CLIP of transformers does not have (only {wanted!r}){hint}.")


def _integer(found: Mapping[str, Any], name: str, where: str, default: int | None = None) -> int:
    value = found.get(name, default)
    if isinstance(value, (list, tuple)) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{where}: {name} is {_shown(value)}; it must be one positive integer.")
    if value > MOST.get(name, MOST_OF_ANY):
        raise ValueError(f"{where}: {name} is {_shown(value)}, more than any model has: do not use it.")
    return value


def _number(value: Any, name: str, where: str, positive: bool = True) -> float:
    right = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MOST_OF_ANY
    if not right or (positive and value <= 0):
        raise ValueError(f"{where}: {name} is {_shown(value)}; it must be one {'positive ' * positive}number.")
    return float(value)


def _shown(value: Any) -> str:
    """A value that came from outside, bounded."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _common(tower: VisionSpec | TextSpec) -> dict[str, Any]:
    """The two fields that stand only where they differ from open_clip's defaults."""
    found: dict[str, Any] = {}
    if tower.mlp_width != 4 * tower.width:
        # Rounded up, because open_clip truncates width * mlp_ratio.
        found["mlp_ratio"] = math.ceil(tower.mlp_width / tower.width * 10_000) / 10_000
        if int(tower.width * found["mlp_ratio"]) != tower.mlp_width:
            found["mlp_ratio"] = (tower.mlp_width + 0.5) / tower.width
    if tower.eps != 1e-5:
        found["norm_kwargs"] = {"eps": tower.eps}
    return found
