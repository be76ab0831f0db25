"""A simulated user of the wizard: keys go in, screens come out, and every screen must fit 80 by 24."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from prompt_toolkit.application import Application, create_app_session
from prompt_toolkit.data_structures import Size
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from questionary.prompts.common import InquirerControl

from llm_lab.wizard.questions import Question

ROWS, COLUMNS = 24, 80
LONGEST_LIST = 100


class Key(StrEnum):
    ENTER = "\r"
    ESCAPE = "\x1b"
    UP = "\x1b[A"
    DOWN = "\x1b[B"
    HOME = "\x1b[H"
    END = "\x1b[F"
    PAGE_DOWN = "\x1b[6~"
    PAGE_UP = "\x1b[5~"
    HELP = "?"
    LEFT = "\x1b[D"
    RIGHT = "\x1b[C"
    TAB = "\t"
    FINISH = "\x06"
    RECIPE = "\x12"
    BACKSPACE = "\x7f"
    DELETE = "\x1b[3~"
    CTRL_C = "\x03"
    CTRL_D = "\x04"
    ERASE_LINE = "\x15"


@dataclass(frozen=True)
class To:
    """Go down the list to the line with this text."""

    text: str


def pick(text: str) -> tuple[To, Key]:
    """Return the keys that go to a line and choose it."""
    return To(text), Key.ENTER


def answer(text: str) -> tuple[str, Key]:
    """Return the keys that type a text and confirm it."""
    return text, Key.ENTER


def _rows(app: Application) -> list[str]:
    """The lines on the screen."""
    screen = app.renderer.last_rendered_screen
    return ["".join(screen.data_buffer[y][x].char for x in range(COLUMNS)).rstrip() for y in range(screen.height)]


class Screen(DummyOutput):
    def get_size(self) -> Size:
        return Size(rows=ROWS, columns=COLUMNS)

    def get_rows_below_cursor_position(self) -> int:
        raise NotImplementedError  # so that the terminal is not queried


@dataclass
class Keyboard:
    """Presses the next key each time a question has been drawn."""

    steps: list[Any]
    pipe: Any
    read_printed: Callable[[], str]
    screens: list[str] = field(default_factory=list)
    _printed: str = ""
    _leaving: bool = False
    _left: list[str] = field(default_factory=list)
    _downs: int = 0
    _was_at: str = ""

    def attach(self, app: Application) -> None:
        self._leaving = False
        self._printed = "\n".join((self._printed + self.read_printed()).split("\n")[-200:])
        for title in ("LLM Lab ·", "╭─ Plan"):
            at = self._printed.rfind(title)
            self._printed = self._printed[max(0, at) :]
        app.after_render += self._press

    def _press(self, app: Application) -> None:
        if app.is_done or (self._leaving and _rows(app) == self._left):  # Escape may lead to another list
            return
        try:
            self._look(app)
        except AssertionError as error:
            app.exit(exception=error)  # raised here, it would leave the question waiting
            return
        step = self._next(app)
        if step is None:
            app.exit(exception=AssertionError(f"No key is left for this question:\n{self.screens[-1]}"))
            return
        # On a page, Escape can lead from one view to another.
        self._left = _rows(app)
        self._leaving = step == Key.CTRL_C or (step == Key.ESCAPE and not app.full_screen)
        self.pipe.send_text(str(step))

    def _look(self, app: Application) -> None:
        rows = _rows(app)
        if app.full_screen:
            self._printed = ""
        self.screens.append(self._printed + "\n".join(rows))
        lines = self.screens[-1].split("\n")
        if any(question in "".join(rows[:2]) for question in ("Enter goes back", "What next")):
            return  # earlier output has scrolled, which is allowed
        assert len(lines) <= ROWS, f"{len(lines)} lines:\n{self.screens[-1]}"
        assert max(map(len, lines)) <= COLUMNS, f"too wide:\n{self.screens[-1]}"

    def _next(self, app: Application) -> str | None:
        if self.steps and isinstance(self.steps[0], To):
            if self.steps[0].text not in self._pointed_at(app):
                self._downs += 1
                if self._downs > 2 * LONGEST_LIST:
                    app.exit(exception=AssertionError(f"{self.steps[0]} can't be reached:\n{self.screens[-1]}"))
                # Between two answers, an arrow key at an end stays there.
                stays, self._was_at = self._downs > 1 and self._pointed_at(app) == self._was_at, self._pointed_at(app)
                return Key.UP if stays else Key.DOWN
            self.steps.pop(0)
        self._downs = 0
        return self.steps.pop(0) if self.steps else None

    def _pointed_at(self, app: Application) -> str:
        """The line with the pointer."""
        controls = [w.content for w in app.layout.find_all_windows() if isinstance(w.content, InquirerControl)]
        if controls:
            return controls[0].get_pointed_at().title
        return next((line for line in self.screens[-1].split("\n") if line.startswith("» ")), "")


def flat(steps: tuple[Any, ...] | list[Any]) -> Iterator[Any]:
    """Flatten the keys of pick() and answer()."""
    for step in steps:
        if isinstance(step, tuple | list):
            yield from flat(step)
        else:
            yield step


@contextlib.contextmanager
def keyboard(steps: Any, monkeypatch: Any, read_printed: Callable[[], str] = lambda: "") -> Iterator[Keyboard]:
    """Answer every question within the block with these steps, all of which must be used."""
    run = Application.run

    with create_pipe_input() as pipe, create_app_session(input=pipe, output=Screen()):
        keys = Keyboard(list(flat(steps)), pipe, read_printed)

        def attached(app: Application, *args: Any, **options: Any) -> Any:
            keys.attach(app)
            return run(app, *args, **options)

        monkeypatch.setattr(Application, "run", attached)
        monkeypatch.setattr("llm_lab.terminal.prompt_layout.ESCAPE_SECONDS", 0.01)
        yield keys
        monkeypatch.setattr(Application, "run", run)
    assert not keys.steps, f"never pressed: {keys.steps}"


def drawn(question: Question, columns: int, rows: int, monkeypatch: Any, read_printed: Callable[[], str]) -> list[str]:
    """The lines of a question's screen in a terminal of this size."""
    from llm_lab.commands.wizard_commands import wizard_commands
    from llm_lab.terminal.ask import Back
    from llm_lab.terminal.driver import Wizard

    lines: list[str] = []
    run = Application.run

    class Sized(Screen):
        def get_size(self) -> Size:
            return Size(rows=rows, columns=columns)

    def look(app: Application) -> None:
        if app.is_done:
            return
        screen = app.renderer.last_rendered_screen
        shown = [[screen.data_buffer[y][x].char for x in range(columns)] for y in range(screen.height)]
        lines[:] = [*read_printed().splitlines(), *("".join(line).rstrip() for line in shown)]
        app.exit(exception=Back())

    def shown_once(app: Application, *args: Any, **options: Any) -> Any:
        app.after_render += look
        return run(app, *args, **options)

    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", str(rows))
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=Sized()), monkeypatch.context() as patch:
        patch.setattr(Application, "run", shown_once)
        with contextlib.suppress(Back):
            Wizard(wizard_commands(), debug=True).ask(question)
    assert len(lines) <= rows, "\n".join(lines)
    assert max(map(len, lines)) <= columns, "\n".join(lines)
    return lines
