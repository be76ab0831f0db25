"""The data X-ray: what a recipe's data are as tokens, and which of them are learnt, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from llm_lab.data.examples import Example, ExampleSource, open_examples
from llm_lab.data.split import split_examples
from llm_lab.errors import UserError
from llm_lab.hf.chat_templates import apply_chat_template_choice
from llm_lab.hf.conversations import (
    Encoded,
    encode_answer,
    encode_conversation,
    encode_prompt,
    encode_text,
    render_conversation,
)
from llm_lab.hf.load import read_config
from llm_lab.hf.tokenizers import load_tokenizer
from llm_lab.rewards.classifier import is_encoder
from llm_lab.training.loop import find_local

from .xray_texts import xray_texts
from .xray_values import SetXray, StageXray, make_specimen

# Enough for lengths and shares; the whole of a large set would take minutes.
MEASURED_EXAMPLES = 2_000
KINDS = {"sft": "conversation", "reward": "preference", "dpo": "preference", "grpo": "prompt", "ppo": "prompt"}
Encode = Callable[[Example], dict[str, Encoded]]


def xray_stages(recipes: Sequence[Any], *, specimens: int = 2) -> list[StageXray]:
    """Return what each stage of a job reads; stages without data are passed over.

    A model that an earlier stage has still to make lends its tokenizer. UserError where data or tokenizer can't be
    read.
    """
    found = []
    tokenizers: dict[str, Any] = {}
    for recipe in recipes:
        checkpoint = getattr(getattr(recipe, "model", None), "checkpoint", None)
        to_come = tokenizers.get(Path(checkpoint).name) if checkpoint and not Path(checkpoint).exists() else None
        tokenizers[recipe.name] = tokenizer = deepcopy(to_come)
        if not getattr(recipe, "data", None):
            continue
        if recipe.stage == "pretrain":
            tokenizer, template, sets = xray_texts(recipe, tokenizer, specimens)
        else:
            local = find_local(checkpoint) if tokenizer is None else None
            tokenizer = tokenizer or load_tokenizer(local, key="model.checkpoint")
            template, sets = _xray_examples(recipe, tokenizer, local, specimens)
        tokenizers[recipe.name] = tokenizer
        found.append(StageXray(recipe.stage, recipe.name, template, recipe.train.max_length, tuple(sets)))
    return found


def _xray_examples(recipe: Any, tokenizer: Any, checkpoint: str | None, specimens: int) -> tuple[str, list[SetXray]]:
    pairs = recipe.stage == "reward" and checkpoint is not None and is_encoder(read_config(checkpoint))
    template = (
        "an encoder, which reads pairs of prompt and answer"
        if pairs
        else apply_chat_template_choice(tokenizer, recipe.chat_template).notice
    )
    sources, problems = [], []
    for index, given in enumerate(recipe.data):
        columns = given.columns.model_dump(exclude_none=True) if given.columns else None
        where = {"key": f"data.{index}", "subset": given.subset, "split": given.split}
        try:
            sources.append(open_examples(given.path, kind=KINDS[recipe.stage], columns=columns, **where))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)
    fraction, take = recipe.validation.fraction, recipe.validation.from_
    splits = split_examples(sources, fraction=fraction, take=take, require_validation=False)
    encode = _encode_pairs(tokenizer) if pairs else _encoder(recipe, tokenizer)
    sets = []
    for source, split in zip(sources, splits, strict=True):
        sides = f"{len(split.train):,} to train on, {len(split.validation):,} for validation"
        if split.duplicates:
            sides += f" ({split.duplicates:,} more left out, whose prompt training has too)"
        warnings = []
        if fraction and not split.validation:
            warnings.append(f"none is left for validation.fraction = {fraction}: the run would be refused")
        sets.append(_xray_set(source, split.train, sides, warnings, encode, recipe, tokenizer, specimens))
    return template, sets


def _xray_set(
    source: ExampleSource,
    train: Sequence[Example],
    sides: str,
    warnings: list[str],
    encode: Encode,
    recipe: Any,
    tokenizer: Any,
    specimens: int,
) -> SetXray:
    limit, eos = _limit(recipe), tokenizer.eos_token_id
    lengths: dict[str, list[int]] = {}
    shown = []
    tokens = learnt = cut = empty = unended = 0
    measured = train[:MEASURED_EXAMPLES]
    for number, example in enumerate(measured):
        note = example.answer if KINDS[recipe.stage] == "prompt" else None
        for label, whole in encode(example).items():
            # A judge is asked at the end of a text: it loses the beginning.
            part = slice(max(0, whole.length - limit), None) if recipe.stage == "reward" else slice(limit)
            kept = Encoded(whole.input_ids[part], whole.labels_mask[part], whole.length)
            lengths.setdefault(label, []).append(kept.length)
            tokens, learnt = tokens + len(kept.input_ids), learnt + kept.trained_tokens
            cut += kept.truncated
            empty += whole.trained_tokens > 0 and not any(kept.labels_mask[1:])
            unended += any(kept.labels_mask) and eos not in kept.labels
            if number < specimens:
                shown.append(make_specimen(tokenizer, label, kept, note))
    warnings += _warnings(recipe, tokenizer, cut, empty, unended)
    if (again := _duplicates(train)) > 0:
        warnings.append(f"{again:,} stand in the set more than once")
    first = train[0]
    return SetXray(
        key=source.key,
        description=source.description,
        sides=sides,
        measured=len(measured),
        total=len(train),
        lengths={label: tuple(values) for label, values in lengths.items()},
        learnt_share=None if recipe.stage in ("reward", "grpo", "ppo") else learnt / max(1, tokens),
        good=("every answer that is learnt ends with the end of its turn",) if learnt and not unended else (),
        warnings=tuple(warnings),
        rendered=_render(first, tokenizer) if tokenizer.chat_template else None,
        specimens=tuple(shown),
    )


def _limit(recipe: Any) -> int:
    """Return the tokens that an example may have; beside a prompt there must be room for the answer."""
    options = getattr(recipe, recipe.stage)
    return recipe.train.max_length - getattr(options, "max_completion_length", 0)


def _encoder(recipe: Any, tokenizer: Any) -> Encode:
    """Return a function that encodes an example as the stage does, uncut, under the names of its parts."""

    def sft(example: Example) -> dict[str, Encoded]:
        if example.text is not None:
            return {"text": encode_text(tokenizer, example.text)}
        only = recipe.sft.assistant_only_loss
        return {"conversation": encode_conversation(tokenizer, example.messages, assistant_only=only)}

    def dpo(example: Example) -> dict[str, Encoded]:
        found = {}
        for label, answer in (("chosen", example.chosen), ("rejected", example.rejected)):
            before, after = encode_answer(tokenizer, example.prompt, answer)
            mask = [0] * len(before) + [1] * len(after)
            found[label] = Encoded([*before, *after], mask, len(mask))
        return found

    def reward(example: Example) -> dict[str, Encoded]:
        return {
            label: _only_read(encode_conversation(tokenizer, _whole(example, answer), assistant_only=False).input_ids)
            for label, answer in (("chosen", example.chosen), ("rejected", example.rejected))
        }

    def prompt(example: Example) -> dict[str, Encoded]:
        return {"prompt": _only_read(encode_prompt(tokenizer, example.prompt))}

    return {"sft": sft, "dpo": dpo, "reward": reward, "grpo": prompt, "ppo": prompt}[recipe.stage]


def _encode_pairs(tokenizer: Any) -> Encode:
    def pair(example: Example) -> dict[str, Encoded]:
        prompt = "\n\n".join(said["content"] for said in example.prompt)
        return {
            label: _only_read(tokenizer(prompt, answer, verbose=False)["input_ids"])
            for label, answer in (("chosen", example.chosen), ("rejected", example.rejected))
        }

    return pair


def _only_read(ids: Sequence[int]) -> Encoded:
    return Encoded(list(ids), [0] * len(ids), len(ids))


def _warnings(recipe: Any, tokenizer: Any, cut: int, empty: int, unended: int) -> Iterator[str]:
    limit = f"{_limit(recipe):,} tokens"
    if cut and KINDS[recipe.stage] == "prompt":
        yield f"{cut:,} prompts are longer than {limit}, leave no room for an answer, and are left out"
    elif cut:
        lost = "beginning" if recipe.stage == "reward" else "end"
        yield f"{cut:,} are longer than train.max_length = {limit} and lose their {lost}"
    if empty:
        yield f"{empty:,} have nothing left to learn once they are cut"
    if unended:
        yield f"{unended:,} are learnt without the end of a turn; from such alone a model would not learn to stop"
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        yield "padding is the same token as the end of a turn"


def _duplicates(examples: Sequence[Example]) -> int:
    seen = {(str(one.messages), one.text, one.chosen, one.rejected) for one in examples}
    return len(examples) - len(seen)


def _whole(example: Example, answer: str) -> list[dict[str, str]]:
    return [*example.prompt, {"role": "assistant", "content": answer}]


def _render(example: Example, tokenizer: Any) -> str | None:
    if example.text is not None:
        return None
    answer = example.chosen or example.completion
    messages = example.messages if answer is None else _whole(example, answer)
    return render_conversation(tokenizer, messages, prompt=answer is None)
