"""Options of a training on the command line that nothing would read."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from typing import Any

from fare_hf.lab.names import is_in_lab
from fare_hf.training.config import FareConfig

__all__ = ["check_unread"]

EVALUATION = (
    "eval_split",
    "eval_images",
    "eval_attack_steps",
    "eval_steps",
    "eval_delay",
    "per_device_eval_batch_size",
)
PUBLICATION = ("hub_model_id", "hub_strategy", "hub_revision", "hub_private_repo", "hub_always_push")


def check_unread(script: Any, config: FareConfig) -> None:
    """Refuses what was asked for and would be dropped.

    Args:
        script: dataclass of what the script wants to know besides `FareConfig`.
        config: the configuration.

    Raises:
        ValueError: an option that is not at its default, and is not read.
    """
    evaluates = config.eval_strategy != "no" or config.eval_on_start
    classes = config.objective == "tecoa" or evaluates
    drawn = is_in_lab(script.dataset)
    unread: dict[str, tuple[str, ...]] = {
        "eval_strategy is 'no'": () if evaluates else EVALUATION,
        "objective is 'fare', without an evaluation": () if classes else ("class_names", "label_column", "templates"),
        "no text is embedded": () if classes or script.with_text_encoder else ("text_model",),
        "the lab's sets have the prompt '{}'": ("templates",) if drawn and config.objective == "fare" else (),
        "push_to_hub is False": () if config.push_to_hub else PUBLICATION,
        "save_strategy is not 'steps'": () if config.save_strategy == "steps" else ("save_steps",),
        "save_strategy is 'no'": ("save_total_limit",) if config.save_strategy == "no" else (),
        "streaming is False": () if script.streaming else ("shuffle_buffer",),
        "a stream has an order of its own (shuffle_buffer=0 keeps that of the data)": ("train_sampling_strategy",)
        if script.streaming
        else (),
    }
    defaults = {option.name: _default(option) for options in (config, script) for option in fields(options)}
    for why, names in unread.items():
        for name in names:
            value = getattr(script if hasattr(script, name) else config, name)
            if value != defaults[name]:
                raise ValueError(f"{name}={value!r} is not read: {why}; leave it out, or change that.")


def _default(option: Field[Any]) -> Any:
    return option.default if option.default_factory is MISSING else option.default_factory()
