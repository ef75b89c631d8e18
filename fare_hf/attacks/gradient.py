"""One evaluation of an attacked loss: its values, and its gradient with respect to the pixels alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Pixels (B, C, H, W) fp32 in [0, 1] to the loss (B,) to maximise, or to `(loss, success)` with success a bool (B,).
LossFn = Callable[[Tensor], Tensor | tuple[Tensor, Tensor]]


class AttackedLoss:
    """A loss function under attack; remembers, without a host sync, where it became NaN.

    Args:
        loss_fn: see `LossFn`.
        samples: number of samples B.
        device: where the pixels are.
    """

    def __init__(self, loss_fn: LossFn, samples: int, device: torch.device) -> None:
        self._loss_fn = loss_fn
        self._samples = samples
        self._calls = 0
        self._rows = torch.arange(samples, device=device)
        self._first_bad = torch.full((samples,), -1, dtype=torch.long, device=device)

    def gradient(self, pixels: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Loss (B,) fp32, success (B,) or None, and the gradient of each sample's loss, shape of `pixels`, fp32.

        `autograd.grad` with respect to the pixels leaves every `param.grad` alone.
        """
        with torch.enable_grad():
            points = pixels.detach().requires_grad_()
            loss, success = self._call(points)
            # Weights that require grad make a loss require grad that never reads the pixels.
            gradient = torch.autograd.grad(loss.sum(), points, allow_unused=True)[0] if loss.requires_grad else None
            if gradient is None:
                raise ValueError(
                    "loss_fn's loss does not depend on its pixels differentiably: remove no_grad, detach and "
                    "inference_mode between the pixels and the loss."
                )
        loss = loss.detach().float()
        # A sum is the cheapest reduction, and NaN or infinity in any value shows in it.
        self._note(~gradient.flatten(1).sum(1).isfinite() | loss.isnan())
        return loss, success, gradient

    @torch.no_grad()
    def value(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Loss (B,) fp32 and success (B,) or None, without a gradient."""
        loss, success = self._call(pixels)
        loss = loss.float()
        self._note(loss.isnan())
        return loss, success

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the present samples only; what follows passes their pixels alone.

        Raises:
            ValueError: `loss_fn` has no `select(rows)`.
        """
        self._loss_fn = select(self._loss_fn, rows)
        self._rows = self._rows[rows]
        self._samples = len(self._rows)

    @property
    def rows(self) -> Tensor:
        """Which of the samples it began with are still there, (b,), ascending."""
        return self._rows

    def raise_if_bad(self) -> None:
        """Raise ValueError naming step and samples if any loss was NaN or any gradient NaN or infinite. One sync."""
        first = self._first_bad.tolist()
        bad = {sample: step for sample, step in enumerate(first) if step >= 0}
        if bad:
            step = min(bad.values())
            raise ValueError(
                f"loss_fn gave a NaN loss or a NaN or infinite gradient in attack step {step} for samples "
                f"{[sample for sample, at in bad.items() if at == step]} (all affected: {sorted(bad)}): look at "
                "these inputs, or compute the loss in fp32."
            )

    def _call(self, points: Tensor) -> tuple[Tensor, Tensor | None]:
        result = self._loss_fn(points)
        loss, success = result if isinstance(result, tuple) else (result, None)
        for name, value in (("loss", loss), ("success", success)):
            if value is not None and value.shape != (self._samples,):
                raise ValueError(
                    f"loss_fn's {name} has shape {tuple(value.shape)}: return one value a sample, ({self._samples},)."
                )
        return loss, None if success is None else success.detach().bool()

    def _note(self, bad: Tensor) -> None:
        before = self._first_bad[self._rows]
        self._first_bad[self._rows] = torch.where(bad & (before < 0), self._calls, before)
        self._calls += 1


def select(loss_fn: LossFn, rows: Tensor) -> LossFn:
    """The same loss for some of its samples: `loss_fn.select(rows)`, as `ClassifierLoss` and `VlmLoss` have it.

    Raises:
        ValueError: it has no such method, so that finished samples cannot be left out.
    """
    method: Any = getattr(loss_fn, "select", None)
    if method is None:
        raise ValueError(
            f"{type(loss_fn).__name__} has no select(rows): pass a loss such as ClassifierLoss, or stop_fooled=False."
        )
    return method(rows)


def check_steps(steps: int, field: str = "steps") -> None:
    """Raises TypeError unless `steps` is an integer, ValueError unless it is at least 1."""
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"{field} {steps!r} is a {type(steps).__name__}: pass an integer of at least 1.")
    if steps < 1:
        raise ValueError(f"{field} {steps} is not positive: pass at least 1, or skip the attack.")
