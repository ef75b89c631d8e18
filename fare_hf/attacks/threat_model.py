"""What an attacker may do to an image: a norm ball around the clean pixels, inside the box [0, 1].

Everything that depends on the norm lives in `ThreatModel`, so that the attacks themselves are written once. Pixels
are fp32 throughout, and the ball is held in floating point, not only on paper: whoever computes `z - x` in fp32 or
fp64 and compares with `eps` finds no violation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fare_hf.numerals import Norm, format_fraction, parse_eps

# Sums of squares are rounded differently by everyone who computes them (order, fused operations, device). The l2
# radius is kept smaller by this relative margin, far above that noise and far below anything an attack could gain.
_L2_MARGIN = 2.0**-16


def format_eps(eps: float) -> str:
    """Print a radius as people write it: `4/255`, `0.5/255`, `0.03`, `1/256`; `parse_eps` reads the same double."""
    return format_fraction(eps)


def check_pixels(pixels: Tensor, name: str = "pixels") -> None:
    """Refuse what is not a batch of images in the pixel convention: float (B, C, H, W) in [0, 1]. One host sync.

    Raises:
        TypeError: not a tensor, or not fp32, fp16 or bf16.
        ValueError: not 4 dimensions, empty, or a value that is NaN or outside [0, 1].
    """
    if not isinstance(pixels, Tensor):
        raise TypeError(f"{name} is a {type(pixels).__name__}: pass a float tensor of shape (B, 3, H, W) in [0, 1].")
    if pixels.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        hint = "divide by 255 and pass float32" if not pixels.dtype.is_floating_point else f"pass {name}.float()"
        raise TypeError(f"{name} has dtype {pixels.dtype}, but pixels are float32 in [0, 1]: {hint}.")
    if pixels.ndim != 4 or pixels.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(pixels.shape)}: pass a batch of images of shape (B, 3, H, W).")
    low, high = torch.stack(torch.aminmax(pixels.detach())).tolist()
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"{name} spans [{low:.4g}, {high:.4g}], outside [0, 1]: pass images before normalisation "
            "(do_normalize=False) and normalise inside the loss function."
        )


@dataclass(frozen=True, init=False)
class ThreatModel:
    """The set of images an attacker may choose from: `{z in [0, 1] : ||z - x|| <= eps}` for each clean image x.

    Args:
        norm: `"linf"` (largest change of any value) or `"l2"` (Euclidean length of the whole change).
        eps: radius in units of the [0, 1] pixels, a number or a string such as `"4/255"`. Under linf at most 1.

    Raises:
        TypeError, ValueError: an unknown norm, or a radius `parse_eps` refuses.

    Example:
        >>> str(ThreatModel("linf", "4/255"))
        'linf 4/255'
    """

    norm: Norm
    eps: float

    def __init__(self, norm: str, eps: float | str) -> None:
        if norm not in ("linf", "l2"):
            raise ValueError(f"norm {norm!r} is unknown: pass 'linf' or 'l2'.")
        object.__setattr__(self, "norm", norm)
        object.__setattr__(self, "eps", parse_eps(eps, self.norm))

    def __str__(self) -> str:
        return f"{self.norm} {format_eps(self.eps)}"

    def to_dict(self) -> dict[str, str]:
        """`{"norm": "linf", "eps": "4/255"}`, as reports and cards carry it."""
        return {"norm": self.norm, "eps": format_eps(self.eps)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ThreatModel:
        """The inverse of `to_dict`. Raises ValueError when the keys are not exactly `norm` and `eps`."""
        if set(values) != {"norm", "eps"}:
            raise ValueError(f"threat model has keys {sorted(values)}: pass exactly 'norm' and 'eps'.")
        return cls(values["norm"], values["eps"])

    def projector(self, pixels: Tensor) -> Callable[[Tensor], Tensor]:
        """A function that moves fp32 points **in place** into the threat model around `pixels` and returns them.

        What depends on the clean images alone is computed once here, so that an attack pays one kernel a step for it.

        Args:
            pixels: clean images, fp32 (B, C, H, W) in [0, 1] (not checked here).
        """
        if self.norm == "l2":
            return lambda points: _project_l2_(points, pixels, self.eps)
        low, high = _linf_bounds(pixels, self.eps)
        return lambda points: torch.clamp_(points, low, high)

    def project(self, perturbed: Tensor, pixels: Tensor) -> Tensor:
        """The points moved into the ball around `pixels` and into the box, as new fp32 pixels.

        Under linf this is the nearest point of the threat model; under l2 the point is scaled to the sphere, then cut
        to the box. Exact in floating point: `(z - x).abs() <= eps` holds in fp32 and fp64.

        Args:
            perturbed: (B, C, H, W), any float dtype.
            pixels: clean images (B, C, H, W) in [0, 1], any float dtype.
        """
        check_same_shape(perturbed, pixels)
        return self.projector(pixels.float())(perturbed.detach().to(torch.float32, copy=True))

    def shortened(self, change: Tensor) -> Tensor:
        """Changes (B, C, H, W) cut to the ball, fp32; the box is not looked at. NaN stays NaN."""
        if self.norm == "linf":
            radius = _float32_below(self.eps)
            return change.float().clamp(-radius, radius)
        radius, length = self.eps * (1 - _L2_MARGIN), _norms(change.float())
        return change.float() * torch.where(length > radius, radius / length, 1.0)

    def random_start(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A uniform random point of the ball, cut to the box, as new fp32 pixels; the global RNG does not move.

        Under linf each value is uniform in [-eps, eps]; under l2 the change is uniform in the ball. Never the clean
        image itself, where the gradient of FARE's objective is exactly zero, unless eps is 0 or below the resolution
        of fp32.

        Args:
            pixels: clean images (B, C, H, W) in [0, 1].
            generator: where the noise comes from, on any device (a CPU generator gives every device the same noise).
                None: a fresh CPU generator with seed 0.
        """
        clean = pixels.detach().float()
        project = self.projector(clean)
        noise = self.noise(clean, generator or torch.Generator().manual_seed(0))
        start = project(clean + noise)
        # Where every value sits on the edge of the box and the noise points outwards, the cut leaves the clean image;
        # the opposite noise points inwards.
        unmoved = (start == clean).flatten(1).all(1).view(-1, 1, 1, 1)
        return torch.where(unmoved, project(clean - noise), start)

    def noise(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """Uniform noise in the ball, fp32, shape and device of `clean`; the box is not looked at."""
        shape, device = clean.shape, generator.device
        if self.norm == "linf":
            return (
                torch.empty(shape, device=device).uniform_(-self.eps, self.eps, generator=generator).to(clean.device)
            )
        direction = torch.randn(shape, generator=generator, device=device)
        radius = torch.rand(shape[0], 1, 1, 1, generator=generator, device=device).pow_(1 / clean[0].numel())
        return direction.mul_(radius * self.eps / _norms(direction)).to(clean.device)

    def direction(self, gradient: Tensor) -> Tensor:
        """The steepest direction of unit norm: the sign under linf, the normalised gradient under l2 (0 stays 0)."""
        if self.norm == "linf":
            return gradient.sign()
        # Scaled by the largest entry first, because squares of tiny gradients underflow in fp32.
        largest = gradient.abs().amax(dim=(1, 2, 3), keepdim=True)
        scaled = gradient / torch.where(largest > 0, largest, 1.0)
        return scaled.div_(_norms(scaled).clamp_min_(1.0))

    def violation(self, perturbed: Tensor, pixels: Tensor) -> Tensor:
        """How far each sample lies outside the threat model: fp64 (B,), 0 inside, inf for NaN; computed in fp64.

        Pass what the model is really given (rounded to its dtype) to check that.
        """
        check_same_shape(perturbed, pixels)
        points, clean = (_where_doubles_are(tensor).flatten(1) for tensor in (perturbed, pixels))
        change = points.to(torch.float64, copy=True).sub_(clean.double())
        # `amax` reads rows several times as fast as `aminmax` and the norm do; it keeps NaN, as they do.
        length = change.abs_().amax(1) if self.norm == "linf" else torch.linalg.vector_norm(change, dim=1)
        outside_box = torch.maximum(-points.amin(1).double(), points.amax(1).double() - 1)
        outside_ball = length - self.eps
        return torch.maximum(outside_ball, outside_box).clamp_min(0).nan_to_num(nan=math.inf, posinf=math.inf)

    def check(self, perturbed: Tensor, pixels: Tensor) -> None:
        """Raise ValueError, naming the samples, when any of them lies outside the threat model. One host sync."""
        violation = self.violation(perturbed, pixels).cpu()
        if (violation > 0).any():
            samples = violation.nonzero().flatten().tolist()
            raise ValueError(
                f"perturbation of samples {samples} leaves the threat model {self} by up to {violation.max():.3g}: "
                "evaluate the pixels the attack returned, in fp32, against the clean pixels it was given."
            )

    def round_to(self, perturbed: Tensor, pixels: Tensor, dtype: torch.dtype) -> Tensor:
        """Round points to a model's dtype without leaving the threat model around the fp32 `pixels`.

        Plain rounding of a point at the edge of the ball to bf16 or fp16 may land outside. Under linf each value goes
        to the nearest one inside; under l2 to the nearest one not beyond the point itself.

        Args:
            perturbed: fp32 (B, C, H, W) inside the threat model.
            pixels: clean images (B, C, H, W) in [0, 1].
            dtype: for instance `torch.bfloat16`.

        Raises:
            ValueError: some value has no neighbour in `dtype` inside (eps below the resolution of `dtype`).
        """
        check_same_shape(perturbed, pixels)
        clean = pixels.float()
        if self.norm == "linf":
            low, high = _linf_bounds(clean, self.eps)
        else:
            low, high = torch.minimum(perturbed, clean), torch.maximum(perturbed, clean)
        rounded = perturbed.to(dtype)
        down = torch.nextafter(rounded, torch.full_like(rounded, -math.inf))
        up = torch.nextafter(rounded, torch.full_like(rounded, math.inf))
        rounded = torch.where(rounded.float() > high, down, torch.where(rounded.float() < low, up, rounded))
        if (self.violation(rounded, clean) > 0).any():
            raise ValueError(f"{self} is below the resolution of {dtype}: evaluate in a wider dtype or raise eps.")
        return rounded


def check_same_shape(perturbed: Tensor, pixels: Tensor) -> None:
    """Raises ValueError unless both batches have one shape: broadcasting would hide a mistake."""
    if perturbed.shape != pixels.shape:
        raise ValueError(
            f"perturbed pixels have shape {tuple(perturbed.shape)} and clean pixels {tuple(pixels.shape)}: "
            "pass two batches of the same shape."
        )


def check_start(start: Tensor, pixels: Tensor) -> None:
    """Raises ValueError unless a starting point has the pixels' shape and finite values. One host sync."""
    check_same_shape(start, pixels)
    # The extremes are finite where all values are, and NaN where any is; cheaper than a mask.
    if not bool(torch.stack(torch.aminmax(start.detach())).isfinite().all()):
        raise ValueError("start has values that are NaN or infinite: pass pixels in [0, 1].")


def check_threat_model(threat_model: object) -> None:
    """Raises TypeError unless it is a `ThreatModel`, say where its text was given."""
    if not isinstance(threat_model, ThreatModel):
        kind = type(threat_model).__name__
        raise TypeError(f"threat_model {threat_model!r} is a {kind}: pass a ThreatModel(norm, eps).")


def _where_doubles_are(tensor: Tensor) -> Tensor:
    """Without its gradient; on the CPU where the device has no fp64."""
    tensor = tensor.detach()
    return tensor.cpu() if tensor.device.type == "mps" else tensor


def _norms(change: Tensor) -> Tensor:
    """Euclidean length of each sample, (B, 1, 1, 1)."""
    return torch.linalg.vector_norm(change, dim=(1, 2, 3), keepdim=True)


def _float32_below(value: float) -> float:
    """The largest fp32 number that is not above `value`: fp32(4/255) itself may lie above 4/255."""
    rounded = torch.tensor(value, dtype=torch.float32)
    return rounded.item() if rounded.item() <= value else torch.nextafter(rounded, torch.tensor(0.0)).item()


def _add_inwards(pixels: Tensor, change: Tensor) -> Tensor:
    """`pixels + change` in fp32, rounded towards `pixels`, so that the exact difference never exceeds `change`.

    Knuth's TwoSum gives the exact rounding error of the sum; where it shows an overshoot, one step back.
    """
    total = pixels + change
    part = total - pixels
    error = (
        (total - part).neg_().add_(pixels).add_(part.neg_().add_(change))
    )  # in place: large tensors cost their room
    return torch.where(error.mul_(change.sign()) < 0, torch.nextafter(total, pixels), total)


def _linf_bounds(pixels: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Smallest and largest fp32 value each pixel may take in the ball and the box.

    The values of `_add_inwards` with the radius, for pixels in [0, 1]: Dekker's FastTwoSum shows an overshoot with
    fewer operations where the larger summand is known, and the next smaller positive number is one bit pattern away.
    """
    radius = _float32_below(eps)
    low, high = pixels - radius, pixels + radius
    # Where a pixel is smaller than the radius, its bound is cut to 0, whatever the rounding.
    low.view(torch.int32).add_(torch.sub(pixels, low) > radius)
    overshoot = (high - pixels.clamp_min(radius)) > pixels.clamp_max(radius)
    high.view(torch.int32).sub_(overshoot.int())
    return low.clamp_min_(0), high.clamp_max_(1)


def _project_l2_(points: Tensor, pixels: Tensor, eps: float) -> Tensor:
    """Scale the change to the sphere where it is longer, round it inwards, cut to the box; in place."""
    change = points - pixels
    radius = eps * (1 - _L2_MARGIN)
    length = _norms(change)
    change.mul_(torch.where(length > radius, radius / length, 1.0))
    return points.copy_(_add_inwards(pixels, change).clamp_(0, 1))
