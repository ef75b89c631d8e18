"""Trying again where the Hub's client does not, without doing anything twice."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from huggingface_hub import get_session
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

__all__ = ["Retries", "TooLongAsked", "bounded_waits", "is_transient", "persist", "status_of", "wait_asked"]

T = TypeVar("T")
TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}
PHASES = ("connect", "read", "write", "pool")
"""What the HTTP library limits in time, each by itself."""


class TooLongAsked(OSError):
    """The Hub asks for more patience than there is."""


@dataclass(frozen=True)
class Retries:
    """How patient to be with the Hub.

    Attributes:
        tries: of each request, the first included.
        first_wait: seconds before the second try; doubles with every further one.
        longest_wait: seconds that one wait takes at most.
        longest_asked: seconds that the Hub may ask for (`Retry-After`); where it asks for more, that ends the push.
        silence: seconds without a byte after which a request counts as failed; the client alone would wait for ever.
        longest_total: seconds that all waits take together at most, those of the client itself included.
        waits: seconds of those that were begun.
    """

    tries: int = 6
    first_wait: float = 1.0
    longest_wait: float = 30.0
    longest_asked: float = 600.0
    silence: float = 120.0
    longest_total: float = 1800.0
    waits: list[float] = field(default_factory=list, repr=False, compare=False)

    def spend(self, seconds: float, asked: bool = False) -> None:
        """Counts a wait that is about to begin; raises TooLongAsked where it, or all together, would be too long."""
        waited = sum(self.waits)
        if (asked and seconds > self.longest_asked) or waited + seconds > self.longest_total:
            most = f"at most {self.longest_asked:.0f} s at once and {self.longest_total:.0f} s in all are waited"
            who = "the Hub asks to wait" if asked else "the next try would wait"
            raise TooLongAsked(f"{who} {seconds:.0f} s, {waited:.0f} s were waited, and {most}")
        self.waits.append(seconds)

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
            with bounded_waits(retries):
                return action()
        except Exception as error:
            asked = wait_asked(error)
            if not is_transient(error) or (asked or 0) > retries.longest_asked:
                raise
            failure = error
        if settled is None and attempt == retries.tries - 1:
            break
        if asked is None:  # what was asked for is counted where the answer came in
            retries.spend(retries.wait(attempt))
        time.sleep(retries.wait(attempt) if asked is None else asked)
        found = None if settled is None else persist(settled, retries)
        if found is not None:
            return found
    raise failure


@contextmanager
def bounded_waits(retries: Retries) -> Iterator[None]:
    """The client's requests end after so much silence, and it waits no longer for the Hub than is allowed.

    The client itself tries some requests again, after as long as the Hub asks for, be it hours. It shares one session
    with the whole process, and takes the limit off for some requests, those that list files among them.
    """

    def limited(request: Any) -> None:
        given = request.extensions.get("timeout", {})
        request.extensions["timeout"] = {name: retries.silence for name in PHASES} | {
            name: seconds for name, seconds in given.items() if seconds is not None
        }

    def heard(response: Any) -> None:
        asked = _seconds(response.headers.get("Retry-After")) if response.status_code in TRANSIENT_STATUS else None
        if asked is not None:
            retries.spend(asked, asked=True)

    session = get_session()
    before, hooks = session.timeout, session.event_hooks
    session.timeout = retries.silence
    session.event_hooks = {
        "request": [limited, *hooks.get("request", [])],  # the innermost limit holds
        "response": [*hooks.get("response", []), heard],
    }
    try:
        yield
    finally:
        session.timeout, session.event_hooks = before, hooks


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help: the network, a busy or failing server; never a refusal."""
    chain, status = list(_chain(error)), status_of(error)
    if any(isinstance(link, (TooLongAsked, OfflineModeIsEnabled)) for link in chain):
        return False
    if status is not None:
        return status in TRANSIENT_STATUS
    # HTTPError: of the HTTP library that the client uses; one with an answer has a status.
    return any(isinstance(link, (HTTPError, ConnectionError, TimeoutError, json.JSONDecodeError)) for link in chain)


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
