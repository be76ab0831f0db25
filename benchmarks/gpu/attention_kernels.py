"""Time the attention kernels of PyTorch's scaled_dot_product_attention, warm and at shapes they have not seen.

cuDNN builds a plan for each new shape, which matters in generation, where lengths change all the time.

python -m benchmarks.gpu.attention_kernels
"""

from __future__ import annotations

import statistics
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from .cuda import require_gpu

KERNELS = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
}
HEADS, HEAD_DIM = 12, 64
FIRST_LENGTH, NEW_LENGTHS = 512, 5
DECODED_ROWS, DECODED_HEADS, DECODED_FROM, DECODED_STEPS = 64, 14, 200, 32


def main() -> None:
    """Print a table of training times and one of decoding times."""
    require_gpu()
    example = _random(2, 4, 64, HEAD_DIM)
    chosen = SDPBackend(torch._fused_sdp_choice(example, example, example, is_causal=True)).name
    print(f"Kernel that PyTorch chooses for causal attention in bf16: {chosen}\n")
    print("| kernel | attention | forward and backward, 32 × 12 × 1024 × 64 | 8 × 12 × 64, first time at a length |")
    print("| --- | --- | --- | --- |", flush=True)
    for name, kernel in KERNELS.items():
        for masked in (False, True):
            if not (masked and kernel is SDPBackend.FLASH_ATTENTION):  # flash does not support masks
                print(f"| {name} | {'dense mask' if masked else 'causal'} | {_train(kernel, masked)} |", flush=True)
    print(f"\nDecoding, {DECODED_ROWS} rows, {DECODED_STEPS} growing lengths from {DECODED_FROM}:\n")
    print("| kernel | time per step, median (range) |\n| --- | --- |", flush=True)
    for name in ("cuDNN", "flash"):
        print(f"| {name} | {_decode(KERNELS[name])} |", flush=True)


def _train(kernel: SDPBackend, masked: bool) -> str:
    try:
        with sdpa_kernel(kernel):
            _time_training(8, FIRST_LENGTH, masked)
            new = [_time_training(8, FIRST_LENGTH + 8 * number, masked) for number in range(1, NEW_LENGTHS + 1)]
            warm = min(_time_training(32, 1024, masked) for _ in range(5))
    except RuntimeError as error:
        return f"failed: {_first_line(error)} | "
    return f"{warm:.2f} ms | {', '.join(f'{ms:.0f}' for ms in new)} ms"


def _time_training(rows: int, length: int, masked: bool) -> float:
    """Return the milliseconds of forward and backward, on the host's clock: it includes building plans."""
    query, key, value = (_random(rows, HEADS, length, HEAD_DIM).requires_grad_() for _ in range(3))
    mask = torch.ones(rows, 1, length, length, device="cuda", dtype=torch.bool).tril() if masked else None
    gradient = torch.randn_like(query)
    torch.cuda.synchronize()
    start = time.perf_counter()
    scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None).backward(gradient)
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


@torch.no_grad()
def _decode(kernel: SDPBackend) -> str:
    try:
        with sdpa_kernel(kernel):
            _time_decoding(DECODED_FROM - 1)
            times = [_time_decoding(DECODED_FROM + step) for step in range(DECODED_STEPS)]
    except RuntimeError as error:
        return f"failed: {_first_line(error)}"
    return f"{statistics.median(times):.2f} ms ({min(times):.2f} to {max(times):.2f})"


def _time_decoding(length: int) -> float:
    query = _random(DECODED_ROWS, DECODED_HEADS, 1, HEAD_DIM)
    cached = _random(DECODED_ROWS, DECODED_HEADS, length, HEAD_DIM)
    torch.cuda.synchronize()
    start = time.perf_counter()
    scaled_dot_product_attention(query, cached, cached)
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:150]


if __name__ == "__main__":
    main()
