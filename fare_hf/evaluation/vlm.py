"""Vision-language models on captions and questions, clean and under Robust CLIP's ensemble of attacks, in batches.

The ensemble keeps each sample's worst answer: APGD in half precision against every ground truth, APGD in single
precision from the perturbation found so far with the ground truth that found it, and for questions targeted APGD to
words that are never the answer. A sample whose score fell to the metric's threshold is left alone from then on.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from fare_hf.attacks import LossFn, ThreatModel, apgd
from fare_hf.encoders import frozen, matmul_patch_embedding
from fare_hf.evaluation.metrics import bootstrap_statistic
from fare_hf.evaluation.report import Row, make_row
from fare_hf.evaluation.survivors import check_plan, chunks, gather, mix
from fare_hf.evaluation.text_metrics import TextMetric
from fare_hf.pixels import check_pixels
from fare_hf.vlm import VlmLoss, generate_text, tower_placement

__all__ = ["QUESTION_TARGETS", "Attacked", "VlmEvaluation", "evaluate_vlm"]

QUESTION_TARGETS = ("maybe", "Word")
"""What the paper pushes answers to questions to, beside away from the truth."""


@dataclass
class Attacked:
    """The worst that was found for each of N samples.

    Attributes:
        scores: N scores, the clean one where a sample was not attacked or nothing was found.
        answers: N answers that go with them.
        pixels: {index: (3, S, S) fp32 on the CPU} for the samples that were attacked: what gave the worst score.
        sources: {index: number of the ground truth that found it}.
    """

    scores: list[float]
    answers: list[str]
    pixels: dict[int, torch.Tensor] = field(default_factory=dict)
    sources: dict[int, int] = field(default_factory=dict)

    def copy(self) -> Attacked:
        """To go on from in a larger ball, which contains every perturbation found here."""
        return Attacked(list(self.scores), list(self.answers), dict(self.pixels), dict(self.sources))


@dataclass
class VlmEvaluation:
    """What a model answered, and what attacks made of it.

    Attributes:
        rows: clean, then one per threat model.
        clean: N answers.
        scores: N clean scores.
        attacked: per threat model (as text) the worst found.
    """

    rows: list[Row]
    clean: list[str]
    scores: list[float]
    attacked: dict[str, Attacked]


def evaluate_vlm(
    vlm: PreTrainedModel,
    processor: Any,
    samples: Any,
    prompts: str | Sequence[str],
    metric: TextMetric,
    *,
    model: str,
    task: str,
    dataset: str,
    threat_models: Sequence[ThreatModel] = (),
    steps: int = 100,
    targets: Sequence[str] = (),
    half: torch.dtype | None = torch.bfloat16,
    seed: int = 0,
    batch_size: int = 32,
    max_new_tokens: int = 20,
    groups: Sequence[Hashable] | None = None,
) -> VlmEvaluation:
    """Figure of a metric on the clean images, and on the worst image that the ensemble finds within each ball.

    Whatever the precision of a stage, pixels and perturbations are fp32, and a perturbation counts by what the model
    answers to it in its own precision.

    Args:
        vlm, processor: a model of `fare_hf.vlm.families.FAMILIES` and its processor.
        samples: tensor (N, 3, S, S) in [0, 1] at the tower's resolution, or a data set of `{"pixel_values"}`.
        prompts: one for all, or N, with the image placeholder.
        metric: of `text_metrics`, with the references of the N samples.
        model, task, dataset: names for the rows.
        threat_models: none means clean figures only. Of one norm, a larger ball begins with what a smaller one gave.
        steps: of each APGD run (100 in the paper).
        targets: words that the last stages push to; `QUESTION_TARGETS` for VQA, none for captions.
        half: dtype of autocast in the first stages; None skips them and starts with single precision on every ground
            truth.
        seed, batch_size: as named; batches are packed anew from who is left before each stage.
        max_new_tokens: 20 for captions, 5 for questions in the paper.
        groups: one label per sample for the bootstrap; None draws samples.

    Raises:
        ValueError: no samples, another number of prompts or references, what `check_plan` refuses, and what attacks
            raise.
    """
    n = len(samples)
    asked = [prompts] * n if isinstance(prompts, str) else list(prompts)
    if not n or not n == len(asked) == len(metric):
        raise ValueError(f"{n} images, {len(asked)} prompts, {len(metric)} references: give one of each per image.")
    names = {"model": model, "task": task, "dataset": dataset}
    counts = {"steps": steps, "batch_size": batch_size, "max_new_tokens": max_new_tokens}
    check_plan(n, threat_models, groups, seed, names, **counts)
    run = _Ensemble(
        vlm, processor, samples, asked, metric, steps, tuple(targets), half, seed, batch_size, max_new_tokens
    )

    def row(answers: Sequence[str], **extra: Any) -> Row:
        named: dict[str, Any] = {**names, "metric": metric.name, "precision": tower_placement(vlm)[1]}
        return _row(metric, answers, groups, seed, n=n, **named, **extra)

    with frozen(vlm), matmul_patch_embedding(vlm):
        clean = run.clean()
        rows, found, seconds = [row(clean.answers)], {}, {}
        states: dict[str, Attacked] = {}
        for threat_model in sorted(threat_models, key=lambda t: (t.norm, t.eps)):
            begin = time.perf_counter()
            state = run.attack(states.get(threat_model.norm, clean).copy(), threat_model)
            states[threat_model.norm] = found[threat_model] = state
            seconds[threat_model] = time.perf_counter() - begin
    used = {"name": run.name(), "steps": steps, "restarts": 1, "seed": seed}
    for threat_model in threat_models:
        extra = {"threat_model": threat_model, "attack": used, "seconds": seconds[threat_model]}
        rows.append(row(found[threat_model].answers, **extra))
    return VlmEvaluation(rows, clean.answers, clean.scores, {str(t): found[t] for t in threat_models})


@dataclass
class _Ensemble:
    """One model on one set of images, and the stages of the attack."""

    vlm: PreTrainedModel
    processor: Any
    samples: Any
    prompts: list[str]
    metric: TextMetric
    steps: int
    targets: tuple[str, ...]
    half: torch.dtype | None
    seed: int
    batch_size: int
    max_new_tokens: int

    def clean(self) -> Attacked:
        """Answers to the clean images, the only clean pass."""
        answers: list[str] = []
        for batch in chunks(range(len(self.samples)), self.batch_size):
            pixels = self._clean_pixels(batch)
            check_pixels(pixels)
            answers += self._ask(pixels, batch)
        return Attacked([self.metric.score(answer, index) for index, answer in enumerate(answers)], answers)

    def name(self) -> str:
        """ "apgd-nll(half, 5 references)+apgd-nll+apgd-towards(maybe)" """
        most = max(len(self.metric.texts(index)) for index in range(len(self.metric)))
        first = "" if self.half is None else f"half {str(self.half).removeprefix('torch.')}, "
        names = [f"apgd-nll({first}references {most})"] + ([] if self.half is None else ["apgd-nll"])
        return "+".join([*names, *(f"apgd-towards({target})" for target in self.targets)])

    def attack(self, state: Attacked, threat_model: ThreatModel) -> Attacked:
        """All stages within one ball; `state` is brought down in place."""
        most = max(len(self.metric.texts(index)) for index in range(len(self.metric)))
        for number in range(most):
            self._against(state, threat_model, number, number)
        if self.half is not None:
            self._against(state, threat_model, None, most)
        for number, target in enumerate(self.targets):
            self._towards(state, threat_model, target, most + 1 + number)
        return state

    def _against(self, state: Attacked, threat_model: ThreatModel, reference: int | None, stage: int) -> None:
        """APGD away from one ground truth of each sample; None: the one that found its worst, from there, in fp32."""
        alive = [index for index in self._alive(state) if reference is None or self._has(index, reference)]
        for batch, rng in self._batches(alive, threat_model, stage):
            chosen = [state.sources.get(i, 0) if reference is None else reference for i in batch]
            texts = [self.metric.texts(i)[which] for i, which in zip(batch, chosen, strict=True)]
            loss = VlmLoss(self.vlm, self.processor, [self.prompts[i] for i in batch], texts)
            pixels = self._clean_pixels(batch)
            start = None
            if reference is None:
                begun = [state.pixels.get(i, image.cpu()) for i, image in zip(batch, pixels, strict=True)]
                start = torch.stack(begun).to(pixels)
            with self._precision(None if reference is None else self.half, pixels.device):
                points = apgd(loss, pixels, threat_model, steps=self.steps, generator=rng, start=start).pixels
            self._keep_worse(state, threat_model, batch, pixels, points, chosen)

    def _towards(self, state: Attacked, threat_model: ThreatModel, target: str, stage: int) -> None:
        """Targeted APGD in single precision to one word."""
        for batch, rng in self._batches(self._alive(state), threat_model, stage):
            loss = VlmLoss(self.vlm, self.processor, [self.prompts[i] for i in batch], [target] * len(batch))
            pixels = self._clean_pixels(batch)
            found = apgd(_minus(loss), pixels, threat_model, steps=self.steps, generator=rng)
            self._keep_worse(
                state, threat_model, batch, pixels, found.pixels, [state.sources.get(i, 0) for i in batch]
            )

    def _keep_worse(
        self,
        state: Attacked,
        threat_model: ThreatModel,
        batch: list[int],
        clean: torch.Tensor,
        points: torch.Tensor,
        sources: Sequence[int],
    ) -> None:
        """Ask again; the first perturbation of a sample is kept whatever it gave, later ones where they gave less."""
        threat_model.check(points, clean)
        for index, answer, image, source in zip(batch, self._ask(points, batch), points, sources, strict=True):
            score = self.metric.score(answer, index)
            if score < state.scores[index]:
                state.scores[index], state.answers[index] = score, answer
            elif index in state.pixels:
                continue
            state.pixels[index], state.sources[index] = image.cpu(), source

    def _alive(self, state: Attacked) -> list[int]:
        return [index for index, score in enumerate(state.scores) if score > self.metric.threshold]

    def _has(self, index: int, reference: int) -> bool:
        return reference < len(self.metric.texts(index))

    def _batches(
        self, alive: Sequence[int], threat_model: ThreatModel, stage: int
    ) -> Iterator[tuple[list[int], torch.Generator]]:
        for number, batch in enumerate(chunks(alive, self.batch_size)):
            yield batch, torch.Generator().manual_seed(mix(self.seed, stage, number))

    @contextmanager
    def _precision(self, dtype: torch.dtype | None, device: torch.device) -> Iterator[None]:
        """Autocast for the half-precision stages: weights and pixels stay what they are."""
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            yield

    def _clean_pixels(self, batch: Sequence[int]) -> torch.Tensor:
        return gather(self.samples, batch, tower_placement(self.vlm)[0])

    def _ask(self, pixels: torch.Tensor, batch: Sequence[int]) -> list[str]:
        prompts = [self.prompts[index] for index in batch]
        return generate_text(self.vlm, self.processor, pixels, prompts, max_new_tokens=self.max_new_tokens)


def _minus(loss: VlmLoss) -> LossFn:
    return lambda pixels: -loss(pixels)


def _row(
    judge: TextMetric,
    answers: Sequence[str],
    groups: Sequence[Hashable] | None,
    seed: int,
    *,
    n: int,
    **fields: Any,
) -> Row:
    def figure(indices: Sequence[int]) -> float:
        return judge.value([answers[index] for index in indices], indices)

    def mean(indices: Sequence[int]) -> float:
        return sum(scores[index] for index in indices) / len(indices)

    # Of a mean over samples the scores need not be computed again in each draw.
    scores = [judge.score(answer, index) for index, answer in enumerate(answers)] if judge.is_mean else []
    statistic = mean if judge.is_mean else figure
    interval = bootstrap_statistic(statistic, n, groups, seed=seed)
    return make_row(value=statistic(list(range(n))), ci=interval, n=n, **fields)
