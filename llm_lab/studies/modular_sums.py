"""Sums modulo a number. A model that sees a part of all sums can memorize them or learn the rule."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from llm_lab.estimate.formatting import percent
from llm_lab.hf.save import save_model, set_special_tokens
from llm_lab.model.configuration_lab import LabConfig
from llm_lab.model.modeling_lab import LabForCausalLM
from llm_lab.recipe.optimizers import AdamW
from llm_lab.runs.disk import write_atomically

from .bayes import word_tokenizer
from .short_training import train_model

RESULT = "result.json"
MEMORIZED, LEARNED = 0.99, 0.9  # accuracies on training and test sums that count as memorized and learned
FINISHED = 0.99  # accuracy on test sums that ends the training when it is reached three times in a row
HEADS = 4


@dataclass(frozen=True)
class SumPlan:
    """What is trained and how. A result is kept only if it was made with the same plan.

    modulus: that of the sums a + b. train_share: the share of the unordered pairs {a, b} used for training.
    measurements: how often both accuracies are measured.
    """

    modulus: int
    train_share: float
    hidden_size: int
    layers: int
    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    seed: int
    measurements: int = 60


@dataclass(frozen=True)
class Sums:
    """Sums: pairs (count, 2) and their results (count,)."""

    pairs: torch.Tensor
    results: torch.Tensor


def split_sums(modulus: int, train_share: float, seed: int) -> tuple[Sums, Sums]:
    """Return all sums a + b modulo a number, split into training and test sums.

    a + b and b + a are on the same side: otherwise a model that has only learned that the order does not matter would
    be right on the mirror images of training sums.
    """
    one, other = torch.meshgrid(torch.arange(modulus), torch.arange(modulus), indexing="ij")
    pairs = torch.stack([one.flatten(), other.flatten()], dim=1)
    results = pairs.sum(1) % modulus
    unordered = pairs.min(1).values * modulus + pairs.max(1).values
    kinds = unordered.unique()
    shuffled = kinds[torch.randperm(len(kinds), generator=torch.Generator().manual_seed(seed))]
    known = torch.isin(unordered, shuffled[: round(train_share * len(kinds))])
    return Sums(pairs[known], results[known]), Sums(pairs[~known], results[~known])


def build_sum_model(plan: SumPlan) -> LabForCausalLM:
    """Build the model of a plan: numbers are tokens, and it predicts the result after the second one."""
    torch.manual_seed(plan.seed)
    return LabForCausalLM(
        LabConfig(
            vocab_size=plan.modulus + 1,  # plus end-of-text
            hidden_size=plan.hidden_size,
            num_hidden_layers=plan.layers,
            num_attention_heads=HEADS,
            max_position_embeddings=8,
        )
    )


def number_tokenizer(modulus: int) -> Any:
    """Return a tokenizer for texts such as "12 40"."""
    return word_tokenizer([*map(str, range(modulus))])


def logits_of_sums(model: Any, pairs: torch.Tensor) -> torch.Tensor:
    """Return the logits (count, vocab_size) after both numbers."""
    return model(pairs, logits_to_keep=1, use_cache=False).logits[:, 0]


@torch.no_grad()
def score_sums(model: Any, sums: Sums) -> tuple[float, float]:
    """Return accuracy and loss (nats)."""
    model.eval()
    logits = logits_of_sums(model, sums.pairs)
    right = (logits.argmax(-1) == sums.results).double().mean()
    return float(right), float(F.cross_entropy(logits, sums.results))


@torch.no_grad()
def spectrum(model: Any, modulus: int) -> list[float]:
    """Return the share of each frequency 1, 2, ... in the embeddings of the numbers; the shares sum to 1.

    For a model that adds by rotating angles, as on a clock, a few frequencies have almost all of it.
    """
    numbers = model.get_input_embeddings().weight[:modulus].double()
    power = torch.fft.rfft(numbers - numbers.mean(0), dim=0).abs().square().sum(1)[1:]
    return (power / power.sum()).tolist()


def train_sums(plan: SumPlan, folder: Path, name: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Train a plan's model and store it with its curve and its embeddings' spectrum, or return an earlier result.

    Returns the contents of result.json: the curve (step, accuracies and losses), and the spectrum before and after.
    """
    try:
        kept = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        if kept.get("plan") == asdict(plan):
            say(f"{name}: already done")
            return kept
    except (OSError, ValueError, AttributeError):
        pass
    train, test = split_sums(plan.modulus, plan.train_share, plan.seed)
    model = build_sum_model(plan)
    before = spectrum(model, plan.modulus)
    generator = torch.Generator().manual_seed(plan.seed)
    every = max(1, plan.steps // plan.measurements)
    curve: list[dict[str, float]] = []
    start = time.process_time()

    def after_step(step: int, loss: torch.Tensor) -> bool:
        if step % every and step != plan.steps and step > 1:
            return False
        (train_accuracy, train_loss), (test_accuracy, test_loss) = score_sums(model, train), score_sums(model, test)
        curve.append(
            {
                "step": step,
                "train_accuracy": train_accuracy,
                "test_accuracy": test_accuracy,
                "train_loss": train_loss,
                "test_loss": test_loss,
                "cpu_seconds": time.process_time() - start,
            }
        )
        if len(curve) % 5 == 1:
            say(
                f"{name}: step {step:,}, right on {percent(train_accuracy, 0)} of training "
                f"and {percent(test_accuracy, 0)} of test sums"
            )
        return len(curve) > 2 and all(row["test_accuracy"] >= FINISHED for row in curve[-3:])

    def loss_of_batch(step: int) -> torch.Tensor:
        chosen = torch.randint(len(train.pairs), (min(plan.batch_size, len(train.pairs)),), generator=generator)
        return F.cross_entropy(logits_of_sums(model, train.pairs[chosen]), train.results[chosen])

    options = AdamW(learning_rate=plan.learning_rate, weight_decay=plan.weight_decay, betas=(0.9, 0.98))
    train_model(
        model, loss_of_batch, options, steps=plan.steps, schedule="none", warmup_steps=10, after_step=after_step
    )
    tokenizer = number_tokenizer(plan.modulus)
    set_special_tokens(model, tokenizer)
    save_model(model, folder / "model", tokenizer)
    result = {
        "plan": asdict(plan),
        "train_sums": len(train.pairs),
        "test_sums": len(test.pairs),
        "curve": curve,
        "spectrum_before": before,
        "spectrum_after": spectrum(model, plan.modulus),
    }
    write_atomically(folder / RESULT, json.dumps(result, indent=1) + "\n")
    return result


def step_of_accuracy(curve: list[dict[str, float]], key: str, wanted: float) -> int | None:
    """Return the first measured step at which an accuracy is reached, or None."""
    return next((int(row["step"]) for row in curve if row[key] >= wanted), None)
