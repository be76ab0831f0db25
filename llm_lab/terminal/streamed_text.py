"""A reply while it is generated: shown word by word, wrapped between words, and stopped with Esc or Ctrl-C."""

from __future__ import annotations

import _thread
import contextlib
import re
import sys
import threading
from collections.abc import Generator, Iterator

from llm_lab.safe_text import StreamRedactor

from .console import columns, is_plain, make_console, printable
from .keyboard import Keyboard

WATCH_SECONDS = 0.05
# What arrow keys and the like send: an Escape that is no key of its own.
_SEQUENCE = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|O.|[^\x1b\[O])")


def stream(pieces: Generator[str, None, None], *, wrap: bool = False) -> None:
    """Write the pieces of a reply to standard output as they come, with a newline at the end.

    wrap: between words, at the width of the terminal. Ctrl-C closes the reply and is raised again.
    """
    make_console()  # makes standard output accept any character
    redactor, wrapper = StreamRedactor(), WordWrap(columns()) if wrap and not is_plain() else None
    line_end = ""

    def write(text: str) -> None:
        shown = printable(text)
        sys.stdout.write(wrapper.push(shown) if wrapper else shown)
        sys.stdout.flush()

    try:
        for piece in pieces:
            write(redactor.push(piece))
            line_end = "\n"
        line_end = "\n"
    except KeyboardInterrupt:
        pieces.close()
        line_end = "\n"
        raise
    finally:
        write(redactor.rest())
        sys.stdout.write((wrapper.rest() if wrapper else "") + line_end)
        sys.stdout.flush()


class WordWrap:
    """Breaks lines between words, in a text that arrives in pieces. A word is passed on when it is complete."""

    def __init__(self, width: int):
        self._width = width
        self._column = 0  # of the cursor, without the word that is held back
        self._word = ""

    def push(self, text: str) -> str:
        """Take the next piece; returns what can be shown now."""
        shown = []
        for character in text:
            wide = _width_of(character) > 1  # Chinese and Japanese have no spaces, and break anywhere
            if not (character.isspace() or wide):
                self._word += character
                continue
            shown.append(self.rest())
            if character == "\n":
                self._column = 0
            elif self._column + _width_of(character) > self._width:
                shown.append("\n")
                self._column = 0
                if not wide:
                    continue  # the space at which the line was broken
            shown.append(character)
            self._column += 0 if character == "\n" else _width_of(character)
        return "".join(shown)

    def rest(self) -> str:
        """Return the word that was held back, on a new line where the current one has no room for it."""
        word, self._word = self._word, ""
        width = _width_of(word)
        breaks = 0 < self._column < self._column + width > self._width and width <= self._width
        self._column = width if breaks else self._column + width
        if self._column > self._width:  # the terminal itself breaks what is longer than a line
            self._column = (self._column - 1) % self._width + 1
        return f"\n{word}" if breaks else word


def _width_of(text: str) -> int:
    from prompt_toolkit.utils import get_cwidth

    return get_cwidth(text)


@contextlib.contextmanager
def stopped_by_escape() -> Iterator[None]:
    """Let Esc raise KeyboardInterrupt in the main thread, as Ctrl-C does. Other keys are dropped, and not shown."""
    keyboard, ended = Keyboard(), threading.Event()
    keyboard.open()

    def watch() -> None:
        while not ended.wait(WATCH_SECONDS):
            if "\x1b" in _SEQUENCE.sub("", keyboard.read()):
                _thread.interrupt_main()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    try:
        if keyboard.is_open:
            watcher.start()
        yield
    finally:
        try:
            ended.set()
            if watcher.ident is not None:
                watcher.join()
        finally:
            keyboard.close()
