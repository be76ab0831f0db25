"""Models and tokenizers of several kinds to evaluate."""

from pathlib import Path

import pytest
import torch
from conftest import WORDS
from support.listeners import Handlers

from llm_lab.hf.save import set_special_tokens
from llm_lab.hf.tokenizers import load_tokenizer, make_byte_tokenizer, train_bpe

GPT2 = Path(__file__).resolve().parents[3] / "shared/data/gpt2-tokenizer"
# Characters of one to four bytes, blanks in a row, a line that is blank.
STRANGE = "Ein  Fluß —\n\n  「川」 🌊🌊 in\tspate,  été ﬁn.  \n" * 6


class Told(Handlers):
    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)


def sentencepiece_like(texts: list[str]) -> object:
    """A tokenizer of Llama 2's kind: it adds BOS, marks where words begin, and spells rare characters in bytes."""
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


def tokenizer_named(name: str) -> object:
    if name == "gpt2":
        if not GPT2.exists():
            pytest.skip("GPT-2's tokenizer is not here")
        return load_tokenizer(GPT2)
    texts = [" ".join(WORDS) * 20, STRANGE]
    if name == "bytes":
        return make_byte_tokenizer()
    if name == "no bos":  # as Qwen's
        tokenizer = train_bpe(texts, 300)
        tokenizer.bos_token = None
        return tokenizer
    return train_bpe(texts, 300) if name == "bpe" else sentencepiece_like(texts)


def gpt2_model(tokenizer, positions: int = 64) -> torch.nn.Module:
    """A model of Hugging Face's, new."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=positions, n_embd=32, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        model.transformer.wte.weight.mul_(20)  # or all tokens would be as likely
    set_special_tokens(model, tokenizer)
    return model
