"""Captions, targeted strings and the picture: attacks through a whole (tiny, random) LLaVA."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.tiny_llava import PROMPT, encoder, images, llava
from helpers.tiny_vlms import PROMPT as FAMILIES_PROMPT
from helpers.tiny_vlms import TINY
from PIL import Image

from fare_hf.attacks import ThreatModel
from fare_hf.evaluation import NamesConcept, RobustnessReport, attack_sheet, evaluate_captions, evaluate_targeted
from fare_hf.evaluation.report.attack_sheet import Answer, SheetRow
from fare_hf.vlm import VlmLoss, generate_text, swap_vision_tower

SMALL, LARGE = ThreatModel("linf", "2/255"), ThreatModel("linf", "32/255")
NAMES = {"prompt": PROMPT, "model": "LLaVA", "dataset": "noise", "max_new_tokens": 4, "batch_size": 4}


@pytest.mark.parametrize(
    ("text", "reference", "right"),
    [
        ("A  Cat.", "cat", True),
        ("concatenate", "cat", False),
        ("a cat face", "cat", False),
        ("a cat face", "cat face", True),
        ("a cat and a cat face", "cat", True),
        ("", "cat", False),
        ("a c++ book", "c++", True),
        ("a zebra", "zebra", True),
    ],
)
def test_the_longest_whole_name_counts(text: str, reference: str, right: bool) -> None:
    assert NamesConcept(["cat", "cat face", "C++"])(text, reference) is right


def test_captions_bookkeeping(vlm, proc) -> None:
    pixels = images(7)
    said = generate_text(vlm, proc, pixels, PROMPT, max_new_tokens=4)
    references = [*said[:5], "zebra", "zebra"]
    result = evaluate_captions(
        vlm,
        proc,
        pixels,
        [text or "a" for text in references],
        references,
        threat_models=[LARGE, SMALL],
        steps=4,
        restarts=2,
        seed=5,
        keep=[0, 6],
        **NAMES,
    )
    RobustnessReport(result.rows)
    clean, large, small = result.rows
    assert result.clean == said and clean.value == 5 / 7
    assert large.value <= small.value <= clean.value
    assert large.attack == {"name": "apgd-nll", "steps": 4, "restarts": 2, "seed": 5}
    for threat, row in ((LARGE, large), (SMALL, small)):
        texts = result.attacked[str(threat)]
        assert sum(NamesConcept(references)(t, r) for t, r in zip(texts, references, strict=True)) == row.value * 7
        assert texts[5:] == said[5:]
        assert list(result.adversarial[str(threat)]) == [0]
        image = result.adversarial[str(threat)][0]
        threat.check(image[None], pixels[:1])
        assert generate_text(vlm, proc, image[None], PROMPT, max_new_tokens=4) == [texts[0]]


def test_the_attack_lowers_the_likelihood_of_the_caption(vlm, proc) -> None:
    pixels = images(3)
    said = generate_text(vlm, proc, pixels, PROMPT, max_new_tokens=4)
    options = {"threat_models": [LARGE], "steps": 20}
    result = evaluate_captions(vlm, proc, pixels, said, keep=range(3), **options, **NAMES)
    found = torch.stack(list(result.adversarial[str(LARGE)].values()))
    with torch.no_grad():
        loss = VlmLoss(vlm, proc, PROMPT, said)
        assert (loss(found) > loss(pixels)).all()
    assert result.rows[1].attack["name"] == "apgd-nll(2)+apgd-nll"


def test_targeted_forces_a_word(vlm, proc) -> None:
    pixels = images(6)
    said = " ".join(generate_text(vlm, proc, images(40, seed=9), PROMPT, max_new_tokens=1)).split()
    clean = generate_text(vlm, proc, pixels, PROMPT, max_new_tokens=4)
    target = next(word for word in sorted(set(said), key=said.count) if word not in " ".join(clean))
    radii = [ThreatModel("linf", 0), ThreatModel("linf", 1)]
    result = evaluate_targeted(vlm, proc, pixels, target, threat_models=radii, steps=30, **NAMES)
    RobustnessReport(result.rows)
    before, nothing, everything = result.rows
    assert before.value == nothing.value == 0.0 and before.attack is None
    assert everything.value > 0
    assert sum(target in text for text in result.attacked["linf 1"]) == everything.value * 6
    assert everything.attack["name"] == "apgd-target(3)+apgd-target"


def test_a_target_said_anyway_counts_as_forced(vlm, proc) -> None:
    pixels = images(2)
    word = generate_text(vlm, proc, pixels[:1], PROMPT, max_new_tokens=1)[0]
    result = evaluate_targeted(vlm, proc, pixels[:1], word.upper(), threat_models=[SMALL], steps=1, **NAMES)
    assert [row.value for row in result.rows] == [1.0, 1.0]
    assert result.attacked[str(SMALL)] == result.clean


def test_original_and_swapped_model(vlm, proc) -> None:
    pixels, model = images(2), llava()
    options = {"threat_models": [SMALL], "steps": 2, **NAMES}
    first = evaluate_captions(model, proc, pixels, ["a cat", "a dog"], **options)
    with swap_vision_tower(model, encoder()):
        second = evaluate_captions(model, proc, pixels, ["a cat", "a dog"], **options | {"model": "swapped"})
    RobustnessReport([*first.rows, *second.rows])
    assert first.clean != second.clean


def test_nothing_is_left_behind(proc) -> None:
    model = llava().train()
    state = torch.random.get_rng_state()
    evaluate_captions(
        model, proc, images(2), ["a", "a"], threat_models=[SMALL], correct=lambda t, r: True, steps=2, **NAMES
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training and all(p.grad is None and p.requires_grad for p in model.parameters())


def sheet_rows(eps: float = 4 / 255) -> list[SheetRow]:
    pixels = images(2) * 0.9
    said = {
        "CLIP": Answer("a red cat with a long $tail$ that goes on and on and on", True),
        "FARE": Answer("a red cat"),
    }
    bad = {"CLIP": Answer("", False), "FARE": Answer("a dog", False)}
    attacked = {"attack on CLIP": (pixels + eps * 0.99, bad), "attack on FARE": (pixels, bad)}
    return [SheetRow(p, said, {n: (z[i], a) for n, (z, a) in attacked.items()}, "cat") for i, p in enumerate(pixels)]


def test_sheet_is_a_picture(tmp_path: Path) -> None:
    path = attack_sheet(
        sheet_rows(), tmp_path / "new" / "sheet.png", threat_model=ThreatModel("linf", "4/255"), title="t"
    )
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.width > picture.height > 400


def test_sheet_refuses_what_is_outside_the_ball(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leaves the threat model linf 2/255"):
        attack_sheet(sheet_rows(), tmp_path / "sheet.png", threat_model=SMALL)
    with pytest.raises(ValueError, match="at least one row"):
        attack_sheet([], tmp_path / "sheet.png", threat_model=SMALL)
    assert not list(tmp_path.iterdir())


def test_a_tower_that_states_neither_device_nor_dtype_is_attacked_too() -> None:
    tiny = TINY["Idefics"]
    vlm, proc, pixels = tiny.model(), tiny.processor(), images(2)  # type: ignore[misc]
    options = {"prompt": FAMILIES_PROMPT, "model": "Idefics", "dataset": "noise", "max_new_tokens": 3}
    found = evaluate_targeted(vlm, proc, pixels, "cat", threat_models=[LARGE], steps=3, **options)
    assert [row.n for row in found.rows] == [2, 2] and found.rows[1].precision == "float32"
