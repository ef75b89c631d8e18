"""What is in a folder that is to be published, checked before any of it leaves the machine."""

from __future__ import annotations

import copy
import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData, RepoFile
from huggingface_hub.utils import HFValidationError, validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

from fare_hf.encoders import load_complete
from fare_hf.files.documents import front_matter, read_text
from fare_hf.files.folders import files_in
from fare_hf.hub.card.regenerate import card_under_name
from fare_hf.hub.card.render import PLOT
from fare_hf.hub.contents import check_contents
from fare_hf.hub.licenses import check_license
from fare_hf.pretrained.configuration import configuration_from, load_image_processor, read_json_object
from fare_hf.pretrained.validation import check_answers, check_recorded, recorded_architecture

__all__ = [
    "LocalFile",
    "check_loads",
    "check_reference",
    "check_repo_id",
    "is_published",
    "read_folder",
    "vision_shape",
]

NEEDED = {
    "config.json": "the model's configuration",
    "preprocessor_config.json": "the image processor",
    "README.md": "the model card",
}
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
OTHERS = re.compile(
    r"config\.json|preprocessor_config\.json|README\.md|fare_hf\.json|report\.json|report\.md|[\w-]+\.png|LICENSE|"
    r"model\.safetensors\.index\.json|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|vocab\.json|"
    r"merges\.txt|added_tokens\.json"
)
CLASSES: dict[str, Any] = {cls.__name__: cls for cls in (CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection)}
SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "patch_size",
    "image_size",
    "hidden_act",
    "projection_dim",
)


@dataclass(frozen=True)
class LocalFile:
    """A file as it will stand in the repository; its content is on disk, or in memory where it differs from that."""

    path: str
    source: Path
    content: bytes | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return self.source.stat().st_size if self.content is None else len(self.content)

    @cached_property
    def hashes(self) -> tuple[str, str]:
        """SHA-256, and git's name of it as a blob."""
        sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % self.size)
        if self.content is not None:
            sha256.update(self.content)
            blob.update(self.content)
            return sha256.hexdigest(), blob.hexdigest()
        with self.source.open("rb") as file:
            while chunk := file.read(1 << 20):
                sha256.update(chunk)
                blob.update(chunk)
        return sha256.hexdigest(), blob.hexdigest()

    def is_same_as(self, remote: RepoFile | None) -> bool:
        """Whether the repository holds the same bytes, by its hashes."""
        if remote is None or remote.size != self.size:
            return False
        return self.hashes[0] == remote.lfs.sha256 if remote.lfs else self.hashes[1] == remote.blob_id


def read_folder(folder: Path, repo_id: str, token: str | None = None) -> list[LocalFile]:
    """The files to publish, all checked; the card's snippets name `repo_id` unless the card was edited by hand.

    Raises:
        ValueError: no folder, files that do not belong on the Hub, a link that leaves the folder, missing or broken
            files, weights that are missing or of another shape, an unknown licence; a file that is not of the type
            that its name says, or holds a secret or a path of this machine.
    """
    if not folder.is_dir():
        raise ValueError(f"'{folder}' is no folder: name one that save_robust_encoder or a training has written.")
    names = files_in(folder)
    _check_names(folder, names)
    shapes = _check_weights(folder, [name for name in names if WEIGHTS.fullmatch(name)])
    config = read_json_object(folder / "config.json")
    vision_shape(config, f"'{folder}'")
    check_complete(shapes, config, f"'{folder}'")
    _check_parts(folder, config)
    files = [LocalFile(name, folder / name) for name in names]
    card = card_under_name(folder, repo_id)
    if card is not None:
        files = [LocalFile(f.path, f.source, card.encode()) if f.path == "README.md" else f for f in files]
    _check_card(folder)
    for file in files:
        check_contents(file.path, file.source, file.content, token)
    return files


def check_loads(folder: Path) -> None:
    """The model of a folder whose files are right loads, and is one.

    Raises:
        ValueError: as `fare_hf.pretrained.validation.check_model`.
    """
    cls = CLASSES[read_json_object(folder / "config.json")["architectures"][0]]
    check_answers(load_complete(cls, str(folder), dtype="auto"), f"'{folder}'")


def is_published(path: str) -> bool:
    """Whether this package alone puts files of this name into a repository: then it also takes an old one away."""
    mine = WEIGHTS.fullmatch(path) or OTHERS.fullmatch(path)
    return bool(mine) and path != "LICENSE" and (path == PLOT or not path.endswith(".png"))


def vision_shape(config: dict[str, Any], where: str) -> dict[str, Any]:
    """What two encoders must share to stand for each other.

    Raises:
        ValueError: not the configuration of a CLIP or of its vision encoder.
    """
    kind = config.get("model_type")
    if kind not in ("clip", "clip_vision_model"):
        raise ValueError(f"{where} holds a model of type {kind!r}, not a CLIP vision encoder: name another.")
    try:
        made = configuration_from(copy.deepcopy(config), "it")
    except ValueError as error:
        raise ValueError(f"{where} has a config.json that no CLIP can have ({error}): name another.") from None
    vision: Any = getattr(made, "vision_config", made)
    return {name: getattr(vision, name) for name in SHAPE}


def check_complete(shapes: dict[str, tuple[int, ...]], config: dict[str, Any], where: str) -> None:
    """The class that the configuration names has all its weights: else it would load with random ones.

    Args:
        shapes: of the stored tensors, by their prefixed names.
        config: content of `config.json`.
        where: for the message.

    Raises:
        ValueError: no class that is published, a tensor that is missing, or of another shape.
    """
    name = (config.get("architectures") or ["none"])[0]
    if name not in CLASSES:
        raise ValueError(f"{where} has the architecture {name!r} in config.json, not one of {', '.join(CLASSES)}.")
    cls = CLASSES[name]
    kind: Any = CLIPConfig if cls is CLIPModel else CLIPVisionConfig
    with torch.device("meta"):
        expected = cls(kind.from_dict(config)).state_dict()
    for key, tensor in expected.items():
        key = key if cls is not CLIPVisionModel or key.startswith("vision_model.") else f"vision_model.{key}"
        if key not in shapes:
            raise ValueError(f"{where} lacks the weights {key!r} of {name}: save the encoder again.")
        if shapes[key] != tuple(tensor.shape):
            raise ValueError(
                f"{where} has {key!r} of shape {shapes[key]} and a config.json that asks for {tuple(tensor.shape)}: "
                "save the encoder again."
            )


def check_repo_id(repo_id: str) -> None:
    """Raises ValueError for a name that no repository can have."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"repository name {repo_id!r} is not valid: {error}") from None


def check_reference(name: str | None, what: str) -> None:
    """Raises ValueError for a name that no branch or tag can have."""
    if name is not None and (not re.fullmatch(r"[\w][\w.+-]*(/[\w.+-]+)*", name) or ".." in name):
        raise ValueError(f"{what} {name!r} is not valid: use letters, digits, '-', '_' and '.'.")


def _check_names(folder: Path, names: list[str]) -> None:
    strange = [name for name in names if not WEIGHTS.fullmatch(name) and not OTHERS.fullmatch(name)]
    if strange:
        raise ValueError(
            f"'{folder}' holds {strange[0]!r} ({len(strange)} such), which is not published (no pickles, optimizer "
            "states or logs): push a folder of save_robust_encoder, such as the <output_dir>/encoder of a training."
        )
    if not any(WEIGHTS.fullmatch(name) for name in names):
        raise ValueError(f"'{folder}' has no weights: it needs model.safetensors.")
    for name, what in NEEDED.items():
        if name not in names:
            raise ValueError(f"'{folder}' lacks {name}, {what}: save the encoder with save_robust_encoder.")


def _check_weights(folder: Path, names: list[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors, which have the names that every release of transformers reads, and fit the index."""
    found: dict[str, tuple[int, ...]] = {}
    for name in names:
        try:
            with safe_open(folder / name, framework="np") as file:
                found |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"'{folder / name}' is not readable as safetensors ({error}): save it again.") from None
    index = folder / "model.safetensors.index.json"
    named = read_json_object(index)["weight_map"].keys() if index.exists() else found.keys()
    if len(names) > 1 and not index.exists() or named != found.keys():
        raise ValueError(f"'{folder}' has shards that do not fit its index: save the encoder again.")
    if not any(name.startswith("vision_model.") for name in found):
        raise ValueError(f"'{folder}' holds no weights named vision_model.*: save it with save_robust_encoder.")
    return found


def _check_parts(folder: Path, config: dict[str, Any]) -> None:
    """The image processor, and what was recorded when the encoder was saved, fit the configuration."""
    path = folder / "preprocessor_config.json"
    missing = [name for name in ("image_mean", "image_std") if not read_json_object(path).get(name)]
    if missing:  # its class would take others in silence
        raise ValueError(f"'{path}' is of no image processor, as it lacks {missing[0]}: save the encoder again.")
    made = configuration_from(copy.deepcopy(config), f"'{folder / 'config.json'}'")
    load_image_processor(str(folder), made)
    check_recorded(made, recorded_architecture(str(folder)), f"'{folder}'")


def _check_card(folder: Path) -> None:
    where = f"'{folder / 'README.md'}'"
    try:
        head = front_matter(read_text(folder / "README.md"), where)
        ModelCardData(**{str(name): value for name, value in head.items()}, ignore_metadata_errors=False)
    except Exception as error:  # of any kind that a strange head raises in the client
        told = " ".join(str(error).split())
        raise ValueError(f"{where} has metadata that cannot be read ({told}): mend it.") from None
    if head.get("license") is not None:
        check_license(str(head["license"]))
