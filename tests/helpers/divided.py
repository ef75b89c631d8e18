"""Evaluations that divide their work, for one process or several: what each found, and who did what."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from helpers.noise_corruptions import with_corruptions
from helpers.tiny_llava import PROMPT, encoder, images, llava, processor

from fare_hf.attacks import ThreatModel
from fare_hf.cli import going_on
from fare_hf.data.pixels import Normalization, quantize
from fare_hf.evaluation import (
    VqaAccuracy,
    check_gradient_masking,
    clean_drift,
    evaluate_captions,
    evaluate_corruptions,
    evaluate_stealth,
    evaluate_targeted,
    evaluate_transfer,
    evaluate_universal_text,
)
from fare_hf.evaluation.resume import digest
from fare_hf.evaluation.vlm import engine, ensemble, stealth, transfer
from fare_hf.evaluation.vlm.ensemble import evaluate_vlm
from fare_hf.evaluation.zero_shot import classification, corruptions, drift

COUNT, BALLS = 4, [ThreatModel("linf", "4/255"), ThreatModel("linf", "16/255")]
EFFORT: dict[str, Any] = {"steps": 2, "batch_size": 2, "seed": 3}


@contextmanager
def counted() -> Iterator[list[str]]:
    """A line for each batch that this process works on: which images."""
    made: list[str] = []
    with ExitStack() as patches:
        for module, name in WORK:
            patches.enter_context(mock.patch.object(module, name, _noted(made, getattr(module, name))))
        yield made


def _noted(made: list[str], work: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*words: Any, **options: Any) -> Any:
        pixels = next(word for word in words if isinstance(word, torch.Tensor))
        batch = next((word for word in words if isinstance(word, list)), [])  # of all pixels
        made.append(digest(pixels[batch or slice(None)].numpy().tobytes())[:8])
        return work(*words, **options)

    return noted


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
    models = {name: _classifier(number) for number, name in enumerate("AB")}
    pixels, labels = images(COUNT), torch.arange(COUNT) % 4
    return evaluate_transfer(models, models, pixels, labels, BALLS[1], dataset="noise", **options, **EFFORT)


def _classifier(seed: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Linear logits of four classes."""
    weights = torch.randn(12, 4, generator=torch.Generator().manual_seed(seed))
    return lambda pixels: pixels.unfold(2, 16, 16).unfold(3, 16, 16).mean((4, 5)).flatten(1) @ weights


def _masking(folder: Path, options: dict[str, Any]) -> Any:
    pixels, logits = images(COUNT), _classifier(0)
    effort = {"steps": 2, "batch_size": 2, "seed": 3, "target_classes": 1, "queries": 4, "more": 2}
    options |= {"surrogate": _classifier(1), "folder": folder / "masking"}
    known = (logits, pixels, logits(pixels).argmax(1), BALLS[0])
    return check_gradient_masking(*known, **options, **effort)


def _drift(folder: Path, options: dict[str, Any]) -> Any:
    options |= {"normalization": NORMALIZATION, "model": "CLIP", "dataset": "noise", "batch_size": 1}
    return clean_drift(encoder(), encoder(seed=1), images(COUNT), **options)


def _corruptions(folder: Path, options: dict[str, Any]) -> Any:
    texts = torch.nn.functional.normalize(torch.randn(4, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    options |= {"normalization": NORMALIZATION, "model": "CLIP", "dataset": "noise", "batch_size": 2}
    options |= {"names": ["gaussian_noise", "contrast"], "severities": (1, 5)}
    with with_corruptions():
        return evaluate_corruptions(encoder(), texts, quantize(images(COUNT)), torch.arange(COUNT), **options)


def universal() -> str:
    """What several processes are told of one perturbation for all images; nothing where there is one."""
    names: dict[str, Any] = {"refused": bool, "model": "LLaVA", "dataset": "noise", "epochs": 1, "max_new_tokens": 3}
    try:
        evaluate_universal_text(llava(), processor(), images(2), ["red dog"], [PROMPT], BALLS[0], **names)
    except ValueError as error:
        return str(error)
    return ""


NORMALIZATION = Normalization.from_processor(processor())
WORK = [
    (engine, "apgd"),
    (ensemble, "apgd"),
    (stealth, "apgd"),
    (transfer, "apgd"),
    (classification, "attack_batch"),
    (drift, "embed_images"),
    (corruptions, "corrupt_pixels"),
]
"""Functions that are given the pixels of one batch, or all pixels and the batch's indices."""
RUNS = {"questions": questions, "captions": _captions, "forced": _forced, "stealth": _stealth, "transfer": _transfer}
RUNS |= {"masking": _masking, "drift": _drift, "corruptions": _corruptions}


def held(folder: Path) -> dict[str, Any]:
    """Which folders of evaluations this process looked into, and what it is told of one that is not empty."""
    looked: list[str] = []
    inner = going_on._check_folder

    def looks(path: Path) -> None:
        looked.append(path.name)
        inner(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(going_on, "_check_folder", looks)
        with going_on.going_on(argparse.Namespace(output_dir=folder / "new")):
            pass
        with pytest.raises(ValueError) as said, going_on.going_on(argparse.Namespace(output_dir=folder)):
            pass
    return {"looked": looked, "said": str(said.value)}
