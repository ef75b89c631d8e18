"""The language of the lab: what is said of an image, in training and as zero-shot prompts."""

from __future__ import annotations

import numpy as np

TEMPLATES = ("a photo of {}", "a drawing of {}", "an icon of {}", "{}", "a picture of {}")
"""Sentences for one drawing; the first is the zero-shot prompt."""
FASHION_TEMPLATES = ("a grey photo of {}", "a grey photo of a piece of clothing, {}")
DIGIT_TEMPLATES = ("a handwritten digit, {}", "the number {}")
CAPTION_PROMPT = "Provide a short caption for this image."
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
PLURALS = frozenset(
    "cherries grapes jeans glasses scissors books french fries trousers sushi bread corn fire dango candy".split()
    + ["french fries"]
)
"""Words that take no article."""


def with_article(concept: str) -> str:
    """`an ambulance`, `a bus`, `scissors`.

    >>> with_article("ambulance"), with_article("pool ball"), with_article("scissors")
    ('an ambulance', 'a pool ball', 'scissors')
    """
    if concept in PLURALS:
        return concept
    return f"{'an' if concept[0] in 'aeiou' else 'a'} {concept}"


def enumerate_words(concepts: list[str]) -> str:
    """`a bus, a key and scissors`."""
    words = [with_article(concept) for concept in concepts]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def describe(concepts: list[str], rng: np.random.Generator) -> str:
    """A training sentence about one or several drawings."""
    template = TEMPLATES[rng.integers(len(TEMPLATES))]
    return template.format(enumerate_words(concepts))


def zero_shot_prompts(class_names: tuple[str, ...], dataset: str) -> list[str]:
    """One prompt a class for `fashion`, `digits` or any set of drawings."""
    template = {"fashion": FASHION_TEMPLATES[0], "digits": DIGIT_TEMPLATES[0]}.get(dataset, TEMPLATES[0])
    plain = dataset == "digits"
    return [template.format(name if plain else with_article(name)) for name in class_names]


def chat(question: str, answer: str = "", image: bool = True) -> str:
    """LLaVA-1.5's one-turn prompt, without the system sentence."""
    head = "USER: <image>\n" if image else "USER: "
    return f"{head}{question} ASSISTANT:" + (f" {answer}" if answer else "")


def yes_no_prompt(concept: str) -> str:
    """POPE's question (Li et al., 2023)."""
    return f"Is there {with_article(concept)} in the image?"


def repeat_prompt(sentence: str) -> str:
    """Asks for a sentence in so many words."""
    return f"Say: {sentence}"
