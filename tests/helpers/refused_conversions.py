"""Conversions that must be refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fare_hf.convert import convert_from_open_clip


def refused(sentence: str, source: Path | str, out: Path, **options: Any) -> None:
    """Converting raises one sentence that matches, and leaves no trace beside or in `out`."""
    before = sorted(out.parent.iterdir())
    with pytest.raises((ValueError, OSError), match=sentence) as error:
        convert_from_open_clip(source, out, **options)
    assert "\n" not in str(error.value)
    assert sorted(out.parent.iterdir()) == before


class Code:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("it-ran"),))
