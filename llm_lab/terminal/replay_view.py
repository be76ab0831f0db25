"""The output before a lineage is replayed, and the comparison with the original afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llm_lab.errors import sentence
from llm_lab.runs.replay import Replay, StageOutcome

from .console import make_console, one_line


def print_replay(replay: Replay, recipe: Path, changed: Sequence[str]) -> None:
    """Print the runs that will be replayed, and what may make the result differ."""
    from rich.text import Text

    console = make_console()
    count = len(replay.runs)
    title = f"Replaying {one_line(replay.target.name)} in {count} stage{'s' if count > 1 else ''}:"
    console.print(Text(title, style="title"))
    width = max(map(len, replay.runs))
    for stage, run in replay.runs.items():
        console.print(Text(f"  {stage.ljust(width)}  {one_line(str(run.path))}"), soft_wrap=True)
    for remark in (*changed, *replay.remarks):
        console.print(Text(f"Note: {sentence(one_line(remark))}", style="warn"))
    console.print(Text(f"Recipe: {recipe}"), soft_wrap=True)
    console.print()


def print_outcome(replay: Replay, path: Path, outcomes: Sequence[StageOutcome]) -> None:
    """Print for each run whether the weights are the same, and if not, what differs."""
    from rich.text import Text

    console = make_console()
    compared = [outcome for outcome in outcomes if outcome.same is not None]
    if compared and all(outcome.same for outcome in compared):
        text = f"Identical: all weights in {path} equal those of the original lineage, bit for bit."
        console.print(Text(text, style="good"), soft_wrap=True)
        return
    console.print(Text(f"Compared with the original lineage of {one_line(replay.target.name)}:", style="title"))
    words = {True: "identical, bit for bit", False: "different weights", None: "no weights to compare"}
    for outcome in outcomes:
        style = "good" if outcome.same else "warn"
        console.print(Text(f"  {outcome.stage}: {words[outcome.same]}", style=style))
        if not outcome.same:
            for difference in outcome.differences:
                console.print(Text(f"    {one_line(difference)}"))
