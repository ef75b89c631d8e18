"""Code of a stranger's repository: no command runs it, nor asks whether it may."""

from __future__ import annotations

import ast
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import tiny_llava
from helpers.hub import encoder, save
from helpers.own_code import Terminal, Trap
from PIL import Image
from transformers import AutoConfig

import fare_hf
from fare_hf import robust_pipeline
from fare_hf.cli import main as cli
from fare_hf.encoders import load_encoder
from fare_hf.pretrained.encoder_families import ENCODER_FAMILIES
from fare_hf.pretrained.foreign_code import own_code_refused

PACKAGE = Path(fare_hf.__file__).parent
EXAMPLES = PACKAGE.parent / "examples"


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Trap]:
    """Nothing of it may have run, and nobody may have been asked, when a test ends."""
    monkeypatch.setattr(sys, "stdin", Terminal("y\n" * 50))
    found = Trap(tmp_path)
    yield found
    assert not found.marker.exists()
    shown = capfd.readouterr()
    assert "[y/N]" not in shown.out + shown.err


def refusal(words: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """The one sentence a command stops with."""
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    message = str(caught.value) if isinstance(caught.value.code, str) else capfd.readouterr().err.strip()
    assert ": error: " in message and "\n" not in message and "trust_remote_code" not in message
    return message


COMMANDS = {
    "evaluate": "evaluate STRANGER --output_dir OUT",
    "convert": "convert STRANGER --output_dir OUT --to open_clip",
    "convert back": "convert STRANGER --output_dir OUT --to transformers",
    "swap": "swap STRANGER STRANGER --output_dir OUT",
    "swap encoder": "swap LLAVA STRANGER --output_dir OUT",
    "merge": "merge STRANGER STRANGER --output_dir OUT",
    "merge encoder": "merge LLAVA STRANGER --output_dir OUT",
    "train": "train --model STRANGER --dataset IMAGES --output_dir OUT --use_cpu",
    "attack": "attack STRANGER --dataset IMAGES --targets IMAGES/targets.txt --output_dir OUT",
    "estimate": "estimate --model STRANGER",
    "push": "push STRANGER me/model",
    "push with its text": "push SAVED me/model --with_text_encoder STRANGER",
    "card": "card STRANGER",
    "suite": "evaluate --suite SUITE --output_dir OUT",
}


@pytest.mark.parametrize("line", COMMANDS.values(), ids=COMMANDS)
def test_commands(
    line: str, trap: Trap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_loopbackMayWrite")
    places = {"STRANGER": trap.stranger(), "OUT": tmp_path / "out", "IMAGES": tmp_path / "images"}
    (tmp_path / "images" / "cat").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "images" / "cat" / "1.png")
    (tmp_path / "images" / "targets.txt").write_text("cat\n")
    places["SUITE"] = tmp_path / "suite.yaml"
    places["SUITE"].write_text(
        f"name: s\nmodels: {{a: {places['STRANGER']}}}\njobs: [{{kind: zero-shot, set: lab:digits, samples: 4}}]\n"
    )
    if "LLAVA" in line:
        places["LLAVA"] = tmp_path / "llava"
        tiny_llava.llava().save_pretrained(places["LLAVA"])
        tiny_llava.processor().save_pretrained(places["LLAVA"])
    if "SAVED" in line:
        places["SAVED"] = save(tmp_path / "saved")
    for name, path in places.items():
        line = line.replace(name, str(path))
    message = refusal(line.split(), capfd)
    assert "stranger" in message
    assert not any(places["OUT"].rglob("*.*"))


def test_a_known_model_with_a_processor_of_its_own(
    trap: Trap, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Swap, attack, train and the pipeline open processors too."""
    folder, model = tmp_path / "llava", tiny_llava.llava()
    model.save_pretrained(folder)
    tiny_llava.processor().save_pretrained(folder)
    encoder().save_pretrained(tmp_path / "encoder")
    for path in ("processor_config.json", "preprocessor_config.json"):
        trap.lay(folder, path, processor_class="EvilProcessor", image_processor_type="EvilProcessor")
    words = ["swap", str(folder), str(tmp_path / "encoder"), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="has code of its own, which is not run"):
        robust_pipeline(str(folder), str(tmp_path / "encoder"))
    assert "has code of its own, which is not run" in refusal(words, capfd)
    trap.lay(tmp_path / "encoder", "preprocessor_config.json", image_processor_type="EvilProcessor")
    words = ["train", "--model", str(tmp_path / "encoder"), "--dataset", str(tmp_path), "--output_dir", "out"]
    assert "has code of its own, which is not run" in refusal([*words, "--use_cpu"], capfd)


def test_a_class_of_transformers_is_loaded_without_the_code_beside_it(trap: Trap, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(save(tmp_path / "saved"), folder)
    trap.lay(folder, "config.json")
    trap.lay(folder, "preprocessor_config.json")
    loaded = load_encoder(str(folder))
    assert type(loaded).__name__ == "CLIPVisionModelWithProjection"


def test_a_caller_who_wants_code_run_is_refused(clip_folder: Path) -> None:
    with pytest.raises(ValueError, match="trust_remote_code=True is given, and code of a repository is not run here"):
        load_encoder(str(clip_folder), trust_remote_code=True)
    load_encoder(str(clip_folder), trust_remote_code=False)


def test_other_errors_pass() -> None:
    with pytest.raises(ValueError, match="^other$"), own_code_refused("x"):
        raise ValueError("other")


def _opening_calls(path: Path) -> Iterator[tuple[int, str, ast.Call]]:
    """Calls of `Auto...from_pretrained`, and of `pipeline` by a model's name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Attribute) and function.attr in ("from_pretrained", "from_config"):
            owner = ast.unparse(function.value)
            if owner.startswith("Auto") or not owner.split(".")[-1][0].isupper():
                yield node.lineno, f"{owner}.{function.attr}", node
        if isinstance(function, ast.Name) and function.id == "pipeline":
            yield node.lineno, "pipeline", node


def test_concrete_classes_are_those_of_transformers() -> None:
    for classes in (family.classes for family in ENCODER_FAMILIES):
        for cls in filter(None, classes):
            assert cls.__module__.startswith("transformers.models.") and "auto" not in cls.__module__


@pytest.mark.parametrize("folder", [PACKAGE, EXAMPLES], ids=["package", "examples"])
def test_every_call_that_opens_a_repository_says_no_to_its_code(folder: Path) -> None:
    seen = 0
    for path in sorted(folder.rglob("*.py")):
        for line, name, call in _opening_calls(path):
            given = {word.arg: word.value for word in call.keywords}
            models = [value for word, value in given.items() if word in ("model", "processor")]
            if name == "pipeline" and models and all(isinstance(value, ast.Name) for value in models):
                continue  # of objects that are loaded already
            seen += 1
            said = given.get("trust_remote_code")
            assert isinstance(said, ast.Constant) and said.value is False, f"{path}:{line} {name}"
    assert seen >= (3 if folder == PACKAGE else 1)  # one function each loads models, processors, image processors


def test_transformers_would_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """What the tests above look for does happen where the argument is left out."""
    monkeypatch.setattr(sys, "stdin", Terminal("y\n" * 5))
    found = Trap(tmp_path)
    AutoConfig.from_pretrained(found.stranger())
    assert "[y/N]" in capsys.readouterr().out and found.marker.exists()
