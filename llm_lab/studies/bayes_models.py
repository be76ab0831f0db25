"""Train one model on a task and compare it with Bayes: a Transformer, an LSTM, or a network without attention."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from llm_lab.hf.save import save_model, set_special_tokens
from llm_lab.model.configuration_lab import LabConfig
from llm_lab.model.modeling_lab import LabForCausalLM
from llm_lab.recipe.optimizers import AdamW, Muon
from llm_lab.runs.disk import write_atomically

from .bayes import Comparison, Task, compare_with_bayes
from .sequence_models import LstmModel, PositionModel, logits_of
from .short_training import train_model

TRANSFORMER, LSTM, POSITIONS = "transformer", "lstm", "no-attention"
NAMES = {TRANSFORMER: "Transformer", LSTM: "LSTM", POSITIONS: "no attention"}
LSTM_LAYERS = 2
WARMUP = 100
TEST_SEED = 1_000_003  # the same test sequences for every model and every training seed
TEST_ROWS = 1000
RESULT = "result.json"
# When a model is measured and, if it is the Transformer, saved: shares of the run, denser at the start.
MOMENTS = (0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)


@dataclass(frozen=True)
class Plan:
    """The model and its training. An earlier result is reused only if it was made with the same plan."""

    kind: str
    seed: int
    task: Task
    hidden_size: int
    layers: int
    heads: int
    steps: int
    batch_size: int
    learning_rate: float

    @property
    def name(self) -> str:
        return f"{self.kind}-seed-{self.seed}"


def build_model(plan: Plan) -> nn.Module:
    """Build the model of a plan; the LSTM and the network without attention have the Transformer's size."""
    torch.manual_seed(plan.seed)
    task, width, layers = plan.task, plan.hidden_size, plan.layers
    transformer = LabForCausalLM(
        LabConfig(
            vocab_size=task.vocab_size,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=plan.heads,
            max_position_embeddings=max(one.context for one in (task, *task.longer)),
        )
    )
    if plan.kind == TRANSFORMER:
        return transformer
    wanted = parameters_of(transformer)
    if plan.kind == POSITIONS:
        # The four square matrices of the attention become additional rows of the feed-forward's three matrices.
        intermediate = (transformer.config.intermediate_size or 0) + 4 * width // 3
        return PositionModel(task.vocab_size, width, intermediate, layers)
    sizes = range(8, 8 * width)
    gates = 8 * LSTM_LAYERS  # per layer: four gates, each with a matrix for the input and one for the state
    fitting = min(sizes, key=lambda size: abs(gates * size * (size + 1) + 2 * task.vocab_size * size - wanted))
    return LstmModel(task.vocab_size, fitting, LSTM_LAYERS)


def parameters_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def measure(model: nn.Module, task: Task, tokens: torch.Tensor) -> Comparison:
    """Compare a model with Bayes on sequences (count, context)."""
    training = model.training
    model.eval()
    logits = logits_of(model, task.inputs(tokens))[:, task.asked]
    model.train(training)
    return compare_with_bayes(task, tokens, logits)


def held_out(task: Task) -> torch.Tensor:
    """Return the sequences that every model is measured on; training uses other seeds."""
    return task.draw(TEST_ROWS, torch.Generator().manual_seed(TEST_SEED))


def find_result(plan: Plan, folder: Path) -> dict[str, Any] | None:
    """Return the stored result of a plan, or None if there is none or it was made with another plan."""
    try:
        kept = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return kept if isinstance(kept, dict) and kept.get("plan") == asdict(plan) else None


def train_and_measure(plan: Plan, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Train the model of a plan, measure it over time, and store the result and the Transformer's checkpoints.

    Returns the contents of result.json: the figures at the end and the curve over training. If the folder already has
    the result of this plan, returns that.
    """
    kept = find_result(plan, folder)
    if kept is not None:
        say(f"{plan.name}: already done")
        return kept
    task, model = plan.task, build_model(plan)
    test, tokenizer = held_out(task), task.tokenizer()
    generator = torch.Generator().manual_seed(plan.seed)
    moments = {round(share * plan.steps) for share in MOMENTS}
    tokens_per_step = plan.batch_size * task.inputs(test).shape[1]
    curve: list[dict[str, float]] = []
    start = time.process_time()

    def look(step: int) -> dict[str, Any]:
        figures = measure(model, task, test).figures
        seconds = time.process_time() - start
        row = {"step": step, "tokens": step * tokens_per_step, "cpu_seconds": seconds}
        curve.append(row | {key: figures[key] for key in ("mae_bits", "kl_bits")})
        say(
            f"{plan.name}: step {step:,} of {plan.steps:,}, entropy off by {figures['mae_bits']:.4f} bits, "
            f"KL {figures['kl_bits']:.4f} bits, {seconds:.0f} s of CPU time"
        )
        if plan.kind == TRANSFORMER:
            _save(model, tokenizer, folder / "steps" / f"checkpoint-{step}")
        return figures

    def loss_of_batch(step: int) -> torch.Tensor:
        batch = task.draw(plan.batch_size, generator)
        logits = logits_of(model, task.inputs(batch))[:, task.asked]
        return F.cross_entropy(logits.flatten(0, 1), task.labels(batch).flatten(0, 1))

    figures = look(0)

    def after_step(step: int, loss: torch.Tensor) -> None:
        nonlocal figures
        if step in moments:
            figures = look(step)

    train_model(
        model,
        loss_of_batch,
        _optimizer(plan),
        steps=plan.steps,
        warmup_steps=min(WARMUP, plan.steps // 10),
        after_step=after_step,
    )
    if plan.kind == TRANSFORMER:
        _save(model, tokenizer, folder / "model")
    longer = {one.length: float(measure(model, one, held_out(one)).errors.mean()) for one in task.longer}
    result = {
        "plan": asdict(plan),
        "parameters": parameters_of(model),
        "tokens": plan.steps * tokens_per_step,
        "cpu_seconds": time.process_time() - start,
        "figures": figures | ({"mae_bits_by_length": longer} if longer else {}),
        "curve": curve,
    }
    write_atomically(folder / RESULT, json.dumps(result, indent=1) + "\n")
    return result


def _optimizer(plan: Plan) -> AdamW | Muon:
    """Return Muon for the matrices of the Transformer's blocks; AdamW for the LSTM, whose gates share one matrix."""
    if plan.kind == TRANSFORMER:
        return Muon(learning_rate=plan.learning_rate)
    return AdamW(learning_rate=plan.learning_rate, weight_decay=0.0)


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    set_special_tokens(model, tokenizer)
    save_model(model, folder, tokenizer)
