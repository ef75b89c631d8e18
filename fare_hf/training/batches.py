"""How an update is divided: among processes, batches and the processes that read images."""

from __future__ import annotations

import os

import torch

__all__ = ["RECIPE_BATCH", "default_workers", "divide_batch", "share_of_batch"]

RECIPE_BATCH = 128
"""Images in an update of the paper's recipe, over all processes."""
MOST_WORKERS = 8
"""At 6.9 ms an image (224 px, one core) they feed 1,160 images a second to one GPU, more than any trains on."""


def divide_batch(
    whole: int | None, each: int | None, accumulation: int, processes: int
) -> tuple[int | None, int, int]:
    """Images in an update, those that a process takes at a time, and how many times it takes them.

    Where only `each` is given it means what it means to the Trainer. Otherwise the update is divided into equal parts,
    as large as `each` allows.

    Args:
        whole: images in an update over all processes; the recipe's if neither this nor `each` is given.
        each: most that a process takes at a time, or None.
        accumulation: batches of a process in an update; above 1 it was asked for.
        processes: of the run.

    Raises:
        ValueError: parts that are not equal, or options that contradict each other.
    """
    if whole is None and each is not None:
        return None, each, accumulation
    whole = RECIPE_BATCH if whole is None else whole
    share = share_of_batch(whole, processes)
    if accumulation == 1:
        most = share if each is None else min(each, share)
        part = next(size for size in range(most, 0, -1) if share % size == 0)
        return whole, part, share // part
    if share % accumulation or each not in (None, share // accumulation):
        given = "" if each is None else f"per_device_train_batch_size={each} and "
        raise ValueError(
            f"{given}gradient_accumulation_steps={accumulation} on {processes} processes do not make "
            f"global_batch_size={whole}; leave one of them out."
        )
    return whole, share // accumulation, accumulation


def share_of_batch(images: int, processes: int) -> int:
    """Images of an update that each process takes.

    Raises:
        ValueError: they are not the same number for all.
    """
    share, rest = divmod(images, processes)
    if rest or not share:
        raise ValueError(
            f"global_batch_size={images} does not divide among {processes} processes; give global_batch_size="
            f"{max(1, round(images / processes)) * processes}, or another number of processes."
        )
    return share


def default_workers(use_cpu: bool) -> int:
    """Processes that read images for each process that trains: none on a CPU, where an image is soon read.

    On a GPU a power of two, so that the readers of a stream divide its shards, of the cores that each process has for
    itself besides its own.
    """
    if use_cpu or not torch.cuda.is_available():
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free = min(MOST_WORKERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1)
    return 1 << free.bit_length() - 1 if free > 0 else 0
