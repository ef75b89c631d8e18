"""`answers.jsonl`: what a vision-language model said to each image, beside the figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.tiny_llava import encoder, llava, processor
from helpers.vlm_folders import SAID, command, write_captions, write_images, write_llava
from PIL import Image

from fare_hf import RobustnessReport
from fare_hf.cli import main as cli
from fare_hf.evaluation.vlm.metrics import Cider, VqaAccuracy
from fare_hf.evaluation.vlm.own_data import MAX_NEW_TOKENS
from fare_hf.vlm import generate_text

MEAN, STD = processor().image_processor.image_mean, processor().image_processor.image_std


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA, an encoder for it, and images with captions, with questions, and with nothing."""
    place = tmp_path_factory.mktemp("answers")
    write_llava(place / "llava")
    encoder(seed=5).save_pretrained(place / "robust")
    write_captions(place / "photos", 4)
    write_images(place / "asked", [{"question": f"what {word} ?", "answer": "cat"} for word in ("red", "blue")])
    write_images(place / "plain", [{}, {}])
    (place / "plain" / "metadata.jsonl").unlink()
    (place / "strings.txt").write_text("red dog\n")
    return place


@pytest.mark.parametrize(("dataset", "task"), [("photos", "captions"), ("asked", "vqa"), ("plain", "targeted")])
def test_the_answers_behind_the_figures_are_written_down(dataset: str, task: str, place: Path, tmp_path: Path) -> None:
    """One line an image and tower: what plain generation says of it, and what the attack made of that."""
    more = ["--targets", str(place / "strings.txt")] if task == "targeted" else []
    words = [str(place / "robust"), *command(place / "llava", place / dataset, task)[1:], *more]
    cli.main(["evaluate", *words, "--output_dir", str(tmp_path)])
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    count = len(list((place / dataset).glob("*.png")))
    assert [line["model"] for line in lines] == ["llava"] * count + ["llava + robust"] * count
    assert [line["image"] for line in lines[:count]] == [f"photo{number}.png" for number in range(count)]
    assert all(list(line["attacked"]) == ["linf 4/255"] for line in lines)
    wanted = {"captions": [list(SAID[:2]), list(SAID[1:])], "vqa": [["cat"] * 4] * 2, "targeted": [["red dog"]] * 2}
    assert [line["references"] for line in lines[:2]] == wanted[task]
    vlm = llava()
    for line in lines[:count]:
        pixels = processor().image_processor(images=Image.open(place / dataset / line["image"]), return_tensors="pt")
        mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
        shown = (pixels["pixel_values"] * std + mean).clamp(0, 1)
        assert (
            line["clean"]
            == generate_text(vlm, processor(), shown, line["prompt"], max_new_tokens=MAX_NEW_TOKENS[task])[0]
        )
    rows = RobustnessReport.load(tmp_path).rows
    attacked = [line["attacked"]["linf 4/255"] for line in lines]
    assert task != "captions" or attacked != [line["clean"] for line in lines]
    if task != "targeted":
        metric = {"captions": Cider, "vqa": VqaAccuracy}[task]([line["references"] for line in lines[:count]])
        for at, row in ((0, rows[1]), (count, rows[3])):
            assert row.value == pytest.approx(metric.value(attacked[at : at + count], range(count)))
    if task == "targeted":
        forced = [line["references"][0] in line["attacked"]["linf 4/255"].lower() for line in lines[count:]]
        assert rows[-1].value == sum(forced) / count
