"""The quantities of a run: one name, unit and explanation for each, used by every screen, report, card and chart.

The table is in glossary.yaml, which docs/glossary.md is also generated from. Keys appear in metrics.jsonl, in the
results in run.json and in evaluations; screens show names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from llm_lab.estimate.formatting import clock, count, decimal, percent, significant, size

_FORMATS: Mapping[str, Callable[[float], str]] = {
    "decimal": decimal,
    "percent": percent,
    "count": count,
    "size": size,
    "clock": clock,
    "milliseconds": lambda seconds: f"{1000 * seconds:,.1f} ms",
    "significant": significant,
    "compact": lambda number: f"{number:,.2f}" if number < 1e6 else f"{number:.3g}",
}


@dataclass(frozen=True)
class Quantity:
    """One measured number.

    healthy: what to expect of it; empty if any value is fine. form: the format of its values, a Python format or a name
    in _FORMATS. more_is_better: None if neither direction is better.
    """

    name: str
    meaning: str
    healthy: str = ""
    unit: str = ""
    form: str = "decimal"
    more_is_better: bool | None = None

    def write(self, value: float) -> str:
        """Return the display text of a value; one that rounds to 0 has no sign."""
        text = _FORMATS.get(self.form, self.form.format)(value)
        return text.lstrip("-") if not any(digit in text for digit in "123456789ni") else text


def _read_glossary() -> dict[str, dict[str, Quantity]]:
    """Return {section: {key: quantity}}."""
    text = Path(__file__).with_name("glossary.yaml").read_text(encoding="utf-8")
    sections = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {
        title: {key: Quantity(form=entry.pop("write", "decimal"), **entry) for key, entry in entries.items()}
        for title, entries in sections.items()
    }


GLOSSARY: Mapping[str, Mapping[str, Quantity]] = _read_glossary()
QUANTITIES = {key: quantity for section in GLOSSARY.values() for key, quantity in section.items()}
ORDER = {key: number for number, key in enumerate(QUANTITIES)}
# Only computed or explained: no file has these keys.
WITHOUT_KEY = frozenset({"mfu", "time_left", "advantage", "ratio", "text_loss"})
# Quantities that depend on the machine and the day, and say nothing about the model.
OF_THE_MACHINE = frozenset({"wall_seconds", "tokens_per_second", "memory_bytes"})


def quantity(key: str) -> Quantity:
    """Return the quantity of a key; for a key that is not in the glossary, the key is the name.

    A part after a slash or colon says what it belongs to: eval_loss/my.txt, loss:my.txt, reward/length,
    tasks/arc_easy/acc.
    """
    if key in QUANTITIES:
        return QUANTITIES[key]
    base, _, of = key.partition("/")
    if base == "reward":
        return replace(
            QUANTITIES["reward"], name=f"reward: {of}", meaning=f"Mean of the reward term {of}, before its weight."
        )
    if base == "tasks":
        return replace(QUANTITIES["tasks"], name=of.replace("/", " "))
    if base in QUANTITIES:
        return replace(QUANTITIES[base], name=f"{QUANTITIES[base].name}, {of}")
    return Quantity(key.replace("_", " "), "")


def name_of(key: str) -> str:
    """Return the display name of a quantity."""
    return quantity(key).name


def write(key: str, value: float | None) -> str:
    """Return the display text of a quantity's value; "-" if there is none."""
    return "-" if value is None else quantity(key).write(value)


def rank(key: str) -> int:
    """Return the position of a key in the glossary; unknown keys come last."""
    return ORDER.get(key, ORDER.get(key.partition("/")[0], len(ORDER)))


def glossary_page() -> str:
    """Return docs/glossary.md."""
    lines = [
        "# Glossary",
        "",
        "The numbers that training, evaluation and comparison show, with the keys they have in `metrics.jsonl`,",
        "`run.json` and `evaluations.jsonl`.",
        "",
        "While a run is shown in a terminal, `?` explains the numbers on the screen and says whether each looks",
        "healthy, from its own recent values; `!` marks a number that needs attention. `c` shows the next curve, `s`",
        "the samples, `l` the log, and Ctrl-C saves a checkpoint and stops. Each problem is reported once, with",
        "advice: spikes of the gradient, overfitting, a loss that no longer falls, groups of outputs with equal",
        "rewards, an entropy below a tenth of its first value, truncated outputs, a large KL divergence.",
        "",
        "The column *key* is empty for numbers that have no key of their own in a file. The column *healthy* says what",
        "to expect.",
        "",
        "With `--plain` (or `LLM_LAB_PLAIN=1`, or `TERM=dumb`) all screens are plain lines, for screen readers.",
    ]
    for title, entries in GLOSSARY.items():
        lines += [
            "",
            f"## {title}",
            "",
            "| name | key | unit | what it is | healthy |",
            "| --- | --- | --- | --- | --- |",
        ]
        for key, entry in entries.items():
            shown = "" if key in WITHOUT_KEY else f"`{key}`"
            lines.append(f"| {entry.name} | {shown} | {entry.unit} | {entry.meaning} | {_sentence(entry.healthy)} |")
    return "\n".join(lines) + "\n"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
