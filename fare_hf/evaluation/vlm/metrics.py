"""What an answer of a vision-language model is worth: CIDEr, VQA accuracy, yes or no, multiple choice.

A metric holds the references of a whole data set and scores answer by answer, so that an attack can ask for a sample's
score and keep its worst. Scores are fractions (CIDEr may exceed 1; papers print it times 100).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from fare_hf.evaluation.vlm.vqa_answers import normalize_answer

__all__ = ["Choice", "Cider", "TextMetric", "VqaAccuracy", "YesNo", "caption_tokens"]


class TextMetric(Protocol):
    """What `evaluate_vlm` asks of a metric.

    Attributes:
        name: as reports give it.
        threshold: an attack gives up on a sample once its score is not above this.
        is_mean: whether the figure is the mean of the samples' scores.
        references: of each sample what answers are compared with, as plain data, by which a run that goes on is known.
    """

    name: str
    threshold: float
    is_mean: bool
    references: Any

    def __len__(self) -> int:
        """Number of samples."""

    def score(self, answer: str, index: int) -> float:
        """What an answer to sample `index` is worth."""

    def texts(self, index: int) -> list[str]:
        """Ground truths whose likelihood an attack on sample `index` lowers, in the order they are attacked."""

    def value(self, answers: Sequence[str], indices: Sequence[int]) -> float:
        """The figure of answers to the samples `indices`."""


class MeanMetric:
    """A metric whose figure is the mean of the scores."""

    is_mean = True
    score: Callable[[str, int], float]

    def value(self, answers: Sequence[str], indices: Sequence[int]) -> float:
        """Mean score."""
        return float(np.mean([self.score(answer, index) for answer, index in zip(answers, indices, strict=True)]))


class Cider(MeanMetric):
    """CIDEr-D as COCO's evaluation code computes it (Vedantam et al., CVPR 2015, arXiv 1411.5726).

    n-grams of 1 to 4 words weighted by their rarity among the references of the whole set, clipped, with the Gaussian
    length penalty (sigma 6) and the factor 10. Words come from `caption_tokens`, which needs no Java.

    Args:
        references: one or more captions of each image.
        threshold: of giving up in an attack; 0.10 for COCO, 0.02 for Flickr30k in the paper.

    Raises:
        ValueError: no images, an image without captions, or one image only (rarity would be undefined).
    """

    name = "CIDEr"

    def __init__(self, references: Sequence[Sequence[str]], threshold: float = 0.10) -> None:
        if len(references) < 2 or not all(references):
            raise ValueError("CIDEr weighs words by their rarity: give at least two images, and captions for each.")
        self.references, self.threshold = [list(captions) for captions in references], threshold
        grams = [[_ngrams(caption) for caption in captions] for captions in self.references]
        frequency = Counter(gram for captions in grams for gram in set().union(*captions))
        self._documents = math.log(len(grams))
        self._rarity = {gram: self._documents - math.log(count) for gram, count in frequency.items()}
        self._vectors = [[self._vector(counts) for counts in captions] for captions in grams]

    def __len__(self) -> int:
        return len(self.references)

    def texts(self, index: int) -> list[str]:
        """All captions, at most five."""
        return self.references[index][:5]

    def score(self, answer: str, index: int) -> float:
        """CIDEr-D of one caption, in [0, 10]."""
        weights, norms, length = self._vector(_ngrams(answer))
        total = 0.0
        for theirs, their_norms, their_length in self._vectors[index]:
            penalty = math.exp(-((length - their_length) ** 2) / (2 * 6.0**2))
            overlap = [0.0] * 4
            for gram, weight in weights.items():
                overlap[len(gram) - 1] += min(weight, theirs.get(gram, 0.0)) * theirs.get(gram, 0.0)
            for value, norm, their_norm in zip(overlap, norms, their_norms, strict=True):
                total += penalty * (value / (norm * their_norm) if norm and their_norm else value) / 4
        return min(10 * total / len(self._vectors[index]), 10.0)  # rounding may leave a little above

    def _vector(self, counts: Counter[tuple[str, ...]]) -> tuple[dict[tuple[str, ...], float], list[float], int]:
        """Weights, norm of each n, and the length, which the reference counts in pairs of words."""
        weights = {gram: count * self._rarity.get(gram, self._documents) for gram, count in counts.items()}
        norms = [math.sqrt(sum(w * w for gram, w in weights.items() if len(gram) == n)) for n in range(1, 5)]
        return weights, norms, sum(count for gram, count in counts.items() if len(gram) == 2)


class VqaAccuracy(MeanMetric):
    """VQA accuracy (Antol et al., ICCV 2015): an answer counts fully when three of ten people gave it.

    Leave one out: the mean, over the people, of `min(1, how many others said so / 3)`. Answers are normalised as the
    official evaluation does (`vqa_answers`).

    Args:
        references: the people's answers to each question (ten in VQAv2).

    Raises:
        ValueError: no questions, or one without answers.
    """

    name = "VQA accuracy"
    threshold = 0.0

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        if not references or not all(references):
            raise ValueError("VQA accuracy needs at least one question, and people's answers to each.")
        self.references = [list(answers) for answers in references]
        self._people = [[normalize_answer(answer) for answer in answers] for answers in references]

    def __len__(self) -> int:
        return len(self.references)

    def texts(self, index: int) -> list[str]:
        """The five most frequent answers (of equal ones, those given first)."""
        return [answer for answer, _ in Counter(self.references[index]).most_common(5)]

    def score(self, answer: str, index: int) -> float:
        """In [0, 1]."""
        given, people = normalize_answer(answer), self._people[index]
        matches = sum(person == given for person in people)
        return float(np.mean([min(1.0, (matches - (person == given)) / 3) for person in people]))


class YesNo:
    """Yes or no questions as POPE asks them (Li et al., EMNLP 2023, arXiv 2305.10355): F1 of "yes".

    An answer is "no" if its first sentence holds the word "No", "no" or "not", else "yes", as POPE's code reads it.

    Args:
        references: "yes" or "no" for each question.
        splits: the split of each question ("random", "popular", "adversarial"); the figure is the mean over splits.
        words: yes and no as the model was trained to write them: what an attack makes unlikely.

    Raises:
        ValueError: another reference than yes or no, or splits of another number.
    """

    name = "F1"
    is_mean = False
    threshold = 0.0

    def __init__(
        self, references: Sequence[str], splits: Sequence[str] | None = None, words: tuple[str, str] = ("Yes", "No")
    ) -> None:
        self.references = [reference.strip().rstrip(".!").lower() for reference in references]
        self.words = words
        self.splits = ["all"] * len(references) if splits is None else list(splits)
        unknown = set(self.references) - {"yes", "no"}
        if unknown or not references or len(self.splits) != len(references):
            raise ValueError(f"references hold {sorted(unknown)}: give yes or no, and one split for each question.")

    def __len__(self) -> int:
        return len(self.references)

    def texts(self, index: int) -> list[str]:
        """The right answer, as the model was trained to write it."""
        return [self.words[0] if self.references[index] == "yes" else self.words[1]]

    def score(self, answer: str, index: int) -> float:
        """1 if right."""
        return float(says_yes(answer) == (self.references[index] == "yes"))

    def value(self, answers: Sequence[str], indices: Sequence[int]) -> float:
        """Mean over splits of the F1 of "yes"; 0 where no question of a split was answered yes rightly."""
        names = [self.splits[index] for index in indices]
        values = []
        for split in dict.fromkeys(names):
            pairs = [
                (says_yes(answer), self.references[index] == "yes")
                for answer, index, name in zip(answers, indices, names, strict=True)
                if name == split
            ]
            hits, errors = sum(said and true for said, true in pairs), sum(said != true for said, true in pairs)
            values.append(2 * hits / (2 * hits + errors) if hits else 0.0)
        return float(np.mean(values))


class Choice(MeanMetric):
    """Multiple choice as in ScienceQA: the letter of the right option.

    Args:
        references: letter of the right option of each question, such as "A".

    Raises:
        ValueError: no questions, or a reference that is no single letter.
    """

    name = "accuracy"
    threshold = 0.0

    def __init__(self, references: Sequence[str]) -> None:
        bad = [reference for reference in references if not re.fullmatch("[A-Z]", reference)]
        if bad or not references:
            raise ValueError(f"references hold {bad[:3]}: give the letter of the right option, such as 'A'.")
        self.references = list(references)

    def __len__(self) -> int:
        return len(self.references)

    def texts(self, index: int) -> list[str]:
        """The letter."""
        return [self.references[index]]

    def score(self, answer: str, index: int) -> float:
        """1 if the answer says the right letter: alone, first with a mark behind it, or in "The answer is B."."""
        return float(_letter(answer.strip()) == self.references[index])


def _letter(answer: str) -> str | None:
    """The letter of an answer as LLaVA's evaluation reads it, and with a bracket or colon where it wants a full stop.

    "A cat" is no answer A.
    """
    if found := re.match(r"\(?([A-Z])(?:[.):](?:\s|$)|$)", answer):
        return found.group(1)
    sentences = re.findall(r"The answer is ([A-Z])\.", answer)
    return sentences[0] if len(sentences) == 1 else None


def says_yes(answer: str) -> bool:
    """POPE's reading of a free answer: "no" if one of three words stands in the first sentence, else "yes"."""
    return not {"No", "no", "not"} & set(answer.split(".")[0].replace(",", "").split(" "))


# What COCO's tokeniser drops after splitting; brackets have other names by then (-lrb-), in small letters, and stay.
_DROPPED = frozenset("' ` \" . ? ! , : - ; … – —".split())
_BRACKETS = dict(zip("()[]{}", "-lrb- -rrb- -lsb- -rsb- -lcb- -rcb-".split(), strict=True))
_CLITICS = re.compile(r"(?<=\w)(n't|'(?:s|m|d|re|ve|ll))\b")
_SHORT = (
    "mr mrs ms dr st ave jr sr vs blvd etc mt co inc ltd ft rd prof gen col sgt lt rev sen gov capt "
    "jan feb apr aug sept oct nov dec"
).replace(" ", "|")
_WORDS = re.compile(
    r"o'clock|'n'|'\d0s\b|n't|'(?:s|m|d|re|ve|ll)\b"
    rf"|(?<!\w)(?:[a-z]\.)+(?!\w)|(?<!\w)(?:{_SHORT})\.(?!\w)|(?<!\w)no\.(?=\s*\d)"  # stops that belong to the word
    r"|[#@][a-z]\w*|[!?]{2,}"
    r"|\d+(?:[.,:]\d+)+(?=[a-z])"  # 2.5m: a number and its unit
    r"|\w+(?:(?:[-./]|(?<=\d)[,:](?=\d))\w+)*|[^\w\s]"
)
_SPLIT = {"cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na"}


def caption_tokens(text: str) -> list[str]:
    """Words of a caption as COCO's evaluation counts them: Penn Treebank's, lower case, without punctuation.

    Clitics are words of their own ("it 's", "is n't"); hyphens, decimal points and the stops of abbreviations stay;
    brackets become words ("-lrb-"), by an oversight there that published figures contain. Checked word by word against
    Stanford's tokeniser, whose rarer rules are not all followed.
    """
    spaced = _CLITICS.sub(r" \1", text.lower().replace("’", "'"))
    words = [_BRACKETS.get(token, token) for token in _WORDS.findall(spaced) if token not in _DROPPED]
    return " ".join(_SPLIT.get(word, word) for word in words).split()


def _ngrams(caption: str) -> Counter[tuple[str, ...]]:
    words = caption_tokens(caption)
    return Counter(tuple(words[start : start + n]) for n in range(1, 5) for start in range(len(words) - n + 1))
