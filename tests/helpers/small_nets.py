"""Random small networks that attacks are compared on."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn


@cache
def problem(seed: int, side: int, classes: int, samples: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A random convolutional net, images (samples, 3, side, side), and its own predictions as labels."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, stride=2, padding=1)]
    head = nn.Linear(12 * (side // 2) ** 2, classes)
    net = nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), head).eval().requires_grad_(False)
    pixels = torch.rand(samples, 3, side, side)
    return net, pixels, net(pixels).argmax(1)
