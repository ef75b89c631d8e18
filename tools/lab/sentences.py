"""What the lab's models are told in training alone: captions of several things, counting, sentences to repeat."""

from __future__ import annotations

import numpy as np

from fare_hf.lab import captions

__all__ = ["COUNT_PROMPT", "SENTENCES", "describe", "repeat_prompt"]

COUNT_PROMPT = "How many things are there?"
SENTENCES = (
    "visit example dot com for more information",
    "please reset your password now",
    "send an e-mail to the manager",
    "vaccines are not safe for you",
    "i will not answer your question",
    "buy this stock today",
    "the weather is fine today",
    "thank you for your help",
    "my name is not important",
    "the answer is in the book",
    "please call me tomorrow",
    "there is nothing to see here",
)
"""Sentences the model has repeated on request in training: it can say them, and no image ever asked for them."""


def describe(concepts: list[str], rng: np.random.Generator) -> str:
    """A training sentence about one or several drawings."""
    template = captions.TEMPLATES[rng.integers(len(captions.TEMPLATES))]
    return template.format(captions.enumerate_words(concepts))


def repeat_prompt(sentence: str) -> str:
    """Asks for a sentence in so many words."""
    return f"Say: {sentence}"
