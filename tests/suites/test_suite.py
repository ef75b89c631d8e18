"""Suites: read, run, interrupted and resumed; the command line; charts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets
import pytest
from helpers.tiny_llava import encoder, images, llava
from PIL import Image

from fare_hf import RobustnessReport
from fare_hf.attacks import ThreatModel
from fare_hf.cli import main as cli
from fare_hf.data.pixels import to_pil
from fare_hf.evaluation import Row
from fare_hf.evaluation.report.plots import paired_bars, radius_curves
from fare_hf.evaluation.vlm.metrics import VqaAccuracy
from fare_hf.evaluation.zero_shot import gradient_masking
from fare_hf.suites.settings import Attacked, Subject, Text
from fare_hf.suites.suite import load_suite, read_suite, run_suite, shipped_suites

SUITE = """
name: small
models: {CLIP: "lab:clip", FARE-4: "lab:fare-4"}
defaults: {eps: [4/255], seed: 1, samples: 6}
jobs:
  - {kind: zero-shot, set: "lab:digits", steps: 2, target_classes: 1, models: [FARE-4], masking_checks: true,
     queries: 2, surrogate: CLIP}
  - {kind: drift, set: "lab:digits", original: CLIP}
"""


def row(model: str, dataset: str, value: float = 0.5, eps: str | None = None) -> Row:
    attack = {"name": "apgd-ce", "steps": 1, "restarts": 1, "seed": 0} if eps else None
    threat = ThreatModel("linf", eps) if eps else None
    fields = {"model": model, "task": "t", "dataset": dataset, "metric": "accuracy", "value": value, "n": 4}
    return Row(ci=(0.0, 1.0), threat_model=threat, attack=attack, **fields)


@dataclass(frozen=True, kw_only=True)
class Plain(Attacked):
    """A kind of job of a test's own."""

    kind: ClassVar[str] = "k"
    set: Text = "x"


def write(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "suite.yaml").write_text(text)
    return folder / "suite.yaml"


def test_shipped_suites_are_suites() -> None:
    assert shipped_suites() == ["lab", "paper-vlm", "paper-zero-shot"]
    for name in shipped_suites():
        assert load_suite(name).name == name and len(load_suite(name).jobs) >= 6
    assert len(load_suite("paper-zero-shot").jobs) == 14
    only = load_suite("paper-zero-shot", {"mine": "path"})
    assert only.models == {"mine": "path"} and all(job.models is None for job, _ in only.jobs)


def test_interrupted_suites_go_on_and_finished_rows_are_not_run_again(tmp_path: Path) -> None:
    text = "name: s\nmodels: {A: a, B: b}\njobs: [{kind: k, set: x}, {kind: k, set: y}]\n"
    ran: list[str] = []

    class Counted(Plain):
        def run(self, subject: Subject) -> list[Row]:
            if len(ran) == 2 and not resumed:
                raise KeyboardInterrupt
            ran.append(f"{subject.model} {subject.name_or_path} {self.set}")
            return [row(subject.model, self.set)]

    resumed, kinds = False, {"k": Counted}
    suite = load_suite(write(tmp_path, text), kinds=kinds)
    with pytest.raises(KeyboardInterrupt):
        run_suite(suite, tmp_path / "out", progress=False)
    assert ran == ["A a x", "B b x"] and not (tmp_path / "out" / "report.json").exists()
    resumed = True
    report = run_suite(suite, tmp_path / "out", progress=False)
    assert ran == ["A a x", "B b x", "A a y", "B b y"] and len(report.rows) == 4
    assert RobustnessReport.load(tmp_path / "out").rows == report.rows
    run_suite(suite, tmp_path / "out", progress=False)
    assert len(ran) == 4
    changed = load_suite(write(tmp_path, text.replace("set: y", "set: y, seed: 3")), kinds=kinds)
    run_suite(changed, tmp_path / "out", progress=False)
    assert ran[4:] == ["A a y", "B b y"]


def test_a_jobs_file_depends_on_all_its_settings(tmp_path: Path) -> None:
    class Quick(Plain):
        def run(self, subject: Subject) -> list[Row]:
            return [row(subject.model, self.set)]

    for seed in range(3):
        content = {"name": "s", "models": {"A": "a"}, "jobs": [{"kind": "k", "set": "x/y", "seed": seed}]}
        run_suite(read_suite(content, kinds={"k": Quick}), tmp_path, progress=False)
    assert len(list((tmp_path / "rows").glob("A_k_x_y-*.json"))) == 3


DRIFT = "{kind: drift, set: 'lab:digits', original: CLIP}"


def test_an_error_inside_a_job_names_the_job(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Broken(Plain):
        def run(self, subject: Subject) -> list[Row]:
            raise ValueError("there are no images.")

    content = {"name": "s", "models": {"A": "lab:clip"}, "jobs": [{"kind": "k", "set": "y"}]}
    with pytest.raises(ValueError, match="the job k on 'y' with 'A': there are no images."):
        run_suite(read_suite(content, kinds={"k": Broken}), tmp_path, progress=False)


def test_corruptions_without_their_library_and_models_that_are_nowhere_are_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    job = "{kind: corruptions, set: 'lab:digits', names: [fog]}"
    suite = write(tmp_path, f"name: s\nmodels: {{CLIP: 'lab:clip'}}\njobs:\n  - {DRIFT}\n  - {job}\n")
    words = ["evaluate", "--suite", str(suite), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=r"corruptions need a library: pip install"):
        cli.main(words)
    with pytest.raises(SystemExit, match="nothing at '/no/encoder', where the model 'CLIP' should be"):
        cli.main([*words, "--models", "CLIP=/no/encoder"])
    (tmp_path / "run" / "encoder").mkdir(parents=True)
    (tmp_path / "run" / "encoder" / "config.json").write_text("{}")
    with pytest.raises(SystemExit, match="the model 'CLIP' is the folder '.*run' of a training: name '.*run/encoder'"):
        cli.main([*words, "--models", f"CLIP={tmp_path / 'run'}"])
    assert not (tmp_path / "out").exists()


TEXTS = """
name: texts
models: {CLIP: "lab:clip", FARE-4: "lab:fare-4"}
defaults: {eps: [4/255], seed: 1, samples: 4, steps: 2, models: [CLIP]}
jobs:
  - {kind: transfer, set: "lab:digits", victims: [CLIP, FARE-4]}
  - {kind: vlm, vlm: "lab:llava", set: "lab:captions"}
  - {kind: vlm, vlm: "lab:llava", set: "lab:digits"}
  - {kind: vlm, vlm: "lab:llava", set: "lab:scenes"}
  - {kind: vlm, vlm: "lab:llava", set: "lab:yes-no"}
  - {kind: vlm, vlm: "lab:llava", set: "lab:yes-no-digits"}
  - {kind: vlm, vlm: "lab:llava", set: "lab:pope", samples: 1}
  - {kind: targeted, vlm: "lab:llava", set: "lab:digits", target: a cat}
"""


def test_a_suite_asks_the_labs_llava_and_shows_images_to_other_models(tmp_path: Path) -> None:
    suite = load_suite(write(tmp_path, TEXTS))
    rows = run_suite(suite, tmp_path / "out", progress=False).rows
    found = {(row.task, row.dataset, row.metric) for row in rows}
    assert found == {
        ("transfer", "digits made on CLIP", "accuracy"),
        ("captions", "twemoji", "caption accuracy"),
        ("captions", "digits", "caption accuracy"),
        ("captions", "scenes", "things named"),
        ("vqa", "yes-no", "VQA accuracy"),
        ("vqa", "yes-no-digits", "VQA accuracy"),
        ("pope", "pope", "F1"),
        ("targeted", "digits", "target forced"),
    }
    moved = {row.model: row for row in rows if row.task == "transfer"}
    assert moved.keys() == {"CLIP", "FARE-4"} and moved["CLIP"].attack["steps"] == 2
    # The same images as those of a zero-shot run of the same attack: CLIP falls to what is made on it.
    assert moved["CLIP"].value <= moved["FARE-4"].value
    assert len(rows) == 2 + 2 * 7 and {row.n for row in rows if row.task != "pope"} == {4}


def test_shipped_suites_have_jobs_that_can_work() -> None:
    assert set(shipped_suites()) == {"lab", "paper-vlm", "paper-zero-shot"}
    for name in shipped_suites():
        load_suite(name)


@pytest.mark.slow
def test_a_killed_suite_goes_on(tmp_path: Path) -> None:
    """A real process of the command line, killed in its second job."""
    sets = {"digits": 4, "twemoji": 8, "fashion": 600}
    jobs = "\n".join(f"  - {{kind: drift, set: 'lab:{s}', samples: {n}, original: CLIP}}" for s, n in sets.items())
    suite = write(tmp_path, f"name: s\nmodels: {{CLIP: 'lab:clip'}}\njobs:\n{jobs}\n")
    words = [sys.executable, "-m", "fare_hf.cli", "evaluate", "--suite", str(suite)]
    words += ["--output_dir", str(tmp_path / "out")]
    rows = tmp_path / "out" / "rows"
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        for _ in range(6000):
            if list(rows.glob("*.json")) or process.poll() is not None:
                break
            time.sleep(0.05)
        process.kill()
    before = {path.name: path.stat().st_mtime_ns for path in rows.glob("*.json")}
    assert before and process.returncode == -signal.SIGKILL
    found = subprocess.run(words, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-2000:]
    after = {path.name: path.stat().st_mtime_ns for path in rows.glob("*.json")}
    assert len(after) == 3 and {name: after[name] for name in before} == before
    assert f"{len(before)}/3" in found.stderr  # the bar begins with what is finished
    assert len(RobustnessReport.load(tmp_path / "out").rows) == 6


def test_the_command_line_runs_a_suite_on_the_lab(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "--suite", str(write(tmp_path, SUITE)), "--output_dir", str(tmp_path / "out")]
    cli.main(words)
    report = RobustnessReport.load(tmp_path / "out")
    assert [(r.model, r.task) for r in report.rows] == [("FARE-4", "zero-shot")] * 2 + [
        ("CLIP", "clean drift"), ("CLIP", "clean drift"), ("FARE-4", "clean drift"), ("FARE-4", "clean drift")
    ]  # fmt: skip
    cosine = {r.model: r.value for r in report.rows if r.metric == "cosine to the original"}
    assert cosine["CLIP"] == pytest.approx(1.0, abs=1e-6) and cosine["FARE-4"] < cosine["CLIP"]
    checks = json.loads((tmp_path / "out" / "masking" / "FARE-4, digits, linf 4_255.json").read_text())
    assert [check["name"] for check in checks["checks"]] == ["more steps", "black box", "wide ball", "transfer"]
    assert "### clean drift" in capsys.readouterr().out
    drawn = {path.name for path in (tmp_path / "out" / "plots").iterdir()}
    assert drawn == {"curves-zero-shot-digits-accuracy-linf.png", "bars-zero-shot-digits-accuracy-linf.png"}
    for wrong, sentence in (
        (["evaluate", "--output_dir", "o"], "nothing to evaluate"),
        (["evaluate", "enc", "--suite", "lab", "--output_dir", "o"], "has its own models"),
        (["evaluate", "--suite", "lab", "--models", "x", "--output_dir", "o"], "NAME=PATH"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            cli.main(wrong)


def test_masking_checks_of_a_suite_go_on_where_they_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = "{kind: zero-shot, set: 'lab:digits', steps: 2, target_classes: 1, masking_checks: true, queries: 2}"
    text = f"name: s\nmodels: {{A: 'lab:clip'}}\ndefaults: {{eps: [4/255], samples: 4}}\njobs: [{job}]\n"
    suite, passes, clean_pass = load_suite(write(tmp_path, text)), [], gradient_masking.clean_pass

    def counted(*words: Any) -> Any:
        passes.append(1)
        return clean_pass(*words)

    def interrupted(*words: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(gradient_masking, "clean_pass", counted)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(gradient_masking, "square", interrupted)
        run_suite(suite, tmp_path / "out", progress=False)
    assert not list((tmp_path / "out" / "masking").iterdir())
    run_suite(suite, tmp_path / "out", progress=False)
    run_suite(suite, tmp_path / "whole", progress=False)
    assert len(passes) == 2  # of the two folders
    name = "A, digits, linf 4_255.json"
    found = [(tmp_path / folder / "masking" / name).read_text() for folder in ("out", "whole")]
    assert found[0] == found[1]


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


def test_a_vlm_job_goes_on_in_its_middle_and_cleans_up(
    tmp_path: Path, proc: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A LLaVA and a set on disk, interrupted at the third batch that is attacked."""
    import fare_hf.evaluation.vlm.ensemble as module

    llava().save_pretrained(tmp_path / "llava")
    proc.save_pretrained(tmp_path / "llava")  # type: ignore[attr-defined]
    encoder(seed=5).save_pretrained(tmp_path / "encoder")
    columns = {"image": to_pil(images(4)), "question": ["what ?"] * 4, "answers": [["cat"] * 3] * 4}
    datasets.DatasetDict(
        {"val2014": datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())}
    ).save_to_disk(tmp_path / "OK-VQA")
    job = (
        f"kind: vlm, set: OK-VQA, vlm: {tmp_path}/llava, root: {tmp_path}, template: 'user : <image> {{}} assistant :'"
    )
    text = f"name: s\nmodels: {{A: {tmp_path}/encoder}}\njobs: [{{{job}, eps: [8/255], steps: 2, batch_size: 2}}]\n"
    suite = load_suite(write(tmp_path, text))
    ran: list[int] = []
    original = module.apgd

    def interrupted(*words: object, **options: object) -> object:
        if len(ran) == stop:
            raise KeyboardInterrupt
        ran.append(1)
        return original(*words, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(VqaAccuracy, "threshold", -1.0)  # nobody is given up: every stage has two batches
    monkeypatch.setattr(module, "apgd", interrupted)
    stop = -1
    whole = run_suite(suite, tmp_path / "whole", progress=False)
    needed, stop = len(ran), len(ran) + 3
    with pytest.raises(KeyboardInterrupt):
        run_suite(suite, tmp_path / "out", progress=False)
    assert len(list((tmp_path / "out" / "states").glob("*/linf-*.safetensors"))) == 3
    stop = -1
    report = run_suite(suite, tmp_path / "out", progress=False)
    assert len(ran) == 2 * needed and not list((tmp_path / "out" / "states").iterdir())
    values = [[(row.metric, row.value, row.ci) for row in found.rows] for found in (whole, report)]
    assert values[0] == values[1]
