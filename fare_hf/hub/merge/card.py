"""The model card of a merged model: both parents, what was changed, and the limits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCardData

from fare_hf.convert.checkpoints import names_repository
from fare_hf.files.markup import inline, is_link, literal
from fare_hf.hub.base_model import card_head

if TYPE_CHECKING:
    from fare_hf.hub.merge.merge import Merge

__all__ = ["merge_card"]

TAGS = ["robust-clip", "adversarial-robustness", "fare_hf", "merge"]
KEPT = ("license", "license_name", "license_link", "language", "pipeline_tag")

BODY = """
# {title}

{vlm} with the robust vision encoder {encoder} in place of its own: small changes of an image no longer decide what the
model says. Nothing was trained and the language model is untouched, bit for bit.

## Use

As {vlm}:

```python
from transformers import AutoProcessor, {vlm_class}

model = {vlm_class}.from_pretrained({name})
processor = AutoProcessor.from_pretrained({name})
```

## How it was made

`fare-hf merge` of [fare_hf](https://pypi.org/project/fare_hf) replaced {tensors} tensors of the vision tower, in
{files}. The cosine of old and new weights is {cosine:.3f}.{resolution}{left_out}

## Parents

- vision-language model: {vlm}
- robust vision encoder: {encoder} (its card has the threat model, the training and the measured figures{trained_from})

## Limits

- Robust means: within the encoder's threat model, against changes of the image. Text that asks for harm, larger
  changes and patches are outside.
- Robustness costs some clean accuracy; compare both parents on your own data.
- Licences and intended uses of both parents apply.
"""


def merge_card(merge: Merge, vlm_class: str, parent: Mapping[str, Any], encoder_card: Path | None) -> str:
    """Render the card.

    Args:
        merge: what was done.
        vlm_class: class of the model, for the snippet.
        parent: the head of the card of the vision-language model, whose licence is kept.
        encoder_card: that of the encoder.
    """
    vlm, encoder = _public(merge.vlm), _public(merge.encoder)
    kept = {key: parent[key] for key in KEPT if _is_plain(parent.get(key))}
    if not is_link(kept.get("license_link", "")):
        kept.pop("license_link", None)
    kept.setdefault("pipeline_tag", "image-text-to-text")
    if parents := [name for name in (merge.vlm, merge.encoder) if names_repository(name)]:
        kept |= {"base_model": parents, "base_model_relation": "merge"}
    data = ModelCardData(library_name="transformers", tags=TAGS, **kept)
    old, size = merge.resolution
    resolution = f" Images are read at {size} px in place of {old} px." if old != size else ""
    others = ", ".join(map(_file, merge.left_out))
    text = BODY.format(
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
    return f"---\n{data.to_yaml()}\n---\n{text}"


def _public(name: str) -> str:
    """A repository's name; of a folder or file the last part alone, as paths of a machine belong on no card."""
    return Path(name).name if Path(name).exists() or Path(name).is_absolute() else name


def _link(name: str) -> str:
    return f"[{name}](https://huggingface.co/{name})" if names_repository(name) else inline(_public(name))


def _file(name: str) -> str:
    """The name of a file as code; a strange one as text."""
    return f"`{name}`" if re.fullmatch(r"[\w./ -]+", name) and len(name) <= 200 else inline(name)


def _is_plain(value: Any) -> bool:
    """A text or a few texts, as licences and languages are."""
    texts = value if isinstance(value, list) else [value]
    return bool(value) and len(texts) < 100 and all(isinstance(text, str) and len(text) <= 200 for text in texts)


def _trained_from(card: Path | None) -> str:
    base: Any = None if card is None else card_head(card).get("base_model")
    return f"; it was fine-tuned from {_link(str(base))}" if isinstance(base, str) else ""
