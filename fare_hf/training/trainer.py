"""`FareTrainer`: adversarial fine-tuning of a vision encoder, as an ordinary Trainer."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import IntervalStrategy, PreTrainedModel
from transformers.trainer_utils import EvalLoopOutput, HubStrategy

from fare_hf.data.batches import check_samples, check_workers, collate_pixels
from fare_hf.encoders import evaluating, freeze, freeze_unused, matmul_patch_embedding
from fare_hf.encoders.precision import attack_mode, cast_for_good, sharded_attack_mode
from fare_hf.encoders.reading import EncoderReading, Reading
from fare_hf.evaluation.processes import leave_group_at_exit
from fare_hf.hub import Publication
from fare_hf.objectives import Objective, TecoaObjective
from fare_hf.objectives.objective import update_images
from fare_hf.training.attack import EVALUATION, Attacked, AttackSteps, BatchAttack, attack_of, attack_steps_at
from fare_hf.training.checkpointing.checkpoints import CheckpointTrainer
from fare_hf.training.checkpointing.identity import run_identity
from fare_hf.training.checks import check_parts
from fare_hf.training.class_texts import make_objective
from fare_hf.training.compiling import compile_encoders
from fare_hf.training.config import FareConfig
from fare_hf.training.logging.measurements import EpochCallback, LastLine, Window, WithoutEpochs, summarise
from fare_hf.training.logging.pictures import AttackPictures
from fare_hf.training.logging.replaced_images import ReplacedImages
from fare_hf.training.logging.start import SayAtStart, SayHowToSave
from fare_hf.training.non_finite import FiniteTrainer, NonFiniteError, blame
from fare_hf.training.parts import load_parts
from fare_hf.training.publish import check_push, publish, publish_checkpoint, save_encoder
from fare_hf.training.sharding import prepare_frozen, set_up_sharding
from fare_hf.training.trainable import train_first_blocks, trained_share
from fare_hf.training.trainer_options import check_trainer_options

__all__ = ["FareTrainer"]

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Mixed precision of accelerate -> what autocast casts to."""


class FareTrainer(FiniteTrainer, CheckpointTrainer):
    """Trainer whose loss is taken on images attacked by PGD against the current encoder (arXiv 2402.12336).

    Batches are `{"pixel_values": (B, 3, H, W) fp32 in [0,1], "index": (B,), "labels"?: (B,)}`, as `PixelDataset` and
    `collate_pixels` make them. The random start of a sample depends on (seed, step, index) alone: the same batch is
    attacked alike whatever the number of processes or accumulation steps, and after a resume.

    Logged: `loss` (robust), `attack_gain` (that loss over the loss at the random start), `cosine_clean` and
    `cosine_adversarial` (to the original's embedding of the clean image), `images_per_second` (over all processes,
    evaluation and saving included), `mfu` (where the device's peak is known), `memory_gib` (the peak so far). The
    ratios are measured at logging steps only. Evaluation gives the same values over the whole set; `eval_loss` is
    robust. With `validation` also `eval_clean_accuracy` and `eval_robust_accuracy`, zero-shot, under PGD of
    `eval_attack_steps` steps on the cross entropy, for `metric_for_best_model`; `eval_share_of_time` is what all
    evaluations took of the run so far.

    Args:
        model: encoder with fp32 weights, from `load_encoder(..., args.embedding)`, or what that takes: a folder or
            repository. Parameters that the embedding never reads are frozen in it.
        args: the configuration.
        train_dataset: data to train on.
        eval_dataset: data to evaluate on.
        processing_class: the encoder's image processor, whose mean and std are applied inside the attack; None takes
            that of a `model` given by its name.
        objective: what to minimise; FARE by default.
        original: the encoder whose embeddings are the targets; a copy of `model` as given. It is frozen in place, and
            under mixed precision its linear layers are cast.
        validation: the classes of `eval_dataset`, whose samples then need `labels`.
        card: what `save_robust_encoder` cannot know from here when it publishes: `base_model`, `datasets`, `license`,
            `text_encoder`, more of `training`.
        reading: how the encoder is read, such as `fare_hf.vlm.features` for `features`; by default by `args.embedding`
            after the normalisation of `processing_class`.
        kwargs: of `Trainer`.

    Raises:
        ValueError: weights not in fp32, several GPUs in one process, no processor, no objective where that of `args`
            needs texts; while training: a NaN or infinite loss, with the step and the samples' `index`.

    Example:
        >>> from fare_hf import FareConfig, load_encoder
        >>> from fare_hf.lab import encoder_folder, load_training_set
        >>> images = load_training_set()
        >>> config = FareConfig("outputs/fare4", eps="4/255", max_steps=1, save_strategy="no", use_cpu=True)
        >>> encoder = load_encoder(str(encoder_folder("clip")))
        >>> trainer = FareTrainer(encoder, config, train_dataset=images, processing_class=images.processor)
        >>> trainer.objective.name
        'fare'
    """

    # compute_loss is a mean over a batch. The encoder takes **kwargs, so with labels the Trainer believes otherwise.
    loss_is_scaled_for_ga = False
    args: FareConfig
    model: Any
    hub_model_id: Any
    compiled_by: str | None = None
    """Backend of torch.compile, whoever asked for it."""
    attack: BatchAttack
    """What perturbs the images of a batch."""
    window: Window
    """What happened since the last line of the log."""

    def __init__(
        self,
        model: PreTrainedModel | str | os.PathLike[str],
        args: FareConfig,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        objective: Objective | None = None,
        original: PreTrainedModel | None = None,
        validation: TecoaObjective | None = None,
        card: Mapping[str, Any] | None = None,
        reading: Reading | None = None,
        **kwargs: Any,
    ) -> None:
        leave_group_at_exit()
        check_trainer_options(kwargs)
        model, processing_class = load_parts(model, args, processing_class)
        check_parts(args, model, eval_dataset, processing_class, objective, validation, reading)
        weight = args.patch_weight or 1.0
        self.reading: Reading = reading or EncoderReading.of(model, args.embedding, processing_class, weight)
        self.objective: Objective = objective or make_objective(args)
        self.validation = validation if args.eval_attack_steps else None
        if "data_collator" not in kwargs:  # which may take other samples
            self._check_samples(train_dataset, eval_dataset)
        check_workers(train_dataset, args.dataloader_persistent_workers and args.dataloader_num_workers > 0)
        reference = freeze(copy.deepcopy(model) if original is None else original)
        if args.trained_blocks is not None:
            train_first_blocks(model, args.trained_blocks)
        freeze_unused(model, self.reading)
        self.card = {**self.reading.saved, **(card or {})}
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **{"data_collator": collate_pixels, **kwargs},
        )
        vars(model.config).pop("use_cache", None)  # which the Trainer puts there and no vision encoder has
        sharded = self.is_fsdp_enabled
        self.reading.to(self.args.device)
        # Before anything is compiled: the compiler gives up for good on what first runs while it is counted.
        self.flops, self.trained_share = self.reading.flops(model), trained_share(model)
        self.compiled_by = compile_encoders(self.args, self.accelerator, self.model, reference, sharded=sharded)
        parts = (model, reference, self.objective, train_dataset, processing_class, self.reading)
        self.identity = run_identity(self.args, *parts, compiled_by=self.compiled_by)
        if sharded:
            set_up_sharding(self.accelerator, self.model)
        dtype = HALF.get(self.accelerator.mixed_precision)
        # Under FSDP accelerate places nothing: it takes a module that it does not shard for sharded already.
        self.original = prepare_frozen(self.accelerator, cast_for_good(reference, dtype).to(self.args.device))
        self.add_callback(EpochCallback())
        self.add_callback(LastLine())
        self.pictures = AttackPictures(self)
        self.add_callback(self.pictures)
        self._replaced = ReplacedImages(str(args.output_dir), args.process_index)
        self.add_callback(self._replaced)
        self._set_up_attacks(dtype)
        self._evaluated: list[Tensor] = []
        self._began, self._evaluating = time.perf_counter(), 0.0
        self.callback_handler.callbacks[:0] = [SayAtStart(self), WithoutEpochs()]  # before the bar and the dashboards
        self.add_callback(SayHowToSave())

    def _check_samples(self, train_dataset: Any, eval_dataset: Any) -> None:
        needed = getattr(self.objective, "needs_labels", False)  # an object of one's own may say nothing
        labelled = f"objective={self.objective.name!r}" if needed else None
        if train_dataset is not None:
            check_samples(train_dataset, self.reading.image_side, labelled)
        labelled = "validation= (zero-shot accuracy)" if self.validation else labelled
        for each in eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]:
            if labelled is not None and each is not None:
                check_samples(each, self.reading.image_side, labelled)

    def _set_up_attacks(self, dtype: torch.dtype | None) -> None:
        """The attack of a step and that of an evaluation's classes, in the precision that each multiplies in."""
        lower = torch.bfloat16 if self.args.attack_bf16 or self.args.attack_fp8 else None
        light = partial(attack_mode, dtype=dtype or lower, float8=self.args.attack_fp8)
        hold = partial(sharded_attack_mode, dtype=dtype or lower) if self.is_fsdp_enabled else light
        attack = partial(BatchAttack, self.args, reading=self.reading, hold=hold, autocast=lower)
        self.attack = attack(objective=self.objective)
        self._class_attack = None if self.validation is None else attack(objective=self.validation)
        self.half = (dtype or lower) is not None
        self.window = Window(self.args.device, self.half)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The encoder's forward returns no loss: attack the batch, then one forward of what the attack found."""
        self._replaced.add(inputs.pop("replaced", []))
        steps = attack_steps_at(self.args, self.state.global_step / max(self.state.max_steps, 1))
        self.window.begin()
        with self._fast_patches():
            attacked = self.attack(self.model, self.original, inputs, self.state.global_step, steps)
            self._count(len(inputs["pixel_values"]), steps)
            embeddings, losses = self._update_losses(model, attacked, inputs["pixel_values"])
            if not losses.isfinite().all():
                raise NonFiniteError(blame(self.state.global_step + 1, inputs, losses))
            self.pictures.look(inputs["pixel_values"], attacked.pixels)
            if self._is_measured_step():
                self.window.add(self._measure(inputs["pixel_values"], embeddings, losses, attacked.start_losses))
        loss = losses.mean() * self.share_of_update(len(losses))
        return (loss, {"embeddings": embeddings}) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The Trainer computes no loss without labels: here it is the loss under attack, from fixed random starts."""
        inputs = self._prepare_inputs(inputs)
        with self._fast_patches(), torch.no_grad():
            attacked = self.attack(self.model, self.original, inputs, EVALUATION)
            embeddings = self.reading.embed(model, attacked.pixels)
            losses = self.objective(embeddings, attacked.targets)
            values = self._measure(inputs["pixel_values"], embeddings, losses, attacked.start_losses)
            if self._class_attack is not None and "labels" in inputs:
                values = torch.cat([values, self._classify(inputs)], dim=1)
        self._evaluated.append(self.accelerator.gather_for_metrics(values))
        return losses.mean(), None, None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Adds the cosines, and replaces the loss, in which the Trainer gives a smaller last batch too much weight."""
        self._evaluated, began = [], time.perf_counter()
        output = super().evaluation_loop(*args, **kwargs)
        if not self._evaluated:
            raise ValueError("eval_dataset is empty; give images to evaluate on, or eval_strategy='no'.")
        prefix = kwargs.get("metric_key_prefix", "eval")
        values = torch.cat(self._evaluated).cpu().double()
        if not values.isfinite().all():  # as the best checkpoint, NaN would never be beaten
            bad = (~values.isfinite()).any(dim=1).nonzero().flatten().tolist()
            raise NonFiniteError(
                f"step {self.state.global_step}: the loss or the logits of {len(bad)} of {len(values)} evaluation "
                f"images are not finite, first of number {bad[0]}; lower learning_rate, or use bf16=True or fp32."
            )
        metrics = summarise(values.sum(0).tolist(), len(values))
        if self.is_in_train:
            self._evaluating += time.perf_counter() - began
            metrics["share_of_time"] = round(self._evaluating / (time.perf_counter() - self._began), 4)
        named = {f"{prefix}_{name}": value for name, value in metrics.items()}
        return output._replace(metrics={**(output.metrics or {}), **named})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what was measured since the last line, over all processes."""
        if "loss" in logs:
            logs.update(self.window.close(self.accelerator))
        super().log(logs, start_time)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """The paper decays all parameters; the Trainer would spare biases and norms."""
        return [name for name, _ in model.named_parameters()]

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Of all images: `dataloader_drop_last` is meant for the training."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drop_last

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """The Trainer makes a repository before the first step; here it is only seen that one can be made."""
        self.hub_model_id = check_push(self, token) if self.is_world_process_zero() else self.hub_model_id

    def push_to_hub(  # type: ignore[override]
        self,
        commit_message: str | None = None,
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        folder: str | os.PathLike[str] | None = None,
        **save: Any,
    ) -> Publication | None:
        """The Trainer uploads its whole output folder, pickles included; this publishes the encoder with its card.

        Args:
            commit_message: of the commit.
            blocking: nothing; it always waits, as what is published is compared.
            token, revision, private: as `push_robust_encoder`; by default `hub_token`, `hub_revision` and
                `hub_private_repo` of the arguments.
            folder: a clean folder of this encoder, to push that.
            save: of `save_robust_encoder`, such as `report`.

        Returns:
            What was published, on the main process.

        Raises:
            ValueError, PushError: as `push_robust_encoder`.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token)
        return publish(
            self, folder, commit_message=commit_message, token=token, revision=revision, private=private, **save
        )

    def save_encoder(self, folder: str | os.PathLike[str] | None = None) -> Path:
        """Writes the encoder as it is published, with its card; every process calls this.

        Args:
            folder: absent or empty; by default `encoder` in the output_dir, where `fare-hf train` puts it.

        Returns:
            The folder.

        Raises:
            ValueError: as `save_robust_encoder`.
        """
        folder = Path(str(self.args.output_dir)) / "encoder" if folder is None else Path(folder)
        save_encoder(self, folder)
        return folder

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """The Trainer uploads the checkpoint as it is; here its encoder goes to a branch, or to the run's branch."""
        # Private: `push_to_hub=True` alone makes the Trainer upload, pickles included, and no public method is asked.
        if self.args.hub_strategy != HubStrategy.END:
            self.callback_handler.on_push_begin(self.args, self.state, self.control)
            own = self.args.hub_strategy == HubStrategy.ALL_CHECKPOINTS
            publish_checkpoint(self, checkpoint_folder, os.path.basename(checkpoint_folder) if own else None)

    def _update_losses(self, model: nn.Module, attacked: Attacked, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of the attacked images, and the loss of each."""
        if update_images(self.objective) == 1:
            embeddings = self.reading.embed(model, attacked.pixels)
            return embeddings, self.objective(embeddings, attacked.targets)
        both = torch.cat([attacked.pixels, pixels])  # in one forward, as DDP wants before a backward
        embeddings, clean = self.reading.embed(model, both).chunk(2)
        return embeddings, self.objective.update(embeddings, attacked.targets, clean)

    def _count(self, images: int, steps: AttackSteps) -> None:
        """Tells the window what a batch costs."""
        each = self.flops.step(
            steps.count,
            clean_target=self.attack.embeds_original,
            trained=self.trained_share,
            update_images=update_images(self.objective),
        )
        self.window.count(images * self.accelerator.num_processes, images * each)

    def _classify(self, inputs: dict[str, Any]) -> Tensor:
        """`(B, 2)`: 1 where an image is classified rightly, clean and attacked."""
        assert self._class_attack is not None and self.validation is not None
        steps = attack_of(self.args, self.args.eval_attack_steps)
        attacked = self._class_attack(self.model, self.original, inputs, EVALUATION, steps)
        with evaluating(self.model):
            both = [
                self.validation.logits(self.reading.embed(self.model, pixels))
                for pixels in (inputs["pixel_values"], attacked.pixels)
            ]
        right = [logits.argmax(1) == attacked.targets for logits in both]
        clean, robust = right[0], right[0] & right[1]
        predicted = torch.stack(both).isfinite().all(dim=2).all(dim=0)  # NaN is no class; `evaluation_loop` refuses it
        return torch.stack([clean, robust], dim=1).float().masked_fill(~predicted[:, None], torch.nan)

    @torch.no_grad()
    def _measure(self, pixels: Tensor, embeddings: Tensor, losses: Tensor, start: Tensor) -> Tensor:
        """`(B, 4)`: robust loss, loss at the random start, cosines of clean and attacked image with the target."""
        with evaluating(self.model):
            original, clean = (self.reading.embed(encoder, pixels) for encoder in (self.original, self.model))
        cosines = [_cosine(value, original) for value in (clean, embeddings)]
        return torch.stack([losses.float(), start.float(), *cosines], dim=1)

    def _is_measured_step(self) -> bool:
        """Whether this step ends in a line of the log; the first of a window where lines come by epoch."""
        step = self.state.global_step + 1
        if self.args.logging_strategy == IntervalStrategy.STEPS:
            ends = step == self.state.max_steps or (self.args.logging_first_step and step == 1)
            return ends or step % self.state.logging_steps == 0
        return self.args.logging_strategy == IntervalStrategy.EPOCH and self.window.measured == 0

    def _fast_patches(self) -> AbstractContextManager[Any]:
        """Patch embeddings as matrix products."""
        stack = ExitStack()
        for encoder in (self.model, self.original):
            stack.enter_context(matmul_patch_embedding(encoder))
        return stack


def _cosine(embeddings: Tensor, original: Tensor) -> Tensor:
    """Cosine similarity over the last dimension, mean over tokens: `(B,)`."""
    cosine = F.cosine_similarity(embeddings.float(), original.float(), dim=-1)
    return cosine.flatten(1).mean(dim=1) if cosine.ndim > 1 else cosine
