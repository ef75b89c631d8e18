"""The page itself. Needs gradio: `pip install gradio`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from fare_hf.app.attack import LONGEST_TARGET, MOST_STEPS, Found, Settings, attack_models
from fare_hf.app.chart import curve
from fare_hf.app.markup import STYLE, answers, chosen_picture, sentence
from fare_hf.app.models import Model
from fare_hf.app.pictures import LARGEST_FILE, Picture, lab_pictures, read_upload
from fare_hf.attacks import ThreatModel

__all__ = ["build_page", "open_page"]

WRONG, SAY = "make the caption wrong", "make it say:"
RADII = ("1/255", "2/255", "4/255", "8/255")
SWEPT_EVERY, KEPT_FOR = 600, 3600  # seconds between looks for uploaded files, and of their lives
WAITING = 20
"""Visitors in the queue; one attack runs at a time."""
SHOWN_EVERY = 0.2  # seconds
QUIET: Any = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
"""Of what is done at once: an attack that is asked for next must find the picture that was picked before."""
INTRO = """<div class="fare-intro"><h1>Can a change that you do not see change what a model sees?</h1>
<p>Two vision-language models that differ in their vision encoder alone: the <b>original</b>, and one made
<b>robust</b> with FARE. Pick a picture and press <b>Attack</b>: an attacker who knows everything of a model changes
each value of the picture by at most eps, so that the model captions it wrong or writes the attacker's words. Each
model is attacked for itself.</p></div>"""


@dataclass(frozen=True)
class _Controls:
    """What a visitor chooses, and presses."""

    chosen: gr.State
    gallery: gr.Gallery
    upload: gr.UploadButton
    goal: gr.Radio
    target: gr.Textbox
    eps: gr.Radio
    steps: gr.Slider
    attack: gr.Button
    stop: gr.Button


@dataclass(frozen=True)
class _Shown:
    """What a visitor sees: a note or the chosen picture, the curve, and the answers."""

    note: gr.HTML
    losses: gr.HTML
    answers: gr.HTML


def build_page(models: Sequence[Model]) -> gr.Blocks:
    """The page for two models; `open_page` serves it."""
    pictures = lab_pictures()
    with gr.Blocks(title="fare_hf", analytics_enabled=False, delete_cache=(SWEPT_EVERY, KEPT_FOR)) as page:
        gr.HTML(INTRO)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                controls = _controls(pictures)
            with gr.Column(scale=3, min_width=420):
                note = gr.HTML(chosen_picture(pictures[0]), elem_id="note")
                shown = _Shown(note, gr.HTML(elem_id="losses"), gr.HTML(elem_id="answers"))
        _connect_pictures(controls, shown, pictures, models[0].size)
        _connect_attack(controls, shown, models)
    return page.queue(max_size=WAITING)


def _controls(pictures: Sequence[Picture]) -> _Controls:
    images: Any = [(picture.image, picture.shows) for picture in pictures]
    grid: Any = {"columns": 4, "height": "auto", "allow_preview": False, "selected_index": 0, "buttons": []}
    chosen = gr.State(pictures[0])
    gallery = gr.Gallery(images, label="1. The picture", format="png", elem_id="pictures", **grid)
    upload = gr.UploadButton("or upload one", size="sm", elem_id="upload")
    goal = gr.Radio([WRONG, SAY], value=WRONG, label="2. The attack")
    target = gr.Textbox("a photo of a cat", label="Text", max_length=LONGEST_TARGET, visible=False)
    eps = gr.Radio(list(RADII), value="2/255", label="eps: largest change of a value")
    steps = gr.Slider(1, MOST_STEPS, value=50, step=1, label="steps", elem_id="steps")
    with gr.Row():
        attack = gr.Button("Attack", variant="primary", elem_id="attack")
        stop = gr.Button("Stop", elem_id="stop")
    return _Controls(chosen, gallery, upload, goal, target, eps, steps, attack, stop)


def _connect_pictures(controls: _Controls, shown: _Shown, pictures: Sequence[Picture], size: int) -> None:
    def pick(event: gr.SelectData) -> tuple[Picture, str]:
        picture = pictures[event.index]
        return picture, chosen_picture(picture)

    def take(path: str) -> tuple[Any, str]:
        try:
            picture = read_upload(path, size)
        except ValueError as error:
            return gr.skip(), sentence(error)
        return picture, chosen_picture(picture)

    outputs = [controls.chosen, shown.note]
    controls.gallery.select(pick, None, outputs, **QUIET)
    controls.upload.upload(take, controls.upload, outputs, **QUIET)


def _connect_attack(controls: _Controls, shown: _Shown, models: Sequence[Model]) -> None:
    def run(picture: Picture, aim: str, text: str, radius: str, count: int) -> Iterator[tuple[Any, Any, Any]]:
        try:
            settings = _settings(aim, text, radius, count)
            yield from _progress(attack_models(models, picture, settings))
        except ValueError as error:
            yield sentence(error), gr.skip(), gr.skip()

    inputs: Any = [controls.chosen, controls.goal, controls.target, controls.eps, controls.steps]
    outputs: Any = [shown.note, shown.losses, shown.answers]
    in_turn: Any = {"concurrency_limit": 1, "show_progress": "minimal", "show_progress_on": shown.note}
    running = controls.attack.click(run, inputs, outputs, api_visibility="private", **in_turn)
    controls.stop.click(None, cancels=[running], **QUIET)
    controls.goal.change(lambda aim: gr.Textbox(visible=aim == SAY), controls.goal, controls.target, **QUIET)


def open_page(page: gr.Blocks, host: str, port: int) -> str:
    """Serves a page until `page.close()`, and comes back at once.

    Returns:
        Its address.
    """
    fonts = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]  # of the visitor: none is fetched
    theme = gr.themes.Default(font=fonts[0], font_mono=fonts[1])
    options: dict[str, Any] = {"prevent_thread_lock": True, "quiet": True, "ssr_mode": False, "footer_links": []}
    options |= {"share": False, "run_history": False, "enable_monitoring": False, "mcp_server": False, "pwa": False}
    options |= {"max_file_size": LARGEST_FILE, "theme": theme, "css": STYLE}
    return page.launch(server_name=host, server_port=port, **options)[1]


def _settings(aim: str, text: str, radius: str, count: int) -> Settings:
    """What was chosen; a visitor may send anything.

    Raises:
        ValueError: what cannot be done.
    """
    if aim == SAY and not text.strip():
        raise ValueError("there is no text to force: write one.")
    if radius not in RADII:
        raise ValueError(f"eps {radius!r}: choose one of {', '.join(RADII)}.")
    return Settings(ThreatModel("linf", radius), steps=int(count), target=text.strip() if aim == SAY else "")


def _progress(progress: Iterator[Found]) -> Iterator[tuple[str, str, str]]:
    """Note, curve and answers, a few times a second and at the end."""
    last, found = 0.0, None
    for found in progress:
        if time.monotonic() - last > SHOWN_EVERY:
            yield "", curve(found), answers(found)
            last = time.monotonic()
    assert found is not None
    yield "", curve(found), answers(found)
