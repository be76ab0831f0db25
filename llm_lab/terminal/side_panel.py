"""What a wide terminal shows next to a list: the explanation of a choice, a run, the beginning of a file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from llm_lab.estimate.formatting import count
from llm_lab.runs.folder import RunFolder
from llm_lab.wizard.home import stage_or_kind, when_last_active
from llm_lab.wizard.questions import Choice, FileHead, Line, Question, RunSummary

from .console import columns, make_console, one_line, supports_unicode
from .prompt_layout import BESIDE_TITLE, SIDE_COLUMNS, is_wide, list_columns, wrapped

CURVES = ("reward", "loss")  # the first one that a run has is shown
CURVE_LINES = 9
LARGEST_METRICS = 4 * 2**20  # bytes; a limit, because the file is read while the pointer moves
HEAD_BYTES, MOST_LINES = 4096, 24  # bytes and lines of a file


def side_of(question: Question) -> Callable[[Choice], Sequence[Line]] | None:
    """Return a function that makes the panel of a choice; None if the terminal is narrow or no choice has a panel."""
    if not is_wide(columns()) or not any(one.effect or one.why or one.next_to for one in question.choices):
        return None
    found: dict[int, list[Line]] = {}

    def side(choice: Choice) -> Sequence[Line]:
        if id(choice) not in found:
            found[id(choice)] = list(_lines_of(choice))
        return found[id(choice)]

    return side


def _lines_of(choice: Choice) -> Iterator[Line]:
    if isinstance(choice.next_to, RunSummary):
        yield from _of_run(RunFolder(Path(choice.next_to.path)))
        return
    if isinstance(choice.next_to, FileHead):  # the file describes itself
        yield from wrapped_lines(choice.effect or choice.next_to.path, "title")
        yield Line("")
        yield from head_of(choice.next_to.path)
        return
    if not (choice.effect or choice.why) and len(choice.text) < list_columns(True) - BESIDE_TITLE:
        return  # the list already has everything
    name, _, about = re.sub(r"\s{2,}", "\n", choice.text.strip()).partition("\n")
    yield from wrapped_lines(": ".join(filter(None, (name, about.replace("\n", ", ")))), "title")
    for text in filter(None, (choice.effect, choice.why)):
        yield from wrapped_lines(text)


def wrapped_lines(text: str, style: str = "") -> Iterator[Line]:
    """Yield the lines of a text in the panel."""
    return (Line(part, style) for part in wrapped(one_line(text), SIDE_COLUMNS).split("\n"))


def head_of(path: str) -> Iterator[Line]:
    """Yield the first lines of a text file: prose is wrapped, other lines are cut at the width."""
    from llm_lab.recipe.files import PLAIN_TEXT

    try:
        if not Path(path).expanduser().is_file():  # a pipe would block
            return
        with Path(path).expanduser().open("rb") as file:
            text = file.read(HEAD_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return
    if path.endswith(PLAIN_TEXT):
        lines = (line for part in text.splitlines() if part.strip() for line in wrapped_lines(part, "dim"))
        yield from islice(lines, MOST_LINES)
        return
    from .page_lines import with_remarks_near

    head = [one_line(line.rstrip()) for line in islice(text.splitlines(), MOST_LINES)]
    for shown in with_remarks_near(head, 10**6):  # lines are cut below
        yield Line(shown if len(shown) <= SIDE_COLUMNS else f"{shown[: SIDE_COLUMNS - 1]}…", "dim")


def _of_run(run: RunFolder) -> Iterator[Line]:
    """Yield the description of a run, its curve and its last sample."""
    from llm_lab.runs.housekeeping import short_result

    facts = run.facts()
    parameters = facts.get("parameters")
    yield from wrapped_lines(str(run.path), "title")
    big = f"{count(parameters)} parameters" if isinstance(parameters, int | float) else ""
    parent = (facts.get("parent") or {}).get("path")
    data = [str(source.get("path")) for source in facts.get("data") or ()]
    lines = [
        [stage_or_kind(facts), run.status(), when_last_active(run)],
        [big, short_result(facts.get("results") or {})],
        [f"from {parent}" if parent else ""],
        [f"data {', '.join(data)}" if data else ""],
    ]
    for parts in lines:
        if text := ", ".join(filter(None, parts)):
            yield from wrapped_lines(text)
    yield from _curve_of(run)
    if samples := run.samples():
        step, text = samples[-1]
        yield Line("")
        yield Line(f"Sample at step {step:,}", "title")
        for line in islice(filter(str.strip, text.splitlines()[1:]), 8):
            yield from wrapped_lines(line, "dim")


def _curve_of(run: RunFolder) -> Iterator[Line]:
    from llm_lab.runs.glossary import name_of

    from .frame import draw_curve

    if not run.metrics_path.is_file() or run.metrics_path.stat().st_size > LARGEST_METRICS:
        return
    metrics = run.metrics()
    for key in CURVES:
        points = [(row["step"], row[key]) for row in metrics if isinstance(row.get(key), int | float)]
        if len(points) > 1:
            yield Line("")
            yield Line(name_of(key), "title")
            ascii_only = not supports_unicode(make_console())
            for line in draw_curve(points, SIDE_COLUMNS, CURVE_LINES, ascii_only=ascii_only):
                yield Line(line)
            return
