"""The vision tower of a published vision-language model and what stands behind it, without its language model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import MODEL_MAPPING, PROCESSOR_MAPPING, AutoModel, PreTrainedModel

from fare_hf.files.folders import check_model_name
from fare_hf.pretrained.configuration import load_image_processor
from fare_hf.pretrained.loading import vlm_configuration
from fare_hf.pretrained.validation import check_weights
from fare_hf.vlm.families.family import Family, image_processor_of
from fare_hf.vlm.families.table import family_of, family_of_config
from fare_hf.vlm.features import VlmFeatures
from fare_hf.vlm.geometry import check_processor
from fare_hf.vlm.tower_weights import LoadedWeights, StoredWeights, fill

__all__ = ["features_family", "load_vision_tower", "unloaded_tower"]

ANY_SIDE = 448
"""Pixels a side of the training images for towers that read any size: 256 tokens of Qwen2.5-VL, 784 of its patches."""

ASKED = "get_image_features"
MERGED = "spatial_merge_size"
"""Of Mistral 3: patches of a token on a side, which its processor knows and its image processor does not."""


def load_vision_tower(
    vlm: str | PreTrainedModel,
    revision: str | None = None,
    *,
    processor: Any = None,
    image_side: int | None = None,
) -> tuple[PreTrainedModel, VlmFeatures]:
    """The vision tower of a published model in fp32, and how its language model reads it.

    Only the files that hold the tower and what stands behind it are fetched, and only their tensors read: of the
    language model not even the shape is kept.

    Args:
        vlm: folder or Hub repository of the model; or the model itself, of whose weights copies are made.
        revision: of a Hub repository.
        processor: of the model, or the folder or repository of one; None is that of its own repository.
        image_side: pixels a side of the training images; None is what the tower was made for, or 448 for one that
            reads any size.

    Returns:
        The tower, a plain class of transformers, all of its weights trainable; and the `reading` of a `FareTrainer`.

    Raises:
        ValueError: no vision-language model, no row for it, weights that are not there, not in safetensors, of another
            shape or not finite.
        OSError: it cannot be read.

    Example:
        >>> tower, features = load_vision_tower("Qwen/Qwen2.5-VL-7B-Instruct")  # doctest: +SKIP
        >>> features.embed(tower, torch.rand(1, 3, 448, 448)).shape  # doctest: +SKIP
        torch.Size([1, 256, 3584])
    """
    if isinstance(vlm, str):
        made = _made(vlm, revision, processor, image_side)
        fill(made.around, StoredWeights(vlm, revision), vlm)
    else:
        made = _of_loaded(vlm, processor, image_side)
        fill(made.around, LoadedWeights(vlm), made.vlm)
    check_weights(made.around, f"{made.vlm!r}")
    return _parted(made)


def unloaded_tower(vlm: str, *, processor: Any = None, image_side: int | None = None) -> tuple[Any, VlmFeatures]:
    """As `load_vision_tower`, of the configuration and the image processor alone: its weights are zero.

    It answers no image, and counts the operations that an answer needs.

    Raises:
        ValueError, OSError: as `load_vision_tower`.
    """
    made = _made(vlm, None, processor, image_side)
    zeros = {name: torch.zeros(tensor.shape) for name, tensor in made.around.named_parameters()}
    made.around.load_state_dict(zeros, assign=True, strict=False)
    return _parted(made)


def _made(vlm: str, revision: str | None, processor: Any, image_side: int | None) -> VlmFeatures:
    """The features of a model whose tower stands in its place still, without weights."""
    config, family = features_family(vlm, revision)
    if processor is None or isinstance(processor, str):
        check_model_name(processor or vlm)
        processor = _processor(processor or vlm, config, None if processor else revision)
    return _features(vlm, config, family, processor, image_side)


def _of_loaded(vlm: PreTrainedModel, processor: Any, image_side: int | None) -> VlmFeatures:
    """As `_made`, of a model in memory."""
    name = str(vlm.config._name_or_path or type(vlm).__name__)
    if processor is None or isinstance(processor, str):
        raise ValueError(f"{name!r} is a model in memory: give its processor too, as processor=.")
    family = family_of(vlm)
    _check_features(vlm.config, name)
    return _features(name, vlm.config, family, processor, image_side)


def _features(vlm: str, config: Any, family: Family, processor: Any, image_side: int | None) -> VlmFeatures:
    side, images = image_side or _side(config, family), image_processor_of(processor)
    settings = family.settings(processor)
    check_processor(settings)
    _check_read(family, settings, side, vlm)
    return VlmFeatures(
        vlm=vlm,
        family=family,
        around=_without_language_model(config, family),
        settings=settings,
        processor=_squares(images, side),
        image_side=side,
        saved={"vlm": vlm, "processor": images if family.kinds[0].own else _squares(images, _side(config, family))},
    )


def _check_read(family: Family, settings: Any, side: int, vlm: str) -> None:
    """ValueError for the image processor of another family, which has other fields."""
    try:
        family.inputs(settings, torch.zeros(1, 3, side, side))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"the image processor {type(settings).__name__} is not made for {vlm!r} ({error}): give one of the class "
            "that the model's own repository has, or none."
        ) from error


def _parted(features: VlmFeatures) -> tuple[Any, VlmFeatures]:
    """Tower and features, which are frozen."""
    for parameter in features.around.parameters():
        parameter.requires_grad_()
    tower = _taken_out(features.around, features.family.tower.removeprefix("model."))
    tower.config._name_or_path = features.vlm
    features.around.requires_grad_(False).eval()
    return tower.eval(), features


def features_family(vlm: str, revision: str | None = None) -> tuple[Any, Family]:
    """Configuration and row of a model whose features can be read, before any weights are fetched.

    Raises:
        ValueError: no vision-language model, or one whose features are not known.
    """
    try:
        config = vlm_configuration(vlm, revision)
    except ValueError as error:
        raise ValueError(
            f"embedding='features' is what a language model reads, so --model has to be a vision-language model "
            f"({error}); for an encoder alone give projected, pooled or tokens."
        ) from error
    try:
        family = family_of_config(config)
    except TypeError as error:
        missing = "" if _gives_features(config) else f" Its model has no {ASKED} either."
        raise ValueError(f"the features that {vlm!r} reads are not known: {error}{missing}") from error
    _check_features(config, vlm)
    return config, family


def _check_features(config: Any, vlm: str) -> None:
    """ValueError for a model that does not say what its language model reads."""
    if not _gives_features(config):
        raise ValueError(f"the features that {vlm!r} reads cannot be asked for: its model has no {ASKED}.")


def _gives_features(config: Any) -> bool:
    kind = type(config)
    return kind in MODEL_MAPPING and hasattr(MODEL_MAPPING[kind], ASKED)


def _side(config: Any, family: Family) -> int:
    """Pixels a side that a tower was made for."""
    size = ANY_SIDE if family.any_side else config.vision_config.image_size
    return size if isinstance(size, int) else int(size[0])


def _processor(name: str, config: Any, revision: str | None) -> Any:
    """What a model's processor does to images, without its words, and without videos, which need torchvision."""
    kind = vars(PROCESSOR_MAPPING[type(config)]) if type(config) in PROCESSOR_MAPPING else {}
    images = load_image_processor(name, revision=revision or "main")
    merging = {"patch_size": config.vision_config.patch_size, "spatial_merge_size": getattr(config, MERGED, 1)}
    return SimpleNamespace(image_processor=images, images_kwargs=kind.get("images_kwargs", {}), **merging)


def _without_language_model(config: Any, family: Family) -> Any:
    """Tower and projector without weights."""
    with init_empty_weights(include_buffers=False):
        model = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
    language = model.get_decoder()
    paths = [name for name, part in model.named_modules() if part is language]
    for path in (*paths, *(path.removeprefix("model.") for path in family.towers[1:])):
        _taken_out(model, path)
    return model


def _taken_out(model: Any, path: str) -> Any:
    """A module, which its owner has no longer."""
    owner, _, leaf = path.rpartition(".")
    found = model.get_submodule(path)
    delattr(model.get_submodule(owner), leaf)
    return found


def _squares(images: Any, side: int) -> Any:
    """An image processor that makes squares, with the mean and deviation of another."""
    # Imported where it is needed: without torchvision the import alone says so.
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=list(images.image_mean),
        image_std=list(images.image_std),
    )
