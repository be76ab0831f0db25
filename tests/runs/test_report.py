"""The report of a run and of a pipeline: results, warnings, predictions, samples and curves."""

import pytest
from support.pictures import SVG, curves, cut_off, overlapping, parse, place_of, texts

from llm_lab.runs.axis import powers, tick_labels, ticks
from llm_lab.runs.charts import PANELS, draw_curves, draw_predictions, draw_scores
from llm_lab.runs.describe import warnings_of
from llm_lab.runs.folder import create_run
from llm_lab.runs.lock import this_process
from llm_lab.runs.report import write_pipeline_report, write_report


def picture_of(rows):
    return parse(draw_curves(rows))


def metrics_row(step, **more):
    return {"step": step, "loss": 5 / step, "learning_rate": 0.01 / step, "grad_norm": 1.0 + step % 3, **more}


def test_the_report_has_the_results_and_the_curves_of_a_run(in_tmp_path):
    run = create_run("a")
    run.update(name="a", stage="pretrain", status="done", machine="2 CPU cores", versions={"torch": "2"})
    run.update(results={"eval_loss": 1.5, "train_tokens": 1_000_000})
    write_report(run)
    assert "curves.svg" not in run.report_path.read_text()
    for step in range(1, 4):
        run.append_metrics(metrics_row(step))
    run.append_metrics({"step": 3, "eval_loss": 2.0, "bits_per_byte": 1.0})
    write_report(run)
    text = run.report_path.read_text()
    for words in (
        "# a\n",
        "Pretraining, done.",
        "Machine: 2 CPU cores.",
        "| validation loss | 1.5000 | nats per token (pretraining, SFT) |",
        "| tokens | 1.0 M |",
        "torch 2",
    ):
        assert words in text
    assert "![curves over the steps](curves.svg)" in text
    picture = parse((run.path / "curves.svg").read_text())
    assert [len(line) for line in curves(picture)] == [3, 1, 3, 3]


def test_predicted_and_actual_are_compared_with_their_ratio(in_tmp_path):
    run = create_run("a")
    run.update(status="done", results={"wall_seconds": 110.0, "memory_bytes": 3 * 2**30})
    run.update(predicted={"wall_seconds": 100.0, "memory_bytes": 4 * 2**30, "basis": "measured here"})
    write_report(run)
    text = run.report_path.read_text()
    assert "| training time | 100 s | 110 s | 1.10 |" in text
    assert "| training time | 1:50 |  | Time spent" in text, "the value has its unit already"
    assert "| peak memory | 4.0 GiB | 3.0 GiB | 0.75 |" in text
    assert "Prediction: measured here." in text
    run.update(status="stopped")
    write_report(run)
    assert "predicted" not in run.report_path.read_text(), "half a run says nothing about the whole"


def test_loss_learning_rate_and_gradient_norm_have_their_own_axes():
    picture = picture_of([metrics_row(step) for step in range(1, 50)])
    words = texts(picture)
    assert [panel.title for panel in PANELS if panel.title in words] == ["loss", "learning rate", "gradient norm"]
    (_, first), (_, second) = (place_of(picture, title) for title in ("loss", "learning rate"))
    loss, rate, norm = curves(picture)
    assert all(first < y < second for _, y in loss)
    assert all(y > second for _, y in rate + norm)
    assert max(x for x, _ in rate) < place_of(picture, "gradient norm")[0] < min(x for x, _ in norm)


def test_rewards_and_exact_match_are_drawn():
    scores = {"eval_reward_sampled": 0.5, "exact_match": 0.7, "exact_match_sampled": 0.6}
    rows = [
        {"step": 0, **scores},
        metrics_row(1, reward=0.1, kl=0.0),
        metrics_row(2, reward=0.4, kl=0.02),
        {"step": 2, **scores},
    ]
    words = texts(picture_of(rows))
    wanted = [
        "reward",
        "training 0.400",
        "held-out sampled 0.500",
        "exact match (%)",
        "greedy 70.0 %",
        "sampled 60.0 %",
    ]
    assert {*wanted, "KL"} <= set(words)
    titles = [word for word in words if word.split(" (")[0] in {panel.title for panel in PANELS}]
    assert titles == ["reward", "exact match (%)", "KL", "loss", "learning rate", "gradient norm"], "the reward leads"


def test_a_loss_that_hardly_moves_has_numbers_that_people_read():
    rows = [{"step": step, "loss": 0.6931 - 1e-7 * step, "margin": -1e-7 * step} for step in range(100)]
    words = texts(picture_of(rows))
    at_the_axis = {word for word in words if word.startswith("0.69")}
    assert len(at_the_axis) >= 3
    assert max(map(len, at_the_axis)) == len("0.6931")
    assert "-0.000" not in words
    assert "training 0.000" in words


def test_a_single_point_gets_no_panel_next_to_curves():
    rows = [metrics_row(1), metrics_row(2), {"step": 2, "exact_match": 0.5, "eval_loss": 1.0}]
    words = texts(picture_of(rows))
    assert "exact match" not in words
    assert "validation 1.0000" in words


def test_a_curve_is_drawn_where_its_numbers_are():
    rows = [{"step": 0, "loss": 4.0}, {"step": 50, "loss": 3.0}, {"step": 100, "loss": 2.0}]
    ((first, second, third),) = curves(picture_of(rows))
    assert first[0] < second[0] < third[0]
    assert second[0] - first[0] == pytest.approx(third[0] - second[0], abs=0.2)
    assert first[1] < second[1] < third[1], "up on the picture is a small y"
    assert second[1] - first[1] == pytest.approx(third[1] - second[1], abs=0.2)


def test_spikes_of_the_gradient_do_not_flatten_the_rest():
    rows = [{"step": step, "grad_norm": 1000.0 if step == 5 else 1.0 + step % 2} for step in range(20)]
    (line,) = curves(picture_of(rows))
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
    assert curves(picture)
    for x, y in (point for line in curves(picture) for point in line):
        assert 0 <= x <= width
        assert 0 <= y <= height


def test_there_is_no_picture_without_anything_to_draw():
    assert draw_curves([]) is None
    assert draw_curves([{"step": 1, "loss": float("nan")}]) is None


@pytest.mark.parametrize(
    ("low", "high", "about", "marks"),
    [(0, 10, 5, [0, 2, 4, 6, 8, 10]), (1.6, 5.6, 5, [2, 3, 4, 5]), (0, 1e-3, 2, [0, 5e-4, 1e-3]), (3, 3, 5, [3])],
)
def test_axis_labels_are_round_numbers(low, high, about, marks):
    assert ticks(low, high, about) == pytest.approx(marks)


def test_labels_of_a_logarithmic_axis_are_round_too():
    assert powers(0.8, 6) == pytest.approx([1, 2, 5])
    assert powers(0.002, 300) == pytest.approx([0.01, 0.1, 1, 10, 100])


@pytest.mark.parametrize(
    ("low", "high"), [(4.6061, 4.6064), (0.0095, 0.0205), (1000.01, 1000.05), (0.0, 3e-5), (-0.0003, 0.0002), (0, 1)]
)
def test_the_numbers_of_an_axis_differ_and_are_exact(low, high):
    marks = ticks(low, high, 4)
    labels = tick_labels(marks)
    assert len(set(labels)) == len(marks) > 1
    assert [float(text.replace(",", "")) for text in labels] == pytest.approx(marks, rel=1e-12, abs=1e-15)


def test_a_curve_within_a_narrow_range_has_different_numbers_on_its_axis():
    rows = [{"step": step, "loss": 4.6061 + 0.0001 * step} for step in range(1, 4)]
    at_the_axis = [text for text in texts(picture_of(rows)) if text.startswith("4.6")]
    assert len(set(at_the_axis)) == len(at_the_axis) > 2


def test_the_axis_of_a_quantity_that_was_always_zero_does_not_go_below_zero():
    picture = picture_of([metrics_row(step, token_accuracy=0.0) for step in (1, 2, 3)])
    assert any("token accuracy" in text for text in texts(picture))
    assert not any(text.startswith(("-", "−")) for text in texts(picture))


def test_no_label_overlaps_another():
    rows = [{"step": step, **dict.fromkeys(metrics_of_all(), 0.123456 * step)} for step in (1, 50, 100)]
    picture = picture_of(rows)
    assert not overlapping(picture)
    assert not cut_off(picture)


def metrics_of_all():
    return [key for panel in PANELS for key in panel.keys]


def test_samples_are_shown_from_the_first_a_middle_and_the_last_evaluation(in_tmp_path):
    run = create_run("a")
    run.samples_path.write_text(
        "".join(f"## Step {step}\n\nPrompt: `x`\n\n> text {step}\n\n" for step in range(0, 50, 10))
    )
    write_report(run)
    text = run.report_path.read_text()
    assert [f"> text {step}" in text for step in range(0, 50, 10)] == [True, False, True, False, True]
    assert "**Step 20**" in text


def test_the_report_has_the_full_recipe(in_tmp_path):
    run = create_run("a")
    run.write_recipe("stage: pretrain\nsamples: {prompts: ['```']}\n")
    write_report(run)
    text = run.report_path.read_text()
    assert "<details><summary>Full recipe</summary>\n\n````yaml\nstage: pretrain\n" in text


def test_data_evaluations_and_lineage_are_in_the_report(in_tmp_path):
    run = create_run("a")
    run.update(stage="sft", parent={"path": "gone/model", "digest": "1"})
    run.update(data=[{"path": "a|b.jsonl", "fingerprint": "f" * 64, "read": 5, "kept": 4, "dropped": {"empty": 1}}])
    (run.path / "evaluations.jsonl").write_text('{"results": {"bits_per_byte": 1.5}}\n')
    write_report(run)
    text = run.report_path.read_text()
    assert "| `a\\|b.jsonl` | `ffffffffffff` | 4 of 5 rows kept (1 dropped: empty) |" in text
    assert "bits per byte 1.5000" in text
    assert "gone/model (missing) -> sft (checkpoints/a)" in text


def test_warnings_come_first(in_tmp_path):
    run = create_run("a")
    run.update(stage="pretrain", status="stopped", device="cpu", results={"step": 7})
    run.update(exhausted={"path": "short.txt", "step": 7, "max_steps": 9}, warnings=["3 examples were cut"])
    warnings = warnings_of(run)
    assert warnings[-1] == "3 examples were cut"
    for words in ("stopped at step 7", "CPU mode", "short.txt ran out of data", "No data was held out"):
        assert any(words in line for line in warnings)
    write_report(run)
    assert all(f"> - {line}" in run.report_path.read_text() for line in warnings)


def test_scores_of_stages_are_dots_at_their_values():
    scores = {"sft": {"exact_match": 0.5, "exact_match_sampled": 0.25, "seconds": 1.0}, "dpo": {"exact_match": 1.0}}
    picture = parse(draw_scores(scores))
    left, right = place_of(picture, "0 %")[0], place_of(picture, "100 %")[0]
    dots = [
        (float(dot.get("cx")) - left) / (right - left) for dot in picture.iter(f"{SVG}circle") if dot.get("r") == "5"
    ]
    assert dots == pytest.approx([0.5, 0.25, 1.0], abs=1e-3)
    assert {"sft", "dpo", "100 %", "greedy", "sampled"} <= set(texts(picture))
    assert draw_scores({"merge": {"seconds": 1.0}}) is None
    assert "held-out reward sampled" in texts(parse(draw_scores({"ppo": {"reward": -2.0, "seconds": 1.0}})))


def test_bars_of_predicted_and_actual_have_the_lengths_of_their_values():
    picture = parse(draw_predictions([("time", 50.0, 100.0, "50 s", "100 s")]))
    first, second = (float(box.get("width")) for box in picture.iter(f"{SVG}rect") if box.get("x"))
    assert second == pytest.approx(2 * first, abs=0.2)
    assert draw_predictions([]) is None


def test_the_report_of_a_pipeline_has_its_scores_and_stages(in_tmp_path):
    outer = create_run("life")
    for name, exact in (("sft", 0.5), ("dpo", 0.75)):
        stage = create_run(name, root=outer.path)
        stage.update(stage=name, status="done", results={"exact_match": exact, "wall_seconds": 90.0})
    scores = {"sft": {"exact_match": 0.5, "seconds": 90.0}, "dpo": {"exact_match": 0.75, "seconds": 90.0}}
    outer.update(name="life", status="done", stages=["sft", "dpo"], results={"scores": scores})
    outer.write_recipe("stages: []\n")
    write_pipeline_report(outer)
    text = outer.report_path.read_text()
    assert "![scores of the stages](scores.svg)" in text
    assert parse((outer.path / "scores.svg").read_text()) is not None
    assert "| dpo | 75.0 % | 90 s |" in text
    assert "| [dpo](dpo/report.md) | dpo | done | exact match (greedy) 75.0 % | 90 s |" in text
    assert "stages: []" in text


def test_a_report_says_that_no_data_was_held_out_only_if_that_is_so(in_tmp_path):
    def says_so(status, fraction):
        run = create_run("a")
        recipe = {"validation": {"fraction": fraction}}
        with run.hold():
            run.update(stage="pretrain", status=status, process=this_process(), recipe=recipe, results={"step": 7})
            return any("No data was held out" in line for line in warnings_of(run))

    assert not says_so("running", 0.1)  # its first evaluation comes later
    assert not says_so("stopped", 0.1)
    assert says_so("running", 0)
    assert says_so("done", 0.1)
