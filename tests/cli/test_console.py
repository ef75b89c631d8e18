"""What a command shows: no notices that ask nothing of anybody, errors of one line."""

from __future__ import annotations

import argparse
import logging
import re
import subprocess
import sys
import warnings

import pytest
import torch
from safetensors import SafetensorError

from fare_hf.cli import main as cli
from fare_hf.cli.console import (
    NEGATIVE_NUMBER,
    NOTICES,
    hide_notices,
    named_values,
    natural,
    one_line,
    one_sentence,
    positive,
)


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


def test_a_warning_is_a_line_without_the_code_that_it_came_from(capfd: pytest.CaptureFixture[str]) -> None:
    hide_notices()
    print(warnings.formatwarning("look\n at this", UserWarning, "file.py", 3), end="")
    assert capfd.readouterr().out == "warning: look at this\n"


def test_errors_are_one_line() -> None:
    assert one_line(OSError("no such\n  model\n")) == "no such model"
    assert one_line(ValueError()) == "ValueError"


@pytest.mark.parametrize(("word", "number"), [("-4/255", True), ("-.5", True), ("--eps", False), ("-h", False)])
def test_negative_fractions_are_numbers(word: str, number: bool) -> None:
    assert bool(NEGATIVE_NUMBER.match(word)) == number


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("no such\n set"), "p: error: no such set"),
        (
            KeyError("vision_config"),
            r"p: error: KeyError: 'vision_config' \(this was not foreseen; FARE_HF_TRACEBACK=1",
        ),
        (ZeroDivisionError("division by zero"), "p: error: ZeroDivisionError: division by zero"),
        (SafetensorError("header too large"), "a safetensors file cannot be read or written .header too large"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0"), "make room on the disk"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "memory is used up"),
        (MemoryError(), "memory is used up .MemoryError"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "memory is used up .CUDA"),
        (RecursionError("maximum recursion depth"), "nested too deep"),
        (RuntimeError("x" * 5000), r"x\.\.\. \(this was not foreseen"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_happens_is_one_sentence(error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as end, one_sentence("p"):
        raise error
    message = str(end.value)
    assert message.startswith("p: error: ") and "\n" not in message and re.search(sentence, message)
    monkeypatch.setenv("FARE_HF_TRACEBACK", "1")
    with pytest.raises(type(error)), one_sentence("p"):
        raise error


def test_ctrl_c_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end, one_sentence("p", "the same command goes on"):
        raise KeyboardInterrupt
    assert end.value.code == 130 and capsys.readouterr().err == "\np: interrupted: the same command goes on.\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    """`fare-hf ... | head -1`: a real pipe."""
    code = "from fare_hf.cli.console import one_sentence\nwith one_sentence('p'):\n for _ in range(9**5): print('x')"
    with subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.parametrize(
    "text",
    ["0", "-1", "1_0", " 1", "1 ", "+1", "1.0", "1e3", "\u0661", "\u00b2", "True", "", "4294967296", "9" * 30],
)
def test_counts_are_digits_and_not_endless(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="no whole number of at least 1"):
        positive(text)
    assert positive("007") == 7 and natural("0") == 0


@pytest.mark.parametrize("words", [["a=x", "a=y"], ["=x"], ["a="], ["a"]])
def test_names_are_given_once_and_whole(words: list[str]) -> None:
    with pytest.raises(ValueError, match="--models (names a twice|.*give NAME=PATH)"):
        named_values("--models", words)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["evalute"], "evaluate"),
        (["attack", "lab:llava", "--dataset", "d", "--output_dir", "o", "--epsilon", "1"], "--eps"),
        (["attack", "lab:llava", "--dataset", "d", "--output_dir", "o", "--epsilon=4/255"], "--eps"),
        (["evaluate", "e", "--output_dir", "o", "--probe", "lineer"], "linear"),
    ],
)
def test_what_was_meant_is_guessed(words: list[str], meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(words)
    assert capsys.readouterr().err.endswith(f"; did you mean {meant}?\n")
