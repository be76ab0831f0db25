"""The plan: what a run will produce and cost, on one screen."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from rich.theme import Theme

from llm_lab.estimate.formatting import size
from llm_lab.estimate.machine import Gpu, Machine
from llm_lab.job import check
from llm_lab.recipe.resolve import resolve
from llm_lab.runs.plan_lines import BANNER, plan_lines
from llm_lab.terminal.console import PALETTE
from llm_lab.terminal.plan_panel import derived_table, plan_panel

LAPTOP = Machine((), "a CPU", 2, 16 * 2**30, True, False)
WORKSTATION = Machine((Gpu("NVIDIA H100", 80 * 2**30, (9, 0)),), "a CPU", 16, 128 * 2**30, True, True)


def fake_console():
    return Console(file=io.StringIO(), force_terminal=False, width=80, height=24, theme=Theme(PALETTE), highlight=False)


def shown(renderable):
    console = fake_console()
    console.print(renderable)
    return console.file.getvalue()


@pytest.mark.parametrize("machine", [LAPTOP, WORKSTATION], ids=["laptop", "workstation"])
@pytest.mark.parametrize("model", [{"size": "nano"}, {"size": "1b", "position_embedding": "yarn"}])
def test_the_plan_fits_the_screen(machine, model):
    data = [{"path": f"folder-{n}/file.txt", "weight": n} for n in range(1, 9)]
    resolved = resolve({"model": model, "data": data, "stage": "pretrain", "device": "auto"}, machine=machine)
    lines = shown(plan_panel(resolved)).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert all(len(line) <= 80 for line in shown(derived_table(resolved)).splitlines())


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_plan_is_as_wide_as_the_terminal_and_cuts_no_word(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    resolved = resolve({"stage": "pretrain", "data": [{"path": "my.txt"}], "device": "cpu"}, machine=LAPTOP)
    console = Console(file=io.StringIO(), width=width, theme=Theme(PALETTE))
    console.print(plan_panel(resolved))
    lines = console.file.getvalue().splitlines()
    assert {len(line) for line in lines} == {min(width, 110)}
    words = " ".join(line.strip("│ ") for line in lines)
    assert "771 k: feed-forward 541 k, attention 197 k, embedding 33 k, norms 1,152" in " ".join(words.split())


def test_the_memory_of_a_plan_names_its_largest_parts_and_the_rest_of_it():
    resolved = resolve({"stage": "pretrain", "data": [{"path": "my.txt"}], "device": "cpu"}, machine=LAPTOP)
    text = next(text for name, text, _ in plan_lines(resolved) if name == "memory")
    parts = sorted(resolved.estimate.memory_by_part.values())
    assert text.endswith(f", other {size(sum(parts[:-4]))}")


def test_the_plan_shows_what_is_made_and_what_it_costs():
    text = shown(
        plan_panel(resolve({"stage": "pretrain", "data": [{"path": "my.txt"}], "device": "cpu"}, machine=LAPTOP))
    )
    for wanted in (
        BANNER,
        "771 k: feed-forward",
        "my.txt",
        "1.0 M tokens",
        "of 16 GiB",
        "about ",
        "checkpoints/run",
    ):
        assert wanted in text, wanted


def test_the_plan_of_few_steps_never_rounds_the_tokens_per_parameter_to_nothing():
    def plan(steps):
        recipe = {"stage": "pretrain", "data": [{"path": "my.txt"}], "device": "cpu", "train": {"max_steps": steps}}
        return " ".join(shown(plan_panel(resolve(recipe, machine=LAPTOP))).replace("│", " ").split())

    assert "= 31 k tokens, 0.040 tokens per parameter (20 is usual)" in plan(15)
    assert "1.3 tokens per parameter" in plan(500)


def test_the_plan_for_a_gpu_has_no_cpu_mode_banner():
    resolved = resolve({"stage": "pretrain", "data": [{"path": "my.txt"}], "device": "cuda"}, machine=WORKSTATION)
    assert BANNER not in shown(plan_panel(resolved))


def test_every_derived_value_is_in_the_table_with_its_reason():
    resolved = resolve({"stage": "pretrain", "data": [{"path": "my.txt"}], "device": "cpu"}, machine=LAPTOP)
    words = " ".join(shown(derived_table(resolved)).split())
    derived = {path: origin for path, origin in resolved.origins.items() if origin.kind == "derived"}
    assert derived
    for path, origin in derived.items():
        assert path.rpartition(".")[2] in words
        assert origin.reason.split()[0] in words


UNKNOWN = {"stage": "sft", "device": "cpu", "model": {"checkpoint": "owner/model"}, "data": [{"path": "builtin:sums"}]}


def test_the_plan_of_a_model_of_unknown_size_counts_its_tokens():
    train = {"max_steps": 10, "max_length": 64, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    text = shown(plan_panel(resolve(UNKNOWN | {"train": train}, machine=LAPTOP)))
    assert "10 steps × at most 512 tokens = at most 5,120 tokens" in text


def test_the_plan_of_examples_on_disk_shows_steps_time_and_dropped_examples(in_tmp_path):
    config = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 500,
        "num_attention_heads": 4, "max_position_embeddings": 256, "tie_word_embeddings": True,
    }  # fmt: skip
    Path("base").mkdir()
    Path("base/config.json").write_text(json.dumps(config))
    good = {"prompt": "What is one and one?", "completion": "It is two."}
    rows = [*({**good, "prompt": f"{good['prompt']} ({n})"} for n in range(100)), {"prompt": "?", "completion": ""}]
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("checkpoints/mine").mkdir(parents=True)
    raw = {"stage": "sft", "device": "cpu", "name": "mine", "model": {"checkpoint": "base"}}
    raw |= {"data": [{"path": "mine.jsonl"}]}
    resolved = check(raw, machine=LAPTOP).stages[0]
    text = " ".join(shown(plan_panel(resolved)).replace("│", " ").split())
    train = resolved.examples.training
    assert 80 < train < 100
    steps = round(3 * train / 8)
    assert f"steps {steps}: 3 epochs of {train} examples, 8 sequences per step" in text
    assert "dropped 1 of 101 rows of mine.jsonl: " in text
    assert "time a few seconds (based on typical values): " in text
    assert "in checkpoints/mine-2/ " in text
    assert "Plan: mine-2 · sft" in text
    text = " ".join(shown(plan_panel(resolved, Path("checkpoints/mine"))).split())  # it resumes
    assert "Plan: mine · sft" in text
    assert "is taken" not in text
    assert resolved.values["train"].get("max_steps") is None  # the recipe still counts in epochs


@pytest.mark.parametrize(("name", "title"), [("sft", "Plan: sft ─"), ("tuned", "Plan: tuned · sft ─")])
def test_the_plan_names_the_stage_once(name, title):
    assert title in shown(plan_panel(resolve(UNKNOWN | {"name": name}, machine=LAPTOP)))


def test_the_title_of_the_plan_is_brighter_than_its_frame():
    panel = plan_panel(resolve(UNKNOWN | {"name": "tuned"}, machine=LAPTOP))
    styles = {part.text.strip(): part.style for part in fake_console().render(panel) if part.style}
    assert styles["Plan: tuned · sft"].dim is False
    assert styles["Plan: tuned · sft"].bold
