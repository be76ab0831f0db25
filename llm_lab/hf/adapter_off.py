"""A model with its adapter switched off: its base, as it is without it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError

from .adapter import CONFIG, WEIGHTS, is_adapter, is_whole_end, read_adapter, rows_on_disk
from .load import read_config
from .tokenizers import load_tokenizer


def require_switch(folder: str) -> None:
    """UserError for an adapter that has taken the place of its base's embeddings or head: they can't come back.

    PEFT saves them whole where the vocabulary has grown, and on loading writes them over the base's.
    """
    from safetensors import safe_open

    path = Path(folder)
    beside = json.loads((path / CONFIG).read_text(encoding="utf-8")).get("modules_to_save") or ()
    with safe_open(path / WEIGHTS, framework="pt") as file:
        ends = [name for name in file.keys() if is_whole_end(name) and name.split(".")[-2] not in beside]  # noqa: SIM118
    if ends:
        why = "this adapter brings embeddings or a head of its own, so its base can't be had by switching it off"
        raise UserError(Problem("adapter", why, value=folder, fix=f"Load the base itself: {read_adapter(path).base}"))


@contextmanager
def switch_adapter_off(model: Any, folder: str) -> Iterator[Any]:
    """Let a PeftModel, loaded from `folder`, be its base for a while; yields the base's tokenizer.

    PEFT's own switch leaves the rows that a larger vocabulary has added and the end tokens of the adapter's chat
    template: here they are the base's too, so that its answers are those of the base loaded by itself.
    """
    require_switch(folder)
    base = read_adapter(folder).base
    tokenizer, inner = load_tokenizer(base), model.get_base_model()
    generation, config = _end_tokens(base)
    before = (model.generation_config, inner.generation_config)
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {name: getattr(inner.config, name, None) for name in names}
    with model.disable_adapter(), _rows(inner, rows_on_disk(base)):
        try:
            model.generation_config = inner.generation_config = generation
            for name in names:
                setattr(inner.config, name, getattr(config, name, None))
            yield tokenizer
        finally:
            model.generation_config, inner.generation_config = before
            for name, value in ids.items():
                setattr(inner.config, name, value)


def _end_tokens(base: str) -> tuple[Any, Any]:
    """Return the base's generation config, and what its config has for special tokens."""
    from transformers import GenerationConfig

    config = None if is_adapter(base) else read_config(base)
    try:
        generation = GenerationConfig.from_pretrained(base)
    except OSError:
        generation = GenerationConfig.from_model_config(config)
    return generation, config or generation


@contextmanager
def _rows(model: Any, rows: int | None) -> Iterator[None]:
    """Cut embeddings and head down to the rows that the base has on disk, and give the others back afterwards."""
    cut: list[tuple[Any, Any]] = []
    for end in (model.get_input_embeddings(), model.get_output_embeddings()):
        layer = _plain(end)
        for weight in (getattr(layer, "weight", None), getattr(layer, "bias", None)):
            if rows is not None and weight is not None and len(weight) > rows:
                cut.append((weight, weight.data))
                weight.data = weight.data[:rows]  # of tied ones, it is the same parameter: cut once
    try:
        yield
    finally:
        for weight, data in cut:
            weight.data = data


def _plain(layer: Any) -> Any:
    """Return the layer that PEFT has wrapped."""
    while layer is not None:
        inner = getattr(layer, "original_module", None) or getattr(layer, "base_layer", None)
        if inner is None:
            return layer
        layer = inner
    return None
