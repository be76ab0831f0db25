"""Run folders as a run writes them, without training anything."""

import json
from pathlib import Path

from llm_lab.runs.lock import this_process

RECIPE = """stage: pretrain
name: {name}
train:
  max_steps: {max_steps}
  per_device_train_batch_size: 6
optimizer:
  name: muon
  learning_rate: {learning_rate}            # derived: fits the width
"""


def write_run(home: Path, name: str, *, rows=(), max_steps=100, learning_rate=0.01, **facts) -> Path:
    """Write a run with these rows of metrics.jsonl, done unless facts say otherwise; return its folder."""
    folder = home / "checkpoints" / name
    folder.mkdir(parents=True, exist_ok=True)
    known = {
        "name": folder.name,
        "stage": "pretrain",
        "status": "done",
        "created_at": 1_790_000_000.0,
        "parameters": 123_456,
        "data": [{"path": "text.txt", "fingerprint": "f" * 64}],
        "process": this_process(),
        **facts,
    }
    (folder / "run.json").write_text(json.dumps(known))
    recipe = RECIPE.format(name=folder.name, max_steps=max_steps, learning_rate=learning_rate)
    (folder / "recipe.yaml").write_text(recipe)
    (folder / "metrics.jsonl").write_text(lines(rows))
    return folder


def row(step, loss=None, **others):
    """Return a row of metrics.jsonl."""
    losses = {} if loss is None else {"loss": loss}
    return {"step": step, "train_tokens": 768 * step, "wall_seconds": 0.5 * step, **losses, **others}


def lines(rows) -> str:
    """Return rows as the text of metrics.jsonl."""
    return "".join(json.dumps(one) + "\n" for one in rows)


def append(folder: Path, *rows) -> None:
    """Append rows to the metrics.jsonl of a run."""
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(lines(rows))
