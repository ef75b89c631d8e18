"""The page of the manifest beside saved adversarial pictures."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import torch

from fare_hf.attacks import ThreatModel
from fare_hf.evaluation import export_adversarial
from fare_hf.evaluation.vlm.adversarial_images import FACTS, SUMS

__all__ = ["manifest_page"]

HEAD = """# manifest.json

<!-- Written by `python -m tools.docs`: change the code instead. -->

`export_adversarial`, and with it `fare-hf attack`, saves pictures as lossless PNG, each beside its clean version, and
a `manifest.json` that says what they are. `load_exported(folder)` reads the folder back: it refuses a file that was
changed, one outside of the folder, and pictures that leave the threat model.

Of all pictures: {facts}, and `images`, a list with one entry for each. Of one picture: `file` and `clean` are paths
inside the folder, {sums} their digests, and `original` is the file of yours that it was made
of, as its path in the data set's folder. Whatever else stands there is what the caller said of it;
`fare-hf attack` says the string that was to be forced, the prompt, and what the model writes for the clean
picture and for the one that is read back.

```json
{example}
```
"""


def manifest_page() -> str:
    """Its fields, and one that was really written."""
    pixels = torch.full((1, 3, 8, 8), 0.4)
    said = {"target": "a photo of a cat", "prompt": "USER: <image>\nProvide a short caption. ASSISTANT:"}
    said |= {"clean_answer": "a photo of a bear", "answer": "a photo of a cat"}
    attack = {"name": "apgd-target", "steps": 10_000, "restarts": 1, "seed": 0}
    with tempfile.TemporaryDirectory() as folder:
        path = export_adversarial(
            Path(folder) / "images",
            pixels,
            pixels,
            ThreatModel("linf", "2/255"),
            source="llava",
            attack=attack,
            entries=[said],
            names=["holiday/bear.jpg"],
        )
        text = re.sub(r'"[0-9a-f]{64}"', '"..."', path.read_text(encoding="utf-8"))
    return HEAD.format(
        facts=", ".join(f"`{name}`" for name in sorted(FACTS)),
        sums=" and ".join(f"`{name}`" for name in SUMS),
        example=json.dumps(json.loads(text), indent=1),
    )
