"""Keys and tokens in texts: found before anything is published, masked in what is printed.

Kinds that are known by their shape, as the scanners of secrets have them; nothing is judged by its entropy, which
calls half of a tokenizer's vocabulary a secret.
"""

from __future__ import annotations

import re

__all__ = ["find_secret", "mask_secrets", "names_secret"]

TOKEN = re.compile(r"hf_\w{8,}")
"""Anything like a token of the Hub, to be masked: wider than what is refused, as nothing is lost by it."""

OPTION = re.compile(r"(--?\w*token[= ]+)\S+", re.IGNORECASE)
MASK = "***"
NAME = re.compile(r"token|secret|password|api_?key", re.IGNORECASE)
KEY_WORDS = (
    r"(?:api|access|private|secret|signing|account)[_-]?key|(?:auth|access|api|hub|hf|bot|bearer)[_-]?token|"
    r"passw(?:or)?d|client[_-]?secret"
)

KINDS = {
    "an access token of the Hub": r"(?<![A-Za-z0-9_])(?:hf|api_org)_(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{8,}",
    "a private key": r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|PuTTY-User-Key-File-\d|"
    r"AGE-SECRET-KEY-1[0-9A-Z]{20}",
    "a key of AWS": r"(?<![A-Za-z0-9])(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}(?![A-Za-z0-9])",
    "a token of GitHub": r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{22,})",
    "a token of GitLab": r"(?<![A-Za-z0-9])glpat-[\w-]{20,}",
    "a key of OpenAI or Anthropic": r"(?<![A-Za-z0-9])sk-(?=[\w-]*\d)[\w-]{20,}",
    "a token of Slack": r"(?<![A-Za-z0-9])(?:xox[abeoprs]|xapp)-\d[A-Za-z0-9-]{9,}",
    "a key of Google": r"(?<![A-Za-z0-9])AIza[\w-]{35}(?![\w-])",
    "a key of Stripe": r"(?<![A-Za-z0-9])[rs]k_live_[A-Za-z0-9]{16,}",
    "a token of a package index": r"(?<![A-Za-z0-9])(?:pypi-AgE[\w-]{40,}|npm_[A-Za-z0-9]{36})",
    "a signed web token": r"(?<![A-Za-z0-9])eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
    "an address with a password": r"(?<![A-Za-z])[a-z][a-z0-9+.-]{1,15}://[^\s/:@\"'<>]{1,100}:[^\s/:@\"'<>]{3,100}@",
    "a login of .netrc": r"\bmachine\s+\S{1,100}\s+login\s+\S{1,100}\s+password\s+\S",
    "a key of Weights & Biases": r"(?i:wandb)[\w.-]{0,40}\W{1,5}[0-9a-f]{40}(?![0-9a-f])",
    "a key or password by its name": rf"(?i)(?:{KEY_WORDS})\\?[\"']?\s{{0,4}}[:=]\s{{0,4}}\\?[\"']"
    r"(?=[^\"'\s]*\d)[^\"'\s]{8,}[\"']",
}
PATTERNS = {kind: re.compile(pattern) for kind, pattern in KINDS.items()}


def find_secret(text: str) -> str | None:
    """What a text seems to hold, such as "a private key"; None where it holds no secret of a kind that is known."""
    return next((kind for kind, pattern in PATTERNS.items() if pattern.search(text)), None)


def names_secret(key: str) -> bool:
    """Whether a setting's name says that its value is a secret."""
    return bool(NAME.search(key))


def mask_secrets(text: str, token: str | None = None) -> str:
    """The text with `***` in place of every secret of a known kind, of values of options such as `--token`, and of a
    token that is known."""
    text = text.replace(token, MASK) if token else text
    text = TOKEN.sub(MASK, OPTION.sub(rf"\1{MASK}", text))
    for pattern in PATTERNS.values():
        text = pattern.sub(MASK, text)
    return text
