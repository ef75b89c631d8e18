"""Evaluations in one of several processes: what it has is written to `<rank>.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from helpers.distributed.groups import tell_group_at_exit
from helpers.divided import everything, held, universal

from fare_hf.cli import main as cli
from fare_hf.evaluation.processes import process_state

if __name__ == "__main__":
    tell_group_at_exit()
    options = json.loads(sys.argv[1])
    state = process_state()
    found = everything(Path(options["folder"]), distributed=True)
    found |= {"processes": state.num_processes, "universal": universal(), "held": held(Path(options["folder"]))}
    Path(options["folder"], f"{state.process_index}.json").write_text(json.dumps(found))
    for words in options["commands"]:
        cli.main(words)
