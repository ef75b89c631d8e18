"""The lab's yes-or-no questions: one about each drawing of the main set, and of clothes and digits one about each of a
few hundred images; POPE's three splits on scenes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from fare_hf.lab import captions, scenes
from fare_hf.lab.drawings import TEST_STYLES, VALIDATION_STYLE, drawings, main_concepts, stack_pixels
from fare_hf.lab.names import QUESTION_SETS, lab_name
from fare_hf.lab.sets import QUESTIONS_ABOUT, UNSEEN, load_test_set

__all__ = ["SPLITS", "QuestionSet", "Scenes", "load_question_set", "load_scenes"]

STYLES = (TEST_STYLES[0], VALIDATION_STYLE, TEST_STYLES[1])
SPLITS = ("random", "popular", "adversarial")
"""POPE's three ways to choose what is not there (Li et al., EMNLP 2023, arXiv 2305.10355)."""
SCENES = 100
ABOUT_GREY = 200
"""Of how many clothes or digits is asked."""
GREY = {QUESTIONS_ABOUT + name: name for name in UNSEEN}
"""Questions about images of which there is one style."""
_SEEDS = {"yes-no": 404, "pope": 505, "yes-no-fashion": 606, "yes-no-digits": 707}


@dataclass(frozen=True)
class QuestionSet:
    """Questions about images, half of them to be answered with yes.

    Attributes:
        name: the set's name.
        pixels: (N, 3, 160, 160), fp32 in [0, 1]: one image for each question, repeated where it is asked about twice.
        prompts: N questions as the LLaVA is asked them.
        answers: N times "yes" or "no".
        splits: of each question one of `SPLITS`; None where the set has no splits.
        groups: (N,), the image that a question is about: questions about one image are not independent.
    """

    name: str
    pixels: Tensor
    prompts: list[str]
    answers: list[str]
    splits: list[str] | None
    groups: Tensor

    def __len__(self) -> int:
        return len(self.answers)

    def first(self, count: int | None) -> QuestionSet:
        """The questions about the first `count` images; None is all of them."""
        chosen = [number for number, image in enumerate(self.groups.tolist()) if count is None or image < count]
        splits = None if self.splits is None else [self.splits[number] for number in chosen]
        prompts, answers = [self.prompts[i] for i in chosen], [self.answers[i] for i in chosen]
        return QuestionSet(self.name, self.pixels[chosen], prompts, answers, splits, self.groups[chosen])


@dataclass(frozen=True)
class Scenes:
    """Images of several drawings, about which POPE's questions are asked.

    Attributes:
        pixels: (100, 3, 160, 160), fp32 in [0, 1].
        things: of each image the two or three things that it shows.
        captions: a true sentence about each.
    """

    pixels: Tensor
    things: list[list[str]]
    captions: list[str]

    def __len__(self) -> int:
        return len(self.things)

    def first(self, count: int | None) -> Scenes:
        """The first `count` images; None is all of them."""
        return Scenes(self.pixels[:count], self.things[:count], self.captions[:count])


def load_scenes(style: str = STYLES[0]) -> Scenes:
    """The scenes behind `pope`, the same images on every machine.

    Raises:
        ValueError: if there is no such style.
    """
    style = lab_name(style, STYLES)
    images, things = _compose_scenes(style, np.random.default_rng((_SEEDS["pope"], STYLES.index(style))))
    pixels = torch.from_numpy(stack_pixels(images)).float().div_(255)
    return Scenes(pixels, things, [captions.caption_of(shown) for shown in things])


@cache
def load_question_set(name: str, style: str = STYLES[0]) -> QuestionSet:
    """One of `QUESTION_SETS`, the same questions on every machine.

    `yes-no` shows a single drawing and asks for it, or for another of the main concepts; `yes-no-fashion` and
    `yes-no-digits` show 200 images of those sets and ask for their class, or for another one. `pope` shows two or
    three drawings and asks, in each of the three splits, for one that is there and one that is not: any (random), the
    one that scenes show most (popular), or the one whose name is closest to something in the scene (adversarial; POPE
    takes what is most often seen together, which scenes drawn at random do not have).

    Args:
        name: of the set.
        style: of the drawings; the validation style is for choices. Clothes and digits have the first alone.

    Raises:
        ValueError: if there is no such set, or no such style of it.
    """
    name = lab_name(name, QUESTION_SETS)
    style = lab_name(style, STYLES[:1] if name in GREY else STYLES)
    rng = np.random.default_rng((_SEEDS[name], STYLES.index(style)))
    if name in GREY:
        return _about_grey(name, rng)
    return _about_drawings(style, rng) if name == "yes-no" else _about_scenes(style, rng)


def _about_drawings(style: str, rng: np.random.Generator) -> QuestionSet:
    pictures = [drawing for drawing in drawings(style) if drawing.concept in main_concepts()]
    chosen = [pictures[number] for number in rng.permutation(len(pictures))]
    images, asked, answers = [], [], []
    for number, drawing in enumerate(chosen):
        images.append(scenes.single(drawing.image, rng))
        asked.append(drawing.concept if number % 2 == 0 else _other(rng, [drawing.concept]))
        answers.append("yes" if number % 2 == 0 else "no")
    return _question_set("yes-no", images, asked, answers, None, list(range(len(images))))


def _about_grey(name: str, rng: np.random.Generator) -> QuestionSet:
    test = load_test_set(GREY[name])
    chosen = torch.from_numpy(rng.permutation(len(test))[:ABOUT_GREY])
    shown = [test.class_names[label] for label in test.labels[chosen].tolist()]
    answers = ["yes" if number % 2 == 0 else "no" for number in range(len(shown))]
    others = [[name for name in test.class_names if name != concept] for concept in shown]
    asked = [
        concept if answer == "yes" else other[rng.integers(len(other))]
        for concept, answer, other in zip(shown, answers, others, strict=True)
    ]
    return QuestionSet(name, test.pixels[chosen], _prompts(asked), answers, None, torch.arange(len(shown)))


def _compose_scenes(style: str, rng: np.random.Generator) -> tuple[list[Image.Image], list[list[str]]]:
    """Images, and what each shows."""
    pictures = [drawing for drawing in drawings(style) if drawing.concept in main_concepts()]
    shown = [
        [pictures[number] for number in rng.choice(len(pictures), size=rng.integers(2, 4), replace=False)]
        for _ in range(SCENES)
    ]
    images = [scenes.several([drawing.image for drawing in scene], rng) for scene in shown]
    return images, [[drawing.concept for drawing in scene] for scene in shown]


def _about_scenes(style: str, rng: np.random.Generator) -> QuestionSet:
    images, things = _compose_scenes(style, rng)
    common = [name for name, _ in Counter(name for present in things for name in present).most_common()]
    numbers, asked, answers, splits = [], [], [], []
    for number, present in enumerate(things):
        absent = {
            "random": _other(rng, present),
            "popular": next(name for name in common if name not in present),
            "adversarial": _closest(present),
        }
        for split in SPLITS:
            asked += [present[rng.integers(len(present))], absent[split]]
            answers += ["yes", "no"]
            splits += [split, split]
            numbers += [number, number]
    return _question_set("pope", [images[number] for number in numbers], asked, answers, splits, numbers)


def _other(rng: np.random.Generator, present: list[str]) -> str:
    """A main concept that is not there."""
    pool = [name for name in main_concepts() if name not in present]
    return pool[rng.integers(len(pool))]


def _closest(present: list[str]) -> str:
    """The main concept that is not there, of the largest cosine to one that is."""
    cosines = _name_cosines()[[main_concepts().index(name) for name in present]].amax(dim=0)
    order = cosines.argsort(descending=True, stable=True).tolist()
    return next(main_concepts()[number] for number in order if main_concepts()[number] not in present)


@cache
def _name_cosines() -> Tensor:
    """Cosines (K, K) between the names of the main concepts in the lab CLIP's text embedding."""
    from fare_hf.lab.models import load_clip

    model, tokenizer = load_clip()
    sentences = captions.zero_shot_prompts(main_concepts(), "twemoji")
    with torch.no_grad():
        text = model.get_text_features(**tokenizer(sentences, padding=True, return_tensors="pt")).pooler_output
    names = F.normalize(text, dim=-1)
    return names @ names.T


def _question_set(
    name: str, images: list, asked: list[str], answers: list[str], splits: list[str] | None, numbers: list[int]
) -> QuestionSet:
    pixels = torch.from_numpy(stack_pixels(images)).float().div_(255)
    return QuestionSet(name, pixels, _prompts(asked), answers, splits, torch.tensor(numbers))


def _prompts(asked: list[str]) -> list[str]:
    return [captions.chat(captions.yes_no_prompt(concept)) for concept in asked]
