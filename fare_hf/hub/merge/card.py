"""The model card of a merged model: both parents, what was changed, and the limits."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCardData

from fare_hf.convert.checkpoints import names_repository
from fare_hf.files.markup import inline, literal
from fare_hf.hub.base_model import card_head, license_terms

if TYPE_CHECKING:
    from fare_hf.hub.merge.plan import Merge

__all__ = ["merge_card"]

TAGS = ["robust-clip", "adversarial-robustness", "fare_hf", "merge"]
LANGUAGE = re.compile("[a-z]{2,3}|code|multilingual")
TASK = re.compile("[a-z]+(-[a-z]+){1,6}")
TEMPLATE = Path(__file__).with_name("template.md")


def merge_card(merge: Merge, vlm_class: str, parent: Mapping[str, Any], encoder_card: Path | None) -> str:
    """Render the card.

    Args:
        merge: what was done.
        vlm_class: class of the model, for the snippet.
        parent: the head of the card of the vision-language model, whose licence is kept.
        encoder_card: that of the encoder.
    """
    vlm, encoder = _public(merge.vlm), _public(merge.encoder)
    kept = _kept(parent, merge.vlm)
    if parents := [name for name in (merge.vlm, merge.encoder) if names_repository(name)]:
        kept |= {"base_model": parents, "base_model_relation": "merge"}
    data = ModelCardData(library_name="transformers", tags=TAGS, **kept)
    old, size = merge.resolution
    resolution = f" Images are read at {size} px in place of {old} px." if old != size else ""
    others = ", ".join(map(_file, merge.left_out))
    text = TEMPLATE.read_text(encoding="utf-8").format(
        title=inline(f"{vlm.rsplit('/', 1)[-1]} with {encoder.rsplit('/', 1)[-1]}"),
        vlm=_link(merge.vlm),
        encoder=_link(merge.encoder),
        vlm_class=vlm_class,
        name=literal(_public(merge.out) if merge.out else "path/to/this/folder"),
        tensors=merge.tensors,
        files=", ".join(map(_file, merge.rewritten)),
        cosine=merge.cosine,
        resolution=resolution,
        left_out=f" Left out, because they hold the old tower: {others}." if others else "",
        trained_from=_trained_from(encoder_card),
    )
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def _public(name: str) -> str:
    """A repository's name; of a folder or file the last part alone, as paths of a machine belong on no card."""
    return Path(name).name if Path(name).exists() or Path(name).is_absolute() else name


def _link(name: str) -> str:
    return f"[{name}](https://huggingface.co/{name})" if names_repository(name) else inline(_public(name))


def _file(name: str) -> str:
    """The name of a file as code; a strange one as text."""
    return f"`{name}`" if re.fullmatch(r"[\w./ -]+", name) and len(name) <= 200 else inline(name)


def _kept(parent: Mapping[str, Any], vlm: str) -> dict[str, Any]:
    """What the merged model's head takes from its parent's, of what the Hub accepts; the rest is told."""
    task, stated = parent.get("pipeline_tag"), parent.get("language") or []
    kept: dict[str, Any] = {"pipeline_tag": task if _is_match(TASK, task) else "image-text-to-text"}
    languages = stated if isinstance(stated, list) else [stated]
    strange = [language for language in languages if not _is_match(LANGUAGE, language)]
    if strange:
        _warn(f"the card of {vlm!r} states the language {str(strange[0])[:50]!r}, which is no code of ISO 639")
    if known := list(dict.fromkeys(language for language in languages if language not in strange)):
        kept["language"] = known
    try:
        kept |= license_terms(parent, vlm)
    except ValueError as error:
        _warn(str(error).rstrip("."))
    return kept


def _is_match(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and bool(pattern.fullmatch(value))


def _warn(told: str) -> None:
    warnings.warn(f"{told}; the merged model's card leaves it out.", UserWarning, stacklevel=6)


def _trained_from(card: Path | None) -> str:
    base: Any = None if card is None else card_head(card).get("base_model")
    return f"; it was fine-tuned from {_link(str(base))}" if isinstance(base, str) else ""
