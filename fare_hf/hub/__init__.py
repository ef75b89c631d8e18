"""Publishing: save a robust encoder with its model card, push it to the Hub."""

from __future__ import annotations

from fare_hf.hub.card import CardContent, render_card
from fare_hf.hub.folder import check_repo_id
from fare_hf.hub.push import Publication, PushError, check_access, push_robust_encoder
from fare_hf.hub.regenerate import regenerate_card, rewrite_card
from fare_hf.hub.retry import Retries
from fare_hf.hub.save import save_robust_encoder

__all__ = [
    "CardContent",
    "Publication",
    "PushError",
    "Retries",
    "check_access",
    "check_repo_id",
    "push_robust_encoder",
    "regenerate_card",
    "render_card",
    "rewrite_card",
    "save_robust_encoder",
]
