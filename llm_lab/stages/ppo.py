"""Proximal policy optimisation: try, score, and do more of what scored better than the critic thought."""

from __future__ import annotations

from functools import partial
from typing import Any

from llm_lab.errors import Problem, UserError
from llm_lab.events import Listener
from llm_lab.recipe.ppo import PpoRecipe
from llm_lab.runs.folder import RunFolder
from llm_lab.training.loop import Result, find_local


def run(recipe: PpoRecipe, folder: RunFolder, listener: Listener, *, resume: bool = False) -> Result:
    """Tune a model on the rewards of its own answers as the resolved recipe says, into the run folder."""
    from .prompts import learn_from_rewards
    from .rollout_trainers import make_ppo_trainer

    options = recipe.ppo
    batches = recipe.train.gradient_accumulation_steps * options.num_mini_batches
    make = partial(
        make_ppo_trainer, options=options, steps_per_rollout=batches, make_critic=partial(make_critic, recipe)
    )
    return learn_from_rewards(
        recipe,
        folder,
        listener,
        make_trainer=make,
        answer_length=options.max_completion_length,
        answers_per_prompt=1,
        steps_per_rollout=batches,
        updates_per_rollout=options.num_ppo_epochs * options.num_mini_batches,
        resume=resume,
    )


def make_critic(recipe: PpoRecipe, tokenizer: Any) -> Any:
    """Return the critic: a copy of the model as it starts, with a new head that says 0, or the recipe's own.

    Beside an adapter the critic learns through one too, with a head that is trained whole.
    """
    from torch import nn

    from llm_lab.hf.chat_templates import resize_for
    from llm_lab.hf.load import checkpoint_activations, load_model
    from llm_lab.hf.lora_layers import attach_lora
    from llm_lab.rewards.classifier import add_head, load_classifier

    from .critic import Critic

    kernel = recipe.train.attn_implementation
    if recipe.ppo.critic is None:
        checkpoint = find_local(recipe.model.checkpoint)
        start = load_model(checkpoint, device=recipe.device, attn_implementation=kernel, merge=True)
        resize_for(start, tokenizer, seed=recipe.seed)
        model = add_head(start)
        # A random head would begin with advantages of noise.
        nn.init.zeros_(model.score.weight)
        model.config._name_or_path = model.name_or_path = checkpoint
    else:
        name = find_local(recipe.ppo.critic)
        model = load_classifier(name, device=recipe.device, new_head=True, key="ppo.critic", attn_implementation=kernel)
        _require_same_tokens(name, recipe.ppo.critic, tokenizer)
        resize_for(model, tokenizer, seed=recipe.seed)
    if recipe.train.gradient_checkpointing:
        checkpoint_activations(model)
        model.enable_input_require_grads()
    if recipe.lora is not None:
        model = attach_lora(model, recipe.lora, seed=recipe.seed + 1)
    return Critic(model.to(recipe.device))


def _require_same_tokens(folder: str, name: str, tokenizer: Any) -> None:
    """A critic reads the policy's tokens as they are: with another vocabulary they would mean other words."""
    from llm_lab.hf.tokenizers import load_tokenizer

    own, theirs = tokenizer.get_vocab(), load_tokenizer(folder, key="ppo.critic").get_vocab()
    differing = sum(own.get(token) != number for token, number in theirs.items())
    if differing:
        why = f"{differing:,} of its {len(theirs):,} tokens are others than the model's"
        raise UserError(Problem("ppo.critic", why, value=name, fix="Name one that was made from the same model."))
