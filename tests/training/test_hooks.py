"""What `FareTrainer` overrides of `transformers.Trainer`: each private method by name, with what breaks without it."""

from __future__ import annotations

import inspect
from collections import Counter
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from helpers.distributed.tiny_run import RandomPixels, tiny_trainer
from transformers import Trainer

from fare_hf.training import FareTrainer

PRIVATE = {
    "_get_grad_norm": (["model", "grad_norm"], "a NaN gradient is not seen before it reaches every weight"),
    "_load_best_model": ([], "the best checkpoint of a CLIPVisionModel is not loaded, with only a warning"),
    "_load_from_checkpoint": (
        ["resume_from_checkpoint", "model"],
        "a resumed CLIPVisionModel begins with its original weights, with only a warning",
    ),
    "_push_from_checkpoint": (["checkpoint_folder"], "the output folder is uploaded, pickles included"),
    "_save_rng_state": (["output_dir"], "checkpoints have no manifest, and none is ever found complete"),
}
"""Private method -> its parameters, and what goes wrong where transformers no longer calls it so."""
PUBLIC = {
    *("__init__", "compute_loss", "evaluation_loop", "get_batch_samples", "get_decay_parameter_names"),
    *("get_eval_dataloader", "get_train_dataloader", "init_hf_repo", "log", "loss_is_scaled_for_ga"),
    *("prediction_step", "push_to_hub", "save_model", "train", "training_step"),
}


def test_what_is_overridden_is_listed() -> None:
    kinds = FareTrainer.__mro__[: FareTrainer.__mro__.index(Trainer)]
    own = {name for kind in kinds for name in vars(kind) if name == "__init__" or not name.startswith("__")}
    overridden = {name for name in own if hasattr(Trainer, name)}
    assert overridden == PUBLIC | set(PRIVATE)


@pytest.mark.parametrize("name", sorted(PRIVATE))
def test_the_trainer_has_the_private_method(name: str) -> None:
    parameters, broken = PRIVATE[name]
    found = getattr(Trainer, name, None)
    assert found is not None, f"transformers has no Trainer.{name} any more: {broken}"
    assert list(inspect.signature(found).parameters)[1:] == parameters, (
        f"Trainer.{name} has other parameters: {broken}"
    )


def test_the_trainer_calls_every_private_method(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Counter[str]()

    def counted(name: str) -> Any:
        inner = getattr(FareTrainer, name)

        @wraps(inner)
        def method(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return inner(*args, **kwargs)

        return method

    for name in PRIVATE:
        monkeypatch.setattr(FareTrainer, name, counted(name))
    published: list[str] = []
    monkeypatch.setattr("fare_hf.training.trainer.check_push", lambda trainer, token: "me/run")
    monkeypatch.setattr(
        "fare_hf.training.trainer.publish_checkpoint", lambda _, folder, name: published.append(folder)
    )
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    options |= {"load_best_model_at_end": True, "push_to_hub": True, "hub_strategy": "every_save", "max_steps": 2}
    for resume in (None, str(tmp_path / "checkpoint-1")):
        trainer = tiny_trainer(str(clip_folder), str(tmp_path), eval_dataset=RandomPixels(4), **options)
        trainer.train(resume_from_checkpoint=resume)
    for name, (_, broken) in PRIVATE.items():
        assert calls[name], f"the Trainer does not call {name}: {broken}"
    assert [Path(folder).name for folder in published] == ["checkpoint-1", "checkpoint-2", "checkpoint-2"]
