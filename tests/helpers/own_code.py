"""A repository with code of its own, and a terminal that would answer yes."""

from __future__ import annotations

import io
import json
from pathlib import Path

CLASSES = {
    "AutoConfig": "EvilConfig",
    "AutoModel": "EvilModel",
    "AutoModelForImageTextToText": "EvilModel",
    "AutoProcessor": "EvilProcessor",
    "AutoImageProcessor": "EvilProcessor",
}

CODE = """
from pathlib import Path
Path({marker!r}).write_text("ran")
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import CLIPImageProcessor as EvilProcessor
class EvilConfig(PreTrainedConfig):
    model_type = "evil"
class EvilModel(PreTrainedModel):
    config_class = EvilConfig
"""


class Terminal(io.StringIO):
    """Somebody who answers yes to everything."""

    def isatty(self) -> bool:
        return True


class Trap:
    """Folders whose code leaves a mark, and what a terminal was asked."""

    def __init__(self, place: Path) -> None:
        self.place, self.marker = place, place / "ran"

    def lay(self, folder: Path, name: str, **changes: object) -> Path:
        """Puts the code into a folder, and names it in one of its JSON files."""
        (folder / "evil.py").write_text(CODE.format(marker=str(self.marker)))
        path = folder / name
        content = json.loads(path.read_text()) if path.exists() else {}
        content |= {"auto_map": {kind: f"evil.{own}" for kind, own in CLASSES.items()}, **changes}
        path.write_text(json.dumps(content))
        return folder

    def stranger(self) -> Path:
        """A model of a type that only its own code knows."""
        folder = self.place / "stranger"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"")
        self.lay(folder, "preprocessor_config.json", image_processor_type="EvilProcessor")
        self.lay(folder, "tokenizer_config.json", tokenizer_class="EvilTokenizer")
        return self.lay(folder, "config.json", model_type="evil", architectures=["EvilModel"])
