"""What a training refuses before it begins, as tables of (condition, sentence): the first that holds is raised."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import StateDictType
from transformers import IntervalStrategy, TrainingArguments
from transformers.integrations import is_tensorboard_available
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.training_args import ParallelMode

from fare_hf.attacks import parse_step_size
from fare_hf.attacks.gradient import check_steps
from fare_hf.encoders.embedding import JOINED
from fare_hf.encoders.float8 import check_float8
from fare_hf.encoders.reading import FEATURES, READINGS
from fare_hf.hub import check_repo_id
from fare_hf.numerals import parse_fraction
from fare_hf.objectives import OBJECTIVES
from fare_hf.pretrained.encoder_families import compared_embedding
from fare_hf.training.logging.measurements import measured_names

__all__ = ["Faults", "check_config", "check_launch", "check_parts", "check_sharding", "refuse"]

Faults = Iterable[tuple[object, str]]
"""Conditions, evaluated in order, and what is said where one holds."""
PRECISIONS = ("no", "fp16", "bf16")
NO_GPU = "bf16=True, and there is no GPU here; leave bf16 out, or add use_cpu=True (--use_cpu) for bf16 on the CPU."
UNTRIED = {"ACCELERATE_USE_MEGATRON_LM": "Megatron-LM", "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism_config"}
"""Ways to divide a model that accelerate would take from the environment, beside DeepSpeed."""
DASHBOARDS = ("tensorboard", "trackio", "wandb")
"""Values of `report_to` that show pictures."""
TEMPLATES = ("This is a photo of a {}.",)
"""Sentences of class names where none are given."""
OF_OBJECTIVES = {"logit_scale": "logit_scale", "clean_bound": "bound", "anchor_weight": "anchor_weight"}
"""Numbers that an objective reads, and what it calls them."""
POSITIVE = {"logit_scale": 100, "clean_bound": 0.1, "anchor_weight": 1, "patch_weight": 1}
"""Options that are positive numbers where they are given, each with an example."""
WHOLE = {"cpu", "mps"}
"""Devices on which accelerate leaves weights whole, whatever is asked for."""


def refuse(faults: Faults) -> None:
    """Goes through a table.

    Raises:
        ValueError: the sentence of the first condition that holds.
    """
    for wrong, sentence in faults:
        if wrong:
            raise ValueError(sentence)


def check_launch(
    use_cpu: bool, deepspeed: Any, environment: Mapping[str, str] = os.environ, bf16: bool = False
) -> None:
    """Looks at what `accelerate launch` and torchrun hand over, before torch or accelerate stumble over it.

    Args:
        use_cpu: whether the run leaves the GPUs alone.
        deepspeed: the field of `TrainingArguments`.
        environment: where the launcher left its settings.
        bf16: whether half precision is asked for.

    Raises:
        ValueError: DeepSpeed or another untried way to divide a model, an unknown precision, more processes than GPUs,
            half precision without a GPU and without a word that a CPU is meant.
    """
    refuse(_faults_of_launch(use_cpu, deepspeed, environment))
    refuse([(bf16 and not use_cpu and not torch.accelerator.is_available(), NO_GPU)])


def _faults_of_launch(use_cpu: bool, deepspeed: Any, environment: Mapping[str, str]) -> Faults:
    yield (
        deepspeed or environment.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true",
        "DeepSpeed was never tried with gradients to the pixels; use FSDP, which shards the same: accelerate "
        "launch --config_file examples/accelerate/fsdp.yaml (fsdp_reshard_after_forward: false is ZeRO-2).",
    )
    for variable, way in UNTRIED.items():
        yield (
            environment.get(variable, "false").lower() in ("true", "1", "yes", "on", "y", "t"),
            f"{way} was never tried with gradients to the pixels; use FSDP (examples/accelerate/fsdp.yaml), or "
            "take it out of accelerate's configuration.",
        )
    precision, known = environment.get("ACCELERATE_MIXED_PRECISION", "no"), ", ".join(PRECISIONS)
    yield precision not in PRECISIONS, f"mixed_precision={precision!r} is not known here; give one of {known}."
    processes, devices = int(environment.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    yield (
        not use_cpu and torch.cuda.is_available() and processes > devices,
        f"{processes} processes were started on a machine with {devices} visible GPUs; give --num_processes {devices} "
        "a machine, or set CUDA_VISIBLE_DEVICES.",
    )


def check_sharding(args: TrainingArguments, environment: Mapping[str, str] = os.environ) -> None:
    """Looks at the FSDP that the launcher or the arguments ask for, before any weights are fetched.

    Args:
        args: with `fsdp` and `fsdp_config`, and where the run computes.
        environment: where the launcher left its settings.

    Raises:
        ValueError: FSDP where nothing would be sharded, the first version of it, or settings that lose weights.
    """
    if args.fsdp or environment.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        refuse(_faults_of_sharding(args, environment))


def _faults_of_sharding(args: TrainingArguments, environment: Mapping[str, str]) -> Faults:
    kind = args.distributed_state.distributed_type.value if args.distributed_state else "NO"
    yield (
        args.device.type in WHOLE or args.parallel_mode != ParallelMode.DISTRIBUTED,
        f"fsdp asks for sharded weights, but accelerate runs {kind} on {args.device.type}, where nothing is sharded; "
        "start it on GPUs with accelerate launch, or leave FSDP out.",
    )
    given = args.fsdp_plugin_args or {}
    version = int(given.get("fsdp_version", environment.get("FSDP_VERSION", 1)))
    yield version != 2, f"fsdp_version={version} was never tried with gradients to the pixels; give fsdp_version: 2."
    plugin = FullyShardedDataParallelPlugin(**given)
    yield (
        plugin.cpu_ram_efficient_loading,
        "fsdp_cpu_ram_efficient_loading=true loads no weights in the other processes, which need the original's; give "
        "false.",
    )
    name = getattr(plugin.state_dict_type, "name", plugin.state_dict_type)
    yield (
        plugin.state_dict_type != StateDictType.FULL_STATE_DICT,
        f"fsdp_state_dict_type={name} makes checkpoints without the encoder's weights; give FULL_STATE_DICT.",
    )


def check_config(args: Any) -> None:
    """Values of `FareConfig` that cannot work, would be ignored or would break the record of a run.

    Raises:
        ValueError: the first of them, and what to change.
    """
    for table in (_attack, _cheaper, _counts, _objective, _trainer, _publication, _ignored):
        refuse(table(args))


def _attack(args: Any) -> Faults:
    yield args.threat_model.eps == 0, "eps=0 leaves nothing to attack; give a radius such as 4/255."
    steps, size = args.attack_steps, args.attack_step_size
    none = isinstance(steps, int) and steps < 1
    yield none, f"attack_steps={steps} is no attack; give at least 1 (the paper's is 10)."
    check_steps(steps, "attack_steps")
    no_length = parse_fraction(size, "attack_step_size") == 0
    yield no_length, "attack_step_size=0 does not move; give a length such as 1/255."
    yield (
        parse_step_size(size, args.threat_model, "attack_step_size") > 2 * args.threat_model.eps,
        f"attack_step_size={size} is longer than the ball of eps={args.eps} is wide; give at most twice eps, or the "
        "paper's 1/255.",
    )


def _cheaper(args: Any) -> Faults:
    start, half = args.attack_steps_start, args.bf16 or args.fp16
    yield (
        start is not None and not 1 <= start <= args.attack_steps,
        f"attack_steps_start={start} is not in 1 to attack_steps={args.attack_steps}.",
    )
    yield (
        args.attack_bf16 and half,
        "attack_bf16=True is for training in fp32; with bf16 or fp16 the attack is cast already.",
    )
    if args.attack_fp8:
        check_float8(args.device)
    other = "attack_bf16" if args.attack_bf16 else "fp16"
    yield (
        args.attack_fp8 and (args.attack_bf16 or args.mixed_precision == "fp16"),
        f"attack_fp8=True has its other layers in bf16 and excludes {other}; leave that out.",
    )


def _counts(args: Any) -> Faults:
    """Numbers that the Trainer would divide by, or take for something else."""
    given = {name: getattr(args, name) for name in ("trained_blocks", "global_batch_size")}
    given |= {name: getattr(args, name) for name in ("per_device_train_batch_size", "gradient_accumulation_steps")}
    for name, value in given.items():
        yield value is not None and value < 1, f"{name}={value} is not positive; give at least 1, or leave it out."
    for name in ("eval_images", "eval_attack_steps", "save_total_limit", "dataloader_num_workers"):
        yield (getattr(args, name) or 0) < 0, f"{name}={getattr(args, name)} is negative; give a number from 0."
    yield (
        "tensorboard" in args.report_to and not is_tensorboard_available(),
        "report_to='tensorboard' needs a library that is not installed: pip install tensorboard.",
    )
    pictures, shown = args.picture_steps, set(args.report_to).intersection(DASHBOARDS)
    yield (
        pictures is not None and (pictures < 1 or not shown),
        f"picture_steps={pictures} shows nothing; give at least 1, and report_to one of {', '.join(DASHBOARDS)}.",
    )
    last = args.max_steps
    yield (
        last == 0 or last < -1,
        f"max_steps={last} trains nothing; give the number of updates, or -1 to count epochs.",
    )
    yield (
        last > 0 and args.num_train_epochs != TrainingArguments.num_train_epochs,
        f"num_train_epochs={args.num_train_epochs:g} is not looked at while max_steps={last} counts updates; give "
        "max_steps=-1 to count epochs.",
    )
    yield (
        args.save_strategy == SaveStrategy.STEPS and args.save_steps <= 0,
        f"save_steps={args.save_steps} is not positive; give a number, or save_strategy='no'.",
    )


def _objective(args: Any) -> Faults:
    """The objective is one of `OBJECTIVES`, works on the embedding, and reads what was given for it."""
    name, embedding = args.objective, args.embedding
    yield embedding not in READINGS, f"embedding={embedding!r} is not known; give one of {', '.join(READINGS)}."
    yield name not in OBJECTIVES, f"objective={name!r} is not known; give one of {', '.join(OBJECTIVES)}."
    kind = OBJECTIVES[name]
    fitting = " or ".join(map(repr, kind.embeddings))
    yield (
        embedding not in kind.embeddings,
        f"embedding={embedding!r} is not for this objective; {name} needs {fitting}.",
    )
    for option, example in POSITIVE.items():
        value = getattr(args, option)
        positive = value is None or 0 < value < float("inf")
        yield not positive, f"{option}={value} is not positive; give {example}, or leave it out."
        read = embedding in JOINED if option == "patch_weight" else option in kind.options
        reader = f"embedding={embedding!r}" if option == "patch_weight" else f"objective={name!r}"
        yield value is not None and not read, f"{option}={value} is not read by {reader}; leave it out."


def _trainer(args: Any) -> Faults:
    """Settings of the Trainer that would break or hide something here."""
    checkpointing = args.activation_checkpointing_kwargs
    yield (
        isinstance(checkpointing, dict) and checkpointing.get("use_reentrant"),
        "use_reentrant=True cannot differentiate to the pixels; set use_reentrant to False.",
    )
    yield (
        args.save_only_model and args.resume_from_checkpoint,
        "save_only_model=True keeps no state of the optimizer, and such a run cannot be resumed; start again in "
        "another output_dir.",
    )
    half_on_cpu = args.mixed_precision == "fp16" and args.device.type == "cpu"
    yield half_on_cpu, "fp16=True does nothing on a CPU; use bf16=True with use_cpu=True, or a GPU."
    yield (
        args.torch_compile and not args.dataloader_drop_last,
        "torch_compile=True compiles for one shape, and an epoch may end in a smaller batch; set "
        "dataloader_drop_last=True.",
    )
    yield args.remove_unused_columns, "remove_unused_columns=True drops `index` and `labels`; leave it False."
    yield args.logging_nan_inf_filter, "logging_nan_inf_filter=True hides a NaN loss; leave it False."
    yield (
        args.fp16_full_eval or args.bf16_full_eval,
        "full evaluation in half precision casts the fp32 weights; use bf16=True (autocast).",
    )


def _publication(args: Any) -> Faults:
    yield (
        args.push_to_hub and args.hub_strategy == HubStrategy.CHECKPOINT,
        "hub_strategy='checkpoint' would publish the optimizer's state; use 'end', 'every_save', or "
        "'all_checkpoints' (a branch for each).",
    )
    if args.push_to_hub:
        check_repo_id(args.hub_model_id or Path(str(args.output_dir)).absolute().name)


def _ignored(args: Any) -> Faults:
    """Values of options that are used otherwise."""
    never, metric = args.eval_strategy == IntervalStrategy.NO, args.metric_for_best_model
    yield never and args.do_eval, "do_eval=True asks for no evaluation by itself; give eval_strategy='steps'."
    yield (
        never and metric is not None,
        f"metric_for_best_model={metric!r} is never measured; give eval_strategy='steps'.",
    )
    yield (
        args.train_sampling_strategy not in ("random", "sequential"),
        f"train_sampling_strategy={args.train_sampling_strategy!r} goes by lengths, which images do not have; give "
        "random or sequential.",
    )
    loading: Any = args.accelerator_config
    yield (
        loading.split_batches,
        "split_batches=True would divide per_device_train_batch_size again; give global_batch_size, which is of all "
        "processes.",
    )
    yield (
        not loading.use_seedable_sampler,
        "use_seedable_sampler=False gives an order that no resumed run finds; leave it True.",
    )


def check_parts(
    args: Any,
    model: nn.Module,
    eval_dataset: Any,
    processing_class: Any,
    objective: Any,
    validation: Any,
    reading: Any = None,
) -> None:
    """What `FareTrainer` is given that cannot work, or contradicts its configuration.

    Raises:
        ValueError: the first fault, and what to change.
    """
    refuse(_faults_of_reading(args, reading))
    refuse(_faults_of_model(args, model, processing_class, reading))
    refuse(_faults_of_objective(args, model, objective, validation))
    refuse(_faults_of_evaluation(args, eval_dataset, validation))


def _faults_of_reading(args: Any, reading: Any) -> Faults:
    needed = args.embedding == FEATURES and reading is None
    yield needed, "embedding='features' needs reading=, the second of what load_vision_tower(name of the VLM) gives."
    own = getattr(reading, "embedding", args.embedding)
    yield own != args.embedding, f"embedding={args.embedding!r}, and reading= is of {own!r}; give embedding={own!r}."
    asked = args.patch_weight or 1.0
    weight = getattr(reading, "patch_weight", asked)
    yield weight != asked, f"patch_weight={asked}, and reading= has {weight}; give patch_weight={weight}."


def _faults_of_model(args: Any, model: nn.Module, processing_class: Any, reading: Any) -> Faults:
    yield (
        args.n_gpu > 1,
        f"{args.n_gpu} GPUs are visible to one process; use `accelerate launch`, or set CUDA_VISIBLE_DEVICES.",
    )
    no_encoder = reading is None and not hasattr(model.config, "image_size")
    yield no_encoder, f"the model is a {type(model).__name__}, no vision encoder; load it with load_encoder(name)."
    missing = processing_class is None
    yield missing, "processing_class is None; give the encoder's image processor, for its mean and std."
    for name, parameter in model.named_parameters():
        yield (
            parameter.dtype != torch.float32,
            f"{name!r} is {parameter.dtype}; load the model with dtype=torch.float32, and set bf16.",
        )


def _faults_of_objective(args: Any, model: nn.Module, objective: Any, validation: Any) -> Faults:
    kind = OBJECTIVES[args.objective]
    compared = compared_embedding(model.config)
    texts = "class_names" in getattr(objective or kind, "options", ())
    yield (
        texts and args.embedding != compared,
        f"embedding={args.embedding!r} of a {type(model).__name__} is not compared with texts; use "
        f"{compared or 'an objective without texts'!r}.",
    )
    yield (
        objective is None and "class_names" in kind.options,
        f"objective={kind.name!r} needs text embeddings; pass objective={kind.__name__}(...).",
    )
    yield (
        objective is not None and kind.options and not isinstance(objective, kind),
        f"args.objective={kind.name!r} and objective={type(objective).__name__}(...) contradict each other; leave the "
        "former out.",
    )
    for option, attribute in OF_OBJECTIVES.items():
        asked, own = getattr(args, option), getattr(objective, attribute, None)
        yield (
            objective is not None and asked not in (None, own),
            f"args.{option}={asked} is not objective.{attribute}={own}; leave it out.",
        )
    read = validation is not None or texts
    given = {"class_names": args.class_names, "templates": tuple(args.templates) != TEMPLATES and args.templates}
    for name, value in given.items():
        yield value and not read, f"{name}={value!r} is not read by the objective; leave it out."


def _faults_of_evaluation(args: Any, eval_dataset: Any, validation: Any) -> Faults:
    """`metric_for_best_model` is looked up after the first evaluation, hours later."""
    metric, accuracies = args.metric_for_best_model, validation is not None and args.eval_attack_steps > 0
    count = 0 if isinstance(eval_dataset, dict) or not hasattr(eval_dataset, "__len__") else len(eval_dataset)
    yield (
        args.eval_images not in (0, type(args).eval_images) and count > args.eval_images,
        f"eval_images={args.eval_images} is not read here: eval_dataset has {count}; pass a Subset.",
    )
    names = measured_names(eval_dataset, accuracies)
    why = "" if accuracies else ", and the accuracies with validation= and eval_attack_steps"
    yield (
        metric is not None and metric.removeprefix("eval_") not in names,
        f"metric_for_best_model={metric!r} is not measured; give one of {', '.join(names)}{why}.",
    )
