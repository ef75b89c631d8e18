"""Every kind of value and picture that data sets hold gives the right pixels, or one sentence; none is endless."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor

from fare_hf.data import decoding
from fare_hf.data.columns import find_columns
from fare_hf.data.decoding import to_rgb
from fare_hf.data.pixel_datasets import PixelDataset, PixelStream

BYTES = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
PICTURE = Image.fromarray(BYTES)


def png(image: Image.Image, **options: Any) -> bytes:
    """The picture as a file."""
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


KINDS: dict[str, Callable[[Path], Any]] = {
    "picture": lambda path: PICTURE,
    "path": lambda path: str(path),
    "Path": lambda path: path,
    "bytes": lambda path: path.read_bytes(),
    "path in a mapping": lambda path: {"path": str(path)},
    "bytes in a mapping": lambda path: {"bytes": path.read_bytes()},
    "array": lambda path: BYTES,
    "channels first": lambda path: BYTES.transpose(2, 0, 1),
    "floats": lambda path: BYTES / 255.0,
    "int64": lambda path: BYTES.astype(np.int64),
    "lists": lambda path: BYTES.tolist(),
    "tuples": lambda path: tuple(map(tuple, BYTES.tolist())),
    "tensor": lambda path: torch.from_numpy(BYTES).permute(2, 0, 1),
    "floats in a tensor": lambda path: torch.from_numpy(BYTES).permute(2, 0, 1).float() / 255,
    "16 bit": lambda path: BYTES.astype(np.uint16) * 257,
}


@pytest.mark.parametrize("kind", KINDS)
def test_columns_of_any_kind_give_the_same_pixels(kind: str, tmp_path: Path, processor: CLIPImageProcessor) -> None:
    PICTURE.save(tmp_path / "0.png")
    rows = [{"image": KINDS[kind](tmp_path / "0.png")}]
    sample = PixelDataset(rows, processor)[0]
    torch.testing.assert_close(sample["pixel_values"], torch.from_numpy(BYTES).permute(2, 0, 1) / 255)


@pytest.mark.parametrize("kind", ["path", "bytes", "lists"])
def test_columns_of_saved_sets_are_read_when_named(kind: str, tmp_path: Path, processor: CLIPImageProcessor) -> None:
    PICTURE.save(tmp_path / "0.png")
    dataset = datasets.Dataset.from_dict({"where": [KINDS[kind](tmp_path / "0.png")]})
    column, _ = find_columns(dataset, "where")
    expected = torch.from_numpy(BYTES).permute(2, 0, 1) / 255
    assert torch.equal(PixelDataset(dataset, processor, column)[0]["pixel_values"], expected)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_users_format_or_transform_is_kept(kind: str, streaming: bool, processor: CLIPImageProcessor) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    dataset: Any = datasets.Dataset.from_dict({"image": [PICTURE], "label": [1]}, features)
    stream = PixelStream if streaming else PixelDataset
    found = stream((dataset.to_iterable_dataset() if streaming else dataset).with_format(kind), processor, "image")
    expected = torch.from_numpy(BYTES).permute(2, 0, 1) / 255
    assert torch.equal(next(iter(found))["pixel_values"], expected)
    flipped = dataset.with_transform(lambda rows: {"image": [image.transpose(0) for image in rows["image"]]})
    sample = PixelDataset(flipped, processor)[0]
    assert torch.equal(sample["pixel_values"], expected.flip(2))
    assert PixelDataset(flipped, processor).fingerprint() == PixelDataset(dataset, processor).fingerprint()


def black_line(mode: str) -> Image.Image:
    """Black on transparent: the left half is drawn."""
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 16, 32))
    return image.convert(mode)


def palette() -> bytes:
    image = Image.new("P", (32, 32), 1)
    image.putpalette([0, 0, 0, 0, 0, 0])
    image.paste(0, (0, 0, 16, 32))
    return png(image, transparency=1)


def grey_key(mode: str) -> bytes:
    image = Image.fromarray(np.repeat([[0, 7]], 16, axis=1).repeat(32, axis=0).astype(np.uint16))
    return png(image if mode == "I;16" else image.convert("L"), transparency=7)


@pytest.mark.parametrize(
    "value",
    [black_line("RGBA"), black_line("LA"), black_line("RGBa"), palette(), grey_key("L"), grey_key("I;16")],
    ids=["RGBA", "LA", "RGBa", "palette", "grey", "16 bit"],
)
def test_what_is_transparent_is_drawn_on_white_and_said_once(value: Any, caplog: pytest.LogCaptureFixture) -> None:
    decoding.warn_of_transparency.cache_clear()
    for _ in range(2):
        array = np.asarray(to_rgb(value))
        assert (array[:, :16] == 0).all() and (array[:, 16:] == 255).all()
    assert caplog.text.count("there are transparent images: each is drawn on white (255, 255, 255)") == 1


def test_opaque_pictures_are_as_they_were(caplog: pytest.LogCaptureFixture) -> None:
    decoding.warn_of_transparency.cache_clear()
    opaque = PICTURE.copy()
    opaque.putalpha(255)
    assert np.array_equal(np.asarray(to_rgb(opaque)), BYTES) and not caplog.text
    bits = Image.fromarray(BYTES[:, :, 0] > 127)
    assert np.array_equal(np.asarray(to_rgb(bits))[:, :, 2], (BYTES[:, :, 0] > 127) * 255)
    for mode in ("CMYK", "L", "P", "YCbCr"):
        image = PICTURE.convert(mode)
        assert np.array_equal(np.asarray(to_rgb(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("given", [lambda path: str(path), Image.open], ids=["path", "picture"])
def test_images_are_turned_as_their_orientation_says(given: Callable[[Path], Any], tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    PICTURE.crop((0, 0, 32, 16)).save(tmp_path / "0.png", exif=exif)
    assert np.array_equal(np.asarray(to_rgb(given(tmp_path / "0.png"))), np.rot90(BYTES[:16], -1))


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1)])
def test_an_image_that_the_resize_would_blow_up_is_replaced(size: tuple[int, int]) -> None:
    """5.2 GB and 48 s before."""
    processor = CLIPImageProcessor()
    rows = [{"image": {"bytes": png(Image.new("L", size)), "path": "long.png"}}]
    rows.append({"image": PICTURE})
    assert PixelDataset(rows, processor, replace_corrupt=True)[0]["replaced"]


def test_eps_files_run_no_other_program(processor: CLIPImageProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    PICTURE.save(file, "EPS")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: PICTURE.im)
    with pytest.raises(ValueError, match="sample 0 is not a readable image: cannot identify image file"):
        PixelDataset([{"image": file.getvalue()}], processor)[0]
