"""What attacks, losses and threat models refuse, and the sentence that says so."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from helpers import small_nets
from helpers.refusals import Refusal, table
from torch import Tensor

from fare_hf.attacks import (
    ClassifierLoss,
    ThreatModel,
    apgd,
    autoattack,
    check_labels,
    check_pixels,
    class_stages,
    cross_entropy,
    dlr,
    fab,
    margin,
    parse_eps,
    pgd,
    square,
    targeted_dlr,
    universal_perturbation,
)

BALL = ThreatModel("linf", "6/255")
PIXELS = torch.full((2, 3, 8, 8), 0.5)
NET, IMAGES, LABELS = small_nets.problem(3, 10, 10, 80)
WEIGHT = torch.ones((), requires_grad=True)
ZEROS = torch.zeros(2, dtype=torch.long)


def total(z: Tensor) -> Tensor:
    return z.sum((1, 2, 3))


def never(z: Tensor) -> Tensor:
    raise AssertionError("the loss was called")


def run_pgd(loss_fn: Any = never, pixels: Tensor = PIXELS, **changes: Any) -> Tensor:
    return pgd(loss_fn, pixels, BALL, **{"steps": 2, "step_size": "1/255", **changes})


PGD = [
    Refusal("no steps", lambda: run_pgd(steps=0), ValueError, "steps 0 is not positive"),
    Refusal("steps below 0", lambda: run_pgd(steps=-3), ValueError, "steps -3 is not positive"),
    Refusal("steps that are no whole number", lambda: run_pgd(steps=2.0), TypeError, "steps 2.0 is a float"),
    Refusal("a negative step", lambda: run_pgd(step_size=-0.1), ValueError, "step_size -0.1 is negative"),
    Refusal("a step of 0", lambda: run_pgd(step_size=0), ValueError, "step_size 0 is not positive"),
    Refusal(
        "a step in levels",
        lambda: run_pgd(step_size=1.5),
        ValueError,
        "step_size 1.5 is above 1, the range of the pixels: did you mean 1.5/255?",
    ),
    Refusal("a step of NaN", lambda: run_pgd(step_size=math.nan), ValueError, "step_size nan is not finite"),
    Refusal("a step over 0", lambda: run_pgd(step_size="1/0"), ValueError, "step_size '1/0' is not a number"),
    Refusal(
        "pixels below 0", lambda: run_pgd(pixels=PIXELS - 3), ValueError, "pixels spans [-2.5, -2.5], outside [0, 1]"
    ),
    Refusal("one image without a batch", lambda: run_pgd(pixels=PIXELS[0]), ValueError, "pixels has shape (3, 8, 8)"),
    Refusal(
        "integer pixels",
        lambda: run_pgd(pixels=PIXELS.long()),
        TypeError,
        "pixels has dtype torch.int64, but pixels are float32 in [0, 1]: divide by 255 and pass float32.",
    ),
    Refusal(
        "a start of another shape",
        lambda: run_pgd(start=PIXELS[:1]),
        ValueError,
        "perturbed pixels have shape (1, 3, 8, 8) and clean pixels (2, 3, 8, 8): pass two batches of the same shape.",
    ),
]
LOSSES = [
    Refusal(
        "one value for all",
        lambda: run_pgd(lambda z: z.sum()),
        ValueError,
        "loss_fn's loss has shape (): return one value a sample, (2,).",
    ),
    Refusal(
        "one success for all",
        lambda: run_pgd(lambda z: (total(z), torch.ones(1))),
        ValueError,
        "loss_fn's success has shape (1,): return one value a sample, (2,).",
    ),
    Refusal(
        "a loss without a graph",
        lambda: run_pgd(lambda z: total(z.detach())),
        ValueError,
        "loss_fn's loss does not depend on its pixels differentiably",
    ),
    Refusal(
        "a loss of weights alone",
        lambda: run_pgd(lambda z: total(z.detach()) * WEIGHT),
        ValueError,
        "loss_fn's loss does not depend on its pixels differentiably",
    ),
]
APGD = [
    Refusal("apgd: no steps", lambda: apgd(total, PIXELS, BALL, steps=0), ValueError, "steps 0 is not positive"),
    Refusal(
        "apgd: no restarts",
        lambda: apgd(total, PIXELS, BALL, steps=1, restarts=0),
        ValueError,
        "restarts 0 is not positive: pass at least 1, or skip the attack.",
    ),
    Refusal(
        "apgd: pixels above 1",
        lambda: apgd(total, PIXELS + 1, BALL, steps=1),
        ValueError,
        "pixels spans [1.5, 1.5], outside [0, 1]",
    ),
    Refusal(
        "stopping without success",
        lambda: apgd(lambda z: cross_entropy(NET(z), LABELS), IMAGES, BALL, steps=2, stop_fooled=True),
        ValueError,
        "loss_fn gives no success to stop at: return (loss, success), or stop_fooled=False.",
    ),
    Refusal(
        "stopping without select",
        lambda: apgd(lambda z: ClassifierLoss(NET, LABELS)(z), IMAGES, BALL, steps=9, stop_fooled=True),
        ValueError,
        "function has no select(rows): pass a loss such as ClassifierLoss, or stop_fooled=False.",
    ),
    Refusal(
        "a resume that is a number",
        lambda: apgd(total, PIXELS, BALL, steps=2, resume=3),
        TypeError,
        "resume 3 is a int: pass a state that save was given.",
    ),
]
FEW_CLASSES = [
    Refusal(
        "dlr of 2 classes",
        lambda: dlr(torch.randn(2, 2), ZEROS),
        ValueError,
        "dlr needs logits of shape (B, K) with at least 3 classes, not (2, 2): use cross_entropy for fewer classes.",
    ),
    Refusal(
        "targeted dlr of 3 classes",
        lambda: targeted_dlr(torch.randn(2, 3), ZEROS, ZEROS + 1),
        ValueError,
        "targeted_dlr needs logits of shape (B, K) with at least 4 classes, not (2, 3)",
    ),
    Refusal(
        "margin of 1 class",
        lambda: margin(torch.randn(2, 1), ZEROS),
        ValueError,
        "margin needs logits of shape (B, K) with at least 2 classes, not (2, 1)",
    ),
    Refusal(
        "an ensemble of 1 class", lambda: class_stages(1), ValueError, "an attack on a classifier needs at least 2."
    ),
]
ENSEMBLE = [
    Refusal(
        "an unknown version",
        lambda: autoattack(NET, IMAGES, LABELS, BALL, version="plus"),
        ValueError,
        "version 'plus' is unknown: pass one of standard, paper.",
    ),
    Refusal(
        "a label above the classes",
        lambda: check_labels(torch.tensor([0, 10]), 2, 10),
        ValueError,
        "labels span [0, 10], outside the 10 classes of the logits.",
    ),
    Refusal(
        "too few labels",
        lambda: autoattack(NET, IMAGES, LABELS[:3], BALL),
        ValueError,
        "labels have shape (3,) for 80 images: give one class an image.",
    ),
    Refusal(
        "no queries for an ensemble",
        lambda: autoattack(NET, IMAGES, LABELS, BALL, version="paper", queries=0),
        ValueError,
        "queries 0 is not positive: pass at least 1, or skip the attack.",
    ),
    Refusal("an unknown loss", lambda: ClassifierLoss(NET, LABELS, "mse"), ValueError, "loss 'mse' is unknown"),
    Refusal(
        "a target that is not named",
        lambda: ClassifierLoss(NET, LABELS, "towards"),
        ValueError,
        "loss 'towards' with targets None: give targets to towards and the targeted losses only.",
    ),
]
SQUARE = [
    Refusal("no queries", lambda: square(total, PIXELS, BALL, queries=0), ValueError, "queries 0 is not positive"),
    Refusal("a share above 1", lambda: square(total, PIXELS, BALL, share=2), ValueError, "share 2 is not in (0, 1]"),
    Refusal(
        "a loss of NaN", lambda: square(lambda z: total(z) * math.nan, PIXELS, BALL, queries=2), ValueError, "NaN"
    ),
]
UNIVERSAL = {"epochs": 1, "step_size": "1/255"}
STARTS = [
    Refusal(
        "universal: a start of NaN",
        lambda: universal_perturbation(lambda rows: total, PIXELS, BALL, start=PIXELS[0] * math.nan, **UNIVERSAL),
        ValueError,
        "start holds NaN or infinity: pass the change that a run gave, or None.",
    ),
    Refusal(
        "universal: a small start",
        lambda: universal_perturbation(lambda rows: total, PIXELS, BALL, start=torch.zeros(3, 2, 2), **UNIVERSAL),
        ValueError,
        "start has shape (3, 2, 2): pass (3, 8, 8), as the images.",
    ),
]
WORDS: Any = "linf 4/255"
IN_WORDS = [
    Refusal(
        f"{name}: a threat model in words",
        call,
        TypeError,
        "threat_model 'linf 4/255' is a str: pass a ThreatModel(norm, eps)",
    )
    for name, call in {
        "pgd": lambda: pgd(total, PIXELS, WORDS, steps=2, step_size="1/255"),
        "apgd": lambda: apgd(total, PIXELS, WORDS, steps=2),
        "fab": lambda: fab(total, PIXELS, WORDS, steps=2),
        "square": lambda: square(total, PIXELS, WORDS, queries=2),
        "autoattack": lambda: autoattack(lambda z: z.flatten(1)[:, :4], PIXELS, ZEROS, WORDS, steps=2),
        "universal": lambda: universal_perturbation(lambda rows: total, PIXELS, WORDS, **UNIVERSAL),
    }.items()
]
THREAT_MODELS = [
    Refusal(
        "an unknown norm", lambda: ThreatModel("l1", 0.1), ValueError, "norm 'l1' is unknown: pass 'linf' or 'l2'."
    ),
    Refusal(
        "a threat model with another field",
        lambda: ThreatModel.from_dict({"norm": "linf", "epsilon": 0.1}),
        ValueError,
        "threat model has keys ['epsilon', 'norm']: pass exactly 'norm' and 'eps'.",
    ),
]
PIXEL_TENSORS = [
    Refusal(f"pixels: {name}", partial(check_pixels, pixels), error, sentence)
    for name, pixels, error, sentence in [
        ("a list", [0.5], TypeError, "pixels is a list: pass a float tensor of shape (B, 3, H, W) in [0, 1]."),
        ("bytes", PIXELS.byte(), TypeError, "divide by 255 and pass float32."),
        ("doubles", PIXELS.double(), TypeError, "pixels has dtype torch.float64, but pixels are float32 in [0, 1]"),
        ("no batch", PIXELS[0], ValueError, "pixels has shape (3, 8, 8)"),
        ("an empty batch", PIXELS[:0], ValueError, "pixels has shape (0, 3, 8, 8)"),
        ("above 1", PIXELS + 1, ValueError, "outside [0, 1]: pass images before normalisation"),
        ("below 0", PIXELS - 1, ValueError, "pixels spans [-0.5, -0.5], outside [0, 1]"),
        ("NaN", PIXELS * math.nan, ValueError, "pixels spans [nan, nan], outside [0, 1]"),
    ]
]
EPS = [
    Refusal(f"{name}: eps {eps!r}", partial(read, eps), error, sentence)
    for name, read in {"parse_eps": parse_eps, "ThreatModel": partial(ThreatModel, "linf")}.items()
    for eps, error, sentence in [
        (4, ValueError, "eps 4 is outside [0, 1]"),
        ("8", ValueError, "did you mean 8/255?"),
        (1000, ValueError, "pass a fraction"),
        (-1 / 255, ValueError, "negative"),
        ("-4/255", ValueError, "negative"),
        (math.nan, ValueError, "not finite"),
        ("inf", ValueError, "not finite"),
        ("four", ValueError, "'four' is not a number"),
        ("4/0", ValueError, "not a number"),
        ("4/255/2", ValueError, "not a number"),
        ("", ValueError, "not a number"),
        (None, TypeError, "NoneType"),
        (True, TypeError, "bool"),
    ]
]


@table(
    *PGD, *LOSSES, *APGD, *FEW_CLASSES, *ENSEMBLE, *SQUARE, *STARTS, *IN_WORDS, *THREAT_MODELS, *PIXEL_TENSORS, *EPS
)
def test_bad_input_is_refused_in_a_sentence(row: Refusal, request: pytest.FixtureRequest) -> None:
    row.check(request)
