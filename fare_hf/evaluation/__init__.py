"""Evaluation: zero-shot, captions, targeted attacks; one report."""

from __future__ import annotations

from fare_hf.encoders import text_classifier
from fare_hf.evaluation.captions import NamesConcept, evaluate_captions
from fare_hf.evaluation.environment import environment
from fare_hf.evaluation.metrics import bootstrap_interval, fraction_interval, wilson_interval
from fare_hf.evaluation.plots import SheetRow, attack_sheet
from fare_hf.evaluation.report import RobustnessReport, Row, make_row, validate
from fare_hf.evaluation.targeted import evaluate_targeted
from fare_hf.evaluation.text_attack import TextEvaluation
from fare_hf.evaluation.zero_shot import evaluate_zero_shot

__all__ = [
    "NamesConcept",
    "RobustnessReport",
    "Row",
    "SheetRow",
    "TextEvaluation",
    "attack_sheet",
    "bootstrap_interval",
    "environment",
    "evaluate_captions",
    "evaluate_targeted",
    "evaluate_zero_shot",
    "fraction_interval",
    "make_row",
    "text_classifier",
    "validate",
    "wilson_interval",
]
