"""One model on one text: everything that `look` measures, as plain numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from llm_lab.errors import Problem, UserError
from llm_lab.events import Listener, Progress, ignore
from llm_lab.hf.adapter import is_adapter, read_adapter
from llm_lab.hf.configs import read_config
from llm_lab.hf.load import context_of
from llm_lab.safe_text import one_line

from .anatomy import base_of
from .heads import (
    INDUCTION,
    PREVIOUS,
    Ablation,
    Head,
    HeadScores,
    Repeats,
    ablate_heads,
    entropies,
    repeats_for,
    score_heads,
    text_loss,
)
from .lens import Attribution, Lens, Readout, attribute, logit_lens
from .recording import Recording, record, tolerance
from .similarity import FEWEST_TOKENS, cka, mean_similarity, position_similarity

# A page holds half of each head's matrix, with one byte per weight, up to this many bytes.
LARGEST_ATTENTION = 12_000_000
FEWEST_SHOWN = 16
# FLOPs for the ablation of every head, one at a time: about a minute on two cores, and seconds on a GPU.
ABLATION_BUDGET = {"cpu": 2e12, "cuda": 2e15}
ABLATION_ROWS = 2
TOP_HEADS, TOP_PREVIOUS, CONTROLS = 6, 4, 10
DEFAULT_TEXT = (
    "When Anna opened the old wooden box, she found a small brass key. Her brother asked where the key came from, "
    "and Anna said that when she opened the old wooden box, she found a small"
)


@dataclass(frozen=True)
class Check:
    """Two values that must be equal: their difference, and the largest one that rounding can explain."""

    name: str
    error: float
    limit: float

    @property
    def holds(self) -> bool:
        return self.error <= self.limit


@dataclass
class Inside:
    """Measurements inside a model. Tensors are on the CPU in float32; None: not available, see `missing`.

    text_tokens: each token of the text as it is displayed. norms: (layers + 1,) mean norm of the residual stream;
    added: (layers, 2), of what attention and the feed-forward network add; both without the first position. entropy:
    (layers, heads), on the text. sink: the same shape, mean attention to the first token.
    """

    name: str
    folder: str
    architecture: str
    parameters: int
    ids: list[int]
    text_tokens: list[str]
    recording: Recording
    entropy: torch.Tensor | None
    sink: torch.Tensor | None
    scores: HeadScores | None
    repeats: Repeats | None
    norms: torch.Tensor
    added: torch.Tensor | None
    lens: Lens | None
    lens_tokens: dict[int, str]
    attribution: Attribution | None
    similarity: torch.Tensor
    mean_similarity: torch.Tensor
    cka: torch.Tensor | None
    loss: float
    ablations: list[Ablation]
    every_head_ablated: bool
    checks: list[Check]
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def layers(self) -> int:
        return len(self.recording.attention)

    @property
    def heads(self) -> int:
        return 0 if self.scores is None else self.scores.induction.shape[1]

    def named_heads(self, scores: str, least: float) -> list[tuple[Head, float]]:
        """Return the heads with a score of at least `least`, highest first."""
        if self.scores is None:
            return []
        table = getattr(self.scores, scores)
        found = [((layer, head), float(table[layer, head])) for layer, head in _all_heads(table)]
        return sorted((one for one in found if one[1] >= least), key=lambda one: -one[1])

    def induction_heads(self) -> list[tuple[Head, float]]:
        return self.named_heads("induction", INDUCTION)

    def previous_heads(self) -> list[tuple[Head, float]]:
        return self.named_heads("previous", PREVIOUS)


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return the display text of tokens on one line: spaces as ·, and bytes that are not a character by their names."""
    found = []
    for token in ids:
        text = tokenizer.decode([token])
        if "\ufffd" in text or not text:
            text = str(tokenizer.convert_ids_to_tokens(int(token)))
        found.append(one_line(text).replace(" ", "·"))
    return found


def encode(model: Any, tokenizer: Any, text: str) -> tuple[list[int], list[str]]:
    """Return the token ids of a text, as many as can be shown, and remarks. Raises UserError for fewer than two tokens.

    Special tokens that are written in the text are tokenized as such.
    """
    if not text.strip():
        raise UserError(Problem("--prompt", "it is empty", fix="Write a sentence or two."))
    ids = list(tokenizer(text, verbose=False)["input_ids"])
    if len(ids) > 1 and ids[-1] in (tokenizer.eos_token_id, getattr(tokenizer, "sep_token_id", None)):
        ids = ids[:-1] if not text.endswith(str(tokenizer.eos_token)) else ids
    if len(ids) < 2:
        why = "it is a single token, which has nothing to attend to"
        raise UserError(Problem("--prompt", why, value=text, fix="Write a sentence or two."))
    config = base_of(model).config.get_text_config()
    rows = model.get_input_embeddings().weight.shape[0]
    if max(ids) >= rows:
        why = f"its tokenizer gives token {max(ids):,}, but the model has {rows:,}: it belongs to another model"
        raise UserError(Problem("model", why))
    heads = config.num_hidden_layers * (getattr(config, "num_attention_heads", None) or 1)
    shown = max(FEWEST_SHOWN, int((2 * LARGEST_ATTENTION / heads) ** 0.5))
    context = context_of(base_of(model))
    limits = [(shown, f"the weights of {heads:,} heads over more would be too large for a page")]
    if context:
        limits.append((context, "the context of the model ends there"))
    most, why = min(limits)
    if len(ids) <= most:
        return ids, []
    return ids[:most], [f"The text has {len(ids):,} tokens. Only its first {most:,} are used: {why}."]


def look_inside(
    model: Any,
    tokenizer: Any,
    ids: list[int],
    *,
    name: str,
    folder: str,
    ablation: bool = True,
    repeats: Repeats | None = None,
    listener: Listener = ignore,
) -> Inside:
    """Measure a causal LM in eval mode on one text. ids: at least two tokens, within the model's context.

    ablation: also measure the loss without single heads. repeats: the random tokens on which heads are scored; by
    default, those that suit the model. Raises UserError if the layers of the model aren't found.
    """
    limit = tolerance(model)
    parameters = sum(weight.numel() for weight in model.parameters())
    found = record(model, ids)
    missing: dict[str, str] = {}
    checks = []
    kept = [weights for weights in found.attention if weights is not None]
    if kept:
        # In gpt-oss and others, part of the attention goes to no token, so their rows do not sum to 1.
        checks.append(
            Check("attention weights of a token sum to 1", max(float((w.sum(-1) - 1).abs().max()) for w in kept), limit)
        )
    else:
        kind = base_of(model).config.model_type
        missing["attention"] = (
            f"No attention weights can be read from this architecture ({kind}), so heads can't be shown: it mixes "
            "positions in another way, or its attention does not return weights."
        )
    if found.error is not None:
        checks.append(Check("before + attention + feed-forward = after, in every layer", found.error, limit))
    if found.why:
        missing["parts"] = f"What attention and the feed-forward network add is not shown separately: {found.why}."
    readout = Readout(model, found)
    lens = attribution = None
    if readout.why:
        missing["lens"] = f"There is no logit lens: {readout.why}."
    else:
        lens = logit_lens(readout, found)
        checks.append(Check("the last row of the logit lens = the model's logits", lens.error, limit))
        attribution = attribute(model, readout, found)
        checks.append(Check("the attributions sum to the logit", attribution.error, limit))
        if attribution.why:
            missing["heads of attribution"] = f"There is no attribution by head: {attribution.why}."
    entropy, sink, scores, repeats = _look_at_heads(model, tokenizer, found, repeats, missing)
    ablations: list[Ablation] = []
    every = False
    if ablation and scores is not None and repeats is not None:
        ablations, every = _ablate(model, scores, repeats, found, parameters, missing, listener)
    similarity = position_similarity(found.residual)
    related = None
    if len(ids) > FEWEST_TOKENS:
        related = cka(found.residual[:, 1:], found.residual[:, 1:])
    else:
        missing["cka"] = f"CKA requires a text of more than {FEWEST_TOKENS} tokens."
    rest = found.residual[:, 1:]
    added = None
    if not found.why:
        parts = [part for part in found.parts if part is not None]
        added = torch.stack([torch.stack([_norm(p.attention[1:]), _norm(p.feed_forward[1:])]) for p in parts])
    shown = set() if lens is None else set(lens.tokens.flatten().tolist())
    shown |= set() if attribution is None else {attribution.token}
    return Inside(
        name=name,
        folder=folder,
        architecture=_architecture(model, folder),
        parameters=parameters,
        ids=ids,
        text_tokens=token_texts(tokenizer, ids),
        recording=found,
        entropy=entropy,
        sink=sink,
        scores=scores,
        repeats=repeats,
        norms=torch.stack([_norm(states) for states in rest]),
        added=added,
        lens=lens,
        lens_tokens=dict(zip(sorted(shown), token_texts(tokenizer, sorted(shown)), strict=True)),
        attribution=attribution,
        similarity=similarity,
        mean_similarity=mean_similarity(similarity),
        cka=related,
        loss=text_loss(model, ids),
        ablations=ablations,
        every_head_ablated=every,
        checks=checks,
        missing=missing,
    )


def _architecture(model: Any, folder: str) -> str:
    """Return the architecture in a model's own config, because LLM Lab builds many of them from its own parts."""
    built = str(base_of(model).config.model_type)
    while built == "llm_lab" and is_adapter(folder):
        folder = read_adapter(folder).base
    return read_config(folder).model_type if built == "llm_lab" else built


def _norm(states: torch.Tensor) -> torch.Tensor:
    return states.norm(dim=-1).mean()


def _look_at_heads(
    model: Any, tokenizer: Any, found: Recording, repeats: Repeats | None, missing: dict[str, str]
) -> tuple[torch.Tensor | None, torch.Tensor | None, HeadScores | None, Repeats | None]:
    """Return the entropy and the attention to the first token on the text, and the scores on repeated random tokens."""
    heads = next((len(weights) for weights in found.attention if weights is not None), 0)
    try:
        repeats = repeats or repeats_for(model, tokenizer)
    except UserError as error:
        missing["scores"] = f"There are no scores of heads: {error.problems[0]}"
        return None, None, None, None
    if not heads:
        return None, None, None, repeats

    def table(value: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        empty = torch.full((heads,), float("nan"))
        return torch.stack([empty if weights is None else value(weights) for weights in found.attention])

    sink = table(lambda weights: weights[:, 1:, 0].mean(-1))
    return table(entropies), sink, score_heads(model, repeats), repeats


def _all_heads(table: torch.Tensor) -> list[Head]:
    """Return every head that has a score."""
    return [(int(layer), int(head)) for layer, head in (~table.isnan()).nonzero()]


def _ablate(
    model: Any,
    scores: HeadScores,
    repeats: Repeats,
    found: Recording,
    parameters: int,
    missing: dict[str, str],
    listener: Listener,
) -> tuple[list[Ablation], bool]:
    """Ablate every head of a small model; for a large one, those with the highest scores, and some chosen at random."""
    heads = [head for head in _all_heads(scores.induction) if found.heads[head[0]] is not None]
    if not heads:
        missing["ablation"] = "There is no ablation: the attention has no output projection that joins the heads."
        return [], False
    few = Repeats(repeats.ids[:ABLATION_ROWS], repeats.length, repeats.start)
    cost = 2 * parameters * (few.ids.numel() + len(found.ids)) * len(heads)
    every = cost <= ABLATION_BUDGET.get(model.device.type, ABLATION_BUDGET["cuda"])
    controls: list[Head] = []
    if not every:
        by_induction = sorted(heads, key=lambda head: -float(scores.induction[head]))
        by_previous = sorted(heads, key=lambda head: -float(scores.previous[head]))
        top = list(dict.fromkeys(by_induction[:TOP_HEADS] + by_previous[:TOP_PREVIOUS]))
        others = [head for head in heads if head not in top]
        order = torch.randperm(len(others), generator=torch.Generator().manual_seed(0)).tolist()
        controls = [others[index] for index in order[:CONTROLS]]
        heads = top + controls

    def done(number: int) -> None:
        listener(Progress("ablating heads", number, len(heads)))

    return ablate_heads(model, heads, few, found.ids, controls=controls, done=done)[2], every
