"""The data X-ray on the screen: every token in the colour of what becomes of it, or in brackets without colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .console import make_console, one_line, printable, supports_unicode
from .prompts import Option, choose, wait_for_enter

LEARNT, CONTROL, LEARNT_CONTROL, READ = "bold green", "magenta", "bold green reverse", "dim"
_SHOWN_RENDERED = 1_500


def page_xray(stages: Sequence[Any], begin: Callable[[], Any], *, end: str) -> None:
    """Print the same a screen at a time. begin: clears the screen, and prints its title. Raises Back."""
    from rich.text import Text

    console = make_console()
    with console.capture() as captured:
        print_xray(stages, console)
    lines = captured.get().rstrip("\n").split("\n")
    page = max(4, console.size.height - 3)
    for start in range(0, len(lines), page):
        begin()
        console.print(Text.from_ansi("\n".join(lines[start : start + page])), soft_wrap=True)
        more = len(lines) - start - page
        if more > 0:
            choose(f"{more} more lines", [Option(True, "Show more")], above=console.size.height - 3)
    wait_for_enter(end)


def print_xray(stages: Sequence[Any], console: Any = None) -> None:
    """Print what the stages of a recipe read: the values of stages.xray.xray_stages."""
    from rich.text import Text

    console = console or make_console()
    if not stages:
        console.print("No stage of this recipe reads data.")
    marks = None if _has_colours(console) else _brackets(console)
    for stage in stages:
        console.print(Text(f"{stage.name} ({stage.stage})", style="title"))
        console.print(Text(f"{one_line(stage.template)}; at most {stage.max_length:,} tokens in a row"))
        for found in stage.sets:
            console.print()
            _print_set(console, found, marks)
        console.print()
    if stages:
        console.print(_legend(marks))


def _print_set(console: Any, found: Any, marks: tuple[str, ...] | None) -> None:
    from rich.text import Text

    console.print(Text.assemble((found.key, "help"), ": ", one_line(found.description)))
    console.print(Text(one_line(found.sides)))
    if found.total is not None and found.measured < found.total:
        console.print(Text(f"measured on the first {found.measured:,}", style="dim"))
    for label, lengths in found.lengths.items():
        console.print(Text(f"{label}: {_in_words(lengths)}"))
    if found.learnt_share is not None:
        console.print(Text(f"{_share(found.learnt_share)} of the tokens is learnt"))
    for text in found.good:
        console.print(Text(one_line(text), style="good"))
    for text in found.warnings:
        console.print(Text(one_line(text), style="warn"))
    if found.rendered is not None:
        console.print(Text("The first one, as its template writes it:", style="help"))
        text = found.rendered
        more = f" ... ({len(text) - _SHOWN_RENDERED:,} characters more)" if len(text) > _SHOWN_RENDERED else ""
        console.print(Text(printable(text[:_SHOWN_RENDERED]).rstrip("\n") + more))
    for specimen in found.specimens:
        console.print()
        cut = f", {specimen.cut:,} more cut off" if specimen.cut else ""
        learnt = "" if found.learnt_share is None else f", {specimen.learnt:,} learnt"
        told = f"{specimen.label}: {specimen.tokens:,} tokens{learnt}{cut}"
        console.print(Text(told, style="help"))
        console.print(_tokens(specimen.runs, marks))
        if specimen.note is not None:
            console.print(Text(f"the answer to compare with: {one_line(specimen.note)}", style="help"))


def _tokens(runs: Sequence[Any], marks: tuple[str, ...] | None) -> Any:
    from rich.text import Text

    text = Text()
    inside = False
    for run in runs:
        if marks and run.learnt != inside:
            text.append(marks[0] if run.learnt else marks[1])
            inside = run.learnt
        shown = printable(run.text)
        if marks:
            text.append(f"{marks[2]}{shown}{marks[3]}" if run.control else shown)
        else:
            # Line ends have no colour of their own.
            shown = shown.replace("\n", "⏎\n") if run.learnt else shown
            text.append(shown, style=_style(run))
    if inside:
        text.append(marks[1])
    return text


def _style(run: Any) -> str:
    if run.control:
        return LEARNT_CONTROL if run.learnt else CONTROL
    return f"{LEARNT} underline" if run.learnt else READ


def _legend(marks: tuple[str, ...] | None) -> Any:
    from rich.text import Text

    if marks:
        return Text(f"{marks[0]}learnt{marks[1]}  only read  {marks[2]}control token{marks[3]}")
    return Text.assemble(
        ("learnt", f"{LEARNT} underline"),
        "  ",
        ("only read", READ),
        "  ",
        ("control token", CONTROL),
        "  ",
        ("control token, learnt", LEARNT_CONTROL),
    )


def _has_colours(console: Any) -> bool:
    return console.color_system is not None and not console.no_color


def _brackets(console: Any) -> tuple[str, ...]:
    return ("⟦", "⟧", "‹", "›") if supports_unicode(console) else ("[[", "]]", "{{", "}}")


def _in_words(lengths: Sequence[int]) -> str:
    """Return lengths in words: 12 to 512 tokens; half have at most 80, nine in ten at most 300."""
    ordered = sorted(lengths)
    if not ordered:
        return "none"
    if ordered[0] == ordered[-1]:
        return f"{len(ordered):,} of {ordered[0]:,} tokens"
    half, most = ordered[(len(ordered) - 1) // 2], ordered[(len(ordered) * 9 - 1) // 10]
    return f"{ordered[0]:,} to {ordered[-1]:,} tokens; half have at most {half:,}, nine in ten at most {most:,}"


def _share(share: float) -> str:
    return "all" if share == 1 else "none" if share == 0 else f"{share:.0%}" if share >= 0.01 else f"{share:.1%}"
