"""The real command line: `fare-hf` as a process, and what it says to wrong input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from fare_hf import cli
from fare_hf.lab import encoder_folder, load_llava

FARE_HF = str(Path(sys.executable).with_name("fare-hf"))


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs fare-hf in a process of its own."""
    return subprocess.run([FARE_HF, *words], cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize("command", [(), ("train",), ("evaluate",), ("swap",), ("push",), ("quickstart",)])
def test_help_of_every_command(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([*command, "--help"])
    assert end.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_evaluate_writes_a_report(tmp_path: Path) -> None:
    words = ["evaluate", str(encoder_folder("fare-4")), "--datasets", "digits", "--eps", "4/255"]
    words += ["--samples", "8", "--steps", "2", "--output_dir", str(tmp_path / "report")]
    cli.main(words)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    clean, robust = report["rows"]
    assert clean["threat_model"] is None and robust["threat_model"] == {"norm": "linf", "eps": "4/255"}
    assert robust["value"] <= clean["value"] and clean["n"] == 8 and robust["attack"]["steps"] == 2
    assert (tmp_path / "report" / "report.md").exists()


def test_swap_saves_a_llava_with_the_new_tower(tmp_path: Path) -> None:
    llava, processor = load_llava()
    llava.save_pretrained(tmp_path / "llava")
    processor.save_pretrained(tmp_path / "llava")
    cli.main(["swap", str(tmp_path / "llava"), str(encoder_folder("fare-4")), str(tmp_path / "robust")])
    robust = LlavaForConditionalGeneration.from_pretrained(tmp_path / "robust", dtype=torch.float32)
    AutoProcessor.from_pretrained(tmp_path / "robust")
    before, after = llava.state_dict(), robust.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("model.vision_tower.") for name in changed)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["evaluate", "CLIP", "--eps", "4", "--output_dir", "r"], "did you mean 4/255"),
        (["evaluate", "CLIP", "--datasets", "imagenet", "--output_dir", "r"], "no test set 'imagenet'"),
        (["quickstart", "--output_dir", "full"], "not an empty folder"),
        (["swap", "CLIP", "CLIP", "full"], "not empty"),
    ],
)
def test_wrong_input_is_one_sentence(words: list[str], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    words = [str(encoder_folder("clip")) if word == "CLIP" else word for word in words]
    found = run(*words, cwd=tmp_path)
    assert found.returncode == 1
    assert sentence in found.stderr.strip().splitlines()[-1]
    assert "Traceback" not in found.stderr
