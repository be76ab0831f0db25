"""The critic of PPO: a second network that foretells, before each token, the reward still to come."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llm_lab.errors import Problem, UserError


class Critic(nn.Module):
    """A backbone with a scalar head, read before each token.

    model: a sequence classifier of one label (transformers' or ours), or its PEFT wrapping.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        base = self._classifier()
        if not hasattr(base, "score") or base.config.num_labels != 1:
            why = f"{type(base).__name__} has no score of one label for every token, which a critic needs"
            raise UserError(Problem("ppo.critic", why, fix="Name a language model, or a reward model made of one."))
        base.score.float()

    def _classifier(self) -> Any:
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, tokens: int) -> torch.Tensor:
        """Return float32 values (rows, tokens) of the states before each of the last tokens was chosen."""
        base = self._classifier()
        # Not every model has positions (ALiBi's have none); those that do would count the padding.
        known = "position_ids" in inspect.signature(base.base_model.forward).parameters
        extra = {"position_ids": (attention_mask.cumsum(dim=-1) - 1).clamp(min=0)} if known else {}
        hidden = base.base_model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **extra
        ).last_hidden_state
        # The state before token t is what the model knows at position t - 1.
        before = hidden[:, -tokens - 1 : -1] if tokens else hidden[:, :0]
        with torch.autocast(hidden.device.type, enabled=False):  # bf16 knows values to three digits only
            return base.score(before.float()).squeeze(-1)


def load_critic(
    path: str | Path,
    *,
    peft_config: Any = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> Critic:
    """Load a critic in float32: a reward model as it is, or a causal LM with a new head that says 0.

    peft_config: with it, the backbone is frozen and learns through an adapter; the head is trained in full.
    """
    from transformers import AutoModelForSequenceClassification

    from llm_lab.model.modeling_lab import register

    register()
    extra = {"attn_implementation": attn_implementation} if attn_implementation else {}
    model, loading = AutoModelForSequenceClassification.from_pretrained(
        str(path),
        num_labels=1,
        dtype=torch.float32,
        output_loading_info=True,
        trust_remote_code=trust_remote_code,
        **extra,
    )
    if "score.weight" in loading["missing_keys"]:
        # A random head would begin with advantages of noise.
        nn.init.zeros_(model.score.weight)
    if peft_config is not None:
        from peft import get_peft_model

        model = get_peft_model(model, peft_config)
        for name, parameter in model.named_parameters():
            if ".score." in name and "original_module" not in name:
                parameter.requires_grad_(True)
    return Critic(model)
