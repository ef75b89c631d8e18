"""What the lab's encoders are fine-tuned on: images composed anew in every epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from fare_hf.lab import captions, procedural, scenes
from fare_hf.lab.drawings import TRAIN_STYLES, all_concepts, drawings, stack_pixels
from fare_hf.lab.names import MODELS, TRAINING_SETS, lab_name

if TYPE_CHECKING:
    from transformers import CLIPImageProcessor

__all__ = ["DrawingsForTraining", "ImagesForTraining", "load_training_set"]

PROCEDURAL = (procedural.strokes, procedural.strokes, procedural.shapes, procedural.texture)
"""Images that nobody drew; one of them is taken, strokes twice as often."""


class ImagesForTraining(Dataset):
    """Images without labels: drawings of the six training styles alone, together and in parts, their outlines filled
    with textures, strokes, shapes and textures, in a wide range of colours, contrasts and resolutions.

    Item `i` of an epoch depends on `(seed, epoch, i)` and on nothing else, so that a resumed run sees what the
    uninterrupted one saw.

    Args:
        size: images in an epoch.
        seed: which images.
        variation: how freely they are drawn.

    Attributes:
        processor: the lab CLIP's image processor.
    """

    def __init__(self, size: int = 24_000, seed: int = 0, variation: scenes.Variation = scenes.UNLABELLED) -> None:
        self.drawings = [drawing for style in TRAIN_STYLES for drawing in drawings(style)]
        self.main = [number for number, drawing in enumerate(self.drawings) if drawing.main]
        self.size, self.seed, self.variation, self.epoch = size, seed, variation, 0

    @property
    def processor(self) -> CLIPImageProcessor:
        """The lab CLIP's image processor."""
        from transformers import AutoImageProcessor

        # With pillow whatever is installed: the lab's figures were measured so.
        return AutoImageProcessor.from_pretrained(MODELS / "clip", backend="pil", trust_remote_code=False)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose images `__getitem__` makes."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.image(np.random.default_rng((self.seed, self.epoch, index)))
        return {"pixel_values": _pixels(image), "index": index}

    def image(self, rng: np.random.Generator) -> Image.Image:
        """An image of one of the kinds: half of them single drawings."""
        kind = rng.random()
        if kind < 0.5:
            return scenes.single(self.drawings[self.pick(rng)].image, rng, self.variation)
        if kind < 0.62:
            shown = [self.drawings[self.pick(rng)].image for _ in range(rng.integers(2, 5))]
            return scenes.several(shown, rng, self.variation)
        if kind < 0.84:
            make = scenes.part if kind < 0.72 else procedural.silhouette
            image = make(self.drawings[self.pick(rng)].image, rng)
        else:
            image = PROCEDURAL[rng.integers(len(PROCEDURAL))](rng)
        if rng.random() < 0.4:
            image = procedural.enlarged(image, rng)
        return scenes.recolour(image, self.variation, rng)

    def pick(self, rng: np.random.Generator) -> int:
        """The number of a drawing, in 60 % of the cases of a main concept."""
        pool = self.main if rng.random() < 0.6 else range(len(self.drawings))
        return int(pool[rng.integers(len(pool))])


class DrawingsForTraining(ImagesForTraining):
    """Single drawings of the six training styles on varied backgrounds, with labels; see `ImagesForTraining`.

    Attributes:
        class_names: the words for each label.
    """

    def __init__(self, size: int = 24_000, seed: int = 0, variation: scenes.Variation = scenes.FINE_TUNING) -> None:
        super().__init__(size, seed, variation)
        self.class_names = [captions.with_article(name) for name in all_concepts()]
        self.labels = [all_concepts().index(drawing.concept) for drawing in self.drawings]

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, self.epoch, index))
        number = self.pick(rng)
        image = scenes.single(self.drawings[number].image, rng, self.variation)
        return {"pixel_values": _pixels(image), "labels": self.labels[number], "index": index}


def load_training_set(name: str = "drawings", **options: Any) -> ImagesForTraining:
    """The set behind `--dataset lab:drawings` or `lab:images`; `options` are those of its class.

    Raises:
        ValueError: if there is no such set.
    """
    kinds = {"drawings": DrawingsForTraining, "images": ImagesForTraining}
    return kinds[lab_name(name, TRAINING_SETS)](**options)


def _pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(stack_pixels([image])[0]).float().div_(255)
