"""The critic (value model) of PPO: a second network that predicts, before each token, the reward still to come."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from llm_lab.errors import Problem, UserError
from llm_lab.hf.chat_templates import resize_for
from llm_lab.hf.load import checkpoint_activations, load_model
from llm_lab.hf.lora_layers import attach_lora
from llm_lab.hf.tokenizers import load_tokenizer
from llm_lab.recipe.ppo import PpoRecipe
from llm_lab.rewards.classifier import add_head, load_classifier
from llm_lab.training.loop import find_local
from llm_lab.training.tuned_run import base_of, frozen_dtype


class Critic(nn.Module):
    """A backbone with a scalar head, read before each token.

    model: a sequence classifier with one label (transformers' or LabForSequenceClassification), or a PEFT model of it.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        base = base_of(model)
        if not hasattr(base, "score") or base.config.num_labels != 1:
            why = f"a critic needs a score head with one label for each token, which {type(base).__name__} lacks"
            fix = "Use a language model, or a reward model trained from one."
            raise UserError(Problem("ppo.critic", why, fix=fix))
        base.score.float()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, tokens: int) -> torch.Tensor:
        """Return float32 values (rows, tokens) of the states before each of the last `tokens` tokens."""
        base = base_of(self.model)
        # Some models (ALiBi) have no position ids. In the others, padding must not be counted.
        known = "position_ids" in inspect.signature(base.base_model.forward).parameters
        extra = {"position_ids": (attention_mask.cumsum(dim=-1) - 1).clamp(min=0)} if known else {}
        hidden = base.base_model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **extra
        ).last_hidden_state
        # The state before token t is the hidden state at position t - 1.
        before = hidden[:, -tokens - 1 : -1] if tokens else hidden[:, :0]
        with torch.autocast(hidden.device.type, enabled=False):  # bf16 has only about three decimal digits
            return base.score(before.float()).squeeze(-1)


def make_critic(recipe: PpoRecipe, tokenizer: Any) -> Critic:
    """Return the critic: a copy of the initial model with a new head that predicts 0, or the recipe's own.

    If the recipe has an adapter, the critic gets one too; its head is trained in full.
    """
    options: dict[str, Any] = {"attn_implementation": recipe.train.attn_implementation, "dtype": frozen_dtype(recipe)}
    if recipe.ppo.critic is None:
        checkpoint = find_local(recipe.model.checkpoint)
        start = load_model(checkpoint, device=recipe.device, merge=True, **options)
        resize_for(start, tokenizer, seed=recipe.seed)
        model = add_head(start)
        # A random head would give random advantages at the start.
        nn.init.zeros_(model.score.weight)
        model.config._name_or_path = model.name_or_path = checkpoint
    else:
        name = find_local(recipe.ppo.critic)
        model = load_classifier(name, device=recipe.device, new_head=True, key="ppo.critic", **options)
        _require_same_tokens(name, recipe.ppo.critic, tokenizer)
        resize_for(model, tokenizer, seed=recipe.seed)
    if recipe.train.gradient_checkpointing:
        checkpoint_activations(model)
        model.enable_input_require_grads()
    if recipe.lora is not None:
        model = attach_lora(model, recipe.lora, seed=recipe.seed + 1)
    return Critic(model.to(recipe.device))


def _require_same_tokens(folder: str, name: str, tokenizer: Any) -> None:
    """Raise UserError if the critic has another vocabulary: it reads the token ids of the trained model."""
    own, other = tokenizer.get_vocab(), load_tokenizer(folder, key="ppo.critic").get_vocab()
    differing = sum(own.get(token) != number for token, number in other.items())
    if differing:
        why = f"{differing:,} of its {len(other):,} tokens differ from the model's"
        fix = "Use a critic trained from the same model."
        raise UserError(Problem("ppo.critic", why, value=name, fix=fix))
