"""Bars of `fare-hf evaluate`: in a terminal what runs, batch by batch; in a pipe, with or without --json, none."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from helpers.in_process import run_command
from helpers.tiny_llava import images

from fare_hf.data.pixels import to_pil
from fare_hf.lab.names import MODELS

EFFORT = ["--samples", "4", "--steps", "20", "--batch_size", "2", "--eps", "4/255"]
ENCODER = ["fare-hf", "evaluate", "lab:fare-4"]


class Terminal(io.StringIO):
    """What a terminal is told."""

    def isatty(self) -> bool:
        return True


def said_in_a_terminal(words: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """All that a command writes to a terminal's standard error."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal := Terminal())
        run_command(words)
    return terminal.getvalue()


def test_an_encoder_shows_clean_batches_and_each_attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = said_in_a_terminal([*ENCODER, *EFFORT, "--output_dir", str(tmp_path / "out")], monkeypatch)
    assert "clean images:   0%" in said and "0/2" in said
    assert "linf 4/255, attack 1 of 4" in said and "linf 4/255, attack 4 of 4" in said


def test_a_pipe_gets_no_bar(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_command([*ENCODER, *EFFORT, "--json", "--output_dir", str(tmp_path / "out")])
    said = capfd.readouterr()
    assert json.loads(said.out)["rows"] and "batch" not in said.err and "%|" not in said.err


def test_a_vlm_shows_answers_and_attacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["fare-hf", "evaluate", "--vlm", "lab:llava", "--dataset", "lab:pope", "--task", "pope", "--samples", "2"]
    said = said_in_a_terminal([*words, "--steps", "2", "--output_dir", str(tmp_path / "out")], monkeypatch)
    assert "clean answers: " in said and "linf 2/255, attack 1 of" in said


def test_a_probe_shows_the_images_it_is_fitted_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "test"):
        for number, picture in enumerate(to_pil(images(2))):
            folder = tmp_path / "data" / split / f"class {number}"
            folder.mkdir(parents=True)
            picture.save(folder / "0.png")
    words = ["fare-hf", "evaluate", str(MODELS / "fare-4"), "--probe", "knn", "--dataset", str(tmp_path / "data")]
    words += ["--steps", "2", "--batch_size", "1", "--eps", "4/255", "--output_dir", str(tmp_path / "out")]
    said = said_in_a_terminal(words, monkeypatch)
    assert "training images: " in said and "clean images: " in said
