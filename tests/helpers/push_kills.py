"""A publication whose process is killed at a chosen request."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from helpers.hub import XET
from helpers.loopback_hub import TOKEN, LoopbackHub

# operation -> (how large files travel, request in which the push is killed, bytes of its body that had arrived)
KILLS: dict[str, tuple[str, str, int | None]] = {
    "put": ("lfs", "PUT /lfs/", 40_000),
    "xorb": ("xet", "POST /v1/xorbs/", 40_000),
    "shard": ("xet", "POST /v1/shards", None),
    "commit": ("lfs", "POST .*/commit/", None),
    "create": ("lfs", "POST /api/repos/create", None),
}

# What `fare-hf push` calls; leaner than the whole command line, so that a kill is tested in seconds.
SCRIPT = """
import sys
from fare_hf.hub import push_robust_encoder
push_robust_encoder(sys.argv[1], sys.argv[2])
"""


def killed_push(hub: LoopbackHub, folder: Path, storage: str, cache: Path, fault: Any) -> str:
    """A push in a process of its own that ends by SIGKILL when the Hub has the fault's request; what it had said."""
    environment = {**os.environ, **XET, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_XET_CACHE": str(cache)}
    environment |= {"HF_HUB_DISABLE_XET": str(int(storage == "lfs")), "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", SCRIPT, str(folder), "me/fare4"]
    process = subprocess.Popen(words, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert fault.arrived.wait(300)
    process.kill()
    said, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL
    return said
