"""The language of the lab: what its models are asked, and the sentences about an image that they know."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["CAPTION_PROMPT", "caption_of", "chat", "with_article", "yes_no_prompt", "zero_shot_prompts"]

TEMPLATES = ("a photo of {}", "a drawing of {}", "an icon of {}", "{}", "a picture of {}")
"""Sentences for one drawing; the first is the zero-shot prompt."""
FASHION_TEMPLATES = ("a grey photo of {}", "a grey photo of a piece of clothing, {}")
DIGIT_TEMPLATES = ("a handwritten digit, {}", "the number {}")
CAPTION_PROMPT = "Provide a short caption for this image."
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


def caption_of(concepts: Sequence[str]) -> str:
    """The caption of a drawing, or of a scene of several: the language models of the lab learn to write it.

    >>> caption_of(["bus", "key", "jeans"])
    'a photo of a bus, a key and jeans'
    """
    return TEMPLATES[0].format(enumerate_words(concepts))


def enumerate_words(concepts: Sequence[str]) -> str:
    """`a bus, a key and scissors`."""
    words = [with_article(concept) for concept in concepts]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


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
