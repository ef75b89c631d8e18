"""What a `FareTrainer` publishes: the encoder in a clean folder with its card, never its output folder."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

from transformers import SchedulerType
from transformers.training_args import OptimizerNames

from fare_hf.encoders.embedding import JOINED
from fare_hf.evaluation import environment
from fare_hf.files.folders import check_new_folder, whole_folder
from fare_hf.hub import Publication, check_access, push_robust_encoder, save_robust_encoder
from fare_hf.hub.base_model import base_name, inherited_license, is_hub_id
from fare_hf.objectives import OBJECTIVES, Objective
from fare_hf.pretrained.encoder_families import PUBLISHED
from fare_hf.training.config import CHEAPER
from fare_hf.training.objective_facts import objective_facts
from fare_hf.training.run import TrainingRun
from fare_hf.training.sharding import whole_encoder
from fare_hf.vlm.families.towers import TOWERS

__all__ = ["can_publish", "check_push", "publish", "publish_checkpoint", "recipe", "save_encoder"]

PUSH = ("commit_message", "token", "revision", "private", "create_pr", "tag")
"""Options of `push_robust_encoder`; whatever else `publish` gets is of `save_robust_encoder`."""
logger = logging.getLogger(__name__)


def recipe(trainer: TrainingRun) -> dict[str, Any]:
    """What the model card says of the training; `trainer.card["training"]` is part of it."""
    args = trainer.args
    optimizer = args.optim.value if isinstance(args.optim, OptimizerNames) else args.optim
    betas = f", betas {args.adam_beta1:g}, {args.adam_beta2:g}"
    cheaper = {name.replace("_", " "): value for name in CHEAPER if (value := getattr(args, name))}
    return {
        **objective_facts(trainer.objective),
        "embedding": args.embedding,
        **({"patch weight": args.patch_weight or 1.0} if args.embedding in JOINED else {}),
        **trainer.card.get("training", {}),
        **_texts(trainer),
        "threat model": str(args.threat_model),
        "attack": f"PGD, {args.attack_steps} steps of {args.attack_step_size}, random start",
        **cheaper,
        "steps": trainer.state.global_step,
        "batch size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "optimizer": f"{optimizer}{betas if 'adam' in optimizer else ''}",
        "learning rate": args.learning_rate,
        "schedule": f"{SchedulerType(args.lr_scheduler_type).value}, warm-up {args.warmup_steps:g}",
        "weight decay": args.weight_decay,
        "gradient norm": f"at most {args.max_grad_norm:g}" if args.max_grad_norm else "not clipped",
        "precision": "fp32" if trainer.accelerator.mixed_precision == "no" else trainer.accelerator.mixed_precision,
        "seed": args.seed,
        "versions": ", ".join(f"{name} {version}" for name, version in environment()["versions"].items()),
    }


def _texts(trainer: TrainingRun) -> dict[str, Any]:
    """The objective's own settings, and the sentences that it was made from where the options of the run say them."""
    args, objective = trainer.args, trainer.objective
    if isinstance(objective, Objective):
        found = objective.settings()
    else:  # one that inherits nothing, and may have no name
        found = {} if (scale := getattr(objective, "logit_scale", None)) is None else {"logit scale": scale}
    if isinstance(objective, kind := OBJECTIVES[args.objective]) and "templates" in kind.options:
        found |= {"prompts": "; ".join(args.templates)}
        found |= {"class names": ", ".join(args.class_names)} if args.class_names else {}
    return found


def can_publish(trainer: TrainingRun) -> bool:
    """Whether the encoder is one that `save_robust_encoder` takes."""
    encoder = trainer.accelerator.unwrap_model(trainer.model)
    return any(cls.__name__ in (*PUBLISHED, *TOWERS) for cls in type(encoder).__mro__)


def save_encoder(trainer: TrainingRun, folder: str | os.PathLike[str], **changes: Any) -> None:
    """The trained encoder on the main process: `save_robust_encoder`, or without a card where that takes no such
    class. Every process calls this."""
    encoder = whole_encoder(trainer)
    try:
        if trainer.is_world_process_zero() and can_publish(trainer):
            save_robust_encoder(encoder, folder, **_options(trainer, changes))
        elif trainer.is_world_process_zero():
            _save_plain(encoder, trainer.processing_class, Path(folder))
    finally:
        # Also where it fails: the other processes would wait for ever.
        trainer.accelerator.wait_for_everyone()


def check_push(trainer: TrainingRun, token: str | None) -> str:
    """Before the first step: the name is valid, the token there, and it may write; returns the repository's name.

    Raises:
        ValueError: what is wrong, and what to change.
        PushError: the Hub does not answer.
    """
    if not can_publish(trainer):
        name, known = type(trainer.accelerator.unwrap_model(trainer.model)).__name__, ", ".join((*PUBLISHED, *TOWERS))
        raise ValueError(f"push_to_hub=True publishes {known}, not a {name}; leave it out, and push it yourself.")
    _name_base(trainer)
    name = trainer.args.hub_model_id or Path(str(trainer.args.output_dir)).absolute().name
    return check_access(name, token or trainer.args.hub_token)


def publish(trainer: TrainingRun, folder: str | os.PathLike[str] | None = None, **options: Any) -> Publication | None:
    """Publishes the encoder as it is now, or a folder of it, on the main process; None on the others.

    Args:
        trainer: whose encoder it is.
        folder: a clean folder of the encoder.
        options: of `push_robust_encoder`, those of the Trainer where they are None; others of `save_robust_encoder`.
    """
    push = _push_options(trainer, **{name: options.pop(name) for name in PUSH if name in options})
    encoder: Any = whole_encoder(trainer) if folder is None else None
    try:
        if not trainer.is_world_process_zero():
            return None
        if folder is not None:
            return push_robust_encoder(folder, **push)
        return push_robust_encoder(encoder, **push, **_options(trainer, options))
    finally:
        trainer.accelerator.wait_for_everyone()


def publish_checkpoint(trainer: TrainingRun, checkpoint: str, revision: str | None) -> None:
    """Publishes the encoder of a checkpoint; where that fails the training goes on, and `checkpoint/encoder` stays."""
    folder, encoder = Path(checkpoint) / "encoder", whole_encoder(trainer)
    try:
        if trainer.is_world_process_zero():
            save_robust_encoder(encoder, folder, **_options(trainer, {}))
            push_robust_encoder(folder, **_push_options(trainer, revision=revision))
            shutil.rmtree(folder)
    except (ValueError, OSError) as error:
        logger.warning("the checkpoint was not published, the training goes on: %s", error)
    finally:
        trainer.accelerator.wait_for_everyone()


def _save_plain(encoder: Any, processor: Any, folder: Path) -> None:
    """Weights, configuration and image processor; the Trainer would add its pickled arguments."""
    check_new_folder(folder)
    with whole_folder(folder) as place:
        for part in (encoder, processor):
            part.save_pretrained(place)


def _push_options(trainer: TrainingRun, **given: Any) -> dict[str, Any]:
    """Arguments of `push_robust_encoder`, from those of the Trainer where they are not given."""
    args = trainer.args
    options = {"repo_id": trainer.hub_model_id, "token": args.hub_token, "private": args.hub_private_repo}
    options |= {"revision": args.hub_revision or "main"}
    options |= {"commit_message": f"Robust encoder of step {trainer.state.global_step}"}
    return options | {name: value for name, value in given.items() if value is not None}


def _options(trainer: TrainingRun, changes: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `save_robust_encoder`."""
    _name_base(trainer)
    card = {"processor": trainer.processing_class, **trainer.card, "threat_model": trainer.args.threat_model}
    return {**card, "training": recipe(trainer), **changes}


def _name_base(trainer: TrainingRun) -> None:
    """The original and its licence for the card; once, while the folder it was loaded from is where it was."""
    origin = str(trainer.card.get("base_model") or _origin(trainer))
    if "license" not in trainer.card:
        trainer.card |= {"license": "", **inherited_license(origin)}
    trainer.card["base_model"] = base_name(origin)


def _origin(trainer: TrainingRun) -> str:
    """Where the encoder was loaded from: repository, or folder, which may be gone; one made in memory has no name."""
    found = str(trainer.accelerator.unwrap_model(trainer.model).config._name_or_path or "unknown")
    known = Path(found).is_dir() or (is_hub_id(found) and found != "unknown")
    return found if known else f"./{Path(found).name}"
