"""What command lines share: words read as values, no notices that ask nothing of a person, errors of one line."""

from __future__ import annotations

import argparse
import difflib
import json
import logging
import os
import re
import select
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from fare_hf.files.folders import is_missing_path
from fare_hf.numerals import parse_count

__all__ = [
    "NEGATIVE_NUMBER",
    "UNKNOWN",
    "CommandParser",
    "Parser",
    "examples",
    "hide_bars",
    "hide_notices",
    "named_values",
    "natural",
    "near_word",
    "one_line",
    "one_sentence",
    "positive",
    "program_of",
    "refuse_given",
    "refuse_missing",
    "refuse_no_file",
    "refuse_of_the_hub",
    "silent",
    "tell",
]

TRACEBACK = "FARE_HF_TRACEBACK"
"""Environment variable that shows the traceback of an error as well, to whoever looks for its cause."""
FORESEEN = (ImportError, OSError, TypeError, ValueError)
"""What this project and its libraries raise in words that say what to change."""
LONGEST = 1200  # characters of an error's message that are printed
OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
FULL_DISK = re.compile(
    r"no space left|disk quota|failed writing file|write failed|unexpected pos \d+ vs", re.IGNORECASE
)

NOTICES = {
    # The processors without torchvision are the ones meant: torchvision is never needed here.
    "transformers.utils.import_utils": "requires torchvision (not installed)",
    # Of two checkpoints within a second; their numbers order them as well.
    "transformers.trainer_utils": "mtime may not be reliable",
    # True of every model that is not sharded, which is every model here.
    "transformers.distributed.tensor_parallel": "layers were not sharded",
}
"""Logger -> words of the notice that is hidden; whatever else that logger says is shown."""


NEGATIVE_NUMBER = re.compile(r"^-\.?\d")
"""For argparse, which before Python 3.14 takes the `-4/255` of `--eps -4/255` for an option."""


UNKNOWN = "unrecognized arguments"
"""How argparse says that there is no such option."""


WRONG_CHOICE = re.compile(r"invalid choice: '([^']*)' \(choose from (.*)\)")
"""How it says that a word is none of several."""
USUAL = {"--epsilon": "--eps", "--batch_size": "--per_device_train_batch_size"}
"""What others call an option, where no letters are like."""


class Parser(argparse.ArgumentParser):
    """Takes `-4/255` for a number, to be refused as one; a mistake is one sentence, without the usage.

    Args:
        args, options: of argparse; an `epilog` is shown with its line breaks.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"formatter_class": argparse.RawDescriptionHelpFormatter} | options)
        self._negative_number_matcher = NEGATIVE_NUMBER

    def error(self, message: str) -> NoReturn:
        """Ends the program."""
        words = message.split() if UNKNOWN in message else []
        unknown = [word.partition("=")[0] for word in words if word.startswith("-")]
        near = [near_word(word, self._option_string_actions) for word in unknown]
        if wrong := WRONG_CHOICE.search(message):
            near = [near_word(wrong[1], [word.strip(" '") for word in wrong[2].split(",")])]  # Python 3.13: no quotes
        hint = next((f"; did you mean {word}?" for word in near if word), "")
        program = program_of(self.prog)
        self.exit(2, f"{program}: error: {message}{hint or f'; `{self.prog} --help` shows the options.'}\n")


class CommandParser(Parser):
    """Of one command of several: an option that it does not know ends there, where its others are known."""

    def parse_known_args(self, *args: Any, **options: Any) -> Any:
        """Its options, and nothing else."""
        found, unknown = super().parse_known_args(*args, **options)
        if unknown:
            self.error(f"{UNKNOWN}: {' '.join(unknown)}")
        return found, unknown


def examples(lines: str) -> str:
    """What `--help` ends with: lines that can be typed."""
    return f"examples:\n{textwrap.indent(lines, '  ')}"


def program_of(prog: str) -> str:
    """What the sentences of a program begin with: its name without its command."""
    return prog.removeprefix("python -m ").split()[0]


def near_word(word: str, known: Iterable[str]) -> str | None:
    """An option that a word that is none may have meant."""
    if USUAL.get(word) in (known := list(known)):
        return USUAL[word]
    return next(iter(difflib.get_close_matches(word, known, 1)), None)


def _without(words: str) -> Callable[[logging.LogRecord], bool]:
    return lambda record: words not in record.getMessage()


FILTERS = {name: _without(words) for name, words in NOTICES.items()}


def hide_notices() -> None:
    """Hides `NOTICES`, the warning that a CPU has no pinned memory, and where in the code others come from."""
    for name, passes in FILTERS.items():
        logging.getLogger(name).addFilter(passes)  # once, however often this is called
    warnings.filterwarnings("ignore", message=".*'pin_memory' argument is set as true but no accelerator")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {' '.join(str(message).split())}\n"


def hide_bars() -> None:
    """Hides the bars of each model that is loaded or saved; those of data sets in a file, which keeps every state."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    if not sys.stderr.isatty():
        from datasets import disable_progress_bars

        disable_progress_bars()


def one_line(error: BaseException) -> str:
    """The message of an error without its line breaks, such as those of the Hub's client.

    Of what was raised in a data loader's worker, whose message is a whole traceback, the last line.
    """
    text = str(error)
    if text.startswith("Caught ") and "Original Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return " ".join(text.split()) or type(error).__name__


@contextmanager
def one_sentence(program: str, going_on: str = "") -> Iterator[None]:
    """What ends a command line: success, or one sentence on stderr; `FARE_HF_TRACEBACK=1` shows the traceback.

    Args:
        program: what the sentence begins with.
        going_on: after Ctrl-C, how to go on.

    Raises:
        SystemExit: code 1 after an error, 130 after Ctrl-C, 141 where nobody reads the output any more.
    """
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted{going_on and f': {going_on}'}.", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            sys.exit(141)
        if os.environ.get(TRACEBACK):
            raise
        sentence = f"{program}: error: {_sentence(error)}"
        _tell_launcher(sentence)
        sys.exit(sentence)


def _tell_launcher(sentence: str) -> None:
    """torchrun, which starts several processes for accelerate, ends with what the first that failed wrote here."""
    if (path := os.environ.get("TORCHELASTIC_ERROR_FILE")) is not None:
        with suppress(OSError):
            Path(path).write_text(json.dumps({"message": sentence, "timestamp": int(time.time())}), encoding="utf-8")


def _nobody_reads() -> bool:
    """Whether stdout is a pipe that was closed; what is left for it is thrown away, as Python would complain of it."""
    with suppress(OSError, ValueError, AttributeError):  # no file, or a system without poll
        pipe = select.poll()
        pipe.register(sys.stdout.fileno(), select.POLLERR)
        if pipe.poll(0):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return True
    return False


def _sentence(error: Exception) -> str:
    """An error in words for whoever typed the command."""
    text, kind = one_line(error), type(error).__name__
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(text):
        return f"memory is used up ({text}): give a smaller batch, fewer images, or a smaller model."
    if isinstance(error, RecursionError):
        return f"a file that was read is nested too deep ({text}): look at configurations and suites."
    if isinstance(error, FORESEEN):
        return text
    if FULL_DISK.search(text):
        return f"a file could not be written ({text}): make room on the disk."
    if kind == "SafetensorError":
        return f"a safetensors file cannot be read or written ({text}): it is damaged, or the disk is full."
    return f"{kind}: {text} (this was not foreseen; {TRACEBACK}=1 shows where it comes from)"


def refuse_given(given: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Refuses options that would be ignored; their defaults must be None or an empty list.

    Raises:
        ValueError: one of them was given.
    """
    for name in names:
        if getattr(given, name) is not None and getattr(given, name) != []:
            raise ValueError(f"--{name} {why}")


def refuse_missing(option: str, name: str) -> None:
    """Refuses a path that leads nowhere, and a name that the lab does not have; a repository is looked for later.

    Args:
        option: what the message begins with, such as `--dataset`.
        name: folder, file, repository or `lab:NAME`.

    Raises:
        ValueError: there is no such path.
    """
    if is_missing_path(name):
        raise ValueError(f"{option} {name!r} is no file or folder here: check the path.")


def refuse_no_file(option: str, *files: str | Path | None) -> None:
    """Refuses files that are not there; raises as `refuse_missing`."""
    for file in files:
        if file is not None and not Path(file).is_file():
            raise ValueError(f"{option} {str(file)!r} is no file here: check the path.")


def refuse_of_the_hub(given: argparse.Namespace, name: str, name_or_path: str) -> None:
    """Refuses a revision of what lies here; raises as `refuse_given`."""
    if Path(name_or_path).exists():
        refuse_given(given, [name], f"is of a repository, and {name_or_path!r} lies here: leave it out.")


def whole_prompt(text: str) -> str:
    """A prompt as it is typed: a shell leaves the line break of `"USER: <image>\\n{} ASSISTANT:"` two characters."""
    return text.replace("\\n", "\n")


def positive(text: str) -> int:
    """An argument that is a whole number from 1."""
    return _count(text, 1)


def natural(text: str) -> int:
    """An argument that is a whole number from 0."""
    return _count(text, 0)


def _count(text: str, least: int) -> int:
    if (number := parse_count(text, least)) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {least} (and below 2^32)")
    return number


def named_values(option: str, words: Sequence[str], value: str = "PATH") -> dict[str, str]:
    """The words NAME=VALUE of an option, by name.

    Raises:
        ValueError: a word without a name or a value, or a name that is given twice.
    """
    found: dict[str, str] = {}
    for word in words:
        name, _, rest = word.partition("=")
        if not name.strip() or not rest.strip():
            raise ValueError(f"{option} {word}: give NAME={value}.")
        if name in found:
            raise ValueError(f"{option} names {name} twice: give it once.")
        found[name] = rest
    return found


def tell(line: str) -> None:
    """A line that is no part of the result."""
    print(line, file=sys.stderr)


def silent(line: str) -> None:
    """Of a process that does not write."""
