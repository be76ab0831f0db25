"""The input line of a chat: keys, completion, a stored history, and a model that loads in the meantime."""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from llm_lab.errors import DONE
from llm_lab.runs.folder import ROOT, list_runs
from llm_lab.safe_text import has_secret, one_line

from .console import columns, is_plain, print_waiting, prompt_styles
from .prompt_layout import ESCAPE_SECONDS, fit_words

PROMPT = "> "
LEAVING = "Press Ctrl-C again, or Ctrl-D, to quit."
HISTORY_LINES = 1_000
POLL_SECONDS = 0.1


class Loading:
    """A model that loads in a thread while the user types. name: its name."""

    def __init__(self, name: str, load: Callable[[], Any]):
        self.name = name
        self.error: BaseException | None = None
        self._load = load
        self._session: Any = None
        self._done = threading.Event()
        self._begun: float | None = None

    def start(self) -> None:
        """Start loading, unless it has been started."""
        if self._begun is None:
            self._begun = time.monotonic()
            atexit.register(self._leave)
            threading.Thread(target=self._run, daemon=True).start()

    @property
    def is_done(self) -> bool:
        return self._done.is_set()

    def wait(self) -> Any:
        """Return the session once it is loaded. Raises the error of the loading."""
        self.start()
        if not self.is_done:
            print_waiting(f"Loading {self.name} ...")
        while not self._done.wait(POLL_SECONDS):
            pass
        if self.error is not None:
            raise self.error
        return self._session

    def describe(self) -> str:
        """Return the progress of the loading, for the line below the prompt."""
        seconds = int(time.monotonic() - self._begun) if self._begun else 0
        since = f" ({seconds} s)" if seconds > 2 else ""
        text = f"Loading {one_line(self.name)} ...{since}"
        whole = f"{text} You can already type."
        return whole if len(whole) < columns() else text

    def _run(self) -> None:
        try:
            self._session = self._load()
        except BaseException as error:
            self.error = error
        finally:
            atexit.unregister(self._leave)
            self._done.set()

    def _leave(self) -> None:
        """End the process at once: with torch half imported in a thread, a normal shutdown may crash."""
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(DONE)


def typed_lines(
    commands: Mapping[str, tuple[str, str]],
    *,
    status: Callable[[], str],
    draft: Callable[[], str],
    give_up: Callable[[], bool],
    loading: Loading | None = None,
) -> Iterator[str]:
    """Prompt for messages until Ctrl-D, or Ctrl-C twice.

    status: the line below the prompt. draft: the text that the next prompt begins with. give_up: called at Ctrl-C;
    returns whether it gave something up, in which case the Ctrl-C does not count. Raises the error of the loading.
    """
    from .console import make_console

    read = input_line if is_plain() else _make_prompt(commands, status, loading)
    interrupted = False
    while True:
        try:
            text = read(draft())
        except EOFError:
            return
        except KeyboardInterrupt:
            if is_plain():
                make_console().print()  # the terminal has echoed ^C
            if give_up():
                continue
            if interrupted:
                return
            interrupted = True
            make_console().print(LEAVING, style="dim")
            continue
        interrupted = False
        yield text


def input_line(draft: str) -> str:
    """Read a message without redrawing anything; a backslash at the end of a line continues it."""
    lines = [input(PROMPT)]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(input(". "))
    return "\n".join(lines)


def _make_prompt(
    commands: Mapping[str, tuple[str, str]], status: Callable[[], str], loading: Loading | None
) -> Callable[[str], str]:
    """Return a function that prompts for a message. Its argument is the text to begin with."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.application import get_app
    from prompt_toolkit.filters import is_done
    from prompt_toolkit.layout import ConditionalContainer, FormattedTextControl, HSplit, Window
    from prompt_toolkit.shortcuts import CompleteStyle
    from prompt_toolkit.styles import Style

    hint = ""

    def below() -> list[tuple[str, str]]:
        is_loading = loading is not None and (not loading.is_done or loading.error is not None)
        text = hint or (loading.describe() if loading is not None and is_loading else status())
        return [("class:dim", _fitted(text, columns() - 1))]

    def set_hint(text: str) -> None:
        nonlocal hint
        hint = text

    prompt: PromptSession[str] = PromptSession(
        multiline=True,
        key_bindings=_keys(set_hint),
        prompt_continuation=lambda width, *_: "." * (width - 1) + " ",
        completer=_completer(commands),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        history=_history(),
        enable_suspend=True,
        style=Style(prompt_styles()),
    )
    # prompt_toolkit's own toolbar needs an answer from the terminal and takes all lines down to the last one.
    line = ConditionalContainer(Window(FormattedTextControl(below), height=1), filter=~is_done)
    prompt.layout.container = HSplit([prompt.layout.container, line])
    prompt.default_buffer.on_text_changed += lambda _: set_hint("")
    prompt.app.timeoutlen = prompt.app.ttimeoutlen = ESCAPE_SECONDS

    async def follow(loading: Loading) -> None:
        loading.start()  # after the prompt is drawn, because importing in a thread would delay it
        shown = ""
        while not loading.is_done:
            await asyncio.sleep(POLL_SECONDS)
            if shown != (shown := loading.describe()):
                get_app().invalidate()
        get_app().invalidate()
        if loading.error is not None:
            get_app().exit(exception=loading.error)

    def begin() -> None:
        set_hint("")
        if loading is not None and (loading.error is not None or not loading.is_done):
            get_app().create_background_task(follow(loading))

    return lambda draft: prompt.prompt(PROMPT, default=draft, pre_run=begin)


def _fitted(text: str, width: int) -> str:
    """Return text parts, joined with "; ", leaving out the last ones that do not fit."""
    parts = one_line(text).split("; ")
    while len(parts) > 1 and len("; ".join(parts)) > width:
        parts.pop()
    return fit_words("; ".join(parts), width)


def _keys(hint: Callable[[str], None]) -> Any:
    """Enter sends; Alt-Enter, or a backslash before Enter, adds a new line; Esc shows how to leave."""
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: Any) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("escape")
    def _(event: Any) -> None:
        hint("Ctrl-D or /quit leaves the chat")

    @keys.add("escape", "/")
    def _(event: Any) -> None:  # the editor's own binding would complete a command, and the slash would be lost
        event.current_buffer.insert_text("/")

    return keys


def _completer(commands: Mapping[str, tuple[str, str]]) -> Any:
    """Return what Tab offers: commands, and what comes after some of them."""
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    words: dict[str, Callable[[], Iterable[str]]] = {
        "help": lambda: commands,
        **dict.fromkeys(("auto_search", "plain"), lambda: ("on", "off")),
        "model": _run_names,
        "compare": lambda: ("base", *_run_names()),
    }

    class Commands(Completer):
        def get_completions(self, document: Any, complete_event: Any) -> Iterator[Any]:
            name, space, rest = document.text_before_cursor.removeprefix("/").partition(" ")
            if not document.text_before_cursor.startswith("/"):
                return
            if space and name in ("save", "load"):
                yield from PathCompleter(expanduser=True).get_completions(Document(rest), complete_event)
                return
            start, offered = (rest, words.get(name, tuple)()) if space else (name, commands)
            for word in offered:
                if word.startswith(start):
                    yield Completion(word, start_position=-len(start))

    return Commands()


def _run_names() -> list[str]:
    return [str(run.path) for run in list_runs(ROOT)]


def history_path() -> Path:
    """Return the file that stores what was typed in chats: in $XDG_STATE_HOME or ~/.local/state."""
    shared = os.environ.get("XDG_STATE_HOME")
    return (Path(shared) if shared else Path.home() / ".local" / "state") / "llm-lab" / "chat_history.jsonl"


def _history() -> Any:
    """Return the history of the prompt, stored in a file that only its user can read."""
    from prompt_toolkit.history import History

    class Kept(History):
        def load_history_strings(self) -> Iterator[str]:
            lines = _read_history()
            if len(lines) > 2 * HISTORY_LINES:
                with suppress(OSError):
                    kept = "".join(json.dumps(text) + "\n" for text in lines[-HISTORY_LINES:])
                    history_path().write_text(kept, encoding="utf-8")
            yield from reversed(lines[-HISTORY_LINES:])

        def store_string(self, string: str) -> None:
            if not string.strip() or has_secret(string):
                return
            with suppress(OSError):  # a missing history is not worth an error
                history_path().parent.mkdir(parents=True, exist_ok=True)
                file = os.open(history_path(), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
                with os.fdopen(file, "w", encoding="utf-8") as opened:
                    opened.write(json.dumps(string) + "\n")

    return Kept()


def _read_history() -> list[str]:
    """Return what was typed, oldest first; lines that can't be read are skipped."""
    found = []
    with suppress(OSError):
        for line in history_path().read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                if isinstance(text := json.loads(line), str):
                    found.append(text)
    return found
