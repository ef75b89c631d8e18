"""What all attacks on answers share: ask, attack through the whole model, ask again, keep what is worst, resume.

An evaluation says how an answer is scored and which attacks are run; samples whose score fell to the threshold are
left alone from then on.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fare_hf.attacks import LossFn, ThreatModel, apgd
from fare_hf.data.pixels import Pictures, check_pixels
from fare_hf.encoders import frozen, matmul_patch_embedding
from fare_hf.evaluation.attack_loop import (
    Attack,
    Stage,
    attack_batch,
    attack_nested,
    gather,
    in_their_order,
    same_sized,
    screening_steps,
)
from fare_hf.evaluation.processes import agreed, counted, divided, process_state
from fare_hf.evaluation.report.rows import Row, fraction_row
from fare_hf.evaluation.result import Evaluation
from fare_hf.evaluation.resume import Change, SavedBatches, digest, images_digest, weights_digest
from fare_hf.vlm import VlmLoss, generate_text, tower_of, tower_placement

__all__ = ["Attacked", "TextEvaluation", "VlmEngine", "answers_to", "evaluate_answers"]


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
    pixels: dict[int, Tensor] = field(default_factory=dict)
    sources: dict[int, int] = field(default_factory=dict)

    def copy(self) -> Attacked:
        """To go on from in a larger ball, which contains every perturbation found here."""
        return Attacked(list(self.scores), list(self.answers), dict(self.pixels), dict(self.sources))


@dataclass(frozen=True, kw_only=True)
class TextEvaluation(Evaluation):
    """What a vision-language model said, and what attacks made of it.

    Attributes:
        clean: N answers to the clean images.
        attacked: per threat model (as text, "linf 4/255") N answers: to the perturbed image that fooled the sample, or
            to the last one tried; the clean answer where a sample was not attacked.
        adversarial: per threat model the perturbed pixels {index: (3, H, W) fp32 on CPU} of the samples in `keep`
            that were attacked.
    """

    clean: list[str]
    attacked: dict[str, list[str]]
    adversarial: dict[str, dict[int, Tensor]]


@dataclass
class VlmEngine:
    """One model, one set of images, one score.

    Attributes:
        vlm, processor: the model and its processor.
        images: see `fare_hf.evaluation.attack_loop.gather`.
        prompts: one for each image, with the image placeholder.
        score: (answer, sample index) -> a number, less is worse.
        threshold: a sample whose score is no higher is not attacked any more.
        seed, batch_size, max_new_tokens: as named.
        keep: samples whose perturbed pixels are kept; None keeps all.
        latest: where an attack gave no lower score, its answer stands all the same; otherwise the one before.
        saved: finished batches of an interrupted run.
        distributed: whether the batches are divided among the processes of accelerate or torchrun.
        states: per threat model what was found.
        seconds: per threat model how long its batches took; of batches that several processes attacked at a time,
            each one's share.
    """

    vlm: PreTrainedModel
    processor: Any
    images: Any
    prompts: Sequence[str]
    score: Callable[[str, int], float]
    threshold: float
    seed: int
    batch_size: int
    max_new_tokens: int
    keep: Collection[int] | None = None
    latest: bool = False
    saved: SavedBatches = SavedBatches(None)
    distributed: bool = False
    states: dict[ThreatModel, Attacked] = field(default_factory=dict)
    seconds: dict[ThreatModel, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Frozen weights, and the patch embedding as a matrix product (its input gradient is cheaper)."""
        with frozen(self.vlm), matmul_patch_embedding(self.vlm):
            yield

    def save_in(self, folder: str | Path | None, references: Sequence[str], **settings: Any) -> None:
        """Write down each batch that is finished, and read those that the same run finished before.

        The weights of the tower count, as models are compared that differ in nothing else.

        Args:
            folder: of this run alone; None writes nothing.
            references: what answers are compared with.
            settings: plain data that says what else makes this run another one.

        Raises:
            ValueError: a folder of another run.
        """
        self.saved = SavedBatches.claimed(folder, lambda: settings | self._settings(references))

    def _settings(self, references: Sequence[str]) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "max_new_tokens": self.max_new_tokens,
            "precision": str(tower_placement(self.vlm)[1]),
            "prompts": digest(*self.prompts),
            "references": digest(*references),
            "images": images_digest(self.images),
            "vision tower": weights_digest(tower_of(self.vlm)),
        }

    def ask(self, pixels: Tensor, batch: Sequence[int]) -> list[str]:
        """Answers to the prompts of some samples."""
        prompts = [self.prompts[index] for index in batch]
        return generate_text(self.vlm, self.processor, pixels, prompts, max_new_tokens=self.max_new_tokens)

    def loss(self, batch: Sequence[int], texts: Sequence[str]) -> VlmLoss:
        """Of one text for each of some samples."""
        return VlmLoss(self.vlm, self.processor, [self.prompts[index] for index in batch], list(texts))

    def clean(self) -> Attacked:
        """Answers to the clean images, the only clean pass."""
        order = [index for batch in self._batches(range(len(self.images)), self.batch_size) for index in batch]
        answers = agreed(self.saved.answers, distributed=self.distributed)
        batches = self._batches(order[len(answers) :], self.batch_size)
        found = divided(batches, self._clean_answers, distributed=self.distributed)
        for said in counted(found, len(batches), "clean answers"):
            answers += said
            if self._writes:
                self.saved.keep_answers(answers)
        answers = [answer for _, answer in sorted(zip(order, answers, strict=True))]
        return Attacked([self.finite_score(answer, index) for index, answer in enumerate(answers)], answers)

    def _batches(self, indices: Sequence[int], size: int) -> list[list[int]]:
        return same_sized(indices, size, self.images)

    def _clean_answers(self, batch: list[int]) -> list[str]:
        pixels = gather(self.images, batch, self.device)
        check_pixels(pixels)
        return self.ask(pixels, batch)

    def attack(self, clean: Attacked, threat_models: Sequence[ThreatModel], stages: Sequence[Stage]) -> list[Attacked]:
        """All stages within each ball; of one norm, a larger one begins with what a smaller one gave.

        Returns:
            What was found, per threat model in the order given.
        """
        self.states.clear()
        self._clean = clean
        alive = [index for index, score in enumerate(clean.scores) if score > self.threshold]
        options: dict[str, Any] = {"batch_size": self.batch_size, "distributed": self.distributed}
        attack_nested(alive, threat_models, stages, batches=self._batches, **options)
        for threat_model in sorted(threat_models, key=lambda t: (t.norm, t.eps)):
            self.state(threat_model)
        return [self.states[threat_model] for threat_model in threat_models]

    def state(self, threat_model: ThreatModel) -> Attacked:
        """What was found within a ball so far."""
        if threat_model not in self.states:
            smaller = [t for t in self.states if t.norm == threat_model.norm]  # balls come in ascending order
            self.states[threat_model] = (self.states[smaller[-1]] if smaller else self._clean).copy()
        return self.states[threat_model]

    def stage(
        self,
        number: int,
        attack: Attack,
        source: Callable[[Attacked, int], int] = lambda state, index: state.sources.get(index, 0),
        attacks: Callable[[int], bool] = lambda index: True,
    ) -> Stage:
        """One attack, whose finished batches are read from their files.

        Args:
            number: random starts and files depend on it.
            attack: see `Attack`.
            source: (state, sample index) -> number of the ground truth that the attack uses.
            attacks: sample index -> whether the attack is for this sample.
        """

        def run(batch: list[int], threat_model: ThreatModel, place: int) -> tuple[list[Change], float]:
            state, key = self.state(threat_model), (threat_model, number, place, batch)
            if (finished := self.saved.batch(*key)) is not None:
                self._check(finished[0], threat_model)
                return finished
            begin, seeds = time.perf_counter(), (self.seed, number, place)
            points = attack_batch(self.images, batch, threat_model, attack, self.device, seeds)
            changes = self._changes(state, batch, points, source)
            found = changes, (time.perf_counter() - begin) / self._processes
            self.saved.keep_batch(*key, *found)
            return found

        return Stage(run, attacks, self._take)

    def _check(self, changes: Sequence[Change], threat_model: ThreatModel) -> None:
        """What was read from a file lies in the ball."""
        if changes:
            images = gather(self.images, [change.index for change in changes], torch.device("cpu"))
            threat_model.check(torch.stack([change.pixels for change in changes]), images)

    def finite_score(self, answer: str, index: int) -> float:
        """Of one answer; NaN would be above no threshold and below no score, and pass for both."""
        score = self.score(answer, index)
        if not math.isfinite(score):
            raise ValueError(f"the metric gives {score!r} for the answer {answer!r} to sample {index}: mend it.")
        return score

    @property
    def device(self) -> torch.device:
        """Of the tower."""
        return tower_placement(self.vlm)[0]

    def _changes(
        self, state: Attacked, batch: list[int], points: Tensor, source: Callable[[Attacked, int], int]
    ) -> list[Change]:
        """Ask again; the first perturbation of a sample is kept whatever it gave, later ones where they gave less."""
        changes = []
        for index, answer, image in zip(batch, self.ask(points, batch), points, strict=True):
            given = self.finite_score(answer, index), answer
            if not (self.latest or given[0] < state.scores[index]):
                if index in state.pixels:
                    continue
                given = state.scores[index], state.answers[index]
            changes.append(Change(index, *given, source(state, index), image.cpu()))
        return changes

    def _take(self, found: tuple[list[Change], float], batch: list[int], threat_model: ThreatModel) -> list[bool]:
        """What a batch changed, whichever process attacked it; says who of the batch is fooled."""
        changes, seconds = found
        state = self.state(threat_model)
        for change in changes:
            state.scores[change.index], state.answers[change.index] = change.score, change.answer
            if self.keep is None or change.index in self.keep:
                state.pixels[change.index], state.sources[change.index] = change.pixels, change.source
        self.seconds[threat_model] += seconds
        return [state.scores[index] <= self.threshold for index in batch]

    @property
    def _processes(self) -> int:
        return process_state().num_processes if self.distributed else 1

    @property
    def _writes(self) -> bool:
        """Whether this process keeps the answers; a batch is kept by whoever attacked it."""
        return not self.distributed or process_state().is_main_process


def evaluate_answers(
    engine: VlmEngine,
    threat_models: Sequence[ThreatModel],
    loss_of: Callable[[list[int]], LossFn],
    *,
    loss: str,
    steps: int,
    restarts: int,
    forced: bool,
    groups: Sequence[Hashable] | None,
    folder: str | Path | None,
    references: Sequence[str],
    **names: Any,
) -> TextEvaluation:
    """A rate of right (or forced) answers, clean and under APGD, in a screening run and full ones on the survivors.

    Args:
        engine: whose score is 1 for an answer that an attack is to change, else 0.
        threat_models: of the attacks.
        loss_of: sample indices -> loss of their pixels, to be maximised.
        loss: part of the attack's name.
        steps, restarts: of the full runs.
        forced: whether the rate counts the samples whose score is 0.
        groups: of the intervals.
        folder, references: see `VlmEngine.save_in`.
        names: of the rows.
    """
    effort = {"threat_models": sorted(map(str, threat_models)), "loss": loss, "steps": steps, "restarts": restarts}
    engine.save_in(folder, references, **names, **effort)

    def stage(number: int, length: int) -> Stage:
        def attack(pixels: Tensor, batch: list[int], threat: ThreatModel, rng: torch.Generator) -> Tensor:
            return apgd(loss_of(batch), pixels, threat, steps=length, generator=rng).pixels

        return engine.stage(number, attack)

    def row(scores: Sequence[float], **extra: Any) -> Row:
        success = [(score == 0) == forced for score in scores]
        return fraction_row(success, groups, engine.seed, batch_size=engine.batch_size, **names, **extra)

    names["precision"] = tower_placement(engine.vlm)[1]
    screening = screening_steps(steps)
    stages = [stage(number, length) for number, length in enumerate([*screening, *[steps] * restarts])]
    with engine.ready():
        clean = engine.clean()
        found = engine.attack(clean, threat_models, stages)
    name = "+".join([*(f"apgd-{loss}({few})" for few in screening), f"apgd-{loss}"])
    used = {"name": name, "steps": steps, "restarts": restarts, "seed": engine.seed}
    balls = list(zip(threat_models, found, strict=True))
    rows = [row(state.scores, threat_model=t, attack=used, seconds=engine.seconds[t]) for t, state in balls]
    return TextEvaluation.of_rates(
        [row(clean.scores), *rows],
        engine.seed,
        clean=clean.answers,
        attacked={str(threat_model): state.answers for threat_model, state in balls},
        adversarial={str(threat_model): dict(sorted(state.pixels.items())) for threat_model, state in balls},
    )


def answers_to(
    vlm: PreTrainedModel,
    processor: Any,
    pixels: Pictures,
    prompt: str,
    *,
    batch_size: int,
    max_new_tokens: int,
    distributed: bool = False,
) -> list[str]:
    """Answers to one prompt about each of some images, in batches, which several processes may divide."""
    device, batches = tower_placement(vlm)[0], same_sized(range(len(pixels)), batch_size, pixels)

    def ask(batch: list[int]) -> list[str]:
        return generate_text(vlm, processor, gather(pixels, batch, device), prompt, max_new_tokens=max_new_tokens)

    return in_their_order(batches, divided(batches, ask, distributed=distributed))
