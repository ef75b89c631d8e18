"""What published files hold: each is of the type that its name says, and every text in it is looked at.

Texts are those of Markdown, licences and JSON, and what stands beside the numbers and pixels of safetensors and PNG
files: names, metadata, text, EXIF and colour profiles. Values of tensors and pixels are not searched.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import safe_open

from fare_hf.files.credentials import find_secret
from fare_hf.files.documents import MIB, parse_json, read_bytes
from fare_hf.hub.local_paths import find_local_path

__all__ = ["VOCABULARIES", "check_contents"]

LARGEST = {".png": 16 * MIB, ".json": 64 * MIB}
LARGEST_TEXT = 16 * MIB
PIXELS = 50_000_000
UNPACKED = 4 * MIB  # of one compressed chunk of a PNG
SIGNATURE = b"\x89PNG\r\n\x1a\n"
VOCABULARIES = {"tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json"}
"""Words of a language, `/usr/local` among them: searched for secrets, not for paths."""


def check_contents(name: str, path: Path, content: bytes | None, token: str | None = None) -> None:
    """Refuses what must not be published in one file.

    Args:
        name: in the repository.
        path: of the file.
        content: instead of the file's, or None.
        token: of the account, which may be in no file either.

    Raises:
        ValueError: it is not of the type that its name says, or holds what looks like a secret, or an absolute path
            of this machine; the message names the file, and of a secret only the kind.
    """
    for text in _texts(name, path, content):
        kind = find_secret(text) or ("your access token" if token and token in text else None)
        found = None if name in VOCABULARIES else find_local_path(text)
        if kind or found:
            told = f"what looks like {kind}: remove it before you publish, and revoke it where others had access."
            lies = f"the path {str(found)[:200]!r} of this machine, which tells others nothing and says where you work"
            raise ValueError(f"{name!r} holds {told if kind else f'{lies}: replace it by a name.'}")


def _texts(name: str, path: Path, content: bytes | None) -> Iterator[str]:
    """Every text of a file, its type checked."""
    kind = Path(name).suffix
    if kind == ".safetensors":
        yield from _of_weights(path)
        return
    limit = LARGEST.get(kind, LARGEST_TEXT)
    data = read_bytes(path, limit) if content is None else content
    if kind == ".png":
        yield from _of_image(name, data)
        return
    text = _decoded(name, data)
    yield text
    if kind == ".json":
        value = parse_json(text, f"{name!r}")
        if not isinstance(value, dict):
            raise ValueError(f"{name!r} holds no JSON object but a {type(value).__name__}: save the encoder again.")
        strings = _strings(value)
        yield from ["\n".join(strings)] if name in VOCABULARIES else strings


def _decoded(name: str, data: bytes) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{name!r} is no text in UTF-8, as its name says: take it away.") from None
    if "\0" in text:
        raise ValueError(f"{name!r} is no text, as it holds zero bytes: take it away.")
    return text


def _strings(value: Any) -> Iterator[str]:
    """Names and texts of a JSON value as they are meant, without escapes."""
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _strings(part)
    if isinstance(value, dict):
        yield from value
        yield from (f'"{key}": "{part}"' for key, part in value.items() if isinstance(part, str))


def _of_weights(path: Path) -> Iterator[str]:
    with safe_open(path, framework="np") as file:
        for key, value in (file.metadata() or {}).items():
            yield from (key, value, f'"{key}": "{value}"')
        yield "\n".join(file.keys())


def _of_image(name: str, data: bytes) -> Iterator[str]:
    """What stands in a PNG beside its pixels; Pillow has it read them, too."""
    try:
        chunks = list(_chunks(data))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
                if image.width * image.height > PIXELS:
                    raise ValueError(f"it has {image.width} x {image.height} pixels")
                image.load()
        _check_pixels(b"".join(content for kind, content in chunks if kind == b"IDAT"))
    except Exception as error:  # whatever Pillow meets in it
        told = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name!r} is no PNG that is published ({told}): take it away, or save it again.") from None
    for kind, content in chunks:
        if kind != b"IDAT":
            yield content.decode("latin-1")
            yield content.replace(b"\0", b"").decode("utf-8", errors="replace")  # also of UTF-16, as EXIF has it
            yield from _unpacked(kind, content)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Types and contents, to the end of the file."""
    if not data.startswith(SIGNATURE):
        raise ValueError("it does not begin as a PNG")
    at, kind = len(SIGNATURE), b""
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        yield kind, data[at + 8 : at + 8 + length]
        at += 12 + length
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes follow its end")


def _check_pixels(packed: bytes) -> None:
    """Nothing follows the end of the compressed pixels, where decoders stop to read."""
    stream, size = zlib.decompressobj(), 0
    while packed and not stream.eof:
        size += len(stream.decompress(packed, UNPACKED))
        packed = stream.unconsumed_tail
        if size > 9 * PIXELS:  # 16 bits in each of four channels, and a byte a row
            raise ValueError("its pixels unfold to more than they are")
    if stream.unused_data:
        raise ValueError(f"{len(stream.unused_data)} bytes follow its pixels")


def _unpacked(kind: bytes, content: bytes) -> Iterator[str]:
    """The text that a chunk of text or of a colour profile holds compressed."""
    if kind not in (b"zTXt", b"iTXt", b"iCCP"):
        return
    # Keyword, zero, one or two flags; of iTXt also a language and a translated keyword, each ended by zero.
    parts = content.split(b"\0", 1)[-1]
    packed = parts[2:].split(b"\0", 2)[-1] if kind == b"iTXt" else parts[1:]
    try:
        plain = zlib.decompressobj().decompress(packed, UNPACKED + 1)
    except zlib.error:
        return  # not compressed: it was read as it stands
    if len(plain) > UNPACKED:
        raise ValueError(f"a PNG's {kind.decode()} unfolds to more than {UNPACKED / MIB:g} MiB: save it again.")
    yield plain.decode("utf-8", errors="replace")
