"""Command lines, with a count of how often each process asks what lies in a folder of its data.

python counted_listings.py '{"output_dir": FOLDER, "runs": {NAME: {"data": FOLDER, "words": [...]}}}'

`words` are those of `fare-hf`. Each process writes `listings-RANK.json`: of each run the names of the folders of
`data` that were listed, the tables of metadata that were opened, how many of its files were looked at (`os.stat`), and
the sentence with which it ended. Of a training what came before its first step counts.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from fare_hf.cli import main as cli
from fare_hf.data.columns import is_stream
from fare_hf.training import FareTrainer


class Counts:
    """What this process asked of a folder."""

    def __init__(self, data: str) -> None:
        self.data = Path(data).resolve()
        self.listed: list[str] = []
        self.tables: list[str] = []
        self.files: set[str] = set()
        self.images = 0

    def note(self, event: str, path: Any) -> None:
        """One question; those of other folders say nothing."""
        if not isinstance(path, (str, Path)) or self.data not in (Path(path), *Path(path).parents):
            return
        if event in ("os.scandir", "os.listdir"):
            self.listed.append(Path(path).name)
        elif event == "open" and Path(path).name.startswith("metadata"):
            self.tables.append(Path(path).name)
        elif event == "stat" and Path(path).suffix:
            self.files.add(str(path))

    def found(self, said: str) -> dict[str, Any]:
        """All of it, as plain data."""
        counts = {"listed": sorted(self.listed), "tables": self.tables, "files": len(self.files)}
        return counts | {"images": self.images, "said": said}


def main() -> None:
    """Runs what the first argument describes."""
    options = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    counts: list[Counts | None] = [None]
    stat, trained = os.stat, FareTrainer.train

    def note(event: str, args: tuple[Any, ...]) -> None:
        if counts[0] is not None and event in ("os.scandir", "os.listdir", "open"):
            counts[0].note(event, args[0])

    def looked(path: Any, *args: Any, **kwargs: Any) -> Any:
        if counts[0] is not None:
            counts[0].note("stat", path)
        return stat(path, *args, **kwargs)

    def train(trainer: FareTrainer, *args: Any, **kwargs: Any) -> Any:
        assert counts[0] is not None
        if not is_stream(trainer.train_dataset):
            counts[0].images = len(trainer.train_dataset)
        counts[0] = None
        return trained(trainer, *args, **kwargs)

    os.stat, FareTrainer.train = looked, train  # type: ignore[assignment, method-assign]
    sys.addaudithook(note)
    everything = {}
    for name, run in options["runs"].items():
        mine = counts[0] = Counts(run["data"])
        said = ""
        try:
            cli.main([*run["words"], "--output_dir", str(Path(options["output_dir"], name))])
        except SystemExit as end:
            said = str(end)
        counts[0] = None
        everything[name] = mine.found(said)
    rank = os.environ["RANK"]
    Path(options["output_dir"], f"listings-{rank}.json").write_text(json.dumps(everything))


if __name__ == "__main__":
    main()
