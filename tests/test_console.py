"""What a command shows: no notices that ask nothing of anybody, errors of one line."""

from __future__ import annotations

import logging
import warnings

import pytest

from fare_hf.console import NEGATIVE_NUMBER, NOTICES, hide_notices, one_line


def test_notices_are_hidden_and_the_rest_of_their_loggers_is_not(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        hide_notices()
    for name, words in NOTICES.items():
        logger = logging.getLogger(name)
        with caplog.at_level(logging.WARNING, logger=name):
            logger.propagate, propagated = True, logger.propagate
            logger.handle(logger.makeRecord(name, logging.WARNING, __file__, 1, f"x {words} y", (), None))
            logger.handle(logger.makeRecord(name, logging.WARNING, __file__, 1, "look at this", (), None))
            logger.propagate = propagated
        assert len(logger.filters) == 1
    assert caplog.messages == ["look at this"] * len(NOTICES)


def test_only_the_warning_about_pinned_memory_is_hidden() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        hide_notices()
        warnings.warn("'pin_memory' argument is set as true but no accelerator is found", stacklevel=1)
        warnings.warn("look at this", stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["look at this"]


def test_errors_are_one_line() -> None:
    assert one_line(OSError("no such\n  model\n")) == "no such model"
    assert one_line(ValueError()) == "ValueError"


@pytest.mark.parametrize(("word", "number"), [("-4/255", True), ("-.5", True), ("--eps", False), ("-h", False)])
def test_negative_fractions_are_numbers(word: str, number: bool) -> None:
    assert bool(NEGATIVE_NUMBER.match(word)) == number
