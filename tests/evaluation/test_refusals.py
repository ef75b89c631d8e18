"""What evaluations, metrics, intervals and sets refuse before anything is measured, and the sentence that says so."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import small_nets
from helpers.refusals import Refusal, changing, table
from helpers.tiny_llava import PROMPT, encoder, images, processor

from fare_hf.attacks import ThreatModel
from fare_hf.data.pixels import Normalization
from fare_hf.evaluation import (
    Row,
    bootstrap_interval,
    evaluate_captions,
    evaluate_targeted,
    evaluate_zero_shot,
    paired_difference,
    text_classifier,
    wilson_interval,
)
from fare_hf.evaluation.report.intervals import paired_interval
from fare_hf.evaluation.report.rows import fraction_row
from fare_hf.evaluation.vlm.adversarial_images import load_exported, quantize_inside
from fare_hf.evaluation.vlm.engine import VlmEngine
from fare_hf.evaluation.vlm.ensemble import evaluate_vlm
from fare_hf.evaluation.vlm.metrics import Choice, Cider, VqaAccuracy, YesNo
from fare_hf.evaluation.vlm.sets import chat_prompt
from fare_hf.evaluation.vlm.stealth import evaluate_stealth
from fare_hf.evaluation.vlm.transfer import evaluate_universal_text
from fare_hf.evaluation.zero_shot.classification import logits_function, predict_zero_shot
from fare_hf.evaluation.zero_shot.drift import retrieval_recall
from fare_hf.evaluation.zero_shot.gradient_masking import check_gradient_masking
from fare_hf.evaluation.zero_shot.sets import zero_shot_set

BALL = ThreatModel("linf", "2/255")
NAMES = {"model": "m", "dataset": "d"}
FIGURE = {"task": "zero-shot", "dataset": "emoji", "metric": "accuracy"}
WORDS: Any = "linf 2/255"
NORMALIZATION = Normalization.from_processor(processor())
IMAGES = images(2)


def never(*given: Any, **options: Any) -> None:
    raise AssertionError("the model was called")


def zero_shot(images: Any = IMAGES, labels: Any = (0, 1), classes: int = 3, text: Any = None, **changes: Any) -> Any:
    """An evaluation of an encoder that must not be run."""
    vision = encoder()
    vision.register_forward_hook(never)
    text = torch.eye(16)[:classes] if text is None else text
    options = {"normalization": NORMALIZATION, "threat_models": [BALL], **NAMES} | changes
    return evaluate_zero_shot(vision, text, images, labels, **options)


def labelled(labels: Any, **changes: Any) -> Any:
    """The same, where what is wrong is seen while the images are read."""
    options = {"normalization": NORMALIZATION, **NAMES} | changes
    return evaluate_zero_shot(encoder(), torch.eye(16)[:3], options.pop("images", images(2)), labels, **options)


@pytest.fixture
def silent(vlm: Any, proc: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """A vision-language model that must not be asked."""
    monkeypatch.setattr(VlmEngine, "clean", never)
    monkeypatch.setattr("fare_hf.evaluation.vlm.engine.generate_text", never)
    return vlm, proc


ASKED = {"prompt": PROMPT, "max_new_tokens": 4, "batch_size": 4, "threat_models": [BALL], **NAMES}


def captions(silent: Any, n: int = 2, captions: Any = ("a", "a"), **changes: Any) -> Any:
    return evaluate_captions(*silent, images(n), captions, **ASKED | changes)


def forced(silent: Any, target: str = "a", **changes: Any) -> Any:
    return evaluate_targeted(*silent, images(2), target, **ASKED | changes)


CATS = VqaAccuracy([["cat"]] * 2)


def answers(silent: Any, metric: Any = CATS, **changes: Any) -> Any:
    options = {"task": "vqa", "threat_models": [BALL], "steps": 2, "max_new_tokens": 4, **NAMES} | changes
    return evaluate_vlm(*silent, images(2), PROMPT, metric, **options)


def stealth(vlm: Any, proc: Any, tmp_path: Path, target: str = " ", **changes: Any) -> Any:
    return evaluate_stealth(vlm, proc, images(1), target, BALL, prompt=PROMPT, folder=tmp_path, **NAMES, **changes)


SETTINGS = [
    ({"groups": [1]}, "1 groups for 2 images: give one group per image."),
    ({"model": ""}, "model '' is no name: give one for the rows."),
    ({"seed": -1}, "seed -1 is no integer from 0: give one."),
    (
        {"threat_models": [BALL, BALL]},
        "threat models ['linf 2/255', 'linf 2/255'] repeat one another: give each once.",
    ),
    ({"steps": 0}, "steps 0 is not positive"),
]
LENGTHS = [
    ({"batch_size": 0}, "batch_size 0 is not positive"),
    ({"max_new_tokens": 0}, "max_new_tokens 0 is not positive"),
]
ZERO_SHOT = [
    ({"dataset": " "}, "dataset ' ' is no name: give one for the rows."),
    ({"seed": 1.0}, "seed 1.0 is no integer from 0: give one."),
    ({"restarts": 0}, "restarts 0 is not positive"),
    ({"queries": 0, "attack": "autoattack"}, "queries 0 is not positive"),
    ({"attack": "fgsm"}, "attack 'fgsm' is unknown"),
    ({"classes": 1}, "at least 2"),
    ({"target_classes": 0}, "target_classes 0"),
    ({"batch_size": 0}, "batch_size 0"),
    ({"images": images(2)[:0], "labels": []}, "data set is empty"),
    ({"labels": [0]}, "1 labels for 2 images: give one label per image."),
    *(
        ({"text": torch.ones(shape)}, f"text_embeddings have shape {shape}: pass (K, 16)")
        for shape in ((3, 15), (16,), (1, 3, 16))
    ),
]
LABELS = [
    Refusal("labels: of no class", lambda: labelled([0, 3]), ValueError, "label 3 is outside the 3 classes"),
    Refusal(
        "labels: none", lambda: labelled(None), ValueError, "labels are missing: pass labels with a tensor of pixels."
    ),
    Refusal(
        "labels: no column",
        lambda: labelled(None, images=[{"pixel_values": images(1)[0]}]),
        ValueError,
        "the data set gives no labels: name its label column, or pass labels.",
    ),
    Refusal(
        "labels: of items, no integers",
        lambda: labelled(None, images=[{"pixel_values": images(1)[0], "labels": 0.5}]),
        TypeError,
        "label 0.5 is no class number: pass integers.",
    ),
    *(
        Refusal(
            f"labels: {type(given).__name__} of floats",
            partial(labelled, given),
            TypeError,
            "is no class number: pass integers",
        )
        for given in ([0, 1.5], torch.tensor([0.0, 1.5]), np.array([0.0, 1.5]))
    ),
    Refusal("images above 1", lambda: labelled([0, 1], images=images(2) * 2), ValueError, "outside [0, 1]"),
    *(
        Refusal(
            f"texts of {shape}: predictions",
            partial(predict_zero_shot, encoder(), torch.ones(shape), images(2), NORMALIZATION),
            ValueError,
            f"text_embeddings have shape {shape}: pass (K, 16)",
        )
        for shape in ((3, 15), (16,), (1, 3, 16))
    ),
    *(
        Refusal(
            f"texts of {shape}: logits",
            partial(logits_function, encoder(), torch.ones(shape), NORMALIZATION),
            ValueError,
            f"text_embeddings have shape {shape}: pass (K, 16)",
        )
        for shape in ((3, 15), (16,), (1, 3, 16))
    ),
    Refusal("no classes", lambda: text_classifier(None, None, [], ["a {}."]), ValueError, "class_names is empty"),
    Refusal(
        "a template without a place",
        lambda: text_classifier(None, None, ["cat"], ["a cat"]),
        ValueError,
        "templates=['a cat'] must be a list of sentences that contain {} for the class name.",
    ),
    Refusal("an unknown set", lambda: zero_shot_set("MNIST"), ValueError, "there is no zero-shot set 'MNIST'"),
]
NET, PIXELS, TRUTH = small_nets.problem(5, 8, 8, 4)
OTHERS = [
    Refusal(
        "masking: as many steps",
        lambda: check_gradient_masking(NET, PIXELS, TRUTH, BALL, more=1),
        ValueError,
        "more 1 does not make the attack longer: pass a factor of at least 2.",
    ),
    Refusal(
        "masking: labels of no class",
        lambda: check_gradient_masking(NET, PIXELS, TRUTH + 8, BALL, steps=1),
        ValueError,
        "outside the 8 classes of the logits.",
    ),
    Refusal(
        "recall: an image without a caption",
        lambda: retrieval_recall(torch.eye(3), torch.eye(3), [0, 0, 2], **NAMES),
        ValueError,
        "3 owners for 3 texts: name one image of 3 each, and all.",
    ),
    Refusal(
        "recall: more than there are",
        lambda: retrieval_recall(torch.eye(3), torch.eye(3), [0, 1, 2], at=(9,), **NAMES),
        ValueError,
        "recall at [9] of 3 images and 3 texts: ask for fewer.",
    ),
    Refusal(
        "forced: pictures between two levels",
        lambda: quantize_inside(PIXELS * 0 + 0.5, PIXELS * 0 + 0.5, ThreatModel("linf", "0.3/255")),
        ValueError,
        "linf 0.3/255 holds no 8-bit image around these pixels: quantize the clean ones first.",
    ),
    Refusal(
        "forced: a folder without a manifest", lambda tmp_path: load_exported(tmp_path), ValueError, "no manifest"
    ),
]
VLM = [
    Refusal(
        "captions: one for two images",
        lambda silent: captions(silent, captions=["a"]),
        ValueError,
        "2 images, 1 captions, 1 references: give one of each per image.",
    ),
    Refusal(
        "captions: no restarts", lambda silent: captions(silent, restarts=0), ValueError, "restarts 0 is not positive"
    ),
    Refusal(
        "captions: no images",
        lambda vlm, proc: captions((vlm, proc), n=0, captions=[]),
        ValueError,
        "the data set is empty: pass at least one image.",
    ),
    Refusal(
        "captions: pixels below 0",
        lambda vlm, proc: evaluate_captions(vlm, proc, images(1) - 1, ["a"], **ASKED),
        ValueError,
        "outside [0, 1]",
    ),
    Refusal(
        "forced: nothing", lambda silent: forced(silent, target=" "), ValueError, "target ' ' and 1 threat models"
    ),
    Refusal(
        "forced: more than is answered",
        lambda silent: forced(silent, target="a a a a a"),
        ValueError,
        "target 'a a a a a' has 5 tokens, max_new_tokens is 4: raise it.",
    ),
    Refusal(
        "answers: one reference for two images",
        lambda silent: answers(silent, VqaAccuracy([["a"]])),
        ValueError,
        "2 images, 2 prompts, 1 references: give one of each per image.",
    ),
    Refusal("stealth: nothing", lambda vlm, proc, tmp_path: stealth(vlm, proc, tmp_path), ValueError, "target ' '"),
    Refusal(
        "stealth: more than is answered",
        lambda vlm, proc, tmp_path: stealth(vlm, proc, tmp_path, "a a a", max_new_tokens=2),
        ValueError,
        "target 'a a a' has 3 tokens, max_new_tokens is 2: raise it.",
    ),
    Refusal(
        "universal: no strings",
        lambda vlm, proc: evaluate_universal_text(
            vlm, proc, images(2), [], [PROMPT], BALL, refused=bool, epochs=1, step_size="1/255", **NAMES
        ),
        ValueError,
        "0 strings and 1 prompts: give at least one of each.",
    ),
    Refusal(
        "a processor without a chat template",
        lambda proc: chat_prompt(proc, "what ?"),
        ValueError,
        "LlavaProcessor has no chat template: give template (--template), such as 'USER: <image>\\n{} ASSISTANT:'.",
    ),
    Refusal(
        "a template without a place for the question",
        lambda proc: chat_prompt(proc, "what ?", "user :"),
        ValueError,
        "template 'user :' needs {} for the question and '<image>'.",
    ),
    Refusal("POPE: maybe", lambda: YesNo(["maybe"]), ValueError, "references hold ['maybe']"),
    Refusal("choices: two letters", lambda: Choice(["AB"]), ValueError, "references hold ['AB']"),
    Refusal(
        "CIDEr: one image", lambda: Cider([["a cat"]]), ValueError, "give at least two images, and captions for each."
    ),
    Refusal("VQA: no answers", lambda: VqaAccuracy([[]]), ValueError, "at least one question"),
]
INTERVALS = [
    Refusal("more successes than samples", lambda: wilson_interval(3, 2), ValueError, "3 successes of 2"),
    Refusal("no samples", lambda: wilson_interval(0, 0), ValueError, "0 successes of 0: give n >= 1 and 0 <= k <= n."),
    Refusal("a confidence in percent", lambda: wilson_interval(1, 2, 95), ValueError, "between 0 and 1"),
    Refusal("no values", lambda: bootstrap_interval([]), ValueError, "at least one value"),
    Refusal("values of NaN", lambda: bootstrap_interval([float("nan")]), ValueError, "finite"),
    Refusal("more groups than values", lambda: bootstrap_interval([1.0], [1, 2]), ValueError, "2 groups for 1 values"),
    Refusal("pairs of one and two", lambda: paired_interval([1.0], [1.0, 2.0]), ValueError, "same samples"),
]


def rate(model: str, success: list[bool], groups: list[int] | None = None, **changes: Any) -> Row:
    return fraction_row(success, groups, model=model, **(FIGURE | changes))


def paired(**other: Any) -> Any:
    row = other["row"] if "row" in other else rate("B", **other)
    return paired_difference(rate("A", [True, False]), row)


PAIRS = [
    ({"success": [True]}, "n 2 and 1"),
    ({"success": [True, False], "groups": [1, 1]}, "clusters differ"),
    ({"success": [True, False], "dataset": "x"}, "rows of one figure"),
    ({"row": Row(model="B", value=0.5, ci=(0, 1), n=2, **FIGURE)}, "no outcomes"),
]


def outcomes(**changes: Any) -> Row:
    return Row.from_dict(rate("A", [True, True, False, False]).to_dict() | changes)


OUTCOMES = [
    ({"outcomes": "110"}, "outcomes '110': give 4 characters"),
    ({"outcomes": "110x"}, "give 4 characters"),
    ({"outcomes": None}, "outcomes None"),
    ({"outcomes": "1110"}, "outcomes with mean 0.75"),
    ({"clusters": "0 1 1"}, "clusters '0 1 1': give 4 group numbers"),
    ({"clusters": "0 1 1 a"}, "give 4 group numbers"),
]


@table(
    *changing("zero-shot", zero_shot, [*SETTINGS, *ZERO_SHOT]),
    *changing("zero-shot", zero_shot, [({"threat_models": [WORDS]}, "threat_model 'linf 2/255' is a str")], TypeError),
    *changing("captions", captions, [*SETTINGS, *LENGTHS]),
    *changing("forced", forced, [*SETTINGS, *LENGTHS]),
    *changing("answers", answers, SETTINGS),
    *LABELS,
    *OTHERS,
    *VLM,
    *INTERVALS,
    *changing("paired", paired, PAIRS),
    *changing("outcomes", outcomes, OUTCOMES),
)
def test_bad_input_is_refused_in_a_sentence(row: Refusal, request: pytest.FixtureRequest) -> None:
    row.check(request)
