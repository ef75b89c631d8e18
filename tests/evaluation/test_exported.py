"""Strings forced and measured again from PNG files; transfer; one perturbation for many; the table of VLM sets."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
import torch
from helpers.tiny_llava import PROMPT, images
from PIL import Image

from fare_hf.attacks import ThreatModel
from fare_hf.data.pixels import quantize
from fare_hf.evaluation import RobustnessReport
from fare_hf.evaluation.vlm.adversarial_images import export_adversarial, load_exported, quantize_inside
from fare_hf.evaluation.vlm.forced_strings import read_targets
from fare_hf.evaluation.vlm.sets import VLM_SETS, VlmSet, load_vlm_set
from fare_hf.evaluation.vlm.stealth import STEALTH_TARGETS, evaluate_stealth
from fare_hf.evaluation.vlm.transfer import evaluate_universal_text, transfer_matrix
from fare_hf.vlm import generate_text

WIDE = ThreatModel("linf", "128/255")
ATTACK = {"name": "pgd", "steps": 1, "restarts": 1, "seed": 0}


@pytest.mark.parametrize("threat_model", [ThreatModel("linf", "2/255"), ThreatModel("l2", 0.5)], ids=str)
@pytest.mark.parametrize("on_levels", [True, False])
def test_rounding_stays_in_the_ball(threat_model: ThreatModel, on_levels: bool) -> None:
    clean = quantize(images(4)) if on_levels else images(4)
    if threat_model.norm == "l2" and not on_levels:
        clean = quantize(clean)  # between levels, no level may lie between a point and its clean value
    points = threat_model.random_start(clean, torch.Generator().manual_seed(1))
    found = quantize_inside(points, clean, threat_model)
    assert torch.equal(found, quantize(found))
    assert (threat_model.violation(found, clean) <= 1e-6).all()
    if threat_model.norm == "linf":
        assert (found - points).abs().max() <= 1 / 255 + 1e-6


def test_a_folder_of_images_says_what_they_are(tmp_path: Path) -> None:
    clean, threat = quantize(images(3)), ThreatModel("linf", "4/255")
    points = threat.random_start(clean)
    entries = [{"label": name} for name in "abc"]
    export_adversarial(tmp_path / "set", points, clean, threat, source="CLIP", attack=ATTACK, entries=entries)
    found = load_exported(tmp_path / "set")
    assert torch.equal(found.pixels, quantize_inside(points, clean, threat)) and torch.equal(found.clean, clean)
    assert found.facts == {"source": "CLIP", "threat_model": threat.to_dict(), "attack": ATTACK}
    assert [entry["label"] for entry in found.entries] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="not empty"):
        export_adversarial(tmp_path / "set", points, clean, threat, source="CLIP", attack=ATTACK)
    Image.new("RGB", (32, 32)).save(tmp_path / "set" / "00001.png")
    with pytest.raises(ValueError, match=r"00001\.png is not the image"):
        load_exported(tmp_path / "set")


def test_saved_pictures_can_be_shown_to_others(tmp_path: Path) -> None:
    """Levels k/255 are no fp32 numbers: at the edge of the ball they differ by a little more than eps."""
    clean, threat = quantize(images(4)), ThreatModel("linf", "8/255")
    points = threat.project(clean + threat.eps * torch.sign(images(4, seed=1) - 0.5), clean)
    export_adversarial(tmp_path / "set", points, clean, threat, source="A", attack=ATTACK)
    held = load_exported(tmp_path / "set")
    assert threat.violation(held.pixels, held.clean).max() > 0  # why the check counts levels
    names = {"task": "transfer", "dataset": "noise", "metric": "accuracy", "attack": ATTACK}
    judges = {"B": lambda z: [True] * len(z)}
    assert transfer_matrix({"A": held.pixels}, judges, held.clean, threat, **names).values == [[1.0]]
    smaller = ThreatModel("linf", "7/255")
    with pytest.raises(ValueError, match=r"pictures \[0, 1, 2, 3\] leave the threat model linf 7/255"):
        transfer_matrix({"A": held.pixels}, judges, held.clean, smaller, **names)


def a_word(vlm, proc, pixels: torch.Tensor) -> str:
    """A word that the model says to some image and to none of `pixels`."""
    said = " ".join(generate_text(vlm, proc, images(40, seed=9), PROMPT, max_new_tokens=1)).split()
    clean = " ".join(generate_text(vlm, proc, pixels, PROMPT, max_new_tokens=4))
    return next(word for word in sorted(set(said), key=said.count) if word not in clean)


def test_success_is_measured_from_the_saved_picture(vlm, proc, tmp_path: Path) -> None:
    pixels = quantize(images(4))
    target = a_word(vlm, proc, pixels)
    options = {"prompt": PROMPT, "model": "LLaVA", "dataset": "noise", "steps": 24, "save_every": 5, "batch_size": 3}
    options |= {"max_new_tokens": 4}
    result = evaluate_stealth(vlm, proc, pixels, target, WIDE, folder=tmp_path / "a", **options)
    RobustnessReport(result.rows)
    clean, direct, sent = result.rows
    assert clean.value == 0.0 and direct.value > 0 and sent.metric == "target forced by the PNG"
    held = load_exported(result.folder)
    said = generate_text(vlm, proc, held.pixels, PROMPT, max_new_tokens=4)
    assert said == result.answers and [target in text for text in said] == result.forced
    assert sent.value == sum(result.forced) / 4
    assert held.entries[0]["target"] == target
    with pytest.raises(ValueError, match="holds a run with another threat_model"):
        evaluate_stealth(vlm, proc, pixels, target, ThreatModel("linf", "1/255"), folder=tmp_path / "a", **options)
    # Interrupted after the first saved state, and called again: the same pictures.
    import fare_hf.evaluation.vlm.stealth as module

    original, count = module.write_tensors, [0]

    def interrupted(path, tensors, metadata):
        original(path, tensors, metadata)
        count[0] += 1
        if count[0] == 2:
            raise KeyboardInterrupt

    module.write_tensors = interrupted
    try:
        with pytest.raises(KeyboardInterrupt):
            evaluate_stealth(vlm, proc, pixels, target, WIDE, folder=tmp_path / "b", **options)
    finally:
        module.write_tensors = original
    again = evaluate_stealth(vlm, proc, pixels, target, WIDE, folder=tmp_path / "b", **options)
    assert torch.equal(load_exported(again.folder).pixels, held.pixels) and again.answers == result.answers


def test_targets_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "targets.txt").write_text("# mine\n\nbuy now\n")
    assert read_targets(tmp_path / "targets.txt") == ["buy now"] and len(STEALTH_TARGETS) == 6
    (tmp_path / "none.txt").write_text("# nothing\n")
    with pytest.raises(ValueError, match="no target string"):
        read_targets(tmp_path / "none.txt")


def test_transfer_is_a_matrix_of_rows() -> None:
    clean, threat = images(4), ThreatModel("linf", "8/255")
    made = {"A": threat.random_start(clean), "B": clean}
    judges = {"A": lambda z: (z == clean).flatten(1).all(1).tolist(), "B": lambda z: [True] * len(z)}
    names = {"task": "transfer", "dataset": "noise", "metric": "accuracy", "attack": ATTACK}
    found = transfer_matrix(made, judges, clean, threat, **names)
    RobustnessReport(found.rows)
    assert found.values == [[0.0, 1.0], [1.0, 1.0]] and found.rows[0].dataset == "noise made on A"
    assert found.to_markdown().splitlines()[2] == "| A | 0.0 | 100.0 |"
    strange = transfer_matrix({"a|b`c": clean}, {"d|e": judges["B"]}, clean, threat, **names).to_markdown()
    assert strange.splitlines()[0] == r"| made on | d\|e |" and r"| a\|b\`c | 100.0 |" in strange
    with pytest.raises(ValueError, match="leaves the threat model"):
        transfer_matrix({"A": 1 - clean}, judges, clean, threat, **names)


def test_one_perturbation_for_given_strings(vlm, proc) -> None:
    pixels, unseen = images(6), images(3, seed=4)
    target = a_word(vlm, proc, unseen)
    options = {"refused": lambda text: target not in text, "model": "LLaVA", "dataset": "noise", "epochs": 30}
    options |= {"step_size": "16/255", "batch_size": 3, "max_new_tokens": 2, "held_out": unseen}
    found = evaluate_universal_text(vlm, proc, pixels, [target], [PROMPT], WIDE, **options)
    change, rows, said = found.change, found.report().rows, found.answers
    assert change.shape == (3, 32, 32) and change.abs().max() <= WIDE.eps + 1e-7
    assert rows[0].value == 0.0 and rows[1].value > 0 and len(said) == 3


def saved(folder: Path, **columns) -> Path:
    """A data set as `save_to_disk` leaves it, under the name of a repository."""
    count = len(next(iter(columns.values())))
    pictures = [Image.new("RGB", (40, 40), (number * 50, 0, 0)) for number in range(count)]
    data = datasets.Dataset.from_dict(
        {"image": pictures, **columns},
        datasets.Features({"image": datasets.Image(), **datasets.Dataset.from_dict(columns).features}),
    )
    datasets.DatasetDict({"val": data}).save_to_disk(folder)
    return folder.parent


TEMPLATE = "user : <image> {} assistant :"


def test_sets_become_prompts_and_metrics(tmp_path: Path, proc) -> None:
    assert len(VLM_SETS) == 8
    root = saved(
        tmp_path / "vqa", question=["what ?", "who ?"], answers=[[{"answer": "cat"}] * 3, [{"answer": "dog"}]]
    )
    row = VlmSet("q", "x/vqa", "vqa", "val", "answers")
    data = load_vlm_set(row, proc, root=root, template=TEMPLATE)
    assert len(data.images) == len(data.prompts) == len(data.metric) == 2 and data.targets == ("maybe", "Word")
    place = 0 if "what" in data.prompts[0] else 1
    assert data.metric.texts(place) == ["cat"] and data.images[0]["pixel_values"].shape == (3, 32, 32)
    assert data.prompts[place].startswith("user : <image> what ?\nAnswer the question")
    root = saved(tmp_path / "sqa", question=["which ?"], choices=[["x", "y"]], hint=["h"], answer=[1])
    data = load_vlm_set(VlmSet("s", "x/sqa", "choice", "val", "answer"), proc, root=root, template=TEMPLATE)
    assert data.metric.texts(0) == ["B"] and "Context: h\nwhich ?\nA. x\nB. y\n" in data.prompts[0]
    root = saved(tmp_path / "pope", question=["a ?", "b ?"], answer=["yes", "no"], category=["random", "popular"])
    row = VlmSet("p", "x/pope", "pope", "val", "answer", splits="category")
    assert load_vlm_set(row, proc, root=root, template=TEMPLATE).metric.name == "F1"
    root = saved(tmp_path / "coco", answer=[["a cat", "the cat"], ["a dog"]])
    row = VlmSet("c", "x/coco", "captions", "val", "answer", threshold=0.1)
    data = load_vlm_set(row, proc, root=root, template=TEMPLATE, samples=2)
    assert data.metric.name == "CIDEr" and data.metric.threshold == 0.1
    with pytest.raises(ValueError, match="has no column 'caption'"):
        load_vlm_set(VlmSet("c", "x/coco", "captions", "val", "caption"), proc, root=root, template=TEMPLATE)


def test_pictures_that_leave_their_manifests_ball_are_refused(tmp_path: Path) -> None:
    """The digests are right, the radius is not."""
    clean, threat = quantize(images(2)), ThreatModel("linf", "8/255")
    points = threat.project(clean + 1, clean)
    path = export_adversarial(tmp_path / "set", points, clean, threat, source="A", attack=ATTACK)
    path.write_text(path.read_text().replace('"8/255"', '"7/255"'))
    with pytest.raises(ValueError, match=r"manifest.json': pictures \[0, 1\] leave the threat model linf 7/255"):
        load_exported(tmp_path / "set")


def test_an_export_that_is_cut_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a folder would be neither exported again nor read."""
    clean, threat = quantize(images(2)), ThreatModel("linf", "8/255")
    monkeypatch.setattr(
        "fare_hf.evaluation.vlm.adversarial_images.json.dumps",
        lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt),
    )
    with pytest.raises(KeyboardInterrupt):
        export_adversarial(tmp_path / "set", clean, clean, threat, source="A", attack=ATTACK)
    assert not list(tmp_path.iterdir())
