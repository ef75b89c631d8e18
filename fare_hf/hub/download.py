"""The beginning of a text on the Hub, without the client's cache and whatever length the file has."""

from __future__ import annotations

from huggingface_hub import get_session, hf_hub_url
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from fare_hf.files.documents import MIB

__all__ = ["read_start"]


def read_start(
    repo_id: str, path: str, *, revision: str | None = None, endpoint: str | None = None, token: str | None = None
) -> str:
    """A megabyte of a text at most.

    Raises:
        HfHubHTTPError: the Hub does not give it.
    """
    address = hf_hub_url(repo_id, path, revision=revision, endpoint=endpoint)
    headers = build_hf_headers(token=token, library_name="fare_hf")
    text = ""
    with get_session().stream("GET", address, headers=headers, follow_redirects=True) as response:
        if response.status_code >= 400:
            response.read()
        hf_raise_for_status(response)
        for part in response.iter_text():
            text += part
            if len(text) > MIB:
                break
    return text
