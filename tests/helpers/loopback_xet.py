"""The storage side of Xet, as much as an upload needs: cuts files out of xorbs as a shard describes them.

Formats as `hf_xet` 1.8 sends them, with `HF_XET_XORB_COMPRESSION_POLICY=none` (no LZ4 in the standard library).
A xorb is a run of chunks: 8 bytes of header (version, 3 bytes of stored length, compression, 3 bytes of length), then
the bytes. A shard is a 48 byte header, then per file: 48 bytes of head (hash, flags, number of segments), the segments
(48 bytes: xorb, flags, length, first and last chunk), as many of verification if flag 31 is set, and the SHA-256 if
flag 30 is set; a head of 0xff ends it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator

__all__ = ["XetStore"]

RECORD = 48
VERIFIED, WITH_SHA256 = 1 << 31, 1 << 30


class XetStore:
    """Xorbs by name; files come out of `add_shard`."""

    def __init__(self) -> None:
        self.xorbs: dict[str, list[bytes]] = {}

    def add_xorb(self, name: str, content: bytes) -> None:
        """Keeps the chunks of a xorb; raises ValueError where they are compressed."""
        self.xorbs[name] = list(_chunks(content))

    def add_shard(self, content: bytes) -> dict[str, bytes]:
        """The files that a shard registers, by their true SHA-256; ValueError where it states another."""
        files = {}
        position = RECORD
        while content[position : position + 32] != b"\xff" * 32:
            flags, count = struct.unpack_from("<II", content, position + 32)
            segments = [content[position + RECORD * n :][:RECORD] for n in range(1, count + 1)]
            position += RECORD * (1 + count + (count if flags & VERIFIED else 0))
            data = b"".join(self._segment(segment) for segment in segments)
            digest = hashlib.sha256(data).hexdigest()
            if flags & WITH_SHA256:
                if _hash_name(content[position : position + 32]) != digest:
                    raise ValueError("the shard states another SHA-256 than its chunks have")
                position += RECORD
            files[digest] = data
        return files

    def _segment(self, record: bytes) -> bytes:
        first, last = struct.unpack_from("<II", record, 40)
        return b"".join(self.xorbs[_hash_name(record[:32])][first:last])


def _hash_name(raw: bytes) -> str:
    """Xet writes a hash as four little-endian words of 64 bits."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))


def _chunks(content: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(content) and content[position : position + 7] != b"XETBLOB":
        stored = int.from_bytes(content[position + 1 : position + 4], "little")
        if content[position + 4] != 0:
            raise ValueError("a compressed chunk: set HF_XET_XORB_COMPRESSION_POLICY=none")
        yield content[position + 8 : position + 8 + stored]
        position += 8 + stored
