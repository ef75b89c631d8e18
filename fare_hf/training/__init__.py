"""Adversarial fine-tuning of vision encoders through the Trainer of transformers."""

from fare_hf.training.config import FareConfig
from fare_hf.training.trainer import FareTrainer

__all__ = ["FareConfig", "FareTrainer"]
