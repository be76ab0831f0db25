"""A Hugging Face tokenizer as GGUF's metadata: vocabulary, merges, and how llama.cpp splits text before them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llm_lab.recipe.errors import Problem, UserError

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # token types of GGUF's

# llama.cpp knows the ways to split text by name. ByteLevel's own expression is GPT-2's:
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# The expression, and whether a word that is a token is taken whole before any merge: llama.cpp's name for it.
PRE_TOKENIZERS = {(GPT2, False): "gpt-2", (LLAMA3, True): "llama-bpe", (QWEN2, False): "qwen2"}


@dataclass(frozen=True)
class GgufTokenizer:
    """A byte-level BPE in GGUF's terms.

    ends: the ids that end a text, the tokenizer's own first. remarks: what llama.cpp does not do as this does.
    """

    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    bos: int | None
    ends: tuple[int, ...]
    pad: int | None
    unk: int | None
    add_bos: bool
    add_eos: bool
    chat_template: str | None
    remarks: tuple[str, ...]


def read_tokenizer(tokenizer: Any, rows: int, ends: tuple[int, ...] = (), *, key: str = "tokenizer") -> GgufTokenizer:
    """Return a tokenizer in GGUF's terms.

    rows: of the model's embeddings; those past the tokenizer's tokens become unused ones. ends: what else ends a
    text, by the generation config. UserError where llama.cpp has no tokenizer that reads text as this one does.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    pre, why = find_pre_tokenizer(backend)
    if pre is None:
        mend = "The Hugging Face form takes it: --to hf"
        raise UserError(Problem(key, f"GGUF has no tokenizer like it: {why}", mend=mend))
    vocabulary = tokenizer.get_vocab()
    if max(vocabulary.values()) >= rows:
        why = f"its tokenizer has {max(vocabulary.values()) + 1:,} tokens, and the model rows for {rows:,}"
        raise UserError(Problem(key, why))
    names = {number: token for token, number in vocabulary.items()}
    added = tokenizer.added_tokens_decoder
    tokens, types = [], []
    for number in range(rows):
        tokens.append(names.get(number, f"[PAD{number}]"))
        kind = CONTROL if number in added and added[number].special else USER_DEFINED if number in added else NORMAL
        types.append(kind if number in names else UNUSED)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in backend["model"]["merges"]]
    ends = tuple(dict.fromkeys(end for end in (tokenizer.eos_token_id, *ends) if end is not None))
    if not ends:
        raise UserError(Problem(key, "it has no token that ends a text, and llama.cpp would take token 11 for it"))
    empty = tokenizer("")["input_ids"]
    return GgufTokenizer(
        pre=pre,
        tokens=tuple(tokens),
        types=tuple(types),
        merges=tuple(merges),
        bos=tokenizer.bos_token_id,
        ends=ends,
        pad=tokenizer.pad_token_id,
        unk=tokenizer.unk_token_id,
        add_bos=empty[:1] == [tokenizer.bos_token_id],
        add_eos=len(empty) > 0 and empty[-1:] == [tokenizer.eos_token_id] != empty[:1],
        chat_template=_plain_template(tokenizer.chat_template),
        remarks=tuple(_remarks(backend, added.values())),
    )


def _remarks(backend: Mapping[str, Any], added: Iterable[Any]) -> Iterator[str]:
    if backend.get("normalizer") and backend["normalizer"]["type"] == "NFC":
        yield "the tokenizer composes letters and accents (NFC) first, which llama.cpp leaves to its user"
    greedy = [token.content for token in added if token.lstrip or token.rstrip or token.single_word]
    if greedy:
        yield f"in llama.cpp {greedy[0]} takes no white space beside it along"


def _plain_template(template: Any) -> str | None:
    """Return a chat template without the marks of what is learnt, a word of Transformers' that other Jinjas lack."""
    if not isinstance(template, str):
        return None
    return re.sub(r"\{%(-?)\s*((?:end)?generation)\s*(-?)%\}", r"{#\1 \2 \3#}", template)


def find_pre_tokenizer(backend: Mapping[str, Any]) -> tuple[str | None, str]:
    """Return (llama.cpp's name of how a tokenizer.json splits text, or None; the reason in words)."""
    model = backend["model"]
    if model["type"] != "BPE":
        return None, f"it is a {model['type']}, and a byte-level BPE is needed"
    if model.get("byte_fallback") or any("\u2581" in token for token in list(model["vocab"])[:2000]):
        return None, "it is of SentencePiece's kind, and a byte-level BPE is needed"
    normal = backend.get("normalizer")
    if normal and not (normal["type"] == "NFC" or normal == {"type": "Sequence", "normalizers": []}):
        return None, f"it changes texts by {normal['type']} before it reads them"
    expression, why = _split_expression(backend.get("pre_tokenizer"))
    if expression is None:
        return None, why
    whole = bool(model.get("ignore_merges"))
    pre = PRE_TOKENIZERS.get((expression, whole))
    if pre is None:
        return None, "it splits text in a way of its own, which llama.cpp does not know"
    if (normal is not None) != (pre == "qwen2"):
        return None, "its normalizer is not that of the tokenizer that llama.cpp knows"
    return pre, f"llama.cpp's {pre}"


def _split_expression(pre_tokenizer: Mapping[str, Any] | None) -> tuple[str | None, str]:
    """Return the expression that text is split by, or None and why it can't be told."""
    steps = [pre_tokenizer] if pre_tokenizer else []
    if steps and steps[0]["type"] == "Sequence":
        steps = steps[0]["pretokenizers"]
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None, "it is no byte-level BPE" if not steps or steps[-1]["type"] != "ByteLevel" else "it adds a space"
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return GPT2, ""
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        step = steps[0]
        if step["behavior"] == "Isolated" and not step["invert"] and "Regex" in step["pattern"]:
            return step["pattern"]["Regex"], ""
    return None, "it splits text in a way of its own, which llama.cpp does not know"
