"""The state of a page of rows on the screen: which rows are shown, where the pointer is, and what has been changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from llm_lab.wizard.questions import UNSET, Form, Question, Row, same

from .console import one_line

ACTIONS, MORE = "(actions)", "(more)"  # where else the pointer can be: the actions, the further sections
ESSENTIALS, YOURS, ALL = "essentials", "yours", "all"
VIEWS = (ESSENTIALS, YOURS, ALL)
# What users type for a key: {short name: parts of the keys that it means}.
SHORT_NAMES = {
    "lr": ("learning_rate",),
    "bs": ("batch_size",),
    "batchsize": ("batch_size",),
    "ga": ("gradient_accumulation",),
    "wd": ("weight_decay",),
    "ctx": ("max_length", "max_position_embeddings"),
    "context": ("max_length", "max_position_embeddings"),
    "seq": ("max_length",),
    "seqlen": ("max_length",),
    "seq_len": ("max_length",),
    "clip": ("max_grad_norm", "epsilon", "cliprange"),
    "ffn": ("intermediate_size",),
    "d_model": ("hidden_size",),
    "width": ("hidden_size",),
    "depth": ("num_hidden_layers",),
    "vocab": ("tokenizer",),
    "val": ("validation",),
}


def filtered(rows: Iterable[Row], text: str) -> list[Row]:
    """Return the rows that a text matches by key, value or common short name.

    If there are none, those that offer it as a choice; else those whose help has it.
    """
    rows, words = list(rows), text.lower().split()

    def has(row: Row, word: str) -> bool:
        return word in f"{row.key} {row.value}".lower() or any(key in row.key for key in SHORT_NAMES.get(word, ()))

    def offers(row: Row, word: str) -> bool:
        return row.question is not None and any(word in choice.text.lower() for choice in row.question().choices)

    for matches in (has, offers, lambda row, word: word in row.help.lower()):
        if found := [row for row in rows if all(matches(row, word) for word in words)]:
            return found
    return []


class FormPage:
    """The state of a page on the screen: what is shown, where the pointer is, what is typed."""

    def __init__(self, question: Question, numbers: Callable[[Question, int, int], list[Any]]):
        assert question.form is not None
        self.question, self.numbers = question, numbers
        self.view, self.at = ESSENTIALS, ACTIONS
        self.filter: str | None = None  # None: all rows of the view are shown
        self.is_filtering = False  # whether typed text goes to the filter
        self.action = self.section = 0
        self.changed: str | None = None  # the row that was changed last
        self.trouble = ""
        self._refused = ""  # the typed value that was refused
        self.show_help = self.show_recipe = False
        self.scrolled = 0  # lines of the recipe or of the help above the screen
        self._point_at(self.form.at)

    def _point_at(self, at: Any) -> None:
        """Point at the action or the row that ended the page before; at the first action if it no longer exists."""
        values = [choice.value for choice in self.form.actions]
        if at in values:
            self.action = values.index(at)
        elif (row := self.form.row(str(at))) is not None:
            self.view = ESSENTIALS if row in self.form.essentials else row.section
            self.at = row.key

    @property
    def form(self) -> Form:
        assert self.question.form is not None
        return self.question.form

    @property
    def sections(self) -> list[str]:
        return list(dict.fromkeys(row.section for row in self.form.rows))

    def rows(self) -> list[Row]:
        """Return the rows of the view that is shown."""
        if self.filter is not None:
            essentials, known = {row.key for row in self.form.essentials}, {row.key for row in self.form.rows}
            # A group that is switched on, such as lora, is a row of the essentials only.
            rows = [*(row for row in self.form.essentials if row.key not in known), *self.form.rows]
            return sorted(filtered(rows, self.filter), key=lambda row: row.key not in essentials)
        if self.view == ESSENTIALS:
            return list(self.form.essentials)
        if self.view == ALL:
            return list(self.form.rows)
        if self.view == YOURS:
            return [row for row in self.form.rows if row.origin == "yours"]
        return [row for row in self.form.rows if row.section == self.view]

    def places(self) -> list[str]:
        """Return where the pointer can be: the actions, the keys of rows, the further sections."""
        more = [MORE] if self.view == ESSENTIALS and self.filter is None else []
        return [ACTIONS, *(row.key for row in self.rows()), *more]

    @property
    def is_refused(self) -> bool:
        """Whether the trouble is about a value that was typed."""
        return bool(self.trouble) and self.trouble == self._refused

    def answer(self, action: Any) -> Any:
        """Return the answer that ends the page; shown again, it points at the same place, or at the last change."""
        is_usual = same(action, self.form.actions[0].value)
        return self.form.answer(action, self.at if self.row else self.changed if is_usual else None)

    @property
    def kept(self) -> Question:
        """The page as it is shown again, with the pointer at the row that was changed last."""
        return replace(self.question, form=replace(self.form, at=self.changed))

    @property
    def is_read(self) -> bool:
        """Whether a text is shown instead of the rows: the recipe, or the whole help of the pointed row."""
        return self.show_recipe or self.show_help

    @property
    def row(self) -> Row | None:
        """The row that is pointed at."""
        return next((row for row in self.rows() if row.key == self.at), None)

    def move(self, by: int) -> None:
        """Move the pointer."""
        places = self.places()
        now = places.index(self.at) if self.at in places else 0
        self.at = places[max(0, min(len(places) - 1, now + by))]
        self.trouble, self.is_filtering = "", False

    def show(self, view: str) -> None:
        """Show other rows, starting at the top."""
        self.view, self.filter, self.is_filtering, self.trouble = view, None, False, ""
        if self.at not in self.places():
            places = self.places()
            self.at = places[min(1, len(places) - 1)]

    def type_filter(self, text: str | None) -> None:
        """Filter all rows by a text; None removes the filter."""
        self.filter, self.is_filtering, self.trouble = text, text is not None, ""
        places = self.places()
        if self.at not in places or self.at == ACTIONS:
            self.at = places[min(1, len(places) - 1)]

    def change(self, row: Row, answer: Any) -> str | None:
        """Change a row; return why the answer is refused, or None."""
        if answer != UNSET and row.question is not None and (why_not := row.question().problem(answer)):
            self.trouble = self._refused = why_not
            return why_not
        self.trouble, self.changed = "", row.key
        self.question = self.form.change(row.key, answer)
        if self.at not in self.places():
            self.at = ACTIONS
        return None

    def step(self, by: int) -> None:
        """Go to the next possible value of a row, action or section."""
        self.trouble = ""
        if self.at == ACTIONS:
            self.action = max(0, min(len(self.form.actions) - 1, self.action + by))
        elif self.at == MORE:
            self.section = max(0, min(len(self.sections) - 1, self.section + by))
        elif (row := self.row) and row.question is not None:
            self._step_row(row, row.question(), by)

    def _step_row(self, row: Row, question: Question, by: int) -> None:
        choices = [choice for choice in question.choices if choice.value != UNSET]
        if question.kind == "several" or not choices:
            self.trouble = "Type a value, or press Enter." if question.kind == "text" else "Press Enter."
            return
        at = next((n for n, choice in enumerate(choices) if same(choice.value, question.default)), -1)
        for number in range(at + by, len(choices) if by > 0 else -1, by):
            if choices[number].why_not is None:
                self.change(row, choices[number].value)
                return
        refused = next((c for c in choices[::by][::-1] if c.why_not), None) if at >= 0 else None
        if refused is not None:
            self.trouble = f"{one_line(refused.text.split('  ')[0].strip())}: {refused.why_not}."
