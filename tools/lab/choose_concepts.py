"""Chooses the lab's zero-shot classes on the validation style: `python -m tools.lab.choose_concepts`.

Of the main concepts, the `CLASSES` that the lab's CLIP recognises most often (among all of them) in eight views of the
validation style. No test style is looked at. What it prints stands in `fare_hf.lab.concepts.ZERO_SHOT_CONCEPTS`.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from fare_hf.data.pixels import Normalization
from fare_hf.evaluation import text_classifier
from fare_hf.lab import captions, scenes
from fare_hf.lab.drawings import VALIDATION_STYLE, drawings, main_concepts, stack_pixels
from fare_hf.lab.names import MODELS

VIEWS, SEED = 8, 404
CLASSES = 104


@torch.no_grad()
def validation_recall(folder: Path) -> dict[str, float]:
    """For each main concept, in what part of its validation views a CLIP names it."""
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    normalise = Normalization.from_processor(CLIPImageProcessor.from_pretrained(folder))
    classes = main_concepts()
    prompts = captions.zero_shot_prompts(classes, VALIDATION_STYLE)
    text = text_classifier(model, CLIPTokenizer.from_pretrained(folder), prompts, ["{}"])
    rng, recall = np.random.default_rng(SEED), {}
    for drawing in drawings(VALIDATION_STYLE):
        pixels = stack_pixels([scenes.single(drawing.image, rng) for _ in range(VIEWS)])
        images = model.get_image_features(pixel_values=normalise(torch.from_numpy(pixels) / 255)).pooler_output
        named = (F.normalize(images, dim=-1) @ text.T).argmax(1)
        recall[drawing.concept] = (named == classes.index(drawing.concept)).float().mean().item()
    return recall


def main() -> None:
    """Prints the chosen concepts."""
    parser = argparse.ArgumentParser(description="Chooses the lab's zero-shot classes on the validation style.")
    parser.add_argument("--clip", type=Path, default=MODELS / "clip", help="folder of the lab's CLIP")
    recall = validation_recall(parser.parse_args().clip)
    best_first = sorted(recall, key=lambda concept: (-recall[concept], concept))
    print(textwrap.fill(", ".join(sorted(best_first[:CLASSES])), 100, break_on_hyphens=False))
    least, mean = recall[best_first[CLASSES - 1]], sum(recall.values()) / len(recall)
    print(f"{CLASSES} of {len(recall)}; recall of the last {least:.3f}, mean of all {mean:.3f}")


if __name__ == "__main__":
    main()
