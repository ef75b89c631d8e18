"""Save a robust encoder as a folder that plain transformers loads."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from fare_hf.attacks import ThreatModel
from fare_hf.hub.card import CardContent, ReportLike, render_card

__all__ = ["save_robust_encoder"]

CLASSES = ("CLIPVisionModel", "CLIPVisionModelWithProjection")
PREFIX = "vision_model."


def save_robust_encoder(
    encoder: PreTrainedModel,
    folder: str | os.PathLike[str],
    *,
    processor: Any,
    base_model: str,
    threat_model: ThreatModel,
    training: Mapping[str, Any] | None = None,
    report: ReportLike | None = None,
    report_model: str | None = None,
    license: str | None = None,
    repo_id: str | None = None,
    vlm: str | None = None,
) -> Path:
    """Write weights, configuration, image processor, report and model card into a new folder.

    Weights are stored bit for bit as safetensors under the names with the `vision_model.` level, which every
    transformers release reads into both classes. Everything is checked before the first byte is written.

    Args:
        encoder: `CLIPVisionModelWithProjection` or `CLIPVisionModel`, unwrapped from DDP and the like.
        folder: absent or empty.
        processor: image processor of the original (or a processor that holds one), with its normalisation on.
        base_model: Hub name of the original.
        threat_model: what the encoder was trained against.
        training: the recipe for the card, `{"objective": "fare", "steps": 20000, ...}`.
        report: figures, copied to `report.json` and onto the card; an `evaluation.RobustnessReport`.
        report_model: name under which the report measures this encoder, for the card's metadata; may be None if the
            report measures nothing else.
        license: identifier for the card, such as "mit".
        repo_id: name that the card's snippets load; None takes the folder's name.
        vlm: LLaVA with this encoder's architecture, for the card's snippet; None is LLaVA-1.5 7B for a ViT-L/14 at
            336 px, and a placeholder otherwise.

    Returns:
        The folder.

    Raises:
        TypeError: another class of encoder.
        ValueError: a folder that is not empty or a file, weights that are not finite or not loaded (meta), an image
            processor without normalisation, an empty base model, a secret in the recipe.
    """
    folder = Path(folder)
    _check_folder(folder)
    class_name = type(encoder).__name__
    if class_name not in CLASSES:
        raise TypeError(f"{class_name} cannot be published as a robust encoder: pass one of {', '.join(CLASSES)}.")
    if not base_model.strip():
        raise ValueError("base_model is empty: name the encoder that was fine-tuned.")
    images = _image_processor(processor)
    weights = _weights(encoder)
    projected = class_name == "CLIPVisionModelWithProjection"
    card = render_card(
        CardContent(
            name=repo_id or folder.resolve().name,
            base_model=base_model,
            class_name=class_name,
            projected=projected,
            threat_model=threat_model,
            training=training or {},
            report=report,
            report_model=report_model,
            license=license,
            vlm=vlm or _default_vlm(encoder.config),
        )
    )
    page = None if report is None else report.to_json()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _config(encoder, class_name).save_pretrained(folder)
    images.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
    if page is not None:
        (folder / "report.json").write_text(page, encoding="utf-8")
    return folder


def _default_vlm(config: Any) -> str:
    """The published LLaVA that the encoder fits, else a path for the reader to replace."""
    shape = (config.hidden_size, config.num_hidden_layers, config.patch_size, config.image_size)
    return "llava-hf/llava-1.5-7b-hf" if shape == (1024, 24, 14, 336) else "path/to/a/llava-with-this-vision-encoder"


def _check_folder(folder: Path) -> None:
    """Never write over or beside something."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"'{folder}' is a file: name a folder to save the encoder in.")
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"the folder '{folder}' is not empty: name a new folder, so that nothing is overwritten.")


def _image_processor(processor: Any) -> Any:
    """A copy of the image processor that stands alone; one made for pixels in [0, 1] would mislead its users."""
    images = copy.deepcopy(getattr(processor, "image_processor", processor))
    if not getattr(images, "do_normalize", False):
        raise ValueError(
            f"the image processor {type(images).__name__} has do_normalize off: pass the original model's, as users "
            "of the encoder need its normalisation."
        )
    return images


def _weights(encoder: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Weights on the CPU under prefixed names, checked to be finite."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in encoder.state_dict().items():
        if tensor.device.type == "meta":
            raise ValueError(f"the encoder's '{name}' is on the meta device: load its weights before saving.")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"the encoder's '{name}' holds NaN or infinity: check its training before publishing.")
        whole = name if name.startswith((PREFIX, "visual_projection.")) else PREFIX + name
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
