"""What a training sends to dashboards: pictures of attacks and curves, read back from TensorBoard's own files."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.distributed.tiny_run import RandomPixels, tiny_trainer
from PIL import Image
from transformers import TrainerCallback
from transformers.integrations import TrackioCallback, WandbCallback

from fare_hf import FareConfig
from fare_hf.training.logging.pictures import AttackPictures, picture_of

pytest.importorskip("tensorboardX", reason="pip install -e '.[test]' installs it")
OPTIONS: dict[str, Any] = {"max_steps": 4, "logging_steps": 2, "report_to": ["tensorboard"], "disable_tqdm": True}


def events(folder: Path) -> list[Any]:
    """All events below a folder: each record is its length, a checksum, the event, a checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack("<Q", content[at : at + 8])
            found.append(Event.FromString(content[at + 12 : at + 12 + length]))
            at += length + 16
    return found


def values(folder: Path) -> dict[str, dict[int, Any]]:
    """Tag -> step -> value."""
    found: dict[str, dict[int, Any]] = {}
    for event in events(folder):
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value
    return found


def test_pictures_and_curves_are_in_tensorboards_files(clip_folder: Path, tmp_path: Path) -> None:
    seen: dict[int, torch.Tensor] = {}
    evaluation = {"eval_dataset": RandomPixels(4), "eval_strategy": "steps", "eval_steps": 2}
    trainer = tiny_trainer(str(clip_folder), str(tmp_path), picture_steps=2, **OPTIONS, **evaluation)
    inner = trainer.pictures.look

    def look(clean: torch.Tensor, attacked: torch.Tensor) -> None:
        seen[trainer.state.global_step + 1] = picture_of(clean, attacked)
        inner(clean, attacked)

    trainer.pictures.look = look  # type: ignore[method-assign]
    trainer.train()
    found = values(tmp_path)
    pictures = found.pop("train/attacked_images")
    assert list(pictures) == [2, 4]
    for step, value in pictures.items():
        shown = np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)))
        expected = seen[step].permute(1, 2, 0).numpy() * 255
        assert shown.shape == expected.shape and np.abs(shown - expected).max() <= 1
    for name in ("train/loss", "train/attack_gain", "train/cosine_adversarial", "eval/loss", "eval/cosine_clean"):
        assert list(found[name]) == [2, 4], name
    logged = {line["step"]: line["attack_gain"] for line in trainer.state.log_history if "attack_gain" in line}
    assert {step: value.simple_value for step, value in found["train/attack_gain"].items()} == pytest.approx(logged)
    assert not [name for name in found if "epoch" in name or "flos" in name]
    assert all("epoch" in line for line in trainer.state.log_history)


def test_without_the_option_no_picture_is_made(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fare_hf.training.logging.pictures.picture_of", pytest.fail)
    tiny_trainer(str(clip_folder), str(tmp_path), **OPTIONS).train()
    assert "train/loss" in values(tmp_path) and not [name for name in values(tmp_path) if "attacked_images" in name]


def test_a_picture_shows_clean_attacked_and_difference() -> None:
    clean = torch.full((6, 3, 2, 5), 0.5)
    attacked = clean.clone()
    attacked[0, 0, 0, 0] += 4 / 255
    attacked[1, 1, 1, 1] -= 2 / 255
    shown = picture_of(clean, attacked)
    assert shown.shape == (3, 6, 20)
    assert torch.equal(shown[:, :2, :5], clean[0]) and torch.equal(shown[:, 2:4, :5], attacked[0])
    assert shown[0, 4, 0] == 1 and shown[1, 5, 6].item() == pytest.approx(0.25) and (shown[:, 4:] != 0.5).sum() == 2
    assert torch.equal(picture_of(clean, clean)[:, 4:], torch.full((3, 2, 20), 0.5))


class Dashboard:
    """What wandb and trackio have in common, as far as pictures go."""

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def Image(self, array: np.ndarray) -> np.ndarray:  # noqa: N802
        return array


@pytest.mark.parametrize(("kind", "attribute"), [(WandbCallback, "_wandb"), (TrackioCallback, "_trackio")])
def test_wandb_and_trackio_get_an_image_of_their_own(
    kind: type[TrainerCallback], attribute: str, clip_folder: Path, tmp_path: Path
) -> None:
    trainer = tiny_trainer(str(clip_folder), str(tmp_path), picture_steps=2, **OPTIONS)
    callback, dashboard = kind.__new__(kind), Dashboard()
    setattr(callback, attribute, dashboard)
    trainer.callback_handler.callbacks = [callback]
    pictures = AttackPictures(trainer)
    trainer.state.global_step = 1
    pictures.look(torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4))
    pictures.on_step_end(trainer.args, trainer.state, trainer.control)
    (sent,) = dashboard.logged
    array = sent.pop("train/attacked_images")
    assert array.shape == (12, 8, 3) and array.dtype == np.uint8 and array[4:].min() == 255 and array[:4].max() == 0


@pytest.mark.parametrize("options", [{"report_to": "none"}, {"report_to": "tensorboard", "picture_steps": 0}])
def test_pictures_that_nobody_would_see_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="picture_steps=.* shows nothing; .*tensorboard, trackio, wandb"):
        FareConfig(str(tmp_path), **{"picture_steps": 2} | options, use_cpu=True)
