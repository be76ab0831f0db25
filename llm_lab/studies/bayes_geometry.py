"""Inside a Transformer trained on such a task: its keys, the output of its attention, the entropy axis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from llm_lab.looking.recording import without_heads

from .bayes import Task, entropy_bits
from .bayes_models import measure
from .geometry import (
    fit_axis,
    mean_absolute_cosine,
    principal_components,
    r_squared,
    random_absolute_cosine,
    without_direction,
)

RANDOM_DIRECTIONS = 5


@dataclass(frozen=True)
class States:
    """The activations of a model at the positions that a task asks about.

    layers: the residual stream after each layer, each (sequences, length, size). attended: the output of the last
    attention, with the same shape. entropy: that of Bayes, (sequences, length), in bits.
    """

    layers: list[torch.Tensor]
    attended: torch.Tensor
    entropy: torch.Tensor


@torch.no_grad()
def read_states(model: Any, task: Task, tokens: torch.Tensor) -> States:
    """Run sequences through a model of our architecture, and return its activations at the asked positions."""
    layers: list[torch.Tensor] = []
    attended: list[torch.Tensor] = []
    blocks = model.model.layers
    hooks = [block.register_forward_hook(lambda *call: layers.append(call[2][:, task.asked])) for block in blocks]
    hooks.append(blocks[-1].self_attn.register_forward_hook(lambda *call: attended.append(call[2][0][:, task.asked])))
    model.eval()
    try:
        model(task.inputs(tokens), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return States(layers, attended[0], entropy_bits(task.posterior(tokens)))


@torch.no_grad()
def key_cosines(model: Any, task: Task) -> list[float]:
    """Return how orthogonal the keys of the key tokens are in each head of the first layer: the mean |cosine| of pairs.

    [] for a task without keys.
    """
    if not task.key_tokens:
        return []
    block = model.model.layers[0]
    states = block.input_layernorm(model.model.embed_tokens(torch.arange(task.key_tokens)))
    heads = model.config.num_key_value_heads
    keys = block.self_attn.k_proj(states).view(task.key_tokens, heads, -1)
    return [mean_absolute_cosine(keys[:, head]) for head in range(heads)]


def expected_cosine(model: Any) -> float:
    """Return what `key_cosines` would be for random directions."""
    return random_absolute_cosine(model.config.head_dim)


@dataclass(frozen=True)
class Manifold:
    """The outputs of the last attention on their first two principal components.

    coordinates: (points, 2). entropy: of Bayes at each point. shares: their shares of the variance. r2: that of a
    linear fit of the entropy to the first component alone.
    """

    coordinates: torch.Tensor
    entropy: torch.Tensor
    shares: tuple[float, float]
    r2: float


def value_manifold(states: States) -> Manifold:
    """Return the principal components of the outputs of the last attention."""
    found = principal_components(states.attended.flatten(0, 1), 2)
    entropy = states.entropy.flatten()
    first = found.coordinates[:, :1]
    line = fit_axis(first, entropy, strength=0.0)
    return Manifold(
        found.coordinates,
        entropy,
        (float(found.shares[0]), float(found.shares[1])),
        r_squared(entropy, line.read(first)),
    )


@dataclass(frozen=True)
class EntropyAxis:
    """The direction after one layer from which Bayes' entropy can be read, and the model's error without it.

    r2: on sequences that the direction was not fitted on. within_position_r2: the same after subtracting the mean of
    each position from both, or None if the entropy depends only on the position. without, without_random: the model's
    error of the entropy in bits with this direction removed, and with a random one removed (mean of five).
    """

    r2: float
    within_position_r2: float | None
    without: float
    without_random: float


def entropy_axis(model: Any, task: Task, tokens: torch.Tensor, layer: int, states: States) -> EntropyAxis:
    """Find the entropy axis after a layer on the first half of the sequences and test it on the second half."""
    half = len(tokens) // 2
    vectors, entropy = states.layers[layer], states.entropy
    axis = fit_axis(vectors[:half].flatten(0, 1), entropy[:half].flatten())
    read = axis.read(vectors[half:])
    mean = vectors[:half].flatten(0, 1).mean(0)
    generator = torch.Generator().manual_seed(layer)
    size = vectors.shape[-1]
    errors = [
        _error_without(model, task, tokens[half:], layer, torch.nn.functional.normalize(direction, dim=0), mean)
        for direction in (axis.direction, *torch.randn(RANDOM_DIRECTIONS, size, generator=generator))
    ]
    return EntropyAxis(
        r_squared(entropy[half:].flatten(), read.flatten()),
        _within_position(entropy[half:], read),
        errors[0],
        sum(errors[1:]) / RANDOM_DIRECTIONS,
    )


def _within_position(entropy: torch.Tensor, read: torch.Tensor) -> float | None:
    inner = entropy - entropy.mean(0)
    if float(inner.abs().max()) < 1e-9:
        return None
    return r_squared(inner.flatten(), (read - read.mean(0)).flatten())


def _error_without(
    model: Any, task: Task, tokens: torch.Tensor, layer: int, direction: torch.Tensor, mean: torch.Tensor
) -> float:
    with _changed_after(model, task.asked, layer, direction, mean):
        return float(measure(model, task, tokens).errors.mean())


@contextmanager
def _changed_after(model: Any, asked: slice, layer: int, direction: torch.Tensor, mean: torch.Tensor) -> Iterator[None]:
    """Remove a direction from the residual stream after a layer, at the asked positions."""

    def change(module: Any, given: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[:, asked] = without_direction(output[:, asked], direction, mean)
        return output

    hook = model.model.layers[layer].register_forward_hook(change)
    try:
        yield
    finally:
        hook.remove()


def errors_without_heads(model: Any, task: Task, tokens: torch.Tensor) -> list[list[float]]:
    """Return the model's error of the entropy in bits with one head's output set to zero: [layer][head]."""
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    found = []
    for layer in range(layers):
        row = []
        for head in range(heads):
            with without_heads(model, [(layer, head)], heads):
                row.append(float(measure(model, task, tokens).errors.mean()))
        found.append(row)
    return found
