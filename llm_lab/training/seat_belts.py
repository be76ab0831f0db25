"""Stop a run that diverges; warn if learning from rewards goes wrong, or if a run learned nothing.

A run diverges if the loss or the gradient is not a number, or if a language model predicts much worse than a guess. The
comments on the subclasses of Belt cite sources for reinforcement learning.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llm_lab.errors import Problem, UserError
from llm_lab.events import Listener, Notice, RunWarning
from llm_lab.runs.describe import describe_collapse
from llm_lab.runs.disk import remove_folder
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.health import ALL_ALIKE, ENTROPY_LEFT, MOST_CUT_OFF, MOST_KL, add_row, concerns
from llm_lab.runs.processes import is_first_process, wait_for_all
from llm_lab.runs.resume import last_checkpoint

from .sharding import whole_weights

ROLL_BACK, STOP = "roll_back", "stop"  # values of train.on_divergence and train.on_collapse
MAX_ROLLBACKS, ROLLBACK_SCALE = 3, 0.5
WORSE_THAN_A_GUESS = 1.5  # times the loss of a uniform guess, ln(vocabulary)
EXPLODED_ROWS = 2  # consecutive log rows: a single spike recovers (Chowdhery et al. 2022, section 5.1)
BELT_ROWS = 3  # consecutive log rows that must agree
SAMPLED_WEIGHTS = 1024  # of each trained parameter, to check whether it changed
STEPS_TO_MOVE = 20  # shorter runs are only tests
LEAST_CHANGE = 2e-3  # relative change of the validation loss
SCORES = ("eval_reward", "eval_reward_sampled", "exact_match", "exact_match_sampled", "eval_completion_length")


class Diverged(UserError):
    """The loss or the gradient is no longer a number, or the loss is far too large."""

    def __init__(self, problem: Problem, step: int):
        super().__init__(problem)
        self.step = step


class LossWatch:
    """Checks the loss of every batch and the norm of every gradient, without waiting for the GPU in each step.

    guess: the loss of a uniform guess, if the loss is a cross-entropy; None if a large loss has no such meaning. An
    error names the last checkpoint of the run.
    """

    def __init__(self, guess: float | None, batches_per_step: int, rows_per_step: int, run: RunFolder):
        self._run = run
        self._guess, self._batches, self._rows = guess, batches_per_step, rows_per_step
        self._losses: list[torch.Tensor] = []
        self._norms: list[torch.Tensor | float] = []
        self._first: float | None = None
        self._exploded = 0

    def saw_loss(self, loss: torch.Tensor) -> None:
        self._losses.append(loss.detach())

    def saw_gradient(self, norm: torch.Tensor | float) -> None:
        self._norms.append(norm)

    def check(self, step: int, loss: float, norm: float | None, learning_rate: float) -> None:
        """Check the log row of a step. Raises Diverged, which says where."""
        losses, norms, self._losses, self._norms = self._losses, self._norms, [], []
        if not math.isfinite(loss) or (norm is not None and not math.isfinite(norm)):
            where, what = self._find_first(step, losses, norms, loss, norm)
            raise self._diverged(what, where, learning_rate)
        self._first = loss if self._first is None else self._first
        limit = max(WORSE_THAN_A_GUESS * self._guess, 2 * self._first) if self._guess is not None else math.inf
        self._exploded = self._exploded + 1 if loss > limit else 0
        if self._exploded >= EXPLODED_ROWS:
            what = f"the loss has exploded to {loss:.4g} at step {step:,} (a uniform guess has {self._guess:.3g}; "
            raise self._diverged(f"{what}{self._rows_of(step)}){_of_gradient(norm)}", step, learning_rate)

    def _find_first(
        self,
        step: int,
        losses: Sequence[torch.Tensor],
        norms: Sequence[torch.Tensor | float],
        loss: float,
        norm: float | None,
    ) -> tuple[int, str]:
        """Return the first step since the last log row whose loss or gradient is not finite, and what it was."""
        first = step - max(1, len(norms)) + 1
        by_batch = [float(value) for value in losses]
        by_step = [float(value) for value in norms]
        for index in range(max(1, len(by_step))):
            batches = by_batch[index * self._batches : (index + 1) * self._batches]
            bad = next((number for number, value in enumerate(batches) if not math.isfinite(value)), None)
            gradient = by_step[index] if index < len(by_step) else norm
            if bad is None and (gradient is None or math.isfinite(gradient)):
                continue
            at = first + index
            rows = self._rows_of(at)
            batch = f"batch {bad + 1} of {self._batches}, " if bad is not None and self._batches > 1 else ""
            if bad is None:
                return at, f"the gradient became {gradient} at step {at:,} (loss {sum(batches):.4g}; {rows})"
            return at, f"the loss became {batches[bad]} at step {at:,} ({batch}{rows}){_of_gradient(gradient)}"
        return step, f"the loss became {loss} at step {step:,}{_of_gradient(norm)}"

    @property
    def is_worried(self) -> bool:
        """Whether the loss of the last log row was far too large, so that no checkpoint is worth keeping."""
        return self._exploded > 0

    def _rows_of(self, step: int) -> str:
        return f"sequences {(step - 1) * self._rows + 1:,} to {step * self._rows:,} in the order of the data"

    def _diverged(self, what: str, step: int, learning_rate: float) -> Diverged:
        fix = (
            f"{last_checkpoint(self._run)} Start again with a smaller learning rate, a longer "
            f"scheduler.warmup_steps, or train.on_divergence: {ROLL_BACK}, which returns to the last checkpoint, or to "
            "the start if there is none, with half the learning rate."
        )
        why = f"{what}; the schedule's learning rate was {learning_rate:.3g}"
        return Diverged(Problem("optimizer.learning_rate", why, fix=fix), step)


class HealthWatch:
    """Warns once of each problem that the numbers of a run show, such as overfitting.

    rows, known: metrics.jsonl and the warnings in run.json, from before a resume.
    """

    def __init__(self, max_steps: int, rows: Iterable[Mapping[str, Any]] = (), known: Sequence[str] = ()):
        self._max_steps, self._known = max_steps, list(known)
        self._history: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            add_row(self._history, row)

    def saw(self, row: Mapping[str, Any]) -> Iterator[str]:
        """Yield the warnings after a row of metrics.jsonl."""
        add_row(self._history, row)
        for lead, advice in concerns(self._history, row["step"] / max(1, self._max_steps)):
            if not any(text.startswith(lead) for text in self._known):
                self._known.append(lead)
                yield f"{lead} (step {row['step']:,}): {advice}"


def _of_gradient(norm: float | None) -> str:
    return "" if norm is None else f", gradient norm {norm:.4g}"


# --- back to a checkpoint


def roll_back(folder: RunFolder, error: Diverged, listener: Listener) -> bool:
    """Record that a diverged run returns to its last checkpoint; returns whether it can. Frees the run's memory.

    If the last return was to the same checkpoint, the run returns to the one before it.
    """
    before = folder.facts().get("rollbacks", [])
    if len(before) >= MAX_ROLLBACKS:
        return False
    step, checkpoint = folder.checkpoints()[-1] if folder.checkpoints() else (0, None)
    if before and checkpoint is not None and before[-1]["to_step"] == step:
        if is_first_process():
            remove_folder(checkpoint)
        wait_for_all()
        step = folder.checkpoints()[-1][0] if folder.checkpoints() else 0
    scale = ROLLBACK_SCALE ** (len(before) + 1)
    wait_for_all()
    if is_first_process():
        why = error.problems[0].why if isinstance(error.problems[0], Problem) else str(error)
        folder.update(rollbacks=[*before, {"step": error.step, "to_step": step, "learning_rate_scale": scale}])
        listener(RunWarning(f"{why}. Back to step {step:,}, with {scale:g} × the learning rate."))
    wait_for_all()
    error.__traceback__ = None  # it holds the model and the optimizer
    gc.collect()
    return True


def learning_rate_scale(folder: RunFolder) -> float:
    """Return the factor on the learning rate of a run that has returned to a checkpoint; 1 for others."""
    rollbacks = folder.facts().get("rollbacks") or [{}]
    return float(rollbacks[-1].get("learning_rate_scale", 1.0))


# --- learning from rewards


@dataclass(frozen=True)
class Belt:
    """A way in which a run that learns from rewards goes wrong. lead: how its warning begins."""

    lead: str
    advice: str

    def is_on(self, rows: Sequence[Mapping[str, Any]], first: Mapping[str, Any]) -> bool:
        raise NotImplementedError


class _Entropy(Belt):
    # Policies collapse to almost no entropy when the clip range or the learning rate is too large (Yu et al. 2025,
    # DAPO, section 3.1; Cui et al. 2025: gains end when the entropy is used up).
    def is_on(self, rows: Sequence[Mapping[str, Any]], first: Mapping[str, Any]) -> bool:
        start = first.get("entropy") or 0.0
        return start > 0 and all(row.get("entropy", math.inf) < ENTROPY_LEFT * start for row in rows)


class _Truncation(Belt):
    # A cut-off answer is scored without its end, which punishes long but correct reasoning (DAPO, section 3.4).
    def is_on(self, rows: Sequence[Mapping[str, Any]], first: Mapping[str, Any]) -> bool:
        return all(row.get("cut_off_share", 0.0) > MOST_CUT_OFF for row in rows)


class _Divergence(Belt):
    # Beyond a KL of a few tens of nats per answer, the true reward falls again (Gao et al. 2022, figure 1).
    def is_on(self, rows: Sequence[Mapping[str, Any]], first: Mapping[str, Any]) -> bool:
        return all(row.get("kl", 0.0) * row.get("completion_length", 0.0) > MOST_KL for row in rows)


class _NoSignal(Belt):
    # A group of equal rewards has no advantage, and so no gradient (DAPO, section 3.2).
    def is_on(self, rows: Sequence[Mapping[str, Any]], first: Mapping[str, Any]) -> bool:
        return all(row.get("zero_spread_share", 0.0) >= ALL_ALIKE for row in rows)


BELTS: tuple[Belt, ...] = (
    _Entropy(
        "The entropy has fallen below a tenth of its first value",
        "the outputs for a prompt are almost the same, so there is little left to learn from. Use a smaller learning "
        "rate or a KL penalty.",
    ),
    _Truncation(
        "More than half of the outputs are truncated",
        "they are scored without their end. Use a larger max_completion_length or a reward for shorter outputs.",
    ),
    _Divergence(
        "The KL divergence from the reference model is above 50 nats per output",
        "the reward it is trained on may rise while the outputs get worse. Look at the samples; use a smaller learning "
        "rate or a larger KL penalty.",
    ),
    _NoSignal(
        "All outputs for each prompt get the same reward",
        "nothing can be learned from that. Use easier or harder prompts, a finer reward or a higher temperature.",
    ),
)


class RewardWatch:
    """Warns once of each problem in a run that learns from rewards. known: warnings from before a resume."""

    def __init__(self, known: Sequence[str] = ()):
        self._left = [belt for belt in BELTS if not any(text.startswith(belt.lead) for text in known)]
        self._rows: list[Mapping[str, Any]] = []
        self._first: Mapping[str, Any] = {}

    def saw(self, row: Mapping[str, Any]) -> Iterator[str]:
        """Yield the warnings after a log row."""
        self._first = self._first or row
        self._rows = [*self._rows, row][-BELT_ROWS:]
        if len(self._rows) < BELT_ROWS:
            return
        for belt in [belt for belt in self._left if belt.is_on(self._rows, self._first)]:
            self._left.remove(belt)
            yield f"{belt.lead} (step {row['step']:,}): {belt.advice}"


def return_to_best(trainer: Any, folder: RunFolder, listener: Listener) -> int:
    """Load the checkpoint with the best held-out reward into the model of a run that has collapsed; returns its step.

    Without held-out rewards, the best checkpoint is the one with the best reward in training.
    """
    at = trainer.state.global_step
    checkpoints = dict(folder.checkpoints())
    for key in ("eval_reward_sampled", "eval_reward", "exact_match", "reward"):
        scores = {row["step"]: row[key] for row in folder.metrics() if key in row and row["step"] in checkpoints}
        if scores:
            break
    if not scores:
        return at
    best = max(scores, key=lambda step: (scores[step], -step))
    trainer._load_from_checkpoint(str(checkpoints[best]))
    if is_first_process():
        folder.update(collapsed={"step": at, "model_of_step": best, "by": key, "value": scores[best]})
        listener(Notice(describe_collapse(folder.facts()["collapsed"])))
    return best


# --- a run that learned nothing


def sample_weights(model: torch.nn.Module) -> list[torch.Tensor]:
    """Return a copy of some weights of each trained parameter."""
    trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
    return [parameter.detach().flatten()[:SAMPLED_WEIGHTS].clone() for parameter in trained]


SAME_REWARDS = "all outputs for each prompt got the same reward"


def why_nothing_moved(rows: Sequence[Mapping[str, Any]], *, weights_changed: bool) -> str | None:
    """Return, in words, how the metrics of a complete run show that it learned nothing; None if they don't.

    rows: metrics.jsonl, from step 0 on.
    """
    trained = [row for row in rows if "loss" in row]
    if not trained:
        return None
    if not weights_changed:
        return "no trained weight has changed"
    if all(row.get("zero_spread_share", 0.0) >= 1.0 for row in trained):
        return f"in every step, {SAME_REWARDS}, so there was nothing to learn from"
    if all(row.get("grad_norm", 1.0) < 1e-9 for row in trained):
        return "the gradient was 0 in every step"
    measured = [row for row in rows if "loss" not in row]
    if trained[-1]["step"] < STEPS_TO_MOVE or len(measured) < 2 or measured[0]["step"] > 0:
        return None
    first, last = measured[0], measured[-1]
    if "eval_loss" in first and "eval_loss" in last:
        if abs(last["eval_loss"] - first["eval_loss"]) < LEAST_CHANGE * abs(first["eval_loss"]):
            return f"the validation loss was {first['eval_loss']:.4f} before and is {last['eval_loss']:.4f} now"
    elif any(key in first for key in SCORES) and all(first.get(key) == last.get(key) for key in SCORES):
        return "the outputs for the held-out prompts get exactly the scores that they got before training"
    return None


def warn_of_standstill(trainer: Any, before: Sequence[torch.Tensor] | None, listener: Listener) -> None:
    """Warn of a complete run that learned nothing, and record it. before: weights at step 0."""
    with whole_weights(trainer.model):
        changed = (
            before is None
            or not is_first_process()
            or any(
                not torch.allclose(one.cpu(), other.cpu(), rtol=1e-6, atol=1e-12)
                for one, other in zip(before, sample_weights(trainer.model), strict=True)
            )
        )
    folder = trainer.run
    why = why_nothing_moved(folder.metrics(), weights_changed=changed)
    if not is_first_process() or (why is None and "unmoved" not in folder.facts()):
        return
    folder.update(unmoved=why)
    if why is not None:
        fix = "Use a larger optimizer.learning_rate or more steps."
        if SAME_REWARDS in why:
            fix = "Fine-tune the model on answers first (SFT), or use easier or harder prompts, or a finer reward."
        listener(RunWarning(f"Nothing was learned: {why}. {fix}"))
