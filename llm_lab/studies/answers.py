"""Answers of models to the same instructions: their loss, and what they write with different ways of decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llm_lab.data.examples import Example
from llm_lab.evaluation.score import generate, generating, prompt_ids

DECODINGS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {},
    "beam search, 4 beams": {"num_beams": 4},
    "repetition penalty 1.3": {"repetition_penalty": 1.3},
    "no repeated 3-grams": {"no_repeat_ngram_size": 3},
}


def answer_loss(checkpoint: str, examples: Sequence[Example], *, template: str | None = None) -> float:
    """Return the loss of a model on the answers of conversations, in nats per token.

    template: the chat template of a model that has none, such as one that was only pretrained.
    """
    import torch
    from torch.nn import functional as F

    from llm_lab.hf.chat_templates import apply_chat_template_choice, resize_for
    from llm_lab.hf.conversations import IGNORED, encode_sequences
    from llm_lab.runner import load

    model, tokenizer = load(checkpoint)
    if template and not tokenizer.chat_template:
        chosen = apply_chat_template_choice(tokenizer, template)
        resize_for(model, tokenizer, chosen, seed=0)
    nats, count = 0.0, 0
    with torch.no_grad(), generating(model):
        for example in examples:
            for sequence in encode_sequences(tokenizer, example.messages).sequences:
                ids = torch.tensor([sequence.input_ids], device=model.device)
                labels = torch.tensor(sequence.labels[1:], device=model.device)
                logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
                nats += F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum").item()
                count += int((labels != IGNORED).sum())
    return nats / max(1, count)


def write_answers(
    model: Any, tokenizer: Any, examples: Sequence[Example], *, max_new_tokens: int, decoding: Mapping[str, Any]
) -> list[str]:
    """Return a model's answer to each instruction, on one line. decoding: settings of transformers' generate."""
    answers = []
    with generating(model):
        for example in examples:
            ids = [prompt_ids(tokenizer, example)]
            [found] = generate(model, tokenizer, ids, max_new_tokens=max_new_tokens, temperature=0.0, decoding=decoding)
            answers.append(" ".join(tokenizer.decode(found, skip_special_tokens=True).split()))
    return answers


def repeated_share(text: str, words: int = 2) -> float:
    """Return the share (0 to 1) of a text's word pairs, or longer n-grams, that have already occurred in it."""
    parts = text.lower().split()
    grams = [tuple(parts[at : at + words]) for at in range(len(parts) - words + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def overlap(answer: str, reference: str) -> float:
    """Return the F1 score of the words that an answer shares with a reference, from 0 to 1, ignoring their order."""
    given, wanted = ([word.strip(".,:;!?\"'") for word in text.lower().split()] for text in (answer, reference))
    left = list(wanted)
    shared = 0
    for word in given:
        if word in left:
            left.remove(word)
            shared += 1
    return 2 * shared / (len(given) + len(wanted)) if given or wanted else 0.0
