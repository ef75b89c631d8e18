"""Reports, tables, intervals, the environment: numbers against independent implementations, faults refused."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fare_hf.attacks import ThreatModel
from fare_hf.evaluation import (
    RobustnessReport,
    Row,
    bootstrap_interval,
    environment,
    fraction_interval,
    wilson_interval,
)
from fare_hf.evaluation.report.rows import fraction_row
from fare_hf.evaluation.report.tables import html_tables, markdown
from fare_hf.files.credentials import mask_secrets

ROOT = Path(__file__).parents[2]
ATTACK = {"name": "apgd-ce", "steps": 50, "restarts": 1, "seed": 0}


def row(**changes) -> dict:
    fields = {"model": "CLIP", "task": "zero-shot", "dataset": "emoji", "metric": "accuracy"}
    fields |= {"value": 0.5, "ci": [0.4, 0.6], "n": 100, "threat_model": None, "attack": None}
    return fields | changes


def report_of(*rows: object) -> RobustnessReport:
    return RobustnessReport.from_dict({"schema_version": "1.0", "rows": list(rows), "environment": {}})


def rows() -> list[dict]:
    four, two = {"norm": "linf", "eps": "4/255"}, {"norm": "linf", "eps": "2/255"}
    return [
        row(model=model, dataset=dataset, value=value, ci=[value - 0.25, value + 0.25], **extra)
        for model, value in (("CLIP", 0.25), ("FARE | 4", 0.5))
        for dataset in ("emoji", "digits")
        for extra in ({"threat_model": four, "attack": ATTACK}, {}, {"threat_model": two, "attack": ATTACK})
    ]


@given(
    st.integers(1, 2000), st.floats(0, 1), st.sampled_from([(0.8, 1.2815516), (0.95, 1.9599640), (0.99, 2.5758293)])
)
@settings(max_examples=60, deadline=None)
def test_wilson_ends_solve_the_score_equation(n: int, share: float, level: tuple[float, float]) -> None:
    k, (confidence, z) = round(share * n), level
    low, high = wilson_interval(k, n, confidence)
    for p in (low, high):
        if 0 < p < 1:
            assert math.isclose(abs(k / n - p), z * math.sqrt(p * (1 - p) / n), rel_tol=1e-5, abs_tol=1e-9)
    assert 0 <= low <= k / n <= high <= 1 and low < high


def test_wilson_published_example() -> None:
    # Newcombe 1998, table I: 81 of 263 and 15 of 148, method 3
    assert np.allclose(wilson_interval(81, 263), (0.2553, 0.3662), atol=5e-5)
    assert np.allclose(wilson_interval(15, 148), (0.0624, 0.1605), atol=5e-5)
    assert wilson_interval(0, 20)[0] == 0.0 and math.isclose(wilson_interval(0, 20)[1], 0.1611, abs_tol=5e-5)


def test_bootstrap_equals_a_plain_loop() -> None:
    values, groups = [1, 0, 1, 1, 0, 0, 1, 0, 0], ["a", "a", "b", "b", "b", "c", "c", "d", "d"]
    draws = np.random.default_rng(7).multinomial(4, [0.25] * 4, size=500)
    means = []
    for draw in draws:
        chosen = [v for v, g in zip(values, groups, strict=True) for _ in range(draw["abcd".index(g)])]
        means.append(sum(chosen) / len(chosen))
    expected = np.quantile(means, [0.025, 0.975])
    assert np.allclose(bootstrap_interval(values, groups, seed=7, resamples=500), expected)


def test_groups_that_agree_inside_widen_the_interval() -> None:
    values = [float(i % 2) for i in range(10) for _ in range(20)]
    groups = [i for i in range(10) for _ in range(20)]
    low, high = bootstrap_interval(values, groups)
    narrow = bootstrap_interval(values)
    assert high - low > 2 * (narrow[1] - narrow[0])
    assert (low, high) == bootstrap_interval(values, [f"g{group}" for group in groups])


def test_bootstrap_of_independent_samples_is_the_normal_interval() -> None:
    values = np.random.default_rng(0).random(200)
    half = 1.96 * values.std() / math.sqrt(200)
    expected = (values.mean() - half, values.mean() + half)
    assert np.allclose(bootstrap_interval(values, resamples=4000), expected, atol=0.004)


def test_agreement_of_all_samples_leaves_room() -> None:
    assert fraction_interval([False] * 40, list(range(4)) * 10) == wilson_interval(0, 4)
    assert fraction_interval([True] * 40) == wilson_interval(40, 40)


def test_round_trip_is_exact_and_deterministic(tmp_path: Path) -> None:
    report = RobustnessReport(report_of(*rows()).rows, environment("fare-hf evaluate", seed=3))
    file = report.save(tmp_path / "new")
    again = RobustnessReport.load(tmp_path / "new")
    assert again == report == RobustnessReport.load(file)
    shuffled = RobustnessReport([Row.from_dict(dict(reversed(r.items()))) for r in rows()], report.environment)
    assert shuffled.to_json() == report.to_json()
    content = json.loads(file.read_text())
    assert content["schema_version"] == "1.0"
    assert list(content["rows"][0])[:9] == "model task dataset metric value ci n threat_model attack".split()
    assert (tmp_path / "new" / "report.md").read_text() == report.to_markdown()


def test_markdown_is_a_line_per_model_and_a_column_per_radius() -> None:
    lines = report_of(*rows()).to_markdown().splitlines()
    assert lines[0] == "### zero-shot: accuracy"
    head = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert head[:4] == ["model", "emoji, clean", "emoji, linf 2/255", "emoji, linf 4/255"]
    assert head[4:] == ["digits, clean", "digits, linf 2/255", "digits, linf 4/255"]
    assert lines[4].startswith("| CLIP | 25.0 [0.0, 50.0] |") and lines[5].startswith(r"| FARE \| 4 |")
    assert "apgd-ce, 50 steps, restarts 1, seed 0" in lines[7] and "n = 100 (emoji)" in lines[7]
    assert RobustnessReport([]).to_markdown() == ""


def test_a_notebook_shows_no_robust_figure_without_its_attack() -> None:
    shown = report_of(*rows())._repr_html_()
    assert "n = 100 (emoji), n = 100 (digits). Attack: apgd-ce, 50 steps, restarts 1, seed 0." in shown


def test_ciders_are_no_percentages() -> None:
    cider = row(task="captions", metric="CIDEr", value=1.5, ci=[1.2, 1.8])
    for report, unit in ((report_of(cider), "imes 100"), (report_of(row()), "n percent")):
        assert f"{unit}, with 95 % intervals" in report.to_markdown() and unit in report._repr_html_()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threat_model": {"norm": "linf", "eps": "4/255"}}, "a robust row has both"),
        ({"attack": ATTACK}, "a robust row has both"),
        ({"value": float("nan")}, "fractions"),
        ({"value": 61.1}, "fractions"),
        ({"value": True}, "fractions"),
        ({"ci": [0.6, 0.7]}, "does not contain"),
        ({"ci": [0.4]}, "ci as"),
        ({"ci": [0.4, float("inf")]}, "fractions"),
        ({"n": 0}, "at least 1"),
        ({"n": 2.0}, "at least 1"),
        ({"model": " "}, "give a name"),
        ({"seconds": float("nan")}, "finite number"),
        ({"precision": 16}, "name of a dtype"),
        ({"extra": 1}, "unknown"),
        ({"threat_model": {"norm": "linf", "eps": "4"}, "attack": ATTACK}, "did you mean 4/255"),
        ({"threat_model": {"norm": "linf", "eps": 4 / 255}, "attack": ATTACK}, "write it as"),
        ({"threat_model": {"norm": "linf"}, "attack": ATTACK}, "exactly 'norm' and 'eps'"),
        ({"threat_model": {"norm": "linf", "eps": "4/255"}, "attack": {"name": "apgd"}}, "give exactly"),
        ({"threat_model": {"norm": "linf", "eps": "4/255"}, "attack": ATTACK | {"steps": 0}}, "attack steps 0"),
        ({"threat_model": {"norm": "linf", "eps": "4/255"}, "attack": ATTACK | {"name": ""}}, "name the attack"),
    ],
)
def test_faulty_rows_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        report_of(row(), row(**{"dataset": "other"} | changes))
    with pytest.raises(ValueError, match="row 0"):
        report_of(row(**changes))


def test_missing_fields_and_repetition_are_refused() -> None:
    incomplete = row()
    del incomplete["ci"]
    with pytest.raises(ValueError, match=r"row 0 of the report lacks \['ci'\]"):
        report_of(incomplete)
    with pytest.raises(ValueError, match="row 1 .* repeats CLIP / zero-shot / emoji"):
        report_of(row(), row(value=0.45))


def test_a_report_spoilt_later_is_not_saved(tmp_path: Path) -> None:
    report = report_of(row())
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.rows[0].value = float("nan")
    report.rows += report.rows
    with pytest.raises(ValueError, match="row 1 of the report repeats"):
        report.save(tmp_path)
    assert not list(tmp_path.iterdir())
    good = RobustnessReport(report_of(row()).rows, {"load": float("nan")})
    with pytest.raises(ValueError):
        good.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_report(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        RobustnessReport.load(file)
    file.write_text("[]")
    with pytest.raises(ValueError, match="is not a robustness report"):
        RobustnessReport.load(file)
    file.write_text(json.dumps({"schema_version": "2.0", "rows": [], "environment": {}}))
    with pytest.raises(ValueError, match="'2.0' is not '1.0'"):
        RobustnessReport.load(tmp_path)
    wrong = {"None": None, "'ab'": "ab", "{'rows': 1}": {"rows": 1}}
    for said, rows_of_file in wrong.items():
        file.write_text(json.dumps({"schema_version": "1.0", "rows": rows_of_file, "environment": {}}))
        with pytest.raises(ValueError, match=f"rows of the report are {said}: give a list"):
            RobustnessReport.load(tmp_path)
    file.write_text(json.dumps({"schema_version": "1.0", "rows": [1], "environment": {}}))
    with pytest.raises(ValueError, match="row 0 of the report is 1: a row has the fields"):
        RobustnessReport.load(tmp_path)


def test_a_row_is_written_as_plain_data_and_read_again() -> None:
    made = Row(**row(threat_model=ThreatModel("linf", 4 / 255), attack=ATTACK), seconds=1.23456, precision=torch.half)
    written = made.to_dict()
    assert written["threat_model"] == {"norm": "linf", "eps": "4/255"} and written["precision"] == "float16"
    assert written["ci"] == [0.4, 0.6] and written["seconds"] == 1.23 and "outcomes" not in written
    assert written["attack"] == ATTACK and written["attack"] is not ATTACK
    assert Row.from_dict(json.loads(json.dumps(written))) == made
    for foreign in ({"value": "x"}, {"threat_model": {"norm": "linf", "eps": "4/255"}, "attack": ATTACK}):
        with pytest.raises(ValueError, match="the row has (value 'x'|threat_model .*: give a ThreatModel)"):
            Row(**row(**foreign))
    with pytest.raises(ValueError, match="row 0 of the report is .*: give a Row"):
        RobustnessReport([row()])  # type: ignore[list-item]


def test_shipped_reports_are_read_and_written_to_the_byte() -> None:
    files = sorted(ROOT.glob("fare_hf/lab/models/*/report.json"))
    assert [file.parent.name for file in files] == ["fare-2", "fare-4", "smolvlm-4", "tecoa-2", "tecoa-4"]
    files += [ROOT / "model_cards" / "lab" / name for name in ("report.json", "smolvlm.json")]
    for file in files:
        assert RobustnessReport.load(file).to_json().encode() == file.read_bytes()


def test_environment_is_plain_and_keeps_no_token() -> None:
    found = environment("fare-hf evaluate --hub_token hf_abcdefghijklmnop --model x", seed=5)
    assert found["seed"] == 5 and found["versions"]["torch"] and found["machine"]["cores"] >= 1
    assert found["command"] == "fare-hf evaluate --hub_token *** --model x"
    assert mask_secrets("--token=secret hf_0123456789") == "--token=*** ***"
    assert "seed" not in environment() and environment()["command"]
    json.dumps(found, allow_nan=False)


def test_a_notebook_shows_the_tables_and_what_names_mean() -> None:
    rows = [Row("<b>A</b>", "t", "string 0", "accuracy", value=0.5, ci=(0.25, 0.75), n=4)]
    report = RobustnessReport(rows, {"legend": {"string 0": "a *cat*"}})
    shown = report._repr_html_()
    assert "<td>&lt;b&gt;A&lt;/b&gt;</td><td>50.0 [25.0, 75.0]</td>" in shown and "<td>string 0, clean</td>" in shown
    assert report.to_markdown().endswith("\n\n- string 0: a \\*cat\\*\n")
    assert RobustnessReport(rows, {"legend": 5}).to_markdown() == RobustnessReport(rows).to_markdown()


def test_figures_without_an_interval_say_so_and_few_samples_too() -> None:
    """Where all scores are alike the bootstrap has no width: four images never captioned right prove little."""
    names: dict[str, Any] = {"model": "A", "task": "captions", "dataset": "photos"}
    few = Row(metric="CIDEr", value=0.0, ci=bootstrap_interval([0.0] * 4), n=4, scores=(0.0,) * 4, **names)
    text = markdown([few])
    assert "| 0.0 (no interval) |" in text and "[0.0, 0.0]" not in text
    for sentence in ("No interval: every draw", "less than 30 samples are too narrow", "compare it on the same ones"):
        assert sentence in text and sentence in html_tables([few])
    scores = [0.5, 1.5] * 20
    many = Row(metric="CIDEr", value=1.0, ci=bootstrap_interval(scores), n=40, **names)
    assert "too narrow" not in markdown([many]) and "no interval" not in markdown([many]).lower()
    rate = fraction_row([False] * 4, metric="accuracy", **names)  # Wilson's interval of a rate holds
    assert rate.ci[1] > 0.4 and "[0.0, 49.0]" in markdown([rate]) and "narrow" not in markdown([rate])
    grouped = fraction_row([True, False, True, True], ["one"] * 4, metric="accuracy", **names)
    assert "75.0 (no interval)" in markdown([grouped])  # one group: every draw is the same


def test_a_report_of_the_time_when_pope_was_called_yes_no_is_still_read(tmp_path: Path) -> None:
    old = Row("A", "yes-no", "pope", "F1", value=0.5, ci=(0.4, 0.6), n=40)
    RobustnessReport([old]).save(tmp_path)
    assert RobustnessReport.load(tmp_path).rows == [old]
    assert "### yes-no: F1" in RobustnessReport.load(tmp_path).to_markdown()
