"""The page of faults says what is found when they are tried."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.hub import save
from helpers.hub_faults_table import COLUMNS, DOCUMENT, INTRO, ROWS, cells_of, tried
from helpers.push_kills import KILLS

PAGE = DOCUMENT.read_text(encoding="utf-8")
QUICK = {("commit", "answer lost"), ("upload", "reset"), ("create", "403"), ("/v1/xorbs/", "reset"), ("tag", "404")}
CELLS = [
    pytest.param(row, column, marks=[] if (row, column) in QUICK else pytest.mark.slow)
    for row in ROWS
    for column in COLUMNS
]


def test_the_page_has_all_faults() -> None:
    cells = cells_of(PAGE)
    assert PAGE.startswith(INTRO) and list(cells) == list(ROWS) and all(list(row) == COLUMNS for row in cells.values())
    assert all(f"\n| {name} | " in PAGE for name in KILLS)


@pytest.mark.parametrize(("row", "column"), CELLS)
def test_a_cell_is_as_the_page_says(row: str, column: str, tmp_path: Path) -> None:
    assert tried(row, column, save(tmp_path / "fare4"), tmp_path / "cache") == cells_of(PAGE)[row][column]
