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

from fare_hf.encoders import load_complete
from fare_hf.files.documents import front_matter, read_text
from fare_hf.files.folders import files_in
from fare_hf.hub.card.regenerate import card_under_name
from fare_hf.hub.card.render import PLOT
from fare_hf.hub.contents import check_contents
from fare_hf.hub.licenses import check_license
from fare_hf.pretrained.configuration import configuration_from, load_image_processor, read_json_object
from fare_hf.pretrained.encoder_families import PUBLISHED, PUBLISHED_WHOLE, family_of_type, named_as_saved
from fare_hf.pretrained.validation import ARCHITECTURE, check_answers, check_recorded, recorded_architecture
from fare_hf.vlm.families.towers import TOWERS, kind_typed
from fare_hf.vlm.swap.proof import check_tower

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
CLASSES: dict[str, Any] = {name: family.whole_class for name, family in PUBLISHED_WHOLE.items()}
CLASSES |= {cls.__name__: cls for family in PUBLISHED.values() for cls in family.classes}
SHAPE = (*(name for name in ARCHITECTURE if name != "layer_norm_eps"), "projection_dim")


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
    names, where = files_in(folder), f"'{folder}'"
    _check_names(where, names)
    values = read_json_object(folder / "config.json")
    config = _configuration(values, where)
    family = family_of_type(config.model_type)
    prefix = "" if family is None else family.prefix  # towers of their own have none
    shapes = _check_weights(folder, [name for name in names if WEIGHTS.fullmatch(name)], prefix)
    _check_complete(shapes, values, where)
    _check_processor(folder, config)
    check_recorded(config, recorded_architecture(str(folder)), where)
    card = card_under_name(folder, repo_id)
    edited = {} if card is None else {"README.md": card.encode()}
    files = [LocalFile(name, folder / name, edited.get(name)) for name in names]
    _check_card(folder / "README.md")
    for file in files:
        check_contents(file.path, file.source, file.content, token)
    return files


def check_loads(folder: Path) -> None:
    """The model of a folder whose files are right loads, and is one.

    Raises:
        ValueError: as `fare_hf.pretrained.validation.check_model`.
    """
    name = read_json_object(folder / "config.json")["architectures"][0]
    check = check_tower if name in TOWERS else check_answers
    check(load_complete(_class_named(name), str(folder), dtype="auto"), f"'{folder}'")


def is_published(path: str) -> bool:
    """Whether this package alone puts files of this name into a repository: then it also takes an old one away."""
    mine = WEIGHTS.fullmatch(path) or OTHERS.fullmatch(path)
    return bool(mine) and path != "LICENSE" and (path == PLOT or not path.endswith(".png"))


def vision_shape(config: dict[str, Any], where: str) -> dict[str, Any]:
    """What two encoders must share to stand for each other.

    Raises:
        ValueError: not the configuration of a vision encoder, or of a CLIP or SigLIP.
    """
    made = _configuration(config, where)
    vision: Any = getattr(made, "vision_config", made)
    return {name: getattr(vision, name, None) for name in SHAPE}


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


def _configuration(values: dict[str, Any], where: str) -> Any:
    """What transformers makes of a config.json."""
    kind = values.get("model_type")
    tower = kind_typed(str(kind))
    if family_of_type(kind) is None and not (tower and tower.own):
        raise ValueError(f"{where} holds a model of type {kind!r}, not a CLIP vision encoder or other: name another.")
    try:
        return configuration_from(copy.deepcopy(values), "it")
    except ValueError as error:
        raise ValueError(f"{where} has a config.json that no {kind} can have ({error}): name another.") from None


def _check_names(where: str, names: list[str]) -> None:
    weights = [name for name in names if WEIGHTS.fullmatch(name)]
    strange = [name for name in names if name not in weights and not OTHERS.fullmatch(name)]
    told = [
        f"holds {name!r} ({len(strange)} such), which is not published (no pickles, optimizer states or logs): push a "
        "folder of save_robust_encoder, such as the <output_dir>/encoder of a training."
        for name in strange
    ]
    told += [] if weights else ["has no weights: it needs model.safetensors."]
    told += [
        f"lacks {name}, {what}: save the encoder with save_robust_encoder."
        for name, what in NEEDED.items()
        if name not in names
    ]
    if told:
        raise ValueError(f"{where} {told[0]}")


def _check_weights(folder: Path, names: list[str], prefix: str) -> dict[str, tuple[int, ...]]:
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
    told = "has shards that do not fit its index: save the encoder again."
    if named == found.keys() and (len(names) == 1 or index.exists()):
        told = f"holds no weights named {prefix}*: save it with save_robust_encoder."
        if any(name.startswith(prefix) for name in found):
            return found
    raise ValueError(f"'{folder}' {told}")


def _check_complete(shapes: dict[str, tuple[int, ...]], values: dict[str, Any], where: str) -> None:
    """The class that the configuration names has all its weights: else it would load with random ones."""
    name = (values.get("architectures") or ["none"])[0]
    if name not in (*CLASSES, *TOWERS):
        known = ", ".join((*CLASSES, *TOWERS))
        raise ValueError(f"{where} has the architecture {name!r} in config.json, not one of {known}.")
    cls = _class_named(name)
    with torch.device("meta"):
        model = cls(cls.config_class.from_dict(values))
        made = named_as_saved(model, model.state_dict())
    prefix = PUBLISHED[name].prefix if name in PUBLISHED and cls is PUBLISHED[name].plain else ""
    wanted = {key if key.startswith(prefix) else prefix + key: tuple(tensor.shape) for key, tensor in made.items()}
    for key, shape in wanted.items():
        if shapes.get(key) != shape:
            told = f"has {key!r} of shape {shapes.get(key)} and a config.json that asks for {shape}"
            told = told if key in shapes else f"lacks the weights {key!r} of {name}"
            raise ValueError(f"{where} {told}: save the encoder again.")


def _class_named(name: str) -> Any:
    """A class that is published; those of towers are in modules that are imported when they are asked for."""
    return TOWERS[name].own_class if name in TOWERS else CLASSES[name]


def _check_processor(folder: Path, config: Any) -> None:
    path = folder / "preprocessor_config.json"
    missing = [name for name in ("image_mean", "image_std") if not read_json_object(path).get(name)]
    if missing:  # its class would take others in silence
        raise ValueError(f"'{path}' is of no image processor, as it lacks {missing[0]}: save the encoder again.")
    load_image_processor(str(folder), config)


def _check_card(card: Path) -> None:
    try:
        head = front_matter(read_text(card), f"'{card}'")
        ModelCardData(**{str(name): value for name, value in head.items()}, ignore_metadata_errors=False)
    except Exception as error:  # of any kind that a strange head raises in the client
        told = " ".join(str(error).split())
        raise ValueError(f"'{card}' has metadata that cannot be read ({told}): mend it.") from None
    if head.get("license") is not None:
        check_license(str(head["license"]))
