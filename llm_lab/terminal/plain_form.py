"""A page of rows as numbered lines, for screen readers and limited terminals."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

from llm_lab.wizard.questions import UNSET, Question, Row

from .console import columns, one_line, printable
from .page_state import filtered
from .prompt_layout import Back, text_columns, wrapped

HINT = (
    "A number changes a line; key=value sets it, key= resets it. Enter: {}. a all settings · y yours · e main settings "
    "· /text filter · r recipe · b back · ? help"
)


def ask_plain_form(
    question: Question,
    *,
    ask_one: Callable[[Question], Any],
    keep: Callable[[Question], None],
    draw: Callable[[Question], object],
) -> Any:
    """Ask a page with plain lines until an action ends it; return its answer. Raises Back.

    ask_one: asks the question of a row. keep: receives the page after each change. draw: prints what is above it.
    """
    shown, printed = "", ""
    drawn: Question | None = None
    while True:
        form = question.form
        assert form is not None
        if question is not drawn:
            draw(question)
        rows = _rows(question, shown)
        if question is not drawn or shown != printed:
            _print_rows(question, rows)
        drawn, printed = question, shown
        text = input("> ").strip()
        changed: Question | None = None
        if text in ("a", "y", "e") or text.startswith("/"):
            shown = text
        elif text == "b":
            raise Back
        elif text == "?":
            print(_folded(question.why), _folded(HINT.format(form.actions[0].text)), sep="\n")
        elif text == "r":
            print(printable(form.recipe() if form.recipe else ""), printable(f"\n{form.command}"), sep="")
        elif text == "" or text.isdigit():
            number = int(text or 1)
            if 1 <= number <= len(form.actions):
                action = form.actions[number - 1]
                if not action.why_not:
                    return form.answer(action.value)
                print(printable(f"Not available: {action.why_not}."))
            elif number - len(form.actions) <= len(rows):
                row = rows[number - len(form.actions) - 1]
                if row.question is None:
                    return form.answer(row.key)
                changed = _asked(question, row, ask_one)
            else:
                print(f"Enter a number from 1 to {len(form.actions) + len(rows)}.")
        elif "=" in text:
            changed = _typed(question, *text.split("=", 1))
        else:
            print(printable(f"{text} is not a command here. Enter ? for help."))
        if changed is not None:
            question = changed
            keep(question)


def _rows(question: Question, shown: str) -> list[Row]:
    form = question.form
    assert form is not None
    if shown.startswith("/"):
        return filtered(form.rows, shown[1:])
    if shown == "y":
        return [row for row in form.rows if row.origin == "yours"]
    return list(form.rows if shown == "a" else form.essentials)


def _print_rows(question: Question, rows: list[Row]) -> None:
    form = question.form
    assert form is not None
    for number, action in enumerate(form.actions, 1):
        print(printable(f"{number:>3}  {action.text}{f' (not available: {action.why_not})' if action.why_not else ''}"))
    section = ""
    for number, row in enumerate(rows, len(form.actions) + 1):
        if row.section != section:
            section = row.section
            print(printable(section))
        origin = f" ({row.shown_origin})" if row.shown_origin else ""
        line = one_line(f"{number:>3}  {row.label}: {row.value}{origin}")
        print(wrapped(line, text_columns(), len("  1  ")))
    print(wrapped(f"$ {one_line(form.command)}", text_columns(), len("$ ")))
    print(_folded(HINT.format(form.actions[0].text)))


def _folded(text: str) -> str:
    return "\n".join(
        textwrap.fill(line, max(20, columns() - 1), break_on_hyphens=False) for line in printable(text).split("\n")
    )


def _asked(question: Question, row: Row, ask_one: Callable[[Question], Any]) -> Question | None:
    assert question.form is not None
    assert row.question is not None
    try:
        return question.form.change(row.key, ask_one(row.question()))
    except Back:
        return None


def _typed(question: Question, key: str, value: str) -> Question | None:
    """Return the page after key=value; None, with a printed reason, if the value is refused."""
    assert question.form is not None
    form, key = question.form, key.strip()
    row = form.row(key) or next((row for row in form.essentials if row.label == key), None)
    if row is None or row.question is None:
        print(printable(f"{key} can't be set here. Enter the number of a line, or a to show all settings."))
        return None
    asked = row.question()
    answer: Any = value.strip() or UNSET
    if asked.kind == "choice":
        names = {str(choice.value).lower(): choice.value for choice in asked.choices}
        names |= {choice.text.split("  ")[0].strip(): choice.value for choice in asked.choices}
        answer = names.get(str(answer).lower(), answer)
    trouble = None if answer == UNSET else asked.problem(answer)
    if trouble:
        print(printable(trouble))
        return None
    return question.form.change(row.key, answer)
