"""The two folders of a merge: an encoder and a vision-language model, as they lie on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from helpers.loopback_hub import File, LoopbackHub
from helpers.tiny_vlms import PROMPT, TINY, clip_encoder
from helpers.vlm_capabilities import inputs_of, picture_of
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPImageProcessor

from fare_hf.vlm import swap_vision_tower

LLAVA = "Llava (1.5, BakLlava)"

CARD = "---\nlicense: llama2\nlanguage:\n- en\n---\n# A LLaVA\n"

ENCODER_CARD = "---\nlicense: mit\nbase_model: openai/clip-vit-large-patch14\n---\n# Robust\n"


def write_vlm(folder: Path, family: str = LLAVA, shard: str = "30KB", **vision: Any) -> Path:
    """A published model in several files, with card, old pickles and a tokenizer."""
    tiny = TINY[family]
    tiny.model(**vision).save_pretrained(folder, max_shard_size=shard)
    if tiny.processor:
        tiny.processor().save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    (folder / "pytorch_model.bin").write_bytes(b"old tower")
    return folder


def write_encoder(folder: Path, size: int = 32, kind: Any = clip_encoder) -> Path:
    """A robust encoder with its card."""
    kind(image_size=size).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size}).save_pretrained(folder)
    (folder / "README.md").write_text(ENCODER_CARD)
    return folder


def logits_of(folder: Path | str, **options: Any) -> torch.Tensor:
    """What plain transformers says of a picture with this folder's model and processor."""
    model = AutoModelForImageTextToText.from_pretrained(folder, **options).eval()
    with torch.no_grad():
        return model(**inputs_of(AutoProcessor.from_pretrained(folder), picture_of(), PROMPT)).logits


def swapped_logits(vlm: Path, encoder: Path) -> torch.Tensor:
    """The same of a swap."""
    model, processor = AutoModelForImageTextToText.from_pretrained(vlm).eval(), AutoProcessor.from_pretrained(vlm)
    swap_vision_tower(model, encoder, processor)
    with torch.no_grad():
        return model(**inputs_of(processor, picture_of(), PROMPT)).logits


def publish(hub: LoopbackHub, folder: Path, repo_id: str) -> dict[str, bytes]:
    """Put a folder on the Hub without requests."""
    repo = hub.create(repo_id)
    tree = dict(repo.tree())
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name, data in contents.items():
        tree[name] = File(data, name.endswith((".safetensors", ".bin")))
        hub.stored[tree[name].sha256] = data
    repo.branches["main"] = repo.add(tree, None)
    hub.received = hub.sent = 0
    hub.requests.clear()
    return contents
