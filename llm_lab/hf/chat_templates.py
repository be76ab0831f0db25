"""Chat templates: how a conversation is formatted as text, and the tokens and embeddings that this requires."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llm_lab.errors import Problem, UserError, did_you_mean, one_of

from .conversations import find_end_of_turn
from .rendering import Refused, pin_date, require_sound, template_of
from .save import set_special_tokens

PAD = "<|pad|>"
# Padding tokens that some tokenizers have without declaring them.
_KNOWN_PADS = (PAD, "<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|padding|>", "<unk>", "[UNK]")
# Words in control tokens that may serve as padding if the chat template does not use them, the most suitable first.
_FREE = ("endoftext", "end_of_text", "pad", "reserved", "unused", "extra")
# New embeddings are the mean of the others plus a little noise, relative to their standard deviation.
_NOISE = 0.02
# A row of embeddings whose norm is a smaller share of the usual one has never been trained.
_NEAR_ZERO = 0.1

# Answers are trimmed: leading white space would be merged into one token with the newline before it, and the prompt
# would no longer be a prefix of the conversation.
_LOOP = """{%- for message in messages %}
{{- HEADER }}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{- message['content'] | trim + END }}{%- endgeneration %}
{%- else %}
{{- message['content'] + END }}
{%- endif %}
{{- AFTER }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- PROMPT }}
{%- endif %}
"""


def _template(header: str, end: str, after: str) -> str:
    """Return a Jinja template whose turns are a header, the content and an end; assistant turns are marked."""
    template = _LOOP.replace("HEADER", header).replace("END", end).replace("AFTER", after)
    return template.replace("PROMPT", header.replace("message['role']", "'assistant'"))


# Name: (Jinja template, its control tokens). The last control token ends a turn; without any, EOS does.
CHAT_TEMPLATES: dict[str, tuple[str, tuple[str, ...]]] = {
    "chatml": (
        _template(r"'<|im_start|>' + message['role'] + '\n'", "'<|im_end|>'", r"'\n'"),
        ("<|im_start|>", "<|im_end|>"),
    ),
    "zephyr": (_template(r"'<|' + message['role'] + '|>\n'", "eos_token", r"'\n'"), ()),
    "llama3": (
        _template(r"'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'", "'<|eot_id|>'", "''"),
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
}


@dataclass(frozen=True)
class ChosenTemplate:
    """The chat template that was set for a tokenizer. `notice`: a one-line description.

    new_ids: tokens added for it, which need embeddings. control_ids: its control tokens that the tokenizer already had,
    although the model may never have been trained on them; none for the tokenizer's own template. former_eos_id: the
    previous EOS, if it differs from the token that ends a turn. date: the date for a template that reads the clock.
    """

    name: str
    new_ids: tuple[int, ...]
    former_eos_id: int | None
    notice: str
    control_ids: tuple[int, ...] = ()
    date: str | None = None


def apply_chat_template_choice(
    tokenizer: Any, choice: str | None = None, *, date: str | None = None, key: str = "chat_template"
) -> ChosenTemplate:
    """Set a tokenizer's chat template, control tokens, EOS (the end-of-turn token) and a padding token other than EOS.

    choice: "own", a name of CHAT_TEMPLATES, or None: its own template if it has one, else chatml. date: for a template
    that reads the clock; default: the date saved with the tokenizer, or else today's. The changes are saved with the
    tokenizer. Raises UserError for an unknown name, or if its own template is broken or has no end-of-turn token.
    """
    own = bool(getattr(tokenizer, "chat_template", None))
    name = choice or ("own" if own else "chatml")
    size, former_eos = len(tokenizer), tokenizer.eos_token_id
    known = set(tokenizer.get_vocab())
    held: list[str] = []
    if name == "own":
        notice = _keep_own(tokenizer, own, key)
    elif name in CHAT_TEMPLATES:
        held = [token for token in CHAT_TEMPLATES[name][1] if token in known]
        _set_template(tokenizer, name, key)
        notice = f"chat template {name}" + (" instead of the tokenizer's own" if own else "")
    else:
        names = ("own", *CHAT_TEMPLATES)
        why = "unknown chat template"
        raise UserError(Problem(key, why, value=name, allowed=one_of(names), fix=did_you_mean(name, names)))
    _set_pad(tokenizer, may_grow=len(tokenizer) > size)
    new_ids = tuple(range(size, len(tokenizer)))
    if new_ids:
        notice += f"; new tokens: {', '.join(tokenizer.convert_ids_to_tokens(list(new_ids)))}"
    if held:
        notice += f"; {', '.join(held)} were in the tokenizer already: an adapter trains their embeddings too"
    if pinned := pin_date(tokenizer, date):
        notice += f"; it writes the current date, which is fixed at {pinned} for this run"
    eos = tokenizer.eos_token_id
    former = former_eos if former_eos != eos else None
    return ChosenTemplate(name, new_ids, former, notice, tuple(tokenizer.convert_tokens_to_ids(held)), pinned)


def _keep_own(tokenizer: Any, own: bool, key: str) -> str:
    if not own:
        why = "this tokenizer does not have its own chat template"
        raise UserError(Problem(key, why, value="own", fix="Use chatml, or remove the key."))
    require_sound(tokenizer)
    try:
        end = find_end_of_turn(tokenizer)
    except Refused as refused:
        raise UserError(Problem(key, refused.reason, value="own", fix="Use chatml.")) from None
    if end is None:
        why = "the tokenizer's own template has no end-of-turn token, so a model would never learn to stop"
        raise UserError(Problem(key, why, value="own", fix="Use chatml."))
    tokenizer.eos_token = end
    return f"the tokenizer's own chat template; {end} ends a turn"


def _set_template(tokenizer: Any, name: str, key: str) -> None:
    template, control_tokens = CHAT_TEMPLATES[name]
    if control_tokens:
        tokenizer.add_special_tokens(
            {"eos_token": control_tokens[-1], "extra_special_tokens": list(control_tokens[:-1])},
            replace_extra_special_tokens=False,
        )
    elif tokenizer.eos_token is None:
        why = "this template ends turns with the end-of-text token (EOS), which this tokenizer does not have"
        raise UserError(Problem(key, why, value=name, fix="Use chatml, which adds its own tokens."))
    bos = tokenizer.bos_token_id
    if bos is not None and tokenizer("")["input_ids"][:1] == [bos]:
        # The model was trained with BOS at the start; text from a template is encoded without special tokens.
        template = "{{- bos_token }}\n" + template
    tokenizer.chat_template = template


def _set_pad(tokenizer: Any, *, may_grow: bool) -> None:
    """Set a padding token that is not EOS: if it were EOS, masking padding would also mask EOS in the loss.

    may_grow: whether the vocabulary grows anyway. If not, a control token that the chat template does not use is
    preferred, because a new token would change the shape of the model's weights.
    """
    if tokenizer.pad_token is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    special.discard(tokenizer.eos_token)
    free = [token for token in _KNOWN_PADS if token in special]
    if not free and not may_grow:
        template = template_of(tokenizer)
        unused = [token for token in special if token not in template]
        writes_bos = "bos_token" in template or tokenizer.bos_token_id in tokenizer("")["input_ids"]
        if writes_bos and tokenizer.bos_token in unused:
            unused.remove(tokenizer.bos_token)
        free = sorted(unused, key=lambda token: (_rank(token), tokenizer.convert_tokens_to_ids(token)))
    tokenizer.add_special_tokens({"pad_token": free[0] if free else PAD})


def _rank(token: str) -> int:
    """Return how unsuitable a free control token is as padding; the smaller, the better."""
    return next((rank for rank, word in enumerate(_FREE) if word in token.lower()), len(_FREE))


def resize_for(model: Any, tokenizer: Any, chosen: ChosenTemplate | None = None, *, seed: int = 0) -> list[int]:
    """Add embeddings for new tokens and set the special token ids in the model's configs; return the new ids.

    New rows of embeddings and head are the mean of the old ones plus a little seeded noise. Rows are never removed:
    many models have more rows than their tokenizer has tokens. chosen: the result of apply_chat_template_choice;
    previously unused rows that its new tokens take are also initialized, as are rows of its control tokens that were
    never trained. Tokens that ended generation before still end it.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    new_ids = sorted({*range(rows, len(tokenizer)), *(chosen.new_ids if chosen else ())})
    if len(tokenizer) > rows:
        # mean_resizing would use torch's global random generator, and print a long message.
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    new_ids = sorted({*new_ids, *_fill_rows(model, new_ids, chosen.control_ids if chosen else (), tokenizer, seed)})
    generation = getattr(model, "generation_config", None)  # a classifier has no generation config
    before = generation.eos_token_id if generation is not None else None
    set_special_tokens(model, tokenizer)
    if generation is not None:
        others = [*(before if isinstance(before, list) else [before]), chosen.former_eos_id if chosen else None]
        ends = dict.fromkeys(token for token in (tokenizer.eos_token_id, *others) if token is not None)
        generation.eos_token_id = list(ends) if len(ends) > 1 else tokenizer.eos_token_id
    return new_ids


def _fill_rows(model: Any, new_ids: Sequence[int], control_ids: Sequence[int], tokenizer: Any, seed: int) -> set[int]:
    """Initialize the rows of new tokens, and of control tokens that were never trained; return their ids."""
    import torch

    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    matrices = [embeddings.weight]
    if head is not None and head.weight is not embeddings.weight:
        matrices.append(head.weight)
    filled: set[int] = set()
    with torch.no_grad():
        for weight in matrices:
            ids = sorted({*new_ids, *_untrained(weight, control_ids, sorted(tokenizer.added_tokens_decoder))})
            if not ids:
                continue
            old = torch.ones(weight.shape[0], dtype=torch.bool, device=weight.device)
            old[ids] = False
            kept = weight[old].float()
            generator = torch.Generator().manual_seed(seed)
            noise = torch.randn(len(ids), weight.shape[1], generator=generator).to(weight.device)
            rows = kept.mean(0) + _NOISE * kept.std(0) * noise
            weight[ids] = rows.to(weight.dtype)
            filled |= set(ids)
    return filled


def _untrained(weight: Any, control_ids: Sequence[int], added: Sequence[int]) -> list[int]:
    """Return the control tokens whose rows are nearly zero, or equal to the row of another added token."""
    if not control_ids:
        return []
    usual = weight.float().norm(dim=1).median()
    rows = {token: weight[token].float() for token in {*control_ids, *added} if token < weight.shape[0]}

    def same(token: int, other: int) -> bool:
        return bool((rows[token] - rows[other]).norm() <= 1e-3 * rows[token].norm())

    return [
        token
        for token in control_ids
        if rows[token].norm() < _NEAR_ZERO * usual or any(same(token, other) for other in rows if other != token)
    ]
