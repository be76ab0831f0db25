"""The five position embeddings: sinusoidal, learned, RoPE, YaRN and ALiBi.

They have no buffers. All but the learned one are computed in float32 from integer positions, once per forward pass of
the model, so they are exact after a cast to bf16, after loading from the meta device, and for longer contexts.
"""

import math

import torch
from torch import nn

POSITION_EMBEDDINGS = ("sinusoidal", "rope", "alibi", "yarn", "learned")


class Sinusoidal(nn.Module):
    """Fixed sinusoids: sine on even, cosine on odd channels (Vaswani et al., arXiv:1706.03762)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        """Map positions (batch, length) to float32 (batch, length, hidden_size)."""
        channels = torch.arange(0, self.hidden_size, 2, dtype=torch.float32, device=positions.device)
        angles = positions[..., None].float() * 10000.0 ** (-channels / self.hidden_size)
        return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


class Learned(nn.Embedding):
    """A trained vector for each position of the context, as in GPT-2 (Gehring et al., arXiv:1705.03122)."""

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        """Map positions (batch, length) to (batch, length, hidden_size). Raises ValueError beyond the context."""
        if positions.shape[-1] > self.num_embeddings:
            raise ValueError(f"{positions.shape[-1]} tokens, but learned positions only for {self.num_embeddings}")
        return super().forward(positions)


class Rope(nn.Module):
    """Rotary embedding in Llama's layout, where channel i is paired with i + head_dim/2 (arXiv:2104.09864)."""

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.theta = theta
        self.attention_factor = 1.0

    def inverse_frequencies(self, device: torch.device | None = None) -> torch.Tensor:
        """Return radians per position for each pair of channels: float32 (head_dim / 2,)."""
        return 1.0 / self._positions_per_radian(device)

    def _positions_per_radian(self, device: torch.device | None) -> torch.Tensor:
        channels = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=device)
        return self.theta ** (channels / self.head_dim)

    def forward(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Map positions (batch, length) to the cosine and the signed sine, each (batch, length, 1, head_dim)."""
        angles = positions[..., None, None].float() * self.inverse_frequencies(positions.device)
        cos = angles.cos() * self.attention_factor
        sin = angles.sin() * self.attention_factor
        return _side_by_side(cos, cos).to(dtype), _side_by_side(-sin, sin).to(dtype)


def _side_by_side(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return two tensors (..., width) as one (..., 2 * width)."""
    if not torch.compiler.is_compiling():
        return torch.cat((first, second), dim=-1)
    # The inductor computes a cat again wherever it is used: powers, sines and cosines for each element of q and k in
    # each layer, 7 % of a step on an H100. Values that are copied into a tensor are computed once.
    columns, width = torch.arange(first.shape[-1], device=first.device), first.shape[-1]
    both = first.new_empty(*first.shape[:-1], 2 * width)
    return both.index_copy(-1, columns, first).index_copy(-1, columns + width, second)


class Yarn(Rope):
    """RoPE extended to a longer context, with an attention temperature (arXiv:2309.00071).

    Channels that rotate more than `beta_fast` times in the original context keep their frequency, those that rotate
    less than `beta_slow` times are slowed down by `factor`, and a linear ramp interpolates between the two.
    """

    def __init__(
        self,
        head_dim: int,
        theta: float,
        factor: float,
        original_max_position_embeddings: int,
        beta_fast: float = 32.0,
        beta_slow: float = 1.0,
        attention_factor: float | None = None,
        mscale: float | None = None,
        mscale_all_dim: float | None = None,
        truncate: bool = True,
    ) -> None:
        super().__init__(head_dim, theta)
        self.factor = factor
        first = self._channel_with_rotations(beta_fast, original_max_position_embeddings)
        last = self._channel_with_rotations(beta_slow, original_max_position_embeddings)
        if truncate:
            first, last = math.floor(first), math.ceil(last)
        self.ramp_start, self.ramp_end = max(first, 0), min(last, head_dim - 1)
        if attention_factor is not None:
            self.attention_factor = attention_factor
        elif mscale and mscale_all_dim:
            self.attention_factor = _temperature(factor, mscale) / _temperature(factor, mscale_all_dim)
        else:
            self.attention_factor = _temperature(factor, 1.0)

    def _channel_with_rotations(self, times: float, context: int) -> float:
        return self.head_dim * math.log(context / (times * 2 * math.pi)) / (2 * math.log(self.theta))

    def inverse_frequencies(self, device: torch.device | None = None) -> torch.Tensor:
        """Return radians per position for each pair of channels: float32 (head_dim / 2,)."""
        per_radian = self._positions_per_radian(device)
        width = (self.ramp_end - self.ramp_start) or 0.001
        channels = torch.arange(self.head_dim // 2, dtype=torch.float32, device=device)
        kept_share = 1 - ((channels - self.ramp_start) / width).clamp(0, 1)
        return 1.0 / (self.factor * per_radian) * (1 - kept_share) + 1.0 / per_radian * kept_share


def _temperature(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def apply_rotary(x: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> torch.Tensor:
    """Rotate the channel pairs of x (batch, length, heads, head_dim) by the angles from `Rope`."""
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * signed_sin


class Alibi(nn.Module):
    """Attention with linear biases: -slope * distance for each head (arXiv:2108.12409)."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads

    def slopes(self, device: torch.device | None = None) -> torch.Tensor:
        """Return one slope per head, float32 (num_heads,), as in the paper's code, also if not a power of 2."""
        power = 2 ** math.floor(math.log2(self.num_heads))
        exponents = torch.arange(1, power + 1, dtype=torch.float32, device=device) / power
        if power < self.num_heads:
            between = torch.arange(1, 2 * (self.num_heads - power), 2, dtype=torch.float32, device=device)
            exponents = torch.cat((exponents, between / (2 * power)))
        return torch.exp2(-8 * exponents)

    def forward(self, query_positions: torch.Tensor, key_positions: torch.Tensor) -> torch.Tensor:
        """Map positions (queries,) and (keys,) to the float32 bias (1, num_heads, queries, keys)."""
        distance = (query_positions[:, None] - key_positions[None, :]).abs()
        return -self.slopes(distance.device)[None, :, None, None] * distance
