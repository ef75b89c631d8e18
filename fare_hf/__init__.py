"""Adversarially robust CLIP vision encoders (FARE) for Hugging Face: fine-tune, publish, swap into LLaVA, measure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fare_hf.lazy import on_first_use

__version__ = "0.1.0"

if TYPE_CHECKING:  # the same names as below, for type checkers (a test compares them)
    from fare_hf.attacks import ThreatModel, apgd, autoattack, fab, pgd, square
    from fare_hf.convert import convert_from_open_clip, convert_to_open_clip
    from fare_hf.data.pixel_datasets import PixelDataset
    from fare_hf.data.pixels import Normalization
    from fare_hf.encoders import load_encoder, text_classifier
    from fare_hf.evaluation import (
        RobustnessReport,
        check_gradient_masking,
        evaluate,
        evaluate_captions,
        evaluate_targeted,
        evaluate_vlm,
        evaluate_vlm_on_data,
        evaluate_zero_shot,
    )
    from fare_hf.hub import merge_vision_tower, push_robust_encoder, save_robust_encoder
    from fare_hf.objectives import FareObjective, TecoaObjective
    from fare_hf.training import FareConfig, FareTrainer
    from fare_hf.vlm import VlmLoss, generate_text, robust_pipeline, swap_vision_tower

# Where the public names are defined. They are imported on first use: attacks need neither transformers nor datasets.
_NAMES = {
    "attacks": ("ThreatModel", "apgd", "autoattack", "fab", "pgd", "square"),
    "convert": ("convert_from_open_clip", "convert_to_open_clip"),
    "data.pixel_datasets": ("PixelDataset",),
    "data.pixels": ("Normalization",),
    "encoders": ("load_encoder", "text_classifier"),
    "evaluation": (
        "RobustnessReport",
        "check_gradient_masking",
        "evaluate",
        "evaluate_captions",
        "evaluate_targeted",
        "evaluate_vlm",
        "evaluate_vlm_on_data",
        "evaluate_zero_shot",
    ),
    "hub": ("merge_vision_tower", "push_robust_encoder", "save_robust_encoder"),
    "objectives": ("FareObjective", "TecoaObjective"),
    "training": ("FareConfig", "FareTrainer"),
    "vlm": ("VlmLoss", "generate_text", "robust_pipeline", "swap_vision_tower"),
}
_HOMES, __getattr__, __dir__ = on_first_use(__name__, _NAMES)

__all__ = sorted(_HOMES)
