"""The end of a run on the screen: its path, its results, what to do next; and the tables of an evaluation."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_lab.estimate.formatting import clock
from llm_lab.recipe.eval import EVAL
from llm_lab.recipe.export import EXPORT
from llm_lab.recipe.registry import stage_of
from llm_lab.runs.card_answers import read_answers
from llm_lab.runs.describe import VERDICTS, collapse_of, describe_collapse, headline_results
from llm_lab.runs.evaluations import numbers_of
from llm_lab.runs.folder import RunFolder, is_reward_model
from llm_lab.runs.glossary import name_of, quantity, write

from .console import columns, is_plain, make_console, one_line
from .prompt_layout import fit_words, fitted, text_columns, wrapped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

Row = Mapping[str, Any]
PATH_LENGTH = 70  # leaves about two lines next to the numbers
LEAST_NAME = 15  # columns
LABEL = len("  run again    ")  # of a next step
BESIDE_EXAMPLE = 11  # columns of the example's name, and the space before it
# Columns and rows of each table: the key in the evaluation, and the key in the glossary.
LOSSES = {"loss": "text_loss", "perplexity": "perplexity", "bits_per_byte": "bits_per_byte"}
SCORES = (
    *("exact_match", "exact_match_sampled", "eval_reward", "eval_reward_sampled"),
    *("bleu", "rouge1", "rouge2", "rougeL", "eval_completion_length"),
)
SPEEDS = ("seconds_to_first_token", "tokens_per_second")


# The end of a run


def print_closing(facts: Mapping[str, Any], *, in_wizard: bool = False) -> None:
    """Print the end of a run: its status, its main results, and the commands for what comes next.

    in_wizard: show no commands, because a menu asks for the next step.
    """

    console = make_console()
    path, results = facts["path"], facts.get("results", {})
    console.print()
    if collapsed := collapse_of(facts):
        text = describe_collapse(collapsed)
        _print(console, f"{text[0].upper()}{text[1:]}: {path}/", style="warn")
        if shown := _main_results(results):
            _print(console, f"Results: {', '.join(shown)}")
        _print(console, f"Report:  {path}/report.md", hang=len("Report:  "))
        return
    if facts["status"] == "stopped":
        text = f"Stopped at step {results.get('step', 0):,}; the checkpoint is saved in {path}/"
        _print(console, text, style="warn")
        if not in_wizard:
            _print_command(console, "Resume with:  ", f"llm-lab run {path}/recipe.yaml --resume")
        return
    if facts.get("stage") == EXPORT.name:
        return _close_export(console, facts, in_wizard)
    if facts["status"] == "failed":
        _print(console, f"The run failed; what it wrote is in {path}/", style="bad")
        return
    if facts.get("unmoved"):
        _print(console, f"Done, but nothing was learned: {one_line(facts['unmoved'])}. {path}/", style="warn")
    else:
        _print(console, f"Done: {path}/", style="good")
    if facts.get("stage") == EVAL.name:
        print_evaluation(facts["measured"])
        _print(console, f"Report:  {path}/report.md", hang=len("Report:  "))
        return
    if shown := _main_results(results):
        _print(console, f"Results: {', '.join(shown)}")
    if in_wizard:
        _print(console, f"Report:  {path}/report.md", hang=len("Report:  "))
        return
    console.print("\nWhat next:", style="title")
    stage = stage_of(facts)
    if (stage is None or stage.writes_text) and not is_reward_model(Path(path) / "model"):
        _print_command(console, "  chat         ", f"llm-lab chat {path}")
    _print_command(console, "  details      ", f"llm-lab show {path}")
    _print(console, f"  report       {path}/report.md", hang=LABEL)
    _print_command(console, "  run again    ", f"llm-lab run {path}/recipe.yaml")
    _print_command(console, "  wizard       ", "llm-lab")


def _main_results(results: Mapping[str, Any]) -> list[str]:
    shown = headline_results(results)
    if "eval_loss" not in results:  # nothing was held out: show what training measured
        key = next((key for key in ("reward", "loss") if key in results), None)
        shown = [f"{name_of(key)} {write(key, results[key])}", *shown] if key else shown
    if "train_tokens" in results:
        shown.append(f"{results['train_tokens']:,} tokens in {clock(results.get('wall_seconds', 0))}")
    return shown


def _close_export(console: Console, facts: Mapping[str, Any], in_wizard: bool) -> None:
    """Print the end of an export: whether the written model loads and equals its source."""
    path, export = facts["path"], facts["export"]
    verdict = export["proof"]["verdict"]
    if facts["status"] == "failed":
        _print(console, "Verification failed: the exported model differs, so it was deleted.", style="bad")
        _print(console, f"  details      {path}/run.json", hang=LABEL)
        return
    style = "warn" if verdict == "not tried" else "good"
    _print(console, f"Exported, {VERDICTS[verdict]}: {export['path']}", style=style)
    console.print("\nWhat next:", style="title")
    if export["to"] == "hf":
        if not in_wizard:
            _print_command(console, "  chat         ", f"llm-lab chat {path}")
    elif export["to"] == "space":
        _print_command(
            console, "  try it       ", f"cd {export['path']}; pip install -r requirements.txt; python app.py"
        )
        _print_command(console, "  publish      ", f"hf upload OWNER/NAME {export['path']} --repo-type space")
    else:
        _print_command(console, "  chat         ", f"llama-cli -m {export['path']}")
    _print(console, f"  usage        {_card_of(export)}", hang=LABEL)
    if in_wizard:
        return
    _print_command(console, "  details      ", f"llm-lab show {path}")
    if "license" not in read_answers(RunFolder(Path(path))):
        text = "  license      not set; llm-lab export --author NAME --license ID ... keeps both for all model cards"
        _print(console, text, hang=LABEL)


def _print(console: Console, text: str, *, style: str = "", hang: int = 0) -> None:
    """Print a text; long paths are wrapped after a slash. hang: the indent of its continuation lines."""
    from rich.text import Text

    console.print(Text(fitted(console, text, hang), style=style), soft_wrap=not console.is_terminal)


def _print_command(console: Console, label: str, command: str) -> None:
    """Print a command next to its label; a long one is continued between its words, in a form that can be copied."""
    lines = [command]
    if console.is_terminal and len(label) + len(command) > console.width:
        room = console.width - len(label) - len(" \\")
        lines = textwrap.wrap(command, room, break_long_words=False, break_on_hyphens=False)
    console.print(label + (" \\\n" + " " * len(label)).join(lines), soft_wrap=True)


def _card_of(export: Mapping[str, Any]) -> str:
    folder = export["path"].rpartition("/")[0] if export["to"] == "gguf" else export["path"]
    return f"{folder}/README.md"


# An evaluation


def print_evaluation(measured: Row) -> None:
    """Print an evaluation. After each number, in brackets: its change since the last comparable evaluation."""
    from rich.text import Text

    console = make_console()
    console.print()
    title = f"{one_line(measured['checkpoint'])}, {measured['dtype']} on {measured['device']}"
    console.print(Text(title, style="title"))
    for table in _tables(measured):
        console.print()
        console.print(table)
    console.print()
    for example in (measured.get("scores") or {}).get("examples") or ():
        console.print(_example(example))
    times = [row["before"]["time"] for row in _all_rows(measured) if row.get("before", {}).get("time")]
    if times:
        day = f"{datetime.fromtimestamp(max(times)):%d %b %Y %H:%M}"
        console.print(Text(f"In brackets: the change since {day}, on the same data.", style="dim"))


def _tables(measured: Row) -> Iterator[Any]:
    texts = measured.get("texts") or []
    if texts:
        rows = [_loss_row(row["path"], row) for row in texts]
        total = measured.get("total")
        rows += [_loss_row("all", total | {"tokens": sum(row["tokens"] for row in texts)})] if total else []
        lengths = {row.get("max_length") for row in texts} - {None}
        head = f"text, context {lengths.pop():,}" if len(lengths) == 1 else "text"
        names = [name_of(name) for key, name in LOSSES.items() if key in texts[0]]
        heads = [head, "tokens", *names]
        if _left_for_names(heads, rows) >= LEAST_NAME:
            yield _table(heads, rows)
        else:  # in a narrow terminal, one table per text
            for name, *cells in rows:
                title = name if name == "all" else head.replace("text", name, 1)
                yield _table([title, ""], list(zip(heads[1:], cells, strict=True)))
    if scores := measured.get("scores"):
        title = f"{scores['prompts']:,} prompts of {_short(scores['path'])}"
        if scores.get("eval_reward_sampled") == scores.get("exact_match_sampled"):  # the reward is the exact match
            scores = {key: value for key, value in scores.items() if not key.startswith("eval_reward")}
        yield _table([title, ""], [[name_of(key), cell] for key, cell in _cells(scores, SCORES)])
    if measured.get("tasks"):
        yield _table(["task", "metric", "", "documents"], list(_task_rows(measured["tasks"])))
    if speed := measured.get("speed"):
        title = f"generating {speed['new_tokens']} tokens after a prompt of {speed['prompt_tokens']}"
        yield _table([title, ""], [[name_of(key), cell] for key, cell in _cells(speed, SPEEDS)])


def _loss_row(name: str, row: Row) -> list[Any]:
    tokens = ("" if row.get("whole", True) else "first ") + f"{row['tokens']:,}"
    return [_short(name), tokens, *(cell for _, cell in _cells(row, LOSSES))]


def _short(path: str) -> str:
    return path if len(path) <= PATH_LENGTH else f"…{path[1 - PATH_LENGTH :]}"


def _cells(row: Row, keys: Sequence[str] | Mapping[str, str]) -> Iterator[tuple[str, Text]]:
    """Yield (key, number with its change) for those of these keys that a row has."""
    for key in keys:
        if key in row:
            known = quantity(keys[key] if isinstance(keys, Mapping) else key)
            yield key, _cell(row[key], (row.get("before") or {}).get(key), known.write, known.more_is_better)


def _cell(value: float, before: float | None, as_text: Callable[[float], str], more_is_better: bool | None) -> Text:
    """Return a number, with its change in brackets if there is an earlier one."""
    from rich.text import Text

    text = Text(as_text(value))
    if before is None:
        return text
    change = value - before
    if as_text(value) == as_text(before):
        return text + Text(" (=)", style="dim")
    style = "" if more_is_better is None else "good" if (change > 0) == more_is_better else "warn"
    return text + Text(f" ({'+' if change > 0 else '-'}{as_text(abs(change))})", style=style)


def _task_rows(tasks: Mapping[str, Row]) -> Iterator[list[Any]]:
    from rich.text import Text

    for task, row in tasks.items():
        name = task
        for key, value in numbers_of(row):
            metric, bracket, filter_name = key.partition(" (")
            if metric.endswith("_stderr"):
                continue
            error = row.get(f"{metric}_stderr{bracket}{filter_name}")
            cell = _cell(value, (row.get("before") or {}).get(key), quantity("tasks").write, None)
            cell = cell if error is None else Text.assemble(cell, (f" ± {error:.4f}", "dim"))
            yield [name, key, cell, f"{row['documents']:,}" if "documents" in row and name else ""]
            name = ""


def _example(example: Row) -> Text:
    from rich.text import Text

    lines = [("prompt", example["prompt"]), ("answer", example["answer"])]
    lines += [("expected", example["reference"])] if example.get("reference") is not None else []
    text = Text()
    for name, value in lines:
        text.append(f"  {name:<{BESIDE_EXAMPLE - 2}}", style="dim")
        text.append(fit_words(one_line(str(value).strip()), max(LEAST_NAME, text_columns() - BESIDE_EXAMPLE)))
        text.append("\n")
    return text


def _all_rows(measured: Row) -> Iterator[Row]:
    yield from measured.get("texts") or ()
    yield from (measured.get("tasks") or {}).values()
    yield from [measured["scores"]] if "scores" in measured else []


def _width(cell: Any) -> int:
    return len(one_line(str(cell)))


def _left_for_names(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> int:
    """Return how many columns a table leaves for its first column."""
    others = [max(_width(row[number]) for row in [head, *rows]) + 2 for number in range(1, len(head))]
    return columns() - 2 - sum(others)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    room = max(LEAST_NAME, _left_for_names(head, rows))  # names are wrapped after slashes and spaces
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="help")
    for number, name in enumerate(head):
        table.add_column(Text(one_line(name)), overflow="fold", justify="left" if number == 0 else "right")
    for row in rows:
        first, *rest = (one_line(cell) if isinstance(cell, str) else cell for cell in row)
        first = wrapped(first, room) if isinstance(first, str) and not is_plain() else first
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in (first, *rest)))
    return table
