"""Operators of a step that is never run: against operators that run, and against the operations on paper."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from fare_hf.encoders import embed, freeze, matmul_patch_embedding
from fare_hf.encoders.flops import count_flops
from fare_hf.encoders.memory import count_parameters
from fare_hf.encoders.roofline import Costs, Operators, step_costs
from fare_hf.training.estimate import SHAPES

SMALL = CLIPVisionConfig(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=64, patch_size=16
)


def test_a_product_reads_its_factors_and_writes_its_result() -> None:
    left, right = torch.ones(3, 5), torch.ones(5, 7, dtype=torch.float64).float()
    with Operators() as operators:
        (left.t().t() @ right).view(7, 3)
    assert operators.found == [(2 * 3 * 5 * 7, 4 * (15 + 35 + 21))]


def test_what_is_never_run_moves_as_much_as_what_runs() -> None:
    encoder = freeze(CLIPVisionModelWithProjection(SMALL))
    pixels = torch.rand(2, 3, 64, 64, requires_grad=True)
    with matmul_patch_embedding(encoder), Operators() as operators:
        torch.autograd.grad(embed(encoder, pixels).float().square().sum(), pixels)
    before = torch.get_rng_state()
    costs = step_costs(lambda: CLIPVisionModelWithProjection(SMALL), 2, half=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert costs.attack == tuple(operators.found) and len(costs.attack) > 50


@pytest.mark.parametrize("half", [False, True])
def test_operations_are_those_on_paper(half: bool) -> None:
    """But for attention, which multiplies queries with keys again in its backward pass; bytes grow as the batch."""
    shape = CLIPVisionConfig(**SHAPES["openai/clip-vit-large-patch14"] | {"num_hidden_layers": 2})
    one, two, three = (step_costs(lambda: CLIPVisionModelWithProjection(shape), n, half=half) for n in (1, 2, 3))
    flops, moved = two.step(10)
    counted = count_flops(shape)
    again = 11 * counted.attention // 2
    assert flops == pytest.approx(2 * (counted.step(10) + again), rel=0.01)
    assert three.step(10)[1] - moved == pytest.approx(moved - one.step(10)[1], rel=0.01)
    weights = 4 * count_parameters(shape)
    assert 24 * weights / (1 + half) < 2 * one.step(10)[1] - moved < 60 * weights


def test_the_slower_of_both_counts() -> None:
    costs = Costs(((8, 1),), ((2, 30), (0, 4)), ((6, 6),))
    assert costs.step(2) == (8 + 2 * 2 + 6, 1 + 2 * 34 + 6)
    assert costs.seconds(2, 2.0, 10.0) == pytest.approx(4 + 2 * (3 + 0.4) + 3)
