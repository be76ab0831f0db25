"""A long run needs as much memory as a short one, and its records cost next to nothing."""

import time
from pathlib import Path

import psutil
import pytest
from conftest import tiny_recipe, write_text
from support.post_runs import post_recipe, write_base

from llm_lab.events import MetricsLogged
from llm_lab.runner import run
from llm_lab.runs.folder import RunFolder
from llm_lab.training.trainer import LabTrainerMixin

STEPS = {"pretrain": 5000, "sft": 2000, "reward": 1500, "dpo": 1200, "grpo": 1000, "ppo": 1000}
GROWTH_BYTES = 8 * 2**20  # over the second half of the run


def recipe_of(stage: str) -> dict:
    if stage == "pretrain":
        write_text("text.txt")
        raw = tiny_recipe()
    else:
        write_base()
        raw = post_recipe(stage)
        # A reward that keeps its spread, so that the run neither collapses nor stops learning.
        raw["optimizer"]["learning_rate"] = 1e-4
    steps = STEPS[stage]
    raw["train"] |= {"max_steps": steps, "eval_steps": steps, "save_steps": steps, "logging_steps": 50}
    return raw


@pytest.mark.slow
@pytest.mark.parametrize("stage", STEPS)
def test_memory_stays_flat_and_records_cost_under_a_percent_of_a_step(stage, in_tmp_path, monkeypatch):
    sizes, spent, process = [], [0.0], psutil.Process()
    record = LabTrainerMixin.record

    def timed(self, row):
        started = time.perf_counter()
        record(self, row)
        spent[0] += time.perf_counter() - started

    def listener(event):
        if isinstance(event, MetricsLogged):
            sizes.append(process.memory_info().rss)

    monkeypatch.setattr(LabTrainerMixin, "record", timed)
    facts = run(recipe_of(stage), listener=listener)
    seconds = RunFolder(Path(facts["path"])).metrics()[-1]["wall_seconds"]
    later = sizes[len(sizes) // 2 :]
    assert len(later) >= 10
    assert max(later) - later[0] < GROWTH_BYTES
    assert spent[0] < 0.01 * seconds
