"""The report of a run: what it was, what it reached, what it was predicted to take, and its curves."""

import xml.etree.ElementTree as ElementTree

import pytest

from llm_lab.runs.curves import PANELS, _powers, _ticks, draw_curves
from llm_lab.runs.folder import create_run
from llm_lab.runs.report import write_report

SVG = "{http://www.w3.org/2000/svg}"


def picture_of(rows):
    return ElementTree.fromstring(draw_curves(rows))


def words_in(picture):
    return [text.text for text in picture.iter(f"{SVG}text")]


def lines_in(picture):
    return [
        [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        for line in picture.iter(f"{SVG}polyline")
    ]


def row(step, **more):
    return {"step": step, "loss": 5 / step, "learning_rate": 0.01 / step, "grad_norm": 1.0 + step % 3, **more}


def test_the_report_tells_the_run_and_shows_its_curves(in_tmp_path):
    run = create_run("a")
    run.update(name="a", stage="pretrain", status="done", machine="2 CPU cores", versions={"torch": "2"})
    run.update(results={"eval_loss": 1.5, "train_tokens": 1_000_000})
    write_report(run)
    assert "curves.svg" not in run.report_path.read_text()
    for step in range(1, 4):
        run.append_metrics(row(step))
    run.append_metrics({"step": 3, "eval_loss": 2.0, "bits_per_byte": 1.0})
    write_report(run)
    text = run.report_path.read_text()
    for words in ("# a\n", "Pretrain, done. Machine: 2 CPU cores.", "| eval_loss | 1.5000 |", "1,000,000", "torch 2"):
        assert words in text
    assert "![curves over the steps](curves.svg)" in text
    picture = ElementTree.parse(run.path / "curves.svg").getroot()
    assert [len(line) for line in lines_in(picture)] == [3, 1, 3, 3]


def test_predicted_and_actual_stand_side_by_side_with_their_ratio(in_tmp_path):
    run = create_run("a")
    run.update(status="done", results={"wall_seconds": 110.0, "memory_bytes": 3 * 2**30})
    run.update(predicted={"wall_seconds": 100.0, "memory_bytes": 4 * 2**30, "basis": "measured here"})
    write_report(run)
    text = run.report_path.read_text()
    assert "| time | 100 s | 110 s | 1.10 |" in text
    assert "| memory, at most | 4.00 GiB | 3.00 GiB | 0.75 |" in text
    assert "The prediction: measured here." in text
    run.update(status="stopped")
    write_report(run)
    assert "predicted" not in run.report_path.read_text(), "half a run tells nothing of the whole"


def test_loss_learning_rate_and_gradient_norm_have_an_axis_each():
    picture = picture_of([row(step) for step in range(1, 50)])
    words = words_in(picture)
    assert [panel.title for panel in PANELS if panel.title in words] == ["loss", "learning rate", "gradient norm"]
    frames = [box for box in picture.iter(f"{SVG}rect") if box.get("fill") == "none"]
    assert len(frames) == 3
    for line, frame in zip(lines_in(picture), frames, strict=True):
        left, top, wide, high = (float(frame.get(key)) for key in ("x", "y", "width", "height"))
        assert all(left - 0.1 <= x <= left + wide + 0.1 and top - 0.1 <= y <= top + high + 0.1 for x, y in line)


def test_a_stage_with_rewards_has_them_drawn():
    words = words_in(picture_of([row(1, reward=0.1), row(2, reward=0.4), {"step": 2, "score": 0.5}]))
    assert {"reward", "score", "training 0.4", "held out 0.5"} <= set(words)


def test_a_curve_is_drawn_where_its_numbers_are():
    rows = [{"step": 0, "loss": 4.0}, {"step": 50, "loss": 3.0}, {"step": 100, "loss": 2.0}]
    ((first, second, third),) = lines_in(picture_of(rows))
    assert first[0] < second[0] < third[0]
    assert second[0] - first[0] == pytest.approx(third[0] - second[0], abs=0.2)
    assert first[1] < second[1] < third[1], "up on the picture is a small y"
    assert second[1] - first[1] == pytest.approx(third[1] - second[1], abs=0.2)


def test_spikes_of_the_gradient_do_not_flatten_the_rest():
    rows = [{"step": step, "grad_norm": 1000.0 if step == 5 else 1.0 + step % 2} for step in range(20)]
    (line,) = lines_in(picture_of(rows))
    assert abs(line[0][1] - line[1][1]) > 5


@pytest.mark.parametrize(
    "values",
    [
        [2.0],
        [2.0, 2.0],
        [-1.0, 1e9],
        [0.0, 0.0],
        [float("nan"), 1.0],
        [float("inf"), 1.0, 2.0],
        [1e-9, 1.0],
        [-5.0, 3.0],
    ],
)
@pytest.mark.parametrize("name", ["loss", "grad_norm", "learning_rate"])
def test_curves_of_any_shape_are_well_formed_and_inside_the_picture(name, values):
    picture = picture_of([{"step": step, name: value} for step, value in enumerate(values)])
    _, _, width, height = map(float, picture.get("viewBox").split())
    assert lines_in(picture)
    for x, y in (point for line in lines_in(picture) for point in line):
        assert 0 <= x <= width
        assert 0 <= y <= height


def test_nothing_to_draw_is_no_picture():
    assert draw_curves([]) is None
    assert draw_curves([{"step": 1, "loss": float("nan")}]) is None


@pytest.mark.parametrize(
    ("low", "high", "about", "ticks"),
    [(0, 10, 5, [0, 2, 4, 6, 8, 10]), (1.6, 5.6, 5, [2, 3, 4, 5]), (0, 1e-3, 2, [0, 5e-4, 1e-3]), (3, 3, 5, [3])],
)
def test_marks_are_round_numbers(low, high, about, ticks):
    assert _ticks(low, high, about) == pytest.approx(ticks)


def test_marks_of_a_logarithmic_axis_are_round_too():
    assert _powers(0.8, 6) == pytest.approx([1, 2, 5])
    assert _powers(0.002, 300) == pytest.approx([0.01, 0.1, 1, 10, 100])
