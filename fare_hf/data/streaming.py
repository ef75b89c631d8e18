"""An endless, shuffled stream of training images, of which every reader takes its part."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from itertools import count, islice
from typing import Any

import torch
from torch.utils.data import IterableDataset, Subset, get_worker_info

from fare_hf.data.columns import is_stream
from fare_hf.data.pixel_datasets import PixelStream

__all__ = ["TrainingStream", "split_rows", "spread_samples", "warn_of_uneven_shards"]

logger = logging.getLogger(__name__)

PASSED_OVER = {"pixel_values": torch.empty(3, 0, 0)}
"""Stands for a sample that was trained on before a resume; it is read and not decoded."""


class TrainingStream(IterableDataset):
    """Epoch after epoch of a `PixelStream`, each in an order of its own, divided among all readers.

    A reader is a loader's worker of a process. Where there are enough shards each reads its own; otherwise several
    read the same and decode different images of it. In an epoch no image comes twice and none is lost; it
    ends for each reader where its images end, so that no process waits for another.

    `index` is the reader plus the number of readers times the position in the reader's stream.

    Args:
        stream: the images; its `shuffle_buffer` says how far apart neighbours of a shard may come to lie.
        seed: of the order.
        process, processes: whose part this is, of how many.
        batch_size: of the loader, to know which worker the next batch comes from.
    """

    def __init__(self, stream: PixelStream, seed: int, process: int, processes: int, batch_size: int) -> None:
        self.stream, self.seed, self.process, self.processes = stream, seed, process, processes
        self.batch_size = batch_size
        self.passed_batches = 0
        """Batches of this process that an interrupted run has trained on; they come as empty ones."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        reader, readers = self.process * workers + number, self.processes * workers
        passed = self.batch_size * len(range(number, self.passed_batches, workers))
        positions = ((reader + readers * n, row) for n, row in enumerate(self._rows(reader, readers)))
        yield from (PASSED_OVER for _ in islice(positions, passed))
        yield from self.stream.samples(positions)

    def _rows(self, reader: int, readers: int) -> Iterator[dict[str, Any]]:
        """The rows of a reader, for ever."""
        for epoch in count():
            empty = True
            for row in split_rows(self._epoch(epoch), reader, readers):
                empty = False
                yield row
            if empty:
                raise ValueError(
                    f"the stream has no image for reader {reader} of {readers}; use fewer workers or more images."
                )

    def _epoch(self, epoch: int) -> Any:
        """The images in the order of an epoch."""
        if not self.stream.shuffle_buffer:
            return self.stream.dataset
        digest = hashlib.blake2b(f"{self.seed}/{epoch}".encode(), digest_size=4).digest()
        options = {"seed": int.from_bytes(digest, "little"), "buffer_size": self.stream.shuffle_buffer}
        # One shard at a time: several are read by threads, which wait for seconds when they end.
        return self.stream.dataset.shuffle(**options, max_buffer_input_shards=1)


def warn_of_uneven_shards(dataset: Any, readers: int) -> None:
    """Says that epochs will not end together where some readers have a shard more than others."""
    if dataset.num_shards % _groups(dataset.num_shards, readers):
        logger.warning(
            "%d shards cannot be divided evenly among %d readers (processes times workers): a reader with fewer goes "
            "on to the next epoch earlier; a number of readers that divides that of shards prevents it.",
            dataset.num_shards,
            readers,
        )


def spread_samples(dataset: Any, samples: int, seed: int) -> Any:
    """At most so many samples for an evaluation, spread: the first may be of one class, as data sets are often sorted.

    Args:
        dataset: map-style, of which every so manieth is taken; or a `PixelStream`, which is read in turn from all its
            shards, drawn with its shuffle buffer, as far as is needed.
        samples: how many; fewer where there are not so many.
        seed: of the drawing from a stream.

    Returns:
        A `Subset`; of a stream a list.
    """
    if is_stream(dataset):
        return _of_all_shards(dataset, samples, seed)
    count = min(samples, len(dataset))
    return Subset(dataset, [number * len(dataset) // count for number in range(count)])


def _of_all_shards(stream: PixelStream, samples: int, seed: int) -> list[dict[str, Any]]:
    dataset = stream.dataset
    shards = min(dataset.num_shards, samples)
    buffer = max(1, stream.shuffle_buffer // shards)
    parts = [dataset.shard(num_shards=shards, index=shard) for shard in range(shards)]
    if buffer > 1:
        parts = [part.shuffle(seed=seed, buffer_size=buffer, max_buffer_input_shards=1) for part in parts]
    rows = islice(_in_turn([iter(part) for part in parts]), samples)
    return list(stream.samples(enumerate(rows)))


def _in_turn(parts: list[Iterator[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """A row of each, and again, until all have ended."""
    while parts:
        for part in list(parts):
            row = next(part, None)
            if row is None:
                parts.remove(part)
            else:
                yield row


def split_rows(dataset: Any, reader: int, readers: int) -> Iterator[dict[str, Any]]:
    """The rows of a `datasets.IterableDataset` that one of many readers takes: each row goes to exactly one.

    Shards are divided among as many groups of readers as there are shards for; the readers of a group take turns.
    """
    groups = _groups(dataset.num_shards, readers)
    part = dataset.shard(num_shards=groups, index=reader % groups, contiguous=False)
    # Not `iter(part)`, which would divide it again by what it knows of the loader's workers.
    rows = ({key: values[0] for key, values in batch.items()} for batch in part.iter(batch_size=1))
    yield from islice(rows, reader // groups, None, readers // groups)


def _groups(shards: int, readers: int) -> int:
    """The largest number of equal groups of readers with a shard for each."""
    return max(n for n in range(1, readers + 1) if readers % n == 0 and n <= shards)
