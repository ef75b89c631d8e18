"""Notebooks of examples/notebooks, made of the readable files beside them and run: `python -m tools.notebooks`.

A file is Python; `# %%` begins a cell, `# %% [markdown]` one of comments. Needs nbclient and ipykernel.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

__all__ = ["FOLDER", "notebook_of", "run", "sources"]

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
MOST = 600  # seconds of a cell


def sources() -> list[Path]:
    """The files that notebooks are made of."""
    return sorted(FOLDER.glob("*.py"))


def notebook_of(text: str) -> Any:
    """The cells of a file, not run yet."""
    cells = []
    for part in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        head, _, body = part.partition("\n")
        if "[markdown]" in head:
            cells.append(nbformat.v4.new_markdown_cell(re.sub(r"^# ?", "", body.strip(), flags=re.MULTILINE)))
        else:
            cells.append(nbformat.v4.new_code_cell(body.strip()))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"  # else made by chance: a notebook that is made again would differ
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def run(notebook: Any, folder: Path) -> Any:
    """The notebook with its outputs, without bars and notices; raises as its first cell that fails.

    Args:
        notebook: as `notebook_of` gives it.
        folder: that it runs in.
    """
    client = NotebookClient(notebook, timeout=MOST, resources={"metadata": {"path": str(folder)}})
    found = client.execute(env=os.environ | {"PYTHONPATH": str(FOLDER.parents[1]), "HF_HUB_OFFLINE": "1"})
    for cell in found.cells:
        cell.metadata.pop("execution", None)  # times of day
        if cell.cell_type == "code":
            cell["outputs"] = [one for one in cell["outputs"] if one.get("name") != "stderr"]
    here = f"{FOLDER.parents[1]}{os.sep}"  # where it was run is nobody's business
    return nbformat.reads(nbformat.writes(found).replace(here, ""), as_version=4)


def main() -> None:
    """Writes them all."""
    for path in sources():
        nbformat.write(run(notebook_of(path.read_text(encoding="utf-8")), FOLDER), path.with_suffix(".ipynb"))
        print(path.with_suffix(".ipynb").relative_to(FOLDER.parents[1]))


if __name__ == "__main__":
    main()
