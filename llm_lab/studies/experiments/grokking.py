"""A model first memorizes its training sums, and learns the rule behind them much later.

A model of one layer learns sums modulo a number (41 + 30 = 12 modulo 59) from about half of all sums. It is soon right
on every training sum and wrong on almost all others: it has memorized them. With weight decay, which keeps the weights
small, it later becomes right on the others too, long after the training loss is close to 0. Without weight decay the
same model only memorizes.

What to expect, with the default options: after about 150 steps the model is right on all training sums. Until step 500
it is wrong on almost all others, and more and more certain of its wrong answers. Then the test accuracy rises, to 90 %
at about step 1,750; without weight decay it stays below 10 %. The embeddings of the numbers end up on a few circles:
eight of the 29 frequencies in their spectrum have almost 90 % of its power, because the model adds by rotating angles,
as on a clock.

What it teaches: a flat training curve says little about what the model has learned; weight decay prefers the
rule, which needs smaller weights than a table of answers; and a mechanism can be recognized in the weights. It also
shows how a test can be fooled: a + b and b + a must be on the same side of the split, because a model that has only
learned that the order does not matter would be right on every sum whose mirror image it was trained on.

Sources: Power et al., "Grokking", arXiv 2201.02177; Nanda et al., "Progress measures for grokking via mechanistic
interpretability", arXiv 2301.05217.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from llm_lab.estimate.formatting import percent
from llm_lab.runs.plots import Line, draw_lines

if TYPE_CHECKING:
    from llm_lab.studies.modular_sums import SumPlan
    from llm_lab.studies.study import Study

APP_NAME = "Grokking: memorize first, understand later"
TAKES = "about 2 minutes on two cores"
STRONGEST = 8  # the number of frequencies that are summed as the strongest ones
DECAY, NO_DECAY = "with-weight-decay", "without-weight-decay"


class Options(BaseModel):
    """The sums, the model, and the training."""

    modulus: int = Field(59, ge=5, le=211, description="sums are modulo this number; a prime is usual")
    train_share: float = Field(0.5, gt=0, lt=1, description="share of the sums that are trained on")
    hidden_size: int = Field(64, ge=16, le=512, description="width of the model; a multiple of 8")
    layers: int = Field(1, ge=1, le=4, description="layers of the model")
    steps: int = Field(
        3000, ge=10, le=1_000_000, description="maximum number of steps; stops when 99 % of the test sums are right"
    )
    batch_size: int = Field(512, ge=8, le=65_536, description="sums in a step")
    learning_rate: float = Field(0.002, gt=0, le=1, description="learning rate of AdamW")
    weight_decay: float = Field(1.0, gt=0, le=10, description="weight decay of the model that is expected to grok")
    seed: int = Field(0, ge=0, description="random seed")


def run(options: Options, study: Study) -> None:
    """Train with weight decay until the rule is learned, and without it for the same number of steps."""
    from llm_lab.errors import Problem, UserError
    from llm_lab.hf.load import quiet_libraries
    from llm_lab.studies.modular_sums import HEADS, train_sums

    if options.hidden_size % (2 * HEADS):
        raise UserError(Problem("hidden_size", f"it must be a multiple of {2 * HEADS}", value=options.hidden_size))
    quiet_libraries()
    with_decay = train_sums(_plan(options, options.weight_decay, options.steps), study.folder / DECAY, DECAY, study.say)
    steps = int(with_decay["curve"][-1]["step"])
    without = train_sums(_plan(options, 0.0, steps), study.folder / NO_DECAY, NO_DECAY, study.say)
    _report(options, study, with_decay, without)


def _plan(options: Options, weight_decay: float, steps: int) -> SumPlan:
    from llm_lab.studies.modular_sums import SumPlan

    return SumPlan(
        options.modulus,
        options.train_share,
        options.hidden_size,
        options.layers,
        steps,
        options.batch_size,
        options.learning_rate,
        weight_decay,
        options.seed,
    )


def _report(options: Options, study: Study, decay: dict[str, Any], without: dict[str, Any]) -> None:
    from llm_lab.studies.modular_sums import LEARNED, MEMORIZED, step_of_accuracy

    curve, other = decay["curve"], without["curve"]
    memorized = step_of_accuracy(curve, "train_accuracy", MEMORIZED)
    learned = step_of_accuracy(curve, "test_accuracy", LEARNED)
    study.heading("Memorizing and understanding")
    study.text(
        f"There are {decay['train_sums']:,} sums to train on and {decay['test_sums']:,} to test on; a + b and b + a "
        f"are always on the same side. Guessing is right on {percent(1 / options.modulus)}. {_when(memorized, learned)}"
    )
    study.picture(
        "accuracy",
        draw_lines(
            [
                Line("training sums", [(row["step"], row["train_accuracy"]) for row in curve]),
                Line("test sums", [(row["step"], row["test_accuracy"]) for row in curve]),
                Line("test sums, no decay", [(row["step"], row["test_accuracy"]) for row in other], dashed=True),
            ],
            title="Accuracy during training",
            x="step (logarithmic)",
            y="share of right sums",
            log_x=True,
        ),
        f"Training and test sums with weight decay {options.weight_decay:g}, and test sums of the same model without "
        "weight decay (dashed). The gap between the first two curves is the time between memorizing and understanding.",
    )
    study.picture(
        "loss",
        draw_lines(
            [
                Line("training sums", [(row["step"], row["train_loss"]) for row in curve]),
                Line("test sums", [(row["step"], row["test_loss"]) for row in curve]),
                Line("test sums, no decay", [(row["step"], row["test_loss"]) for row in other], dashed=True),
            ],
            title="Loss during training",
            x="step (logarithmic)",
            y="nats (logarithmic)",
            log_x=True,
            log_y=True,
        ),
        "While it memorizes, the model gets more and more certain of wrong answers to test sums: their loss rises "
        "above that of guessing.",
    )
    study.heading("What the embeddings look like")
    strongest = {
        name: sum(sorted(spectrum, reverse=True)[:STRONGEST])
        for name, spectrum in (
            ("before training", decay["spectrum_before"]),
            ("with weight decay", decay["spectrum_after"]),
            ("without weight decay", without["spectrum_after"]),
        )
    }
    frequencies = range(1, len(decay["spectrum_after"]) + 1)
    study.picture(
        "spectrum",
        draw_lines(
            [
                Line("with weight decay", list(zip(frequencies, decay["spectrum_after"], strict=True))),
                Line("without", list(zip(frequencies, without["spectrum_after"], strict=True))),
                Line("before training", list(zip(frequencies, decay["spectrum_before"], strict=True)), dashed=True),
            ],
            title="Spectrum of the numbers' embeddings",
            x="frequency: turns of the circle over all numbers",
            y="share of the power",
        ),
        f"Each peak is a circle on which the numbers lie in order. The {STRONGEST} strongest frequencies have "
        + ", ".join(f"{percent(share, 0)} of the power {name}" for name, share in strongest.items())
        + ".",
    )
    last, last_other = curve[-1], other[-1]
    study.table(
        "runs",
        ("run", "steps", "right on training sums", "right on test sums", "test loss (nats)", "CPU seconds"),
        [
            (name, row["step"], row["train_accuracy"], row["test_accuracy"], row["test_loss"], row["cpu_seconds"])
            for name, row in (("with weight decay", last), ("without weight decay", last_other))
        ],
        "At the end of both runs.",
    )
    study.result("test_accuracy", last["test_accuracy"])
    study.result("test_accuracy_without_weight_decay", last_other["test_accuracy"])
    study.result("memorized_at_step", memorized if memorized is not None else "not reached")
    study.result("learned_at_step", learned if learned is not None else "not reached")
    study.heading("Doubts")
    study.text(
        "When the rule is learned depends strongly on the share of training sums, the weight decay, the learning "
        "rate and the seed; with more sums the gap closes; with fewer, the model may never learn the rule. Grokking "
        "as clear as this is known from small, clean tasks; it has not been shown that language models learn in this "
        "way. A run without weight decay that has not learned the rule might learn it later. A spectrum with few "
        "peaks fits the explanation by angles but does not prove it: for that, the frequencies would have to be "
        "removed from the model."
    )


def _when(memorized: int | None, learned: int | None) -> str:
    if memorized is None:
        return "The model did not reach 99 % of the training sums; give it more steps."
    if learned is None:
        return f"The model got 99 % of the training sums right at step {memorized:,}, but never 90 % of the test sums."
    return (
        f"With weight decay, the model got 99 % of the training sums right at step {memorized:,}, and 90 % of the test "
        f"sums at step {learned:,}, {learned / memorized:.1f} times as many steps."
    )
