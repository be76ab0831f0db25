"""The data X-ray: a recipe's data as tokens, and which tokens the model will be trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from llm_lab.data.examples import Example, ExampleSource
from llm_lab.data.sources import open_source
from llm_lab.data.split import split_examples
from llm_lab.data.streams import open_stream
from llm_lab.hf.chat_templates import apply_chat_template_choice
from llm_lab.hf.configs import read_config
from llm_lab.hf.conversations import (
    TEMPLATED,
    Encoded,
    encode_answer,
    encode_conversation,
    encode_prompt,
    encode_sequences,
    encode_text,
    is_templated,
    render_conversation,
)
from llm_lab.hf.rendering import Refused
from llm_lab.hf.tokenizers import load_tokenizer, make_byte_tokenizer, train_bpe
from llm_lab.recipe.pretrain import BpeTokenizer
from llm_lab.recipe.registry import STAGES
from llm_lab.rewards.classifier import is_encoder
from llm_lab.training.loop import find_local
from llm_lab.training.tuned_run import describe_refused, open_example_sets

# Enough for lengths and shares; a whole large dataset would take minutes.
MEASURED_EXAMPLES = 2_000
PROGRESS_EVERY = 100  # examples between two progress messages
MEASURED_CHARACTERS = 2_000_000
SHOWN_TOKENS = 400
MOST_BYTES_OF_A_CHARACTER = 4
Parts = tuple[dict[str, Encoded], tuple[str, ...]]  # {part of an example: tokens}, remarks
Encode = Callable[[Example], Parts]
Say = Callable[[str], None]
Read = Callable[[], Iterator[str]]


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of the same kind: trained or masked, special tokens or text."""

    text: str
    trained: bool
    special: bool


@dataclass(frozen=True)
class TokenizedExample:
    """One example as tokens. reference: the answer that rewards compare with, if there is one.

    by_token: whether each span is one token, as in plain text, where all of them are trained.
    """

    label: str
    spans: tuple[Span, ...]
    tokens: int
    trained_tokens: int
    cut: int  # tokens beyond train.max_length
    reference: str | None = None
    by_token: bool = False


@dataclass(frozen=True)
class SetXray:
    """One dataset. Lengths are in tokens, before truncation, of the first `measured` of `total` examples."""

    key: str
    description: str
    split: str
    measured: int
    total: int | None  # None: not counted
    lengths: Mapping[str, tuple[int, ...]]
    trained_share: float | None  # None: the loss is not on the tokens of the data
    warnings: tuple[str, ...]
    checks: tuple[str, ...]  # what was checked and is correct
    rendered: str | None
    examples: tuple[TokenizedExample, ...]


@dataclass(frozen=True)
class StageXray:
    """The data of one stage of a recipe."""

    stage: str
    name: str
    template: str
    max_length: int
    sets: tuple[SetXray, ...]


def xray_stages(recipes: Sequence[Any], *, examples: int = 2, say: Say = lambda text: None) -> list[StageXray]:
    """Return the data of each stage of a job; stages without data are skipped.

    A model that an earlier stage is still to train has the tokenizer of that stage. examples: how many of each dataset
    are shown as tokens. say: receives progress messages. Raises UserError if data or a tokenizer can't be read.
    """
    found = []
    tokenizers: dict[str, Any] = {}
    for recipe in recipes:
        checkpoint = getattr(getattr(recipe, "model", None), "checkpoint", None)
        earlier = tokenizers.get(Path(checkpoint).name) if checkpoint and not Path(checkpoint).exists() else None
        tokenizers[recipe.name] = tokenizer = deepcopy(earlier)
        if not STAGES[recipe.stage].trains:
            continue
        if _kind(recipe) == "text":
            tokenizer, template, sets = _xray_texts(recipe, tokenizer, examples, say)
        else:
            local = None
            if tokenizer is None:
                local = find_local(recipe.model.checkpoint)
                tokenizer = load_tokenizer(local, key="model.checkpoint")
            template, sets = _xray_examples(recipe, tokenizer, local, examples, say)
        tokenizers[recipe.name] = tokenizer
        found.append(StageXray(recipe.stage, recipe.name, template, recipe.train.max_length, tuple(sets)))
    return found


# Texts


def _xray_texts(recipe: Any, tokenizer: Any | None, examples: int, say: Say) -> tuple[Any, str, list[SetXray]]:
    """Return (tokenizer, a description of what ends a document, datasets). tokenizer: None for the recipe's.

    A BPE tokenizer is trained only on the start of the texts, so it is similar to the run's, not identical.
    """
    texts = [_open_texts(source, f"data.{index}") for index, source in enumerate(recipe.data)]
    tokenizer = tokenizer or _make_tokenizer(recipe, [read for _, read in texts])
    sets = [_xray_text_set(f"data.{i}", *text, tokenizer, recipe, examples, say) for i, text in enumerate(texts)]
    return tokenizer, f"plain text; {tokenizer.eos_token} ends a document", sets


def _open_texts(source: Any, key: str) -> tuple[str, Read]:
    """Return the description of a text dataset, and a function that reads its documents."""
    options = {"key": key, "subset": source.subset, "split": source.split, "text_column": source.text_column}
    if source.streaming:
        stream = open_stream(source.path, **options)
        return stream.describe(), lambda: (piece.text for piece in stream.pieces())
    opened = open_source(source.path, **options)
    return opened.describe(), opened.documents


def _make_tokenizer(recipe: Any, texts: Sequence[Read]) -> Any:
    if recipe.tokenizer == "bytes":
        return make_byte_tokenizer()
    if isinstance(recipe.tokenizer, BpeTokenizer):
        return train_bpe((text for read in texts for text in _first_texts(read)), recipe.tokenizer.bpe)
    checkpoint = getattr(recipe.model, "checkpoint", None)
    return load_tokenizer(find_local(recipe.tokenizer) if recipe.tokenizer == checkpoint else recipe.tokenizer)


def _first_texts(read: Read) -> Iterator[str]:
    room = MEASURED_CHARACTERS
    for text in read():
        yield text[:room]
        room -= len(text)
        if room <= 0:
            return


def _xray_text_set(
    key: str, description: str, read: Read, tokenizer: Any, recipe: Any, examples: int, say: Say
) -> SetXray:
    lengths, shown = [], []
    for number, text in enumerate(islice(_first_texts(read), MEASURED_EXAMPLES)):
        if number % PROGRESS_EVERY == 0:
            say(f"Turning the data into tokens: {key}, document {number + 1:,}")
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        ids = [*ids, tokenizer.eos_token_id]
        lengths.append(len(ids))
        if number < examples:
            whole = Encoded(ids, [1] * len(ids), len(ids))
            shown.append(_as_spans(tokenizer, f"document {number + 1}", whole, None, by_token=True))
    return SetXray(
        key=key,
        description=description,
        split=f"read in sequences of {recipe.train.max_length:,} tokens, one document after another",
        measured=len(lengths),
        total=None,
        lengths={"document": tuple(lengths)},
        trained_share=1.0,
        warnings=(),
        checks=(f"every document ends with a trained {tokenizer.eos_token}",),
        rendered=None,
        examples=tuple(shown),
    )


# Examples


def _xray_examples(
    recipe: Any, tokenizer: Any, checkpoint: str | None, examples: int, say: Say
) -> tuple[str, list[SetXray]]:
    pairs = _scores(recipe) and checkpoint is not None and is_encoder(read_config(checkpoint))
    template = (
        "an encoder: it reads pairs of prompt and answer"
        if pairs
        else apply_chat_template_choice(tokenizer, recipe.chat_template, date=recipe.template_date).notice
    )
    sources = open_example_sets(recipe)
    fraction, take = recipe.validation.fraction, recipe.validation.from_
    splits = split_examples(sources, fraction=fraction, take=take, require_validation=False)
    encode = _encode_pairs(tokenizer) if pairs else _encoder(recipe, tokenizer)
    sets = []
    for source, split in zip(sources, splits, strict=True):
        text = f"{len(split.train):,} for training, {len(split.validation):,} for validation"
        if split.duplicates:
            text += f" ({split.duplicates:,} more skipped, since their prompt is also in training)"
        warnings = []
        if fraction and not split.validation:
            warnings.append(f"validation.fraction = {fraction} leaves no validation examples: the run would fail")
        sets.append(_xray_set(source, split.train, text, warnings, encode, recipe, tokenizer, examples, say))
    return template, sets


def _xray_set(
    source: ExampleSource,
    train: Sequence[Example],
    split: str,
    warnings: list[str],
    encode: Encode,
    recipe: Any,
    tokenizer: Any,
    examples: int,
    say: Say,
) -> SetXray:
    limit, eos = _limit(recipe), tokenizer.eos_token_id
    lengths: dict[str, list[int]] = {}
    shown = []
    tokens = trained = cut = empty = unended = 0
    seen: Counter[str] = Counter()
    left_out: dict[str, list[Example]] = {}
    measured = train[:MEASURED_EXAMPLES]
    for number, example in enumerate(measured):
        if number % PROGRESS_EVERY == 0:
            say(f"Turning the data into tokens: {source.key}, example {number + 1:,} of {len(measured):,}")
        reference = example.answer if _kind(recipe) == "prompt" else None
        try:
            parts, remarks = encode(example)
        except Refused as refused:
            parts, remarks = {}, ()
            left_out.setdefault(refused.reason, []).append(example)
        seen.update(remarks)
        for label, whole in parts.items():
            # A reward model scores at the end of a text, so truncation drops its beginning.
            part = slice(max(0, whole.length - limit), None) if _scores(recipe) else slice(limit)
            kept = Encoded(whole.input_ids[part], whole.labels_mask[part], whole.length)
            lengths.setdefault(label, []).append(kept.length)
            tokens, trained = tokens + len(kept.input_ids), trained + kept.trained_tokens
            cut += kept.truncated
            empty += whole.trained_tokens > 0 and not any(kept.labels_mask[1:])
            unended += any(kept.labels_mask) and eos not in kept.labels
            if number < examples:
                shown.append(_as_spans(tokenizer, label, kept, reference))
    seen.update(describe_refused(left_out))
    warnings += [f"{count:,} of {len(measured):,}: {remark}" for remark, count in seen.items()]
    warnings += _warnings(recipe, tokenizer, cut, empty, unended)
    if (duplicates := _count_duplicates(train)) > 0:
        warnings.append(f"{duplicates:,} duplicate examples")
    return SetXray(
        key=source.key,
        description=source.description,
        split=split,
        measured=len(measured),
        total=len(train),
        lengths={label: tuple(values) for label, values in lengths.items()},
        trained_share=None if _scores(recipe) or _kind(recipe) == "prompt" else trained / max(1, tokens),
        checks=("every trained answer ends with the end-of-turn token",) if trained and not unended else (),
        warnings=tuple(warnings),
        rendered=_render(train[0], tokenizer) if tokenizer.chat_template else None,
        examples=tuple(shown),
    )


def _kind(recipe: Any) -> str:
    """Return the kind of the data: text, conversation, preference or prompt."""
    return STAGES[recipe.stage].examples or ""


def _scores(recipe: Any) -> bool:
    """Return whether the stage trains a reward model, which reads texts and generates none."""
    return STAGES[recipe.stage].makes == "reward model"


def _limit(recipe: Any) -> int:
    """Return the maximum length of an example in tokens; a prompt must leave room for the answer."""
    options = getattr(recipe, recipe.stage)
    return recipe.train.max_length - getattr(options, "max_completion_length", 0)


def _encoder(recipe: Any, tokenizer: Any) -> Encode:
    """Return a function that encodes an example as the stage does, without truncation."""

    def sft(example: Example) -> Parts:
        if example.text is not None:
            remarks = (TEMPLATED,) if is_templated(tokenizer, example.text) else ()
            return {"text": encode_text(tokenizer, example.text)}, remarks
        found = encode_sequences(tokenizer, example.messages, assistant_only=recipe.sft.assistant_only_loss)
        if len(found.sequences) == 1:
            return {"conversation": found.sequences[0]}, found.remarks
        parts = {f"conversation, sequence {number}": one for number, one in enumerate(found.sequences, 1)}
        return parts, found.remarks

    def dpo(example: Example) -> Parts:
        found = {}
        for label, answer in _answers(example):
            before, after = encode_answer(tokenizer, example.prompt, answer)
            mask = [0] * len(before) + [1] * len(after)
            found[label] = Encoded([*before, *after], mask, len(mask))
        return found, ()

    def reward(example: Example) -> Parts:
        return {
            label: _masked(encode_conversation(tokenizer, _whole(example, answer), assistant_only=False).input_ids)
            for label, answer in _answers(example)
        }, ()

    def prompt(example: Example) -> Parts:
        return {"prompt": _masked(encode_prompt(tokenizer, example.prompt))}, ()

    preference = reward if _scores(recipe) else dpo
    return {"conversation": sft, "preference": preference, "prompt": prompt}[_kind(recipe)]


def _encode_pairs(tokenizer: Any) -> Encode:
    def pair(example: Example) -> Parts:
        prompt = "\n\n".join(message["content"] for message in example.prompt)
        return {
            label: _masked(tokenizer(prompt, answer, verbose=False)["input_ids"]) for label, answer in _answers(example)
        }, ()

    return pair


def _answers(example: Example) -> list[tuple[str, str]]:
    return [("chosen", example.chosen or ""), ("rejected", example.rejected or "")]


def _masked(ids: Sequence[int]) -> Encoded:
    return Encoded(list(ids), [0] * len(ids), len(ids))


def _warnings(recipe: Any, tokenizer: Any, cut: int, empty: int, unended: int) -> Iterator[str]:
    limit = f"{_limit(recipe):,} tokens"
    if cut and _kind(recipe) == "prompt":
        yield f"{cut:,} prompts are longer than {limit}, leave no room for an output, and are skipped"
    elif cut:
        lost = "beginning" if _scores(recipe) else "end"
        yield f"{cut:,} are longer than train.max_length = {limit}; their {lost} is cut off"
    if empty:
        yield f"{empty:,} have no tokens in the loss left after truncation"
    if unended:
        yield f"{unended:,} are trained without an end-of-turn token: from these the model does not learn to stop"
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        yield "the padding token is also the end-of-turn token"


def _count_duplicates(examples: Sequence[Example]) -> int:
    return len(examples) - len({(str(one.messages), one.text, one.chosen, one.rejected) for one in examples})


def _whole(example: Example, answer: str) -> list[dict[str, str]]:
    return [*example.prompt, {"role": "assistant", "content": answer}]


def _render(example: Example, tokenizer: Any) -> str | None:
    if example.text is not None:
        return None
    messages = _whole(example, example.chosen) if example.chosen else example.messages
    try:
        return render_conversation(tokenizer, messages, prompt=messages[-1]["role"] != "assistant")
    except Refused:  # counted among the warnings
        return None


def _as_spans(
    tokenizer: Any, label: str, whole: Encoded, reference: str | None, *, by_token: bool = False
) -> TokenizedExample:
    """Return an example as spans of tokens; a long one is shortened to its beginning and its end.

    by_token: a span for each token; tokens that are parts of one character share a span.
    """
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    rows = list(zip(whole.input_ids, whole.labels_mask, strict=True))
    spans: list[tuple[list[int], bool, bool]] = []
    half = SHOWN_TOKENS // 2
    left_out = max(0, len(rows) - SHOWN_TOKENS)
    for number, (token, mask) in enumerate(rows):
        if left_out and half <= number < half + left_out:
            if number == half:
                spans.append(([], False, False))
            continue
        kind = (bool(mask), token in special)
        joins = not by_token or (spans and _is_cut(tokenizer, spans[-1][0]))
        if joins and spans and spans[-1][0] and spans[-1][1:] == kind and not kind[1]:
            spans[-1][0].append(token)
        else:
            spans.append(([token], *kind))
    texts = tuple(
        Span(tokenizer.decode(ids, clean_up_tokenization_spaces=False), trained, control)
        if ids
        else Span(f" ... {left_out:,} tokens ... ", False, False)
        for ids, trained, control in spans
    )
    cut = whole.length - len(whole.input_ids)
    return TokenizedExample(label, texts, len(rows), whole.trained_tokens, cut, reference, by_token)


def _is_cut(tokenizer: Any, ids: Sequence[int]) -> bool:
    """Return whether tokens end within a character."""
    return len(ids) < MOST_BYTES_OF_A_CHARACTER and tokenizer.decode(ids).endswith("\ufffd")
