"""`FareConfig`: the arguments of a FARE training run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers import SchedulerType, TrainingArguments
from transformers.trainer_utils import HubStrategy

from fare_hf.attacks import ThreatModel
from fare_hf.encoders.reading import READINGS
from fare_hf.objectives import OBJECTIVES
from fare_hf.training.batches import default_workers, divide_batch
from fare_hf.training.checks import TEMPLATES, check_config, check_launch, check_sharding
from fare_hf.training.logging.measurements import greater_is_better
from fare_hf.training.trainer_options import check_options

__all__ = ["CHEAPER", "DECIDING", "FareConfig", "options_in"]


class Help(str):
    """What `--help` says of an option, and what else is known of it: `HfArgumentParser` hands every other key of a
    field's metadata to argparse.

    Attributes:
        group: where the help shows it. Options in "cheaper", off by default, are named on the card and at the start;
            those in "evaluation" are refused where nothing is evaluated.
        decides: whether the weights depend on it; if so, a checkpoint is of another run where it differs.
    """

    group: str
    decides: bool


def option(
    default: Any, text: str, group: str = "training", *, decides: bool = True, choices: Sequence[str] | None = None
) -> Any:
    """A field of `FareConfig`: the one place that an option is declared in; see `Help`."""
    said = Help(text)
    said.group, said.decides = group, decides
    metadata = {"help": said} | ({} if choices is None else {"choices": list(choices)})
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


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

    Example:
        >>> config = FareConfig("outputs/fare4", eps="4/255", max_steps=100, use_cpu=True)
        >>> str(config.threat_model)
        'linf 4/255'
    """

    eps: str = option("4/255", "Radius of the attack in [0,1] pixels, such as 4/255.", "attack")
    norm: str = option("linf", "Norm of the attack.", "attack", choices=("linf", "l2"))
    attack_steps: int = option(
        10, "Gradient steps of PGD for each batch; cheaper: fewer, longer ones (arXiv 2001.03994).", "attack"
    )
    attack_step_size: str = option("1/255", "Length of a PGD step in [0,1] pixels.", "attack")
    attack_steps_start: int | None = option(
        None,
        "Cheaper: PGD steps at the beginning, growing to --attack_steps; shorter attacks take longer steps "
        "(curriculum, arXiv 1805.04807).",
        "cheaper",
    )
    attack_bf16: bool = option(
        False,
        "Cheaper: the attack alone in bf16, the update in fp32; with --bf16 both are, as in Wong et al. "
        "(arXiv 2001.03994).",
        "cheaper",
    )
    attack_fp8: bool = option(
        False,
        "For comparison: the attack's linear layers in fp8 (arXiv 2209.05433), the others in bf16; a ViT-L/14 was "
        "attacked half as fast so on an H100 as in bf16.",
        "cheaper",
    )
    trained_blocks: int | None = option(
        None,
        "Cheaper: train the first K blocks and what is before them, freeze the rest (robustness sits in shallow "
        "layers: R-Adapt, arXiv 2603.12799).",
        "cheaper",
    )
    objective: str = option(
        "fare", "What is minimised: " + "; ".join(OBJECTIVES) + ".", "objective", choices=tuple(OBJECTIVES)
    )
    embedding: str = option(
        "projected",
        "What is made robust: an embedding of the encoder, two of them, or features: all that the language model of "
        "the VLM that --model names reads of its tower.",
        "objective",
        choices=READINGS,
    )
    patch_weight: float | None = option(
        None,
        "For projected+tokens and pooled+tokens: factor on the tokens' squared distance, a mean over tokens, which is "
        "added to that of the other embedding; by default 1.",
        "objective",
    )
    class_names: list[str] | None = option(
        None, "Class names, for objectives with texts; by default those of the data set.", "objective"
    )
    templates: list[str] = option(list(TEMPLATES), "Sentences with {} for the class name.", "objective")
    clean_bound: float | None = option(
        None,
        "For bounded-fare: how far clean embeddings may move unpunished, as a share of their squared length; by "
        "default 0.1.",
        "objective",
    )
    anchor_weight: float | None = option(
        None, "For anchored-fare: factor on the term of texts, which is added to FARE's; by default 1.", "objective"
    )
    logit_scale: float | None = option(
        None, "Factor on the cosines with texts; by default the text model's own.", "objective"
    )

    learning_rate: float = option(1e-5, "Largest learning rate of AdamW.")
    weight_decay: float = option(1e-4, "Weight decay of AdamW, on all parameters.")
    lr_scheduler_type: SchedulerType | str = option("cosine", "Learning rate schedule.")
    warmup_steps: float = option(1400, "Linear warm-up: steps, or a share below 1.")
    max_steps: int = option(20_000, "Updates of the weights; -1 counts epochs instead.")
    max_grad_norm: float = option(0.0, "Largest gradient norm; 0 does not clip.")
    # The batch sizes decide together, and are numbers after __post_init__.
    per_device_train_batch_size: int = option(
        None, "Images a process takes at a time; alone, an update has so many of each process.", decides=False
    )
    global_batch_size: int | None = option(
        None,
        "Images in an update over all processes (128, if --per_device_train_batch_size is not given): batch and "
        "accumulation follow, with --per_device_train_batch_size as the most that a process takes.",
        decides=False,
    )
    dataloader_num_workers: int = option(
        None, "Processes that read images for each that trains; by default up to 8 on a GPU, else none.", decides=False
    )
    save_total_limit: int | None = option(
        2, "Checkpoints that are kept, the best one among them; 0 keeps all.", "saving", decides=False
    )
    logging_steps: float = option(50, "Steps between two lines of the log.", decides=False)
    picture_steps: int | None = option(
        None,
        "Steps between two pictures (4 images, what the attack made of them, the difference) for the dashboards of "
        "--report_to; off by default.",
        decides=False,
    )
    hub_strategy: HubStrategy | str = option(
        "end",
        "end: publish at the end; every_save: each save too; all_checkpoints: each on a branch.",
        "saving",
        decides=False,
    )
    eval_images: int = option(
        512, "Images of --eval_split to evaluate on, spread evenly; 0 takes all.", "evaluation", decides=False
    )
    eval_attack_steps: int = option(
        10, "PGD steps on the cross entropy for eval_robust_accuracy; 0 leaves it out.", "evaluation", decides=False
    )

    remove_unused_columns: bool = option(False, "Must stay False: index is needed.", "fixed", decides=False)
    ddp_find_unused_parameters: bool | None = option(
        False, "Not needed: parameters that the embedding never reads are frozen.", "fixed", decides=False
    )
    logging_nan_inf_filter: bool = option(False, "Must stay False: it hides a NaN loss.", "fixed", decides=False)
    prediction_loss_only: bool = option(True, "Evaluation computes losses and cosines.", "fixed", decides=False)

    def __post_init__(self) -> None:
        check_launch(self.use_cpu, self.deepspeed, bf16=self.bf16)
        if self.use_cpu or not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # nothing to pin for
        if self.accelerator_config is None and self.dataloader_pin_memory:
            self.accelerator_config = {"non_blocking": True}  # copies to the device do not wait
        if self.dataloader_num_workers is None:
            self.dataloader_num_workers = default_workers(self.use_cpu)
        metric = self.metric_for_best_model or ("loss" if self.load_best_model_at_end else None)
        self.greater_is_better = greater_is_better(metric, self.greater_is_better)
        super().__post_init__()
        check_sharding(self)
        check_options(self)
        check_config(self)
        given = (self.global_batch_size, self.per_device_train_batch_size, self.gradient_accumulation_steps)
        divided = divide_batch(*given, self.world_size)
        self.global_batch_size, self.per_device_train_batch_size, self.gradient_accumulation_steps = divided
        self._division = given, divided

    @property
    def batch_asked_for(self) -> tuple[int | None, int | None, int]:
        """What `estimate` divides among other processes: the options as they were given, or set since."""
        given, divided = self._division
        now = (self.global_batch_size, self.per_device_train_batch_size, self.gradient_accumulation_steps)
        return given if now == divided else now

    @property
    def threat_model(self) -> ThreatModel:
        """What the attack may do."""
        return ThreatModel(self.norm, self.eps)

    def __getstate__(self) -> dict[str, Any]:
        """The Trainer pickles its arguments beside every checkpoint: without the access token."""
        return {**self.__dict__, "hub_token": None}


def _declared() -> dict[str, Help]:
    found = {each.name: each.metadata.get("help") for each in fields(FareConfig)}
    return {name: said for name, said in found.items() if isinstance(said, Help)}


def options_in(group: str) -> tuple[str, ...]:
    """The options that `FareConfig` declares in a group."""
    return tuple(name for name, said in _declared().items() if said.group == group)


CHEAPER = options_in("cheaper")
"""Options that make a training cheaper, off by default; a card names those that were used."""
DECIDING = tuple(name for name, said in _declared().items() if said.decides)
"""Options of `FareConfig` on which the weights depend."""
