"""A range of values as a range of colors, and the color bar that explains it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .axis import Axis, tick_labels
from .palette import STEPS, shade
from .svg import bar, frame, line, width_of, words

BAR_WIDTH = 12


@dataclass(frozen=True)
class ColorScale:
    """Colors from low to high. A diverging one is symmetric: its middle is 0.

    first: the share of the colors to skip at the low end, for dots that must be visible on the background.
    """

    low: float
    high: float
    diverging: bool = False
    first: float = 0.0

    def color(self, value: float) -> str:
        """Return the name of the color of a value; values beyond the ends have the color of the end."""
        value = min(max(value, self.low), self.high)
        if self.diverging:
            return shade(value / self.high if self.high else 0.0, diverging=True)
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return shade(self.first + (1 - self.first) * share)

    def marks(self, height: float) -> list[float]:
        axis = Axis(self.low, self.high, height, 0)
        return axis.marks(max(2, min(5, int(height // 40))))

    def width(self, height: float) -> float:
        """The width of the bar with its numbers."""
        return BAR_WIDTH + 10 + max(map(width_of, tick_labels(self.marks(height))))

    def draw(self, x: float, y: float, height: float) -> list[str]:
        """Return the bar with its numbers to its right."""
        part = height / (STEPS + 1)
        middles = [self.low + (self.high - self.low) * step / STEPS for step in range(STEPS + 1)]
        # Each part is slightly too high, so that there are no visible gaps between them.
        parts = [
            bar(x, y + height - (step + 1) * part, BAR_WIDTH, part + (0.5 if step else 0.0), self.color(value))
            for step, value in enumerate(middles)
        ]
        parts.append(frame(round(x, 1), round(y, 1), BAR_WIDTH, round(height, 1)))
        marks = self.marks(height)
        axis = Axis(self.low, self.high, y + height, y)
        for mark, text in zip(marks, tick_labels(marks), strict=True):
            parts.append(line(x + BAR_WIDTH, axis.place(mark), x + BAR_WIDTH + 4, axis.place(mark), "axis"))
            parts.append(words(x + BAR_WIDTH + 7, axis.place(mark) + 4, text))
        return parts


def scale_of(
    values: Iterable[float],
    *,
    diverging: bool = False,
    low: float | None = None,
    high: float | None = None,
    first: float = 0.0,
) -> ColorScale:
    """Return the scale of values; low and high set its ends, so that several pictures can share one."""
    values = list(values)
    low = min(values) if low is None else low
    high = max(values) if high is None else high
    if diverging:
        far = max(abs(low), abs(high)) or 1.0
        return ColorScale(-far, far, diverging=True)
    return ColorScale(low, high, first=first)
