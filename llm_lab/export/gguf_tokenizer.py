"""A Hugging Face tokenizer as GGUF's metadata: vocabulary, merges, and how llama.cpp splits text before them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_lab.errors import Problem, UserError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # token types of GGUF's
BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"  # GGUF's names of the two kinds of BPE
LEADING_SPACE = "the programs that read GGUF disagree on texts that begin with a space"
SPACE = "\u2581"  # SentencePiece's

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
    """A BPE, of bytes or SentencePiece's, in GGUF's terms.

    scores: SentencePiece's order of merges, a number for each token. prefix: whether a space is put before a text.
    ends: the ids that end a text, the tokenizer's own first. remarks: what llama.cpp does not do as this does.
    """

    kind: str
    pre: str
    prefix: bool
    scores: tuple[float, ...]
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
    prefix = sentencepiece_prefix(backend)
    pre, why = ("default", "") if prefix is not None else find_pre_tokenizer(backend)
    if pre is None:
        fix = "The Hugging Face form takes it: --to hf"
        raise UserError(Problem(key, f"GGUF has no tokenizer like it: {why}", fix=fix))
    vocabulary = tokenizer.get_vocab()
    if max(vocabulary.values()) >= rows:
        why = f"its tokenizer has {max(vocabulary.values()) + 1:,} tokens, and the model rows for {rows:,}"
        raise UserError(Problem(key, why))
    names = {number: token for token, number in vocabulary.items()}
    added = tokenizer.added_tokens_decoder
    tokens, types = [], []
    for number in range(rows):
        tokens.append(names.get(number, f"[PAD{number}]"))
        types.append(_type_of(number, names, added, tokenizer.unk_token_id if prefix is not None else None))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in backend["model"]["merges"]]
    ends = tuple(dict.fromkeys(end for end in (tokenizer.eos_token_id, *ends) if end is not None))
    if not ends:
        raise UserError(Problem(key, "it has no token that ends a text, and llama.cpp would take token 11 for it"))
    empty = tokenizer("")["input_ids"]
    return GgufTokenizer(
        kind=BYTE_LEVEL if prefix is None else SENTENCEPIECE,
        pre=pre,
        prefix=bool(prefix),
        scores=() if prefix is None else tuple(_scores(tokens, merges)),
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


def _type_of(number: int, names: Mapping[int, str], added: Mapping[int, Any], unknown: int | None) -> int:
    if number not in names:
        return UNUSED
    if number == unknown:
        return UNKNOWN
    if number in added:
        return CONTROL if added[number].special else USER_DEFINED
    return BYTE if re.fullmatch(r"<0x[0-9A-F]{2}>", names[number]) else NORMAL


def sentencepiece_prefix(backend: Mapping[str, Any]) -> bool | None:
    """Return whether a tokenizer of SentencePiece's kind puts a space before a text; None where it is of another."""
    model, normal, split = backend["model"], backend.get("normalizer"), backend.get("pre_tokenizer")
    if model["type"] != "BPE" or not model.get("byte_fallback") or model.get("ignore_merges"):
        return None
    if normal is None and split and split["type"] == "Metaspace":
        known = split["replacement"] == SPACE and not split.get("split", True)
        return split["prepend_scheme"] != "never" if known else None
    steps = normal["normalizers"] if normal and normal["type"] == "Sequence" else [normal] if normal else []
    replaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if split is None and steps == [{"type": "Prepend", "prepend": SPACE}, replaces]:
        return True
    return False if split is None and steps == [replaces] else None


def _scores(tokens: Sequence[str], merges: Sequence[str]) -> Iterator[float]:
    """Yield a number for each token: llama.cpp merges into the token with the largest first."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", "", 1), rank)
    last = -float(len(merges) + 1)
    for token in tokens:
        yield -float(ranks[token]) if token in ranks else last


def _remarks(backend: Mapping[str, Any], added: Iterable[Any]) -> Iterator[str]:
    if sentencepiece_prefix(backend) is not None:
        yield LEADING_SPACE
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
    if model.get("byte_fallback"):
        return None, "it is of SentencePiece's kind, with a normalizer of its own"
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
