"""Tables of refusals: bad input, and what the sentence says that refuses it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import pytest

__all__ = ["Refusal", "changing", "said_in", "table"]


class Refusal(NamedTuple):
    """One row of a table.

    Attributes:
        name: what is wrong with the input.
        call: gives the bad input; its arguments without a default are fixtures.
        error: that is raised.
        sentence: its message, the whole or the part that tells; `…` stands for any words, such as a path.
    """

    name: str
    call: Callable[..., object]
    error: type[Exception]
    sentence: str

    def check(self, request: pytest.FixtureRequest) -> None:
        """Calls it, and reads the message."""
        asked = [each for each in inspect.signature(self.call).parameters.values() if each.default is each.empty]
        given = [each.name for each in asked if each.kind is each.POSITIONAL_OR_KEYWORD]
        with pytest.raises(self.error) as caught:
            self.call(*map(request.getfixturevalue, given))
        assert said_in(self.sentence, str(caught.value)), caught.value


def changing(
    what: str,
    call: Callable[..., object],
    rows: Iterable[tuple[dict[str, Any], str]],
    error: type[Exception] = ValueError,
) -> list[Refusal]:
    """A row for each change of the settings of one call: what is changed, and the sentence."""
    return [Refusal(f"{what}: {sentence}", partial(call, **changes), error, sentence) for changes, sentence in rows]


def said_in(sentence: str, message: str) -> bool:
    """Whether a message holds a sentence, in which `…` stands for any words."""
    return re.search(".*".join(map(re.escape, sentence.split("…"))), message, re.DOTALL) is not None


def table(*rows: Refusal) -> Any:
    """Runs a test once for each row, as `row`."""
    return pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in rows])
