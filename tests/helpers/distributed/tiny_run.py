"""A tiny training run, for tests in this process, in a killed one, and under `accelerate launch`.

python tiny_run.py '{"model": FOLDER, "output_dir": FOLDER, "kill_at": 5, ...options of FareConfig}'

Several runs in a list share the start of the processes. `{"words": [...], "output_dir": FOLDER}` is the command line.
With `"shard_on_cpu": true` FSDP is what the launcher's configuration asks for, not DDP (sharded_on_cpu.py); with
false it is DDP whatever the configuration says.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from helpers.distributed.groups import tell_group_at_exit
from helpers.distributed.sharded_on_cpu import how_it_ran, shard_on_cpu
from torch.utils.data import Dataset
from transformers import AutoImageProcessor, TrainerCallback

from fare_hf.cli import train
from fare_hf.encoders import load_encoder
from fare_hf.training import FareConfig, FareTrainer
from fare_hf.training.publish import save_encoder
from fare_hf.training.trainable import blocks_of

DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 3,
    "max_steps": 4,
    "warmup_steps": 0,
    "learning_rate": 1e-3,
    "attack_steps": 2,
    "attack_step_size": "2/255",
    "logging_steps": 2,
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


class RandomPixels(Dataset):
    """Noise images, each a function of its index; `poison` makes one of them NaN."""

    class_names = ["cat", "dog", "bird"]

    def __init__(self, size: int = 32, poison: int | None = None) -> None:
        self.size, self.poison = size, poison
        self.epochs: set[int] = set()

    def set_epoch(self, epoch: int) -> None:
        """Only notes the epoch."""
        self.epochs.add(epoch)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(int(index)))
        if index == self.poison:
            pixels[0, 0, 0] = float("nan")
        return {"pixel_values": pixels, "labels": int(index) % 3, "index": int(index)}


class WithoutLabels(RandomPixels):
    """The same without labels, as from a folder of images."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        del sample["labels"]
        return sample


class Kill(TrainerCallback):
    """Ends the process as a power cut would, after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def tiny_trainer(model: str, output_dir: str, train_dataset: Any = None, **options: Any) -> FareTrainer:
    """A trainer of the encoder in `model`; `options` go to `FareConfig`, except the trainer's own."""
    own = {
        key: options.pop(key)
        for key in ("objective", "original", "callbacks", "eval_dataset", "validation")
        if key in options
    }
    config = FareConfig(output_dir=output_dir, **{**DEFAULTS, **options})
    return FareTrainer(
        model=load_encoder(model, config.embedding),
        args=config,
        train_dataset=RandomPixels() if train_dataset is None else train_dataset,
        processing_class=AutoImageProcessor.from_pretrained(model),
        **own,
    )


def run(options: dict[str, Any]) -> None:
    """One run, with the encoder saved to its `output_dir`."""
    if "words" in options:
        train.main([*options["words"], "--output_dir", options["output_dir"]])
        return
    kill_at, resume = options.pop("kill_at", None), options.pop("resume", None)
    if images := options.pop("noise_to_evaluate", 0):
        options["eval_dataset"] = RandomPixels(images)
    trainer = tiny_trainer(callbacks=[Kill(kill_at)] if kill_at else [], **options)
    trainer.train(resume_from_checkpoint=resume)
    save_encoder(trainer, os.path.join(options["output_dir"], "encoder"))
    trainer.save_model()
    if trainer.is_world_process_zero():
        trainer.state.save_to_json(os.path.join(options["output_dir"], "log.json"))


def note_how_it_runs() -> None:
    """Every training writes `facts.json`: processes, epochs that its data was told, how FSDP ran, and how often the
    first block was computed, which accumulation and activation checkpointing change."""
    inner = FareTrainer.train

    def noted(trainer: FareTrainer, *args: Any, **kwargs: Any) -> Any:
        block, calls = blocks_of(trainer.model)[1][0], []
        norm = next(part for part in block.modules() if isinstance(part, torch.nn.LayerNorm))
        norm.register_forward_hook(lambda *_: calls.append(1))
        result = inner(trainer, *args, **kwargs)
        if trainer.is_world_process_zero():
            epochs = sorted(getattr(trainer.train_dataset, "epochs", ()))
            facts = {
                "processes": trainer.args.world_size,
                "epochs": epochs,
                "blocks": len(calls),
                **how_it_ran(trainer),
            }
            Path(str(trainer.args.output_dir), "facts.json").write_text(json.dumps(facts))
        return result

    FareTrainer.train = noted  # type: ignore[method-assign]


def main() -> None:
    """Runs what the first argument describes, one run or several, one after the other."""
    tell_group_at_exit()
    described = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    note_how_it_runs()
    for options in described if isinstance(described, list) else [described]:
        if (shard := options.pop("shard_on_cpu", None)) is not None:
            os.environ["ACCELERATE_USE_FSDP"] = str(shard).lower()
            shard_on_cpu()
        run(options)


if __name__ == "__main__":
    main()
