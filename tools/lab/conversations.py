"""What the lab's vision-language models learn from: composed images, what is asked about them, and the answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionModel, PreTrainedTokenizerFast

from fare_hf.data.pixels import Normalization
from fare_hf.lab import captions, scenes
from fare_hf.lab.concepts import DIGIT_CLASSES, FASHION_CLASSES
from fare_hf.lab.drawings import main_concepts, stack_pixels
from tools.lab import sentences
from tools.lab.train_clip import SampleSource

__all__ = ["FIRST", "IGNORE", "SECOND", "Conversations", "Mixture", "Shown"]

IGNORE = -100


@dataclass(frozen=True)
class Mixture:
    """What images show, as fractions of them.

    Attributes:
        single: a drawing alone.
        scenes: two or three drawings.
        fashion: clothes; the rest are digits.
        grey_questions: probability that clothes or digits are asked about with yes or no, not described.
    """

    single: float
    scenes: float
    fashion: float
    grey_questions: float


FIRST = Mixture(single=0.67, scenes=0.27, fashion=0.04, grey_questions=0.0)
"""Nothing but captions of clothes and digits."""
SECOND = Mixture(single=0.5, scenes=0.25, fashion=0.13, grey_questions=0.6)
"""Yes-or-no questions about them too."""


@dataclass(frozen=True)
class Shown:
    """What an image shows.

    Attributes:
        caption: the sentence about it.
        concepts: the things in it.
        kind: "drawings", "fashion" or "digits".
    """

    caption: str
    concepts: tuple[str, ...]
    kind: str

    def absent(self) -> list[str]:
        """What of this kind is not there."""
        names = {"drawings": main_concepts(), "fashion": FASHION_CLASSES, "digits": DIGIT_CLASSES}[self.kind]
        return [name for name in names if name not in self.concepts]


class Conversations:
    """Composes images, keeps their tower features and talks about them."""

    def __init__(
        self,
        tower: CLIPVisionModel,
        processor: CLIPImageProcessor,
        seed: int,
        capacity: int,
        mixture: Mixture = FIRST,
    ) -> None:
        self.source, self.tower, self.capacity, self.mixture = SampleSource(seed), tower, capacity, mixture
        self.rng = self.source.rng
        self.normalise = Normalization.from_processor(processor)
        self.features: list[Tensor] = []
        self.facts: list[Shown] = []

    def compose(self, count: int) -> None:
        """Adds `count` images."""
        drawn = [self.draw() for _ in range(count)]
        pixels = torch.from_numpy(stack_pixels([image for image, _ in drawn])) / 255
        with torch.no_grad():
            hidden = self.tower(self.normalise(pixels), output_hidden_states=True).hidden_states[-2]
        self.features.extend(hidden[:, 1:].half())
        self.facts.extend(shown for _, shown in drawn)
        self.features, self.facts = self.features[-self.capacity :], self.facts[-self.capacity :]

    def draw(self) -> tuple[Image.Image, Shown]:
        """An image of the mixture."""
        kind, mixture = self.rng.random(), self.mixture
        if kind < mixture.single + mixture.scenes:
            return self.drawn(1 if kind < mixture.single else int(self.rng.integers(2, 4)))
        clothes = kind < mixture.single + mixture.scenes + mixture.fashion
        sample = self.source.grey_sample("fashion" if clothes else "digits")
        name = sample.key.split(":")[1]
        templates = captions.FASHION_TEMPLATES if clothes else captions.DIGIT_TEMPLATES
        caption = templates[0].format(captions.with_article(name) if clothes else name)
        return sample.image, Shown(caption, (name,), "fashion" if clothes else "digits")

    def drawn(self, count: int) -> tuple[Image.Image, Shown]:
        """One drawing, or a scene of several."""
        chosen = [self.source.pick(0.85) for _ in range(count)]
        names = [drawing.concept for drawing in chosen]
        pictures = [drawing.image for drawing in chosen]
        if count == 1:
            image = scenes.single(pictures[0], self.rng, scenes.PRETRAINING)
        else:
            image = scenes.several(pictures, self.rng, scenes.PRETRAINING)
        return image, Shown(captions.caption_of(names), tuple(names), "drawings")

    def turns(self, shown: Shown) -> list[tuple[str, str]]:
        """What is asked about one image, with the answers: what is in it (half of the drawings), or two other turns.

        The two kinds are not mixed: a caption in the text would answer the question of what is there, and the reverse.
        """
        asked = 0.5 if shown.kind == "drawings" else self.mixture.grey_questions
        if asked and self.rng.random() < asked:
            return self.yes_no_turns(shown)
        first = second = self.turn(shown)
        while first[0] == second[0]:
            second = self.turn(shown)
        return [first, second]

    def yes_no_turns(self, shown: Shown) -> list[tuple[str, str]]:
        """Three questions of what is there, no thing twice; half are yes while there is something to say yes to."""
        there, absent, turns = list(dict.fromkeys(shown.concepts)), shown.absent(), []
        for _ in range(3):
            present = bool(there) and self.rng.random() < 0.5
            pool = there if present else absent
            name = pool.pop(int(self.rng.integers(len(pool))))
            turns.append((captions.yes_no_prompt(name), "yes" if present else "no"))
        return turns

    def turn(self, shown: Shown) -> tuple[str, str]:
        """One question about an image, and its answer."""
        kind = self.rng.random()
        if kind < 0.6 or shown.kind != "drawings":
            return (captions.CAPTION_PROMPT, shown.caption) if kind < 0.9 else self.repeat()
        if kind < 0.7:
            return sentences.COUNT_PROMPT, ("one", "two", "three", "four")[len(shown.concepts) - 1]
        return self.repeat()

    def repeat(self) -> tuple[str, str]:
        """A sentence to repeat: one of the fixed ones or words in random order."""
        if self.rng.random() < 0.6:
            sentence = sentences.SENTENCES[self.rng.integers(len(sentences.SENTENCES))]
        else:
            words = " ".join(sentences.SENTENCES).split() + list(main_concepts())
            sentence = " ".join(words[i] for i in self.rng.integers(len(words), size=self.rng.integers(2, 7)))
        return sentences.repeat_prompt(sentence), sentence

    def batch(self, size: int, tokenizer: PreTrainedTokenizerFast, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """`size` conversations of two or three turns: ids and labels (right padded), features of their images."""
        chosen = self.rng.integers(len(self.facts), size=size)
        ids, labels = self.texts(chosen, tokenizer, "<image>" * tokens)
        return ids, labels, torch.stack([self.features[i] for i in chosen]).float()

    def texts(self, chosen: np.ndarray, tokenizer: PreTrainedTokenizerFast, image: str) -> tuple[Tensor, Tensor]:
        """Ids and labels (right padded) of one conversation about each of the chosen images."""
        rows = [self.encode(self.turns(self.facts[i]), tokenizer, image) for i in chosen]
        width = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), width), tokenizer.pad_token_id)
        labels = torch.full((len(rows), width), IGNORE)
        for row, (token_ids, targets) in enumerate(rows):
            ids[row, : len(token_ids)] = torch.tensor(token_ids)
            labels[row, : len(targets)] = torch.tensor(targets)
        return ids, labels

    def encode(
        self, turns: list[tuple[str, str]], tokenizer: PreTrainedTokenizerFast, image: str
    ) -> tuple[list[int], list[int]]:
        """Token ids and labels; only answers carry a loss, and each answer ends with `</s>`.

        Args:
            turns: questions and answers about one image.
            tokenizer: of the model.
            image: what the processor writes in the place of `<image>`.
        """
        ids: list[int] = []
        labels: list[int] = []
        for number, (question, answer) in enumerate(turns):
            prompt = captions.chat(question, image=number == 0).replace("<image>", image)
            prompt_ids = tokenizer(prompt, add_special_tokens=False).input_ids
            answer_ids = tokenizer(f" {answer}", add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
            ids += prompt_ids + answer_ids
            labels += [IGNORE] * len(prompt_ids) + answer_ids
        return ids, labels
