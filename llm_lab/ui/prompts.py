"""Questions with a way back: questionary's prompts, with Escape for back and ? for the longer why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

HINT = "(Esc: back, ?: why)"
NO_WHY_HINT = "(Esc: back)"
ESCAPE_SECONDS = 0.1  # how long to wait whether an Escape is the beginning of an arrow key; more over slow ssh


class Back(Exception):
    """The user wants the question before this one."""


@dataclass(frozen=True)
class Option:
    """One line of a list. why_not: the reason it can't be taken, shown beside it."""

    value: Any
    title: str
    why_not: str | None = None


class _Boxed:
    """Carries a choice's value: questionary takes None for "no value" and compares True with 1."""

    def __init__(self, value: Any):
        self.value = value


def choose(message: str, options: Sequence[Option], *, default: Any = None, why: str = "", columns: int = 79) -> Any:
    """Ask for one of several; options that can't be taken are shown with the reason. Raises Back."""
    import questionary

    boxes = [_Boxed(option.value) for option in options]
    choices = [
        questionary.Choice(_fitted(option, columns), value=box, disabled=_reason(option, columns))
        for option, box in zip(options, boxes, strict=True)
    ]
    first = next((box for option, box in zip(options, boxes, strict=True) if not option.why_not), None)
    if first is None:
        raise Back
    wanted = next(
        (
            box
            for option, box in zip(options, boxes, strict=True)
            if not option.why_not and option.value == default and type(option.value) is type(default)
        ),
        first,
    )
    question = questionary.select(
        message,
        choices,
        default=wanted,
        instruction=HINT if why else NO_WHY_HINT,
        style=_style(),
    )
    return _ask(question, why).value


def _fitted(option: Option, columns: int) -> str:
    room = columns - 5
    return option.title if len(option.title) <= room else option.title[: room - 1] + "…"


def _reason(option: Option, columns: int) -> str | None:
    if option.why_not is None:
        return None
    room = max(12, columns - 10 - len(_fitted(option, columns)))
    return option.why_not if len(option.why_not) <= room else option.why_not[: room - 1] + "…"


def type_in(
    message: str,
    *,
    default: str = "",
    why: str = "",
    validate: Callable[[str], str | None] = lambda text: None,
    paths: bool = False,
) -> str:
    """Ask for a text. validate returns what is wrong with it, or None. Raises Back."""
    import questionary

    def verdict(text: str) -> bool | str:
        return validate(text) or True

    options: dict[str, Any] = {}
    if paths:
        from prompt_toolkit.completion import PathCompleter

        options = {"completer": PathCompleter(expanduser=True), "complete_while_typing": False}
    question = questionary.text(
        message,
        default=default,
        validate=verdict,
        instruction=HINT if why else NO_WHY_HINT,
        style=_style(),
        validate_while_typing=False,
        **options,
    )
    return _ask(question, why, typing=True).strip()


def confirm(message: str, *, default: bool = True, why: str = "", yes: str = "Yes", no: str = "No") -> bool:
    """Ask yes or no. Raises Back."""
    return choose(message, [Option(True, yes), Option(False, no)], default=default, why=why)


def wait_for_enter(message: str = "Enter goes back to the menu") -> None:
    """Wait, so that what was printed can be read."""
    import contextlib

    import questionary

    with contextlib.suppress(Back, KeyboardInterrupt, EOFError):
        _ask(questionary.text(message, qmark="", instruction="", style=_style()), "", typing=True)


def _ask(question: Any, why: str, *, typing: bool = False) -> Any:
    from prompt_toolkit.application import run_in_terminal
    from prompt_toolkit.filters import Condition
    from prompt_toolkit.key_binding import KeyBindings, merge_key_bindings

    keys, app = KeyBindings(), question.application

    @keys.add("escape", eager=not typing)
    def _(event: Any) -> None:
        event.app.exit(exception=Back())

    # In a text, ? is a letter unless the line is empty.
    at_start = Condition(lambda: not typing or not app.current_buffer.text)

    @keys.add("?", filter=at_start, eager=True)
    def _(event: Any) -> None:
        run_in_terminal(lambda: _print_why(why))

    @keys.add("c-d", filter=at_start, eager=True)
    def _(event: Any) -> None:
        event.app.exit(exception=Back())

    app.key_bindings = merge_key_bindings([app.key_bindings, keys]) if app.key_bindings else keys
    app.ttimeoutlen = app.timeoutlen = ESCAPE_SECONDS
    return question.unsafe_ask()


def _print_why(why: str) -> None:
    from .console import make_console

    console = make_console()
    console.print(f"\n{why or 'There is nothing more to say about this one.'}\n", style="help")


def _style() -> Any:
    from questionary import Style

    return Style(
        [
            ("qmark", "fg:ansicyan bold"),
            ("question", "bold"),
            ("answer", "fg:ansicyan"),
            ("pointer", "fg:ansicyan bold"),
            ("highlighted", "fg:ansicyan bold"),
            ("instruction", "fg:ansibrightblack"),
            ("disabled", "fg:ansibrightblack"),
            ("separator", "fg:ansibrightblack"),
        ]
    )
