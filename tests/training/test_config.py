"""FareConfig: the paper's recipe by default, and what cannot work is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fare_hf.attacks import ThreatModel
from fare_hf.training import FareConfig


def test_defaults_are_the_papers_recipe(tmp_path: Path) -> None:
    config = FareConfig(output_dir=str(tmp_path))
    assert config.threat_model == ThreatModel("linf", "4/255")
    assert (config.attack_steps, config.attack_step_size) == (10, "1/255")
    assert (config.learning_rate, config.weight_decay, config.max_grad_norm) == (1e-5, 1e-4, 0)
    assert (config.lr_scheduler_type, config.warmup_steps, config.max_steps) == ("cosine", 1400, 20_000)
    assert (config.per_device_train_batch_size, config.embedding, config.objective) == (128, "projected", "fare")
    assert config.report_to == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attack_steps": 0}, "attack_steps=0 is no attack"),
        ({"attack_step_size": "2"}, "attack_step_size 2 is above 1.*did you mean 2/255"),
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
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        FareConfig(output_dir=str(tmp_path), use_cpu=True, **options)
