"""What is known about a run while it works: its numbers, its curves and its log, for every kind of display."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_lab.estimate.formatting import clock, count, whole_percents
from llm_lab.runs.charts import Panel, panels_for
from llm_lab.runs.glossary import name_of, rank, write
from llm_lab.runs.health import AXES, Health, add_row, health_of

from .console import one_line

SPEED_WINDOW = 20  # log rows from which the time left is estimated
SOURCES_SHOWN = 4
LOG_LINES = 1_000
EMPTY = "(empty: the model ended the text at once)"
BLANK = "(only spaces and line breaks)"
# Keys that are not measurements, or that the frame shows elsewhere.
NOT_SHOWN = {*AXES, "epoch", "mix", "epochs"}
MEASURED = ("eval_", "exact_match")  # prefixes of the keys that are measured at evaluations only
# Numbers that the frame does not show; they are in metrics.jsonl, the log lines and the report.
DETAILS = {"policy_loss", "critic_grad_norm", "reward_chosen", "reward_rejected", "logps_rejected"}
# Scores that are shown first in a stage that is trained on rewards.
REWARDED = (
    *("reward", "reward_std", "zero_spread_share", "kl", "clip_fraction", "entropy", "completion_length"),
    *("cut_off_share", "exact_match", "exact_match_sampled", "eval_reward", "eval_reward_sampled"),
    *("explained_variance", "value_loss"),
)


@dataclass
class Track:
    """What is known about a run so far.

    history: the points of every number, including those before a resume. samples: what the model wrote at the last
    evaluation, as (step, prompt, text). curve: which of the panels is drawn, counted from the first.
    """

    now: Callable[[], float] = time.monotonic
    begun: bool = False
    ended: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    max_steps: int = 0
    step: int = 0
    latest: dict[str, Any] = field(default_factory=dict)
    history: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    samples: list[tuple[int, str, str]] = field(default_factory=list)
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=LOG_LINES))
    warning: str = ""
    saved_step: int | None = None
    evaluated_step: int | None = None
    progress: tuple[str, int, int] | None = None
    curve: int = 0
    _marks: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=SPEED_WINDOW))
    _includes_start: bool = True
    _clock_zero: float = 0.0

    @property
    def heading(self) -> str:
        """The run in one line."""
        return one_line(" · ".join(self.headings))

    @property
    def headings(self) -> list[str]:
        """The parts of the heading, the most important first."""
        facts = self.facts
        parameters = facts.get("parameters")
        words = [
            facts.get("name") or "run",
            facts.get("model"),
            f"{count(parameters)} parameters" if parameters else None,
            facts.get("device"),
        ]
        return [one_line(str(word)) for word in words if word]

    def begin(
        self,
        max_steps: int,
        first_step: int,
        facts: Mapping[str, Any],
        earlier: Sequence[Mapping[str, Any]] = (),
        samples: Sequence[tuple[int, str, str]] = (),
    ) -> None:
        """Start, or resume after first_step. earlier, samples: from before, as in TrainingStarted."""
        self.begun, self.facts, self.max_steps, self.step = True, dict(facts), max_steps, first_step
        self.saved_step, self.samples = first_step or None, list(samples)
        for row in earlier:
            add_row(self.history, row)
            self.latest.update({key: value for key, value in row.items() if key not in AXES})
            self._note_evaluation(row)
        self._clock_zero = self.now() - max((row.get("wall_seconds", 0.0) for row in earlier), default=0.0)
        self._marks.append((self.now(), first_step))

    def log(self, row: Mapping[str, Any]) -> None:
        """Add one row of metrics.jsonl."""
        step = int(row.get("step", self.step))
        self.latest.update(row)
        self._note_evaluation({"step": step, **row})
        add_row(self.history, {"step": step, **row})
        if "loss" in row:
            if self._includes_start and len(self._marks) == 2:
                self._marks.popleft()  # the first steps compile and warm up, so they are not typical
                self._includes_start = False
            self._marks.append((self.now(), step))
        if isinstance(row.get("wall_seconds"), int | float):
            self._clock_zero = self.now() - row["wall_seconds"]
        self.step = max(self.step, step)

    def _note_evaluation(self, row: Mapping[str, Any]) -> None:
        if any(key.startswith(MEASURED) for key in row):
            self.evaluated_step = int(row["step"])

    def write(self, step: int, prompt: str, text: str) -> None:
        """Add a sample; those of an earlier step are dropped."""
        self.samples = [*(sample for sample in self.samples if sample[0] == step), (step, prompt, text)]

    def end(self) -> None:
        self.ended, self.progress = True, None

    def elapsed(self) -> float:
        return self.now() - self._clock_zero if self.begun else 0.0

    def seconds_left(self) -> float | None:
        """Return the time left, estimated from recent steps; None while too few are known."""
        if len(self._marks) < 2:
            return None
        (then, first), (last, step) = self._marks[0], self._marks[-1]
        if step <= first or step >= self.max_steps:
            return 0.0 if step >= self.max_steps else None
        return max(0.0, (self.max_steps - step) * (last - then) / (step - first) - (self.now() - last))

    def panels(self) -> list[Panel]:
        """Return the curves that can be drawn, the most informative one first."""
        return panels_for(self.history)

    def health(self, key: str) -> Health | None:
        """Return how a number looks; None if any value is fine."""
        return health_of(key, self.history)


def mfu(row: Mapping[str, Any], facts: Mapping[str, Any]) -> float | None:
    """Return the model FLOPs utilization, or None if the GPU's peak is unknown."""
    speed, flops, peak = row.get("tokens_per_second"), facts.get("flops_per_token"), facts.get("peak_flops")
    return speed * flops / peak if speed and flops and peak else None


def values_of(row: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a row by their keys, in the order of the glossary."""
    values = {**row, "mfu": mfu(row, facts)}
    keys = [key for key, value in values.items() if isinstance(value, int | float) and key not in NOT_SHOWN]
    return {key: values[key] for key in sorted(keys, key=rank)}


def numbers_of(row: Mapping[str, Any], facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (name, number) of everything in a row."""
    values = values_of(row, facts)
    return [*((one_line(name_of(key)), write(key, value)) for key, value in values.items()), *mix_of(row)]


def text_of_sample(text: str) -> str:
    """Return a sample without the space around it, or what there is instead of a text."""
    return text.strip() or (BLANK if text else EMPTY)


def mix_of(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (name, numbers) for the shares of the data sources, and for how often each was read."""
    if isinstance(row.get("mix"), list):
        yield name_of("mix"), _of_each([str(part) for part in whole_percents(row["mix"])]) + " %"
    if isinstance(row.get("epochs"), list):
        yield name_of("epochs"), _of_each(["<1" if times is None else f"{times:.2f}" for times in row["epochs"]])


def _of_each(numbers: list[str]) -> str:
    """Join the numbers of the data sources; if there are many, only the first ones."""
    return "/".join(numbers if len(numbers) <= SOURCES_SHOWN else [*numbers[: SOURCES_SHOWN - 1], ".."])


def shown_values(track: Track) -> dict[str, float]:
    """Return the numbers that the frame shows, the most informative first."""
    row = track.latest
    values = {key: value for key, value in values_of(row, track.facts).items() if key not in DETAILS}
    for kind in ("", "_sampled"):  # leave out the reward if it only repeats the exact match
        if values.get(f"eval_reward{kind}") == values.get(f"exact_match{kind}"):
            values.pop(f"eval_reward{kind}", None)
    if "reward" not in values:
        return values
    values.pop("train_tokens", None)
    return {key: values[key] for key in sorted(values, key=lambda key: (key not in REWARDED, _place(key)))}


def _place(key: str) -> int:
    return REWARDED.index(key) if key in REWARDED else rank(key)


def describe_row(track: Track, row: Mapping[str, Any]) -> str:
    """Return a row of metrics.jsonl as a sentence, after the track has received it."""
    shown = {key: value for key, value in row.items() if key != "train_tokens"}
    words = [f"{name} {number}" for name, number in numbers_of(shown, track.facts)]
    if "loss" in row:
        words.append(f"{clock(track.elapsed())} elapsed")
        left = track.seconds_left()
        words += [f"{clock(left)} left"] if left is not None else []
    what = "" if "loss" in row else ", evaluation"
    return f"step {row.get('step', 0):,} of {track.max_steps:,}{what}: {', '.join(words)}"


def describe_sample(step: int, prompt: str) -> str:
    """Return the heading of a sample."""
    return f"sample at step {step:,}" + (f", prompt {one_line(prompt)!r}" if prompt else "")


def describe_progress(done: int, total: int) -> str:
    """Return the progress of a piece of work: 30 % (3/10)."""
    return f"{100 * done // total} % ({done:,}/{total:,})" if total > 0 else f"{done:,}"
