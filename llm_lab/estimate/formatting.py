"""Format counts, bytes, times and shares for people. Every screen and report uses these functions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any


def count(number: float) -> str:
    """Return a count: 9,500, 12 k, 1.2 M, 3.4 B."""
    if number < 9_999.5:
        return f"{number:,.0f}"
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= unit * 0.9995:
            return f"{_two_digits(number / unit)} {name}"
    return f"{_two_digits(number / 1e3)} k"


def size(number: float) -> str:
    """Return a number of bytes: 3.4 GiB."""
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= unit * 0.9995:
            return f"{_two_digits(number / unit)} {name}"
    return f"{number:.0f} bytes"


def sizes_apart(one: float, other: float) -> tuple[str, str]:
    """Return two numbers of bytes, with more digits if they would otherwise look equal: 24.3 GiB and 24.0 GiB."""
    if one == other or size(one) != size(other):
        return size(one), size(other)
    unit = size(one).split()[1]
    scale = {"TiB": 2**40, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10}.get(unit, 1)
    for digits in range(1, 4):
        texts = f"{one / scale:.{digits}f} {unit}", f"{other / scale:.{digits}f} {unit}"
        if texts[0] != texts[1]:
            break
    return texts


def plural(number: float, noun: str) -> str:
    """Return a number with its noun: 1 epoch, 2.5 epochs."""
    shown = f"{number:,}" if isinstance(number, int) else f"{number:,g}"
    return f"{shown} {noun}" + ("" if number == 1 else "s")


def _two_digits(number: float) -> str:
    return f"{number:.0f}" if number >= 9.95 else f"{number:.1f}"


def significant(number: float) -> str:
    """Return a number with three significant digits: 0.02, 0.00148, 2e-5."""
    return re.sub(r"e([+-])0*", lambda found: "e" + found[1].replace("+", ""), f"{number:.3g}")


def percent(share: float, digits: int = 1) -> str:
    """Return a share of 1: 62.5 %."""
    return f"{100 * share:.{digits}f} %"


def whole_percents(shares: Sequence[float]) -> list[int]:
    """Return the parts of a whole as percents that sum to 100: what rounding down leaves goes to the largest rests."""
    total = sum(shares) or 1.0
    exact = [100 * share / total for share in shares]
    whole = [int(part) for part in exact]
    by_rest = sorted(range(len(exact)), key=lambda index: whole[index] - exact[index])
    for index in by_rest[: 100 - sum(whole) if any(shares) else 0]:
        whole[index] += 1
    return whole


def decimal(value: Any) -> str:
    """Return a number of any magnitude: four decimals, fewer for large numbers, scientific notation for tiny ones."""
    if isinstance(value, float):
        if 0 < abs(value) < 1e-3:
            return f"{value:.2e}"
        return f"{value:,.4f}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def clock(seconds: float) -> str:
    """Return a length of time in the format of a clock: 0:12, 1:02:03, 2d 03:00:00."""
    minutes, second = divmod(int(max(0.0, seconds) + 0.5), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24}d {hours % 24:02d}:{minute:02d}:{second:02d}"
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def duration(seconds: float) -> str:
    """Return a measured length of time: 95 s, 2.5 min, 3.1 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5_400 else f"{seconds / 3600:.1f} h"


def about(seconds: float) -> str:
    """Return an estimated length of time: about 2 min."""
    if seconds < 10:
        return "a few seconds"
    if seconds < 90:
        return f"about {round(seconds, -1):.0f} s"
    if seconds < 5_400:
        return f"about {seconds / 60:.0f} min"
    number, name = (seconds / 3_600, "h") if seconds < 172_800 else (seconds / 86_400, "days")
    return f"about {number:.1f} {name}" if number < 9.95 else f"about {number:,.0f} {name}"


def age(seconds: float) -> str:
    """Return how long ago something was, in its largest unit: 40 s, 5 min, 3 h, 2 days, 6 weeks."""
    for unit, name in ((7 * 86_400, "week"), (86_400, "day")):
        if seconds >= 2 * unit:
            return plural(seconds // unit, name)
    for unit, name in ((3_600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds // unit:.0f} {name}"
    return f"{max(0.0, seconds):.0f} s"
