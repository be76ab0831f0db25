"""The page of a run's settings, as it looks in a narrow, a usual and a wide terminal."""

import re

import pytest
from support.screens import assert_matches_snapshot

from llm_lab.estimate.machine import Machine
from llm_lab.recipe.registry import STAGES
from llm_lab.terminal.driver import numbers_of
from llm_lab.terminal.page_lines import Place, _side, lay_out
from llm_lab.terminal.page_state import FormPage, filtered
from llm_lab.wizard.draft import Draft
from llm_lab.wizard.draft_page import page_question
from llm_lab.wizard.training_runs import run_page

CPU = Machine((), "a CPU", 8, 7 * 2**30, True, False)


@pytest.mark.parametrize(("columns", "rows"), [(60, 20), (80, 24), (120, 40)])
def test_a_page_fits_every_terminal(in_tmp_path, columns, rows):
    raw = {"stage": "pretrain", "name": "tales", "device": "cpu", "data": [{"path": "builtin:stories"}]}
    start = Draft(raw, CPU, STAGES["pretrain"].title)
    page = FormPage(page_question(start, start, run_page("pretrain")), lambda question, columns, most: [])
    row = page.form.row("optimizer.name")
    assert row is not None
    page.at = row.key
    page.change(row, "adamw")
    lines = ["".join(text for _, text in line) for line in lay_out(page, columns, rows, Place())]
    assert len(lines) <= rows
    assert max(map(len, lines)) < columns
    assert_matches_snapshot(f"page-{columns}x{rows}", lines)


def lines_at(key, texts):
    """Return the lines of a narrow page that points at a key."""
    raw = {"stage": "pretrain", "name": "tales", "device": "cpu", "data": [{"path": texts}]}
    start = Draft(raw, CPU, STAGES["pretrain"].title)
    page = FormPage(page_question(start, start, run_page("pretrain")), lambda question, columns, most: [])
    page.at = key
    return ["".join(text for _, text in line) for line in lay_out(page, 60, 24, Place())]


def test_the_value_of_the_pointed_row_is_shown_in_full_if_there_is_no_room_for_its_marks(in_tmp_path):
    lines = lines_at("data", "builtin:word-problems")
    assert any(line.split() == ["»", "data", "builtin:word-problems", "yours"] for line in lines)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_where_values_come_from_is_a_straight_column_also_next_to_a_value_that_is_cut(in_tmp_path, columns):
    checkpoint = "checkpoints/shakespeare-with-a-long-name-of-its-own-that-is-cut/model"
    raw = {"stage": "sft", "name": "shakespeare-sft", "device": "cpu", "model": {"checkpoint": checkpoint}}
    start = Draft(raw | {"data": [{"path": "builtin:sums"}]}, CPU, "Fine-tune (SFT)")
    page = FormPage(page_question(start, start, run_page("sft")), lambda question, columns, most: [])
    lines = ["".join(text for _, text in line) for line in lay_out(page, columns, 40, Place())]
    pattern = r"\s(yours|derived|default)(:| |$)(?!at the start)"
    origins = [re.search(pattern, line.partition("│")[0]) for line in lines[4:24]]
    assert len({found.start() for found in origins if found}) == 1
    assert any(re.match(r"  model +\S+…\S+ ", line) for line in lines)


@pytest.mark.parametrize(("columns", "rows"), [(60, 20), (80, 24)])
def test_the_recipe_of_a_page_fits_a_narrow_terminal(in_tmp_path, columns, rows):
    raw = {"stage": "pretrain", "name": "tales", "device": "cpu", "data": [{"path": "builtin:stories"}]}
    start = Draft(raw, CPU, STAGES["pretrain"].title)
    page = FormPage(page_question(start, start, run_page("pretrain")), lambda question, columns, most: [])
    page.show_recipe = True
    lines = ["".join(text for _, text in line) for line in lay_out(page, columns, rows, Place())]
    assert max(map(len, lines)) < columns
    assert_matches_snapshot(f"recipe-{columns}x{rows}", lines)


@pytest.mark.parametrize(("columns", "lines", "is_whole"), [(59, 1, False), (79, 3, False), (119, 20, True)])
def test_the_numbers_above_a_page_are_whole_sentences(in_tmp_path, columns, lines, is_whole):
    raw = {"stage": "pretrain", "name": "tales", "device": "cpu", "data": [{"path": "builtin:stories"}]}
    start = Draft(raw, CPU, STAGES["pretrain"].title)
    question = page_question(start, start, run_page("pretrain"))
    shown = ["".join(text for _, text, *_ in line) for line in numbers_of(question, columns, lines)]
    text = " ".join(line.strip() for line in shown)
    assert text.startswith("771 k parameters, 500 steps = 1.0 M tokens, ")
    assert ("of memory" in text, "┤" in text, "Learning rate" in text) == (True, is_whole, is_whole)


@pytest.mark.parametrize(("columns", "rows"), [(60, 20), (80, 24)])
def test_the_memory_of_examples_that_were_not_read_yet_is_an_upper_limit_that_says_why(in_tmp_path, columns, rows):
    raw = {"stage": "sft", "device": "cpu", "model": {"checkpoint": "openai-community/gpt2"}}
    start = Draft(raw | {"data": [{"path": "builtin:sums"}], "train": {"max_steps": 20}}, CPU, "Fine-tune (SFT)")
    page = FormPage(page_question(start, start, run_page("sft")), numbers_of)
    page.at = "lora"
    lines = ["".join(text for _, text, *_ in line) for line in lay_out(page, columns, rows, Place())]
    assert max(map(len, lines)) < columns
    shown = " ".join(" ".join(lines).split())
    assert re.search(
        r"at most [\d.]+ [MG]iB of memory and [\d:]+ \w+ with full sequences; the plan measures your data", shown
    )
    assert re.search(r"(Up to|Does not fit: up to) [\d.]+ [MG]iB of 7.0 GiB", shown)


@pytest.mark.parametrize(("typed", "key"), [("lr", "optimizer.learning_rate"), ("wd", "optimizer.weight_decay"),
                         ("bs", "train.per_device_train_batch_size"), ("seq len", "train.max_length"),
                         ("ctx", "train.max_length"), ("train.max_steps", "train.max_steps")])  # fmt: skip
def test_settings_are_found_by_their_usual_short_names_and_by_their_keys(in_tmp_path, typed, key):
    start = Draft({"stage": "pretrain", "device": "cpu", "data": [{"path": "builtin:stories"}]}, CPU, "Pretrain")
    rows = page_question(start, start, run_page("pretrain")).form.rows
    assert key in [row.key for row in filtered(rows, typed)][:2]


def test_a_row_that_a_filter_found_stays_in_view_when_its_value_changes(in_tmp_path):
    raw = {"stage": "sft", "device": "cpu", "model": {"checkpoint": "openai-community/gpt2"}}
    start = Draft(raw | {"data": [{"path": "builtin:sums"}]}, CPU, "Fine-tune (SFT)")
    page = FormPage(page_question(start, start, run_page("sft")), lambda question, columns, most: [])
    page.type_filter("lora")
    assert page.at == "lora"
    page.step(1)
    assert (page.at, page.row.value) == ("lora", "LoRA: an adapter")
    page.step(-1)
    assert (page.at, page.row.value) == ("lora", "all weights")


def test_a_filter_finds_the_setting_whose_value_or_choice_it_names_before_the_ones_whose_help_has_it(in_tmp_path):
    (in_tmp_path / "model").mkdir()
    start = Draft({"stage": "export", "device": "cpu", "model": {"checkpoint": "model"}}, CPU, "Export")
    for form in ("hf", "gguf"):
        draft = start.with_answer("export.to", form)
        rows = page_question(draft, draft, run_page("export")).form.rows
        assert [row.key for row in filtered(rows, "gguf")] == ["export.to"]


def test_a_refused_value_says_what_is_allowed(in_tmp_path):
    raw = {"stage": "pretrain", "name": "tales", "device": "cpu", "data": [{"path": "builtin:stories"}]}
    start = Draft(raw, CPU, STAGES["pretrain"].title)
    page = FormPage(page_question(start, start, run_page("pretrain")), lambda question, columns, most: [])
    page.show("all")
    row = page.form.row("scheduler.warmup_steps")
    assert row is not None
    page.at = row.key
    page.change(row, "-1")
    lines = ["".join(text for _, text in line) for line in lay_out(page, 80, 24, Place())]
    at = lines.index("-1 is not allowed.")
    assert lines[at + 1].startswith("Allowed: a whole number of at least 0.")


def test_help_that_has_no_room_ends_with_an_ellipsis(in_tmp_path):
    lines = lines_at("train.max_steps", "builtin:stories")
    allowed = next(line for line in lines if line.startswith("Allowed:"))
    assert allowed.endswith(" …")


@pytest.mark.parametrize(("warmup", "rises"), [(0, False), (100, True)])
def test_the_curve_of_the_learning_rate_begins_as_the_schedule_does(in_tmp_path, warmup, rises):
    raw = {"stage": "pretrain", "name": "tales", "device": "cpu", "data": [{"path": "builtin:stories"}]}
    raw |= {"scheduler": {"name": "linear", "warmup_steps": warmup}}
    start = Draft(raw, CPU, STAGES["pretrain"].title)
    question = page_question(start, start, run_page("pretrain"))
    shown = ["".join(text for _, text, *_ in line) for line in numbers_of(question, 119, 20)]
    highest, lowest = [line.partition("┤")[2] for line in shown if "┤" in line]
    assert [highest[0] != " ", lowest[0] != " "] == [not rises, rises]


def test_the_help_of_a_row_names_its_group_above_what_the_group_is(in_tmp_path):
    raw = {"stage": "pretrain", "name": "tales", "device": "cpu", "data": [{"path": "builtin:stories"}]}
    start = Draft(raw, CPU, STAGES["pretrain"].title)
    page = FormPage(page_question(start, start, run_page("pretrain")), lambda question, columns, most: [])
    page.show("train")
    page.at = "train.max_grad_norm"
    help_lines = ["".join(text for _, text in line) for line in _side(page, 200)]
    assert help_lines[-1] == "Group train: length, batches, evaluation and precision of the run."


def test_a_page_says_none_where_a_recipe_has_null(in_tmp_path):
    raw = {"stage": "ppo", "name": "tales", "device": "cpu", "model": {"checkpoint": "checkpoints/tales"}, "lora": {}}
    start = Draft(raw | {"data": [{"path": "builtin:sums"}]}, CPU, "PPO")
    form = page_question(start, start, run_page("ppo")).form
    texts = [*form.sections.values(), *(text for row in form.rows for text in (row.value, row.reason, row.help))]
    assert not [text for text in texts if "null" in text or "none: none" in text]


def test_a_value_that_only_the_run_can_derive_is_shown_as_derived_at_the_start(in_tmp_path):
    raw = {"stage": "sft", "name": "tales", "device": "cpu", "model": {"checkpoint": "checkpoints/tales"}}
    start = Draft(raw | {"data": [{"path": "builtin:sums"}]}, CPU, "Fine-tune (SFT)")
    page = FormPage(page_question(start, start, run_page("sft")), lambda question, columns, most: [])
    for key in ("train.eval_steps", "train.save_steps", "train.logging_steps"):
        page.show("train")
        page.at = key
        shown = ["".join(text for _, text in line) for line in _side(page, 200)]
        assert "Now derived at the start." in shown
        row = page.form.row(key)
        assert (row.value, row.shown_origin) == ("derived at the start", "")
