"""Images that nobody drew: strokes, shapes, textures and silhouettes, each from its own seed.

What FARE is fine-tuned on beside drawings: it needs no labels, so any image will do. None of them is made after the
image of a test set.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from fare_hf.lab.scenes import IMAGE_SIZE, background, place

Colour = tuple[int, ...]


def strokes(rng: np.random.Generator) -> Image.Image:
    """One to four smooth curves of a pen on a background, as an RGB image of 160 x 160."""
    image = background(rng)
    pen = ImageDraw.Draw(image)
    for _ in range(rng.integers(1, 5)):
        points = [(float(x), float(y)) for x, y in _curve(rng.uniform(0.05, 0.95, (4, 2)) * IMAGE_SIZE)]
        pen.line(points, fill=_colour(rng), width=int(rng.integers(4, 25)), joint="curve")
    return image


def shapes(rng: np.random.Generator) -> Image.Image:
    """One to five polygons and ellipses on a background, as an RGB image of 160 x 160."""
    image = background(rng)
    pen = ImageDraw.Draw(image)
    for _ in range(rng.integers(1, 6)):
        if rng.random() < 0.5:
            corners = rng.uniform(0, IMAGE_SIZE, (int(rng.integers(3, 9)), 2))
            pen.polygon([(float(x), float(y)) for x, y in corners], fill=_colour(rng))
        else:
            low, high = np.sort(rng.uniform(0, IMAGE_SIZE, (2, 2)), axis=0)
            pen.ellipse((*low.tolist(), *high.tolist()), fill=_colour(rng))
    return image


def texture(rng: np.random.Generator) -> Image.Image:
    """Noise of one grain, fine or coarse, in two directions not always the same, as an RGB image of 160 x 160."""
    cells = np.exp(rng.uniform(np.log(2), np.log(40), 2)).astype(int)
    values = rng.integers(0, 256, (*cells, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)


def silhouette(drawing: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The outline of a drawing (RGBA), filled with a texture, on a background."""
    image, filled = background(rng), texture(rng).resize(drawing.size)
    filled.putalpha(drawing.getchannel("A"))
    side = int(IMAGE_SIZE * rng.uniform(0.6, 1.0))
    corner = rng.integers(0, IMAGE_SIZE - side + 1, 2)
    place(image, filled, side, (int(corner[0]), int(corner[1])), rng.uniform(-1, 1) * 25)
    return image


def enlarged(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The image as if it had been stored with 10 to 60 pixels a side."""
    side = int(rng.integers(10, 61))
    small = image.resize((side, side), Image.Resampling.BOX)
    return small.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)


def _curve(controls: np.ndarray) -> np.ndarray:
    """Points (24, 2) of the cubic Bezier curve of four control points (4, 2)."""
    t = np.linspace(0, 1, 24)[:, None]
    weights = np.concatenate([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], axis=1)
    return weights @ controls


def _colour(rng: np.random.Generator) -> Colour:
    return tuple(int(value) for value in rng.integers(0, 256, 3))
