"""Token positions in a padded batch, and attention masks with ALiBi's bias."""

import torch
from transformers.cache_utils import Cache

from .older_transformers import mask_sizes
from .positions import Alibi

# Far below any score and far from overflow in bf16, so a fully masked row stays finite.
MASKED = -1e9
SUPPORTS_BIAS = ("eager", "sdpa", "flex_attention")


def refuse_kernel_without_bias(kernel: str) -> None:
    """Raise ValueError for an attention kernel that would silently drop ALiBi's bias."""
    if kernel not in SUPPORTS_BIAS:
        raise ValueError(
            f"attn_implementation = {kernel!r} does not support a position bias, so ALiBi would be lost: "
            f"choose from {', '.join(SUPPORTS_BIAS)}"
        )


def token_positions(
    x: torch.Tensor, attention_mask: torch.Tensor | dict[str, torch.Tensor] | None, cache: Cache | None
) -> torch.Tensor:
    """Return positions (1 or batch, length), counted after the cached tokens and without those masked by a 2-D mask."""
    past = cache.get_seq_length() if cache is not None else 0
    index = torch.arange(x.shape[1], device=x.device) + past
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.ndim != 2:
        return index[None]
    real_tokens_so_far = (attention_mask != 0).cumsum(dim=-1)
    return (real_tokens_so_far - 1).clamp(min=0).index_select(1, index)


def alibi_mask_and_bias(
    alibi: Alibi, kernel: str, mask: torch.Tensor | None, x: torch.Tensor, cache: Cache | None, layer_idx: int = 0
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return an additive mask (1 or batch, heads, queries, keys), or for flex attention its block mask and the bias.

    layer_idx: one of the layers that the mask is for; those with a sliding window cache fewer keys.
    """
    refuse_kernel_without_bias(kernel)
    batch, length, _ = x.shape
    past, key_count, first_key = 0, length, 0
    if cache is not None:
        past = cache.get_seq_length()
        key_count, first_key = mask_sizes(cache, length, layer_idx)
    queries = torch.arange(length, device=x.device) + past
    keys = torch.arange(key_count, device=x.device) + first_key
    bias = alibi(queries, keys)
    if kernel == "flex_attention":
        return mask, bias.expand(batch, -1, -1, -1)
    if mask is None:
        mask = queries[:, None] >= keys
    mask = torch.where(mask, bias, MASKED) if mask.dtype == torch.bool else mask + bias
    # sdpa requires the dtype of the query: only the final bias is rounded to it, not the distances.
    return mask.to(x.dtype) if kernel == "sdpa" else mask, None
