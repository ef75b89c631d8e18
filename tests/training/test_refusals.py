"""What a configuration or a trainer refuses before the first step, and the sentence that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.distributed.tiny_run import RandomPixels, WithoutLabels, tiny_trainer
from helpers.refusals import Refusal, changing, table
from torch.nn import functional as F
from transformers import CLIPModel, TrainingArguments

from fare_hf.encoders import load_encoder
from fare_hf.objectives import TecoaObjective
from fare_hf.training import FareConfig, FareTrainer


def config(tmp_path: Path, **options: Any) -> FareConfig:
    return FareConfig(str(tmp_path), use_cpu=True, **options)


CONFIGURATIONS: list[tuple[dict[str, Any], str]] = [
    ({"attack_steps": 0}, "attack_steps=0 is no attack"),
    ({"attack_step_size": "2"}, "attack_step_size 2 is above 1…did you mean 2/255"),
    ({"max_steps": 0}, "max_steps=0 trains nothing"),
    ({"max_steps": -5}, "max_steps=-5 trains nothing"),
    ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0 is not positive"),
    ({"per_device_train_batch_size": 0, "global_batch_size": 8}, "per_device_train_batch_size=0 is not positive"),
    ({"save_strategy": "steps", "save_steps": 0}, "save_steps=0"),
    ({"save_only_model": True, "resume_from_checkpoint": "latest"}, "such a run cannot be resumed"),
    ({"fp16": True}, "fp16=True does nothing on a CPU"),
    ({"eps": "4"}, "did you mean 4/255"),
    ({"eps": 0}, "eps=0 leaves nothing to attack"),
    ({"norm": "l1"}, "l1"),
    ({"attack_step_size": "0"}, "attack_step_size=0 does not move"),
    ({"attack_step_size": "9/255"}, "attack_step_size=9/255 is longer than the ball of eps=4/255 is wide"),
    ({"attack_step_size": "fast"}, "attack_step_size 'fast'"),
    ({"embedding": "cls"}, "embedding='cls' is not known"),
    ({"objective": "clip"}, "objective='clip' is not known"),
    ({"objective": "tecoa", "embedding": "tokens"}, "tecoa needs 'projected'"),
    ({"activation_checkpointing_kwargs": {"use_reentrant": True}}, "use_reentrant=True"),
    ({"gradient_checkpointing_kwargs": {"use_reentrant": True}}, "use_reentrant=True"),
    ({"activation_checkpointing_kwargs": '{"use_reentrant": true}'}, "use_reentrant=True"),
    ({"remove_unused_columns": True}, "drops `index`"),
    ({"logging_nan_inf_filter": True}, "hides a NaN loss"),
    ({"bf16_full_eval": True}, "use bf16=True"),
    ({"push_to_hub": True, "hub_strategy": "checkpoint"}, "would publish the optimizer's state"),
    ({"push_to_hub": True, "hub_model_id": "me/a b"}, "repository name 'me/a b' is not valid"),
    ({"attack_steps_start": 11}, "attack_steps_start=11 is not in 1 to attack_steps=10"),
    ({"attack_bf16": True, "bf16": True}, "is for training in fp32"),
    ({"trained_blocks": 0}, "trained_blocks=0 is not positive"),
    ({"eval_images": -1}, "eval_images=-1 is negative"),
    ({"torch_compile": True}, "set dataloader_drop_last=True"),
    ({"label_smoothing_factor": 0.1}, "label_smoothing_factor="),
    ({"auto_find_batch_size": True}, "auto_find_batch_size="),
    ({"ignore_data_skip": True}, "ignore_data_skip="),
    ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha="),
    ({"include_for_metrics": ["inputs"]}, "include_for_metrics="),
    ({"batch_eval_metrics": True}, "batch_eval_metrics="),
    ({"logit_scale": 50.0}, "logit_scale="),
    ({"metric_for_best_model": "loss"}, "metric_for_best_model="),
]


def trainer(clip_folder: Path, tmp_path: Path, **options: Any) -> FareTrainer:
    return tiny_trainer(str(clip_folder), str(tmp_path), **options)


WITHOUT_TEXTS = "is not read by the objective; leave it out"
MADE: list[tuple[dict[str, Any], str]] = [
    ({"train_dataset": []}, "the data set is empty; give one with images"),
    (
        {"train_dataset": [{"image": 1, "label": 0}]},
        "samples hold image, label and no pixel_values; wrap the data set",
    ),
    (
        {"train_dataset": [{"pixel_values": torch.rand(3, 48, 32), "index": 0}]},
        "makes images of 48 x 32 pixels and the encoder takes",
    ),
    (
        {"dataloader_persistent_workers": True, "dataloader_num_workers": 1},
        "dataloader_persistent_workers=True keeps workers with copies of the RandomPixels, which would give the",
    ),
    (
        {"eval_dataset": WithoutLabels(4), "validation": TecoaObjective(torch.eye(3, 16))},
        "validation= (zero-shot accuracy) needs labels and samples hold only pixel_values, index; give a data set",
    ),
    (
        {
            "eval_dataset": {"a": RandomPixels(4), "b": WithoutLabels(4)},
            "validation": TecoaObjective(torch.eye(3, 16)),
        },
        "validation= (zero-shot accuracy) needs labels",
    ),
    (
        {"eval_strategy": "steps", "eval_steps": 2, "eval_dataset": RandomPixels(4), "metric_for_best_model": "bleu"},
        "metric_for_best_model='bleu' is not measured; give one of",
    ),
]


def assembled(clip_folder: Path, processor: Any, tmp_path: Path, **changes: Any) -> FareTrainer:
    """A trainer from its parts."""
    model = load_encoder(str(clip_folder)).to(changes.pop("dtype", torch.float32))
    parts = {name: changes.pop(name) for name in ("objective_", "eval_dataset") if name in changes}
    made = {"processing_class": changes.pop("processing_class", processor), "eval_dataset": parts.get("eval_dataset")}
    return FareTrainer(model, config(tmp_path, **changes), RandomPixels(), objective=parts.get("objective_"), **made)


ASSEMBLED: list[tuple[dict[str, Any], str]] = [
    ({"processing_class": None}, "processing_class is None"),
    ({"dtype": torch.bfloat16}, "is torch.bfloat16; load the model with dtype=torch.float32"),
    ({"class_names": ["a", "b"]}, WITHOUT_TEXTS),
    ({"templates": ["a {}"]}, WITHOUT_TEXTS),
    ({"objective": "tecoa"}, "objective='tecoa' needs text embeddings"),
    (
        {"eval_images": 3, "eval_dataset": RandomPixels(7), "eval_strategy": "epoch"},
        "eval_images=3 is not read here: eval_dataset has 7",
    ),
    (
        {"objective": "tecoa", "logit_scale": 50.0, "objective_": TecoaObjective(torch.eye(4))},
        "logit_scale=50.0 is not objective.logit_scale=100.0",
    ),
]


def whole_clip(clip_folder: Path, processor: Any, tmp_path: Path) -> FareTrainer:
    model = CLIPModel.from_pretrained(clip_folder)
    return FareTrainer(model, config(tmp_path, max_steps=1), RandomPixels(), processing_class=processor)


def of_another_kind(clip_folder: Path, tmp_path: Path) -> FareTrainer:
    return FareTrainer(str(clip_folder), TrainingArguments(str(tmp_path), use_cpu=True))


def without_index(clip_folder: Path, tmp_path: Path) -> Any:
    made = trainer(clip_folder, tmp_path)
    return made.compute_loss(made.model, {"pixel_values": torch.rand(2, 3, 32, 32)})


def without_labels(clip_folder: Path, tmp_path: Path) -> Any:
    objective = TecoaObjective(F.normalize(torch.eye(3, 16), dim=-1))
    return trainer(clip_folder, tmp_path, objective=objective, train_dataset=WithoutLabels())


def evaluated(clip_folder: Path, tmp_path: Path, dataset: Any) -> Any:
    return trainer(clip_folder, tmp_path, eval_dataset=dataset).evaluate()


@table(
    *changing("configuration", config, CONFIGURATIONS),
    *changing("trainer", trainer, MADE),
    *changing("trainer", assembled, ASSEMBLED),
    Refusal(
        "a whole CLIP",
        whole_clip,
        ValueError,
        "the model is a CLIPModel, no vision encoder; load it with load_encoder(name).",
    ),
    Refusal("batches without index", without_index, ValueError, "the batch has no 'index', only pixel_values"),
    Refusal("other arguments", of_another_kind, TypeError, "args is a TrainingArguments; give a FareConfig"),
    Refusal(
        "no model",
        lambda tmp_path: FareTrainer(7, config(tmp_path)),
        TypeError,
        "model is a int; give an encoder, or its folder or repository.",
    ),
    Refusal(
        "features by name",
        lambda tmp_path: FareTrainer("llava", config(tmp_path, embedding="features")),
        ValueError,
        "give what load_vision_tower('llava') gives, as model= and reading=.",
    ),
    Refusal(
        "TeCoA without labels, before the first step",
        without_labels,
        ValueError,
        "objective='tecoa' needs labels and samples hold only pixel_values, index; give a data set with labels",
    ),
    Refusal(
        "an empty evaluation set",
        lambda clip_folder, tmp_path: evaluated(clip_folder, tmp_path, WithoutLabels(0)),
        ValueError,
        "eval_dataset is empty; give images to evaluate on, or eval_strategy='no'.",
    ),
    Refusal(
        "NaN in an evaluation",
        lambda clip_folder, tmp_path: evaluated(clip_folder, tmp_path, RandomPixels(6, poison=4)),
        ValueError,
        "evaluation: samples with index [4] have NaN or values outside [0, 1]; look at these images, and give them as",
    ),
)
def test_what_cannot_be_trained_is_refused_in_a_sentence(row: Refusal, request: pytest.FixtureRequest) -> None:
    row.check(request)


def test_half_precision_without_a_gpu_names_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(ValueError, match="there is no GPU here; leave bf16 out, or add use_cpu=True .--use_cpu."):
        FareConfig(str(tmp_path), bf16=True)
    assert config(tmp_path, bf16=True).bf16
