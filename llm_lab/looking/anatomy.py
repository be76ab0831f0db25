"""Finds the parts of any causal LM: its layers, their attention and feed-forward network, the output projections."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from llm_lab.errors import Problem, UserError

ATTENTION_NAMES = ("attn", "attention")
FEED_FORWARD_NAMES = ("mlp", "ffn", "feed_forward", "feedforward", "moe", "experts")
# Names of the last layer of an attention, whose input is the heads' outputs, concatenated.
OUTPUT_NAMES = ("o_proj", "c_proj", "out_proj", "dense", "wo", "proj")


@dataclass(frozen=True)
class Anatomy:
    """The parts of a causal LM. attention, outputs and feed_forward: one per layer; None if a layer has none."""

    layers: tuple[Any, ...]
    attention: tuple[Any | None, ...]
    outputs: tuple[Any | None, ...]
    feed_forward: tuple[Any | None, ...]
    after_layers: tuple[Any, ...]  # modules that may come between the last layer and the head, such as the final norm
    head: Any


def base_of(model: Any) -> Any:
    """Return the model inside PEFT's wrapper, or the model itself; the adapter stays in its layers."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def find_parts(model: Any) -> Anatomy:
    """Return the parts of a causal LM. Raises UserError if its layers can't be found."""
    base = base_of(model)
    depth = getattr(base.config.get_text_config(), "num_hidden_layers", None)
    lists = [
        (name, module)
        for name, module in base.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    if not lists:
        why = f"the layers of this architecture ({base.config.model_type}) can't be found: it has no list of {depth}"
        raise UserError(Problem("model", why, fix="Look at a decoder from transformers."))
    name, layers = min(lists, key=lambda found: found[0].count("."))
    parent = base.get_submodule(name.rpartition(".")[0])
    attention = tuple(_child(layer, ATTENTION_NAMES) for layer in layers)
    return Anatomy(
        layers=tuple(layers),
        attention=attention,
        outputs=tuple(_output(module) if module is not None else None for module in attention),
        feed_forward=tuple(_child(layer, FEED_FORWARD_NAMES) for layer in layers),
        after_layers=tuple(
            child for child in parent.children() if child is not layers and not isinstance(child, nn.Embedding)
        ),
        head=base.get_output_embeddings(),
    )


def _child(layer: Any, names: tuple[str, ...]) -> Any | None:
    """Return the direct child of a layer whose name contains one of these words, and which is not a norm."""
    for name, child in layer.named_children():
        lower = name.lower()
        if any(word in lower for word in names) and not any(word in lower for word in ("norm", "ln", "dropout")):
            return child
    return None


def _output(attention: Any) -> Any | None:
    """Return the output projection of an attention."""
    found = [module for name, module in attention.named_modules() if name.rpartition(".")[2] in OUTPUT_NAMES]
    return found[-1] if found else None


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Compute attention so that it returns its weights, in eval mode; restore the kernel and the mode afterwards."""
    base = base_of(model)
    before, training = base.config.get_text_config()._attn_implementation, model.training
    change = before not in (None, "eager")
    if change:
        base.set_attn_implementation("eager")
    model.eval()
    try:
        yield
    finally:
        if change:
            base.set_attn_implementation(before)
        model.train(training)
