"""Attention that stays within a document of a row, for any model that knows packed rows by their positions."""

from __future__ import annotations

from typing import Any

import torch

from llm_lab.errors import Problem, UserError


def document_positions(input_ids: torch.Tensor, opener: int) -> torch.Tensor:
    """Return positions (rows, length) that begin anew at every `opener`, the end-of-text token between documents.

    That token closes a document as a target and opens the next one as an input: the first token of a document
    is predicted from it alone, which is how a text that begins from nothing is written too.
    """
    index = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    opened_at = torch.where(input_ids == opener, index, 0).cummax(dim=1).values
    return index - opened_at


def mask_documents(model: Any, opener: int) -> Any:
    """Let a model's attention stay within documents wherever it is given nothing but input_ids; returns the hook.

    transformers finds the documents of a row by positions that begin anew, where there is neither a mask nor a
    cache. UserError for a model in which a document still changes what is said of the next.
    """

    def add_positions(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        given = [kwargs.get(name) for name in ("attention_mask", "position_ids", "past_key_values", "inputs_embeds")]
        if all(value is None for value in given) and kwargs.get("use_cache") is False:
            kwargs = {**kwargs, "position_ids": document_positions(kwargs["input_ids"], opener)}
        return args, kwargs

    hook = model.register_forward_pre_hook(add_positions, with_kwargs=True)
    if not _is_masked(model, opener):
        raise UserError(
            Problem(
                "train.document_mask",
                f"{type(model).__name__} lets documents see each other all the same: its attention does not read "
                "the positions that part them",
                value=True,
                fix="Leave it out, or take another model or train.attn_implementation.",
            )
        )
    return hook


@torch.no_grad()
def _is_masked(model: Any, opener: int) -> bool:
    """Try it: change the first document of a row and look at the second."""
    a, b, c, d, x, *rest = [token for token in range(model.config.vocab_size) if token != opener][:10]
    # Two rows with different borders: a kernel that parts no more than one row is found out.
    pairs = ([[opener, *first, x, opener, *rest], [opener, *first, opener, x, *rest]] for first in ((a, b), (c, d)))
    training = model.training
    model.eval()
    try:
        logits = [
            model(input_ids=torch.tensor(rows, device=model.device), use_cache=False).logits[:, 4:].float()
            for rows in pairs
        ]
    except TypeError:  # it takes no positions at all
        return False
    finally:
        model.train(training)
    return bool((logits[0] - logits[1]).abs().max() <= 1e-5 * logits[0].std())
