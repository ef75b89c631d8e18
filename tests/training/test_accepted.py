"""Nothing that a Trainer is asked for is dropped: used, looked at, or refused; and a run says what it is."""

from __future__ import annotations

import inspect
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import MISSING, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.distributed.tiny_run import RandomPixels, tiny_trainer
from helpers.paths import ROOT
from helpers.tiny_clip import tiny_clip_config
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import Trainer, TrainingArguments

from fare_hf.cli import train
from fare_hf.files.folders import LOCK, locked_folder
from fare_hf.objectives import FareObjective, TecoaObjective
from fare_hf.training import FareConfig, FareTrainer
from fare_hf.training.batches import default_workers, divide_batch
from fare_hf.training.checkpointing.manifest import fault_of
from fare_hf.training.publish import recipe, save_encoder
from fare_hf.training.trainer_options import LOOKED_AT, REFUSED, TRAINER_REFUSED, TRAINER_USED, USED, check_options

OWN = set(FareConfig.__annotations__)
KINDS: tuple[set[str], ...] = ({*REFUSED}, {*LOOKED_AT}, {*USED})


def defaults() -> dict[str, Any]:
    """Each option of the Trainer, as it is where nobody sets it."""
    return {
        option.name: option.default if option.default_factory is MISSING else option.default_factory()
        for option in fields(TrainingArguments)
    } | {"prediction_loss_only": True}


def test_every_option_of_the_trainer_has_its_place() -> None:
    """A release of transformers with a new one makes this test speak."""
    names = {option.name for option in fields(TrainingArguments) if option.init}
    placed = set.union(*KINDS)
    assert names - placed - OWN == set(), "say what becomes of these in fare_hf.training.trainer_options"
    assert placed - names == set()
    assert sum(len(kind) for kind in KINDS) == len(placed)
    parameters = set(inspect.signature(Trainer.__init__).parameters)
    assert parameters == TRAINER_USED | set(TRAINER_REFUSED)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_would_be_ignored_is_refused(name: str) -> None:
    values = defaults()
    check_options(SimpleNamespace(**values))  # type: ignore[arg-type]
    other: Any = not values[name] if isinstance(values[name], bool) else "something"
    with pytest.raises(ValueError, match=f"^{name}="):
        check_options(SimpleNamespace(**values | {name: other}))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(TRAINER_REFUSED))
def test_a_trainer_refuses_it(name: str, legacy_vision_folder: Path, tmp_path: Path) -> None:
    made = tiny_trainer(str(legacy_vision_folder), str(tmp_path))
    options = {"model": made.model, "args": made.args, "processing_class": made.processing_class}
    value: Any = (torch.optim.SGD(made.model.parameters()), None) if name == "optimizers" else object()
    with pytest.raises(ValueError, match=f"^{name}= "):
        FareTrainer(train_dataset=RandomPixels(), **options, **{name: value})
    with pytest.raises(TypeError, match="no argument 'optimisers'"):
        FareTrainer(train_dataset=RandomPixels(), **options, optimisers=None)


@pytest.mark.parametrize(
    ("metric", "greater"),
    [("attack_gain", False), ("loss", False), ("eval_robust_accuracy", True), ("cosine_adversarial", True)],
)
def test_the_best_is_the_best(metric: str, greater: bool, tmp_path: Path) -> None:
    options: dict[str, Any] = {"use_cpu": True, "eval_strategy": "steps", "eval_steps": 2}
    assert FareConfig(str(tmp_path), metric_for_best_model=metric, **options).greater_is_better is greater
    with pytest.raises(ValueError, match="would keep the worst checkpoint"):
        FareConfig(str(tmp_path), metric_for_best_model=metric, greater_is_better=not greater, **options)


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 512))
def test_an_update_is_divided_into_equal_parts(processes: int, each: int, whole: int) -> None:
    try:
        found, part, accumulation = divide_batch(whole, each, 1, processes)
    except ValueError as error:
        assert whole % processes and f"global_batch_size={whole} does not divide" in str(error)
        return
    assert found == whole == part * accumulation * processes and 1 <= part <= each


def test_eight_processes_train_by_the_same_recipe() -> None:
    assert divide_batch(None, None, 1, 1) == (128, 128, 1)
    assert divide_batch(None, None, 1, 8) == (128, 16, 1)
    assert divide_batch(None, 128, 1, 8) == (None, 128, 1)  # said at the start
    with pytest.raises(ValueError, match="do not make global_batch_size=128"):
        divide_batch(128, 16, 2, 8)


def test_a_run_says_what_it_is(legacy_vision_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"max_steps": 2, "global_batch_size": 6, "per_device_train_batch_size": 3}
    tiny_trainer(str(legacy_vision_folder), str(tmp_path), **options).train()
    said = capsys.readouterr().out
    for line in (
        "device     CPU, 1 process\n",
        "update     6 images = 1 x 3 x 2 (processes x images at a time x batches), by global_batch_size; the paper's",
        "precision  fp32 (default)\n",
        "compile    no\n",
        "images     resized by pil, read by each process\n",
        "recipe     fare, projected embedding, linf 4/255, PGD with 2 steps of 2/255\n",
        "steps      2 updates, learning rate 0.001 (cosine, warm-up 0)\n",
    ):
        assert line in said, (line, said)


@pytest.mark.slow
def test_what_a_stale_configuration_of_accelerate_brings_is_said(legacy_vision_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nmixed_precision: bf16\nuse_cpu: true\n"
        "num_processes: 1\nnum_machines: 1\nmachine_rank: 0\nmain_training_function: main\ndebug: false\n"
    )
    images = tmp_path / "images"
    images.mkdir()
    for number in range(4):
        Image.new("RGB", (40, 40), (number * 60, 0, 0)).save(images / f"{number}.png")
    words = f"-m accelerate.commands.launch -m fare_hf.train --model {legacy_vision_folder} --dataset {images}"
    words += (
        f" --output_dir {tmp_path / 'out'} --max_steps 1 --attack_steps 1 --per_device_train_batch_size 2 --use_cpu"
    )
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "HF_HOME": str(tmp_path), "PYTHONPATH": paths}
    found = subprocess.run([sys.executable, *words.split()], capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr[-2000:]
    assert "precision  bf16 (from accelerate launch" in found.stdout and "default_config.yaml" in found.stdout


class Furthest(FareObjective):
    """The distance of the worst coordinate alone.

    Only for this test.
    """


@pytest.mark.parametrize("name", ["tecoa", "Furthest"])
def test_what_is_recorded_is_the_objective_that_ran(name: str, legacy_vision_folder: Path, tmp_path: Path) -> None:
    """`args.objective` says "fare" in both."""
    texts = torch.nn.functional.normalize(torch.randn(3, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    objective = TecoaObjective(texts, 100.0) if name == "tecoa" else Furthest()
    trainer = tiny_trainer(str(legacy_vision_folder), str(tmp_path / "out"), objective=objective, max_steps=1)
    assert trainer.args.objective == "fare"
    trainer.train()
    assert recipe(trainer)["objective"] == trainer.identity["objective"] == name
    save_encoder(trainer, tmp_path / "encoder")
    card = (tmp_path / "encoder" / "README.md").read_text()
    assert name.lower() in card.lower() and "without labels" not in card and "no labels" not in card
    assert name == "tecoa" or "The distance of the worst coordinate alone." in card


class Nameless:
    """What a user writes who inherits nothing: two methods."""

    logit_scale = 50.0

    def targets(self, pixels: torch.Tensor, labels: Any, embed_original: Any) -> torch.Tensor:
        with torch.no_grad():
            return embed_original(pixels)

    def __call__(self, embeddings: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (embeddings - targets).square().sum(-1)


def test_an_own_objective_that_inherits_nothing_is_recorded(legacy_vision_folder: Path, tmp_path: Path) -> None:
    options: Any = {"objective": Nameless(), "max_steps": 1}
    trainer = tiny_trainer(str(legacy_vision_folder), str(tmp_path / "out"), **options)
    trainer.train()
    assert recipe(trainer)["objective"] == "Nameless" and recipe(trainer)["logit scale"] == 50
    save_encoder(trainer, tmp_path / "encoder")
    assert "What a user writes who inherits nothing" in (tmp_path / "encoder" / "README.md").read_text()


def test_two_runs_in_one_folder(legacy_vision_folder: Path, tmp_path: Path) -> None:
    trainer = tiny_trainer(str(legacy_vision_folder), str(tmp_path / "out"), max_steps=1)
    with locked_folder(tmp_path / "out", "a training"):
        with pytest.raises(ValueError, match="a training that is still running writes to '.*out'"):
            trainer.train()
    trainer.train()
    assert not (tmp_path / "out" / LOCK).exists()


def command(model: Path, images: Path, output: Path, *more: str) -> list[str]:
    """Words of a training of two steps."""
    words = f"--model {model} --dataset {images} --output_dir {output} --attack_steps 1 --warmup_steps 0 --use_cpu"
    return [*words.split(), "--per_device_train_batch_size", "2", "--disable_tqdm", "true", *more]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four images of one colour each."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (40, 40), (number * 60, 0, 0)).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "galore_adamw", "lomo"])
def test_an_optimizer_without_its_library_is_one_sentence(
    optimizer: str, legacy_vision_folder: Path, images: Path, tmp_path: Path
) -> None:
    words = command(legacy_vision_folder, images, tmp_path / "out", "--max_steps", "1", "--optim", optimizer)
    with pytest.raises(SystemExit) as stopped:
        train.main(words)
    said = str(stopped.value)
    assert said.startswith("fare_hf.train: error: ") and "\n" not in said and "not foreseen" not in said, said


def test_ctrl_c_in_a_training_says_how_to_go_on(
    legacy_vision_folder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a process of its own, by a real signal, after the first checkpoint."""
    more = ["--max_steps", "100000", "--save_strategy", "steps", "--save_steps", "5"]
    words = command(legacy_vision_folder, images, tmp_path / "out", *more)
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(
        [sys.executable, "-m", "fare_hf.train", *words],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 120
    while fault_of(tmp_path / "out" / "checkpoint-5") is not None:  # the Trainer's state comes after the manifest
        assert running.poll() is None and time.monotonic() < until, running.communicate()[1]
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    said = running.communicate(timeout=60)[1]
    assert running.returncode == 130, said
    assert "Traceback" not in said, said
    assert "interrupted; the same command with --resume_from_checkpoint latest goes on from checkpoint-" in said


@pytest.mark.parametrize(
    "words",
    [
        "--eval_split test",
        "--eval_images 4",
        "--eval_steps 5",
        "--label_column label",
        "--class_names a b",
        "--text_model elsewhere",
        "--shuffle_buffer 5",
        "--eval_delay 5",
        "--per_device_eval_batch_size 3",
        "--hub_model_id me/fare",
        "--hub_strategy every_save",
        "--hub_revision other",
        "--save_steps 7 --save_strategy no",
        "--save_steps 7 --save_strategy epoch",
        "--save_total_limit 3 --save_strategy no",
        "--streaming --train_sampling_strategy sequential",
    ],
)
def test_an_option_that_nothing_reads_is_refused_before_weights_are(words: str, images: Path, tmp_path: Path) -> None:
    """The model is a configuration without weights: whatever reads them fails otherwise."""
    tiny_clip_config().save_pretrained(tmp_path / "clip")
    option = words.removeprefix("--streaming ").split()[0].removeprefix("--")
    with pytest.raises(SystemExit, match=f"{option}=.* is not read: .*; leave it out, or change that"):
        train.main(command(tmp_path / "clip", images, tmp_path / "out", "--max_steps", "1", *words.split()))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--eval_split train --eval_strategy epoch --class_names a b", "class_names=.* needs an --eval_split with"),
        ("--dataset lab:drawings --eval_split fxemoji --eval_strategy epoch --templates {}.", "templates=.* not read"),
    ],
)
def test_names_that_no_evaluation_reads_are_refused(
    words: str, message: str, clip_folder: Path, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "flat").mkdir()
    for number, path in enumerate(sorted(images.rglob("*.png"))):
        shutil.copy(path, tmp_path / "flat" / f"{number}.png")
    with pytest.raises(SystemExit, match=message):
        train.main(command(clip_folder, tmp_path / "flat", tmp_path / "out", "--max_steps", "1", *words.split()))


@pytest.mark.parametrize("limit", [60_000, 200_000])
def test_a_full_disk_is_one_sentence(limit: int, legacy_vision_folder: Path, images: Path, tmp_path: Path) -> None:
    """A real failure to write: the weights do not fit, or the optimizer's state does not."""
    more = ["--max_steps", "2", "--save_strategy", "steps", "--save_steps", "1"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(SystemExit) as stopped:
            train.main(command(legacy_vision_folder, images, tmp_path / "out", *more))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = str(stopped.value)
    assert said.startswith("fare_hf.train: error: ") and "\n" not in said and "not foreseen" not in said, said
    assert not (tmp_path / "out" / "encoder").exists()


def test_images_resized_by_another_library_make_another_run(legacy_vision_folder: Path, tmp_path: Path) -> None:
    """Pixels differ by up to 2/255; a checkpoint from before this was recorded can still be resumed."""
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    tiny_trainer(str(legacy_vision_folder), str(tmp_path), **options).train()
    resumed = tiny_trainer(str(legacy_vision_folder), str(tmp_path), **options)
    resumed.identity["processor.backend"] = "torchvision"
    with pytest.raises(ValueError, match="processor.backend 'pil' there and 'torchvision' here"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    manifest = tmp_path / "checkpoint-1" / "fare_checkpoint.json"
    record = json.loads(manifest.read_text())
    del record["run"]["processor.backend"]
    manifest.write_text(json.dumps(record))
    assert resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1")).global_step == 2


@pytest.mark.parametrize(("cores", "processes", "workers"), [(2, 1, 1), (1, 1, 0), (12, 1, 8), (96, 8, 8), (32, 8, 2)])
def test_images_are_read_by_cores_that_are_free(
    cores: int, processes: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(cores))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert default_workers(use_cpu=False) == workers
    assert default_workers(use_cpu=True) == 0


def test_arguments_say_where_a_trainer_goes_on(legacy_vision_folder: Path, tmp_path: Path) -> None:
    """`Trainer` leaves `resume_from_checkpoint` of its arguments to scripts, and starts anew."""
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    tiny_trainer(str(legacy_vision_folder), str(tmp_path), **options).train()
    again = tiny_trainer(str(legacy_vision_folder), str(tmp_path), **options, resume_from_checkpoint="latest")
    steps: list[int] = []
    again.model.register_forward_hook(lambda *_: steps.append(again.state.global_step))
    assert again.train().global_step == 2 and not steps
