"""Reward models: learn from preferences to give the better answer the higher score. setup -> build -> fit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llm_lab.data.examples import Example, ExampleSource, build_example_mix, open_examples, split_examples
from llm_lab.hf.chat_templates import ChosenTemplate, apply_chat_template_choice, resize_for
from llm_lab.hf.load import quiet_libraries
from llm_lab.hf.lora import attach_lora, describe_trainable
from llm_lab.hf.tokenizers import load_tokenizer
from llm_lab.plan.schedule import factor_of
from llm_lab.recipe.errors import LabError, Problem, UserError
from llm_lab.recipe.post_training import RewardRecipe
from llm_lab.rewards.classifier import load_classifier
from llm_lab.rewards.models import RewardModel
from llm_lab.runs.display import Display
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.processes import first_process_first, is_first_process, process_count

from .pretrain import Result, _demand_whole, describe_parent, find_local

KEY = "model.checkpoint"


@dataclass(frozen=True)
class Preferences:
    """What is learnt from: the sources, and their examples in training and validation."""

    sources: list[ExampleSource]
    train: list[Sequence[Example]]
    validation: list[Example]


def run(recipe: RewardRecipe, folder: RunFolder, display: Display, *, resume: bool = False) -> Result:
    """Train a reward model as the resolved recipe says, into the run folder."""
    quiet_libraries()
    with first_process_first():
        preferences = setup(recipe, folder, display)
        model, tokenizer = build(recipe, display)
    if is_first_process():
        checkpoint = find_local(recipe.model.checkpoint)
        count = sum(parameter.numel() for parameter in model.parameters())
        folder.update(parameters=count, parent=describe_parent(checkpoint))
    return fit(recipe, folder, display, preferences, model, tokenizer, resume=resume)


def setup(recipe: RewardRecipe, folder: RunFolder, display: Display) -> Preferences:
    """Open the sets of preferences and split them. UserError with the problems of all of them."""
    sources, problems = [], []
    for index, given in enumerate(recipe.data):
        columns = given.columns.model_dump(exclude_none=True) if given.columns else None
        try:
            sources.append(
                open_examples(
                    given.path,
                    key=f"data.{index}",
                    kind="preference",
                    subset=given.subset,
                    split=given.split,
                    columns=columns,
                )
            )
        except UserError as error:
            problems.extend(error.problems)
    if problems:
        raise UserError(*problems)
    before = [source["fingerprint"] for source in folder.facts().get("data", [])]
    changed = [source for source, old in zip(sources, before, strict=False) if source.fingerprint != old]
    if changed:
        why, mend = "this set has changed since the run began", "Put it back as it was, or start a new run."
        raise UserError(*(Problem(f"{source.key}.path", why, value=source.path, mend=mend) for source in changed))
    for source in sources:
        display.notice(f"{source.key}: {source.description}")
    splits = split_examples(sources, fraction=recipe.validation.fraction, take=recipe.validation.from_)
    if is_first_process():
        folder.update(data=[{"path": source.path, "fingerprint": source.fingerprint} for source in sources])
    return Preferences(
        sources, [split.train for split in splits], [one for split in splits for one in split.validation]
    )


def build(recipe: RewardRecipe, display: Display) -> tuple[Any, Any]:
    """Load the model with a score head, in float32, on the recipe's device, and its tokenizer with a chat template.

    The head is the checkpoint's own where it has one. A chat template is not given to an encoder, which reads pairs.
    """
    import torch
    from transformers import set_seed
    from trl.trainer.utils import disable_dropout_in_model

    from llm_lab.rewards.classifier import is_encoder

    set_seed(recipe.seed)
    torch.set_float32_matmul_precision("high" if recipe.device == "cuda" else "highest")
    checkpoint = find_local(recipe.model.checkpoint)
    tokenizer = load_tokenizer(checkpoint, key=KEY)
    kernel, in_4bit = recipe.train.attn_implementation, recipe.lora is not None and recipe.lora.load_in_4bit
    model = load_classifier(
        checkpoint, new_head=True, device=recipe.device, key=KEY, attn_implementation=kernel, load_in_4bit=in_4bit
    )
    chosen: ChosenTemplate | None = None
    if is_encoder(model.config):
        if recipe.chat_template is not None:
            why = f"a {model.config.model_type} reads pairs of prompt and answer, and no chat template"
            raise UserError(Problem("chat_template", why, value=recipe.chat_template, mend="Leave the key out."))
    else:
        chosen = apply_chat_template_choice(tokenizer, recipe.chat_template)
        display.notice(chosen.notice)
        resize_for(model, tokenizer, chosen, seed=recipe.seed)
    # As TRL does, but before the adapter comes: its own dropout is the recipe's.
    disable_dropout_in_model(model)
    if recipe.train.gradient_checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if recipe.lora is not None:
        if recipe.train.gradient_checkpointing:
            model.enable_input_require_grads()
        model = attach_lora(model, recipe.lora, seed=recipe.seed, new_token_ids=chosen.new_ids if chosen else ())
    display.notice(f"model: {type(model).__name__}, {describe_trainable(model).describe()}")
    return (model if in_4bit else model.to(recipe.device)), tokenizer


def encode(
    examples: Sequence[Example], model: Any, tokenizer: Any, *, max_length: int, dropped: Counter[str]
) -> list[dict[str, list[int]]]:
    """Return preferences as token ids, just as the trained model will read them; what is left out is counted.

    Answers longer than max_length lose their beginning; a pair of which the same is left teaches nothing.
    """
    reader = RewardModel(model, tokenizer, key=KEY, max_length=max_length)
    pairs = []
    for example in examples:
        chosen, rejected = (reader.encode(example.prompt, text) for text in (example.chosen, example.rejected))
        if chosen == rejected:
            dropped["both answers are the same as tokens"] += 1
            continue
        pair = {"chosen_ids": chosen.pop("input_ids"), "rejected_ids": rejected.pop("input_ids")}
        pair |= {f"chosen_{key}": value for key, value in chosen.items()}
        pair |= {f"rejected_{key}": value for key, value in rejected.items()}
        pairs.append(pair)
    if reader.truncated:
        dropped[f"answers longer than {max_length:,} tokens lost their beginning"] += reader.truncated
    return pairs


def fit(
    recipe: RewardRecipe,
    folder: RunFolder,
    display: Display,
    preferences: Preferences,
    model: Any,
    tokenizer: Any,
    *,
    resume: bool,
) -> Result:
    """Train, evaluate and save; returns the last evaluation's numbers."""
    from datasets import Dataset
    from trl import RewardConfig

    from llm_lab.optim.build import build_optimizer

    from .reward_trainer import LabRewardTrainer, collate_pairs, measure_pairs
    from .trainer import Interruption, training_arguments

    left_out: Counter[str] = Counter()
    into_pairs = partial(encode, model=model, tokenizer=tokenizer, max_length=recipe.train.max_length, dropped=left_out)
    sets = [into_pairs(examples) for examples in preferences.train]
    held_out = into_pairs(preferences.validation[: recipe.validation.max_examples])
    for reason, count in left_out.items():
        display.notice(f"{count:,}: {reason}")
    empty = [source for source, pairs in zip(preferences.sources, sets, strict=True) if not pairs]
    if empty:
        why = "no preference is left to train on once the answers are cut to train.max_length"
        raise UserError(*(Problem(f"{source.key}.path", why, value=source.path) for source in empty))
    train = with_steps(recipe.train, sum(map(len, sets)))
    warmup_steps = recipe.scheduler.warmup_steps
    scheduler = recipe.scheduler.model_copy(
        update={"warmup_steps": warmup_steps if warmup_steps is not None else train.max_steps // 20}
    )
    rows_per_step = train.per_device_train_batch_size * train.gradient_accumulation_steps * process_count()
    order = build_example_mix(
        sets,
        [given.weight for given in recipe.data],
        num_samples=train.max_steps * rows_per_step,
        seed=recipe.seed,
    )
    for source, epochs in zip(preferences.sources, order.epochs(), strict=True):
        display.notice(f"{source.key}: read {epochs:.2f} times over the run")

    checkpoint = folder.checkpoints()[-1] if resume and folder.checkpoints() else None
    if checkpoint:
        _demand_whole(checkpoint[1])
    first_step = checkpoint[0] if checkpoint else 0
    if is_first_process():
        folder.forget_after(first_step)
    before = max((row["wall_seconds"] for row in folder.metrics()), default=0.0)
    pad = model.config.get_text_config().pad_token_id
    pad = tokenizer.pad_token_id if pad is None else pad
    measured: list[int] = []

    def evaluate(step: int) -> dict[str, float] | None:
        measured.append(step)
        if not held_out:
            return None
        rows = train.per_device_train_batch_size
        return measure_pairs(model, held_out, pad_token_id=pad, rows=rows, device=recipe.device, dtype=train.dtype)

    def done_at(step: int) -> bool:
        known = any(row["step"] == step and "eval_loss" in row for row in folder.metrics())
        return not held_out or step in measured or known

    interruption = Interruption()
    starts = [0]
    for pairs in sets:
        starts.append(starts[-1] + len(pairs))
    rows = Dataset.from_list([pair for pairs in sets for pair in pairs])
    places = (order.locate(index) for index in range(len(order)))
    trainer = LabRewardTrainer(
        dtype=train.dtype,
        run=folder,
        display=display,
        interruption=interruption,
        eval_every=train.eval_steps,
        tokens_per_step=None,
        wall_seconds_before=before,
        save_total_limit=train.save_total_limit,
        evaluate_step=evaluate,
        save=partial(save_judge, model, tokenizer=tokenizer),
        build_optimizer=partial(build_optimizer, options=recipe.optimizer),
        learning_rate_factor=factor_of(scheduler.model_dump(), train.max_steps),
        model=model,
        args=training_arguments(
            folder.steps_path,
            device=recipe.device,
            seed=recipe.seed,
            train=train,
            eval_on_start=first_step > 0 and first_step % train.eval_steps == 0 and not done_at(first_step),
            kind=RewardConfig,
            max_length=None,  # cut above, and counted
            disable_dropout=False,  # done above
            activation_checkpointing=train.gradient_checkpointing,
            include_num_input_tokens_seen="non_padding",
            center_rewards_coefficient=recipe.reward.center_rewards_coefficient or None,
        ),
        data_collator=partial(collate_pairs, pad_token_id=pad),
        train_dataset=rows.select([starts[source] + place for source, place in places]),
        processing_class=tokenizer,
    )
    display.begin(max_steps=train.max_steps, first_step=first_step, facts=folder.facts())
    try:
        with interruption.listen(display):
            if checkpoint is None or first_step < train.max_steps:
                trainer.train(resume_from_checkpoint=str(checkpoint[1]) if checkpoint else None)
            else:
                # Trainer would train one step too many on a run that is complete.
                trainer._load_from_checkpoint(str(checkpoint[1]))
                trainer.state.global_step = first_step
            finished = trainer.state.global_step >= train.max_steps
            if finished and not done_at(trainer.state.global_step):
                trainer.evaluate_now()
    finally:
        display.end()
    if trainer.is_world_process_zero():
        write_judge(folder, model, tokenizer)
    return Result("done" if finished else "stopped", _results(folder, trainer.state.global_step))


def with_steps(train: Any, examples: int) -> Any:
    """Return the recipe's `train` with the steps that follow from num_train_epochs over so many examples."""
    rows_per_step = train.per_device_train_batch_size * train.gradient_accumulation_steps * process_count()
    steps = train.max_steps or max(1, math.ceil((train.num_train_epochs or 1.0) * examples / rows_per_step))
    eval_steps = train.eval_steps or max(min(steps, 10), steps // 10)
    return train.model_copy(
        update={
            "max_steps": steps,
            "eval_steps": eval_steps,
            "save_steps": train.save_steps or eval_steps,
            "logging_steps": train.logging_steps or min(50, max(1, steps // 50)),
        }
    )


def save_judge(model: Any, folder: Path, tokenizer: Any) -> None:
    """Write a reward model, or its adapter, as a plain Hugging Face folder."""
    from llm_lab.hf.adapter import save_adapter

    if hasattr(model, "peft_config"):
        return save_adapter(model, folder, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_judge(folder: RunFolder, model: Any, tokenizer: Any) -> None:
    """Write model/ whole: into a folder beside it, then moved to its place."""
    import shutil

    from .trainer import publish

    staged = folder.path / ".model"
    shutil.rmtree(staged, ignore_errors=True)
    try:
        save_judge(model, staged, tokenizer)
        publish(staged, folder.model_path)
    except OSError as error:
        raise LabError(f"{folder.model_path}: the model could not be written: {error.strerror or error}") from None


def _results(folder: RunFolder, step: int) -> dict[str, float]:
    names = ("eval_loss", "eval_accuracy", "eval_margin", "loss", "train_tokens", "wall_seconds")
    rows = folder.metrics()
    found: dict[str, float] = {"step": step}
    for row in rows:
        found |= {name: row[name] for name in names if name in row}
    speeds = sorted(row["tokens_per_second"] for row in rows if "tokens_per_second" in row)
    return found | ({"tokens_per_second": speeds[len(speeds) // 2]} if speeds else {})
