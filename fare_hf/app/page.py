"""The page itself. Needs gradio: `pip install "fare_hf[app]"`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
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
KEPT_FOR = 3600  # seconds that an uploaded file is kept
WAITING = 20
"""Visitors in the queue; one attack runs at a time."""
SHOWN_EVERY = 0.2  # seconds
INTRO = """<div class="fare-intro"><h1>Can a change that you do not see change what a model sees?</h1>
<p>Two vision-language models that differ in their vision encoder alone: the <b>original</b>, and one made
<b>robust</b> with FARE. Pick a picture and press <b>Attack</b>: an attacker who knows everything of a model changes
each value of the picture by at most eps, so that the model captions it wrong or writes the attacker's words. Each
model is attacked for itself.</p></div>"""


def build_page(models: Sequence[Model]) -> gr.Blocks:
    """The page for two models; `open_page` serves it."""
    pictures, size = lab_pictures(), models[0].size
    with gr.Blocks(title="fare_hf", analytics_enabled=False, delete_cache=(KEPT_FOR, KEPT_FOR)) as page:
        gr.HTML(INTRO)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                chosen = gr.State(pictures[0])
                gallery = gr.Gallery(
                    [(picture.image, picture.shows) for picture in pictures],
                    label="1. The picture",
                    columns=4,
                    height="auto",
                    allow_preview=False,
                    selected_index=0,
                    format="png",
                    buttons=[],
                    elem_id="pictures",
                )
                upload = gr.UploadButton("or upload one", size="sm", elem_id="upload")
                goal = gr.Radio([WRONG, SAY], value=WRONG, label="2. The attack")
                target = gr.Textbox("a photo of a cat", label="Text", max_length=LONGEST_TARGET, visible=False)
                eps = gr.Radio(list(RADII), value="2/255", label="eps: largest change of a value")
                steps = gr.Slider(1, MOST_STEPS, value=50, step=1, label="steps", elem_id="steps")
                with gr.Row():
                    attack = gr.Button("Attack", variant="primary", elem_id="attack")
                    stop = gr.Button("Stop", variant="secondary")
            with gr.Column(scale=3, min_width=420):
                note = gr.HTML(chosen_picture(pictures[0]), elem_id="note")
                losses, cards = gr.HTML(elem_id="losses"), gr.HTML(elem_id="answers")

        def pick(event: gr.SelectData) -> tuple[Picture, str]:
            picture = pictures[event.index]
            return picture, chosen_picture(picture)

        def take(path: str) -> tuple[Any, str]:
            try:
                picture = read_upload(path, size)
            except ValueError as error:
                return gr.skip(), sentence(error)
            return picture, chosen_picture(picture)

        def run(picture: Picture, aim: str, text: str, radius: str, count: int) -> Iterator[tuple[Any, Any, Any]]:
            try:
                settings = _settings(aim, text, radius, count)
                yield from _shown(attack_models(models, picture, settings))
            except ValueError as error:
                yield sentence(error), gr.skip(), gr.skip()

        private: Any = {"api_visibility": "private"}
        gallery.select(pick, None, [chosen, note], show_progress="hidden", **private)
        upload.upload(take, upload, [chosen, note], show_progress="hidden", **private)
        goal.change(lambda aim: gr.Textbox(visible=aim == SAY), goal, target, show_progress="hidden", **private)
        running = attack.click(
            run,
            [chosen, goal, target, eps, steps],
            [note, losses, cards],
            show_progress="minimal",
            show_progress_on=note,
            concurrency_limit=1,
            **private,
        )
        stop.click(None, cancels=[running], **private)
    return page.queue(max_size=WAITING)


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


def _shown(progress: Iterator[Found]) -> Iterator[tuple[str, str, str]]:
    """Note, curve and answers, a few times a second and at the end."""
    last, found = 0.0, None
    for found in progress:
        if time.monotonic() - last > SHOWN_EVERY:
            yield "", curve(found), answers(found)
            last = time.monotonic()
    assert found is not None
    yield "", curve(found), answers(found)
