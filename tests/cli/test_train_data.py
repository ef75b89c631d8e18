"""`python -m fare_hf.train` and its data: what cannot be read, labels, classes, which images are evaluated."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pytest
from helpers.train_command import refusal, run, unlabelled
from PIL import Image

from fare_hf.training import FareTrainer

EVALUATE = ("--eval_strategy", "steps", "--eval_steps", "3", "--eval_attack_steps", "1")
BEST = ("--metric_for_best_model", "robust_accuracy", "--load_best_model_at_end", "--save_strategy", "steps")
BEST = (*BEST, "--save_steps", "3")


def test_a_corrupt_image_is_named(clip_folder: Path, images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "corrupt"
    folder.mkdir()
    (folder / "broken.png").write_bytes((images / "cat" / "0.png").read_bytes()[:100])
    assert "broken.png) is not a readable image" in refusal(clip_folder, folder, tmp_path / "out")


def test_a_corrupt_image_is_one_sentence_from_a_loaders_worker_too(
    clip_folder: Path, images: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(images, tmp_path / "images"))
    broken = sorted(folder.rglob("*.png"))[1]
    broken.write_bytes(b"not a png")
    said = refusal(clip_folder, folder, tmp_path / "out", "--dataloader_num_workers", "1")
    assert "is not a readable image" in said and "Traceback" not in said and broken.name in said
    assert (
        "to keep this one, add --replace_corrupt; the same command with --resume_from_checkpoint latest goes" in said
    )


def test_a_run_that_a_corrupt_image_ended_goes_on_as_the_sentence_says(
    clip_folder: Path, images: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(images, tmp_path / "images"))
    first = sorted(folder.rglob("*.png"))[0]
    broken = first.with_name("z.png")
    broken.write_bytes(b"not a png")
    often = ("--save_strategy", "steps", "--save_steps", "1", "--max_steps", "8", "--seed", "6")
    often += ("--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "1")
    said = refusal(clip_folder, folder, tmp_path / "out", *often)
    assert "latest goes on from checkpoint-" in said, said
    run(clip_folder, folder, tmp_path / "out", *often, "--resume_from_checkpoint", "latest", "--replace_corrupt")
    assert (tmp_path / "out" / "encoder" / "model.safetensors").is_file()


@pytest.mark.parametrize("more", [(), ("--streaming",), ("--eval_split", "validation", "--eval_strategy", "epoch")])
def test_images_without_labels_in_splits_are_trained_on(clip_folder: Path, tmp_path: Path, more: tuple[str]) -> None:
    run(clip_folder, unlabelled(tmp_path / "images"), tmp_path / "out", *more)
    assert (tmp_path / "out" / "encoder" / "model.safetensors").is_file()


@pytest.mark.parametrize(("count", "more"), [(3, ()), (0, ()), (2, ("--streaming",))])
def test_so_many_images_are_evaluated(
    count: int, more: tuple[str], clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    inner = FareTrainer.prediction_step

    def prediction_step(trainer: FareTrainer, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        seen.extend(inputs["index"].tolist())
        return inner(trainer, model, inputs, *args, **kwargs)

    monkeypatch.setattr(FareTrainer, "prediction_step", prediction_step)
    words = ("--eval_split", "validation", "--eval_strategy", "steps", "--eval_steps", "1", "--max_steps", "1")
    images = unlabelled(tmp_path / "images")
    run(clip_folder, images, tmp_path / "out", *words, "--eval_images", str(count), *more)
    assert seen == {3: [0, 1, 2], 0: [0, 1, 2, 3], 2: [0, 2]}[count]  # spread, in a stream too


def test_labels_of_no_class_are_said_before_the_first_step(clip_folder: Path, tmp_path: Path) -> None:
    pixels = [Image.new("RGB", (32, 32), (number, 0, 0)) for number in range(4)]
    kinds = {"bad": datasets.ClassLabel(names=["cat", "dog"]), "number": datasets.Value("int64")}
    for column, labels in (("bad", [0, 1, -1, 0]), ("number", [0, 1, 2, 0]), ("bad", [0, None, 1, 0])):
        rows = {"image": pixels, column: labels}
        saved = tmp_path / f"{column}-{labels[1]}"
        features = datasets.Features({"image": datasets.Image(), column: kinds[column]})
        datasets.Dataset.from_dict(rows, features).save_to_disk(saved)
        tecoa = ("--objective", "tecoa", "--class_names", "cat", "dog", "--label_column", column)
        said = refusal(clip_folder, saved, tmp_path / "out", *tecoa)
        assert f"has {column}=2, and there are 2 classes" in said or f"has no label ({column}=" in said
        assert f"sample {labels.index(next(label for label in labels if label not in (0, 1)))} of " in said
        run(clip_folder, saved, tmp_path / f"fare-{column}-{labels[1]}")
    assert not (tmp_path / "out").exists()


def test_resuming_on_other_images_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    often = ("--save_strategy", "steps", "--save_steps", "2")
    for more in ((), ("--streaming",)):
        out = tmp_path / f"out{len(more)}"
        first, second = (unlabelled(tmp_path / f"{name}{len(more)}", 4 * n) for n, name in enumerate("ab"))
        run(clip_folder, first, out, *often, *more)
        shutil.rmtree(out / "encoder")
        resume = ("--resume_from_checkpoint", "latest", *often, *more)
        assert "is of another run: data '" in refusal(clip_folder, second, out, *resume)
        shutil.copytree(clip_folder, tmp_path / "wide", dirs_exist_ok=True)
        path = tmp_path / "wide" / "preprocessor_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"size": {"shortest_edge": 64}}))
        wide = ("--image_processor", str(tmp_path / "wide"))
        assert "processor.size" in refusal(clip_folder, first, out, *resume, *wide)
        run(clip_folder, shutil.move(first, tmp_path / f"moved{len(more)}"), out, *resume)


@pytest.mark.parametrize("more", [(), ("--streaming",)])
@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_damaged_shard_is_one_sentence(kind: str, more: tuple[str], clip_folder: Path, tmp_path: Path) -> None:
    folder, whole = tmp_path / "shards", unlabelled(tmp_path / "data") / "train"
    folder.mkdir()
    if kind == "tar":
        with tarfile.open(folder / "train-0.tar", "w") as archive:
            for path in sorted(whole.iterdir()):
                archive.add(path, path.name)
    else:
        datasets.load_dataset(str(whole), split="train").to_parquet(folder / "train-0.parquet")
    shard = next(folder.iterdir())
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size * 6 // 10])
    assert "damaged" in refusal(clip_folder, folder, tmp_path / "out", *more)


def test_accuracies_that_say_nothing_are_not_measured_and_choose_nothing(
    clip_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Flat splits have no classes; of a validation with one class, any accuracy is 0 or 1."""
    flat, data = unlabelled(tmp_path / "flat"), tmp_path / "data"
    for name in ("train/cat", "train/dog", "validation/dog"):
        shutil.copytree(flat / "train", data / name)
    evaluate = ("--eval_split", "validation", *EVALUATE)
    assert "needs an --eval_split with a ClassLabel column" in refusal(
        clip_folder, flat, tmp_path / "out", *evaluate, *BEST
    )
    for number, streaming in enumerate(((), ("--streaming",))):
        assert "all evaluation images are of one class" in refusal(
            clip_folder, data, tmp_path / "out", *evaluate, *BEST, *streaming
        )
        run(clip_folder, data, tmp_path / f"loss{number}", *evaluate, "--save_strategy", "steps", *streaming)
        (state,) = (tmp_path / f"loss{number}").glob("checkpoint-*/trainer_state.json")
        logs = [log for log in json.loads(state.read_text())["log_history"] if "eval_loss" in log]
        assert logs and not any("eval_robust_accuracy" in log for log in logs)
    assert caplog.text.count("no zero-shot accuracy is measured: all evaluation images are of one class") == 2


def test_prompts_are_names_and_the_mapping_is_printed(
    clip_folder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, (first, second) in {"wordnet": ("n01440764", "n01443537"), "numbers": ("2", "10")}.items():
        shutil.copytree(images / "cat", tmp_path / name / first)
        shutil.copytree(images / "dog", tmp_path / name / second)
    tecoa = ("--objective", "tecoa", "--eval_split", "train", *EVALUATE)
    assert "are WordNet's numbers, such as n01440764, which no text encoder can read" in refusal(
        clip_folder, tmp_path / "wordnet", tmp_path / "out", *tecoa
    )
    run(clip_folder, tmp_path / "numbers", tmp_path / "done", *tecoa, "--class_names", "cat", "dog")
    said = capsys.readouterr().out
    assert "numbers' (train): 8 images in 2 classes\n" in said
    assert "2 classes in prompts: '10' is 'dog', '2' is 'cat'" in said
    run(clip_folder, tmp_path / "numbers", tmp_path / "rows", *tecoa[2:], "--class_names", "cat", "dog")
    assert "evaluation: 2 classes in prompts: '10' is 'dog', '2' is 'cat'" in capsys.readouterr().out
    run(clip_folder, tmp_path / "wordnet", tmp_path / "fare", "--eval_split", "train", *EVALUATE)
