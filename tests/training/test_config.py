"""FareConfig: the paper's recipe by default, and what cannot work is refused."""

from __future__ import annotations

from pathlib import Path

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


def test_a_dashboard_that_is_not_installed_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fare_hf.training.checks.is_tensorboard_available", lambda: False)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        FareConfig(output_dir=str(tmp_path), report_to="tensorboard", use_cpu=True)
    monkeypatch.setattr("fare_hf.training.checks.is_tensorboard_available", lambda: True)
    assert FareConfig(output_dir=str(tmp_path), report_to="tensorboard", use_cpu=True).report_to == ["tensorboard"]
