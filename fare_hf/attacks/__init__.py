"""Attacks in pixel space: threat models, PGD, APGD, FAB, Square, ensembles and their losses. Depends on torch alone.

An attack sees a loss function and pixels: `loss_fn(pixels (B, C, H, W) fp32 in [0, 1]) -> (B,)`, to be maximised. It
knows no model, no label and no normalisation.
"""

from fare_hf.attacks.apgd import ApgdResult, apgd
from fare_hf.attacks.classifier import ClassifierLoss, check_labels, predicted_classes
from fare_hf.attacks.ensemble import AutoAttackResult, Stage, autoattack, class_stages, ensemble_name
from fare_hf.attacks.fab import FabResult, fab
from fare_hf.attacks.gradient import LossFn
from fare_hf.attacks.losses import cross_entropy, dlr, margin, targeted_dlr, targeted_margin
from fare_hf.attacks.pgd import parse_step_size, pgd
from fare_hf.attacks.square import SquareResult, square
from fare_hf.attacks.threat_model import ThreatModel, check_pixels, format_eps
from fare_hf.attacks.universal import apply_universal, universal_perturbation
from fare_hf.numerals import parse_eps

__all__ = [
    "ApgdResult",
    "AutoAttackResult",
    "ClassifierLoss",
    "FabResult",
    "LossFn",
    "SquareResult",
    "Stage",
    "ThreatModel",
    "apgd",
    "apply_universal",
    "autoattack",
    "check_labels",
    "check_pixels",
    "class_stages",
    "cross_entropy",
    "dlr",
    "ensemble_name",
    "fab",
    "format_eps",
    "margin",
    "parse_eps",
    "parse_step_size",
    "pgd",
    "predicted_classes",
    "square",
    "targeted_dlr",
    "targeted_margin",
    "universal_perturbation",
]
