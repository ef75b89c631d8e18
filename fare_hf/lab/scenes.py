"""Images of the lab: drawings placed on backgrounds, one or a few at a time, each from its own seed.

The same functions make training, validation and test images; only the seeds, the drawings and the amount of variation
differ. All of it is integer arithmetic of Pillow on uint8, so an image depends on its seed and on nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

IMAGE_SIZE = 160
"""Side of every lab image in pixels: the lab CLIP's resolution."""


@dataclass(frozen=True)
class Variation:
    """How freely a scene is drawn.

    Attributes:
        scale: smallest and largest side of a single drawing, as a part of the image's side.
        rotation: largest rotation in degrees.
        colour: strength of the change of brightness, contrast and colour balance, in [0, 1].
        grey: probability that the scene loses its colour.
        invert: probability that the scene is inverted.
        fade: smallest contrast, drawn evenly from [fade, 1].
    """

    scale: tuple[float, float] = (0.6, 0.95)
    rotation: float = 10.0
    colour: float = 0.15
    grey: float = 0.0
    invert: float = 0.0
    fade: float = 1.0


EVALUATION = Variation(scale=(0.8, 0.95), rotation=5.0, colour=0.0, fade=0.7)
PRETRAINING = Variation(scale=(0.75, 1.0), rotation=10.0, colour=0.2, grey=0.03, fade=0.4)
GREY = Variation(colour=0.2, fade=0.25)
"""Clothes and digits in pre-training."""
FINE_TUNING = Variation(scale=(0.6, 1.0), rotation=15.0, colour=0.4, grey=0.2, invert=0.1, fade=0.4)
"""Wider than pre-training, so that a robust encoder also sees what looks little like a drawing."""
UNLABELLED = Variation(scale=(0.5, 1.0), rotation=25.0, colour=0.4, grey=0.35, invert=0.25, fade=0.25)
"""Wider still, for what needs no label."""

# Corners of the 2 x 2 grid on which several drawings stand.
_CELLS = ((0, 0), (0, 1), (1, 0), (1, 1))


def background(rng: np.random.Generator, size: int = IMAGE_SIZE) -> Image.Image:
    """A plain, graded or cloudy background; light on the whole, as in icon art."""
    kind = rng.integers(3)
    if kind == 0:
        return Image.new("RGB", (size, size), tuple(int(v) for v in rng.integers(160, 256, 3)))
    cells = (1, 2) if kind == 1 else (3, 3)
    colours = rng.integers(150, 256, (*cells, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((size, size), Image.Resampling.BICUBIC)


def place(scene: Image.Image, drawing: Image.Image, side: int, corner: tuple[int, int], angle: float) -> None:
    """Pastes `drawing` (RGBA) into `scene`, `side` pixels wide, its upper left corner at `corner`."""
    drawing = drawing.resize((side, side), Image.Resampling.BILINEAR)
    if angle:
        drawing = drawing.rotate(angle, Image.Resampling.BILINEAR)
    scene.paste(drawing, corner, drawing)


def recolour(scene: Image.Image, variation: Variation, rng: np.random.Generator) -> Image.Image:
    """Changes brightness, contrast and balance of the channels, and sometimes drops or inverts the colours."""
    if rng.random() < variation.grey:
        scene = scene.convert("L").convert("RGB")
    if variation.colour:
        gain = 1 + variation.colour * rng.uniform(-1, 1) + 0.5 * variation.colour * rng.uniform(-1, 1, 3)
        shift = 255 * 0.3 * variation.colour * rng.uniform(-1, 1, 3)
        table = np.arange(256) * gain[:, None] + shift[:, None]
        scene = scene.point(np.clip(table, 0, 255).astype(np.uint8).ravel().tolist())
    if rng.random() < variation.invert:
        scene = ImageOps.invert(scene)
    return fade(scene, rng.uniform(variation.fade, 1)) if variation.fade < 1 else scene


def fade(scene: Image.Image, contrast: float) -> Image.Image:
    """Moves every value towards mid-grey; contrast 1 changes nothing, 0 leaves a grey image."""
    return scene.point([round(128 + contrast * (value - 128)) for value in range(256)] * 3)


def single(drawing: Image.Image, rng: np.random.Generator, variation: Variation = EVALUATION) -> Image.Image:
    """One drawing somewhere on a background, as an RGB image of 160 x 160."""
    scene = background(rng)
    side = int(IMAGE_SIZE * rng.uniform(*variation.scale))
    corner = tuple(int(v) for v in rng.integers(0, IMAGE_SIZE - side + 1, 2))
    place(scene, drawing, side, (corner[0], corner[1]), rng.uniform(-1, 1) * variation.rotation)
    return recolour(scene, variation, rng)


def part(drawing: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A drawing larger than the image, of which one part is seen, as an RGB image of 160 x 160."""
    scene, side = background(rng), int(IMAGE_SIZE * rng.uniform(1.2, 2.5))
    left, upper = (-int(v) for v in rng.integers(0, side - IMAGE_SIZE + 1, 2))
    place(scene, drawing, side, (left, upper), rng.uniform(-1, 1) * 180)
    return scene


def several(drawings: list[Image.Image], rng: np.random.Generator, variation: Variation = EVALUATION) -> Image.Image:
    """Two to four drawings, one to a quarter of the image, as an RGB image of 160 x 160."""
    scene = background(rng)
    half = IMAGE_SIZE // 2
    cells = rng.permutation(len(_CELLS))[: len(drawings)]
    for drawing, cell in zip(drawings, cells, strict=True):
        side = int(half * rng.uniform(0.8, 1.0))
        row, column = _CELLS[cell]
        down, right = (int(v) for v in rng.integers(0, half - side + 1, 2))
        place(
            scene, drawing, side, (column * half + right, row * half + down), rng.uniform(-1, 1) * variation.rotation
        )
    return recolour(scene, variation, rng)
