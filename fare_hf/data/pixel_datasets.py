"""Images out of `datasets` to pixels in [0,1], and the seeds that make every sample reproducible."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image as PillowImage
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from fare_hf.data.opening import DAMAGED, check_labels, class_names_of, find_columns, is_stream, load_images, stored
from fare_hf.data.pictures import UNREADABLE, check_resized, to_rgb
from fare_hf.data.pixels import unnormalized

__all__ = [
    "CorruptImageError",
    "PixelDataset",
    "PixelStream",
    "check_batches",
    "check_samples",
    "collate_pixels",
    "load_pixels",
    "sample_generator",
]

logger = logging.getLogger(__name__)

MOST_CORRUPT = 100
"""Corrupt images in a row after which no more are replaced."""
MOST_REPLACED, FEWEST_SAMPLES = 1 / 3, 32
"""Share of the samples that a reader may replace, once it took so many: more is a fault of the whole data set."""


class CorruptImageError(ValueError):
    """An image that cannot be decoded: which sample, its file if there is one, and what the decoder says."""


class _Images:
    """What a `PixelDataset` and a `PixelStream` are made of."""

    def __init__(
        self,
        dataset: Any,
        processor: Any,
        image_column: str = "image",
        label_column: str | None = None,
        *,
        replace_corrupt: bool = False,
    ) -> None:
        self.dataset = _undecoded(dataset, image_column)
        self.processor = unnormalized(processor)
        self.image_column, self.label_column = image_column, label_column
        self.class_names = class_names_of(dataset, label_column)
        self.replace_corrupt = replace_corrupt
        self.taken = self.replaced = 0

    def count(self, corrupt: Sequence[tuple[int, str]]) -> None:
        """A sample more, and those that take the place of the corrupt ones before it.

        Raises:
            ValueError: a large share of the samples was replaced.
        """
        alone = isinstance(self, PixelDataset)  # which gives one sample, whatever came before it
        self.replaced += min(len(corrupt), 1) if alone else len(corrupt)
        self.taken += 1 if alone else len(corrupt) + 1
        if corrupt and self.taken >= FEWEST_SAMPLES and self.replaced > MOST_REPLACED * self.taken:
            raise ValueError(
                f"{self.replaced} of {self.taken} images that were read had to be replaced, more than a third: mend "
                f"the data set; such as {corrupt[0][1]}"
            )

    def samples(self, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> Iterator[dict[str, Any]]:
        """Samples of `(index, row)`; that of a corrupt image is made of the next row that can be read."""
        return _samples(rows, self)


class PixelDataset(_Images, Dataset):
    """Images as pixels: `{"pixel_values": (3, H, W) fp32 in [0,1], "labels": int, "index": int}`.

    `labels` is there only with `label_column`. `index` is the position in `dataset`: it names the sample in errors and
    seeds its randomness.

    Args:
        dataset: rows with an image (a `datasets.Dataset`, or any sequence of mappings); a format or transform that was
            set on it is kept.
        processor: the encoder's image processor; a copy without normalisation is used.
        image_column: where the image is: a picture, a path, bytes, an array or a tensor (see `pictures.to_rgb`).
        label_column: where the integer label is.
        replace_corrupt: the next image in the place of one that cannot be read, which `replaced` then names.

    Raises:
        CorruptImageError: when a sample is taken whose image cannot be read, with its file.
    """

    def __len__(self) -> int:
        return len(self.dataset)

    def fingerprint(self) -> str:
        """Of the first, middle and last image as they are stored, to tell another data set."""
        last, rows = len(self.dataset) - 1, _undecoded(stored(self.dataset), self.image_column)
        return _digest((rows[place] for place in sorted({0, last // 2, last})), self.image_column)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index, length = int(index), len(self.dataset)
        if index >= length:
            raise IndexError(f"sample {index} of {length}")  # ends `list(dataset)`
        following = ((index, self.dataset[(index + step) % length]) for step in range(min(length, MOST_CORRUPT)))
        return next(self.samples(following))


class PixelStream(_Images, IterableDataset):
    """`PixelDataset` for a streamed data set: the same samples, `index` counts along the stream.

    With several loader workers the shards are divided among them, and `index` counts in strides of their number.
    `FareTrainer` trains on it in a random order, without end, each process on its part.

    Args:
        dataset: a `datasets.IterableDataset`.
        processor, image_column, label_column, replace_corrupt: as for `PixelDataset`.
        shuffle_buffer: images, not decoded, that a reader holds to draw the next one from; 0 keeps the order.
    """

    def __init__(self, *args: Any, shuffle_buffer: int = 1000, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shuffle_buffer = shuffle_buffer

    def set_epoch(self, epoch: int) -> None:
        """Another shuffling of the stream for another epoch."""
        self.dataset.set_epoch(epoch)

    def fingerprint(self) -> str:
        """Of the first image as it is stored, to tell another data set."""
        return _digest(islice(self._rows(), 1), self.image_column)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        return self.samples((first + stride * position, row) for position, row in enumerate(self._rows()))

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        try:
            yield from self.dataset
        except DAMAGED as error:
            raise ValueError(f"a shard of the data set is damaged ({error}); replace that file.") from error


def load_pixels(
    name: str,
    split: str,
    processor: Any,
    *,
    labels: bool = True,
    streaming: bool = False,
    shuffle_buffer: int = 1000,
    replace_corrupt: bool = False,
    **options: Any,
) -> PixelDataset | PixelStream:
    """Opens one split of an image data set as pixels.

    Args:
        name, split, streaming: as for `load_images`.
        processor, replace_corrupt: as for `PixelDataset`.
        labels: whether to give labels with the images, where there are any.
        shuffle_buffer: as for `PixelStream`.
        options: `image_column`, `label_column`, `config` and `report`, as for `load_images`.

    Raises:
        ValueError: as `load_images`; a missing label among others.
    """
    dataset = load_images(name, split, streaming=streaming, **options)
    columns = {key: options.get(key) for key in ("image_column", "label_column")}
    image_column, label_column = find_columns(dataset, name=name, **columns)
    if not labels or (label_column and not check_labels(dataset, label_column, name=name)):
        label_column = None
    if is_stream(dataset):
        buffer = {"shuffle_buffer": shuffle_buffer}
        return PixelStream(dataset, processor, image_column, label_column, replace_corrupt=replace_corrupt, **buffer)
    return PixelDataset(dataset, processor, image_column, label_column, replace_corrupt=replace_corrupt)


def collate_pixels(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Stacks samples of a `PixelDataset`: `pixel_values` `(B, 3, H, W)`, `index` and perhaps `labels`, `(B,)` int64.

    Where corrupt images were replaced, `replaced` names them, as a list.

    Raises:
        ValueError: images of different sizes, or labels in some samples only.
    """
    shapes = {tuple(sample["pixel_values"].shape) for sample in samples}
    if len(shapes) > 1:
        raise ValueError(f"pixel_values have the shapes {sorted(shapes)}; use a processor that crops to one size.")
    batch = {"pixel_values": torch.stack([sample["pixel_values"] for sample in samples])}
    for key in ("labels", "index"):
        values = [int(sample[key]) for sample in samples if key in sample]
        if values and len(values) != len(samples):
            raise ValueError(f"{key!r} is in {len(values)} of {len(samples)} samples; give it in all or in none.")
        if values:
            batch[key] = torch.tensor(values)
    replaced = [name for sample in samples for name in sample.get("replaced", ())]
    return {**batch, "replaced": replaced} if replaced else batch


def check_samples(dataset: Any, image_size: int | None = None) -> None:
    """Looks at the first sample of a map-style data set, before anything is trained on it.

    Args:
        dataset: of samples such as those of `PixelDataset`; a stream is not looked at.
        image_size: side of the images that the encoder takes; None takes any.

    Raises:
        ValueError: no sample at all, one without pixels, or pixels of another size.
    """
    if is_stream(dataset):
        return
    if not len(dataset):
        raise ValueError("the data set is empty; give one with images.")
    sample = dataset[0]
    if "pixel_values" not in sample:
        raise ValueError(f"samples hold {', '.join(sample)} and no pixel_values; wrap the data set in PixelDataset.")
    height, width = sample["pixel_values"].shape[-2:]
    if image_size is not None and (height, width) != (image_size, image_size):
        raise ValueError(
            f"the image processor makes images of {height} x {width} pixels and the encoder takes "
            f"{image_size} x {image_size}; give the encoder's own image processor."
        )


def check_batches(dataset: Any, batch: int, processes: int, drop_last: bool) -> None:
    """Refuses a map-style data set of which a training would take no batch; warns where processes differ from one.

    Args:
        dataset: that is trained on; a stream has no end.
        batch: images of one process.
        processes: that take a batch each.
        drop_last: whether the images of an epoch that fill no batch are left out.

    Raises:
        ValueError: fewer images than all processes take at once, and those left out.
    """
    if is_stream(dataset):
        return
    images, taken = len(dataset), batch * processes
    if images < taken and drop_last:
        raise ValueError(
            f"{images} images make no batch of {taken}; give a smaller per_device_train_batch_size, or "
            "dataloader_drop_last=False."
        )
    if processes > 1 and images % taken and not drop_last:
        logger.warning(
            "%d images do not divide into batches of %d: the last of an epoch is filled up from its beginning, as one "
            "process would not do; dataloader_drop_last=True leaves it out.",
            images,
            taken,
        )


def sample_generator(seed: int, epoch: int, index: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator that depends on its three numbers alone, so that resuming needs no saved state.

    Args:
        seed: of the run.
        epoch: or any other counter, such as the step.
        index: of the sample in the data set.
        device: where the numbers are drawn.
    """
    digest = hashlib.blake2b(f"{seed}/{epoch}/{index}".encode(), digest_size=8).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest, "little") >> 1)


def _digest(rows: Iterable[Mapping[str, Any]], image_column: str) -> str:
    """A hash of the images of some rows."""
    digest = hashlib.blake2b(digest_size=8)
    for row in rows:
        digest.update(_stored(row.get(image_column)))
    return digest.hexdigest()


def _stored(value: Any) -> bytes:
    """An image as it is stored; of one that cannot be read, what it is called."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, (PillowImage.Image, np.ndarray)):
        return value.tobytes()
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().numpy().tobytes()
    if isinstance(value, str) and Path(value).is_file():
        return Path(value).read_bytes()
    return value if isinstance(value, bytes) else str(value).encode()


def _undecoded(dataset: Any, image_column: str) -> Any:
    """Leaves decoding to `_decode`, which can name the file of a corrupt image; a user's own format is left alone."""
    is_image = isinstance((getattr(dataset, "features", None) or {}).get(image_column), datasets.Image)
    if is_image and not _is_formatted(dataset):
        return dataset.cast_column(image_column, datasets.Image(decode=False))
    return dataset


def _is_formatted(dataset: Any) -> bool:
    """Whether rows come as a user set it with `with_format` or `set_transform`."""
    if isinstance(dataset, datasets.Dataset):
        return dataset.format["type"] is not None
    return getattr(getattr(dataset, "_formatting", None), "format_type", None) is not None


def _samples(rows: Iterable[tuple[int, Mapping[str, Any]]], of: _Images) -> Iterator[dict[str, Any]]:
    """One sample a row, but for corrupt ones at the very end of a stream; each under the index of its own row."""
    corrupt: list[tuple[int, str]] = []
    for index, row in rows:
        try:
            sample = _to_sample(row, index, of.processor, of.image_column, of.label_column)
        except CorruptImageError as error:
            if not of.replace_corrupt:
                raise
            corrupt.append((index, str(error)))
            if len(corrupt) == MOST_CORRUPT:
                break
            continue
        of.count(corrupt)
        yield from ({**sample, "index": place, "replaced": [name]} for place, name in corrupt)
        corrupt = []
        yield sample
    if len(corrupt) == MOST_CORRUPT or isinstance(of, PixelDataset):
        raise ValueError(f"{len(corrupt)} images in a row cannot be read; the first: {corrupt[0][1]}")


def _to_sample(
    row: Mapping[str, Any], index: int, processor: Any, image_column: str, label_column: str | None
) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise ValueError(
            f"sample {index} is a {type(row).__name__}; give rows as mappings, such as {{{image_column!r}: picture}}."
        )
    if image_column not in row:
        raise ValueError(f"sample {index} has no {image_column!r}, only {', '.join(row)}; give image_column.")
    image = _decode(row[image_column], index)
    try:
        check_resized(image, processor)
    except ValueError as error:
        raise _corrupt(row[image_column], index, error) from error
    sample = {"pixel_values": processor(images=image, return_tensors="pt")["pixel_values"][0], "index": index}
    if label_column is not None:
        if row.get(label_column) is None:
            raise ValueError(f"sample {index} has no label ({label_column}=None); leave such images out.")
        sample["labels"] = int(row[label_column])
    return sample


def _decode(value: Any, index: int) -> PillowImage.Image:
    try:
        return to_rgb(value)
    except UNREADABLE as error:
        raise _corrupt(value, index, error) from error


def _corrupt(value: Any, index: int, error: Exception) -> CorruptImageError:
    """Which image it is, and what is wrong with it."""
    path = value.get("path") if isinstance(value, Mapping) else value if isinstance(value, str) else None
    where = f"sample {index}" + (f" ({path})" if path else "")
    return CorruptImageError(f"{where} is not a readable image: {error}; remove or replace it.")
