"""The losses of an attack as an SVG, which needs no library on either side."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from fare_hf.app.attack import Found

__all__ = ["curve"]

COLOURS = ("#d9480f", "#0b7285")
WIDTH, HEIGHT = 640, 200
LEFT, RIGHT, TOP, BASE = 44, 630, 10, 176  # of the axes, in the units of width and height


def curve(found: Found) -> str:
    """The loss of each model at the start and after every step so far."""
    steps = found.settings.steps
    values = [value for line in found.losses.values() for value in line]
    low, high = min([0.0, *values]), max([1.0, *values])
    what = "loss of the text to force (at 0 it is written)"
    what = what if found.settings.target else "loss of the model's own clean caption"
    words = [_word(LEFT - 6, TOP + 8, "end", f"{high:.1f}"), _word(LEFT - 6, BASE, "end", f"{low:.1f}")]
    words += [_word(LEFT, HEIGHT - 6, "middle", "0"), _word(RIGHT, HEIGHT - 6, "end", f"step {steps}")]
    words += [_word(LEFT + 8, TOP + 8, "start", what)]
    axes = f'<path d="M{LEFT},{TOP}V{BASE}H{RIGHT}" fill="none" stroke="currentColor" opacity=".4"/>'
    coloured = list(zip(COLOURS, found.losses.items(), strict=False))
    parts = [_line(losses, colour, steps, (low, high)) for colour, (_, losses) in coloured]
    legend = [f'<span style="color:{colour}">&#9632; {escape(name)}</span>' for colour, (name, _) in coloured]
    chart = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{what}">{axes}{"".join(parts + words)}</svg>'
    return f'<div class="fare-curve">{chart}<div>{" ".join(legend)}</div></div>'


def _line(losses: Sequence[float], colour: str, steps: int, ends: tuple[float, float]) -> str:
    across, up = (RIGHT - LEFT) / steps, (BASE - TOP) / (ends[1] - ends[0])
    points = [f"{LEFT + step * across:.1f},{BASE - (value - ends[0]) * up:.1f}" for step, value in enumerate(losses)]
    return f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{" ".join(points)}"/>'


def _word(x: int, y: int, anchor: str, text: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>'
