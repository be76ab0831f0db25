"""Axes: mapping of values to pixels, linear or logarithmic, and the round numbers at their marks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from .svg import WIDTH, line, width_of, words

SMALLEST = 1e-290  # smaller values and differences are too close to 0 for a logarithm


@dataclass(frozen=True)
class Axis:
    """A range of values over a range of pixels: `start` is the pixel of the low value, `end` of the high one."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        """The pixel of a value; the middle if the axis holds only one value."""
        scale = math.log10 if self.log else float
        low, high = scale(self.low), scale(self.high)
        share = (scale(value) - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def marks(self, about: int) -> list[float]:
        """Round numbers along the axis, about as many as requested."""
        found = powers(self.low, self.high) if self.log else []
        if len(found) > about:  # only the powers of ten, or every second one, every third one ...
            tens = powers(self.low, self.high, (1,))
            found = tens[:: -(-len(tens) // about)]
        return found if len(found) > 1 else ticks(self.low, self.high, about)


def axis_of(
    values: Sequence[float], start: float, end: float, *, log: bool = False, room: float = 0.05, zero: bool = False
) -> Axis:
    """Return an axis for all values, with some room at both ends. zero: whether a linear axis includes 0."""
    low, high = min(values), max(values)
    if high - low <= max(1e-12 * max(abs(low), abs(high)), SMALLEST):  # a difference due to rounding is not a range
        high = low
    if log:
        room = room * math.log10(high / low) if high > low else 0.3
        return Axis(low / 10**room, high * 10**room, start, end, log=True)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if low == high == 0:  # most quantities can't be negative
        return Axis(0.0, 1.0, start, end)
    space = room * (high - low) if high > low else abs(high) * 0.1
    # An axis with a requested 0 at one end has no extra room there.
    return Axis(low - space * (not zero or low < 0), high + space * (not zero or high > 0), start, end)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Return about `about` round numbers from low to high, at least two if they fit."""
    if high - low <= SMALLEST:
        return [low]
    raw = (high - low) / about
    unit = 10 ** math.floor(math.log10(raw))
    steps = [unit * many for many in (0.2, 0.5, 1, 2, 2.5, 5, 10)]
    at = next(index for index, step in enumerate(steps) if step >= raw)
    for step in reversed(steps[: at + 1]):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last > first:
            break
    return [number * step for number in range(first, last + 1)]


def powers(low: float, high: float, times: Sequence[int] = (1, 2, 5)) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten from low to high; only the powers if there would be too many."""
    tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [many * 10.0**power for power in tens for many in times if low <= many * 10.0**power <= high]
    return found if len(found) <= 6 or len(times) == 1 else powers(low, high, (1,))


def tick_labels(marks: Sequence[float]) -> list[str]:
    """Return the numbers of an axis with the fewest digits that show each of them exactly, so that all differ."""
    apart = min((abs(b - a) for a, b in pairwise(marks)), default=math.inf)
    for digits in range(4, 17):
        texts = [f"{mark + 0.0:.{digits}g}" for mark in marks]
        if all(abs(float(text) - mark) <= 0.01 * apart for text, mark in zip(texts, marks, strict=True)):
            break
    small = any(0 < abs(mark) < SMALL for mark in marks)
    return [_scientific(text) if small and abs(float(text)) < 10 * SMALL else short_number(text) for text in texts]


SMALL = 1e-3
_LARGE = ((1e12, "T"), (1e9, "B"), (1e6, "M"))


def short_number(text: str) -> str:
    """Return a number as text in its usual form: 1e-05 as 1e-5, 20000 as 20,000, 3e+05 as 300k."""
    value = float(text)
    for unit, letter in _LARGE:
        if unit <= abs(value) < 1e15:
            return f"{value / unit:.15g}{letter}"
    if 0 < abs(value) < SMALL or abs(value) >= 1e15:
        return _scientific(text)
    if abs(value) >= 1e5 and value % 1000 == 0:
        return f"{value / 1000:.0f}k"
    whole, point, rest = (f"{value:.0f}" if "e" in text else text).partition(".")
    return f"{int(whole):,}{point}{rest}" if len(whole.lstrip("-")) > 3 else text


def _scientific(text: str) -> str:
    """Return a number as text with a power of ten, with its own digits."""
    if not float(text):
        return "0"
    digits, _, power = f"{float(text):.14e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"


def number(value: float, digits: int = 4) -> str:
    """Return a value with a number of significant digits, and with all digits of its integer part up to a million."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if 10**digits <= abs(value) < 1e6 else short_number(f"{value + 0.0:.{digits}g}")


def draw_upright(axis: Axis, marks: Sequence[float], left: float, right: float) -> list[str]:
    """Return a vertical axis: its numbers, and grid lines from left to right."""
    parts = [line(left, axis.place(mark), right, axis.place(mark), "grid") for mark in marks]
    numbers = zip(marks, tick_labels(marks), strict=True)
    return parts + [words(left - 7, axis.place(mark) + 4, text, "end") for mark, text in numbers]


def draw_flat(
    axis: Axis, marks: Sequence[float], bottom: float, top: float | None = None, *, texts: Sequence[str] = ()
) -> list[str]:
    """Return a horizontal axis at the bottom with its numbers, or with texts instead. top: how far up grid lines go."""
    parts = []
    texts = texts or tick_labels(marks)
    # If the numbers would overlap, every second one is left out, or more.
    apart = min((abs(axis.place(b) - axis.place(a)) for a, b in pairwise(marks)), default=math.inf)
    every = max(1, math.ceil((max(map(width_of, texts), default=0) + 8) / apart))
    for mark, text in list(zip(marks, texts, strict=True))[::every]:
        at = axis.place(mark)
        parts.append(line(at, bottom + 4, at, bottom if top is None else top, "axis" if top is None else "grid"))
        half = width_of(text) / 2 + 2
        parts.append(words(min(max(at, half), WIDTH - half), bottom + 18, text, "middle"))
    if top is None:
        parts.append(line(axis.start, bottom, axis.end, bottom, "axis"))
    return parts
