"""A model learns to write subject lines for e-mails, and you see what it wrote before and after.

A model is fine-tuned on 180 e-mails with their subject lines (the built-in set email-subjects). Then the base model
and the tuned one answer the same 36 e-mails that were held out.

What to expect: the base model continues the text, because that is all it has learned. After one epoch the tuned model
answers in the form of a subject line: short, without a period, and then it stops. The training loss falls with every
epoch. The validation loss falls too, and then rises again: with 180 examples a model soon memorizes them. The
default base is a tiny model that is pretrained here on short stories first. It learns the form, but it is far
too small to understand an e-mail, so its subject lines do not fit the e-mails. With a real model, such as a checkpoint
of SmolLM2-135M-Instruct (`model=HuggingFaceTB/SmolLM2-135M-Instruct`), they fit.

What it teaches: fine-tuning on a few hundred examples teaches a form and a behavior; what a model knows comes from
pretraining. Stop where the validation loss is lowest, not where the training loss is. And the same model writes
different texts with different decoding. Beam search finds texts with a higher probability, which are often more
generic. A repetition penalty and a ban on repeated n-grams stop loops. In transformers both also count the prompt, so
here they push out the very words that the e-mail is about.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field

from llm_lab.data.examples import Example, open_examples
from llm_lab.runs.plots import Line, draw_bars, draw_lines
from llm_lab.studies.answers import DECODINGS, overlap, repeated_share, write_answers
from llm_lab.studies.small_runs import mean_by_epoch, points, pretraining

if TYPE_CHECKING:
    from llm_lab.runs.folder import RunFolder
    from llm_lab.studies.study import Study

APP_NAME = "Fine-tuning: subject lines for e-mails"
TAKES = "about 6 minutes on two cores"
DATA = "builtin:email-subjects"
WORTH_A_PICTURE = 0.02  # as a share of repeated word pairs


class Options(BaseModel):
    """What is fine-tuned, and how."""

    model: str | None = Field(None, description="the model to fine-tune; without one, a tiny model is pretrained")
    epochs: int = Field(6, ge=1, description="passes over the training examples")
    batch: int = Field(8, ge=1, description="examples in a step")
    learning_rate: float | None = Field(None, gt=0, description="learning rate; without one, it is derived")
    lora_rank: int = Field(0, ge=0, description="rank of a LoRA adapter; 0 trains all weights")
    examples: int = Field(
        36, ge=1, le=36, description="held-out e-mails (not trained on) for which the model writes a subject line"
    )
    shown: int = Field(12, ge=1, le=36, description="answers that the report shows")
    max_new_tokens: int = Field(40, ge=1, description="maximum length of an answer, in tokens")
    base_steps: int = Field(800, ge=10, description="steps of pretraining the tiny model")
    width: int = Field(128, ge=32, description="hidden size of the tiny model")
    seed: int = Field(1337, ge=0, description="random seed")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the models are trained")


def run(options: Options, study: Study) -> None:
    """Fine-tune, and let both models answer the same e-mails."""
    from llm_lab.runner import load

    model = options.model or str(_pretrain(options, study).path)
    held_out = open_examples(DATA, kind="conversation", split="test").examples[: options.examples]
    tuned = study.train(_fine_tune(options, model), "tuned")
    _draw_losses(options, study, tuned)
    study.say("answering the held-out e-mails")
    answers = {
        "base": _answers(load(model), held_out, options),
        "tuned": _answers(load(str(tuned.path)), held_out, options),
    }
    _show_both(options, study, held_out, answers)
    study.say("decoding in different ways")
    _compare_decodings(options, study, held_out, tuned)


def _pretrain(options: Options, study: Study) -> RunFolder:
    recipe = pretraining(
        width=options.width, layers=4, steps=options.base_steps, device=options.device, seed=options.seed
    )
    return study.train(recipe, "base")


def _steps_per_epoch(options: Options) -> int:
    training = len(open_examples(DATA, kind="conversation", split="train").examples)
    return math.ceil(0.9 * training / options.batch)


def _fine_tune(options: Options, model: str) -> dict[str, Any]:
    steps = _steps_per_epoch(options)
    rate = {"learning_rate": options.learning_rate} if options.learning_rate else {}
    recipe: dict[str, Any] = {
        "stage": "sft",
        "seed": options.seed,
        "device": options.device,
        "model": {"checkpoint": model},
        "data": [{"path": DATA}],
        "validation": {"fraction": 0.1},
        "optimizer": {"name": "adamw", **rate},
        "train": {
            "max_steps": options.epochs * steps,
            "max_length": 128,
            "per_device_train_batch_size": options.batch,
            "gradient_accumulation_steps": 1,
            "eval_steps": steps,
            "save_steps": steps,
            "logging_steps": 1,
            "save_total_limit": 1,
        },
        "samples": {"max_new_tokens": options.max_new_tokens},
    }
    if options.lora_rank:
        rank = options.lora_rank
        recipe["lora"] = {"preset": "all", "r": rank, "alpha": 2.0 * rank, "dropout": 0.0}
    return recipe


def _answers(
    loaded: tuple[Any, Any], held_out: Sequence[Example], options: Options, decoding: str = "greedy"
) -> list[str]:
    return write_answers(*loaded, held_out, max_new_tokens=options.max_new_tokens, decoding=DECODINGS[decoding])


def _draw_losses(options: Options, study: Study, tuned: RunFolder) -> None:
    steps = _steps_per_epoch(options)
    training = mean_by_epoch(tuned, "loss", steps)
    validation = [(step / steps, loss) for step, loss in points(tuned, "eval_loss")]
    lowest = min(validation, key=lambda point: point[1])
    by_epoch = {round(epoch): loss for epoch, loss in training}
    study.heading("Loss per epoch")
    study.picture(
        "loss",
        draw_lines(
            [Line("training", training), Line("validation", validation)],
            title="Loss per epoch",
            x="epoch",
            y="nats per token",
        ),
        "Training: the mean over each epoch. Validation: measured at the end of each epoch, and before the first. "
        "Where the two curves part, the model memorizes its examples.",
    )
    study.table(
        "losses",
        ["epoch", "training loss", "validation loss"],
        [(round(epoch), by_epoch.get(round(epoch)), loss) for epoch, loss in validation],
        "Mean loss of the answers, in nats per token.",
    )
    study.result("loss_before", validation[0][1])
    study.result("lowest_loss", lowest[1])
    study.result("lowest_loss_at_epoch", round(lowest[0]))
    if round(lowest[0]) == 0:
        study.text(
            f"The validation loss was lowest before training, at {lowest[1]:.2f}: every epoch ended higher. Try a "
            "smaller learning rate."
        )
        return
    at_end = round(lowest[0]) == options.epochs
    verdict = "it was still falling at the end: more epochs may help" if at_end else "later epochs made it worse again"
    study.text(
        f"The validation loss fell from {validation[0][1]:.2f} to {lowest[1]:.2f} at epoch {round(lowest[0])}; "
        f"{verdict}."
    )


def _show_both(options: Options, study: Study, held_out: Sequence[Example], answers: dict[str, list[str]]) -> None:
    references = [str(example.answer) for example in held_out]
    study.heading("Before and after")
    rows = [
        (example.prompt[-1]["content"].partition(": ")[2], reference, *both)
        for example, reference, *both in zip(held_out, references, answers["base"], answers["tuned"], strict=True)
    ]
    study.table(
        "answers",
        ["e-mail", "written by a person", "base", "tuned"],
        rows[: options.shown],
        "The same e-mails for both models, greedy decoding. None of them was trained on.",
    )
    for name, texts in answers.items():
        shared = sum(map(overlap, texts, references)) / len(texts)
        words = sum(len(text.split()) for text in texts) / len(texts)
        study.result(f"{name}_words", words)
        study.result(f"{name}_overlap", shared)
    study.text(
        "Two numbers that don't require reading the answers: the mean number of words, which is "
        f"{sum(len(text.split()) for text in references) / len(references):.1f} for the subject lines written by "
        "people, and the overlap, the share of words in common with those (F1, from 0 to 1). The overlap is low even "
        "for good subject lines, since there are many good ones; compare it between models only."
    )


def _compare_decodings(options: Options, study: Study, held_out: Sequence[Example], tuned: RunFolder) -> None:
    from llm_lab.runner import load

    loaded = load(str(tuned.path))
    references = [str(example.answer) for example in held_out]
    texts = {name: _answers(loaded, held_out, options, name) for name in DECODINGS}
    rows: list[tuple[str, float, float, float]] = []
    for name, some in texts.items():
        count = len(some)
        words = sum(len(text.split()) for text in some) / count
        repeated = sum(map(repeated_share, some)) / count
        rows.append((name, words, repeated, sum(map(overlap, some, references)) / count))
    study.heading("Decoding")
    study.table(
        "decoding",
        ["decoding", "words", "repeated word pairs", "overlap"],
        rows,
        "The tuned model on the same e-mails. Repeated: the share of word pairs that came before in the same answer.",
    )
    if max(repeated for _, _, repeated, _ in rows) > WORTH_A_PICTURE:
        bars = [(name, repeated) for name, _, repeated, _ in rows]
        study.picture(
            "repeated",
            draw_bars(bars, title="Repeated word pairs", x="share"),
            "How much a decoding repeats itself. A penalty or a ban on n-grams lowers it by force.",
        )
    else:
        study.text(
            "The tuned model hardly repeats itself in answers this short, so the penalty and the ban had nothing to "
            "prevent. They also count the words of the prompt: where the overlap falls, they pushed out the words that "
            "the e-mail is about."
        )
    shown = [
        (reference, *(texts[name][at] for name in DECODINGS))
        for at, reference in enumerate(references[: options.shown // 2 or 1])
    ]
    study.table("decoded", ["written by a person", *DECODINGS], shown, "The same e-mails, decoded in each way.")
