"""Suites: read, run, interrupted and resumed; the command line; charts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from fare_hf import RobustnessReport, cli
from fare_hf.attacks import ThreatModel
from fare_hf.evaluation import make_row
from fare_hf.evaluation.charts import paired_bars, radius_curves
from fare_hf.evaluation.suite import Job, load_suite, run_suite, shipped_suites

SUITE = """
name: small
models: {CLIP: "lab:clip", FARE-4: "lab:fare-4"}
defaults: {eps: [4/255], seed: 1, samples: 6}
jobs:
  - {kind: zero-shot, set: "lab:digits", steps: 2, targets: 1, models: [FARE-4], masking_checks: true, queries: 2,
     surrogate: CLIP}
  - {kind: drift, set: "lab:digits", original: CLIP}
"""


def row(model: str, dataset: str, value: float = 0.5, eps: str | None = None) -> dict:
    attack = {"name": "apgd-ce", "steps": 1, "restarts": 1, "seed": 0} if eps else None
    threat = ThreatModel("linf", eps) if eps else None
    fields = {"model": model, "task": "t", "dataset": dataset, "metric": "accuracy", "value": value, "n": 4}
    return make_row(ci=(0.0, 1.0), threat_model=threat, attack=attack, **fields)


def write(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "suite.yaml").write_text(text)
    return folder / "suite.yaml"


def test_shipped_suites_are_suites() -> None:
    assert shipped_suites() == ["lab", "paper-vlm", "paper-zero-shot"]
    for name in shipped_suites():
        assert load_suite(name).name == name and len(load_suite(name).jobs) >= 6
    assert len(load_suite("paper-zero-shot").jobs) == 14
    only = load_suite("lab", {"mine": "path"})
    assert {job.model for job in only.each()} == {"mine"}


def test_interrupted_suites_go_on_and_finished_rows_are_not_run_again(tmp_path: Path) -> None:
    text = "name: s\nmodels: {A: a, B: b}\njobs: [{kind: k, set: x}, {kind: k, set: y}]\n"
    ran: list[str] = []

    def runner(model, source, settings, models):
        if len(ran) == 2 and not resumed:
            raise KeyboardInterrupt
        ran.append(f"{model} {source} {settings['set']}")
        return [row(model, settings["set"])]

    resumed = False
    suite = load_suite(write(tmp_path, text))
    with pytest.raises(KeyboardInterrupt):
        run_suite(suite, {"k": runner}, tmp_path / "out", progress=False)
    assert ran == ["A a x", "B b x"] and not (tmp_path / "out" / "report.json").exists()
    resumed = True
    report = run_suite(suite, {"k": runner}, tmp_path / "out", progress=False)
    assert ran == ["A a x", "B b x", "A a y", "B b y"] and len(report.rows) == 4
    assert RobustnessReport.load(tmp_path / "out").rows == report.rows
    run_suite(suite, {"k": runner}, tmp_path / "out", progress=False)
    assert len(ran) == 4
    changed = load_suite(write(tmp_path, text.replace("set: y", "set: y, steps: 3")))
    run_suite(changed, {"k": runner}, tmp_path / "out", progress=False)
    assert ran[4:] == ["A a y", "B b y"]


def test_a_jobs_file_depends_on_all_its_settings() -> None:
    keys = {Job("A", "a", {"kind": "k", "set": "x/y", "seed": seed}).key for seed in range(3)}
    assert len(keys) == 3 and all("/" not in key for key in keys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "is not a suite"),
        ("name: s\njobs: []\nmodel: {}\n", "is not a suite"),
        ("name: s\nmodels: {A: a}\njobs: [{set: x}]\n", "job 0 .* has no kind"),
        ("name: s\nmodels: {A: a}\njobs: [{kind: k, models: [B]}]\n", r"for the models \['B'\]"),
        ("name: s\njobs: [{kind: k}]\n", r"\(none\)"),
        ("name: s\nmodels: {A: a}\njobs: [{kind: k, eps: [4]}]\n", "did you mean 4/255"),
    ],
)
def test_faulty_suites(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_suite(write(tmp_path, text))


def test_unknown_suites_and_kinds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither a file nor one of lab, paper-vlm, paper-zero-shot"):
        load_suite("paper")
    suite = load_suite(write(tmp_path, "name: s\nmodels: {A: a}\njobs: [{kind: k}]\n"))
    with pytest.raises(ValueError, match="kind 'k'"):
        run_suite(suite, {}, tmp_path, progress=False)


def test_the_command_line_runs_a_suite_on_the_lab(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "--suite", str(write(tmp_path, SUITE)), "--output_dir", str(tmp_path / "out")]
    cli.main(words)
    report = RobustnessReport.load(tmp_path / "out")
    assert [(r["model"], r["task"]) for r in report.rows] == [("FARE-4", "zero-shot")] * 2 + [
        ("CLIP", "clean drift"), ("CLIP", "clean drift"), ("FARE-4", "clean drift"), ("FARE-4", "clean drift")
    ]  # fmt: skip
    cosine = {r["model"]: r["value"] for r in report.rows if r["metric"] == "cosine to the original"}
    assert cosine["CLIP"] == pytest.approx(1.0, abs=1e-6) and cosine["FARE-4"] < cosine["CLIP"]
    checks = json.loads((tmp_path / "out" / "masking" / "FARE-4, digits, linf 4_255.json").read_text())
    assert [check["name"] for check in checks["checks"]] == ["more steps", "black box", "wide ball", "transfer"]
    assert "### clean drift" in capsys.readouterr().out
    for wrong, sentence in (
        (["evaluate", "--output_dir", "o"], "nothing to evaluate"),
        (["evaluate", "enc", "--suite", "lab", "--output_dir", "o"], "has its own models"),
        (["evaluate", "--suite", "lab", "--models", "x", "--output_dir", "o"], "NAME=PATH"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            cli.main(wrong)


def test_charts_are_pictures(tmp_path: Path) -> None:
    rows = [row(m, "d", v, eps) for m in ("CLIP", "FARE") for v, eps in ((0.9, None), (0.5, "2/255"), (0.2, "4/255"))]
    names = {"task": "t", "dataset": "d", "metric": "accuracy"}
    first = radius_curves(rows, tmp_path / "new" / "curves.png", **names)
    second = paired_bars(rows, tmp_path / "bars.png", threat_model=ThreatModel("linf", "4/255"), **names)
    for path in (first, second):
        with Image.open(path) as picture:
            assert picture.format == "PNG" and picture.width > 400
    with pytest.raises(ValueError, match="no rows of t / x / accuracy: there are t / d / accuracy"):
        radius_curves(rows, tmp_path / "x.png", **(names | {"dataset": "x"}))
    with pytest.raises(ValueError, match="CLIP has no linf 8/255 row"):
        paired_bars(rows, tmp_path / "x.png", threat_model=ThreatModel("linf", "8/255"), **names)
