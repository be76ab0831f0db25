"""The numbers of a run as people read them: which ones, what they are called, how they are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llm_lab.estimate.formatting import count, size

from .console import one_line

SOURCES_SHOWN = 4
TELLING = ("exact_match", "accuracy", "eval_accuracy", "margin", "eval_margin", "token_accuracy")


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


# Metric: name in a line, name in the frame, how its number is written.
_METRICS: dict[str, tuple[str, str, Callable[[float], str]]] = {
    "loss": ("loss", "loss", "{:.3f}".format),
    "eval_loss": ("eval loss", "eval loss", "{:.3f}".format),
    "bits_per_byte": ("bpb", "bits/byte", "{:.3f}".format),
    "learning_rate": ("lr", "learning rate", "{:#.3g}".format),
    "grad_norm": ("grad", "gradient norm", "{:.2f}".format),
    "tokens_per_second": ("tok/s", "tokens/s", "{:,.0f}".format),
    "utilisation": ("utilisation", "utilisation", lambda share: f"{100 * share:.0f} %"),
    "memory_bytes": ("memory", "memory", size),
    "train_tokens": ("tokens", "tokens", count),
}
_UNSAID = ("step", "wall_seconds", "epoch", "time")


# Of stages that score answers: what matters first. The rest is in metrics.jsonl and the report.
_SCORED: dict[str, tuple[str, Callable[[float], str]]] = {
    "reward": ("reward", "{:.3f}".format),
    "reward_std": ("spread", "{:.3f}".format),
    "zero_spread_share": ("no spread", _percent),
    "kl": ("KL", "{:.3g}".format),
    "clip_fraction": ("clipped", _percent),
    "entropy": ("entropy", "{:.2f}".format),
    "completion_length": ("answer", "{:.0f} tokens".format),
    "cut_off_share": ("cut off", _percent),
    "exact_match": ("exact match", _percent),
    "exact_match_sampled": ("sampled", _percent),
    "eval_reward": ("held-out", "{:.3f}".format),
    "explained_variance": ("critic explains", _percent),
    "value_loss": ("value loss", "{:.3g}".format),
    "loss": ("loss", "{:.3f}".format),
    "learning_rate": ("lr", "{:#.3g}".format),
    "grad_norm": ("grad", "{:.2f}".format),
    "tokens_per_second": ("tok/s", "{:,.0f}".format),
    "memory_bytes": ("memory", size),
}


def utilisation(row: Mapping[str, Any], facts: Mapping[str, Any]) -> float | None:
    """Return the share of the device's peak that is used, or None where it is not known."""
    numbers = [row.get("tokens_per_second"), facts.get("flops_per_token"), facts.get("peak_flops")]
    return numbers[0] * numbers[1] / numbers[2] if all(numbers) else None


def numbers_of(row: Mapping[str, Any], facts: Mapping[str, Any], *, short: bool) -> Iterator[tuple[str, str]]:
    """Yield (name, number) for every metric in a row, the known ones first."""
    values = {**row, "utilisation": utilisation(row, facts)}
    for key, (name, long_name, write) in _METRICS.items():
        if short and key == "train_tokens":
            continue
        if isinstance(values.get(key), int | float):
            yield name if short else long_name, write(values[key])
    yield from mix_of(row) if short else ()
    rest = values if short else sorted(values, key=_rank)
    for key in rest:
        value = values[key]
        if key not in _METRICS and key not in _UNSAID and isinstance(value, int | float):
            yield one_line(key.replace("_", " ")), f"{value:.4g}"


def mix_of(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (name, numbers) of the sources' measured shares, and of how often each was read."""
    if isinstance(row.get("mix"), list):
        yield "mix", _of_each([f"{100 * share:.0f}" for share in row["mix"]]) + " %"
    if isinstance(row.get("epochs"), list):
        yield "epochs", _of_each(["<1" if times is None else f"{times:.2f}" for times in row["epochs"]])


def _of_each(numbers: list[str]) -> str:
    """Join the numbers of the data sources; of many, the first ones."""
    return "/".join(numbers if len(numbers) <= SOURCES_SHOWN else [*numbers[: SOURCES_SHOWN - 1], ".."])


def _rank(key: str) -> int:
    """Where there is no room for all, what says whether it got better stands first."""
    return TELLING.index(key) if key in TELLING else len(TELLING)


def scored_numbers_of(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (name, number) of what matters where answers are scored, and then the terms of the reward."""
    for key, (name, write) in _SCORED.items():
        if isinstance(row.get(key), int | float):
            yield name, write(row[key])
    for key, value in row.items():
        if key.startswith("reward/") and isinstance(value, int | float):
            yield one_line(key.removeprefix("reward/")), f"{value:.3f}"
