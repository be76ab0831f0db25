"""A real run is watched, stopped and resumed from its page, which also shows the output of a command that failed."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from support.web_runs import row, write_run

from llm_lab.runs.folder import RunFolder

expect = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed").expect
SECONDS = 90_000  # a process that imports torch on a busy machine
RECIPE = {
    "stage": "pretrain",
    "name": "watched",
    "device": "cpu",
    "model": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2},
    "tokenizer": "bytes",
    "data": [{"path": "text.txt"}],
    "validation": {"fraction": 0.1},
    "train": {"max_steps": 20_000, "max_length": 32, "per_device_train_batch_size": 4, "logging_steps": 5},
}


@pytest.mark.slow
def test_a_run_is_watched_stopped_and_resumed_from_its_page(page, server):
    (server.home / "text.txt").write_text("All work and no play makes Jack a dull boy. " * 400)
    (server.home / "watched.json").write_text(json.dumps(RECIPE))
    subprocess.Popen([sys.executable, "-m", "llm_lab.cli", "run", "watched.json"], cwd=server.home)
    run = RunFolder(server.home / "checkpoints" / "watched")
    page.set_default_timeout(SECONDS)
    page.goto(server.link)
    page.get_by_role("link", name="watched").click()
    status = page.locator("#about .status")
    expect(status).to_have_text("running", timeout=SECONDS)
    loss = page.locator('section[data-measure="loss"] .chart-key b').first
    expect(loss).to_be_visible(timeout=SECONDS)
    first = loss.text_content()
    expect(loss).not_to_have_text(first, timeout=SECONDS)

    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_role("button", name="Keep it running").click()
    expect(status).to_have_text("running")
    page.get_by_role("button", name="Stop", exact=True).press("Enter")
    page.get_by_role("button", name="Stop and save").press("Enter")
    expect(status).to_have_text("stopped", timeout=SECONDS)
    assert run.status() == "stopped"
    stopped_at = run.facts()["results"]["step"]
    assert run.checkpoints()[-1][0] == stopped_at > 0

    page.get_by_role("button", name="Resume").click()
    expect(status).to_have_text("running", timeout=SECONDS)
    end = time.monotonic() + 90
    while run.metrics()[-1]["step"] <= stopped_at:
        assert time.monotonic() < end
        time.sleep(0.1)
    steps = [row["step"] for row in run.metrics() if "loss" in row]
    assert steps == sorted(set(steps))
    page.get_by_role("tab", name="Warnings").click()
    expect(page.locator("#log-text pre")).to_contain_text("resumes after step", timeout=SECONDS)
    os.kill(run.facts()["process"]["pid"], signal.SIGINT)
    expect(status).to_have_text("stopped", timeout=SECONDS)


@pytest.mark.slow
def test_the_output_of_a_failed_resume_is_shown(page, server):
    write_run(server.home, "broken-recipe", status="stopped", rows=[row(3, 2.0)])
    page.set_default_timeout(SECONDS)
    page.goto(server.link)
    page.get_by_role("link", name="broken-recipe").click()
    page.get_by_role("button", name="Resume").click()
    notice = page.get_by_role("alert")
    expect(notice.locator("p")).to_contain_text("this key is required", timeout=SECONDS)
    notice.get_by_text("All that it printed").click()
    expect(notice).to_contain_text("llm-lab run checkpoints/broken-recipe --resume")
    expect(page.get_by_role("button", name="Resume")).to_be_enabled()
