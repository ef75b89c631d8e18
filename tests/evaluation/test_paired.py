"""Models compared in pairs, from rows that keep what each sample gave; the charts of a whole report."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fare_hf.attacks import ThreatModel
from fare_hf.cli import evaluate
from fare_hf.evaluation import RobustnessReport, Row, draw_report, paired_difference
from fare_hf.evaluation.report.rows import fraction_row
from fare_hf.evaluation.report.tables import markdown

NAMES = {"task": "zero-shot", "dataset": "emoji", "metric": "accuracy"}
ATTACK = {"name": "apgd-ce", "steps": 50, "restarts": 1, "seed": 0}


def rate(model: str, success: list[bool], groups: list | None = None, **changes) -> Row:
    return fraction_row(success, groups, model=model, **(NAMES | changes))


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from("abc")), min_size=1, max_size=25))
@settings(max_examples=25, deadline=None)
def test_the_difference_is_that_of_a_plain_loop(samples: list[tuple[bool, bool, str]]) -> None:
    first, second, groups = map(list, zip(*samples, strict=True))
    mean, (low, high) = paired_difference(rate("A", first, groups), rate("B", second, groups), seed=3)
    names = list(dict.fromkeys(groups))
    means = []
    for draw in np.random.default_rng(3).multinomial(len(names), [1 / len(names)] * len(names), size=2000):
        chosen = [b - a for a, b, g in samples for _ in range(draw[names.index(g)])]
        means.append(sum(chosen) / len(chosen))
    exact = (sum(second) - sum(first)) / len(samples)
    ends = np.quantile(means, [0.025, 0.975])
    assert np.allclose([mean, low, high], [exact, min(ends[0], exact), max(ends[1], exact)])


def test_reports_show_differences_and_cards_tables_do_not(tmp_path: Path) -> None:
    a, b = [True, False] * 20, [True] * 30 + [False] * 10
    old = Row(model="old", value=0.5, ci=(0.4, 0.6), n=40, **NAMES)
    report = RobustnessReport([rate("A", a), rate("B", b), rate("C", a), old, rate("D", a[:8]), rate("E", a, a)])
    text = report.to_markdown()
    assert text.startswith(markdown(report.rows).rstrip())
    low, high = paired_difference(report.rows[0], report.rows[1])[1]
    table = text.split("Difference to A in points, paired 95 % interval:\n\n")[1].splitlines()
    assert table[0] == "| model | emoji, clean |" and table[3] == "| C | +0.0 (no interval) |"
    assert table[2] == f"| B | +25.0 [{100 * low:+.1f}, {100 * high:+.1f}] |" and len(table) == 4
    report.save(tmp_path)
    assert RobustnessReport.load(tmp_path) == report
    assert report.rows[0].outcomes == "10" * 20 and report.rows[5].clusters == " ".join(["0 1"] * 20)


def test_a_report_is_drawn_as_far_as_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    threat = {"threat_model": ThreatModel("linf", "4/255"), "attack": ATTACK}
    rows = [rate(m, [True, False], dataset="a/b $x") for m in ("A", "B")]
    assert draw_report(rows, tmp_path / "none") == [] and not (tmp_path / "none").exists()
    rows.append(rate("A", [False, False], dataset="a/b $x", **threat))
    names = [path.name for path in draw_report(rows, tmp_path / "one")]
    assert names == ["curves-zero-shot-a-b-x-accuracy-linf.png"]  # B was not attacked: no bars
    rows.append(rate("B", [False, False], dataset="a/b $x", **threat))
    rows += [rate(v, [True, False], dataset=f"d made on {s}", **threat) for s in "AB" for v in "AB"]
    drawn = draw_report(rows, tmp_path / "all")
    assert [path.name.split("-")[0] for path in drawn] == ["curves", "bars", "transfer"]
    for path in drawn:
        with Image.open(path) as picture:
            assert picture.format == "PNG" and picture.width > 400
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    evaluate.draw_plots(rows, tmp_path / "without")
    assert capsys.readouterr().out == "no plots: charts need matplotlib: pip install matplotlib.\n"
    assert not (tmp_path / "without").exists()
