"""Zero-shot classification of a CLIP or SigLIP encoder, clean and under a white-box attack."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from fare_hf.attacks import Stage, ThreatModel, class_stages, ensemble_name, predicted_classes
from fare_hf.data.pixels import Normalization, check_pixels, resize
from fare_hf.encoders import embed, freeze, frozen, matmul_patch_embedding
from fare_hf.evaluation.attack_loop import (
    Attack,
    attack_batch,
    attack_nested,
    check_plan,
    chunks,
    read,
    screening_steps,
)
from fare_hf.evaluation.attack_loop import Stage as LoopStage
from fare_hf.evaluation.processes import counted, divided, process_state
from fare_hf.evaluation.report.rows import Row, fraction_row
from fare_hf.evaluation.result import Evaluation
from fare_hf.evaluation.resume import SavedBatches, images_digest, labels_digest, weights_digest
from fare_hf.pretrained.encoder_families import compared_embedding, compared_width

__all__ = [
    "Attacks",
    "clean_pass",
    "evaluate_zero_shot",
    "logits_function",
    "measure_accuracy",
    "predict_zero_shot",
]

ATTACKS = ("apgd-ce+apgd-t", "apgd-ce", "autoattack")


def evaluate_zero_shot(
    encoder: PreTrainedModel,
    text_embeddings: torch.Tensor,
    images: Any,
    labels: Sequence[int] | torch.Tensor | None = None,
    *,
    normalization: Normalization,
    model: str,
    dataset: str,
    threat_models: Sequence[ThreatModel] = (),
    attack: str = "apgd-ce+apgd-t",
    steps: int = 100,
    restarts: int = 1,
    target_classes: int = 9,
    logit_scale: float = 100.0,
    seed: int = 0,
    batch_size: int = 128,
    groups: Sequence[Hashable] | None = None,
    native: bool = False,
    queries: int = 5000,
    stop_fooled: bool = False,
    folder: str | Path | None = None,
    distributed: bool = False,
) -> Evaluation:
    """Clean accuracy, and accuracy under APGD for each threat model.

    Only samples that are classified correctly are attacked, by APGD on the cross entropy and then, who survives, by
    APGD on the targeted DLR loss towards the `target_classes` likeliest wrong classes (Croce and Hein 2020). With 3
    classes the second attack is APGD on the untargeted DLR, with two there is none; from 20 steps on, a screening run
    of a tenth of the steps comes first, as it fools most samples of an undefended model. The rows name what was run.

    Args:
        encoder: `CLIPVisionModelWithProjection` or `SiglipVisionModel`.
        text_embeddings: (K, D), of `text_classifier`.
        images: tensor (N, 3, H, W) in [0, 1], or a map-style data set of `{"pixel_values", "labels"}`.
        labels: N class numbers; None takes `labels` of the data set's items.
        normalization: the encoder's, applied inside the attack.
        model, dataset: names for the rows.
        threat_models: none means clean accuracy only.
        attack: "apgd-ce+apgd-t", "apgd-ce", or "autoattack", which is the first with FAB-T and Square after it.
        steps, restarts: of each run of APGD and FAB.
        target_classes: number of wrong classes tried, at most K - 1.
        logit_scale: factor on the cosine similarities.
        seed: of all random starts.
        batch_size: images per forward.
        groups: one label per sample for a cluster bootstrap; None gives Wilson intervals.
        native: the pixels are at their own resolution, are attacked there, and resized (bicubic) inside the attack.
        queries: of Square.
        stop_fooled: fooled samples leave their batch in the middle of a run, at one host sync a step (see `apgd`).
        folder: of this run alone, where each finished batch is written down, so that an interrupted call, made again,
            goes on after the last one with the same result; delete it when the result is kept.
        distributed: divide the attacks among the processes of accelerate or torchrun, which must all call this; every
            one of them gets the rows that one process alone would compute.

    Returns:
        Rows (clean, then one per threat model): `task` "zero-shot", `metric` "accuracy".

    Raises:
        TypeError, ValueError: no images, labels outside [0, K) or no integers, texts of another width than the
            encoder's, fewer than two classes, an unknown attack, a folder of another run, and what `check_plan`
            refuses; all before any attack.

    Example:
        >>> from fare_hf import load_encoder, text_classifier
        >>> from fare_hf.lab import encoder_folder, load_clip, load_test_set, load_training_set
        >>> encoder, test = load_encoder(str(encoder_folder("fare-4"))), load_test_set("digits").first(8)
        >>> texts = text_classifier(*load_clip(), test.prompts, ["{}"])
        >>> names = {"normalization": Normalization.from_processor(load_training_set().processor), "model": "FARE-4"}
        >>> found = evaluate_zero_shot(encoder, texts, test.pixels, test.labels, dataset="digits", **names)
        >>> found.rows[0].metric
        'accuracy'
    """
    text = _texts(encoder, text_embeddings)
    size = encoder.config.image_size if native else None
    with frozen(encoder), matmul_patch_embedding(encoder):
        return measure_accuracy(
            _logits_function(encoder, text, normalization, logit_scale, size),
            len(text),
            images,
            labels,
            encoder=encoder,
            compared_with=text,
            settings={
                "normalization": [*normalization.mean, *normalization.std],
                "logit_scale": logit_scale,
                "native": native,
            },
            task="zero-shot",
            model=model,
            dataset=dataset,
            threat_models=threat_models,
            attack=attack,
            steps=steps,
            restarts=restarts,
            target_classes=target_classes,
            seed=seed,
            batch_size=batch_size,
            groups=groups,
            queries=queries,
            stop_fooled=stop_fooled,
            folder=folder,
            distributed=distributed,
        )


def measure_accuracy(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    classes: int,
    images: Any,
    labels: Sequence[int] | torch.Tensor | None = None,
    *,
    encoder: PreTrainedModel,
    compared_with: torch.Tensor,
    settings: Mapping[str, Any],
    task: str,
    model: str,
    dataset: str,
    threat_models: Sequence[ThreatModel] = (),
    attack: str = "apgd-ce+apgd-t",
    steps: int = 100,
    restarts: int = 1,
    target_classes: int = 9,
    seed: int = 0,
    batch_size: int = 128,
    groups: Sequence[Hashable] | None = None,
    queries: int = 5000,
    stop_fooled: bool = False,
    folder: str | Path | None = None,
    distributed: bool = False,
) -> Evaluation:
    """`evaluate_zero_shot` of any classifier that is differentiable.

    Args:
        logits_of: pixels (B, 3, H, W) in [0, 1] to fp32 logits (B, K), without weights that require a gradient.
        classes: K.
        encoder: which `logits_of` runs, for its device, precision and weights.
        compared_with: what the classifier compares embeddings with; with it and with `settings`, plain data that says
            what else makes it another classifier, a run knows its folder.
        task: for the rows.
        images, labels, model, dataset, threat_models, attack, steps, restarts, target_classes, seed, batch_size,
            groups, queries, stop_fooled, folder, distributed: as for `evaluate_zero_shot`.
    """
    counts = {"steps": steps, "restarts": restarts, "batch_size": batch_size, "queries": queries}
    check_plan(len(images), threat_models, groups, seed, {"model": model, "dataset": dataset}, **counts)
    device, dtype = next(encoder.parameters()).device, next(encoder.parameters()).dtype
    stages = _stages(attack, classes, target_classes)
    names = {"model": model, "task": task, "dataset": dataset}
    told: dict[str, Any] = {"threat_models": sorted(map(str, threat_models)), "attack": attack, "seed": seed}
    told |= {"target_classes": target_classes, "stop_fooled": stop_fooled, "precision": str(dtype)}

    def run() -> dict[str, Any]:
        seen = {"images": images_digest(images), "labels": labels_digest(labels), "weights": weights_digest(encoder)}
        return {**names, **counts, **told, **settings, **seen}

    saved = SavedBatches.claimed(folder, run)
    saved.check_same("classes", compared_with, distributed=distributed)
    first_pass = partial(clean_pass, logits_of, images, labels, device, batch_size, distributed)
    clean = saved.once("clean", first_pass, distributed=distributed)
    logits, truth = clean["logits"].to(device), clean["labels"].to(device)
    correct = (predicted_classes(logits) == truth).tolist()
    plan = [(Stage("apgd", "ce"), few, 1) for few in screening_steps(steps)]
    plan += [(stage, steps, restarts) for stage in stages]
    attacks = Attacks(logits_of, images, logits, truth, seed, saved, distributed)
    limits: dict[str, Any] = {"queries": queries, "stop_fooled": stop_fooled}
    runs = [attacks.run(one, at, steps=few, restarts=times, **limits) for at, (one, few, times) in enumerate(plan)]
    alive = [index for index, right in enumerate(correct) if right]
    outcomes = attack_nested(alive, threat_models, runs, batch_size=batch_size, distributed=distributed)

    def row(success: list[bool], **extra: Any) -> Row:
        facts = {"metric": "accuracy", "precision": dtype, "batch_size": batch_size}
        return fraction_row(success, groups, seed, **names, **facts, **extra)

    used = {"name": _attack_name(stages, steps), "steps": steps, "restarts": restarts, "seed": seed}
    rows = [row(correct)]
    for outcome in outcomes:
        robust = outcome.robust(len(correct))
        ball = outcome.threat_model
        rows.append(row(robust, threat_model=ball, attack=used, seconds=attacks.seconds[ball]))
    return Evaluation.of_rates(rows, seed)


def logits_function(
    encoder: PreTrainedModel,
    text_embeddings: torch.Tensor,
    normalization: Normalization,
    *,
    logit_scale: float = 100.0,
    native: bool = False,
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Pixels (B, 3, H, W) in [0, 1] to logits (B, K), for attacks on it; the encoder is frozen for good."""
    freeze(encoder)
    text = _texts(encoder, text_embeddings)
    size = encoder.config.image_size if native else None
    return _logits_function(encoder, text, normalization, logit_scale, size)


@torch.no_grad()
def predict_zero_shot(
    encoder: PreTrainedModel,
    text_embeddings: torch.Tensor,
    pixels: torch.Tensor,
    normalization: Normalization,
    *,
    batch_size: int = 128,
) -> torch.Tensor:
    """The likeliest class of each image (N, 3, S, S) in [0, 1], (N,) on the encoder's device."""
    check_pixels(pixels)
    device = next(encoder.parameters()).device
    logits_of = _logits_function(encoder, _texts(encoder, text_embeddings), normalization, 100.0)
    with frozen(encoder):
        return torch.cat([predicted_classes(logits_of(part.to(device).float())) for part in pixels.split(batch_size)])


def _texts(encoder: PreTrainedModel, text_embeddings: torch.Tensor) -> torch.Tensor:
    """The texts (K, D) in fp32 on the encoder's device; ValueError for another width than its embeddings have."""
    width = compared_width(encoder.config)
    if text_embeddings.ndim != 2 or text_embeddings.shape[1] != width:
        raise ValueError(
            f"text_embeddings have shape {tuple(text_embeddings.shape)}: pass (K, {width}), as the encoder."
        )
    return text_embeddings.to(next(encoder.parameters()).device).float()


def _stages(attack: str, classes: int, target_classes: int) -> list[Stage]:
    """The full runs, in their order."""
    if attack not in ATTACKS:
        raise ValueError(f"attack {attack!r} is unknown: pass one of {', '.join(map(repr, ATTACKS))}.")
    if classes < 2:
        raise ValueError(f"text_embeddings hold {classes} classes: zero-shot accuracy needs at least 2.")
    stages = class_stages(classes, target_classes, "standard" if attack == "autoattack" else "paper")[0]
    return stages[:1] if attack == "apgd-ce" else stages


def _attack_name(stages: list[Stage], steps: int) -> str:
    """What was run: "apgd-ce(10)+apgd-ce+apgd-t9" is 10 screening steps, a full run, full runs to 9 targets."""
    named = [f"apgd-ce({few})" for few in screening_steps(steps)] + [ensemble_name(stages)]
    return "+".join(named)


def _logits_function(
    encoder: PreTrainedModel,
    text: torch.Tensor,
    normalization: Normalization,
    logit_scale: float,
    size: int | None = None,
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Pixels (B, 3, H, W) in [0, 1], resized to `size` if one is given, to fp32 logits (B, K)."""
    dtype, compared = next(encoder.parameters()).dtype, compared_embedding(encoder.config)
    assert compared is not None  # or there would be no texts

    def logits_of(pixels: torch.Tensor) -> torch.Tensor:
        pixels = pixels if size is None else resize(pixels, size)
        embeddings = embed(encoder, normalization(pixels).to(dtype), compared).float()
        return logit_scale * F.normalize(embeddings, dim=-1) @ text.T

    return logits_of


@torch.no_grad()
def clean_pass(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    images: Any,
    labels: Sequence[int] | torch.Tensor | None,
    device: torch.device,
    batch_size: int,
    distributed: bool,
) -> dict[str, torch.Tensor]:
    """Clean logits (N, K) and labels (N,), on the CPU: the only clean pass, each image read once."""
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"{len(labels)} labels for {len(images)} images: give one label per image.")

    def classify(batch: list[int]) -> tuple[torch.Tensor, list[int]]:
        pixels, found = read(images, batch, device, labels)
        check_pixels(pixels)
        logits = logits_of(pixels).cpu()
        outside = [label for label in found if not 0 <= label < logits.shape[1]]
        if outside:
            raise ValueError(f"label {outside[0]} is outside the {logits.shape[1]} classes of the logits.")
        return logits, found

    batches = list(chunks(range(len(images)), batch_size))
    classified = divided(batches, classify, distributed=distributed)
    parts = list(counted(classified, len(batches), "clean images"))
    truth = [label for _, found in parts for label in found]
    return {"logits": torch.cat([logits for logits, _ in parts]), "labels": torch.tensor(truth)}


@dataclass(frozen=True)
class Attacks:
    """The attacks of one evaluation.

    Attributes:
        logits_of, images, seed, distributed: as `measure_accuracy` has them.
        clean_logits, truth: (N, K) and (N,), on the device.
        saved: finished batches of an interrupted run.
        seconds: per threat model how long its batches took; of batches that several processes attacked at a time,
            each one's share.
    """

    logits_of: Callable[[torch.Tensor], torch.Tensor]
    images: Any
    clean_logits: torch.Tensor
    truth: torch.Tensor
    seed: int
    saved: SavedBatches
    distributed: bool
    seconds: dict[ThreatModel, float] = field(default_factory=lambda: defaultdict(float))

    def run(self, stage: Stage, number: int, **effort: Any) -> LoopStage:
        """One attack of the ensemble; `number` and arguments as for `stage` and `Stage.run`."""
        others = self.clean_logits.scatter(1, self.truth[:, None], -torch.inf)

        def attack(pixels: torch.Tensor, batch: list[int], threat: ThreatModel, rng: torch.Generator) -> torch.Tensor:
            known = (self.truth[batch], others[batch])
            return stage.run(self.logits_of, pixels, *known, threat, generator=rng, **effort)

        return self.stage(number, attack)

    def stage(self, number: int, attack: Attack) -> LoopStage:
        """Any attack, and the fresh prediction on its result that decides; `number` is its own, for random starts."""

        def run(batch: list[int], threat_model: ThreatModel, place: int) -> tuple[list[bool], float]:
            key = (threat_model, number, place, batch)
            if (finished := self.saved.read(*key)) is not None:
                return finished[1]["fooled"], finished[1]["seconds"]
            begin, seeds = time.perf_counter(), (self.seed, number, place)
            points = attack_batch(self.images, batch, threat_model, attack, self.truth.device, seeds)
            with torch.no_grad():
                fooled = (predicted_classes(self.logits_of(points)) != self.truth[batch]).tolist()
            took = (time.perf_counter() - begin) / (process_state().num_processes if self.distributed else 1)
            self.saved.write(*key, {}, fooled=fooled, seconds=took)
            return fooled, took

        return LoopStage(run, take=self._take)

    def _take(self, found: tuple[list[bool], float], batch: list[int], threat_model: ThreatModel) -> list[bool]:
        fooled, seconds = found
        self.seconds[threat_model] += seconds
        return fooled
