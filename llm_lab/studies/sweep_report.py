"""The report of a sweep: the table, the differences of the configurations, and the pictures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from llm_lab.estimate.formatting import about, count, duration, plural, size
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.glossary import name_of, quantity, write
from llm_lab.runs.plots import Interval, Line, draw_heatmap, draw_intervals, draw_lines

from .cells import START_SECONDS, CellState, run_seconds, seconds_left
from .grid import Configuration, short_keys, shown_value
from .measures import less_is_better, rows_of
from .report_files import ReportFiles
from .results import Row, difference_rows, summarize, write_tables
from .sweep import Sweep

FEW_POINTS = 3  # a curve with fewer evaluations is not informative
# The often-logged metric to draw for a result that is measured rarely; by default, the training loss.
LOGGED_OFTEN = {
    **dict.fromkeys(("eval_reward_sampled", "exact_match_sampled", "exact_match"), "reward"),
    "eval_accuracy": "accuracy",
}
SMOOTH_ABOVE, SMOOTH_SHARE = 60, 40  # curves with more points are averaged over a 40th of them
MONTH_SECONDS = 30 * 86_400
TOO_LONG = "this takes more than a month: use fewer steps, values or seeds"


def write_sweep_report(sweep: Sweep) -> None:
    """Write the reports, their pictures, results.csv, cells.csv and results.json from the results in the folder."""
    write_tables(sweep)
    build_report(sweep).write(sweep.folder)


def build_report(sweep: Sweep) -> ReportFiles:
    """Return the report without writing it."""
    rows = summarize(sweep)
    report = ReportFiles(f"Sweep: {sweep.folder.name}")
    report.text(describe_sweep(sweep))
    report.items([*sweep.remarks, *what_is_missing(rows)])
    report.heading("Results")
    report.table(*result_table(sweep, rows), caption=how_to_read(sweep, rows))
    if any(row.n for row in rows):
        report.picture("intervals.svg", _intervals(sweep, rows), _what_intervals_show(sweep, rows))
        add_heatmap(report, sweep, rows)
        add_curves(report, sweep, rows)
    if differences := difference_rows(sweep):
        report.heading("What the configurations changed")
        report.table(*differences_table(sweep, differences), caption="Derived values are included.")
    failures = [(state.cell.label, state.error) for row in rows for state in row.states if state.status == "failed"]
    if failures:
        report.heading("Failed")
        report.table(("run", "why"), failures)
    report.heading("Run it again")
    report.text(
        "The same command continues what is not done. Each run has its recipe, metrics and report in its folder."
    )
    report.code(sweep.command or f"llm-lab sweep ... --name {sweep.folder.name}")
    return report


def describe_sweep(sweep: Sweep) -> str:
    """Return a sentence about what is compared, by which result, and which direction is better."""
    found = quantity(sweep.measure)
    unit = f", in {found.unit}" if found.unit and "(" not in found.unit else ""
    better = "lower is better" if less_is_better(sweep.measure) else "higher is better"
    seeds = f"seed {sweep.seeds[0]}" if len(sweep.seeds) == 1 else f"seeds {_ranges(sweep.seeds)}"
    count = 2 if sweep.kind == "duel" else len(sweep.configurations)
    what = f"{count} configurations" if count > 1 else "One configuration"
    keys = f" of {' and '.join(sweep.keys)}" if sweep.keys else ""
    return f"{what}{keys}, each run with {seeds}. Compared by the {found.name}{unit}: {better}."


def _ranges(seeds: Sequence[int]) -> str:
    if list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))


def plan_rows(
    sweep: Sweep, states: Sequence[CellState], *, jobs: int = 1, then: str = "", retry_failed: bool = False
) -> list[tuple[str, str]]:
    """Return what a sweep will do, as (name, text): runs, time, disk space, and remarks. then: what follows it."""
    left = [state for state in states if state.status != "done" and (retry_failed or state.status != "failed")]
    done, failed = (sum(state.status == status for state in states) for status in ("done", "failed"))
    seconds = sum(seconds_left(sweep, state) for state in left) / jobs
    disk_bytes = sum(_disk_bytes(sweep, state.cell.configuration.name) for state in left)
    before = [f"{done} done" if done else "", f"{failed} failed before" if failed else ""]
    kept = f" ({', '.join(filter(None, before))})" if any(before) else ""
    how = "" if len(left) < 2 else ", one after the other" if jobs == 1 else f", {jobs} at a time"
    of_all = f" of {len(states)}" if len(left) < len(states) else ""
    first = next(iter(sweep.jobs.values())).stages[0]
    unknown = "not known" if left else "none: all runs are done"
    too_long = [("note", TOO_LONG)] if takes_too_long(seconds) else []
    return [
        ("compares", describe_sweep(sweep)),
        ("runs", f"{len(left)}{of_all} to run{kept}{how}"),
        ("time", f"{about(seconds)}, with {START_SECONDS} s for the start of each run" if seconds else unknown),
        ("disk", f"{size(disk_bytes)} in {sweep.folder}/"),
        *([("changes", ", ".join(sweep.changes))] if sweep.changes else []),
        *([("then", then)] if then else []),
        *too_long,
        *(("note", remark) for remark in sweep.remarks),
        ("device", f"{first.values.get('device')}: {first.machine.describe()}"),
    ]


def at_equal_time(count: int) -> str:
    """Return what a duel does after its runs at equal tokens, with at most `count` runs more."""
    return f"to compare at equal time, up to {plural(count, 'run')} of the slower recipe with fewer steps"


def takes_too_long(seconds: float) -> bool:
    """Return whether a sweep or a duel takes so long that "no" is the default of the question whether to start it."""
    return seconds > MONTH_SECONDS


def cost_of_a_seed(sweep: Sweep) -> tuple[float, int]:
    """Return the seconds and the bytes on disk that a sweep or a duel takes for each of its seeds."""
    names = [configuration.name for configuration in sweep.configurations]
    return sum(run_seconds(sweep, name) for name in names), sum(_disk_bytes(sweep, name) for name in names)


def _disk_bytes(sweep: Sweep, name: str) -> int:
    """Return the bytes on disk of one run of a configuration."""
    return sum(one.estimate.disk_bytes for one in sweep.jobs[name].stages)


def what_is_missing(rows: Sequence[Row]) -> list[str]:
    """Return remarks about cells without a result."""
    states = [state for row in rows for state in row.states]
    missing = {  # what is said of one run and of several
        "failed": ("failed; it is listed below", "failed; they are listed below"),
        "waiting": ("has not run yet", "have not run yet"),
        "running": ("is in progress", "are in progress"),
        "stopped": (
            "was stopped; it continues when this is resumed",
            "were stopped; they continue when this is resumed",
        ),
        "interrupted": (
            "was killed; it continues when this is resumed",
            "were killed; they continue when this is resumed",
        ),
    }
    found = []
    for status, (of_one, of_several) in missing.items():
        if number := sum(state.status == status for state in states):
            found.append(f"{number} of {len(states)} runs {of_one if number == 1 else of_several}.")
    if without := sum(state.status == "done" and state.value is None for state in states):
        found.append(f"{without} of {len(states)} runs are done, but have no result to compare by.")
    return found


def result_table(sweep: Sweep, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return the head and rows: the configuration, mean, standard deviation, n, every seed, time and tokens per run."""
    short = short_keys(sweep.keys)
    head = [*(short[key] for key in sweep.keys)] or ["configuration"]
    head += ["mean", "SD", "n", *(f"seed {seed}" for seed in sweep.seeds), "time", "tokens"]
    table = []
    for row in rows:
        named = [shown_value(row.configuration.values[key]) for key in sweep.keys] or [row.configuration.label]
        cells = [write(sweep.measure, row.mean) if row.n else "-", _spread(sweep.measure, row), str(row.n)]
        for state in row.states:
            shown = state.status if state.status != "done" else "-"
            cells.append(shown if state.value is None else write(sweep.measure, state.value))
        cells += [duration(row.seconds) if row.seconds == row.seconds else "-"]
        cells += [count(row.tokens) if row.tokens == row.tokens else "-"]
        table.append([*named, *cells])
    return head, table


def differences_table(sweep: Sweep, rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the differences between configurations, with the shorter side across."""
    labels = [picture_label(sweep, one) for one in sweep.configurations]
    if len(rows) > len(labels):
        return ["key", *labels], [list(row) for row in rows]
    columns = [[row[at] for row in rows] for at in range(1, len(labels) + 1)]
    return ["", *(row[0] for row in rows)], [[label, *cells] for label, cells in zip(labels, columns, strict=True)]


def picture_label(sweep: Sweep, configuration: Configuration) -> str:
    """Return a short name of a configuration for a picture: the values of the swept keys."""
    return " · ".join(map(shown_value, configuration.values.values())) or configuration.label


def what_labels_are(sweep: Sweep) -> str:
    """Return which keys' values the labels of a picture contain."""
    return f" Labels: {' · '.join(short_keys(sweep.keys).values())}." if sweep.keys else ""


def _spread(measure: str, row: Row) -> str:
    return write(measure, row.spread) if row.n > 1 else "-"


def how_to_read(sweep: Sweep, rows: Sequence[Row]) -> str:
    """Return to what extent the order of the table can be trusted."""
    most = max((row.n for row in rows), default=0)
    if not most:
        return "No run has a result yet."
    if most < 2:
        text = "One seed each: the spread between seeds is not known, so small differences mean nothing."
    else:
        text = "SD: standard deviation over the seeds. All configurations have the same seeds, so they can be compared "
        text += "seed by seed."
    text += " Time and tokens are those of one run."
    if len({row.n for row in rows}) > 1:
        text += " Not all have the same number of runs."
    if len(rows) > 1:
        text += f" The best of {len(rows)} looks better than it is, because it was picked: a duel compares two on "
        text += "new seeds."
    return text


def _intervals(sweep: Sweep, rows: Sequence[Row]) -> str:
    found = [
        Interval(picture_label(sweep, row.configuration), list(row.values.values()), row.mean, row.low, row.high)
        for row in rows
        if row.n
    ]
    return draw_intervals(found, title=_capital(name_of(sweep.measure)), x=_axis(sweep.measure))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _axis(measure: str) -> str:
    unit = quantity(measure).unit
    return f"{name_of(measure)} ({unit})" if unit and "(" not in unit else name_of(measure)


def _what_intervals_show(sweep: Sweep, rows: Sequence[Row]) -> str:
    text = "One row per configuration, the best first: a dot for each seed"
    several = any(row.n > 1 for row in rows)
    text += ", the mean, and its 95 % t interval over the seeds." if several else "."
    return text + what_labels_are(sweep)


def add_heatmap(report: ReportFiles, sweep: Sweep, rows: Sequence[Row]) -> None:
    """Add a picture of the mean for each pair of values, if two keys are swept."""
    if len(sweep.keys) != 2:
        return
    down, across = sweep.keys
    names = {key: list(dict.fromkeys(one.values[key] for one in sweep.configurations)) for key in sweep.keys}
    means = {(row.configuration.values[down], row.configuration.values[across]): row.mean for row in rows if row.n}
    values = [[means.get((one, other)) for other in names[across]] for one in names[down]]
    short = short_keys(sweep.keys)
    svg = draw_heatmap(
        values,
        rows=list(map(shown_value, names[down])),
        columns=list(map(shown_value, names[across])),
        title=f"Mean {name_of(sweep.measure)}",
        x=short[across],
        y=short[down],
        digits=3,
    )
    better = "Lower" if less_is_better(sweep.measure) else "Higher"
    report.picture(
        "heatmap.svg", svg, f"The mean {name_of(sweep.measure)} for each pair of values. {better} is better."
    )


def add_curves(report: ReportFiles, sweep: Sweep, rows: Sequence[Row]) -> None:
    """Add the curves of all configurations: the mean over the seeds, with a band from the lowest to the highest."""
    key = sweep.measure
    if not any(len(curve) >= FEW_POINTS for curve in _curves(sweep, rows, key).values()):
        key = LOGGED_OFTEN.get(key, "loss")
    found = {name: curve for name, curve in _curves(sweep, rows, key).items() if len(curve) >= FEW_POINTS}
    if not found:
        return
    lines, smoothed = [], 0
    for name, curve in found.items():
        width = len(curve) // SMOOTH_SHARE if len(curve) > SMOOTH_ABOVE else 1
        smoothed = max(smoothed, width)
        parts = [_smooth([pick(values) for _, values in curve], width) for pick in (statistics.fmean, min, max)]
        steps = [step for step, _ in curve]
        several = any(len(values) > 1 for _, values in curve)
        lines.append(Line(name, list(zip(steps, parts[0], strict=True)), *(parts[1:] if several else (None, None))))
    svg = draw_lines(lines, title=_capital(name_of(key)), x="step", y=_axis(key))
    caption = f"The {name_of(key)} over the steps"
    caption += ": the mean of the seeds, with a band from the lowest to the highest" if len(sweep.seeds) > 1 else ""
    caption += f", averaged over {smoothed} log lines" if smoothed > 1 else ""
    report.picture("curves.svg", svg, f"{caption}.{what_labels_are(sweep)}")


def _curves(sweep: Sweep, rows: Sequence[Row], key: str) -> dict[str, list[tuple[float, list[float]]]]:
    """Return {configuration: [(step, the values of its seeds)]}, for the steps that all its runs have."""
    found = {}
    for row in rows:
        runs = [rows_of(RunFolder(state.cell.folder)) for state in row.states if state.status == "done"]
        curves = [
            {one["step"]: float(one[key]) for one in run if isinstance(one.get(key), int | float)} for run in runs
        ]
        if curves:
            steps = sorted(set.intersection(*map(set, curves)))
            found[picture_label(sweep, row.configuration)] = [
                (step, [curve[step] for curve in curves]) for step in steps
            ]
    return found


def _smooth(values: Sequence[float], width: int) -> list[float]:
    """Return running means, each centered on its value."""
    half = width // 2
    return [statistics.fmean(values[max(0, at - half) : at + half + 1]) for at in range(len(values))]
