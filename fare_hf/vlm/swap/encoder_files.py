"""Where a robust encoder comes from: a module, a folder or repository of transformers or open_clip, a file."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig, PreTrainedModel

from fare_hf.convert import convert_from_open_clip
from fare_hf.convert.checkpoints import OPEN_CLIP_CONFIG, WEIGHT_ENDINGS, find_file, read_state
from fare_hf.encoders import load_complete, load_encoder
from fare_hf.files.documents import front_matter, read_object, read_text
from fare_hf.files.folders import encoder_inside
from fare_hf.pretrained.configuration import load_image_processor, read_configuration
from fare_hf.pretrained.encoder_families import TEXT_TYPES, encoder_types
from fare_hf.vlm.families.table import unwrapped
from fare_hf.vlm.families.towers import ENCODERS, TowerKind, kind_typed

__all__ = ["Encoder", "base_model_of", "read_encoder", "transformers_folder"]

OTHER_TEXTS = ("bert", "t5", "xlm-roberta")


@dataclass(frozen=True)
class Encoder:
    """A vision encoder, ready to be put into a tower.

    Attributes:
        module: the `CLIPVisionModel` or `SiglipVisionModel`.
        source: folder, repository, file, or class name of a module.
        images: its image processor, or None where none came with it.
        base_model: what its card says it was fine-tuned from, or None.
        converted: whether it came in open_clip's format.
    """

    module: PreTrainedModel
    source: str
    images: Any | None = None
    base_model: str | None = None
    converted: bool = False


def read_encoder(
    encoder: str | os.PathLike[str] | PreTrainedModel,
    tower_config: Any,
    *,
    base: str | os.PathLike[str] | None = None,
    revision: str | None = None,
) -> Encoder:
    """Load an encoder from wherever it is.

    Args:
        encoder: module, folder, Hub name, or file of open_clip weights.
        tower_config: of the tower it is for: says what a bare file of weights does not.
        base: for a bare file, the CLIP it was fine-tuned from, instead of the tower's configuration.
        revision: of a Hub repository.

    Raises:
        TypeError: a module that is no vision encoder.
        ValueError: nothing there that is one; a text encoder.
        OSError: it cannot be read.
    """
    kind = kind_typed(tower_config.model_type)
    assert kind is not None  # of a family
    if not isinstance(encoder, (str, os.PathLike)):
        return Encoder(_inner(encoder, kind), type(encoder).__name__)
    with transformers_folder(encoder, tower_config, base=base, revision=revision) as (place, at, converted):
        if kind.own:
            return Encoder(_own(kind, place, at), place, _images(place, at), _base_model(encoder, revision))
        module = load_encoder(place, "tokens", revision=at or "main")
        if not isinstance(module, ENCODERS):
            raise ValueError(f"'{encoder}' holds a {type(module).__name__}: give a CLIP or SigLIP vision encoder.")
        return Encoder(module, os.fspath(encoder), _images(place, at), _base_model(encoder, revision), converted)


@contextmanager
def transformers_folder(
    encoder: str | os.PathLike[str],
    tower_config: Any,
    *,
    base: str | os.PathLike[str] | None = None,
    revision: str | None = None,
) -> Iterator[tuple[str, str | None, bool]]:
    """The encoder in the format of transformers: (folder or Hub name, revision, whether it was converted).

    What is in open_clip's format is converted into a temporary folder that lives as long as the context.

    Raises:
        ValueError, OSError: as `read_encoder`.
    """
    source, kind = os.fspath(encoder), kind_typed(tower_config.model_type)
    if kind is not None and kind.own:  # nobody else has a format for it
        yield source, revision, False
        return
    bare = Path(source).is_file() or source.endswith(WEIGHT_ENDINGS)
    if not bare and _is_transformers(source, revision):
        yield source, revision, False
        return
    with tempfile.TemporaryDirectory(prefix="fare_hf-swap-") as temporary:
        place = Path(temporary)
        if bare and base is None:
            base = _base_from_tower(Path(source), tower_config, place / "base")
        folder = place / "encoder"
        convert_from_open_clip(source, folder, base=base, visual_only=True, revision=None if bare else revision)
        yield str(folder), None, True


def base_model_of(card: Path | None) -> str | None:
    """The first base model that a model card names."""
    if card is None:
        return None
    try:
        named = front_matter(read_text(card), f"'{card}'").get("base_model")
    except (OSError, ValueError):  # a head that is not YAML: as good as none
        return None
    named = named[0] if isinstance(named, list) and named else named
    return named if isinstance(named, str) else None


def _is_transformers(source: str, revision: str | None) -> bool:
    """Whether a folder or repository is to be read by transformers; it is open_clip's otherwise.

    Raises:
        ValueError: neither, or no vision encoder.
    """
    config = find_file(source, "config.json", revision)
    kind = read_object(config).get("model_type") if config else None
    if kind in (*TEXT_TYPES, *OTHER_TEXTS):
        raise ValueError(f"'{source}' is a text encoder ({kind}): give a vision encoder or a whole CLIP.")
    if kind in encoder_types():
        _check_folder(Path(source))
        return True
    if find_file(source, OPEN_CLIP_CONFIG, revision) is not None:
        return False
    if config is None:
        what = encoder_inside(source) or "an encoder"
        raise ValueError(f"'{source}' holds neither a config.json nor an {OPEN_CLIP_CONFIG}: name {what}.")
    raise ValueError(
        f"'{source}' is a {kind!r} model, not a vision encoder or CLIP; give one of the types "
        f"{', '.join(encoder_types())}."
    )


def _own(kind: TowerKind, place: str, revision: str | None) -> PreTrainedModel:
    """A tower of a class of its own, as a training on features saves it."""
    found = read_configuration(place, revision=revision or "main").model_type
    if found != kind.model_type:
        raise ValueError(
            f"'{place}' is a {found!r} model, and the vision tower a {kind.model_type!r}: pass a tower of the same "
            "model, as a training with --embedding features saves it."
        )
    _check_folder(Path(place))
    return load_complete(kind.own_class, place, revision=revision or "main")


def _inner(encoder: Any, kind: TowerKind) -> PreTrainedModel:
    """The vision model inside a module."""
    encoder = unwrapped(encoder)
    if kind.own:
        if type(encoder).__name__ != kind.tower_class:
            raise TypeError(
                f"{type(encoder).__name__} does not fit this model, whose tower is a {kind.tower_class}: pass one of "
                "the same model, as a training with --embedding features saves it."
            )
        return encoder
    inner = getattr(encoder, "vision_model", encoder)
    name = type(encoder).__name__
    if "Text" in name:
        raise TypeError(f"{name} is a text encoder: pass a vision encoder or a whole CLIP.")
    if not isinstance(inner, ENCODERS):
        raise TypeError(
            f"{name} is not a CLIP vision encoder: pass a folder, a Hub name, a CLIPVisionModel, a "
            "CLIPVisionModelWithProjection or a SiglipVisionModel."
        )
    return inner


def _check_folder(folder: Path) -> None:
    """Say at once that a local folder holds no weights (transformers' own message speaks of the Hub)."""
    if folder.is_dir() and not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise ValueError(f"the folder '{folder}' holds no weights: it needs a model.safetensors.")


def _images(place: str, revision: str | None) -> Any | None:
    """The image processor that came with the encoder."""
    if find_file(place, "preprocessor_config.json", revision) is None:
        return None
    return load_image_processor(place, revision=revision or "main")


def _base_model(encoder: str | os.PathLike[str], revision: str | None) -> str | None:
    source = os.fspath(encoder)
    if Path(source).is_file() or source.endswith(WEIGHT_ENDINGS):
        return None
    return base_model_of(find_file(source, "README.md", revision))


def _base_from_tower(weights: Path, tower_config: Any, folder: Path) -> Path:
    """Write what the tower knows of its architecture as the base of a bare file; its resolution is the file's own.

    Heads, activation and preprocessing are not in the weights. That they are the tower's is what a swap asks for
    anyway, and the embeddings are compared afterwards.
    """
    state = read_state(weights)
    positions = state.get("positional_embedding", state.get("visual.positional_embedding"))
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size")
    fields = {name: getattr(tower_config, name) for name in (*names, "hidden_act", "layer_norm_eps")}
    projection = state.get("proj", state.get("visual.proj"))
    if projection is not None:
        fields["projection_dim"] = projection.shape[-1]
    size = int(tower_config.image_size)
    if positions is not None:
        size = math.isqrt(len(positions) - 1) * int(tower_config.patch_size)
    CLIPVisionConfig(**fields, image_size=size).save_pretrained(folder)
    square = {"height": size, "width": size}
    # Imported where it is needed: without torchvision the import alone says so, and this room is imported by many.
    from transformers import CLIPImageProcessor

    CLIPImageProcessor(size={"shortest_edge": size}, crop_size=square).save_pretrained(folder)
    return folder
