"""What becomes of attacks by foreign files, all tried: the checks behind the table of `fare_hf/hub/ATTACKS.md`.

`PYTHONPATH=tests python tests/helpers/trust_table.py` tries all of them and writes the page;
`test_trust_boundaries.py` compares the page with what it finds. Each attack plants something in a folder of its own,
with a secret and a trap beside it, and runs the function or the command line that a user would run on it.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from datasets.exceptions import DatasetNotFoundError
from helpers.hub import save
from helpers.merge_parents import write_encoder, write_vlm
from helpers.own_code import Terminal, Trap
from helpers.paths import ROOT
from helpers.tiny_clip import tiny_clip_config, tiny_processor, tiny_tokenizer
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from fare_hf import ThreatModel, apgd
from fare_hf.cli import main as cli
from fare_hf.cli import train
from fare_hf.encoders import load_encoder
from fare_hf.hub import merge_vision_tower
from fare_hf.hub.push.folder import read_folder

DOCUMENT = ROOT / "fare_hf" / "hub" / "ATTACKS.md"
SECRET = "the-secret-that-lies-outside"
LONGEST_S = 60.0
"""Seconds; what ends in one sentence ends at once, also on a slow machine."""
INTRO = """# Attacks by foreign files, and what became of them

Each row was tried: a repository, data set, index, card, suite or saved state of a stranger that attacks whoever opens
it, and the function or command line of `fare_hf` that opens it. In all of them the outcome was one sentence; nothing
outside of the folder was read (a secret beside it is in no output and no file), written (every other file is as
before, to the byte) or run (a trap that leaves a mark left none). `PYTHONPATH=tests python
tests/helpers/trust_table.py` writes this page, and a test compares it. [SECURITY.md](../../SECURITY.md) says what is
promised.

| attack | outcome |
|---|---|
"""


class Place:
    """A folder to plant things in, with a secret beside it."""

    def __init__(self, root: Path) -> None:
        self.root, self.outside, self.inside = root, root / "outside", root / "inside"
        self.outside.mkdir(parents=True)
        self.inside.mkdir()
        (self.outside / "key.txt").write_text(SECRET)
        self.out = root / "out"

    def clip(self) -> Path:
        """A whole CLIP."""
        folder = self.inside / "clip"
        torch.manual_seed(0)
        CLIPModel(tiny_clip_config()).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        tiny_processor().save_pretrained(folder)
        return folder

    def saved(self) -> Path:
        """An encoder with its card."""
        return save(self.inside / "fare4")

    def parents(self) -> tuple[Path, Path]:
        """A sharded LLaVA and an encoder."""
        return write_vlm(self.inside / "llava"), write_encoder(self.inside / "encoder")


def change_json(path: Path, **changes: Any) -> None:
    """Other values in a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def index_names(name: str) -> Callable[[Place], None]:
    """A merge whose index names another file for one tensor of the tower."""

    def attack(place: Place) -> None:
        llava, encoder = place.parents()
        index = llava / "model.safetensors.index.json"
        content = json.loads(index.read_text())
        tensor = next(key for key in content["weight_map"] if "vision_tower" in key)
        content["weight_map"][tensor] = name
        index.write_text(json.dumps(content))
        merge_vision_tower(llava, encoder, place.out)

    return attack


def merge_of_a_link(place: Place) -> None:
    """A file of the model is a link to something else."""
    llava, encoder = place.parents()
    (llava / "tokenizer.model").symlink_to(place.outside / "key.txt")
    merge_vision_tower(llava, encoder, place.out)


def push(change: Callable[[Place, Path], None]) -> Callable[[Place], None]:
    """What is looked at before anything is sent, of a folder that was changed."""

    def attack(place: Place) -> None:
        folder = place.saved()
        change(place, folder)
        read_folder(folder, "me/fare4")

    return attack


def key_in_a_picture(place: Place, folder: Path) -> None:
    """In its text chunk."""
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", "ghp_" + "a1B2" * 9)
    Image.new("RGB", (4, 4)).save(folder / "results.png", pnginfo=texts)


def weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Place], None]:
    """An encoder whose weights were changed."""

    def attack(place: Place) -> None:
        folder = place.clip()
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        load_encoder(str(folder))

    return attack


def set_nan(state: dict[str, torch.Tensor]) -> None:
    """One value."""
    state["vision_model.post_layernorm.bias"][3] = torch.nan


def configuration(**changes: Any) -> Callable[[Place], None]:
    """An encoder whose configuration was changed, opened for a training."""

    def attack(place: Place) -> None:
        folder = place.clip()
        values = json.loads((folder / "config.json").read_text())
        change_json(folder / "config.json", vision_config=values["vision_config"] | changes)
        images = place.inside / "images"
        images.mkdir()
        Image.new("RGB", (40, 40)).save(images / "1.png")
        train.main(f"--model {folder} --dataset {images} --output_dir {place.out} --max_steps 1 --use_cpu".split())

    return attack


def nested(place: Place) -> None:
    """JSON without end."""
    folder = place.clip()
    (folder / "config.json").write_text("[" * 200_000)
    load_encoder(str(folder))


def pipe(place: Place) -> None:
    """That nobody writes to."""
    folder = place.clip()
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    load_encoder(str(folder))


def configuration_is_a_link(place: Place) -> None:
    """To something outside."""
    folder = place.clip()
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(place.outside / "key.txt")
    load_encoder(str(folder))


def swap_of(change: Callable[[Place, Path], None]) -> Callable[[Place], None]:
    """Through the command line, of a model that was changed."""

    def attack(place: Place) -> None:
        llava, encoder = place.parents()
        change(place, llava)
        cli.main(["swap", str(llava), str(encoder), "--output_dir", str(place.out)])

    return attack


def template_is_a_link(place: Place, llava: Path) -> None:
    """A chat template is any text, and would be saved with the result."""
    (llava / "chat_template.jinja").unlink(missing_ok=True)
    (llava / "chat_template.jinja").symlink_to(place.outside / "key.txt")


def another_model(place: Place, llava: Path) -> None:
    """Which a processor says is to be opened with it."""
    named = {"audio_tokenizer_class": "DacModel", "audio_tokenizer_name_or_path": str(place.outside)}
    path = llava / "processor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"audio_tokenizer": named}))


def own_code(place: Place) -> None:
    """A model of a type that its own code makes known; somebody at the terminal says yes."""
    trap = Trap(place.inside)
    folder, stdin = trap.stranger(), sys.stdin
    sys.stdin = Terminal("y\n" * 20)
    try:
        cli.main(["convert", str(folder), "--output_dir", str(place.out), "--to", "open_clip"])
    finally:
        sys.stdin = stdin
        assert not trap.marker.exists()


def picture(place: Place) -> None:
    """A PNG of few bytes that the resize of its shorter side makes huge."""
    folder = place.inside / "images"
    folder.mkdir()
    Image.new("L", (1, 60_000)).save(folder / "1.png")
    clip = place.clip()
    train.main(f"--model {clip} --dataset {folder} --output_dir {place.out} --max_steps 1 --use_cpu".split())


def dataset_of_a_pipe(place: Place) -> None:
    """The only image is a pipe; another one is a link to an endless device."""
    folder = place.inside / "images"
    folder.mkdir()
    os.mkfifo(folder / "1.png")
    (folder / "2.png").symlink_to("/dev/zero")
    clip = place.clip()
    train.main(f"--model {clip} --dataset {folder} --output_dir {place.out} --max_steps 1 --use_cpu".split())


def state_of_other_images(place: Place) -> None:
    """And an attack that goes on from it."""
    first, second = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
    ball, states = ThreatModel("linf", "4/255"), []

    def loss(pixels: torch.Tensor) -> torch.Tensor:
        return pixels.square().sum((1, 2, 3))

    apgd(loss, first, ball, steps=6, save=states.append, save_every=4)
    apgd(loss, second, ball, steps=6, resume=states[0])


def suite(job: str) -> Callable[[Place], None]:
    """A suite with one job, through the command line."""

    def attack(place: Place) -> None:
        path = place.inside / "suite.yaml"
        path.write_text(f"name: s\nmodels: {{CLIP: lab:clip}}\njobs: [{job}]\n")
        cli.main(["evaluate", "--suite", str(path), "--output_dir", str(place.out)])

    return attack


def laughs(place: Place) -> None:
    """A YAML file of 300 bytes that stands for a billion words."""
    lines = ["a0: &a0 [lol, lol]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10))]
    path = place.inside / "suite.yaml"
    path.write_text("\n".join(lines))
    cli.main(["evaluate", "--suite", str(path), "--output_dir", str(place.out)])


def evaluate(*options: str) -> Callable[[Place], None]:
    """The lab's own CLIP, with an option."""
    return lambda place: cli.main(["evaluate", "lab:clip", "--output_dir", str(place.out), *options])


JOB = "kind: zero-shot, set: lab:digits"
ATTACKS: dict[str, Callable[[Place], None]] = {
    "merge: index names `../outside/model.safetensors`": index_names("../outside/model.safetensors"),
    "merge: index names `/etc/model.safetensors`": index_names("/etc/model.safetensors"),
    "merge: index names `a\\..\\model.safetensors`": index_names("a\\..\\model.safetensors"),
    "merge: a file is a link to a secret": merge_of_a_link,
    "push: `LICENSE` is a link to a secret": push(
        lambda place, folder: (folder / "LICENSE").symlink_to(place.outside / "key.txt")
    ),
    "push: `key.png` is a link to a secret": push(
        lambda place, folder: (folder / "key.png").symlink_to(place.outside / "key.txt")
    ),
    "push: `key.png` is no picture": push(lambda place, folder: (folder / "key.png").write_text("no picture")),
    "push: a file of another name": push(lambda place, folder: (folder / "optimizer.pt").write_bytes(b"x")),
    "push: a key in a PNG's text chunk": push(key_in_a_picture),
    "push: a path of this machine in `fare_hf.json`": push(
        lambda place, folder: change_json(folder / "fare_hf.json", training={"dataset": "/home/me/images"})
    ),
    "load: one weight is NaN": weights(set_nan),
    "load: all weights are 0": weights(lambda state: [value.zero_() for value in state.values()] and None),
    "train: `num_hidden_layers` -1": configuration(num_hidden_layers=-1),
    "train: `num_hidden_layers` 10,000,000": configuration(num_hidden_layers=10_000_000),
    "train: `hidden_size` 0": configuration(hidden_size=0),
    "train: `num_attention_heads` a list": configuration(num_attention_heads=[4]),
    "train: unknown activation": configuration(hidden_act="os.system"),
    "load: `config.json` nested 200,000 deep": nested,
    "load: `config.json` is a pipe": pipe,
    "load: `config.json` is a link to a secret": configuration_is_a_link,
    "train: the configuration names the file of its weights": configuration(transformers_weights="../x.safetensors"),
    "swap: the chat template is a link to a secret": swap_of(template_is_a_link),
    "swap: the processor names another model to open": swap_of(another_model),
    "convert: code of its own, `y` at the terminal": own_code,
    "push: `image_std` 0": push(
        lambda place, folder: change_json(folder / "preprocessor_config.json", image_std=[0.0, 0.0, 0.0])
    ),
    "data: a picture of 1 x 60,000 pixels for an encoder of 32 px": picture,
    "data: a pipe, and a link to `/dev/zero`, as images": dataset_of_a_pipe,
    "attack: a saved state of other images": state_of_other_images,
    "suite: YAML that unfolds to a billion words": laughs,
    "suite: unknown kind": suite("{kind: zeroshot, set: lab:digits}"),
    "suite: `samples: -1`": suite(f"{{{JOB}, samples: -1}}"),
    "suite: `steps: -3`": suite(f"{{{JOB}, eps: [4/255], steps: -3}}"),
    "suite: `norm: l3`": suite(f"{{{JOB}, eps: [4/255], norm: l3}}"),
    "suite: a setting that does not exist": suite(f"{{{JOB}, sample: 3}}"),
    "values: `--eps 4_0/255`": evaluate("--eps", "4_0/255"),
    "values: `--eps -4/-255`": evaluate("--eps", "-4/-255"),
    "values: `--samples -1`": evaluate("--samples", "-1"),
}


def contents(*folders: Path) -> dict[str, bytes | str]:
    """Every file below some folders; of links, where they lead."""
    found: dict[str, bytes | str] = {}
    for path in (path for folder in folders for path in folder.rglob("*")):
        if path.is_symlink():
            found[str(path)] = os.readlink(path)
        elif path.is_file():
            found[str(path)] = path.read_bytes()
    return found


@contextmanager
def watched(place: Place) -> Iterator[io.StringIO]:
    """Nothing outside has changed, and the secret is in nothing that was said or written."""
    before, said, began = contents(place.outside), io.StringIO(), time.monotonic()
    with redirect_stdout(said), redirect_stderr(said):
        yield said
    assert time.monotonic() - began < LONGEST_S, "it took too long"
    assert contents(place.outside) == before, "something outside was written"
    assert SECRET not in said.getvalue()
    assert not any(
        SECRET.encode() in value
        for value in contents(place.inside, place.out).values()
        if value != b"" and isinstance(value, bytes)
    )
    assert "Traceback" not in said.getvalue()


def tried(name: str, root: Path) -> str:
    """The cell: the sentence that ended it, without the names of temporary folders."""
    place = Place(root)
    with watched(place) as said:
        try:
            ATTACKS[name](place)
        except SystemExit as end:
            assert end.code not in (0, None), "it ended as if nothing was wrong"
            sentence = end.code if isinstance(end.code, str) else said.getvalue().strip().splitlines()[-1]
        except (ValueError, TypeError, OSError, DatasetNotFoundError) as error:
            sentence = str(error)
        else:
            raise AssertionError(f"{name}: nothing was refused")
    assert "\n" not in sentence and SECRET not in sentence, sentence
    assert not place.out.exists() or not any(path.is_file() for path in place.out.rglob("*")), "something was written"
    return re.sub(r"/outside/", "OUTSIDE/", sentence.replace(str(root.resolve()), "").replace(str(root), "")).replace(
        "|", "\\|"
    )


def page_of(root: Path) -> str:
    """The page."""
    rows = []
    for number, name in enumerate(ATTACKS):
        rows.append(f"| {name} | {tried(name, root / str(number))} |")
        print(rows[-1], flush=True)
    return INTRO + "\n".join(rows) + "\n"


def cells_of(page: str) -> dict[str, str]:
    """Attack -> outcome."""
    rows = [
        line.removeprefix("| ").removesuffix(" |").split(" | ", 1) for line in page.splitlines() if line[:2] == "| "
    ]
    return {row[0]: row[1] for row in rows if row[0] != "attack"}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        found = page_of(Path(temporary))
    DOCUMENT.write_text(found, encoding="utf-8")
