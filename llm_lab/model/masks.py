"""What attention needs to know of positions in a batch: where tokens stand, and ALiBi inside the mask."""

import torch
from transformers.cache_utils import Cache

from .positions import Alibi

# Far below any score, far from overflow in bf16: a row that is masked throughout stays finite.
MASKED = -1e9
TAKES_BIAS = ("eager", "sdpa", "flex_attention")


def refuse_kernel_without_bias(kernel: str) -> None:
    """Raise for an attention kernel that would drop ALiBi's bias without a word."""
    if kernel not in TAKES_BIAS:
        raise ValueError(
            f"attn_implementation = {kernel!r} takes no position bias, so ALiBi would be lost: "
            f"choose from {', '.join(TAKES_BIAS)}"
        )


def token_positions(x: torch.Tensor, attention_mask: torch.Tensor | None, cache: Cache | None) -> torch.LongTensor:
    """Positions (1 or batch, length) after the cached tokens, not counting those that a 2-D mask hides."""
    past = cache.get_seq_length() if cache is not None else 0
    index = torch.arange(x.shape[1], device=x.device) + past
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.ndim != 2:
        return index[None]
    real_tokens_so_far = (attention_mask != 0).cumsum(dim=-1)
    return (real_tokens_so_far - 1).clamp(min=0).index_select(1, index)


def alibi_mask_and_bias(
    alibi: Alibi, kernel: str, mask: torch.Tensor | None, x: torch.Tensor, cache: Cache | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """One additive mask (1 or batch, heads, queries, keys), or, for flex, its block mask and the bias."""
    refuse_kernel_without_bias(kernel)
    batch, length, _ = x.shape
    past, key_count, first_key = 0, length, 0
    if cache is not None:
        past = cache.get_seq_length()
        key_count, first_key = cache.get_mask_sizes(length, 0)
    queries = torch.arange(length, device=x.device) + past
    keys = torch.arange(key_count, device=x.device) + first_key
    bias = alibi(queries, keys)
    if kernel == "flex_attention":
        return mask, bias.expand(batch, -1, -1, -1)
    if mask is None:
        mask = queries[:, None] >= keys
    mask = torch.where(mask, bias, MASKED) if mask.dtype == torch.bool else mask + bias
    # sdpa's kernels want the dtype of the query: the finished bias is rounded to it, never the distances.
    return mask.to(x.dtype) if kernel == "sdpa" else mask, None
