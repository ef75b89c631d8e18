"""Adversarial fine-tuning of vision encoders through the Trainer of transformers."""

from typing import TYPE_CHECKING

from fare_hf.lazy import on_first_use

if TYPE_CHECKING:  # the same names as below
    from fare_hf.training.config import FareConfig
    from fare_hf.training.trainer import FareTrainer

# Imported on first use: what a folder of checkpoints holds is known without the Trainer.
_HOMES, __getattr__, __dir__ = on_first_use(__name__, {"config": ("FareConfig",), "trainer": ("FareTrainer",)})

__all__ = ["FareConfig", "FareTrainer"]
