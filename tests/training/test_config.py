"""FareConfig: the paper's recipe by default, and what cannot work is refused."""

from __future__ import annotations

from pathlib import Path

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
