"""Streams: each image once in an epoch whoever reads, the same order after a resume, corrupt images named."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from helpers.distributed.tiny_run import tiny_trainer
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessor

from fare_hf.data.batches import collate_pixels
from fare_hf.data.columns import find_columns
from fare_hf.data.opening import load_images
from fare_hf.data.pixel_datasets import PixelDataset, PixelStream
from fare_hf.data.streaming import TrainingStream, split_rows, spread_samples
from fare_hf.training.logging.replaced_images import replaced_images


def jpeg(value: int) -> bytes:
    """A flat grey image, of which a model sees `value`."""
    file = io.BytesIO()
    Image.new("RGB", (40, 36), (value, value, value)).save(file, "JPEG")
    return file.getvalue()


def numbered(shards: int, rows: int) -> Any:
    """A streamed set of `shards` with `rows` numbers each."""
    numbers = {"number": list(range(shards * rows))}
    return datasets.Dataset.from_dict(numbers).to_iterable_dataset(num_shards=shards)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four parquet files of six images, whose grey value is their number times ten."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(4):
        rows = [{"bytes": jpeg(10 * (6 * shard + row)), "path": f"{shard}-{row}.jpg"} for row in range(6)]
        features = datasets.Features({"image": datasets.Image()})
        datasets.Dataset.from_dict({"image": rows}, features).to_parquet(folder / f"train-{shard}.parquet")
    return folder


def stream_of(folder: Path, processor: CLIPImageProcessor, **options: Any) -> PixelStream:
    """The images of a folder, streamed."""
    return PixelStream(load_images(str(folder), streaming=True), processor, **options)


def values(batch: dict[str, torch.Tensor]) -> list[int]:
    """The numbers of the images of a batch, from their grey values."""
    return [round(float(image.mean()) * 25.5) for image in batch["pixel_values"]]


@settings(deadline=None, max_examples=40)
@given(
    shards=st.integers(1, 7),
    rows=st.integers(1, 5),
    readers=st.integers(1, 12),
    buffer=st.sampled_from([0, 1, 3, 100]),
    seed=st.integers(0, 3),
)
def test_every_row_goes_to_exactly_one_reader(shards: int, rows: int, readers: int, buffer: int, seed: int) -> None:
    """For shards that divide among the readers and for those that do not, in order and shuffled."""
    dataset = numbered(shards, rows)
    dataset = dataset.shuffle(seed, buffer_size=buffer, max_buffer_input_shards=1) if buffer else dataset
    parts = [[row["number"] for row in split_rows(dataset, reader, readers)] for reader in range(readers)]
    assert sorted(number for part in parts for number in part) == list(range(shards * rows))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("processes", [1, 2])
def test_epochs_hold_each_image_once_over_processes_and_workers(
    workers: int, processes: int, shards: Path, processor: CLIPImageProcessor
) -> None:
    """24 images in four shards for up to four readers; two epochs, in different orders."""
    readers = processes * max(1, workers)
    orders: list[list[int]] = []
    for process in range(processes):
        stream = TrainingStream(stream_of(shards, processor), 7, process, processes, batch_size=2)
        loader = DataLoader(stream, 2, collate_fn=collate_pixels, num_workers=workers)
        orders.append([value for batch in islice(loader, 24 // processes) for value in values(batch)])
    per_epoch = 24 // processes
    for epoch in range(2):
        seen = Counter(value for order in orders for value in order[epoch * per_epoch : (epoch + 1) * per_epoch])
        assert seen == Counter(range(24)), (readers, seen)
    assert orders[0][:per_epoch] not in (orders[0][per_epoch:], sorted(orders[0][:per_epoch]))


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_a_resumed_stream_goes_on_where_it_stopped_without_decoding_again(
    workers: int, shards: Path, processor: CLIPImageProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def batches(passed: int, number: int) -> list[dict[str, torch.Tensor]]:
        stream = TrainingStream(stream_of(shards, processor), 3, 0, 1, batch_size=4)
        stream.passed_batches = passed
        return list(islice(DataLoader(stream, 4, collate_fn=collate_pixels, num_workers=workers), number))

    whole, resumed = batches(0, 14), batches(9, 14)
    assert all(batch["pixel_values"].numel() == 0 and "index" not in batch for batch in resumed[:9])
    for one, other in zip(whole[9:], resumed[9:], strict=True):
        assert all(torch.equal(one[key], other[key]) for key in ("index", "pixel_values"))
    if not workers:
        calls: list[object] = []
        decode = "fare_hf.data.pixel_datasets.to_rgb"
        monkeypatch.setattr(decode, lambda value: calls.append(value) or Image.new("RGB", (9, 9)))
        batches(9, 10)
        assert len(calls) == 4


@pytest.mark.parametrize("shards, buffer", [(5, 1000), (5, 0), (1, 1000)])
def test_an_evaluation_on_a_stream_takes_of_all_its_classes(
    shards: int, buffer: int, processor: CLIPImageProcessor
) -> None:
    """Sorted by class, as data sets are: the first ten images are of one."""
    rows = {"image": [{"bytes": jpeg(5 * n), "path": None} for n in range(50)], "label": [n // 10 for n in range(50)]}
    stream = datasets.Dataset.from_dict(rows).to_iterable_dataset(num_shards=shards)
    pixels = PixelStream(stream, processor, "image", "label", shuffle_buffer=buffer)
    drawn = [spread_samples(pixels, 10, seed=1) for _ in range(2)]
    assert len({sample["labels"] for sample in drawn[0]}) >= 4 and len(drawn[0]) == 10
    assert all(torch.equal(a["pixel_values"], b["pixel_values"]) for a, b in zip(*drawn, strict=True))
    assert len(spread_samples(pixels, 99, seed=1)) == 50


def test_indices_of_a_stream_are_unique_over_readers(shards: Path, processor: CLIPImageProcessor) -> None:
    indices: list[int] = []
    for process in range(2):
        stream = TrainingStream(stream_of(shards, processor), 0, process, 2, batch_size=2)
        for batch in islice(DataLoader(stream, 2, collate_fn=collate_pixels, num_workers=2), 8):
            indices += batch["index"].tolist()
    assert len(set(indices)) == len(indices) == 32


def test_shards_that_cannot_be_divided_evenly_are_said_to_be_so(
    shards: Path,
    legacy_vision_folder: Path,
    processor: CLIPImageProcessor,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for workers, said in ((2, 0), (3, 1)):
        data = stream_of(shards, processor)
        trainer = tiny_trainer(str(legacy_vision_folder), str(tmp_path), data, dataloader_num_workers=workers)
        trainer.get_train_dataloader()
        assert caplog.text.count("4 shards cannot be divided evenly among 3 readers") == said


def test_a_reader_without_images_is_an_error_and_no_endless_loop(processor: CLIPImageProcessor) -> None:
    dataset = datasets.Dataset.from_dict({"image": [{"bytes": jpeg(0), "path": None}]})
    stream = PixelStream(dataset.to_iterable_dataset(), processor)
    assert next(iter(TrainingStream(stream, 0, 0, 2, 1)))["index"] == 0
    with pytest.raises(ValueError, match="no image for reader 1 of 2; use fewer workers or more images"):
        next(iter(TrainingStream(stream, 0, 1, 2, 1)))


@pytest.mark.parametrize("workers", [0, 2])
def test_training_on_a_stream_resumes_to_the_bit(
    workers: int, shards: Path, legacy_vision_folder: Path, processor: CLIPImageProcessor, tmp_path: Path
) -> None:
    """Past the first epoch of the stream: the Trainer would count all its steps as one epoch and skip too little."""
    options = {"max_steps": 9, "save_strategy": "steps", "save_steps": 5, "dataloader_num_workers": workers}
    results = []
    for checkpoint in (None, str(tmp_path / "checkpoint-5")):
        data = stream_of(shards, processor)
        trainer = tiny_trainer(str(legacy_vision_folder), str(tmp_path), train_dataset=data, **options)
        trainer.train(resume_from_checkpoint=checkpoint)
        results.append((trainer.model.state_dict(), trainer.state.epoch))
    assert results[0][1] == results[1][1]
    assert all(torch.equal(value, results[1][0][name]) for name, value in results[0][0].items())


def test_a_stream_read_by_others_is_another_run(
    shards: Path, legacy_vision_folder: Path, processor: CLIPImageProcessor, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    first = tiny_trainer(str(legacy_vision_folder), str(tmp_path), stream_of(shards, processor), **options)
    first.train()
    options |= {"dataloader_num_workers": 1}
    second = tiny_trainer(str(legacy_vision_folder), str(tmp_path), stream_of(shards, processor), **options)
    with pytest.raises(ValueError, match=r"of a stream \[1, 0, 8, 1000\] there and \[1, 1, 8, 1000\] here"):
        second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


@pytest.mark.parametrize("streaming", [False, True])
def test_corrupt_images_are_replaced_when_asked_counted_and_named_at_the_end(
    streaming: bool,
    legacy_vision_folder: Path,
    processor: CLIPImageProcessor,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(16):
        (folder / f"{number:02d}.jpg").write_bytes(jpeg(10 * number)[: 60 if number in (3, 4, 15) else None])
    dataset = load_images(str(folder), streaming=streaming)
    cls = PixelStream if streaming else PixelDataset
    options: dict[str, Any] = {"max_steps": 6}
    with pytest.raises(ValueError, match=r"sample \d+ \(.*(03|04|15).jpg\) is not a readable image"):
        run = tiny_trainer(str(legacy_vision_folder), str(tmp_path / "a"), cls(dataset, processor), **options)
        run.train()
    data = cls(dataset, processor, replace_corrupt=True)
    tiny_trainer(str(legacy_vision_folder), str(tmp_path / "b"), data, **options, dataloader_num_workers=1).train()
    found = replaced_images(tmp_path / "b")
    files = {line.split(".jpg")[0][-2:] for line in found}
    assert files == {"03", "04", "15"}
    if not streaming:
        assert len(found) == 3 and "3 images could not be read and were replaced: sample" in caplog.text


def test_a_replaced_sample_is_the_next_image_under_its_own_index(processor: CLIPImageProcessor) -> None:
    rows = [{"image": {"bytes": jpeg(10 * n)[: 50 if n in (1, 2) else None], "path": None}} for n in range(4)]
    data = PixelDataset(rows, processor, replace_corrupt=True)
    samples = list(data)
    assert [sample["index"] for sample in samples] == [0, 1, 2, 3]
    assert values(collate_pixels(samples)) == [0, 3, 3, 3]
    assert [len(sample.get("replaced", ())) for sample in samples] == [0, 1, 1, 0]
    broken = PixelDataset([rows[1]] * 3, processor, replace_corrupt=True)
    with pytest.raises(ValueError, match="3 images in a row cannot be read; the first: sample 0 is not a readable"):
        broken[0]


@pytest.mark.parametrize("streaming", [False, True])
def test_webdataset_shards_are_read_like_a_folder(
    streaming: bool, processor: CLIPImageProcessor, tmp_path: Path
) -> None:
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
            for row in range(3):
                for ending, content in (("jpg", jpeg(10 * (3 * shard + row))), ("cls", str(row).encode())):
                    member = tarfile.TarInfo(f"{shard}{row:04d}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    dataset = load_images(str(tmp_path), streaming=streaming, label_column="cls")
    image_column, label_column = find_columns(dataset, label_column="cls")
    assert (image_column, label_column) == ("jpg", "cls")
    data = (PixelStream if streaming else PixelDataset)(dataset, processor, image_column, label_column)
    batch = collate_pixels(list(data))
    assert values(batch) == list(range(6)) and batch["labels"].tolist() == [0, 1, 2, 0, 1, 2]
    assert np.isfinite(batch["pixel_values"].numpy()).all()
