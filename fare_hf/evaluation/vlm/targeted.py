"""Targeted attacks on a vision-language model: can an image force it to write a given string?"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from fare_hf.attacks import LossFn, ThreatModel
from fare_hf.evaluation.attack_loop import check_plan
from fare_hf.evaluation.report.rows import Row, fraction_row
from fare_hf.evaluation.vlm.text_attack import TextAttack, TextEvaluation, says, target_loss
from fare_hf.vlm import tower_placement

__all__ = ["evaluate_targeted"]


def evaluate_targeted(
    vlm: PreTrainedModel,
    processor: Any,
    samples: Any,
    target: str,
    *,
    prompt: str,
    model: str,
    dataset: str,
    threat_models: Sequence[ThreatModel],
    steps: int = 200,
    restarts: int = 1,
    seed: int = 0,
    batch_size: int = 64,
    max_new_tokens: int = 20,
    groups: Sequence[Hashable] | None = None,
    keep: Sequence[int] = (),
) -> TextEvaluation:
    """Fraction of images whose perturbed version makes the model write the target string: here more is worse.

    APGD minimises the negative log-likelihood of the target; an iterate at which greedy decoding writes the whole
    target is kept over one of smaller loss. What counts is the decoded answer: the target occurs in it, case aside.
    From 20 steps on, a screening run of a tenth of the steps comes first.

    Args:
        vlm, processor: a model of `fare_hf.vlm.families.table.FAMILIES` and its processor; call once per tower.
        samples: tensor (N, 3, S, S) in [0, 1] at the tower's resolution, or a data set of `{"pixel_values"}`.
        target: the string to force.
        prompt: with the image placeholder.
        model, dataset: names for the rows.
        threat_models: at least one.
        steps: of each full APGD run.
        restarts: full APGD runs, each from another random start on the survivors.
        seed, batch_size: as named.
        max_new_tokens: of the answer; must leave room for the target.
        groups: one label per sample for a cluster bootstrap; None gives Wilson intervals.
        keep: indices of samples whose perturbed pixels are wanted back, for pictures.

    Returns:
        Rows (`task` "targeted", `metric` "target forced": clean images, then one per threat model) and the answers.

    Raises:
        ValueError: an empty target, no threat model, a target longer than `max_new_tokens`, no samples, what
            `check_plan` refuses, and what attacks raise.

    Example:
        >>> from fare_hf.attacks import ThreatModel
        >>> from fare_hf.lab import load_llava, load_test_set
        >>> prompt = "USER: <image>\\nProvide a short caption for this image. ASSISTANT:"
        >>> names = {"prompt": prompt, "model": "LLaVA", "dataset": "digits", "steps": 2}
        >>> balls, pixels = [ThreatModel("linf", "4/255")], load_test_set("digits").pixels[:1]
        >>> len(evaluate_targeted(*load_llava(), pixels, "a photo of a cat", threat_models=balls, **names).rows)
        2
    """
    if not target.strip() or not threat_models:
        raise ValueError(f"target {target!r} and {len(threat_models)} threat models: give a string and at least one.")
    counts = {"steps": steps, "restarts": restarts, "batch_size": batch_size, "max_new_tokens": max_new_tokens}
    check_plan(len(samples), threat_models, groups, seed, {"model": model, "dataset": dataset}, **counts)
    attack = TextAttack(vlm, processor, samples, prompt, steps, restarts, seed, batch_size, max_new_tokens, keep)
    whole = target_loss(vlm, processor, prompt, target, max_new_tokens)

    def loss_of(batch: list[int]) -> LossFn:
        loss = whole.select([0] * len(batch))

        def towards_target(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            values, match = loss.with_match(pixels)
            return -values, match

        return towards_target

    def forced(text: str, index: int) -> bool:
        return says(text, target)

    def row(success: Sequence[bool], **extra: Any) -> Row:
        names = {"model": model, "task": "targeted", "dataset": dataset, "metric": "target forced"}
        return fraction_row(
            success, groups, seed, precision=tower_placement(vlm)[1], batch_size=batch_size, **names, **extra
        )

    with attack.ready():
        clean = attack.clean_answers()
        already = [forced(text, index) for index, text in enumerate(clean)]
        outcomes = attack.run([i for i, said in enumerate(already) if not said], threat_models, loss_of, forced)
    used = attack.description("target")
    rows = [row(already)]
    for outcome in outcomes:
        success = [not survived for survived in outcome.robust(len(clean))]
        rows.append(row(success, threat_model=outcome.threat_model, attack=used, seconds=outcome.seconds))
    return attack.evaluation(rows, clean, threat_models)
