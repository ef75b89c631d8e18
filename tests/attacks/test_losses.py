"""Attack losses against their formulas written out in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fare_hf.attacks import cross_entropy, dlr, margin, targeted_dlr

ROWS = st.integers(4, 8).flatmap(
    lambda classes: st.tuples(
        st.lists(st.integers(-2000, 2000), min_size=classes, max_size=classes, unique=True),
        st.integers(0, classes - 1),
        st.integers(1, classes - 1),
    )
)


@given(ROWS)
@settings(max_examples=200, deadline=None)
def test_losses_equal_their_formulas(row: tuple[list[int], int, int]) -> None:
    values, label, offset = row
    target = (label + offset) % len(values)
    z = [value / 100 for value in values]
    ranked = sorted(z, reverse=True)
    best_other = max(z[:label] + z[label + 1 :])
    logits, labels, targets = torch.tensor([z]).double(), torch.tensor([label]), torch.tensor([target])
    log_sum = math.log(sum(math.exp(value - ranked[0]) for value in z)) + ranked[0]
    assert cross_entropy(logits, labels).item() == pytest.approx(log_sum - z[label], abs=1e-5)
    assert margin(logits, labels).item() == pytest.approx(best_other - z[label], abs=1e-5)
    expected = -(z[label] - best_other) / (ranked[0] - ranked[2])
    assert dlr(logits, labels).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    expected = -(z[label] - z[target]) / (ranked[0] - (ranked[2] + ranked[3]) / 2)
    assert targeted_dlr(logits, labels, targets).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_dlr_does_not_change_with_shift_and_scale() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(16, 7).double(), torch.randint(0, 7, (16,))
    targets = (labels + 1) % 7
    assert torch.allclose(dlr(logits, labels), dlr(9 * logits + 5, labels))
    assert torch.allclose(targeted_dlr(logits, labels, targets), targeted_dlr(9 * logits + 5, labels, targets))


def test_losses_are_per_sample_fp32_and_differentiable() -> None:
    torch.manual_seed(0)
    labels = torch.tensor([0, 1, 2])
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        logits = torch.randn(3, 5).to(dtype).requires_grad_()
        for loss in (
            cross_entropy(logits, labels),
            margin(logits, labels),
            dlr(logits, labels),
            targeted_dlr(logits, labels, labels + 1),
        ):
            assert loss.shape == (3,) and loss.dtype == torch.float32
            (gradient,) = torch.autograd.grad(loss.sum(), logits)
            assert gradient.isfinite().all()


def test_margin_is_positive_exactly_where_the_label_loses() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(64, 5), torch.randint(0, 5, (64,))
    assert torch.equal(margin(logits, labels) > 0, logits.argmax(1) != labels)
