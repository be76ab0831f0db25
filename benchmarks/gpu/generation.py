"""Time generate() of transformers on a batch of prompts: kernels, LoRA, and a compiled static cache.

The model has the shape of Qwen2 0.5B and random weights; nothing is downloaded.

python -m benchmarks.gpu.generation
"""

from __future__ import annotations

import time
import traceback
from typing import Any

import torch

from .cuda import require_gpu

ROWS, PROMPT_LENGTH = 64, 100
SHAPE = {
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def build_model() -> Any:
    """Return the model in bf16 on the GPU."""
    from transformers import AutoModelForCausalLM, GenerationConfig, Qwen2Config

    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(Qwen2Config(**SHAPE), attn_implementation="sdpa")
    model.generation_config = GenerationConfig(do_sample=True, top_k=0, pad_token_id=0)
    return model.to(torch.bfloat16).eval()


def generate(model: Any, rows: int, prompt_length: int, new_tokens: int, **options: Any) -> float:
    """Return the seconds of one call. Every second prompt is padded on the left, as prompts of unequal length are."""
    ids = torch.randint(0, 9999, (rows, prompt_length), device="cuda")
    mask = torch.ones_like(ids)
    mask[::2, : prompt_length // 5] = 0
    torch.cuda.synchronize()
    start = time.perf_counter()
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        model.generate(
            input_ids=ids, attention_mask=mask, min_new_tokens=new_tokens, max_new_tokens=new_tokens, **options
        )
    torch.cuda.synchronize()
    return time.perf_counter() - start


def report(name: str, model: Any, new_tokens: int, **options: Any) -> None:
    """Print two rows of the table: the first call, and a second one without new shapes."""
    for call in ("first", "second"):
        try:
            seconds = generate(model, ROWS, PROMPT_LENGTH, new_tokens, **options)
        except Exception:
            print(f"| {name} | {call} | failed | |", flush=True)
            traceback.print_exc()
            return
        speed = ROWS * new_tokens / seconds
        print(f"| {name} | {call} | {speed:,.0f} tokens/s | {1e3 * seconds / new_tokens:.1f} ms |", flush=True)


def main() -> None:
    """Print the table."""
    require_gpu()
    from peft import LoraConfig, get_peft_model

    model = build_model()
    print(f"{ROWS} prompts of {PROMPT_LENGTH} tokens, bf16 autocast:\n")
    print("| variant | call | speed | time per step |\n| --- | --- | --- | --- |", flush=True)
    # One-time costs of the process come before the first timing, with shapes that no timing uses.
    torch.backends.cuda.enable_cudnn_sdp(False)
    generate(model, 2, 20, 4)
    torch.backends.cuda.enable_cudnn_sdp(True)
    report("PyTorch's choice of kernel, 24 tokens", model, 24)
    torch.backends.cuda.enable_cudnn_sdp(False)
    report("without cuDNN, 24 tokens", model, 24)
    report("without cuDNN, 128 tokens", model, 128)
    adapted = get_peft_model(model, LoraConfig(r=16, target_modules=LINEAR_LAYERS, task_type="CAUSAL_LM")).eval()
    report("without cuDNN, with LoRA, 64 tokens", adapted, 64)
    model = adapted.unload().eval()
    report("without cuDNN, compiled static cache, 64 tokens", model, 64, cache_implementation="static")


if __name__ == "__main__":
    main()
