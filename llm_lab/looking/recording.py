"""What happens inside a model on one text: the residual stream, its parts, and the attention weights.

The hooks work on any causal LM, and check themselves: the change of the residual stream by a layer must be the sum of
the changes by its attention and its feed-forward network.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from .anatomy import Anatomy, base_of, eager_attention, find_parts

# The largest error of a sum, relative to its size, by the precision of the weights.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
LOW_PRECISION_TOLERANCE = 5e-2


@dataclass(frozen=True)
class Parts:
    """What the attention and the feed-forward of a layer add to the residual stream: (length, hidden_size) each.

    error: that of the sum, relative to what the layer adds. how: a description of how the parts were found.
    """

    attention: torch.Tensor
    feed_forward: torch.Tensor
    error: float
    how: str


@dataclass
class Recording:
    """One forward pass over `ids` (length,). Everything is on the CPU, in float32.

    residual: (layers + 1, length, hidden_size), before the first layer and after each. attention: per layer (heads,
    length, length), or None. heads: per layer the input of the output projection (length, heads * head_dim), or None.
    parts: per layer, or None if they could not be separated; `why` then has the reason. logits: (length,
    vocabulary). head_input: (length, hidden_size).
    """

    ids: torch.Tensor
    logits: torch.Tensor
    residual: torch.Tensor
    attention: list[torch.Tensor | None]
    heads: list[torch.Tensor | None]
    parts: list[Parts | None]
    head_input: torch.Tensor
    why: str = ""

    @property
    def error(self) -> float | None:
        """The largest error of a layer's sum, or None if no layer has parts."""
        errors = [part.error for part in self.parts if part is not None]
        return max(errors) if errors else None


@dataclass
class _Calls:
    """The calls of a layer's modules in one forward pass: (module, input, output), in order of their end."""

    before: torch.Tensor | None = None
    calls: list[tuple[Any, Any, Any, torch.Tensor | None]] = field(default_factory=list)


def tolerance(model: Any) -> float:
    """Return the largest relative error that rounding can explain, for the precision of a model's weights."""
    return TOLERANCE.get(model.dtype, LOW_PRECISION_TOLERANCE)


@torch.no_grad()
def record(model: Any, ids: Sequence[int] | torch.Tensor) -> Recording:
    """Run a causal LM on one text and return its activations. Raises UserError if its layers aren't found."""
    anatomy = find_parts(model)
    calls = [_Calls() for _ in anatomy.layers]
    count = len(anatomy.layers)
    after: list[Any] = [None] * count
    weights: list[torch.Tensor | None] = [None] * count
    heads: list[torch.Tensor | None] = [None] * count
    parts: list[Parts | None] = [None] * count
    into_head: list[torch.Tensor] = []
    limit = tolerance(model)

    def finish(index: int, output: torch.Tensor) -> None:
        seen = calls[index]
        assert seen.before is not None
        parts[index] = _parts(anatomy, index, seen, output, limit)
        after[index] = _keep(output)
        seen.calls.clear()

    with eager_attention(model), ExitStack() as stack:
        for index, layer in enumerate(anatomy.layers):
            _hook_layer(stack, anatomy, index, layer, calls[index], finish)
            if (attention := anatomy.attention[index]) is not None:
                stack.callback(
                    attention.register_forward_hook(_keep_weights(weights, index, len(torch.as_tensor(ids)))).remove
                )
            if (output := anatomy.outputs[index]) is not None:
                stack.callback(output.register_forward_pre_hook(_keep_input(heads, index)).remove)
        if anatomy.head is not None:
            hook = anatomy.head.register_forward_pre_hook(lambda module, args: into_head.append(_keep(args[0])))
            stack.callback(hook.remove)
        batch = torch.as_tensor(ids, device=model.device).reshape(1, -1)
        logits = run_model(model, batch)
    first = calls[0].before
    assert first is not None
    why = ""
    if not all(parts):
        missing = next(index for index, part in enumerate(parts) if part is None)
        why = _why_no_parts(anatomy, missing)
    return Recording(
        ids=batch[0].cpu(),
        logits=_keep(logits),
        residual=torch.stack([_keep(first), *after]),
        attention=weights,
        heads=heads,
        parts=parts,
        head_input=into_head[-1] if into_head else torch.empty(0),
        why=why,
    )


def run_model(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits (rows, length, vocabulary) of a batch of token ids."""
    # Older architectures return attention weights only if this is set.
    asked = "output_attentions" in inspect.signature(base_of(model).forward).parameters
    more = {"output_attentions": True} if asked else {}
    return model(input_ids=ids.to(model.device), use_cache=False, **more).logits


def _hook_layer(
    stack: ExitStack, anatomy: Anatomy, index: int, layer: Any, seen: _Calls, finish: Callable[[int, Any], None]
) -> None:
    def begin(module: Any, args: Any, kwargs: Any) -> None:
        seen.before = _states(args, kwargs)

    def note(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        given, returned = _states(args, kwargs), _first_tensor(output)
        # Copied, because some architectures modify it in place.
        seen.calls.append((module, given, returned, None if returned is None else returned.clone()))

    def end(module: Any, args: Any, output: Any) -> None:
        finish(index, _first_tensor(output))

    stack.callback(layer.register_forward_pre_hook(begin, with_kwargs=True).remove)
    for child in layer.children():
        stack.callback(child.register_forward_hook(note, with_kwargs=True).remove)
    stack.callback(layer.register_forward_hook(end).remove)


def _states(args: Sequence[Any], kwargs: dict[str, Any]) -> torch.Tensor | None:
    """Return the first argument with the shape of hidden states."""
    named = [kwargs["hidden_states"]] if "hidden_states" in kwargs else []
    tensors = (value for value in (*args, *named) if torch.is_tensor(value) and value.is_floating_point())
    return next((value for value in tensors if value.ndim in (2, 3)), None)  # OPT flattens the rows of a batch


def _first_tensor(output: Any) -> torch.Tensor | None:
    if torch.is_tensor(output):
        return output
    return next((value for value in output if torch.is_tensor(value)), None) if isinstance(output, tuple) else None


def _keep(tensor: torch.Tensor) -> torch.Tensor:
    """Return the only row of a batch, copied to the CPU in float32."""
    return tensor[0].detach().to("cpu", torch.float32, copy=True)


def weights_in(output: Any, length: int) -> torch.Tensor | None:
    """Return the attention weights (batch, heads, length, length) among the outputs of an attention, or None."""
    for value in output if isinstance(output, tuple) else ():
        if torch.is_tensor(value) and value.ndim == 4 and value.shape[-2:] == (length, length):
            return value
    return None


def _keep_weights(kept: list[torch.Tensor | None], index: int, length: int) -> Callable:
    def hook(module: Any, args: Any, output: Any) -> None:
        found = weights_in(output, length)
        kept[index] = None if found is None else _keep(found)

    return hook


def _keep_input(kept: list[torch.Tensor | None], index: int) -> Callable:
    def hook(module: Any, args: Any) -> None:
        kept[index] = _keep(args[0]).reshape(-1, args[0].shape[-1])

    return hook


# The parts of a layer


def _parts(anatomy: Anatomy, index: int, seen: _Calls, output: torch.Tensor, limit: float) -> Parts | None:
    """Return what attention and feed-forward network add, or None if their sum is not what the layer adds."""
    before, attention, feed_forward = seen.before, anatomy.attention[index], anatomy.feed_forward[index]
    found = {id(module): (given, copy) for module, given, _, copy in seen.calls}
    if before is None or attention is None or id(attention) not in found:
        return None
    added = found[id(attention)][1]
    if added is None:
        return None
    whole = (output - before).float()
    if feed_forward is not None and id(feed_forward) in found:
        other = found[id(feed_forward)][1]
        if other is not None and added.shape == other.shape == before.shape:
            error = _relative(before.float() + added.float() + other.float() - output.float(), whole)
            if error <= limit:
                return Parts(_keep(added), _keep(other), error, "the outputs of attention and the feed-forward network")
    middle = _middle(seen, attention, feed_forward, before, added, limit)
    if middle is None:
        return None
    first, second = (middle - before).float(), (output - middle).float()
    outputs = [copy.float() for _, _, _, copy in seen.calls if copy is not None and copy.shape == before.shape]
    errors = [_explain(first, before.float(), outputs), _explain(second, middle.float(), outputs)]
    if feed_forward is None:
        errors[1] = 0.0  # its layers are not in one module, so it is computed as the remainder
    if max(errors) > limit:
        return None
    how = "what the residual stream gained before the input of the feed-forward network, and after it"
    return Parts(_keep(first), _keep(second), max(errors), how)


def _middle(
    seen: _Calls,
    attention: Any,
    feed_forward: Any | None,
    before: torch.Tensor,
    added: torch.Tensor,
    limit: float,
) -> torch.Tensor | None:
    """Return the residual stream between the sub-blocks: the input of the second one, or of the norm in front of it."""
    if feed_forward is not None:
        given = next((given for module, given, _, _ in seen.calls if module is feed_forward), None)
        norm = next((one for one in seen.calls if one[2] is not None and one[2] is given), None)
        return given if norm is None else norm[1]
    total = before + added if added.shape == before.shape else None
    for module, given, _, _ in seen.calls:
        if total is None or given is None or module is attention or given.numel() != total.numel():
            continue
        if _relative(given.reshape(total.shape).float() - total.float(), total.float()) <= limit:
            return total
    return None


def _explain(part: torch.Tensor, start: torch.Tensor, outputs: Sequence[torch.Tensor]) -> float:
    """Return the error of the output that best explains a part: unchanged, scaled, or minus the residual stream."""
    found = [1.0]
    for output in outputs:
        size = (output * output).sum()
        scale = (part * output).sum() / size if size > 0 else torch.zeros(())
        found += [_relative(part - scale * output, part), _relative(part + start - output, part)]
    return min(found)


def _relative(error: torch.Tensor, whole: torch.Tensor) -> float:
    """Return the size of an error relative to that of the expected value."""
    return float(error.norm() / whole.norm().clamp_min(1e-12))


def _why_no_parts(anatomy: Anatomy, index: int) -> str:
    if anatomy.attention[index] is None:
        return f"layer {index} has no attention module"
    return f"in layer {index}, the outputs of attention and the feed-forward network do not sum to what the layer adds"


# Attention of a batch, without storing it


@torch.no_grad()
def run_reading(
    model: Any, ids: torch.Tensor, use: Callable[[int, torch.Tensor], None]
) -> tuple[torch.Tensor, list[int]]:
    """Run a batch (rows, length) and pass each layer's attention weights (rows, heads, length, length) to `use`.

    Returns the logits, and the layers without attention weights.
    """
    anatomy = find_parts(model)
    missing = []
    with eager_attention(model), ExitStack() as stack:
        for index, attention in enumerate(anatomy.attention):
            if attention is None:
                missing.append(index)
                continue

            def hook(module: Any, args: Any, output: Any, index: int = index) -> None:
                found = weights_in(output, ids.shape[1])
                if found is None:
                    missing.append(index)
                else:
                    use(index, found.float())

            stack.callback(attention.register_forward_hook(hook).remove)
        logits = run_model(model, ids)
    return logits, missing


@contextmanager
def without_heads(model: Any, heads: Sequence[tuple[int, int]], count: int) -> Iterator[None]:
    """Zero the outputs of heads, each (layer, head), before the output projection. count: heads per layer.

    Raises IndexError for a head that the model doesn't have, LookupError if a layer has no output projection.
    """
    anatomy = find_parts(model)
    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        if not 0 <= head < count:
            raise IndexError(f"head {head} of {count}")
        by_layer.setdefault(layer, []).append(head)
    with ExitStack() as stack:
        for layer, chosen in by_layer.items():
            output = anatomy.outputs[layer]
            if output is None:
                raise LookupError(f"layer {layer} has no output projection")

            def hook(module: Any, args: Any, chosen: Sequence[int] = tuple(chosen)) -> tuple[Any, ...]:
                z = args[0].clone()
                width = z.shape[-1] // count
                for head in chosen:
                    z[..., head * width : (head + 1) * width] = 0
                return (z, *args[1:])

            stack.callback(output.register_forward_pre_hook(hook).remove)
        yield
