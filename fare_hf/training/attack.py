"""The attack of a training step: PGD from a random start of each sample, against the encoder as it is now."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fare_hf.attacks import parse_step_size, pgd
from fare_hf.data.batches import sample_generator
from fare_hf.encoders.precision import attack_mode
from fare_hf.encoders.reading import Reading
from fare_hf.objectives import Objective
from fare_hf.training.config import FareConfig
from fare_hf.training.non_finite import NonFiniteError, blame, in_range

__all__ = ["EVALUATION", "AttackSteps", "Attacked", "BatchAttack", "attack_of", "attack_steps_at"]

# Stands for the step in the seeds of an evaluation, so that its random starts are the same after any step.
EVALUATION = -1
LONGEST = 1.25
"""Longest step of a short attack, in radii: what Wong et al. 2020 (arXiv 2001.03994) take for single steps."""


@dataclass(frozen=True)
class AttackSteps:
    """`count` gradient steps of length `size`, in the threat model's norm."""

    count: int
    size: float


def attack_steps_at(args: FareConfig, progress: float) -> AttackSteps:
    """The attack of a moment of the training.

    With `attack_steps_start` the number of steps grows in equal parts of the training from that to `attack_steps`
    (curriculum adversarial training, Cai et al. 2018, arXiv 1805.04807). Shorter attacks take longer steps, so that
    the path is as long as the whole attack's, up to `LONGEST` radii a step.

    Args:
        args: the configuration.
        progress: share of the training that is done, in [0, 1].
    """
    last = args.attack_steps
    first = last if args.attack_steps_start is None else args.attack_steps_start
    return attack_of(args, min(last, first + int(progress * (last - first + 1))))


def attack_of(args: FareConfig, count: int) -> AttackSteps:
    """`count` steps on a path as long as that of `attack_steps`, but no step longer than `LONGEST` radii."""
    size = parse_step_size(args.attack_step_size, args.threat_model, "attack_step_size")
    longest = max(size, LONGEST * args.threat_model.eps)
    return AttackSteps(count, min(size * args.attack_steps / count, longest))


@dataclass(frozen=True)
class Attacked:
    """A batch after its attack: `pixels` (B, 3, H, W), the objective's `targets`, losses at the start (B,)."""

    pixels: Tensor
    targets: Tensor
    start_losses: Tensor


class BatchAttack:
    """Attacks batches of `FareTrainer`.

    Args:
        args: the configuration: threat model, steps, step size, seed.
        objective: what the attack maximises.
        reading: of the encoder.
        hold: puts the encoder in eval mode while it is attacked; `attack_mode` also keeps no activations for weights.
        autocast: precision in which the encoder is attacked, where its forward does not have one of its own.
    """

    def __init__(
        self,
        args: FareConfig,
        objective: Objective,
        reading: Reading,
        hold: Callable[[nn.Module], AbstractContextManager[Any]] = attack_mode,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.args, self.objective, self.reading, self.hold = args, objective, reading, hold
        self.autocast = autocast
        self.embeds_original = False
        """Whether the objective ran the original encoder on the last batch."""

    def __call__(
        self,
        encoder: nn.Module,
        original: nn.Module,
        inputs: dict[str, Any],
        step: int,
        steps: AttackSteps | None = None,
    ) -> Attacked:
        """Attacks a batch.

        Args:
            encoder: what is attacked; not the DDP wrapper, which syncs buffers in every forward.
            original: the frozen encoder that gives the targets.
            inputs: `pixel_values`, `index` and perhaps `labels`.
            step: what the seeds of the random starts hold besides the samples: the global step, or `EVALUATION`.
            steps: number and length of the steps; by default those of the configuration.

        Raises:
            ValueError: no `index`; NaN or infinite values, with the samples' `index`.
        """
        if "index" not in inputs:
            raise ValueError("the batch has no 'index', only " + ", ".join(inputs) + "; use PixelDataset, or add it.")
        pixels = inputs["pixel_values"]
        self.embeds_original = False

        def embed_clean(points: Tensor) -> Tensor:
            self.embeds_original = True
            return self.reading.embed(original, points)

        with self.hold(encoder):
            with torch.no_grad():
                targets = self.objective.targets(pixels, inputs.get("labels"), embed_clean)
            loss_fn = _Recorded(self.objective, self._embed(encoder), targets)
            steps = steps or attack_steps_at(self.args, 1.0)
            start = self.random_start(pixels, inputs["index"], step)
            ball, count, size = self.args.threat_model, steps.count, steps.size
            try:
                adversarial = pgd(loss_fn, pixels, ball, steps=count, step_size=size, start=start)
            except ValueError as error:
                if "NaN" not in str(error) and in_range(pixels).all():
                    raise  # of another kind: no sample is to blame
                raise NonFiniteError(blame(step + 1, inputs, loss_fn.first)) from error
        assert loss_fn.first is not None
        return Attacked(adversarial, targets, loss_fn.first)

    def random_start(self, pixels: Tensor, index: Tensor, step: int) -> Tensor:
        """A random start for each sample from (seed, step, index): the same in any process, batch or resumed run.

        Not projected: the attack does that first thing.
        """
        start = torch.empty_like(pixels)
        for row, image, number in zip(start.split(1), pixels.split(1), index.tolist(), strict=True):
            generator = sample_generator(self.args.seed, step, number, pixels.device)
            torch.add(image, self.args.threat_model.noise(image, generator), out=row)
        return start

    def _embed(self, encoder: nn.Module) -> Callable[[Tensor], Tensor]:
        def embed_pixels(pixels: Tensor) -> Tensor:
            cast = nullcontext() if self.autocast is None else torch.autocast(pixels.device.type, self.autocast)
            with cast:
                return self.reading.embed(encoder, pixels)

        return embed_pixels


class _Recorded:
    """The objective as a function of pixels, which keeps the losses of its first call, on the device."""

    def __init__(self, objective: Objective, embed: Callable[[Tensor], Tensor], targets: Tensor) -> None:
        self.objective, self.embed, self.targets = objective, embed, targets
        self.first: Tensor | None = None

    def __call__(self, points: Tensor) -> Tensor:
        losses = self.objective(self.embed(points), self.targets)
        if self.first is None:
            self.first = losses.detach()
        return losses
