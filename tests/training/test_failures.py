"""NaN and Inf: the run stops before a weight is lost, and leaves batch, weights and optimizer; fp16 goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.distributed.tiny_run import RandomPixels, tiny_trainer
from safetensors.torch import load_file
from transformers import CLIPVisionModelWithProjection, TrainerCallback

from fare_hf.objectives import FareObjective
from fare_hf.training.non_finite import MOST_OVERFLOWS


class BreakGradient(TrainerCallback):
    """Makes a gradient infinite from a step on; `weights` are those before the last update."""

    def __init__(self, step: int, until: int = 1_000) -> None:
        self.steps = range(step, until)
        self.weights: dict[str, torch.Tensor] = {}
        self.hooked = False

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        self.weights = {name: value.clone() for name, value in model.state_dict().items()}
        if not self.hooked:
            self.hooked = True
            weight = model.visual_projection.weight
            weight.register_hook(lambda g: g * float("inf") if state.global_step + 1 in self.steps else g)


def test_a_broken_image_leaves_the_batch_the_weights_and_the_optimizer(clip_folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"train_dataset": RandomPixels(32, poison=17), "max_steps": 16}
    options |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = tiny_trainer(str(clip_folder), str(tmp_path), **options)
    with pytest.raises(
        ValueError, match=r"samples with index \[17\].* The batch, the weights and .* are in"
    ) as caught:
        trainer.train()
    step = int(str(caught.value).split(":")[0].removeprefix("step "))
    folder = tmp_path / f"failure-step-{step}"
    facts = json.loads((folder / "process-0" / "failure.json").read_text())
    batch = load_file(folder / "process-0" / "batch.safetensors")
    assert facts["step"] == step and facts["samples"] == batch["index"].tolist() and 17 in facts["samples"]
    assert len(facts["samples"]) == 4 and facts["run"]["eps"] == "4/255"
    assert batch["pixel_values"][facts["samples"].index(17)].isnan().any()
    saved = CLIPVisionModelWithProjection.from_pretrained(folder / "state").state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in trainer.model.state_dict().items())
    moments = load_file(folder / "state" / "optimizer.safetensors")
    assert torch.equal(moments["visual_projection.weight.exp_avg"], _moment(trainer))
    assert json.loads((folder / "state" / "optimizer.json").read_text())[0]["weight_decay"] == 1e-4
    assert not [path for path in folder.rglob("*") if path.suffix in (".pt", ".pth", ".bin", ".pkl")]


def _moment(trainer: Any) -> torch.Tensor:
    return trainer.optimizer.optimizer.state[trainer.model.visual_projection.weight]["exp_avg"]


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_lost(clip_folder: Path, tmp_path: Path) -> None:
    """Fails without `_get_grad_norm`: the loss is finite, the update makes every weight NaN."""
    breaking = BreakGradient(3)
    trainer = tiny_trainer(str(clip_folder), str(tmp_path), callbacks=[breaking])
    with pytest.raises(ValueError, match=r"step 3: the gradient is not finite, samples with index \[.*failure-step-3"):
        trainer.train()
    saved = CLIPVisionModelWithProjection.from_pretrained(tmp_path / "failure-step-3" / "state").state_dict()
    assert all(torch.equal(value, saved[name]) and value.isfinite().all() for name, value in breaking.weights.items())


def test_a_state_that_cannot_be_saved_does_not_hide_the_error(clip_folder: Path, tmp_path: Path) -> None:
    trainer = tiny_trainer(str(clip_folder), str(tmp_path), callbacks=[BreakGradient(1)])
    (tmp_path / "failure-step-1").write_text("in the way")
    with pytest.raises(ValueError, match="the gradient is not finite.*Its state could not be saved:"):
        trainer.train()


class WithScaler(TrainerCallback):
    """The scaler of fp16, which accelerate makes on a GPU alone, in an ordinary run."""

    def __init__(self) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        self.scales: list[float] = []

    def attach(self, trainer: Any) -> None:
        trainer.add_callback(self)
        trainer.accelerator.scaler, trainer.accelerator.native_amp = self.scaler, True
        trainer.accelerator.state._mixed_precision = "fp16"

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["optimizer"].scaler = self.scaler
        self.scales.append(self.scaler.get_scale())


@pytest.mark.parametrize("overflows", [3, 1_000])
def test_overflows_under_fp16_skip_steps_and_stop_the_run_only_if_they_never_end(
    overflows: int, clip_folder: Path, tmp_path: Path
) -> None:
    breaking, scaled = BreakGradient(1, until=1 + overflows), WithScaler()
    trainer = tiny_trainer(str(clip_folder), str(tmp_path), callbacks=[breaking], max_steps=25)
    scaled.attach(trainer)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    if overflows == 3:
        trainer.train()
        assert scaled.scales[:5] == [2.0**16, 2.0**15, 2.0**14, 2.0**13, 2.0**13]
        assert trainer.state.global_step == 25
        moved = [not torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items()]
        assert all(value.isfinite().all() for value in trainer.model.state_dict().values()) and any(moved)
    else:
        with pytest.raises(ValueError, match=f"step {MOST_OVERFLOWS}: .*in {MOST_OVERFLOWS} steps running.*use bf16"):
            trainer.train()
        assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


class BrokenWithoutGradient(FareObjective):
    """NaN in an evaluation; under the attack, and in the update, all is well."""

    def __call__(self, embeddings: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return super().__call__(embeddings, targets) * (1.0 if torch.is_grad_enabled() else torch.nan)


def test_an_evaluation_that_is_not_finite_is_no_best_checkpoint(clip_folder: Path, tmp_path: Path) -> None:
    """NaN of the first evaluation would never be beaten, that of a later one never be seen."""
    options: dict[str, Any] = {"eval_dataset": RandomPixels(4), "eval_strategy": "steps", "eval_steps": 1}
    trainer = tiny_trainer(str(clip_folder), str(tmp_path), max_steps=2, **options)
    trainer.objective = BrokenWithoutGradient()
    with pytest.raises(ValueError, match="step 1: the loss or the logits of 4 of 4 evaluation images are not finite"):
        trainer.train()
