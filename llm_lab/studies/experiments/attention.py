"""How an induction head appears during pretraining: suddenly, and the loss falls with it.

A small model is pretrained on texts that each repeat a chunk of random letters. Nothing can be predicted the first time
a chunk is read; after that, everything can, but only by looking back: find where the current letter occurred before,
and predict the one that followed it. The attention head that does this is called an induction head. It needs a head in
an earlier layer that marks every position with the letter before it (a previous-token head).

What to expect, with the default options: for the first 60 steps the loss is no better than that of guessing (3.3 nats).
Between steps 90 and 150 it falls from 3.0 to 0.2 nats on repeated text, and the induction score of a head in the second
layer (the share of its attention that is on the letter after the earlier occurrence) rises from 0.1 to above 0.5 at the
same time. Removing the previous-token head destroys the ability; removing the best induction head alone costs 0.2 nats,
because two others do the same, and removing all three costs 4.4. A model of one layer ends at 1.7 nats: it can only
prefer letters that occurred before.

What it teaches: abilities can appear abruptly, after many steps in which the loss hardly changes; a pattern in the
attention is only evidence, so the report removes each head and measures what is lost; and the same test works on any
model (`llm-lab look` gives the scores of every head).

Source: Olsson et al., "In-context Learning and Induction Heads", arXiv 2209.11895.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field

from llm_lab.runs.plots import Line, draw_heatmap, draw_lines

if TYPE_CHECKING:
    from llm_lab.looking.heads import HeadScores
    from llm_lab.runs.folder import RunFolder
    from llm_lab.studies.study import Study

APP_NAME = "Attention: how an induction head appears"
TAKES = "about 2 minutes on two cores"
TEXTS = 8000
TEST_LENGTH, TEST_ROWS = 24, 32
STRONG = 0.5  # a head with at least this score counts as an induction head
SHOWN_LENGTH = 12  # characters of a chunk in the picture of one head


class Options(BaseModel):
    """The model, the texts, and the training."""

    layers: int = Field(2, ge=2, le=8, description="layers of the model")
    hidden_size: int = Field(128, ge=32, le=512, description="width of the model")
    heads: int = Field(4, ge=1, le=16, description="attention heads per layer")
    steps: int = Field(400, ge=20, le=100_000, description="training steps")
    batch: int = Field(16, ge=1, le=512, description="sequences in a step")
    shortest: int = Field(8, ge=2, le=26, description="characters of the shortest chunk")
    longest: int = Field(24, ge=2, le=26, description="characters of the longest chunk")
    repeats: int = Field(4, ge=2, le=20, description="how often a text repeats its chunk")
    checkpoints: int = Field(40, ge=4, le=100, description="how often the heads are measured")
    one_layer: bool = Field(True, description="train a model of one layer too, to compare with")
    learning_rate: float = Field(0.02, gt=0, le=1, description="learning rate of Muon")
    seed: int = Field(1337, ge=0, description="random seed")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the models are trained")


@dataclass(frozen=True)
class Moment:
    """A checkpoint and the scores of its heads."""

    step: int
    scores: HeadScores


def run(options: Options, study: Study) -> None:
    """Pretrain, measure every checkpoint, and ablate heads of the last one."""
    from llm_lab.errors import Problem, UserError
    from llm_lab.studies.repeated_texts import repeated_texts, write_texts

    if options.longest < options.shortest:
        why = f"the longest chunk is shorter than the shortest one, which has {options.shortest} characters"
        raise UserError(Problem("longest", why, value=options.longest))
    texts = repeated_texts(
        TEXTS, shortest=options.shortest, longest=options.longest, times=options.repeats, seed=options.seed
    )
    data = study.folder / "texts.jsonl"
    write_texts(data, texts)
    trained = study.train(_recipe(options, str(data), options.layers), "model")
    moments = _measure(trained, study)
    shallow = None
    if options.one_layer:
        shallow = _measure(study.train(_recipe(options, str(data), 1), "one-layer"), study)
    _report_appearance(study, moments, shallow)
    _report_causes(study, trained, moments[-1])
    _report_doubts(study)


def _recipe(options: Options, data: str, layers: int) -> dict[str, Any]:
    every = max(1, options.steps // options.checkpoints)
    return {
        "stage": "pretrain",
        "seed": options.seed,
        "device": options.device,
        "model": {
            "hidden_size": options.hidden_size,
            "num_hidden_layers": layers,
            "num_attention_heads": options.heads,
            "num_key_value_heads": options.heads,
            "max_position_embeddings": 128,
        },
        "tokenizer": "bytes",
        "data": [{"path": data}],
        "validation": {"fraction": 0.02},
        "optimizer": {"name": "muon", "learning_rate": options.learning_rate},
        "scheduler": {"name": "wsd", "warmup_steps": min(20, options.steps // 4), "min_ratio": 0.0},
        "train": {
            "max_steps": options.steps,
            "max_length": 128,
            "per_device_train_batch_size": options.batch,
            "gradient_accumulation_steps": 1,
            "eval_steps": options.steps,
            "save_steps": every,
            "save_total_limit": options.steps // every + 1,
            "logging_steps": max(1, options.steps // 100),
        },
        "samples": {"prompts": ["!abcdefg!abc"], "max_new_tokens": 12},
    }


def _measure(trained: RunFolder, study: Study) -> list[Moment]:
    """Return the head scores of every checkpoint, on repeated characters outside the training texts."""
    from llm_lab.hf.load import load_model
    from llm_lab.looking.heads import score_heads

    repeats = _test_texts()
    found = []
    for step, path in trained.checkpoints():
        scores = score_heads(load_model(str(path)), repeats)
        study.say(
            f"{trained.path.name}, step {step:,}: best induction score {float(scores.induction.max()):.2f}, loss on "
            f"repeated text {scores.second_loss:.2f}"
        )
        found.append(Moment(step, scores))
    return found


def _test_texts() -> Any:
    from llm_lab.looking.heads import repeated_tokens
    from llm_lab.studies.repeated_texts import CHARACTERS

    return repeated_tokens(list(CHARACTERS.encode()), length=TEST_LENGTH, rows=TEST_ROWS)


def _all_heads(scores: HeadScores) -> list[tuple[int, int]]:
    layers, heads = scores.induction.shape
    return [(layer, head) for layer in range(layers) for head in range(heads)]


def _best(scores: Any) -> tuple[int, int]:
    """Return the (layer, head) with the largest score."""
    return divmod(int(scores.argmax()), scores.shape[1])


def _name(head: tuple[int, int]) -> str:
    return f"layer {head[0]}, head {head[1]}"


def _short(head: tuple[int, int]) -> str:
    return f"L{head[0]}H{head[1]}"


def _report_appearance(study: Study, moments: list[Moment], shallow: list[Moment] | None) -> None:
    from llm_lab.studies.repeated_texts import CHARACTERS

    guessing = math.log(len(CHARACTERS))
    last = moments[-1].scores
    induction, previous = _best(last.induction), _best(last.previous)
    lines = [
        Line(f"induction, {_short(induction)}", [(m.step, float(m.scores.induction[induction])) for m in moments]),
        Line(f"previous token, {_short(previous)}", [(m.step, float(m.scores.previous[previous])) for m in moments]),
        Line("loss on the repetition", [(m.step, m.scores.second_loss / guessing) for m in moments]),
        Line("loss on new text", [(m.step, m.scores.first_loss / guessing) for m in moments]),
    ]
    if shallow:
        points = [(m.step, m.scores.second_loss / guessing) for m in shallow]
        lines.append(Line("one layer, repetition", points, dashed=True))
    before, after = _steepest(moments, induction)
    fell = before.scores.second_loss - after.scores.second_loss
    score = float(last.induction[induction])
    appeared = score >= STRONG
    study.heading("When the head appears" if appeared else "No induction head appeared")
    if not appeared:
        study.text(
            f"The best induction score at the end is {score:.2f}, of {_name(induction)}; from {STRONG} on, a head "
            f"counts as an induction head here. After {moments[-1].step:,} steps, this model has none. With more steps "
            "one may appear: with the default options it takes about 150 steps."
        )
    study.text(
        f"The heads are measured on {TEST_ROWS} sequences of {TEST_LENGTH} random characters, each followed by a copy. "
        "The induction score of a head is its mean attention, from the copy, to the character after the first "
        "occurrence of the current one. The previous-token score is its mean attention to the position before. "
        f"Losses are relative to the loss of guessing among {len(CHARACTERS)} characters, {guessing:.2f} nats."
    )
    study.picture(
        "appearance",
        draw_lines(lines, title="Scores and loss during pretraining", x="step", y="score, or share of guessing"),
        (
            f"The induction score of the head that is best at the end rises most between steps {before.step:,} and "
            f"{after.step:,}, by {float(after.scores.induction[induction] - before.scores.induction[induction]):.2f}; "
            f"there the loss on the repetition changes by {-fell:+.2f} nats. "
            if appeared
            else ""
        )
        + f"The loss on new text goes from {moments[0].scores.first_loss / guessing:.2f} to "
        f"{last.first_loss / guessing:.2f}: all that can be learned about it is which characters there are, and that "
        "none occurs twice. Layers and heads are counted from 0, as in `llm-lab look`: L1H2 is head 2 of layer 1.",
    )
    head = ("step", "best induction score", "previous-token score", "loss on new text", "loss on the repetition")
    study.table(
        "checkpoints",
        head,
        [
            (
                m.step,
                float(m.scores.induction[induction]),
                float(m.scores.previous[previous]),
                m.scores.first_loss,
                m.scores.second_loss,
            )
            for m in moments
        ],
        "Losses in nats per character. The heads are those with the best scores at the end.",
    )
    study.result("induction_score", score)
    study.result("previous_token_score", float(last.previous[previous]))
    study.result("induction_head", _name(induction) if appeared else "none appeared")
    if appeared:
        study.result("appears_before_step", after.step)
    study.result("loss_on_new_text", last.first_loss)
    study.result("loss_on_repetition", last.second_loss)
    if shallow:
        study.result("loss_on_repetition_one_layer", shallow[-1].scores.second_loss)


def _steepest(moments: list[Moment], head: tuple[int, int]) -> tuple[Moment, Moment]:
    """Return the two consecutive checkpoints between which the induction score of a head rises most."""
    return max(
        pairwise(moments), key=lambda pair: float(pair[1].scores.induction[head] - pair[0].scores.induction[head])
    )


def _report_causes(study: Study, trained: RunFolder, last: Moment) -> None:
    from llm_lab.hf.load import load_model
    from llm_lab.looking.heads import ablate, repeated_loss

    model, repeats = load_model(str(trained.model_path)), _test_texts()
    whole = repeated_loss(model, repeats)
    layers, heads = last.scores.induction.shape
    added = []
    for layer in range(layers):
        row = []
        for head in range(heads):
            with ablate(model, [(layer, head)]):
                row.append(repeated_loss(model, repeats) - whole)
        added.append(row)
    induction, previous = _best(last.scores.induction), _best(last.scores.previous)
    others = [added[at[0]][at[1]] for at in _all_heads(last.scores) if at not in (induction, previous)]
    group = [at for at in _all_heads(last.scores) if float(last.scores.induction[at]) >= STRONG]
    study.heading("Does the model need the head?" if group else "What each head does")
    study.picture(
        "removed",
        draw_heatmap(
            added,
            rows=[f"layer {layer}" for layer in range(layers)],
            columns=[f"head {head}" for head in range(heads)],
            title="Loss added on the repetition without each head (nats)",
        ),
        f"Each head's output is set to zero in turn. The whole model has a loss of {whole:.3f} nats.",
    )
    cost = added[induction[0]][induction[1]]
    mean = fmean(others) if others else float("nan")
    together = ""
    if group:
        with ablate(model, group):
            cost_of_all = repeated_loss(model, repeats) - whole
        study.result("loss_added_without_induction_head", cost)
        study.result("loss_added_without_all_induction_heads", cost_of_all)
        together = (
            f" Where several heads share the work, the others replace one that is removed: {len(group)} "
            f"{'head has' if len(group) == 1 else 'heads have'} a score of at least {STRONG}, and without all of them "
            f"the loss rises by {cost_of_all:.2f} nats."
        )
    rest = f"; without one of the other heads, by {mean:.2f} on average and at most {max(others):.2f}" if others else ""
    study.text(
        f"Without the head with the best induction score ({_name(induction)}), the loss on the repetition rises by "
        f"{cost:.2f} nats; without the best previous-token head ({_name(previous)}), by "
        f"{added[previous[0]][previous[1]]:.2f}{rest}.{together}"
    )
    ranked = sorted(_all_heads(last.scores), key=lambda at: -added[at[0]][at[1]])
    rows = [
        (_name(at), float(last.scores.induction[at]), float(last.scores.previous[at]), added[at[0]][at[1]])
        for at in ranked
    ]
    study.table(
        "heads",
        ("head", "induction score", "previous-token score", "loss added without it (nats)"),
        rows,
        "All heads, the most needed first.",
    )
    study.result("induction_heads", len(group))
    if others:
        study.result("loss_added_without_other_heads", mean)
    _draw_head(study, model, induction, is_induction_head=bool(group))


def _draw_head(study: Study, model: Any, head: tuple[int, int], *, is_induction_head: bool) -> None:
    """Draw the attention of one head over a short text and its copy."""
    import torch

    from llm_lab.looking.recording import run_reading
    from llm_lab.studies.repeated_texts import repeated_texts

    text = next(repeated_texts(1, shortest=SHOWN_LENGTH, longest=SHOWN_LENGTH, times=2, seed=7))
    kept: dict[int, torch.Tensor] = {}

    def keep(layer: int, weights: torch.Tensor) -> None:
        kept[layer] = weights[0, head[1]].cpu()

    run_reading(model, torch.tensor([list(text.encode())]), keep)
    weights = kept[head[0]].tolist()
    values = [
        [value if column <= row else None for column, value in enumerate(line)] for row, line in enumerate(weights)
    ]
    study.picture(
        "head",
        draw_heatmap(
            values,
            rows=list(text),
            columns=list(text),
            title=f"Where {_name(head)} looks",
            x="attends to",
            y="from",
            low=0.0,
            high=1.0,
        ),
        f"A chunk of {SHOWN_LENGTH} random characters and its copy. "
        + (
            "In the lower half, every character attends to the one after its first occurrence: the diagonal stripe is "
            "the induction head."
            if is_induction_head
            else "An induction head would show a diagonal stripe in the lower half: every character would attend to "
            "the one after its first occurrence."
        ),
    )


def _report_doubts(study: Study) -> None:
    study.heading("Doubts")
    study.text(
        "The texts contain nothing but repetition, so the head appears early and clean. In natural text it competes "
        "with everything else there is to learn, appears later, and is shared by several heads. An induction score is "
        "measured on random characters; a head can have a high score there and do other things elsewhere. Setting an "
        "output to zero takes the model out of the states it was trained in, so a part of the added loss may come from "
        "that. One seed shows that it happens, not when: the step differs from seed to seed."
    )
