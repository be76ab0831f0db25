"""Several models on the same prompts and texts, side by side; written as Markdown or JSON."""

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

from .disk import write_atomically
from .glossary import name_of, quantity, write

# {measure: its key in the glossary}, in the order in which they are shown.
MEASURES = {
    "parameters": "parameters",
    "step_loss": "loss",
    "step_eval_loss": "eval_loss",
    "loss": "text_loss",
    **{key: key for key in ("bits_per_byte", "exact_match", "exact_match_sampled", "eval_reward")},
    **{key: key for key in ("eval_reward_sampled", "eval_completion_length", "agreement", "tokens_per_second")},
}
# Recorded by each run on its own data, so the values can't be ranked.
NOT_COMPARED = ("step_loss", "step_eval_loss")
STOPS = {
    "end": "end of turn",
    "length": "stopped at max_new_tokens",
    "context": "stopped: context full",
    "stopped": "stopped",
}
# The beginning of a comparison file.
FILE_STARTS = {".md": "# Comparison\n", ".json": '{\n  "prompts": ['}
SIMILAR = 0.4  # texts that share less are not matched word by word; all of the second is marked
LONG = 400  # words; matching longer texts takes seconds if a model repeats itself
# A word and the space after it; in scripts without spaces, a single character.
_WORD = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]\s*|[^\s\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]+\s*|\s+")


@dataclass(frozen=True)
class Answer:
    """A model's answer, its length in tokens and why it stopped ("": not known); or the problem that left none."""

    text: str
    tokens: int = 0
    stop: str = "end"
    problem: str | None = None

    def describe(self) -> str:
        """Return the length of the answer, and why it stopped."""
        many = "1 token" if self.tokens == 1 else f"{self.tokens:,} tokens"
        return ", ".join(filter(None, (many, f"{len(self.text):,} characters", STOPS.get(self.stop))))


@dataclass(frozen=True)
class Compared:
    """One of the models: its mode (chat or completion), its answers and its measures.

    numbers: values by measure, or by "measure:text" for one text.
    """

    name: str
    checkpoint: str
    mode: str
    answers: tuple[Answer, ...]
    numbers: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """Several models on the same prompts and texts.

    drawn: a description of how the answers were decoded. same_tokens: whether all models tokenize texts in the same
    way. over_time: whether the models are the checkpoints of one run, in order.
    """

    prompts: tuple[str, ...]
    models: tuple[Compared, ...]
    drawn: str
    same_tokens: bool = True
    over_time: bool = False
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """A piece of an answer. kind: same, new (not in the other text) or gone (missing from this text)."""

    text: str
    kind: str


def differences(first: str, other: str) -> list[Part]:
    """Return `other` in pieces: the words that it shares with `first`, and the others."""
    one, two = _WORD.findall(first), _WORD.findall(other)
    left, right = [word.strip() for word in one], [word.strip() for word in two]
    same = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    parts = [Part("".join(two[:same]), "same")] if same else []
    rest = difflib.SequenceMatcher(None, left[same:], right[same:], autojunk=False)
    if len(left) + len(right) > 2 * LONG or (left[same:] and right[same:] and rest.ratio() < SIMILAR):
        return [*parts, Part("".join(two[same:]), "new")]
    for kind, _, _, start, end in rest.get_opcodes():
        text = "".join(two[same + start : same + end])
        parts.append(Part(text, {"equal": "same", "delete": "gone"}.get(kind, "new")))
    return parts


def verdict(first: Answer, other: Answer, name: str) -> str:
    """Return a description of how an answer differs from that of the model `name`."""
    if first.problem or other.problem:
        return ""
    if first.text == other.text:
        return f"same as {name}"
    one, two = first.text.split(), other.text.split()
    if one and other.text and not two:
        return f"only whitespace, unlike {name}"
    if one == two:
        return f"same words as {name}, different whitespace"
    word = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    if word == len(two):
        return f"same as {name}, but ends after word {word}" if word else f"empty, unlike {name}"
    return f"differs from {name} starting at word {word + 1}"


def reference_of(comparison: Comparison, number: int) -> int | None:
    """Return which model a model is compared with: the first, or over time the previous one; None for the first."""
    return None if number == 0 else number - 1 if comparison.over_time else 0


def letters(comparison: Comparison) -> list[str]:
    """Return short names of the models: A, B ...; over time their full names."""
    if comparison.over_time:
        return [model.name for model in comparison.models]
    return [chr(ord("A") + i) if i < 26 else str(i + 1) for i in range(len(comparison.models))]


def measures_of(comparison: Comparison) -> list[str]:
    """Return the measures of any of the models, in the order of MEASURES."""
    found = dict.fromkeys(key for model in comparison.models for key in model.numbers)
    rank = list(MEASURES)
    return sorted(found, key=lambda key: rank.index(key.partition(":")[0]))


def label_of(key: str) -> str:
    """Return the name of a measure: "bits per byte, my-text.txt"."""
    name, _, text = key.partition(":")
    return name_of(MEASURES[name]) + (f", {text}" if text else "")


def best_of(comparison: Comparison, key: str) -> set[int]:
    """Return the indices of the models that are best in a measure; empty if no value is better than another.

    The loss per token can't be compared between models with different tokens; bits per byte can.
    """
    name = key.partition(":")[0]
    more_is_better = None if name in NOT_COMPARED else quantity(MEASURES[name]).more_is_better
    values = {i: model.numbers[key] for i, model in enumerate(comparison.models) if key in model.numbers}
    if more_is_better is None or len(set(values.values())) < 2 or (name == "loss" and not comparison.same_tokens):
        return set()
    best = (max if more_is_better else min)(values.values())
    return {i for i, value in values.items() if value == best}


def format_measure(key: str, value: float | None) -> str:
    """Return the display text of a measure's value."""
    return write(MEASURES[key.partition(":")[0]], value)


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Write a comparison as .md or .json, depending on the suffix. UserError if it can't be written."""
    require_writable(path)
    text = as_json(comparison) if path.suffix == ".json" else as_markdown(comparison)
    try:
        write_atomically(path, text)
    except OSError as error:
        raise UserError(Problem(str(path), f"can't be written: {error.strerror}")) from None


def require_writable(path: Path) -> None:
    """Raise UserError unless the file can be written: a .md or .json that is new or an earlier comparison."""
    if path.suffix not in FILE_STARTS:
        raise UserError(
            Problem("--out", "the format is not clear from the file name", value=path, allowed="a name.md or name.json")
        )
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            start = file.read(len(FILE_STARTS[path.suffix]))
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(Problem(str(path), f"can't be written: {error.strerror}")) from None
    if start != FILE_STARTS[path.suffix]:
        why = "the file exists and is not a comparison, so it is not overwritten"
        raise UserError(Problem("--out", why, value=path, fix="Choose another name."))


def as_json(comparison: Comparison) -> str:
    """Return the whole comparison as JSON."""
    return json.dumps(dataclasses.asdict(comparison), indent=2, ensure_ascii=False) + "\n"


def as_markdown(comparison: Comparison) -> str:
    """Return the whole comparison as Markdown: answers unchanged, differences in bold."""
    names, models = letters(comparison), comparison.models
    lines = ["# Comparison", "", f"Outputs: {comparison.drawn}.", ""]
    if not comparison.over_time:
        lines += [f"- **{letter}**: `{model.name}`, {model.mode}" for letter, model in zip(names, models, strict=True)]
        lines.append("")
    lines += [f"> {remark}\n" for remark in comparison.remarks]
    if measures := measures_of(comparison):
        lines += [_row(["", *names]), "|" + " --- |" * (len(models) + 1)]
        for key in measures:
            best = best_of(comparison, key)
            cells = [format_measure(key, model.numbers.get(key)) for model in models]
            lines.append(_row([label_of(key), *(f"**{c}**" if i in best else c for i, c in enumerate(cells))]))
        lines.append("")
    for number, prompt in enumerate(comparison.prompts):
        lines += ["## Prompt", "", f"<pre>{html.escape(prompt) or '(none)'}</pre>", ""]
        for i, model in enumerate(models):
            answer, against = model.answers[number], reference_of(comparison, i)
            first = None if against is None else models[against].answers[number]
            difference = verdict(first, answer, names[against or 0]) if first is not None else ""
            details = f"{answer.describe()}{'; ' + difference if difference else ''}"
            head = f"**{names[i]}** ({'no output' if answer.problem else details})"
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
