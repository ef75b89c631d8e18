"""Recipes and `fare-hf estimate`."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.paths import EXAMPLES

from fare_hf.cli.estimate import main
from fare_hf.cli.main import main as cli
from fare_hf.cli.recipe_files import expand_config
from fare_hf.cli.train import main as train
from fare_hf.training import FareConfig
from fare_hf.training.estimate import SHAPES, estimate

RECIPES = EXAMPLES / "recipes"
BACKBONES = ("vit-b-32", "vit-b-16", "vit-l-14", "vit-l-14-336", "vit-h-14")
ATTACKS = ("fare-2", "fare-4", "tecoa-2", "tecoa-4")


def files(*names: str) -> list[str]:
    """`--config` with recipes."""
    return ["--config", *(str(RECIPES / f"{name}.yaml") for name in names)]


@pytest.mark.parametrize(("backbone", "attack"), itertools.product(BACKBONES, ATTACKS))
def test_every_recipe_is_estimated_and_fits_24_gb(
    backbone: str, attack: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*files(backbone, attack), "--gpus", "H100"])
    said = capsys.readouterr().out
    assert "2,560,000 images" in said and "1 x H100: " in said and "at an MFU of 29% (assumed)" in said
    assert float(said.split("memory of a process: ")[1].split(" GB")[0]) < 0.9 * 24


def test_the_papers_run_is_ten_exaflop(capsys: pytest.CaptureFixture[str]) -> None:
    cli(["estimate", *files("vit-l-14", "fare-4"), "--num_processes", "8", "--gpus", "A100", "--mfu", "0.5"])
    said = capsys.readouterr().out
    assert "10.1 EFLOP" in said and "8 x A100: 2.3 hours at an MFU of 50%" in said
    assert set(SHAPES) == {next(iter(_model(name))) for name in BACKBONES}


@pytest.mark.parametrize(("recipe", "part"), [("fare-4-half", 0.5), ("fare-4-tenth", 0.1)])
def test_cheaper_recipes_cost_the_part_that_they_name(
    recipe: str, part: float, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for attack in ("fare-4", recipe):
        main([*files("vit-l-14", attack), "--gpus", "H100"])
        found.append(float(capsys.readouterr().out.split(" EFLOP")[0].split()[-1]))
    assert found[1] / found[0] == pytest.approx(part, rel=0.02)


def test_memory_is_of_what_a_process_takes_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    """128 images among four processes, in four parts each: 8 at a time, as in a training of 32 with one process."""
    model, peaks = "openai/clip-vit-large-patch14", []
    for batch, processes in (("128", "4"), ("32", "1")):
        words = ["--global_batch_size", batch, "--gradient_accumulation_steps", "4", "--num_processes", processes]
        main(["--model", model, *words])
        peaks.append(capsys.readouterr().out.split("activations ")[1].splitlines()[0])
    main(["--model", model, "--per_device_train_batch_size", "8", "--num_processes", "4"])
    assert peaks == [capsys.readouterr().out.split("activations ")[1].splitlines()[0]] * 2


def test_a_configuration_that_was_changed_or_copied_is_estimated_as_it_is(tmp_path: Path) -> None:
    changed = FareConfig(str(tmp_path), global_batch_size=64, max_steps=10, use_cpu=True)
    changed.global_batch_size = changed.per_device_train_batch_size = 256
    copied = replace(FareConfig(str(tmp_path), gradient_accumulation_steps=4, use_cpu=True), max_steps=10)
    model = "openai/clip-vit-base-patch32"
    assert [estimate(model, config, 4).images for config in (changed, copied)] == [2560, 1280]


def _model(name: str) -> list[str]:
    lines = (RECIPES / f"{name}.yaml").read_text().splitlines()
    return [line.removeprefix("model: ") for line in lines if line.startswith("model: ")]


def test_what_is_asked_wrongly_is_one_sentence(tmp_path: Path) -> None:
    for words, message in (
        (["--gpus", "Abacus"], "gpus='Abacus' is not known"),
        (["--mfu", "3"], "give an MFU in"),
        (["--max_steps", "-1"], "counts epochs"),
        (["--model", "no/model"], "known without a network"),
        (["--num_processes", "3"], "global_batch_size=128 does not divide among 3 processes"),
        (["--trained_blocks", "99"], "but the encoder has 12 blocks"),
    ):
        with pytest.raises(SystemExit) as caught:
            main([*files("vit-b-32", "fare-2"), *words])
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_fp32_takes_its_own_peak_and_shares_of_steps_are_shares(capsys: pytest.CaptureFixture[str]) -> None:
    said = {}
    for name, more in (("half", ["--bf16"]), ("fp32", []), ("tenths", ["--eval_steps", "0.1"])):
        words = ["--model", "openai/clip-vit-large-patch14", "--gpus", "H100", "--eval_strategy", "steps"]
        main([*words, *(more if "--eval_steps" in more else [*more, "--eval_steps", "2000"])])
        said[name] = capsys.readouterr().out
    hours = {name: float(text.split("1 x H100: ")[1].split(" hours")[0]) for name, text in said.items()}
    assert hours["fp32"] / hours["half"] == pytest.approx(989.5 / 67, rel=0.02)
    assert "in fp32 (--bf16 is" in said["fp32"] and "in half precision" in said["half"]
    assert said["tenths"].split("evaluations")[1] == said["fp32"].split("evaluations")[1]


def test_a_file_after_an_equals_sign_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.yaml").write_text("model: openai/clip-vit-base-patch32\neps: 2/255\n")
    assert expand_config([f"--config={tmp_path / 'one.yaml'}"], {"model", "eps"})[1] == "--eps=2/255"
    main([f"--config={tmp_path / 'one.yaml'}"])
    assert "88 M parameters" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--gpus", "H100"])
    assert capsys.readouterr().err.startswith("fare-hf: error: ")


def test_the_command_line_and_later_files_win(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("eps: 2/255\nbf16: true\nclass_names: [a, b]\nseed: null\n")
    (tmp_path / "two.yaml").write_text("eps: 4/255\n")
    words = ["--seed", "1", "--config", str(tmp_path / "one.yaml"), str(tmp_path / "two.yaml"), "--eps", "8/255"]
    found = expand_config(words, {"eps", "bf16", "class_names", "seed"})
    expected = [
        "--eps=2/255",
        "--bf16=true",
        "--class_names",
        "a",
        "b",
        "--eps=4/255",
        "--seed",
        "1",
        "--eps",
        "8/255",
    ]
    assert found == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epz: 4/255", "has the option 'epz', which does not exist; did you mean eps?"),
        ("lora_rank: 8", "has 'lora_rank', an option that was removed because it did not pay"),
        ("- eps", "holds no options"),
        ("a: [", "is not YAML"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_file_is_refused(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "file.yaml").write_text(text)
    with pytest.raises(SystemExit) as caught:
        train(["--config", str(tmp_path / "file.yaml"), "--output_dir", str(tmp_path / "out")])
    assert message in str(caught.value) and "\n" not in str(caught.value)
