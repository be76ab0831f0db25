"""Evaluation: loss on text, answers to prompts, speed, tasks of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from llm_lab.errors import Problem
from llm_lab.estimate.machine import Machine
from llm_lab.estimate.parameters import ModelShape, shape_at

from .fields import Bool, Group, Int, OneOf, option
from .parts import ModelCheckpoint
from .scoring import REWARD_RULES, Score, derive_score, prompts_must_be_named
from .stage import PartialRecipe, Stage, StageRecipe, Values, repeated_sets
from .train_loop import DTYPES, is_installed

NAME = "eval"
ABOUT = "measure a model: loss on text, scored outputs, speed, tasks"
TEXT_SCORES = {
    "bleu": "n-grams shared by output and reference answer, 0 to 100 (Papineni et al. 2002; sacrebleu)",
    "rouge": "words and word sequences shared by both, 0 to 1 (Lin 2004; rouge-score)",
}
SCORE_PACKAGES = {"bleu": "sacrebleu", "rouge": "rouge_score"}
EVAL_TOKENS = {"cpu": 131_072, "cuda": 1_048_576}
EVAL_ROWS = 8
# {key of `eval`: the groups it applies to}. Without any of these groups, the key has no effect.
OWNERS = {
    "max_tokens": ("data",),
    "max_length": ("data", "tasks"),
    "stride": ("data",),
    "per_device_eval_batch_size": ("data", "tasks"),
    "text_scores": ("score",),
}


class EvalText(Group):
    """One dataset of text whose loss is measured."""

    path: str = option(
        ...,
        help="a file, folder or glob (txt, md, jsonl, csv, parquet, arrow), a built-in dataset such as "
        "builtin:stories, or a Hub name",
        question="Which dataset of text?",
        min_length=1,
    )
    subset: str | None = option(help="configuration of a Hub dataset", min_length=1)
    split: str = option("train", help="split of a Hub dataset, or of a folder with splits", min_length=1)
    text_column: str | None = option(
        help="column that holds the text", derived="recognized from the first rows", min_length=1
    )


class EvalOptions(Group):
    """Evaluation options."""

    max_tokens: Int | None = option(
        help="maximum number of tokens per dataset",
        question="Maximum number of tokens per dataset?",
        derived="131,072 on a CPU, 1,048,576 on a GPU; without data, score and tasks: that of the model's run",
        ge=2,
    )
    max_length: Int | None = option(
        help="context length while measuring, in tokens",
        question="Context length while measuring, in tokens?",
        derived="the train.max_length of its run, else the model's context, at most 1,024; the whole context for tasks",
        ge=2,
        advanced=True,
    )
    stride: Int | None = option(
        help="tokens by which the window over a text advances; null: max_length. If it is smaller, windows overlap: "
        "every token has more context, at the cost of time",
        question="Tokens by which the window moves on (empty: no overlap)?",
        ge=1,
        advanced=True,
    )
    per_device_eval_batch_size: Int | None = option(
        help="batch size per device, in sequences (in pairs for DPO and reward models)",
        question="Batch size per device?",
        derived="8; without data, score and tasks: that of the model's run",
        ge=1,
        advanced=True,
    )
    dtype: Annotated[str, OneOf(DTYPES)] | None = option(
        help="precision of matrix products",
        question="Precision?",
        choices=DTYPES,
        derived="bfloat16 on a GPU, float32 on a CPU; without data, score and tasks: that of the model's run",
        advanced=True,
    )
    text_scores: tuple[Annotated[str, OneOf(TEXT_SCORES)], ...] = option(
        (),
        help="also compare the outputs for `score` with the reference answers by BLEU or ROUGE",
        question="Also compute BLEU or ROUGE?",
        choices=TEXT_SCORES,
    )
    speed_tokens: Int = option(
        64,
        help="tokens generated to measure time to first token and tokens/s; 0: none",
        question="Tokens generated to measure the speed (0: none)?",
        ge=0,
        advanced=True,
    )


class EvalTasks(Group):
    """Tasks of lm-evaluation-harness, an extra: pip install 'llm-lab[eval]'."""

    names: tuple[str, ...] = option(
        ...,
        help="the tasks: names, such as arc_easy, or your own YAML files",
        question="Which tasks?",
        min_length=1,
    )
    limit: Int | None = option(
        help="maximum number of documents per task", question="Maximum number of documents per task?", ge=1
    )
    num_fewshot: Int | None = option(
        help="few-shot examples before each question", derived="the task's own", ge=0, advanced=True
    )
    apply_chat_template: Bool = option(
        False, help="apply the model's chat template", question="Apply the chat template?", advanced=True
    )


class EvalRecipe(StageRecipe):
    """An evaluation: loss on text, answers to prompts, speed, tasks. Nothing is trained."""

    stage: Literal["eval"] = option(NAME, help="the stage to run", choices={NAME: ABOUT})
    model: ModelCheckpoint = option(
        ..., help="the model to measure: {checkpoint: a run, folder, GGUF file or Hub name}"
    )
    data: tuple[EvalText, ...] | None = option(
        help="datasets of text whose loss is measured",
        derived="without data, score and tasks: the checkpoint's own validation data",
        min_length=1,
    )
    score: Score | None = option(help="prompts for which outputs are generated and scored")
    eval: EvalOptions = option(EvalOptions(), help="evaluation options")
    tasks: EvalTasks | None = option(help="tasks of lm-evaluation-harness")


def measures_itself(values: Values) -> bool:
    """Return whether an evaluation names no data, so that the model's own validation data is used."""
    return not any(values.get(group) for group in ("data", "score", "tasks"))


def missing_packages(values: Values) -> dict[str, str]:
    """Return {package that is not installed: the key that requires it}."""
    scores = (values.get(NAME) or {}).get("text_scores") or ()
    required = {SCORE_PACKAGES[name]: "eval.text_scores" for name in scores}
    required |= {"lm_eval": "tasks"} if values.get("tasks") else {}
    return {package: key for package, key in required.items() if not is_installed(package)}


def derive(stage: Stage, recipe: PartialRecipe, machine: Machine, known: ModelShape | None) -> ModelShape | None:
    """Fill in what an evaluation leaves out, except what comes from the model's own run, which is read later."""
    shape, device = known or shape_at(recipe.get("model.checkpoint")), recipe.get("device")
    if measures_itself(recipe.values):
        return shape
    if recipe.get("data"):
        where = "on a CPU" if device == "cpu" else "on a GPU"
        recipe.fill("eval.max_tokens", EVAL_TOKENS[device], f"the same for every model {where}")
    if recipe.get("data") or recipe.get("tasks"):
        recipe.fill("eval.per_device_eval_batch_size", EVAL_ROWS, "small enough for any memory")
    recipe.fill("eval.dtype", *(("float32", "a CPU") if device == "cpu" else ("bfloat16", "a GPU")))
    derive_score(stage, recipe, shape)
    return shape


def _settings_have_an_effect(values: Values) -> Iterator[Problem]:
    options = values.get(NAME) or {}
    if measures_itself(values):
        if options.get("stride"):
            why = "a run's own validation is measured as in the run, without overlap"
            fix = "Leave it out, or name datasets in data."
            yield Problem("eval.stride", why, value=options["stride"], fix=fix)
        return
    if options.get("stride") and options.get("max_length") and options["stride"] > options["max_length"]:
        why = f"windows of {options['max_length']} tokens (eval.max_length) that move by more would skip tokens"
        yield Problem("eval.stride", why, value=options["stride"], allowed=f"1 to {options['max_length']}")
    for key, owners in OWNERS.items():
        value = options.get(key)
        if value and not any(values.get(owner) for owner in owners):
            why, fix = f"has no effect without {' or '.join(owners)}", f"Leave it out, or set {owners[0]}."
            if key == "text_scores":
                why, fix = "there are no outputs to compare with reference answers", "Name prompts in score.path."
            shown = ", ".join(value) if isinstance(value, tuple | list) else value
            yield Problem(f"eval.{key}", why, value=shown, fix=fix)


def _tasks_are_named_once(values: Values) -> Iterator[Problem]:
    names = list((values.get("tasks") or {}).get("names") or ())
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        yield Problem("tasks.names", "duplicate task", value=name, fix="Name it once.")


EVAL = Stage(
    name=NAME,
    title="Evaluate",
    label="Evaluation",
    about=ABOUT,
    recipe=EvalRecipe,
    rules=(
        *REWARD_RULES,
        repeated_sets,
        _settings_have_an_effect,
        _tasks_are_named_once,
        prompts_must_be_named(NAME),
    ),
    derive=derive,
    examples="text",
    makes=None,
    continues=False,
    next_step="Evaluate it: loss on text, scored outputs, speed, tasks",
)
