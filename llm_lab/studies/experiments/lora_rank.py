"""How the rank of an adapter changes quality, parameters and time, with full fine-tuning for comparison.

A small model is pretrained on short stories and then fine-tuned on word problems, which it has never seen: once with
all its weights, and once with a LoRA adapter of each rank. Every fine-tune sees the same examples in the same order.

What to expect: the loss falls with the rank, steeply at first and then less and less. On this small model it takes an
adapter with about 14 % of the weights (rank 16) to reach full fine-tuning; a large model needs a much smaller share.
Training an adapter is not much faster: it needs no gradients and no optimizer state for the frozen weights, so it saves
memory and disk, but the model still computes everything.

What it teaches: choose the rank by where the curve flattens. A task that differs more from what the model knows needs
a larger rank. Alpha is set to twice the rank here, so that the size of the adapter's contribution does not change with
the rank; with a fixed alpha, larger ranks would also get smaller steps. An adapter learns with a learning rate that is
about ten times that of full fine-tuning, and comparing both at the same rate would be unfair to one of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field

from llm_lab.estimate.formatting import percent
from llm_lab.runs.plots import Line, draw_bars, draw_lines
from llm_lab.studies.small_runs import fine_tuning, last, points, pretraining

if TYPE_CHECKING:
    from llm_lab.runs.folder import RunFolder
    from llm_lab.studies.study import Study

APP_NAME = "LoRA rank: quality, parameters and time"
TAKES = "about 6 minutes on two cores"
FULL = "full"


class Options(BaseModel):
    """What is fine-tuned, and how."""

    ranks: list[int] = Field([1, 2, 4, 8, 16, 32], min_length=1, description="ranks to compare")
    model: str | None = Field(None, description="the model to fine-tune; without one, a small model is pretrained")
    data: str = Field("builtin:word-problems", description="the conversations to fine-tune on")
    preset: Literal["minimal", "attention_only", "ffn_only", "all"] = Field(
        "all", description="which layers get an adapter"
    )
    steps: int = Field(200, ge=10, description="steps of each fine-tune")
    batch: int = Field(8, ge=1, description="examples in a step")
    length: int = Field(128, ge=16, description="tokens of an example")
    base_steps: int = Field(600, ge=10, description="steps of pretraining the small model")
    width: int = Field(128, ge=32, description="hidden size of the small model")
    lora_learning_rate: float | None = Field(None, gt=0, description="learning rate of the adapters")
    full_learning_rate: float | None = Field(None, gt=0, description="learning rate of full fine-tuning")
    seed: int = Field(1337, ge=0, description="random seed")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the models are trained")


def run(options: Options, study: Study) -> None:
    """Fine-tune with every rank and with all weights."""
    model = options.model or str(_pretrain(options, study).path)
    runs = {FULL: study.train(_fine_tune(options, model, None), FULL)}
    for rank in sorted(set(options.ranks)):
        runs[f"rank {rank}"] = study.train(_fine_tune(options, model, rank), f"rank-{rank}")
    rows = []
    for name, each in runs.items():
        facts = each.facts()
        trained, total = facts["trained_parameters"], facts["parameters"]
        seconds = facts["results"]["wall_seconds"]
        size = sum(file.stat().st_size for file in each.model_path.glob("*.safetensors")) / 1e6
        loss, rate = last(each, "eval_loss"), facts["recipe"]["optimizer"]["learning_rate"]
        rows.append((name, trained, trained / total, loss, rate, seconds, size))
    before = points(runs[FULL], "eval_loss")[0][1]
    study.result("loss_before", before)
    study.result("loss_full", rows[0][3] or float("nan"))
    best = min(rows[1:], key=lambda row: row[3] or float("inf"))
    study.result("best_rank", best[0])
    study.result("loss_best_rank", best[3] or float("nan"))
    study.table(
        "ranks",
        ["what is trained", "weights", "share", "validation loss", "learning rate", "seconds", "saved MB"],
        rows,
        f"After {options.steps} steps. Before fine-tuning the validation loss is {before:.3f} nats per token.",
    )
    _draw(options, study, runs, rows)


def _pretrain(options: Options, study: Study) -> RunFolder:
    recipe = pretraining(
        width=options.width, layers=3, steps=options.base_steps, device=options.device, seed=options.seed
    )
    return study.train(recipe, "base")


def _fine_tune(options: Options, model: str, rank: int | None) -> dict[str, Any]:
    rate = options.lora_learning_rate if rank else options.full_learning_rate
    return fine_tuning(
        model,
        options.data,
        steps=options.steps,
        validation={"fraction": 0.1, "max_examples": 150},
        learning_rate=rate,
        lora={"preset": options.preset, "r": rank} if rank else None,
        length=options.length,
        batch=options.batch,
        device=options.device,
        seed=options.seed,
    )


def _draw(options: Options, study: Study, runs: dict[str, RunFolder], rows: list[tuple[Any, ...]]) -> None:
    adapters = [(row[1], row[3]) for row in rows[1:] if row[3] is not None]
    full = rows[0][3]
    lines = [Line("LoRA", adapters)]
    if full is not None:
        lines.append(Line("all weights", [(adapters[0][0], full), (rows[0][1], full)], dashed=True))
    study.heading("Quality by trained weights")
    study.picture(
        "quality",
        draw_lines(
            lines, title="Validation loss by trained weights", x="trained weights", y="nats per token", log_x=True
        ),
        "Each dot of the curve is an adapter, from the smallest rank to the largest; the dashed line is full "
        "fine-tuning.",
    )
    study.text(_verdict(rows))
    study.heading("How they learn")
    curves = [Line(name, points(each, "eval_loss")) for name, each in runs.items()]
    study.picture(
        "learning",
        draw_lines(curves, title="Validation loss during the fine-tune", x="step", y="nats per token", log_y=True),
        "Every curve starts at the loss of the same base model.",
    )
    study.heading("Time")
    study.picture(
        "time",
        draw_bars([(str(row[0]), row[5]) for row in rows], title="Time of each fine-tune", x="seconds"),
        "An adapter does not shorten a step in proportion to its weights: the model still computes everything. On a "
        "tiny model, the adapter's own layers can even make it slower. Other work on the machine counts too.",
    )


def _verdict(rows: list[tuple[Any, ...]]) -> str:
    known = [row for row in rows[1:] if row[3] is not None]
    full = rows[0][3]
    if not known or full is None:
        return "Some runs have no loss, so there is nothing to compare."
    best = min(row[3] for row in known)
    enough = next(row for row in known if row[3] <= best + 0.02)
    text = f"{enough[0].capitalize()} is within 0.02 nats per token of the best adapter, "
    text += f"with {percent(enough[2])} of the weights"
    gap = best - full
    if gap > 0.02:
        return f"{text}. Full fine-tuning is still {gap:.3f} better than the best adapter."
    if gap < -0.02:
        return f"{text}. The best adapter is even {-gap:.3f} better than full fine-tuning at its own learning rate."
    return f"{text}. The best adapter is as good as full fine-tuning."
