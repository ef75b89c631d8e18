"""The command line of a training, in this process: `python -m fare_hf.train`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fare_hf.cli.train import main

TINY = (
    "--max_steps 3 --per_device_train_batch_size 4 --attack_steps 2 --attack_step_size 2/255 --warmup_steps 0 "
    "--learning_rate 1e-3 --logging_steps 1 --use_cpu --save_strategy no --disable_tqdm true"
).split()


def run(model: Path, dataset: Path | str, output_dir: Path, *more: str) -> None:
    """The command line, in this process."""
    main(["--model", str(model), "--dataset", str(dataset), "--output_dir", str(output_dir), *TINY, *more])


def refusal(model: Path, dataset: Path | str, output_dir: Path, *more: str) -> str:
    """The sentence with which the command line stops."""
    with pytest.raises(SystemExit) as caught:
        run(model, dataset, output_dir, *more)
    message = str(caught.value)
    assert message.startswith("fare_hf.train: error: ")
    assert "\n" not in message
    return message


def unlabelled(folder: Path, first: int = 0) -> Path:
    """Four images in `train/`, four in `validation/`, which `datasets` takes for classes without any label."""
    for part, numbers in (("train", range(first, first + 4)), ("validation", range(10, 14))):
        (folder / part).mkdir(parents=True)
        for number in numbers:
            pixels = np.random.default_rng(number).integers(0, 256, (36, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / part / f"{number}.png")
    return folder
