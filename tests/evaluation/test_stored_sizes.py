"""Models that read images of any size: what is attacked is the file's own pixels, in batches of one size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_vlms import TINY, images
from PIL import Image

from fare_hf import RobustnessReport
from fare_hf.cli import main as cli
from fare_hf.data.pixel_datasets import PixelDataset
from fare_hf.data.pixels import StoredPixels, to_pil
from fare_hf.evaluation.attack_loop import gather, same_sized
from fare_hf.evaluation.vlm import stealth
from fare_hf.evaluation.vlm.adversarial_images import load_exported
from fare_hf.evaluation.vlm.engine import VlmEngine
from fare_hf.evaluation.vlm.sets import CAPTION_QUESTION
from fare_hf.vlm import generate_text, tower_of
from fare_hf.vlm.processors import attacked_pixels

TEMPLATE = "user : <image> {} assistant :"
SIDES = [(40, 56), (48, 36), (40, 56), (48, 36), (40, 56)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SmolVLM's relative, which loads without torchvision, and pictures of two sizes with captions."""
    place = tmp_path_factory.mktemp("sizes")
    tiny = TINY["Idefics3"]
    tiny.model().save_pretrained(place / "vlm")
    tiny.processor().save_pretrained(place / "vlm")
    tower_of(tiny.model()).save_pretrained(place / "tower")
    for folder, sides in (("photos", SIDES), ("alike", SIDES[:1] * 2)):
        (place / folder).mkdir()
        for number, (height, width) in enumerate(sides):
            to_pil(images(1, height, width, seed=number))[0].save(place / folder / f"{number}.png")
        said = ["a red cat", "a dog"]
        lines = [{"file_name": f"{number}.png", "caption": said[number % 2]} for number in range(len(sides))]
        (place / folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return place


def pictures(place: Path) -> PixelDataset:
    rows = [{"image": str(place / "photos" / f"{number}.png")} for number in range(len(SIDES))]
    return PixelDataset(rows, attacked_pixels(TINY["Idefics3"].processor()))


@pytest.mark.parametrize("name", TINY)
def test_the_pixels_that_are_attacked_are_what_the_file_or_the_tower_holds(name: str) -> None:
    """Fixed where the processor makes one picture of one size, which it then does of both."""
    found = attacked_pixels(TINY[name].processor())
    fixed = {"Llava (1.5, BakLlava)", "Llava on SigLIP", "VipLlava", "DeepseekVL", "PaliGemma", "Gemma3"}
    assert isinstance(found, StoredPixels) is (name not in fixed)
    picture = to_pil(images(1, 40, 56))[0]
    made = PixelDataset([{"image": picture}], found)[0]["pixel_values"]
    assert tuple(made.shape) == ((3, 40, 56) if name not in fixed else (3, 32, 32))
    if name not in fixed:
        assert to_pil(made[None])[0].tobytes() == picture.tobytes()


def test_batches_hold_images_of_one_size(place: Path) -> None:
    data = pictures(place)
    assert data.sizes == SIDES
    assert same_sized(range(5), 2, data) == [[0, 2], [4], [1, 3]] and same_sized([3, 4, 0], 8, data) == [[3], [4, 0]]
    assert same_sized(range(5), 2, torch.rand(5, 3, 4, 4)) == [[0, 1], [2, 3], [4]]
    rows = [{"pixel_values": torch.zeros(3, 4, width)} for width in (4, 5, 4)]
    assert same_sized(range(3), 2, rows) == [[0, 2], [1]]
    with pytest.raises(ValueError, match=r"images of 2 sizes \(40 x 56, 48 x 36, height x width\) make no batch: "):
        gather(data, [0, 1], torch.device("cpu"))


def test_each_picture_is_answered_whatever_its_batch_and_goes_on_in_the_middle(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = TINY["Idefics3"]
    model, processor, data = tiny.model(), tiny.processor(), pictures(place)
    prompts = [TEMPLATE.replace("{}", word) for word in ("cat", "dog", "bird", "face", "a photo")]
    options: dict[str, Any] = {"threshold": 0.0, "seed": 0, "batch_size": 2, "max_new_tokens": 3}
    engine = VlmEngine(model, processor, data, prompts, lambda text, index: 1.0, **options)
    whole = engine.clean().answers
    assert whole == [
        generate_text(model, processor, data[number]["pixel_values"][None], prompts[number], max_new_tokens=3)[0]
        for number in range(5)
    ]
    kept = [whole[0], whole[2], whole[4]]  # the first two batches
    monkeypatch.setattr(type(engine.saved), "answers", lambda self: list(kept))
    asked: list[list[int]] = []
    ask = VlmEngine._clean_answers
    monkeypatch.setattr(VlmEngine, "_clean_answers", lambda self, batch: asked.append(batch) or ask(self, batch))
    assert engine.clean().answers == whole and asked == [[1, 3]]


def test_the_command_measures_captions(place: Path, tmp_path: Path) -> None:
    line = ["evaluate", "--vlm", str(place / "vlm"), "--dataset", str(place / "photos"), "--task", "captions"]
    line += ["--template", TEMPLATE, "--steps", "1", "--samples", "3", "--eps", "4/255"]
    cli.main([*line, "--output_dir", str(tmp_path / "out")])
    rows = RobustnessReport.load(tmp_path / "out").rows
    assert [(row.metric, row.n) for row in rows] == [("CIDEr", 3)] * 2


def test_the_command_forces_strings_in_pictures_as_they_are_stored(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["attack", str(place / "vlm"), "--dataset", str(place / "alike"), "--template", TEMPLATE]
    (tmp_path / "targets.txt").write_text("face\n")
    line += ["--targets", str(tmp_path / "targets.txt"), "--eps", "8/255", "--steps", "4", "--max_new_tokens", "3"]
    cli.main([*line, "--output_dir", str(tmp_path / "out")])
    found = load_exported(tmp_path / "out" / "target-0" / "images")
    assert found.pixels.shape == (2, 3, 40, 56) and not torch.equal(found.pixels, found.clean)
    with Image.open(place / "alike" / "0.png") as picture:
        assert to_pil(found.clean)[0].tobytes() == picture.tobytes()


def test_the_command_forces_strings_in_pictures_of_several_sizes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each size is attacked in batches of its own; pictures, answers and names stay with their images; it goes on."""
    (tmp_path / "targets.txt").write_text("face\n")
    attacked: list[tuple[int, ...]] = []
    apgd = stealth.apgd

    def noted(loss: Any, pixels: torch.Tensor, *words: Any, **options: Any) -> Any:
        attacked.append(tuple(pixels.shape))
        return apgd(loss, pixels, *words, **options)

    monkeypatch.setattr(stealth, "apgd", noted)
    line = ["attack", str(place / "vlm"), "--dataset", str(place / "photos"), "--template", TEMPLATE, "--steps", "3"]
    line += ["--targets", str(tmp_path / "targets.txt"), "--eps", "8/255", "--batch_size", "2", "--max_new_tokens"]
    line += ["3", "--victims", f"itself={place / 'tower'}", "--output_dir", str(tmp_path / "out")]
    cli.main(line)
    assert attacked == [(2, 3, 40, 56), (1, 3, 40, 56), (2, 3, 48, 36)]
    found = load_exported(tmp_path / "out" / "target-0" / "images")
    assert [entry["original"] for entry in found.entries] == [f"{number}.png" for number in range(5)]
    tiny = TINY["Idefics3"]
    model, processor, prompt = tiny.model(), tiny.processor(), TEMPLATE.replace("{}", CAPTION_QUESTION)
    for number, entry in enumerate(found.entries):
        with Image.open(place / "photos" / f"{number}.png") as picture:
            assert to_pil(found.clean[number][None])[0].tobytes() == picture.tobytes()
        change = (found.pixels[number] - found.clean[number]).abs().max().item() * 255
        assert 0 < change < 8.01
        for kind, images_of in (("answer", found.pixels), ("clean_answer", found.clean)):
            asked = generate_text(model, processor, images_of[number][None], prompt, max_new_tokens=3)
            assert asked == [entry[kind]]
    rows = RobustnessReport.load(tmp_path / "out").rows
    assert [row.n for row in rows] == [5] * 4 and rows[-1].value == rows[-2].value  # its own tower, shown again
    monkeypatch.setattr(stealth, "apgd", pytest.fail)
    cli.main(line)
    assert RobustnessReport.load(tmp_path / "out").rows == rows
