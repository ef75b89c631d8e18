"""Publishing: save a robust encoder with its model card."""

from __future__ import annotations

from fare_hf.hub.card import CardContent, render_card
from fare_hf.hub.save import save_robust_encoder

__all__ = ["CardContent", "render_card", "save_robust_encoder"]
