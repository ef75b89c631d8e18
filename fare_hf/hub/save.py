"""Save a robust encoder as a folder that plain transformers loads."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from transformers import PreTrainedModel

from fare_hf.attacks import ThreatModel
from fare_hf.encoders import load_complete
from fare_hf.evaluation import RobustnessReport
from fare_hf.files.documents import read_object
from fare_hf.files.folders import check_new_folder, whole_folder
from fare_hf.hub.base_model import base_name, inherited_license, is_hub_id
from fare_hf.hub.card.regenerate import (
    KEPT,
    card_files,
    content_of,
    one_or_all,
    published_report,
    report_names,
)
from fare_hf.hub.card.render import CardContent
from fare_hf.hub.contents import VOCABULARIES
from fare_hf.hub.local_paths import without_local_paths
from fare_hf.hub.text_encoder import save_tokenizer, whole_clip
from fare_hf.pretrained.configuration import check_configuration, check_image_processor, load_image_processor
from fare_hf.pretrained.encoder_families import PUBLISHED, named_as_saved
from fare_hf.pretrained.validation import architecture_of, check_answers
from fare_hf.vlm.families.towers import TOWERS
from fare_hf.vlm.swap.proof import check_tower

__all__ = ["copy_with_text_encoder", "save_robust_encoder"]

TAKEN_OVER = ("threat_model", "report", *(name for name in KEPT if name not in ("name", "architecture")))
PREFIX = "vision_model."
PREFIXED = (PREFIX, "visual_projection.", "text_model.", "text_projection.", "logit_")


def save_robust_encoder(
    encoder: PreTrainedModel,
    folder: str | os.PathLike[str],
    *,
    processor: Any,
    base_model: str,
    threat_model: ThreatModel,
    training: Mapping[str, Any] | None = None,
    report: RobustnessReport | None = None,
    report_model: str | Sequence[str] | None = None,
    license: str | None = None,
    license_name: str | None = None,
    license_link: str | None = None,
    repo_id: str | None = None,
    vlm: str | None = None,
    datasets: Sequence[str] = (),
    text_encoder: str | None = None,
    max_shard_size: int | str = "5GB",
) -> Path:
    """Write weights, configuration, image processor, report and model card into a new folder.

    Weights are stored bit for bit as safetensors under the names that every transformers release reads (of CLIP and
    SigLIP those with the `vision_model.` level, for all their classes). Everything is checked before the first byte is
    written, and the folder appears whole or not at all.

    Args:
        encoder: of a class of `fare_hf.pretrained.encoder_families` (`CLIPVisionModelWithProjection`,
            `CLIPVisionModel`, `SiglipVisionModel`, `Dinov2Model`, ...), or the tower of a vision-language model
            that has a class of its own; unwrapped from DDP and the like.
        folder: absent or empty.
        processor: image processor of the original (or a processor that holds one), with its normalisation on.
        base_model: Hub name of the original, or a folder: of that the card tells the last part of its path alone.
        threat_model: what the encoder was trained against.
        training: the recipe for the card, `{"objective": "fare", "steps": 20000, ...}`.
        report: figures, copied to `report.json` and onto the card, with a picture of them (`results.png`) where
            matplotlib is installed; an `evaluation.RobustnessReport`.
        report_model: name or names under which the report measures this encoder, for the card's metadata; may be None
            if the report measures nothing else.
        license: identifier for the card, such as "mit"; None takes that of the base model, where its card can be read;
            "" says nothing.
        license_name: of the licence "other".
        license_link: its text.
        repo_id: name that the card's snippets load; None takes the folder's name.
        vlm: model with this encoder's architecture, for the card's snippet; None is LLaVA-1.5 7B for a ViT-L/14 at
            336 px, the base model for a tower of a class of its own, and a placeholder otherwise.
        datasets: what it was trained on, by the names of the Hub's data sets.
        text_encoder: folder or repository of the original CLIP or SigLIP, to put its text encoder and tokenizer into
            the folder too: then it also loads as the whole and in the zero-shot image classification pipeline.
        max_shard_size: weights above, in bytes or as "5GB", go into several files with an index.

    Returns:
        The folder.

    Raises:
        TypeError: another class of encoder.
        ValueError: a folder that is not empty or a file, weights that are not finite or not loaded (meta), an image
            processor without normalisation or for images of another size, an encoder that answers every image
            alike or with what is not finite, a base model that is neither a folder nor a name, data sets that are no
            names, a secret in the recipe, an unknown licence, an original without the text encoder.
        OSError: the disk is full, or not writable; nothing is left of the folder.

    Example:
        >>> from tempfile import mkdtemp
        >>> from fare_hf import load_encoder
        >>> from fare_hf.lab import encoder_folder, load_training_set
        >>> encoder, processor = load_encoder(str(encoder_folder("fare-4"))), load_training_set().processor
        >>> facts = {"processor": processor, "base_model": "user/clip", "threat_model": ThreatModel("linf", "4/255")}
        >>> folder = save_robust_encoder(encoder, Path(mkdtemp()) / "fare4", **facts)
        >>> sorted(path.name for path in folder.iterdir())[:2]
        ['README.md', 'config.json']
    """
    folder = Path(folder)
    check_new_folder(folder)
    base = _check_names(encoder, base_model, datasets)
    given = {"license": license, "license_name": license_name, "license_link": license_link} if license else {}
    terms: dict[str, Any] = inherited_license(base_model) if license is None else given
    images = _image_processor(processor, encoder)
    weights = _weights(encoder)
    clip, tokenizer = (None, None) if text_encoder is None else whole_clip(encoder, text_encoder)
    fields, files = published_report(report)
    content = CardContent(
        name=repo_id or folder.resolve().name,
        base_model=base,
        class_name=type(encoder).__name__,
        threat_model=threat_model,
        # As it is read back from fare_hf.json, so that the card can be rendered again to the letter.
        training=without_local_paths(json.loads(json.dumps(dict(training or {}), default=str))),
        report_model=one_or_all(report_names(report_model)),
        vlm=str(without_local_paths(vlm)) if vlm else _default_vlm(encoder, base),
        datasets=datasets,
        text_encoder=clip is not None,
        architecture=architecture_of(encoder.config),
        **fields,
        **terms,
    )
    files |= card_files(content)
    model: Any = encoder if clip is None else clip
    weights = weights if clip is None else _weights(clip)
    check = check_tower if type(model).__name__ in TOWERS else check_answers  # towers want more than pixels
    check(model, f"the {type(model).__name__}")
    config = _config(model, type(model).__name__)
    with whole_folder(folder) as new:  # nobody ever sees, or publishes, half of it
        save_torch_state_dict(weights, new, max_shard_size=max_shard_size)
        _write(new, files, config, images, tokenizer)
    return folder


def _check_names(encoder: PreTrainedModel, base_model: str, datasets: Sequence[str]) -> str:
    """The name of the base model; raises as `save_robust_encoder` for what no card can name."""
    class_name = type(encoder).__name__
    if class_name not in (*PUBLISHED, *TOWERS):
        known = ", ".join((*PUBLISHED, *TOWERS))
        raise TypeError(f"{class_name} cannot be published as a robust encoder: pass one of {known}.")
    base = base_name(base_model)
    if wrong := [name for name in datasets if not is_hub_id(name)]:
        raise ValueError(f"datasets has {wrong[0]!r}, no name that a data set on the Hub can have: leave it out.")
    return base


def _write(folder: Path, files: Mapping[str, bytes], config: Any, images: Any, tokenizer: Any | None) -> None:
    """The files of the card; configuration, image processor and tokenizer, without the paths of this machine."""
    config.save_pretrained(folder)
    images.save_pretrained(folder)
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)
    for path in folder.glob("*.json"):
        _shorten_paths(path)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _shorten_paths(path: Path) -> None:
    """Takes the paths of this machine out of what a configuration, processor or tokenizer says of itself."""
    if path.name in VOCABULARIES:
        return
    said = read_object(path)
    if (shortened := without_local_paths(said)) != said:
        path.write_text(json.dumps(shortened, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _default_vlm(encoder: PreTrainedModel, base: str) -> str:
    """The published LLaVA that the encoder fits, else a path for the reader to replace; of a tower, its own model."""
    config: Any = encoder.config
    if type(encoder).__name__ in TOWERS:
        return base
    shape = (config.hidden_size, config.num_hidden_layers, config.patch_size, config.image_size)
    return "llava-hf/llava-1.5-7b-hf" if shape == (1024, 24, 14, 336) else "path/to/a/llava-with-this-vision-encoder"


def _image_processor(processor: Any, encoder: PreTrainedModel) -> Any:
    """A copy of the image processor that stands alone; one made for pixels in [0, 1] would mislead its users."""
    check_configuration(encoder.config, f"the encoder's {type(encoder.config).__name__}")
    images = copy.deepcopy(getattr(processor, "image_processor", processor))
    if not getattr(images, "do_normalize", False):
        raise ValueError(
            f"the image processor {type(images).__name__} has do_normalize off: pass the original model's, as users "
            "of the encoder need its normalisation."
        )
    check_image_processor(images, f"the image processor {type(images).__name__}", encoder.config)
    return images


def _weights(encoder: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Weights on the CPU under the names that every release reads, checked to be finite."""
    found: dict[str, torch.Tensor] = {}
    family = PUBLISHED.get(type(encoder).__name__)
    prefix = PREFIX if family is None else family.prefix
    for name, tensor in named_as_saved(encoder, encoder.state_dict()).items():
        if tensor.device.type == "meta":
            raise ValueError(f"the encoder's '{name}' is on the meta device: load its weights before saving.")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"the encoder's '{name}' holds NaN or infinity: check its training before publishing.")
        whole = name if type(encoder).__name__ in TOWERS or name.startswith(PREFIXED) else prefix + name
        found[whole] = tensor.detach().to("cpu", copy=True).contiguous()
    return found


def _config(encoder: PreTrainedModel, class_name: str) -> Any:
    """The configuration as the original's: what the trainer wrote into it is taken out."""
    config = copy.deepcopy(encoder.config)
    config.architectures = [class_name]
    config.dtype = next(encoder.parameters()).dtype
    # Trainer sets it; it means nothing to an encoder.
    if "use_cache" in config.__dict__:
        del config.use_cache
    return config


def copy_with_text_encoder(source: Path, folder: Path, original: str) -> Path:
    """A saved encoder as a new folder that holds the original's text encoder too.

    Args:
        source: folder that `save_robust_encoder` wrote.
        folder: absent or empty.
        original: folder or repository of the original CLIP; "" takes the base model that the card names.

    Raises:
        ValueError: as `save_robust_encoder`, or the source has no `fare_hf.json`, or no projection.
    """
    content = content_of(source)
    if content.family is None or not content.compared:
        raise ValueError(f"'{source}' has no projection, which a text encoder needs: publish it without one.")
    return save_robust_encoder(
        load_complete(content.family.classes[-1], str(source), dtype="auto"),
        folder,
        processor=load_image_processor(str(source)),
        text_encoder=original or content.base_model,
        repo_id=content.name,
        **{name: getattr(content, name) for name in TAKEN_OVER},
    )
