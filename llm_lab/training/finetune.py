"""What the stages after pretraining have in common: the examples, the model, the run's course."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from llm_lab.data.examples import Example, ExampleSource, open_examples
from llm_lab.data.mixing import ExampleMix, build_example_mix
from llm_lab.data.paths import hub_mark
from llm_lab.data.split import split_examples
from llm_lab.errors import Problem, UserError
from llm_lab.events import Listener, Notice, RunWarning, TrainingStarted
from llm_lab.hf.chat_templates import apply_chat_template_choice, resize_for
from llm_lab.hf.load import checkpoint_activations, load_model, require_4bit
from llm_lab.hf.lora_layers import attach_lora, describe_trainable
from llm_lab.hf.save import save_model
from llm_lab.hf.tokenizers import load_tokenizer
from llm_lab.optim.schedule import factor_of
from llm_lab.recipe.post_training import TuneRecipe, fill_steps
from llm_lab.recipe.registry import STAGES
from llm_lab.runs.folder import RunFolder, is_judge
from llm_lab.runs.processes import is_first_process, process_count

from .loop import (
    Result,
    begin_computing,
    describe_parent,
    drive,
    find_local,
    find_start,
    owes_evaluation,
    require_same_data,
    results_of,
    write_model,
)

KEY = "model.checkpoint"
Row = TypeVar("Row")


@dataclass(frozen=True)
class Examples:
    """What is learnt from: the sources, each one's training examples, and what is kept from training."""

    sources: list[ExampleSource]
    train: list[Sequence[Example]]
    validation: list[Example]


def open_sets(recipe: TuneRecipe, kind: str, folder: RunFolder, listener: Listener) -> Examples:
    """Open the recipe's sets of examples and split them. UserError with the problems of all of them."""
    sources = read_sets(recipe, kind)
    require_same_data(sources, folder)
    for source in sources:
        listener(Notice(f"{source.key}: {source.description}"))
    splits = split_examples(sources, fraction=recipe.validation.fraction, take=recipe.validation.from_)
    if is_first_process():
        counts = [{"read": s.counts.read, "kept": s.counts.kept, "dropped": dict(s.counts.dropped)} for s in sources]
        data = [
            {"path": source.path, "fingerprint": source.fingerprint, **hub_mark(source.path), **count}
            for source, count in zip(sources, counts, strict=True)
        ]
        folder.update(data=data)
    held_out = [example for split in splits for example in split.validation]
    return Examples(sources, [split.train for split in splits], held_out)


def read_sets(recipe: TuneRecipe, kind: str) -> list[ExampleSource]:
    """Open the recipe's sets of examples. UserError with the problems of all of them."""
    sources, problems = [], []
    for index, given in enumerate(recipe.data):
        columns = given.columns.model_dump(exclude_none=True) if given.columns else None
        where = {"key": f"data.{index}", "subset": given.subset, "split": given.split}
        try:
            sources.append(open_examples(given.path, kind=kind, columns=columns, **where))
        except UserError as error:
            problems.extend(error.problems)
    if problems:
        raise UserError(*problems)
    return sources


def encode_sets(
    examples: Examples,
    encode: Callable[[Sequence[Example]], tuple[list[Row], Mapping[str, int]]],
    listener: Listener,
    *,
    noun: str,
    max_length: int,
) -> list[list[Row]]:
    """Return each set's training examples as tokens, telling what was cut or left out. UserError for an empty set.

    encode: from examples to (rows, {reason: how many were cut or left out}). noun: what an example is.
    """
    sets, problems = [], []
    for source, rows in zip(examples.sources, examples.train, strict=True):
        encoded, counts = encode(rows)
        for reason, count in counts.items():
            listener(RunWarning(f"{source.key}: {count:,} of {len(rows):,} {noun}s: {reason}"))
        if not encoded:
            why = f"no {noun} is left to learn from within train.max_length = {max_length}"
            problems.append(Problem(f"{source.key}.path", why, value=source.path, fix="Set a larger max_length."))
        sets.append(encoded)
    if problems:
        raise UserError(*problems)
    return sets


def order_examples(
    recipe: TuneRecipe, examples: Examples, sets: Sequence[Sequence[Row]], listener: Listener
) -> ExampleMix:
    """Return the order in which a settled recipe reads its sets, and tell how often each is read."""
    weights = [source.weight for source in recipe.data]
    rows = recipe.train.max_steps * rows_per_step(recipe)
    order = build_example_mix(sets, weights, num_samples=rows, seed=recipe.seed)
    for source, epochs in zip(examples.sources, order.epochs(), strict=True):
        listener(Notice(f"{source.key}: read {epochs:.2f} times over the run"))
    return order


def load_policy(recipe: TuneRecipe, listener: Listener) -> tuple[Any, Any]:
    """Load model and tokenizer, with a chat template and the recipe's adapter; an adapter before it is merged in.

    Weights are float32; beside an adapter the frozen ones have the run's own precision.
    """
    begin_computing(recipe)
    checkpoint, lora, train = find_local(recipe.model.checkpoint), recipe.lora, recipe.train
    if is_judge(Path(checkpoint)):
        why = "this is a reward model: it judges answers, and writes none"
        raise UserError(Problem(KEY, why, value=recipe.model.checkpoint, fix="Name a model that writes."))
    in_4bit = lora is not None and lora.load_in_4bit
    if in_4bit:
        require_4bit(recipe.device)
    frozen_dtype = train.dtype if lora is not None and recipe.device == "cuda" else "float32"
    model = load_model(
        checkpoint,
        device=recipe.device,
        dtype=frozen_dtype,
        attn_implementation=train.attn_implementation,
        merge=True,
        load_in_4bit=in_4bit,
    )
    tokenizer = load_tokenizer(checkpoint, key=KEY)
    chosen = apply_chat_template_choice(tokenizer, recipe.chat_template)
    listener(Notice(chosen.notice))
    resize_for(model, tokenizer, chosen, seed=recipe.seed)
    model = prepare_training(model, recipe, chosen.new_ids)
    trainable = describe_trainable(model)
    listener(Notice(f"model: {type(_base_of(model)).__name__}; {trainable.describe()}"))
    # In training mode for the dropout that the recipe asks for; what must be without it sees to that itself.
    return model.train(), tokenizer


def prepare_training(model: Any, recipe: TuneRecipe, new_token_ids: Sequence[int] = ()) -> Any:
    """Return the model with the recipe's adapter, and with activations that are computed again where it says so."""
    if recipe.train.gradient_checkpointing:
        checkpoint_activations(model)
        if recipe.lora is not None:
            model.enable_input_require_grads()
    if recipe.lora is None:
        return model
    return attach_lora(model, recipe.lora, seed=recipe.seed, new_token_ids=new_token_ids)


def _base_of(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def record_parent(recipe: TuneRecipe, folder: RunFolder, model: Any) -> None:
    """Write into run.json where the model came from and how much of it is trained."""
    if is_first_process():
        trainable = describe_trainable(model)
        folder.update(
            parameters=trainable.total,
            trained_parameters=trainable.parameters,
            parent=describe_parent(find_local(recipe.model.checkpoint)),
        )


def settle_recipe(recipe: TuneRecipe, examples: int, folder: RunFolder, listener: Listener) -> TuneRecipe:
    """Return the recipe with the steps that its epochs come to over so many training examples."""
    stage = STAGES[recipe.stage]
    values, reasons = fill_steps(stage, recipe.model_dump(by_alias=True), examples=examples, processes=process_count())
    if "train.max_steps" in reasons:
        listener(Notice(f"steps: {values['train']['max_steps']:,}, {reasons['train.max_steps']}"))
        if is_first_process():
            folder.update(max_steps=values["train"]["max_steps"])
    return type(recipe).model_validate(values)


def rows_per_step(recipe: TuneRecipe) -> int:
    """Return how many rows an optimizer step sees, on all devices."""
    train = recipe.train
    return train.per_device_train_batch_size * train.gradient_accumulation_steps * process_count()


class Evaluation:
    """What is measured at an evaluation: loss on held-out examples, scores on held-out prompts, samples."""

    def __init__(self, folder: RunFolder, measures: Sequence[Callable[[int], dict[str, float] | None]]):
        self.folder, self.measures = folder, measures
        self._measured: set[int] = set()

    def measure(self, step: int) -> dict[str, float] | None:
        """Return a row for metrics.jsonl, or None where there is nothing to measure."""
        self._measured.add(step)
        row: dict[str, float] = {}
        for measure in self.measures:
            row |= measure(step) or {}
        return row or None

    def done_at(self, step: int) -> bool:
        """Whether a step has been evaluated, in this process or one before."""
        known = any(row["step"] == step and "loss" not in row for row in self.folder.metrics())
        return step in self._measured or known or not self.measures


def fit(
    recipe: TuneRecipe,
    folder: RunFolder,
    listener: Listener,
    model: Any,
    tokenizer: Any,
    *,
    make_trainer: Callable[..., Any],
    evaluation: Evaluation,
    resume: bool,
    save: Callable[..., None] = save_model,
) -> Result:
    """Train, evaluate and save; returns the last evaluation's numbers.

    make_trainer(arguments=..., **common): builds the stage's trainer; `arguments(kind, **options)` makes its
    TrainingArguments. The recipe is settled.
    """
    from llm_lab.optim.build import build_optimizer

    from .tracking import Tracking
    from .trainer import Interruption, training_arguments

    train, start = recipe.train, find_start(folder, resume=resume)
    arguments = partial(
        training_arguments,
        folder.steps_path,
        device=recipe.device,
        seed=recipe.seed,
        train=train,
        eval_on_start=owes_evaluation(start, evaluation, train.eval_steps),
        include_num_input_tokens_seen="non_padding",
        # Log-probabilities come from a fused head in float32, so that accelerate's autocast copies no logits.
        bf16=train.dtype == "bfloat16",
    )
    trainer = make_trainer(
        arguments=arguments,
        run=folder,
        listener=listener,
        interruption=Interruption(),
        eval_every=train.eval_steps,
        tokens_per_step=None,
        wall_seconds_before=start.wall_seconds,
        save_total_limit=train.save_total_limit,
        tracking=Tracking(train.trackers, folder, listener, first_step=start.step),
        evaluate_step=evaluation.measure,
        save=partial(save, model, tokenizer=tokenizer),
        build_optimizer=partial(build_optimizer, options=recipe.optimizer),
        learning_rate_factor=factor_of(recipe.scheduler.model_dump(), train.max_steps),
        model=model,
    )
    listener(TrainingStarted(max_steps=train.max_steps, first_step=start.step, facts=folder.facts()))
    # The start is measured too: without it no one can tell what the stage added.
    finished = drive(trainer, start, evaluation, listener, max_steps=train.max_steps, measure_start=True)
    if trainer.is_world_process_zero():
        write_model(folder, partial(save, model, tokenizer=tokenizer))
    return Result("done" if finished else "stopped", results_of(folder, trainer.state.global_step))
