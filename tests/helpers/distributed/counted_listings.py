"""The command line of a training, with a count of how often each process asks what lies in a folder of its data.

python counted_listings.py '{"data": FOLDER, "output_dir": FOLDER, "words": [...]}'

Each process writes `listings-RANK.json`: names of the folders below `data` that were listed, and how many of its files
were looked at (`os.stat`), until the training began.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from fare_hf.cli import train
from fare_hf.training import FareTrainer


def main() -> None:
    """Runs what the first argument describes."""
    options = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    data, listed, looked = Path(options["data"]).resolve(), [], []
    inner = {name: getattr(os, name) for name in ("scandir", "listdir", "stat")}

    def counted(name: str, path: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(path, (str, Path)) and (Path(path) == data or data in Path(path).parents):
            (looked if name == "stat" else listed).append(str(path))
        return inner[name](path, *args, **kwargs)

    for name in inner:
        setattr(os, name, lambda path=".", *args, name=name, **kwargs: counted(name, path, *args, **kwargs))

    def note(trainer: FareTrainer, *args: Any, **kwargs: Any) -> Any:
        files = [path for path in looked if Path(path).suffix]
        found = {"listed": listed, "files": len(files), "images": len(trainer.train_dataset)}
        rank = trainer.args.process_index
        Path(options["output_dir"], f"listings-{rank}.json").write_text(json.dumps(found))
        return trained(trainer, *args, **kwargs)

    trained, FareTrainer.train = FareTrainer.train, note  # type: ignore[method-assign]
    train.main([*options["words"], "--output_dir", str(Path(options["output_dir"], "run"))])


if __name__ == "__main__":
    main()
