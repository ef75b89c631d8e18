"""The vision tower of a published vision-language model and what stands behind it, without its language model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import MODEL_MAPPING, PROCESSOR_MAPPING, AutoModel, PreTrainedModel

from fare_hf.convert.checkpoints import find_file
from fare_hf.pretrained.configuration import load_image_processor
from fare_hf.pretrained.loading import vlm_configuration
from fare_hf.pretrained.validation import check_weights
from fare_hf.pretrained.weight_files import INDEX, SINGLE, read_index
from fare_hf.vlm.families.family import Family, image_processor_of
from fare_hf.vlm.families.table import family_of_config
from fare_hf.vlm.features import VlmFeatures

__all__ = ["features_family", "load_vision_tower", "unloaded_tower"]

ANY_SIDE = 448
"""Pixels a side of the training images for towers that read any size: 256 tokens of Qwen2.5-VL, 784 of its patches."""
INNER = re.compile(r"(^|\.)(vision_tower|vision_model|image_tower)\.vision_model\.")
"""A level of names that CLIP and SigLIP towers have in the files of older releases."""


def load_vision_tower(
    vlm: str,
    revision: str | None = None,
    *,
    processor: Any = None,
    image_side: int | None = None,
) -> tuple[PreTrainedModel, VlmFeatures]:
    """The vision tower of a published model in fp32, and how its language model reads it.

    Only the files that hold the tower and what stands behind it are fetched, and only their tensors read: of the
    language model not even the shape is kept.

    Args:
        vlm: folder or Hub repository of the model.
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
    made = _made(vlm, revision, processor, image_side)
    _fill(made.around, vlm, revision)
    check_weights(made.around, f"{vlm!r}")
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
        processor = _processor(processor or vlm, config, None if processor else revision)
    side, images = image_side or _side(config, family), image_processor_of(processor)
    return VlmFeatures(
        vlm=vlm,
        family=family,
        around=_without_language_model(config, family),
        settings=family.settings(processor),
        processor=_squares(images, side),
        image_side=side,
        saved={"vlm": vlm} | ({"processor": images} if family.kinds[0].own else {}),
    )


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
        raise ValueError(f"the features that {vlm!r} reads are not known: {error}") from error
    kind = type(config)
    model = MODEL_MAPPING[kind] if kind in MODEL_MAPPING else None
    if not hasattr(model, "get_image_features"):
        raise ValueError(f"the features that {vlm!r} reads cannot be asked for: its model has no get_image_features.")
    return config, family


def _side(config: Any, family: Family) -> int:
    """Pixels a side that a tower was made for."""
    size = ANY_SIDE if family.any_side else config.vision_config.image_size
    return size if isinstance(size, int) else int(size[0])


def _processor(name: str, config: Any, revision: str | None) -> Any:
    """What a model's processor does to images, without its words, and without videos, which need torchvision."""
    kind = vars(PROCESSOR_MAPPING[type(config)]) if type(config) in PROCESSOR_MAPPING else {}
    images = load_image_processor(name, revision=revision or "main")
    return SimpleNamespace(image_processor=images, images_kwargs=kind.get("images_kwargs", {}))


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


def _fill(model: Any, vlm: str, revision: str | None) -> None:
    """Loads the weights that a model has, and no others, from the files that hold them."""
    wanted = model.state_dict()
    stored = {_plain(name): (file, name) for file, name in _stored(vlm, revision)}
    found: dict[str, Tensor] = {}
    by_file: dict[str, list[tuple[str, str]]] = {}
    for name in wanted:
        if _plain(name) not in stored:
            raise ValueError(f"{vlm!r} has no weights for {name!r} of its {type(model).__name__}: take it whole.")
        file, key = stored[_plain(name)]
        by_file.setdefault(file, []).append((name, key))
    for file, names in by_file.items():
        with _opened(vlm, file, revision) as tensors:
            found |= {name: tensors.get_tensor(key).float() for name, key in names}
    for name, tensor in found.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(
                f"{vlm!r} holds {name!r} of shape {tuple(tensor.shape)}, and its config.json asks for "
                f"{tuple(wanted[name].shape)}: weights and configuration are of different models."
            )
    model.load_state_dict(found, assign=True)


def _stored(vlm: str, revision: str | None) -> Iterator[tuple[str, str]]:
    """File and name of every tensor, by the index, or by the one file's own list."""
    index = find_file(vlm, INDEX, revision)
    if index is not None:
        yield from ((file, name) for name, file in read_index(index).items())
        return
    with _opened(vlm, SINGLE, revision) as tensors:
        yield from ((SINGLE, name) for name in tensors.keys())


@contextmanager
def _opened(vlm: str, file: str, revision: str | None) -> Iterator[Any]:
    path = find_file(vlm, file, revision)
    if path is None:
        raise ValueError(f"{vlm!r} has no {file}: only safetensors are read; convert its weights first.")
    try:
        with safe_open(path, framework="pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise ValueError(f"'{path}' is cut off or no safetensors file ({error}): download it again.") from error


def _plain(name: str) -> str:
    """A name of a tensor without the levels that releases of transformers add or leave out."""
    return INNER.sub(r"\1\2.", name.removeprefix("model."))


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
