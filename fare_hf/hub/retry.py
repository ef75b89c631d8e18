"""Trying again where the Hub's client does not, without doing anything twice."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from huggingface_hub import get_session
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

__all__ = ["Retries", "is_transient", "persist", "redact", "status_of", "wait_asked"]

T = TypeVar("T")
TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}
TOKEN = re.compile(r"hf_\w{8,}")


@dataclass(frozen=True)
class Retries:
    """How patient to be with the Hub.

    Attributes:
        tries: of each request, the first included.
        first_wait: seconds before the second try; doubles with every further one.
        longest_wait: seconds that one wait takes at most.
        longest_asked: seconds that the Hub may ask for (`Retry-After`); where it asks for more, that ends the push.
        silence: seconds without a byte after which a request counts as failed; the client alone would wait for ever.
    """

    tries: int = 6
    first_wait: float = 1.0
    longest_wait: float = 30.0
    longest_asked: float = 600.0
    silence: float = 120.0

    def wait(self, attempt: int) -> float:
        """Seconds before the try after number `attempt`, which counts from 0."""
        return min(self.first_wait * 2**attempt, self.longest_wait)


def persist(action: Callable[[], T], retries: Retries, settled: Callable[[], T | None] | None = None) -> T:
    """Calls `action` until it works, while what it raises may pass.

    Args:
        action: one request, or a few.
        retries: how often and how long.
        settled: looks whether a failed `action` was carried out all the same (its answer lost), and returns what it
            would have returned, else None. It is asked after each failure; where it fails itself, nothing is tried
            again, as that could happen twice.

    Raises:
        Exception: the last one of `action`, or the first that will not pass.
    """
    for attempt in range(retries.tries):
        try:
            with _impatient(retries.silence):
                return action()
        except Exception as error:
            asked = wait_asked(error)
            if not is_transient(error) or (asked or 0) > retries.longest_asked:
                raise
            failure = error
        if settled is None and attempt == retries.tries - 1:
            break
        time.sleep(retries.wait(attempt) if asked is None else asked)
        found = None if settled is None else persist(settled, retries)
        if found is not None:
            return found
    raise failure


@contextmanager
def _impatient(seconds: float) -> Iterator[None]:
    """The client's requests end after so many seconds of silence; it shares one session with the whole process."""
    session = get_session()
    before, session.timeout = session.timeout, seconds
    try:
        yield
    finally:
        session.timeout = before


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help: the network, a busy or failing server; never a refusal."""
    status = status_of(error)
    if status is not None:
        return status in TRANSIENT_STATUS
    # HTTPError: of the HTTP library that the client uses; one with an answer has a status.
    kinds = (HTTPError, ConnectionError, TimeoutError, json.JSONDecodeError)
    chain = list(_chain(error))
    if any(isinstance(link, OfflineModeIsEnabled) for link in chain):
        return False
    return any(isinstance(link, kinds) for link in chain)


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an exception; Xet's own exceptions only mention it in their text."""
    for link in _chain(error):
        if isinstance(link, HfHubHTTPError) and link.response is not None:
            return link.response.status_code
        if isinstance(link, PermissionError):
            return 403
        mentioned = re.search(
            r"\b([45]\d\d) (?:Client|Server)?[ :]*[A-Z(]|status[^0-9]{0,20}\b([45]\d\d)\b", str(link)
        )
        if isinstance(link, (ConnectionError, RuntimeError)) and mentioned:
            return int(mentioned[1] or mentioned[2])
    return None


def wait_asked(error: BaseException) -> float | None:
    """Seconds that the answer asks to wait (`Retry-After`, seconds or a date), or None."""
    for link in _chain(error):
        if isinstance(link, HfHubHTTPError) and link.response is not None:
            return _seconds(link.response.headers.get("Retry-After"))
    return None


def redact(text: str, token: str | None = None) -> str:
    """The text without access tokens."""
    return TOKEN.sub("hf_***", text.replace(token, "hf_***") if token else text)


def _seconds(value: str | None) -> float | None:
    if value is None:
        return None
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
