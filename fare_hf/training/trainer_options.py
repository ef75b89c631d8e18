"""What becomes of each option of the Trainer: used as it is everywhere, looked at, or refused; none is dropped.

A test walks over the fields of `TrainingArguments` and the arguments of `Trainer`: a new one must be put here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from transformers import TrainingArguments

from fare_hf.training.checks import refuse

__all__ = [
    "LOOKED_AT",
    "REFUSED",
    "TRAINER_REFUSED",
    "TRAINER_USED",
    "USED",
    "check_options",
    "check_trainer_options",
    "defaults_of",
]

_NO_METRICS = "is not read: evaluation measures losses, cosines and accuracies of its own; leave it out."
_NO_TEXT = "has no meaning for images; leave it out."
REFUSED = {
    "auto_find_batch_size": "would train on fewer images an update than are recorded; find the largest "
    "per_device_train_batch_size that fits once, and give global_batch_size beside it.",
    "average_tokens_across_devices": _NO_TEXT,
    "batch_eval_metrics": _NO_METRICS,
    "dataloader_in_order": "would train in the order in which images are read, which no run repeats; leave it True.",
    "do_predict": "asks for nothing here; use `fare-hf evaluate` after the training.",
    "enable_jit_checkpoint": "would end a run early and pass it for a whole one; save oftener with save_steps: a run "
    "that was killed goes on with resume_from_checkpoint.",
    "eval_accumulation_steps": _NO_METRICS,
    "eval_do_concat_batches": _NO_METRICS,
    "eval_use_gather_object": _NO_METRICS,
    "ignore_data_skip": "would show a resumed run other images than the run without a break; leave it False.",
    "include_for_metrics": _NO_METRICS,
    "include_num_input_tokens_seen": _NO_TEXT,
    "label_names": "is not read: labels are called `labels`; leave it out.",
    "label_smoothing_factor": "is not in either objective (FARE has no labels); pass an objective of your own.",
    "length_column_name": _NO_TEXT,
    "liger_kernel_config": _NO_TEXT,
    "neftune_noise_alpha": "adds noise to embeddings of words; leave it out.",
    "optim_target_modules": "was never tried with an encoder; use trained_blocks.",
    "parallelism_config": "was never tried with gradients to the pixels; use FSDP (examples/accelerate/fsdp.yaml).",
    "prediction_loss_only": "asks for predictions, and an evaluation gives figures only; leave it True.",
    "save_on_each_node": "writes checkpoints that no other machine sees; put output_dir where all machines see it.",
    "use_cache": _NO_TEXT,
    "use_liger_kernel": _NO_TEXT,
}
"""Options of the Trainer that would be ignored, or make a run that no other repeats: any value but the default."""

LOOKED_AT = frozenset(
    """accelerator_config activation_checkpointing activation_checkpointing_kwargs bf16 bf16_full_eval
    dataloader_drop_last dataloader_num_workers dataloader_persistent_workers deepspeed do_eval eval_steps
    eval_strategy fp16 fp16_full_eval
    gradient_accumulation_steps gradient_checkpointing gradient_checkpointing_kwargs greater_is_better hub_model_id
    hub_strategy load_best_model_at_end logging_nan_inf_filter max_steps metric_for_best_model num_train_epochs
    per_device_train_batch_size push_to_hub remove_unused_columns resume_from_checkpoint save_only_model save_steps
    save_strategy save_total_limit torch_compile train_sampling_strategy use_cpu""".split()
)
"""Used, and some of their values are refused by name in `FareConfig` or `FareTrainer`."""

USED = frozenset(
    """adam_beta1 adam_beta2 adam_epsilon data_seed dataloader_multiprocessing_context
    dataloader_pin_memory dataloader_prefetch_factor ddp_backend ddp_broadcast_buffers
    ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph ddp_timeout debug disable_tqdm do_train eval_delay
    eval_on_start fsdp fsdp_config full_determinism hub_always_push hub_private_repo hub_revision hub_token
    learning_rate local_rank log_level log_level_replica log_on_each_node logging_first_step logging_steps
    logging_strategy lr_scheduler_kwargs lr_scheduler_type max_grad_norm optim optim_args output_dir
    per_device_eval_batch_size project report_to restore_callback_states_from_checkpoint run_name seed
    skip_memory_metrics tf32 torch_compile_backend torch_compile_mode torch_empty_cache_steps trackio_bucket_id
    trackio_space_id trackio_static_space_id warmup_steps weight_decay""".split()
)
"""As in any Trainer. A push always waits for its end, as `hub_always_push` asks."""

TRAINER_USED = frozenset("self model args data_collator train_dataset eval_dataset processing_class callbacks".split())
TRAINER_REFUSED = {
    "compute_loss_func": "is not called: the loss is the objective's; pass objective=, a class with `targets` and "
    "`__call__` as in fare_hf.objectives.",
    "compute_metrics": _NO_METRICS,
    "model_init": "is not called: the targets are those of the model as it was loaded; pass model=load_encoder(name).",
    "optimizer_cls_and_kwargs": "is in no card and no checkpoint's record; give optim and optim_args.",
    "optimizers": "are made before it is known what is trained, and in no card; give optim and lr_scheduler_type.",
    "preprocess_logits_for_metrics": _NO_METRICS,
}
"""Arguments of `Trainer` that would be ignored, or be missing in what is recorded."""


def defaults_of(options: Any) -> dict[str, Any]:
    """Each field of a dataclass, or of an instance, as it is where nobody sets it."""
    return {
        option.name: option.default if option.default_factory is MISSING else option.default_factory()
        for option in fields(options)
    }


def check_options(args: TrainingArguments) -> None:
    """Refuses options of the Trainer that would be ignored.

    Raises:
        ValueError: one has another value than its default; with what to do instead.
    """
    given = {name: getattr(args, name) for name in REFUSED}
    defaults = defaults_of(TrainingArguments) | {"prediction_loss_only": True}  # changed by `FareConfig`
    refuse((value != defaults[name], f"{name}={value!r} {REFUSED[name]}") for name, value in given.items())


def check_trainer_options(options: Mapping[str, Any]) -> None:
    """The same for the arguments of `Trainer`.

    Raises:
        ValueError: one that would be ignored.
        TypeError: one that `Trainer` does not have.
    """
    if unknown := [name for name in options if name not in TRAINER_USED | set(TRAINER_REFUSED)]:
        raise TypeError(f"FareTrainer has no argument {unknown[0]!r}; it takes those of Trainer.")
    refuse((options.get(name) not in (None, (None, None)), f"{name}= {why}") for name, why in TRAINER_REFUSED.items())
