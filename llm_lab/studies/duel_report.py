"""The verdict of a duel in words, and its report."""

from __future__ import annotations

import csv
import html
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_lab.runs.disk import write_atomically
from llm_lab.runs.glossary import name_of, write
from llm_lab.runs.plots import Interval, draw_intervals

from .duel import TOKENS, Comparison, compare, open_duel
from .measures import less_is_better
from .report_files import ReportFiles
from .results import difference_rows, summarize
from .sweep import Sweep
from .sweep_report import add_curves, describe_sweep, differences_table, what_is_missing
from .verdict import MIN_SEEDS, MOST_SEEDS, Verdict

if TYPE_CHECKING:
    import pandas

EQUAL = {TOKENS: "at equal tokens", "time": "at equal time"}


@dataclass(frozen=True)
class DuelResult:
    """The result of a duel. It stores only the folder; every property reads the files there."""

    path: Path

    @property
    def comparisons(self) -> list[Comparison]:
        """The comparison at equal tokens and the one at equal time, if they were run."""
        return compare(open_duel(self.path))

    @property
    def table(self) -> pandas.DataFrame:
        """One row per seed and comparison: both values and their difference."""
        import pandas

        return pandas.DataFrame.from_records(pair_records(open_duel(self.path), self.comparisons))

    @property
    def verdict(self) -> str:
        """The verdict in words."""
        duel = open_duel(self.path)
        return "\n".join(verdict_words(duel, one) for one in self.comparisons)

    def __repr__(self) -> str:
        return f"DuelResult({str(self.path)!r})\n{self.verdict}"

    def _repr_html_(self) -> str:
        words = "".join(f"<p>{html.escape(text)}</p>" for text in self.verdict.split("\n"))
        return words + self.table.to_html(index=False)


def verdict_words(duel: Sweep, comparison: Comparison) -> str:
    """Return the verdict on one comparison in words: effect, interval, test, and how many seeds would settle it."""
    verdict, where = comparison.verdict, EQUAL[comparison.by]
    one, two = (configuration.label for configuration in duel.configurations[:2])
    start = where[:1].upper() + where[1:]
    if verdict is None:
        return f"{start}: no seed has both results yet."
    if all(comparison.first.values[seed] == comparison.second.values[seed] for seed in comparison.first.values):
        return f"{start}: both have the same {name_of(duel.measure)} in every seed."
    fewer = less_is_better(duel.measure)
    better, worse = (two, one) if (verdict.mean < 0) == fewer else (one, two)
    ahead = sum((two_is_ahead(comparison, seed, fewer)) == (better == two) for seed in comparison.first.values)
    effect = (
        f"the {name_of(duel.measure)} of {better} is {_size(verdict.mean)} {'lower' if fewer else 'higher'} on average"
    )
    details = f"{_interval(verdict, fewer, better == two)}{_seeds(verdict.n)}, {better} ahead in {ahead}"
    test = f"sign-flip test p = {verdict.p:.3g}{'' if verdict.is_exact else ' (random patterns)'}"
    if verdict.is_significant:
        return f"{start}, {better} is better than {worse}: {effect} ({details}; {test})."
    if verdict.n < MIN_SEEDS:
        few = (
            f"{start}: too few seeds to decide. So far {effect} ({details}), but with {_seeds(verdict.n)} the "
            f"smallest possible p is {2 / 2**verdict.n:.3g}."
        )
        if verdict.n < len(duel.seeds):
            return f"{few} Seeds without both results yet: {len(duel.seeds) - verdict.n} of {len(duel.seeds)}."
        return f"{few} To decide, run it again with {_enough(verdict)} seeds: only the missing ones are trained."
    most = max(abs(verdict.low), abs(verdict.high))
    return (
        f"{start}, no difference was found: {effect} ({details}; {test}). A difference of more than {most:.4f} is "
        f"unlikely. {_what_would_settle(duel, verdict)}"
    )


def two_is_ahead(comparison: Comparison, seed: int, fewer: bool) -> bool:
    """Return whether the second configuration is better for a seed."""
    first, second = comparison.first.values[seed], comparison.second.values[seed]
    return second < first if fewer else second > first


def _size(difference: float) -> str:
    return f"{abs(difference):.4f}" if abs(difference) >= 1e-3 else f"{abs(difference):.2g}"


def _seeds(n: int) -> str:
    return "1 seed" if n == 1 else f"{n} seeds"


def _interval(verdict: Verdict, fewer: bool, second_is_better: bool) -> str:
    """Return the interval of the better side's advantage, with the sign that the sentence has."""
    if not math.isfinite(verdict.low):
        return ""
    sign = 1.0 if second_is_better != fewer else -1.0
    low, high = sorted((sign * verdict.low, sign * verdict.high))
    return f"95 % t interval {low:.4f} to {high:.4f}; "


def _enough(verdict: Verdict) -> int:
    needed = verdict.seeds_needed
    return needed if needed is not None and needed <= 50 else MIN_SEEDS


def _what_would_settle(duel: Sweep, verdict: Verdict) -> str:
    needed = verdict.seeds_needed
    if needed is None:
        return f"A difference this small would need more than {MOST_SEEDS:,} seeds: in practice there is none."
    after = duel.seeds[-1] + 1
    return (
        f"About {needed} seeds would settle a difference of this size (power 80 %). Use new seeds in a new duel "
        f"(seed={after} --seeds {needed} --name NAME): a test is wrong too often if seeds are added until it is "
        "significant."
    )


def pair_records(duel: Sweep, comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Return a record for each seed of each comparison; its columns are named after the two configurations."""
    first, second = (configuration.label for configuration in duel.configurations[:2])
    return [
        {
            "by": one.by,
            "seed": seed,
            first: one.first.values[seed],
            second: one.second.values[seed],
            "difference": one.second.values[seed] - one.first.values[seed],
        }
        for one in comparisons
        for seed in one.first.values
    ]


def write_duel_report(duel: Sweep, by: str) -> None:
    """Write the reports, their pictures, results.csv and results.json from the results in the folder."""
    comparisons = compare(duel, by)
    records = pair_records(duel, comparisons)
    head = list(dict.fromkeys(key for record in records for key in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, head, restval="")
    writer.writeheader()
    writer.writerows(records)
    write_atomically(duel.folder / "results.csv", text.getvalue())
    found = [
        {
            "by": one.by,
            "first": one.first.configuration.label,
            "second": one.second.configuration.label,
            "held_equal": one.how,
            "words": verdict_words(duel, one),
            "pairs": [[seed, one.first.values[seed], one.second.values[seed]] for seed in one.first.values],
            **({} if one.verdict is None else _numbers(one.verdict)),
        }
        for one in comparisons
    ]
    record = {"duel": duel.folder.name, "measure": duel.measure, "less_is_better": less_is_better(duel.measure)}
    record |= {"comparisons": found, "remarks": list(duel.remarks)}
    write_atomically(duel.folder / "results.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    build_report(duel, comparisons).write(duel.folder)


def _numbers(verdict: Verdict) -> dict[str, Any]:
    found = {**vars(verdict), "seeds_needed": verdict.seeds_needed}
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in found.items()}


def build_report(duel: Sweep, comparisons: Sequence[Comparison]) -> ReportFiles:
    """Return the report of a duel, without writing it."""
    report = ReportFiles(f"Duel: {duel.folder.name}")
    rows = summarize(duel)
    report.text(describe_sweep(duel))
    report.items([*duel.remarks, *what_is_missing(rows)])
    for one in comparisons:
        report.heading(EQUAL[one.by].capitalize())
        report.text(verdict_words(duel, one))
        report.text(one.how)
        report.table(*pair_table(duel, one), caption=f"The {name_of(duel.measure)} with each seed.")
        if one.verdict is not None:
            report.picture(f"difference-{one.by}.svg", _picture(duel, one), _caption(duel, one))
    report.heading("Curves")
    add_curves(report, duel, rows)
    if differences := difference_rows(duel):
        report.heading("What is different")
        report.table(*differences_table(duel, differences), caption="Derived values are included.")
    report.heading("How it is decided")
    report.text(
        "Both recipes run with the same seeds, so each seed gives one difference. The interval is the 95 % t interval "
        "of their mean. The test is the sign-flip test: if both were equally good, every difference would be as likely "
        "to have the other sign; p is the share of all sign patterns whose mean is at least as far from zero. A "
        f"difference counts with p of at most 0.05 and at least {MIN_SEEDS} seeds; with fewer, p can't be that small."
    )
    report.heading("Run it again")
    report.code(duel.command or f"llm-lab duel ... --name {duel.folder.name}")
    return report


def pair_table(duel: Sweep, one: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the pairs, and those of their means."""
    head = ["seed", one.first.configuration.label, one.second.configuration.label, "difference"]
    rows = []
    for seed, first in one.first.values.items():
        second = one.second.values[seed]
        rows.append([str(seed), write(duel.measure, first), write(duel.measure, second), _signed(second - first)])
    if one.verdict is not None and len(rows) > 1:
        n = len(rows)
        means = [write(duel.measure, sum(side.values.values()) / n) for side in (one.first, one.second)]
        rows.append(["mean", *means, _signed(one.verdict.mean)])
    return head, rows


def _signed(difference: float) -> str:
    return f"{round(difference, 4) + 0.0:+.4f}"  # avoids -0.0000


def _picture(duel: Sweep, one: Comparison) -> str:
    differences = [one.second.values[seed] - first for seed, first in one.first.values.items()]
    verdict = one.verdict
    assert verdict is not None
    row = Interval(_seeds(verdict.n), differences, verdict.mean, verdict.low, verdict.high)
    title = f"Difference of the {name_of(duel.measure)}, {EQUAL[one.by]}"
    return draw_intervals([row], title=title, x=f"difference of the {name_of(duel.measure)}", reference=0.0)


def _caption(duel: Sweep, one: Comparison) -> str:
    side = "Left" if less_is_better(duel.measure) else "Right"
    return (
        f"{one.second.configuration.label} minus {one.first.configuration.label}: a dot for each seed, their mean, and "
        "its 95 % t interval. "
        f"{side} of the line at 0, {one.second.configuration.label} is better."
    )
