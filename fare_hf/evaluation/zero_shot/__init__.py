"""Encoders without a language model: zero-shot classification, drift, corruptions, gradient masking."""
