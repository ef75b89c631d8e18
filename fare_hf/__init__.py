"""Adversarially robust CLIP vision encoders (FARE) for Hugging Face: fine-tune, publish, swap into LLaVA, measure."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fare_hf.attacks import ThreatModel, apgd, autoattack, fab, pgd, square
    from fare_hf.evaluation import (
        RobustnessReport,
        check_gradient_masking,
        evaluate_captions,
        evaluate_targeted,
        evaluate_vlm,
        evaluate_zero_shot,
    )
    from fare_hf.hub import merge_vision_tower, push_robust_encoder, save_robust_encoder
    from fare_hf.objectives import FareObjective, TecoaObjective
    from fare_hf.training import FareConfig, FareTrainer
    from fare_hf.vlm import VlmLoss, robust_pipeline, swap_vision_tower

# Where each public name lives. They are imported on first use: attacks alone need neither transformers nor datasets.
_HOMES = {
    "FareConfig": "training",
    "FareObjective": "objectives",
    "FareTrainer": "training",
    "RobustnessReport": "evaluation",
    "TecoaObjective": "objectives",
    "ThreatModel": "attacks",
    "VlmLoss": "vlm",
    "apgd": "attacks",
    "autoattack": "attacks",
    "check_gradient_masking": "evaluation",
    "evaluate_captions": "evaluation",
    "evaluate_targeted": "evaluation",
    "evaluate_vlm": "evaluation",
    "evaluate_zero_shot": "evaluation",
    "fab": "attacks",
    "merge_vision_tower": "hub",
    "pgd": "attacks",
    "push_robust_encoder": "hub",
    "robust_pipeline": "vlm",
    "save_robust_encoder": "hub",
    "square": "attacks",
    "swap_vision_tower": "vlm",
}

__all__ = [
    "FareConfig",
    "FareObjective",
    "FareTrainer",
    "RobustnessReport",
    "TecoaObjective",
    "ThreatModel",
    "VlmLoss",
    "apgd",
    "autoattack",
    "check_gradient_masking",
    "evaluate_captions",
    "evaluate_targeted",
    "evaluate_vlm",
    "evaluate_zero_shot",
    "fab",
    "merge_vision_tower",
    "pgd",
    "push_robust_encoder",
    "robust_pipeline",
    "save_robust_encoder",
    "square",
    "swap_vision_tower",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fare_hf' has no attribute {name!r}")
    return getattr(import_module(f"fare_hf.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
