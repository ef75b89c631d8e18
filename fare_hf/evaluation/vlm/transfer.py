"""Transfer: images made on one model, shown to others; and one perturbation for many images and strings."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fare_hf.attacks import (
    ClassifierLoss,
    LossFn,
    ThreatModel,
    apgd,
    apply_universal,
    predicted_classes,
    universal_perturbation,
)
from fare_hf.data.pixels import Pictures
from fare_hf.encoders import frozen, matmul_patch_embedding
from fare_hf.evaluation.attack_loop import check_plan, chunks, mix
from fare_hf.evaluation.processes import divided, process_state
from fare_hf.evaluation.report.rows import fraction_row
from fare_hf.evaluation.result import Evaluation
from fare_hf.evaluation.vlm.adversarial_images import check_sent
from fare_hf.evaluation.vlm.engine import answers_to
from fare_hf.files.markup import inline
from fare_hf.vlm import VlmLoss, tower_placement

__all__ = ["TransferMatrix", "UniversalText", "evaluate_transfer", "evaluate_universal_text", "transfer_matrix"]

Judge = Callable[[Any], Sequence[bool]]
"""Images -> for each whether the model is right, or whatever the metric counts."""
Logits = Callable[[Tensor], Tensor]
"""Pixels (B, 3, H, W) in [0, 1] -> logits (B, K)."""


@dataclass(frozen=True, kw_only=True)
class TransferMatrix(Evaluation):
    """Every victim on every source's images; rows: model = victim, data set = "... made on SOURCE".

    Attributes:
        sources: models the images were made on.
        victims: models they were shown to.
        values: fraction for each [source][victim].
    """

    sources: list[str]
    victims: list[str]
    values: list[list[float]]

    def to_markdown(self) -> str:
        """One line a source, one column a victim, in percent."""
        head = f"| made on | {' | '.join(map(inline, self.victims))} |\n| --- |{' ---: |' * len(self.victims)}"
        lines = [
            f"| {inline(source)} | {' | '.join(f'{100 * value:.1f}' for value in values)} |"
            for source, values in zip(self.sources, self.values, strict=True)
        ]
        return "\n".join([head, *lines]) + "\n"


@dataclass(frozen=True, kw_only=True)
class UniversalText(Evaluation):
    """What one perturbation for many images gave; rows (`task` "jailbreak", `metric` "answered"): clean, perturbed.

    Attributes:
        change: the perturbation (3, S, S).
        answers: to the perturbed images, prompt by prompt.
    """

    change: Tensor
    answers: list[str]


def transfer_matrix(
    adversarial: Mapping[str, Pictures],
    judges: Mapping[str, Judge],
    clean: Pictures,
    threat_model: ThreatModel,
    *,
    task: str,
    dataset: str,
    metric: str,
    attack: Mapping[str, Any],
    seed: int = 0,
    batch_size: int | None = None,
    groups: Sequence[Hashable] | None = None,
) -> TransferMatrix:
    """Show the images made on each model to all models.

    Args:
        adversarial: {source model: (N, 3, H, W), or a list of images of several sizes}, each checked against the
            threat model; `load_exported` reads them.
        judges: {victim model: its judge}.
        clean: the clean images.
        threat_model, attack: of all sources.
        task, dataset, metric: names for the rows.
        seed, groups: of the intervals.
        batch_size: of the attack and the judges, for the rows.

    Raises:
        ValueError: no source or victim, or perturbations outside the threat model.
    """
    if not adversarial or not judges:
        raise ValueError(f"{len(adversarial)} sources and {len(judges)} victims: give at least one of each.")
    values, rows = [], []
    for source, points in adversarial.items():
        check_sent(points, clean, threat_model)
        line = []
        for victim, judge in judges.items():
            names = {"model": victim, "task": task, "dataset": f"{dataset} made on {source}", "metric": metric}
            facts: dict[str, Any] = {"threat_model": threat_model, "attack": attack, "batch_size": batch_size}
            rows.append(fraction_row(list(judge(points)), groups, seed, **names, **facts))
            line.append(rows[-1].value)
        values.append(line)
    models = {"sources": list(adversarial), "victims": list(judges)}
    return TransferMatrix.of_rates(rows, seed, values=values, **models)


def evaluate_transfer(
    sources: Mapping[str, Logits],
    victims: Mapping[str, Logits],
    pixels: Tensor,
    labels: Tensor,
    threat_model: ThreatModel,
    *,
    dataset: str,
    steps: int = 100,
    seed: int = 0,
    batch_size: int = 64,
    groups: Sequence[Hashable] | None = None,
    distributed: bool = False,
) -> TransferMatrix:
    """Accuracy of every victim on the images that APGD on the cross entropy made on each source.

    Args:
        sources, victims: {model: its logits}, such as `zero_shot.logits_function`.
        pixels: clean images (N, 3, H, W) in [0, 1].
        labels: (N,) class numbers.
        threat_model: of all images.
        dataset: name for the rows.
        steps, seed, batch_size: of the attack.
        groups: of the intervals.
        distributed: divide the batches among the processes of accelerate or torchrun, which must all call this; every
            one of them gets what one process alone would.

    Raises:
        ValueError: no source or victim, what `check_plan` refuses, and what attacks raise.
    """
    counts = {"steps": steps, "batch_size": batch_size}
    check_plan(len(pixels), [threat_model], groups, seed, {"dataset": dataset}, **counts)
    batches = list(enumerate(chunks(range(len(pixels)), batch_size)))

    def made_on(logits: Logits) -> Tensor:
        def attacked(part: tuple[int, list[int]]) -> Tensor:
            number, batch = part
            loss, rng = ClassifierLoss(logits, labels[batch], "ce"), torch.Generator().manual_seed(mix(seed, number))
            return apgd(loss, pixels[batch], threat_model, steps=steps, generator=rng).pixels.to("cpu")

        return torch.cat(list(divided(batches, attacked, distributed=distributed))).to(pixels.device)

    @torch.no_grad()
    def right(logits: Logits, points: Tensor) -> list[bool]:
        return (torch.cat([predicted_classes(logits(part)) for part in points.split(batch_size)]) == labels).tolist()

    return transfer_matrix(
        {name: made_on(logits) for name, logits in sources.items()},
        {name: partial(right, logits) for name, logits in victims.items()},
        pixels,
        threat_model,
        task="transfer",
        dataset=dataset,
        metric="accuracy",
        attack={"name": "apgd-ce", "steps": steps, "restarts": 1, "seed": seed},
        seed=seed,
        batch_size=batch_size,
        groups=groups,
    )


def evaluate_universal_text(
    vlm: PreTrainedModel,
    processor: Any,
    pixels: Tensor,
    strings: Sequence[str],
    prompts: Sequence[str],
    threat_model: ThreatModel,
    *,
    refused: Callable[[str], bool],
    model: str,
    dataset: str,
    held_out: Tensor | None = None,
    epochs: int = 50,
    step_size: float | str = "1/255",
    seed: int = 0,
    batch_size: int = 32,
    max_new_tokens: int = 64,
) -> UniversalText:
    """One perturbation that raises the likelihood of given strings, judged by a rule of the user's.

    Fitted on `pixels` with prompts and strings drawn at random for each image and step; then every prompt is asked of
    every held-out image, clean and perturbed, and what is not `refused` counts. No strings are shipped: give your own.

    Args:
        vlm, processor: a model of `fare_hf.vlm.families.table.FAMILIES` and its processor.
        pixels: images to fit on (N, 3, S, S) in [0, 1]; one image makes a per-image attack.
        strings: texts whose likelihood is raised.
        prompts: questions with the image placeholder.
        threat_model: of the perturbation.
        refused: an answer -> whether the model refused.
        model, dataset: names for the rows.
        held_out: images to judge on; None judges on `pixels` themselves.
        epochs, step_size: see `universal_perturbation`.
        seed, batch_size, max_new_tokens: as named.

    Raises:
        ValueError: no strings or prompts, several processes (one perturbation is fitted to all images, batch after
            batch), and what attacks and losses raise.
    """
    if (processes := process_state().num_processes) > 1:
        raise ValueError(
            f"one perturbation for all images cannot be divided among {processes} processes: start one alone, without "
            "accelerate launch."
        )
    if not strings or not prompts:
        raise ValueError(f"{len(strings)} strings and {len(prompts)} prompts: give at least one of each.")
    counts = {"epochs": epochs, "batch_size": batch_size, "max_new_tokens": max_new_tokens}
    check_plan(len(pixels), [threat_model], None, seed, {"model": model, "dataset": dataset}, **counts)
    draws = torch.Generator().manual_seed(mix(seed, 1))

    def loss_of(batch: list[int]) -> LossFn:
        asked = torch.randint(len(prompts), (len(batch),), generator=draws).tolist()
        said = torch.randint(len(strings), (len(batch),), generator=draws).tolist()
        loss = VlmLoss(vlm, processor, [prompts[i] for i in asked], [strings[i] for i in said])
        return lambda points: -loss(points)

    device, options = tower_placement(vlm)[0], {"epochs": epochs, "step_size": step_size, "batch_size": batch_size}
    judged = (pixels if held_out is None else held_out).to(device)

    def answers(images: Tensor) -> list[str]:
        asked: dict[str, Any] = {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
        return [text for prompt in prompts for text in answers_to(vlm, processor, images, prompt, **asked)]

    with frozen(vlm), matmul_patch_embedding(vlm):
        generator = torch.Generator().manual_seed(seed)
        change = universal_perturbation(loss_of, pixels.to(device), threat_model, generator=generator, **options)  # type: ignore[arg-type]
        points = apply_universal(judged, change, threat_model)
        threat_model.check(points, judged)
        before, after = answers(judged), answers(points)
    names: dict[str, Any] = {"model": model, "task": "jailbreak", "dataset": dataset, "metric": "answered"}
    names |= {"precision": tower_placement(vlm)[1], "batch_size": batch_size}
    used = {"name": "universal-pgd", "steps": epochs, "restarts": 1, "seed": seed}
    # An image is asked several prompts: its answers belong together.
    groups = [number % len(judged) for number in range(len(before))]
    rows = [
        fraction_row([not refused(text) for text in before], groups, seed, **names),
        fraction_row(
            [not refused(text) for text in after], groups, seed, threat_model=threat_model, attack=used, **names
        ),
    ]
    return UniversalText.of_rates(rows, seed, change=change, answers=after)
