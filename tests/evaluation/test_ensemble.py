"""The paper's ensemble, in batches, against the same stages written as loops over single samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers.tiny_llava import PROMPT, images
from hypothesis import given, settings
from hypothesis import strategies as st

import fare_hf.evaluation.vlm.engine as engine
import fare_hf.evaluation.vlm.ensemble as ensemble
from fare_hf.attacks import ThreatModel, apgd
from fare_hf.encoders import frozen, matmul_patch_embedding
from fare_hf.evaluation.attack_loop import mix
from fare_hf.evaluation.vlm.ensemble import evaluate_vlm
from fare_hf.evaluation.vlm.metrics import Cider, TextMetric, VqaAccuracy
from fare_hf.vlm import VlmLoss, generate_text

BALL = ThreatModel("linf", "32/255")
WORDS = ("cat", "dog", "red cat", "maybe", "a bird", "Word", "the dog face")
NAMES = {"model": "m", "task": "t", "dataset": "d", "max_new_tokens": 3}
Attack = Callable[[int, str, torch.Tensor | None, bool, int, int], torch.Tensor]


@dataclass
class Worst:
    """What the loop remembers of one sample."""

    score: float
    answer: str
    image: torch.Tensor | None = None
    source: int = 0


def one_by_one(
    clean: Sequence[str], metric: TextMetric, targets: Sequence[str], answer: Callable[..., str], attack: Attack
) -> list[Worst]:
    """Half precision against each ground truth; single precision from the best with its ground truth; targets."""
    worst = [Worst(metric.score(said, index), said) for index, said in enumerate(clean)]
    plans: list[Any] = [*range(max(len(metric.texts(index)) for index in range(len(metric)))), "best", *targets]
    for stage, plan in enumerate(plans):
        alive = [i for i, w in enumerate(worst) if w.score > metric.threshold]
        if isinstance(plan, int):
            alive = [i for i in alive if plan < len(metric.texts(i))]
        for place, index in enumerate(alive):
            now = worst[index]
            source = plan if isinstance(plan, int) else now.source
            text = plan if plan in targets else metric.texts(index)[source]
            start = now.image if plan == "best" else None
            image = attack(index, text, start, isinstance(plan, int), stage, place)
            said = answer(image, index)
            lower = metric.score(said, index) < now.score
            if lower:
                now.score, now.answer = metric.score(said, index), said
            if lower or now.image is None:
                now.image, now.source = image, source
    return worst


def check(found: engine.Attacked, worst: Sequence[Worst], same: Callable[..., None]) -> None:
    """The evaluation found what the loop found."""
    assert found.scores == [w.score for w in worst] and found.answers == [w.answer for w in worst]
    assert found.sources == {index: w.source for index, w in enumerate(worst) if w.image is not None}
    for index, w in enumerate(worst):
        assert (index in found.pixels) == (w.image is not None)
        if w.image is not None:
            same(found.pixels[index], w.image)


METRICS = (
    VqaAccuracy([["cat", "dog", "cat"], ["maybe"] * 4, ["the dog", "bird"], ["red"], ["face", "an", "cat", "dog"]]),
    Cider([["a cat", "the dog"], ["a bird in the image"], ["red", "blue", "green"], ["cat"], ["dog face"]], 0.5),
)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_the_stages_are_those_of_the_loop(metric: TextMetric, vlm, proc) -> None:
    """Real attacks on the tiny LLaVA, one image a batch; ground truths are what it says, so that there is something
    to lose."""
    pixels, steps, seed = images(5), 3, 3
    said = generate_text(vlm, proc, pixels, PROMPT, max_new_tokens=3)
    truths = [[text or "cat", *metric.texts(index)] for index, text in enumerate(said)]
    metric = VqaAccuracy(truths) if isinstance(metric, VqaAccuracy) else Cider(truths, metric.threshold)
    targets = ("maybe", "Word") if isinstance(metric, VqaAccuracy) else ()

    def answer(image: torch.Tensor, index: int) -> str:
        return generate_text(vlm, proc, image[None], PROMPT, max_new_tokens=3)[0]

    def attack(index: int, text: str, start: torch.Tensor | None, half: bool, stage: int, place: int) -> torch.Tensor:
        loss = VlmLoss(vlm, proc, PROMPT, [text])
        sign = -1 if text in targets and not half and start is None else 1
        begin = None if start is None else start[None]
        options: dict[str, Any] = {"generator": torch.Generator().manual_seed(mix(seed, stage, place)), "start": begin}
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found = apgd(lambda z: sign * loss(z), pixels[index : index + 1], BALL, steps=steps, **options)
        assert found.pixels.dtype == torch.float32
        return found.pixels[0]

    options: dict[str, Any] = {"threat_models": [BALL], "steps": steps, "seed": seed, "targets": targets}
    result = evaluate_vlm(vlm, proc, pixels, PROMPT, metric, batch_size=1, **options, **NAMES)
    with frozen(vlm), matmul_patch_embedding(vlm):
        clean = [answer(image, index) for index, image in enumerate(pixels)]
        worst = one_by_one(clean, metric, targets, answer, attack)
    assert any(w.score < score for w, score in zip(worst, result.scores, strict=True))
    check(result.attacked[str(BALL)], worst, lambda ours, theirs: torch.testing.assert_close(ours, theirs))


def scramble(image: torch.Tensor, text: str, start: torch.Tensor | None, half: bool) -> torch.Tensor:
    """An image of the ball that depends on everything an attack on this sample is given, and on nothing else."""
    first = image if start is None else start
    number = int(first.double().sum() * 1e6) + sum(map(ord, text)) + half
    return BALL.random_start(image[None], torch.Generator().manual_seed(number))[0]


def reading(image: torch.Tensor, index: int) -> str:
    """An answer that depends on the image alone."""
    return WORDS[int(image.double().sum() * 1e6) % len(WORDS)]


@settings(max_examples=25, deadline=None)
@given(
    truths=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6), min_size=2, max_size=7),
    seed=st.integers(0, 10**6),
    batch_size=st.integers(1, 8),
    captions=st.booleans(),
    threshold=st.sampled_from([0.0, 0.3, 2.0]),
)
def test_batches_change_nothing_in_the_bookkeeping(
    truths: list[list[str]], seed: int, batch_size: int, captions: bool, threshold: float, vlm, proc
) -> None:
    """Attack and answers are replaced by functions of each sample alone: what is left is who is attacked with what."""
    metric: TextMetric = Cider(truths, threshold) if captions else VqaAccuracy(truths)
    targets = () if captions else ("maybe", "Word")
    pixels = images(len(truths), seed=seed)

    def batched(loss: Any, clean: torch.Tensor, *rest: Any, start: Any = None, **options: Any) -> Any:
        texts = loss.texts if isinstance(loss, VlmLoss) else loss.__closure__[0].cell_contents.texts
        half = torch.is_autocast_enabled("cpu")
        begins = [None] * len(clean) if start is None else start
        made = [scramble(z, t, s, half) for z, t, s in zip(clean, texts, begins, strict=True)]
        return type("Found", (), {"pixels": torch.stack(made)})

    def said(model: Any, processor: Any, points: torch.Tensor, *rest: Any, **options: Any) -> list[str]:
        return [reading(image, 0) for image in points]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ensemble, "apgd", batched)
        patch.setattr(engine, "generate_text", said)
        options: dict[str, Any] = {"threat_models": [BALL], "targets": targets, "batch_size": batch_size}
        result = evaluate_vlm(vlm, proc, pixels, PROMPT, metric, **options, **NAMES)
    worst = one_by_one(
        [reading(image, 0) for image in pixels],
        metric,
        targets,
        reading,
        lambda index, text, start, half, stage, place: scramble(pixels[index], text, start, half),
    )
    check(result.attacked[str(BALL)], worst, lambda ours, theirs: torch.testing.assert_close(ours, theirs))
