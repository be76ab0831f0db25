"""Drawing primitives: SVG pictures that are readable in light and dark themes, and their lines, dots, bars and texts.

Every color is written twice: as an attribute for light backgrounds, which any viewer shows, and as a rule of the
picture's own style for readers who prefer dark. The rules apply only inside pictures and are the same in each, so that
pictures can share a page.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from xml.sax.saxutils import escape

from llm_lab.safe_text import one_line

from .palette import both

FONT = "-apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"
WIDTH = 720  # width of every picture, in pixels
SIZE = 12  # font size
ELLIPSIS = "…"
MANY = 1500  # most points of a curve that are drawn one by one


def picture(height: float, parts: Sequence[str], *, title: str = "", description: str = "") -> str:
    """Return a complete SVG with this height. Title and description are for screen readers."""
    body = "\n".join([f'<rect width="{WIDTH}" height="{height:g}" {fill("paper")}/>', *parts])
    names = sorted(set(re.findall(r'class="([^"]*)"', body)))
    about = f"<title>{safe(title)}</title>\n" if title else ""
    about += f"<desc>{safe(description)}</desc>\n" if description else ""
    label = f' aria-label="{safe(title)}"' if title else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="lab-picture" role="img"{label} '
        f'viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}" '
        f'font-family="{FONT}" font-size="{SIZE}">\n{about}'
        f"<style>@media (prefers-color-scheme: dark) {{\n{_dark_rules(names)}\n}}</style>\n{body}\n</svg>\n"
    )


def _dark_rules(classes: Sequence[str]) -> str:
    found = sorted({name for names in classes for name in names.split()})
    kinds = {"f": "fill", "k": "stroke"}
    rules = ((name, kinds[name[0]], both(name[2:])[1]) for name in found if name[:2] in ("f-", "k-"))
    return "\n".join(f".lab-picture .{name} {{ {kind}: {dark}; }}" for name, kind, dark in rules)


def fill(color: str) -> str:
    """Return the attributes that fill a shape with a color of the palette."""
    return f'class="f-{color}" fill="{both(color)[0]}"'


def stroke(color: str) -> str:
    """Return the attributes that draw an outline in a color of the palette."""
    return f'class="k-{color}" stroke="{both(color)[0]}"'


def fill_and_stroke(inside: str, outline: str) -> str:
    """Return the attributes of a shape with both."""
    return f'class="f-{inside} k-{outline}" fill="{both(inside)[0]}" stroke="{both(outline)[0]}"'


def safe(text: str) -> str:
    """Return a text on one line, without characters that XML and HTML forbid, escaped for elements and attributes."""
    text = "".join("\ufffd" if ord(sign) & 0xFFFE == 0xFFFE else sign for sign in one_line(str(text)))
    return escape(text, {'"': "&quot;", "'": "&#39;"})


def line(x1: float, y1: float, x2: float, y2: float, color: str, *, width: float = 1, dashes: str = "") -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {stroke(color)} '
        f'stroke-width="{width:g}"{dashed}/>'
    )


def curve(
    points: Sequence[tuple[float, float]], color: str, *, width: float = 1.8, dashes: str = "", about: str = ""
) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in _thinned(points))
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<polyline points="{path}" {stroke(color)} fill="none" stroke-width="{width:g}" '
        f'stroke-linejoin="round" stroke-linecap="round"{dashed}{_with_title("polyline", about)}'
    )


def _thinned(pixels: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Return the lowest and the highest of many points for each pixel column, so that spikes stay visible."""
    if len(pixels) <= MANY:
        return pixels
    columns: dict[int, list[int]] = {}
    for at, (across, _) in enumerate(pixels):
        columns.setdefault(int(across), []).append(at)
    kept = {len(pixels) - 1}
    for column in columns.values():
        kept |= {column[0], min(column, key=lambda at: pixels[at][1]), max(column, key=lambda at: pixels[at][1])}
    return [pixels[at] for at in sorted(kept)]


def area(points: Sequence[tuple[float, float]], color: str, *, opacity: float = 0.16) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polygon points="{path}" {fill(color)} fill-opacity="{opacity:g}"/>'


def dot(x: float, y: float, color: str, radius: float = 2.5, *, about: str = "") -> str:
    """Return a dot. about: its tooltip."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" {fill(color)}{_with_title("circle", about)}'


def ring(x: float, y: float, color: str, radius: float = 4, *, about: str = "") -> str:
    """Return a dot with an outline in the color of the background, so that overlapping dots can be counted."""
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" {fill_and_stroke(color, "paper")} '
        f'stroke-width="1"{_with_title("circle", about)}'
    )


def bar(x: float, y: float, width: float, height: float, color: str, *, radius: float = 0, about: str = "") -> str:
    rounded = f' rx="{radius:g}"' if radius else ""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.0):.1f}" height="{max(height, 0.0):.1f}" {fill(color)}'
        f"{rounded}{_with_title('rect', about)}"
    )


def _with_title(element: str, about: str) -> str:
    return f"><title>{safe(about)}</title></{element}>" if about else "/>"


def frame(x: float, y: float, width: float, height: float, color: str = "axis") -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="none" {stroke(color)}/>'


def words(
    x: float,
    y: float,
    text: str,
    anchor: str = "start",
    color: str = "soft",
    *,
    bold: bool = False,
    size: float = SIZE,
    room: float = math.inf,
    upward: bool = False,
) -> str:
    """Return a text. If it is wider than room, it is shortened, and the tooltip shows it in full.

    upward: whether it reads from bottom to top.
    """
    short = fit(text, room, size, bold=bold)
    attributes = ' font-weight="600"' if bold else ""
    attributes += f' font-size="{size:g}"' if size != SIZE else ""
    attributes += f' transform="rotate(-90 {x:.1f} {y:.1f})"' if upward else ""
    about = f"<title>{safe(text)}</title>" if short != one_line(str(text)) else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {fill(color)}{attributes}>{about}{safe(short)}</text>'


# Widths of characters in a wide sans-serif font (DejaVu Sans, the widest common one), relative to the font size.
_WIDTHS = {
    sign: share
    for signs, share in (
        ("ijlI|'.,:;! ", 0.32),
        ('frt()[]-/\\"`', 0.41),
        ("cszJ_*", 0.54),
        ("mMW%@—…", 1.0),
        ("w", 0.82),
    )
    for sign in signs
}


def width_of(text: str, size: float = SIZE, *, bold: bool = False) -> float:
    """Return the estimated width of a text in pixels; it is rarely too small."""
    return sum(map(_width, text)) * size * (1.1 if bold else 1.0)


def _width(sign: str) -> float:
    if sign in _WIDTHS:
        return _WIDTHS[sign]
    if sign.isascii():
        return 0.72 if sign.isupper() else 0.84 if sign in "+=<>~#&^" else 0.635
    if unicodedata.combining(sign) or unicodedata.category(sign) in ("Mn", "Me", "Cf"):
        return 0.0
    return 1.3 if ord(sign) >= 0x1F000 else 1.05 if unicodedata.east_asian_width(sign) in "WF" else 0.75


def fit(text: str, room: float, size: float = SIZE, *, bold: bool = False, middle: bool = True) -> str:
    """Return a text on one line that is at most as wide as room, cut with an ellipsis if it is too long.

    middle: cut in the middle, because names of runs and files often differ at their ends; otherwise at the end.
    """
    text = one_line(str(text))
    if width_of(text, size, bold=bold) <= room:
        return text
    keep = len(text) - 1
    while keep > 0:
        start = (keep + 1) // 2 if middle else keep
        short = text[:start].rstrip() + ELLIPSIS + text[len(text) - keep + start :].lstrip()
        if width_of(short, size, bold=bold) <= room:
            return short
        keep -= max(1, keep // 16)
    return ELLIPSIS


def wrap(text: str, room: float, size: float = SIZE, *, most: int = 2, bold: bool = False) -> list[str]:
    """Return the lines of a text, at most `most` and none wider than room; the last one may be shortened."""
    lines: list[str] = []
    rest = one_line(str(text)).split()
    while rest and len(lines) < most - 1:
        count = 1
        while count < len(rest) and width_of(" ".join(rest[: count + 1]), size, bold=bold) <= room:
            count += 1
        if count == 1 and width_of(rest[0], size, bold=bold) > room:
            break
        lines.append(" ".join(rest[:count]))
        rest = rest[count:]
    return [*lines, fit(" ".join(rest), room, size, bold=bold, middle=False)] if rest else lines


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return the positions closest to the wanted ones that are at least `gap` apart, from low to high.

    They keep their order. If there are too many for the available room, they are spread evenly over it.
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    if len(order) > 1:
        gap = min(gap, (high - low) / (len(order) - 1))
    groups: list[list[float]] = []  # [mean of the wanted first positions, how many]
    for rank, index in enumerate(order):
        groups.append([wanted[index] - rank * gap, 1])
        while len(groups) > 1 and groups[-2][0] > groups[-1][0]:
            mean, count = groups.pop()
            groups[-1] = [
                (groups[-1][0] * groups[-1][1] + mean * count) / (groups[-1][1] + count),
                groups[-1][1] + count,
            ]
    highest = high - (len(order) - 1) * gap
    firsts = [min(max(mean, low), highest) for mean, count in groups for _ in range(int(count))]
    places = [0.0] * len(order)
    for rank, index in enumerate(order):
        places[index] = firsts[rank] + rank * gap
    return places
