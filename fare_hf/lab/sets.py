"""The lab's data sets: what an encoder is fine-tuned on, and what everything is measured on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fare_hf.lab import captions, scenes
from fare_hf.lab.concepts import DIGIT_CLASSES, FASHION_CLASSES, ZERO_SHOT_CONCEPTS
from fare_hf.lab.drawings import TRAIN_STYLES, all_concepts, drawings, grey_images, stack_pixels
from fare_hf.lab.names import TEST_SETS, TRAINING_SETS, lab_name

if TYPE_CHECKING:
    from transformers import CLIPImageProcessor

__all__ = ["DrawingsForTraining", "TestSamples", "TestSet", "load_test_samples", "load_test_set", "load_training_set"]

VIEWS = 5
"""Images made of each drawing of a test style."""
GREY_CONTRAST = 0.35
"""Clothes and digits are shown faded: black on white, 4/255 would be next to nothing to strokes of full contrast."""
_SEEDS = {"fxemoji": 101, "twemoji": 202, "openmoji": 303}


class DrawingsForTraining(Dataset):
    """Single drawings of the six training styles on varied backgrounds, composed anew in every epoch.

    Item `i` of an epoch depends on `(seed, epoch, i)` and on nothing else, so that a resumed run sees what the
    uninterrupted one saw. FARE ignores the labels.

    Args:
        size: images in an epoch.
        seed: which images.
        variation: how freely they are drawn.

    Attributes:
        class_names: the words for each label.
        processor: the lab CLIP's image processor.
    """

    def __init__(self, size: int = 24_000, seed: int = 0, variation: scenes.Variation = scenes.FINE_TUNING) -> None:
        self.drawings = [drawing for style in TRAIN_STYLES for drawing in drawings(style)]
        self.main = [number for number, drawing in enumerate(self.drawings) if drawing.main]
        self.class_names = [captions.with_article(name) for name in all_concepts()]
        self.labels = [all_concepts().index(drawing.concept) for drawing in self.drawings]
        self.size, self.seed, self.variation, self.epoch = size, seed, variation, 0

    @property
    def processor(self) -> CLIPImageProcessor:
        """The lab CLIP's image processor."""
        from transformers import AutoImageProcessor

        from fare_hf.lab.names import MODELS

        # With pillow whatever is installed: the lab's figures were measured so.
        return AutoImageProcessor.from_pretrained(MODELS / "clip", backend="pil", trust_remote_code=False)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose images `__getitem__` makes."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, self.epoch, index))
        pool = self.main if rng.random() < 0.6 else range(len(self.drawings))
        number = int(pool[rng.integers(len(pool))])
        image = scenes.single(self.drawings[number].image, rng, self.variation)
        pixels = torch.from_numpy(stack_pixels([image])[0]).float().div_(255)
        return {"pixel_values": pixels, "labels": self.labels[number], "index": index}


@dataclass(frozen=True)
class TestSet:
    """Images with their classes.

    Attributes:
        name: the set's name.
        pixels: (N, 3, 160, 160), fp32 in [0, 1].
        labels: (N,), indices into `class_names`.
        class_names: the classes, K words.
        prompts: one zero-shot sentence a class, K of them.
        groups: (N,), the drawing that an image shows: images of one drawing are not independent.
    """

    __test__ = False  # not a test, whatever pytest thinks of the name

    name: str
    pixels: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    prompts: tuple[str, ...]
    groups: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> TestSet:
        """`count` images spread evenly over the set (all of it if it has no more)."""
        chosen = torch.linspace(0, len(self) - 1, min(count, len(self))).round().long()
        parts = (self.pixels[chosen], self.labels[chosen])
        return TestSet(self.name, *parts, self.class_names, self.prompts, self.groups[chosen])


def load_training_set(name: str = "drawings", **options: Any) -> DrawingsForTraining:
    """The set behind `--dataset lab:drawings`; `options` are those of `DrawingsForTraining`.

    Raises:
        ValueError: if there is no such set.
    """
    lab_name(name, TRAINING_SETS)
    return DrawingsForTraining(**options)


def load_test_set(name: str) -> TestSet:
    """One of `TEST_SETS`, the same images on every machine.

    Raises:
        ValueError: if there is no such set.
    """
    name = lab_name(name, TEST_SETS)
    classes = {"fashion": FASHION_CLASSES, "digits": DIGIT_CLASSES}.get(name, ZERO_SHOT_CONCEPTS)
    images, concepts = images_of(name)
    labels = torch.tensor([classes.index(concept) for concept in concepts])
    groups = torch.arange(len(labels)) if name in ("fashion", "digits") else labels
    pixels = torch.from_numpy(images).float().div_(255)
    return TestSet(name, pixels, labels, classes, tuple(captions.zero_shot_prompts(classes, name)), groups)


class TestSamples(Dataset):
    """A `TestSet` as samples to evaluate a training on: `{"pixel_values", "labels", "index"}`.

    Attributes:
        class_names: a whole sentence for each class.
    """

    __test__ = False

    def __init__(self, test: TestSet) -> None:
        self.test, self.class_names = test, list(test.prompts)

    def __len__(self) -> int:
        return len(self.test)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.test.pixels[index], "labels": int(self.test.labels[index]), "index": index}


def load_test_samples(name: str) -> TestSamples:
    """The set behind `--eval_split` of a training on the lab.

    Raises:
        ValueError: if there is no such set.
    """
    return TestSamples(load_test_set(name))


@cache
def images_of(name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Images (N, 3, 160, 160) uint8 of a test set and what they show; kept, for composing them takes seconds."""
    if name in ("fashion", "digits"):
        grey, concepts = grey_images(name, "test")
        return stack_pixels([scenes.fade(image, GREY_CONTRAST) for image in grey]), concepts
    rng = np.random.default_rng(_SEEDS[name])
    chosen = [drawing for _ in range(VIEWS) for drawing in drawings(name) if drawing.concept in ZERO_SHOT_CONCEPTS]
    images = [scenes.single(drawing.image, rng) for drawing in chosen]
    return stack_pixels(images), tuple(drawing.concept for drawing in chosen)
