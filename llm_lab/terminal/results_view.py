"""What an evaluation came to, as tables: losses, answers, tasks, speed, and what has changed since the last one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_lab.estimate.formatting import clock
from llm_lab.recipe.eval import EVAL
from llm_lab.recipe.export import EXPORT
from llm_lab.recipe.registry import stage_of
from llm_lab.runs.describe import VERDICTS
from llm_lab.runs.evaluations import numbers_of
from llm_lab.runs.folder import is_judge

from .console import make_console, one_line

if TYPE_CHECKING:
    from rich.text import Text

Row = Mapping[str, Any]
PATH_LENGTH = 30  # what 80 columns leave beside the numbers
# Score: name on the screen, how it is written, whether more is better.
SCORES: dict[str, tuple[str, Callable[[float], str], bool | None]] = {
    "exact_match": ("exact match", lambda share: f"{100 * share:.1f} %", True),
    "exact_match_sampled": ("exact match, sampled", lambda share: f"{100 * share:.1f} %", True),
    "eval_reward": ("reward", "{:.3f}".format, True),
    "eval_reward_sampled": ("reward, sampled", "{:.3f}".format, True),
    "bleu": ("BLEU", "{:.2f}".format, True),
    "rouge1": ("ROUGE-1", "{:.4f}".format, True),
    "rouge2": ("ROUGE-2", "{:.4f}".format, True),
    "rougeL": ("ROUGE-L", "{:.4f}".format, True),
    "eval_completion_length": ("tokens an answer", "{:.1f}".format, None),
}
LOSSES: dict[str, tuple[str, Callable[[float], str], bool | None]] = {
    "loss": ("loss", "{:.4f}".format, False),
    "perplexity": ("perplexity", lambda number: f"{number:,.2f}" if number < 1e6 else f"{number:.3g}", None),
    "bits_per_byte": ("bits/byte", "{:.4f}".format, False),
}
SPEEDS: dict[str, tuple[str, Callable[[float], str], bool | None]] = {
    "seconds_to_first_token": ("first token after", lambda seconds: f"{1000 * seconds:,.1f} ms", None),
    "tokens_per_second": ("tokens/s", "{:,.0f}".format, None),
}


def print_evaluation(measured: Row) -> None:
    """Print what was measured; beside a number, in brackets, what it has changed by since the last time."""
    from rich.text import Text

    console = make_console()
    console.print()
    console.print(
        Text(f"{one_line(measured['checkpoint'])}, {measured['dtype']} on {measured['device']}", style="title")
    )
    for table in _tables(measured):
        console.print()
        console.print(table)
    console.print()
    for example in (measured.get("scores") or {}).get("examples") or ():
        console.print(_example(example))
    times = [row["before"]["time"] for row in _all_rows(measured) if row.get("before", {}).get("time")]
    if times:
        day = f"{datetime.fromtimestamp(max(times)):%d %b %Y %H:%M}"
        console.print(Text(f"In brackets: the change since {day}, on the same.", style="dim"))


def _tables(measured: Row) -> Iterator[Any]:
    texts = measured.get("texts") or []
    if texts:
        rows = [_loss_row(row["path"], row) for row in texts]
        total = measured.get("total")
        rows += [_loss_row("all", total | {"tokens": sum(row["tokens"] for row in texts)})] if total else []
        lengths = {row.get("max_length") for row in texts} - {None}
        head = f"text, {lengths.pop():,} tokens at once" if len(lengths) == 1 else "text"
        yield _table([head, "tokens", *(name for name, _, _ in LOSSES.values())], rows)
    if scores := measured.get("scores"):
        what = f"{scores['prompts']:,} prompts of {_short(scores['path'])}"
        if scores.get("eval_reward_sampled") == scores.get("exact_match_sampled"):  # it is the same, said twice
            scores = {key: value for key, value in scores.items() if not key.startswith("eval_reward")}
        yield _table([what, ""], [[name, cell] for name, cell in _named_cells(scores, SCORES)])
    if measured.get("tasks"):
        yield _table(["task", "measure", "", "documents"], list(_task_rows(measured["tasks"])))
    if speed := measured.get("speed"):
        what = f"writing {speed['new_tokens']} tokens after {speed['prompt_tokens']}"
        yield _table([what, ""], [[name, cell] for name, cell in _named_cells(speed, SPEEDS)])


def _loss_row(name: str, row: Row) -> list[Any]:
    tokens = f"{row['tokens']:,}" + ("" if row.get("whole", True) else " of it")
    return [_short(name), tokens, *(cell for _, cell in _named_cells(row, LOSSES))]


def _short(path: str) -> str:
    return path if len(path) <= PATH_LENGTH else f"…{path[1 - PATH_LENGTH :]}"


def _named_cells(row: Row, kinds: Mapping[str, tuple[str, Callable[[float], str], bool | None]]) -> Iterator[Any]:
    for key, (name, write, more_is_better) in kinds.items():
        if key in row:
            yield name, _cell(row[key], (row.get("before") or {}).get(key), write, more_is_better)


def _cell(value: float, before: float | None, write: Callable[[float], str], more_is_better: bool | None) -> Text:
    """Return a number, with its change in brackets where it was measured before and is another now."""
    from rich.text import Text

    text = Text(write(value))
    if before is None:
        return text
    change = value - before
    if write(value) == write(before):
        return text + Text(" (=)", style="dim")
    style = "" if more_is_better is None else "good" if (change > 0) == more_is_better else "warn"
    return text + Text(f" ({'+' if change > 0 else '-'}{write(abs(change))})", style=style)


def _task_rows(tasks: Mapping[str, Row]) -> Iterator[list[Any]]:
    from rich.text import Text

    for task, row in tasks.items():
        name = task
        for key, value in numbers_of(row):
            metric, bracket, way = key.partition(" (")
            if metric.endswith("_stderr"):
                continue
            error = row.get(f"{metric}_stderr{bracket}{way}")
            cell = _cell(value, (row.get("before") or {}).get(key), "{:.4f}".format, None)
            cell = cell if error is None else Text.assemble(cell, (f" ± {error:.4f}", "dim"))
            yield [name, key, cell, f"{row['documents']:,}" if "documents" in row and name else ""]
            name = ""


def _example(example: Row) -> Any:
    from rich.text import Text

    lines = [("asked", example["prompt"]), ("answered", example["answer"])]
    lines += [("expected", example["reference"])] if example.get("reference") is not None else []
    text = Text()
    for name, value in lines:
        shown = one_line(str(value).strip())
        text.append(f"  {name:<9}", style="dim")
        text.append(shown if len(shown) <= 66 else f"{shown[:65]}…")
        text.append("\n")
    return text


def _all_rows(measured: Row) -> Iterator[Row]:
    yield from measured.get("texts") or ()
    yield from (measured.get("tasks") or {}).values()
    yield from [measured["scores"]] if "scores" in measured else []


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="help")
    for number, name in enumerate(head):
        table.add_column(Text(one_line(name)), overflow="fold", justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*(Text(one_line(cell)) if isinstance(cell, str) else cell for cell in row))
    return table


def print_closing(facts: Mapping[str, Any]) -> None:
    """Print the end of a run."""
    from rich.text import Text

    console = make_console()
    path, results = facts["path"], facts.get("results", {})
    console.print()
    if facts["status"] == "stopped":
        console.print(Text(f"Stopped at step {results.get('step', 0):,}; the work is saved in {path}/", style="warn"))
        console.print(f"Go on with:  llm-lab run {path}/recipe.yaml --resume", soft_wrap=True)
        return
    if facts.get("stage") == EXPORT.name:
        return _close_export(console, facts)
    if facts["status"] == "failed":
        console.print(Text(f"It failed before its end; what was made stands in {path}/", style="bad"))
        return
    reached = []
    if "eval_loss" in results:
        bits = f" ({results['bits_per_byte']:.3f} bits a byte)" if "bits_per_byte" in results else ""
        reached.append(f"validation loss {results['eval_loss']:.4f}{bits}")
    elif "reward" in results:
        reached.append(f"reward {results['reward']:.3f} in training")
    elif "loss" in results:
        reached.append(f"training loss {results['loss']:.4f}")
    if "eval_accuracy" in results:
        reached.append(f"accuracy {100 * results['eval_accuracy']:.1f} %")
    if "exact_match" in results:
        reached.append(f"exact match {100 * results['exact_match']:.1f} %")
    elif "eval_reward_sampled" in results:
        reached.append(f"held-out reward {results['eval_reward_sampled']:.3f}")
    if "train_tokens" in results:
        reached.append(f"{results['train_tokens']:,} tokens in {clock(results.get('wall_seconds', 0))}")
    console.print(Text(f"Done: {path}/", style="good"))
    if facts.get("stage") == EVAL.name:
        print_evaluation(facts["measured"])
        console.print(f"Its report:  {path}/report.md", soft_wrap=True)
        return
    if reached:
        console.print("Reached: " + ", ".join(reached), soft_wrap=True)
    console.print("What next:", style="title")
    stage = stage_of(facts)
    if (stage is None or stage.writes_text) and not is_judge(Path(path) / "model"):
        console.print(f"  talk to it   llm-lab chat {path}", soft_wrap=True)
    console.print(f"  look at it   llm-lab show {path}", soft_wrap=True)
    console.print(f"  its report   {path}/report.md", soft_wrap=True)
    console.print(f"  replay it    llm-lab run {path}/recipe.yaml", soft_wrap=True)
    console.print("  the wizard   llm-lab")


def _close_export(console: Any, facts: Mapping[str, Any]) -> None:
    """Print the end of an export: whether what was written loads as the model it was made from."""
    from rich.text import Text

    path, export = facts["path"], facts["export"]
    verdict = export["proof"]["verdict"]
    if facts["status"] == "failed":
        console.print(
            Text("Verification failed: the exported model differs from the original, so it was deleted.", style="bad")
        )
        console.print(f"  the numbers  {path}/run.json", soft_wrap=True)
        return
    style = "warn" if verdict == "not tried" else "good"
    console.print(Text(f"Exported, {VERDICTS[verdict]}: {export['path']}", style=style))
    console.print("What next:", style="title")
    if export["to"] == "hf":
        console.print(f"  talk to it   llm-lab chat {path}", soft_wrap=True)
    else:
        console.print(f"  talk to it   llama-cli -m {export['path']}", soft_wrap=True)
    console.print(f"  how to load  {_card_of(export)}", soft_wrap=True)
    console.print(f"  look at it   llm-lab show {path}", soft_wrap=True)


def _card_of(export: Mapping[str, Any]) -> str:
    folder = export["path"] if export["to"] == "hf" else export["path"].rpartition("/")[0]
    return f"{folder}/README.md"
