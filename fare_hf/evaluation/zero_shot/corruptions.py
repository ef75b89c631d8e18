"""Accuracy under common corruptions (Hendrycks and Dietterich, ICLR 2019, arXiv 1903.12261).

Needs the library `imagecorruptions` (its kept fork): `pip install imagecorruptions-imaug`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fare_hf.data.pixels import Normalization
from fare_hf.evaluation.processes import divided
from fare_hf.evaluation.report.intervals import bootstrap_interval
from fare_hf.evaluation.report.rows import Row, fraction_row
from fare_hf.evaluation.result import Evaluation
from fare_hf.evaluation.zero_shot.classification import predict_zero_shot

__all__ = ["check_corruptions", "corrupt_pixels", "corruption_names", "evaluate_corruptions"]

_SEEDED = ("glass_blur",)  # draws from a generator of its own unless it is given a seed


def corruption_names() -> list[str]:
    """The library's 15 common corruptions. Raises ImportError where it is not installed."""
    return list(_library().get_corruption_names())


def check_corruptions(names: Sequence[str] | None, severities: Sequence[int]) -> None:
    """Raises ValueError for none of either, an unknown name, or a severity outside 1 to 5; ImportError as above."""
    known = _library().get_corruption_names("all")
    chosen = corruption_names() if names is None else names
    if not chosen or not severities:
        raise ValueError(f"{len(chosen)} corruptions of {len(severities)} severities: give at least one of each.")
    for name, severity in product(chosen, severities):
        if name not in known or severity not in range(1, 6):
            raise ValueError(
                f"corruption {name!r} of severity {severity!r}: use 1 to 5 and one of {', '.join(known)}."
            )


def corrupt_pixels(pixels: Tensor, name: str, severity: int, *, seed: int = 0) -> Tensor:
    """Corrupt images as 8-bit pictures, each from its own seed; numpy's global random state is left as it was.

    Args:
        pixels: (B, 3, H, W) in [0, 1], at least 32 x 32.
        name: of `corruption_names`.
        severity: 1 to 5.
        seed: image b draws from `seed + b`.

    Returns:
        (B, 3, H, W) fp32 at 8-bit levels.

    Raises:
        ImportError: the library is not installed.
        ValueError: an unknown name, a severity outside 1 to 5, or images below 32 pixels.
    """
    library = _library()
    check_corruptions([name], [severity])
    if min(pixels.shape[-2:]) < 32:
        raise ValueError(f"images are {tuple(pixels.shape[-2:])}: corruptions need at least 32 x 32 pixels.")
    levels = pixels.detach().float().mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    state, results = np.random.get_state(), []
    try:
        for number, picture in enumerate(levels):
            np.random.seed(seed + number)
            options: dict[str, Any] = {"seed": seed + number} if name in _SEEDED else {}
            results.append(library.corrupt(picture, severity, name, **options))
    finally:
        np.random.set_state(state)
    return torch.from_numpy(np.stack(results)).permute(0, 3, 1, 2).float().div(255)


def evaluate_corruptions(
    encoder: PreTrainedModel,
    text_embeddings: Tensor,
    pixels: Tensor,
    labels: Tensor,
    *,
    normalization: Normalization,
    model: str,
    dataset: str,
    names: Sequence[str] | None = None,
    severities: Sequence[int] = (1, 2, 3, 4, 5),
    seed: int = 0,
    batch_size: int = 128,
    groups: Sequence[Hashable] | None = None,
    distributed: bool = False,
) -> Evaluation:
    """Zero-shot accuracy under each corruption (mean over severities), and the mean over corruptions.

    Args:
        encoder, text_embeddings, normalization: as `evaluate_zero_shot`.
        pixels: clean images (N, 3, H, W) at the encoder's resolution.
        labels: (N,).
        model, dataset: names for the rows; the corruption is appended to the data set.
        names: corruptions; None takes the 15 common ones.
        severities: of each, 1 to 5.
        seed, batch_size, groups: as named.
        distributed: divide the corrupted batches among the processes of accelerate or torchrun, which must all call
            this; every one of them gets what one process alone would.

    Returns:
        One row a corruption, then the mean; intervals by a bootstrap over images (groups), of their mean scores.

    Raises:
        ImportError, ValueError: as `corrupt_pixels`; no severities.
    """
    check_corruptions(names, severities)
    chosen = corruption_names() if names is None else list(names)
    fields: dict[str, Any] = {"batch_size": batch_size, "model": model, "task": "corruptions", "metric": "accuracy"}
    fields["precision"] = str(next(encoder.parameters()).dtype)

    def right(part: tuple[str, int, int]) -> list[bool]:
        name, severity, start = part
        batch = slice(start, start + batch_size)
        corrupted = corrupt_pixels(pixels[batch], name, severity, seed=seed + start)
        found = predict_zero_shot(encoder, text_embeddings, corrupted, normalization, batch_size=batch_size)
        return (found.cpu() == labels[batch].cpu()).tolist()

    parts = list(product(chosen, severities, range(0, len(pixels), batch_size)))
    found = [one for batch in divided(parts, right, distributed=distributed) for one in batch]
    each = torch.tensor(found).view(len(chosen), len(severities), len(pixels)).double().mean(1)
    scores = dict(zip(chosen, each, strict=True))
    scores[f"mean of {len(chosen)} corruptions"] = torch.stack(list(scores.values())).mean(0)
    rows = [_row(each, groups, seed, dataset=f"{dataset}, {name}", **fields) for name, each in scores.items()]
    return Evaluation(rows=rows, outcomes=[each.tolist() for each in scores.values()], seed=seed)


def _row(scores: Tensor, groups: Sequence[Hashable] | None, seed: int, **fields: Any) -> Row:
    values = scores.tolist()
    if set(values) <= {0.0, 1.0}:
        return fraction_row([value == 1.0 for value in values], groups, seed, **fields)
    interval = bootstrap_interval(values, groups, seed=seed)
    return Row(value=float(np.mean(values)), ci=interval, n=len(values), **fields)


def _library() -> Any:
    try:
        import imagecorruptions
    except ImportError as error:
        raise ImportError("corruptions need a library: pip install imagecorruptions-imaug.") from error
    return imagecorruptions
