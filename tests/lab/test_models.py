"""The shipped models load, are what their report says, and break under an attack as the real ones do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from helpers.paths import ROOT
from transformers import CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection

from fare_hf import RobustnessReport, ThreatModel
from fare_hf.encoders import load_encoder
from fare_hf.evaluation.report.tables import markdown
from fare_hf.hub import regenerate_card
from fare_hf.lab import ENCODERS, encoder_folder, load_clip, load_llava, load_test_set, measure
from fare_hf.lab.names import MODELS, TOWERS
from fare_hf.vlm import generate_text
from tools.lab.store import save_with_report

NAMES = {"clip": "CLIP", "fare-2": "FARE-2", "fare-4": "FARE-4", "tecoa-2": "TeCoA-2", "tecoa-4": "TeCoA-4"}


@pytest.mark.parametrize("name", ["clip", *ENCODERS])
def test_encoders_load_with_plain_from_pretrained(name: str) -> None:
    folder = encoder_folder(name)
    projecting = CLIPVisionModelWithProjection.from_pretrained(folder, dtype=torch.float32)
    plain = CLIPVisionModel.from_pretrained(folder, dtype=torch.float32)
    pixels = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    last = projecting(pixels).last_hidden_state
    assert torch.equal(last, plain(pixels).last_hidden_state)
    assert (folder / "preprocessor_config.json").exists()
    assert not list(folder.glob("*.bin")) and not list(folder.glob("*.pt"))


def test_the_robust_encoders_differ_from_the_original_and_each_other() -> None:
    encoders = [load_encoder(str(encoder_folder(name))) for name in ("clip", *ENCODERS)]
    weights = [encoder.get_parameter("visual_projection.weight") for encoder in encoders]
    assert all(not torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])


@pytest.mark.parametrize("name", ["clip", "fare-4"])
def test_the_report_gives_what_the_models_do(name: str) -> None:
    report = RobustnessReport.load(ROOT / "model_cards" / "lab" / "report.json")
    clean = [row for row in report.rows if row.model == NAMES[name] and row.threat_model is None]
    stated = {row.dataset: row for row in clean if row.dataset in ("twemoji", "digits")}
    budget = measure.Budget({dataset: row.n for dataset, row in stated.items()})
    encoder = load_encoder(str(encoder_folder(name)))
    rows = measure.measure_zero_shot(NAMES[name], encoder, load_clip(), budget, threat_models=())
    assert len(rows) == 2
    for row in rows:  # other CPUs round otherwise
        assert row.value == pytest.approx(stated[row.dataset].value, abs=2 / row.n)


def test_a_short_attack_breaks_clip_and_not_fare() -> None:
    budget = measure.Budget({"twemoji": 64}, steps=10, target_classes=1)
    threat = [ThreatModel("linf", "4/255")]
    values = {}
    for name in ("clip", "fare-4"):
        encoder = load_encoder(str(encoder_folder(name)))
        _, robust = measure.measure_zero_shot(name, encoder, load_clip(), budget, threat)
        values[name] = robust.value
    assert values["clip"] <= 0.05
    assert values["fare-4"] >= 0.2


def test_llava_shares_the_tower_of_clip_and_describes_images() -> None:
    llava, processor = load_llava()
    tower = CLIPVisionModel.from_pretrained(encoder_folder("clip"), dtype=torch.float32)
    for name, tensor in tower.state_dict().items():
        assert torch.equal(llava.model.vision_tower.state_dict()[name], tensor), name
    test = load_test_set("twemoji").first(16)
    said = generate_text(llava, processor, test.pixels, measure.PROMPT, max_new_tokens=14)
    assert all(text.startswith("a photo of") for text in said)
    right = sum(test.class_names[label] in text for label, text in zip(test.labels.tolist(), said, strict=True))
    assert right >= 6


def test_no_shipped_file_names_a_folder_of_the_machine_that_made_it() -> None:
    for path in MODELS.rglob("*.json"):
        assert not re.search(r'"/[a-z]+/', path.read_text()), path


def test_clip_is_a_whole_clip_with_its_tokenizer() -> None:
    model, tokenizer = load_clip()
    assert isinstance(model, CLIPModel) and not model.training
    assert next(model.parameters()).dtype == torch.float32
    ids = tokenizer("a photo of a four-leaf clover").input_ids
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert len(ids) <= model.config.text_config.max_position_embeddings


@pytest.mark.parametrize("name", [*ENCODERS, *TOWERS])
def test_the_rendered_cards_are_those_in_the_package(name: str) -> None:
    card = (ROOT / "model_cards" / name / "README.md").read_text()
    assert card == (encoder_folder(name) / "README.md").read_text() == regenerate_card(encoder_folder(name))
    picture = (ROOT / "model_cards" / name / "results.png").read_bytes()
    assert picture == (encoder_folder(name) / "results.png").read_bytes() and "](results.png)" in card
    stated = RobustnessReport.load(encoder_folder(name) / "report.json")
    assert markdown(stated.rows).strip() in card


def test_storing_over_an_encoder_loses_nothing_when_it_fails(tmp_path: Path) -> None:
    encoder = load_encoder(str(encoder_folder("fare-4")))
    named = {"eps": "4/255", "shown": "FARE", "repo_id": "x", "report": None}
    folder = save_with_report(encoder, {"steps": 1}, tmp_path / "encoder", **named)
    encoder.get_parameter("visual_projection.weight").data.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        save_with_report(encoder, {"steps": 1}, folder, **named)
    assert torch.isfinite(load_encoder(str(folder)).get_parameter("visual_projection.weight")).all()
