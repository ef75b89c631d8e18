"""CIDEr, VQA accuracy, POPE, multiple choice; and the ensemble of attacks through a tiny random LLaVA."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.tiny_llava import PROMPT, images

from fare_hf.attacks import ThreatModel
from fare_hf.evaluation import RobustnessReport, Row
from fare_hf.evaluation.report.intervals import bootstrap_interval, bootstrap_statistic, paired_interval
from fare_hf.evaluation.vlm.ensemble import evaluate_vlm
from fare_hf.evaluation.vlm.metrics import Choice, Cider, VqaAccuracy, YesNo, caption_tokens, says_yes
from fare_hf.evaluation.vlm.vqa_answers import normalize_answer
from fare_hf.vlm import VlmLoss, generate_text

REFERENCES = [
    ["a dog runs on the grass", "a brown dog running"],
    ["two cats on a sofa", "cats sleep on a sofa", "a pair of cats"],
    ["a red bus in the street"],
]


def plain_cider(answer: str, index: int, references: list[list[str]] = REFERENCES) -> float:
    """CIDEr-D written from the paper's formulas with dense vectors."""
    grams = lambda text, n: [tuple(text.split()[i : i + n]) for i in range(len(text.split()) - n + 1)]  # noqa: E731
    total = []
    for n in range(1, 5):
        known = sorted({g for refs in [*references, [answer]] for ref in refs for g in grams(ref, n)})
        documents = [sum(any(g in grams(ref, n) for ref in refs) for refs in references) for g in known]
        idf = np.log(len(references)) - np.log(np.maximum(documents, 1))
        vector = lambda text: np.array([grams(text, n).count(g) for g in known]) * idf  # noqa: B023, E731
        mine, values = vector(answer), []
        for ref in references[index]:
            theirs, difference = vector(ref), len(grams(answer, 2)) - len(grams(ref, 2))
            norm = np.linalg.norm(mine) * np.linalg.norm(theirs)
            cosine = np.minimum(mine, theirs) @ theirs / (norm or 1.0)
            values.append(cosine * math.exp(-(difference**2) / 72))
        total.append(np.mean(values))
    return 10 * float(np.mean(total))


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize(
    "answer", ["a dog runs on the grass", "two cats on a red sofa", "a a a a a bus", "zebra", "", "cats"]
)
def test_cider_is_the_formula(answer: str, index: int) -> None:
    assert Cider(REFERENCES).score(answer, index) == pytest.approx(plain_cider(answer, index), abs=1e-12)


def test_cider_of_the_reference_implementation() -> None:
    # Computed with pycocoevalcap 1.2 (CiderScorer) on these very references.
    answers = ["a dog runs on grass", "two cats on a sofa", "a bus"]
    metric = Cider(REFERENCES)
    expected = REFERENCE_SCORES
    assert [metric.score(answer, index) for index, answer in enumerate(answers)] == pytest.approx(expected, abs=1e-9)
    assert metric.value(answers, range(3)) == pytest.approx(sum(expected) / 3)


REFERENCE_SCORES = [3.6506919541958243, 4.863329179486162, 0.9843027177169921]


def test_the_best_cider_is_ten_although_its_parts_are_rounded() -> None:
    captions = ["c h h g", "e f i d c d f", "j d g i j", "l c f c l e g"]
    assert Cider([[caption] for caption in captions]).score(captions[1], 1) == 10.0


def test_words_of_captions() -> None:
    text = "A man's dog isn't on the T-shirt, \"cool\"; it cannot (at 5 o'clock) cost 1,000!"
    expected = "a man 's dog is n't on the t-shirt cool it can not -lrb- at 5 o'clock -rrb- cost 1,000"
    assert caption_tokens(text) == expected.split()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("2.5m and 10km and 5th", "2.5 m and 10km and 5th"),
        ("Dr. Smith and Mrs. Lee, Jr. at 5th Blvd.", "dr. smith and mrs. lee jr. at 5th blvd."),
        ("e.g. a dog in the U.S.", "e.g. a dog in the u.s."),
        ("The 8:30 a.m. train's coming to St. James station!", "the 8:30 a.m. train 's coming to st. james station"),
        ("#1 fan @ home #yum", "# 1 fan @ home #yum"),
        ("Women in the '60s eat rock 'n' roll", "women in the '60s eat rock 'n' roll"),
        ("ready to go!! What?! No.", "ready to go !! what ?! no"),
        ("toilet,sink,and tub, no. 5", "toilet sink and tub no. 5"),
        ("[one] {two} www.example.com", "-lsb- one -rsb- -lcb- two -rcb- www.example.com"),
        ("A sign (American Airlines) 5'10\"", "a sign -lrb- american airlines -rrb- 5 10"),
    ],
)
def test_words_of_stanfords_tokeniser(text: str, words: str) -> None:
    # Written by pycocoevalcap 1.2 (PTBTokenizer, stanford-corenlp-3.4.1.jar).
    assert " ".join(caption_tokens(text)) == words


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Two  Dogs.", "2 dogs"),
        ("none", "0"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("red/blue", "red blue"),
        ("red, blue", "red blue"),
        ("1,000", "1000"),
        ("t-shirt", "t shirt"),
        ("2.5 m.", "2.5 m"),
        ("yes!\n", "yes"),
        ("it's", "it's"),
    ],
)
def test_answers_become_the_official_form(text: str, normal: str) -> None:
    assert normalize_answer(text) == normal


def test_vqa_accuracy_leaves_one_out() -> None:
    metric = VqaAccuracy([["yes"] * 8 + ["no"] * 2, ["cat"] * 10, ["a", "b", "b", "c", "c", "c"]])
    assert metric.score("Yes.", 0) == 1.0
    assert metric.score("no", 0) == pytest.approx((8 * 2 / 3 + 2 * 1 / 3) / 10)
    assert metric.score("dog", 1) == 0.0 and metric.score("the cat", 1) == 1.0
    assert metric.texts(2) == ["c", "b", "a"]
    assert VqaAccuracy([["A cat."] * 10]).score("cat", 0) == 1.0


def test_pope_counts_as_its_authors_do() -> None:
    assert says_yes("Yes, there is.") and not says_yes("No, there is no cat") and not says_yes("there is not")
    assert says_yes("I see it. not a dog") and says_yes("nothing") and says_yes("NO") and says_yes("no\nit is")
    assert not says_yes("Well, no, there is none")
    metric = YesNo(["yes", "no", "yes", "no"], ["random", "random", "popular", "popular"])
    answers = ["yes", "yes", "no", "no"]
    assert [metric.score(answer, index) for index, answer in enumerate(answers)] == [1, 0, 0, 1]
    assert metric.value(answers, range(4)) == pytest.approx((2 / 3 + 0) / 2)


def test_choices_are_letters() -> None:
    metric = Choice(["B"])
    assert [metric.score(text, 0) for text in ("B", "B. the cat", "(B)", "A", "b", "Bus", "")] == [1, 1, 1, 0, 0, 0, 0]
    free = ("The answer is B.", "B: it is", "I think. The answer is B.", "B cat", "The answer is B. The answer is A.")
    assert [metric.score(text, 0) for text in free] == [1, 1, 1, 0, 0]


def test_cider_rows_may_exceed_one() -> None:
    fields = {"model": "m", "task": "captions", "dataset": "d", "value": 1.155, "ci": [1.0, 1.3], "n": 9}
    assert Row(metric="CIDEr", **fields).value == 1.155
    with pytest.raises(ValueError, match="fractions"):
        Row(metric="accuracy", **fields)


def test_bootstrap_of_a_mean_and_of_a_pair() -> None:
    values = np.random.default_rng(0).random(60)
    low, high = bootstrap_statistic(lambda rows: float(values[rows].mean()), 60, resamples=2000)
    assert np.allclose((low, high), bootstrap_interval(values.tolist()), atol=0.01)
    grouped = bootstrap_statistic(lambda rows: float(values[rows].mean()), 60, [i // 6 for i in range(60)])
    assert grouped[0] <= values.mean() <= grouped[1]
    change, (low, high) = paired_interval(values.tolist(), (values + 0.1).tolist())
    assert change == pytest.approx(0.1) and low == pytest.approx(0.1) and high == pytest.approx(0.1)


NAMES = {"model": "LLaVA", "task": "vqa", "dataset": "noise", "max_new_tokens": 3, "batch_size": 3}
THREATS = [ThreatModel("linf", "64/255"), ThreatModel("linf", "16/255")]


def test_the_ensemble_keeps_each_samples_worst(vlm, proc) -> None:
    pixels = images(5)
    prompts = [PROMPT.replace("describe", word) for word in ("describe", "the", "describe", "a", "describe")]
    said = generate_text(vlm, proc, pixels, prompts, max_new_tokens=3)
    metric = VqaAccuracy([[*[text or "cat"] * 4, "dog"] for text in said[:4]] + [["zzz"] * 4])
    options = {"threat_models": THREATS, "steps": 6, "targets": ("cat",), "seed": 3}
    result = evaluate_vlm(vlm, proc, pixels, prompts, metric, **options, **NAMES)
    RobustnessReport(result.rows)
    clean, large, small = result.rows
    assert result.clean == said and result.scores[4] == 0.0
    assert large.value <= small.value <= clean.value and large.value < clean.value
    name = "apgd-nll(half bfloat16, references 2)+apgd-nll+apgd-towards(cat)"
    assert large.attack == {"name": name, "steps": 6, "restarts": 1, "seed": 3} and large.metric == "VQA accuracy"
    for threat in THREATS:
        found = result.attacked[str(threat)]
        assert 4 not in found.pixels  # lost already
        for index, image in found.pixels.items():
            threat.check(image[None], pixels[index : index + 1])
            answer = generate_text(vlm, proc, image[None], prompts[index], max_new_tokens=3)[0]
            lost = found.scores[index] < result.scores[index]
            assert not lost or (answer == found.answers[index] and metric.score(answer, index) == found.scores[index])


def test_single_precision_starts_where_half_precision_ended(vlm, proc, monkeypatch: pytest.MonkeyPatch) -> None:
    import fare_hf.evaluation.vlm.ensemble as module

    seen: list[tuple[bool, bool, int]] = []
    original = module.apgd

    def spy(loss, pixels, threat, *, start=None, **rest):
        seen.append((torch.is_autocast_enabled("cpu"), start is not None, len(pixels)))
        return original(loss, pixels, threat, start=start, **rest)

    monkeypatch.setattr(module, "apgd", spy)
    metric = Cider([["a cat", "the dog"], ["a bird"]], threshold=-1.0)  # nobody is ever given up
    evaluate_vlm(vlm, proc, images(2), PROMPT, metric, threat_models=THREATS[:1], steps=2, **NAMES)
    assert seen == [(True, False, 2), (True, False, 1), (False, True, 2)]
    seen.clear()
    evaluate_vlm(vlm, proc, images(2), PROMPT, metric, threat_models=THREATS[:1], steps=2, half=None, **NAMES)
    assert seen == [(False, False, 2), (False, False, 1)]


def test_batches_do_not_change_the_loss_that_is_attacked(vlm, proc) -> None:
    pixels, texts = images(3), ["a cat", "the red dog", "bird"]
    together = VlmLoss(vlm, proc, PROMPT, texts)(pixels)
    alone = [VlmLoss(vlm, proc, PROMPT, [text])(pixels[i : i + 1]) for i, text in enumerate(texts)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
