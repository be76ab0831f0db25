"""What two forms of a model are asked, to see whether they are one: texts, prompts, and the model's own words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llm_lab.errors import LabError
from llm_lab.hf.load import context_of

PROMPTS = ("Once upon a time", "Question: 12 + 30 =", "The ", "def f(x):\n    return", "\n")
ROW_TOKENS, NEW_TOKENS = 64, 24
# What tokenizers are apt to read differently: digits, white space, apostrophes, scripts, marks, signs, long words.
TEXTS = (
    "Hello, world! The quick brown fox jumps over the lazy dog.",
    "12345 67 8.9e-10 2024-01-31 $5.00 100% 3½ ² Ⅳ",
    "  leading   spaces\n\n\n\ttabs\t\t x \r\n\r\n the end  ",
    "I'll don't WE'RE it'S 'tis '' o'clock's",
    "na\u00efve caf\u00e9 \u00dcn\u00efc\u00f6d\u00e9 \u00df\u1e9e fi \u00aa\u00ba",
    "日本語のテキスト、中文字符。 한국어 문장 ไทย ภาษา",
    "Привет, мир! مرحبا بالعالم ١٢٣ हिन्दी",
    "😀😃👨\u200d👩\u200d👧 emoji \u00a0nbsp\u2003wide\u3000",
    "x" * 300 + " " + "supercalifragilistic" * 6,
    "def f(x):\n    return {'a': [1, 2], \"b\": x**2}  # see https://example.org/a?b=c&d=%20\n",
    "\n" * 9 + "a" + " " * 17 + "b...???!!!---___",
    "",
)
CHAT = ({"role": "user", "content": "What is 2 + 3?"},)


@dataclass(frozen=True)
class Probe:
    """The questions. rows: token ids that logits are compared on; prompts: ids that are continued greedily."""

    rows: tuple[tuple[int, ...], ...]
    prompts: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    chat: tuple[dict[str, str], ...]
    new_tokens: int


@dataclass(frozen=True)
class Answers:
    """A model's answers. logits: (positions, vocabulary) in float32, of all rows one after the other."""

    logits: Any
    written: tuple[tuple[int, ...], ...]
    texts: tuple[tuple[int, ...], ...]
    decoded: tuple[str, ...]  # the texts again, from their tokens
    chat: str | None


def make_probe(model: Any, tokenizer: Any, *, seed: int = 0, trimmed: bool = False) -> Probe:
    """Return questions for a model: how it goes on after some prompts when tokens are drawn, and random ids.

    trimmed: leave out the spaces that a text begins with. LabError for a model whose logits are NaN.
    """
    context = context_of(model) or ROW_TOKENS + NEW_TOKENS
    length = max(2, min(ROW_TOKENS, context - NEW_TOKENS if context > 2 * NEW_TOKENS else context // 2))
    new_tokens = max(1, min(NEW_TOKENS, context - length))
    generator = torch.Generator().manual_seed(seed)
    rows = model.get_input_embeddings().weight.shape[0]
    known = torch.tensor([number for number in sorted(tokenizer.get_vocab().values()) if number < rows])
    chat = CHAT if chat_text(tokenizer) is not None else ()
    starts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    if chat:
        starts.append(tokenizer(chat_text(tokenizer), add_special_tokens=False)["input_ids"])
    starts = [ids[: length // 2] or [0] for ids in starts]

    def draw(scores: Any) -> int:
        shares = scores[known].softmax(-1)
        if not shares.isfinite().all():
            raise LabError("the model computes no numbers (NaN or infinity): there is nothing to compare")
        return int(known[torch.multinomial(shares, 1, generator=generator)])

    drawn = [_go_on(model, ids, length, draw) for ids in starts]
    drawn.append(known[torch.randint(len(known), (length,), generator=generator)].tolist())
    texts = (*TEXTS, chat_text(tokenizer)) if chat else TEXTS
    texts = tuple(text.lstrip(" ") for text in texts) if trimmed else texts
    prompts = tuple(tuple(ids) for ids in starts)
    return Probe(tuple(tuple(row) for row in drawn), prompts, texts, chat, new_tokens)


def _go_on(model: Any, ids: Sequence[int], length: int, choose: Callable[[Any], int]) -> list[int]:
    """Return ids with what a model writes after them, `length` in all. choose: the next token, of its logits."""
    ids = list(ids)
    fresh, cache = ids, None
    with torch.inference_mode():
        while len(ids) < length:
            output = model(input_ids=torch.tensor([fresh]), past_key_values=cache, use_cache=True)
            cache = getattr(output, "past_key_values", None)
            ids.append(choose(output.logits[0, -1].float()))
            fresh = ids if cache is None else ids[-1:]
    return ids


def ask(model: Any, tokenizer: Any, probe: Probe) -> Answers:
    """Return a model's own answers: whole rows at once, and the likeliest token step by step."""
    with torch.inference_mode():
        logits = [model(input_ids=torch.tensor([row]), use_cache=False).logits[0].float() for row in probe.rows]
    written = []
    for prompt in probe.prompts:
        ids = _go_on(model, prompt, len(prompt) + probe.new_tokens, lambda scores: int(scores.argmax()))
        written.append(tuple(ids[len(prompt) :]))
    texts = tuple(tuple(tokenizer(text)["input_ids"]) for text in probe.texts)
    return Answers(
        logits=torch.cat(logits).numpy(),
        written=tuple(written),
        texts=texts,
        decoded=tuple(tokenizer.decode(row, clean_up_tokenization_spaces=False) for row in texts),
        chat=chat_text(tokenizer) if probe.chat else None,
    )


def chat_text(tokenizer: Any) -> str | None:
    """Return a question as the chat template writes it; None where it has none, or one that wants more."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        return tokenizer.apply_chat_template(list(CHAT), tokenize=False, add_generation_prompt=True)
    except Exception:  # a template raises what it likes
        return None
