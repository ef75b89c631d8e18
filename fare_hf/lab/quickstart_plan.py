"""How much the quickstart trains and measures, what its parts cost, and how much time is left."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from fare_hf.lab import measure, recipes

__all__ = ["Plan", "TimeLeft", "in_words"]

WHOLE = {"twemoji": 520, "fashion": 600, "digits": 600}
"""Images of the sets that are measured."""
TRAINING, REPORT = "training", "report"
LOADING, STARTING, A_STEP, WRITING = 3.0, 12.0, 0.34, 4.0
"""CPU seconds until the first attack, of the launcher until the first step, of a step, of the report and the picture.
These and all that follow are of one thread, of an AMD EPYC: what one part takes beside another is what counts."""
AN_IMAGE = {"CLIP": 0.039, "FARE": 0.078, "TeCoA": 0.088}
"""CPU seconds of an image of the zero-shot sets: the more robust an encoder, the longer it is attacked."""
A_CAPTION = {"LLaVA + CLIP": 0.40, "LLaVA + FARE": 0.25}
A_SENTENCE = {"LLaVA + CLIP": 0.71, "LLaVA + FARE": 0.72}
"""CPU seconds of an image that is captioned, and of one on which a sentence is forced; all three from
`examples/benchmarks/quickstart_parts.py`."""


@dataclass(frozen=True)
class Plan:
    """What one run does.

    Attributes:
        max_steps: training steps.
        budget: how much is measured.
    """

    max_steps: int = recipes.QUICK_STEPS
    budget: measure.Budget = measure.QUICK

    def costs(self) -> dict[str, float]:
        """CPU seconds of each part."""
        images = sum(_length(name, count) for name, count in self.budget.samples.items())
        captions = _length("twemoji", self.budget.captions)
        forced = sum(_length(name, self.budget.targeted) for name in self.budget.targeted_sets)
        parts = {name: seconds * images for name, seconds in AN_IMAGE.items()}
        parts |= {name: A_CAPTION[name] * captions + A_SENTENCE[name] * forced for name in A_CAPTION}
        return parts | {
            "CLIP": LOADING + parts["CLIP"],
            TRAINING: STARTING + A_STEP * self.max_steps,
            REPORT: WRITING,
        }

    def lengthened(self, factor: float) -> Plan:
        """As many times the cost, with as many times the images as the sets have; training takes what is left over."""
        budget = self.budget
        images = {name: _length(name, count and round(count * factor)) for name, count in budget.samples.items()}
        captions = budget.captions and round(budget.captions * factor)
        budget = replace(budget, samples=images, captions=captions, targeted=round(budget.targeted * factor))
        longer = replace(self, budget=budget)
        spare = factor * sum(self.costs().values()) - sum(longer.costs().values())
        return replace(longer, max_steps=self.max_steps + int(spare / A_STEP))


class TimeLeft:
    """The time left of a whole run: as long for each cost as what is done took for its own.

    Args:
        costs: of all parts.
    """

    def __init__(self, costs: Mapping[str, float]) -> None:
        self.costs = dict(costs)
        self.shares: dict[str, float] = {}
        self.began = time.perf_counter()

    def finish(self, part: str, share: float = 1.0) -> None:
        """Notes that a part is done, or a share of it."""
        self.shares[part] = share

    def seconds(self) -> float:
        """Seconds left; at least one part must be done."""
        done = sum(self.costs[part] * share for part, share in self.shares.items())
        to_do = sum(cost * (1 - self.shares.get(part, 0)) for part, cost in self.costs.items())
        return self.elapsed() / done * to_do

    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self.began

    def __str__(self) -> str:
        left = self.seconds()
        return f"about {in_words(left)} left in all" if left else "all is done"


def in_words(seconds: float) -> str:
    """A time, to ten seconds: `40 s`, `3 min`, `3 min 20 s`."""
    minutes, rest = divmod(10 * max(1, round(seconds / 10)), 60)
    return " ".join(part for part, there in ((f"{minutes} min", minutes), (f"{rest} s", rest)) if there)


def _length(name: str, count: int | None) -> int:
    """Images of a set of which `count` are asked for (None is all)."""
    return WHOLE[name] if count is None else min(count, WHOLE[name])
