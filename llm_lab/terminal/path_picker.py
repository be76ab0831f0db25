"""Choosing a file or folder: matching ones are listed below the question; typed text filters, or is a path itself."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_lab.wizard.places import places_in
from llm_lab.wizard.questions import Line, Question, same

from .console import columns, one_line, printable
from .prompt_layout import (
    BESIDE_TITLE,
    MOST_ABOUT,
    fit_words,
    in_whole,
    is_wide,
    lay_out_list,
    list_columns,
    numbered,
    text_columns,
)

HINTS = (  # the longest one that fits is shown
    "(type to filter, or a path · Esc back · ? help)",
    "(type to filter · Esc back · ? help)",
    "(Esc back · ? help)",
    "",
)
SEVERAL_HINTS = (
    "(type to filter, or a path · Space: several · Esc back · ? help)",
    "(type to filter, or a path · Space: several · ? help)",
    "(Space: several · Esc back · ? help)",
    *HINTS[2:],
)
WIDEST_NAME = 48
ABOUT_COLUMNS = 26  # of a description next to a name, at most
PARENT = ".."
SHOWN_NEXT_TO_LIST = ("texts", "examples", "recipes")  # kinds of files that their first lines describe
MARKED, UNMARKED = "● ", "○ "


@dataclass(frozen=True)
class Row:
    """A line of the list. answer: what it returns; goes_to: the folder that it opens instead; text: its description."""

    title: str
    answer: str = ""
    goes_to: str | None = None
    why_not: str | None = None
    effect: str = ""
    text: str = ""


@dataclass
class Place:
    """Which folder is listed, and what was typed and marked. in_lines: whether the list is printed as plain lines."""

    question: Question
    columns: int
    in_lines: bool = False
    folder: str = ""
    typed: str = ""
    marked: list[str] = field(default_factory=list)
    was_refused: bool = False  # whether `typed` was refused: the next letter then replaces it
    before: list[str] = field(default_factory=list)  # the folders that were listed before, the last one last
    forgets: bool = False  # whether to list the default only as the typed text, because it was refused

    @property
    def several(self) -> bool:
        return self.question.kind == "paths"

    @property
    def defaults(self) -> list[str]:
        """The answers that Enter alone returns."""
        default = self.question.default or []
        return list(default) if self.several else [str(default)] if default else []

    def rows(self) -> list[Row]:
        """Return what is listed: matching files, other offers, folders, the parent folder, and the typed text."""
        head, slash, wanted = self.typed.rpartition("/")
        folder = (head or "/") if slash else self.folder
        there = places_in(folder, self.question.look_for) if Path(folder or ".").expanduser().is_dir() else []
        places = [place for place in there if _matches(wanted, Path(place.path).name)]
        listed = {place.path for place in there}
        offers = [] if slash or self.folder else [one for one in self.question.choices if one.value not in listed]
        offered = [choice for choice in offers if _matches(wanted, choice.text) or _matches(wanted, str(choice.value))]
        names = [place.path for place in places] + [str(choice.value) for choice in offered]
        names += self.defaults if not (self.typed or self.folder or self.forgets) else []
        width = min(max(map(len, names), default=0), WIDEST_NAME, max(12, self.columns - ABOUT_COLUMNS - 6))
        rows = [
            Row(self._title(place.path, place.about, width, place.why_not), place.path, why_not=place.why_not)
            for place in places
            if not place.enters
        ]
        rows += [
            Row(
                self._title(str(one.value), one.text, width, one.why_not),
                *(str(one.value), None, one.why_not, one.effect, one.text),
            )
            for one in offered
        ]
        if not (self.typed or self.folder or self.forgets):  # a default that is not in this folder
            unlisted = [one for one in self.defaults if not any(row.answer == one for row in rows)]
            rows = [*(Row(self._title(one, "", width, None), one) for one in unlisted), *rows]
        inner = [place for place in places if place.enters]
        mark = " " * len(UNMARKED) if self.several else ""
        rows += [Row(f"{mark}{_fit(p.path, width):<{width}}  {p.about}", goes_to=p.path.rstrip("/")) for p in inner]
        if not self.typed:
            rows.append(Row(f"{mark}{PARENT}", goes_to=_parent(self.folder)))
        elif not any(row.answer == self.typed for row in rows):
            rows.append(Row(f'{mark}use "{self.typed}" as typed', self.typed))
        return rows

    def _title(self, path: str, about: str, width: int, why_not: str | None) -> str:
        # An entry that can't be chosen has a mark of its own.
        mark = "" if not self.several or why_not else MARKED if path in self.marked else UNMARKED
        most = width
        width -= len(MARKED) if why_not and not self.several and not self.in_lines else 0
        return one_line(f"{mark}{_fit(path, most):<{width}}  {about}".rstrip() if path else f"{mark}{about}")

    def go(self, folder: str) -> None:
        """List another folder."""
        self.before.append(self.folder)
        self.folder, self.typed = folder, ""

    def step_back(self) -> bool:
        """Clear the typed text, or list the previous folder again; return whether there was something to undo."""
        if self.typed:
            self.typed, self.was_refused = "", False
        elif self.before:
            self.folder = self.before.pop()
        else:
            return False
        return True

    def answer_of(self, row: Row) -> Any:
        """Return the answer that Enter returns on a row."""
        return (list(self.marked) or [row.answer]) if self.several else row.answer

    def mark(self, row: Row) -> None:
        """Mark a file, or unmark it."""
        if row.answer in self.marked:
            self.marked.remove(row.answer)
        elif row.answer:
            self.marked.append(row.answer)


def _matches(wanted: str, text: str) -> bool:
    return all(word in text.lower() for word in wanted.lower().split())


def _fit(path: str, width: int) -> str:
    """Return a path as it fits; if it is too long, its end, starting at a folder if possible."""
    if len(path) <= width:
        return path
    end = path[len(path) - width + 1 :]
    return f"…{end[max(0, end.find('/', 0, -1)) :]}"


def _parent(folder: str) -> str:
    """Return the parent folder, as short as it can be written; "" is the current one."""
    here = Path(folder or ".").expanduser().resolve().parent
    current = Path.cwd()
    if here == current:
        return ""
    return str(here.relative_to(current)) if here.is_relative_to(current) else str(here)


def pick_path(question: Question, above: int, trouble: str = "", *, run: Callable[..., Any], style: Any) -> Any:
    """Ask for a path, or several, with a list of the files and folders. Raises Back.

    above: how many lines are above the question on the screen. trouble: why the default was refused. run: runs a prompt
    that has a footer, with the keys that every question has. style: the style of prompts.
    """
    import questionary
    from prompt_toolkit.application import Application, get_app_session
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.keys import Keys
    from prompt_toolkit.layout import FormattedTextControl, HSplit, Layout, Window
    from questionary.prompts.common import InquirerControl

    from .side_panel import head_of, wrapped_lines

    has_side = question.look_for in SHOWN_NEXT_TO_LIST
    size = get_app_session().output.get_size()
    room = list_columns(has_side) if has_side else size.columns
    lines = size.rows - above - 1 - MOST_ABOUT - 1  # minus the lines of the question and below the list
    place = Place(question, room)
    default = place.defaults
    place.marked = list(default) if len(default) > 1 else []
    control = InquirerControl(
        _choices(place.rows(), room, lines), pointer="»", use_indicator=False, show_description=False
    )

    before_typing: str | None = None

    def show(at: str | None = None) -> None:
        """List again. at: the answer to point at; by default, the first line that can be chosen."""
        rows = place.rows()
        control.choices = _choices(rows, room, lines)
        possible = [n for n, choice in enumerate(control.choices) if not choice.disabled]
        exact = at if at is not None else place.typed or None
        wanted = [n for n in possible if rows[n].goes_to is None and rows[n].answer == exact and n != len(rows) - 1]
        control.pointed_at = (wanted or possible or [0])[0]

    def header() -> list[tuple[str, str]]:
        where = [("class:instruction", f"{place.folder}/ ")] if place.folder else []
        free = min(room, text_columns()) - len(f"? {one_line(question.text)} ") - sum(len(text) for _, text in where)
        hint = next((hint for hint in (SEVERAL_HINTS if place.several else HINTS) if len(hint) <= free), "")
        typed = (
            [("class:refused" if place.was_refused else "", place.typed), ("class:cursor", " ")]
            if place.typed
            else [("class:instruction", hint)]
        )
        return [("class:qmark", "?"), ("class:question", f" {one_line(question.text)} "), *where, *typed]

    keys = KeyBindings()

    def pointed() -> Row:
        return control.get_pointed_at().value

    @keys.add("up", eager=True)
    @keys.add("down", eager=True)
    def _(event: Any) -> None:
        move = control.select_next if event.key_sequence[0].key == Keys.Down else control.select_previous
        for _ in control.choices:
            move()
            if not control.is_selection_disabled():
                return

    @keys.add("enter", eager=True)
    @keys.add("c-j", eager=True)  # Enter, if it was pressed before the terminal was set up
    def _(event: Any) -> None:
        row = pointed()
        if row.why_not:
            footer.trouble = f"{row.answer}: {row.why_not}."
            return
        if row.goes_to is not None and not place.marked:
            before = place.folder
            place.go(row.goes_to)
            show(before)
            return
        answer = place.answer_of(row)
        footer.trouble = "" if question.wait else question.problem(answer) or ""
        if not footer.trouble:
            event.app.exit(result=answer)

    @keys.add("right", eager=True)
    @keys.add("tab", eager=True)
    def _(event: Any) -> None:
        row = pointed()
        if row.goes_to is not None and row.goes_to != _parent(place.folder):
            place.go(row.goes_to)
            show()
        elif row.answer and event.key_sequence[0].key == Keys.Tab:
            place.typed = row.answer
            show()

    @keys.add("left", eager=True)
    @keys.add("backspace", eager=True)
    @keys.add("c-u", eager=True)
    @keys.add("c-w", eager=True)
    def _(event: Any) -> None:
        key, place.was_refused = event.key_sequence[0].key, False
        if place.typed and key != Keys.Left:
            place.typed = place.typed[:-1] if key == Keys.Backspace else ""
            show(None if place.typed else before_typing)
        elif key in (Keys.Left, Keys.Backspace):
            place.go(_parent(place.folder))
            show()
        elif place.folder:
            place.go("")
            show()
        footer.trouble = ""

    @keys.add(Keys.BracketedPaste, eager=True)
    @keys.add(Keys.Any)
    def _(event: Any) -> None:
        nonlocal before_typing
        text = event.data.replace("\r\n", " ").replace("\n", " ").strip("\r")
        if text == " " and place.several and "/" not in place.typed:
            place.mark(pointed())
            show(pointed().answer)
        elif text.isprintable():
            before_typing = before_typing if place.typed else pointed().answer
            place.typed = text if place.was_refused else place.typed + text
            place.was_refused = False
            show()
        footer.trouble = ""

    @keys.add("c-c", eager=True)
    def _(event: Any) -> None:
        event.app.exit(exception=KeyboardInterrupt())

    def describe(row: Row) -> str:
        is_cut = (
            row.text
            and not (has_side and is_wide(columns()))
            and any(one.value is row and "…" in one.title for one in control.choices)
        )
        whole = f"{row.answer}: {row.text}" if is_cut else ""
        return "\n".join(text for text in (one_line(whole), one_line(row.effect), question.allowed) if text)

    def side(row: Row) -> list[Line]:
        if not has_side or not row.answer or row.why_not:
            return []
        about = [Line(row.answer, "title"), *wrapped_lines(row.text)] if row.text else []
        return about + list(head_of(row.answer))

    window = Window(FormattedTextControl(header), dont_extend_height=True, wrap_lines=True, always_hide_cursor=True)
    layout = Layout(HSplit([window, Window(control, always_hide_cursor=True)]))
    app: Application[Any] = Application(layout, key_bindings=keys, style=style, erase_when_done=True)
    footer = lay_out_list(
        app,
        lambda row: question.why,
        above=above,
        describe=describe,
        side=side,
        filters=False,
    )
    footer.is_untouched = lambda: not place.typed  # type: ignore[method-assign]

    def step_back() -> bool:
        at = before_typing if place.typed else place.folder
        if not place.step_back():
            return False
        footer.trouble = ""
        show(at)
        return True

    footer.step_back = step_back
    footer.trouble = trouble
    place.forgets = bool(trouble) and len(default) == 1
    if place.forgets and not any(row.answer == default[0] for row in place.rows()):
        place.typed, place.was_refused = default[0], True
    offers_none = any(choice.value == "" for choice in question.choices)
    show(default[0] if default else "" if offers_none else None)

    def so_far() -> Any:
        answer = place.typed or pointed().answer
        if place.several:
            return place.marked or ([answer] if answer else question.default)
        return answer or question.default

    return run(questionary.Question(app), footer, so_far)


def _choices(rows: Sequence[Row], columns: int, lines: int) -> list[Any]:
    """Return the lines of the list; long ones are wrapped if there is room, else cut."""
    from questionary import Choice

    columns = min(columns, text_columns())
    titles = [fit_words(row.title, columns - BESIDE_TITLE) for row in rows]
    whole = [
        title if row.why_not else in_whole(row.title, title, columns, BESIDE_TITLE - len(UNMARKED))
        for row, title in zip(rows, titles, strict=True)
    ]
    titles = whole if sum(title.count("\n") + 1 for title in whole) <= lines else titles
    return [
        Choice(title, row, disabled=row.why_not, shortcut_key=False) for row, title in zip(rows, titles, strict=True)
    ]


def pick_plainly(question: Question, read_line: Callable[[Question, str, str], str], trouble: str = "") -> Any:
    """Ask for a path, or several, with numbered lines; a path may also be typed. Raises Back.

    read_line: (question, before, default) -> the text that was typed, or the default.
    """
    place = Place(question, 79, in_lines=True)
    several = place.several
    place.forgets = bool(trouble)  # the refused answer is neither listed nor the default
    default = "" if trouble else " ".join(place.defaults)
    while True:
        rows = place.rows()
        print(printable(question.text))
        if question.allowed:
            print(printable(textwrap.fill(question.allowed, 79, break_on_hyphens=False)))
        for number, row in enumerate(rows, 1):
            not_now = f"  (not available: {row.why_not})" if row.why_not else ""
            title = row.title.removeprefix(UNMARKED).strip()
            print(numbered(number, title, not_now))
        if trouble:
            print(printable(trouble))
        text = read_line(question, "Numbers or a path" if several else "Number or path", default)
        words = text.replace(",", " ").split()
        numbers = [int(word) for word in words if word.isdecimal() and 1 <= int(word) <= len(rows)]
        if numbers and len(numbers) == len(words) and (several or len(numbers) == 1):
            picked = [rows[number - 1] for number in numbers]
            if len(picked) == 1 and picked[0].goes_to is not None:
                place.go(picked[0].goes_to)
                trouble = ""
                continue
            trouble = next((f"Not available: {row.why_not}." for row in picked if row.why_not), "")
            paths = [row.answer for row in picked if row.answer]
            answer: Any = paths if several else paths[0]
        else:
            trouble = ""
            answer = question.default if several and same(text, default) else [text] if several else text
        trouble = trouble or ("" if question.wait else question.problem(answer) or "")
        if not trouble:
            return answer
