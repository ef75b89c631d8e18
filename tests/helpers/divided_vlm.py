"""Every evaluation of a vision-language model, for one process or several: what it found, and who attacked what."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from helpers.tiny_llava import PROMPT, images, llava, processor

from fare_hf.attacks import ThreatModel
from fare_hf.evaluation import VqaAccuracy, evaluate_captions, evaluate_stealth, evaluate_targeted, evaluate_transfer
from fare_hf.evaluation.resume import digest
from fare_hf.evaluation.vlm import engine, ensemble, stealth, transfer
from fare_hf.evaluation.vlm.ensemble import evaluate_vlm

COUNT, BALLS = 4, [ThreatModel("linf", "4/255"), ThreatModel("linf", "16/255")]
EFFORT: dict[str, Any] = {"steps": 2, "batch_size": 2, "seed": 3}


@contextmanager
def counted() -> Iterator[list[str]]:
    """A line for each batch that this process attacks: which images."""
    made: list[str] = []
    with mock.patch.multiple(engine, apgd=_noted(made)), mock.patch.multiple(ensemble, apgd=_noted(made)):
        with mock.patch.multiple(stealth, apgd=_noted(made)), mock.patch.multiple(transfer, apgd=_noted(made)):
            yield made


def _noted(made: list[str]) -> Any:
    from fare_hf.attacks import apgd

    def attack(loss: Any, pixels: torch.Tensor, *words: Any, **options: Any) -> Any:
        made.append(digest(pixels.numpy().tobytes())[:8])
        return apgd(loss, pixels, *words, **options)

    return attack


def everything(folder: Path, distributed: bool) -> dict[str, Any]:
    """Of each evaluation its rows without their time, its outcomes, and the batches that this process attacked."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name, run in RUNS.items():
        with counted() as made:
            evaluation = run(folder, {"distributed": distributed})
        rows = [replace(row, seconds=None).to_dict() for row in evaluation.rows]
        found[name] = {"rows": rows, "outcomes": evaluation.outcomes, "said": _said(evaluation), "attacked": made}
    return found


def _said(evaluation: Any) -> list[str]:
    """Answers, and a digest of perturbed pixels."""
    answers = getattr(evaluation, "clean", []) + getattr(evaluation, "answers", [])
    for state in getattr(evaluation, "attacked", {}).values():
        answers += state if isinstance(state, list) else [*state.answers, _pixels(state.pixels)]
    return answers + [_pixels(kept) for kept in getattr(evaluation, "adversarial", {}).values()]


def _pixels(kept: dict[int, torch.Tensor]) -> str:
    return digest(*(image.numpy().tobytes() for _, image in sorted(kept.items())))


def questions(folder: Path, options: dict[str, Any]) -> Any:
    """VQA, whose states lie in a folder."""
    metric = VqaAccuracy([["cat"] * 4] * COUNT)
    metric.threshold = -1.0  # nobody is given up: every stage attacks all
    names = {"model": "LLaVA", "task": "vqa", "dataset": "noise", "max_new_tokens": 3, "targets": ("dog",)}
    options |= {"threat_models": BALLS, "folder": folder / "questions"}
    return evaluate_vlm(llava(), processor(), images(COUNT), PROMPT, metric, **names, **options, **EFFORT)


def _captions(folder: Path, options: dict[str, Any]) -> Any:
    options |= {"model": "LLaVA", "dataset": "noise", "correct": lambda text, reference: True, "keep": range(COUNT)}
    options |= {"prompt": PROMPT, "threat_models": BALLS[:1], "max_new_tokens": 3}
    return evaluate_captions(llava(), processor(), images(COUNT), ["a cat"] * COUNT, **options, **EFFORT)


def _forced(folder: Path, options: dict[str, Any]) -> Any:
    options |= {
        "model": "LLaVA",
        "dataset": "noise",
        "prompt": PROMPT,
        "threat_models": BALLS[:1],
        "max_new_tokens": 3,
    }
    return evaluate_targeted(llava(), processor(), images(COUNT), "red dog", **options, **EFFORT)


def _stealth(folder: Path, options: dict[str, Any]) -> Any:
    options |= {"model": "LLaVA", "dataset": "noise", "prompt": PROMPT, "folder": folder / "stealth"}
    return evaluate_stealth(llava(), processor(), images(COUNT), "bird bird face", BALLS[1], **options, **EFFORT)


def _transfer(folder: Path, options: dict[str, Any]) -> Any:
    maps = {name: torch.randn(12, 4, generator=torch.Generator().manual_seed(n)) for n, name in enumerate("AB")}
    models = {name: lambda pixels, m=m: pixels.unfold(2, 16, 16).unfold(3, 16, 16).mean((4, 5)).flatten(1) @ m
              for name, m in maps.items()}  # fmt: skip
    pixels, labels = images(COUNT), torch.arange(COUNT) % 4
    return evaluate_transfer(models, models, pixels, labels, BALLS[1], dataset="noise", **options, **EFFORT)


RUNS = {"questions": questions, "captions": _captions, "forced": _forced, "stealth": _stealth, "transfer": _transfer}
