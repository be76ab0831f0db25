"""The colors of all pictures and pages, each for a light and for a dark background.

Color scales have even steps of lightness in OKLab (Björn Ottosson, 2020), so that equal differences of value look
equal. They start close to the background and end far from it, so that large values are seen first in both.
"""

from __future__ import annotations

import math
from functools import cache

# name: (on light, on dark)
COLORS = {
    "paper": ("#ffffff", "#0d1117"),
    "ink": ("#1b1f24", "#e6edf3"),
    "soft": ("#59636e", "#9198a1"),
    "grid": ("#e8ebef", "#21262d"),
    "axis": ("#b4bcc6", "#4a525c"),
    # Curves and groups: readable as text, and different in lightness, so that color-blind readers can distinguish them.
    "c0": ("#1b4db3", "#7bc4fe"),
    "c1": ("#96260f", "#d9730d"),
    "c2": ("#00837a", "#78f4bd"),
    "c3": ("#9a4fd4", "#b06fe9"),
    "c4": ("#8f6200", "#dab82d"),
    "c5": ("#333b4a", "#8c96a2"),
}
SERIES = tuple(name for name in COLORS if name.startswith("c"))
STEPS = 40  # a scale has STEPS + 1 colors
# Ends of the scales, as (lightness, chroma, hue in degrees) in OKLCH, each on light and on dark.
_SEQUENTIAL = (((0.97, 0.012, 230.0), (0.36, 0.125, 262.0)), ((0.23, 0.02, 262.0), (0.93, 0.08, 215.0)))
_NEGATIVE = (((0.97, 0.0, 255.0), (0.44, 0.15, 255.0)), ((0.23, 0.0, 250.0), (0.84, 0.12, 240.0)))
_POSITIVE = (((0.97, 0.0, 45.0), (0.50, 0.15, 42.0)), ((0.23, 0.0, 50.0), (0.84, 0.13, 62.0)))


def series_color(index: int) -> str:
    """Return the color name of the index-th curve or group; the colors repeat."""
    return SERIES[index % len(SERIES)]


def shade(share: float, *, diverging: bool = False) -> str:
    """Return the name of a color of a scale. share: 0 to 1, or -1 to 1 on the diverging scale."""
    return f"d{round(share * STEPS / 2) + STEPS // 2}" if diverging else f"q{round(share * STEPS)}"


@cache
def both(name: str) -> tuple[str, str]:
    """Return a color on light and on dark. A name that starts with "on-" is the text on that color."""
    if name in COLORS:
        return COLORS[name]
    if name.startswith("on-"):
        light, dark = both(name[3:])
        return _text_on(light), _text_on(dark)
    step = int(name[1:]) / STEPS
    if name[0] == "q":
        return _between(_SEQUENTIAL[0], step), _between(_SEQUENTIAL[1], step)
    ends = _POSITIVE if step >= 0.5 else _NEGATIVE
    far = abs(2 * step - 1)
    return _between(ends[0], far), _between(ends[1], far)


def ramp(letter: str) -> tuple[list[str], list[str]]:
    """Return the colors of a scale, q or d, in order: on light, and on dark."""
    pairs = [both(f"{letter}{step}") for step in range(STEPS + 1)]
    return [light for light, _ in pairs], [dark for _, dark in pairs]


def ramps() -> dict[str, tuple[list[str], list[str]]]:
    """Return the scales by what they show: a share from 0 to 1, or a signed value from -1 to 1."""
    return {"share": ramp("q"), "signed": ramp("d")}


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colors, 1 to 21, as WCAG 2 defines it."""
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _text_on(color: str) -> str:
    return max(("#000000", "#ffffff"), key=lambda ink: contrast(ink, color))


def _luminance(color: str) -> float:
    parts = (int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _between(ends: tuple[tuple[float, float, float], tuple[float, float, float]], share: float) -> str:
    lightness, chroma, hue = (start + share * (end - start) for start, end in zip(*ends, strict=True))
    return _hex(lightness, chroma, math.radians(hue))


def _hex(lightness: float, chroma: float, hue: float) -> str:
    """Return the hex code of an OKLCH color, with less chroma if a screen can't show it."""
    while True:
        red, green, blue = _linear_rgb(lightness, chroma * math.cos(hue), chroma * math.sin(hue))
        if chroma < 0.001 or all(-0.001 <= part <= 1.001 for part in (red, green, blue)):
            break
        chroma *= 0.97
    return "#" + "".join(f"{round(255 * _gamma(min(max(part, 0.0), 1.0))):02x}" for part in (red, green, blue))


def _linear_rgb(lightness: float, a: float, b: float) -> tuple[float, float, float]:
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )


def _gamma(part: float) -> float:
    return 12.92 * part if part <= 0.0031308 else 1.055 * part ** (1 / 2.4) - 0.055
