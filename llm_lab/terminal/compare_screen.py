"""Answers side by side with their differences marked, and a table of measurements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_lab.runs.comparison import (
    Answer,
    Comparison,
    best_of,
    differences,
    format_measure,
    label_of,
    letters,
    measures_of,
    reference_of,
    verdict,
)
from llm_lab.runs.folder import ROOT, RunFolder, run_of
from llm_lab.runs.glossary import name_of

from .console import has_colors, is_plain, make_console, one_line, printable, supports_unicode
from .prompt_layout import MOST_COLUMNS

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

NARROWEST = 22  # columns: an answer in fewer is hard to read
STEP_WIDTH = 16
CURVES = ("reward", "eval_loss", "loss")  # the first one that all runs have is shown
CURVE_LINES = 10
CURVE_STYLES = ("cyan", "magenta", "green", "yellow", "blue", "red")
MARK = "bold yellow"
MODES = {"chat": "chat mode", "completion": "completion mode: continues the text"}
SAME_OVER_TIME = ("parameters", "tokens_per_second", "agreement")


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print the models, the answers to every prompt, the measurements, and the remarks."""
    from rich.text import Text

    console = console or make_console()
    names = letters(comparison)
    if comparison.over_time:
        console.print(Text(f"{len(names)} checkpoints, first to last."))
        marked = f"Differences from the previous one are marked. {_signs(console, 'the previous one')}"
        console.print(Text(marked, style="dim"))
    else:
        _print_models(comparison, console)
        console.print(Text("Differences from A are marked, word by word. " + _signs(console, "A"), style="dim"))
    console.print(Text(f"Outputs: {comparison.drawn}.", style="dim"))
    for number, prompt in enumerate(comparison.prompts):
        console.print()
        console.print(Text.assemble(("> ", "title"), printable(prompt) or ("(empty)", "dim")), overflow="fold")
        print_answers(comparison, number, console)
    keys = _shown(comparison)
    if keys and comparison.prompts and not comparison.over_time:  # the answers may have pushed the letters off
        console.print()
        _print_models(comparison, console, modes=False)
    for table in _tables(comparison, keys, console.width):
        console.print()
        console.print(table)
    if any(best_of(comparison, key) for key in keys):
        console.print(Text("* best value", style="dim"))
    for line in _curves(comparison, console):
        console.print(line, no_wrap=True, overflow="crop")
    for remark in comparison.remarks:
        console.print(Text(printable(remark), style="help"), overflow="fold")


def name_models(comparison: Comparison) -> str:
    """Return the letter and the name of each model on one line; over time, the checkpoints."""
    names = [one_line(model.name).removeprefix(f"{ROOT}/") for model in comparison.models]
    if comparison.over_time:
        return f"{names[0]} to {names[-1]}"
    return " · ".join(f"{letter} {name}" for letter, name in zip(letters(comparison), names, strict=True))


def _print_models(comparison: Comparison, console: Console, *, modes: bool = True) -> None:
    """Print the letter of each model."""
    from rich.text import Text

    for name, model in zip(letters(comparison), comparison.models, strict=True):
        mode = f"  {MODES[model.mode]}" if modes else ""
        line = Text.assemble((f"{name}  ", "title"), one_line(model.name), (mode, "dim"))
        console.print(line, overflow="fold")


def _curves(comparison: Comparison, console: Console) -> Iterator[Text]:
    """Yield one picture with the curve of each run, of the most informative quantity that all of them have.

    Each curve is drawn with a letter if there are no colors. Nothing for one run, or for runs of different stages.
    """
    from rich.text import Text

    from .frame import ceiling, draw_curves

    runs = {} if comparison.over_time else _runs_of(comparison)
    if len(runs) < 2 or len({run.facts().get("stage") for run in runs.values()}) > 1:
        return
    metrics = {letter: run.metrics() for letter, run in runs.items()}
    for key in CURVES:
        series = [
            [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
            for rows in metrics.values()
        ]
        if all(len(points) > 1 for points in series):
            break
    else:
        return
    colored = _marks_by_style(console)
    styles = [CURVE_STYLES[index % len(CURVE_STYLES)] if colored else "" for index in range(len(series))]
    yield Text("")
    legend = Text(f"{name_of(key)} of each run, by step: ", style="title")
    for letter, style in zip(runs, styles, strict=True):
        legend.append(f" {letter} ", style=style)
    yield legend
    tops = [top for points in series if (top := ceiling(points)) is not None] if key != CURVES[0] else []
    shape = min(console.width - 1, MOST_COLUMNS), CURVE_LINES
    ascii_only = not colored or not supports_unicode(console)
    for row in draw_curves(series, *shape, ascii_only=ascii_only, y_max=max(tops, default=None)):
        line = Text()
        for text, index in row:
            is_mark = index is not None and text != " " and not colored
            line.append(list(runs)[index or 0] if is_mark else text, style="dim" if index is None else styles[index])
        yield line


def _runs_of(comparison: Comparison) -> dict[str, RunFolder]:
    """Return {letter: run} for the models that belong to a run."""
    found = {
        letter: run_of(model.checkpoint)
        for letter, model in zip(letters(comparison), comparison.models, strict=True)
        if Path(model.checkpoint).exists()
    }
    return {letter: run for letter, run in found.items() if run is not None}


def _marks_by_style(console: Console) -> bool:
    """Whether differences are marked by color; otherwise, they are marked by signs."""
    return console.is_terminal and has_colors(console)


def print_side_by_side(comparison: Comparison, console: Console) -> None:
    """Print the answers within a chat, and the remarks."""
    from rich.text import Text

    console.print(Text.assemble(("> ", "title"), printable(comparison.prompts[0])), overflow="fold")
    print_answers(comparison, 0, console)
    for remark in comparison.remarks:
        console.print(Text(printable(remark), style="help"), overflow="fold")


def print_answers(comparison: Comparison, number: int, console: Console | None = None) -> None:
    """Print the answers to one prompt: in columns, as many as fit; over time and in plain mode, one below the other."""
    console = console or make_console()
    if is_plain():
        for model in range(len(comparison.models)):
            if model:
                console.print()
            console.print(_head(comparison, model), overflow="fold")
            console.print(_marked(comparison, number, model, console), overflow="fold")
            console.print(_details(comparison, number, model), overflow="fold")
        return
    if comparison.over_time:
        console.print(_timeline(comparison, number, console))
        return
    most = max(1, (console.width + 3) // (NARROWEST + 3))
    count = len(comparison.models)
    rows = -(-count // most)
    for models in _rows(count, rows):
        if models.start:
            console.print()
        console.print(_columns(comparison, number, models, console))


def _rows(count: int, rows: int) -> Iterator[range]:
    """Yield the models of each row, as evenly as possible."""
    for row in range(rows):
        yield range(count * row // rows, count * (row + 1) // rows)


def _columns(comparison: Comparison, number: int, models: range, console: Console) -> Any:
    from rich.box import MINIMAL
    from rich.table import Table
    from rich.text import Text

    width = (console.width - 3 * (len(models) - 1)) // len(models)
    table = Table(box=MINIMAL, show_edge=False, pad_edge=False, padding=(0, 1), safe_box=True)
    names = letters(comparison)
    for i in models:
        name = one_line(comparison.models[i].name)
        if len(name) > width - 3:
            name = "…" + name[4 - width :]
        head = Text.assemble((f"{names[i]}  ", "title"), (name, "dim"))
        table.add_column(head, width=width, overflow="fold")
    table.add_row(*(_marked(comparison, number, i, console) for i in models))
    table.add_row(*(_details(comparison, number, i) for i in models))
    return table


def _head(comparison: Comparison, number: int) -> Text:
    """Return the letter and the name of a model; over time, the name and the losses of a checkpoint."""
    from rich.text import Text

    model = comparison.models[number]
    if not comparison.over_time:
        return Text.assemble((f"{letters(comparison)[number]}  ", "title"), one_line(model.name))
    head = Text.assemble((one_line(model.name), "title"))
    for key in ("step_loss", "step_eval_loss"):
        if key in model.numbers:
            head.append(f"\n{label_of(key)} {format_measure(key, model.numbers[key])}", style="dim")
    return head


def _timeline(comparison: Comparison, number: int, console: Console) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=STEP_WIDTH, overflow="fold")
    table.add_column(overflow="fold", ratio=1)
    for i in range(len(comparison.models)):
        answer = _marked(comparison, number, i, console)
        table.add_row(_head(comparison, i), Text("\n").join([answer, _details(comparison, number, i)]))
        if i + 1 < len(comparison.models):
            table.add_row("", "")
    return table


def _marked(comparison: Comparison, number: int, model: int, console: Console) -> Text:
    """Return an answer with its differences marked: by color, or by signs where there are no colors."""
    from rich.text import Text

    answer, first = comparison.models[model].answers[number], _first(comparison, number, model)
    if answer.problem:
        return Text("no output: " + printable(answer.problem), style="warn")
    if not answer.text.strip():
        return Text("(whitespace)" if answer.text else "(empty)", style="dim")
    if first is None or first.problem or first.text == answer.text:
        return Text(printable(answer.text))
    text = Text()
    open_sign, close_sign = ("", "") if _marks_by_style(console) else ("{+", "+}")
    for part in differences(first.text, answer.text):
        if part.kind == "same":
            text.append(printable(part.text))
        elif part.kind == "gone":
            text.append("[-] ", style=MARK)
        else:
            words = part.text.rstrip()
            text.append(open_sign + printable(words) + close_sign, style=MARK)
            text.append(printable(part.text[len(words) :]))
    return text


def _signs(console: Console, other: str) -> str:
    missing = f"[-]: words of {other} missing here."
    return missing if _marks_by_style(console) else "{+new+}; " + missing


def _details(comparison: Comparison, number: int, model: int) -> Text:
    """Return an answer's length, why it stopped, and how it differs."""
    from rich.text import Text

    answer, first = comparison.models[model].answers[number], _first(comparison, number, model)
    if answer.problem:
        return Text("")
    text = Text.assemble((f"[{answer.describe()}]", "dim"))  # what is appended must not be dim
    against = reference_of(comparison, model)
    if first is not None and against is not None and (words := verdict(first, answer, letters(comparison)[against])):
        text.append(f"\n{words}", style="good" if first.text == answer.text else MARK)
    return text


def _first(comparison: Comparison, number: int, model: int) -> Answer | None:
    against = reference_of(comparison, model)
    return None if against is None else comparison.models[against].answers[number]


def _shown(comparison: Comparison) -> list[str]:
    """Return the measurements to show on the screen."""
    hidden = SAME_OVER_TIME if comparison.over_time else ()
    return [key for key in measures_of(comparison) if key.partition(":")[0] not in hidden]


def _tables(comparison: Comparison, keys: Sequence[str], width: int) -> Iterator[Any]:
    """Yield tables with a row per measurement and a column per model; over time, transposed."""
    names = letters(comparison)
    best = {key: best_of(comparison, key) for key in keys}
    cells = [
        [(format_measure(key, model.numbers.get(key)), i in best[key]) for i, model in enumerate(comparison.models)]
        for key in keys
    ]
    if not keys:
        return
    labels = [one_line(label_of(key)) for key in keys]
    heads, sides = names, labels
    if comparison.over_time:
        heads, sides, cells = labels, names, [list(row) for row in zip(*cells, strict=True)]
    side = min(max(map(len, sides)), max(STEP_WIDTH, width // 3))
    fit = max(1, (width - side) // (max(11, *(len(text) + 1 for row in cells for text, _ in row)) + 2))
    for start in range(0, len(heads), fit):
        yield _table(heads[start : start + fit], sides, [row[start : start + fit] for row in cells], side)


def _table(heads: Sequence[str], sides: Sequence[str], cells: Sequence[Sequence[tuple[str, bool]]], side: int) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="title")
    table.add_column("", width=side, overflow="fold")
    for head in heads:
        table.add_column(Text(head), justify="right", overflow="fold")
    for name, row in zip(sides, cells, strict=True):
        texts = [Text(f"{text}*" if best else f"{text} ", style="good" if best else "") for text, best in row]
        table.add_row(Text(name), *texts)
    return table
