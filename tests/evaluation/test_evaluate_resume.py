"""`fare-hf evaluate` of one encoder, and forced strings: interrupted anywhere, they go on after the last batch."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_encoders import write_images
from helpers.tiny_llava import encoder as vision_encoder
from helpers.vlm_folders import TEMPLATE, command, write_captions, write_llava
from PIL import Image

from fare_hf import evaluate, evaluate_vlm_on_data, evaluate_zero_shot, load_encoder
from fare_hf.attacks import apgd
from fare_hf.cli import main as cli
from fare_hf.data.pixels import Normalization
from fare_hf.evaluation import RobustnessReport, evaluate_probe
from fare_hf.pretrained.configuration import load_image_processor
from fare_hf.suites import load_suite, run_suite

FARE_HF = str(Path(sys.executable).with_name("fare-hf"))
EFFORT: dict[str, Any] = {"steps": 2, "eps": ["1/255", "64/255"], "batch_size": 2}
GOES_ON = "fare-hf: interrupted: the same command goes on after the last finished batch"
ZERO_SHOT, VLM = "fare_hf.evaluation.zero_shot.classification.attack_batch", "fare_hf.evaluation.vlm.engine.apgd"


class Batches:
    """Takes the place of an attack: counts its calls, and is interrupted after some of them."""

    def __init__(self, attack: Callable[..., Any]) -> None:
        self.attack, self.done, self.most = attack, 0, 10**9

    def __call__(self, *words: Any, **options: Any) -> Any:
        if self.done >= self.most:
            raise KeyboardInterrupt
        self.done += 1
        return self.attack(*words, **options)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Batches]:
    """Of zero-shot attacks."""
    from fare_hf.evaluation.attack_loop import attack_batch

    found = Batches(attack_batch)
    monkeypatch.setattr(ZERO_SHOT, found)
    yield found


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, four noise images each."""
    folder, rng = tmp_path_factory.mktemp("photos") / "pets", np.random.default_rng(0)
    for name in ("cat", "dog", "fish"):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            noise = rng.integers(0, 256, (36, 40, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / name / f"{number}.png")
    return folder


def untimed(rows: list[Any]) -> list[Any]:
    return [replace(row, seconds=None) for row in rows]


def test_two_encoders_go_on_with_what_is_done(
    pets: Path, clip_folder: Path, legacy_vision_folder: Path, tmp_path: Path, batches: Batches
) -> None:
    options = {"against": clip_folder, "text_model": clip_folder, **EFFORT}
    whole = evaluate(legacy_vision_folder, pets, **options)
    needed, batches.done = batches.done, 0
    assert needed >= 4 and len({row.outcomes for row in whole.rows}) > 1
    for batches.most in range(1, needed):  # interrupted before each batch, one after another
        with pytest.raises(KeyboardInterrupt):
            evaluate(legacy_vision_folder, pets, folder=tmp_path / "run", **options)
        assert batches.done == batches.most  # one more is done, and none again
    batches.most = 10**9
    found = evaluate(legacy_vision_folder, pets, folder=tmp_path / "run", **options)
    assert batches.done == needed
    assert untimed(found.rows) == untimed(whole.rows) and found.outcomes == whole.outcomes
    again = evaluate(legacy_vision_folder, pets, folder=tmp_path / "run", **options)
    assert batches.done == needed and again.rows == found.rows  # with the time that the attacks took


def test_the_clean_pass_is_not_repeated(
    pets: Path, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(clip_folder, pets, folder=tmp_path, **EFFORT)
    monkeypatch.setattr("fare_hf.evaluation.zero_shot.classification.read", pytest.fail)
    assert evaluate(clip_folder, pets, folder=tmp_path, **EFFORT).rows == whole.rows


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"steps": 3}, "steps"),
        ({"eps": ["1/255"]}, "threat_models"),
        ({"templates": ["a blurry drawing of the {}"]}, "classes"),
        ({"samples": 3}, "images"),
        ({"seed": 1, "batch_size": 3}, "batch_size, seed"),
        ({"encoder": "other"}, "weights"),
    ],
)
def test_the_folder_of_another_run_is_refused_before_any_attack(
    change: dict[str, Any], what: str, pets: Path, clip_folder: Path, tmp_path: Path, batches: Batches
) -> None:
    batches.most = 1
    with pytest.raises(KeyboardInterrupt):
        evaluate(clip_folder, pets, folder=tmp_path, text_model=clip_folder, **EFFORT)
    batches.attack = pytest.fail
    told = {"encoder": clip_folder, "text_model": clip_folder, **EFFORT, **change}
    if told["encoder"] == "other":  # under the same name
        told["encoder"] = tmp_path / "other" / clip_folder.name
        vision_encoder(seed=5).save_pretrained(told["encoder"])
        load_image_processor(str(clip_folder)).save_pretrained(told["encoder"])
    with pytest.raises(ValueError, match=f"holds a run with another {what}: name another folder"):
        evaluate(dataset=pets, folder=tmp_path, **told)


@pytest.mark.parametrize("own", [True, False], ids=["labels in the data set", "labels beside it"])
def test_a_folder_with_other_labels_or_another_last_image_is_refused(
    own: bool, clip_folder: Path, tmp_path: Path
) -> None:
    encoder, texts = load_encoder(str(clip_folder)), torch.eye(2, 16)
    names: dict[str, Any] = {"model": "m", "dataset": "d", "normalization": Normalization([0.5] * 3, [0.5] * 3)}

    def measure(pixels: torch.Tensor, labels: list[int]) -> list[float]:
        rows: Any = [{"pixel_values": image, "labels": label} for image, label in zip(pixels, labels, strict=True)]
        given = (rows, None) if own else (pixels, labels)
        return [row.value for row in evaluate_zero_shot(encoder, texts, *given, folder=tmp_path, **names).rows]

    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = measure(pixels, [0, 1, 0, 1])
    assert measure(pixels, [0, 1, 0, 1]) == found
    with pytest.raises(ValueError, match=f"holds a run with another {'images' if own else 'labels'}: name another"):
        measure(pixels, [0, 1, 0, 0])
    with pytest.raises(ValueError, match="holds a run with another images: name another"):
        measure(torch.cat([pixels[:3], pixels[:1]]), [0, 1, 0, 1])


def test_the_command_says_how_to_go_on_and_does(
    pets: Path, clip_folder: Path, tmp_path: Path, batches: Batches, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(clip_folder), "--dataset", str(pets), "--steps", "2", "--batch_size", "2", "--output_dir"]
    cli.main([*words, str(tmp_path / "whole")])
    needed, batches.done, batches.most = batches.done, 0, 2
    with pytest.raises(SystemExit) as end:
        cli.main([*words, str(tmp_path / "out")])
    assert end.value.code == 130 and GOES_ON in capfd.readouterr().err
    held = {path.name for path in (tmp_path / "out").rglob("linf-*.safetensors")}
    assert len(held) == 2 and not (tmp_path / "out" / "report.json").exists()
    with pytest.raises(SystemExit, match="holds a run with another --eps: name another folder"):
        cli.main([*words, str(tmp_path / "out"), "--eps", "4/255"])
    batches.most = 10**9
    cli.main([*words, str(tmp_path / "out")])
    assert batches.done == needed and not (tmp_path / "out" / "states").exists()
    one, two = (RobustnessReport.load(tmp_path / name) for name in ("whole", "out"))
    assert untimed(one.rows) == untimed(two.rows)
    with pytest.raises(SystemExit, match="out' is not empty: name a new folder"):
        cli.main([*words, str(tmp_path / "out")])


def test_a_command_that_is_refused_leaves_no_folder(pets: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(pets), "--dataset", str(pets), "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_probe_goes_on(clip_folder: Path, tmp_path: Path, batches: Batches) -> None:
    photos = write_images(tmp_path / "photos", train=4, test=2)
    options: dict[str, Any] = {"probe": "linear", **EFFORT}
    whole = evaluate_probe(clip_folder, photos, **options)
    needed, batches.done, batches.most = batches.done, 0, 2
    with pytest.raises(KeyboardInterrupt):
        evaluate_probe(clip_folder, photos, folder=tmp_path / "run", **options)
    batches.most = 10**9
    found = evaluate_probe(clip_folder, photos, folder=tmp_path / "run", **options)
    assert batches.done == needed and untimed(found.rows) == untimed(whole.rows)


def test_a_job_of_a_suite_goes_on_in_its_middle(
    pets: Path, clip_folder: Path, tmp_path: Path, batches: Batches
) -> None:
    job = f"{{kind: zero-shot, set: {pets}, steps: 2, batch_size: 2, eps: [2/255]}}"
    (tmp_path / "suite.yaml").write_text(f"name: s\nmodels: {{A: {clip_folder}}}\njobs:\n  - {job}\n")
    suite = load_suite(tmp_path / "suite.yaml")
    whole = run_suite(suite, tmp_path / "whole", progress=False)
    needed, batches.done, batches.most = batches.done, 0, 1
    with pytest.raises(KeyboardInterrupt):
        run_suite(suite, tmp_path / "out", progress=False)
    batches.most = 10**9
    found = run_suite(suite, tmp_path / "out", progress=False)
    assert batches.done == needed and untimed(found.rows) == untimed(whole.rows)


def test_forced_strings_go_on_image_by_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llava, photos = write_llava(tmp_path / "llava"), write_captions(tmp_path / "photos", 3)
    vision_encoder(seed=5).save_pretrained(tmp_path / "robust")
    options: dict[str, Any] = {"template": TEMPLATE, "targets": ["red dog", "face"], "encoder": tmp_path / "robust"}
    options |= {"steps": 2, "batch_size": 1, "eps": ["4/255"]}
    attacked = Batches(apgd)
    monkeypatch.setattr(VLM, attacked)
    whole = evaluate_vlm_on_data(llava, photos, "targeted", **options)
    needed, attacked.done = attacked.done, 0
    assert needed > 2 * 2 * 2  # towers, strings, and images of which some are forced already
    for attacked.most in (2, 7):
        with pytest.raises(KeyboardInterrupt):
            evaluate_vlm_on_data(llava, photos, "targeted", folder=tmp_path / "run", **options)
        assert attacked.done == attacked.most
    attacked.most = 10**9
    found = evaluate_vlm_on_data(llava, photos, "targeted", folder=tmp_path / "run", **options)
    assert attacked.done == needed and untimed(found.rows) == untimed(whole.rows)
    with pytest.raises(ValueError, match="holds a run with another dataset, references"):
        evaluate_vlm_on_data(llava, photos, "targeted", folder=tmp_path / "run", **options | {"targets": ["cat"]})


@pytest.mark.slow
@pytest.mark.parametrize("vlm", [False, True])
def test_a_killed_command_goes_on(
    vlm: bool, pets: Path, clip_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """kill -9 of the real program in the middle of its batches."""
    words = ["evaluate", str(clip_folder), "--dataset", str(pets), "--batch_size", "2"]
    if vlm:
        (tmp_path / "strings.txt").write_text("red dog\n")
        llava, photos = write_llava(tmp_path / "llava"), write_captions(tmp_path / "photos", 4)
        words = command(llava, photos, "targeted", "--targets", str(tmp_path / "strings.txt"))
    words = [*words, "--steps", "100", "--json", "--output_dir"]
    with subprocess.Popen([FARE_HF, *words, str(tmp_path / "out")], stdout=subprocess.DEVNULL) as process:
        while not list((tmp_path / "out").rglob("linf-*.safetensors")) and process.poll() is None:
            time.sleep(0.02)
        process.kill()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("linf-*.safetensors")}
    assert process.returncode == -signal.SIGKILL and before
    found = subprocess.run([FARE_HF, *words, str(tmp_path / "out")], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    cli.main([*words, str(tmp_path / "whole")])
    one, two = (json.loads(text)["rows"] for text in (found.stdout, capfd.readouterr().out))
    assert [row | {"seconds": 0} for row in one] == [row | {"seconds": 0} for row in two]
