"""What all training stages after pretraining share: open and encode the examples, load the model, fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from llm_lab.data.examples import Example, ExampleSource, open_examples
from llm_lab.data.mixing import ExampleMix, build_example_mix
from llm_lab.data.paths import hub_mark
from llm_lab.data.split import split_examples
from llm_lab.errors import Problem, UserError
from llm_lab.estimate.gguf_header import is_gguf
from llm_lab.events import Listener, Notice, RunWarning, TrainingStarted
from llm_lab.hf.chat_templates import ChosenTemplate, apply_chat_template_choice, resize_for
from llm_lab.hf.load import checkpoint_activations, load_model, require_4bit
from llm_lab.hf.lora_layers import attach_lora, describe_trainable
from llm_lab.hf.rendering import DATE, Refused
from llm_lab.hf.save import save_model
from llm_lab.hf.tokenizers import load_tokenizer
from llm_lab.optim.schedule import decay_factor_of, factor_of
from llm_lab.recipe.post_training import TuneRecipe, fill_steps
from llm_lab.recipe.registry import STAGES
from llm_lab.runs.folder import RunFolder, is_reward_model
from llm_lab.runs.processes import is_first_process, process_count
from llm_lab.runs.samples import last_samples

from .loop import (
    Result,
    describe_parent,
    find_local,
    find_start,
    must_evaluate_first,
    require_same_data,
    run_loop,
    set_seed_and_precision,
    write_model,
)

KEY = "model.checkpoint"
Row = TypeVar("Row")
Recipe = TypeVar("Recipe", bound=TuneRecipe)


@dataclass(frozen=True)
class Examples:
    """The sources, the training examples of each, and the examples held out for validation."""

    sources: list[ExampleSource]
    train: list[Sequence[Example]]
    validation: list[Example]


def open_data(recipe: TuneRecipe, folder: RunFolder, listener: Listener) -> Examples:
    """Open the recipe's data and split it for validation. Raises UserError with the problems of all sources."""
    sources = open_example_sets(recipe)
    require_same_data(sources, folder)
    for source in sources:
        listener(Notice(f"{source.key}: {source.description}"))
    splits = split_examples(sources, fraction=recipe.validation.fraction, take=recipe.validation.from_)
    if is_first_process():
        data = [
            {"path": source.path, "fingerprint": source.fingerprint, **hub_mark(source.path), **source.counts.record()}
            for source in sources
        ]
        folder.update(data=data)
    held_out = [example for split in splits for example in split.validation]
    return Examples(sources, [split.train for split in splits], held_out)


def open_example_sets(recipe: TuneRecipe) -> list[ExampleSource]:
    """Open the recipe's data. Raises UserError with the problems of all sources."""
    kind = STAGES[recipe.stage].examples or ""
    sources: list[ExampleSource] = []
    problems: list[Problem | str] = []
    for index, given in enumerate(recipe.data):
        columns = given.columns.model_dump(exclude_none=True) if given.columns else None
        where: dict[str, Any] = {"key": f"data.{index}", "subset": given.subset, "split": given.split}
        try:
            sources.append(open_examples(given.path, kind=kind, columns=columns, **where))
        except UserError as error:
            problems.extend(error.problems)
    if problems:
        raise UserError(*problems)
    return sources


def encode_each(
    examples: Sequence[Example], encode: Callable[[Example, Counter[str]], Iterable[Row]]
) -> tuple[list[Row], Counter[str]]:
    """Return the encoded examples, and how many were cut, changed or left out, by reason.

    encode: takes an example and the counts. Examples that the chat template refuses are left out.
    """
    found: list[Row] = []
    counts: Counter[str] = Counter()
    refused: dict[str, list[Example]] = {}
    for example in examples:
        try:
            found += encode(example, counts)
        except Refused as error:
            refused.setdefault(error.reason, []).append(example)
    return found, counts + Counter(describe_refused(refused))


def describe_refused(refused: Mapping[str, Sequence[Example]]) -> dict[str, int]:
    """Return {reason, with the first example and how to keep them: number} of the examples that a template refused."""
    counts = {}
    for reason, some in refused.items():
        first = " ".join(some[0].describe().split())[:60]
        fix = ""
        if some[0].prompt and some[0].prompt[0]["role"] == "system":
            fix = "; to keep them, put the system text into the first question, or set chat_template: chatml"
        counts[f"left out: {reason} (the first: {first!r}{fix})"] = len(some)
    return counts


def encode_examples(
    examples: Examples,
    encode: Callable[[Sequence[Example]], tuple[list[Row], Mapping[str, int]]],
    listener: Listener,
    *,
    noun: str,
    max_length: int,
) -> list[list[Row]]:
    """Return the encoded training examples of each source; warns about those that were cut or dropped.

    encode: turns examples into (rows, {reason: how many were cut or dropped}). noun: what one example is called.
    Raises UserError if a source has no examples left.
    """
    sets: list[list[Row]] = []
    problems: list[Problem | str] = []
    for source, rows in zip(examples.sources, examples.train, strict=True):
        encoded, counts = encode(rows)
        for reason, count in counts.items():
            listener(RunWarning(f"{source.key}: {count:,} of {len(rows):,} {noun}s: {reason}"))
        if not encoded:
            why = f"no {noun} fits within train.max_length = {max_length}"
            fix = "Use a larger train.max_length."
            if reasons := [f"{count:,} {reason}" for reason, count in counts.items() if reason.startswith("left out")]:
                why, fix = f"no {noun} is left to train on: {'; '.join(reasons)}", "Use other data."
            problems.append(Problem(f"{source.key}.path", why, value=source.path, fix=fix))
        sets.append(encoded)
    if problems:
        raise UserError(*problems)
    return sets


def order_examples(
    recipe: TuneRecipe, examples: Examples, sets: Sequence[Sequence[Row]], listener: Listener
) -> ExampleMix:
    """Return the order in which the run reads the encoded examples, and report the epochs of each source."""
    weights = [source.weight for source in recipe.data]
    rows = recipe.train.max_steps * rows_per_step(recipe)
    order = build_example_mix(sets, weights, num_samples=rows, seed=recipe.seed)
    for source, epochs in zip(examples.sources, order.epochs(), strict=True):
        listener(Notice(f"{source.key}: {epochs:.2f} epochs over the run"))
    return order


def dataset_in_order(order: ExampleMix, row_of: Callable[[Any], Mapping[str, Any]] = lambda row: row) -> Any:
    """Return a mix as a `datasets.Dataset` for TRL: rows in the order of the mix, each stored once.

    row_of: returns the columns of a row.
    """
    from datasets import Dataset

    starts, flat = [0], []
    for rows in order.sets:
        starts.append(starts[-1] + len(rows))
        flat += [row_of(row) for row in rows]
    places = (order.locate(index) for index in range(len(order)))
    return Dataset.from_list(flat).select([starts[source] + place for source, place in places])


def choose_template(recipe: TuneRecipe, tokenizer: Any, folder: RunFolder, listener: Listener) -> ChosenTemplate:
    """Set the tokenizer's chat template; a resumed run keeps the date of a template that reads the clock."""
    date = recipe.template_date or folder.facts().get(DATE)
    chosen = apply_chat_template_choice(tokenizer, recipe.chat_template, date=date)
    listener(Notice(chosen.notice))
    if chosen.date and is_first_process():
        folder.update(**{DATE: chosen.date})
    return chosen


def fit_vocabulary(model: Any, tokenizer: Any, chosen: ChosenTemplate, listener: Listener, *, seed: int) -> None:
    """Give the model embeddings for the tokens of its chat template, as resize_for does."""
    filled = set(resize_for(model, tokenizer, chosen, seed=seed)) & set(chosen.control_ids)
    if filled:
        names = ", ".join(tokenizer.convert_ids_to_tokens(sorted(filled)))
        listener(RunWarning(f"the model was never trained on {names}: their embeddings start like those of new tokens"))


def load_model_to_train(recipe: TuneRecipe, folder: RunFolder, listener: Listener) -> tuple[Any, Any]:
    """Load model and tokenizer with a chat template and the recipe's adapter; an earlier adapter is merged in first.

    Weights are float32. With an adapter on CUDA, the frozen weights have the precision of the run.
    """
    set_seed_and_precision(recipe)
    checkpoint, lora, train = find_local(recipe.model.checkpoint), recipe.lora, recipe.train
    if is_reward_model(Path(checkpoint)):
        why = "this is a reward model; it scores answers and can't generate text"
        raise UserError(Problem(KEY, why, value=recipe.model.checkpoint, fix="Choose a language model."))
    in_4bit = lora is not None and lora.load_in_4bit
    if in_4bit:
        require_4bit(recipe.device)
    if is_gguf(checkpoint):
        why = "its weights are unpacked, but the precision that quantization lost can't be restored"
        listener(Notice(f"{checkpoint} is a GGUF file: {why}"))
    model = load_model(
        checkpoint,
        device=recipe.device,
        dtype=frozen_dtype(recipe),
        attn_implementation=train.attn_implementation,
        merge=True,
        load_in_4bit=in_4bit,
    )
    tokenizer = load_tokenizer(checkpoint, key=KEY)
    chosen = choose_template(recipe, tokenizer, folder, listener)
    fit_vocabulary(model, tokenizer, chosen, listener, seed=recipe.seed)
    model = prepare_training(model, recipe, chosen)
    trainable = describe_trainable(model)
    listener(Notice(f"model: {type(base_of(model)).__name__}; {trainable.describe()}"))
    # Training mode, so that the recipe's dropout applies. Trainers that must not have dropout switch it off.
    return model.train(), tokenizer


def prepare_training(model: Any, recipe: TuneRecipe, chosen: ChosenTemplate | None = None) -> Any:
    """Return the model with the recipe's adapter and gradient checkpointing."""
    if recipe.train.gradient_checkpointing:
        checkpoint_activations(model)
        if recipe.lora is not None:
            model.enable_input_require_grads()
    if recipe.lora is None:
        return model
    new_ids, control_ids = (chosen.new_ids, chosen.control_ids) if chosen else ((), ())
    return attach_lora(model, recipe.lora, seed=recipe.seed, new_token_ids=new_ids, control_ids=control_ids)


def drop_right_padding(model: Any) -> None:
    """Drop the mask of batches that are padded on the right: no token attends to later ones anyway.

    PyTorch uses its fastest attention kernels only without a mask, and transformers waits for the device to check the
    mask for padding. Models that balance experts keep the mask, because they use it to count tokens.
    """
    if base_of(model).config._attn_implementation != "sdpa":
        return

    def drop(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if kwargs.get("fused_lm_head") and not kwargs.get("output_router_logits"):
            kwargs = {key: value for key, value in kwargs.items() if key != "attention_mask"}
        return args, kwargs

    model.register_forward_pre_hook(drop, with_kwargs=True)


def frozen_dtype(recipe: TuneRecipe) -> str:
    """Return the precision in which to load a model for training: float32, or the run's if the weights are frozen."""
    return recipe.train.dtype if recipe.lora is not None and recipe.device == "cuda" else "float32"


def base_of(model: Any) -> Any:
    """Return the model without its PEFT wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def record_parent(recipe: TuneRecipe, folder: RunFolder, model: Any) -> None:
    """Record in run.json where the model comes from and how many of its parameters are trained."""
    if is_first_process():
        trainable = describe_trainable(model)
        folder.update(
            parameters=trainable.total,
            trained_parameters=trainable.parameters,
            parent=describe_parent(find_local(recipe.model.checkpoint)),
        )


def derive_max_steps(recipe: Recipe, examples: int, folder: RunFolder, listener: Listener) -> Recipe:
    """Return the recipe with max_steps computed from its epochs and the number of training examples."""
    stage = STAGES[recipe.stage]
    values, reasons = fill_steps(stage, recipe.model_dump(by_alias=True), examples=examples, processes=process_count())
    if "train.max_steps" in reasons:
        listener(Notice(f"steps: {values['train']['max_steps']:,}, {reasons['train.max_steps']}"))
        if is_first_process():
            folder.update(max_steps=values["train"]["max_steps"])
    return type(recipe).model_validate(values)


def rows_per_step(recipe: TuneRecipe) -> int:
    """Return the number of rows in an optimizer step, over all devices."""
    train = recipe.train
    return train.per_device_train_batch_size * train.gradient_accumulation_steps * process_count()


class Evaluation:
    """The measurements of an evaluation: loss on held-out examples, scores on held-out prompts, samples."""

    def __init__(self, folder: RunFolder, measures: Sequence[Callable[[int], dict[str, float] | None]]):
        self.folder, self.measures = folder, measures
        self._measured: set[int] = set()

    def measure(self, step: int) -> dict[str, float] | None:
        """Return a row for metrics.jsonl, or None if there is nothing to measure."""
        self._measured.add(step)
        row: dict[str, float] = {}
        for measure in self.measures:
            row |= measure(step) or {}
        return row or None

    def done_at(self, step: int) -> bool:
        """Return whether a step has been evaluated, in this process or before a resume."""
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
    """Train, evaluate and save; returns the last value of each metric. recipe: its max_steps are set.

    make_trainer(arguments=..., **common): builds the stage's trainer; `arguments(kind, **options)` builds its
    TrainingArguments.
    """
    from llm_lab.optim.factory import build_optimizer

    from .seat_belts import STOP, learning_rate_scale, return_to_best
    from .tracking import Tracking
    from .trainer import Interruption, training_arguments

    train, start = recipe.train, find_start(folder, resume=resume)
    arguments = partial(
        training_arguments,
        folder.steps_path,
        device=recipe.device,
        seed=recipe.seed,
        train=train,
        eval_on_start=must_evaluate_first(start, evaluation, train.eval_steps),
        include_num_input_tokens_seen="non_padding",
        # accelerate's autocast copies no logits in these stages: log-probabilities come from a fused float32 head.
        bf16=train.dtype == "bfloat16",
    )
    trainer = make_trainer(
        arguments=arguments,
        run=folder,
        listener=listener,
        interruption=Interruption(),
        eval_every=train.eval_steps,
        tokens_before=None,
        wall_seconds_before=start.wall_seconds,
        save_total_limit=train.save_total_limit,
        tracking=Tracking(train.trackers, folder, listener, first_step=start.step),
        evaluate_step=evaluation.measure,
        save=partial(save, model, tokenizer=tokenizer),
        build_optimizer=partial(build_optimizer, options=recipe.optimizer),
        learning_rate_factor=factor_of(
            recipe.scheduler.model_dump(), train.max_steps, scale=learning_rate_scale(folder)
        ),
        weight_decay_factor=decay_factor_of(recipe.scheduler.model_dump(), train.max_steps),
        model=model,
    )
    trainer.stops_on_collapse = getattr(getattr(recipe, recipe.stage, None), "on_collapse", "warn") == STOP
    listener(
        TrainingStarted(train.max_steps, start.step, folder.facts(), folder.metrics(), samples=last_samples(folder))
    )
    # Step 0 is evaluated too, as the baseline of the stage.
    finished = run_loop(trainer, start, evaluation, listener, max_steps=train.max_steps, measure_start=True)
    step = trainer.state.global_step
    if not finished and getattr(trainer, "collapsed", False):
        step = return_to_best(trainer, folder, listener)
    write_model(folder, model, partial(save, model, tokenizer=tokenizer))
    return Result("done" if finished else "stopped", folder.results_at(step), trainer.interruption.requested)
