"""Publishing: save a robust encoder with its model card, push it to the Hub."""

from __future__ import annotations

from fare_hf.hub.card.regenerate import regenerate_card, rewrite_card
from fare_hf.hub.card.render import CardContent, render_card
from fare_hf.hub.merge.merge import Merge, merge_vision_tower
from fare_hf.hub.push.folder import check_repo_id
from fare_hf.hub.push.push import Publication, PushError, check_access, push_robust_encoder
from fare_hf.hub.retry import Retries
from fare_hf.hub.save import save_robust_encoder

__all__ = [
    "CardContent",
    "Merge",
    "Publication",
    "PushError",
    "Retries",
    "check_access",
    "check_repo_id",
    "merge_vision_tower",
    "push_robust_encoder",
    "regenerate_card",
    "render_card",
    "rewrite_card",
    "save_robust_encoder",
]
