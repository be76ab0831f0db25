"""What each attention head does: scores for known patterns, and what the model loses without the head.

The patterns are measured on random tokens that are repeated once. Only the repetition can be predicted there, so a high
induction score can't come from the meaning of a text (Olsson et al., arXiv:2209.11895).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from llm_lab.errors import Problem, UserError
from llm_lab.hf.load import context_of

from .anatomy import base_of
from .recording import run_reading, without_heads

LENGTH, ROWS, SEED = 50, 4, 0
MOST_TOKENS = 2000  # of the vocabulary, from which the random tokens are chosen
PROBED, RARE = 64, 0.1  # one-token texts, and the least mean probability, as a multiple of the uniform one
SHORTEST = 4  # the minimum number of random tokens in one copy
INDUCTION, PREVIOUS = 0.3, 0.4  # scores from which a head is named after its pattern
Head = tuple[int, int]  # layer, head


@dataclass(frozen=True)
class Repeats:
    """Sequences of random tokens, each repeated once: ids (rows, start + 2 * length).

    start: how many tokens come before the first copy (a beginning-of-sequence token, or none).
    """

    ids: torch.Tensor
    length: int
    start: int = 0


@dataclass(frozen=True)
class HeadScores:
    """Scores of every head, each (layers, heads), between 0 and 1; NaN in layers without attention weights.

    previous: mean attention to the previous token. induction: mean attention, from the second copy, to the token after
    the first occurrence of the current one. duplicate: mean attention to that first occurrence. first: mean attention
    to the first token of the sequence (the sink). first_loss, second_loss: mean loss on the two copies, in nats.
    """

    previous: torch.Tensor
    induction: torch.Tensor
    duplicate: torch.Tensor
    first: torch.Tensor
    first_loss: float
    second_loss: float


def repeated_tokens(
    tokens: Sequence[int], *, length: int = LENGTH, rows: int = ROWS, seed: int = SEED, start: int | None = None
) -> Repeats:
    """Return random sequences of these tokens, each repeated once. start: a token to put in front of them.

    Within one copy, no token occurs twice if there are enough of them.
    """
    generator = torch.Generator().manual_seed(seed)
    known = torch.as_tensor(list(tokens))
    length = min(length, len(known))
    copies = torch.stack([known[torch.randperm(len(known), generator=generator)[:length]] for _ in range(rows)])
    ids = torch.cat([copies, copies], dim=1)
    if start is not None:
        ids = torch.cat([torch.full((rows, 1), start), ids], dim=1)
    return Repeats(ids, length, int(start is not None))


def repeats_for(model: Any, tokenizer: Any = None, *, rows: int = ROWS, seed: int = SEED) -> Repeats:
    """Return repeated random tokens that suit a model: ordinary tokens, within its context.

    Left out are special tokens, and tokens that are not text by themselves (parts of characters); without a tokenizer,
    only the special tokens of the config. If the vocabulary is small, tokens that the model hardly ever predicts are
    also left out, because its data may not contain them. The sequence begins as the tokenizer begins every text. Raises
    UserError if the context or the vocabulary is too small.
    """
    start = _start_token(tokenizer)
    context = context_of(base_of(model))
    length = LENGTH if context is None else min(LENGTH, (context - (start is not None)) // 2)
    tokens = ordinary_tokens(model, tokenizer, seed=seed)
    if len(tokens) < MOST_TOKENS:
        tokens = _known_tokens(model, tokens)
    length = min(length, len(tokens))
    if length < SHORTEST:
        why = f"repeated random tokens require a context of {2 * SHORTEST + 1} and {SHORTEST} ordinary tokens"
        raise UserError(Problem("model", why))
    return repeated_tokens(tokens, length=length, rows=rows, seed=seed, start=start)


@torch.no_grad()
def _known_tokens(model: Any, tokens: list[int]) -> list[int]:
    """Return the tokens that a model predicts with some probability after single tokens; some of them are tried."""
    if len(tokens) < SHORTEST:
        return tokens
    chosen = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(SEED))[:PROBED]
    ids = torch.tensor(tokens)[chosen, None].to(model.device)
    mean = model(input_ids=ids, use_cache=False).logits[:, 0].float().softmax(-1).mean(0).cpu()
    known = [token for token in tokens if float(mean[token]) * len(mean) >= RARE]
    return known if len(known) >= SHORTEST else tokens


def _start_token(tokenizer: Any) -> int | None:
    """Return the token that a tokenizer puts in front of every text, or None."""
    if tokenizer is None:
        return None
    bos = getattr(tokenizer, "bos_token_id", None)
    ids = tokenizer("a", verbose=False)["input_ids"]
    return bos if bos is not None and ids and ids[0] == bos else None


def ordinary_tokens(model: Any, tokenizer: Any = None, *, most: int = MOST_TOKENS, seed: int = SEED) -> list[int]:
    """Return tokens of ordinary text: at most `most`, chosen at random from the vocabulary."""
    rows = model.get_input_embeddings().weight.shape[0]
    count = min(rows, len(tokenizer)) if tokenizer is not None else rows
    config = base_of(model).config.get_text_config()
    special = set(getattr(tokenizer, "all_special_ids", ()))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(config, name, None)
        special |= set(value if isinstance(value, list) else [value])
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    found = []
    for token in shuffled:
        if token not in special and (tokenizer is None or _is_text(tokenizer, token)):
            found.append(token)
        if len(found) == most:
            break
    return sorted(found)


def _is_text(tokenizer: Any, token: int) -> bool:
    text = tokenizer.decode([token])
    return bool(text.strip()) and text.isprintable() and "\ufffd" not in text


def score_heads(model: Any, repeats: Repeats) -> HeadScores:
    """Return the scores of every head on repeated random tokens."""
    start, length = repeats.start, repeats.length
    second = torch.arange(start + length, start + 2 * length)
    later = torch.arange(start + 1, start + 2 * length)
    found: dict[str, dict[int, torch.Tensor]] = {"previous": {}, "induction": {}, "duplicate": {}, "first": {}}

    def use(layer: int, weights: torch.Tensor) -> None:
        found["previous"][layer] = weights[:, :, later, later - 1].mean(dim=(0, 2))
        # In the first copy, the successor of the last token is the first token of the second copy.
        found["induction"][layer] = weights[:, :, second, second - length + 1].mean(dim=(0, 2))
        found["duplicate"][layer] = weights[:, :, second, second - length].mean(dim=(0, 2))
        found["first"][layer] = weights[:, :, later, 0].mean(dim=(0, 2))

    logits, _ = run_reading(model, repeats.ids, use)
    layers = base_of(model).config.get_text_config().num_hidden_layers
    heads = max((len(scores) for scores in found["first"].values()), default=0)
    tables = {
        name: torch.stack(
            [
                F.pad(rows[layer].cpu(), (0, heads - len(rows[layer])), value=float("nan"))
                if layer in rows
                else torch.full((heads,), float("nan"))
                for layer in range(layers)
            ]
        )
        for name, rows in found.items()
    }
    first, last = _copy_losses(logits, repeats)
    return HeadScores(**tables, first_loss=first, second_loss=last)


def induction_scores(model: Any, repeats: Repeats | None = None) -> torch.Tensor:
    """Return the induction score of every head, (layers, heads)."""
    return score_heads(model, repeats or repeats_for(model)).induction


def _copy_losses(logits: torch.Tensor, repeats: Repeats) -> tuple[float, float]:
    """Return the mean loss on the first and on the second copy, in nats.

    The first token of each copy is left out, because nothing announces the repetition.
    """
    rows, total = repeats.ids.shape
    losses = F.cross_entropy(
        logits[:, :-1].float().reshape(rows * (total - 1), -1),
        repeats.ids[:, 1:].to(logits.device).reshape(-1),
        reduction="none",
    ).view(rows, -1)
    # losses[:, i] is the loss on token i + 1.
    start, length = repeats.start, repeats.length
    return (
        float(losses[:, start : start + length - 1].mean()),
        float(losses[:, start + length : start + 2 * length - 1].mean()),
    )


@torch.no_grad()
def repeated_loss(model: Any, repeats: Repeats) -> float:
    """Return the mean loss on the second copy, in nats: low if the model repeats what it has read."""
    return _copy_losses(model(input_ids=repeats.ids.to(model.device), use_cache=False).logits, repeats)[1]


@torch.no_grad()
def text_loss(model: Any, ids: Sequence[int] | torch.Tensor) -> float:
    """Return the mean loss on one text, in nats per token."""
    batch = torch.as_tensor(ids, device=model.device).reshape(1, -1)
    logits = model(input_ids=batch, use_cache=False).logits
    return float(F.cross_entropy(logits[0, :-1].float(), batch[0, 1:]))


@contextmanager
def ablate(model: Any, heads: Sequence[Head]) -> Iterator[None]:
    """Zero-ablate heads, given as (layer, head): the model runs as if their output were zero."""
    config = base_of(model).config.get_text_config()
    with without_heads(model, heads, config.num_attention_heads):
        yield


@dataclass(frozen=True)
class Ablation:
    """The rise of the loss without each head, in nats. control: heads chosen at random, for comparison."""

    layer: int
    head: int
    repeated: float
    text: float
    control: bool = False


def ablate_heads(
    model: Any,
    heads: Sequence[Head],
    repeats: Repeats,
    text: Sequence[int] | torch.Tensor,
    *,
    controls: Sequence[Head] = (),
    done: Callable[[int], None] = lambda number: None,
) -> tuple[float, float, list[Ablation]]:
    """Ablate heads one at a time; return the two losses of the whole model, and the rise without each head."""
    repeated, own = repeated_loss(model, repeats), text_loss(model, text)
    found = []
    for number, (layer, head) in enumerate(heads):
        with ablate(model, [(layer, head)]):
            rises = repeated_loss(model, repeats) - repeated, text_loss(model, text) - own
        found.append(Ablation(layer, head, *rises, control=(layer, head) in controls))
        done(number + 1)
    return repeated, own, found


def entropies(weights: torch.Tensor) -> torch.Tensor:
    """Return the mean entropy, in bits, of heads' attention (heads, length, length), over all positions but the first.

    The first token can only attend to itself.
    """
    rows = weights[:, 1:]
    return -(rows * rows.clamp_min(1e-30).log2()).sum(-1).mean(-1)
