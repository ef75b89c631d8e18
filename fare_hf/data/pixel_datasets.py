"""Images out of `datasets` to pixels in [0,1], map-style or streamed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from fare_hf.data.columns import check_labels, class_names_of, find_columns, is_stream, stored
from fare_hf.data.decoding import UNREADABLE, check_resized, to_rgb
from fare_hf.data.fast_pixels import FastPixels
from fare_hf.data.opening import DAMAGED, load_images
from fare_hf.data.pixels import StoredPixels, unnormalized

__all__ = ["CorruptImageError", "PixelDataset", "PixelStream", "load_pixels"]

MOST_CORRUPT = 100
"""Corrupt images in a row after which no more are replaced."""
MOST_REPLACED, FEWEST_SAMPLES = 1 / 3, 32
"""Share of the samples that a reader may replace, once it took so many: more is a fault of the whole data set."""


class CorruptImageError(ValueError):
    """An image that cannot be decoded: which sample, its file if there is one, and what the decoder says."""


class _Images:
    """What a `PixelDataset` and a `PixelStream` are made of."""

    one_at_a_time = False
    """Whether `samples` is asked for one sample, whatever came before it."""

    def __init__(
        self,
        dataset: Any,
        processor: Any,
        image_column: str = "image",
        label_column: str | None = None,
        *,
        replace_corrupt: bool = False,
        fast: bool = False,
    ) -> None:
        self.dataset = _undecoded(dataset, image_column)
        self.processor = unnormalized(processor)
        self.fast = FastPixels(self.processor) if fast else None
        self.image_column, self.label_column = image_column, label_column
        self.class_names = class_names_of(dataset, label_column)
        self.replace_corrupt = replace_corrupt
        self.taken = self.replaced = 0

    def samples(self, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> Iterator[dict[str, Any]]:
        """Samples of `(index, row)`; that of a corrupt image is made of the next row that can be read.

        Raises:
            ValueError: a row without an image, too many corrupt ones in a row, or a large share of all.
        """
        corrupt: list[tuple[int, str]] = []
        for index, row in rows:
            try:
                sample = self._sample(row, index)
            except CorruptImageError as error:
                if not self.replace_corrupt:
                    raise
                corrupt.append((index, str(error)))
                if len(corrupt) == MOST_CORRUPT:
                    break
                continue
            self._count(corrupt)
            yield from ({**sample, "index": place, "replaced": [name]} for place, name in corrupt)
            corrupt = []
            yield sample
        if len(corrupt) == MOST_CORRUPT or self.one_at_a_time:  # corrupt ones at the very end of a stream are left out
            raise ValueError(f"{len(corrupt)} images in a row cannot be read; the first: {corrupt[0][1]}")

    def _count(self, corrupt: Sequence[tuple[int, str]]) -> None:
        """A sample more, and those that take the place of the corrupt ones before it."""
        self.replaced += min(len(corrupt), 1) if self.one_at_a_time else len(corrupt)
        self.taken += 1 if self.one_at_a_time else len(corrupt) + 1
        if corrupt and self.taken >= FEWEST_SAMPLES and self.replaced > MOST_REPLACED * self.taken:
            raise ValueError(
                f"{self.replaced} of {self.taken} images that were read had to be replaced, more than a third: mend "
                f"the data set; such as {corrupt[0][1]}"
            )

    def _sample(self, row: Mapping[str, Any], index: int) -> dict[str, Any]:
        value = _image_of(row, self.image_column, index)
        try:
            image = self._read(value)
        except UNREADABLE as error:
            path = value.get("path") if isinstance(value, Mapping) else value if isinstance(value, str) else None
            where = f"sample {index}" + (f" ({path})" if path else "")
            raise CorruptImageError(f"{where} is not a readable image: {error}; remove or replace it.") from error
        pixels = self._pixels(image)
        sample = {"pixel_values": pixels, "index": index}
        if self.label_column is not None:
            if row.get(self.label_column) is None:
                raise ValueError(f"sample {index} has no label ({self.label_column}=None); leave such images out.")
            sample["labels"] = int(row[self.label_column])
        return sample

    def _read(self, value: Any) -> Any:
        """The picture of a row, of a size that can be resized."""
        if self.fast is not None:
            return self.fast.read(value)
        image = to_rgb(value)
        check_resized(image.size, self.processor)
        return image

    def _pixels(self, image: Any) -> Tensor:
        if self.fast is not None:
            return self.fast.pixels(image)
        return self.processor(images=image, return_tensors="pt")["pixel_values"][0]


class PixelDataset(_Images, Dataset):
    """Images as pixels: `{"pixel_values": (3, H, W) fp32 in [0,1], "labels": int, "index": int}`.

    `labels` is there only with `label_column`. `index` is the position in `dataset`: it names the sample in errors and
    seeds its randomness.

    Args:
        dataset: rows with an image (a `datasets.Dataset`, or any sequence of mappings); a format or transform that was
            set on it is kept.
        processor: the encoder's image processor; a copy without normalisation is used.
        image_column: where the image is: a picture, a path, bytes, an array or a tensor (see `decoding.to_rgb`).
        label_column: where the integer label is.
        replace_corrupt: the next image in the place of one that cannot be read, which `replaced` then names.
        fast: pixels by `FastPixels`, several times faster and within 2/255 of the processor's, nearly all equal.

    Raises:
        ValueError: `fast`, with a processor that does more than resize and crop.
        CorruptImageError: when a sample is taken whose image cannot be read, with its file.

    Example:
        >>> from PIL import Image
        >>> from fare_hf.lab import load_training_set
        >>> rows = [{"image": Image.new("RGB", (200, 180)), "label": 0}]
        >>> PixelDataset(rows, load_training_set().processor, label_column="label")[0]["pixel_values"].shape
        torch.Size([3, 160, 160])
    """

    one_at_a_time = True

    def __len__(self) -> int:
        return len(self.dataset)

    @cached_property
    def sizes(self) -> list[tuple[int, int]] | None:
        """Height and width of every image where they are left as they are stored; None where all are made alike."""
        if not isinstance(self.processor, StoredPixels):
            return None
        return [tuple(self[index]["pixel_values"].shape[-2:]) for index in range(len(self))]

    def file_name(self, index: int, folder: str | Path = "") -> str:
        """An image's file: its path in `folder`, else its bare name; of one that has none its number."""
        value = self.dataset[int(index)][self.image_column]
        path = value.get("path") if isinstance(value, Mapping) else value if isinstance(value, str) else None
        if not path:
            return f"image {index}"
        inside, whole = Path(path).resolve(), Path(folder).expanduser().resolve()
        return inside.relative_to(whole).as_posix() if folder and inside.is_relative_to(whole) else Path(path).name

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
        processor, image_column, label_column, replace_corrupt, fast: as for `PixelDataset`.
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
    fast: bool = False,
    **options: Any,
) -> PixelDataset | PixelStream:
    """Opens one split of an image data set as pixels.

    Args:
        name, split, streaming: as for `load_images`.
        processor, replace_corrupt, fast: as for `PixelDataset`.
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
    own: dict[str, Any] = {"replace_corrupt": replace_corrupt, "fast": fast}
    if is_stream(dataset):
        return PixelStream(dataset, processor, image_column, label_column, **own, shuffle_buffer=shuffle_buffer)
    return PixelDataset(dataset, processor, image_column, label_column, **own)


def _image_of(row: Any, image_column: str, index: int) -> Any:
    """What a row holds as an image."""
    if not isinstance(row, Mapping):
        fault = f"is a {type(row).__name__}; give rows as mappings, such as {{{image_column!r}: picture}}"
    elif image_column not in row:
        fault = f"has no {image_column!r}, only {', '.join(row)}; give image_column"
    else:
        return row[image_column]
    raise ValueError(f"sample {index} {fault}.")


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
    """Leaves decoding to `to_rgb`, so that the file of a corrupt image is known; a user's own format is left alone."""
    if not isinstance((getattr(dataset, "features", None) or {}).get(image_column), datasets.Image):
        return dataset
    if isinstance(dataset, datasets.Dataset):
        formatted = dataset.format["type"]
    else:
        formatted = getattr(getattr(dataset, "_formatting", None), "format_type", None)
    return dataset if formatted else dataset.cast_column(image_column, datasets.Image(decode=False))
