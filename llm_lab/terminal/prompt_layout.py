"""The lines below a question, and long lists that fit the height of the terminal."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from llm_lab.estimate.formatting import plural
from llm_lab.safe_text import printable
from llm_lab.wizard.questions import Line

from .console import columns, one_line, prompt_styles

if TYPE_CHECKING:
    from rich.console import Console

MOST_COLUMNS = 119  # longer lines are hard to read
WIDE_COLUMNS = 118
BESIDE_TITLE = 5  # columns of the pointer in front of a title
LEAST_COLUMN = 20  # columns of the second column of a list
SIDE_COLUMNS = 46  # columns of the panel next to a list
LEAST_LINES = 3
LEAST_PANE = 8  # minimum lines of a text above a list that needs the others
PAGE = 8  # lines to move for Page Up and Page Down
CLEARS = "Esc or Ctrl-U clears the filter."
ALL_REFUSED = "None of these lines can be chosen. " + CLEARS
NO_HELP = "There is no more help for this question."
MOST_ABOUT = 3  # lines below a list
AGE = re.compile(r"\d+ (s|m|min|h|d|days?|w|weeks?)( ago\b|$)")  # how long ago something was, in a list
# The space in an item of a list of numbers: "norms 240," or "other 5.9 MiB".
ITEM = re.compile(r"(?<=[a-z)]) (?=\d[\d.,:]*(?:\u00a0(?:[kMBTsh%]|[KMGT]iB|ms|min))?(?:[,;)]|$))")
ESCAPE_SECONDS = 0.1  # wait for the rest of an arrow key after an Escape; slow ssh needs more


class Back(Exception):
    """The user wants to go back to the previous question."""


class Resized(Exception):
    """The terminal has another size: what is above the question has to be drawn again.

    answer: the unfinished answer. trouble: why it was refused, or "". show_help: whether the help is open.
    """

    def __init__(self, answer: Any, trouble: str, show_help: bool):
        self.answer, self.trouble, self.show_help = answer, trouble, show_help


class Finish(Exception):
    """The user wants the defaults of this and all further questions."""


def style() -> Any:
    """Return the palette in the form that prompt_toolkit takes."""
    from prompt_toolkit.styles import Style

    styles = dict(prompt_styles())
    return Style(
        [
            *styles.items(),
            ("question", "bold"),
            ("heading", "bold"),
            ("bar", "bold"),
            ("edited", "underline"),
            ("answer", styles["help"]),
            ("selected", "noreverse bold"),
            ("refused", "reverse"),
            ("pointed", f"{styles['accent']} reverse"),
            *((name, styles["accent"]) for name in ("qmark", "pointer", "highlighted")),
            *((name, styles["dim"]) for name in ("instruction", "disabled", "separator", "about")),
        ]
    )


class Footer:
    """The lines below a question: problems, the help if it is open, and what the pointed line means."""

    def __init__(self, app: Any, help: Callable[[], str], *, is_list: bool):
        from prompt_toolkit.key_binding import KeyBindings

        self.app = app
        self.help = help
        self.is_list = is_list
        self.show_help = self.can_finish = False
        self.trouble = ""
        self.about: Callable[[], str] = lambda: ""
        self.columns = lambda: self.app.output.get_size().columns - 1
        self.least = 0
        self.has_room: Callable[[int], bool] = lambda lines: False
        self.filter = ""
        self.has_none = False  # no line that contains the filter can be chosen: Enter does nothing
        self.hides_list = False  # no line contains the filter
        self.set_filter: Callable[[str], None] = lambda text: None
        self.step_back: Callable[[], bool] = lambda: False  # undoes a step within the question; False: there is none
        self.keys = KeyBindings()

    def is_untouched(self) -> bool:
        """Whether nothing has been typed, so that ? opens the help. A default counts as nothing until it is edited."""
        if self.is_list:
            return True
        buffer = self.app.current_buffer
        return not buffer.text or buffer.selection_state is not None

    def lines(self) -> list[tuple[str, str]]:
        """Return (style, line) of what is shown now."""
        width = min(MOST_COLUMNS, self.columns())
        found = [("class:help", f"Filter: {self.filter}")] if self.filter else []
        if self.trouble:
            found += [("class:bad", line) for line in wrap_lines(self.trouble, width)]
        if self.show_help:
            found += [("class:help", line) for line in wrap_lines(self.help() or NO_HELP, width)]
        if not (self.show_help and self.is_list) and not self.has_none:  # no room for more next to help and list
            about = wrap_lines(self.about(), width)
            if len(about) > MOST_ABOUT:
                about = [*about[: MOST_ABOUT - 1], fit_words(" ".join(about[MOST_ABOUT - 1 :]), width)]
            found += [("class:about", line) for line in about]
        found += [("", "")] * (self.least - len(found))
        return [("", ""), *found] if found and self.has_room(len(found)) else found

    def attach(self) -> None:
        """Show the lines below the question."""
        from prompt_toolkit.filters import IsDone
        from prompt_toolkit.layout import ConditionalContainer, Dimension, FormattedTextControl, HSplit, Window

        def text() -> list[tuple[str, str]]:
            return [(style, f"{line}\n") for style, line in self.lines()]

        window = Window(FormattedTextControl(text), height=lambda: Dimension.exact(len(self.lines())))
        layout = self.app.layout
        layout.container = HSplit([layout.container, ConditionalContainer(window, filter=~IsDone())])


def text_columns() -> int:
    """Return the width of a line of text; the last column stays empty."""
    return min(MOST_COLUMNS, columns() - 1)


def fit_words(text: str, room: int) -> str:
    """Return as many whole words of a line as fit; "…" marks that there are more. A word that is too long is cut."""
    if len(text) <= room:
        return text
    most = text[: room - 1]
    kept = most[: max(most.rfind(" "), most[:-1].rfind(",") + 1)].rstrip() if " " in most.strip() else ""
    kept = re.sub(r"( +[\d.,]*\d)+$", "", kept)  # never a number without its unit
    return f"{kept} …" if kept.strip() else f"{text[: room - 1]}…"


def in_whole(text: str, title: str, columns: int, indent: int) -> str:
    """Return a line of a list on several lines, whose continuation lines begin at its second column.

    title: the line as it is cut; returned if it is complete, or if the second column is too narrow. indent: the columns
    before the line.
    """
    gap = re.search(r"(?<=\S)\s{2,}", text)
    hang, room = gap.end() if gap else 0, columns - BESIDE_TITLE
    if title == text or room - hang < LEAST_COLUMN:
        return title
    return wrapped(text, room, hang).replace("\n", "\n" + " " * indent)


def wrapped(text: str, width: int, hang: int = 0) -> str:
    """Wrap text, keeping each number with its unit, and in a list of numbers with its name.

    hang: the indent of all lines but the first.
    """
    text = " ".join(in_pieces(word, width - hang).replace("\n", " ") for word in text.split(" "))
    joined = ITEM.sub("\u00a0", re.sub(r"(?<=\d) (?=[a-zA-Z%×])|(?<=×) (?=\d)| (?=\.\.\.$)", "\u00a0", text))
    lines = textwrap.wrap(joined, width, break_on_hyphens=False, subsequent_indent=" " * hang)
    return "\n".join(lines).replace("\u00a0", " ")


def fitted(console: Console, text: str, hang: int = 0) -> str:
    """Return printable text for a console: wrapped between words or after a slash in a terminal, else as it is.

    hang: the indent of continuation lines.
    """
    lines = printable(text).splitlines()
    return "\n".join(wrapped(line, console.width, hang) if console.is_terminal else line for line in lines)


def numbered(number: int, text: str, after: str = "") -> str:
    """Return a choice with its number; its columns become a name and a description without padding between them."""
    name, *about = re.split(r"\s{2,}", one_line(text).strip())
    whole = f"{name}: {', '.join(about)}" if about else name
    return wrapped(f"  {number:>2}  {whole}{after}", text_columns(), len("   1  "))


def in_pieces(text: str, width: int) -> str:
    """Wrap text after slashes, commas and spaces; a piece is cut only if it is longer than a line."""
    lines, line = [], ""
    for piece in re.findall(r"[^/, ]*[/, ]+|[^/, ]+", text):
        if line and len(line + piece.rstrip()) > width:
            lines.append(line.rstrip())
            line = ""
        line += piece
    return "\n".join([*lines, line])


def wrap_lines(text: str, columns: int | None = None) -> list[str]:
    """Return the lines of a text within a width, by default that of the terminal."""
    return [
        line
        for part in text.splitlines()
        for line in textwrap.wrap(part, columns or text_columns(), break_on_hyphens=False)
    ]


def lay_out_list(
    app: Any,
    explain: Callable[[Any], str],
    *,
    above: int,
    describe: Callable[[Any], str],
    side: Callable[[Any], Sequence[Line]] = lambda value: (),
    filters: bool = True,
    pane: str = "",
) -> Footer:
    """Keep a list within the lines of the terminal, filtered by what is typed, with the meaning of a line below it.

    explain: returns the help of a value; describe: returns its meaning. side: what to show next to the list for a
    value, if there is room. filters: whether typing filters the list. pane: a text that is scrolled above it.
    """
    from prompt_toolkit.filters import Condition
    from prompt_toolkit.keys import Keys
    from prompt_toolkit.layout import Dimension
    from questionary import Separator
    from questionary.prompts.common import InquirerControl

    window = next(w for w in app.layout.find_all_windows() if isinstance(w.content, InquirerControl))
    control = window.content
    if not control.use_indicator:  # the default of a list is the start of the pointer, not a selection
        control.selected_options = []
    footer = Footer(app, lambda: explain(control.get_pointed_at().value), is_list=True)
    footer.about = lambda: describe(control.get_pointed_at().value)
    # As many lines as the longest description: the screen must not jump while the pointer moves.
    footer.least = min(
        MOST_ABOUT, max(len(wrap_lines(describe(c.value), text_columns())) for c in control.choices if not c.disabled)
    )

    def listed() -> int:
        return sum(str(choice.title).count("\n") + 1 for choice in control.choices)

    # A blank line separates a list from what is below it, if there is room.
    footer.has_room = lambda lines: not pane and app.output.get_size().rows > above + 2 + listed() + lines

    def free() -> int:
        return app.output.get_size().rows - above - 1 - len(footer.lines())

    def room() -> int:
        if footer.hides_list:
            return 0
        least = max(free() // 3, free() - min(LEAST_PANE, pane.count("\n")) - 1) if pane else free()
        most = max(LEAST_LINES, least)
        return listed() if listed() <= most else most - 1  # the last line says how many more there are

    window.height = lambda: Dimension.exact(room())
    _say_how_many_more(app, window, Condition(lambda: 0 < room() < listed()))

    def move(step: int) -> None:
        if footer.has_none:
            set_filter("")
            return
        last = len(control.choices) - 1
        at = max(0, min(last, control.pointed_at + step))
        back = -1 if step > 0 else 1
        while control.choices[at].disabled and 0 <= at + back <= last:
            at += back
        control.pointed_at = at

    if len(control.choices) == 2 and not any(one.disabled for one in control.choices):
        # Between two answers, as to whether to delete, an arrow key at an end stays there; longer lists go round.
        for key, step in {"up": -1, "c-p": -1, "down": 1, "c-n": 1}.items():
            footer.keys.add(key, eager=True)(lambda event, step=step: move(step))
    moves = {"pagedown": PAGE, "pageup": -PAGE, "end": 10**6, "home": -(10**6)}
    if pane:
        del moves["pagedown"], moves["pageup"]
    for key, step in moves.items():
        footer.keys.add(key, eager=True)(lambda event, step=step: move(step))
    every = list(control.choices)
    before = found_first = None  # the pointed choice before a filter was typed, and the first one that it found

    def set_filter(text: str) -> None:
        nonlocal before, found_first
        words = text.lower().split()
        found = [one for one in every if isinstance(one, Separator) or all(word in _searched(one) for word in words)]
        possible = [number for number, choice in enumerate(found) if not choice.disabled]
        pointed, is_shorter = control.get_pointed_at(), len(text) < len(footer.filter)
        if not footer.filter:
            before = pointed
        elif not text and before is not None and (pointed is found_first or pointed.disabled):
            pointed = before  # typing a filter and clearing it changes nothing
        footer.filter, footer.has_none = text, not possible
        footer.hides_list = all(isinstance(one, Separator) for one in found)
        possible.sort(key=lambda number: _rank(_searched(found[number]), text.lower()))
        footer.trouble = ""
        if footer.hides_list:
            footer.trouble = f"Nothing contains {text}. {CLEARS}"
        elif not possible:
            footer.trouble = ALL_REFUSED
            control.choices, control.pointed_at = found, -1  # the last one, without a pointer
        else:
            kept = [number for number in possible if is_shorter and found[number] is pointed]
            control.choices, control.pointed_at = found, (kept or possible)[0]
            found_first = found[control.pointed_at]

    if filters and len(every) > 1:
        footer.set_filter = set_filter

        @footer.keys.add("a", eager=True)  # by default, these two select choices
        @footer.keys.add("i", eager=True)
        @footer.keys.add(Keys.Any)
        def _(event: Any) -> None:
            if event.data.isprintable() and (footer.filter or event.data.strip()):
                set_filter(footer.filter + event.data)

        @footer.keys.add("backspace", eager=True)
        def _(event: Any) -> None:
            set_filter(footer.filter[:-1])

        @footer.keys.add("c-u", eager=True)
        def _(event: Any) -> None:
            set_filter("")

        has_none = Condition(lambda: footer.has_none)

        @footer.keys.add("up", filter=has_none, eager=True)
        @footer.keys.add("down", filter=has_none, eager=True)
        @footer.keys.add("c-p", filter=has_none, eager=True)
        @footer.keys.add("c-n", filter=has_none, eager=True)
        def _(event: Any) -> None:
            set_filter("")

        @footer.keys.add("enter", filter=has_none, eager=True)
        @footer.keys.add("c-j", filter=has_none, eager=True)
        def _(event: Any) -> None:
            """Do nothing: no line that matches the filter can be chosen."""

        @footer.keys.add(" ", filter=has_none, eager=True)  # no line can be selected
        def _(event: Any) -> None:
            set_filter(f"{footer.filter} ")

    footer.attach()
    if any(side(choice.value) for choice in control.choices if not choice.disabled):
        most = (lambda: room() + 1) if pane else free

        def shown_side() -> Sequence[Line]:
            lines = () if footer.has_none else side(control.get_pointed_at().value)
            return lines[: most() + len(footer.lines()) - 1]

        _attach_side(app, footer, shown_side)
    if pane:
        attach_pane(app, footer, pane, lambda: max(LEAST_LINES, free() - room() - 1))
    return footer


def _searched(choice: Any) -> str:
    """Return the text of a choice that a filter searches: its line without its age."""
    return AGE.sub("", str(choice.title)).lower()


def _rank(line: str, text: str) -> int:
    """Return how well a line matches a filter, 0 being best: at its beginning, in its name, in its description."""
    name = re.split(r"\s{2,}", line.strip())[0]
    return 0 if line.startswith(text) else 1 if all(word in name for word in text.split()) else 2


def _say_how_many_more(app: Any, window: Any, is_long: Any) -> None:
    """Show below a list how many lines there are above and below what is shown."""
    from prompt_toolkit.filters import IsDone
    from prompt_toolkit.layout import ConditionalContainer, Dimension, FormattedTextControl, HSplit, Window

    def text() -> list[tuple[str, str]]:
        info = window.render_info
        above = info.vertical_scroll
        below = info.content_height - above - info.window_height
        more = [f"{mark} {plural(number, 'more line')}" for mark, number in (("↑", above), ("↓", below)) if number > 0]
        return [("class:dim", f"  {', '.join(more)}")]

    # Its size is fixed, so that its text is only asked for when the list above it has been drawn.
    line = Window(FormattedTextControl(text), height=Dimension.exact(1), width=Dimension(preferred=1))
    app.layout.container = HSplit([app.layout.container, ConditionalContainer(line, filter=is_long & ~IsDone())])


def attach_pane(app: Any, footer: Footer, text: str, height: Callable[[], int], *, arrows: bool = False) -> None:
    """Show a part of a text above a prompt, with its position below it.

    height: the number of lines available. arrows: whether the arrow keys also scroll it, because nothing else uses
    them.
    """
    from prompt_toolkit.filters import IsDone
    from prompt_toolkit.formatted_text import ANSI, to_formatted_text
    from prompt_toolkit.formatted_text.utils import split_lines
    from prompt_toolkit.layout import ConditionalContainer, Dimension, FormattedTextControl, HSplit, Window

    lines = list(split_lines(to_formatted_text(ANSI(text.rstrip("\n")))))
    first = 0

    def shown() -> list[Any]:
        return [one for line in lines[first : first + height()] for one in (*line, ("", "\n"))]

    def where() -> list[tuple[str, str]]:
        last = min(len(lines), first + height())
        if last - first == len(lines):
            return []
        keys = "↑↓ scroll" if arrows else "Page Down: more" if last < len(lines) else "Page Up: back"
        text = f"── lines {first + 1} to {last} of {len(lines)} · {keys} "
        return [("class:dim", text + "─" * (app.output.get_size().columns - 1 - len(text)))]

    def scroll(by: int) -> None:
        nonlocal first
        first = max(0, min(len(lines) - height(), first + by))

    def page() -> int:
        return max(1, height() - 1)

    footer.keys.add("pagedown", eager=True)(lambda event: scroll(page()))
    footer.keys.add("pageup", eager=True)(lambda event: scroll(-page()))
    if arrows:
        for key, by in (("down", 1), ("up", -1), ("end", len(lines)), ("home", -len(lines))):
            footer.keys.add(key, eager=True)(lambda event, by=by: scroll(by))
        footer.keys.add(" ", eager=True)(lambda event: scroll(page()))
    body = Window(
        FormattedTextControl(shown), height=lambda: Dimension.exact(min(len(lines), height())), wrap_lines=False
    )
    above = HSplit([body, Window(FormattedTextControl(where), height=1)])
    app.layout.container = HSplit([ConditionalContainer(above, filter=~IsDone()), app.layout.container])


def is_wide(columns: int) -> bool:
    """Whether there is room for a panel next to a list."""
    return columns >= WIDE_COLUMNS


def list_columns(has_side: bool) -> int:
    """Return the width of the lines of a list, with or without a panel next to it."""
    return columns() - SIDE_COLUMNS - 3 if has_side and is_wide(columns()) else text_columns()


def _attach_side(app: Any, footer: Footer, lines: Callable[[], Sequence[Line]]) -> None:
    """Show lines to the right of a prompt, if the terminal is wide."""
    from prompt_toolkit.filters import Condition, IsDone
    from prompt_toolkit.layout import ConditionalContainer, FormattedTextControl, VSplit, Window

    def text() -> list[tuple[str, str]]:
        return [(f"class:{line.style}" if line.style else "", f"{printable(line.text)}\n") for line in lines()]

    width = max([SIDE_COLUMNS, *(len(line.text) for line in lines())])
    window = Window(FormattedTextControl(text), width=width, dont_extend_height=True)
    shown = Condition(lambda: is_wide(app.output.get_size().columns)) & ~IsDone()
    layout, whole = app.layout, footer.columns
    footer.columns = lambda: whole() - width - 2 if shown() else whole()
    side = VSplit([Window(width=2), window, Window(width=1)])
    layout.container = VSplit([layout.container, ConditionalContainer(side, filter=shown)])


def lay_out_text(app: Any, help: str, about: str, check: Callable[[str], str | None], trouble: str = "") -> Footer:
    """Show below a text why it is refused, and let the first key typed replace the default.

    trouble: why the text was refused before; what is typed then continues it.
    """
    from prompt_toolkit.filters import has_completions, has_selection, to_filter
    from prompt_toolkit.keys import Keys

    footer = Footer(app, lambda: help, is_list=False)
    footer.about, footer.trouble = (lambda: about), trouble
    buffer = app.current_buffer
    app.layout.current_window.dont_extend_height = to_filter(True)
    if buffer.text and not trouble:
        buffer.cursor_position = 0
        buffer.start_selection()
        buffer.selection_state.enter_shift_mode()
        buffer.cursor_position = len(buffer.text)

    def forget_trouble(_: Any) -> None:
        footer.trouble = ""

    buffer.on_text_changed += forget_trouble

    @footer.keys.add("enter", filter=~has_completions, eager=True)
    def _(event: Any) -> None:
        footer.trouble = check(buffer.text) or ""
        if not footer.trouble:
            buffer.exit_selection()
            buffer.validate_and_handle()

    @footer.keys.add(Keys.BracketedPaste, eager=True)
    def _(event: Any) -> None:
        if buffer.selection_state:
            buffer.cut_selection()
        buffer.insert_text(event.data.replace("\r\n", " ").replace("\n", " "))

    def erase(_: Any) -> None:
        buffer.cut_selection()

    for key in ("c-u", "c-k", "c-w", "delete"):
        footer.keys.add(key, filter=has_selection, eager=True)(erase)
    footer.attach()
    return footer
