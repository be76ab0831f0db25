"""What one would do next after a run, and where that leads."""

from __future__ import annotations

from pathlib import Path

from llm_lab.recipe.merge import MERGE
from llm_lab.recipe.registry import STAGES, stage_of
from llm_lab.runs.folder import RunFolder, is_judge, runs_named
from llm_lab.terminal.prompts import Option, choose

from .start_model import is_adapter, is_reward_run

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
    stage = stage_of(run.facts())
    if stage is None:
        return ["chat"]
    if not stage.trains and is_judge(run.model_path):
        return []
    ways = ["chat", *stage.next] if stage.writes_text and stage.next else list(stage.next)
    if stage.trains and stage.writes_text and is_adapter(run.path):
        ways.insert(1, MERGE.name)
    return ways


def start_of(run: RunFolder) -> tuple[str | None, str | None]:
    """Return (model, reward model) that the next stage begins with: of a reward model's run, what it judges."""
    if not is_reward_run(run):
        return str(run.path), None
    parent = (run.facts().get("parent") or {}).get("path")
    folder = Path(parent) if parent else None
    if folder is not None and folder.name == "model" and RunFolder(folder.parent).facts():
        parent = str(folder.parent)
    return parent, str(run.path)


def ask_next(run: RunFolder) -> str:
    """Ask what to do with a run's result; "menu" for nothing. Raises Back."""
    options = [Option(way, _line(way, scores=is_reward_run(run))) for way in ways_on(run)]
    options.append(Option("menu", "Back to the menu"))
    return choose(f"What next with {run.path.name}?", options, why=WHY, above=12)


def _line(way: str, *, scores: bool) -> str:
    """Return how a next step is offered. scores: the run made a reward model."""
    if way == "chat":
        return "Chat with it"
    return f"{STAGES[way].label} with it as the reward" if scores else STAGES[way].next_step
