"""Find the final answer in a text: its number or its words. Nothing is computed."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

# A minus belongs to the number unless something comes directly before it, as in 10-5 or x-5.
_NUMBER = re.compile(
    r"(?<![\w.)])(?P<sign>[-+−]?)[$€£]?(?P<after>[-−]?)"
    r"(?P<number>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?:/(?P<denominator>[0-9]+)(?![0-9/]))?",
    re.ASCII,
)
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_LATEX_NOISE = re.compile(r"\\[,!;:$]|\\left|\\right|\\text\s*\{[^{}]*\}")
_ANSWER_IS = re.compile(r"\banswer\b\W*(?:is|:|=)", re.IGNORECASE)
_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
# Python needs quadratic time for very long numbers and refuses those with 4,300 digits.
_MAX_DIGITS = 300


def find_number(text: str) -> Fraction | None:
    r"""Return the final number of a text, or None.

    Searched in this order: the last `\boxed{}`; after the last `####`; in the last <answer> tag; after the last
    "answer is" or "answer:"; in the last line that has a number: after its last `=`, else the last one.

    >>> find_number("3 + 4 = 7 apples, so 7 * 2 = 14.\n#### 1,234")
    Fraction(1234, 1)
    >>> find_number("She pays $3.50.")
    Fraction(7, 2)
    """
    marked = _boxed(text)
    if marked is None and "####" in text:
        marked = text.rpartition("####")[2].strip().partition("\n")[0]
    if marked is None and (tags := _ANSWER_TAG.findall(text)):
        marked = tags[-1]
    if marked is not None:
        return _number_of_line(marked, first=True)
    said = list(_ANSWER_IS.finditer(text))
    if said:
        found = _number_of_line(text[said[-1].end() :].strip().partition("\n")[0], first=True)
        if found is not None:
            return found
    for line in reversed(text.splitlines()):
        found = _number_of_line(line, first=False)
        if found is not None:
            return found
    return None


def find_words(text: str) -> str:
    r"""Return the answer of a text in lower case, with single spaces and without surrounding punctuation.

    The answer is in the last `\boxed{}`, or after the last `####`, or in the last <answer> tag, or the whole text.

    >>> find_words("I think so. <answer> The  Nile. </answer>")
    'the nile'
    """
    marked = _boxed(text)
    if marked is None and "####" in text:
        marked = text.rpartition("####")[2]
    if marked is None and (tags := _ANSWER_TAG.findall(text)):
        marked = tags[-1]
    words = unicodedata.normalize("NFKC", text if marked is None else marked)
    return " ".join(words.casefold().split()).strip(" .,;:!?\"'`*")


def _boxed(text: str) -> str | None:
    """Return the content of the last \\boxed{}, including inner braces; None if there is none."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start += len("\\boxed{")
    depth = 1
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start:position]
    return None  # the text ends before the closing brace


def _number_of_line(line: str, *, first: bool) -> Fraction | None:
    """Return the number after the last `=` of a line; without a `=`, its first or last number."""
    line = _LATEX_FRACTION.sub(r" \1/\2 ", line.replace("{,}", ","))
    line = _LATEX_NOISE.sub("", line)
    if "=" in line:
        after = _numbers(line.rpartition("=")[2])
        if after:
            return after[0]
    numbers = _numbers(line)
    return (numbers[0] if first else numbers[-1]) if numbers else None


def _numbers(text: str) -> list[Fraction]:
    return [value for match in _NUMBER.finditer(text) if (value := _value(match)) is not None]


def _value(match: re.Match[str]) -> Fraction | None:
    digits, denominator = match["number"].replace(",", ""), match["denominator"] or "1"
    if len(digits) > _MAX_DIGITS or len(denominator) > _MAX_DIGITS or not int(denominator):
        return None
    negative = (match["sign"] or match["after"]) in ("-", "−")
    return (-1 if negative else 1) * Fraction(digits) / int(denominator)
