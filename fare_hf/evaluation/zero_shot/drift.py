"""How far a fine-tuned encoder moved from its original on clean images, and whether it still finds captions."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from fare_hf.data.pixels import Normalization, check_pixels
from fare_hf.encoders import frozen, make_embed
from fare_hf.evaluation.processes import divided
from fare_hf.evaluation.report.intervals import bootstrap_interval
from fare_hf.evaluation.report.rows import Row, fraction_row
from fare_hf.evaluation.result import Evaluation
from fare_hf.finite import check_finite

__all__ = ["clean_drift", "embed_images", "retrieval_recall"]


@torch.no_grad()
def embed_images(
    encoder: PreTrainedModel,
    pixels: Tensor,
    normalization: Normalization,
    embedding: str = "projected",
    batch_size: int = 128,
) -> Tensor:
    """Embeddings of clean images, fp32, on the encoder's device: (N, D), or (N, T, D) for tokens."""
    check_pixels(pixels)
    weights = next(encoder.parameters())
    embed = make_embed(encoder, lambda z: normalization(z).to(weights.dtype), embedding)
    with frozen(encoder):
        return torch.cat([embed(part.to(weights.device).float()).float() for part in pixels.split(batch_size)])


def clean_drift(
    encoder: PreTrainedModel,
    original: PreTrainedModel,
    pixels: Tensor,
    *,
    normalization: Normalization,
    model: str,
    dataset: str,
    embedding: str = "projected",
    batch_size: int = 128,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
    distributed: bool = False,
) -> Evaluation:
    """Mean cosine to the original's embeddings, and mean l2 distance relative to their length.

    Args:
        encoder, original: of one architecture.
        pixels: clean images (N, 3, S, S) in [0, 1].
        normalization: of both.
        model, dataset: names for the rows.
        embedding: one of `fare_hf.encoders.EMBEDDINGS`; "tokens" is averaged over the tokens of an image.
        batch_size, seed, groups: as named.
        distributed: divide the batches among the processes of accelerate or torchrun, which must all call this; every
            one of them gets what one process alone would.

    Returns:
        Two rows (`task` "clean drift"): "cosine to the original" and "relative l2 to the original".

    Raises:
        ValueError: a mean cosine below 0, which no row can hold and no fine-tuned encoder has.
    """

    def moved(part: Tensor) -> list[list[float]]:
        mine, theirs = (
            embed_images(model, part, normalization, embedding, batch_size) for model in (encoder, original)
        )
        cosine = F.cosine_similarity(mine, theirs, dim=-1).flatten(1 if mine.ndim == 3 else 0)
        distance = (mine - theirs).norm(dim=-1) / theirs.norm(dim=-1)
        each = [values.mean(1) if values.ndim == 2 else values for values in (cosine, distance)]
        return [each[0].double().clamp(max=1.0).tolist(), each[1].double().tolist()]

    parts = list(divided(pixels.split(batch_size), moved, distributed=distributed))
    rows, outcomes = [], []
    for number, metric in enumerate(("cosine to the original", "relative l2 to the original")):
        numbers = [value for part in parts for value in part[number]]
        interval = bootstrap_interval(numbers, groups, seed=seed)
        names: dict[str, Any] = {"model": model, "task": "clean drift", "metric": metric}
        names |= {"dataset": f"{dataset} ({embedding})", "batch_size": batch_size}
        value = sum(numbers) / len(numbers)
        ends = (min(interval[0], value), max(interval[1], value))  # rounding must not leave the mean outside
        rows.append(Row(value=value, ci=ends, n=len(numbers), **names))
        outcomes.append(numbers)
    return Evaluation(rows=rows, outcomes=outcomes, seed=seed)


def retrieval_recall(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    owner: Sequence[int],
    *,
    model: str,
    dataset: str,
    at: Sequence[int] = (1, 5),
    seed: int = 0,
) -> Evaluation:
    """Recall of image-text retrieval by cosine: is a right text (image) among the k nearest?

    Args:
        image_embeddings: (N, D).
        text_embeddings: (M, D), of captions.
        owner: for each caption, the image it is of.
        model, dataset: names for the rows.
        at: the k.
        seed: of the intervals, which draw images.

    Returns:
        Rows of `task` "retrieval": "image to text R@k" (n = N) and "text to image R@k" (n = M) for each k.

    Raises:
        ValueError: another number of owners than texts, an owner outside [0, N), an image without a caption, k
            outside what there is, or embeddings that are not finite.
    """
    images, texts = len(image_embeddings), len(text_embeddings)
    owners = torch.as_tensor(list(owner))
    if len(owners) != texts or set(owners.tolist()) != set(range(images)):
        raise ValueError(f"{len(owners)} owners for {texts} texts: name one image of {images} each, and all.")
    if not all(1 <= k <= min(images, texts) for k in at):
        raise ValueError(f"recall at {list(at)} of {images} images and {texts} texts: ask for fewer.")
    check_finite(image_embeddings, "the embeddings of the images")
    check_finite(text_embeddings, "the embeddings of the texts")
    image, text = (F.normalize(each.float(), dim=-1).cpu() for each in (image_embeddings, text_embeddings))
    cosines = image @ text.T
    rows = []
    for k in at:
        names = {"model": model, "task": "retrieval", "dataset": dataset}
        near = owners[cosines.topk(k, dim=1).indices] == torch.arange(images)[:, None]
        rows.append(fraction_row(near.any(1).tolist(), None, seed, metric=f"image to text R@{k}", **names))
        near = cosines.topk(k, dim=0).indices == owners[None]
        found = near.any(0).tolist()
        rows.append(fraction_row(found, owners.tolist(), seed, metric=f"text to image R@{k}", **names))
    return Evaluation.of_rates(rows, seed)
