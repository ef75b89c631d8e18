"""Vision-language models on captions and questions, clean and under Robust CLIP's ensemble of attacks, in batches.

The ensemble keeps each sample's worst answer: APGD in half precision against every ground truth, APGD in single
precision from the perturbation found so far with the ground truth that found it, and for questions targeted APGD to
words that are never the answer. A sample whose score fell to the metric's threshold is left alone from then on.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fare_hf.attacks import ThreatModel, apgd
from fare_hf.evaluation.attack_loop import Stage, check_plan
from fare_hf.evaluation.report.intervals import bootstrap_statistic
from fare_hf.evaluation.report.rows import Row
from fare_hf.evaluation.result import Evaluation
from fare_hf.evaluation.vlm.engine import Attacked, VlmEngine
from fare_hf.evaluation.vlm.metrics import TextMetric
from fare_hf.vlm import tower_placement

__all__ = ["QUESTION_TARGETS", "VlmEvaluation", "evaluate_vlm"]

QUESTION_TARGETS = ("maybe", "Word")
"""What the paper pushes answers to questions to, beside away from the truth."""


@dataclass(frozen=True, kw_only=True)
class VlmEvaluation(Evaluation):
    """What a model answered, and what attacks made of it; rows: clean, then one per threat model.

    Attributes:
        clean: N answers.
        scores: N clean scores.
        attacked: per threat model (as text) the worst found.
    """

    clean: list[str]
    scores: list[float]
    attacked: dict[str, Attacked]


def evaluate_vlm(
    vlm: PreTrainedModel,
    processor: Any,
    images: Any,
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
    distributed: bool = False,
) -> VlmEvaluation:
    """Figure of a metric on the clean images, and on the worst image that the ensemble finds within each ball.

    Whatever the precision of a stage, pixels and perturbations are fp32, and a perturbation counts by what the model
    answers to it in its own precision.

    Args:
        vlm, processor: a model of `fare_hf.vlm.families.table.FAMILIES` and its processor.
        images: tensor (N, 3, S, S) in [0, 1] at the tower's resolution, or a data set of `{"pixel_values"}`.
        prompts: one for all, or N, with the image placeholder.
        metric: of `text_metrics`, with the references of the N images.
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
        distributed: divide the batches among the processes of accelerate or torchrun, which must all call this; every
            one of them gets what one process alone would.

    Returns:
        Rows, and the worst answer found for each image.

    Raises:
        ValueError: no images, another number of prompts or references, what `check_plan` refuses, a folder of another
            run, and what attacks raise.

    Example:
        >>> from fare_hf.evaluation import YesNo
        >>> from fare_hf.lab import load_llava, load_test_set
        >>> prompt = "USER: <image>\\nIs there a cat in the image? ASSISTANT:"
        >>> names = {"model": "LLaVA", "task": "pope", "dataset": "digits", "max_new_tokens": 3}
        >>> pixels = load_test_set("digits").pixels[:2]
        >>> found = evaluate_vlm(*load_llava(), pixels, prompt, YesNo(["no", "no"]), **names)
        >>> found.rows[0].n
        2
    """
    n = len(images)
    asked = [prompts] * n if isinstance(prompts, str) else list(prompts)
    if not n or not n == len(asked) == len(metric):
        raise ValueError(f"{n} images, {len(asked)} prompts, {len(metric)} references: give one of each per image.")
    names = {"model": model, "task": task, "dataset": dataset}
    counts = {"steps": steps, "batch_size": batch_size, "max_new_tokens": max_new_tokens}
    check_plan(n, threat_models, groups, seed, names, **counts)
    engine = VlmEngine(
        vlm,
        processor,
        images,
        asked,
        metric.score,
        metric.threshold,
        seed,
        batch_size,
        max_new_tokens,
        distributed=distributed,
    )
    effort = {"threat_models": sorted(map(str, threat_models)), "steps": steps, "targets": list(targets)}
    effort |= {"half": None if half is None else _short(half), "metric": metric.name}
    compared = [repr(metric.references), *(text for index in range(n) for text in metric.texts(index))]
    engine.save_in(folder, compared, **names, **effort)
    stages, name = _stages(engine, metric, steps, tuple(targets), half)
    facts = {"metric": metric.name, "precision": tower_placement(vlm)[1], "batch_size": batch_size}

    def row(answers: Sequence[str], **extra: Any) -> Row:
        return _row(metric, answers, groups, seed, **names, **facts, **extra)

    with engine.ready():
        clean = engine.clean()
        rows = [row(clean.answers)]
        found = engine.attack(clean, threat_models, stages)
    used = {"name": name, "steps": steps, "restarts": 1, "seed": seed}
    balls = list(zip(threat_models, found, strict=True))
    rows += [row(state.answers, threat_model=t, attack=used, seconds=engine.seconds[t]) for t, state in balls]
    return VlmEvaluation(
        rows=rows,
        outcomes=[clean.scores, *(state.scores for state in found)],
        seed=seed,
        clean=clean.answers,
        scores=clean.scores,
        attacked={str(threat_model): state for threat_model, state in balls},
    )


def _stages(
    engine: VlmEngine, metric: TextMetric, steps: int, targets: Sequence[str], half: torch.dtype | None
) -> tuple[list[Stage], str]:
    """The ensemble, and its name: "apgd-nll(half bfloat16, references 5)+apgd-nll+apgd-towards(maybe)"."""
    most = max(len(metric.texts(index)) for index in range(len(metric)))

    def against(reference: int) -> Stage:
        """APGD away from one ground truth of each sample that has it."""

        def attack(pixels: Tensor, batch: list[int], threat: ThreatModel, rng: torch.Generator) -> Tensor:
            loss = engine.loss(batch, [metric.texts(index)[reference] for index in batch])
            with _autocast(half, pixels.device):
                return apgd(loss, pixels, threat, steps=steps, generator=rng).pixels

        def has_it(index: int) -> bool:
            return reference < len(metric.texts(index))

        return engine.stage(reference, attack, lambda state, index: reference, has_it)

    def again(pixels: Tensor, batch: list[int], threat: ThreatModel, rng: torch.Generator) -> Tensor:
        """APGD away from the ground truth that found a sample's worst, from there, in single precision."""
        state = engine.state(threat)
        loss = engine.loss(batch, [metric.texts(index)[state.sources.get(index, 0)] for index in batch])
        begun = [state.pixels.get(index, image.cpu()) for index, image in zip(batch, pixels, strict=True)]
        start = torch.stack(begun).to(pixels)
        return apgd(loss, pixels, threat, steps=steps, generator=rng, start=start).pixels

    def towards(target: str, number: int) -> Stage:
        """Targeted APGD in single precision to one word."""

        def attack(pixels: Tensor, batch: list[int], threat: ThreatModel, rng: torch.Generator) -> Tensor:
            loss = engine.loss(batch, [target] * len(batch))
            return apgd(lambda points: -loss(points), pixels, threat, steps=steps, generator=rng).pixels

        return engine.stage(most + 1 + number, attack)

    first = "" if half is None else f"half {_short(half)}, "
    stages, names = [against(reference) for reference in range(most)], [f"apgd-nll({first}references {most})"]
    if half is not None:
        stages, names = [*stages, engine.stage(most, again)], [*names, "apgd-nll"]
    stages += [towards(target, number) for number, target in enumerate(targets)]
    return stages, "+".join([*names, *(f"apgd-towards({target})" for target in targets)])


def _autocast(dtype: torch.dtype | None, device: torch.device) -> torch.autocast:
    """For stages in half precision: weights and pixels stay what they are."""
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _row(
    judge: TextMetric,
    answers: Sequence[str],
    groups: Sequence[Hashable] | None,
    seed: int,
    **names: Any,
) -> Row:
    def figure(indices: Sequence[int]) -> float:
        return judge.value([answers[index] for index in indices], indices)

    def mean(indices: Sequence[int]) -> float:
        return sum(scores[index] for index in indices) / len(indices)

    # Of a mean over samples the scores need not be computed again in each draw.
    scores = [judge.score(answer, index) for index, answer in enumerate(answers)] if judge.is_mean else []
    statistic = mean if judge.is_mean else figure
    interval = bootstrap_statistic(statistic, len(answers), groups, seed=seed)
    return Row(value=statistic(range(len(answers))), ci=interval, n=len(answers), **names)
