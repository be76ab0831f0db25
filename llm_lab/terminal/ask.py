"""Questions in a terminal, with Esc for back and ? for help; plain lines if the terminal is limited to them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from llm_lab.wizard.questions import Choice, Question, same

from . import prompt_layout
from .console import is_plain, one_line, printable, rows
from .prompt_layout import (
    BESIDE_TITLE,
    MOST_ABOUT,
    NO_HELP,
    Back,
    Finish,
    Resized,
    fit_words,
    in_whole,
    lay_out_list,
    lay_out_text,
    list_columns,
    numbered,
    style,
    text_columns,
    wrap_lines,
    wrapped,
)
from .side_panel import side_of

HINT = "(Esc back · ? help)"
SHORT_HINT = "(? help)"
HINT_TO_FINISH = "(Esc back · ? help · Ctrl-F finish)"
FILTERS = "type to filter"
SELECTS = "Space selects"
ROOM_TO_TYPE = 16
BESIDE_REASON = 8  # columns of the mark and of the brackets around a reason
ANOTHER = "another value ..."
READ = "Enter goes back"
LEFT_OUT_FIRST = ("size", "age", "stage")  # columns to leave out when a table is too wide
NUMBERS = ("size", "age")  # columns that are right-aligned
LEAST_NAME = 12
PLAIN_BACK, PLAIN_HELP, PLAIN_EMPTY = "b", "?", "none"
PLAIN_HINT = f"{PLAIN_BACK} back · {PLAIN_HELP} help"


def ask(question: Question, *, above: int = 0, pane: str = "", trouble: str = "", show_help: bool = False) -> Any:
    """Ask a question and return the answer. Raises Back, and Resized.

    above: how many lines are above the question on the screen, so that all of it fits the terminal. pane: a text above
    its choices that can be scrolled. trouble: why the default was refused; it disappears when the default is changed.
    show_help: whether the help is open at the start.
    """
    if question.kind in ("choice", "several") and all(choice.why_not for choice in question.choices):
        if question.kind == "several":
            return []
        raise Back
    if question.kind in ("path", "paths"):
        from .path_picker import pick_path, pick_plainly

        if is_plain():
            return pick_plainly(question, _read_line, trouble)
        return pick_path(question, above, trouble, run=_run, style=style())
    if is_plain():
        return _ask_plainly(question, trouble)
    if question.kind == "text" and question.choices:
        another = Choice(ANOTHER, ANOTHER, effect=question.allowed)
        listed = replace(question, kind="choice", choices=(*question.choices, another))
        picked = _ask_list(listed, above, "", trouble, show_help)
        return _ask_text(question) if picked == ANOTHER else picked
    if question.kind in ("choice", "several"):
        return _ask_list(question, above, pane, trouble, show_help)
    return _ask_text(question, trouble, show_help)


def needed_lines(question: Question) -> int:
    """Return how many lines a question with choices needs below what is above it."""
    return 1 + len(question.choices) + max((len(wrap_lines(choice.effect)) for choice in question.choices), default=0)


def _ask_list(question: Question, above: int, pane: str, trouble: str, show_help: bool) -> Any:
    import questionary

    several = question.kind == "several"
    side = None if question.screen.side else side_of(question)
    room = list_columns(side is not None)
    head, titles = titles_of(question, room)
    boxes = [_Boxed(choice, title) for choice, title in zip(question.choices, titles, strict=True)]
    indent = BESIDE_TITLE if several else BESIDE_TITLE - len("○ ")
    whole = [_Boxed(box.choice, whole_title_of(box.choice, box.title, room, indent)) for box in boxes]
    if not pane and above + _lines_of(whole) < rows():
        boxes = whole
    wanted = question.default if several else [question.suggested]
    chosen = [box for box in boxes if not box.choice.why_not and any(same(box.choice.value, w) for w in wanted)]
    shown = [
        questionary.Choice(
            box.title, value=box, disabled=reason_of(box.choice, room), checked=several and box in chosen,
            shortcut_key=False,
        )
        for box in boxes
    ]  # fmt: skip
    shown = [*([questionary.Separator(head)] if head else []), *shown]
    hints = [_hint(question), HINT, SHORT_HINT]
    hints = [*(hint.replace("(", f"({FILTERS} · ") for hint in hints if len(shown) > 1), *hints]
    hints = [*(hint.replace("(", f"({SELECTS} · ") for hint in hints), f"({SELECTS})"] if several else hints
    left = room - len(f"? {one_line(question.text)} ")
    hint = next((hint for hint in hints if len(hint) <= left), " ")  # questionary shows its own hint for an empty one
    options: dict[str, Any] = {"instruction": hint, "style": style()}
    if several:
        prompt = questionary.checkbox(question.text, shown, use_jk_keys=False, **options)
    else:
        prompt = questionary.select(question.text, shown, default=chosen[0], use_jk_keys=False, **options)
    footer = lay_out_list(
        prompt.application,
        partial(_whole_help, question, boxes, room),
        above=above,
        describe=(lambda box: "") if side else _about,
        side=(lambda box: question.screen.side) if side is None else lambda box: side(box.choice),
        pane=pane,
    )
    footer.can_finish, footer.show_help, footer.trouble = question.can_finish, show_help, trouble
    prompt.application.erase_when_done = True  # otherwise a long selected line would be wrapped
    control = next(w.content for w in prompt.application.layout.find_all_windows() if hasattr(w.content, "pointed_at"))

    def so_far() -> Any:
        if several:  # also the ones that a filter hides
            return [box.choice.value for box in boxes if box in control.selected_options]
        choice = control.get_pointed_at().value.choice
        return question.suggested if choice.why_not else choice.value

    refused = so_far()

    def forget_trouble(_: Any) -> None:
        if trouble and footer.trouble == trouble and so_far() != refused:
            footer.trouble = ""

    prompt.application.before_render += forget_trouble
    picked = _run(prompt, footer, so_far)
    return so_far() if several else picked.choice.value


def _lines_of(boxes: Sequence[_Boxed]) -> int:
    """Return how many lines a question takes with these choices, including a blank line and what is below them."""
    about = max(len(wrap_lines(_about(box))) for box in boxes)
    return 1 + sum(len(box.title.splitlines()) for box in boxes) + min(MOST_ABOUT, about) + (about > 0)


class _Boxed:
    """Carries a choice's value: questionary takes None for "no value" and compares True with 1."""

    def __init__(self, choice: Choice, title: str):
        self.choice, self.title = choice, title


def titles_of(question: Question, room: int) -> tuple[str, list[str]]:
    """Return the column heads ("" if there are none), and each choice as it fits on its line.

    Where there is not enough room, the least informative columns are left out.
    """
    table = [choice.cells for choice in question.choices if choice.cells]
    if not table:
        return "", [title_of(choice, room) for choice in question.choices]
    heads, kept = question.heads, list(range(len(question.heads)))
    widths = [max(len(one_line(row[n])) for row in [heads, *table]) for n in kept]
    for head in LEFT_OUT_FIRST:
        if sum(widths[n] + 2 for n in kept) - 2 > room - BESIDE_TITLE and head in heads:
            kept.remove(heads.index(head))
    widths[0] = min(widths[0], max(LEAST_NAME, room - BESIDE_TITLE - sum(widths[n] + 2 for n in kept[1:])))

    def line(cells: Sequence[str]) -> str:
        texts = [one_line(cells[n]) for n in kept]
        texts[0] = texts[0] if len(texts[0]) <= widths[0] else f"{texts[0][: widths[0] - 1]}…"
        padded = [text.rjust(widths[n]) if heads[n] in NUMBERS else text.ljust(widths[n])
                  for n, text in zip(kept, texts, strict=True)]  # fmt: skip
        return fit_words("  ".join(padded).rstrip(), room - BESIDE_TITLE)

    return line(heads), [line(one.cells) if one.cells else title_of(one, room) for one in question.choices]


def _about(box: _Boxed) -> str:
    """Return what is below the list: the whole text if its line is cut, and what the choice means."""
    choice, shown = box.choice, box.title.split()
    is_cut = any(word not in shown for word in " ".join(map(one_line, choice.cells or (choice.text,))).split())
    text = one_line(choice.text).strip()
    whole = re.sub(r"\s{2,}", ": ", text, count=1) if is_cut and not choice.why_not else ""
    return "\n".join(text for text in (whole, one_line(choice.effect)) if text)


def _whole_help(question: Question, boxes: Sequence[_Boxed], room: int, box: _Boxed) -> str:
    """Return the help of a choice, with the texts that are cut below the list and on the lines."""
    about = _about(box)
    texts = [about] if len(wrap_lines(about)) > MOST_ABOUT else []
    for other in boxes:
        reason = other.choice.why_not
        if reason and reason_of(other.choice, room) != one_line(reason):
            name = re.split(r"\s{2,}", one_line(other.choice.text).strip())[0]
            texts.append(f"{name}: {one_line(reason)}.")
    return "\n".join([*texts, box.choice.why or question.why])


def _hint(question: Question) -> str:
    return HINT_TO_FINISH if question.can_finish else HINT


def title_of(choice: Choice, columns: int | None = None) -> str:
    """Return a choice as it fits on its line. If it can't be chosen, room is left for the reason."""
    text, columns = one_line(choice.text), columns or text_columns()
    if not choice.why_not:
        return fit_words(text, columns - BESIDE_TITLE)
    text = re.sub(r"(\S {2,}) {2}", r"\1", text, count=1)  # for its mark: later columns stay aligned
    room = columns - BESIDE_REASON - min(len(one_line(choice.why_not)), columns // 2)
    while len(text) > room and "  " in text:
        text = text.rpartition("  ")[0].rstrip()
    return fit_words(text, room)


def whole_title_of(choice: Choice, title: str, columns: int, indent: int) -> str:
    """Return a choice on several lines if its line is cut. title, indent: as for in_whole."""
    return title if choice.cells or choice.why_not else in_whole(one_line(choice.text), title, columns, indent)


def reason_of(choice: Choice, columns: int | None = None) -> str | None:
    """Return why a choice can't be chosen, as it fits on the line; None if it can be chosen."""
    room = (columns or text_columns()) - BESIDE_REASON - len(title_of(choice, columns))
    return fit_words(one_line(choice.why_not), room) if choice.why_not else None


def _ask_text(question: Question, trouble: str = "", show_help: bool = False) -> str:
    """Ask for a text; typing replaces the default."""
    text, default = one_line(question.text), str(question.default or "")
    hint = _hint(question)
    fits = len(text) + len(hint) + len(default) < text_columns() - ROOM_TO_TYPE
    # If it does not fit, the answer gets a line of its own, with the hint below.
    after, allowed = (f"{hint} ", question.allowed) if fits else ("\n  ", f"{question.allowed}\n{hint}")
    parts = [("class:qmark", "?"), ("class:question", f" {text} "), ("class:instruction", after)]
    prompt = _text_prompt(parts, default)
    # A check that takes a while is run by the driver, after the prompt.
    check = (lambda text: None) if question.wait else question.problem
    footer = lay_out_text(prompt.application, question.why, allowed, check, trouble)
    footer.can_finish, footer.show_help = question.can_finish, show_help
    return _run(prompt, footer, lambda: prompt.application.current_buffer.text).strip()


def _text_prompt(message: list[tuple[str, str]], default: str = "") -> Any:
    """Return a prompt for a text after a message in parts (style, text)."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.document import Document
    from prompt_toolkit.lexers import SimpleLexer
    from questionary import Question as Prompt

    session: Any = PromptSession(message, style=style(), lexer=SimpleLexer("class:answer"))
    session.default_buffer.reset(Document(default))
    return Prompt(session.app)


def wait_for_enter(message: str = READ) -> None:
    """Wait until Enter is pressed, so that what was printed can be read."""
    with contextlib.suppress(Back, KeyboardInterrupt, EOFError):
        if is_plain():
            input(f"{message} ")
            return
        prompt = _text_prompt([("class:question", f"\n{message} ")])
        _run(prompt, lay_out_text(prompt.application, "", "", lambda text: None))


def read(text: str, *, above: int) -> None:
    """Show a text until Enter is pressed; one longer than the screen can be scrolled. Raises Resized.

    above: how many lines are above it on the screen.
    """
    prompt = _text_prompt([("class:question", f"{READ} ")])
    app = prompt.application
    footer = lay_out_text(app, "", "", lambda text: None)
    prompt_layout.attach_pane(app, footer, text, lambda: app.output.get_size().rows - above - 2, arrows=True)
    with contextlib.suppress(Back, KeyboardInterrupt, EOFError):
        _run(prompt, footer, lambda: "")


def _ask_plainly(question: Question, trouble: str) -> Any:
    """Ask with plain lines; the user types a number or a text."""
    print(printable(question.text))
    if question.allowed:
        print(printable(_folded(question.allowed)))
    for number, choice in enumerate(question.choices, 1):
        not_now = f"  (not available: {one_line(choice.why_not)})" if choice.why_not else ""
        text = f"{choice.cells[0]}: {', '.join(filter(None, choice.cells[1:]))}" if choice.cells else choice.text
        print(numbered(number, text, not_now))
    read = _read_numbers if question.choices else _read_text
    refused: str | None = trouble
    while True:
        if refused:
            print(printable(_folded(refused)))
        answer, refused = read(question)
        if not refused:
            return answer


def _folded(text: str) -> str:
    return "\n".join(wrapped(line, text_columns()) for line in text.splitlines())


def _help_of(question: Question) -> dict[str, str]:
    """Return {what is typed: its help}: ? for the question, ?3 for its third choice."""
    lines = {f"{PLAIN_HELP}{n}": choice.why or choice.effect for n, choice in enumerate(question.choices, 1)}
    return {key: text or question.why for key, text in {PLAIN_HELP: question.why, **lines}.items()}


def _read_line(question: Question, before: str, default: str) -> str:
    """Read one line. Enter alone takes the default; ? prints the help, ?3 the help of the third choice. Raises Back."""
    shown = f" [{default}]" if default else ""
    while (text := input(f"{before}{shown}, {PLAIN_HINT} > ").strip()) in _help_of(question):
        print(printable(_folded(_help_of(question)[text] or NO_HELP)))
    if text == PLAIN_BACK:
        raise Back
    return text or default


def _read_numbers(question: Question) -> tuple[Any, str | None]:
    several, values = question.kind == "several", [choice.value for choice in question.choices]
    wanted = question.default if several else [question.suggested]
    default = " ".join(str(n) for n, value in enumerate(values, 1) if any(same(value, w) for w in wanted))
    text = _read_line(question, "Numbers" if several else "Number", default or (PLAIN_EMPTY if several else "1"))
    words = [] if text == PLAIN_EMPTY else text.replace(",", " ").split()
    if not all(word.isdigit() and 1 <= int(word) <= len(values) for word in words) or (not several and len(words) != 1):
        return None, f"Enter {'numbers' if several else 'a number'} from 1 to {len(values)}."
    reasons = [reason for word in words if (reason := question.choices[int(word) - 1].why_not)]
    if reasons:
        return None, f"Not available: {reasons[0]}."
    picked = [values[int(word) - 1] for word in words]
    return (picked if several else picked[0]), None


def _read_text(question: Question) -> tuple[str, str | None]:
    text = _read_line(question, "Answer", str(question.default or ""))
    text = "" if text == PLAIN_EMPTY else text
    return text, None if question.wait else question.problem(text)


def _run(prompt: Any, footer: Any, so_far: Callable[[], Any] | None = None) -> Any:
    """Run a questionary prompt with our keys. so_far: returns the unfinished answer if a new size ends the prompt."""
    from prompt_toolkit.filters import Condition
    from prompt_toolkit.key_binding import KeyBindings, merge_key_bindings

    app = prompt.application
    keys = KeyBindings()

    @keys.add("escape", eager=footer.is_list)
    def _(event: Any) -> None:
        if footer.filter:
            footer.set_filter("")
            return
        if footer.show_help:
            footer.show_help = False
            return
        if not footer.step_back():
            event.app.exit(exception=Back())

    # In a text, ? is a letter once something has been typed.
    untouched = Condition(lambda: footer.is_untouched())

    @keys.add("?", filter=untouched, eager=True)
    def _(event: Any) -> None:
        footer.show_help = not footer.show_help

    @keys.add("c-d", filter=untouched, eager=True)
    def _(event: Any) -> None:
        event.app.exit(exception=Back())

    @keys.add("c-r", eager=True)
    @keys.add("c-s", eager=True)
    def _(event: Any) -> None:
        """Do nothing: there is no history to search."""

    if footer.can_finish:

        @keys.add("c-f", eager=True)
        def _(event: Any) -> None:
            event.app.exit(exception=Finish())

    app.key_bindings = merge_key_bindings([*([app.key_bindings] if app.key_bindings else []), footer.keys, keys])
    if so_far is not None:
        size = app.output.get_size()

        def look(_: Any) -> None:
            if app.output.get_size() != size and not app.is_done:
                trouble = "" if footer.filter else footer.trouble  # the filter's own trouble disappears with it
                app.exit(exception=Resized(so_far(), trouble, footer.show_help))

        app.after_render += look
    app.ttimeoutlen = app.timeoutlen = prompt_layout.ESCAPE_SECONDS
    return prompt.unsafe_ask()
