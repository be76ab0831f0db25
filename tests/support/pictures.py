"""SVG pictures as trees: their texts and curves, and the pixel positions of these."""

import xml.etree.ElementTree as ElementTree
from itertools import combinations

from llm_lab.runs.svg import SIZE, width_of

SVG = "{http://www.w3.org/2000/svg}"


def parse(svg):
    return ElementTree.fromstring(svg)


def shown(text):
    """Return what a text element shows; its title is not shown."""
    title = text.find(f"{SVG}title")
    return text.text or "" if title is None else title.tail or ""


def texts(picture):
    return [shown(text) for text in picture.iter(f"{SVG}text")]


def curves(picture):
    return [
        [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        for line in picture.iter(f"{SVG}polyline")
    ]


def place_of(picture, words):
    """Return (x, y) of the only text that shows these words."""
    (text,) = (text for text in picture.iter(f"{SVG}text") if shown(text) == words)
    return float(text.get("x")), float(text.get("y"))


def box_of(text):
    """Return (left, top, right, bottom) of a text, by the widths of a wide font."""
    size = float(text.get("font-size", SIZE))
    wide = width_of(shown(text), size, bold=text.get("font-weight") == "600")
    x, y = float(text.get("x")), float(text.get("y"))
    before = {"start": 0.0, "middle": wide / 2, "end": wide}[text.get("text-anchor")]
    if text.get("transform"):  # the text reads upward
        return x - 0.75 * size, y - wide + before, x + 0.2 * size, y + before
    return x - before, y - 0.75 * size, x - before + wide, y + 0.2 * size


def overlapping(picture):
    """Return the pairs of texts that overlap."""
    found = [(shown(text), box_of(text)) for text in picture.iter(f"{SVG}text") if shown(text)]
    return [
        (one, other)
        for (one, a), (other, b) in combinations(found, 2)
        if min(a[2], b[2]) - max(a[0], b[0]) > 0.5 and min(a[3], b[3]) - max(a[1], b[1]) > 0.5
    ]


def cut_off(picture):
    """Return the texts that extend beyond the picture."""
    _, _, wide, high = map(float, picture.get("viewBox").split())
    found = [(shown(text), box_of(text)) for text in picture.iter(f"{SVG}text")]
    return [
        text for text, (left, top, right, bottom) in found
        if left < 0 or top < 0 or right > wide + 0.5 or bottom > high + 0.5
    ]  # fmt: skip
