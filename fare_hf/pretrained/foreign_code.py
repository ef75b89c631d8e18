"""Code that a repository brings along: it is never run, and nobody is asked whether it may be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["OwnCodeError", "own_code_refused"]


class OwnCodeError(ValueError):
    """A repository needs code of its own."""

    def __init__(self, name: object) -> None:
        super().__init__(
            f"{str(name)!r} has code of its own, which is not run: name a model of a class that transformers itself "
            "has, or convert it where you trust that code."
        )


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
