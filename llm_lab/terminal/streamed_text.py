"""A reply while it is generated: shown word by word, wrapped between words, and stopped with Esc or Ctrl-C."""

from __future__ import annotations

import _thread
import contextlib
import re
import sys
import threading
from collections.abc import Generator, Iterator

from llm_lab.safe_text import StreamRedactor

from .console import PALETTE, columns, has_colors, is_plain, make_console, printable
from .keyboard import Keyboard

WATCH_SECONDS = 0.05
# What arrow keys and the like send: an Escape that is not the Esc key.
_SEQUENCE = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|O.|[^\x1b\[O])")


def stream(pieces: Generator[str, None, None], *, wrap: bool = False, markdown: bool = False) -> None:
    """Write the pieces of a reply to standard output as they arrive, with a newline at the end.

    wrap: break lines between words, at the width of the terminal. markdown: also style its Markdown. Ctrl-C closes the
    reply and is raised again.
    """
    console = make_console()  # also makes standard output accept any character
    redactor, line_end = StreamRedactor(), ""
    words = WordWrap(columns()) if wrap and not is_plain() else None
    wrapper = StyledMarkdown(words, has_colors=has_colors(console)) if words and markdown else words

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
    """Breaks lines between words in a text that arrives in pieces. A word is returned when it is complete."""

    def __init__(self, width: int):
        self._width = width
        self._column = 0  # column of the cursor, not counting the word that is held back
        self._word = ""

    def push(self, text: str) -> str:
        """Add the next piece; return what can be shown now."""
        shown = []
        for character in text:
            wide = _width_of(character) > 1  # Chinese and Japanese have no spaces, and can break anywhere
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
                    continue  # drop the space at which the line was broken
            shown.append(character)
            self._column += 0 if character == "\n" else _width_of(character)
        return "".join(shown)

    def rest(self) -> str:
        """Return the word that was held back, on a new line if it does not fit on the current one."""
        word, self._word = self._word, ""
        width = _width_of(word)
        breaks = 0 < self._column < self._column + width > self._width and width <= self._width
        self._column = width if breaks else self._column + width
        if self._column > self._width:  # the terminal itself breaks what is longer than a line
            self._column = (self._column - 1) % self._width + 1
        return f"\n{word}" if breaks else word


class StyledMarkdown:
    """Styles the Markdown of a text that arrives in pieces: headings, bold text, code, quotes.

    Every character is shown as the model wrote it, and nothing is redrawn: text that only looks like Markdown is styled
    up to the end of its line. Links stay text. Lines of code are not wrapped.
    """

    _STARTS = re.compile(r"[ \t]*(`{0,2}|~{0,2}|#{0,6})")  # what may become a fence or a heading
    _FENCE = re.compile(r"[ \t]*(```|~~~)")
    _HEADING = re.compile(r" {0,3}#{1,6} ")
    _QUOTE = re.compile(r" {0,3}>")
    _MARKS = re.compile(r"(`+|\*+)")

    def __init__(self, wrap: WordWrap, *, has_colors: bool):
        self._wrap, self._has_colors = wrap, has_colors
        self._text = ""  # text that is held back
        self._fence = ""  # the fence of the current code block
        self._line: str | None = None  # the kind of the current line, once it is known
        self._code, self._is_bold = "", False  # the backticks of the current code span; whether text is bold
        self._before = ""  # the previous character

    def push(self, text: str) -> str:
        """Add the next piece; return what can be shown now."""
        self._text += text
        shown = []
        while self._text:
            if self._line is None and self._STARTS.fullmatch(self._text):
                break
            self._line = self._line or self._kind_of_line()
            part, end, rest = self._text.partition("\n")
            if not end and self._line == "text":
                held = re.search(r"[`*]+\Z", part)
                part, rest = (part[: held.start()], held[0]) if held else (part, "")
            self._text = rest
            shown.append(self._styled_line(part))
            if not end:
                break
            shown.append("\n" if self._line in ("code", "fence") else self._wrap.push("\n"))
            self._line, self._code, self._is_bold, self._before = None, "", False, ""
        return "".join(shown)

    def rest(self) -> str:
        """Return what was held back."""
        text, self._text = self._text, ""
        self._line = self._line or "text"
        return self._styled_line(text) + self._wrap.rest()

    def _kind_of_line(self) -> str:
        fence = self._FENCE.match(self._text)
        if fence and self._fence in ("", fence[1]):
            self._fence = "" if self._fence else fence[1]
            return "fence"
        if self._fence:
            return "code"
        return "title" if self._HEADING.match(self._text) else "quote" if self._QUOTE.match(self._text) else "text"

    def _styled_line(self, part: str) -> str:
        """Return a part of the current line with its styles, wrapped unless it is code."""
        if self._line in ("code", "fence"):
            return self._painted(part, "help" if self._line == "code" else "dim")
        if self._line != "text":
            return self._wrap.push(self._painted(part, "title" if self._line == "title" else "dim"))
        shown = []
        pieces = [piece for piece in self._MARKS.split(part) if piece]
        for piece, after in zip(pieces, [*pieces, " "][1:], strict=True):
            was_code, was_bold = bool(self._code), self._is_bold
            if piece[0] == "`" and self._code in ("", piece):
                self._code = "" if self._code else piece
            elif piece in ("**", "***") and not self._code:
                opens = not self._is_bold and not self._before.isalnum() and not after[0].isspace()
                self._is_bold = opens or (self._is_bold and self._before.isspace())
            style = "help" if self._code or was_code else "bold" if self._is_bold or was_bold else ""
            shown.append(self._painted(piece, style))
            self._before = piece[-1]
        return self._wrap.push("".join(shown))

    def _painted(self, text: str, style: str) -> str:
        from rich.color import ColorSystem
        from rich.style import Style

        if not text or not style:
            return text
        found = Style.parse(PALETTE.get(style, style))
        return (found if self._has_colors else found.without_color).render(text, color_system=ColorSystem.STANDARD)


_STYLE = re.compile(r"\x1b\[[0-9;]*m")


def _width_of(text: str) -> int:
    from prompt_toolkit.utils import get_cwidth

    return get_cwidth(_STYLE.sub("", text) if "\x1b" in text else text)


@contextlib.contextmanager
def stopped_by_escape() -> Iterator[list[str]]:
    """Let Esc raise KeyboardInterrupt in the main thread, as Ctrl-C does.

    Yields a list that receives the text typed meanwhile, which is not shown.
    """
    keyboard, ended = Keyboard(), threading.Event()
    typed: list[str] = []
    keyboard.open()

    def watch() -> None:
        while not ended.wait(WATCH_SECONDS):
            keys = _SEQUENCE.sub("", keyboard.read())
            typed.append(keys)
            if "\x1b" in keys:
                _thread.interrupt_main()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    try:
        if keyboard.is_open:
            watcher.start()
        yield typed
    finally:
        try:
            ended.set()
            if watcher.ident is not None:
                watcher.join()
        finally:
            keyboard.close()
            typed.append(_SEQUENCE.sub("", keyboard.unread))


def typed_text(keys: str) -> str:
    """Return the text of one line that keys write: Backspace deletes a character, and Enter is a space."""
    text = ""
    for key in keys:
        if key in "\b\x7f":
            text = text[:-1]
        elif key.isprintable() or key in "\r\n\t":
            text += key if key.isprintable() else " "
    return " ".join(text.split())
