"""The lines of a page on the screen: title and costs, the rows, then help, the equivalent command and the keys."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from typing import Any

from llm_lab.wizard.questions import UNSET, Question, Row, same

from .console import one_line
from .page_state import ACTIONS, MORE, FormPage

WIDE = 120  # from this width, the help is next to the page
SIDE_COLUMNS = 44
LEAST_ROWS = 4
LEAST_ABOUT, MOST_ABOUT = 2, 3
USUAL_ROWS = 13  # rows for which the numbers leave room
BOTTOM_LINES, MOST_BOTTOM_LINES = 6, 7
BESIDE_COMMAND = len("$ ")
LONGEST_ORIGIN = len("derived")
LEAST_VALUE = 12
BESIDE_VALUE = len("‹  ›")  # the marks of the pointed row
RESET, VIEWS = "Delete resets a value.", "Tab shows the values you chose, then all values."
TITLES = {"essentials": "", "yours": "your values", "all": "all values"}
Fragment = tuple[str, str]  # (style, text)
Lines = list[list[Fragment]]


@dataclass
class Place:
    """Where a value is being typed: its row, and its position on the screen, up to the column `end`."""

    row: Row | None = None
    line: int = 0
    column: int = 0
    end: int = 0


def lay_out(page: FormPage, columns: int, rows: int, place: Place) -> Lines:
    """Return the lines of the screen; record where the value that is being typed is."""
    columns -= 1  # nothing is written into the last column, because some terminals wrap there
    top = _top(page, columns, rows)
    is_wide = columns + 1 >= WIDE
    listed = None if is_wide else _list(page, columns, rows - len(top) - MOST_BOTTOM_LINES)
    free = rows - len(top) - MOST_BOTTOM_LINES - len(listed[0]) if listed else 0
    bottom = _bottom(page, columns, MOST_ABOUT + max(0, free), wide=is_wide, edits=place.row is not None)
    room = max(LEAST_ROWS, rows - len(top) - len(bottom))
    if page.is_read:
        text = _recipe(page, columns) if page.show_recipe else _side(page, columns)
        text = [[("", "")], *text] if len(text) < room else text
        page.scrolled = min(page.scrolled, max(0, len(text) - room))
        shown = text[page.scrolled : page.scrolled + room]
        return [*top, *shown, *([[("", "")]] * (room - len(shown))), *bottom]
    if listed:
        body, at = _scrolled(*listed, room)
        place.line, place.column, place.end = len(top) + at, _value_column(page, columns), columns
        return [*top, *body, *bottom]
    left = columns - SIDE_COLUMNS - 3
    body, at = _scrolled(*_list(page, left, room), room)
    place.line, place.column, place.end = len(top) + at, _value_column(page, left), left
    side = _side(page, SIDE_COLUMNS)
    if len(side) > room:
        side = [*side[: room - 1], [("class:dim", "… ? shows all of it")]]
    side += [[("", "")]] * (room - len(side))
    return [*top, *(_next_to(line, right, left) for line, right in zip(body, side, strict=True)), *bottom]


def _next_to(line: list[Fragment], right: list[Fragment], columns: int) -> list[Fragment]:
    used = sum(_width(text) for _, text in line)
    return [*line, ("", " " * max(0, columns - used)), ("class:dim", " │ "), *right]


def _top(page: FormPage, columns: int, rows: int) -> Lines:
    """Return the title, the costs, the problem, and the effect of the last change."""
    screen = page.question.screen
    names = ["LLM Lab", *(one_line(text) for text in (screen.title, screen.where, _view_title(page)) if text)]
    title = _fit(" · ".join(names[1:]), columns - len(names[0]) - 4)
    rule = "─" * max(0, columns - len(names[0]) - 3 - _width(title) - 1)
    lines: Lines = [[("class:title", names[0]), ("", f" · {title} "), ("class:dim", rule)]]
    said = [(line.text, f"class:{line.style}") for line in screen.lines]
    said += [(page.question.notice, "class:warn")] if page.question.notice else []
    notes = [[(style, part)] for text, style in said for part in _wrap(text, columns)]
    free = rows - BOTTOM_LINES - 1 - len(notes)
    numbers = page.numbers(page.question, columns, max(1, free - min(USUAL_ROWS, len(page.rows()) + 4)))
    return [*lines, *numbers, *notes[:6]]


def _view_title(page: FormPage) -> str:
    if page.is_read:
        return "recipe" if page.show_recipe else "help"
    return f'filter "{page.filter}"' if page.filter is not None else TITLES.get(page.view, page.view)


def _list(page: FormPage, columns: int, room: int) -> tuple[Lines, int]:
    """Return the actions, the rows under their headings, and the further sections; and the index of the pointed line.

    Blank lines separate them if there is room for every pointed line, so that the page does not jump.
    """
    lines, at = _lines_of(page, columns, [[("", "")]])
    return (lines, at) if len(lines) <= room else _lines_of(page, columns, [])


def _lines_of(page: FormPage, columns: int, space: Lines) -> tuple[Lines, int]:
    """Return the same; space: the lines that separate the parts."""
    lines = [*space, *_bar(page, ACTIONS, [choice.text for choice in page.form.actions], page.action, columns)]
    at, section = 0, ""
    widths = _columns_of(page, columns)
    rows = page.rows()
    if not rows:
        text = (
            "You have not chosen any values."
            if page.view == "yours"
            else "Nothing contains this text. Esc clears the filter."
        )
        lines += [[("", "")], [("class:dim", f"  {text}")]]
    for row in rows:
        if row.section != section:
            section = row.section
            lines += [*space, _heading(section, page.form.sections.get(section, ""), columns)]
        if row.key == page.at:
            at = len(lines)
        lines.append(_row_line(page, row, widths))
    if MORE in page.places():
        lines += [*space, _heading("All settings, by group", "", columns)]
        if page.at == MORE:
            at = len(lines)
        lines += _bar(page, MORE, page.sections, page.section, columns)
    return lines, at


def _heading(name: str, about: str, columns: int) -> list[Fragment]:
    shown = _fit(one_line(about), columns - len(name) - 4)
    return [("class:heading", f" {name}"), ("class:dim", f"  {shown}" if shown else "")]


def _bar(page: FormPage, place: str, names: list[str], at: int, columns: int) -> Lines:
    """Return names side by side, wrapped between names; the chosen one is marked."""
    pointed = page.at == place
    groups: list[list[int]] = [[]]
    used = 2
    for number, name in enumerate(names):
        if used + len(name) + 2 > columns and groups[-1]:
            groups.append([])
            used = 2
        groups[-1].append(number)
        used += len(name) + 2
    lines: Lines = []
    for group in groups:
        lines.append([_pointer(pointed and at in group)])
        for number in group:
            chosen = number == at
            style = "class:bar" if chosen else "class:dim" if not pointed else ""
            text = f"[{names[number]}]" if chosen else f" {names[number]} "
            lines[-1].append(("class:pointed" if chosen and pointed else style, text))
    return lines


def _pointer(pointed: bool) -> Fragment:
    return ("class:accent", "» ") if pointed else ("", "  ")


def _columns_of(page: FormPage, columns: int) -> tuple[int, int, int]:
    """Return the widths of label, value and origin."""
    rows = page.rows()
    label = max((_width(row.label) for row in rows), default=0)
    label = min(label, columns - LEAST_VALUE - LONGEST_ORIGIN - 5)
    longest = max((_width(one_line(row.value)) for row in rows), default=0)
    rest = columns - 2 - label - 2
    # Reasons make room for values; the help of the row has both.
    value = min(max(longest + BESIDE_VALUE, 10), max(rest - LONGEST_ORIGIN - 1, LEAST_VALUE))
    return label, value, max(0, rest - value - 1)


def _value_column(page: FormPage, columns: int) -> int:
    return 2 + _columns_of(page, columns)[0] + 2


def _row_line(page: FormPage, row: Row, widths: tuple[int, int, int]) -> list[Fragment]:
    label, value, rest = widths
    pointed = row.key == page.at
    shown, origin = _value_of(row, pointed), one_line(row.shown_origin)
    if _width(shown) > value:  # the marks around a value make room for it
        shown = one_line(row.value)
        room = value + rest - len(row.origin) - 1
        if pointed and value < _width(shown) <= room:
            value, rest = _width(shown), len(row.origin)
        shown = _cut(shown, value)
    style = {"yours": "class:accent", "default": "class:dim", "derived": ""}.get(row.origin, "")
    whole = _width(origin) <= rest  # the reason of the pointed row is shown in full below
    from_where = origin if whole else row.origin if _width(row.origin) <= rest else ""
    return [
        _pointer(pointed),
        ("class:pointed" if pointed else "", _pad(_cut(row.label, label), label)),
        ("", "  "),
        (style, _pad(shown, value)),
        ("", " "),
        (style, from_where),
    ]


def _value_of(row: Row, pointed: bool) -> str:
    value = one_line(row.value)
    if not pointed or row.question is None:
        return f"{value} ..." if row.question is None and pointed else value
    return f"‹ {value} ›" if row.question().choices else value


def _scrolled(lines: Lines, at: int, room: int) -> tuple[Lines, int]:
    """Return as many lines as fit, including the pointed one, and the index of that one."""
    first = max(0, min(at - room // 2, len(lines) - room))
    shown = lines[first : first + room]
    if first > 0:
        shown[0] = [("class:dim", f"  ↑ {first + 1} more lines")]
    if first + room < len(lines):
        shown[-1] = [("class:dim", f"  ↓ {len(lines) - first - room + 1} more lines")]
    return shown + [[("", "")]] * (room - len(shown)), at - first


def _bottom(page: FormPage, columns: int, most: int, *, wide: bool, edits: bool) -> Lines:
    """Return the help of the row (next to the page if it is wide), the equivalent command and the keys.

    most: the most lines of help: the usual ones, and those that the rows leave empty.
    """
    lines: Lines = [[("class:dim", "─" * columns)]]
    if page.trouble:
        trouble = _wrap(page.trouble, columns)[:most]
        lines += [[("class:bad", line)] for line in trouble]
        if page.is_refused and (row := page.row) is not None and row.question is not None:
            allowed = _first_lines(row.question().allowed, columns, most - len(trouble))
            lines += [[("class:dim", line)] for line in allowed]
    elif not wide and not page.is_read:
        general = "" if page.row else f"{page.question.why.partition(chr(10))[0]} {RESET}"
        about = _shortened(_about(page), columns, most)
        about = about or [("class:dim", line) for line in _first_lines(general, columns, most - 1)]
        lines += [[fragment] for fragment in about] + [[("", "")]] * (LEAST_ABOUT - len(about))
    lines.append([("class:dim", "$ "), ("", _fit_command(one_line(page.form.command), columns - BESIDE_COMMAND))])
    keys = ["←→ change", "Enter open", f"Ctrl-F {_finish(page)}", "type to filter", "Tab yours/all"]
    keys += ["Ctrl-R recipe", "? help", "Esc back"]
    if page.is_read:
        keys = ["↑↓ scroll", "Esc back to the page"]
    said = _wrap_keys(keys, columns)
    if edits:
        typing = _wrap_keys(["Type the value", "Enter takes it", "Esc keeps the old one"], columns)
        said = typing + [""] * (len(said) - len(typing))  # the page must not jump
    return [*lines, *([("class:dim" if not edits else "class:accent", line)] for line in said)]


def _shortened(texts: list[Fragment], columns: int, most: int) -> list[Fragment]:
    """Return the first lines of texts; each text gets at least one, and " …" marks one that was cut."""
    found: list[Fragment] = []
    texts = [(style, text) for style, text in texts if text][:most]
    for number, (style, text) in enumerate(texts):
        room = most - len(found) - (len(texts) - number - 1)
        found += [(style, line) for line in _first_lines(text, columns, room)]
    return found


def _first_lines(text: str, columns: int, most: int) -> list[str]:
    lines = _wrap(text, columns)
    if len(lines) <= most or most < 1:
        return lines[: max(0, most)]
    return [*lines[: most - 1], _fit(" ".join(lines[most - 1 :]), columns)]


def _finish(page: FormPage) -> str:
    return {"start": "plan"}.get(page.form.actions[0].value, "finish")


def _wrap_keys(keys: list[str], columns: int) -> list[str]:
    lines = [""]
    for key in keys:
        joined = f"{lines[-1]} · {key}" if lines[-1] else key
        if len(joined) > columns:
            lines.append(key)
        else:
            lines[-1] = joined
    return lines


def _about(page: FormPage) -> list[Fragment]:
    """Return the description of the pointed line: (style, text)."""
    row = page.row
    if row is None:
        choices = page.form.actions
        why_not = choices[page.action].why_not if page.at == ACTIONS else None
        return [("class:bad", f"Not possible: {why_not}.")] if why_not else []
    reason = f" ({row.reason})" if row.reason else ""
    found = [("class:help", row.help), ("class:dim", f"{row.origin or 'now'}: {one_line(row.value)}{reason}")]
    if row.question is not None:
        question = row.question()
        choice = next((choice for choice in question.choices if same(choice.value, question.default)), None)
        about = choice.effect or choice.text if choice else question.allowed
        found.append(("class:dim", one_line(about)))
    return found


def _side(page: FormPage, columns: int) -> Lines:
    """Return the whole help: of a row, its meaning, its choices with their effects, and the reason; or of the page."""
    row = page.row
    if row is None or row.question is None:
        lines: Lines = [[(style, line)] for style, text in _about(page) for line in _wrap(text, columns)]
        about = [*page.question.why.splitlines(), f"{RESET} {VIEWS}"]
        lines += [[("", line)] for text in about for line in _wrap(text, columns)]
        groups = page.form.sections.items() if page.at == MORE else ()
        texts = [f"{name}: {about}" for name, about in groups if about]
        return lines + [[("class:dim", line)] for text in texts for line in ["", *_wrap(text, columns)]]
    question = row.question()
    lines = [[("class:help", line)] for line in _wrap(row.help, columns)]
    origin = f" ({row.shown_origin})" if row.shown_origin else ""
    lines += [[("", line)] for line in _wrap(f"Now {one_line(row.value)}{origin}.", columns)]
    lines += _choice_lines(question, columns)
    of_group = page.form.sections.get(row.section)
    group = f"Group {row.section}: {of_group}." if of_group else ""
    texts = [*question.why.splitlines(), question.allowed, group]
    return lines + [[("class:dim", line)] for text in texts if text for line in ["", *_wrap(text, columns)]]


def _choice_lines(question: Question, columns: int) -> Lines:
    lines: Lines = []
    for choice in question.choices:
        now = same(choice.value, question.default)
        style = "class:accent" if now else "class:dim" if choice.why_not else ""
        text = re.sub(r"\s{2,}", ": ", choice.text.strip(), count=1)
        text = f"{text} (not possible: {choice.why_not})" if choice.why_not else text
        for number, part in enumerate(_wrap(one_line(text), columns - 2)):
            lines.append([(style, ("» " if now else "- ") if number == 0 else "  "), (style, part)])
        if choice.effect and choice.value != UNSET:
            lines += [[("class:dim", f"  {part}")] for part in _wrap(one_line(choice.effect), columns - 2)]
    return [[("", "")], *lines] if lines else []


def with_remarks_near(lines: list[str], columns: int) -> list[str]:
    """Return the lines of a recipe, with their comments wrapped in a column that begins after the longest line."""
    parts = [(line.rstrip(), remark) for line, _, remark in (line.partition("  # ") for line in lines)]
    column = min(max((_width(line) for line, remark in parts if remark), default=0) + 2, columns // 2)
    found = []
    for line, remark in parts:
        notes = [f"# {note}" for note in _wrap(remark, columns - column - len("# "))]
        before = [line, *[""] * (len(notes) - 1)] if _width(line) + 2 <= column else [line, *[""] * len(notes)]
        after = notes if len(notes) == len(before) else ["", *notes]
        found += [f"{_pad(left, column)}{right}" if right else left for left, right in zip(before, after, strict=True)]
    return found


def _fits_below(page: FormPage, columns: int) -> bool:
    """Whether the whole command fits on the line below the page."""
    command = one_line(page.form.command)
    return _fit_command(command, columns - BESIDE_COMMAND) == command


def _recipe(page: FormPage, columns: int) -> Lines:
    text = page.form.recipe() if page.form.recipe else ""
    near = with_remarks_near([*map(one_line, text.splitlines())], columns)
    lines = [part for line in near for part in _wrap_indented(line, columns)]
    if not _fits_below(page, columns):
        lines += ["", "The same as a command:", *_wrap(page.form.command, columns)]
    return [[("", line)] for line in lines]


def _wrap(text: str, columns: int) -> list[str]:
    return [
        line
        for part in text.splitlines()
        for line in textwrap.wrap(one_line(part), max(10, columns), break_on_hyphens=False)
    ]


def _fit(text: str, columns: int) -> str:
    """Return as many whole words as fit; " …" marks that there are more."""
    if _width(text) <= columns:
        return text
    words = text.split(" ")
    while words and _width(" ".join(words)) > columns - 2:
        words.pop()
    while words and re.fullmatch(r"[\d.,]+", words[-1]):  # never a number without its unit
        words.pop()
    return f"{' '.join(words)} …" if words else ""


def _fit_command(text: str, columns: int) -> str:
    """Return a long command without words in its middle; the keys at its end are the latest changes."""
    words = text.split(" ")
    head, tail = words[:3], words[3:]
    while tail and _width(" ".join([*head, "…", *tail])) > columns and _width(text) > columns:
        tail.pop(0)
    return text if len(tail) == len(words) - 3 else _fit(" ".join([*head, "…", *tail]), columns)


def _wrap_indented(line: str, columns: int) -> list[str]:
    """Return a line of a recipe; if it is too long, wrap it with its continuation lines indented."""
    if _width(line) <= columns:
        return [line]
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.wrap(line, columns, initial_indent="", subsequent_indent=f"{indent}    ", break_on_hyphens=False)


def _cut(text: str, columns: int) -> str:
    """Return a value cut to its column; of a longer one, the beginning and the end."""
    if _width(text) <= columns:
        return text
    half = max(1, (columns - 1) // 2)
    return f"{text[: columns - 1 - half]}…{text[-half:]}"


def _pad(text: str, columns: int) -> str:
    return text + " " * max(0, columns - _width(text))


def _width(text: Any) -> int:
    from prompt_toolkit.utils import get_cwidth

    return get_cwidth(str(text))
