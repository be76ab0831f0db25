"""What one would do next after a run, and where that leads."""

from __future__ import annotations

from pathlib import Path

from llm_lab.runs.folder import RunFolder, is_judge, runs_named
from llm_lab.terminal.prompts import Option, choose

from .start_model import is_adapter

LINES = {
    "chat": "Talk to it",
    "eval": "Measure it: loss, answers, speed, tasks",
    "export": "Export it: a form for others to load",
    "merge": "Merge the adapter into its base",
    "sft": "Fine-tune it to answer (SFT)",
    "reward": "Train a reward model from it",
    "dpo": "DPO: prefer better answers",
    "grpo": "GRPO: try, score, do more of what scored well",
    "ppo": "PPO: the same with a critic",
}
TAKEN_AWAY = ("eval", "export")
AFTER = {
    "pretrain": ("chat", "sft", *TAKEN_AWAY),
    "sft": ("chat", "dpo", "grpo", "ppo", "reward", *TAKEN_AWAY),
    "dpo": ("chat", "grpo", "ppo", *TAKEN_AWAY),
    "grpo": ("chat", "dpo", "ppo", *TAKEN_AWAY),
    "ppo": ("chat", "dpo", "grpo", *TAKEN_AWAY),
    "merge": ("chat", "sft", "dpo", "grpo", "ppo", *TAKEN_AWAY),
    "eval": (),
    "export": (),
    "reward": ("grpo", "ppo"),
}
WITH_IT = {"grpo": "GRPO with it as the reward", "ppo": "PPO with it as the reward"}
WHY = (
    "Usually: pretrain, SFT, then DPO (preferences are at hand) or GRPO or PPO (answers can be scored). A reward model "
    "scores where nothing can be checked. An adapter works as it is, and merged it is one plain model."
)


def finished_run(name: str) -> RunFolder | None:
    """Return the run that has just ended under a name, or None where it was stopped or never began."""
    runs = runs_named(name)
    return runs[-1] if runs and runs[-1].status() == "done" else None


def ways_on(run: RunFolder) -> list[str]:
    """Return what one would do with a run's result, the likeliest first."""
    stage = run.facts().get("stage", "")
    if stage == "merge" and is_judge(run.model_path):
        return []
    ways = list(AFTER.get(stage, ("chat",)))
    if stage not in ("reward", "merge", "eval", "export") and is_adapter(run.path):
        ways.insert(1, "merge")
    return ways


def start_of(run: RunFolder) -> tuple[str | None, str | None]:
    """Return (model, reward model) that the next stage begins with: of a reward model's run, what it judges."""
    if run.facts().get("stage") != "reward":
        return str(run.path), None
    parent = (run.facts().get("parent") or {}).get("path")
    folder = Path(parent) if parent else None
    if folder is not None and folder.name == "model" and RunFolder(folder.parent).facts():
        parent = str(folder.parent)
    return parent, str(run.path)


def ask_next(run: RunFolder) -> str:
    """Ask what to do with a run's result; "menu" for nothing. Raises Back."""
    judges = run.facts().get("stage") == "reward"
    options = [Option(way, WITH_IT[way] if judges else LINES[way]) for way in ways_on(run)]
    options.append(Option("menu", "Back to the menu"))
    return choose(f"What next with {run.path.name}?", options, why=WHY, above=12)
