"""The same questions for terminals that can only print lines: a number or a text, b for back, ? for why."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .prompts import Back, Option

BACK, WHY, EMPTY = "b", "?", "none"


def choose_plainly(message: str, options: Sequence[Option], wanted: Option, why: str) -> Option:
    """Ask for the number of one option. Raises Back."""
    print(message)
    for number, option in enumerate(options, 1):
        print(f"  {number:>2}  {option.title}" + (f"  (not now: {option.why_not})" if option.why_not else ""))
    default = options.index(wanted) + 1
    while True:
        text = input(f"Number [{default}], {BACK}: back, {WHY}: why > ").strip() or str(default)
        if text == BACK:
            raise Back
        if text == WHY:
            print(why)
        elif not text.isdigit() or not 1 <= int(text) <= len(options):
            print(f"A number from 1 to {len(options)}, please.")
        elif (option := options[int(text) - 1]).why_not:
            print(f"Not now: {option.why_not}.")
        else:
            return option


def type_plainly(message: str, default: str, why: str, about: str, validate: Callable[[str], str | None]) -> str:
    """Ask for a text; Enter alone takes the default, `none` is the empty text. Raises Back."""
    if about:
        print(about)
    while True:
        text = input(f"{message} [{default}], {BACK}: back, {WHY}: why > ").strip()
        if text == BACK:
            raise Back
        if text == WHY:
            print(why)
            continue
        text = "" if text == EMPTY else text or default
        wrong = validate(text)
        if wrong is None:
            return text
        print(wrong)
