"""Checkpoints of a training: written whole, found again and read, every weight by name or an error."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerState
from transformers.trainer_utils import TrainOutput

from fare_hf.data.batches import check_batches
from fare_hf.data.pixel_datasets import PixelStream
from fare_hf.data.streaming import TrainingStream, warn_of_uneven_shards
from fare_hf.encoders import load_complete
from fare_hf.files.folders import locked_folder
from fare_hf.training.checkpointing.disk import check_disk
from fare_hf.training.checkpointing.identity import option_defaults
from fare_hf.training.checkpointing.manifest import check_run, latest_checkpoint, write_manifest

__all__ = ["CheckpointTrainer"]


class CheckpointTrainer(Trainer):
    """A Trainer whose checkpoints are whole or passed over, and bring back every weight of a vision encoder."""

    model: Any
    identity: dict[str, Any]
    """What a checkpoint must agree with; see `run_identity`."""
    _holds_folder = False
    _passed_batches = 0

    @contextmanager
    def only_run(self) -> Iterator[None]:
        """Holds `output_dir` for this run: for all of its processes, until the end; `train` does it too.

        Raises:
            ValueError: another run writes there; in every process.
        """
        if self._holds_folder:
            yield
            return
        fault: ValueError | None = None
        with ExitStack() as stack:
            if self.is_world_process_zero():
                try:
                    stack.enter_context(locked_folder(Path(str(self.args.output_dir)), "a training"))
                except ValueError as error:
                    fault = error
            if max(self._of_all(int(fault is not None))):
                raise fault or ValueError(f"another run writes to {str(self.args.output_dir)!r}.")
            self._holds_folder = True
            try:
                yield
            finally:
                self._holds_folder = False

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """`Trainer.train`, which takes any folder for a checkpoint, and makes one step too many after the last.

        Args:
            resume_from_checkpoint: a folder; True or "latest" for the newest complete checkpoint of `output_dir`, or
                the beginning if there is none; None is what the arguments say.
            trial: None; there is no search over hyperparameters.
            ignore_keys_for_eval: of `Trainer.train`.

        Raises:
            ValueError: a checkpoint that is not complete or of another run, with the differences; too little room on
                the disk; processes that do not share `output_dir`; another run that writes to it.
        """
        if trial is not None:
            raise ValueError("trial= is of a search over hyperparameters; run one training for each choice.")
        wanted = self.args.resume_from_checkpoint if resume_from_checkpoint is None else resume_from_checkpoint
        with self.only_run():
            return self._train(wanted, ignore_keys_for_eval)

    def _train(self, wanted: str | bool | None, ignore_keys_for_eval: list[str] | None) -> TrainOutput:
        folder = wanted if isinstance(wanted, str) else None
        if wanted is True or folder == "latest":
            folder = latest_checkpoint(str(self.args.output_dir))
        step = -1 if folder is None else self._check_checkpoint(Path(folder))
        self._check_shared(step)
        batch, processes = self.args.train_batch_size, self.args.world_size
        check_batches(self.train_dataset, batch, processes, self.args.dataloader_drop_last)
        check_disk(self.args, self.model, max(step, 0))
        if folder is not None and step >= self.args.max_steps > 0:
            self.state = TrainerState.load_from_json(str(Path(folder) / "trainer_state.json"))
            self._restore(str(self._best_beside(Path(folder))))
            return TrainOutput(step, 0.0, {})
        self._passed_batches = max(step, 0) * self.args.gradient_accumulation_steps
        return super().train(folder, None, ignore_keys_for_eval)

    def _best_beside(self, last: Path) -> Path:
        """The best checkpoint of a run that ended with `last`, where the best is wanted; its folder may have moved."""
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        if best is None:
            return last
        if not (found := last.parent / Path(best).name).is_dir():
            raise ValueError(
                f"the best checkpoint {found.name!r} is not in '{last.parent}'; put it back, or set "
                "load_best_model_at_end=False for the last one."
            )
        return found

    def get_train_dataloader(self) -> DataLoader:
        """A stream is divided among all readers: accelerate would have one process read and decode for all.

        What the Trainer is going to skip of it after a resume is not decoded.
        """
        if not isinstance(self.train_dataset, PixelStream):
            return super().get_train_dataloader()
        args, process = self.args, (self.args.process_index, self.args.world_size)
        if self.is_world_process_zero():
            warn_of_uneven_shards(self.train_dataset.dataset, args.world_size * max(1, args.dataloader_num_workers))
        seed = args.seed if args.data_seed is None else args.data_seed
        stream = TrainingStream(self.train_dataset, seed, *process, self._train_batch_size)
        stream.passed_batches = self._passed_batches
        loader = DataLoader(
            stream,
            self._train_batch_size,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
        )
        # Divided already: as for a single process.
        return prepare_data_loader(
            loader, args.device, num_processes=1, process_index=0, put_on_device=True, dispatch_batches=False
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The Trainer would write a checkpoint into what a kill left of the same one."""
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        if self.is_in_train and Path(str(output_dir)) == folder:
            if self.is_world_process_zero() and folder.is_dir():
                shutil.rmtree(folder)
            self.accelerator.wait_for_everyone()
        super().save_model(output_dir, _internal_call)

    def _save_rng_state(self, output_dir: str) -> None:
        """The last that the Trainer writes before its state: it does not wait for the other processes' files."""
        # Private: the list must be there before the state, and before older checkpoints go; `on_save` comes after.
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            write_manifest(Path(output_dir), self.state.global_step, self.identity)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """The Trainer loads nothing into a `CLIPVisionModel` from `vision_model.*` names, with only a warning."""
        # Private: the weights come between the Trainer's own preparations, and no public method reads them.
        if self._is_sharded():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._restore(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        """As `_load_from_checkpoint`."""
        # Private: before `on_train_end` the Trainer has loaded nothing and warned of it.
        if self._is_sharded():
            super()._load_best_model()
        else:
            self._restore(str(self.state.best_model_checkpoint))

    def _restore(self, folder: str) -> None:
        """Every weight from a checkpoint, by name, or an error."""
        encoder = self.accelerator.unwrap_model(self.model)
        encoder.load_state_dict(load_complete(type(encoder), folder).state_dict(), strict=True)

    def _is_sharded(self) -> bool:
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    def _check_checkpoint(self, folder: Path) -> int:
        """The step of a checkpoint that this run can go on from."""
        check_run(folder, self.identity, option_defaults())
        return TrainerState.load_from_json(str(folder / "trainer_state.json")).global_step

    def _of_all(self, number: int) -> list[int]:
        """A number of each process."""
        return self.accelerator.gather(torch.tensor([number], device=self.args.device)).tolist()

    def _check_shared(self, step: int) -> None:
        """That all processes resume from the same step, and see one `output_dir`."""
        steps = self._of_all(step)
        if len(set(steps)) > 1:
            raise ValueError(
                f"the processes find checkpoints of the steps {steps} in output_dir={str(self.args.output_dir)!r}; "
                "put it on a file system that all machines share."
            )
        if self.args.world_size == int(os.environ.get("LOCAL_WORLD_SIZE", self.args.world_size)):
            return
        probe = Path(str(self.args.output_dir)) / ".shared"
        if self.is_world_process_zero():
            probe.touch()
        self.accelerator.wait_for_everyone()
        seen = self._of_all(int(probe.exists()))
        if self.is_world_process_zero():
            probe.unlink()
        if not all(seen):
            raise ValueError(
                f"{seen.count(0)} of {len(seen)} processes do not see output_dir={str(self.args.output_dir)!r} of the "
                "first; put it on a file system that all machines share."
            )
