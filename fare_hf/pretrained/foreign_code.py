"""Files of strangers as they are opened: errors in one sentence, code that they bring never run, and nobody asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["OwnCodeError", "foreign_files", "own_code_refused"]


class OwnCodeError(ValueError):
    """A repository needs code of its own."""

    def __init__(self, name: object) -> None:
        super().__init__(
            f"{str(name)!r} has code of its own, which is not run: name a model of a class that transformers itself "
            "has, or convert it where you trust that code."
        )


@contextmanager
def foreign_files(fault: str, advice: str, passed: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Around what reads files that somebody else wrote, whose readers raise whatever they meet in them.

    Args:
        fault: what the files are not, for the message.
        advice: what to do.
        passed: errors that say enough by themselves, beside `OwnCodeError`.

    Raises:
        ValueError: any other error, which is told in brief.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (OwnCodeError, *passed)):
            raise
        told = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        raise ValueError(f"{fault} ({told}): {advice}.") from error


@contextmanager
def own_code_refused(name: object) -> Iterator[None]:
    """Around `from_pretrained(..., trust_remote_code=False)`: its refusal as one sentence.

    That of transformers advises `trust_remote_code=True`, which nothing here takes. Without the `False`, transformers
    asks at a terminal whether the code shall run.

    Args:
        name: folder or repository, for the message.

    Raises:
        OwnCodeError: the repository needs code of its own; other errors pass as they are.
    """
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise OwnCodeError(name) from None
