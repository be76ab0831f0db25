"""All stages of the demo over several seeds: does each stage add more than the variation between seeds?

python -m benchmarks.life [SEED ...]        (a few minutes per seed; default: seeds 1 2 3)
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

START = "sft"
COLUMNS = ("exact_match", "exact_match_sampled", "reward")
Scores = dict[str, dict[str, float]]


def study(seeds: Sequence[int], recipe: str = "configs/demo.yaml") -> list[Scores]:
    """Return the scores of every stage for each seed."""
    from llm_lab.runner import run

    found = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            facts = run(recipe, [f"seed={seed}", f"name=life-{seed}"], root=Path(folder))
            found.append(facts["results"]["scores"])
            print(f"seed {seed}: {found[-1]}", file=sys.stderr, flush=True)
    return found


def describe(seeds: Sequence[int], found: Sequence[Scores]) -> str:
    """Return two tables: the scores, and each stage's gain over the SFT stage, compared with the spread over seeds."""
    lines = [f"Seeds {', '.join(map(str, seeds))}: mean with the range in brackets.", ""]
    lines += ["| stage | exact match | sampled | reward | time |", "| --- | --- | --- | --- | --- |"]
    for stage in found[0]:
        cells = [_cell([scores[stage][name] for scores in found if name in scores[stage]]) for name in COLUMNS]
        seconds = statistics.mean(scores[stage]["seconds"] for scores in found)
        lines.append(f"| {stage} | {' | '.join(cells)} | {seconds:.0f} s |")
    lines += [
        "",
        f"| stage | gain over `{START}`, per seed (sampled exact match) | spread of `{START}` | spread of the stage |",
    ]
    lines += ["| --- | --- | --- | --- |"]
    start = [scores[START]["exact_match_sampled"] for scores in found]
    for stage in (name for name in found[0] if name not in ("pretrain", START)):
        after = [scores[stage]["exact_match_sampled"] for scores in found]
        gains = ", ".join(f"{100 * (b - a):+.1f}" for a, b in zip(start, after, strict=True))
        lines.append(f"| {stage} | {gains} points | {_spread(start)} | {_spread(after)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _spread(values: Sequence[float]) -> str:
    return f"{100 * (max(values) - min(values)):.1f} points"


if __name__ == "__main__":
    chosen = [int(word) for word in sys.argv[1:]] or [1, 2, 3]
    print(describe(chosen, study(chosen)))
