"""Make text from others safe to show and to save: no control characters, no secrets, limited length."""

from __future__ import annotations

import functools
import os
import re
import unicodedata
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

HIDDEN = "***"
# Format characters that reverse or hide the text around them.
_MISLEADING = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C, 0x2028, 0x2029, 0xFEFF}
_DELETE = 0x7F
# Environment variables that hold secrets, by the end of their names.
_SECRET_NAMES = ("TOKEN", "_KEY", "APIKEY", "SECRET", "PASSWORD", "PASSWD", "_PASS", "_PAT", "CREDENTIALS")
_SHORTEST_SECRET = 8
_SHORTEST_REDACTED = 6  # the shortest text with something to hide: a://b@ or ?key=c
_SECRETS = (
    # Tokens of the Hub, OpenAI and others, GitHub, GitLab, AWS, Slack and W&B.
    (
        r"\b(?:hf_[A-Za-z0-9]{16,}|sk-(?=[\w-]{0,200}\d)[\w-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}"
        r"|glpat-[\w-]{16,}|A[KS]IA[A-Z0-9]{16}|xox[abprs]-[\w-]{10,}|wandb_v1_\w{16,})",
        HIDDEN,
    ),
    (r"(?i)\b(bearer\s+)(?=\S*\d)[\w.~+/=-]{12,}", rf"\1{HIDDEN}"),
    (r"(?i)\b(authorization['\"]?\s*[:=]\s*['\"]?(?:(?:bearer|basic|token)\s+)?)[^\s'\",}]+", rf"\1{HIDDEN}"),
    (r"(?<=[A-Za-z0-9+.-])://[^\s/@'\"<>]+@", f"://{HIDDEN}@"),
    (r"(?i)([?&][\w-]*(?:token|key|secret|password|passwd|signature|sig|credential)=)[^&\s'\"#]+", rf"\1{HIDDEN}"),
)
_COMPILED = [(re.compile(pattern), by) for pattern, by in _SECRETS]


def printable(text: str) -> str:
    """Return text that can't control a terminal: control characters become visible symbols."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_printable, text.replace("\r\n", "\n")))


def _printable(character: str) -> str:
    code = ord(character)
    if character in "\n\t":
        return character
    if code < 0x20:
        return chr(0x2400 + code)
    if code == _DELETE:
        return "\u2421"
    if code in _MISLEADING or unicodedata.category(character) in ("Cc", "Cs"):
        return "\ufffd"
    return character


def valid_text(text: str) -> str:
    """Return text with a replacement character for each invalid byte, which Python reads as an unpaired surrogate."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def one_line(text: str) -> str:
    """Return printable text on one line, with line ends shown as a symbol."""
    return printable(text).replace("\n", "⏎").replace("\t", " ")


def redact(text: str) -> str:
    """Return a text without tokens, passwords in addresses, and the secrets in the environment."""
    if len(text) < _SHORTEST_REDACTED:  # most of the pieces that a screen is drawn from
        return text
    for name in filter(_names_a_secret, os.environ):
        value = os.environ.get(name, "")
        if len(value) >= _SHORTEST_SECRET and not os.path.exists(value):
            text = text.replace(value, HIDDEN).replace(quote(value, safe=""), HIDDEN)
    for pattern, by in _COMPILED:
        text = pattern.sub(by, text)
    return text


@functools.lru_cache(maxsize=1_000)
def _names_a_secret(name: str) -> bool:
    return name.upper().endswith(_SECRET_NAMES)


class StreamRedactor:
    """Removes secrets from a text that arrives in pieces, such as a reply. A word is passed on once it is complete."""

    _LONGEST_WORD = 200
    _IN_WORDS = r"\w.~+/=:@?&%*-"
    _WORD = re.compile(rf"[{_IN_WORDS}]{{0,{_LONGEST_WORD}}}\Z", re.ASCII)
    _BREAK = re.compile(rf"[^{_IN_WORDS}]", re.ASCII)
    _LONGEST_LINE, _CONTEXT = 1_000, 400  # earlier text is not checked again, so that a long line stays fast

    def __init__(self) -> None:
        self._line, self._shown = "", ""

    def push(self, piece: str) -> str:
        """Add the next piece; return what can be shown now."""
        self._line += piece
        word = self._WORD.search(self._line)
        return self._show(self._line[: word.start()] if word else self._line)

    def rest(self) -> str:
        """Return the rest, at the end of the text."""
        return self._show(self._line)

    def _show(self, text: str) -> str:
        safe = redact(text)
        new = safe[len(os.path.commonprefix([safe, self._shown])) :]  # noqa: RUF071 (characters are meant)
        self._shown = safe
        end = text.rfind("\n") + 1  # lines are independent of each other
        if not end and len(text) > self._LONGEST_LINE:
            found = self._BREAK.search(text, len(text) - self._CONTEXT)
            end = found.end() if found else 0
        if end:
            self._line, self._shown = self._line[end:], redact(text[end:])
        return new


def redact_values(values: Any) -> Any:
    """Return nested values with every text in them redacted."""
    if isinstance(values, Mapping):
        return {key: redact_values(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [redact_values(value) for value in values]
    return redact(values) if isinstance(values, str) else values


def has_secret(text: str) -> bool:
    """Return whether a text seems to contain a token, or an address with a password."""
    return any(pattern.search(text) for pattern, _ in _COMPILED)


def shorten(text: str, most: int) -> str:
    """Return a text, shortened to at most `most` characters."""
    return text if len(text) <= most else text[: most - 3] + "..."
