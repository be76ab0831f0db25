"""The pictures of experiments: where the points are, that no text overlaps or is cut off, and what is left out."""

import xml.etree.ElementTree as ElementTree

import pytest

from llm_lab.runs.plots import Interval, Line, draw_bars, draw_heatmap, draw_intervals, draw_lines, draw_scatter

SVG = "{http://www.w3.org/2000/svg}"
NAN, INF = float("nan"), float("inf")


def texts_of(svg):
    return ["".join(text.find(f"{SVG}title").itertext()) if text.find(f"{SVG}title") is not None else text.text
            for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]  # fmt: skip


def test_a_curve_goes_through_its_points():
    svg = draw_lines([Line("a", [(0, 4.0), (50, 3.0), (100, 2.0)])], title="t", x="step", y="loss")
    (curve,) = ElementTree.fromstring(svg).iter(f"{SVG}polyline")
    first, second, third = (tuple(map(float, point.split(","))) for point in curve.get("points").split())
    assert second[0] - first[0] == pytest.approx(third[0] - second[0], abs=0.2)
    assert first[1] < second[1]
    assert second[1] - first[1] == pytest.approx(third[1] - second[1], abs=0.2)


@pytest.mark.parametrize(
    "svg",
    [
        draw_lines([], title="t", x="x", y="y"),
        draw_lines([Line("a", [(1, NAN)])], title="t", x="x", y="y"),
        draw_heatmap([[None]], rows=["a"], columns=["b"], title="t"),
        draw_heatmap([], rows=[], columns=[], title="t"),
        draw_intervals([], title="t", x="x"),
        draw_intervals([Interval("a", [NAN], NAN, NAN, NAN)], title="t", x="x"),
        draw_scatter([(INF, 1.0, None)], title="t", x="x", y="y"),
        draw_bars([], title="t", x="x"),
    ],
)
def test_a_picture_without_values_says_so(svg):
    assert "There are no values to draw yet." in texts_of(svg)
