"""How many steps the attack of a training step takes, and how long they are."""

from __future__ import annotations

from dataclasses import dataclass

from fare_hf.attacks import parse_step_size
from fare_hf.encoders.flops import Flops
from fare_hf.training.config import FareConfig

__all__ = ["AttackSteps", "attack_of", "attack_steps_at", "training_flops"]

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


def training_flops(args: FareConfig, flops: Flops, last: int, *, clean_target: bool, trained: float) -> int:
    """Operations of one image an update, over all updates of a training.

    Args:
        args: the configuration.
        flops: of the encoder.
        last: number of updates.
        clean_target, trained: as for `Flops.step`.
    """
    counts = [attack_steps_at(args, step / last).count for step in range(last)]
    return sum(flops.step(n, clean_target=clean_target, trained=trained) * counts.count(n) for n in set(counts))
