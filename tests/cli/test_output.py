"""All that a short `fare-hf train` says: each line belongs to a list, so that no notice of a library slips in."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

FARE_HF = Path(sys.executable).with_name("fare-hf")
WORDS = (
    "train --model lab:clip --dataset lab:drawings --max_steps 3 --per_device_train_batch_size 2 --attack_steps 1 "
    "--attack_step_size 4/255 --warmup_steps 0 --logging_steps 2 --use_cpu --save_steps 2 --eval_split twemoji "
    "--eval_strategy steps --eval_steps 2 --eval_images 4 --eval_attack_steps 1 --output_dir fare4"
).split()
LINES = (
    r"evaluation: 104 classes in prompts: '.*",
    "This run:",
    r"  (device|update|precision|compile|images|recipe|steps|trained|hours)  +\S.*",
    r"step \d( evaluation)?: loss .*",
    r"3 steps in \d+ s, mean loss .*",
    "The robust encoder is in fare4/encoder",
)
BAR = r" *\d+%\|.*\| \d/\d \[.*\]( *\x1b\[A)?"


def test_every_line_of_a_training_is_meant(tmp_path: Path) -> None:
    """With an evaluation, a checkpoint and the saved encoder; in a real process, whose bars go to a pipe."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    words = [str(FARE_HF), *WORDS]
    found = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    said, bars = found.stdout.splitlines(), re.split(r"[\r\n]|\x1b\[A", found.stderr)
    assert [line for line in said if not any(re.fullmatch(kind, line) for kind in LINES)] == []
    assert [line for line in bars if line.strip() and not re.fullmatch(BAR, line)] == []
    assert all(any(re.fullmatch(kind, line) for line in said) for kind in LINES)  # the list has no dead entry
    assert [line.split(":")[0] for line in said if line.startswith("step")] == [
        "step 2",
        "step 2 evaluation",
        "step 3",
        "step 3 evaluation",
    ]
