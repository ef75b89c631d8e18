"""Captions of a vision-language model, clean and under an untargeted attack through the whole model."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from fare_hf.attacks import ThreatModel
from fare_hf.evaluation.attack_loop import check_plan
from fare_hf.evaluation.vlm.engine import TextEvaluation, VlmEngine, evaluate_answers
from fare_hf.evaluation.vlm.metrics import MeanMetric

__all__ = ["NamesConcept", "ThingsNamed", "evaluate_captions"]


class NamesConcept:
    """Rule for a right caption: it names the reference concept in whole words, the longest name winning.

    With a vocabulary of "cat" and "cat face", the text "a cat face" names "cat face" and not "cat".

    Args:
        vocabulary: all names that a caption could hold; without it only the reference itself is looked for.
    """

    def __init__(self, vocabulary: Iterable[str] = ()) -> None:
        self.vocabulary = tuple(dict.fromkeys(_plain(name) for name in vocabulary))
        self._pattern = _any_of(self.vocabulary)

    def __call__(self, text: str, reference: str) -> bool:
        """Whether `text` names `reference`; case and runs of white space do not matter."""
        name = _plain(reference)
        pattern = self._pattern if name in self.vocabulary else _any_of((*self.vocabulary, name))
        return name in pattern.findall(_plain(text))


class ThingsNamed(MeanMetric):
    """Of the things in an image the fraction that its caption names: recall, for `evaluate_vlm`.

    A thing that stands there twice counts twice, and is named by one word.

    Args:
        things: of each image what it shows, one or more names.
        captions: one true caption an image, whose likelihood attacks lower.
        vocabulary: as of `NamesConcept`.

    Raises:
        ValueError: no images, one that shows nothing, names that are no list of texts, or another number of captions.
    """

    name = "things named"
    threshold = 0.0

    def __init__(
        self, things: Sequence[Sequence[str]], captions: Sequence[str], vocabulary: Iterable[str] = ()
    ) -> None:
        for number, shown in enumerate(things):
            if isinstance(shown, str) or not shown or not all(isinstance(one, str) and one.strip() for one in shown):
                raise ValueError(f"things of image {number} are {shown!r}: give a list of the names of what it shows.")
        if not things or len(captions) != len(things):
            raise ValueError(f"{len(captions)} captions, {len(things)} images: give one caption of each, and images.")
        self.references, self.captions = [list(shown) for shown in things], list(captions)
        self._rule = NamesConcept(vocabulary)

    def __len__(self) -> int:
        return len(self.references)

    def texts(self, index: int) -> list[str]:
        """The true caption."""
        return [self.captions[index]]

    def score(self, answer: str, index: int) -> float:
        """In [0, 1]."""
        shown = self.references[index]
        return sum(self._rule(answer, thing) for thing in shown) / len(shown)


def evaluate_captions(
    vlm: PreTrainedModel,
    processor: Any,
    images: Any,
    captions: Sequence[str],
    references: Sequence[str] | None = None,
    *,
    prompt: str,
    model: str,
    dataset: str,
    threat_models: Sequence[ThreatModel] = (),
    correct: Callable[[str, str], bool] | None = None,
    steps: int = 100,
    restarts: int = 1,
    seed: int = 0,
    batch_size: int = 64,
    max_new_tokens: int = 20,
    groups: Sequence[Hashable] | None = None,
    keep: Sequence[int] = (),
    folder: str | Path | None = None,
    distributed: bool = False,
) -> TextEvaluation:
    """Fraction of right captions, clean and under APGD through the whole model.

    The attack maximises the negative log-likelihood of the ground-truth caption; then the model is asked again. Only
    samples whose clean caption is right are attacked, and nobody who is fooled is attacked again. From 20 steps on, a
    screening run of a tenth of the steps comes first, as it fools most samples of an undefended model.

    Args:
        vlm, processor: a model of `fare_hf.vlm.families.table.FAMILIES` and its processor; call once per tower.
        images: tensor (N, 3, S, S) in [0, 1] at the tower's resolution, or a data set of `{"pixel_values"}`.
        captions: N ground-truth captions, whose likelihood the attack lowers.
        references: N references that `correct` looks for in the answer; None takes the captions.
        prompt: with the image placeholder.
        model, dataset: names for the rows.
        threat_models: none means clean captions only.
        correct: `(text, reference) -> bool`; None is `NamesConcept(references)`.
        steps: of each full APGD run.
        restarts: full APGD runs, each from another random start on the survivors.
        seed, batch_size, max_new_tokens: as named.
        groups: one label per sample for a cluster bootstrap; None gives Wilson intervals.
        keep: indices of images whose perturbed pixels are wanted back, for pictures.
        folder: of this run alone, where each finished batch is written down, so that an interrupted call, made again,
            goes on after the last one with the same result; delete it when the result is kept.
        distributed: divide the batches among the processes of accelerate or torchrun, which must all call this; every
            one of them gets what one process alone would.

    Returns:
        Rows (`task` "captions", `metric` "caption accuracy": clean, then one per threat model) and the answers.

    Raises:
        ValueError: no images, another number of captions or references, what `check_plan` refuses, a folder of
            another run, and what attacks raise.

    Example:
        >>> from fare_hf.lab import load_llava, load_test_set
        >>> test = load_test_set("digits").first(2)
        >>> captions = [test.class_names[label] for label in test.labels.tolist()]
        >>> prompt = "USER: <image>\\nProvide a short caption for this image. ASSISTANT:"
        >>> names = {"prompt": prompt, "model": "LLaVA", "dataset": "digits"}
        >>> evaluate_captions(*load_llava(), test.pixels, captions, **names).rows[0].n
        2
    """
    wanted = list(captions if references is None else references)
    if not len(images) == len(captions) == len(wanted):
        raise ValueError(
            f"{len(images)} images, {len(captions)} captions, {len(wanted)} references: give one of each per image."
        )
    counts = {"steps": steps, "restarts": restarts, "batch_size": batch_size, "max_new_tokens": max_new_tokens}
    check_plan(len(images), threat_models, groups, seed, {"model": model, "dataset": dataset}, **counts)
    rule = NamesConcept(wanted) if correct is None else correct
    asked: dict[str, Any] = {"images": images, "prompts": [prompt] * len(images), "keep": keep, "seed": seed}
    asked |= {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "threshold": 0.0, "latest": True}
    asked["distributed"] = distributed
    engine = VlmEngine(vlm, processor, score=lambda text, index: float(rule(text, wanted[index])), **asked)
    return evaluate_answers(
        engine,
        threat_models,
        lambda batch: engine.loss(batch, [captions[index] for index in batch]),
        loss="nll",
        steps=steps,
        restarts=restarts,
        forced=False,
        groups=groups,
        folder=folder,
        references=[*captions, *wanted],
        model=model,
        task="captions",
        dataset=dataset,
        metric="caption accuracy",
    )


def _plain(text: str) -> str:
    """Lower case, single spaces."""
    return " ".join(text.lower().split())


def _any_of(names: Sequence[str]) -> re.Pattern[str]:
    """A pattern that finds names as whole words, the longest first; no names match nothing."""
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    choices = "|".join(re.escape(name) for name in longest_first if name)
    return re.compile(rf"(?<!\w)(?:{choices})(?!\w)" if choices else r"(?!)")
