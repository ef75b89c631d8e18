"""The real command line: `fare-hf` as a process, and what it says to wrong input."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.tiny_llava import encoder, llava, processor
from transformers import AutoProcessor, ChameleonConfig, FuyuConfig, LlavaForConditionalGeneration, PreTrainedConfig

from fare_hf.cli import main as cli
from fare_hf.lab import encoder_folder, load_llava
from fare_hf.lab.names import MODELS

FARE_HF = str(Path(sys.executable).with_name("fare-hf"))
CLIP = str(encoder_folder("clip"))
LLAVA = str(MODELS / "llava")
"""Its folder has no tower, which stands in CLIP's: to load it would fail."""


@pytest.mark.parametrize("command", ["", *cli.OF_A_TRAINING, *cli.COMMANDS])
def test_help_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([*command.split(), "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "usage" in said and (command or all(module.PURPOSE[:20] in said for module in cli.COMMANDS.values()))


def test_the_help_needs_no_torch() -> None:
    code = "import sys; from fare_hf.cli import main; main.build_parser().format_help(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_every_file_of_a_command_is_listed() -> None:
    """A new command is a file, and its name in `COMMANDS`."""
    files = {path.stem for path in Path(cli.__file__).parent.glob("*.py") if "PURPOSE = " in path.read_text()}
    assert files == {*cli.COMMANDS}


def test_evaluate_writes_a_report(tmp_path: Path) -> None:
    words = ["evaluate", "lab:fare-4", "--dataset", "lab:digits", "--eps", "4/255"]
    words += ["--samples", "8", "--steps", "2", "--output_dir", str(tmp_path / "report")]
    cli.main(words)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    clean, robust = report["rows"]
    assert clean["threat_model"] is None and robust["threat_model"] == {"norm": "linf", "eps": "4/255"}
    assert robust["value"] <= clean["value"] and clean["n"] == 8 and robust["attack"]["steps"] == 2
    assert (tmp_path / "report" / "report.md").exists()


@pytest.mark.parametrize("vlm", ["FOLDER", "lab:llava"])
def test_swap_saves_a_llava_with_the_new_tower(vlm: str, tmp_path: Path) -> None:
    llava, processor = load_llava()
    llava.save_pretrained(tmp_path / "llava")
    processor.save_pretrained(tmp_path / "llava")
    out = ["--output_dir", str(tmp_path / "robust")]
    cli.main(["swap", vlm.replace("FOLDER", str(tmp_path / "llava")), "lab:fare-4", *out])
    robust = LlavaForConditionalGeneration.from_pretrained(tmp_path / "robust", dtype=torch.float32)
    AutoProcessor.from_pretrained(tmp_path / "robust")
    before, after = llava.state_dict(), robust.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("model.vision_tower.") for name in changed)


def test_the_program_says_what_is_wrong_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    found = subprocess.run(
        [FARE_HF, "swap", "vlm", "encoder", "--output_dir", "full"], cwd=tmp_path, capture_output=True, text=True
    )
    assert found.returncode == 1
    assert found.stderr == (
        "fare-hf: error: the folder 'full' is not empty: name a new folder, so that nothing is overwritten.\n"
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["evaluate", "lab:clip", "--dataset", "twemoji", "--output_dir", "r"], "data set; did you mean lab:twemoji?"),
        (["evaluate", "nowhere", "--eps", "4", "--output_dir", "r"], "eps 4 is outside .* did you mean 4/255"),
        (["evaluate", "nowhere", "--eps", "-4/255", "--output_dir", "r"], "eps '-4/255' is negative"),
        (
            ["evaluate", "nowhere", "--dataset", "lab:imagenet", "--output_dir", "r"],
            "'lab:imagenet' is not in the lab.*twemoji",
        ),
        (["evaluate", "nowhere", "--output_dir", "full"], "the folder 'full' is not empty: name a new folder"),
        (["evaluate", "nowhere", "--output_dir", "r"], "'nowhere' is neither a folder with a model here"),
        (["evaluate", "full", "--output_dir", "r"], "'full' is not a vision encoder or CLIP"),
        (["evaluate", "OTHER", "--output_dir", "r"], "has embeddings of 16 numbers, the texts have 128.*text_model"),
        (
            ["evaluate", "nowhere", "--dataset", "lab:digits", "lab:digits", "--output_dir", "r"],
            "--dataset names lab:digits twice",
        ),
        (["evaluate", "nowhere", "--eps", "4/255", "8/510", "--output_dir", "r"], "--eps names linf 4/255 twice"),
        (["quickstart", "--output_dir", "full"], "the folder 'full' is not empty: name a new folder"),
        (["swap", CLIP, "OTHER", "--output_dir", "r"], "is a 'clip' model, not a vision-language model"),
        (["swap", LLAVA, "OTHER", "--output_dir", "r"], "has hidden_size 32, the vision tower of .* has 128"),
        (["swap", "full", CLIP, "--output_dir", "r"], "'full' is not a vision-language model"),
        (["swap", "lab:llama", CLIP, "--output_dir", "r"], "'lab:llama' is not in the lab; use one of lab:llava"),
        (["swap", "v", "lab:fare-9", "--output_dir", "r"], "'lab:fare-9' is not .*lab:clip, lab:fare-2, lab:fare-4"),
        (
            ["merge", "lab:llava", "lab:fare-4", "--output_dir", "r"],
            "lab:llava is stored in two parts.*fare-hf swap",
        ),
        (["attack", "lab:llava", "--dataset", "lab:x", "--output_dir", "r"], "--dataset 'lab:x' is not .*lab:digits"),
        (["convert", "lab:x", "--to", "open_clip", "--output_dir", "r"], "'lab:x' is not in the lab"),
        (["swap", "nowhere", CLIP, "--output_dir", "r"], "'nowhere' is neither a folder with a model here"),
    ],
)
def test_wrong_input_is_one_sentence_before_any_work(
    words: list[str], sentence: str, legacy_vision_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model `nowhere` is not there: what is said of something else is said before it is looked for."""
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full", "file").touch()
    with pytest.raises(SystemExit) as end:
        cli.main([str(legacy_vision_folder) if word == "OTHER" else word for word in words])
    message = str(end.value)
    assert message.startswith("fare-hf: error: ") and "\n" not in message
    assert re.search(sentence, message)
    assert not Path("r").exists()


def test_counts_below_one_are_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--steps", "--samples"):
        with pytest.raises(SystemExit):
            cli.main(["evaluate", CLIP, "--output_dir", "r", option, "0"])
        assert f"argument {option}: '0' is no whole number of at least 1" in capsys.readouterr().err


def test_a_seed_below_zero_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "nowhere", "--output_dir", "r", "--seed", "-1"])
    assert "argument --seed: '-1' is no whole number of at least 0" in capsys.readouterr().err


def test_the_folder_one_stands_in_has_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(encoder_folder("fare-4"))
    words = ["--dataset", "lab:digits", "--samples", "2", "--steps", "1", "--eps", "4/255"]
    for number, folder in enumerate((".", "../fare-4")):
        out = tmp_path / str(number)
        cli.main(["evaluate", folder, *words, "--output_dir", str(out)])
        assert json.loads((out / "report.json").read_text())["rows"][0]["model"] == "fare-4"


def swap_words(folder: Path) -> list[str]:
    return ["swap", str(folder / "llava"), str(folder / "encoder"), "--output_dir", str(folder / "robust")]


def test_swap_without_a_processor_writes_nothing(tmp_path: Path) -> None:
    llava().save_pretrained(tmp_path / "llava")
    encoder().save_pretrained(tmp_path / "encoder")
    with pytest.raises(SystemExit, match="fare-hf: error: .*processor"):
        cli.main(swap_words(tmp_path))
    assert not (tmp_path / "robust").exists()


@pytest.mark.parametrize("config", [ChameleonConfig, FuyuConfig])
def test_swap_says_which_models_have_no_tower(config: type[PreTrainedConfig], tmp_path: Path) -> None:
    config().save_pretrained(tmp_path)
    with pytest.raises(
        SystemExit, match=f"the tower of a {config.__name__} cannot be swapped: it has no vision tower"
    ):
        cli.main(["swap", str(tmp_path), CLIP, "--output_dir", str(tmp_path / "robust")])


def test_swap_refuses_by_the_configurations_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers too few, before gigabytes are read."""
    llava().save_pretrained(tmp_path / "llava")
    processor().save_pretrained(tmp_path / "llava")
    encoder(num_hidden_layers=1).save_pretrained(tmp_path / "encoder")
    monkeypatch.setattr("transformers.AutoModelForImageTextToText.from_pretrained", pytest.fail)
    with pytest.raises(SystemExit, match="has num_hidden_layers 1, the vision tower of '.*llava' has"):
        cli.main(swap_words(tmp_path))
