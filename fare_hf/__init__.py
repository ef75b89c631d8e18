"""Adversarially robust CLIP vision encoders (FARE) for Hugging Face."""

__version__ = "0.1.0"
