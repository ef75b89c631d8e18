"""`fare-hf card`: what it says it wrote, which figures count as the encoder's own, and the name of the original."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.tiny_llava import encoder
from huggingface_hub import ModelCard
from transformers import CLIPImageProcessor

from fare_hf.attacks import ThreatModel
from fare_hf.cli import main
from fare_hf.evaluation import RobustnessReport
from fare_hf.evaluation.report.rows import fraction_row
from fare_hf.hub import save_robust_encoder


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An encoder whose original is a folder, and a report of two models."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tinyclip").mkdir()
    model = encoder()
    size = model.config.image_size
    images = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    save_robust_encoder(
        model, "fare4", processor=images, base_model="tinyclip", threat_model=ThreatModel("linf", "4/255")
    )
    rows = [
        fraction_row([True, False], model=name, task="zero-shot", dataset="digits", metric="accuracy")
        for name in ("CLIP", "FARE-4")
    ]
    RobustnessReport(rows).save("report")
    return tmp_path / "fare4"


def test_it_says_what_was_written_and_whose_figures_they_are(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main.main(["card", "fare4", "--report", "report"])
    said = capsys.readouterr().out
    assert "written in 'fare4': README.md, fare_hf.json, report.json" in said
    assert "which of 'CLIP', 'FARE-4' this encoder is, is not said: give --report_model" in said
    assert ModelCard.load(saved / "README.md").data.eval_results is None
    main.main(["card", "fare4", "--report_model", "FARE-4"])
    said = capsys.readouterr().out
    assert "this encoder is 'FARE-4' of the report: 1 of 2 figures are its own" in said
    (result,) = ModelCard.load(saved / "README.md").data.eval_results or []
    assert result.metric_value == 0.5


def test_an_original_that_nobody_else_has_is_named_later(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 'from_pretrained("./' not in (saved / "README.md").read_text()
    main.main(["card", "fare4", "--license", "mit"])
    hint = capsys.readouterr().out.splitlines()[-1]
    assert hint.startswith(
        "the card names './tinyclip' as the original, which nobody else can load; fare-hf card fare4 "
    )
    main.main(["card", "fare4", "--base_model", "openai/clip-vit-base-patch32"])
    assert "nobody else" not in capsys.readouterr().out
    card = ModelCard.load(saved / "README.md")
    assert card.data.base_model == "openai/clip-vit-base-patch32" and card.data.license == "mit"
    assert "tinyclip" not in card.text
