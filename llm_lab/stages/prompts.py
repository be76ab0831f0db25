"""What GRPO and PPO have in common: prompts that are answered, scored, and learnt from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from llm_lab.data.examples import Example
from llm_lab.data.mixing import build_example_mix
from llm_lab.errors import Problem, UserError
from llm_lab.evaluation.score import answer_measures, columns_of
from llm_lab.events import Listener, Notice, RunWarning
from llm_lab.hf.conversations import encode_prompt
from llm_lab.hf.load import quiet_libraries
from llm_lab.recipe.grpo import GrpoRecipe
from llm_lab.recipe.ppo import PpoRecipe
from llm_lab.rewards.build import build_rewards
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.processes import first_process_first, process_count
from llm_lab.training.finetune import Evaluation, Examples, fit, load_policy, open_sets, record_parent, settle_recipe
from llm_lab.training.loop import Result, find_local


def learn_from_rewards(
    recipe: GrpoRecipe | PpoRecipe,
    folder: RunFolder,
    listener: Listener,
    *,
    make_trainer: Callable[..., Any],
    answer_length: int,
    answers_per_prompt: int,
    steps_per_rollout: int,
    updates_per_rollout: int,
    resume: bool,
) -> Result:
    """Tune a model on the rewards of its own answers.

    steps_per_rollout: batches that are generated at once; updates_per_rollout: optimizer steps made on them.
    """
    quiet_libraries()
    with first_process_first():
        examples = open_sets(recipe, "prompt", folder, listener)
        model, tokenizer = load_policy(recipe, listener)
    record_parent(recipe, folder, model)
    terms = [term.model_dump() for term in recipe.rewards]
    rewards = build_rewards(terms, device=recipe.device, find_model=find_local)
    for term in rewards.terms:
        listener(Notice(f"reward: {term.name} × {term.weight:g}{f', {term.about}' if term.about else ''}"))
    room = recipe.train.max_length - answer_length
    sets = [_that_fit(rows, tokenizer, room, source, listener) for source, rows in _each(examples)]
    rewards.check_columns(columns_of([example for rows in sets for example in rows]))
    recipe = settle_recipe(recipe, sum(map(len, sets)), folder, listener)
    rows = recipe.train.per_device_train_batch_size * process_count() * steps_per_rollout
    rollouts = -(-recipe.train.max_steps // updates_per_rollout)
    order = build_example_mix(
        sets,
        [source.weight for source in recipe.data],
        num_samples=rollouts * rows // answers_per_prompt,
        seed=recipe.seed,
    )
    for source, epochs in zip(examples.sources, order.epochs(), strict=True):
        each = f"{answers_per_prompt} answers each" if answers_per_prompt > 1 else "one answer each"
        listener(Notice(f"{source.key}: the prompts are read {epochs:.2f} times over the run, {each}"))
    measures = answer_measures(recipe, folder, listener, model, tokenizer, examples.validation)
    return fit(
        recipe,
        folder,
        listener,
        model,
        tokenizer,
        make_trainer=partial(make_trainer, prompts=list(order), rewards=rewards, tokenizer=tokenizer),
        evaluation=Evaluation(folder, measures),
        resume=resume,
    )


def _each(examples: Examples) -> list[tuple[Any, Sequence[Example]]]:
    return list(zip(examples.sources, examples.train, strict=True))


def _that_fit(rows: Sequence[Example], tokenizer: Any, room: int, source: Any, listener: Listener) -> list[Example]:
    """Return the prompts that leave room for an answer; the others are counted."""
    kept = [example for example in rows if len(encode_prompt(tokenizer, example.prompt)) <= room]
    if len(kept) < len(rows):
        listener(
            RunWarning(
                f"{source.key}: {len(rows) - len(kept):,} of {len(rows):,} prompts are longer than {room:,} tokens, "
                "which leaves no room for an answer: left out"
            )
        )
    if not kept:
        why = f"no prompt is short enough: train.max_length leaves {room:,} tokens beside the answer"
        fix = "Set a larger train.max_length, or a smaller max_completion_length."
        raise UserError(Problem(f"{source.key}.path", why, value=source.path, fix=fix))
    return kept
