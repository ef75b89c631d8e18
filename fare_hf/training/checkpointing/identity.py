"""Which run a training is: everything that decides its weights, to compare a checkpoint with."""

from __future__ import annotations

import hashlib
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from fare_hf.encoders.flops import uses_tf32
from fare_hf.encoders.reading import Reading
from fare_hf.objectives import Objective
from fare_hf.training.config import DECIDING, FareConfig
from fare_hf.training.objective_facts import objective_facts
from fare_hf.training.trainer_options import defaults_of

__all__ = ["fingerprint", "image_backend", "option_defaults", "run_identity"]

OF_THE_TRAINER = (
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "data_seed",
    "dataloader_drop_last",
    "lr_scheduler_kwargs",
    "num_train_epochs",
    "optim",
    "optim_args",
    "seed",
    "train_sampling_strategy",
)
"""Fields of `TrainingArguments` that decide the weights; those of `FareConfig` say so themselves."""
OF_NO_ARCHITECTURE = ("_name_or_path", "dtype", "torch_dtype", "transformers_version", "use_cache")
OF_THE_PROCESSOR = ("do_resize", "size", "resample", "do_center_crop", "crop_size", "image_mean", "image_std")
SAMPLES = 256
"""Values of each tensor that a fingerprint looks at."""


def run_identity(
    args: FareConfig,
    model: Any,
    original: nn.Module,
    objective: Any,
    train_dataset: Any,
    processor: Any,
    reading: Reading,
    *,
    compiled_by: str | None = None,
) -> dict[str, Any]:
    """What decides the weights, as JSON values by name.

    Args:
        args: the configuration.
        model: the encoder that is trained, for its architecture.
        original: the encoder that gives the targets, for its weights.
        objective: what is minimised, for its name and its texts.
        train_dataset: for its size and some of its images; the order of a stream also depends on who reads it.
        processor: for what it makes of an image.
        reading: for what it holds beside the encoder.
        compiled_by: backend of torch.compile, whose kernels round otherwise.
    """
    identity: dict[str, Any] = {name: _plain(getattr(args, name)) for name in (*DECIDING, *OF_THE_TRAINER)}
    identity |= {f"model.{key}": _plain(value) for key, value in _architecture(model).items()}
    identity |= {
        "objective": objective_facts(objective)["objective"],
        "original": fingerprint(original),
        "objective settings": objective.settings() if isinstance(objective, Objective) else None,
        "texts": _texts(objective),
        "precision": args.mixed_precision,
        "tf32": uses_tf32(args.device),
        "compiled by": compiled_by or "nothing",
    }
    identity |= {f"processor.{key}": _plain(getattr(processor, key, None)) for key in OF_THE_PROCESSOR}
    identity |= reading.facts()
    identity["processor.backend"] = image_backend(processor, train_dataset)
    if hasattr(train_dataset, "fingerprint"):
        identity["data"] = train_dataset.fingerprint()
    identity["batch size"] = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    together = args.train_batch_size * args.world_size
    try:
        identity["images"] = len(train_dataset)
        if args.dataloader_drop_last:  # by how many are taken together depends which are left out
            identity["images of an epoch"] = identity["images"] // together * together
        return identity
    except TypeError:
        readers = [args.world_size, args.dataloader_num_workers, args.train_batch_size]
        readers.append(getattr(train_dataset, "shuffle_buffer", 0))
        return {**identity, "processes, workers, batch and buffer of a stream": readers}


def image_backend(processor: Any, train_dataset: Any) -> str:
    """What resizes the images, `pil`, `torchvision` or `torch` (`fast`): their pixels differ by up to 2/255."""
    return "torch" if getattr(train_dataset, "fast", None) else str(getattr(processor, "backend", "unknown"))


def option_defaults() -> dict[str, Any]:
    """What the options of `FareConfig` that decide the weights are where nobody sets them, as JSON values."""
    defaults = defaults_of(FareConfig)
    return {name: _plain(defaults[name]) for name in DECIDING}


def fingerprint(module: nn.Module) -> str:
    """Of the weights: a hash of the names, shapes and some values of each, so that it takes no time."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in module.state_dict().items():
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(_some_bytes(value))
    return digest.hexdigest()


def _some_bytes(value: Tensor) -> bytes:
    flat = value.detach().flatten()
    some = flat[:: max(1, len(flat) // SAMPLES)]
    return some.to("cpu", torch.float32).numpy().tobytes()


def _architecture(model: Any) -> dict[str, Any]:
    values = {"class": type(model).__name__, **model.config.to_dict()}
    return {key: value for key, value in values.items() if key not in OF_NO_ARCHITECTURE}


def _texts(objective: Any) -> str | None:
    texts = getattr(objective, "text_embeddings", None)
    # Rounded: the text encoder may give other last digits on another machine.
    return None if texts is None else hashlib.blake2b(_some_bytes((texts * 1000).round()), digest_size=8).hexdigest()


def _plain(value: Any) -> Any:
    """A JSON value."""
    if isinstance(value, Enum):
        return value.value
    return value if isinstance(value, (int, float, str, list, dict, type(None))) else str(value)
