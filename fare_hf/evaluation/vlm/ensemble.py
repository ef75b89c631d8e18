"""Vision-language models on captions and questions, clean and under Robust CLIP's ensemble of attacks, in batches.

The ensemble keeps each sample's worst answer: APGD in half precision against every ground truth, APGD in single
precision from the perturbation found so far with the ground truth that found it, and for questions targeted APGD to
words that are never the answer. A sample whose score fell to the metric's threshold is left alone from then on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from fare_hf.attacks import LossFn, ThreatModel, apgd
from fare_hf.data.pixels import check_pixels
from fare_hf.encoders import frozen, matmul_patch_embedding
from fare_hf.evaluation.attack_loop import check_plan, chunks, gather, mix
from fare_hf.evaluation.report.intervals import bootstrap_statistic
from fare_hf.evaluation.report.rows import Row
from fare_hf.evaluation.resume import Change, SavedBatches, claim, digest, tower_digest
from fare_hf.evaluation.vlm.metrics import TextMetric
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

    def take(self, change: Change) -> None:
        """Put down what a batch changed."""
        self.scores[change.index], self.answers[change.index] = change.score, change.answer
        self.pixels[change.index], self.sources[change.index] = change.pixels, change.source


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
    folder: str | Path | None = None,
) -> VlmEvaluation:
    """Figure of a metric on the clean images, and on the worst image that the ensemble finds within each ball.

    Whatever the precision of a stage, pixels and perturbations are fp32, and a perturbation counts by what the model
    answers to it in its own precision.

    Args:
        vlm, processor: a model of `fare_hf.vlm.families.table.FAMILIES` and its processor.
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
        folder: of this run alone, where each finished batch is written down, so that an interrupted call, made again,
            goes on after the last one with the same result; delete it when the result is kept.

    Returns:
        Rows, and the worst answer found for each image.

    Raises:
        ValueError: no samples, another number of prompts or references, what `check_plan` refuses, a folder of another
            run, and what attacks raise.

    Example:
        >>> from fare_hf.evaluation import YesNo
        >>> from fare_hf.lab import load_llava, load_test_set
        >>> prompt = "USER: <image>\\nIs there a cat in the image? ASSISTANT:"
        >>> names = {"model": "LLaVA", "task": "yes-no", "dataset": "digits", "max_new_tokens": 3}
        >>> pixels = load_test_set("digits").pixels[:2]
        >>> found = evaluate_vlm(*load_llava(), pixels, prompt, YesNo(["no", "no"]), **names)
        >>> found.rows[0].n
        2
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
    if folder is not None:
        run.saved = SavedBatches(Path(folder), claim(Path(folder), names | run.settings(threat_models)))

    def row(answers: Sequence[str], **extra: Any) -> Row:
        named: dict[str, Any] = {**names, "metric": metric.name, "precision": tower_placement(vlm)[1]}
        named["batch_size"] = batch_size
        return _row(metric, answers, groups, seed, n=n, **named, **extra)

    with frozen(vlm), matmul_patch_embedding(vlm):
        clean = run.clean()
        rows, found, seconds = [row(clean.answers)], {}, {}
        states: dict[str, Attacked] = {}
        for threat_model in sorted(threat_models, key=lambda t: (t.norm, t.eps)):
            state = states.get(threat_model.norm, clean).copy()
            seconds[threat_model] = run.attack(state, threat_model)
            states[threat_model.norm] = found[threat_model] = state
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
    saved: SavedBatches = SavedBatches(None)

    def settings(self, threat_models: Sequence[ThreatModel]) -> dict[str, Any]:
        """What makes this run another one, beside its names; of the images their number and the first.

        The weights of the tower count, as models are compared that differ in nothing else.
        """
        first = gather(self.samples, [0], torch.device("cpu"))
        references = [text for index in range(len(self.metric)) for text in self.metric.texts(index)]
        return {
            "n": len(self.samples),
            "metric": self.metric.name,
            "threat_models": sorted(map(str, threat_models)),
            "steps": self.steps,
            "targets": list(self.targets),
            "half": None if self.half is None else str(self.half).removeprefix("torch."),
            "seed": self.seed,
            "batch_size": self.batch_size,
            "max_new_tokens": self.max_new_tokens,
            "precision": str(tower_placement(self.vlm)[1]).removeprefix("torch."),
            "prompts": digest(*self.prompts),
            "references": digest(*references),
            "first image": digest(first.numpy().tobytes()),
            "vision tower": tower_digest(self.vlm),
        }

    def clean(self) -> Attacked:
        """Answers to the clean images, the only clean pass."""
        answers = self.saved.answers()
        for batch in chunks(range(len(answers), len(self.samples)), self.batch_size):
            pixels = self._clean_pixels(batch)
            check_pixels(pixels)
            answers += self._ask(pixels, batch)
            self.saved.keep_answers(answers)
        return Attacked([self._score(answer, index) for index, answer in enumerate(answers)], answers)

    def name(self) -> str:
        """ "apgd-nll(half, 5 references)+apgd-nll+apgd-towards(maybe)" """
        most = max(len(self.metric.texts(index)) for index in range(len(self.metric)))
        first = "" if self.half is None else f"half {str(self.half).removeprefix('torch.')}, "
        names = [f"apgd-nll({first}references {most})"] + ([] if self.half is None else ["apgd-nll"])
        return "+".join([*names, *(f"apgd-towards({target})" for target in self.targets)])

    def attack(self, state: Attacked, threat_model: ThreatModel) -> float:
        """All stages within one ball; `state` is brought down in place. Returns the seconds that it took."""
        most = max(len(self.metric.texts(index)) for index in range(len(self.metric)))
        seconds = sum(self._against(state, threat_model, number, number) for number in range(most))
        if self.half is not None:
            seconds += self._against(state, threat_model, None, most)
        for number, target in enumerate(self.targets):
            seconds += self._towards(state, threat_model, target, most + 1 + number)
        return seconds

    def _against(self, state: Attacked, threat_model: ThreatModel, reference: int | None, stage: int) -> float:
        """APGD away from one ground truth of each sample; None: the one that found its worst, from there, in fp32."""
        alive = [index for index in self._alive(state) if reference is None or self._has(index, reference)]

        def source(index: int) -> int:
            return state.sources.get(index, 0) if reference is None else reference

        def attack(batch: list[int], pixels: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
            texts = [self.metric.texts(index)[source(index)] for index in batch]
            loss = VlmLoss(self.vlm, self.processor, [self.prompts[i] for i in batch], texts)
            start = None
            if reference is None:
                begun = [state.pixels.get(i, image.cpu()) for i, image in zip(batch, pixels, strict=True)]
                start = torch.stack(begun).to(pixels)
            with self._precision(None if reference is None else self.half, pixels.device):
                return apgd(loss, pixels, threat_model, steps=self.steps, generator=rng, start=start).pixels

        return self._stage(state, threat_model, stage, alive, attack, source)

    def _towards(self, state: Attacked, threat_model: ThreatModel, target: str, stage: int) -> float:
        """Targeted APGD in single precision to one word."""

        def attack(batch: list[int], pixels: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
            loss = VlmLoss(self.vlm, self.processor, [self.prompts[i] for i in batch], [target] * len(batch))
            return apgd(_minus(loss), pixels, threat_model, steps=self.steps, generator=rng).pixels

        return self._stage(
            state, threat_model, stage, self._alive(state), attack, lambda index: state.sources.get(index, 0)
        )

    def _stage(
        self,
        state: Attacked,
        threat_model: ThreatModel,
        stage: int,
        alive: Sequence[int],
        attack: Callable[[list[int], torch.Tensor, torch.Generator], torch.Tensor],
        source: Callable[[int], int],
    ) -> float:
        """One attack on who is left, batch by batch, finished ones from their files; returns the seconds of all."""
        total = 0.0
        for number, batch in enumerate(chunks(alive, self.batch_size)):
            place = (threat_model, stage, number, batch)
            finished = self.saved.batch(*place)
            if finished is None:
                begin = time.perf_counter()
                clean = self._clean_pixels(batch)
                points = attack(batch, clean, torch.Generator().manual_seed(mix(self.seed, stage, number)))
                threat_model.check(points, clean)
                changes = self._worse(state, batch, points, source)
                finished = changes, time.perf_counter() - begin
                self.saved.keep_batch(*place, *finished)
            elif changed := finished[0]:
                clean = gather(self.samples, [change.index for change in changed], torch.device("cpu"))
                threat_model.check(torch.stack([change.pixels for change in changed]), clean)
            for change in finished[0]:
                state.take(change)
            total += finished[1]
        return total

    def _worse(
        self, state: Attacked, batch: list[int], points: torch.Tensor, source: Callable[[int], int]
    ) -> list[Change]:
        """Ask again; the first perturbation of a sample is kept whatever it gave, later ones where they gave less."""
        changes = []
        for index, answer, image in zip(batch, self._ask(points, batch), points, strict=True):
            score = self._score(answer, index)
            if score < state.scores[index]:
                changes.append(Change(index, score, answer, source(index), image.cpu()))
            elif index not in state.pixels:
                kept = state.scores[index], state.answers[index]
                changes.append(Change(index, *kept, source(index), image.cpu()))
        return changes

    def _score(self, answer: str, index: int) -> float:
        """Of one answer; NaN would be above no threshold and below no score, and pass for both."""
        score = self.metric.score(answer, index)
        if not math.isfinite(score):
            raise ValueError(f"the metric gives {score!r} for the answer {answer!r} to sample {index}: mend it.")
        return score

    def _alive(self, state: Attacked) -> list[int]:
        return [index for index, score in enumerate(state.scores) if score > self.metric.threshold]

    def _has(self, index: int, reference: int) -> bool:
        return reference < len(self.metric.texts(index))

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
    return Row(value=statistic(list(range(n))), ci=interval, n=n, **fields)
