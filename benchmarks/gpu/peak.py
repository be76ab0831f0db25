"""The limits of this GPU: bf16 matrix products and memory bandwidth, each the median of 20 timings.

python -m benchmarks.gpu.peak
"""

from __future__ import annotations

import torch

from .cuda import median_time, require_gpu

# (what, rows, inputs, outputs): the products of the 124M model (32 × 1024 tokens) and of the 1B model (8 × 2048).
PRODUCTS = [
    ("square", 8192, 8192, 8192),
    ("124M, q, k and v in one product", 32768, 768, 2304),
    ("124M, gate and up in one product", 32768, 768, 4096),
    ("124M, gate", 32768, 768, 2048),
    ("124M, down", 32768, 2048, 768),
    ("124M, attention output", 32768, 768, 768),
    ("1B, gate", 16384, 2048, 5472),
    ("1B, down", 16384, 5472, 2048),
    ("1B, q", 16384, 2048, 2048),
]
HEAD_ROWS, HEAD_VOCABULARIES, HEAD_WIDTH = (2521, 8192), (50_257, 50_304), 768
COPIED_NUMBERS = 2**30  # float32


def main() -> None:
    """Print a table of products, one of the output head, and the bandwidth of a copy."""
    require_gpu()
    print("Matrix products in bf16:\n\n| product | rows × inputs × outputs | time |\n| --- | --- | --- |")
    for what, rows, inputs, outputs in PRODUCTS:
        cell = _time_product(_random(rows, inputs), _random(outputs, inputs).t())
        print(f"| {what} | {rows:,} × {inputs:,} × {outputs:,} | {cell} |", flush=True)
    print("\nOutput head of the 124M model:\n\n| rows × vocabulary | logits | gradient of the states | of the weight |")
    print("| --- | --- | --- | --- |", flush=True)
    for rows in HEAD_ROWS:
        for vocabulary in HEAD_VOCABULARIES:
            states, weight = _random(rows, HEAD_WIDTH), _random(vocabulary, HEAD_WIDTH)
            slope = _random(rows, vocabulary)
            cells = _time_product(states, weight.t()), _time_product(slope, weight), _time_product(slope.t(), states)
            print(f"| {rows:,} × {vocabulary:,} | {' | '.join(cells)} |", flush=True)
    source = torch.randn(COPIED_NUMBERS, device="cuda")
    target = torch.empty_like(source)
    ms = median_time(lambda: target.copy_(source))
    print(f"\nCopy of 4 GiB: {2 * 4 * COPIED_NUMBERS / ms / 1e6:,.0f} GB/s, read and written")


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def _time_product(a: torch.Tensor, b: torch.Tensor) -> str:
    """Return time and speed of the product of two matrices."""
    ms = median_time(lambda: a @ b)
    return f"{ms:.3f} ms, {2 * a.shape[0] * a.shape[1] * b.shape[1] / ms / 1e9:.0f} TFLOP/s"


if __name__ == "__main__":
    main()
