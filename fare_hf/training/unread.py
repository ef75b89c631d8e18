"""Options of a training on the command line that nothing would read."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from typing import Any

from fare_hf.training.config import FareConfig

__all__ = ["check_unread"]


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
    unread = {
        "eval_strategy is 'no'": () if evaluates else ("eval_split", "eval_images", "eval_attack_steps", "eval_steps"),
        "objective is 'fare', without an evaluation": () if classes else ("class_names", "label_column", "templates"),
        "no text is embedded": () if classes or script.with_text_encoder else ("text_model",),
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
