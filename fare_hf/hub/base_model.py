"""The model that an encoder was fine-tuned from: its name on a card, and its licence."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import HFValidationError, validate_repo_id

from fare_hf.convert.checkpoints import names_repository
from fare_hf.files.documents import front_matter, read_text
from fare_hf.files.markup import is_link
from fare_hf.hub.download import read_start
from fare_hf.hub.licenses import check_license
from fare_hf.hub.retry import Retries, is_transient, persist

__all__ = ["base_name", "card_head", "inherited_license", "is_hub_id", "license_terms"]

logger = logging.getLogger(__name__)

FOLDER = "./"
LONGEST_NAME = 200  # of a licence
# Licences are a courtesy: a machine without a connection, or a Hub that is away, must not keep anybody waiting.
BRIEF = Retries(tries=2, first_wait=0.5, silence=5.0, longest_asked=5.0)


def base_name(base_model: str) -> str:
    """The name on a card: the Hub's, or of a folder `./` and the last part of its path.

    Where a folder lies is nobody's business, and its name alone would be taken for that of a repository.

    Raises:
        ValueError: empty, or neither a folder here nor a name that a repository can have.
    """
    if not base_model.strip():
        raise ValueError("base_model is empty: name the encoder that was fine-tuned.")
    if Path(base_model).is_dir() or base_model.startswith(FOLDER):
        return FOLDER + os.path.basename(os.path.abspath(base_model))
    if not is_hub_id(base_model):
        raise ValueError(f"base_model {base_model!r} is neither a folder here nor a name that the Hub can have.")
    return base_model


def is_hub_id(name: str) -> bool:
    """Whether the Hub takes a name for that of a model or data set (old ones have no namespace)."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def inherited_license(base_model: str) -> dict[str, str]:
    """The licence in the metadata of the base model's card.

    Args:
        base_model: repository on the Hub ("namespace/name"), or a folder with its card. A folder without one, and any
            other name, is never looked up on the Hub: what has that name there is somebody else's.

    Returns:
        `license`, and with it `license_name` and `license_link` where the card states them (for "other"); empty where
        the base model has no card that can be read, or its card states no licence.

    Raises:
        ValueError: the card states a licence that the Hub does not know.
    """
    folder = Path(base_model)
    return license_terms(card_head(folder / "README.md") if folder.is_dir() else _hub_card(base_model), base_model)


def license_terms(head: Mapping[str, Any], model: str) -> dict[str, str]:
    """The licence in the head of a model's card, as another card may repeat it; see `inherited_license`.

    Raises:
        ValueError: a licence that the Hub does not know.
    """
    found = head.get("license")
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if not found:
        return {}
    try:
        check_license(str(found))
    except ValueError as error:
        raise ValueError(f"the card of {model!r} cannot hand its licence on: {error}") from None
    link, name = str(head.get("license_link") or ""), str(head.get("license_name") or "")
    if link and ":" not in link:  # a file of the model's repository
        link = f"https://huggingface.co/{model}/blob/main/{quote(link)}" if names_repository(model) else ""
    more = {"license_name": name if len(name) <= LONGEST_NAME else "", "license_link": link if is_link(link) else ""}
    return {"license": str(found), **{key: value for key, value in more.items() if value}}


def _hub_card(repo_id: str) -> Mapping[str, Any]:
    """From the cache, else by a request that gives up soon."""
    if not names_repository(repo_id):
        return {}
    cached = try_to_load_from_cache(repo_id, "README.md")
    if isinstance(cached, str):
        return card_head(Path(cached))
    try:
        return front_matter(
            persist(lambda: read_start(repo_id, "README.md"), replace(BRIEF, waits=[])), f"the card of {repo_id!r}"
        )
    except OfflineModeIsEnabled:
        return {}
    except Exception as error:
        if is_transient(error):
            logger.warning(
                "the licence of %s is not known, as the Hub does not answer (%s): give it.",
                repo_id,
                type(error).__name__,
            )
        return {}  # no such repository, no card, no right to read: there is nothing to inherit


def card_head(card: Path) -> dict[str, Any]:
    """The YAML head of a card that somebody else may have written; empty where there is none that can be read."""
    try:
        return front_matter(read_text(card), f"'{card}'")
    except (OSError, ValueError):
        return {}
