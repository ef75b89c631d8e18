"""Evaluation: zero-shot, captions, questions, targeted and transferred attacks, drift, corruptions; one report."""

from __future__ import annotations

from fare_hf.encoders import text_classifier
from fare_hf.evaluation.captions import NamesConcept, evaluate_captions
from fare_hf.evaluation.charts import draw_report, paired_bars, radius_curves, transfer_map
from fare_hf.evaluation.corruptions import evaluate_corruptions
from fare_hf.evaluation.drift import clean_drift, retrieval_recall
from fare_hf.evaluation.environment import environment
from fare_hf.evaluation.exported import export_adversarial, load_exported
from fare_hf.evaluation.masking import MaskingReport, check_gradient_masking
from fare_hf.evaluation.metrics import bootstrap_interval, fraction_interval, paired_interval, wilson_interval
from fare_hf.evaluation.paired import paired_difference
from fare_hf.evaluation.plots import SheetRow, attack_sheet
from fare_hf.evaluation.report import RobustnessReport, Row, make_row, validate
from fare_hf.evaluation.stealth import evaluate_stealth
from fare_hf.evaluation.suite import load_suite, run_suite
from fare_hf.evaluation.targeted import evaluate_targeted
from fare_hf.evaluation.text_attack import TextEvaluation
from fare_hf.evaluation.text_metrics import Choice, Cider, VqaAccuracy, YesNo
from fare_hf.evaluation.transfer import evaluate_transfer, evaluate_universal_text, transfer_matrix
from fare_hf.evaluation.vlm import evaluate_vlm
from fare_hf.evaluation.vlm_sets import load_vlm_set
from fare_hf.evaluation.zero_shot import evaluate_zero_shot
from fare_hf.evaluation.zero_shot_sets import load_zero_shot_set

__all__ = [
    "Choice",
    "Cider",
    "MaskingReport",
    "NamesConcept",
    "RobustnessReport",
    "Row",
    "SheetRow",
    "TextEvaluation",
    "VqaAccuracy",
    "YesNo",
    "attack_sheet",
    "bootstrap_interval",
    "check_gradient_masking",
    "clean_drift",
    "draw_report",
    "environment",
    "evaluate_captions",
    "evaluate_corruptions",
    "evaluate_stealth",
    "evaluate_targeted",
    "evaluate_transfer",
    "evaluate_universal_text",
    "evaluate_vlm",
    "evaluate_zero_shot",
    "export_adversarial",
    "fraction_interval",
    "load_exported",
    "load_suite",
    "load_vlm_set",
    "load_zero_shot_set",
    "make_row",
    "paired_bars",
    "paired_difference",
    "paired_interval",
    "radius_curves",
    "retrieval_recall",
    "run_suite",
    "text_classifier",
    "transfer_map",
    "transfer_matrix",
    "validate",
    "wilson_interval",
]
