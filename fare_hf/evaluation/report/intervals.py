"""Intervals for fractions: Wilson for independent samples, a cluster bootstrap for grouped ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from statistics import NormalDist

import numpy as np

__all__ = [
    "FEW",
    "bootstrap_interval",
    "bootstrap_statistic",
    "fraction_interval",
    "has_width",
    "number_groups",
    "paired_interval",
    "wilson_interval",
]

FEW = 30
"""Below so many samples a bootstrap's intervals are too narrow. Of exponential scores (skewed, as CIDEr's are), drawn
1,500 times by numpy with seed 0, they held the mean 75 % of the time with 4 samples, 83 % with 8, 90 % with 20, 91 %
with 30 and 93 % with 100, where 95 % are meant (1,000 resamples each)."""


def wilson_interval(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a fraction `k / n` (Wilson 1927).

    Args:
        k: successes.
        n: independent trials.
        confidence: between 0 and 1.

    Returns:
        (low, high) within [0, 1], containing `k / n`.

    Raises:
        ValueError: n below 1, k outside [0, n], confidence outside (0, 1).
    """
    if n < 1 or not 0 <= k <= n:
        raise ValueError(f"{k} successes of {n}: give n >= 1 and 0 <= k <= n.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence!r} must lie between 0 and 1, such as 0.95.")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    fraction = k / n
    denominator = 1 + z * z / n
    centre = (fraction + z * z / (2 * n)) / denominator
    half = z * math.sqrt(fraction * (1 - fraction) / n + z * z / (4 * n * n)) / denominator
    # The exact ends at k = 0 and k = n are 0 and 1; rounding must not move them.
    return (0.0 if k == 0 else max(0.0, centre - half), 1.0 if k == n else min(1.0, centre + half))


def bootstrap_interval(
    values: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean; whole groups are drawn when `groups` says which samples belong together.

    Images of one class, one source or one drawing are not independent; drawing groups keeps what they share.

    Args:
        values: one number per sample.
        groups: one label per sample, or None where each sample is its own group.
        seed: of the resampling; the same seed gives the same interval.
        resamples: number of bootstrap draws.

    Returns:
        (low, high), widened where needed to contain the mean.

    Raises:
        ValueError: no values, a value that is not finite, `groups` of another length.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.size == 0 or not np.isfinite(numbers).all():
        raise ValueError("the bootstrap needs at least one value, and finite ones only.")
    index = _group_index(groups, len(numbers))
    sums, sizes = np.bincount(index, weights=numbers), np.bincount(index)
    draws = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=resamples)
    return _percentiles(draws @ sums / (draws @ sizes), numbers.mean(), lower=(1 - 0.95) / 2)


def paired_interval(
    first: Sequence[float],
    second: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
) -> tuple[float, tuple[float, float]]:
    """Mean of `second - first` on the same samples, and its 95 % bootstrap interval.

    Two models are compared on one set of images: the difference varies less than the two figures do.

    Raises:
        ValueError: of another number, and as `bootstrap_interval`.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} values: a paired comparison needs the same samples.")
    change = [float(b) - float(a) for a, b in zip(first, second, strict=True)]
    interval = bootstrap_interval(change, groups, seed=seed)
    return float(np.mean(change)), interval


def bootstrap_statistic(
    statistic: Callable[[list[int]], float],
    n: int,
    groups: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
    resamples: int = 500,
) -> tuple[float, float]:
    """95 % percentile bootstrap of any figure of a set, such as F1, that is no mean over samples.

    Args:
        statistic: indices of the drawn samples (with repetition) -> the figure.
        n: number of samples.
        groups: one label per sample; whole groups are drawn. None draws samples.
        seed, resamples: as `bootstrap_interval`.

    Raises:
        ValueError: n below 1, `groups` of another length, or a figure that is not finite.
    """
    index = _group_index(groups, n)
    members = [np.flatnonzero(index == group).tolist() for group in range(index.max() + 1)]
    rng, figures = np.random.default_rng(seed), []
    for _ in range(resamples):
        drawn = rng.integers(len(members), size=len(members))
        figures.append(statistic([sample for group in drawn for sample in members[group]]))
    whole = statistic(list(range(n)))
    if not np.isfinite([*figures, whole]).all():
        raise ValueError("the figure is not finite on some draws of the samples, so that it has no interval.")
    return _percentiles(figures, whole)


def fraction_interval(
    successes: Sequence[bool], groups: Sequence[Hashable] | None = None, *, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of a success fraction: Wilson, or the cluster bootstrap when `groups` are given.

    Where all samples agree the bootstrap has width zero, which claims too much; then it is Wilson's interval with the
    number of groups as sample size.

    Raises:
        ValueError: no samples, or `groups` of another length.
    """
    k, n = sum(map(bool, successes)), len(successes)
    if groups is None:
        return wilson_interval(k, n)
    low, high = bootstrap_interval([float(success) for success in successes], groups, seed=seed)
    if 0 < k < n:
        return low, high
    count = len(set(groups))
    return wilson_interval(count if k else 0, count)


def has_width(interval: tuple[float, float]) -> bool:
    """Whether an interval says anything: where each draw of a bootstrap gives the same figure, it has no width, and
    that is no proof that other samples would give it too."""
    return interval[1] - interval[0] > 1e-9


def number_groups(groups: Sequence[Hashable]) -> list[int]:
    """The groups' numbers from 0, in the order of their first sample, so that nothing depends on hashing."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(group, len(numbers)) for group in groups]


def _group_index(groups: Sequence[Hashable] | None, n: int) -> np.ndarray:
    """The group's number of each of n samples; without groups each is its own."""
    if n < 1 or (groups is not None and len(groups) != n):
        raise ValueError(f"{n if groups is None else len(groups)} groups for {n} values: give one group per value.")
    return np.arange(n) if groups is None else np.array(number_groups(groups))


def _percentiles(figures: Sequence[float] | np.ndarray, whole: float, lower: float = 0.025) -> tuple[float, float]:
    """The middle 95 %, widened where needed to contain the figure of all samples.

    Reports hold every digit: means keep the `lower` they were first computed with, which is not 0.025 in its last bit.
    """
    low, high = np.quantile(figures, [lower, 0.975])
    return float(min(low, whole)), float(max(high, whole))
