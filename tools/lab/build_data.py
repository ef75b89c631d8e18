"""Builds the lab's parquet files from pinned, permissibly licensed packages: `python -m tools.lab.build_data`.

Needs `npm` (the drawings and the emoji names), `apt-get` (Fashion-MNIST) and the extra `lab-build` (resvg_py,
scikit-learn). Every download is checked against its SHA-256 before it is opened. Nobody has to run this: its output
is in the package.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import re
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, Value
from PIL import Image as PilImage

from fare_hf.lab.concepts import DIGIT_CLASSES, FASHION_CLASSES
from fare_hf.lab.drawings import DATA
from tools.lab.concepts import CORE_CATEGORIES, LEFT_OUT_SUBCATEGORIES, LEFT_OUT_WORDS, MAIN_CONCEPTS, NAMES

DRAWING_SIZE = 128


@dataclass(frozen=True)
class Source:
    """A pinned npm package that holds one style's drawings as SVG (Iconify JSON)."""

    style: str
    package: str
    sha256: str
    license: str
    author: str
    split: str


SOURCES: tuple[Source, ...] = (
    Source(
        "noto",
        "@iconify-json/noto@1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "Apache-2.0",
        "Google Inc",
        "train",
    ),
    Source(
        "noto-v1",
        "@iconify-json/noto-v1@1.2.5",
        "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        "Apache-2.0",
        "Google Inc",
        "train",
    ),
    Source(
        "fluent-emoji",
        "@iconify-json/fluent-emoji@1.2.7",
        "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
        "MIT",
        "Microsoft Corporation",
        "train",
    ),
    Source(
        "fluent-emoji-flat",
        "@iconify-json/fluent-emoji-flat@1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "MIT",
        "Microsoft Corporation",
        "train",
    ),
    Source(
        "emojione",
        "@iconify-json/emojione@1.2.3",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        "CC-BY-4.0",
        "Emoji One",
        "train",
    ),
    Source(
        "emojione-v1",
        "@iconify-json/emojione-v1@1.2.3",
        "6641d59d48a42823fdc2b84e7427e9f302944eb98d2c7d94d6e67c139e7b37b3",
        "CC-BY-SA-4.0",
        "Emoji One",
        "train",
    ),
    Source(
        "fxemoji",
        "@iconify-json/fxemoji@1.2.2",
        "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
        "Apache-2.0",
        "Mozilla",
        "validation",
    ),
    Source(
        "twemoji",
        "@iconify-json/twemoji@1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "CC-BY-4.0",
        "Twitter",
        "test",
    ),
    Source(
        "openmoji",
        "@iconify-json/openmoji@1.2.29",
        "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
        "CC-BY-SA-4.0",
        "OpenMoji",
        "test",
    ),
)
EMOJI_NAMES = ("emoji-datasource-google@16.0.0", "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438")
FASHION_MNIST = (
    "dataset-fashion-mnist=0.0~git20200523.55506a9-1",
    "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
)


def fetch(command: list[str], pattern: str, sha256: str, folder: Path) -> Path:
    """Downloads one package into `folder` with its registry's own client and checks it.

    Raises:
        ValueError: if the file is not the one this module was written for.
    """
    if not (found := sorted(folder.glob(pattern))):
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        found = sorted(folder.glob(pattern))
    digest = hashlib.sha256(found[-1].read_bytes()).hexdigest()
    if digest != sha256:
        raise ValueError(f"{found[-1].name} has SHA-256 {digest}, expected {sha256}: delete it and build again.")
    return found[-1]


def fetch_npm(package: str, sha256: str, folder: Path) -> Path:
    """Fetches `name@version` with `npm pack`; returns the tarball."""
    stem = package.removeprefix("@").replace("/", "-").replace("@", "-")
    return fetch(["npm", "pack", "--silent", package], f"{stem}.tgz", sha256, folder)


def read_json(tarball: Path, name: str) -> Any:
    """The JSON file `package/<name>` in an npm tarball, or an empty dict where there is none."""
    with tarfile.open(tarball) as archive:
        try:
            member = archive.extractfile(f"package/{name}")
        except KeyError:
            return {}
        assert member is not None
        return json.load(member)


def code_key(code: str) -> str:
    """Code points in lower case without variation selectors, so that all sets name a character alike."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def squash(name: str) -> str:
    """Letters and digits only: what is left to compare where a set gives names but no code points."""
    return re.sub("[^a-z0-9]", "", name.lower())


@dataclass
class Style:
    """One opened icon set: SVG bodies by code point."""

    source: Source
    icons: dict[str, Any]
    chars: dict[str, str]

    def icon_of(self, names: dict[str, str]) -> dict[str, str]:
        """Code point -> icon name, by the set's own table, else by name."""
        if self.chars:
            pairs = [(code_key(code), name) for code, name in self.chars.items()]
        else:
            pairs = [(names.get(squash(name), ""), name) for name in self.icons["icons"]]
        aliases = self.icons.get("aliases", {})
        found: dict[str, str] = {}
        for code, name in pairs:
            name = aliases.get(name, {}).get("parent", name)
            if code and name in self.icons["icons"]:
                found.setdefault(code, name)
        return found

    def svg(self, name: str) -> str:
        """A stand-alone SVG of one icon."""
        icon = self.icons["icons"][name]
        width, height = (icon.get(side, self.icons.get(side, 16)) for side in ("width", "height"))
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
        names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        return f'<svg {names} viewBox="{box}">{icon["body"]}</svg>'


def open_styles(folder: Path) -> list[Style]:
    """Every icon set, fetched, checked and parsed."""
    styles = []
    for source in SOURCES:
        tarball = fetch_npm(source.package, source.sha256, folder)
        styles.append(Style(source, read_json(tarball, "icons.json"), read_json(tarball, "chars.json")))
    return styles


def name_table(emoji: dict[str, dict[str, Any]], styles: list[Style]) -> dict[str, str]:
    """Squashed name -> code point, from the sets that know both and from the Unicode names."""
    names: dict[str, str] = {}
    for style in styles:
        for code, name in style.chars.items():
            if code_key(code) in emoji:
                names.setdefault(squash(name), code_key(code))
    for code, entry in emoji.items():
        for name in [entry["name"] or "", *entry["short_names"]]:
            names.setdefault(squash(name), code)
    return names


def choose_concepts(emoji: dict[str, dict[str, Any]], drawn: dict[str, dict[str, str]]) -> dict[str, bool]:
    """Code point -> is it a main concept; extra concepts are core things that at least five training styles draw."""
    training = [source.style for source in SOURCES if source.split == "train"]
    chosen = {}
    for code, entry in emoji.items():
        main = entry["short_name"] in MAIN_CONCEPTS
        core = entry["category"] in CORE_CATEGORIES and entry["subcategory"] not in LEFT_OUT_SUBCATEGORIES
        clear = not any(word in entry["short_name"] for word in LEFT_OUT_WORDS)
        if main or (core and clear and sum(code in drawn[style] for style in training) >= 5):
            chosen[code] = main
    return chosen


def render(svg: str) -> bytes:
    """An SVG as a lossy WebP of 128 x 128 with its alpha channel."""
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=DRAWING_SIZE, height=DRAWING_SIZE))
    drawing = PilImage.open(io.BytesIO(png)).convert("RGBA")
    canvas = PilImage.new("RGBA", (DRAWING_SIZE, DRAWING_SIZE))
    canvas.paste(drawing, ((DRAWING_SIZE - drawing.width) // 2, (DRAWING_SIZE - drawing.height) // 2))
    buffer = io.BytesIO()
    canvas.save(buffer, "WEBP", quality=75, alpha_quality=80, method=6)
    return buffer.getvalue()


def write(rows: list[dict[str, Any]], path: Path) -> None:
    """Rows with an image column as one parquet file that `datasets` opens with images decoded."""
    features = Features({key: Image() if key == "image" else Value("string") for key in rows[0]})
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    columns["image"] = [{"bytes": data, "path": None} for data in columns["image"]]
    Dataset.from_dict(columns, features=features).to_parquet(path)
    print(f"{path.name}: {len(rows)} images, {path.stat().st_size / 1e6:.2f} MB")


def build_drawings(downloads: Path, out: Path) -> None:
    """One parquet file per style: `image, concept, category, main`; test styles hold the main concepts only."""
    tarball = fetch_npm(*EMOJI_NAMES, downloads)
    emoji = {code_key(entry["unified"]): entry for entry in read_json(tarball, "emoji.json")}
    styles = open_styles(downloads)
    names = name_table(emoji, styles)
    drawn = {style.source.style: style.icon_of(names) for style in styles}
    chosen = choose_concepts(emoji, drawn)
    words = {code: concept_words(emoji[code], drawn["noto"].get(code, "")) for code in chosen}
    for style in styles:
        rows = []
        for code, main in chosen.items():
            if code in drawn[style.source.style] and (main or style.source.split == "train"):
                image = render(style.svg(drawn[style.source.style][code]))
                category = emoji[code]["category"]
                rows.append({"image": image, "concept": words[code], "category": category, "main": str(int(main))})
        write(rows, out / f"{style.source.split}-{style.source.style}.parquet")


def concept_words(entry: dict[str, Any], icon: str) -> str:
    """What a caption calls the thing."""
    return NAMES.get(entry["short_name"], icon.replace("-", " ") or entry["short_name"].replace("_", " "))


def png(pixels: np.ndarray) -> bytes:
    """A grey image as PNG."""
    buffer = io.BytesIO()
    PilImage.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def grey_rows(images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows of a grey data set: `image, concept`."""
    return [{"image": png(image), "concept": classes[label]} for image, label in zip(images, labels, strict=True)]


def build_fashion(downloads: Path, out: Path, train: int = 3000, test: int = 600) -> None:
    """The first images of Fashion-MNIST's own train and test files (28 x 28, grey)."""
    package = fetch(
        ["apt-get", "download", FASHION_MNIST[0]], "dataset-fashion-mnist*.deb", FASHION_MNIST[1], downloads
    )
    unpacked = downloads / "fashion"
    subprocess.run(["dpkg", "-x", str(package), str(unpacked)], check=True)
    for split, prefix, count in (("train", "train", train), ("test", "t10k", test)):
        images = gzip.decompress(next(unpacked.rglob(f"{prefix}-images-idx3-ubyte.gz")).read_bytes())
        labels = gzip.decompress(next(unpacked.rglob(f"{prefix}-labels-idx1-ubyte.gz")).read_bytes())
        pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)[:count]
        rows = grey_rows(pixels, np.frombuffer(labels, np.uint8, offset=8)[:count], FASHION_CLASSES)
        write(rows, out / f"{split}-fashion.parquet")


def build_digits(out: Path, test: int = 600) -> None:
    """scikit-learn's 8 x 8 pen digits (UCI); the last 600 are the test set."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows = grey_rows(digits.images * (255 / 16), digits.target, DIGIT_CLASSES)
    write(rows[:-test], out / "train-digits.parquet")
    write(rows[-test:], out / "test-digits.parquet")


def main() -> None:
    """Builds every file; see `--help`."""
    parser = argparse.ArgumentParser(description="Builds the lab's parquet files from pinned packages.")
    parser.add_argument(
        "--downloads", type=Path, default=Path("outputs/lab-downloads"), help="where packages are kept"
    )
    parser.add_argument("--out", type=Path, default=DATA, help="where the parquet files go")
    args = parser.parse_args()
    args.downloads.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    build_drawings(args.downloads.resolve(), args.out)
    build_fashion(args.downloads.resolve(), args.out)
    build_digits(args.out)


if __name__ == "__main__":
    main()
