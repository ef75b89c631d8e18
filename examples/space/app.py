"""A Hugging Face Space of the page: the lab, or the models that the Space's variables name."""

from __future__ import annotations

import os

from fare_hf.app.serving import serve

serve(
    os.environ.get("VLM", "lab:llava"),
    os.environ.get("ENCODER", "lab:fare-4"),
    template=os.environ.get("TEMPLATE", "").replace("\\n", "\n") or None,  # a variable has no line break
    host=os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"),
    port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
)
