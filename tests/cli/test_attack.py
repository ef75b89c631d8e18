"""`fare-hf attack`: strings of a file forced by saved pictures, interrupted by kill -9, shown to other towers."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.in_process import run_command
from helpers.tiny_llava import encoder, images, llava, processor
from tqdm.auto import tqdm

from fare_hf import RobustnessReport
from fare_hf.cli import attack
from fare_hf.cli import main as cli
from fare_hf.data.pixels import to_pil
from fare_hf.evaluation.vlm.adversarial_images import load_exported
from fare_hf.evaluation.vlm.engine import answers_to
from fare_hf.evaluation.vlm.sets import CAPTION_QUESTION
from fare_hf.evaluation.vlm.stealth import STEALTH_TARGETS, as_sent
from fare_hf.lab.models import load_vlm_and_processor

TEMPLATE = "user : <image> {} assistant :"
FARE_HF = str(Path(sys.executable).with_name("fare-hf"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA, a folder of pictures, and strings."""
    place = tmp_path_factory.mktemp("attack")
    llava().save_pretrained(place / "llava")
    processor().save_pretrained(place / "llava")
    encoder(seed=5).save_pretrained(place / "encoder")
    (place / "pictures").mkdir()
    for number, picture in enumerate(to_pil(images(3))):
        picture.save(place / "pictures" / f"beach {number}.png")
    (place / "targets.txt").write_text("# two\nface\n\nred dog\n")
    return place


def words(place: Path, out: Path, *more: str) -> list[str]:
    """A command line that is right."""
    found = ["attack", str(place / "llava"), "--dataset", str(place / "pictures")]
    found += ["--targets", str(place / "targets.txt")]
    found += ["--template", TEMPLATE, "--question", "describe the image", "--eps", "128/255", "--output_dir", str(out)]
    return [*found, "--max_new_tokens", "4", *more]


def test_the_default_question_is_that_of_the_paper() -> None:
    assert attack.QUESTION == CAPTION_QUESTION


def test_a_picture_is_told_from_those_of_its_name_in_other_class_folders(place: Path, tmp_path: Path) -> None:
    for folder, picture in zip(("blue square", "red dot"), to_pil(images(2)), strict=True):
        (tmp_path / "classes" / folder).mkdir(parents=True)
        picture.save(tmp_path / "classes" / folder / "0.png")
    cli.main(words(place, tmp_path / "out", "--dataset", str(tmp_path / "classes"), "--steps", "1"))
    entries = load_exported(tmp_path / "out" / "target-0" / "images").entries
    assert [entry["original"] for entry in entries] == ["blue square/0.png", "red dot/0.png"]
    assert [entry["file"] for entry in entries] == ["00000-blue-square-0.png", "00001-red-dot-0.png"]


def test_the_offline_example_of_the_help_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = shlex.split(attack.EXAMPLES.splitlines()[0], comments=True)
    run_command([*example, "--samples", "1", "--steps", "2", "--output_dir", str(tmp_path / "out")])
    report = RobustnessReport.load(tmp_path / "out" / "report.json")
    assert len(report.rows) == 3 * len(STEALTH_TARGETS)
    assert all(f"- string {number}: " in report.to_markdown() for number in range(len(STEALTH_TARGETS)))


def test_attack_writes_pictures_a_report_and_goes_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = words(place, tmp_path / "out", "--steps", "30", "--victims", f"other={place / 'encoder'}")
    monkeypatch.setattr("tqdm.auto.tqdm", partial(tqdm, mininterval=1000))  # what is drawn is not drawn by the clock
    cli.main(line)
    rows = RobustnessReport.load(tmp_path / "out" / "report.json").rows
    assert [row.metric for row in rows].count("target forced by the PNG") == 4  # two strings, two towers
    assert {row.model for row in rows} == {"llava", "other"} and all(row.n == 3 for row in rows)
    assert rows[2].value > 0
    first = load_exported(tmp_path / "out" / "target-0" / "images")
    assert [entry["target"] for entry in first.entries] == ["face"] * 3
    assert [entry["original"] for entry in first.entries] == ["beach 0.png", "beach 1.png", "beach 2.png"]
    assert [entry["file"] for entry in first.entries] == [f"0000{n}-beach-{n}.png" for n in range(3)]
    vlm, proc = load_vlm_and_processor(str(place / "llava"))
    asked = {"prompt": TEMPLATE.replace("{}", "describe the image"), "batch_size": 32, "max_new_tokens": 4}
    for kind, pixels in (("answer", first.pixels), ("clean_answer", first.clean)):
        assert [entry[kind] for entry in first.entries] == answers_to(vlm, proc, as_sent(pixels, proc), **asked)
    said = capsys.readouterr()
    assert "string 0, batch 1 of 1" in said.err and "string 1, batch 1 of 1" in said.err
    assert "60/60" in said.err  # strings x batches x steps, and the time left
    for page in (said.out, (tmp_path / "out" / "report.md").read_text()):
        assert "- string 0: face\n- string 1: red dog\n" in page
    monkeypatch.setattr("fare_hf.evaluation.vlm.stealth.apgd", pytest.fail)
    cli.main(line)  # nothing is attacked again
    assert RobustnessReport.load(tmp_path / "out" / "report.json").rows == rows


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["--eps", "4"], "did you mean 4/255"),
        (["--victims", "nowhere"], "--victims nowhere: give NAME=ENCODER"),
        (["--victims", "Y=nope/x"], "nope/x"),
        (["--template", "user :"], "needs {} for the question"),
        (["--max_new_tokens", "1"], "'red dog' has 2 tokens, max_new_tokens is 1: raise it"),
        (["--split", "test"], "test"),
        (["--targets", "none.txt"], "none.txt"),
    ],
)
def test_wrong_input_is_one_sentence_before_any_attack(
    changes: list[str], sentence: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fare_hf.evaluation.vlm.stealth.apgd", pytest.fail)
    with pytest.raises(SystemExit) as end:
        cli.main(words(place, tmp_path / "out", *changes))
    message = str(end.value)
    assert message.startswith("fare-hf: error: ") and "\n" not in message and re.search(sentence, message)


def test_a_victim_that_does_not_fit_is_told_before_any_attack(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder(hidden_size=48, intermediate_size=96).save_pretrained(tmp_path / "wide")
    monkeypatch.setattr("fare_hf.evaluation.vlm.stealth.apgd", pytest.fail)
    with pytest.raises(SystemExit, match="hidden_size"):
        cli.main(words(place, tmp_path / "out", "--victims", f"wide={tmp_path / 'wide'}"))


def test_a_victim_of_a_model_of_the_lab_too(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fare_hf.evaluation.vlm.stealth.apgd", pytest.fail)
    line = ["attack", "lab:llava", "--dataset", "lab:digits", "--targets", str(place / "targets.txt")]
    with pytest.raises(SystemExit, match="SmolVLMVisionTransformer, the vision tower of .*llava' needs"):
        cli.main([*line, "--victims", "other=lab:smolvlm-4", "--output_dir", str(tmp_path / "out")])


def test_a_processor_without_a_chat_template_needs_one(place: Path, tmp_path: Path) -> None:
    line = [word for word in words(place, tmp_path / "out") if word not in ("--template", TEMPLATE)]
    with pytest.raises(SystemExit, match="LlavaProcessor has no chat template: give template"):
        cli.main(line)


@pytest.mark.slow
def test_killed_runs_end_with_the_same_pictures(place: Path, tmp_path: Path) -> None:
    """kill -9 after a saved state; the second process starts from it and ends where an unbroken one does."""
    (tmp_path / "hard.txt").write_text("bird bird face bird\n")  # stays unforced: all steps are run
    more = ["--steps", "400", "--save_every", "20", "--eps", "2/255", "--targets", str(tmp_path / "hard.txt")]
    state = tmp_path / "killed" / "target-0" / "states" / "00000.safetensors"
    process = subprocess.Popen([FARE_HF, *words(place, tmp_path / "killed", *more)])
    try:
        while not state.exists() and process.poll() is None:
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert state.exists() and not (tmp_path / "killed" / "target-0" / "images").exists()
    for name in ("killed", "whole"):
        subprocess.run([FARE_HF, *words(place, tmp_path / name, *more)], check=True, capture_output=True)
    killed, whole = (load_exported(tmp_path / name / "target-0" / "images") for name in ("killed", "whole"))
    assert torch.equal(killed.pixels, whole.pixels) and not torch.equal(whole.pixels, whole.clean)
    rows = [json.loads((tmp_path / name / "report.json").read_text())["rows"] for name in ("killed", "whole")]
    assert rows[0] == rows[1]
