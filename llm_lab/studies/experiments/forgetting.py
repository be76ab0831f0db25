"""How much general text a fine-tune forgets, with different learning rates, LoRA, or old text in the data.

A small model is pretrained on short stories and then fine-tuned on word problems in several ways. Throughout, the
bits per byte of stories that no model was trained on are measured: the recipe key `forgetting` does that.

What to expect: the model gets better at the new task, and much worse at the old text. A larger learning rate forgets
more, and past some point it no longer learns more. Some of the old text, mixed into the new data, keeps most of what
was known and costs a little of the new task. A LoRA adapter does not protect by itself: with a learning rate at which
it learns the task, it can forget as much as full fine-tuning does.

What it teaches: what a fine-tune forgets does not show in its own validation loss, so measure it separately. What
counts is how much is forgotten relative to how much is learned: the last picture shows that. The same measurement works
in every SFT, DPO, GRPO and PPO recipe: `forgetting: builtin:stories`, or any text of your own.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field

from llm_lab.data.builtin import builtin_documents
from llm_lab.data.examples import open_examples
from llm_lab.runs.disk import write_atomically
from llm_lab.runs.plots import Line, draw_bars, draw_lines, draw_scatter
from llm_lab.studies.answers import answer_loss
from llm_lab.studies.small_runs import fine_tuning, last, points, pretraining

if TYPE_CHECKING:
    from llm_lab.runs.folder import RunFolder
    from llm_lab.studies.study import Study

APP_NAME = "Forgetting: what a fine-tune costs"
TAKES = "about 8 minutes on two cores"
HELD_OUT = 300  # stories that no model is trained on
TESTS = 100  # conversations of the new task for testing, the same for every model
REPLAYED = 1000  # stories, all from the text that the model was pretrained on


class Options(BaseModel):
    """What is fine-tuned, and how."""

    learning_rates: list[float] = Field(
        [3e-4, 1e-3, 3e-3], min_length=1, description="learning rates of full fine-tuning"
    )
    replay: list[float] = Field([0.2, 0.5], description="shares of old text in the data, at the middle learning rate")
    lora_ranks: list[int] = Field([8], description="ranks of LoRA adapters, at ten times the smallest learning rate")
    data: Literal["builtin:word-problems", "builtin:sums", "builtin:email-subjects"] = Field(
        "builtin:word-problems", description="the conversations to fine-tune on"
    )
    steps: int = Field(200, ge=10, description="steps of each fine-tune")
    batch: int = Field(8, ge=1, description="examples in a step")
    base_steps: int = Field(800, ge=10, description="steps of pretraining the small model")
    width: int = Field(128, ge=32, description="hidden size of the small model")
    threshold: float = Field(0.1, gt=0, description="bits per byte above which a run warns")
    seed: int = Field(1337, ge=0, description="random seed")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the models are trained")


def run(options: Options, study: Study) -> None:
    """Fine-tune one model in every way, and measure the old text throughout."""
    stories = list(builtin_documents("stories"))
    for name, some in (("pretraining", stories[:-HELD_OUT]), ("general", stories[-HELD_OUT:])):
        _write(study, name, some)
    _write(study, "replay", stories[:REPLAYED])
    base = study.train(
        pretraining(
            width=options.width,
            layers=3,
            steps=options.base_steps,
            data=str(study.folder / "pretraining.jsonl"),
            device=options.device,
            seed=options.seed,
        ),
        "base",
    )
    rates = sorted(set(options.learning_rates))
    middle = rates[len(rates) // 2]
    ways: dict[str, dict[str, Any]] = {f"all weights at {rate:g}": {"rate": rate} for rate in rates}
    ways |= {
        f"LoRA rank {rank} at {10 * rates[0]:g}": {"rate": 10 * rates[0], "rank": rank} for rank in options.lora_ranks
    }
    ways |= {f"{share:.0%} old text at {middle:g}": {"rate": middle, "replay": share} for share in options.replay}
    runs: dict[str, RunFolder] = {}
    for name, way in ways.items():
        folder = "-".join(f"{key}-{value:g}" for key, value in way.items()).replace("+", "")
        runs[name] = study.train(_fine_tune(options, study, str(base.path), **way), folder)
    study.say("measuring the new task")
    tests = open_examples(options.data, kind="conversation", split="test").examples[:TESTS]
    before = answer_loss(str(base.path), tests, template="chatml")
    learned = {name: answer_loss(str(each.path), tests) for name, each in runs.items()}
    _report(study, runs, before, learned, options.threshold)


def _write(study: Study, name: str, texts: list[str]) -> None:
    lines = [json.dumps({"text": text}) for text in texts]
    write_atomically(study.folder / f"{name}.jsonl", "\n".join(lines) + "\n")


def _fine_tune(
    options: Options, study: Study, model: str, *, rate: float, rank: int = 0, replay: float = 0.0
) -> dict[str, Any]:
    data: list[dict[str, Any]] = [{"path": options.data, "weight": 1.0 - replay}]
    if replay:
        data.append({"path": str(study.folder / "replay.jsonl"), "weight": replay, "columns": {"text": "text"}})
    recipe = fine_tuning(
        model,
        data,
        steps=options.steps,
        validation={"fraction": 0.05, "max_examples": 100},
        learning_rate=rate,
        lora={"preset": "all", "r": rank} if rank else None,
        batch=options.batch,
        device=options.device,
        seed=options.seed,
    )
    general = {"path": str(study.folder / "general.jsonl"), "threshold": options.threshold}
    return recipe | {"forgetting": general}


def _report(
    study: Study, runs: dict[str, RunFolder], before: float, learned: dict[str, float], threshold: float
) -> None:
    general = {name: last(each, "general_bits_per_byte") or float("nan") for name, each in runs.items()}
    rises = {name: last(each, "forgetting") or 0.0 for name, each in runs.items()}
    start = points(next(iter(runs.values())), "general_bits_per_byte")[0][1]
    rows: list[tuple[str, float, float, float]] = [("before", before, start, 0.0)]
    rows += [(name, learned[name], general[name], rises[name]) for name in runs]
    head = ["fine-tune", "new task: nats per token", "old text: bits per byte", "forgetting"]
    study.table("forgetting", head, rows, "Both are measured on text that no model was trained on. Lower is better.")
    worst, best = max(rises, key=lambda name: rises[name]), min(learned, key=lambda name: learned[name])
    study.result("old_text_before", start)
    study.result("most_forgetting", rises[worst])
    study.result("most_forgetting_by", worst)
    study.result("best_new_task_by", best)
    study.heading("Forgetting while it learns")
    curves = [Line(name, points(each, "forgetting")) for name, each in runs.items()]
    study.picture(
        "over_steps",
        draw_lines(curves, title="Forgetting during the fine-tune", x="step", y="bits per byte more than before"),
        "Every curve starts at 0, the model before the fine-tune. Where it is steep, much is forgotten in few steps.",
    )
    past = [name for name in runs if rises[name] > threshold]
    where = f"Past the threshold of {threshold:g} bits per byte"
    warned = f"{', '.join(past)}. These runs warned of it; their reports have the warnings."
    study.text(f"{where}: {warned if past else 'none.'}")
    study.heading("How much is forgotten")
    study.picture(
        "bars",
        draw_bars([(name, rises[name]) for name in runs], title="Forgetting at the end", x="bits per byte"),
        "Shorter is better; a bar to the left of 0 means that the model got better at the old text, as it can with "
        "old text in the data.",
    )
    study.heading("Learning against forgetting")
    dots = [(learned[name], rises[name], None) for name in runs]
    names = list(runs)
    study.picture(
        "exchange",
        draw_scatter(dots, title="Learned and forgotten", x="new task: nats per token", y="forgetting", names=names),
        "One dot per fine-tune. The lower left corner is best: a low loss on the new task, and little forgotten.",
    )
    front = [
        name
        for name in runs
        if not any(learned[other] < learned[name] and rises[other] < rises[name] for other in runs)
    ]
    others = " Each of the others learned less and forgot more than one of these." if len(front) < len(runs) else ""
    study.text(f"The best trade-offs: {', '.join(front)}.{others}")
