"""`FastPixels` against Pillow and transformers' processors: what is equal, what is a level off, what is refused."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from helpers.train_command import refusal, run, unlabelled
from numpy.typing import NDArray
from PIL import Image
from transformers import BitImageProcessor, CLIPImageProcessor, SiglipImageProcessor

from fare_hf.data import fast_pixels
from fare_hf.data.fast_pixels import FastPixels
from fare_hf.data.pixel_datasets import CorruptImageError, PixelDataset, PixelStream
from fare_hf.data.pixels import unnormalized

SHAPES = ((375, 500), (500, 333), (90, 120), (224, 224), (61, 47))
ORIENTATION = 0x0112


def smooth(height: int, width: int) -> NDArray[np.uint8]:
    """A picture with structure at several scales, as a photograph has."""
    rng, layers = np.random.default_rng(height), []
    for step in (40, 9, 1):
        small = rng.integers(0, 256, (height // step + 1, width // step + 1, 3), dtype=np.uint8)
        layers.append(np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC), np.float32))
    return np.clip(0.6 * layers[0] + 0.3 * layers[1] + 0.1 * layers[2], 0, 255).astype(np.uint8)


def jpeg(picture: Any, **options: Any) -> bytes:
    """A picture as a file."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", **options)
    return file.getvalue()


def clip(side: int, **options: Any) -> Any:
    return CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}, **options)


PROCESSORS = {
    "CLIP": clip(224),
    "CLIP at 336": clip(336),
    "short edge, larger than the crop": BitImageProcessor(
        size={"shortest_edge": 64}, crop_size={"height": 51, "width": 50}
    ),
    "SigLIP": SiglipImageProcessor(size={"height": 96, "width": 64}),
    "bilinear": clip(48, resample=Image.Resampling.BILINEAR),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_the_processors_but_for_rounding(name: str) -> None:
    processor = unnormalized(PROCESSORS[name])
    fast, levels = FastPixels(processor), []
    for shape in SHAPES:
        picture = smooth(*shape)
        theirs = processor(images=Image.fromarray(picture), return_tensors="pt")["pixel_values"][0]
        ours = fast.pixels(fast.read(picture))
        assert ours.dtype == torch.float32 and ours.is_contiguous()
        levels.append((255 * (ours - theirs).abs()).flatten())
    found = torch.cat(levels)
    assert found.max() < 2.01 and found.mean() < 0.02 and (found > 1.5).float().mean() < 1e-4
    assert torch.equal(found.round(), (found.round() / 255 * 255).round())  # whole levels, so the scale is the same
    assert (found - found.round()).abs().max() < 1e-4


JPEGS: dict[str, dict[str, Any]] = {
    "4:2:0": {"subsampling": 2},
    "4:2:2": {"subsampling": 1},
    "4:4:4": {"subsampling": 0, "quality": 95},
    "progressive": {"progressive": True},
    "of RGB": {"keep_rgb": True},
    "poor": {"quality": 5},
}


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("shape", [(375, 500), (61, 47), (8, 1)])
def test_a_jpeg_is_decoded_to_the_bytes_that_pillow_gives(kind: str, shape: tuple[int, int], tmp_path: Path) -> None:
    pytest.importorskip("simplejpeg")
    fast, decoded = FastPixels(unnormalized(clip(32))), []
    inner = fast.decode
    fast.decode = lambda *args: decoded.append(1) or inner(*args)
    content = jpeg(smooth(*shape), **JPEGS[kind])
    (tmp_path / "0.jpg").write_bytes(content)
    expected = np.asarray(Image.open(io.BytesIO(content)))
    for value in (content, {"bytes": content}, str(tmp_path / "0.jpg"), {"bytes": None, "path": tmp_path / "0.jpg"}):
        assert np.array_equal(fast.read(value), expected)
    assert len(decoded) == 4 and fast.decoder == "simplejpeg"


def turned(picture: NDArray[np.uint8]) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return jpeg(picture, exif=exif)


def test_what_pillow_reads_otherwise_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grey, four colours, turned by EXIF, another format, no file; and all without simplejpeg."""
    fast, picture, file = FastPixels(unnormalized(clip(32))), smooth(40, 60), io.BytesIO()
    fast.decode = lambda *args: pytest.fail("simplejpeg was asked")
    Image.fromarray(picture).save(file, "PNG")
    four = io.BytesIO()
    Image.fromarray(picture).convert("CMYK").save(four, "JPEG")
    for value in (jpeg(picture[:, :, 0]), four.getvalue(), turned(picture), file.getvalue(), picture):
        assert np.array_equal(fast.read(value), np.asarray(fast_pixels.to_rgb(value)))
    assert fast.read(turned(picture)).shape == (60, 40, 3)
    monkeypatch.setattr(fast_pixels, "_decoder", lambda: None)
    plain = FastPixels(unnormalized(clip(32)))
    assert plain.decoder == "Pillow" and np.array_equal(
        plain.read(jpeg(picture)), np.asarray(fast_pixels.to_rgb(jpeg(picture)))
    )


def outcome(read: Any, content: bytes) -> Any:
    """The bytes of a picture, or the kind of error."""
    try:
        return np.asarray(read(content)).tobytes()
    except fast_pixels.UNREADABLE as error:
        return type(error)


def test_damaged_files_are_read_or_refused_as_by_pillow() -> None:
    """Cut off anywhere, or with bytes that were changed."""
    fast, content, kinds = FastPixels(unnormalized(clip(32))), jpeg(smooth(61, 47)), set()
    broken = [content[:length] for length in range(3, len(content), 41)]
    for place in range(150, len(content) - 2, 61):
        broken.append(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
    for damaged in broken:
        theirs = outcome(fast_pixels.to_rgb, damaged)
        assert outcome(fast.read, damaged) == theirs
        kinds.add(isinstance(theirs, bytes))
    assert kinds == {True, False}


def test_data_sets_read_fast(tmp_path: Path) -> None:
    """Map-style and streamed; a broken file is named, or replaced; a thin picture is refused."""
    rows = [{"image": {"bytes": jpeg(smooth(*shape)), "path": "a.jpg"}} for shape in SHAPES[:3]]
    features = datasets.Features({"image": datasets.Image()})
    saved = datasets.Dataset.from_dict({"image": [row["image"] for row in rows]}, features)
    slow, streamed = PixelDataset(saved, clip(32)), PixelStream(saved.to_iterable_dataset(), clip(32), fast=True)
    for data in (PixelDataset(saved, clip(32), fast=True), streamed):
        assert data.fast is not None
        for sample, expected in zip(data, slow, strict=True):
            assert (sample["pixel_values"] - expected["pixel_values"]).abs().max() < 2.01 / 255
    broken = [{"image": {"bytes": rows[0]["image"]["bytes"][:900], "path": "a.jpg"}}, rows[1]]
    with pytest.raises(CorruptImageError, match="a.jpg"):
        PixelDataset(broken, clip(32), fast=True)[0]
    assert PixelDataset(broken, clip(32), replace_corrupt=True, fast=True)[0]["replaced"]
    with pytest.raises(CorruptImageError, match="short edge is resized"):
        PixelDataset([{"image": jpeg(np.zeros((1, 20000, 3), np.uint8))}], clip(224), fast=True)[0]


class Brighter(type(clip(32))):  # type: ignore[misc]
    """Does more than its settings say."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        made = super().__call__(*args, **options)
        made["pixel_values"] = made["pixel_values"] ** 0.9
        return made


@pytest.mark.parametrize(
    "processor",
    [
        clip(32, do_resize=False),
        clip(32, resample=Image.Resampling.LANCZOS),
        SiglipImageProcessor(size={"longest_edge": 32}),
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 48, "width": 48}),
        Brighter(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    ],
    ids=["no resize", "another filter", "long edge", "padded crop", "brighter"],
)
def test_a_processor_that_does_otherwise_is_refused(processor: Any) -> None:
    with pytest.raises(ValueError, match="fast_images=True .* does otherwise; leave it out"):
        FastPixels(unnormalized(processor))


def test_a_training_says_what_resizes_its_images(
    clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a checkpoint of it does not go on with other pixels."""
    words = ("--max_steps", "2", "--save_strategy", "steps", "--save_steps", "1")
    pictures = unlabelled(tmp_path / "images")
    run(clip_folder, pictures, tmp_path / "out", *words, "--fast_images")
    assert "resized by torch, JPEGs decoded by" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "out" / "encoder")
    again = (*words, "--max_steps", "3", "--resume_from_checkpoint", "latest")
    assert "processor.backend" in refusal(clip_folder, pictures, tmp_path / "out", *again)
