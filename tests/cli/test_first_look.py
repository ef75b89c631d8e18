"""What can be refused without torch is refused before it is imported, and examples of the help can be typed."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fare_hf.cli import estimate, main, train
from fare_hf.cli.first_look import look_first
from fare_hf.cli.training_options import parse

REFUSED = {
    "app --vlm some/vlm": "--vlm some/vlm needs an --encoder",
    "swap nowhere/at/all lab:fare-4 --output_dir r": "VLM 'nowhere/at/all' is no file or folder here: check the path.",
    "swap v e --output_dir full": "the folder 'full' is not empty",
    "swap v lab:fare-9 --output_dir r": "'lab:fare-9' is not in the lab",
    "merge lab:llava lab:fare-4 --output_dir r": "lab:llava is stored in two parts",
    "merge v e --output_dir full": "the folder 'full' is not empty",
    "convert e --to open_clip --activation gelu --output_dir r": "--activation is for --to transformers",
    "convert e --to open_clip --output_dir full": "the folder 'full' is not empty",
    "push none USER/name": "'none' is no folder here",
    "card e/f/g": "ENCODER 'e/f/g' is no file or folder here",
    "card full --report none": "there is no report 'none'",
    "quickstart --output_dir full": "the folder 'full' is not empty",
    "evaluate e --eps 4 --output_dir r": "eps 4 is outside [0, 1], the range of the pixels: did you mean 4/255?",
    "evaluate ./e --output_dir r": "ENCODER './e' is no file or folder here",
    "attack v --dataset d --eps 1/x --output_dir r": "eps '1/x' is not a number",
    "attack v --dataset d --targets ./none --output_dir r": "--targets 'none' is no file here: check the path.",
    "train --model m": "--dataset and --output_dir must be given; `fare-hf train --help` shows the options.",
    "train --model m --dataset d --output_dir full": "output_dir='full' is not empty",
    "train --model m --dataset d --output_dir r --eps 4": "eps 4 is outside [0, 1]",
    "train --model m --dataset ./d --output_dir r": "--dataset './d' is no file or folder here",
    "train --model ./m --dataset d --output_dir r": "--model './m' is no file or folder here",
    "train --model m --dataset lab:x --output_dir r": "dataset='lab:x' is not in the lab",
    "train --config none.yaml": "--config 'none.yaml' is no file here: check the path.",
    "train --model m --dataset d --output_dir r --resume_from_checkpoint full": "'full' is no complete checkpoint",
}
CODE = """
import json, sys
from fare_hf.cli import main
said = {}
for words in json.loads(sys.stdin.read()):
    try:
        main.main(words.split())
    except SystemExit as end:
        said[words] = str(end)
print(json.dumps([said, [name for name in ("torch", "transformers", "datasets") if name in sys.modules]]))
"""
EXAMPLES = [
    line
    for lines in [main.EXAMPLES, train.EXAMPLES, estimate.EXAMPLES, *(c.EXAMPLES for c in main.COMMANDS.values())]
    for line in lines.splitlines()
    if line.startswith("fare-hf ") and "--help" not in line
]


def test_refusals_need_no_torch(tmp_path: Path) -> None:
    """All in one process, which ends without torch; a training's too, by either name."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    words = [sys.executable, "-c", CODE]
    found = subprocess.run(words, input=json.dumps([*REFUSED]), cwd=tmp_path, capture_output=True, text=True)
    said, heavy = json.loads(found.stdout)
    assert heavy == [] and said.keys() == REFUSED.keys()
    for words, sentence in REFUSED.items():
        assert said[words].startswith("fare-hf: error: ") and sentence in said[words], words
        assert "\n" not in said[words]
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_the_launched_module_looks_first_too(tmp_path: Path) -> None:
    words = [sys.executable, "-X", "importtime", "-m", "fare_hf.train", "--model", "m"]
    found = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    *imports, sentence = found.stderr.splitlines()
    assert sentence.startswith("fare_hf.train: error: --dataset and --output_dir must be given")
    assert len(imports) > 100 and not [line for line in imports if line.endswith("| torch")]


def test_files_of_options_may_say_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("norm: l2\n")
    look_first(["--config", str(tmp_path / "a.yaml"), "--eps", "3"], "p")
    look_first(["--help"], "p")


@pytest.mark.parametrize("line", EXAMPLES)
def test_an_example_of_the_help_can_be_typed(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, command, *words = shlex.split(line.partition(" > ")[0], comments=True)
    if command in main.OF_A_TRAINING:
        parser = (train if command == "train" else estimate).parser_of("p")
        known = {word for action in parser._actions for word in action.option_strings}
        assert {word for word in words if word.startswith("--")} <= known
        if command == "train":
            parse(parser, [*words, "--use_cpu", *(["--bf16", "false"] if "--bf16" in words else [])])
    else:
        args = main.build_parser().parse_args([command, *words])
        assert args.command == command


def test_a_word_that_is_no_option_gets_a_near_one(capsys: pytest.CaptureFixture[str]) -> None:
    """In the same words for every command."""
    for words in (["swap", "a", "b", "--output_dri", "r"], ["train", "--model", "m", "--output_dri", "r"]):
        with pytest.raises(SystemExit):
            main.main([*words, *(["--dataset", "d", "--output_dir", "x"] if words[0] == "train" else [])])
        said = capsys.readouterr().err
        assert said.startswith("fare-hf: error: ") and ("output_dir" in said)
