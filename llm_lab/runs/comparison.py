"""What several models made of the same prompts and texts, side by side; written as Markdown or JSON."""

from __future__ import annotations

import dataclasses
import difflib
import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_lab.errors import Problem, UserError

from .folder import write_atomically

# Measure -> its name in the table, and which value is the best one (None: none is).
MEASURES = {
    "parameters": ("parameters", None),
    "step_loss": ("training loss", None),
    "step_eval_loss": ("validation loss", None),
    "loss": ("loss", min),
    "bits_per_byte": ("bits per byte", min),
    "exact_match": ("exact match", max),
    "exact_match_sampled": ("exact match, sampled", max),
    "eval_reward": ("reward", max),
    "eval_reward_sampled": ("reward, sampled", max),
    "eval_completion_length": ("tokens an answer", None),
    "agreement": ("likeliest token as A's", None),
    "tokens_per_second": ("tokens/s", None),  # of a few answers: the machine says as much in it as the model
}
SHARES = ("exact_match", "exact_match_sampled", "agreement")
STOPS = {"end": "ended", "length": "cut at its length", "context": "cut: context full", "stopped": "stopped"}
# How a comparison begins on disk.
BEGINNINGS = {".md": "# Comparison\n", ".json": '{\n  "prompts": ['}
LIKE = 0.4  # two texts that share less than this are no versions of each other: all of it is marked
LONG = 400  # words: with more of them, a model that repeats itself would cost the matching seconds
# A word with the space after it; of scripts without spaces, a character.
_WORD = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]\s*|[^\s\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]+\s*|\s+")


@dataclass(frozen=True)
class Answer:
    """What a model answered, its length in tokens and why it stopped; or why there is no answer."""

    text: str
    tokens: int = 0
    stop: str = "end"
    problem: str | None = None

    def describe(self) -> str:
        """Return its length in words."""
        many = "1 token" if self.tokens == 1 else f"{self.tokens:,} tokens"
        return f"{many}, {len(self.text):,} characters, {STOPS[self.stop]}"


@dataclass(frozen=True)
class Compared:
    """One of the models: how it was asked, what it answered, what was measured of it."""

    name: str
    checkpoint: str
    mode: str  # chat or completion
    answers: tuple[Answer, ...]
    numbers: dict[str, float]  # measure, or "measure:text" of one text


@dataclass(frozen=True)
class Comparison:
    """The same prompts and texts, several models. over_time: they are the checkpoints of one run, in order."""

    prompts: tuple[str, ...]
    models: tuple[Compared, ...]
    drawn: str  # how answers were drawn, in words
    same_tokens: bool = True  # whether all read texts as the same tokens
    over_time: bool = False
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """A piece of an answer. kind: same, new (not in the other text), or gone (the other's words are left out here)."""

    text: str
    kind: str


def differences(first: str, other: str) -> list[Part]:
    """Return `other` in pieces: what it has in common with `first`, word by word, and what it has not."""
    one, two = _WORD.findall(first), _WORD.findall(other)
    left, right = [word.strip() for word in one], [word.strip() for word in two]
    same = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    parts = [Part("".join(two[:same]), "same")] if same else []
    rest = difflib.SequenceMatcher(None, left[same:], right[same:], autojunk=False)
    if len(left) + len(right) > 2 * LONG or (left[same:] and right[same:] and rest.ratio() < LIKE):
        return [*parts, Part("".join(two[same:]), "new")]
    for kind, _, _, start, end in rest.get_opcodes():
        text = "".join(two[same + start : same + end])
        parts.append(Part(text, {"equal": "same", "delete": "gone"}.get(kind, "new")))
    return parts


def verdict(first: Answer, other: Answer, name: str) -> str:
    """Return in words how an answer differs from that of the model `name`."""
    if first.problem or other.problem:
        return ""
    if first.text == other.text:
        return f"the same as {name}"
    one, two = first.text.split(), other.text.split()
    if one and other.text and not two:
        return f"white space only, unlike {name}"
    if one == two:
        return f"the words of {name}, spaced otherwise"
    word = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    if word == len(two):
        return f"as {name}, but ends after word {word}" if word else f"empty, unlike {name}"
    return f"differs from {name} from word {word + 1} on"


def reference_of(comparison: Comparison, number: int) -> int | None:
    """Return which model one is held against: the first, or over time the one before; None for the first."""
    return None if number == 0 else number - 1 if comparison.over_time else 0


def letters(comparison: Comparison) -> list[str]:
    """Return what the models are called where there is little room: A, B ...; over time their names."""
    if comparison.over_time:
        return [model.name for model in comparison.models]
    return [chr(ord("A") + i) if i < 26 else str(i + 1) for i in range(len(comparison.models))]


def measures_of(comparison: Comparison) -> list[str]:
    """Return what was measured of any of the models, in the order of MEASURES."""
    found = dict.fromkeys(key for model in comparison.models for key in model.numbers)
    rank = list(MEASURES)
    return sorted(found, key=lambda key: (rank.index(key.partition(":")[0]),))


def label_of(key: str) -> str:
    """Return a measure in words: "bits per byte, my-text.txt"."""
    name, _, text = key.partition(":")
    return MEASURES[name][0] + (f", {text}" if text else "")


def best_of(comparison: Comparison, key: str) -> set[int]:
    """Return the numbers of the models that are best in a measure: of several; none where none can be.

    Nats a token are no measure between models whose tokens differ; bits per byte are.
    """
    name = key.partition(":")[0]
    pick = MEASURES[name][1]
    values = {i: model.numbers[key] for i, model in enumerate(comparison.models) if key in model.numbers}
    if pick is None or len(set(values.values())) < 2 or (name == "loss" and not comparison.same_tokens):
        return set()
    best = pick(values.values())
    return {i for i, value in values.items() if value == best}


def written(key: str, value: float | None) -> str:
    """Return a measure's value for people."""
    name = key.partition(":")[0]
    if value is None:
        return "-"
    if name in SHARES:
        return f"{100 * value:.1f} %"
    if name == "parameters":
        return f"{value:,.0f}"
    return f"{value:,.1f}" if name in ("eval_completion_length", "tokens_per_second") else f"{value:.4f}"


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Write a comparison as its suffix says: .md or .json. UserError where it can't be."""
    require_place(path)
    text = as_json(comparison) if path.suffix == ".json" else as_markdown(comparison)
    try:
        write_atomically(path, text)
    except OSError as error:
        raise UserError(Problem(str(path), f"it can't be written: {error.strerror}")) from None


def require_place(path: Path) -> None:
    """UserError for a file that is neither Markdown nor JSON, and for one that holds something else already."""
    if path.suffix not in BEGINNINGS:
        raise UserError(
            Problem("--out", "how to write this is not clear", value=path, allowed="a name.md or name.json")
        )
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            begins = file.read(len(BEGINNINGS[path.suffix]))
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(Problem(str(path), f"it can't be written: {error.strerror}")) from None
    if begins != BEGINNINGS[path.suffix]:
        why = "there is something else in this file, so it is not replaced"
        raise UserError(Problem("--out", why, value=path, fix="Name another."))


def as_json(comparison: Comparison) -> str:
    """Return all of it as JSON."""
    return json.dumps(dataclasses.asdict(comparison), indent=2, ensure_ascii=False) + "\n"


def as_markdown(comparison: Comparison) -> str:
    """Return all of it as Markdown: answers as they are, what differs in bold."""
    names, models = letters(comparison), comparison.models
    lines = ["# Comparison", "", f"Answers: {comparison.drawn}.", ""]
    if not comparison.over_time:
        lines += [f"- **{letter}**: `{model.name}`, {model.mode}" for letter, model in zip(names, models, strict=True)]
        lines.append("")
    lines += [f"> {remark}\n" for remark in comparison.remarks]
    if measures := measures_of(comparison):
        lines += [_row(["", *names]), "|" + " --- |" * (len(models) + 1)]
        for key in measures:
            best = best_of(comparison, key)
            cells = [written(key, model.numbers.get(key)) for model in models]
            lines.append(_row([label_of(key), *(f"**{c}**" if i in best else c for i, c in enumerate(cells))]))
        lines.append("")
    for number, prompt in enumerate(comparison.prompts):
        lines += ["## Prompt", "", f"<pre>{html.escape(prompt) or '(none)'}</pre>", ""]
        for i, model in enumerate(models):
            answer, against = model.answers[number], reference_of(comparison, i)
            told = verdict(models[against].answers[number], answer, names[against]) if against is not None else ""
            told = f"{answer.describe()}{'; ' + told if told else ''}"
            head = f"**{names[i]}** ({'no answer' if answer.problem else told})"
            first = None if against is None else models[against].answers[number]
            lines += [head, "", f"<pre>{_marked(first, answer)}</pre>", ""]
    return "\n".join(lines)


def _marked(first: Answer | None, answer: Answer) -> str:
    if answer.problem:
        return html.escape(answer.problem)
    if first is None or first.problem:
        return html.escape(answer.text)
    parts = differences(first.text, answer.text)
    return "".join(f"<b>{html.escape(p.text)}</b>" if p.kind == "new" else html.escape(p.text) for p in parts)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
