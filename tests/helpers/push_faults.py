"""What goes wrong at the Hub while something is published: the faults that are tried."""

from __future__ import annotations

from typing import Any

from helpers.loopback_repos import commit_name

HTML = "<html><body><h1>503</h1>busy</body></html>"

FAULTS: dict[str, dict[str, Any]] = {
    "reset": {"read_bytes": 0},
    "429": {"status": 429},
    "429 Retry-After": {"status": 429, "headers": {"Retry-After": "7"}},
    "500": {"status": 500},
    "503 HTML": {"status": 503, "body": HTML, "headers": {"Content-Type": "text/html"}},
    "answer lost": {"lose_answer": True},
}

OPERATIONS = {
    "whoami": "GET /api/whoami-v2",
    "look": "GET /api/models/me/fare4$",
    "refs": "GET .*/refs$",
    "create": "POST /api/repos/create",
    "branch": "POST .*/branch/",
    "tree": "GET .*/tree/",
    "preupload": "POST .*/preupload/",
    "batch": "POST .*/objects/batch",
    "upload": "PUT /lfs/",
    "validate": "POST /api/validate-yaml",
    "commit": "POST .*/commit/",
    "compare": f"GET .*/tree/{commit_name(1, commit_name(0, None))}",
    "tag": "POST .*/tag/",
}

XET_STEPS = ["xet-write-token", "/v1/xorbs/", "/v1/shards"]
