"""`FareConfig`: the arguments of a FARE training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import IntervalStrategy, SchedulerType, TrainingArguments
from transformers.trainer_utils import HubStrategy, SaveStrategy

from fare_hf.attacks import ThreatModel, parse_step_size
from fare_hf.attacks.gradient import check_steps
from fare_hf.attacks.threat_model import parse_fraction
from fare_hf.encoders import EMBEDDINGS
from fare_hf.encoders.float8 import check_float8
from fare_hf.hub import check_repo_id
from fare_hf.objectives import OBJECTIVES
from fare_hf.training.batches import default_workers, divide_batch
from fare_hf.training.launch import check_launch
from fare_hf.training.logging.measurements import greater_is_better
from fare_hf.training.sharding import check_sharding
from fare_hf.training.trainer_options import check_options

__all__ = ["FareConfig"]

CHEAPER = ("attack_steps_start", "attack_bf16", "attack_fp8", "trained_blocks")
"""Fields that make a training cheaper, off by default; a card names those that were used."""

TEMPLATES = ("This is a photo of a {}.",)


@dataclass
class FareConfig(TrainingArguments):
    """Arguments of `FareTrainer`: those of `TrainingArguments`, with the attack and the objective.

    The defaults are the recipe of Schlarmann et al. 2024 (arXiv 2402.12336): AdamW, learning rate 1e-5, weight decay
    1e-4, cosine with 1,400 warm-up steps, 20,000 steps of 128 images, no clipping, PGD with 10 steps of 1/255.

    The 128 images are those of an update over all processes, and divided among them. With
    `per_device_train_batch_size` alone an update has that many images of each process, as for any Trainer. What of the
    Trainer's options would be ignored is refused (`fare_hf.training.trainer_options`).

    Changed defaults: `learning_rate`, `weight_decay`, `lr_scheduler_type`, `warmup_steps`, `max_steps`,
    `per_device_train_batch_size`, `dataloader_num_workers` (up to 8 on a GPU), `max_grad_norm`, `logging_steps`,
    `save_total_limit`, `hub_strategy`, `remove_unused_columns`, `ddp_find_unused_parameters`,
    `logging_nan_inf_filter`, `prediction_loss_only`.

    Raises:
        ValueError: a value that cannot work, named with what to change.
    """

    eps: str = field(default="4/255", metadata={"help": "Radius of the attack in [0,1] pixels, such as 4/255."})
    norm: str = field(default="linf", metadata={"help": "Norm of the attack.", "choices": ["linf", "l2"]})
    attack_steps: int = field(
        default=10,
        metadata={"help": "Gradient steps of PGD for each batch; cheaper: fewer, longer ones (arXiv 2001.03994)."},
    )
    attack_step_size: str = field(default="1/255", metadata={"help": "Length of a PGD step in [0,1] pixels."})
    attack_steps_start: int | None = field(
        default=None,
        metadata={
            "help": "Cheaper: PGD steps at the beginning, growing to --attack_steps; shorter attacks take longer "
            "steps (curriculum, arXiv 1805.04807)."
        },
    )
    attack_bf16: bool = field(
        default=False,
        metadata={
            "help": "Cheaper: the attack alone in bf16, the update in fp32; with --bf16 both are, as in Wong et al. "
            "(arXiv 2001.03994)."
        },
    )
    attack_fp8: bool = field(
        default=False,
        metadata={
            "help": "Cheaper on GPUs with 8-bit floats: the attack's linear layers in fp8 (arXiv 2209.05433), the "
            "others in bf16."
        },
    )
    trained_blocks: int | None = field(
        default=None,
        metadata={
            "help": "Cheaper: train the first K blocks and what is before them, freeze the rest (robustness sits in "
            "shallow layers: R-Adapt, arXiv 2603.12799)."
        },
    )
    embedding: str = field(
        default="projected", metadata={"help": "Which embedding is made robust.", "choices": list(EMBEDDINGS)}
    )
    objective: str = field(
        default="fare",
        metadata={"help": "What is minimised: " + "; ".join(OBJECTIVES) + ".", "choices": list(OBJECTIVES)},
    )
    class_names: list[str] | None = field(
        default=None, metadata={"help": "Class names, for objectives with texts; by default those of the data set."}
    )
    templates: list[str] = field(
        default_factory=lambda: list(TEMPLATES),
        metadata={"help": "Sentences with {} for the class name."},
    )
    logit_scale: float | None = field(
        default=None,
        metadata={"help": "Factor on the cosines with texts; by default the text model's own."},
    )

    learning_rate: float = field(default=1e-5, metadata={"help": "Largest learning rate of AdamW."})
    weight_decay: float = field(default=1e-4, metadata={"help": "Weight decay of AdamW, on all parameters."})
    lr_scheduler_type: SchedulerType | str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    warmup_steps: float = field(default=1400, metadata={"help": "Linear warm-up: steps, or a share below 1."})
    max_steps: int = field(default=20_000, metadata={"help": "Updates of the weights; -1 counts epochs instead."})
    per_device_train_batch_size: int = field(  # a number after __post_init__
        default=None,  # type: ignore[assignment]
        metadata={"help": "Images a process takes at a time; alone, an update has so many of each process."},
    )
    global_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Images in an update over all processes (128, if --per_device_train_batch_size is not given): "
            "batch and accumulation follow, with --per_device_train_batch_size as the most that a process takes."
        },
    )
    dataloader_num_workers: int = field(
        default=None,  # type: ignore[assignment]
        metadata={"help": "Processes that read images for each that trains; by default up to 8 on a GPU, else none."},
    )
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Checkpoints that are kept, the best one among them; 0 keeps all."}
    )
    max_grad_norm: float = field(default=0.0, metadata={"help": "Largest gradient norm; 0 does not clip."})
    logging_steps: float = field(default=50, metadata={"help": "Steps between two lines of the log."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay False: index is needed."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Not needed: parameters that the embedding never reads are frozen."}
    )
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Must stay False: it hides a NaN loss."})
    hub_strategy: HubStrategy | str = field(
        default="end",
        metadata={"help": "end: publish at the end; every_save: each save too; all_checkpoints: each on a branch."},
    )
    prediction_loss_only: bool = field(default=True, metadata={"help": "Evaluation computes losses and cosines."})

    eval_images: int = field(
        default=512, metadata={"help": "Images of --eval_split to evaluate on, spread evenly; 0 takes all."}
    )
    eval_attack_steps: int = field(
        default=10, metadata={"help": "PGD steps on the cross entropy for eval_robust_accuracy; 0 leaves it out."}
    )

    def __post_init__(self) -> None:
        check_launch(self.use_cpu, self.deepspeed)
        if self.accelerator_config is None and self.dataloader_pin_memory:
            self.accelerator_config = {"non_blocking": True}  # copies to the device do not wait
        if self.dataloader_num_workers is None:
            self.dataloader_num_workers = default_workers(self.use_cpu)
        metric = self.metric_for_best_model or ("loss" if self.load_best_model_at_end else None)
        self.greater_is_better = greater_is_better(metric, self.greater_is_better)
        super().__post_init__()
        check_sharding(self)
        check_options(self)
        self._check_attack()
        self._check_cheaper()
        self._check_counts()
        self._divide_batch()
        if self.embedding not in EMBEDDINGS:
            raise ValueError(f"embedding={self.embedding!r} is not known; give one of {', '.join(EMBEDDINGS)}.")
        if self.logit_scale is not None and not 0 < self.logit_scale < float("inf"):
            raise ValueError(f"logit_scale={self.logit_scale} is not positive; give 100, or leave it out.")
        self._check_objective()
        self._check_trainer()
        self._check_ignored()

    @property
    def threat_model(self) -> ThreatModel:
        """What the attack may do."""
        return ThreatModel(self.norm, self.eps)

    def _check_attack(self) -> None:
        if self.threat_model.eps == 0:
            raise ValueError("eps=0 leaves nothing to attack; give a radius such as 4/255.")
        if isinstance(self.attack_steps, int) and self.attack_steps < 1:
            raise ValueError(f"attack_steps={self.attack_steps} is no attack; give at least 1 (the paper's is 10).")
        check_steps(self.attack_steps, "attack_steps")
        if parse_fraction(self.attack_step_size, "attack_step_size") == 0:
            raise ValueError("attack_step_size=0 does not move; give a length such as 1/255.")
        if parse_step_size(self.attack_step_size, self.threat_model, "attack_step_size") > 2 * self.threat_model.eps:
            raise ValueError(
                f"attack_step_size={self.attack_step_size} is longer than the ball of eps={self.eps} is wide; "
                "give at most twice eps, or the paper's 1/255."
            )

    def _check_cheaper(self) -> None:
        """Options that train at a lower cost, and the bounds of an evaluation."""
        start = self.attack_steps_start
        if start is not None and not 1 <= start <= self.attack_steps:
            raise ValueError(f"attack_steps_start={start} is not in 1 to attack_steps={self.attack_steps}.")
        if self.attack_bf16 and (self.bf16 or self.fp16):
            raise ValueError("attack_bf16=True is for training in fp32; with bf16 or fp16 the attack is cast already.")
        self._check_float8()
        for name in ("trained_blocks", "global_batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value} is not positive; give at least 1, or leave it out.")
        for name in ("eval_images", "eval_attack_steps"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"{name}={value} is negative; give a number from 0.")

    def _check_float8(self) -> None:
        """Where 8-bit floats cannot be, or were never tried."""
        if not self.attack_fp8:
            return
        check_float8(self.device)
        if self.attack_bf16 or self.mixed_precision == "fp16":
            other = "attack_bf16" if self.attack_bf16 else "fp16"
            raise ValueError(f"attack_fp8=True has its other layers in bf16 and excludes {other}; leave that out.")

    def _check_counts(self) -> None:
        """Numbers that the Trainer would divide by, or take for something else."""
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value} is not positive; give at least 1.")
        if self.max_steps == 0 or self.max_steps < -1:
            raise ValueError(
                f"max_steps={self.max_steps} trains nothing; give the number of updates, or -1 to count epochs."
            )
        if self.max_steps > 0 and self.num_train_epochs != TrainingArguments.num_train_epochs:
            raise ValueError(
                f"num_train_epochs={self.num_train_epochs:g} is not looked at while max_steps={self.max_steps} counts "
                "updates; give max_steps=-1 to count epochs."
            )
        if self.save_strategy == SaveStrategy.STEPS and self.save_steps <= 0:
            raise ValueError(f"save_steps={self.save_steps} is not positive; give a number, or save_strategy='no'.")
        if (self.save_total_limit or 0) < 0 or self.dataloader_num_workers < 0:
            name = "save_total_limit" if (self.save_total_limit or 0) < 0 else "dataloader_num_workers"
            raise ValueError(f"{name}={getattr(self, name)} is negative; give a number from 0.")

    def _divide_batch(self) -> None:
        """Images of an update among processes and batches."""
        given = (self.global_batch_size, self.per_device_train_batch_size, self.gradient_accumulation_steps)
        divided = divide_batch(*given, self.world_size)
        self.global_batch_size, self.per_device_train_batch_size, self.gradient_accumulation_steps = divided

    def _check_objective(self) -> None:
        """The objective is one of `OBJECTIVES`, works on the embedding, and reads what was given for it."""
        if (kind := OBJECTIVES.get(self.objective)) is None:
            raise ValueError(f"objective={self.objective!r} is not known; give one of {', '.join(OBJECTIVES)}.")
        if self.embedding not in kind.embeddings:
            fitting = " or ".join(map(repr, kind.embeddings))
            raise ValueError(f"embedding={self.embedding!r} is not for this objective; {kind.name} needs {fitting}.")
        if self.logit_scale is not None and "logit_scale" not in kind.options:
            raise ValueError(f"logit_scale={self.logit_scale} is not read by objective={kind.name!r}; leave it out.")

    def _check_ignored(self) -> None:
        """Values that would be ignored or break the record of a run, of options that are used otherwise."""
        if self.eval_strategy == IntervalStrategy.NO:
            if self.do_eval:
                raise ValueError("do_eval=True asks for no evaluation by itself; give eval_strategy='steps'.")
            if self.metric_for_best_model is not None:
                raise ValueError(
                    f"metric_for_best_model={self.metric_for_best_model!r} is never measured; give "
                    "eval_strategy='steps'."
                )
        if self.train_sampling_strategy not in ("random", "sequential"):
            raise ValueError(
                f"train_sampling_strategy={self.train_sampling_strategy!r} goes by lengths, which images do not have; "
                "give random or sequential."
            )
        loading: Any = self.accelerator_config
        if loading.split_batches:
            raise ValueError(
                "split_batches=True would divide per_device_train_batch_size again; give global_batch_size, which "
                "is of all processes."
            )
        if not loading.use_seedable_sampler:
            raise ValueError("use_seedable_sampler=False gives an order that no resumed run finds; leave it True.")

    def _check_trainer(self) -> None:
        """Settings of the Trainer that would break or hide something here."""
        checkpointing = self.activation_checkpointing_kwargs
        if isinstance(checkpointing, dict) and checkpointing.get("use_reentrant"):
            raise ValueError("use_reentrant=True cannot differentiate to the pixels; set use_reentrant to False.")
        if self.save_only_model and self.resume_from_checkpoint:
            raise ValueError(
                "save_only_model=True keeps no state of the optimizer, and such a run cannot be resumed; start again "
                "in another output_dir."
            )
        if self.mixed_precision == "fp16" and self.device.type == "cpu":
            raise ValueError("fp16=True does nothing on a CPU; use bf16=True, or a GPU.")
        if self.torch_compile and not self.dataloader_drop_last:
            raise ValueError(
                "torch_compile=True compiles for one shape, and an epoch may end in a smaller batch; "
                "set dataloader_drop_last=True."
            )
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns=True drops `index` and `labels`; leave it False.")
        if self.logging_nan_inf_filter:
            raise ValueError("logging_nan_inf_filter=True hides a NaN loss; leave it False.")
        if self.fp16_full_eval or self.bf16_full_eval:
            raise ValueError("full evaluation in half precision casts the fp32 weights; use bf16=True (autocast).")
        if self.push_to_hub and self.hub_strategy == HubStrategy.CHECKPOINT:
            raise ValueError(
                "hub_strategy='checkpoint' would publish the optimizer's state; use 'end', 'every_save', or "
                "'all_checkpoints' (a branch for each)."
            )
        if self.push_to_hub:
            check_repo_id(self.hub_model_id or Path(str(self.output_dir)).absolute().name)

    def __getstate__(self) -> dict[str, Any]:
        """The Trainer pickles its arguments beside every checkpoint: without the access token."""
        return {**self.__dict__, "hub_token": None}
