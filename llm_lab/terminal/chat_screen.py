"""The conversation in the terminal: an input line, a streamed reply, and a few commands."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_lab.chat.decoding import SETTINGS
from llm_lab.chat.web_search import Hit, check_backend, default_backend, describe_privacy, search, search_reason
from llm_lab.errors import LabError, Problem, UserError, did_you_mean, file_error, one_of
from llm_lab.events import Event, Listener, Notice, RunWarning
from llm_lab.safe_text import valid_text

from .chat_prompt import PROMPT, Loading, typed_lines
from .clipboard import copy
from .compare_screen import print_side_by_side
from .console import is_plain, is_terminal, make_console, one_line, print_error, printable
from .streamed_text import stopped_by_escape, stream, typed_text

COMMANDS = {
    "help": ("[COMMAND]", "the commands, or what one of them does"),
    "edit": ("[TEXT]", "change your last message, and send it again"),
    "regenerate": ("", "get another reply to your last message"),
    "copy": ("", "copy the last reply to the clipboard"),
    "reset": ("", "forget all messages"),
    "system": ("TEXT", "set the system prompt; without TEXT: remove it"),
    **{name: ("N" if setting.kind is int else "X", setting.help) for name, setting in SETTINGS.items()},
    "search": ("TEXT", "search the web for TEXT, and reply with the results"),
    "search_with": ("BACKEND", "what to search with: ddgs (public search engines), or the address of a SearXNG server"),
    "auto_search": ("on|off", "search if a message says: latest, today, news ..."),
    "plain": ("on|off", "show replies without bold text and colors"),
    "settings": ("", "show the settings"),
    "save": ("FILE", "save the conversation (JSON)"),
    "load": ("FILE", "load a saved conversation"),
    "model": ("PATH", "chat with another model"),
    "compare": (
        "OTHER [TEXT]",
        "compare with another model. OTHER is a model, or the word base: this model without its adapter",
    ),
    "time": ("[TEXT]", "compare all saved checkpoints of this run"),
    "quit": ("", "quit (or Ctrl-D)"),
}
# One page of 60 columns and 20 rows, with the prompt below it. A test compares it with COMMANDS.
HELP = """\
  /edit            change your last message
  /regenerate      another reply to it
  /copy            copy the last reply
  /system TEXT     set the system prompt; no TEXT: remove it
  /reset           forget all messages
  /save FILE       save the conversation; /load opens it
  /settings        show all settings. To change one:
                   /temperature /top_p /top_k /seed
                   /max_new_tokens /repetition_penalty
  /plain on        replies without bold text and colors
  /model PATH      chat with another model
  /compare OTHER   compare with another model
  /time            compare the checkpoints of this run
  /search TEXT     search the web, then reply; see also
                   /search_with and /auto_search
  /help COMMAND    what a command does; /quit quits
  Alt-Enter, or \\ before Enter: new line. // sends a slash.
  Esc stops a reply. Tab completes. ↑ earlier messages."""
MODES = {
    "chat": "chat mode: you write a message, the model replies",
    "completion": "completion mode: a base model continues your text, and your next text is added to it. "
    "Enter alone continues it further; /reset starts a new one.",
}
# The line below the prompt: parts that do not fit are left out.
STATUS = {
    "chat": "chat mode; Esc stops a reply; Tab completes",
    "completion": "completion mode; Enter alone continues the text; /reset starts a new one; Esc stops it",
    "ended": "completion mode; Enter alone starts a new text; Esc stops it",
}
STOPS = {
    "end": "end of turn",
    "length": "stopped at max_new_tokens",
    "context": "stopped: the context is full",
    "stopped": "stopped by you: the reply is incomplete",
}
REQUIRE_ARGUMENT = ("save", "load", "model", "compare", "search", "search_with")
ENDED = "end of the text; what you write next starts a new one"  # in completion mode
AFTER_COMMAND = "Write a message after the command."


def answer_once(session: Any, prompt: str) -> None:
    """Stream one reply to standard output, and nothing else; wrapped only in a terminal."""
    stream(session.reply(prompt), wrap=is_terminal())


def run_chat(
    session: Any,
    *,
    load: Callable[[str], Any],
    side_by_side: Callable[[], Any],
    interactive: bool | None = None,
) -> None:
    """Run a chat until the user leaves.

    session: a chat session, or one that is still loading. load: opens another checkpoint as a session. side_by_side:
    makes the comparison with other models (evaluation/side_by_side.py). interactive: whether a user types; detected by
    default. Raises the error of the loading.
    """
    interactive = is_terminal() if interactive is None else interactive
    screen = _Screen(session, load, side_by_side, interactive)
    if interactive:
        screen.show_header()
    for text in screen.typed_lines() if interactive else _piped_lines():
        if not screen.take(text):
            return


class _Screen:
    """Handles the lines of input."""

    def __init__(self, session: Any, load: Callable[[str], Any], side_by_side: Callable[[], Any], interactive: bool):
        self._loading = session if isinstance(session, Loading) else None
        self._session = None if self._loading else session
        self._name = session.name
        self._load, self._side_by_side = load, side_by_side
        self._interactive = interactive
        self._draft = ""  # the text that the next prompt begins with
        self._edits = False  # whether the next message replaces the last one
        self._backend: str | None = None  # for web searches; None: the default
        self._auto_search = False
        self._styles_replies = True
        self._knows_full_context = False  # whether the user has seen that the context is full
        self._privacy_shown: set[str] = set()  # search backends whose privacy notice was shown
        # In a pipe, standard output is only for replies.
        self._console = make_console(stderr=not interactive)

    @property
    def session(self) -> Any:
        """The chat session; waits until it is loaded."""
        if self._session is None:
            assert self._loading is not None
            self._session = self._loading.wait()
        return self._session

    def typed_lines(self) -> Iterator[str]:
        """Prompt for the lines of input."""
        return typed_lines(
            COMMANDS, status=self._status, draft=self._take_draft, give_up=self._end_edit, loading=self._loading
        )

    def _status(self) -> str:
        if self._edits:
            return "Enter sends the changed message in place of the old one; Ctrl-C keeps the old one"
        unseen = self.session.unseen
        full = f"context full: the model does not see {unseen}; " if unseen else ""
        mode = self.session.mode
        has_ended = mode == "completion" and any(message.get("ended") for message in self.session.messages[-1:])
        return full + STATUS["ended" if has_ended else mode]

    def _take_draft(self) -> str:
        draft, self._draft = self._draft, ""
        return draft

    def _end_edit(self) -> bool:
        """Leave the last message as it is; return whether it was being edited."""
        edits, self._edits = self._edits, False
        return edits

    def take(self, text: str) -> bool:
        """Answer a message or run a command; return False to leave. Esc stops it, as Ctrl-C does.

        What the user types in the meantime is the beginning of the next message.
        """
        text = valid_text(text)
        if self._interactive and text.strip() == "?":  # ? is the key for help on every other screen
            text = "/help"
        edits = self._end_edit()
        keys: list[str] = []
        try:
            with stopped_by_escape() if self._interactive else contextlib.nullcontext(keys) as keys:
                if text.startswith("/") and not text.startswith("//"):
                    return self._command(text[1:])
                text = text.removeprefix("/")
                if edits:
                    self._replace(text)
                else:
                    self._reply(text, self._hits_for(text))
        except LabError as error:
            print_error(error)
        except OSError as error:  # not a valid file name
            if (for_user := file_error(error)) is None:
                raise
            print_error(for_user)
        except KeyboardInterrupt:
            self._say("Stopped.", "dim")
        finally:
            self._draft = self._draft or typed_text("".join(keys))
        return True

    def show_header(self) -> None:
        self._say(one_line(self._name), "title")
        if self._session is not None:
            self._say(MODES[self._session.mode])
        self._say(f"/help lists the commands. Ctrl-D leaves the chat.{self._blank}", "dim")

    @property
    def _blank(self) -> str:
        """Print the blank line between a text and the prompt below it."""
        return "\n" if self._interactive else ""

    def _reply(self, text: str, hits: Sequence[Hit] = ()) -> None:
        if not text.strip() and (not self._interactive or self.session.mode == "chat"):
            return
        self._show(self.session.reply(text, hits))

    def _replace(self, text: str) -> None:
        """Send an edited message in place of the last one."""
        if not text.strip():
            self._say("The last message is unchanged.", "dim")
            return
        self._show(self.session.regenerate(text))

    def _show(self, reply: Generator[str, None, None]) -> None:
        """Stream a reply, and show the notices about it."""
        last = self.session.messages[-1:]
        with contextlib.suppress(KeyboardInterrupt):
            markdown = self._styles_replies and self.session.mode == "chat"
            stream(reply, wrap=self._interactive, markdown=markdown)
        if self.session.messages[-1:] != last:
            self._show_sources(self.session.messages[-2].get("sources", ()))
        stats = self.session.last_stats
        full = self._show_notice()
        if not self._interactive:
            return
        if stats is None or (stats.stop == "stopped" and not stats.tokens):
            self._say("[stopped before the first word; the conversation is unchanged]", "dim")
            return
        speed = f", {stats.tokens_per_second:,.0f} tokens/s" if stats.tokens_per_second else ""
        many = "1 token" if stats.tokens == 1 else f"{stats.tokens:,} tokens"
        why = ENDED if (stats.stop, self.session.mode) == ("end", "completion") else STOPS[stats.stop]
        self._say(f"[{many}{speed}; {why}{full}]\n", "dim")

    def _show_notice(self) -> str:
        """Show which part of the conversation the model did not see; if the context stays full, only the first time.

        Returns the remark to add to the numbers of the reply.
        """
        session = self.session
        if not session.notice:
            self._knows_full_context = False
            return ""
        if self._knows_full_context and not session.has_unseen_results:
            stats = session.last_stats
            return "" if stats is not None and stats.stop == "context" else "; context full"
        self._say(session.notice, "warn")
        self._knows_full_context = session.unseen is not None
        return ""

    def _hits_for(self, text: str) -> list[Hit]:
        """Return search results for a message that asks about current events, if the user chose /auto_search."""
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
        if name in ("exit", "q"):
            return False
        name = _full_name(name)
        if name == "quit":
            return False
        if name in SETTINGS:
            if argument:
                self.session.change_setting(name, argument)
            self._say(f"{name} = {self._written(name)}", "good" if argument else "")
        elif name in REQUIRE_ARGUMENT and not argument:
            raise UserError(Problem(f"/{name}", f"it requires an argument: /{name} {COMMANDS[name][0]}"))
        else:
            getattr(self, f"_do_{name}")(argument)
        return True

    def _do_help(self, name: str) -> None:
        name = name.removeprefix("/").lower()
        if not name:
            self._say(f"{HELP}{self._blank}")
        else:
            name = _full_name(name)
            argument, what = COMMANDS[name]
            self._say(f"/{name} {argument}".rstrip() + f": {what}")
            if name in SETTINGS:
                self._say(f"Allowed: {SETTINGS[name].allowed}. Now: {self._written(name)}.", "dim")

    def _require_messages(self, command: str, fix: str = "Write a message first.") -> None:
        if not self.session.messages:
            raise UserError(Problem(f"/{command}", "the conversation is empty", fix=fix))

    def _do_edit(self, text: str) -> None:
        self._require_messages("edit")
        if text:
            self._replace(text)
            return
        if not self._interactive:
            raise UserError(Problem("/edit", "without a terminal, it requires the new text: /edit TEXT"))
        self._edits, last = True, self.session.messages[-2]["content"]
        if is_plain():
            self._say("Your last message follows. What you type now replaces it; an empty line keeps it.")
            self._say(last)
        else:
            self._draft = f"/{last}" if last.startswith("/") else last

    def _do_regenerate(self, _: str) -> None:
        self._require_messages("regenerate")
        settings = self.session.settings
        if settings.temperature == 0:
            self._say("temperature is 0 (greedy): the reply can't differ. /temperature 0.8 samples.", "dim")
        elif settings.seed is not None:
            self._say(f"seed is {settings.seed}: the reply can't differ. /seed none draws at random.", "dim")
        self._show(self.session.regenerate())

    def _do_copy(self, _: str) -> None:
        if not self.session.messages:
            raise UserError(Problem("/copy", "there is no reply yet"))
        self._say(copy(self.session.messages[-1]["content"]), "good")

    def _do_settings(self, _: str) -> None:
        for field in dataclasses.fields(self.session.settings):
            self._say(f"  {field.name:<20}{self._written(field.name)}")
        if self.session.mode == "chat":
            self._say(f"  {'system':<20}{one_line(self.session.system or 'none')}")
            self._say(f"  {'search_with':<20}{one_line(self._backend or default_backend())}")
            self._say(f"  {'auto_search':<20}{'on' if self._auto_search else 'off'}")
            self._say(f"  {'plain':<20}{'off' if self._styles_replies else 'on'}")
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
        self._auto_search = self._switch("auto_search", text, self._auto_search)

    def _do_plain(self, text: str) -> None:
        self._styles_replies = not self._switch("plain", text, not self._styles_replies)

    def _switch(self, name: str, text: str, is_on: bool) -> bool:
        """Return whether `/name text` switches something on, and show it. UserError if the text is not on or off."""
        if text and text.lower() not in ("on", "off"):
            raise UserError(Problem(f"/{name}", "invalid value", value=text, allowed="on or off"))
        is_on = text.lower() == "on" if text else is_on
        self._say(f"{name} = {'on' if is_on else 'off'}", "good" if text else "")
        return is_on

    def _do_save(self, path: str) -> None:
        self._require_messages("save")
        folder = Path(path).expanduser().parent
        created = "" if folder.exists() else f" (created the folder {folder})"
        self._say(f"Saved: {self.session.save(path)}{created}", "good")

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
        self._session, self._name = new, new.name
        self.show_header()
        self._say("The conversation is empty; the settings are unchanged.", "good")

    def _do_compare(self, argument: str) -> None:
        quoted = re.fullmatch(r'"([^"]+)"\s*(.*)', argument, re.DOTALL)
        name, text = (quoted[1], quoted[2]) if quoted else (argument.split()[0], " ".join(argument.split(None, 1)[1:]))
        if not text:
            self._require_messages("compare", AFTER_COMMAND)
        found = self._side_by_side().compare(self.session, name, text, _show_notices(self._say))
        print_side_by_side(found, self._console)

    def _do_time(self, text: str) -> None:
        if not text:
            self._require_messages("time", AFTER_COMMAND)
        print_side_by_side(self._side_by_side().over_time(self.session, text, _show_notices(self._say)), self._console)

    def _written(self, name: str) -> str:
        value = getattr(self.session.settings, name)
        return "none" if value is None else f"{value:g}" if isinstance(value, float) else f"{value}"

    def _say(self, text: str, style: str = "") -> None:
        from rich.text import Text

        self._console.print(Text(printable(text), style=style))


def _full_name(name: str) -> str:
    """Return the command with a name, or the only one that begins with it. UserError if there is none."""
    begun = [command for command in COMMANDS if name and command.startswith(name)]
    if name in COMMANDS or len(begun) == 1:
        return name if name in COMMANDS else begun[0]
    if begun:
        raise UserError(
            Problem(f"/{name}", "several commands begin like this", allowed=one_of([f"/{one}" for one in begun]))
        )
    near = did_you_mean(name, COMMANDS)
    fix = (near.replace("mean ", "mean /") if near else "/help lists all commands.") + " Use // to send /."
    raise UserError(Problem(f"/{name}", "unknown command", fix=fix))


def _show_notices(say: Callable[[str, str], None]) -> Listener:
    """Return a listener that shows notices on the chat screen."""

    def listener(event: Event) -> None:
        if isinstance(event, Notice | RunWarning):
            say(event.text, "dim")

    return listener


def _piped_lines() -> Iterator[str]:
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a byte that is not UTF-8 must not end the conversation
    for line in sys.stdin:
        yield line.rstrip("\r\n")
