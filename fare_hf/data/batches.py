"""Samples become batches: stacked, looked at before a training, each with a seed of its own."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fare_hf.data.columns import is_stream

__all__ = ["check_batches", "check_samples", "check_workers", "collate_pixels", "sample_generator"]

logger = logging.getLogger(__name__)


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


def check_samples(dataset: Any, image_size: int | None = None, labels_for: str | None = None) -> None:
    """Looks at the first sample of a map-style data set, before anything is trained on it.

    Args:
        dataset: of samples such as those of `PixelDataset`; a stream is not looked at.
        image_size: side of the images that the encoder takes; None takes any.
        labels_for: the argument that needs `labels`, as a user writes it; None needs none.

    Raises:
        ValueError: no sample at all, one without pixels or without the labels that are needed, or pixels of another
            size.
    """
    if is_stream(dataset):
        return
    if not len(dataset):
        raise ValueError("the data set is empty; give one with images.")
    sample = dataset[0]
    if "pixel_values" not in sample:
        raise ValueError(f"samples hold {', '.join(sample)} and no pixel_values; wrap the data set in PixelDataset.")
    if labels_for is not None and "labels" not in sample:
        raise ValueError(
            f"{labels_for} needs labels and samples hold only {', '.join(sample)}; give a data set with labels, or "
            "leave it out."
        )
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


def check_workers(dataset: Any, persistent: bool) -> None:
    """Refuses workers that would never learn which epoch it is.

    Args:
        dataset: that is trained on; a stream tells its workers itself.
        persistent: whether workers are kept, with their copies of it, from epoch to epoch.

    Raises:
        ValueError: they are, and its images are others in every epoch (it has `set_epoch`).
    """
    if persistent and hasattr(dataset, "set_epoch") and not is_stream(dataset):
        raise ValueError(
            f"dataloader_persistent_workers=True keeps workers with copies of the {type(dataset).__name__}, which "
            "would give the images of one epoch in all; leave it out."
        )
