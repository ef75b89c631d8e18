"""A Hugging Face Space of the page: the lab, or the models that the Space's variables name."""

from __future__ import annotations

import os

from fare_hf.app.serving import serve
from fare_hf.cli.console import whole_prompt

serve(
    os.environ.get("VLM", "lab:llava"),
    os.environ.get("ENCODER", "lab:fare-4"),
    template=whole_prompt(os.environ.get("TEMPLATE", "")) or None,
    host=os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"),
    port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
)
