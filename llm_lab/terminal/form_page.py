"""A page of rows in a terminal: every value is changed in place, with costs above and help below or on the side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llm_lab.wizard.questions import UNSET, Choice, Question, Row

from .page_lines import Place, lay_out
from .page_state import ACTIONS, ESSENTIALS, MORE, VIEWS, FormPage
from .prompt_layout import Back, Finish

NUMBER_SIGNS = "0123456789.-+"  # characters that start a number, which is then typed over a value
PAGE = 8  # lines to move for Page Up and Page Down


def ask_form(
    question: Question,
    *,
    ask_one: Callable[[Question], Any],
    keep: Callable[[Question], None],
    numbers: Callable[[Question, int, int], list[Any]],
) -> Any:
    """Show a page until an action ends it; return its answer. Raises Back.

    ask_one: asks the question of a row. keep: receives the page after each change. numbers: (page, columns, lines)
    returns its panel as lines.
    """
    page = FormPage(question, numbers)
    while True:
        ended = _run(page, keep)
        if not isinstance(ended, Row):
            return page.answer(ended)
        if ended.question is None:
            return page.form.answer(ended.key)
        try:
            page.change(ended, ask_one(ended.question()))
        except Back:
            continue
        except Finish:
            if page.form.actions[0].why_not is None:
                return page.answer(page.form.actions[0].value)
            continue
        keep(page.kept)


def _run(page: FormPage, keep: Callable[[Question], None]) -> Any:
    """Show the page on the whole screen until an action or a row is taken."""
    from prompt_toolkit.application import Application
    from prompt_toolkit.buffer import Buffer
    from prompt_toolkit.filters import Condition, has_selection
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.keys import Keys
    from prompt_toolkit.layout import BufferControl, Float, FloatContainer, FormattedTextControl, Layout, Window
    from prompt_toolkit.layout.containers import ConditionalContainer

    from .prompt_layout import ESCAPE_SECONDS, style

    buffer = Buffer(multiline=False)
    place = Place()
    editing = Condition(lambda: place.row is not None)

    def text() -> list[Any]:
        size = app.output.get_size()
        lines = lay_out(page, size.columns, size.rows, place)
        edit.left, edit.top = place.column, place.line
        edit.width = max(4, place.end - place.column)
        return [fragment for line in lines for fragment in [*line, ("", "\n")]][:-1]

    control = FormattedTextControl(text, focusable=True, show_cursor=False)
    field = Window(BufferControl(buffer), height=1, style="class:edited")
    edit = Float(ConditionalContainer(field, filter=editing), left=0, top=0, height=1)
    keys = KeyBindings()

    def forget_trouble(_: Any) -> None:
        page.trouble = ""

    buffer.on_text_changed += forget_trouble

    def begin(row: Row, typed: str | None) -> None:
        assert row.question is not None
        place.row = row
        buffer.text = str(row.question().default or "") if typed is None else typed
        buffer.cursor_position = len(buffer.text)
        if typed is None:
            select()
        app.layout.focus(field)

    def select() -> None:
        """Let the first key typed replace the value; an arrow key keeps it."""
        if buffer.text:
            buffer.cursor_position = 0
            buffer.start_selection()
            buffer.selection_state.enter_shift_mode()
            buffer.cursor_position = len(buffer.text)

    def end() -> None:
        place.row = None
        page.trouble = ""
        app.layout.focus(control)

    def take() -> bool:
        row = place.row
        if row is not None and page.change(row, buffer.text.strip() or UNSET):
            select()
            return False
        end()
        keep(page.kept)
        return True

    def on(*names: str, when: Any = ~editing) -> Callable[[Callable[[Any], None]], None]:
        def add(handle: Callable[[Any], None]) -> None:
            for name in names:
                keys.add(name, filter=when, eager=True)(handle)

        return add

    for name, by in (("up", -1), ("down", 1), ("pageup", -PAGE), ("pagedown", PAGE), ("home", -999), ("end", 999)):
        moves = editing if name in ("up", "down") else ~editing

        @on(name, when=moves | ~editing)
        def _(event: Any, by: int = by) -> None:
            if page.is_read:
                page.scrolled = max(0, page.scrolled + by)
            elif place.row is None or take():
                page.move(by)

    for name, by in (("left", -1), ("right", 1)):

        @on(name)
        def _(event: Any, by: int = by) -> None:
            if not page.is_read:
                page.step(by)
                keep(page.kept)

    @on("enter")
    def _(event: Any) -> None:
        row = page.row
        was_read, found_none = page.is_read, page.is_filtering and row is None
        page.show_recipe = page.show_help = page.is_filtering = False
        if was_read or found_none:
            return
        if page.at == ACTIONS:
            _end(event.app, page, page.form.actions[page.action])
        elif page.at == MORE:
            page.show(page.sections[page.section])
        elif row is not None and _is_typed(row):
            begin(row, None)
        elif row is not None:
            event.app.exit(result=row)

    @on("enter", when=editing)
    def _(event: Any) -> None:
        take()

    @on("c-u", "c-k", "c-w", "delete", when=editing & has_selection)
    def _(event: Any) -> None:
        buffer.cut_selection()

    @on("escape", "c-d")
    def _(event: Any) -> None:
        if page.is_read:
            page.show_recipe = page.show_help = False
        elif page.filter is not None or page.view != ESSENTIALS:
            page.show(ESSENTIALS)
        else:
            event.app.exit(exception=Back())

    @on("escape", when=editing)
    def _(event: Any) -> None:
        end()

    @on("c-c", when=editing | ~editing)
    def _(event: Any) -> None:
        event.app.exit(exception=KeyboardInterrupt())

    @on("c-f", when=editing | ~editing)
    def _(event: Any) -> None:
        if place.row is None or take():
            _end(event.app, page, page.form.actions[0])

    @on("c-r")
    def _(event: Any) -> None:
        page.show_recipe, page.scrolled = not page.show_recipe and page.form.recipe is not None, 0
        page.show_help = False

    @on("tab", "s-tab")
    def _(event: Any) -> None:
        page.show(VIEWS[(VIEWS.index(page.view) + 1) % len(VIEWS)] if page.view in VIEWS else ESSENTIALS)

    @on("delete", "backspace", "c-h")
    def _(event: Any) -> None:
        row, erases = page.row, event.key_sequence[0].key != "delete"
        if page.is_filtering and erases:
            page.type_filter(page.filter[:-1] if page.filter else None)
        elif row is not None and row.question is not None:
            page.change(row, UNSET)
            keep(page.kept)
        elif row is not None:
            page.trouble = f"{row.key}: Enter opens it; Delete only resets values that are changed on this page."

    @on("c-u")
    def _(event: Any) -> None:
        if page.filter is not None:
            page.type_filter("")

    @on(Keys.Any, Keys.BracketedPaste)
    def _(event: Any) -> None:
        typed, row = event.data.strip() if len(event.data) > 1 else event.data, page.row
        if typed == "?" and not page.is_filtering:
            page.show_recipe, page.show_help, page.scrolled = False, not page.show_help, 0
        elif not typed.isprintable() or page.is_read:
            return
        elif page.is_filtering:
            page.type_filter(f"{page.filter or ''}{typed}")
        elif typed == "/" or row is None:
            page.type_filter("" if typed == "/" else typed)
        elif (typed in NUMBER_SIGNS or len(typed) > 1) and row.question is not None and row.question().kind == "text":
            begin(row, typed)  # a letter filters, as in every list; pasted text is a value
        else:
            page.type_filter(typed)

    root = FloatContainer(Window(control, wrap_lines=False), floats=[edit])
    app: Application[Any] = Application(
        Layout(root, focused_element=control), key_bindings=keys, style=style(), full_screen=True,
        erase_when_done=True,
    )  # fmt: skip
    app.ttimeoutlen = app.timeoutlen = ESCAPE_SECONDS
    return app.run()


def _end(app: Any, page: FormPage, action: Choice) -> None:
    if action.why_not:
        page.trouble = f"{action.text}: {action.why_not}."
    else:
        app.exit(result=action.value)


def _is_typed(row: Row) -> bool:
    """Whether Enter edits a row in place, because it has no choices to show first."""
    question = row.question() if row.question else None
    return question is not None and question.kind == "text" and not question.choices
