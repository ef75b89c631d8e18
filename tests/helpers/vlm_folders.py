"""What a user of `fare-hf evaluate --vlm` has: a tiny LLaVA on disk, images with words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from helpers.tiny_llava import images, llava, processor

from fare_hf.data.pixels import to_pil

TEMPLATE = "user : <image> {} assistant :"
SAID = ("a red cat", "a green dog of the bird", "a blue face and a bird")


def write_llava(folder: Path) -> Path:
    """A tiny random LLaVA with its processor, which has no chat template."""
    llava().save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


def write_images(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """An image for each row, and the rows in `metadata.jsonl`; the first is called photo0.png."""
    folder.mkdir(parents=True)
    names = [f"photo{number}.png" for number in range(len(rows))]
    for name, picture in zip(names, to_pil(images(len(rows))), strict=True):
        picture.save(folder / name)
    lines = [json.dumps({"file_name": name, **row}) for name, row in zip(names, rows, strict=True)]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def write_captions(folder: Path, count: int) -> Path:
    """Images with two captions each."""
    said = [[SAID[number % 3], SAID[(number + 1) % 3]] for number in range(count)]
    return write_images(folder, [{"captions": captions} for captions in said])


def command(vlm: Path, dataset: Path, task: str, *more: str) -> list[str]:
    """A command line that is right, but for its --output_dir."""
    words = ["evaluate", "--vlm", str(vlm), "--dataset", str(dataset), "--task", task, "--template", TEMPLATE]
    return [*words, "--steps", "2", "--batch_size", "2", "--eps", "4/255", *more]
