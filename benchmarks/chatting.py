"""Chat: tokens a second of our streaming against transformers' generate, both greedy and with a cache."""

from __future__ import annotations

from .contenders import llama_config
from .timing import race

COUNT, PROMPT = 128, "Once upon a time there was"


def bench(full: bool) -> None:
    """Print both."""
    import torch

    from llm_lab.hf.load import build_from_config
    from llm_lab.hf.save import set_special_tokens
    from llm_lab.hf.tokenizers import make_byte_tokenizer
    from llm_lab.stages.chat import ChatSession, ChatSettings

    tokenizer = make_byte_tokenizer()
    torch.manual_seed(0)
    model = build_from_config(llama_config()).eval()
    set_special_tokens(model, tokenizer)
    model.generation_config.eos_token_id = None
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])

    def ours() -> None:
        settings = ChatSettings(temperature=0.0, max_new_tokens=COUNT)
        "".join(ChatSession(model, tokenizer, name="bench", settings=settings).reply(PROMPT))

    def theirs() -> None:
        mask = torch.ones_like(ids)
        model.generate(ids, attention_mask=mask, max_new_tokens=COUNT, do_sample=False, pad_token_id=256)

    timings = race({"ours": ours, "theirs": theirs}, rounds=30 if full else 10, warmup=1)
    print(f"Chat, {COUNT} tokens, greedy, 4 × 128 on the CPU:\n\n| who | tokens/s | time |\n| --- | --- | --- |")
    for name, words in (("ours", "llm-lab chat"), ("theirs", "transformers' generate")):
        print(f"| {words} | {COUNT / timings[name].median:,.0f} | {timings[name].spread()} |")
    print(f"\nRatio {timings['theirs'].median / timings['ours'].median:.2f} ×")
