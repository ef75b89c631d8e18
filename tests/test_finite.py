"""No comparison of the project is passed by NaN."""

from __future__ import annotations

import math

import pytest
import torch

from fare_hf.finite import check_finite, largest, largest_difference, smallest

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("values", [[NAN, 0.0], [0.0, NAN], [0.0, NAN, 1.0]])
def test_reductions_keep_nan_wherever_it_stands(values: list[float]) -> None:
    assert math.isnan(largest(values)) and math.isnan(smallest(values))


def test_reductions_of_numbers() -> None:
    assert largest([0.0, 2.0, 1.0]) == 2.0 and smallest([0.0, -2.0, 1.0]) == -2.0
    assert largest([0.0, INF]) == INF
    with pytest.raises(ValueError):
        largest([])


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("side", ["ours", "theirs", "both"])
def test_a_difference_passes_no_bound_where_a_value_is_not_finite(place: int, value: float, side: str) -> None:
    ours, theirs = [torch.zeros(2), torch.zeros(2)], [torch.zeros(2), torch.zeros(2)]
    for sides in [ours] * (side != "theirs") + [theirs] * (side != "ours"):
        sides[place][1] = value
    assert not largest_difference(ours, theirs) <= 1e30


def test_a_difference_is_that_of_numbers_and_compares_pairs_of_one_shape() -> None:
    assert largest_difference(torch.tensor([1.0, -2.0]), torch.tensor([1.0, 1.0])) == 3.0
    far = torch.tensor([60000.0], dtype=torch.float16)
    assert largest_difference(far, -far) == 120_000  # beyond fp16
    for theirs in (torch.zeros(1), torch.zeros(3), [torch.zeros(2), torch.zeros(2)]):
        with pytest.raises(ValueError):
            largest_difference(torch.zeros(2), theirs)
    with pytest.raises(ValueError, match="cannot be compared"):
        largest_difference(torch.zeros(0), torch.zeros(0))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_values_that_are_not_finite_are_named(value: float) -> None:
    with pytest.raises(ValueError, match="^the weights 'w' hold NaN or infinity: take a checkpoint"):
        check_finite(torch.tensor([0.0, value]), "the weights 'w'", torch.float32)


def test_a_dtype_that_is_too_small_is_named_with_those_that_are_not() -> None:
    weights = torch.tensor([0.0, -1e5])
    with pytest.raises(ValueError, match="^w hold 1e\\+05, which float16 cannot hold: use bfloat16 or float32.$"):
        check_finite(weights, "w", torch.float16)
    for dtype in (None, torch.bfloat16, torch.float32):
        check_finite(weights, "w", dtype)
    with pytest.raises(ValueError, match="which bfloat16 cannot hold: use float32 or float64"):
        check_finite(torch.tensor([3.4e38]), "w", torch.bfloat16)
    check_finite(torch.arange(3), "ids", torch.float16)
