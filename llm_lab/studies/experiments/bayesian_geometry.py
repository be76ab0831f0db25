"""How close a small Transformer comes to the best possible prediction, and what that looks like inside it.

Each sequence hides a random one-to-one mapping from keys to values and shows it pair by pair: x3 y7 x1 y2 x9 ... After
k pairs, the value of a new key is one of those not seen yet, all equally likely. So the best prediction (Bayes') is
known exactly, and so is its entropy: log2(values - k) bits. The experiment repeats, at a small size, the central
measurement of "The Bayesian Geometry of Transformer Attention" (arXiv 2512.22471).

What to expect, with the default options: the entropy of the Transformer follows Bayes' curve to about 0.015 bits.
Without attention the error is 1.143 bits, exactly that of a model that sees one position: log2(values) minus the mean
of Bayes' entropy. An LSTM of the same size gets at least as close as the Transformer.

What it teaches: how to test a model against an exact answer and not only against another model; that a beautiful
picture of the inside is not proof (the report prints each claim with what speaks against it and with a control); and
that a comparison of architectures depends on the learning rate that each was given.

`task=hidden_markov` is the paper's second task. Each sequence begins with a hidden Markov chain, written out number by
number, and continues with the symbols that the chain emits. After each symbol the model says how likely each hidden
state is; the forward algorithm gives the exact answer. The models are also measured on sequences 1.5 and 2.5 times as
long as those they were trained on.

Options: `seeds=5` trains every model five times. `values=20 pairs=19 hidden_size=96 layers=4 steps=12000` is closer to
the paper's size and takes many times as long. `repeated_keys=true` lets keys occur again, so that a model has to look
their values up. With the default steps, the Transformer has learned most of that (it is 0.16 bits from the best
prediction), the LSTM almost nothing (1.38 bits from it). If the study is stopped, the model that was being trained
starts again from its first step; finished models are kept.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from llm_lab.errors import Problem, UserError
from llm_lab.hf.load import quiet_libraries
from llm_lab.studies.bayes_doubts import report_bijection_doubts, report_hidden_markov
from llm_lab.studies.bayes_models import LSTM, NAMES, POSITIONS, TRANSFORMER, Plan, train_and_measure
from llm_lab.studies.bayes_report import report_distance, report_inside
from llm_lab.studies.bijections import Bijections
from llm_lab.studies.hidden_markov import HiddenMarkov
from llm_lab.studies.study import Study

APP_NAME = "Bayesian geometry: how close a model comes to the optimum"
TAKES = "about 4 minutes on two cores"
OTHER = {"bijection": "hidden_markov", "hidden_markov": "bijection"}
POSITIONS_SHARE = 6  # the model without attention converges within a sixth of the steps


class Options(BaseModel):
    """The task, the Transformer (the others get its size), and the training."""

    task: Literal["bijection", "hidden_markov"] = Field(
        "bijection", description="complete a one-to-one mapping, or say in which state a hidden Markov chain is"
    )
    values: int = Field(10, ge=3, le=64, description="bijection: number of keys, and also of values, in each mapping")
    pairs: int = Field(
        10,
        ge=2,
        le=128,
        description="bijection: number of pairs in a sequence; at most `values`, unless keys are repeated",
    )
    repeated_keys: bool = Field(
        False, description="bijection: let keys occur again, so that their values must be looked up"
    )
    states: int = Field(3, ge=2, le=5, description="hidden_markov: number of states of each chain, and also of symbols")
    observations: int = Field(20, ge=2, le=100, description="hidden_markov: number of symbols in a sequence")
    hidden_size: int = Field(64, ge=16, le=512, description="width of the Transformer")
    layers: int = Field(3, ge=1, le=12, description="layers of the Transformer")
    heads: int = Field(4, ge=1, le=16, description="attention heads per layer")
    steps: int = Field(3000, ge=4, le=200_000, description="training steps of the Transformer and of the LSTM")
    batch_size: int = Field(64, ge=1, le=1024, description="sequences in a step")
    learning_rate: float = Field(0.02, gt=0, le=1, description="learning rate of the Transformer, trained with Muon")
    lstm_learning_rate: float = Field(0.01, gt=0, le=1, description="learning rate of the LSTM, trained with AdamW")
    seeds: int = Field(1, ge=1, le=20, description="number of seeds: how often each model is trained")
    seed: int = Field(0, ge=0, description="first random seed")


def run(options: Options, study: Study) -> None:
    """Train the models that are not finished, then write the report from the stored results."""
    _check(options)
    quiet_libraries()
    bijections = Bijections(options.values, options.pairs, options.repeated_keys)
    chains = HiddenMarkov(options.states, options.observations)
    task = chains if options.task == "hidden_markov" else bijections
    results: dict[str, list[dict[str, Any]]] = {kind: [] for kind in NAMES}
    for seed in range(options.seed, options.seed + options.seeds):
        for kind in NAMES:
            plan = _plan(kind, seed, task, options)
            results[kind].append(train_and_measure(plan, study.folder / plan.name, study.say))
    study.say("looking inside the Transformer")
    report_distance(study, task, results)
    inside = report_inside(study, task, study.folder / _plan(TRANSFORMER, options.seed, task, options).name)
    if options.task == "hidden_markov":
        report_hidden_markov(study, chains, results, inside)
    else:
        report_bijection_doubts(study, bijections, results, inside)


def _check(options: Options) -> None:
    problems = []
    others = ("states", "observations") if options.task == "bijection" else ("values", "pairs", "repeated_keys")
    for name in others:
        if (value := getattr(options, name)) != Options.model_fields[name].default:
            why = f"it has no effect with task={options.task}"
            problems.append(Problem(name, why, value=value, fix=f"Leave it out, or set task={OTHER[options.task]}."))
    if options.task == "bijection" and options.pairs > options.values and not options.repeated_keys:
        why = f"a sequence has at most as many pairs as there are keys, which is {options.values}"
        fix = "Set pairs to at most that, or repeated_keys=true."
        problems.append(Problem("pairs", why, value=options.pairs, fix=fix))
    if options.hidden_size % (2 * options.heads):
        why = f"it must be a multiple of {2 * options.heads}, twice the number of heads"
        problems.append(Problem("hidden_size", why, value=options.hidden_size))
    if problems:
        raise UserError(*problems)


def _plan(kind: str, seed: int, task: Bijections | HiddenMarkov, options: Options) -> Plan:
    steps = max(4, options.steps // POSITIONS_SHARE) if kind == POSITIONS else options.steps
    rates = {TRANSFORMER: options.learning_rate, LSTM: options.lstm_learning_rate, POSITIONS: 3e-3}
    return Plan(
        kind,
        seed,
        task,
        options.hidden_size,
        options.layers,
        options.heads,
        steps,
        options.batch_size,
        rates[kind],
    )
