"""Numbers as people write them: one reader, whatever is passed, and what is printed reads back."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fare_hf.attacks import ThreatModel, parse_eps
from fare_hf.numerals import format_fraction, parse_count, parse_fraction, whole_number
from fare_hf.suites.suite import load_suite

NONSENSE = [
    "4_0/255",
    "-4/-255",
    "4/255/2",
    " 4 / 255",
    "4 /255",
    "4/ 255",
    "4/255 ",
    "\u0664/255",
    "4/\u0662",
    "\u00bd",
]
NONSENSE += ["4/0", "/255", "4/", "0x4/255", "4,0/255", "1e", "4/inf", "4/nan", "--4", "1_0", "4\n", "True"]


@pytest.mark.parametrize("text", NONSENSE)
def test_what_only_looks_like_a_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a number"):
        parse_fraction(text, "eps")


@pytest.mark.parametrize("value", [True, False, None, [4], b"4", 4j, Fraction(4, 255)])
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="pass a number or a string"):
        parse_fraction(value, "eps")  # type: ignore[arg-type]


@given(st.text(alphabet="0123456789/.-+eE_ \u0664infa", max_size=12))
@example("-0/255")
@example("1e999")
def test_a_text_is_read_as_its_fraction_or_refused(text: str) -> None:
    """Whatever is taken is what exact arithmetic makes of it."""
    try:
        found = parse_fraction(text, "eps")
    except ValueError:
        return
    above, _, below = text.partition("/")
    assert text.isascii() and not set(text) & set("_ ")
    exact = Fraction(above) / Fraction(below or 1)
    assert found >= 0 and math.isclose(found, float(exact), rel_tol=1e-15, abs_tol=1e-300)


@given(st.floats(0, 1e4, allow_nan=False) | st.fractions(0, 1, max_denominator=1024).map(float))
@example(1 / 256)
def test_what_is_printed_reads_back_to_the_bit(number: float) -> None:
    assert parse_fraction(format_fraction(number), "eps") == number


@pytest.mark.parametrize("text", ["1/256", "3/512", "0.5/255", "4/255", "0.0123", "0.01171875", "1/7", "0.25", "0"])
def test_a_radius_is_printed_as_a_person_would(text: str) -> None:
    printed = {"0.01171875": "3/256"}.get(text, text)
    assert str(ThreatModel("linf", text)) == f"linf {printed}"


@pytest.mark.parametrize("eps", [1e30, "1e30", 10_001, math.inf])
def test_an_l2_ball_larger_than_any_image_is_refused(eps: float | str) -> None:
    with pytest.raises(ValueError, match="farther than black is from white|not finite"):
        parse_eps(eps, "l2")


@pytest.mark.parametrize("value", [True, False, None, "3", 3.0, -1, 2**32, [3]])
def test_whole_numbers_are_whole_numbers(value: object) -> None:
    with pytest.raises(ValueError, match="steps .* is no whole number from 0 to 4294967295"):
        whole_number(value, "steps", 0)


@given(st.text(alphabet="0123456789+-_ .e\u0661", max_size=14))
def test_words_of_a_command_line_are_whole_numbers_or_refused(text: str) -> None:
    number = parse_count(text, 0)
    assert number is None or (text.isdigit() and text.isascii() and number == int(text) < 2**32)


def test_the_shipped_suites_are_read_by_the_same_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """One parser: what it refuses, a suite refuses."""
    monkeypatch.setattr("fare_hf.numerals.parse_fraction", pytest.fail)
    with pytest.raises(pytest.fail.Exception):
        load_suite("lab")
