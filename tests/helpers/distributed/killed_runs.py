"""Runs of the command line that are killed at random moments, without paying for the imports each time.

python killed_runs.py '{"processes": 2, "kills": 10, "seed": 0, "output_dir": FOLDER, "words": [...]}'

Every process of a run is a fork of this one, which has imported everything and started no thread. The run is made once
without a kill; then it is started, killed by SIGKILL after a random time and started again, until it ends by itself.
Prints a JSON line: how many kills, and how many cut a checkpoint in the middle of writing.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import torch

from fare_hf.cli.train import main as train_main
from fare_hf.training.checkpointing.manifest import fault_of


def launch(processes: int, words: list[str]) -> list[int]:
    """Forks the processes of one run, with the environment of torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        child = os.fork()
        if not child:
            os.setpgid(0, 0)  # so that the loader's workers are killed too
            if processes > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
                os.environ |= {"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
                os.environ |= {"MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
            torch.set_num_threads(1)
            try:
                train_main(words)
            except SystemExit as error:
                print(error, file=sys.stderr, flush=True)
                os._exit(1)
            sys.stdout.flush()
            os._exit(0)
        children.append(child)
    return children


def ended(children: list[int], seconds: float | None) -> bool:
    """Waits for the end of a run; kills it after some seconds, and then says False."""
    deadline, codes = time.monotonic() + (1e9 if seconds is None else seconds), {}
    while len(codes) < len(children):
        for child in (child for child in children if child not in codes):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = status
        if time.monotonic() > deadline or any(codes.values()):
            for child in children:
                try:
                    os.killpg(child, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            for child in (child for child in children if child not in codes):
                os.waitpid(child, 0)
            assert not any(codes.values()), "the run failed by itself"
            return len(codes) == len(children)
        time.sleep(0.002)
    return True


def main() -> None:
    """Runs what the first argument describes."""
    options = json.loads(sys.argv[1])
    folder, draw = Path(options["output_dir"]), random.Random(options["seed"])
    words = [*options["words"], "--resume_from_checkpoint", "latest", "--output_dir"]
    begin = time.monotonic()
    assert ended(launch(options["processes"], [*words, str(folder / "whole")]), None)
    length, kills, cut, runs = time.monotonic() - begin, 0, 0, 0
    while kills < options["kills"]:
        output = folder / f"killed-{runs}"
        runs += 1
        done = False
        while not done:
            # Later and later if a run makes no way, so that each ends at some time.
            seconds = draw.uniform(0, length) if kills < options["kills"] else None
            finished = ended(launch(options["processes"], [*words, str(output)]), seconds)
            done = finished or (output / "encoder").is_dir()
            kills += not finished
            cut += not finished and any(fault_of(path) for path in output.glob("checkpoint-*"))
        same = [(folder / name / "encoder" / "model.safetensors").read_bytes() for name in ("whole", output.name)]
        assert same[0] == same[1], f"{output} is not the same as the run without a kill"
        shutil.rmtree(output)
    print(json.dumps({"kills": kills, "cut": cut, "runs": runs, "seconds": round(length, 2)}), flush=True)


if __name__ == "__main__":
    main()
