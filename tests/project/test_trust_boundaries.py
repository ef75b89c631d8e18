"""The page of attacks says what is found when they are tried."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.trust_table import ATTACKS, DOCUMENT, INTRO, cells_of, tried

PAGE = DOCUMENT.read_text(encoding="utf-8")


def test_the_page_has_all_attacks() -> None:
    assert PAGE.startswith(INTRO) and list(cells_of(PAGE)) == list(ATTACKS)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_ends_as_the_page_says(name: str, tmp_path: Path) -> None:
    assert tried(name, tmp_path / "place") == cells_of(PAGE)[name]
