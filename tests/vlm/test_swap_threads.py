"""Several threads at one model: swaps and their ways back run one after the other."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from helpers.tiny_llava import encoder, llava, processor
from helpers.tiny_vlms import TINY

from fare_hf.vlm import SwapReport, swap_vision_tower, tower_of
from fare_hf.vlm.swap import proof

pytestmark = pytest.mark.filterwarnings("ignore:clean images have embeddings", "ignore:'.*' has cosine")


def weights(vlm: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in vlm.state_dict().items()}


def same(vlm: Any, wanted: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, wanted[name]) for name, tensor in vlm.state_dict().items())


def slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between reading the old tower and writing the new one, and before the proof, others get their turn."""
    for name in ("clean_embeddings", "tower_difference"):
        original = getattr(proof, name)

        def slowly(*args: Any, original: Any = original) -> Any:
            time.sleep(0.02)
            return original(*args)

        monkeypatch.setattr(proof, name, slowly)


@pytest.mark.parametrize("family", ["Llava (1.5, BakLlava)", "VideoLlava"])
def test_two_threads_that_swap_one_model_wait_for_each_other(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_steps(monkeypatch)
    tiny = TINY[family]
    vlm = tiny.model()
    before = weights(vlm)
    encoders = [tiny.encoder(seed) for seed in (2, 3, 4)]
    start = threading.Barrier(3)

    def swap(new: Any) -> SwapReport:
        start.wait()
        return swap_vision_tower(vlm, new)

    with ThreadPoolExecutor(3) as pool:
        reports = list(pool.map(swap, encoders))
    assert [report.probe_difference for report in reports] == [0.0, 0.0, 0.0]
    path = "model.vision_tower" if family != "VideoLlava" else "model.image_tower"
    # Each kept as its old weights what the one before it had written: nobody read what was about to change.
    kept = [report.old_states[path]["embeddings.class_embedding"] for report in reports]
    assert sum(torch.equal(tensor, before[f"{path}.embeddings.class_embedding"]) for tensor in kept) == 1
    while len(reports):
        newest = next(report for report in reports if _can_undo(report))
        reports.remove(newest)
    assert same(vlm, before)


def _can_undo(report: SwapReport) -> bool:
    try:
        report.undo()
    except RuntimeError as error:
        assert "undo that swap first" in str(error)
        return False
    return True


def test_one_report_that_two_threads_undo_is_undone_once(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm, proc = llava(), processor()
    before, size = weights(vlm), proc.image_processor.size
    report = swap_vision_tower(vlm, encoder(image_size=48), proc)
    load, calls = tower_of(vlm).load_state_dict, []

    def slowly(*args: Any, **options: Any) -> Any:
        calls.append(threading.get_ident())
        time.sleep(0.05)
        return load(*args, **options)

    monkeypatch.setattr(tower_of(vlm), "load_state_dict", slowly)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: report.undo(), range(2)))
    assert len(calls) == 1 and same(vlm, before) and proc.image_processor.size == size


def test_swaps_of_two_models_do_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both stand in the middle of a swap at one time: one that waited would break the barrier."""
    both = threading.Barrier(2, timeout=30)
    original = proof.tower_difference

    def together(*args: Any) -> Any:
        both.wait()
        return original(*args)

    monkeypatch.setattr(proof, "tower_difference", together)
    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(lambda seed: swap_vision_tower(llava(seed), encoder()), (1, 2)))
    assert all(report.changed for report in reports)


def test_a_swap_that_fails_lets_the_next_one_through() -> None:
    vlm = llava()
    with pytest.raises(ValueError):
        swap_vision_tower(vlm, encoder(hidden_size=64))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(swap_vision_tower, vlm, encoder()).result(timeout=30).changed
