"""Images out of `datasets` to pixels in [0,1], and the seeds that make every sample reproducible."""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import numpy as np
import pyarrow
import torch
from PIL import Image as PillowImage
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from fare_hf.folders import is_missing_path
from fare_hf.pixels import unnormalized

__all__ = [
    "CorruptImageError",
    "PixelDataset",
    "PixelStream",
    "check_folder",
    "check_labels",
    "check_samples",
    "class_names_of",
    "collate_pixels",
    "find_columns",
    "load_images",
    "sample_generator",
]

TABLES_AND_ARCHIVES = ".arrow .csv .gz .h5 .hdf5 .json .jsonl .lance .parquet .tar .vortex .zip".split()
DATA_FILES = frozenset((*PillowImage.registered_extensions(), *TABLES_AND_ARCHIVES))
"""Endings of the files that may hold images."""
MOST_CORRUPT = 100
"""Corrupt images in a row after which no more are replaced."""
END_OF_ARCHIVE = 2 * tarfile.BLOCKSIZE
DAMAGED = (tarfile.TarError, EOFError, zlib.error, pyarrow.ArrowInvalid, datasets.exceptions.DatasetGenerationError)
"""What readers of shards raise where one is cut off or is something else."""
HuggingFaceDataset: TypeAlias = "datasets.Dataset | datasets.IterableDataset"


def load_images(
    name: str,
    split: str = "train",
    *,
    streaming: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
) -> HuggingFaceDataset:
    """Opens one split of an image data set.

    Args:
        name: a folder of images (in a folder a class, or flat), of parquet or of webdataset shards; a folder written
            by `save_to_disk`; or a Hub repository.
        split: which split.
        streaming: read on the fly instead of preparing the whole set first.
        image_column: the column with images; found when there is just one.
        label_column: the column with integer labels, checked when given.

    Raises:
        ValueError: no such folder or repository, no images in it, no such split, or no such column.
    """
    dataset = _open(name, split, streaming)
    find_columns(dataset, image_column, label_column, name)
    return dataset


def check_folder(name: str) -> None:
    """Refuses at a glance a folder without any image or data file, and a path that leads nowhere.

    Raises:
        ValueError: the folder holds none, or `name` is a path and there is nothing; a tar archive that was cut off,
            of which `datasets` would read the rest without a word.
    """
    folder = Path(name).expanduser()
    if is_missing_path(name):
        raise ValueError(f"dataset {name!r} is no folder here; check the path.")
    if folder.is_dir() and not any(path.suffix.lower() in DATA_FILES for path in folder.rglob("*")):
        raise ValueError(_no_images(name))
    for path in sorted(folder.rglob("*.tar")) if folder.is_dir() else ():
        if not _is_whole_archive(path):
            raise ValueError(f"the shard {str(path)!r} is damaged: it has no end of archive; replace that file.")


def find_columns(
    dataset: HuggingFaceDataset,
    image_column: str | None = None,
    label_column: str | None = None,
    name: str = "the data set",
) -> tuple[str, str | None]:
    """Names of the image and the label column; the label column is None where there is no `ClassLabel`.

    Raises:
        ValueError: a column that is not there, no image column, or several to choose from.
    """
    features = dataset.features or {}
    images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    for field, column in (("image_column", image_column), ("label_column", label_column)):
        if column is not None and column not in features:
            raise ValueError(f"{field}={column!r} is not in {name!r}; its columns are {', '.join(features)}.")
    if image_column is None and len(images) != 1:
        found = f"image columns {', '.join(images)}; name one" if images else f"no images, only {', '.join(features)}"
        raise ValueError(f"{name!r} has {found}; give a data set with images, or image_column.")
    labels = [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    return image_column or images[0], label_column or (labels[0] if labels else None)


def class_names_of(dataset: Any, label_column: str | None = None) -> list[str] | None:
    """Class names: the attribute `class_names`, else those of the `ClassLabel` column; None where there are none."""
    names = getattr(dataset, "class_names", None)
    if names is not None:
        return list(names)
    feature = (getattr(dataset, "features", None) or {}).get(label_column)
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None


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

    def fingerprint(self) -> str:
        """Of some images as they are stored, to tell another data set: of a stream the first, else three."""
        if isinstance(self, PixelStream):
            rows = list(islice(self._rows(), 1))
        else:
            rows = [self.dataset[at] for at in sorted({0, len(self.dataset) // 2, len(self.dataset) - 1} - {-1})]
        digest = hashlib.blake2b(digest_size=8)
        for row in rows:
            digest.update(_stored(row.get(self.image_column)))
        return digest.hexdigest()

    def samples(self, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> Iterator[dict[str, Any]]:
        """Samples of `(index, row)`; that of a corrupt image is made of the next row that can be read."""
        return _samples(rows, self)


class PixelDataset(_Images, Dataset):
    """Images as pixels: `{"pixel_values": (3, H, W) fp32 in [0,1], "labels": int, "index": int}`.

    `labels` is there only with `label_column`. `index` is the position in `dataset`: it names the sample in errors and
    seeds its randomness.

    Args:
        dataset: rows with an image (a `datasets.Dataset`, or any sequence of mappings).
        processor: the encoder's image processor; a copy without normalisation is used.
        image_column: where the image is: a PIL image or what `datasets.Image` stores.
        label_column: where the integer label is.
        replace_corrupt: the next image in the place of one that cannot be read, which `replaced` then names.

    Raises:
        CorruptImageError: when a sample is taken whose image cannot be read, with its file.
    """

    def __len__(self) -> int:
        return len(self.dataset)

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

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        return self.samples((first + stride * position, row) for position, row in enumerate(self._rows()))

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        try:
            yield from self.dataset
        except DAMAGED as error:
            raise ValueError(f"a shard of the data set is damaged ({error}); replace that file.") from error


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


def check_labels(dataset: Any, label_column: str, classes: int | None = None, name: str = "the data set") -> bool:
    """Looks at every label of a map-style data set, without decoding an image.

    Args:
        dataset: rows, as `load_images` opens them; of a stream nothing is looked at.
        label_column: where the integer label is.
        classes: how many classes there are; None takes any number from 0.
        name: of the data set, for errors.

    Returns:
        Whether there are labels: `datasets` makes a column without any out of folders such as `train/` of images.

    Raises:
        ValueError: a missing label among others, or one that is of no class.
    """
    if not isinstance(dataset, datasets.Dataset):
        return True
    labels = dataset.select_columns(label_column)[:][label_column]
    if all(label is None for label in labels):
        return False
    for index, label in enumerate(labels):
        if label is None or int(label) < 0:
            raise ValueError(
                f"sample {index} of {name!r} has no label ({label_column}={label}); leave such images out."
            )
        if classes is not None and int(label) >= classes:
            raise ValueError(
                f"sample {index} of {name!r} has {label_column}={label}, and there are {classes} classes; give each "
                "a name."
            )
    return True


def check_samples(dataset: Any, image_size: int | None = None) -> None:
    """Looks at the first sample of a map-style data set, before anything is trained on it.

    Args:
        dataset: of samples such as those of `PixelDataset`; a stream is not looked at.
        image_size: side of the images that the encoder takes; None takes any.

    Raises:
        ValueError: no sample at all, one without pixels, or pixels of another size.
    """
    if isinstance(dataset, (IterableDataset, datasets.IterableDataset)):
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


def _open(name: str, split: str, streaming: bool) -> HuggingFaceDataset:
    """Opens a saved data set, a folder, or a Hub repository; the errors of `datasets` become one sentence."""
    folder = Path(name).expanduser()
    try:
        if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
            return _saved_split(datasets.load_from_disk(str(folder)), name, split, streaming)
        if folder.is_dir():
            return datasets.load_dataset(str(folder), split=split, streaming=streaming)
        return datasets.load_dataset(name, split=split, streaming=streaming)
    except FileNotFoundError as error:
        if folder.is_dir():
            raise ValueError(_no_images(name)) from error
        raise ValueError(f"dataset {name!r} is neither a folder here nor found on the Hub; check the name.") from error
    except OSError as error:
        raise ValueError(f"dataset {name!r} could not be read: {error}; check the name and the connection.") from error
    except DAMAGED as error:
        raise ValueError(f"dataset {name!r} could not be read: {_causes(error)}; replace the damaged file.") from error
    except ValueError as error:
        if "Unknown split" not in str(error) and "Bad split" not in str(error):
            raise
        raise ValueError(f"dataset {name!r} has no split {split!r}: {error}") from error


def _causes(error: BaseException) -> str:
    """What an error says, and what those say that led to it."""
    return str(error) if error.__cause__ is None else f"{error}: {_causes(error.__cause__)}"


def _is_whole_archive(path: Path) -> bool:
    """Whether a tar archive ends with the two empty blocks of POSIX."""
    with path.open("rb") as file:
        file.seek(-min(END_OF_ARCHIVE, path.stat().st_size), 2)
        return file.read() == bytes(END_OF_ARCHIVE)


def _stored(value: Any) -> bytes:
    """An image as it is stored; of one that cannot be read, what it is called."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, PillowImage.Image):
        return value.tobytes()
    if isinstance(value, str) and Path(value).is_file():
        return Path(value).read_bytes()
    return value if isinstance(value, bytes) else str(value).encode()


def _no_images(name: str) -> str:
    return f"the folder {name!r} has no images; give a folder with image files."


def _saved_split(saved: Any, name: str, split: str, streaming: bool) -> HuggingFaceDataset:
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise ValueError(f"dataset {name!r} has no split {split!r}; its splits are {', '.join(saved)}.")
        saved = saved[split]
    return saved.to_iterable_dataset() if streaming else saved


def _undecoded(dataset: Any, image_column: str) -> Any:
    """Leaves decoding to `_decode`, which can name the file of a corrupt image."""
    if isinstance((getattr(dataset, "features", None) or {}).get(image_column), datasets.Image):
        return dataset.cast_column(image_column, datasets.Image(decode=False))
    return dataset


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
        yield from ({**sample, "index": place, "replaced": [name]} for place, name in corrupt)
        corrupt = []
        yield sample
    if len(corrupt) == MOST_CORRUPT or isinstance(of, PixelDataset):
        raise ValueError(f"{len(corrupt)} images in a row cannot be read; the first: {corrupt[0][1]}")


def _to_sample(
    row: Mapping[str, Any], index: int, processor: Any, image_column: str, label_column: str | None
) -> dict[str, Any]:
    if image_column not in row:
        raise ValueError(f"sample {index} has no {image_column!r}, only {', '.join(row)}; give image_column.")
    image = _decode(row[image_column], index)
    sample = {"pixel_values": processor(images=image, return_tensors="pt")["pixel_values"][0], "index": index}
    if label_column is not None:
        if row.get(label_column) is None:
            raise ValueError(f"sample {index} has no label ({label_column}=None); leave such images out.")
        sample["labels"] = int(row[label_column])
    return sample


def _decode(value: Any, index: int) -> PillowImage.Image:
    try:
        return _rgb(datasets.Image().decode_example(value))
    except (OSError, ValueError, SyntaxError, AttributeError, PillowImage.DecompressionBombError) as error:
        path = value.get("path") if isinstance(value, Mapping) else None
        where = f"sample {index}" + (f" ({path})" if path else "")
        raise CorruptImageError(f"{where} is not a readable image: {error}; remove or replace it.") from error


def _rgb(image: PillowImage.Image) -> PillowImage.Image:
    """As RGB; Pillow would clip deeper grey images at 255, and show most of them white."""
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float32)
        return PillowImage.fromarray((values / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"Pillow's mode {image.mode!r} has no agreed range of values, save it as 8 bit")
    return image.convert("RGB")
