"""The pictures of experiments: where points are, that no text overlaps or is cut off, and what is left out."""

import functools
import re

import pytest
from support.pictures import SVG, curves, cut_off, overlapping, parse, place_of, shown, texts

from llm_lab.runs.axis import number, tick_labels
from llm_lab.runs.plots import Interval, Line, draw_bars, draw_heatmap, draw_intervals, draw_lines, draw_scatter
from llm_lab.runs.svg import fit, spread, width_of

NAN, INF = float("nan"), float("inf")
HOSTILE = "</text><script>alert(1)</script>&\"'\x1b[2J\x00\ud800\uffff\u202eevil ]]> <image href='http://x'/> شكرا"
LONG = "optimizer.learning_rate=0.0003,model.hidden_size=256,model.position_embedding=rope, " * 3


def falling(index, count=20):
    return [(step, 3.0 + index * 1e-4 - step / 100) for step in range(count)]


def names(count, word="token"):
    return [f"{word}{index}" for index in range(count)]


def grid(rows, columns):
    return [[row - column * 0.5 for column in range(columns)] for row in range(rows)]


def heatmap(rows, columns, row_names=None, column_names=None, **options):
    row_names, column_names = row_names or names(rows), column_names or names(columns)
    return draw_heatmap(grid(rows, columns), rows=row_names, columns=column_names, title="t", x="x", y="y", **options)


PICTURES = {
    "one point": lambda: draw_lines([Line("a", [(1, 1)])], title="t", x="step", y="loss"),
    "forty curves with the same end": lambda: draw_lines(
        [Line(f"{LONG}{index}", falling(index)) for index in range(40)], title=LONG, x=LONG, y=LONG
    ),
    "many digits": lambda: draw_lines([Line("a", [(1000.123, 1e-9), (1000.124, 3e-9)])], title="t", x="x", y="y"),
    "one round number": lambda: draw_bars([("a", 1.0), ("b", 0.0)], title="t", x="x" * 300),
    "no round number": lambda: draw_lines([Line("a", [(1, 1.0), (3, 1.0)])], title="t", x="", y=""),
    "huge": lambda: draw_lines([Line("a", [(1, -1e140), (1e12, 1e140)])], title="t", x="x", y="y"),
    "logarithmic": lambda: draw_lines(
        [Line("a", [(1e-9, 1e-30), (10, 1e30)])], title="t", x="x", y="y", log_x=True, log_y=True
    ),
    "flat": lambda: draw_lines([Line("a", [(1, 5.0), (2, 5.0 + 1e-15)])], title="t", x="x", y="y"),
    "hostile curves": lambda: draw_lines(
        [Line(HOSTILE, falling(1)), Line("b", [(1, NAN)])], title=HOSTILE, x=HOSTILE, y=HOSTILE
    ),
    "one cell": lambda: heatmap(1, 1),
    "heatmap": lambda: heatmap(6, 8, diverging=True),
    "large heatmap": lambda: heatmap(30, 30),
    "larger heatmap": lambda: heatmap(90, 120),
    "heatmap with long names": lambda: heatmap(30, 30, [LONG] * 30, [LONG] * 30),
    "hostile heatmap": lambda: heatmap(3, 3, [HOSTILE] * 3, [HOSTILE] * 3),
    "intervals": lambda: draw_intervals(
        [Interval(LONG, [1.0, 1.0, 1.1], 1.03, 0.9, 1.2), Interval(HOSTILE, [2.0], 2.0, NAN, NAN)],
        title=LONG, x=LONG, reference=0.5, reference_name="baseline",
    ),
    "scatter": lambda: draw_scatter([(1e6, 2e6, 0.5), (3e6, 1e6, None)], title="t", x=LONG, y=LONG, color_name=LONG),
    "scatter with names": lambda: draw_scatter(
        [(index % 5, index // 5, None) for index in range(20)] + [(3.01, 2, None), (3.02, 2, None)],
        title="t", x="x", y="y", names=[*names(20, "configuration "), "near", LONG],
    ),
    "bars": lambda: draw_bars([(LONG, 12345.678), (HOSTILE, -1e-7), ("c", INF)], title="t", x=LONG),
}  # fmt: skip


@functools.cache
def drawn(name):
    return PICTURES[name]()


@pytest.fixture(params=PICTURES)
def picture(request):
    return parse(drawn(request.param))


def test_no_text_overlaps_another_or_is_cut_off(picture):
    assert not overlapping(picture)
    assert not cut_off(picture)


def test_names_are_only_treated_as_text(picture):
    allowed = {"svg", "title", "desc", "style", "rect", "line", "text", "polyline", "polygon", "circle"}
    assert {element.tag.removeprefix(SVG) for element in picture.iter()} <= allowed
    for element in picture.iter():
        assert not [key for key in element.attrib if key.startswith("on") or "href" in key]
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\uffff]", element.text or "")


def test_every_color_has_a_rule_for_dark_that_stays_inside_pictures(picture):
    style = picture.find(f"{SVG}style").text
    used = {name for element in picture.iter() for name in element.get("class", "").split()} - {"lab-picture"}
    assert used
    assert all(re.search(rf"\.lab-picture \.{name} {{ (fill|stroke): #[0-9a-f]{{6}}; }}", style) for name in used)
    assert len(re.findall("{", style)) == len(re.findall(r"\.lab-picture", style)) + 1, "no rule for other elements"


def test_a_picture_has_a_title_and_a_description_for_screen_readers(picture):
    assert picture.find(f"{SVG}title").text == picture.get("aria-label") != ""
    assert picture.find(f"{SVG}desc").text
    assert picture.get("role") == "img"


def test_a_long_name_is_shortened_and_shown_in_full_in_a_tooltip():
    picture = parse(drawn("forty curves with the same end"))
    labels = [
        text for text in picture.iter(f"{SVG}text") if "…" in shown(text) and text.find(f"{SVG}title") is not None
    ]
    assert {f"{LONG}{index}" for index in range(40)} <= {label.find(f"{SVG}title").text for label in labels}
    assert fit("a" * 50 + "end", 100).endswith("end")
    assert width_of(fit("a" * 500, 100)) <= 100


def test_a_curve_goes_through_its_points():
    picture = parse(draw_lines([Line("a", [(0, 4.0), (40, 3.0), (100, 2.0)])], title="t", x="step", y="loss"))
    ((first, second, third),) = curves(picture)
    for value, (_, y) in (("4", first), ("3", second), ("2", third)):
        assert y == pytest.approx(place_of(picture, value)[1] - 4, abs=0.2)
    for step, (x, _) in (("0", first), ("40", second), ("100", third)):
        assert x == pytest.approx(place_of(picture, step)[0], abs=0.2)


def test_equal_ratios_are_equally_far_on_a_logarithmic_axis():
    points = [(1e-4, 2.0), (1e-3, 1.0), (1e-2, 3.0), (0.0, 1.0)]
    picture = parse(draw_lines([Line("a", points)], title="t", x="learning rate", y="loss", log_x=True))
    ((first, second, third),) = curves(picture)
    assert second[0] - first[0] == pytest.approx(third[0] - second[0], abs=0.2)
    assert second[0] == pytest.approx(place_of(picture, "1e-3")[0], abs=0.2)
    assert any("1 point not drawn" in text for text in texts(picture)), "0 is not on a logarithmic axis"


def test_a_gap_of_values_that_are_not_finite_is_a_gap_in_the_curve():
    points = [(0, 1.0), (1, 2.0), (2, NAN), (3, INF), (4, 2.0), (5, 1.0)]
    picture = parse(draw_lines([Line("a", points)], title="t", x="x", y="y"))
    assert [len(curve) for curve in curves(picture)] == [2, 2]
    assert "2 points not drawn: not a finite number." in texts(picture)


def test_a_band_is_drawn_between_its_edges():
    line = Line("a", [(10, 1.0), (20, 2.0)], low=[0.5, 1.5], high=[1.5, 3.0])
    picture = parse(draw_lines([line], title="t", x="x", y="y"))
    (band,) = picture.iter(f"{SVG}polygon")
    heights = [float(point.split(",")[1]) for point in band.get("points").split()]
    marks = {mark: place_of(picture, mark)[1] - 4 for mark in ("1", "2", "3")}
    unit = marks["1"] - marks["2"]
    expected = [marks["1"] - unit / 2, marks["3"], marks["1"] - unit / 2, marks["1"] + unit / 2]
    assert heights == pytest.approx(expected, abs=0.2)


def test_a_long_curve_keeps_its_spike_and_its_end():
    points = [(step, 9.0 if step == 50_001 else 1.0) for step in range(100_000)]
    svg = draw_lines([Line("a", points)], title="t", x="x", y="y")
    assert len(svg) < 100_000
    (curve,) = curves(parse(svg))
    assert min(y for _, y in curve) < max(y for _, y in curve) - 200
    assert curve[-1][0] == max(x for x, _ in curve)


def test_colors_and_dashes_distinguish_24_curves():
    picture = parse(draw_lines([Line(str(index), falling(index)) for index in range(24)], title="t", x="x", y="y"))
    looks = {(line.get("stroke"), line.get("stroke-dasharray")) for line in picture.iter(f"{SVG}polyline")}
    assert len(looks) == 24


def test_labels_are_spread_and_keep_their_order():
    places = spread([50, 50, 50, 90, 10], 15, 0, 100)
    assert places == pytest.approx([35, 50, 65, 90, 10])
    assert spread([1, 2, 3], 100, 0, 100) == pytest.approx([0, 50, 100])
    assert spread([99, 99], 15, 0, 100) == pytest.approx([85, 100])


def test_an_empty_cell_has_no_color_and_an_invalid_number_is_named():
    picture = parse(draw_heatmap([[0.0, None, NAN, 1.0]], rows=["a"], columns=list("bcde"), title="t"))
    assert "1 cell not drawn: not a finite number." in texts(picture)
    assert [text for text in texts(picture) if re.fullmatch(r"\d\.\d\d", text)] == ["0.00", "1.00"]
    empty = [box for box in picture.iter(f"{SVG}rect") if box.get("fill") == "none" and float(box.get("width")) > 20]
    assert len(empty) == 2


def test_the_colors_of_a_diverging_heatmap_are_neutral_at_zero():
    picture = parse(draw_heatmap([[-2.0, 0.0, 1.0]], rows=["a"], columns=list("bcd"), title="t", diverging=True))
    cells = {box.find(f"{SVG}title").text: box.get("fill") for box in picture.iter(f"{SVG}rect") if len(box)}
    red, green, blue = (int(cells["a, c: 0"][at : at + 2], 16) for at in (1, 3, 5))
    assert red == green == blue
    assert len(set(cells.values())) == 3


def test_values_that_would_all_be_rounded_to_zero_keep_their_digits():
    picture = parse(draw_heatmap([[-5e-5, 2e-5, 0.0]], rows=["a"], columns=["b", "c", "d"], title="t"))
    assert [text for text in texts(picture) if text in ("-5e-5", "2e-5", "0", "0.00")].count("0.00") == 0
    assert {"-5e-5", "2e-5"} <= set(texts(picture))


def test_whole_numbers_have_whole_marks():
    layers = parse(draw_lines([Line("a", [(0, 1.5), (1, 2.5), (2, 1.7)])], title="t", x="layer", y="y"))
    below = max(float(text.get("y")) for text in layers.iter(f"{SVG}text") if shown(text) == "2")
    assert [shown(text) for text in layers.iter(f"{SVG}text") if float(text.get("y")) == below] == ["0", "1", "2"]


def test_a_rounded_zero_has_no_minus():
    picture = parse(draw_heatmap([[-0.001, -0.5]], rows=["a"], columns=["b", "c"], title="t", diverging=True))
    assert {"0.00", "-0.50"} <= set(texts(picture))
    assert "-0.00" not in texts(picture)


def test_two_heatmaps_can_share_their_colors():
    one = parse(draw_heatmap([[0.5]], rows=["a"], columns=["b"], title="t", low=0, high=1))
    other = parse(draw_heatmap([[0.5, 0.9]], rows=["a"], columns=["b", "c"], title="t", low=0, high=1))
    first = [next(box.get("fill") for box in picture.iter(f"{SVG}rect") if len(box)) for picture in (one, other)]
    assert first[0] == first[1]


def test_a_heatmap_needs_a_name_for_each_row_and_column():
    with pytest.raises(ValueError, match="1 rows of 2 columns"):
        draw_heatmap([[1.0]], rows=["a"], columns=["b", "c"], title="t")


def test_seeds_means_and_intervals_are_at_their_values():
    row = Interval("a", [1.0, 2.0, 3.0], 2.0, 1.0, 3.0)
    picture = parse(draw_intervals([row], title="t", x="loss", reference=0.0))
    zero, one = place_of(picture, "0")[0], place_of(picture, "1")[0]
    dots = [(float(dot.get("cx")) - zero) / (one - zero) for dot in picture.iter(f"{SVG}circle")]
    assert dots == pytest.approx([1, 2, 3], abs=0.01)
    interval, mean = (box for box in picture.iter(f"{SVG}rect") if len(box))
    assert (float(interval.get("x")) - zero) / (one - zero) == pytest.approx(1, abs=0.01)
    assert float(interval.get("width")) / (one - zero) == pytest.approx(2, abs=0.01)
    assert (float(mean.get("x")) + 1.25 - zero) / (one - zero) == pytest.approx(2, abs=0.01)
    assert "2.00  [1.00, 3.00]" in " ".join(texts(picture))


def test_equal_seeds_do_not_hide_each_other():
    picture = parse(draw_intervals([Interval("a", [1.0, 1.0, 1.0], 1.0, NAN, NAN)], title="t", x="loss"))
    assert len({dot.get("cy") for dot in picture.iter(f"{SVG}circle")}) == 3


def test_bars_start_at_zero_and_have_the_lengths_of_their_values():
    picture = parse(draw_bars([("a", 1.0), ("b", -2.0), ("c", 4.0)], title="t", x="x"))
    bars = [(float(box.get("x")), float(box.get("width"))) for box in picture.iter(f"{SVG}rect") if len(box)]
    zero = place_of(picture, "0")[0]
    unit = bars[0][1]
    assert [width / unit for _, width in bars] == pytest.approx([1, 2, 4], abs=0.01)
    assert [start for start, _ in bars] == pytest.approx([zero, zero - 2 * unit, zero], abs=0.2)


def test_bars_have_numbers_with_the_same_decimals_unless_small_ones_would_lose_their_digits():
    picture = parse(draw_bars([("a", 26.0), ("b", 27.22)], title="t", x="seconds"))
    assert {"26.00", "27.22"} <= set(texts(picture))
    picture = parse(draw_bars([("a", 0.00012), ("b", 2500.0), ("c", 3.25)], title="t", x="x"))
    assert {"1.2e-4", "2,500", "3.25"} <= set(texts(picture))


def test_points_of_a_scatter_are_at_their_values_in_their_colors():
    points = [(0, 0, 1.0), (1, 1, 2.0), (2, 0, 3.0), (NAN, 1, 1.0)]
    picture = parse(draw_scatter(points, title="t", x="x", y="y", color_name="bits"))
    dots = list(picture.iter(f"{SVG}circle"))
    first, second, third = (float(dot.get("cx")) for dot in dots)
    assert second - first == pytest.approx(third - second, abs=0.2)
    assert second - first > 100
    assert float(dots[1].get("cy")) < float(dots[0].get("cy")) == float(dots[2].get("cy"))
    assert len({dot.get("fill") for dot in dots}) == 3
    assert "1 point not drawn: not a finite number." in texts(picture)


def test_a_name_is_next_to_its_point():
    points = [(1, 1, None), (1.001, 1, None), (2, 3, None)]
    picture = parse(draw_scatter(points, title="t", x="x", y="y", names=["near", "nearer", HOSTILE]))
    for name, dot in zip(("near", "nearer"), picture.iter(f"{SVG}circle"), strict=False):
        x, y = place_of(picture, name)
        assert abs(x - float(dot.get("cx"))) < 60
        assert abs(y - float(dot.get("cy"))) < 25


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
    assert "There are no values to draw yet." in texts(parse(svg))


def test_numbers_have_the_digits_they_need():
    assert [number(value) for value in (12345.678, 1.5e9, 0.00012346, -0.0, 3.0, 123456.0)] == [
        "12,346", "1.5B", "1.235e-4", "0", "3", "123,456",
    ]  # fmt: skip
    assert tick_labels([0.0, 2.5e-4, 5e-4]) == ["0", "2.5e-4", "5e-4"]
    assert tick_labels([1e-5, 1e-4, 1e-3, 0.01]) == ["1e-5", "1e-4", "1e-3", "0.01"]
    assert tick_labels([0, 500_000, 1_000_000]) == ["0", "500k", "1M"]
