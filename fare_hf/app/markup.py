"""What was found, as HTML: pictures with answers side by side."""

from __future__ import annotations

import base64
from html import escape
from io import BytesIO

import torch
from PIL import Image
from torch import Tensor

from fare_hf import __version__
from fare_hf.app.attack import Found
from fare_hf.app.models import ANSWER_TOKENS
from fare_hf.app.pictures import Picture
from fare_hf.data.pixels import to_pil

__all__ = ["STYLE", "answers", "chosen_picture", "difference", "sentence"]

STYLE = """
.fare-intro h1 { font-size: 1.5rem; margin: 0 0 .3rem; }
.fare-intro p, .fare-foot { margin: .2rem 0; line-height: 1.45; }
.fare-foot { font-size: .85rem; }
.fare-chosen { display: flex; gap: .8rem; align-items: center; }
.fare-chosen img { width: 96px; border-radius: 6px; }
.fare-error { border-left: 4px solid #c92a2a; padding: .5rem .8rem; background: #c92a2a18; }
.fare-curve svg { width: 100%; height: auto; }
.fare-curve text { font-size: 12px; fill: currentColor; }
.fare-model { margin: .6rem 0; padding: .6rem .8rem; border: 1px solid #8884; border-radius: 8px; }
.fare-model h3 { margin: 0 0 .4rem; font-size: 1.05rem; }
.fare-pictures { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .8rem; }
.fare-pictures figure { margin: 0; }
.fare-pictures img, .fare-wait { width: 100%; aspect-ratio: 1; border-radius: 6px; }
.fare-wait { display: grid; place-items: center; background: #8882; }
.fare-pictures figcaption { margin-top: .3rem; line-height: 1.35; }
.fare-pictures q { font-weight: 600; }
.fare-badge { border-radius: 4px; padding: .1rem .45rem; color: #fff; font-size: .8rem; white-space: nowrap; }
.fare-fooled { background: #c92a2a; }
.fare-held { background: #2b8a3e; }
"""


def sentence(error: Exception) -> str:
    """What was asked wrongly."""
    return f'<p class="fare-error" role="alert">{escape(str(error))}</p>'


def chosen_picture(picture: Picture) -> str:
    """What an attack begins with."""
    what = f"this picture of: {escape(picture.shows)}" if picture.shows else "your picture"
    words = f"<p>Chosen: {what}. Now press <b>Attack</b>.</p>"
    return f'<div class="fare-chosen">{_png(picture.image, "chosen")}{words}</div>'


def difference(attacked: Tensor, clean: Tensor, eps: float) -> Tensor:
    """The change magnified so that eps fills the range: grey where nothing changed; shape of the pixels, in [0, 1].

    Example:
        >>> difference(torch.tensor([0.2, 0.4]), torch.tensor([0.2, 0.3]), 0.1)
        tensor([0.5000, 1.0000])
    """
    return ((attacked - clean) * (0.5 / eps) + 0.5).clamp(0, 1)


def answers(found: Found) -> str:
    """For each model the clean picture, the one attacked for it and the change, and what it says."""
    done = "".join(_model(found, name) for name in found.clean)
    return f'<div class="fare-answers">{done}<p class="fare-foot">{_settings(found)}</p></div>'


def _model(found: Found, name: str) -> str:
    clean = _figure(_image(found.pixels, "clean"), f"clean: {_clean(found, name)}")
    pictures = _attacked(found, name) if name in found.attacked else _running(found, name)
    transferred = "".join(
        f'<p class="fare-foot">Transferred: shown the picture attacked for &ldquo;{escape(source)}&rdquo;, it says '
        f"{_answer(found, source, name)}</p>"
        for source, asked in found.answers
        if asked == name and source != name
    )
    pictures = f'<div class="fare-pictures">{clean}{pictures}</div>'
    return f'<section class="fare-model"><h3>{escape(name)}</h3>{pictures}{transferred}</section>'


def _running(found: Found, name: str) -> str:
    step = max(0, len(found.losses.get(name, [])) - 1)
    return _figure(_wait(f"step {step} of {found.settings.steps}"), "attacked") + _figure(_wait(""), "difference")


def _attacked(found: Found, name: str) -> str:
    eps, attacked = found.settings.threat_model.eps, found.attacked[name]
    told = _answer(found, name, name) if found.answers else ""
    levels = round(float((attacked - found.pixels).abs().max()) * 255)
    change = _image(difference(attacked, found.pixels, eps), "difference")
    words = f"difference &times; {0.5 / eps:.0f} (largest: {levels}/255)"
    return _figure(_image(attacked, "attacked"), f"attacked: {told}") + _figure(change, words)


def _clean(found: Found, name: str) -> str:
    """What a model says without an attack, which may be wrong."""
    answer, told = found.clean[name], f"<q>{escape(found.clean[name])}</q>"
    if not found.picture.shows:
        return told
    named = found.picture.named_in(answer)
    return f"{told} {_badge(named, ('names', 'does not name')[not named] + f' the {escape(found.picture.shows)}')}"


def _answer(found: Found, source: str, asked: str) -> str:
    """What a model says to a picture, and whether that is what the attacker wanted."""
    fooled = found.succeeded(source, asked)
    if found.settings.target:
        words = ("does not say it", "says it")[fooled]
    elif found.picture.named_in(found.clean[asked]):
        words = ("still names", "no longer names")[fooled] + f" the {escape(found.picture.shows)}"
    else:
        words = ("the same caption", "another caption")[fooled]
    return f"<q>{escape(found.answers[source, asked])}</q> {_badge(not fooled, words)}"


def _badge(good: bool, words: str) -> str:
    return f'<span class="fare-badge fare-{"held" if good else "fooled"}">{words}</span>'


def _settings(found: Found) -> str:
    """Without which no answer means anything."""
    settings = found.settings
    aim = f"to say &ldquo;{escape(settings.target)}&rdquo;" if settings.target else "away from its own clean caption"
    return (
        f"Each model attacked for itself, {aim}: {settings.threat_model}, APGD, {settings.steps} steps, restarts 1, "
        f"seed {settings.seed}, through the whole model, 8-bit pictures; greedy answers of at most {ANSWER_TOKENS} "
        f"tokens; fare_hf {__version__}, torch {torch.__version__}. One picture is an example and no measurement."
    )


def _figure(inside: str, caption: str) -> str:
    return f"<figure>{inside}<figcaption>{caption}</figcaption></figure>"


def _wait(words: str) -> str:
    return f'<div class="fare-wait">{words}</div>'


def _image(pixels: Tensor, words: str) -> str:
    return _png(to_pil(pixels)[0], words)


def _png(image: Image.Image, words: str) -> str:
    """Lossless, inside the page."""
    file = BytesIO()
    image.save(file, "PNG")
    return f'<img alt="{words}" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'
