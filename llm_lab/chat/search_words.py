"""Words that show that a message asks about the present, which a model can't know: a reason to search the web."""

from __future__ import annotations

import datetime
import re

# Listed in docs/chat.md. "now" and "current" alone are too common: "How many nuts does Tom have now?".
WORDS = (
    *("latest", "newest", "most recent", "up to date", "up-to-date", "right now", "at the moment", "currently"),
    *("today", "tonight", "tomorrow", "yesterday", "this week", "this month", "this year", "last week", "last month"),
    *("news", "headlines", "breaking", "weather", "forecast"),
    *("stock price", "share price", "exchange rate", "release date", "who won"),
    *("search the web", "search for", "look up"),
)
YEARS_BEFORE, YEARS_AFTER = 3, 1  # of the current year
_PATTERN = re.compile(r"\b(?:" + "|".join(r"\s+".join(map(re.escape, word.split())) for word in WORDS) + r")\b", re.I)


def search_reason(text: str, year: int | None = None) -> str | None:
    """Return the first word of a message that asks for a search, as written, or None.

    A recent year counts too. year: the current year; by default that of this machine's clock.
    """
    year = year or datetime.date.today().year
    years = "|".join(str(one) for one in range(year - YEARS_BEFORE, year + YEARS_AFTER + 1))
    found = [match for match in (_PATTERN.search(text), re.search(rf"\b(?:{years})\b", text)) if match]
    return min(found, key=lambda match: match.start())[0] if found else None
