"""The pages that a user reads, and how their blocks run in a test: what stands in for a download, what keeps it short.

A page is one session, read from top to bottom in a folder that `prepare` fills: its `python` blocks share one
namespace, its `bash` blocks one folder, so that a later block may use what an earlier one made. A `yaml` block begins
with the name of its file (`# suite.yaml`), is written there, and has its `samples` and `steps` cut to a few. What
cannot run is `text`.

To add a page: write it. Where it names a model or a data set of the Hub, add a row to `STAND_INS`; where a command
takes long, options to `SHORT`; where it runs for ever or is tested elsewhere, a row to `ELSEWHERE`.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.hub import online_hub
from helpers.in_process import run_command
from helpers.loopback_hub import TOKEN
from helpers.paths import ROOT
from helpers.tiny_encoders import write_dino, write_images, write_siglip
from PIL import Image

from fare_hf.cli.main import build_parser
from fare_hf.lab import encoder_folder, load_llava

__all__ = ["OWN_TEST", "PAGES", "Block", "Session", "blocks", "commands", "prepare", "stood_in"]

OWN_TEST = {"docs/launching.md": "project/test_launching.py"}
"""Pages whose blocks another test runs."""
PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples/README.md", *ROOT.glob("docs/**/*.md"))
    if path.exists() and path.relative_to(ROOT).as_posix() not in OWN_TEST
]

CLIP = str(encoder_folder("clip"))
CHAT = (
    "USER: {% for part in messages[0]['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %} ASSISTANT:"
)
"""As LLaVA-1.5's repository has it, for one turn."""
# Word of a command, or string of a Python block -> the same in the prepared folder (see `prepare`), or of the lab.
STAND_INS = {
    "openai/clip-vit-large-patch14-336": CLIP,
    "openai/clip-vit-large-patch14": CLIP,
    "openai/clip-vit-base-patch32": CLIP,
    "llava-hf/llava-1.5-7b-hf": "llava",
    "chs20/fare4-clip": "open_clip/fare4-clip",
    "chs20/fare2-clip": "open_clip/fare4-clip",
    "chs20/tecoa4-clip": "open_clip/fare4-clip",
    "LEAF-CLIP/CLIP-ViT-L-FARE2": str(encoder_folder("fare-2")),
    "google/siglip-base-patch16-224": "siglip",
    "facebook/dinov2-base": "dinov2",
    "imagenet-1k": "path/to/images",
    "ILSVRC/imagenet-1k": "path/to/images",
    "cifar10": "path/to/photos",
    "outputs/quickstart/encoder": str(encoder_folder("fare-4")),
}
TRAINING = (
    f"--model {CLIP} --use_cpu --max_steps 1 --warmup_steps 0 --attack_steps 1 --per_device_train_batch_size 1 "
    "--global_batch_size 1 --dataloader_drop_last false --dataloader_num_workers 0 --disable_tqdm true"
)
ASKED = "--samples 2 --steps 1 --max_new_tokens 12"
# First words of a command -> options put at its end, where the last one wins.
SHORT = {
    "fare-hf train --embedding features": TRAINING.replace(CLIP, "llava"),
    "accelerate launch --quiet -m fare_hf.train": TRAINING,
    "accelerate launch -m fare_hf.train": TRAINING,
    "accelerate launch -m fare_hf.cli evaluate --vlm": ASKED,
    "accelerate launch -m fare_hf.cli evaluate": f"--samples 4 --steps 2 --text_model {CLIP}",
    "fare-hf train --model google/siglip": TRAINING.replace(f"--model {CLIP} ", ""),
    "fare-hf train": TRAINING,
    "fare-hf evaluate --vlm": ASKED,
    "fare-hf evaluate --suite": "",
    "fare-hf evaluate google/siglip": "--samples 4 --steps 2",
    "fare-hf evaluate facebook/dinov2": "--samples 4 --steps 2",
    "fare-hf evaluate": f"--samples 4 --steps 2 --text_model {CLIP}",
    "fare-hf attack": "--samples 1 --steps 2",
}
# First words of a command -> the test that runs it; here its options are read by the command's own parser.
ELSEWHERE = {
    "fare-hf app": "app/test_serving.py",
    "fare-hf quickstart": "lab/test_quickstart.py",
    "fare-hf evaluate --suite lab": "suites/test_suite.py",
    "fare-hf evaluate --suite paper": "suites/test_suite.py",
}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the page it begins on."""

    language: str
    text: str
    line: int


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = (ROOT / page).read_text()
    found = re.finditer(r"^ *```([^\n]*)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [Block(one[1].strip(), one[2], text.count("\n", 0, one.start()) + 1) for one in found]


def commands(block: Block) -> list[str]:
    """The commands of a `bash` block: lines, joined where they end with a backslash, without comments."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def prepare(folder: Path) -> None:
    """What a reader has: images of their own, a LLaVA, the field's weights, the repository's examples, an encoder."""
    picture = Image.effect_noise((160, 160), 90).convert("RGB")
    for path in ("images/0.png", "photos/cat/0.png", "photos/dog/0.png"):
        (folder / "path/to" / path).parent.mkdir(parents=True, exist_ok=True)
        picture.save(folder / "path/to" / path)
    picture.save(folder / "picture.png")
    write_words(folder / "path/to/captions", {"caption": ["a dog on a beach", "a dog runs"]}, {"caption": ["a cat"]})
    asked = {"question": "what is it?", "answer": "a dog"}
    write_words(folder / "path/to/questions", asked, asked | {"answer": "a cat"})
    (folder / "strings.txt").write_text("a cat\n")
    write_images(folder / "path/to/divided", train=2, validation=1, test=1)
    write_siglip(folder / "siglip")
    write_dino(folder / "dinov2")
    model, processor = load_llava()
    processor.chat_template = CHAT
    model.save_pretrained(folder / "llava")
    processor.save_pretrained(folder / "llava")
    options = ["--to", "open_clip", "--base", CLIP, "--output_dir", str(folder / "open_clip" / "fare4-clip")]
    run_command(["fare-hf", "convert", str(encoder_folder("fare-4")), *options])
    shutil.copytree(ROOT / "examples" / "recipes", folder / "examples" / "recipes")
    shutil.copytree(encoder_folder("fare-4"), folder / "fare4" / "encoder")


def write_words(folder: Path, *rows: dict[str, object]) -> None:
    """Images with words about them."""
    folder.mkdir(parents=True)
    for number, _ in enumerate(rows):
        Image.effect_noise((160, 160), 90).convert("RGB").save(folder / f"{number}.png")
    lines = [json.dumps({"file_name": f"{number}.png", **row}) for number, row in enumerate(rows)]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


class Session:
    """One reader of one page, in the current folder."""

    def __init__(self, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.page, self.monkeypatch = page, monkeypatch
        self.names: dict[str, object] = {"__name__": "__main__"}
        if "--output_dir fare4\n" in (ROOT / page).read_text():  # the reader makes it
            shutil.rmtree("fare4", ignore_errors=True)

    def run(self, block: Block) -> None:
        """Runs a block; refuses a language that no test runs."""
        kinds = {
            "python": self.python,
            "bash": self.bash,
            "yaml": self.yaml,
            "json": lambda block: json.loads(block.text),
        }
        kinds["text"] = lambda block: None
        assert block.language in kinds, f"{self.page}:{block.line}: ```{block.language}; what cannot run is `text`"
        kinds[block.language](block)

    def python(self, block: Block) -> None:
        """In the namespace of the page; line numbers of errors are the page's."""
        text = block.text
        for name, other in STAND_INS.items():
            text = text.replace(f'"{name}"', f'"{other}"')
        exec(compile("\n" * block.line + text, self.page, "exec", dont_inherit=True), self.names)

    def yaml(self, block: Block) -> None:
        """Written to the file that the first line names, cut short."""
        name = re.match(r"# (\S+\.yaml)\n", block.text)
        assert name, f"{self.page}:{block.line}: the first line of a yaml block is the name of its file, as a comment"
        text = block.text
        for word, other in STAND_INS.items():
            text = re.sub(rf"(?<=[ \[]){re.escape(word)}(?=[,}}\]\s])", other, text)
        cut = re.sub(r"\b(samples|steps|max_steps): \d+", lambda found: f"{found[1]}: 2", text)
        Path(name[1]).write_text(cut)

    def bash(self, block: Block) -> None:
        """Command after command."""
        for command in commands(block):
            self.command(command)

    def command(self, command: str) -> None:
        """In this process, with the stand-ins; refuses a program that it does not know."""
        words = shlex.split(command)
        while re.match(r"[A-Z_]+=", words[0]):
            self.monkeypatch.setenv(*words.pop(0).split("=", 1))
        if words[0] in CHECKED:
            CHECKED[words[0]](words)
            return
        assert words[0] in ("fare-hf", "accelerate"), f"{self.page}: no test runs {command!r}; see helpers/pages.py"
        if "--resume_from_checkpoint" in words:  # a run that was stopped has checkpoints and no encoder yet
            shutil.rmtree(Path(words[words.index("--output_dir") + 1]) / "encoder")
        if any(" ".join(words).startswith(key) for key in ELSEWHERE):
            build_parser().parse_args(words[1:])
        elif words[1] == "push" or "--push_to_hub" in words:
            with online_hub(self.monkeypatch, Path.cwd() / "hub"):
                self.monkeypatch.setenv("HF_TOKEN", TOKEN)
                run_command(stood_in(words))
        else:
            run_command(stood_in(words))


def stood_in(words: list[str]) -> list[str]:
    """The words of a command with the stand-ins, cut short."""
    plain = " ".join(words)
    more = next((options for key, options in SHORT.items() if plain.startswith(key)), "")
    return [STAND_INS.get(word, re.sub("^USER/", "me/", word)) for word in words] + shlex.split(more)


def _make(words: list[str]) -> None:
    """A target would call this very test: it is in the Makefile."""
    assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()


def _pip(words: list[str]) -> None:
    """`pip install` of this project: the extras exist."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words[2:]:
        assert set(re.findall(r"[\w-]+", re.sub(r"^.*?\[|\].*$", "", word) if "[" in word else "")) <= set(extras), (
            word
        )


def _python(words: list[str]) -> None:
    """A script of the repository, which tests/project/test_examples.py or test_benchmarks.py runs; or a module."""
    path = words[1] if words[1] != "-m" else words[2].replace(".", "/") + ".py"
    assert path in ("venv.py", "pytest.py") or (ROOT / path).exists(), path


def _known(words: list[str]) -> None:
    """A program of the system, whose words no test can check."""


# First word -> the check, for programs that a page names and this process does not run.
CHECKED = {"cd": _known, "git": _known, "make": _make, "pip": _pip, "pre-commit": _known, "python": _python}
