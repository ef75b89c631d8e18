"""Square Attack (Andriushchenko et al., ECCV 2020, arXiv 1912.00049): random search that needs no gradient.

Each query changes one square window of the image and is kept where it raised the loss. Under linf a window gets one
random sign of eps a channel; under l2 the length of the change in two windows moves into a new pattern in one of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fare_hf.attacks.gradient import AttackedLoss, LossFn, check_steps
from fare_hf.attacks.threat_model import ThreatModel, check_pixels, check_threat_model

__all__ = ["SquareResult", "square"]

# Share of the image that a window covers, by queries of a run of 10,000 (section 5 of the paper).
_SCHEDULE = ((10, 1), (50, 2), (200, 4), (500, 8), (1000, 16), (2000, 32), (4000, 64), (6000, 128), (8000, 256))
_SMALLEST = 512
_TINY = 1e-12


@dataclass(frozen=True)
class SquareResult:
    """What `square` found for each sample.

    Attributes:
        pixels: (B, C, H, W) fp32 inside the threat model: the first point that fools, else that of the highest loss.
        loss: (B,) fp32, the loss there.
        success: (B,) bool, fooled there; None when `loss_fn` gives no success.
        queries: (B,) int64, evaluations of `loss_fn` spent on it.
    """

    pixels: Tensor
    loss: Tensor
    success: Tensor | None
    queries: Tensor


def square(
    loss_fn: LossFn,
    pixels: Tensor,
    threat_model: ThreatModel,
    *,
    queries: int = 5000,
    share: float = 0.8,
    rescale_schedule: bool = False,
    generator: torch.Generator | None = None,
) -> SquareResult:
    """Maximise each sample's loss by random search; no gradient is asked for.

    A fooled sample stops there, and leaves the batch if `loss_fn` has `select(rows)`. Windows are the same for all
    samples of a batch, signs are each sample's own, and none of it depends on which samples are still there.

    Args:
        loss_fn: `(B, C, H, W) -> (B,)`, to be maximised, or `-> (loss, success)`; the margin is the paper's loss
            (`ClassifierLoss(..., "margin")`).
        pixels: clean images (B, C, H, W) in [0, 1].
        threat_model: linf or l2.
        queries: random steps after the first point.
        share: of the image that the first windows cover (the paper's p).
        rescale_schedule: shrink windows as fast as a run of 10,000 queries would over its whole length. Off, as in
            AutoAttack, the schedule counts queries as they are.
        generator: source of all randomness; None is a fresh one with seed 0 (the global RNG never moves).

    Returns:
        The best points found, (B, 3, H, W), their losses, and how many queries each image took.

    Raises:
        TypeError, ValueError: wrong pixels, queries or share; a NaN loss.

    Example:
        >>> loss = lambda pixels: (pixels.flatten(1).sum(1), torch.zeros(len(pixels), dtype=torch.bool))
        >>> found = square(loss, torch.full((1, 3, 8, 8), 0.5), ThreatModel("linf", "4/255"), queries=20)
        >>> found.pixels.shape
        torch.Size([1, 3, 8, 8])
    """
    check_steps(queries, "queries")
    check_threat_model(threat_model)
    check_pixels(pixels)
    if not 0 < share <= 1:
        raise ValueError(f"share {share} is not in (0, 1]: pass the share of the image a window covers, such as 0.8.")
    search = _Search(loss_fn, pixels.detach().float(), threat_model, generator or torch.Generator().manual_seed(0))
    height, width = pixels.shape[-2:]
    for query in range(queries):
        if not search.drop_fooled():
            break
        at = int(query / queries * 10_000) if rescale_schedule else query
        search.step(math.sqrt(window_share(at, share) * height * width))
    search.attacked.raise_if_bad()
    threat_model.check(search.best, search.clean)
    return search.result()


class _Search:
    """The best points so far, of all samples; `rows` are those still searched."""

    def __init__(self, loss_fn: LossFn, clean: Tensor, threat_model: ThreatModel, generator: torch.Generator) -> None:
        self.clean, self.threat_model, self.generator = clean, threat_model, generator
        self.attacked = AttackedLoss(loss_fn, len(clean), clean.device)
        self._droppable = hasattr(loss_fn, "select")
        first = self._stripes() if threat_model.norm == "linf" else self._tiles()
        self.best = threat_model.project(clean + first, clean)
        self.loss, self.success = self.attacked.value(self.best)
        self.queries = torch.ones(len(clean), dtype=torch.long, device=clean.device)

    def drop_fooled(self) -> bool:
        """Leave fooled samples out where that is possible; returns whether any is left to search."""
        if self.success is None:
            return True
        alive = ~self.success[self.attacked.rows]
        if self._droppable and not bool(alive.all()) and bool(alive.any()):
            self.attacked.keep(alive.nonzero().flatten())
        return bool(alive.any())

    def step(self, side: float) -> None:
        """One query of every sample still there."""
        rows = self.attacked.rows
        clean, best = self.clean[rows], self.best[rows]
        change = self._square_linf if self.threat_model.norm == "linf" else self._square_l2
        points = self.threat_model.project(change(clean, best, rows, side), clean)
        loss, success = self.attacked.value(points)
        better = loss > self.loss[rows]
        if success is not None and self.success is not None:
            fooled = self.success[rows]
            better = ~fooled & (better | success)
            self.success[rows] = torch.where(better, success, fooled)
            self.queries[rows] += ~fooled
        else:
            self.queries[rows] += 1
        self.best[rows] = torch.where(better.view(-1, 1, 1, 1), points, best)
        self.loss[rows] = torch.where(better, loss, self.loss[rows])

    def result(self) -> SquareResult:
        return SquareResult(self.best, self.loss, self.success, self.queries)

    def _signs(self, *shape: int) -> Tensor:
        """Random signs for all samples, so that a sample's own do not depend on who is left."""
        drawn = torch.rand(len(self.clean), *shape, generator=self.generator, device=self.generator.device)
        return torch.where(drawn < 0.5, -1.0, 1.0).to(self.clean.device)

    def _corner(self, side: int) -> tuple[int, int]:
        height, width = self.clean.shape[-2:]
        drawn = torch.rand(2, generator=self.generator, device=self.generator.device).tolist()
        return int(drawn[0] * (height - side + 1)), int(drawn[1] * (width - side + 1))

    def _stripes(self) -> Tensor:
        """Vertical stripes one pixel wide, the paper's first point under linf."""
        _, channels, _, width = self.clean.shape
        return self.threat_model.eps * self._signs(channels, 1, width).expand_as(self.clean)

    def _square_linf(self, clean: Tensor, best: Tensor, rows: Tensor, side: float) -> Tensor:
        height, width = clean.shape[-2:]
        size = min(max(round(side), 1), height, width)
        top, left = self._corner(size)
        signs = self._signs(clean.shape[1], 1, 1)[rows]
        points = best.clone()
        points[:, :, top : top + size, left : left + size] += 2 * self.threat_model.eps * signs
        return points

    def _tiles(self) -> Tensor:
        """A grid of five by five patterns of random sign, the paper's first point under l2."""
        _, channels, height, width = self.clean.shape
        size = max(min(height, width) // 5, 1)
        change = torch.zeros_like(self.clean)
        for top in range((height % size) // 2, height - size + 1, size):
            for left in range((width % size) // 2, width - size + 1, size):
                tile = self._pattern(size) * self._signs(channels, 1, 1)
                change[:, :, top : top + size, left : left + size] += tile
        return change * (self.threat_model.eps / (_length(change) + _TINY))

    def _square_l2(self, clean: Tensor, best: Tensor, rows: Tensor, side: float) -> Tensor:
        """Algorithm 3 of the paper: the second window gives its length to a new pattern in the first."""
        channels, height, width = clean.shape[1:]
        size = max(round(side), 3)
        size = min(size + (size % 2 == 0), height, width)
        window, other = (
            (..., slice(top, top + size), slice(left, left + size))
            for top, left in (self._corner(size), self._corner(size))
        )
        change = best - clean
        both = torch.zeros_like(change)
        both[window] = both[other] = 1
        # What the whole image does not use of eps yet, and what the two windows hold, a channel.
        unused = (self.threat_model.eps**2 - _length(change).square()).clamp_min(0) / channels
        budget = unused + (change * both).square().sum((-2, -1), keepdim=True)
        fresh = self._pattern(size) * self._signs(channels, 1, 1)[rows]
        old = change[window]
        fresh = fresh + old / (old.flatten(-2).norm(dim=-1)[..., None, None] + _TINY)
        fresh = fresh / (fresh.square().sum((-2, -1), keepdim=True).sqrt() + _TINY) * budget.sqrt()
        change[other] = 0
        change[window] = fresh
        return clean + change * (self.threat_model.eps / (_length(change) + _TINY))

    def _pattern(self, size: int) -> Tensor:
        """A window of unit length whose halves are of opposite sign, upright or lying, (size, size)."""
        upper = bump(size // 2, size)
        pattern = torch.cat([upper, -bump(size - size // 2, size)]) if size > 1 else torch.ones(1, 1)
        if torch.rand(1, generator=self.generator, device=self.generator.device).item() > 0.5:
            pattern = pattern.T
        return (pattern / pattern.norm()).to(self.clean.device)


def window_share(query: int, share: float) -> float:
    """Share of the image that the window of a query covers."""
    for last, divisor in _SCHEDULE:
        if query <= last:
            return share / divisor
    return share / _SMALLEST


def bump(rows: int, columns: int) -> Tensor:
    """Nested rectangles around the centre, each inner one higher by 1, 1/4, 1/9, ... from the inside out, length 1."""
    bump = torch.zeros(rows, columns)
    centre = (rows // 2, columns // 2)
    for ring in range(max(rows // 2, columns // 2) + 1):
        top, left = (max(middle - ring, 0) for middle in centre)
        bump[top : centre[0] + ring + 1, left : centre[1] + ring + 1] += 1 / (ring + 1) ** 2
    return bump / bump.norm()


def _length(change: Tensor) -> Tensor:
    """Euclidean length of each sample, (B, 1, 1, 1)."""
    return torch.linalg.vector_norm(change, dim=(1, 2, 3), keepdim=True)
