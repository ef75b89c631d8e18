"""The Trainer's bar with lines that people read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import ProgressCallback

__all__ = ["ReadableProgress", "log_line"]

SHOWN = {
    "loss": "loss {:.4g}",
    "attack_gain": "attack gain {:.4g}",
    "cosine_clean": "cosine clean {:.3f}",
    "cosine_adversarial": "adversarial {:.3f}",
    "grad_norm": "gradient {:.3g}",
    "learning_rate": "lr {:.3g}",
    "images_per_second": "{:.0f} images/s",
    "mfu": "MFU {:.1%}",
    "memory_gib": "{:.1f} GiB",
    "clean_accuracy": "zero-shot clean {:.1%}",
    "robust_accuracy": "attacked {:.1%}",
    "share_of_time": "{:.1%} of the time",
}
"""Key of the log -> how it is said, in this order; the whole log is in `trainer_state.json`."""


class ReadableProgress(ProgressCallback):
    """One line for each log of the Trainer, above its bar, instead of a dictionary."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Writes the line, on the main process."""
        if state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.write(log_line(logs, state.global_step))


def log_line(logs: Mapping[str, Any], step: int) -> str:
    """What was logged at a step, as one line: training, evaluation (`eval_*`), or the summary at the end."""
    if "train_runtime" in logs:
        return f"{step} steps in {logs['train_runtime']:.0f} s, mean loss {logs['train_loss']:.4g}"
    evaluation = any(key.startswith("eval_") for key in logs)
    values = {key.removeprefix("eval_"): value for key, value in logs.items()}
    words = [text.format(float(values[key])) for key, text in SHOWN.items() if key in values] or [str(dict(logs))]
    return f"step {step}{' evaluation' if evaluation else ''}: {', '.join(words)}"
