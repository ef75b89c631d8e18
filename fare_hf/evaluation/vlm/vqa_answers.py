"""The official answer processing of VQA (visualqa.org): punctuation, number words, articles, contractions."""

from __future__ import annotations

import re
from itertools import combinations

__all__ = ["normalize_answer"]

_NUMBERS = dict(zip("none zero one two three four five six seven eight nine ten".split(), "0 0 1 2 3 4 5 6 7 8 9 10".split(), strict=True))  # fmt: skip  # noqa: E501
_ARTICLES = frozenset(("a", "an", "the"))
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# The official pattern, whose look-ahead was meant to be a look-behind: a stop stays only before a digit.
_STOP = re.compile(r"\.(?!\d)")
_CONTRACTED = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've "
    "needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll "
    "somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd "
    "there'd've there're there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll "
    "what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's "
    "won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've"
).split()


def _misspelt() -> dict[str, str]:
    """Contractions written with one apostrophe too few, to how they are written.

    The official table's own oddities stay: words with two or more apostrophes are known with one missing, but not with
    all missing; "somebody'd" loses its apostrophe.
    """
    table = {}
    for word in _CONTRACTED:
        places = [place for place, letter in enumerate(word) if letter == "'"]
        for gone in combinations(places, 1):
            table["".join(letter for place, letter in enumerate(word) if place not in gone)] = word
    table |= {"twas": "'twas", "somebody'd": "somebodyd", "yall'd've": "y'all'd've"}
    return table | {name: "'ow's'at" for name in ("ow's'at", "'ows'at", "'ow'sat")}


_MISSPELT = _misspelt()


def normalize_answer(answer: str) -> str:
    """An answer, the model's or a person's, as OpenFlamingo's and Robust CLIP's evaluation compares it.

    visualqa.org's own code leaves everything as it is where all people gave the same answer: "Yes" is then no "yes".
    """
    return _words(_punctuation(_plain(answer)))


def _plain(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _punctuation(text: str) -> str:
    """Marks beside a space, and all of them where a number holds a comma, vanish; others become a space."""
    numbers = _COMMA_IN_NUMBER.search(text) is not None
    result = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if beside_space or numbers else " ")
    return _STOP.sub("", result)


def _words(text: str) -> str:
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_MISSPELT.get(word, word) for word in words if word not in _ARTICLES)
