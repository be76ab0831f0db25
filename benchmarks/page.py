"""The web interface in a real Chromium: the list of 500 runs, and the first curve of a run with 100,000 lines."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS, RUNS, LINES = 5, 500, 100_000
GOALS = {"list of 500 runs": 0.3, "first curve of 100,000 lines": 0.5, "the same, read before": 0.5}


def bench(full: bool) -> None:
    """Print the seconds from the request of a page to its last row, and to its first curve. Needs Playwright."""
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        print("Chromium is not installed.")
        return
    seconds: dict[str, list[float]] = {name: [] for name in GOALS}
    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        _write_runs(Path(home) / "checkpoints")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for _ in range(ROUNDS):  # a new server each time, because a server caches what it has read
            command = [sys.executable, "-m", "llm_lab.cli", "web", "--port", "0"]
            server = subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, text=True)
            assert server.stdout is not None
            link = next(found for line in server.stdout if (found := re.search(r"http://\S+start=\S+", line)))[0]
            page = browser.new_page()
            page.goto(link)
            time.sleep(1)
            for name, address, last in zip(
                GOALS,
                ("", "runs/r7", "runs/r7"),
                ("tbody tr >> nth=499", ".u-over >> nth=0", ".u-over >> nth=0"),
                strict=True,
            ):
                started = time.perf_counter()
                page.goto(link.split("?")[0] + address, wait_until="commit")
                page.locator(last).wait_for(state="attached")
                seconds[name].append(time.perf_counter() - started)
                page.wait_for_timeout(1500)
                page.goto(link.split("?")[0] + "models")
            page.close()
            server.terminate()
            server.wait()
        browser.close()
    print("| what | seconds | goal |\n| --- | --- | --- |")
    for name, found in seconds.items():
        print(f"| {name} | {statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f}) | {GOALS[name]} |")


def _write_runs(root: Path) -> None:
    draw = random.Random(0)
    for number in range(RUNS):
        folder = root / f"r{number}"
        folder.mkdir(parents=True)
        facts = {"name": folder.name, "stage": "pretrain", "status": "done", "parameters": 123_456}
        (folder / "run.json").write_text(json.dumps(facts | {"results": {"eval_loss": 2.5}}))
    with open(root / "r7" / "metrics.jsonl", "w") as file:
        for step in range(1, LINES + 1):
            row = {"step": step, "train_tokens": 768 * step, "wall_seconds": 0.5 * step}
            row |= {"loss": 2 + 3 * math.exp(-step / 9000) + draw.gauss(0, 0.08), "learning_rate": 1e-3 / step}
            row |= {"grad_norm": draw.random(), "tokens_per_second": round(draw.gauss(11_000, 300), 1)}
            file.write(json.dumps(row) + "\n")
