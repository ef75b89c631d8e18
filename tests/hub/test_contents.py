"""What a folder holds before it is published: links, types, secrets, paths of this machine; one sentence for each."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.hub import encoder, report, save
from helpers.paths import ROOT
from PIL import Image, PngImagePlugin
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fare_hf.cli import main as cli
from fare_hf.evaluation import RobustnessReport
from fare_hf.files.credentials import PATTERNS, find_secret, mask_secrets
from fare_hf.hub.card.regenerate import rewrite_card
from fare_hf.hub.contents import check_contents
from fare_hf.hub.local_paths import find_local_path, without_local_paths
from fare_hf.hub.push.folder import read_folder

KEY = "-----BEGIN OPENSSH " + "PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n"
SECRETS = {
    "hub": "hf_" + "aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dE3f",
    "key": KEY,
    "aws": "AKIA" + "IOSFODNN7EXAMPLE",
    "github": "ghp_" + "a1B2" * 9,
    "github, fine": "github_pat_" + "11ABCDEFG0" * 3,
    "gitlab": "glpat-" + "a1B2c3D4e5F6g7H8i9J0",
    "openai": "sk-" + "proj-a1B2c3D4e5F6g7H8i9J0",
    "anthropic": "sk-" + "ant-api03-a1B2c3D4e5F6g7H8i9J0",
    "slack": "xoxb-" + "123456789012-abcdef",
    "google": "AIza" + "SyA1234567890abcdefghijklmnopqrstuv",
    "pypi": "pypi-AgE" + "IcHlwaS5vcmc" * 4,
    "jwt": ".".join(["eyJhbGciOiJIUzI1NiJ9", "eyJzdWIiOiIxMjM0NTY3", "SflKxwRJSMeKKF2QT4"]),
    "url": "https://me:" + "hunter22@example.org/data",
    "netrc": "machine api.wandb.ai login user password " + "0123456789abcdef" * 2,
    "wandb": "WANDB_API_KEY=" + "0123456789abcdef0123" * 2,
    "named": '{"api_key": "' + "a1b2c3d4e5f6" + '"}',
    "named, escaped": '{"command": "--json {\\"password\\": \\"' + "hunter22hunter" + '\\"}"}',
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean folder with a report and its picture."""
    return save(tmp_path_factory.mktemp("saved") / "fare4", report=report(0.5))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to harm."""
    copy = tmp_path / "fare4"
    copy.mkdir()
    for path in saved.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def refusal(folder: Path, token: str | None = None) -> str:
    """The sentence."""
    with pytest.raises(ValueError) as caught:
        read_folder(folder, "me/fare4", token)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_clean_folder_passes(folder: Path) -> None:
    (folder / "LICENSE").write_text("Licence \N{COPYRIGHT SIGN}\n", encoding="utf-8")
    names = {file.path for file in read_folder(folder, "me/fare4")}
    assert {"README.md", "report.json", "results.png", "LICENSE", "model.safetensors"} <= names


@pytest.mark.parametrize("name", ["LICENSE", "key.png", "README.md", "model.safetensors", "config.json"])
def test_links_that_leave_the_folder(name: str, folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "id_ed25519"
    outside.write_bytes((folder / name).read_bytes() if (folder / name).exists() else KEY.encode())
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside)
    message = refusal(folder)
    assert name in message and "a link to" in message


def test_links_inside_and_hard_links(folder: Path, tmp_path: Path) -> None:
    (folder / "figure.png").symlink_to("results.png")
    assert "figure.png" in {file.path for file in read_folder(folder, "me/fare4")}
    outside = tmp_path / "id_ed25519"
    outside.write_text(KEY)
    os.link(outside, folder / "LICENSE")  # nothing tells it from a file: what it holds does
    assert "'LICENSE' holds what looks like a private key" in refusal(folder)


def test_what_is_no_file(folder: Path) -> None:
    os.mkfifo(folder / "LICENSE")
    assert "'LICENSE', which is no file" in refusal(folder)
    (folder / "LICENSE").unlink()
    (folder / "LICENSE").symlink_to(folder / "gone")
    assert "'LICENSE', which is no file" in refusal(folder)


def png(*texts: tuple[str, str], packed: bool = False, **options: Any) -> bytes:
    """A small picture with texts."""
    info, file = PngImagePlugin.PngInfo(), io.BytesIO()
    for name, text in texts:
        info.add_text(name, text, zip=packed)
    Image.new("RGB", (4, 4)).save(file, "png", pnginfo=info, **options)
    return file.getvalue()


def bomb() -> bytes:
    """A few kilobytes that unfold to 8 MiB of text."""
    info, file = PngImagePlugin.PngInfo(), io.BytesIO()
    info.add(b"zTXt", b"k\0\0" + zlib.compress(b"a" * (8 << 20)))
    Image.new("RGB", (4, 4)).save(file, "png", pnginfo=info)
    return file.getvalue()


def with_chunk(kind: bytes, more: bytes) -> bytes:
    """A small picture with more bytes at the end of one of its chunks."""
    data = png()
    at = data.index(kind)
    length = struct.unpack(">I", data[at - 4 : at])[0]
    content = data[at : at + 4 + length] + more
    changed = struct.pack(">I", length + len(more)) + content + struct.pack(">I", zlib.crc32(content))
    return data[: at - 4] + changed + data[at + 8 + length :]


def palette(text: str) -> bytes:
    """A small picture whose colours are a text."""
    image, file = Image.new("P", (4, 4)), io.BytesIO()
    image.putpalette(text.encode().ljust(48))
    image.save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        with_chunk(b"IDAT", SECRETS["github"].encode()),
        with_chunk(b"IEND", SECRETS["github"].encode()),
        palette(SECRETS["github"]),
    ],
    ids=["after the pixels", "in the end", "as colours"],
)
def test_a_key_in_the_picture_itself(content: bytes, folder: Path) -> None:
    (folder / "key.png").write_bytes(content)
    message = refusal(folder)
    assert "'key.png' holds what looks like a token of GitHub" in message or "bytes follow its pixels" in message


WRONG_TYPES: dict[str, tuple[str, bytes]] = {
    "a text": ("key.png", b"ssh-rsa AAAA"),
    "a JPEG": ("key.png", b"\xff\xd8\xff\xe0"),
    "cut off": ("key.png", png()[:-20]),
    "something after it": ("key.png", png() + b"more"),
    "unfolding": ("key.png", bomb()),
    "large": ("key.png", b"\x89PNG\r\n\x1a\n" + b"\0" * (17 << 20)),
    "a licence in binary": ("LICENSE", b"\x30\x82\x04\xa4\xff\xfe"),
    "zeros": ("LICENSE", b"a\0b"),
    "a card in binary": ("README.md", b"# \xff"),
    "a list": ("vocab.json", b"[1]"),
    "no JSON": ("tokenizer.json", b"-"),
    "deep": ("tokenizer_config.json", b'{"a":' * 500 + b"1" + b"}" * 500),
    "no report": ("report.json", b"{}"),
}


@pytest.mark.parametrize(("name", "content"), WRONG_TYPES.values(), ids=WRONG_TYPES)
def test_types(name: str, content: bytes, folder: Path) -> None:
    (folder / name).write_bytes(content)
    assert name in refusal(folder)


def in_text(name: str) -> Callable[[Path, str], None]:
    return lambda folder, secret: (folder / name).write_text(f"text {secret} text")


def in_json(folder: Path, secret: str) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"note": [secret]}))


def in_weights(folder: Path, secret: str) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt", "note": secret})


def in_picture(packed: bool) -> Callable[[Path, str], None]:
    return lambda folder, secret: (folder / "key.png").write_bytes(png(("Comment", secret), packed=packed)) and None


def in_international_text(folder: Path, secret: str) -> None:
    info, file = PngImagePlugin.PngInfo(), io.BytesIO()
    info.add_itxt("XML:com.adobe.xmp", f"<x>{secret}</x>", zip=True)
    Image.new("RGB", (4, 4)).save(file, "png", pnginfo=info)
    (folder / "key.png").write_bytes(file.getvalue())


def in_exif(folder: Path, secret: str) -> None:
    exif = Image.Exif()
    exif[0x010E] = secret
    (folder / "key.png").write_bytes(png(exif=exif))


PLACES = {
    "licence": in_text("LICENSE"),
    "report.md": in_text("report.md"),
    "merges": in_text("merges.txt"),
    "JSON": in_json,
    "weights": in_weights,
    "tEXt": in_picture(False),
    "zTXt": in_picture(True),
    "iTXt": in_international_text,
    "EXIF": in_exif,
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_secrets_are_found_everywhere(place: Callable[[Path, str], None], folder: Path) -> None:
    place(folder, SECRETS["github"])
    message = refusal(folder)
    assert "holds what looks like a token of GitHub" in message and SECRETS["github"] not in message


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_kinds_of_secrets(secret: str) -> None:
    assert find_secret(f"text\n{secret}\ntext") is not None
    assert find_secret(mask_secrets(secret)) is None


def test_every_kind_has_its_example() -> None:
    kinds = {find_secret(secret) for secret in SECRETS.values()}
    assert set(PATTERNS) - kinds == {"a key of Stripe"}  # whose examples are taken for real ones by scanners


def test_the_own_token_of_another_form(folder: Path) -> None:
    in_json(folder, "correct-horse")
    assert "looks like your access token" in refusal(folder, token="correct-horse")


def test_few_false_alarms(saved: Path, clip_folder: Path) -> None:
    """Random weights in base64, hashes, words of tokenizers, cards of models: two megabytes."""
    draw = random.Random(0)
    texts = [base64.b64encode(draw.randbytes(500_000)).decode(), draw.randbytes(500_000).hex()]
    texts += [draw.randbytes(300_000).decode("latin-1")]
    texts += [path.read_text() for place in (saved, clip_folder) for path in place.glob("*.json")]
    texts += [path.read_text() for path in ROOT.rglob("model_cards/**/*.md")]
    texts += [
        '{"pad_token": "<pad>1", "mask_token": "<mask1234>"}',
        "hf_transfer hf_hub_download sk-learn risk-averse",
    ]
    assert [find_secret(text) for text in texts] == [None] * len(texts)


LOCAL = [
    "/home/me/clip",
    "/root/x",
    "/Users/me/clip",
    r"C:\Users\me\clip",
    "file:///data/x",
    "/mydisk/models/clip",
]


@pytest.mark.parametrize("path", LOCAL)
def test_local_paths_are_refused(path: str, folder: Path) -> None:
    in_json(folder, path)
    message = refusal(folder)
    assert "'config.json'" in message and "of this machine" in message
    if path != "/mydisk/models/clip":  # of a root that is no usual one: found where it is the whole value
        assert find_local_path(f"made from {path}, with care")


def test_home_and_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/strange/place/me")
    assert find_local_path("see /strange/place/me/run7 for it") == "/strange/place/me/run7"
    (tmp_path / "odd").mkdir()
    monkeypatch.chdir(tmp_path / "odd")
    assert find_local_path(f"in {tmp_path / 'odd'}:")


@pytest.mark.parametrize(
    "text", ["https://huggingface.co/home/x", "and/or", "4/255", "a/home/b", "/", "openai/clip", "./clip", "~/data/x"]
)
def test_what_is_no_local_path(text: str) -> None:
    assert find_local_path(text) is None
    assert without_local_paths(text) == text


@pytest.mark.parametrize("place", [in_text("LICENSE"), in_weights, in_picture(False), in_exif])
def test_local_paths_beside_texts(place: Callable[[Path, str], None], folder: Path) -> None:
    place(folder, "/home/me/plots/figure.py")
    assert "'/home/me/plots/figure.py' of this machine" in refusal(folder)


def test_words_of_a_tokenizer_are_no_paths(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"/usr/local/bin": 1, "/home/user": 2}')
    check_contents("vocab.json", tmp_path / "vocab.json", None)


def test_saving_leaves_no_path_of_this_machine(tmp_path: Path, clip_folder: Path) -> None:
    """Wherever a caller, a processor or a report names one: their last part alone."""
    from transformers import AutoImageProcessor

    images = AutoImageProcessor.from_pretrained(clip_folder, trust_remote_code=False)
    images.name_or_path = str(clip_folder)
    measured = report(0.5)
    names = {"model": str(tmp_path / "runs" / "FARE"), "dataset": "/data/sets/digits"}
    rows = [replace(row, **names) for row in measured.rows]
    measured = RobustnessReport(rows, {"command": f"fare-hf evaluate {tmp_path}/runs/FARE --root=/mnt/sets/imagenet"})
    training = {"dataset": f"{tmp_path}/imagenet (train)", "more": ["/home/me/a", {"at": r"D:\data\b"}]}
    options: dict[str, Any] = {"processor": images, "base_model": str(clip_folder), "text_encoder": str(clip_folder)}
    folder = save(
        tmp_path / "fare4",
        encoder(),
        **options,
        training=training,
        report=measured,
        report_model=str(tmp_path / "runs" / "FARE"),
        vlm=str(tmp_path / "llava"),
    )
    for path in folder.iterdir():
        content = path.read_bytes()
        for part in (str(tmp_path), "/home/me", "/mnt", "/data/", "D:\\", str(clip_folder)):
            assert part.encode() not in content, (path.name, part)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    card = (folder / "README.md").read_text()
    assert "imagenet (train)" in card and '"llava"' in card and "| FARE |" in card
    assert len(read_folder(folder, "me/fare4")) > 5
    rewrite_card(folder, report=RobustnessReport(measured.rows, measured.environment))
    assert str(tmp_path) not in (folder / "report.json").read_text()
    read_folder(folder, "me/fare4")


STRANGE: dict[str, Callable[[Path], Any]] = {
    "a list for a name": lambda folder: _record(folder, name=["x"]),
    "no name": lambda folder: _record(folder, name=""),
    "a number for a licence": lambda folder: _record(folder, license=3),
    "a licence of javascript": lambda folder: _record(folder, license_link="javascript:alert(1)"),
    "no threat model": lambda folder: _record(folder, threat_model=None),
    "a strange threat model": lambda folder: _record(folder, threat_model={"norm": "l9", "eps": "4/255"}),
    "a text for a recipe": lambda folder: _record(folder, training="x"),
    "numbers for data sets": lambda folder: _record(folder, datasets=[1]),
    "a long name": lambda folder: _record(folder, name="x" * 10_000),
    "an objective": lambda folder: _record(folder, training={"objective": ["fare"]}),
    "no architectures": lambda folder: (folder / "config.json").write_text("{}"),
    "code for an architecture": lambda folder: (folder / "config.json").write_text(
        '{"architectures": ["x; import os"]}'
    ),
    "deep": lambda folder: (folder / "fare_hf.json").write_text('{"a":' * 9999),
    "a report of rows": lambda folder: (folder / "report.json").write_text('{"rows": 1}'),
    "a card in binary": lambda folder: (folder / "README.md").write_bytes(b"\xff"),
    "a card that is a folder": lambda folder: (folder / "README.md").unlink() or (folder / "README.md").mkdir(),
    "a pipe": lambda folder: (folder / "fare_hf.json").unlink() or os.mkfifo(folder / "fare_hf.json"),
    "a device": lambda folder: (folder / "fare_hf.json").unlink() or (folder / "fare_hf.json").symlink_to("/dev/zero"),
    "a device for a card": lambda folder: (
        (folder / "README.md").unlink() or (folder / "README.md").symlink_to("/dev/zero")
    ),
}


def _record(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "fare_hf.json").read_text())
    (folder / "fare_hf.json").write_text(json.dumps(content | changes))


@pytest.mark.parametrize("harm", STRANGE.values(), ids=STRANGE)
def test_card_and_push_end_in_one_sentence(
    harm: Callable[[Path], Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRETS["hub"])
    harm(folder)
    for words in (["card", str(folder)], ["push", str(folder), "me/fare4"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(words)
        message = str(caught.value)
        assert message.startswith("fare-hf: error: ") and "\n" not in message and len(message) < 1000


def test_a_value_that_is_a_share_of_a_network() -> None:
    assert find_local_path(r"\\server\share\x") and not find_local_path(r"\\alpha")
    assert without_local_paths({"dataset": r"\\server\share\x"}) == {"dataset": "x"}
