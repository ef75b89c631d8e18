"""What captions and targeted attacks share: ask, attack through the whole model, ask again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from fare_hf.attacks import LossFn, ThreatModel, apgd
from fare_hf.data.pixels import check_pixels
from fare_hf.encoders import frozen, matmul_patch_embedding
from fare_hf.evaluation.attack_loop import Attack, Judge, Outcome, attack_nested, chunks, gather, screening_steps
from fare_hf.evaluation.report.rows import Row
from fare_hf.vlm import VlmLoss, generate_text, tower_placement

__all__ = ["TextAttack", "TextEvaluation", "says", "target_loss"]


def target_loss(vlm: PreTrainedModel, processor: Any, prompt: str, target: str, max_new_tokens: int) -> VlmLoss:
    """Loss of one target string.

    Raises:
        ValueError: an answer of `max_new_tokens` has no room for it.
    """
    loss = VlmLoss(vlm, processor, prompt, [target])
    tokens = int((loss.labels >= 0).sum())
    if tokens > max_new_tokens:
        raise ValueError(f"target {target!r} has {tokens} tokens, max_new_tokens is {max_new_tokens}: raise it.")
    return loss


def says(answer: str, target: str) -> bool:
    """Whether an answer holds the target string, case aside."""
    return target.strip().lower() in answer.lower()


@dataclass
class TextEvaluation:
    """What a vision-language model said, and what attacks made of it.

    Attributes:
        rows: for the report.
        clean: N answers to the clean images.
        attacked: per threat model (as text, "linf 4/255") N answers: to the perturbed image that fooled the sample, or
            to the last one tried; the clean answer where a sample was not attacked.
        adversarial: per threat model the perturbed pixels {index: (3, S, S) fp32 on CPU} of the samples in `keep`
            that were attacked.
    """

    rows: list[Row]
    clean: list[str]
    attacked: dict[str, list[str]]
    adversarial: dict[str, dict[int, torch.Tensor]]


@dataclass
class TextAttack:
    """One vision-language model, one set of images, one prompt, attacked by APGD in screening and full runs.

    Attributes:
        vlm, processor: the model and its processor.
        samples: see `fare_hf.evaluation.attack_loop.gather`.
        prompt: with the image placeholder.
        steps: of a full APGD run.
        restarts: number of full runs, each from another random start and on the survivors only.
        seed, batch_size, max_new_tokens: as named.
        keep: samples whose perturbed pixels are kept.
    """

    vlm: PreTrainedModel
    processor: Any
    samples: Any
    prompt: str
    steps: int
    restarts: int
    seed: int
    batch_size: int
    max_new_tokens: int
    keep: Sequence[int] = ()
    _found: dict[ThreatModel, dict[int, tuple[str, torch.Tensor | None]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.samples):
            raise ValueError("the data set is empty: pass at least one image.")

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Frozen weights, and the patch embedding as a matrix product (its input gradient is cheaper)."""
        with frozen(self.vlm), matmul_patch_embedding(self.vlm):
            yield

    def clean_answers(self) -> list[str]:
        """Answers to the clean images, the only clean pass."""
        answers: list[str] = []
        for batch in chunks(range(len(self.samples)), self.batch_size):
            pixels = gather(self.samples, batch, tower_placement(self.vlm)[0])
            check_pixels(pixels)
            answers += self._ask(pixels)
        return answers

    def run(
        self,
        alive: Sequence[int],
        threat_models: Sequence[ThreatModel],
        loss_of: Callable[[list[int]], LossFn],
        fooled: Callable[[str, int], bool],
    ) -> list[Outcome]:
        """Attack the samples in `alive`; one outcome per threat model.

        Args:
            alive: sample indices.
            threat_models: see `attack_nested`.
            loss_of: sample indices -> loss of their pixels, to be maximised.
            fooled: (answer to the perturbed image, sample index) -> whether the attack reached its aim.
        """
        stages = [self._stage(loss_of, fooled, steps) for steps in (*screening_steps(self.steps), *self._full_runs())]
        return attack_nested(
            self.samples,
            alive,
            threat_models,
            stages,
            device=tower_placement(self.vlm)[0],
            batch_size=self.batch_size,
            seed=self.seed,
        )

    def description(self, loss: str) -> dict[str, Any]:
        """The attack as a report's row carries it; `loss` is part of the name."""
        names = [f"apgd-{loss}({steps})" for steps in screening_steps(self.steps)] + [f"apgd-{loss}"]
        return {"name": "+".join(names), "steps": self.steps, "restarts": self.restarts, "seed": self.seed}

    def evaluation(self, rows: list[Row], clean: list[str], threat_models: Sequence[ThreatModel]) -> TextEvaluation:
        """Collect the answers; what fooled a sample in a smaller ball is its answer in the larger ones too."""
        result = TextEvaluation(rows, clean, {str(t): [] for t in threat_models}, {})
        merged: dict[str, dict[int, tuple[str, torch.Tensor | None]]] = {}
        for threat_model in sorted(threat_models, key=lambda t: (t.norm, t.eps)):
            found = merged.get(threat_model.norm, {}) | self._found.get(threat_model, {})
            merged[threat_model.norm] = found
            texts = [found[index][0] if index in found else text for index, text in enumerate(clean)]
            result.attacked[str(threat_model)] = texts
            kept = {index: pixels for index, (_, pixels) in sorted(found.items()) if pixels is not None}
            result.adversarial[str(threat_model)] = kept
        return result

    def _full_runs(self) -> list[int]:
        return [self.steps] * self.restarts

    def _ask(self, pixels: torch.Tensor) -> list[str]:
        return generate_text(self.vlm, self.processor, pixels, self.prompt, max_new_tokens=self.max_new_tokens)

    def _stage(
        self, loss_of: Callable[[list[int]], LossFn], fooled: Callable[[str, int], bool], steps: int
    ) -> tuple[Attack, Judge]:
        """One APGD run over all survivors, and the answers to its result, which decide."""

        def attack(pixels: torch.Tensor, batch: list[int], threat: ThreatModel, rng: torch.Generator) -> torch.Tensor:
            return apgd(loss_of(batch), pixels, threat, steps=steps, generator=rng).pixels

        def judge(pixels: torch.Tensor, batch: list[int], threat: ThreatModel) -> list[bool]:
            answers = self._ask(pixels)
            found = self._found.setdefault(threat, {})
            for index, answer, image in zip(batch, answers, pixels, strict=True):
                found[index] = (answer, image.cpu() if index in self.keep else None)
            return [fooled(answer, index) for answer, index in zip(answers, batch, strict=True)]

        return attack, judge
