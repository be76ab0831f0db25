"""Whether the numbers of a run look healthy: a rule for each, based on its own recent values.

The glossary describes what to expect of a quantity; these rules check whether that is now the case.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from .glossary import quantity, write

Points = Sequence[tuple[float, float]]  # (step, value), in order
History = Mapping[str, Points]  # by the keys of metrics.jsonl

RECENT = 50  # log rows from which a trend is computed
LONG, LEAST_FALL = 100, 5e-3  # log rows, and a share: a loss that falls by less in these rows is level
FEW = 5  # log rows whose mean is compared with a limit
LEAST_CHANGE = 2e-3  # relative change over the recent rows; a smaller one is level
SPIKE = 5.0  # times the median of the gradient norm
MOST_SPIKES = 2  # among the recent rows; Chowdhery et al. 2022 (section 5.1) report single ones in healthy runs
OVERFIT = 1.01  # times the lowest validation loss
SLOW = 0.7  # times the usual speed
# Reinforcement learning; the sources are next to the warnings in training/seat_belts.py.
ENTROPY_LEFT = 0.1  # share of the first entropy
MOST_CUT_OFF = 0.5
MOST_KL = 50.0  # nats per output
ALL_ALIKE, MOST_ALIKE = 1.0, 0.9  # shares of groups without signal: in every step, and on average
MOST_CLIPPED = 0.2


@dataclass(frozen=True)
class Health:
    """What the recent values of a number show. is_good: None if there is no evidence either way."""

    is_good: bool | None
    words: str


EARLY = Health(None, "too early to say")
MAX_POINTS = 2_000  # for each number; older ones are thinned out
AXES = {"step", "wall_seconds", "time"}


def add_row(history: dict[str, list[tuple[float, float]]], row: Mapping[str, Any]) -> None:
    """Add the numbers of a row of metrics.jsonl to a history."""
    for key, value in row.items():
        if key not in AXES and isinstance(value, int | float):
            points = history.setdefault(key, [])
            points.append((float(row.get("step", 0)), float(value)))
            if len(points) > MAX_POINTS:
                del points[1 : MAX_POINTS // 2 : 2]


def health_of(key: str, history: History) -> Health | None:
    """Return how a number looks; None if any value is fine."""
    values = _recent(history, key)
    if not values:
        return None
    if not math.isfinite(values[-1]):
        return Health(False, "not a number: training can't continue from here; use a smaller learning rate")
    values = [value for value in values if math.isfinite(value)]
    if key in RULES:
        return RULES[key](history, values)
    known = quantity(key)
    return None if known.more_is_better is None else _by_trend(values, more_is_better=known.more_is_better)


def _recent(history: History, key: str, most: int = RECENT) -> list[float]:
    return [value for _, value in history.get(key, ())[-most:]]


def trend(values: Sequence[float]) -> int | None:
    """Return 1 if values rise, -1 if they fall, 0 if neither is visible; None for fewer than 3 values.

    The change along the least-squares line must be three times its standard error, and not tiny.
    """
    if len(values) < 3:
        return None
    change, error = _change(values)
    if abs(change) < max(3 * error, LEAST_CHANGE * abs(sum(values) / len(values))) or not change:
        return 0
    return 1 if change > 0 else -1


def _change(values: Sequence[float]) -> tuple[float, float]:
    """Return the change from the first to the last value along the least-squares line, and its standard error."""
    count = len(values)
    middle, mean = (count - 1) / 2, sum(values) / count
    spread = sum((at - middle) ** 2 for at in range(count))
    slope = sum((at - middle) * (value - mean) for at, value in enumerate(values)) / spread
    errors = sum((value - mean - slope * (at - middle)) ** 2 for at, value in enumerate(values))
    return slope * (count - 1), math.sqrt(errors / (count - 2) / spread) * (count - 1)


def _by_trend(values: Sequence[float], *, more_is_better: bool) -> Health:
    direction = trend(values)
    if direction is None:
        return EARLY
    if direction == 0:
        return Health(None, "level" if len(values) >= RECENT else "no clear trend yet")
    return Health((direction > 0) == more_is_better, "rising" if direction > 0 else "falling")


def _loss(history: History, values: list[float]) -> Health:
    if "reward" in history:
        return Health(None, "says little in GRPO and PPO: watch the reward")
    found = _by_trend(values, more_is_better=False)
    if found.is_good is False:
        return Health(False, "rising: the learning rate may be too high")
    if is_level(history):
        return Health(None, f"level over the last {LONG} log lines")
    return found


def is_level(history: History) -> bool:
    """Whether the training loss no longer falls."""
    values = _recent(history, "loss", LONG)
    return len(values) == LONG and _change(values)[0] > -LEAST_FALL * abs(sum(values) / LONG)


def _held_out_loss(history: History, values: list[float]) -> Health:
    lowest = min(values)
    since = values[values.index(lowest) + 1 :]
    if len(since) >= 2 and values[-1] > OVERFIT * lowest and min(since) > lowest:
        return Health(False, "rising again: overfitting if the training loss still falls")
    return _by_trend(values[-FEW:], more_is_better=False)


def _gradient(history: History, values: list[float]) -> Health:
    if len(values) < 2 * FEW:
        return EARLY
    usual = median(values)
    spikes = sum(value > SPIKE * usual for value in values)
    if spikes > MOST_SPIKES:
        return Health(False, f"{spikes} spikes of more than {SPIKE:g} times the usual in {len(values)} log lines")
    if values[-1] > SPIKE * usual:
        return Health(None, "a spike; single ones are harmless")
    direction = trend(values)
    if direction == 1 and median(values[-FEW:]) > SPIKE * median(values[:FEW]):
        return Health(False, f"growing: more than {SPIKE:g} times as large as {len(values)} log lines ago")
    return Health(True, {1: "rising slowly", -1: "falling"}.get(direction or 0, "steady"))


def _rate(history: History, values: list[float]) -> Health:
    direction = trend(values[-FEW:])
    return EARLY if direction is None else Health(None, {1: "warming up", -1: "decaying"}.get(direction, "constant"))


def _speed(history: History, values: list[float]) -> Health:
    if len(values) < 2 * FEW:
        return EARLY
    if median(values[-FEW:]) < SLOW * median(values):
        return Health(False, "slower than before: another program may be using this machine")
    return Health(True, "steady")


def _within(low: float, high: float, less: str, more: str, fine: str) -> Callable[[History, list[float]], Health]:
    """Return the rule that the mean of the last few values must be between low and high."""

    def rule(history: History, values: list[float]) -> Health:
        mean = sum(values[-FEW:]) / len(values[-FEW:])
        return Health(low <= mean <= high, less if mean < low else more if mean > high else fine)

    return rule


def _entropy(history: History, values: list[float]) -> Health:
    if "reward" not in history:
        return _by_trend(values, more_is_better=False)
    first = next(value for _, value in history["entropy"])
    if len(values) < 3:
        return EARLY
    if max(values[-3:]) < ENTROPY_LEFT * first:
        return Health(False, "almost gone: the outputs for a prompt are nearly the same")
    if values[-1] < 0.5 * first:
        return Health(None, f"less than half of its first value ({write('entropy', first)})")
    return Health(True, "far from 0")


def _kl(history: History, values: list[float]) -> Health:
    lengths = _recent(history, "completion_length")
    if len(values) >= 3 and lengths and min(values[-3:]) * lengths[-1] > MOST_KL:
        return Health(False, f"above {MOST_KL:g} nats per output (KL × output length): far from the reference model")
    if len(values) > 2 * FEW and values[-1] > SPIKE * median(values) and values[-1] > 0.05:
        return Health(False, "a jump: the last updates were too large")
    return Health(True, "near the reference model" if values[-1] < 0.05 else "grows slowly")


def _length(history: History, values: list[float]) -> Health:
    if len(values) < 2 * FEW:
        return EARLY
    first, last = median(values[:FEW]), median(values[-FEW:])
    if trend(values) == 1 and last > 1.5 * first:
        return Health(
            False, f"{last / first:.1f} times as long as {len(values)} log lines ago: does the reward favor it?"
        )
    return Health(True, "stable" if abs(last - first) < 0.2 * first else "changing slowly")


def _explained(history: History, values: list[float]) -> Health:
    if len(values) < 2 * FEW:
        return EARLY
    mean = sum(values[-FEW:]) / FEW
    return Health(
        mean > 0, "the critic is better than a constant" if mean > 0 else "the critic is worse than a constant"
    )


def _chosen(history: History, values: list[float]) -> Health:
    first = next(value for _, value in history["logps_chosen"])
    if trend(values) == -1 and values[-1] < first - 0.2 * abs(first):
        return Health(False, "falling steeply: the model unlearns good answers")
    return Health(True, "near its first value") if len(values) >= 3 else EARLY


def _accuracy(history: History, values: list[float]) -> Health:
    if len(values) < FEW:
        return EARLY
    mean = sum(values[-FEW:]) / FEW
    return Health(mean > 0.5, "better than chance" if mean > 0.5 else "no better than chance (50 %)")


RULES: Mapping[str, Callable[[History, list[float]], Health]] = {
    "loss": _loss,
    "eval_loss": _held_out_loss,
    "bits_per_byte": _held_out_loss,
    "grad_norm": _gradient,
    "critic_grad_norm": _gradient,
    "learning_rate": _rate,
    "tokens_per_second": _speed,
    "unclipped_share": _within(0.1, 0.5, "low: raise optimizer.rho", "high: lower optimizer.rho", "in the usual range"),
    "entropy": _entropy,
    "accuracy": _accuracy,
    "eval_accuracy": _accuracy,
    "logps_chosen": _chosen,
    "reward_std": _within(1e-6, math.inf, "0: there is nothing to learn from", "", "above 0"),
    "zero_spread_share": _within(0.0, MOST_ALIKE, "", "almost no group has a signal", "enough groups have a signal"),
    "kl": _kl,
    "clip_fraction": _within(0.0, MOST_CLIPPED, "", "high: the steps are too large", "in the usual range"),
    "completion_length": _length,
    "cut_off_share": _within(0.0, MOST_CUT_OFF, "", "most outputs are truncated", "in the usual range"),
    "explained_variance": _explained,
}


def concerns(history: History, share_done: float) -> Iterator[tuple[str, str]]:
    """Yield (lead, advice) of what deserves a warning in any run. share_done: the share of finished steps, 0 to 1.

    Problems that occur only with rewards, such as a collapse of the entropy, are in training/seat_belts.py.
    """
    gradient = health_of("grad_norm", history)
    if gradient and gradient.is_good is False:
        advice = "Use a smaller learning rate or a longer scheduler.warmup_steps, and look at the data of these steps."
        yield "The gradient norm spikes", f"{gradient.words}. {advice}"
    held_out, losses = history.get("eval_loss", ()), _recent(history, "loss")
    found = health_of("eval_loss", history)
    if found and found.is_good is False and "reward" not in history and trend(losses) == -1:
        step, lowest = min(held_out, key=lambda point: point[1])
        yield (
            "The validation loss rises while the training loss falls",
            f"this is overfitting. It was lowest at step {step:,.0f} ({write('eval_loss', lowest)}). Stop here and use "
            "that checkpoint, or train with more data, fewer epochs or more regularization.",
        )
    if is_level(history) and share_done < 0.8 and "reward" not in history:
        yield (
            "The training loss no longer falls",
            f"it is level over the last {LONG} log lines. Try another learning rate or a larger model, or stop here.",
        )
    alike = _recent(history, "zero_spread_share", FEW)
    if len(alike) == FEW and sum(alike) / FEW > MOST_ALIKE and min(alike) < ALL_ALIKE:
        yield (
            "Almost no group has a signal",
            f"in {100 * sum(alike) / FEW:.0f} % of the groups all outputs get the same reward. Use easier or harder "
            "prompts, a finer reward, a higher temperature or more outputs per prompt.",
        )
