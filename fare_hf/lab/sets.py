"""The lab's sets of labelled images that everything is measured on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fare_hf.lab import captions, scenes
from fare_hf.lab.concepts import DIGIT_CLASSES, FASHION_CLASSES, ZERO_SHOT_CONCEPTS
from fare_hf.lab.drawings import drawings, grey_images, stack_pixels
from fare_hf.lab.names import TEST_SETS, lab_name

__all__ = ["UNSEEN", "TestSamples", "TestSet", "is_unseen", "load_test_samples", "load_test_set"]

VIEWS = 5
"""Images made of each drawing of a test style."""
GREY_CONTRAST = 0.35
"""Clothes and digits are shown faded: black on white, 4/255 would be next to nothing to strokes of full contrast."""
UNSEEN = ("fashion", "digits")
"""Of these no fine-tuning saw an image. Of the drawings TeCoA was told what they show, in other styles than those of
the test sets; FARE saw them without their names. The CLIP and the LLaVA were trained on all of it, in other images."""
QUESTIONS_ABOUT = "yes-no-"
"""Begins the names of question sets about clothes and digits."""
_SEEDS = {"fxemoji": 101, "twemoji": 202, "openmoji": 303}


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


def is_unseen(dataset: str) -> bool:
    """Whether a set, or one of questions, shows what no fine-tuning saw.

    >>> is_unseen("digits"), is_unseen("yes-no-digits"), is_unseen("yes-no"), is_unseen("twemoji")
    (True, True, False, False)
    """
    return dataset.removeprefix(QUESTIONS_ABOUT) in UNSEEN


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
