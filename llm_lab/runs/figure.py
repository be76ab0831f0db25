"""Elements of every picture of an experiment: a title, notes below it, and a sentence if there is nothing to draw."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypeGuard

from .axis import number
from .svg import SIZE, WIDTH, picture, words, wrap

EDGE = 16
TITLE_SIZE, LINE_HEIGHT = 15, 17
LARGEST = 1e150  # beyond this, the difference of two values may overflow


class Figure:
    """A picture that is being drawn: add parts below `top`, then finish it."""

    def __init__(self, title: str) -> None:
        self.title = title
        lines = wrap(title, WIDTH - 2 * EDGE, TITLE_SIZE, bold=True)
        self.parts = [
            words(EDGE, 24 + 20 * index, text, color="ink", bold=True, size=TITLE_SIZE)
            for index, text in enumerate(lines)
        ]
        self.top = 18.0 + 20 * len(lines)
        self.notes: list[str] = []

    def add(self, *parts: str) -> None:
        self.parts += parts

    def left_out(self, count: int, what: str, why: str) -> None:
        """Add a note that values are not in the picture, if there are any."""
        if count:
            self.notes.append(f"{count:,} {what}{'s' if count > 1 else ''} not drawn: {why}.")

    def finish(self, bottom: float, description: str = "") -> str:
        """Return the SVG; bottom: the lowest pixel that is drawn."""
        lines = [text for note in self.notes for text in wrap(note, WIDTH - 2 * EDGE, most=3)]
        for index, text in enumerate(lines):
            self.add(words(EDGE, bottom + (index + 1) * LINE_HEIGHT, text))
        height = bottom + len(lines) * LINE_HEIGHT + EDGE
        about = " ".join(filter(None, (description, *self.notes)))
        return picture(height, self.parts, title=self.title, description=about)

    def nothing(self, why: str = "There are no values to draw yet.") -> str:
        """Return a picture with the title and the reason why it shows nothing."""
        self.add(words(EDGE, self.top + SIZE, why))
        return self.finish(self.top + SIZE, why)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value can be drawn: a finite number."""
    try:
        return value is not None and not isinstance(value, str) and math.isfinite(value) and abs(value) < LARGEST
    except TypeError:
        return False


def decimals_of(values: Iterable[float]) -> int:
    """Return how many decimals show the differences between values to three significant digits."""
    values = list(values)
    apart = max(values) - min(values) or max(map(abs, values)) or 1.0
    return min(max(2 - math.floor(math.log10(max(apart, 1e-12))), 0), 12)


def with_decimals(value: float, decimals: int) -> str:
    """Return a value with a number of decimals; a very large one, or one with many decimals, with a power of ten."""
    if abs(value) >= 1e6 or decimals > 7:
        return number(value)
    text = f"{value:,.{decimals}f}"
    return text.removeprefix("-") if not text.strip("-0.") else text
