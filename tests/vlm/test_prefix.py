"""What the language model has computed of the text before the image is never used after anything has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from helpers.tiny_llava import PROMPT, encoder, images, llava, processor
from torch import nn

from fare_hf.vlm import VlmLoss, swap_vision_tower
from fare_hf.vlm.prefix import Prefix


class Adapted(nn.Module):
    """A low-rank adapter as PEFT's: its weights stay where they are, and plain attributes decide which ones count."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A, self.lora_B = nn.ModuleDict(), nn.ModuleDict()
        self._disable_adapters = False
        self._active_adapter: list[str] = []
        self.merged_adapters: list[str] = []
        self.scaling: dict[str, float] = {}

    def add(self, name: str) -> None:
        """A new one, in use at once."""
        torch.manual_seed(len(self.scaling) + 5)
        self.lora_A[name] = nn.Linear(self.base_layer.in_features, 2, bias=False)
        self.lora_B[name] = nn.Linear(2, self.base_layer.out_features, bias=False)
        self.scaling[name] = 8.0
        self._active_adapter = [name]

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        result = self.base_layer(values)
        for name in [] if self._disable_adapters or self.merged_adapters else self._active_adapter:
            result = result + self.scaling[name] * self.lora_B[name](self.lora_A[name](values))
        return result


def adapters(vlm: Any) -> list[Adapted]:
    return [part for part in vlm.modules() if isinstance(part, Adapted)]


@pytest.fixture
def adapted() -> Any:
    """A LLaVA with two adapters, "first" and "second", the first one in use."""
    vlm = llava()
    for layer in vlm.model.language_model.layers:
        layer.self_attn.v_proj = Adapted(layer.self_attn.v_proj)
    for part in adapters(vlm):
        part.add("second")
        part.add("first")
    return vlm


def switched_off(vlm: Any) -> None:
    for part in adapters(vlm):
        part._disable_adapters = True


def another_one(vlm: Any) -> None:
    for part in adapters(vlm):
        part._active_adapter = ["second"]


def both(vlm: Any) -> None:
    for part in adapters(vlm):
        part._active_adapter.append("second")  # the same list, longer


def loaded(vlm: Any) -> None:
    for part in adapters(vlm):
        part.add("third")


def scaled(vlm: Any) -> None:
    for part in adapters(vlm):
        part.scaling["first"] = 2.0


def merged_and_wrong(vlm: Any) -> None:
    """Merged by the flag alone: another function, which only the flag shows."""
    for part in adapters(vlm):
        part.merged_adapters.append("first")


def through_data(vlm: Any) -> None:
    for parameter in vlm.model.language_model.layers[0].parameters():
        parameter.data.mul_(0.5)


def by_an_optimiser(vlm: Any) -> None:
    with torch.no_grad():
        vlm.model.language_model.layers[0].mlp.up_proj.weight.add_(0.5)


def another_tensor(vlm: Any) -> None:
    weight = vlm.model.language_model.layers[1].mlp.up_proj.weight
    weight.data = weight.data.flip(0)


def a_module_replaced(vlm: Any) -> None:
    vlm.model.language_model.layers[0].mlp.act_fn = nn.Tanh()


def a_hook(vlm: Any) -> None:
    vlm.model.language_model.layers[0].register_forward_hook(lambda module, args, output: output * 1.5)


def a_buffer(vlm: Any) -> None:
    vlm.model.language_model.rotary_emb.inv_freq.data.mul_(3.0)


CHANGES = [switched_off, another_one, both, loaded, scaled, merged_and_wrong, through_data, by_an_optimiser]
CHANGES += [another_tensor, a_module_replaced, a_hook, a_buffer]


@contextmanager
def without_prefix() -> Iterator[None]:
    """Nothing before the image is kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Prefix, "length", lambda *_: 0)
        yield


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_noticed(change: Callable[[Any], None], adapted: Any) -> None:
    loss, pixels = VlmLoss(adapted, processor(), PROMPT, ["a red cat", "a dog"]), images(2)
    before = loss(pixels)
    change(adapted)
    after = loss(pixels)
    with without_prefix():
        torch.testing.assert_close(after, loss(pixels), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(after, before, rtol=1e-3)


@torch.no_grad()
def test_back_again_is_the_first_value(adapted: Any) -> None:
    """As `with model.disable_adapter()` does it."""
    loss, pixels = VlmLoss(adapted, processor(), PROMPT, ["a red cat"]), images(1)
    before = loss(pixels)
    switched_off(adapted)
    assert not torch.equal(loss(pixels), before)
    for part in adapters(adapted):
        part._disable_adapters = False
    assert torch.equal(loss(pixels), before)


@torch.no_grad()
def test_what_changes_nothing_keeps_it(adapted: Any) -> None:
    """Another call, another mode, a tower of other weights: the text before the image is not computed again."""
    calls: list[int] = []
    loss, pixels = VlmLoss(adapted, processor(), PROMPT, ["a red cat"]), images(1)
    loss(pixels)
    adapted.get_input_embeddings().register_forward_hook(lambda _, args, out: calls.append(int(args[0].shape[1])))
    loss(pixels)  # the hook is a change
    calls.clear()
    adapted.train()
    first = loss(pixels)
    adapted.eval()
    second = loss(pixels)
    swap_vision_tower(adapted, encoder(), minimum_cosine=-1)
    calls.clear()
    loss(pixels)
    assert torch.equal(first, second) and len(calls) == 1
