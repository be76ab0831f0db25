"""Questions with a way back: questionary's prompts, with Escape for back and ? for the longer why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

HINT = "(Esc: back, ?: why)"
COLUMNS = 79
ABOVE = 11  # lines of a screen above its question, where nothing else is said: title, panel, help
LEAST_LINES = 3
ROOM_TO_TYPE = 16
PAGE = 8
ESCAPE_SECONDS = 0.1  # how long to wait whether an Escape is the beginning of an arrow key; more over slow ssh


class Back(Exception):
    """The user wants the question before this one."""


@dataclass(frozen=True)
class Option:
    """One line of a list. why_not: the reason it can't be taken; about: said below while it is pointed at."""

    value: Any
    title: str
    why_not: str | None = None
    about: str = ""


class _Boxed:
    """Carries a choice's value: questionary takes None for "no value" and compares True with 1."""

    def __init__(self, option: Option):
        self.option = option


def choose(
    message: str,
    options: Sequence[Option],
    *,
    default: Any = None,
    why: str = "",
    above: int = ABOVE,
) -> Any:
    """Ask for one of several; options that can't be taken are shown with the reason. Raises Back.

    above: how many lines of the screen stand above the question, so that all of it fits the terminal.
    """
    possible = [option for option in options if not option.why_not]
    if not possible:
        raise Back
    same = [option for option in possible if option.value == default and type(option.value) is type(default)]
    wanted = (same or possible)[0]
    if _is_dumb():
        from .plain_prompts import choose_plainly

        return choose_plainly(message, options, wanted, why).value
    import questionary

    boxes = [_Boxed(option) for option in options]
    question = questionary.select(
        message,
        [
            questionary.Choice(_fitted(box.option), value=box, disabled=_reason(box.option), shortcut_key=False)
            for box in boxes
        ],
        default=next(box for box in boxes if box.option is wanted),
        instruction=HINT,
        style=_style(),
    )
    from .prompt_layout import lay_out_list

    footer = lay_out_list(question.application, why, above=above, describe=_about)
    question.application.erase_when_done = True  # or a long line that was picked would be wrapped
    return _ask(question, footer).option.value


def _about(box: _Boxed) -> str:
    option = box.option
    whole = option.title.strip() if _fitted(option) != option.title else ""
    return "\n".join(text for text in (whole, option.about) if text)


def _fitted(option: Option) -> str:
    room = COLUMNS - 5
    return option.title if len(option.title) <= room else option.title[: room - 1] + "…"


def _reason(option: Option) -> str | None:
    if option.why_not is None:
        return None
    room = max(12, COLUMNS - 8 - len(_fitted(option)))
    return option.why_not if len(option.why_not) <= room else option.why_not[: room - 1] + "…"


def type_in(
    message: str,
    *,
    default: str = "",
    why: str = "",
    about: str = "",
    validate: Callable[[str], str | None] = lambda text: None,
    paths: bool = False,
) -> str:
    """Ask for a text; typing replaces the default. validate returns what is wrong with it, or None. Raises Back.

    about: one line on what may be typed, shown below.
    """
    if _is_dumb():
        from .plain_prompts import type_plainly

        return type_plainly(message, default, why, about, validate)
    import questionary

    options: dict[str, Any] = {}
    if paths:
        from prompt_toolkit.completion import PathCompleter

        options = {"completer": PathCompleter(expanduser=True), "complete_while_typing": False}
    fits = len(message) + len(HINT) + len(default) < COLUMNS - ROOM_TO_TYPE
    # Where it does not, the answer gets a line of its own, and the hint stands below.
    instruction, about = (HINT, about) if fits else ("\n ", f"{about}\n{HINT}")
    question = questionary.text(message, default=default, instruction=instruction, style=_style(), **options)
    from .prompt_layout import lay_out_text

    footer = lay_out_text(question.application, why, about, validate)
    return _ask(question, footer).strip()


def confirm(
    message: str, *, default: bool = True, why: str = "", yes: str = "Yes", no: str = "No", above: int = ABOVE
) -> bool:
    """Ask yes or no. Raises Back."""
    return choose(message, [Option(True, yes), Option(False, no)], default=default, why=why, above=above)


def wait_for_enter(message: str = "Enter goes back to the menu") -> None:
    """Wait, so that what was printed can be read."""
    import contextlib

    with contextlib.suppress(Back, KeyboardInterrupt, EOFError):
        if _is_dumb():
            input(f"{message} ")
            return
        import questionary

        from .prompt_layout import lay_out_text

        question = questionary.text(message, qmark="", instruction="", style=_style())
        _ask(question, lay_out_text(question.application, "", "", lambda text: None))


def _is_dumb() -> bool:
    """Whether the terminal can only print lines (TERM=dumb): an editor's shell, a serial console."""
    from prompt_toolkit.application import get_app_session
    from prompt_toolkit.output import DummyOutput
    from prompt_toolkit.utils import is_dumb_terminal

    return is_dumb_terminal() and not isinstance(get_app_session().output, DummyOutput)


def _ask(question: Any, footer: Any) -> Any:
    from prompt_toolkit.filters import Condition
    from prompt_toolkit.key_binding import KeyBindings, merge_key_bindings

    app = question.application
    keys = KeyBindings()

    @keys.add("escape", eager=footer.is_list)
    def _(event: Any) -> None:
        event.app.exit(exception=Back())

    # In a text, ? is a letter once something has been typed.
    untouched = Condition(lambda: footer.is_list or footer.is_untouched())

    @keys.add("?", filter=untouched, eager=True)
    def _(event: Any) -> None:
        footer.show_why = not footer.show_why

    @keys.add("c-d", filter=untouched, eager=True)
    def _(event: Any) -> None:
        event.app.exit(exception=Back())

    app.key_bindings = merge_key_bindings([*([app.key_bindings] if app.key_bindings else []), footer.keys, keys])
    app.ttimeoutlen = app.timeoutlen = ESCAPE_SECONDS
    return question.unsafe_ask()


def _style() -> Any:
    from questionary import Style

    return Style(
        [
            ("qmark", "fg:ansicyan bold"),
            ("question", "bold"),
            ("answer", "fg:ansicyan"),
            ("selected", "reverse"),
            ("pointer", "fg:ansicyan bold"),
            ("highlighted", "fg:ansicyan bold"),
            ("instruction", "fg:ansibrightblack"),
            ("disabled", "fg:ansibrightblack"),
            ("separator", "fg:ansibrightblack"),
            ("why", "fg:ansicyan"),
            ("about", "fg:ansibrightblack"),
            ("bad", "fg:ansired bold"),
        ]
    )
