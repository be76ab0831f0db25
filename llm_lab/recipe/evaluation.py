"""The recipe of an evaluation: what a checkpoint is measured on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from .fields import Bool, Group, Int, option
from .parts import ModelCheckpoint
from .schema import DTYPES, STAGES, StageRecipe
from .scoring import Score

TEXT_SCORES = {
    "bleu": "n-grams that answer and reference share, from 0 to 100 (Papineni et al. 2002), by sacrebleu",
    "rouge": "words and sequences that they share, from 0 to 1 (Lin 2004), by rouge-score",
}

SCORE_PACKAGES = {"bleu": "sacrebleu", "rouge": "rouge_score"}


class EvalText(Group):
    """One set of texts whose loss is measured, whole."""

    path: str = option(
        ...,
        help="a file, folder or glob (txt, md, jsonl, csv, parquet), builtin:stories, or a Hub name",
        question="Which text?",
        min_length=1,
    )
    subset: str | None = option(help="the Hub dataset's configuration", min_length=1)
    split: str = option("train", help="the Hub dataset's split", min_length=1)
    text_column: str | None = option(
        help="column that holds the text", derived="found by looking at the first rows", min_length=1
    )


class EvalOptions(Group):
    """How it is measured."""

    max_tokens: Int | None = option(
        help="tokens of each text that are measured, at most",
        question="Tokens measured of each text, at most?",
        derived="131,072 on a CPU, 1,048,576 on a GPU; of the run's own validation, what the run measured",
        ge=2,
    )
    max_length: Int | None = option(
        help="tokens that the model sees at once",
        question="Context while measuring, in tokens?",
        derived="what its run was trained with, else the model's context, at most 1,024; for tasks all of it",
        ge=2,
        advanced=True,
    )
    per_device_eval_batch_size: Int | None = option(
        help="rows measured at once",
        question="Rows measured at once?",
        derived="8; for the run's own validation, the run's",
        ge=1,
        advanced=True,
    )
    dtype: Literal[tuple(DTYPES)] | None = option(
        help="numbers of the computation",
        question="Precision?",
        choices=DTYPES,
        derived="bfloat16 on a GPU, float32 on a CPU; for the run's own validation, the run's",
        advanced=True,
    )
    text_scores: tuple[Literal[tuple(TEXT_SCORES)], ...] = option(
        (),
        help="how near the answers to `score` are to the references",
        question="BLEU or ROUGE of the answers?",
        choices=TEXT_SCORES,
    )
    speed_tokens: Int = option(
        64,
        help="tokens written, one after another, to time the first token and the rest; 0: not timed",
        question="Tokens written to time it (0: none)?",
        ge=0,
        advanced=True,
    )


class EvalTasks(Group):
    """Tasks of lm-evaluation-harness, an extra: pip install 'llm-lab[eval]'."""

    names: tuple[str, ...] = option(
        ...,
        help="the tasks: names, as in arc_easy, or YAML files of your own",
        question="Which tasks?",
        min_length=1,
    )
    limit: Int | None = option(help="documents of each task, at most", question="Documents of each, at most?", ge=1)
    num_fewshot: Int | None = option(
        help="worked examples before each question", derived="the task's own", ge=0, advanced=True
    )
    apply_chat_template: Bool = option(
        False, help="ask in the form of the model's chat template", question="Ask as in a chat?", advanced=True
    )


class EvalRecipe(StageRecipe):
    """An evaluation: loss on texts, answers to prompts, speed, tasks. Nothing is trained."""

    stage: Literal["eval"] = option("eval", help="what is done", choices={"eval": STAGES["eval"]})
    model: ModelCheckpoint = option(..., help="what is measured: {checkpoint: a run, a folder or a Hub name}")
    data: tuple[EvalText, ...] | None = option(
        help="texts whose loss is measured",
        derived="without data, score and tasks: what the checkpoint's own run measured itself on",
        min_length=1,
    )
    score: Score | None = option(help="prompts that are answered and scored")
    eval: EvalOptions = option(EvalOptions(), help="how it is measured")
    tasks: EvalTasks | None = option(help="tasks of lm-evaluation-harness")


def measures_itself(values: Mapping[str, Any]) -> bool:
    """Tell whether an evaluation names nothing to measure, so that the model's own run says what."""
    return not any(values.get(group) for group in ("data", "score", "tasks"))
