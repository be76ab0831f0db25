"""The data X-ray on the screen: trained, masked and special tokens by color, or in brackets if there are no colors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .console import has_colors, make_console, one_line, printable, supports_unicode

TRAINED, SPECIAL, TRAINED_SPECIAL, MASKED = "bold green", "magenta", "bold green reverse", "dim"
_SHOWN_RENDERED = 1_500


def print_xray(stages: Sequence[Any], console: Any = None) -> None:
    """Print the data of the stages of a recipe, as xray_stages returns it."""
    from rich.text import Text

    console = console or make_console()
    if not stages:
        console.print("No stage of this recipe reads data.")
    marks = None if has_colors(console) else _brackets(console)
    for stage in stages:
        console.print(Text(f"{stage.name} ({stage.stage})", style="title"))
        console.print(Text(f"{one_line(stage.template)}; sequences of at most {stage.max_length:,} tokens"))
        for found in stage.sets:
            console.print()
            _print_set(console, found, marks)
        console.print()
    if stages:
        shown = [example for stage in stages for found in stage.sets for example in found.examples]
        console.print(_legend(marks, by_token=bool(shown) and all(example.by_token for example in shown)))


def _print_set(console: Any, found: Any, marks: tuple[str, ...] | None) -> None:
    from rich.text import Text

    console.print(Text.assemble((found.key, "help"), ": ", one_line(found.description)))
    console.print(Text(one_line(found.split)))
    if found.total is not None and found.measured < found.total:
        console.print(Text(f"measured on the first {found.measured:,}", style="dim"))
    for label, lengths in found.lengths.items():
        console.print(Text(f"{label}: {_in_words(lengths)}"))
    if found.trained_share is not None:
        console.print(Text(f"loss on {_share(found.trained_share)} of the tokens"))
    for text in found.checks:
        console.print(Text(one_line(text), style="good"))
    for text in found.warnings:
        console.print(Text(one_line(text), style="warn"))
    if found.rendered is not None:
        console.print(Text("The first example in its chat template:", style="help"))
        text = found.rendered
        more = f" ... ({len(text) - _SHOWN_RENDERED:,} characters more)" if len(text) > _SHOWN_RENDERED else ""
        console.print(Text(printable(text[:_SHOWN_RENDERED]).rstrip("\n") + more))
    for example in found.examples:
        console.print()
        cut = f", {example.cut:,} more cut off" if example.cut else ""
        trained = "" if found.trained_share is None else f", {example.trained_tokens:,} trained"
        text = f"{example.label}: {example.tokens:,} tokens{trained}{cut}"
        console.print(Text(text, style="help"))
        console.print((_apart if example.by_token else _tokens)(example.spans, marks))
        if example.reference is not None:
            console.print(Text(f"reference answer: {one_line(example.reference)}", style="help"))


def _tokens(spans: Sequence[Any], marks: tuple[str, ...] | None) -> Any:
    from rich.text import Text

    text = Text()
    inside = False
    for span in spans:
        if marks and span.trained != inside:
            text.append(marks[0] if span.trained else marks[1])
            inside = span.trained
        shown = printable(span.text)
        if marks:
            text.append(f"{marks[2]}{shown}{marks[3]}" if span.special else shown)
        else:
            # Line ends have no color of their own.
            shown = shown.replace("\n", "⏎\n") if span.trained else shown
            text.append(shown, style=_style(span))
    if marks and inside:
        text.append(marks[1])
    return text


def _apart(spans: Sequence[Any], marks: tuple[str, ...] | None) -> Any:
    """Return tokens with their boundaries visible: every second one is underlined, or lines separate them."""
    from rich.text import Text

    text = Text()
    for number, span in enumerate(spans):
        shown = printable(span.text)
        if marks:
            text.append(f"{marks[4] if number else ''}{marks[2]}{shown}{marks[3]}" if span.special else
                        f"{marks[4] if number else ''}{shown}")  # fmt: skip
        elif span.special:
            text.append(shown, style=TRAINED_SPECIAL)
        else:
            text.append(shown, style=f"{TRAINED} underline" if number % 2 else TRAINED)
    return text


def _style(span: Any) -> str:
    if span.special:
        return TRAINED_SPECIAL if span.trained else SPECIAL
    return f"{TRAINED} underline" if span.trained else MASKED


def _legend(marks: tuple[str, ...] | None, *, by_token: bool) -> Any:
    from rich.text import Text

    if by_token and marks:
        return Text(f"{marks[4]} between tokens; all are trained  {marks[2]}special token{marks[3]}")
    if by_token:
        return Text.assemble(
            ("one token", TRAINED),
            ("the next", f"{TRAINED} underline"),
            "; all are trained  ",
            ("special token", TRAINED_SPECIAL),
        )
    if marks:
        return Text(f"{marks[0]}trained{marks[1]}  masked  {marks[2]}special token{marks[3]}")
    return Text.assemble(
        ("trained", f"{TRAINED} underline"),
        "  ",
        ("masked", MASKED),
        "  ",
        ("special token", SPECIAL),
        "  ",
        ("special token, trained", TRAINED_SPECIAL),
    )


def _brackets(console: Any) -> tuple[str, ...]:
    return ("⟦", "⟧", "‹", "›", "│") if supports_unicode(console) else ("[[", "]]", "{{", "}}", "|")


def _in_words(lengths: Sequence[int]) -> str:
    """Describe lengths in words: 12 to 512 tokens, median 80, 90th percentile 300."""
    ordered = sorted(lengths)
    if not ordered:
        return "none"
    if ordered[0] == ordered[-1]:
        return f"{len(ordered):,} of {ordered[0]:,} tokens"
    half, most = ordered[(len(ordered) - 1) // 2], ordered[(len(ordered) * 9 - 1) // 10]
    return f"{ordered[0]:,} to {ordered[-1]:,} tokens, median {half:,}, 90th percentile {most:,}"


def _share(share: float) -> str:
    if share in (0, 1):
        return "100 %" if share else "0 %"
    return f"{100 * share:.0f} %" if share >= 0.01 else f"{100 * share:.1f} %"
