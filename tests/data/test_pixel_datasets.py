"""Data: folders, saved sets and streams to pixels; what is refused names the file or the column."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessor

from fare_hf.data.batches import collate_pixels, sample_generator
from fare_hf.data.columns import class_names_of, find_columns
from fare_hf.data.opening import load_images
from fare_hf.data.pixel_datasets import PixelDataset, PixelStream


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Two classes with three noise images each, 40 x 48."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(3):
            picture = Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8))
            picture.save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


def test_folder_to_pixels_with_labels(image_folder: Path, processor: CLIPImageProcessor) -> None:
    dataset = load_images(str(image_folder))
    assert find_columns(dataset) == ("image", "label")
    pixels = PixelDataset(dataset, processor, "image", "label")
    assert (len(pixels), pixels.class_names) == (6, ["cat", "dog"])
    sample = pixels[4]
    assert (sample["labels"], sample["index"]) == (1, 4)
    assert sample["pixel_values"].shape == (3, 32, 32)
    assert 0 <= sample["pixel_values"].min() < sample["pixel_values"].max() <= 1
    processor.do_normalize = False
    expected = processor(images=dataset[4]["image"], return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(sample["pixel_values"], expected)


def test_collate_makes_a_batch_through_a_loader(image_folder: Path, processor: CLIPImageProcessor) -> None:
    pixels = PixelDataset(load_images(str(image_folder)), processor)
    batch = next(iter(DataLoader(pixels, batch_size=4, collate_fn=collate_pixels)))
    assert batch["pixel_values"].shape == (4, 3, 32, 32)
    assert batch["index"].tolist() == [0, 1, 2, 3]
    assert "labels" not in batch


def test_saved_sets_and_streams_give_the_same_pixels(
    image_folder: Path, processor: CLIPImageProcessor, tmp_path: Path
) -> None:
    dataset = load_images(str(image_folder))
    datasets.DatasetDict({"train": dataset}).save_to_disk(tmp_path / "saved")
    expected = list(PixelDataset(dataset, processor, "image", "label"))
    saved = PixelDataset(load_images(str(tmp_path / "saved")), processor, "image", "label")
    streamed = PixelStream(load_images(str(image_folder), streaming=True), processor, "image", "label")
    streamed.set_epoch(1)
    for others in (list(saved), list(streamed)):
        assert [(o["index"], o["labels"]) for o in others] == [(e["index"], e["labels"]) for e in expected]
        assert all(torch.equal(o["pixel_values"], e["pixel_values"]) for o, e in zip(others, expected, strict=True))
    with pytest.raises(ValueError, match="no split 'test'; its splits are train"):
        load_images(str(tmp_path / "saved"), "test")


def test_plain_sequences_of_pictures_work(processor: CLIPImageProcessor) -> None:
    rows = [{"picture": Image.new("RGBA", (50, 40), (255, 0, 0, 128)), "target": np.int64(2)}]
    sample = PixelDataset(rows, processor, "picture", "target")[0]
    assert sample["labels"] == 2
    torch.testing.assert_close(sample["pixel_values"][:, 0, 0], torch.tensor([255, 127, 127]) / 255)  # on white


def test_a_corrupt_image_is_named(image_folder: Path, processor: CLIPImageProcessor) -> None:
    (image_folder / "dog" / "1.png").write_bytes((image_folder / "dog" / "0.png").read_bytes()[:200])
    pixels = PixelDataset(load_images(str(image_folder)), processor)
    with pytest.raises(ValueError, match=r"sample 4 \(.*dog.1\.png\) is not a readable image.*remove or replace"):
        pixels[4]


def test_class_names_come_from_attribute_or_feature(image_folder: Path) -> None:
    dataset = load_images(str(image_folder))
    assert class_names_of(dataset, "label") == ["cat", "dog"]
    assert class_names_of(dataset) is None
    assert class_names_of([]) is None


def test_sample_generators_depend_on_their_numbers_alone() -> None:
    draws = [torch.rand(4, generator=sample_generator(*key)) for key in [(0, 1, 2), (0, 1, 2), (0, 2, 1), (1, 1, 2)]]
    assert torch.equal(draws[0], draws[1])
    assert not any(torch.equal(draws[0], other) for other in draws[2:])


def test_deep_grey_images_keep_their_values_and_vague_ones_are_refused(
    tmp_path: Path, processor: CLIPImageProcessor
) -> None:
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32)
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray((ramp / 257).round().astype(np.uint8)).save(tmp_path / "plain.png")
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "float.tiff")
    names = ("deep.png", "plain.png", "float.tiff")
    data = PixelDataset([{"image": {"path": str(tmp_path / name), "bytes": None}} for name in names], processor)
    assert (data[0]["pixel_values"] - data[1]["pixel_values"]).abs().max() < 1.01 / 255  # cut to 16 bit before
    assert 0.4 < data[0]["pixel_values"].mean() < 0.6
    with pytest.raises(ValueError, match=r"sample 2 \(.*float.tiff\) is not a readable image.*no agreed range"):
        data[2]


def test_an_image_too_large_for_pillow_is_named(
    tmp_path: Path, processor: CLIPImageProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    data = PixelDataset([{"image": {"path": str(tmp_path / "huge.png"), "bytes": None}}], processor)
    with pytest.raises(ValueError, match=r"huge.png\) is not a readable image"):
        data[0]
