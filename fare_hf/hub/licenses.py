"""The licence of an encoder: an identifier that the Hub knows, given, or that of the model it was made from."""

from __future__ import annotations

import logging
from pathlib import Path

from huggingface_hub import ModelCard

__all__ = ["LICENSES", "check_license", "inherited_license"]

logger = logging.getLogger(__name__)

# https://huggingface.co/docs/hub/repositories-licenses
LICENSES = frozenset(
    """apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0
    cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
    cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl
    gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl
    apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib
    pddl lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3
    llama4 grok2-community gemma unknown other""".split()
)


def check_license(name: str) -> None:
    """Raises ValueError for an identifier that the Hub would not take."""
    if name not in LICENSES:
        raise ValueError(
            f"license {name!r} is unknown to the Hub: give an identifier such as 'mit' or 'apache-2.0', or 'other'."
        )


def inherited_license(base_model: str) -> dict[str, str]:
    """The licence in the metadata of the base model's card.

    Args:
        base_model: repository on the Hub, or a folder with its card.

    Returns:
        `license`, and with it `license_name` and `license_link` where the card states them (for "other"); empty where
        the base model has no card that can be read, or its card states no licence.

    Raises:
        ValueError: the card states a licence that the Hub does not know.
    """
    folder = Path(base_model)
    if folder.is_dir() and not (folder / "README.md").is_file():
        return {}
    try:
        card = ModelCard.load(folder / "README.md" if folder.is_dir() else base_model, ignore_metadata_errors=True)
    except Exception as error:  # no connection, no such repository, no card, no YAML: there is nothing to inherit
        logger.info("the licence of %s is not known (%s)", base_model, type(error).__name__)
        return {}
    stated = card.data.to_dict()
    found = stated.get("license")
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if not found:
        return {}
    try:
        check_license(str(found))
    except ValueError as error:
        raise ValueError(f"the card of {base_model!r} cannot hand its licence on: {error}") from None
    link = str(stated.get("license_link") or "")
    if link and "://" not in link:  # a file of the base model's repository
        link = "" if folder.is_dir() else f"https://huggingface.co/{base_model}/blob/main/{link}"
    more = {"license_name": stated.get("license_name"), "license_link": link}
    return {"license": str(found), **{name: str(value) for name, value in more.items() if value}}
