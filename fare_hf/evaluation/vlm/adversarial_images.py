"""Adversarial images as files: lossless PNG inside the ball, with a manifest that says what they are."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fare_hf.attacks import ThreatModel, check_pixels
from fare_hf.data.pixels import Pictures, one_by_one, quantize, to_pil, together
from fare_hf.files.documents import MIB, read_bytes, read_object
from fare_hf.files.folders import check_new_folder, path_inside, whole_folder

__all__ = [
    "Exported",
    "check_sent",
    "export_adversarial",
    "load_exported",
    "quantize_inside",
    "read_png",
]

MANIFEST = "manifest.json"
FACTS = {"source", "threat_model", "attack"}
SUMS = {"sha256": "file", "clean_sha256": "clean"}
LARGEST_PICTURE = 256 * MIB


def quantize_inside(points: Tensor, clean: Tensor, threat_model: ThreatModel) -> Tensor:
    """Round to 8-bit levels k/255 that lie inside ball and box: what a PNG can hold, and an attacker can send.

    Under linf each value goes to the nearest level inside the ball of the fp32 clean pixels; under l2 to the nearest
    level not beyond the point itself.

    Args:
        points: fp32 (B, 3, H, W) inside the threat model.
        clean: clean pixels, of the same shape; they need not lie on 8-bit levels themselves.
        threat_model: the ball.

    Raises:
        ValueError: some value has no level inside (eps below 8 bit for pixels between levels).
    """
    levels = points.detach().double().mul(255)
    middle = clean.detach().double().mul(255)
    if threat_model.norm == "linf":
        low, high = middle - 255 * threat_model.eps, middle + 255 * threat_model.eps
    else:
        low, high = torch.minimum(levels, middle), torch.maximum(levels, middle)
    tiny = 1e-4  # fp32 pixels at an 8-bit level are that far from it at most; the check below is exact to 1e-6
    rounded = levels.round().clamp((low - tiny).ceil(), (high + tiny).floor()).clamp(0, 255)
    result = rounded.div(255).float()
    excess = threat_model.violation(result, clean.float())
    if (excess > 1e-6).any() or ((low - tiny).ceil() > (high + tiny).floor()).any():
        raise ValueError(f"{threat_model} holds no 8-bit image around these pixels: quantize the clean ones first.")
    return result


def check_sent(points: Pictures, clean: Pictures, threat_model: ThreatModel) -> None:
    """`ThreatModel.check`, in whole 8-bit levels where both batches lie on them, as pictures read from files do.

    A level k/255 is no fp32 number: two of them that are four levels apart may differ by a little more than 4/255.

    Raises:
        ValueError: some sample lies outside the threat model.
    """
    pairs = list(zip(points, clean, strict=True))
    if not all(torch.equal(image, quantize(image)) for pair in pairs for image in pair):
        one_by_one(partial(_checked, threat_model), points, clean)
        return
    order = torch.inf if threat_model.norm == "linf" else 2
    changes = [(image.double() - plain.double()).mul(255).round().flatten() for image, plain in pairs]
    norms = [torch.linalg.vector_norm(change, ord=order) for change in changes]
    if samples := [number for number, norm in enumerate(norms) if norm > 255 * threat_model.eps * (1 + 1e-9)]:
        raise ValueError(f"pictures {samples} leave the threat model {threat_model}: name the one they were made in.")


def _checked(threat_model: ThreatModel, points: Tensor, clean: Tensor) -> Tensor:
    threat_model.check(points, clean)
    return points


def read_png(path: str | Path) -> Tensor:
    """Pixels (3, H, W) fp32 in [0, 1] of an RGB picture; of no other format, as some start another program."""
    with Image.open(path, formats=["PNG"]) as picture:
        array = np.asarray(picture.convert("RGB")).copy()
    return torch.from_numpy(array).permute(2, 0, 1).float().div(255)


@dataclass(frozen=True)
class Exported:
    """A folder of adversarial images.

    Attributes:
        pixels: (N, 3, H, W) as the files hold them; a list of N (3, H, W) where their sizes differ.
        clean: the same, 8-bit too.
        entries: what the manifest says of each: `file`, `clean`, `sha256` and what `export_adversarial` was given.
        facts: what the manifest says of all: threat model, attack, source.
    """

    pixels: Pictures
    clean: Pictures
    entries: list[dict[str, Any]]
    facts: dict[str, Any]


def export_adversarial(
    folder: str | Path,
    points: Pictures,
    clean: Pictures,
    threat_model: ThreatModel,
    *,
    source: str,
    attack: Mapping[str, Any],
    entries: Sequence[Mapping[str, Any]] | None = None,
    names: Sequence[str] | None = None,
) -> Path:
    """Write images, their clean versions and `manifest.json`, to try by hand on a model one cannot run.

    Args:
        folder: empty or absent.
        points: adversarial pixels (N, 3, H, W), or a list of N (3, H, W).
        clean: their clean pixels.
        threat_model: checked on what the files hold, against `clean`.
        source: name of the model they were made on.
        attack: as a report's row carries it.
        entries: for each image what else to say: its prompt, its label, its target string.
        names: what each image is called, such as by its own file; its letters and digits stand in the picture's name.

    Returns:
        Path of the manifest.

    Raises:
        ValueError: a folder that is not empty, another number of entries or names, or as `quantize_inside`.
    """
    folder = Path(folder)
    check_new_folder(folder)
    words = [{}] * len(points) if entries is None else list(entries)
    for what, given in (("entries", words), ("names", points if names is None else names)):
        if len(given) != len(points):
            raise ValueError(f"{len(given)} {what} for {len(points)} images: give one for each.")
    for image in points:
        check_pixels(image[None])
    held = one_by_one(partial(quantize_inside, threat_model=threat_model), points, clean)
    check_sent(held, one_by_one(lambda batch: quantize(batch.float()), clean), threat_model)
    facts = {"source": source, "threat_model": threat_model.to_dict(), "attack": dict(attack)}
    with whole_folder(folder) as part:
        listed = [{**file, **word} for file, word in zip(_write(part, held, clean, names), words, strict=True)]
        text = json.dumps({**facts, "images": listed}, indent=2, ensure_ascii=False)
        (part / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return folder / MANIFEST


def _write(folder: Path, held: Pictures, clean: Pictures, called: Sequence[str] | None) -> list[dict[str, str]]:
    """The pictures, and what the manifest says of their files."""
    (folder / "clean").mkdir()
    listed = []
    for number, (image, original) in enumerate(zip(held, clean, strict=True)):
        (picture,), (plain,) = to_pil(image[None]), to_pil(original[None])
        name = f"{number:05d}.png" if called is None else f"{number:05d}-{_plain(called[number])}.png"
        names = {"file": name, "clean": f"clean/{name}"}
        picture.save(folder / names["file"])
        plain.save(folder / names["clean"])
        digests = {key: hashlib.sha256((folder / names[of]).read_bytes()).hexdigest() for key, of in SUMS.items()}
        listed.append(names | digests)
    return listed


def _plain(name: str) -> str:
    """A file's path without its ending, in letters and digits that every system takes."""
    path = Path(name).parent / Path(name).stem
    return re.sub(r"[^A-Za-z0-9]+", "-", str(path))[-60:].strip("-") or "image"


def load_exported(folder: str | Path) -> Exported:
    """Read such a folder back.

    Raises:
        ValueError: no manifest, one that is damaged or names files outside of the folder, a file that is not the one
            that was written, or pictures that leave the manifest's threat model.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{str(folder)!r} has no {MANIFEST}: pass a folder of export_adversarial.")
    facts = read_object(path)
    entries = facts.pop("images", None)
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"'{path}' lists no images: export the folder again.")
    if set(facts) != FACTS or not isinstance(facts["threat_model"], dict) or not isinstance(facts["attack"], dict):
        raise ValueError(f"'{path}' has {sorted(facts)}: it needs {sorted(FACTS)}; export the folder again.")
    pictures = [(_picture(folder, entry, "file"), _picture(folder, entry, "clean")) for entry in entries]
    if any(image.shape != original.shape for image, original in pictures):
        raise ValueError(f"'{path}' lists an image of another size than its clean one: export the folder again.")
    pixels, clean = (together(part) for part in zip(*pictures, strict=True))
    try:
        check_sent(pixels, clean, ThreatModel.from_dict(facts["threat_model"]))
    except (TypeError, ValueError) as error:
        raise ValueError(f"'{path}': {error}") from None
    return Exported(pixels, clean, entries, facts)


def _picture(folder: Path, entry: Mapping[str, Any], kind: str) -> Tensor:
    """One picture of an entry, which lies in the folder and is the one that was written."""
    name = entry.get(kind)
    path = path_inside(folder, name, f"'{folder / MANIFEST}'")
    if not path.is_file():
        raise ValueError(f"'{folder / MANIFEST}' lists {name!r}, which is not there: export the folder again.")
    digest = hashlib.sha256(read_bytes(path, LARGEST_PICTURE)).hexdigest()
    if digest != (entry.get("sha256") if kind == "file" else entry.get("clean_sha256", digest)):  # older: of one alone
        raise ValueError(f"{name} is not the image that was exported: export the folder again.")
    try:
        return read_png(path)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # as Pillow names its troubles
        raise ValueError(f"'{path}' cannot be read as a picture ({error}): export the folder again.") from error
