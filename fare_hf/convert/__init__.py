"""Conversion between open_clip and transformers, with numeric proof."""

from __future__ import annotations

from fare_hf.convert.converters import Conversion, convert_from_open_clip, convert_to_open_clip

__all__ = ["Conversion", "convert_from_open_clip", "convert_to_open_clip"]
