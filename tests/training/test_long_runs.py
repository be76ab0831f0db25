"""A long run needs as much memory as a short one, and its records cost next to nothing."""

import time
from pathlib import Path

import psutil
import pytest
from conftest import tiny_recipe, write_text

from llm_lab.events import MetricsLogged
from llm_lab.runner import run
from llm_lab.runs.folder import RunFolder
from llm_lab.training.trainer import LabTrainerMixin

STEPS = 5000
GROWTH_BYTES = 8 * 2**20  # over the second half of the run


@pytest.mark.slow
def test_memory_stays_flat_and_records_cost_under_a_percent_of_a_step(in_tmp_path, monkeypatch):
    write_text("text.txt")
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
    steps = {"train.max_steps": STEPS, "train.eval_steps": STEPS, "train.save_steps": STEPS, "train.logging_steps": 50}
    facts = run(tiny_recipe(**steps), listener=listener)
    seconds = RunFolder(Path(facts["path"])).metrics()[-1]["wall_seconds"]
    later = sizes[len(sizes) // 2 :]
    assert max(later) - later[0] < GROWTH_BYTES
    assert spent[0] < 0.01 * seconds
