"""Evaluation: zero-shot, captions, questions, targeted and transferred attacks, drift, corruptions; one report."""

from __future__ import annotations

from fare_hf.encoders import text_classifier
from fare_hf.evaluation.probes.evaluate import evaluate_probe
from fare_hf.evaluation.report.attack_sheet import SheetRow, attack_sheet
from fare_hf.evaluation.report.environment import environment
from fare_hf.evaluation.report.intervals import bootstrap_interval, fraction_interval, paired_interval, wilson_interval
from fare_hf.evaluation.report.paired import paired_difference
from fare_hf.evaluation.report.plots import draw_report, draw_summary, paired_bars, radius_curves, transfer_map
from fare_hf.evaluation.report.report import RobustnessReport
from fare_hf.evaluation.report.rows import Row
from fare_hf.evaluation.result import Evaluation
from fare_hf.evaluation.vlm.adversarial_images import export_adversarial, load_exported
from fare_hf.evaluation.vlm.captions import NamesConcept, ThingsNamed, evaluate_captions
from fare_hf.evaluation.vlm.engine import TextEvaluation
from fare_hf.evaluation.vlm.ensemble import evaluate_vlm
from fare_hf.evaluation.vlm.evaluate import evaluate_vlm_on_data
from fare_hf.evaluation.vlm.forced_strings import evaluate_targeted
from fare_hf.evaluation.vlm.metrics import Choice, Cider, VqaAccuracy, YesNo
from fare_hf.evaluation.vlm.sets import load_vlm_set
from fare_hf.evaluation.vlm.stealth import evaluate_stealth
from fare_hf.evaluation.vlm.transfer import evaluate_transfer, evaluate_universal_text, transfer_matrix
from fare_hf.evaluation.zero_shot.classification import evaluate_zero_shot
from fare_hf.evaluation.zero_shot.corruptions import evaluate_corruptions
from fare_hf.evaluation.zero_shot.drift import clean_drift, retrieval_recall
from fare_hf.evaluation.zero_shot.evaluate import evaluate
from fare_hf.evaluation.zero_shot.gradient_masking import MaskingReport, check_gradient_masking
from fare_hf.evaluation.zero_shot.sets import load_zero_shot_set

__all__ = [
    "Choice",
    "Cider",
    "Evaluation",
    "MaskingReport",
    "NamesConcept",
    "RobustnessReport",
    "Row",
    "SheetRow",
    "TextEvaluation",
    "ThingsNamed",
    "VqaAccuracy",
    "YesNo",
    "attack_sheet",
    "bootstrap_interval",
    "check_gradient_masking",
    "clean_drift",
    "draw_report",
    "draw_summary",
    "environment",
    "evaluate",
    "evaluate_captions",
    "evaluate_corruptions",
    "evaluate_probe",
    "evaluate_stealth",
    "evaluate_targeted",
    "evaluate_transfer",
    "evaluate_universal_text",
    "evaluate_vlm",
    "evaluate_vlm_on_data",
    "evaluate_zero_shot",
    "export_adversarial",
    "fraction_interval",
    "load_exported",
    "load_vlm_set",
    "load_zero_shot_set",
    "paired_bars",
    "paired_difference",
    "paired_interval",
    "radius_curves",
    "retrieval_recall",
    "text_classifier",
    "transfer_map",
    "transfer_matrix",
    "wilson_interval",
]
