"""The conversation in the terminal: a line of input, a streamed reply, a few commands."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from llm_lab.chat.decoding import SETTINGS
from llm_lab.chat.search_words import search_reason
from llm_lab.chat.web_search import Hit, check_backend, default_backend, describe_privacy, search
from llm_lab.errors import LabError, Problem, UserError, did_you_mean, file_error
from llm_lab.events import Event, Listener, Notice, RunWarning
from llm_lab.safe_text import StreamRedactor, valid_text

from .compare_screen import print_side_by_side
from .console import is_terminal, make_console, one_line, print_error, printable

COMMANDS = {
    "help": ("", "this list"),
    "reset": ("", "forget all messages"),
    "system": ("TEXT", "set the system prompt; without TEXT: remove it"),
    **{name: ("N" if setting.kind is int else "X", setting.help) for name, setting in SETTINGS.items()},
    "search": ("TEXT", "search the web for TEXT, and reply with the results"),
    "search_with": ("BACKEND", "ddgs, or the address of a SearXNG"),
    "auto_search": ("on|off", "search if a message says: latest, today, news ..."),
    "settings": ("", "show the settings"),
    "save": ("FILE", "save the conversation (JSON)"),
    "load": ("FILE", "load a saved conversation"),
    "model": ("PATH", "chat with another model"),
    "compare": ("OTHER [TEXT]", "compare with another model; base: without the adapter"),
    "time": ("[TEXT]", "compare all saved checkpoints of this run"),
    "quit": ("", "quit (or Ctrl-D)"),
}
MODES = {
    "chat": "chat mode: you write a message, the model replies",
    "completion": "completion mode: a base model continues your text; Enter alone continues it further",
}
STOPS = {
    "end": "end of turn",
    "length": "stopped at max_new_tokens",
    "context": "stopped: the context is full",
    "stopped": "stopped",
}
REQUIRE_ARGUMENT = ("save", "load", "model", "compare", "search", "search_with")
ENDED = ("end", "completion")
LEAVING = "Press Ctrl-C again, or Ctrl-D, to quit."
PROMPT = "> "


def answer_once(session: Any, prompt: str) -> None:
    """Stream one reply to standard output, and nothing else."""
    _stream(session, prompt)


def run_chat(session: Any, *, load: Callable[[str], Any], side_by_side: Any, interactive: bool | None = None) -> None:
    """Run a chat until the user leaves.

    load: opens another checkpoint as a session. side_by_side: compares with other models (evaluation/side_by_side.py).
    interactive: whether a user types; detected by default.
    """
    interactive = is_terminal() if interactive is None else interactive
    screen = _Screen(session, load, side_by_side, interactive)
    if interactive:
        screen.show_header()
    for text in _typed_lines() if interactive else _piped_lines():
        if not screen.take(text):
            return


class _Screen:
    """Handles the lines of input."""

    def __init__(self, session: Any, load: Callable[[str], Any], side_by_side: Any, interactive: bool):
        self.session = session
        self._load, self._side_by_side = load, side_by_side
        self._interactive = interactive
        self._backend: str | None = None  # of web searches; None: the default
        self._auto_search = False
        self._privacy_shown: set[str] = set()  # backends
        # In a pipe, standard output is only for replies.
        self._console = make_console(stderr=not interactive)

    def take(self, text: str) -> bool:
        """Answer a message or run a command; return False to leave."""
        text = valid_text(text)
        try:
            if text.startswith("/") and not text.startswith("//"):
                return self._command(text[1:])
            text = text.removeprefix("/")
            self._reply(text, self._hits_for(text))
        except LabError as error:
            print_error(error)
        except OSError as error:  # a name that no file can have
            if (for_user := file_error(error)) is None:
                raise
            print_error(for_user)
        except KeyboardInterrupt:
            self._say("Stopped.", "dim")
        return True

    def show_header(self) -> None:
        self._say(one_line(self.session.name), "title")
        self._say(MODES[self.session.mode])
        self._say("/help lists the commands. Ctrl-C stops a reply. Ctrl-D quits.", "dim")

    def _reply(self, text: str, hits: Sequence[Hit] = ()) -> None:
        if not text.strip() and (self.session.mode == "chat" or not self._interactive):
            return
        before = len(self.session.messages) if hits else 0
        with contextlib.suppress(KeyboardInterrupt):
            _stream(self.session, text, hits)
        if hits and len(self.session.messages) > before:
            self._show_sources(self.session.messages[-2].get("sources", ()))
        stats = self.session.last_stats
        if self.session.notice:
            self._say(self.session.notice, "warn")
        if stats and self._interactive:
            speed = f", {stats.tokens_per_second:,.0f} tokens/s" if stats.tokens_per_second else ""
            many = "1 token" if stats.tokens == 1 else f"{stats.tokens:,} tokens"
            next_text = ", the next message starts a new text" if (stats.stop, self.session.mode) == ENDED else ""
            self._say(f"[{many}{speed}; {STOPS[stats.stop]}{next_text}]", "dim")

    def _hits_for(self, text: str) -> list[Hit]:
        """Return search results for a message that asks about the present, if the user chose /auto_search."""
        if not self._auto_search or self.session.mode != "chat" or not (word := search_reason(text)):
            return []
        self._say(f'Your message has "{one_line(word)}", so the web is searched. /auto_search off stops this.', "dim")
        try:
            return self._find(text)
        except LabError as error:  # the model can still reply without results
            print_error(error)
            return []

    def _find(self, text: str) -> list[Hit]:
        backend = check_backend(self._backend or default_backend())
        if backend not in self._privacy_shown:
            self._privacy_shown.add(backend)
            self._say(describe_privacy(backend), "warn")
        self._say("Searching the web ...", "dim")
        return search(text, backend=backend)

    def _show_sources(self, sources: Sequence[Mapping[str, Any]]) -> None:
        for source in sources:
            self._say(f"[{source['n']}] {source['title']}")
            self._say(f"    {source['url']}", "dim")

    def _command(self, line: str) -> bool:
        name, _, argument = line.strip().partition(" ")
        name, argument = name.lower(), argument.strip()
        if name in ("quit", "exit", "q"):
            return False
        if name not in COMMANDS:
            near = did_you_mean(name, COMMANDS)
            fix = (near.replace("mean ", "mean /") if near else "/help lists all commands.") + " Use // to send /."
            raise UserError(Problem(f"/{name}", "unknown command", fix=fix))
        if name in SETTINGS:
            if argument:
                self.session.change_setting(name, argument)
            self._say(f"{name} = {self._written(name)}", "good" if argument else "")
        elif name in REQUIRE_ARGUMENT and not argument:
            raise UserError(Problem(f"/{name}", f"it requires an argument: /{name} {COMMANDS[name][0]}"))
        else:
            getattr(self, f"_do_{name}")(argument)
        return True

    def _do_help(self, _: str) -> None:
        for name, (argument, what) in COMMANDS.items():
            self._say(f"  /{name} {argument}".ljust(26) + what)
        self._say("  //text                  send a text that starts with /")
        self._say("  Alt-Enter, or \\ at the end of a line: new line in the message", "dim")

    def _do_settings(self, _: str) -> None:
        for field in dataclasses.fields(self.session.settings):
            self._say(f"  {field.name:<20}{self._written(field.name)}")
        if self.session.mode == "chat":
            self._say(f"  {'system':<20}{one_line(self.session.system or 'none')}")
            self._say(f"  {'search_with':<20}{one_line(self._backend or default_backend())}")
            self._say(f"  {'auto_search':<20}{'on' if self._auto_search else 'off'}")
        if self.session.context_length:
            self._say(f"  {'context':<20}{self.session.context_length:,} tokens", "dim")

    def _do_reset(self, _: str) -> None:
        self.session.reset()
        self._say("The conversation is empty; the settings are unchanged.", "good")

    def _do_system(self, text: str) -> None:
        self.session.set_system(text)
        self._say("System prompt set." if text else "System prompt removed.", "good")

    def _do_search(self, text: str) -> None:
        self.session.require_search()
        self._reply(text, self._find(text))

    def _do_search_with(self, backend: str) -> None:
        self._backend = check_backend(backend)
        self._say(f"search_with = {self._backend}", "good")

    def _do_auto_search(self, text: str) -> None:
        if text and text.lower() not in ("on", "off"):
            raise UserError(Problem("auto_search", "invalid value", value=text, allowed="on or off"))
        self._auto_search = text.lower() == "on" if text else self._auto_search
        self._say(f"auto_search = {'on' if self._auto_search else 'off'}", "good" if text else "")

    def _do_save(self, path: str) -> None:
        self._say(f"Saved: {self.session.save(path)}", "good")

    def _do_load(self, path: str) -> None:
        self.session.load(path)
        for message in self.session.messages[-4:]:
            start = f"{PROMPT}" if message["role"] == "user" else ""
            self._say(printable(start + message["content"]), "dim")
        self._say(f"Loaded: {len(self.session.messages)} messages", "good")

    def _do_model(self, path: str) -> None:
        self._say(f"loading {one_line(path)} ...", "dim")
        new = self._load(path)
        new.settings = self.session.settings
        self.session = new
        self.show_header()
        self._say("The conversation is empty; the settings are unchanged.", "good")

    def _do_compare(self, argument: str) -> None:
        quoted = re.fullmatch(r'"([^"]+)"\s*(.*)', argument, re.DOTALL)
        name, text = (quoted[1], quoted[2]) if quoted else (argument.split()[0], " ".join(argument.split(None, 1)[1:]))
        found = self._side_by_side.compare(self.session, name, text, _show_notices(self._say))
        print_side_by_side(found, self._console)

    def _do_time(self, text: str) -> None:
        print_side_by_side(self._side_by_side.over_time(self.session, text, _show_notices(self._say)), self._console)

    def _written(self, name: str) -> str:
        value = getattr(self.session.settings, name)
        return "none" if value is None else f"{value:g}" if isinstance(value, float) else f"{value}"

    def _say(self, text: str, style: str = "") -> None:
        from rich.text import Text

        self._console.print(Text(printable(text), style=style))


def _show_notices(say: Callable[[str, str], None]) -> Listener:
    """Return a listener that shows notices on the chat screen."""

    def listener(event: Event) -> None:
        if isinstance(event, Notice | RunWarning):
            say(event.text, "dim")

    return listener


def _stream(session: Any, text: str, hits: Sequence[Hit] = ()) -> None:
    """Stream a reply to standard output, with a newline at the end."""
    make_console()  # makes standard output accept any character
    reply, redactor = session.reply(text, hits), StreamRedactor()
    line_end = ""
    try:
        for piece in reply:
            sys.stdout.write(printable(redactor.push(piece)))
            sys.stdout.flush()
            line_end = "\n"
        line_end = "\n"
    except KeyboardInterrupt:
        reply.close()
        line_end = "\n"
        raise
    finally:
        sys.stdout.write(printable(redactor.rest()) + line_end)
        sys.stdout.flush()


def _piped_lines() -> Iterator[str]:
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a byte that is no UTF-8 must not end the conversation
    for line in sys.stdin:
        yield line.rstrip("\r\n")


def _typed_lines() -> Iterator[str]:
    """Prompt for messages until Ctrl-D, or Ctrl-C twice."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter

    prompt: PromptSession[str] = PromptSession(
        multiline=True,
        key_bindings=_keys(),
        prompt_continuation=lambda width, *_: "." * (width - 1) + " ",
        completer=WordCompleter([f"/{name}" for name in COMMANDS], sentence=True),
        complete_while_typing=False,
        reserve_space_for_menu=0,
    )
    interrupted = False
    while True:
        try:
            text = prompt.prompt(PROMPT)
        except EOFError:
            return
        except KeyboardInterrupt:
            if interrupted:
                return
            interrupted = True
            make_console().print(LEAVING, style="dim")
            continue
        interrupted = False
        yield text


def _keys() -> Any:
    """Enter sends; Alt-Enter, or a backslash before Enter, adds a new line."""
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

    return keys
