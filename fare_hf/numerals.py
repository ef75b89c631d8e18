"""Numbers as people write them, read in one way by attacks, configurations, suites and command lines."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Literal

__all__ = ["LARGEST_COUNT", "Norm", "format_fraction", "parse_count", "parse_eps", "parse_fraction", "whole_number"]

LARGEST_COUNT = 2**32 - 1
"""The largest whole number that is taken; numpy takes no larger seed."""
DECIMAL = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
NUMBER = re.compile(rf"([+-]?{DECIMAL})(?:/({DECIMAL}))?", re.ASCII)
NOT_FINITE = re.compile(r"[+-]?(?:nan|inf|infinity)", re.ASCII | re.IGNORECASE)
DIGITS = re.compile(r"[0-9]{1,20}", re.ASCII)
Norm = Literal["linf", "l2"]
FARTHEST = 10_000
"""Longest radius under l2: in larger balls, sums of squares overflow and attacks no longer move."""
SHORT = 8
"""Characters from which a decimal is printed as a fraction, where there is one of the same value."""


def parse_fraction(value: float | str, field: str) -> float:
    """Read a non-negative number such as `0.0157`, `"0.0157"` or `"4/255"`.

    Args:
        value: the number, or its decimal or fraction as a string: ASCII digits, without blanks or underscores.
        field: the name that an error message gives it.

    Raises:
        TypeError: neither a number nor a string.
        ValueError: not readable, NaN, infinite, or negative.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError(f"{field} {value!r} is a {type(value).__name__}: pass a number or a string such as '4/255'.")
    number = _read(value)
    if number is None:
        raise ValueError(f"{field} {value!r} is not a number: pass one such as 0.0157, or a fraction as '4/255'.")
    if not math.isfinite(number):
        raise ValueError(f"{field} {value!r} is not finite: pass a number such as 0.0157, or a fraction as '4/255'.")
    if number < 0:
        raise ValueError(f"{field} {value!r} is negative: pass a number from 0, such as '4/255'.")
    return abs(number)  # "-0" is 0


def parse_eps(eps: float | str, norm: Norm = "linf") -> float:
    """Read a radius: `4/255`, `"4/255"` or `"0.0157"`.

    Under linf the radius is in units of the [0, 1] pixels and at most 1; under l2 at most `FARTHEST`.

    Raises:
        TypeError: neither a number nor a string.
        ValueError: not readable, NaN, infinite, negative, above 1 under linf, or longer than any image under l2.
    """
    number = parse_fraction(eps, "eps")
    if number > FARTHEST:
        raise ValueError(f"eps {eps} is farther than black is from white in 5,000 x 5,000 pixels: give a radius.")
    if norm == "linf" and number > 1:
        hint = f"did you mean {number:g}/255?" if number <= 255 else "pass a fraction such as '4/255'."
        raise ValueError(f"eps {eps} is outside [0, 1], the range of the pixels: {hint}")
    return number


def _read(value: float | str) -> float | None:
    """The number, perhaps not finite; None for words that are none."""
    if not isinstance(value, str):
        return float(value) if abs(value) <= LARGEST_COUNT or isinstance(value, float) else math.inf
    if NOT_FINITE.fullmatch(value):
        return float(value)
    found = NUMBER.fullmatch(value)
    below = float(found[2] or 1) if found else 0.0
    return float(found[1]) / below if found and below else None


def format_fraction(number: float) -> str:
    """Print a number from 0 as people write it: `4/255`, `0.5/255`, `0.03`, `1/256`; it reads back as the same double.

    A fraction of 255 is taken where it is shorter than the decimal, another one where the decimal is long.
    """
    decimal = repr(float(number)).removesuffix(".0")
    levels = f"{number * 255:g}/255"
    if float(levels.removesuffix("/255")) / 255 == number and len(levels) < len(decimal):
        return levels
    exact = Fraction(number).limit_denominator(10_000)
    if len(decimal) >= SHORT and exact.numerator / exact.denominator == number and len(str(exact)) < len(decimal):
        return str(exact)
    return decimal


def whole_number(value: object, field: str, least: int = 1) -> int:
    """A whole number that is one: no text, no `True`, no `2.0`.

    Args:
        value: what was given.
        field: the name that an error message gives it.
        least: the smallest that is taken.

    Raises:
        ValueError: something else, or too small or large.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST_COUNT:
        raise ValueError(f"{field} {value!r} is no whole number from {least} to {LARGEST_COUNT}.")
    return value


def parse_count(text: str, least: int = 1) -> int | None:
    """A whole number in ASCII digits; None for what is none, or too small or large."""
    number = int(text) if DIGITS.fullmatch(text) else -1
    return number if least <= number <= LARGEST_COUNT else None
