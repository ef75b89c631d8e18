"""Zero-shot accuracy: the text classifier, the attack's bookkeeping, and how strong it is."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_llava import encoder, images, processor
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPModel, CLIPTextModelWithProjection

from fare_hf.attacks import ThreatModel, apgd, cross_entropy
from fare_hf.data.pixels import Normalization
from fare_hf.evaluation import RobustnessReport, evaluate_zero_shot, text_classifier
from fare_hf.evaluation.attack_loop import Stage, attack_batch, attack_nested, gather, screening_steps
from fare_hf.evaluation.zero_shot import classification

NAMES = ["cat", "dog", "bird", "red fish"]
TEMPLATES = ["a photo of a {}.", "a {}."]


def normalization() -> Normalization:
    return Normalization.from_processor(processor())


def classifier(classes: int, seed: int = 0) -> torch.Tensor:
    """Random unit vectors."""
    return F.normalize(torch.randn(classes, 16, generator=torch.Generator().manual_seed(seed)), dim=1)


def predictions(pixels: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return (F.normalize(encoder()(pixel_values=normalization()(pixels)).image_embeds, dim=1) @ text.T).argmax(1)


def evaluate(classes: int = 5, n: int = 24, wrong: int = 0, **changes) -> list[dict]:
    text, pixels = classifier(classes), images(n)
    labels = predictions(pixels, text)
    labels[:wrong] = (labels[:wrong] + 1) % classes
    options = {"model": "CLIP", "dataset": "noise", "normalization": normalization(), "steps": 5, "batch_size": 7}
    return evaluate_zero_shot(changes.pop("encoder", encoder()), text, pixels, labels, **options | changes).rows


def test_text_classifier_is_the_mean_of_normalised_templates(clip_folder: Path) -> None:
    clip, tokenizer = CLIPModel.from_pretrained(clip_folder), AutoTokenizer.from_pretrained(clip_folder)
    text = text_classifier(clip, tokenizer, NAMES, TEMPLATES, batch_size=3)
    for name, row in zip(NAMES, text, strict=True):
        total = torch.zeros(16)
        for template in TEMPLATES:
            with torch.no_grad():
                one = clip.get_text_features(**tokenizer(template.format(name), return_tensors="pt")).pooler_output[0]
            total += one / one.norm()
        torch.testing.assert_close(row, total / total.norm(), rtol=1e-5, atol=1e-5)
    alone = CLIPTextModelWithProjection.from_pretrained(clip_folder)
    torch.testing.assert_close(text_classifier(alone, tokenizer, NAMES, TEMPLATES), text, rtol=1e-5, atol=1e-5)


def test_rows_are_valid_nested_and_ordered() -> None:
    radii = [ThreatModel("linf", "16/255"), ThreatModel("linf", "1/255"), ThreatModel("l2", 0.5)]
    rows = evaluate(wrong=6, threat_models=radii, seed=3)
    RobustnessReport(rows)
    clean, large, small, l2 = rows
    assert clean.value == 0.75 and clean.attack is None and clean.n == 24
    assert [row.threat_model for row in rows[1:]] == list(radii)
    assert large.value <= small.value <= clean.value and l2.value <= clean.value
    assert large.attack == {"name": "apgd-ce+apgd-t4", "steps": 5, "restarts": 1, "seed": 3}
    assert large.precision == "float32" and large.ci[0] <= large.value <= large.ci[1]
    again = evaluate(wrong=6, threat_models=radii, seed=3)
    assert [row.value for row in again] == [row.value for row in rows]


def test_an_attack_that_may_do_nothing_does_nothing() -> None:
    rows = evaluate(threat_models=[ThreatModel("linf", 0)])
    assert rows[1].value == rows[0].value == 1.0


def test_at_least_as_strong_as_its_first_stage() -> None:
    vision, text, pixels, threat = encoder(), classifier(5), images(24), ThreatModel("linf", "4/255")
    labels = predictions(pixels, text)

    def loss_fn(points: torch.Tensor) -> torch.Tensor:
        embeddings = vision(pixel_values=normalization()(points)).image_embeds
        return cross_entropy(100 * F.normalize(embeddings, dim=1) @ text.T, labels)

    result = apgd(loss_fn, pixels, threat, steps=10)
    plain = (predictions(result.pixels, text) == labels).sum().item() / 24
    full = evaluate(threat_models=[threat], steps=20)[1].value
    assert full <= plain
    assert full < 1.0


@pytest.mark.parametrize(
    ("classes", "changes", "name"),
    [
        (2, {}, "apgd-ce"),
        (3, {}, "apgd-ce+apgd-dlr"),
        (4, {}, "apgd-ce+apgd-t3"),
        (12, {"target_classes": 2}, "apgd-ce+apgd-t2"),
        (12, {"attack": "apgd-ce"}, "apgd-ce"),
        (4, {"steps": 20, "target_classes": 1}, "apgd-ce(2)+apgd-ce+apgd-t1"),
    ],
)
def test_few_classes_and_the_name_of_what_was_run(classes: int, changes: dict, name: str) -> None:
    rows = evaluate(classes=classes, n=6, threat_models=[ThreatModel("linf", "2/255")], **{"steps": 2} | changes)
    assert rows[1].attack["name"] == name


def test_only_survivors_are_attacked_in_full_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[tuple[str, int], list[list[int]]] = {}

    def spy(pixels, batch, threat_model, attack, device, seeds):
        seen.setdefault((str(threat_model), seeds[1]), []).append(batch)
        return attack_batch(pixels, batch, threat_model, attack, device, seeds)

    monkeypatch.setattr(classification, "attack_batch", spy)
    rows = evaluate(wrong=4, threat_models=[ThreatModel("linf", "8/255"), ThreatModel("linf", "2/255")])
    stages = [[index for batch in batches for index in batch] for batches in seen.values()]
    assert stages[0] == list(range(4, 24))
    assert all(set(later) <= set(alive) for alive, later in pairwise(stages))
    assert all(len(batch) == 7 for batches in seen.values() for batch in batches[:-1])
    order = [(name, stage) for name in ("linf 2/255", "linf 8/255") for stage in range(5)]
    assert list(seen) == [stage for stage in order if stage in seen] and order[5] in seen
    assert rows[0].value == 20 / 24


def test_a_perturbation_outside_the_ball_does_not_count() -> None:
    threat = ThreatModel("linf", "2/255")

    def cheat(batch: list[int], ball: ThreatModel, number: int) -> list[bool]:
        attack = lambda x, batch, t, g: (x + 3 / 255).clamp(0, 1)  # noqa: E731
        attack_batch(images(4) * 0.5, batch, ball, attack, torch.device("cpu"), (0, 0, number))
        return [True] * len(batch)

    with pytest.raises(ValueError, match="leaves the threat model linf 2/255"):
        attack_nested(range(4), [threat], [Stage(cheat)], batch_size=4)
    with pytest.raises(ValueError, match="repeat one another"):
        attack_nested(range(4), [threat, threat], [], batch_size=4)


def test_no_trace_and_one_clean_forward() -> None:
    vision = encoder().train()
    calls = []
    vision.register_forward_hook(lambda module, args, output: calls.append(len(output.image_embeds)))
    evaluate(encoder=vision, n=10, batch_size=4)
    assert calls == [4, 4, 2]
    state = torch.random.get_rng_state()
    evaluate(encoder=vision, n=4, threat_models=[ThreatModel("linf", "2/255")])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert vision.training and all(p.grad is None and p.requires_grad for p in vision.parameters())


def test_a_data_set_gives_what_tensors_give() -> None:
    text, pixels = classifier(4), images(9)
    labels = predictions(pixels, text)
    items = [{"pixel_values": image, "labels": int(label)} for image, label in zip(pixels, labels, strict=True)]
    options = {"model": "CLIP", "dataset": "noise", "normalization": normalization(), "steps": 3, "batch_size": 4}
    options |= {"threat_models": [ThreatModel("linf", "4/255")], "groups": [0, 0, 0, 1, 1, 1, 2, 2, 2]}
    first = evaluate_zero_shot(encoder(), text, pixels, labels, **options).rows
    second = evaluate_zero_shot(encoder(), text, items, **options).rows
    assert [replace(row, seconds=None) for row in first] == [replace(row, seconds=None) for row in second]
    assert torch.equal(gather(items, [3, 1], torch.device("cpu")), pixels[[3, 1]])


def test_half_precision_models_are_attacked_in_fp32_pixels() -> None:
    rows = evaluate(encoder=encoder().bfloat16(), n=4, threat_models=[ThreatModel("linf", "2/255")], steps=2)
    assert {row.precision for row in rows} == {"bfloat16"}


def test_labels_are_integers_of_any_kind() -> None:
    text, options = classifier(3), {"model": "m", "dataset": "d", "normalization": normalization()}
    rows = [
        evaluate_zero_shot(encoder(), text, images(2), labels, **options).rows
        for labels in ([0, 1], torch.tensor([0, 1]), np.array([0, 1]))
    ]
    assert rows[0] == rows[1] == rows[2]


def test_screening_is_a_tenth() -> None:
    assert screening_steps(19) == [] and screening_steps(100) == [10]
