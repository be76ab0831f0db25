"""Small models and tokenizers of several kinds to evaluate."""

from pathlib import Path

import pytest
import torch
from conftest import WORDS
from support.listeners import Handlers

from llm_lab.hf.save import set_special_tokens
from llm_lab.hf.tokenizers import load_tokenizer, make_byte_tokenizer, train_bpe

GPT2 = Path(__file__).resolve().parents[3] / "shared/data/gpt2-tokenizer"
# Characters of one to four bytes, repeated spaces, an empty line.
STRANGE = "Ein  Fluß —\n\n  「川」 🌊🌊 in\tspate,  été ﬁn.  \n" * 6


class Notices(Handlers):
    """Records notices and warnings."""

    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)


def sentencepiece_like(texts: list[str]) -> object:
    """A tokenizer like Llama 2's: it adds BOS, marks the start of words, and falls back to bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, limit_alphabet=24, show_progress=False)
    backend.train_from_iterator(texts[:1], trainer)
    strip = decoders.Strip(" ", 1, 0)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def make_tokenizer(name: str) -> object:
    if name == "gpt2":
        if not GPT2.exists():
            pytest.skip("GPT-2's tokenizer is not available")
        return load_tokenizer(GPT2)
    texts = [" ".join(WORDS) * 20, STRANGE]
    if name == "bytes":
        return make_byte_tokenizer()
    if name == "no bos":  # like Qwen's
        tokenizer = train_bpe(texts, 300)
        tokenizer.bos_token = None
        return tokenizer
    return train_bpe(texts, 300) if name == "bpe" else sentencepiece_like(texts)


def gpt2_model(tokenizer, positions: int = 64) -> torch.nn.Module:
    """A new GPT-2 model of transformers, with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=positions, n_embd=32, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        model.transformer.wte.weight.mul_(20)  # otherwise all tokens would have nearly the same probability
    set_special_tokens(model, tokenizer)
    return model
