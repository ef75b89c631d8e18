"""`fare-hf card`: what it says it wrote, which figures count as the encoder's own, and the name of the original."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.tiny_llava import encoder
from huggingface_hub import ModelCard
from transformers import CLIPImageProcessor

from fare_hf.attacks import ThreatModel
from fare_hf.cli import main
from fare_hf.evaluation import RobustnessReport
from fare_hf.evaluation.report.rows import fraction_row
from fare_hf.hub import rewrite_card, save_robust_encoder


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
    main.main(["card", "fare4", "--report", "report", "--report_model", "FARE-4"])
    said = capsys.readouterr().out
    assert "written in 'fare4': README.md, fare_hf.json, report.json" in said
    assert "this encoder is 'FARE-4' of the report: 1 of 2 figures are its own" in said
    card = ModelCard.load(saved / "README.md")
    assert "This encoder is the row **FARE-4**; every other row measures another model." in card.text
    (result,) = card.data.eval_results or []
    assert result.metric_value == 0.5
    main.main(["card", "fare4", "--license", "mit"])
    assert "this encoder is 'FARE-4' of the report" in capsys.readouterr().out


def test_figures_of_other_encoders_are_not_taken(saved: Path) -> None:
    """Not even where an earlier call has named the row."""
    before = (saved / "README.md").read_text()
    wanted = "which row of the report is 'fare4' is not plain, as it measures 'CLIP', 'FARE-4': name .* --report_model"
    with pytest.raises(SystemExit, match=wanted):
        main.main(["card", "fare4", "--report", "report"])
    assert (saved / "README.md").read_text() == before and not (saved / "report.json").exists()
    main.main(["card", "fare4", "--report", "report", "--report_model", "FARE-4"])
    with pytest.raises(SystemExit, match=wanted):
        main.main(["card", "fare4", "--report", "report"])


def test_figures_of_a_second_report_are_added(saved: Path) -> None:
    """The encoder's own under its newest name; a figure that is there already is replaced."""
    main.main(["card", "fare4", "--report", "report", "--report_model", "FARE-4"])
    names = {"model": "fare4", "task": "zero-shot", "metric": "accuracy"}
    rows = [fraction_row([True], dataset=dataset, **names) for dataset in ("digits", "pets")]
    RobustnessReport(rows, {"command": "second"}).save("second")
    main.main(["card", "fare4", "--report", "second"])
    own = ModelCard.load(saved / "README.md").data.eval_results or []
    assert [(one.dataset_name, one.metric_value) for one in own] == [("digits", 1.0), ("pets", 1.0)]
    stored = RobustnessReport.load("fare4")
    assert [(row.model, row.value) for row in stored.rows] == [("CLIP", 0.5), ("fare4", 1.0), ("fare4", 1.0)]
    assert stored.environment == {"command": "second", "earlier": {}}
    before = (saved / "README.md").read_text()
    with pytest.raises(SystemExit, match=r"report_model 'FARE-4' is not in the report: it measures \['fare4'\]"):
        main.main(["card", "fare4", "--report", "second", "--report_model", "FARE-4"])
    assert (saved / "README.md").read_text() == before


def test_figures_of_a_vlm_do_not_become_those_of_the_encoder_alone(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main.main(["card", "fare4", "--report", "report", "--report_model", "FARE-4"])
    names = {"task": "captions", "dataset": "pets", "metric": "CIDEr"}
    rows = [fraction_row([True], model=model, **names) for model in ("LLaVA", "LLaVA + fare4")]
    RobustnessReport(rows).save("captions")
    capsys.readouterr()
    main.main(["card", "fare4", "--report", "captions", "--report_model", "LLaVA + fare4"])
    assert "this encoder is 'FARE-4' and 'LLaVA + fare4' of the report: 2 of 4 figures" in capsys.readouterr().out
    card = ModelCard.load(saved / "README.md")
    assert "This encoder is the rows **FARE-4** and **LLaVA + fare4**; every other row measures another" in card.text
    assert [(one.dataset_name, one.metric_value) for one in card.data.eval_results or []] == [
        ("digits", 0.5),
        ("pets", 1.0),
    ]
    stored = [(row.task, row.model) for row in RobustnessReport.load("fare4").rows]
    assert stored == [
        ("zero-shot", "CLIP"),
        ("zero-shot", "FARE-4"),
        ("captions", "LLaVA"),
        ("captions", "LLaVA + fare4"),
    ]
    main.main(["card", "fare4", "--license", "mit"])  # and it is rendered again from what is stored
    assert "rows **FARE-4** and **LLaVA + fare4**" in (saved / "README.md").read_text()


def test_two_vlms_keep_their_figures(saved: Path) -> None:
    names = {"task": "captions", "dataset": "pets", "metric": "CIDEr"}
    for vlm, right in (("LLaVA", [True]), ("SmolVLM", [False]), ("LLaVA", [True, False])):
        RobustnessReport([fraction_row(right, model=f"{vlm} + fare4", **names)]).save("captions")
        main.main(["card", "fare4", "--report", "captions", "--report_model", f"{vlm} + fare4"])
        shutil.rmtree("captions")
    stored = [(row.model, row.value) for row in RobustnessReport.load("fare4").rows]
    assert stored == [("LLaVA + fare4", 0.5), ("SmolVLM + fare4", 0.0)]
    own = ModelCard.load(saved / "README.md").data.eval_results or []
    assert [one.metric_name for one in own] == ["CIDEr (LLaVA + fare4, clean)", "CIDEr (SmolVLM + fare4, clean)"]
    both = RobustnessReport(
        [fraction_row([True], model=name, **names) for name in ("LLaVA", "LLaVA + new", "SmolVLM + new")]
    )
    rewrite_card(saved, report=both, report_model=["LLaVA + new", "SmolVLM + new"])
    assert "rows **LLaVA + new** and **SmolVLM + new**; every other" in (saved / "README.md").read_text()


def test_the_row_that_has_the_encoder_s_name_is_its_own(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [replace(row, model=row.model.replace("FARE-4", "fare4")) for row in RobustnessReport.load("report").rows]
    RobustnessReport(rows).save("named")
    main.main(["card", "fare4", "--report", "named"])
    assert "this encoder is 'fare4' of the report: 1 of 2 figures are its own" in capsys.readouterr().out
    assert "This encoder is the row **fare4**" in (saved / "README.md").read_text()


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
