"""Every command and every snippet of the README runs."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.in_process import run_command
from helpers.paths import ROOT
from PIL import Image

from fare_hf import RobustnessReport
from fare_hf.lab import encoder_folder, load_llava

README = (ROOT / "README.md").read_text()
# Stand-ins for what a test cannot download, and what keeps a run of the Trainer short.
STAND_INS = {
    "openai/clip-vit-large-patch14-336": str(encoder_folder("clip")),
    "openai/clip-vit-large-patch14": str(encoder_folder("clip")),
    "imagenet-1k": "images",
    "path/to/images": "images",
    "path/to/photos": "photos",
    "outputs/quickstart/encoder": str(encoder_folder("fare-4")),
}
SHORT = {
    "fare_hf.train": "--max_steps 1 --warmup_steps 0 --per_device_train_batch_size 1 --attack_steps 1",
    "evaluate": "--samples 6 --steps 2",
    "estimate": "",
    "train": f"--model {encoder_folder('clip')} --use_cpu --max_steps 1 --warmup_steps 0 --attack_steps 1 "
    "--global_batch_size 1 --dataloader_drop_last false --dataloader_num_workers 0",
}


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_there_are_snippets() -> None:
    assert len(blocks("python")) >= 5 and len(blocks("bash")) >= 5


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_snippets_run(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(encoder_folder("fare-4"), tmp_path / "fare4" / "encoder")
    monkeypatch.chdir(tmp_path)
    snippet = blocks("python")[number]
    names = {"__name__": "__main__"} | (
        {"llava": load_llava()[0]} if 'swap_vision_tower(llava, "fare4' in snippet else {}
    )
    exec(compile(snippet, f"README.md[{number}]", "exec"), names)
    assert len(names) > 1


COMMANDS = [line for block in blocks("bash") for line in block.strip().splitlines()]
LAUNCHES = [command for command in COMMANDS if command.startswith("accelerate")]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command)
    if words[0] == "make":  # would call this very test: the CI script runs both
        assert command in (ROOT / ".ci" / "run").read_text()
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
        return
    shutil.copytree(ROOT / "examples" / "recipes", tmp_path / "examples" / "recipes")
    (tmp_path / "images").mkdir()
    Image.effect_noise((160, 160), 90).convert("RGB").save(tmp_path / "images" / "0.png")
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        shutil.copy(tmp_path / "images" / "0.png", tmp_path / "photos" / name)
    words = [STAND_INS.get(word, word) for word in words]
    words += shlex.split(next(options for key, options in SHORT.items() if key in words))
    if command == LAUNCHES[0]:  # the real program; the others in this process
        program = [str(Path(sys.executable).with_name(words[0])), *words[1:]]
        found = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
        assert found.returncode == 0, found.stderr[-3000:]
    else:
        monkeypatch.chdir(tmp_path)
        run_command(words)
    if "estimate" in words:
        return
    assert any(tmp_path.rglob("report.json" if "evaluate" in words else "model.safetensors"))


def test_the_table_is_the_shipped_report() -> None:
    table = README.split("<!-- lab-table:begin -->")[1].split("<!-- lab-table:end -->")[0]
    report = RobustnessReport.load(ROOT / "model_cards" / "lab" / "report.json")
    assert report.to_markdown().strip() in table
    assert report.environment["command"] in table


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_report_of_the_table_is_valid_json() -> None:
    report = json.loads((ROOT / "model_cards" / "lab" / "report.json").read_text())
    assert report["schema_version"] == "1.0" and len(report["rows"]) > 20
