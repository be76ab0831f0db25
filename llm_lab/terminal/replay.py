"""What is said before a line is replayed, and what came of it after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llm_lab.runs.replay import Replay, StageOutcome

from .console import make_console, one_line


def print_replay(replay: Replay, recipe: Path, changed: Sequence[str]) -> None:
    """Print the line that is made again, and what may make it come out otherwise."""
    from rich.text import Text

    console = make_console()
    count = len(replay.runs)
    console.print(
        Text(f"{one_line(replay.target.name)} again, in {count} stage{'s' if count > 1 else ''}:", style="title")
    )
    width = max(map(len, replay.runs))
    for stage, run in replay.runs.items():
        console.print(Text(f"  {stage.ljust(width)}  {one_line(str(run.path))}"), soft_wrap=True)
    for remark in (*changed, *replay.remarks):
        console.print(Text(f"Mind: {one_line(remark)}.", style="warn"))
    console.print(Text(f"The recipe: {recipe}"), soft_wrap=True)
    console.print()


def print_outcome(replay: Replay, path: Path, outcomes: Sequence[StageOutcome]) -> None:
    """Print run by run whether the weights are the same, and if not, what differs."""
    from rich.text import Text

    console = make_console()
    held = [outcome for outcome in outcomes if outcome.same is not None]
    if held and all(outcome.same for outcome in held):
        text = f"The same: all weights in {path} are bit for bit those of the original line."
        console.print(Text(text, style="good"), soft_wrap=True)
        return
    console.print(Text(f"Held against the original line of {one_line(replay.target.name)}:", style="title"))
    words = {True: "the same, bit for bit", False: "other weights", None: "no weights to hold against each other"}
    for outcome in outcomes:
        style = "good" if outcome.same else "warn"
        console.print(Text(f"  {outcome.stage}: {words[outcome.same]}", style=style))
        if not outcome.same:
            for difference in outcome.differences:
                console.print(Text(f"    {one_line(difference)}"))
